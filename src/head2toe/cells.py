"""Means and deviations over the cells of bfloat16 maps, in float32: `taps.Pool` where a network runs on a CPU.

torch first copies such a map to float32, which costs as much time as the network itself; this reads it once, in the
caller's thread: an extraction has one for each core, and waking others costs what they bring. Compiled on first use and
cached on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

Span = tuple[int, int]
_FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}


def cell_moments(maps: Tensor, rows: Sequence[Span], columns: Sequence[Span], moments: int = 1) -> Tensor:
    """Means of contiguous bfloat16 `maps` (n, H, W, C) on the CPU over every span of rows and of columns.

    (n, rows * columns * C) float32, cells in reading order, channels last. With two moments all standard deviations
    follow: (n, 2 * rows * columns * C).
    """
    pixels = maps.view(torch.uint16).numpy()
    found = np.empty((len(pixels), moments, len(rows), len(columns), pixels.shape[3]), np.float32)
    (_cell_means if moments == 1 else _cell_moments)(pixels, np.array(rows), np.array(columns), found)
    return torch.from_numpy(found).flatten(1)


@numba.njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check  # numba compiles the bare function; the tests' type checks would wrap it
def _cell_means(pixels, rows, columns, found):
    n, _, _, channels = pixels.shape
    for i, row, column in np.ndindex(n, len(rows), len(columns)):
        total = np.zeros(channels, np.float32)
        for y in range(rows[row, 0], rows[row, 1]):
            for x in range(columns[column, 0], columns[column, 1]):
                for c in range(channels):
                    # a bfloat16 is the upper half of a float32
                    total[c] += np.uint32(np.uint32(pixels[i, y, x, c]) << np.uint32(16)).view(np.float32)
        area = (rows[row, 1] - rows[row, 0]) * (columns[column, 1] - columns[column, 0])
        for c in range(channels):
            found[i, 0, row, column, c] = total[c] / np.float32(area)


@numba.njit(cache=True, nogil=True, fastmath=_FAST)
@no_type_check
def _cell_moments(pixels, rows, columns, found):
    """Sums are of differences from a cell's first place, so that a flat cell's deviation is exactly zero."""
    n, _, _, channels = pixels.shape
    for i, row, column in np.ndindex(n, len(rows), len(columns)):
        first, total, squares = np.zeros((3, channels), np.float32)
        for c in range(channels):
            corner = pixels[i, rows[row, 0], columns[column, 0], c]
            first[c] = np.uint32(np.uint32(corner) << np.uint32(16)).view(np.float32)
        for y in range(rows[row, 0], rows[row, 1]):
            for x in range(columns[column, 0], columns[column, 1]):
                for c in range(channels):
                    value = np.uint32(np.uint32(pixels[i, y, x, c]) << np.uint32(16)).view(np.float32) - first[c]
                    total[c] += value
                    squares[c] += value * value
        area = np.float32((rows[row, 1] - rows[row, 0]) * (columns[column, 1] - columns[column, 0]))
        for c in range(channels):
            mean = total[c] / area
            found[i, 0, row, column, c] = first[c] + mean
            found[i, 1, row, column, c] = np.sqrt(max(squares[c] / area - mean * mean, np.float32(0.0)))
