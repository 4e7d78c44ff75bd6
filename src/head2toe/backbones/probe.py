"""Finding the taps of any network: one forward pass of two inputs with hooks on every module.

A tap is a tensor, not a module. Tensors are told apart by their memory and its version counter, so that a block that
returns what its last norm made counts once, while an in-place activation or `+=` after it counts as something new.
Rules, in the words of the roles below:

- norm: outputs of normalisations; where an activation (a module, or a function at the end of a convolution block)
  directly follows, its output stands in;
- act: outputs of activations; not of gates (sigmoid, softmax) nor inside squeeze-and-excite branches;
- attention, mlp, block: outputs of these; stem: patch embeddings, and what enters the first block;
- prelogits, logits: what enters and what leaves the classifier, or the network's output where there is none.

A tensor is named after the part that made it, climbed to just beneath its block (`bn1`, not `bn1.act`), a block after
itself (`encoder.layer.11`, not the `encoder` that it ends); the names of
other modules that return the very same tensor are its aliases. Outputs whose first axis is not the batch (windows
folded into it), whose token axis no normalisation has seen (transposed token mixers), oblong maps of a
square picture (windows beside tokens), or with other than 2 to 4 axes are no taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from head2toe.backbones.kinds import Kind, channel_axis, kinds_of
from head2toe.errors import BackboneError
from head2toe.taps import Layout, Tap

Role = Literal["stem", "norm", "act", "attention", "mlp", "block", "prelogits", "logits"]
Side = Literal["output", "input"]
Key = tuple[int, int, int, int]
BATCH = 2
_NOTHING: Key = (0, 0, 0, 0)
_MAX_PREFIX = 5  # a class token and four registers


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
    """One call of one module during the probe; `above` are the calls around it, inside out."""

    name: str
    kind: Kind
    number: int
    above: tuple[_Call, ...]
    taken: Key | None
    children: list[_Call] = field(default_factory=list)
    made: Key = _NOTHING
    shape: tuple[int, ...] = ()
    own_axis: int | None = None
    axis: int | None = None
    end: int = 0
    square: bool = True
    windows: bool = False
    roles: tuple[Role, ...] = ()

    @property
    def label(self) -> str:
        return self.name if self.number == 1 else f"{self.name}#{self.number}"


@dataclass
class _Trace:
    """All calls in the order in which they ended; `kept` holds their tensors, so that no memory is used twice."""

    calls: list[_Call] = field(default_factory=list)
    makers: dict[Key, list[_Call]] = field(default_factory=dict)
    inputs: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)
    result: object = None


def find_sites(
    module: nn.Module, run: Callable[[], object], *, prefix_tokens: int | None = None, sequence: int | None = None
) -> tuple[Site, ...]:
    """Every tap of `module` in order of execution, from one pass `run()` over a batch of two.

    `prefix_tokens` is the number of class and register tokens where the caller knows it (else it is told from the map
    that the tokens come from); `sequence` is the length of text and audio inputs. BackboneError where nothing is found.
    """
    trace = _record(module, run)
    lengths = _token_lengths(trace, sequence)
    maps = _map_areas(trace)
    sites = []
    for call, roles, side in sorted(_candidates(trace, sequence), key=lambda item: (item[0].end, item[2] == "output")):
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
    if not any("prelogits" in site.roles for site in sites):  # pooled by a function, from the last of the taps
        sites[-1] = replace(sites[-1], roles=sites[-1].roles | {"prelogits"})
    return tuple(sites)


def first_tensor(value: object) -> Tensor | None:
    """The tensor that a module's output stands for: itself, a mapping's logits or last hidden state, or the first."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        named = [value[key] for key in ("logits", "last_hidden_state") if value.get(key) is not None]
        return first_tensor([*named, *value.values()])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((tensor for item in value if (tensor := first_tensor(item)) is not None), None)
    return None


def _record(module: nn.Module, run: Callable[[], object]) -> _Trace:
    trace, stack, numbers, axes = _Trace(), list[_Call](), dict[str, int](), dict[tuple[int, ...], int]()
    kinds = kinds_of(module)

    def before(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        numbers[name] = numbers.get(name, 0) + 1
        tensor = first_tensor(args) if args else first_tensor(list(kwargs.values()))
        call = _Call(name, kinds[name], numbers[name], tuple(reversed(stack)), _key(tensor, trace))
        if stack:
            stack[-1].children.append(call)
        if call.taken is not None and tensor is not None:
            trace.inputs[call.taken] = tuple(tensor.shape)
        stack.append(call)

    def after(part: nn.Module, output: object) -> None:
        call = stack.pop()
        tensor = first_tensor(output)
        if tensor is not None:
            call.made, call.shape = _key(tensor, trace) or _NOTHING, tuple(tensor.shape)
            call.own_axis = channel_axis(part, call.kind, call.shape)
            if call.own_axis is not None:
                axes[call.shape] = call.own_axis
            call.axis = axes.get(call.shape)
            if call.own_axis is None and _is_cube(call.shape) and tensor.stride(1) == 1:
                call.axis = 1  # pictures lie channels last in memory, whatever the order of axes inside a block
            trace.makers.setdefault(call.made, []).append(call)
        call.end = len(trace.calls)
        trace.calls.append(call)

    with ExitStack() as hooks, torch.no_grad():  # not inference mode: its tensors have no version counter
        for name, part in module.named_modules():
            enter = partial(lambda name, part, args, kwargs: before(name, args, kwargs), name)
            hooks.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(part.register_forward_hook(lambda part, args, output: after(part, output)).remove)
        trace.result = run()
    for call in trace.calls:
        call.square = _is_square_input(trace)
        known = call.square and len(call.shape) == 4
        call.windows = known and _is_oblong(_layout(call, call.shape), call.shape)
    for call in trace.calls:  # only now are the outputs of the blocks around each call known
        call.roles = _roles(call)
    return trace


def _key(tensor: Tensor | None, trace: _Trace) -> Key | None:
    """What tells one value from another: its memory, and how often that was written; whole views are the same."""
    if tensor is None:
        return None
    trace.kept.append(tensor)
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tensor.numel(), tensor._version


def _roles(call: _Call) -> tuple[Role, ...]:
    """What a call's output is by itself; nothing inside attention, whose parts are queries and keys."""
    if call.made == _NOTHING or not call.above or any(outer.kind.inner_attention for outer in call.above):
        return ()
    if call.shape[2:] == (1, 1) and _is_gate_branch(call):
        return ()
    kind = call.kind
    named: dict[Role, bool] = {
        "stem": kind.embedding,
        "norm": kind.norm,
        "act": kind.activation,
        "attention": kind.attention,
        "mlp": kind.mlp and not kind.attention,
        "block": kind.block and not _is_stage(call) and not _is_piece(call),
    }
    return tuple(role for role, holds in named.items() if holds)


def _is_stage(call: _Call) -> bool:
    """A row of blocks: something inside it is a block whose output no part of it returned, a residual sum."""
    return any(_is_sum(inner) or _is_stage(inner) for inner in _rows(call))


def _is_sum(call: _Call) -> bool:
    """Windows beside tokens are no taps: what is around them stands in."""
    return call.kind.block and not call.windows and all(child.made != call.made for child in call.children)


def _rows(call: _Call) -> list[_Call]:
    """The nearest blocks inside."""
    return [one for child in call.children for one in ([child] if child.kind.block else _rows(child))]


def _is_piece(call: _Call) -> bool:
    """Inside a block that is no stage: a part of it, though it stands in a row."""
    return any(outer.kind.block and not _is_stage(outer) for outer in call.above)


def _is_gate_branch(call: _Call) -> bool:
    """A 1 x 1 map inside a block that returns a larger one: squeeze-and-excite, not a feature map."""
    return any(len(outer.shape) == 4 and 1 not in outer.shape[2:] for outer in call.above if outer.kind.block)


def _candidates(trace: _Trace, sequence: int | None) -> list[tuple[_Call, set[Role], Side]]:
    """The naming call, the roles and the side of every tensor worth tapping, each tensor once."""
    roles: dict[Key, set[Role]] = {}
    for call in trace.calls:
        if call.roles:
            roles.setdefault(call.made, set()).update(call.roles)
    _let_activations_stand_in(trace, roles)
    stem = _stem(trace)
    if stem is not None:
        roles.setdefault(stem, set()).add("stem")
    found: list[tuple[_Call, set[Role], Side]] = []
    prelogits, logits = _ends(trace, sequence)
    if logits is not None:
        roles.setdefault(logits, set()).add("logits")
    if isinstance(prelogits, _Call):  # computed by a function: only the classifier's input shows it
        found.append((prelogits, {"prelogits"}, "input"))
    elif prelogits is not None:
        roles.setdefault(prelogits, set()).add("prelogits")
    return found + [
        (_namer(trace.makers[key], names), names, "output") for key, names in roles.items() if key in trace.makers
    ]


def _let_activations_stand_in(trace: _Trace, roles: dict[Key, set[Role]]) -> None:
    """Drop the outputs of norms where the activation that directly follows is tapped."""
    for call in trace.calls:
        taken = call.taken or _NOTHING
        if "act" in call.roles and taken != call.made and "norm" in roles.get(taken, ()):
            roles[call.made].add("norm")
            roles.pop(taken)
        last = call.children[-1] if call.children else None
        if last is None or call.made == _NOTHING or last.made not in roles or call.made == last.made:
            continue
        leaves = all(not child.children for child in call.children)
        if leaves and last.kind.norm and sum(child.kind.dense for child in call.children) == 1:
            roles.setdefault(call.made, set()).update({"act", "norm"})  # convolution, norm and a functional activation
            roles.pop(last.made)


def _stem(trace: _Trace) -> Key | None:
    """What enters the first block, unless a pooling layer made it from an activation that is tapped."""
    outermost = (call for call in trace.calls if call.kind.block and not any(up.kind.block for up in call.above))
    first = next(outermost, None)
    makers = trace.makers.get(first.taken or _NOTHING) if first else None
    if first is None or not makers:
        return None
    activated = any({"act", "norm"} & set(call.roles) for call in trace.calls[: makers[0].end])
    return None if makers[0].kind.pooling and activated else first.taken


def _ends(trace: _Trace, sequence: int | None) -> tuple[Key | _Call | None, Key | None]:
    """(pre-logits, logits): keys of tensors, or the classifier's call where only its input shows the pre-logits."""
    root = trace.calls[-1]
    if root.made == _NOTHING:
        return None, None
    classifiers = [call for call in trace.makers[root.made] if call.kind.dense]
    if not classifiers and len(root.shape) == 2:  # logits of several classifiers, averaged
        blocks_end = max((call.end for call in trace.calls if call.kind.block), default=-1)
        later = (call for call in trace.calls if call.end > blocks_end and call.kind.dense)
        classifiers = [call for call in later if call.shape == root.shape][:1]
    if classifiers and len(root.shape) == 2:
        shown = classifiers[0].taken in trace.makers
        return (classifiers[0].taken if shown else classifiers[0]), root.made
    result: object = None if sequence is not None else trace.result  # a text's mean token says more than its pooler
    pooled = first_tensor(result.get("pooler_output")) if isinstance(result, Mapping) else None
    key = _key(pooled, trace)
    return (key if key in trace.makers else root.made), None


def _namer(makers: list[_Call], roles: set[Role]) -> _Call:
    """The call to name a tensor after; the network's ends are wanted as vectors where some module returns them so."""
    if roles <= {"prelogits", "logits"}:
        makers = [call for call in makers if len(call.shape) == 2] or makers
    call = next((call for call in makers if not call.windows), makers[0])
    for outer in () if call.kind.block else call.above[:-1]:  # climb to just beneath the block
        if outer.made != call.made or outer.kind.block or outer.kind.container:
            break
        call = outer
    return call


def _aliases(call: _Call, side: Side, trace: _Trace) -> tuple[str, ...]:
    if side == "input":
        return ()
    others = (other for other in trace.makers[call.made] if other is not call and other.shape == call.shape)
    return tuple(other.label for other in others if other.name)


def _tap(call: _Call, side: Side, trace: _Trace, lengths: set[int]) -> Tap | None:
    shape = call.shape if side == "output" or call.taken is None else trace.inputs[call.taken]
    name = (call.label or "output") + (":input" if side == "input" else "")
    if not 2 <= len(shape) <= 4 or shape[0] != BATCH or 0 in shape:
        return None
    layout = _layout(call, shape)
    if layout is None or (layout == "NLC" and shape[1] not in lengths):
        return None
    if _is_square_input(trace) and _is_oblong(layout, shape):
        return None
    return Tap(name, shape[1:], layout)


def _layout(call: _Call, shape: tuple[int, ...]) -> Layout | None:
    """From the module's own type, else from a square map of a square picture, else from the last leaf of this shape."""
    if len(shape) == 2:
        return "NC"
    if len(shape) == 3:
        return None if call.axis == 1 else "NLC"
    if call.own_axis is not None:
        return "NCHW" if call.own_axis == 1 else "NHWC"
    told = call.square or call.axis is None  # square maps of square pictures, or nothing better
    if told and shape[1] == shape[2] != shape[3]:
        return "NHWC"
    return "NCHW" if call.axis in (1, None) or (told and shape[2] == shape[3] != shape[1]) else "NHWC"


def _is_oblong(layout: Layout | None, shape: tuple[int, ...]) -> bool:
    if layout not in ("NCHW", "NHWC"):
        return False
    height, width = shape[2:] if layout == "NCHW" else shape[1:3]
    return height != width


def _is_cube(shape: tuple[int, ...]) -> bool:
    """As many channels as rows and columns: sizes tell nothing."""
    return len(shape) == 4 and shape[1] == shape[2] == shape[3]


def _is_square_input(trace: _Trace) -> bool:
    """A square picture has square maps; other 4-axis outputs hold windows beside tokens."""
    shape = trace.inputs.get(trace.calls[-1].taken or _NOTHING, ())
    return len(shape) == 4 and shape[2] == shape[3]


def _token_lengths(trace: _Trace, sequence: int | None) -> set[int]:
    """How many tokens a sequence has anywhere: what norms over the last axis, and blocks, return."""
    lengths = {sequence} if sequence else set[int]()
    for call in trace.calls:
        if len(call.shape) == 3 and call.shape[0] == BATCH and call.roles:
            is_norm = "norm" in call.roles and call.own_axis == -1
            if is_norm or "stem" in call.roles or ("block" in call.roles and _layout(call, call.shape) == "NLC"):
                lengths.add(call.shape[1])
    return lengths


def _map_areas(trace: _Trace) -> set[int]:
    """Height times width of every map that a layer of known layout returned; patches that a linear layer embeds."""
    areas = set[int]()
    for call in trace.calls:
        if len(call.shape) == 4 and call.shape[0] == BATCH and call.own_axis is not None:
            height, width = call.shape[2:] if call.own_axis == 1 else call.shape[1:3]
            areas.add(height * width)
    first = next((call for call in trace.calls if call.kind.dense and call.shape[:1] == (BATCH,)), None)
    if first is not None and len(first.shape) == 3 and first.own_axis == -1:
        areas.add(first.shape[1])
    return areas


def _prefix(length: int, maps: set[int], known: int | None, sequence: int | None) -> int:
    """Class and register tokens: what a sequence has beyond the map that it was cut from."""
    if sequence is not None:
        return known or 0
    if length in maps:
        return 0
    beyond = [known] if known is not None else range(1, _MAX_PREFIX + 1)
    return next((extra for extra in beyond if length - extra in maps), 0)
