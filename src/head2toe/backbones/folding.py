"""Batch normalisations folded into the convolutions before them, while a frozen network runs.

With running statistics a normalisation is one factor and one number a channel: with s = weight / sqrt(variance + eps),
norm(conv(x)) = conv(x; W s) + (b - mean) s + bias. Put into the convolution once, it saves a pass over every map.
Modules stay as they are: while a pass runs, torch's two functions are called with other weights, or not at all.
"""

from __future__ import annotations

import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from head2toe.errors import BackboneError

SmallPass = Callable[[Callable[[object], None]], object]
_NORM = inspect.signature(functional.batch_norm)
_FOLDING = (torch.float32, torch.bfloat16)  # a folded weight can be too large for float16
# of the norm of a map: by how much two ways of rounding through a deep network may differ
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
_QUESTIONS = (int, torch.Size, torch.dtype, torch.device, torch.layout)  # what a shape or type is asked for gives


@dataclass(frozen=True, eq=False)
class _Pair:
    """A convolution's weight and bias with its normalisation in them, and the five to seven tensors they come from."""

    weight: Tensor
    bias: Tensor
    sources: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @property
    def is_current(self) -> bool:
        """Whether no source was written to since."""
        return self.versions == tuple(source._version for source in self.sources)


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of one module: its pairs by (weight, mean, number format), and which of them fold in which pass."""

    pairs: dict[tuple[int, int, torch.dtype], _Pair] = field(default_factory=dict)
    passes: dict[Hashable, tuple[_Pair, ...]] = field(default_factory=dict)


_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def folded(module: nn.Module, kind: Hashable, small_pass: SmallPass) -> AbstractContextManager[object]:
    """A context for one frozen pass of `module`; it computes the same in fewer steps.

    Which pairs fold is found once for each `kind` of pass (what it reads, and in which number format), by
    `small_pass(see)`: such a pass of a few inputs, which shows `see` each tensor that is read. A convolution that
    something beside its normalisation reads stays as it is; so do weights that are trained, shared or computed, and
    statistics of the batch. BackboneError where a later pass takes a folded map elsewhere.
    """
    if not _may_fold(module):
        return nullcontext()
    known = _KNOWN.setdefault(module, _Known())
    if kind not in known.passes or not all(pair.is_current for pair in known.passes[kind]):
        pairs = tuple(_found(module, known, small_pass))
        known.passes[kind] = pairs if pairs and _computes_the_same(pairs, small_pass) else ()
    return _Folded(known.passes[kind]) if known.passes[kind] else nullcontext()


def _may_fold(module: nn.Module) -> bool:
    """Whether weights and statistics are frozen, there are such, and no hook of others sees a convolution's output."""
    parts = list(module.modules())
    norms = [part for part in parts if isinstance(part, _BatchNorm)]
    hooked = any(part._forward_hooks for part in parts if isinstance(part, nn.Conv2d))
    trained = any(weight.requires_grad for weight in module.parameters())
    return bool(norms) and not (hooked or trained or any(norm.training for norm in norms))


def _found(module: nn.Module, known: _Known, small_pass: SmallPass) -> Iterator[_Pair]:
    with torch.inference_mode(), _Recorded() as record:
        small_pass(record.see)
    own = {id(x) for x in chain(module.parameters(), module.buffers()) if not x.is_inference()}
    reads = Counter(id(x) for x in record.read)
    weights = Counter(id(convolution.weight) for convolution in record.made.values())
    means = Counter(id(norm.mean) for norm in record.norms)
    for norm in record.norms:
        convolution = record.made.get(id(norm.x))
        if convolution is None or convolution.made.dtype not in _FOLDING:
            continue
        alone = reads[id(norm.x)] == weights[id(convolution.weight)] == means[id(norm.mean)] == 1
        if alone and all(id(source) in own for source in _sources(convolution, norm)):
            name = id(convolution.weight), id(norm.mean), convolution.made.dtype
            if name not in known.pairs or not known.pairs[name].is_current:
                known.pairs[name] = _pair(convolution, norm)
            yield known.pairs[name]


def _computes_the_same(pairs: Sequence[_Pair], small_pass: SmallPass) -> bool:
    """Whether what a small pass reads is the same with and without folding: scripted functions read unseen."""
    plain, quick = list[Tensor](), list[Tensor]()
    with torch.inference_mode():
        small_pass(lambda value: plain.extend(x.double() for x in _tensors(value)))
        try:
            with _Folded(pairs):
                small_pass(lambda value: quick.extend(x.double() for x in _tensors(value)))
        except BackboneError:
            return False
    share = TOLERANCE[pairs[0].weight.dtype]
    return all((a - b).norm() <= share * a.norm() for a, b in zip(plain, quick, strict=True))


@dataclass(frozen=True, eq=False)
class _Convolution:
    """One call: its `weight` (out, in, height, width), its bias (out,), and what it made."""

    weight: Tensor
    bias: Tensor | None
    made: Tensor


@dataclass(frozen=True, eq=False)
class _Norm:
    """One call of a normalisation of `x` by running statistics; all others are one number a channel, (C,)."""

    x: Tensor
    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def _sources(convolution: _Convolution, norm: _Norm) -> tuple[Tensor, ...]:
    """The weight first, then the mean."""
    rest = (norm.variance, norm.weight, norm.bias, convolution.bias)
    return (convolution.weight, norm.mean, *(x for x in rest if x is not None))


def _pair(convolution: _Convolution, norm: _Norm) -> _Pair:
    """Both in one, computed in float64 on the processor: not every device has it."""
    scale = torch.rsqrt(_exact(norm.variance) + norm.eps)
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = -_exact(norm.mean) if convolution.bias is None else _exact(convolution.bias) - _exact(norm.mean)
    bias = shift * scale + (0.0 if norm.bias is None else _exact(norm.bias))
    weight, made = convolution.weight, convolution.made
    order = torch.channels_last if weight.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    whole = (_exact(weight) * scale[:, None, None, None]).to(made.device, made.dtype).contiguous(memory_format=order)
    sources = _sources(convolution, norm)
    return _Pair(whole, bias.to(made.device, made.dtype), sources, tuple(source._version for source in sources))


def _exact(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


class _Recorded(TorchFunctionMode):
    """Sees every call of torch's functions: what convolutions made, and who read it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, _Convolution] = {}
        self.norms: list[_Norm] = []
        self.read: list[Tensor] = []

    def see(self, value: object) -> None:
        """Note the tensors of a value that is read."""
        self.read += [x for x in _tensors(value) if id(x) in self.made]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if not isinstance(made, _QUESTIONS):
            self.see((args, list(kwargs.values())))
        if func is torch.conv2d and len(args) >= 2 and isinstance(made, Tensor):
            self.made[id(made)] = _Convolution(args[1], args[2] if len(args) > 2 else kwargs.get("bias"), made)
        elif func is functional.batch_norm:
            told = _NORM.bind(*args, **kwargs)
            told.apply_defaults()
            if not told.arguments.pop("training"):
                self.norms.append(_norm(**told.arguments))
        return made


def _norm(
    input: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None,
    momentum: float, eps: float,
) -> _Norm:  # fmt: skip
    """By the names of torch's own arguments; without `training` there are running statistics."""
    return _Norm(input, running_mean, running_var, weight, bias, eps)


def _tensors(value: object) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


class _Folded(TorchFunctionMode):
    """Runs folded convolutions, and lets what they made pass their normalisations."""

    def __init__(self, pairs: Sequence[_Pair]) -> None:
        super().__init__()
        self._by_weight = {id(pair.sources[0]): pair for pair in pairs}
        self._by_mean = {id(pair.sources[1]): pair for pair in pairs}
        self._made: dict[_Pair, Tensor] = {}
        self._spent: dict[int, weakref.ref[Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and len(args) >= 2 and (pair := self._by_weight.get(id(args[1]))) is not None:
            rest = {name: value for name, value in kwargs.items() if name != "bias"}
            self._made[pair] = func(args[0], pair.weight, pair.bias, *args[3:], **rest)
            return self._made[pair]
        if func is functional.batch_norm and len(args) >= 2 and (pair := self._by_mean.get(id(args[1]))) is not None:
            if self._made.pop(pair, None) is not args[0]:
                raise BackboneError(
                    "forward: a normalisation reads another map than before; the network chooses its path"
                )
            normalised = args[0].view_as(args[0])  # what reads the map itself from now on is told from what reads this
            self._spent[id(args[0])] = weakref.ref(args[0])
            return normalised
        made = func(*args, **kwargs)
        if not isinstance(made, _QUESTIONS) and any(map(self._is_folded, _tensors((args, list(kwargs.values()))))):
            raise BackboneError("forward: a map is read beside its normalisation; the network chooses its path")
        return made

    def _is_folded(self, x: Tensor) -> bool:
        """Whether `x` is what a folded convolution made: no other than its normalisation can use it."""
        spent = self._spent.get(id(x))
        return any(x is made for made in self._made.values()) or (spent is not None and spent() is x)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None and self._made:
            raise BackboneError("forward: a map passes its normalisation by; the network chooses its path")
