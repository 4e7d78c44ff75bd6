"""Batch normalisations folded into the convolutions before them, while a frozen network runs.

With running statistics a normalisation is one factor and one number a channel: with s = weight / sqrt(variance + eps),
norm(conv(x)) = conv(x; W s) + (b - mean) s + bias. Put into the convolution once, it saves a pass over every map.
Modules stay as they are: while a pass runs, torch's two functions are called with other weights, or not at all.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from head2toe.errors import BackboneError

_NORM = inspect.signature(functional.batch_norm)
_KNOWN: WeakKeyDictionary[nn.Module, dict[Hashable, _Folds]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class _Folds:
    """By the id of a convolution's weight: the weight and bias that it runs with, and the id of its norm's mean.

    `kept` holds what has these ids, so that no other tensor gets them.
    """

    convolutions: Mapping[int, tuple[Tensor, Tensor, int]] = field(default_factory=dict)
    kept: tuple[Tensor, ...] = ()


def folded(
    module: nn.Module, places: Hashable, dtype: torch.dtype, small_pass: Callable[[Callable[[object], None]], object]
) -> AbstractContextManager[object]:
    """A context for one frozen pass of `module` that is read at `places`; it computes the same in fewer steps.

    Which pairs fold is found once, by `small_pass(see)`: a pass of a few inputs that shows `see` each tensor that is
    read. A convolution that something beside its normalisation reads stays as it is; so do weights that are trained,
    shared or computed, and statistics of the batch. `dtype` is what convolutions compute in.
    """
    if not _may_fold(module):
        return nullcontext()
    known = _KNOWN.setdefault(module, {})
    if (places, dtype) not in known:
        known[places, dtype] = _find(module, dtype, small_pass)
    folds = known[places, dtype]
    return _Folded(folds) if folds.convolutions else nullcontext()


def _may_fold(module: nn.Module) -> bool:
    frozen = not any(weight.requires_grad for weight in module.parameters())
    return frozen and any(isinstance(part, _BatchNorm) for part in module.modules())


def _find(module: nn.Module, dtype: torch.dtype, small_pass: Callable[[Callable[[object], None]], object]) -> _Folds:
    with torch.inference_mode(), _Recorded(module.parameters()) as record:
        small_pass(record.see)
    uses = Counter(id(x) for x in record.read)
    weights = Counter(id(convolution.weight) for convolution in record.made.values())
    means = Counter(id(norm.mean) for norm in record.norms)
    folds, kept = dict[int, tuple[Tensor, Tensor, int]](), list[Tensor]()
    for norm in record.norms:
        convolution = record.made.get(id(norm.x))
        if convolution is None:
            continue
        if uses[id(norm.x)] == weights[id(convolution.weight)] == means[id(norm.mean)] == 1:
            folds[id(convolution.weight)] = (*_scaled(convolution, norm, dtype), id(norm.mean))
            kept += [convolution.weight, norm.mean]
    return _Folds(folds, tuple(kept))


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


def _scaled(convolution: _Convolution, norm: _Norm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight and bias of both in one, computed in float64 (on the processor: not every device has it)."""
    scale = torch.rsqrt(_exact(norm.variance) + norm.eps)
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = -_exact(norm.mean) if convolution.bias is None else _exact(convolution.bias) - _exact(norm.mean)
    bias = shift * scale + (0.0 if norm.bias is None else _exact(norm.bias))
    weight, device = convolution.weight, convolution.weight.device
    order = torch.channels_last if weight.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    folded = (_exact(weight) * scale[:, None, None, None]).to(device, dtype).contiguous(memory_format=order)
    return folded, bias.to(device, dtype)


def _exact(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


class _Recorded(TorchFunctionMode):
    """Sees every call of torch's functions: what convolutions made, and who read it."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._parameters = {id(one) for one in parameters if one.dtype == torch.float32}
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
        if any(True for _ in _tensors(made)):  # a question about its shape is no reading
            self.see((args, list(kwargs.values())))
        if func is torch.conv2d and len(args) >= 2 and id(args[1]) in self._parameters:
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

    def __init__(self, folds: _Folds) -> None:
        super().__init__()
        self._folds = folds.convolutions
        self._skipped = {mean for _, _, mean in folds.convolutions.values()}
        self._made: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and len(args) >= 2 and (fold := self._folds.get(id(args[1]))) is not None:
            weight, bias, mean = fold
            made = func(args[0], weight, bias, *args[3:], **{name: kwargs[name] for name in kwargs if name != "bias"})
            self._made[mean] = made
            return made
        if func is functional.batch_norm and len(args) >= 2 and id(args[1]) in self._skipped:
            if self._made.pop(id(args[1]), None) is not args[0]:
                raise BackboneError("forward: a normalisation reads another map than it did; it chooses by its input")
            return args[0]
        return func(*args, **kwargs)
