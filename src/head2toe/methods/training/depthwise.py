"""Training steps on a processor: depthwise convolutions whose gradients take no longer than the rest of the network's.

torch's gradient of a depthwise kernel costs many times its operations where windows are wide or maps are small, which
is where most channels are. This one reads maps and gradients once for each line of the window.
`benchmarks/train_step.py` measures whole steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from head2toe.backbones.core import Backbone

_ALONE = 4_000_000  # operations that are not worth another thread


def fast_depthwise(backbone: Backbone) -> AbstractContextManager[object]:
    """A context for forward passes that will be differentiated; it changes nothing but the speed of a processor.

    Under a bfloat16 autocast depthwise convolutions compute in float32: they are a few hundredths of a network's
    operations, and their gradients take a processor up to twenty times longer in bfloat16.
    """
    return _Depthwise() if backbone.device == "cpu" else nullcontext()


def weight_gradient_flops(
    gradient: Sequence[int], _x: Sequence[int], window: Sequence[int], *_: object, **__: object
) -> int:
    """Operations of the gradient of a depthwise kernel from shapes: as many as of the convolution itself."""
    return 2 * int(np.prod(gradient)) * int(np.prod(window))


class _Depthwise(TorchFunctionMode):
    """Sees every call of torch's functions, and takes the depthwise convolutions among them for its own."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return _convolved(*args, **kwargs) if func is torch.conv2d else func(*args, **kwargs)


def _convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """torch.conv2d, whose names of arguments these are."""
    depthwise = input.ndim == 4 and 1 < groups == weight.shape[0] == input.shape[1]
    if not depthwise or isinstance(padding, str) or input.dtype not in (torch.float32, torch.bfloat16):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    wanted = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    place = map(_pair, (stride, padding, dilation))
    with torch.autocast("cpu", enabled=False):
        out = _Convolution.apply(input.float(), weight.float(), None if bias is None else bias.float(), *place)
    return out.to(wanted)


def _pair(both: int | Sequence[int]) -> list[int]:
    return [both, both] if isinstance(both, int) else [*both] * (2 // len(both))


class _Convolution(torch.autograd.Function):
    """A depthwise convolution of float32 maps (n, C, H, W), whose weights' gradient is ours."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *place: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.place = place
        return torch.conv2d(x, weight, bias, *place, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        dx, _, db = torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)], *ctx.place, False, [0, 0], len(weight), [of_x, False, of_bias]
        )
        dw = None
        if of_weight:
            dw = torch.ops.head2toe.depthwise_weight_gradient(gradient, x, weight.shape[2:], *ctx.place)
        return dx, dw, db, None, None, None


@torch.library.custom_op(
    "head2toe::depthwise_weight_gradient",
    mutates_args=(),
    schema="(Tensor gradient, Tensor x, int[] window, int[] stride, int[] padding, int[] dilation) -> Tensor",
)
def _weight_gradient(
    gradient: Tensor, x: Tensor, window: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """The gradient (C, 1, *window) of a depthwise kernel that made (n, C, h, w) of x (n, C, H, W), all float32.

    Threads share the window's lines, so that their number changes no sum.
    """
    dy, maps = (one.permute(0, 2, 3, 1).contiguous().numpy() for one in (gradient, x))
    found = np.zeros((*window, maps.shape[3]), np.float32)

    def add(line: int) -> None:
        _add(found[line], dy, maps, line, *stride, *padding, *dilation)

    if torch.get_num_threads() == 1 or weight_gradient_flops(gradient.shape, x.shape, window) < _ALONE:
        for line in range(window[0]):
            add(line)
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(add, range(window[0])))
    return torch.from_numpy(found).permute(2, 0, 1)[:, None]


@numba.njit(cache=True, nogil=True, fastmath={"nsz", "arcp", "contract", "afn", "reassoc"})
@no_type_check  # numba compiles the bare function; the tests' type checks would wrap it
def _add(found, dy, maps, line, down, right, above, left, step_down, step_right):
    """Add to `found` (kw, C) dy times what one line of the window saw of the maps."""
    n, rows, columns, channels = dy.shape
    _, height, width, _ = maps.shape
    for i in range(n):
        for row in range(rows):
            y = row * down + line * step_down - above
            if 0 <= y < height:
                for column in range(columns):
                    for place in range(len(found)):
                        x = column * right + place * step_right - left
                        if 0 <= x < width:
                            for c in range(channels):
                                found[place, c] += dy[i, row, column, c] * maps[i, y, x, c]
