"""Means and deviations over the cells of float32 and bfloat16 maps: `taps.Pool` where a network runs on a CPU.

torch goes over a map several times (a copy in float32, windows, a deviation for each), which costs as much as the
network itself; this reads it once, in the caller's thread: an extraction has one for each core, and waking others costs
what they bring. Compiled on first use, once per number format, and cached on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

Span = tuple[int, int]
FORMATS = (torch.float32, torch.bfloat16)
_FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}


def cell_moments(maps: Tensor, rows: Sequence[Span], columns: Sequence[Span], moments: int = 1) -> Tensor:
    """Means of contiguous `maps` (n, H, W, C) of `FORMATS` on the CPU over every span of rows and of columns.

    (n, rows * columns * C) float32, cells in reading order, channels last. With two moments all standard deviations
    follow: (n, 2 * rows * columns * C).
    """
    pixels = (maps.view(torch.uint16) if maps.dtype == torch.bfloat16 else maps).numpy()
    found = np.empty((len(pixels), moments, len(rows), len(columns), pixels.shape[3]), np.float32)
    (_cell_means if moments == 1 else _cell_moments)(pixels, np.array(rows), np.array(columns), found)
    return torch.from_numpy(found).flatten(1)


@no_type_check
def _number(pixel):
    """A map's number in float32; a bfloat16 is the upper half of one."""
    return np.uint32(np.uint32(pixel) << np.uint32(16)).view(np.float32) if pixel.dtype == np.uint16 else pixel


@overload(_number, inline="always")
@no_type_check
def _compiled_number(pixel):
    if pixel == numba.types.uint16:
        return lambda pixel: np.uint32(np.uint32(pixel) << np.uint32(16)).view(np.float32)
    return lambda pixel: pixel


@numba.njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check  # numba compiles the bare function; the tests' type checks would wrap it
def _cell_means(pixels, rows, columns, found):
    n, _, _, channels = pixels.shape
    for i, row, column in np.ndindex(n, len(rows), len(columns)):
        total = np.zeros(channels, np.float32)
        for y in range(rows[row, 0], rows[row, 1]):
            for x in range(columns[column, 0], columns[column, 1]):
                for c in range(channels):
                    total[c] += _number(pixels[i, y, x, c])
        area = (rows[row, 1] - rows[row, 0]) * (columns[column, 1] - columns[column, 0])
        for c in range(channels):
            found[i, 0, row, column, c] = total[c] / np.float32(area)


@numba.njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check
def _cell_moments(pixels, rows, columns, found):
    """Sums are of differences from a cell's first place, so that a flat cell's deviation is exactly zero.

    A row is summed by itself before it is added: one long sum of bfloat16 numbers, whose roundings go one way, would
    be off by a thousandth of the deviation over a map of 224 x 224.
    """
    n, _, _, channels = pixels.shape
    for i, row, column in np.ndindex(n, len(rows), len(columns)):
        first, total, squares = np.zeros((3, channels), np.float32)
        for c in range(channels):
            first[c] = _number(pixels[i, rows[row, 0], columns[column, 0], c])
        for y in range(rows[row, 0], rows[row, 1]):
            line, line_squares = np.zeros((2, channels), np.float32)
            for x in range(columns[column, 0], columns[column, 1]):
                for c in range(channels):
                    value = _number(pixels[i, y, x, c]) - first[c]
                    line[c] += value
                    line_squares[c] += value * value
            for c in range(channels):
                total[c] += line[c]
                squares[c] += line_squares[c]
        area = np.float32((rows[row, 1] - rows[row, 0]) * (columns[column, 1] - columns[column, 0]))
        for c in range(channels):
            mean = total[c] / area
            found[i, 0, row, column, c] = first[c] + mean
            found[i, 1, row, column, c] = np.sqrt(max(squares[c] / area - mean * mean, np.float32(0.0)))
