"""What is read from a network, and how it becomes a vector of known length.

A `Tap` names one intermediate output. A `Pool` is the aggregation a(.) of equation (2): it plans the length of every
pooled tap before any batch runs, then applies exactly that plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from head2toe.errors import FeatureError

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int]
Layout = Literal["NC", "NCHW", "NHWC", "NLC"]
Rule = Literal["paper", "grid"]
ClassToken = Literal["normal", "only_cls", "nopool_cls"]
Moments = Literal[1, 2]
COARSE = 512  # target size up to which deviations stand beside means: in smaller cells they add bytes, no accuracy


@dataclass(frozen=True)
class Tap:
    """A named intermediate output of a network.

    `shape` is one image's output without the batch axis, in the order of `layout`; the first `prefix_tokens` tokens of
    an `NLC` output are class or register tokens. Of a `padded` one, text or sound, each input fills a part: its tokens
    pool to one mean at every target size, since windows over padding would mean something else in every row.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    prefix_tokens: int = 0
    padded: bool = field(default=False, compare=False)  # what was stored before it was told is the same

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.layout) - 1:
            raise FeatureError(f"tap '{self.name}': layout {self.layout} does not fit the shape {self.shape}")

    @property
    def channels(self) -> int:
        return self.shape[self.layout.index("C") - 1]


@dataclass(frozen=True)
class Pool:
    """The aggregation of one tap to about `target_size` numbers, in float32; 0 means the global mean.

    rule="paper" repeats the published integer windows: with g = floor(sqrt(floor(target_size / channels))) cells a
    side, window and stride are floor(W / g), so that the result can exceed the target size and edges can be left out.
    rule="grid" averages exactly g x g cells that cover the whole map, g bounded by the map's own size.

    moments=2 puts the standard deviation over each cell beside its mean: all means first, then all deviations. What has
    one place a cell (a vector, a class token, a map no larger than its cells) has none.

    >>> Pool(512).length(Tap("stem", (32, 112, 112), "NCHW"))
    512
    >>> Pool(512, moments=2).length(Tap("stem", (32, 112, 112), "NCHW"))
    1024
    """

    target_size: int = 512
    rule: Rule = "paper"
    class_token: ClassToken = "normal"
    moments: Moments = 1

    def __post_init__(self) -> None:
        if self.target_size < 0:
            raise FeatureError(f"Pool: target_size must be 0 (global mean) or positive, got {self.target_size}")

    def length(self, tap: Tap) -> int:
        """How many numbers one image's output of `tap` becomes."""
        if tap.layout == "NC":
            return tap.shape[0]
        if tap.layout == "NLC":
            whole, pooled = self._token_split(tap)
            cells = self._token_cells(pooled, tap)
            return (whole + cells * self._numbers(cells, pooled)) * tap.channels
        (height, width), channels = _height_width(tap), tap.channels
        rows, columns = self._map_cells(height, width, channels)
        return rows * columns * channels * self._numbers(rows * columns, height * width)

    def __call__(self, output: Tensor, tap: Tap, mask: Tensor | None = None) -> Tensor:
        """Pool a batch of outputs (n, *tap.shape) to (n, length) float32; `mask` (n, L) marks the real tokens.

        Cells come first and channels last, as in the published flattening. Masked tokens do not enter a mean; only the
        tokens of a `padded` tap, which have one cell, can have a mask.
        """
        if tap.layout == "NC":
            return output.float().clone()  # the network may go on to write into its own output
        if tap.layout == "NLC":
            return self._tokens(output, tap, mask)
        image = output.permute(0, 3, 1, 2) if tap.layout == "NHWC" else output
        return self._map(image, tap)

    def _numbers(self, cells: int, places: int) -> int:
        """How many numbers a channel has in each of the cells of so many places."""
        return self.moments if cells < places else 1

    def _map(self, image: Tensor, tap: Tap) -> Tensor:
        from torch.nn import functional

        height, width = _height_width(tap)
        rows, columns = self._map_cells(height, width, tap.channels)
        window = self._map_window(height, width, tap.channels) if self.rule == "paper" else None
        down, across = window or (None, None)
        spans = _spans(height, rows, down), _spans(width, columns, across)
        moments = self._numbers(rows * columns, height * width)
        maps = image.permute(0, 2, 3, 1)
        if _suits_cells(maps):
            from head2toe.cells import cell_moments

            return cell_moments(maps, *spans, moments)
        image = image.float()
        if window is not None:
            cells = functional.avg_pool2d(image, window, window)
        elif rows == columns == 1:
            cells = image.mean((2, 3), keepdim=True)
        else:
            cells = functional.adaptive_avg_pool2d(image, (rows, columns))
        means = cells.permute(0, 2, 3, 1).flatten(1)
        return means if moments == 1 else _with_deviations(means, image.permute(0, 2, 3, 1), *spans)

    def _map_window(self, height: int, width: int, channels: int) -> tuple[int, int] | None:
        """The published window (rows, columns); None means the global mean, also where it would be empty."""
        if self.target_size == 0 or channels >= self.target_size:
            return None
        window = width // math.isqrt(self.target_size // channels)
        return (min(window, height), window) if window else None

    def _map_cells(self, height: int, width: int, channels: int) -> tuple[int, int]:
        if self.rule == "grid":
            if self.target_size == 0 or channels >= self.target_size:
                return 1, 1
            side = math.isqrt(self.target_size // channels)
            return min(side, height), min(side, width)
        window = self._map_window(height, width, channels)
        return (height // window[0], width // window[1]) if window else (1, 1)

    def _tokens(self, output: Tensor, tap: Tap, mask: Tensor | None) -> Tensor:
        import torch
        from torch.nn import functional

        whole, length = self._token_split(tap)
        head = output[:, :whole].float().flatten(1)
        if length == 0:
            return head
        cells = self._token_cells(length, tap)
        moments, skipped = self._numbers(cells, length), tap.shape[0] - length
        spans = _spans(length, cells, self._token_window(length, tap))
        if mask is None and _suits_cells(output[:, None]):
            from head2toe.cells import cell_moments

            shifted = [(start + skipped, stop + skipped) for start, stop in spans]
            return torch.cat((head, cell_moments(output[:, None], [(0, 1)], shifted, moments)), 1)
        rest = output[:, skipped:].float()
        if mask is not None:
            if cells > 1:
                raise FeatureError(f"tap '{tap.name}': tokens with a mask pool to one mean; the tap should be padded")
            pooled = _of_real_tokens(rest, mask[:, skipped:, None].float(), moments)
            return torch.cat((head, pooled), 1)
        if cells == 1:
            pooled = rest.mean(1) if self._token_window(length, tap) is None else self._windowed(rest, tap)
        elif self.rule == "grid":
            pooled = functional.adaptive_avg_pool1d(rest.transpose(1, 2), cells).transpose(1, 2).flatten(1)
        else:
            pooled = self._windowed(rest, tap)
        if moments == 2:
            pooled = _with_deviations(pooled, rest[:, None], [(0, 1)], spans)
        return torch.cat((head, pooled), 1)

    def _windowed(self, rest: Tensor, tap: Tap) -> Tensor:
        from torch.nn import functional

        window = self._token_window(rest.shape[1], tap)
        assert window is not None
        return functional.avg_pool1d(rest.transpose(1, 2), window, window).transpose(1, 2).flatten(1)

    def _token_split(self, tap: Tap) -> tuple[int, int]:
        """(tokens kept whole, tokens pooled)."""
        length, prefix = tap.shape[0], tap.prefix_tokens
        if prefix == 0 or self.class_token == "normal":
            return 0, length
        return (1, 0) if self.class_token == "only_cls" else (1, length - prefix)

    def _token_window(self, length: int, tap: Tap) -> int | None:
        if tap.padded or self.rule == "grid" or self.target_size == 0 or tap.channels >= self.target_size:
            return None
        return length // (self.target_size // tap.channels) or None

    def _token_cells(self, length: int, tap: Tap) -> int:
        if length == 0:
            return 0
        if self.rule == "grid":
            return 1 if tap.padded else max(1, min(length, self.target_size // tap.channels))
        window = self._token_window(length, tap)
        return length // window if window else 1


@dataclass(frozen=True)
class PooledTap:
    """One block of features: a tap and the aggregation applied to it."""

    tap: Tap
    pool: Pool

    @property
    def name(self) -> str:
        return self.tap.name

    @property
    def length(self) -> int:
        return self.pool.length(self.tap)

    @property
    def n_means(self) -> int:
        """How many of its numbers are means; they come first."""
        return replace(self.pool, moments=1).length(self.tap)


def _height_width(tap: Tap) -> tuple[int, int]:
    return (tap.shape[1], tap.shape[2]) if tap.layout == "NCHW" else (tap.shape[0], tap.shape[1])


def _spans(length: int, cells: int, window: int | None) -> list[Span]:
    """[start, stop) of each cell along one axis: windows side by side, or `cells` that cover the whole axis."""
    if window is not None:
        return [(cell * window, (cell + 1) * window) for cell in range(cells)]
    return [(cell * length // cells, -(-(cell + 1) * length // cells)) for cell in range(cells)]


def _with_deviations(means: Tensor, maps: Tensor, rows: Sequence[Span], columns: Sequence[Span]) -> Tensor:
    """Means (n, cells * C) and after them the standard deviations over the same cells of `maps` (n, H, W, C)."""
    import torch

    cells = [maps[:, top:bottom, left:right] for top, bottom in rows for left, right in columns]
    return torch.cat([means, *(cell.std((1, 2), correction=0) for cell in cells)], 1)


def _of_real_tokens(tokens: Tensor, real: Tensor, moments: int) -> Tensor:
    """The mean, and with two moments the standard deviation, of `tokens` (n, L, C) where `real` (n, L, 1) is 1."""
    import torch

    count = real.sum(1).clamp_min(1.0)
    mean = (tokens * real).sum(1) / count
    if moments == 1:
        return mean
    variance = ((tokens - mean[:, None]).square() * real).sum(1) / count
    some = variance > 0  # the root has no slope at zero
    return torch.cat((mean, torch.where(some, torch.where(some, variance, 1.0).sqrt(), 0.0)), 1)


def _suits_cells(maps: Tensor) -> bool:
    """Whether `cells.cell_moments` reads this map (n, H, W, C) faster than torch does; it gives no gradient."""
    if maps.device.type != "cpu" or maps.requires_grad or not maps.is_contiguous():
        return False
    from head2toe.cells import FORMATS

    return maps.dtype in FORMATS
