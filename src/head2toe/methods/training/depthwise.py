"""Training steps on a processor: depthwise convolutions compute in float32 under a bfloat16 autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from head2toe.backbones.core import Backbone


def depthwise_in_float32(backbone: Backbone) -> AbstractContextManager[object]:
    """A context for forward passes that will be differentiated; it changes nothing but bfloat16 on a processor.

    The gradients of a depthwise convolution take a processor up to twenty times longer in bfloat16 than in float32,
    where they are a few hundredths of a network's operations. `benchmarks/train_step.py` measures both.
    """
    return _Depthwise() if (backbone.device, backbone.precision) == ("cpu", "bfloat16") else nullcontext()


class _Depthwise(TorchFunctionMode):
    """Sees every call of torch's functions, and computes the depthwise convolutions among them in float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and len(args) >= 2:
            x, weight, *rest = args
            if isinstance(x, Tensor) and isinstance(weight, Tensor) and weight.shape[1] == 1 < x.shape[1]:
                with torch.autocast("cpu", enabled=False):
                    return torch.conv2d(x.float(), weight.float(), *rest, **kwargs).to(torch.bfloat16)
        return func(*args, **kwargs)
