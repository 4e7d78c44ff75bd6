"""Finding the taps of any network: one forward pass of two inputs with hooks on every module.

A tap is a tensor, not a module. Tensors are told apart by their memory and its version counter, so that a block that
returns what its last norm made counts once, while an in-place activation or `+=` after it counts as something new.
Rules, in the words of the roles below:

- norm: outputs of normalisations; where an activation (a module, or a function at the end of a convolution block)
  directly follows, its output stands in;
- act: outputs of activations; not of gates (sigmoid, softmax) nor inside squeeze-and-excite branches;
- attention, mlp, block: outputs of these; stem: what enters the first block;
- prelogits, logits: what enters and what leaves the classifier, or the network's output where there is none.

A tensor is named after the part that made it, climbed to just beneath its block (`bn1`, not `bn1.act`); the names of
other modules that return the very same tensor are its aliases. Outputs whose first axis is not the batch (windows
folded into it), whose token axis no normalisation has seen (transposed token mixers), or with other than 2 to 4 axes
are no taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from head2toe.backbones import kinds
from head2toe.errors import BackboneError
from head2toe.taps import Layout, Tap

Role = Literal["stem", "norm", "act", "attention", "mlp", "block", "prelogits", "logits"]
Side = Literal["output", "input"]
Key = tuple[int, int, int, int]
BATCH = 2
_MAX_PREFIX = 8


@dataclass(frozen=True)
class Site:
    """Where a tap is read: the `call`-th call (from 1) of `module` in one pass, its output or its first input."""

    tap: Tap
    module: str
    call: int
    side: Side
    roles: frozenset[Role]
    aliases: tuple[str, ...] = ()


@dataclass(eq=False)
class _Call:
    """One call of one module during the probe."""

    name: str
    module: nn.Module
    number: int
    parent: _Call | None
    taken: Key | None
    children: list[_Call] = field(default_factory=list)
    made: Key | None = None
    shape: tuple[int, ...] = ()
    axis: int | None = None
    end: int = 0

    @property
    def label(self) -> str:
        return self.name if self.number == 1 else f"{self.name}#{self.number}"

    def above(self) -> list[_Call]:
        """The calls around this one, inside out."""
        return [] if self.parent is None else [self.parent, *self.parent.above()]


@dataclass
class _Trace:
    """All calls in the order in which they ended; `kept` holds their tensors, so that no memory is used twice."""

    calls: list[_Call] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    inputs: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    result: object = None


def find_sites(
    module: nn.Module, run: Callable[[], object], *, prefix_tokens: int | None = None, sequence: int | None = None
) -> tuple[Site, ...]:
    """Every tap of `module` in order of execution, from one pass `run()` over a batch of two.

    `prefix_tokens` is the number of class and register tokens where the caller knows it (else it is told from the map
    that the tokens come from); `sequence` is the length of text and audio inputs. BackboneError where nothing is found.
    """
    trace = _record(module, run)
    found = _candidates(trace)
    lengths = _token_lengths(trace, sequence)
    maps = {shape[axis_] * shape[axis_ + 1] for shape, axis_ in _map_shapes(trace)}
    sites = []
    for call, roles, side in sorted(found, key=lambda item: (item[0].end, item[2] == "output")):
        tap = _tap(call, side, trace, lengths)
        if tap is not None:
            if tap.layout == "NLC":
                tap = replace(tap, prefix_tokens=_prefix(tap.shape[0], maps, prefix_tokens, sequence))
            sites.append(Site(tap, call.name, call.number, side, frozenset(roles), _aliases(call, side, trace)))
    if not sites:
        raise BackboneError(
            f"taps: {type(module).__name__} has no output that can be tapped; expected normalisations, activations or "
            "blocks that return (n, channels), (n, tokens, channels) or image maps"
        )
    return tuple(sites)


def first_tensor(value: object) -> Tensor | None:
    """The tensor that a module's output stands for: itself, a mapping's logits or last hidden state, a tuple's first."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        named = [value[key] for key in ("logits", "last_hidden_state") if value.get(key) is not None]
        return first_tensor([*named, *value.values()])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((tensor for item in value if (tensor := first_tensor(item)) is not None), None)
    return None


def _record(module: nn.Module, run: Callable[[], object]) -> _Trace:
    trace, stack, numbers = _Trace(), list[_Call](), dict[str, int]()

    def before(name: str, part: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        numbers[name] = numbers.get(name, 0) + 1
        tensor = first_tensor(args) if args else first_tensor(list(kwargs.values()))
        call = _Call(name, part, numbers[name], stack[-1] if stack else None, _key(tensor, trace))
        if call.parent is not None:
            call.parent.children.append(call)
        if call.taken is not None and tensor is not None:
            trace.inputs[call.taken] = tuple(tensor.shape)
        stack.append(call)

    def after(output: object) -> None:
        call = stack.pop()
        tensor = first_tensor(output)
        if tensor is not None:
            call.made, call.shape = _key(tensor, trace), tuple(tensor.shape)
            call.axis = kinds.channel_axis(call.module, call.shape)
        call.end = len(trace.calls)
        trace.calls.append(call)

    with ExitStack() as hooks, torch.no_grad():  # not inference mode: its tensors have no version counter
        for name, part in module.named_modules():
            hooks.callback(
                part.register_forward_pre_hook(
                    lambda part, args, kwargs, name=name: before(name, part, args, kwargs), with_kwargs=True
                ).remove
            )
            hooks.callback(part.register_forward_hook(lambda part, args, output: after(output)).remove)
        trace.result = run()
    return trace


def _key(tensor: Tensor | None, trace: _Trace) -> Key | None:
    """What tells one value from another: its memory, and how often that was written; views of all of it are the same."""
    if tensor is None:
        return None
    trace.kept.append(tensor)
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.numel(), tensor._version


def _candidates(trace: _Trace) -> list[tuple[_Call, set[Role], Side]]:
    """The naming call, the roles and the side of every tensor worth tapping, each tensor once."""
    first: dict[Key, _Call] = {}
    for call in trace.calls:
        if call.made is not None:
            first.setdefault(call.made, call)
    roles: dict[Key, set[Role]] = {}
    for call in trace.calls:
        for role in _roles(call):
            roles.setdefault(call.made or (0, 0, 0, 0), set()).add(role)
    _let_activations_stand_in(trace, roles)
    for key in _stem(trace):
        roles.setdefault(key, set()).add("stem")
    sides: list[tuple[_Call, set[Role], Side]] = []
    prelogits, logits = _ends(trace)
    if logits is not None:
        roles.setdefault(logits, set()).add("logits")
    if isinstance(prelogits, _Call):  # computed by a function: only the classifier's input shows it
        sides.append((prelogits, {"prelogits"}, "input"))
    elif prelogits is not None:
        roles.setdefault(prelogits, set()).add("prelogits")
    return [(_climbed(first[key]), names, "output") for key, names in roles.items() if key in first] + sides


def _roles(call: _Call) -> list[Role]:
    above = call.above()
    if call.made is None or not above or any(_is_innermost_attention(outer) for outer in above):
        return []
    if call.shape[2:] == (1, 1) and _is_gate_branch(call):
        return []
    roles: list[Role] = []
    if kinds.is_norm(call.module):
        roles.append("norm")
    if kinds.is_activation(call.module):
        roles.append("act")
    if kinds.is_attention(call.module, call.name):
        roles.append("attention")
    elif kinds.is_mlp(call.module, call.name):
        roles.append("mlp")
    if _is_block(call):
        roles.append("block")
    return roles


def _is_block(call: _Call) -> bool:
    """In a row of its like; ModuleLists are never called, so the row is read from the name, not from the calls."""
    return call.parent is not None and kinds.is_block(call.module, _holder(call))


def _holder(call: _Call) -> nn.Module | None:
    root = call.above()[-1].module
    try:
        return root.get_submodule(call.name.rpartition(".")[0])
    except AttributeError:
        return None


def _is_innermost_attention(call: _Call) -> bool:
    """Norms of queries and keys are no features; an outer attention module may also hold norms and an MLP."""
    return kinds.is_attention(call.module, call.name) and not any(
        kinds.is_attention(part, name) for name, part in call.module.named_modules() if part is not call.module
    )


def _is_gate_branch(call: _Call) -> bool:
    """A 1 x 1 map inside a block that returns a larger one: squeeze-and-excite, not a feature map."""
    return any(len(outer.shape) == 4 and 1 not in outer.shape[2:] for outer in call.above() if _is_block(outer))


def _let_activations_stand_in(trace: _Trace, roles: dict[Key, set[Role]]) -> None:
    """Drop the outputs of norms where the activation that directly follows is tapped."""
    for call in trace.calls:
        if "act" in _roles(call) and call.taken != call.made and "norm" in roles.get(call.taken or (0, 0, 0, 0), ()):
            roles[call.made or (0, 0, 0, 0)].add("norm")
            roles.pop(call.taken or (0, 0, 0, 0), None)
        last = call.children[-1] if call.children else None
        if last is None or call.made is None or last.made not in roles or call.made == last.made:
            continue
        leaves = all(not child.children for child in call.children)
        if leaves and kinds.is_norm(last.module) and sum(kinds.is_dense(child.module) for child in call.children) == 1:
            roles.setdefault(call.made, set()).update({"act", "norm"})  # convolution, norm and a functional activation
            roles.pop(last.made)


def _stem(trace: _Trace) -> list[Key]:
    """What enters the first block, unless a pooling layer made it from the stem's activation."""
    blocks = [call for call in trace.calls if _is_block(call)]
    if not blocks:
        return []
    outermost = [call for call in blocks if not any(_is_block(outer) for outer in call.above())]
    entering = outermost[0].taken
    maker = next((call for call in trace.calls if call.made == entering), None)
    if entering is None or maker is None or kinds.is_pooling(maker.module):
        return []
    return [entering]


def _ends(trace: _Trace) -> tuple[Key | _Call | None, Key | None]:
    """(pre-logits, logits): keys of tensors, or the classifier's call where only its input shows the pre-logits."""
    root = trace.calls[-1]
    output = root.made
    if output is None:
        return None, None
    makers = [call for call in trace.calls if call.made == output and kinds.is_dense(call.module)]
    if not makers and len(root.shape) == 2:  # logits of several classifiers, averaged
        blocks_end = max((call.end for call in trace.calls if _is_block(call)), default=-1)
        makers = [
            call
            for call in trace.calls
            if call.end > blocks_end and isinstance(call.module, nn.Linear) and call.shape == root.shape
        ][:1]
    if makers and len(root.shape) == 2:
        classifier = makers[0]
        shown = any(call.made == classifier.taken for call in trace.calls)
        return (classifier.taken if shown else classifier), output
    pooled = first_tensor(trace.result.get("pooler_output")) if isinstance(trace.result, Mapping) else None
    key = _key(pooled, trace)
    return (key if any(call.made == key for call in trace.calls) and key is not None else output), None


def _climbed(call: _Call) -> _Call:
    """The outermost call beneath its block that returns the very same tensor."""
    for outer in call.above()[:-1]:
        if outer.made != call.made or _is_block(outer) or kinds.is_container(outer.module):
            break
        call = outer
    return call


def _aliases(call: _Call, side: Side, trace: _Trace) -> tuple[str, ...]:
    if side == "input":
        return ()
    return tuple(other.label for other in trace.calls if other.made == call.made and other is not call and other.name)


def _tap(call: _Call, side: Side, trace: _Trace, lengths: set[int]) -> Tap | None:
    shape = call.shape if side == "output" or call.taken is None else trace.inputs[call.taken]
    name = (call.label or "output") + (":input" if side == "input" else "")
    if not 2 <= len(shape) <= 4 or shape[0] != BATCH or 0 in shape:
        return None
    layout = _layout(call, shape, trace)
    if layout is None or (layout == "NLC" and shape[1] not in lengths):
        return None
    return Tap(name, shape[1:], layout)


def _layout(call: _Call, shape: tuple[int, ...], trace: _Trace) -> Layout | None:
    """From the module's own type, else from the last leaf that made this very shape, else from a square map."""
    if len(shape) == 2:
        return "NC"
    axis = call.axis
    if axis is None:
        earlier = (other for other in reversed(trace.calls[: call.end]) if other.shape == shape)
        axis = next((other.axis for other in earlier if other.axis is not None), None)
    if len(shape) == 3:
        return None if axis == 1 else "NLC"
    if shape[1] == shape[2] != shape[3]:
        return "NHWC"
    return "NCHW" if axis == 1 or axis is None or shape[2] == shape[3] != shape[1] else "NHWC"


def _token_lengths(trace: _Trace, sequence: int | None) -> set[int]:
    """How many tokens a sequence has anywhere: what norms over the last axis, and blocks, return."""
    lengths = {sequence} if sequence else set[int]()
    for call in trace.calls:
        if len(call.shape) == 3 and call.shape[0] == BATCH and not any(map(_is_innermost_attention, call.above())):
            if kinds.is_norm(call.module) and call.axis == -1:
                lengths.add(call.shape[1])
            elif call.above() and _is_block(call) and _layout(call, call.shape, trace) == "NLC":
                lengths.add(call.shape[1])
    return lengths


def _map_shapes(trace: _Trace) -> list[tuple[tuple[int, ...], int]]:
    """Shapes of all maps, with the position of their height."""
    return [
        (call.shape, 2 if call.axis == 1 else 1)
        for call in trace.calls
        if len(call.shape) == 4 and call.shape[0] == BATCH and call.axis is not None
    ]


def _prefix(length: int, maps: set[int], known: int | None, sequence: int | None) -> int:
    """Class and register tokens: what a sequence has beyond the map that it was cut from."""
    if sequence is not None:
        return known or 0
    if length in maps:
        return 0
    beyond = [known] if known is not None else range(1, _MAX_PREFIX + 1)
    return next((extra for extra in beyond if length - extra in maps), 0)
