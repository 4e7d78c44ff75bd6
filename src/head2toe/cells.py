"""Means over the cells of bfloat16 maps, in float32: the pooling of `taps.Pool` where a network runs on a CPU.

torch first copies such a map to float32, which costs as much time as the network itself; this reads it once.
Compiled on first use and cached on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

Span = tuple[int, int]
_LARGE = 1 << 18  # numbers from which waking other threads pays


def cell_means(maps: Tensor, rows: Sequence[Span], columns: Sequence[Span]) -> Tensor:
    """Means of contiguous bfloat16 `maps` (n, H, W, C) on the CPU over every span of rows and of columns.

    (n, rows * columns * C) float32, cells in reading order, channels last.
    """
    pixels = maps.view(torch.uint16).numpy()
    means = np.empty((len(pixels), len(rows), len(columns), pixels.shape[3]), np.float32)
    threads = numba.get_num_threads()
    numba.set_num_threads(min(torch.get_num_threads(), threads) if pixels.size > _LARGE else 1)
    _cell_means(pixels, np.array(rows), np.array(columns), means)
    numba.set_num_threads(threads)
    return torch.from_numpy(means).flatten(1)


@numba.njit(cache=True, parallel=True, nogil=True, fastmath={"nsz", "arcp", "contract", "afn", "reassoc"})
@no_type_check  # numba compiles the bare function; the tests' type checks would wrap it
def _cell_means(pixels, rows, columns, means):
    n, _, _, channels = pixels.shape
    for task in numba.prange(n * len(rows)):
        i, row = task // len(rows), task % len(rows)
        for column in range(len(columns)):
            total = np.zeros(channels, np.float32)
            for y in range(rows[row, 0], rows[row, 1]):
                for x in range(columns[column, 0], columns[column, 1]):
                    for c in range(channels):
                        # a bfloat16 is the upper half of a float32
                        total[c] += np.uint32(np.uint32(pixels[i, y, x, c]) << np.uint32(16)).view(np.float32)
            area = (rows[row, 1] - rows[row, 0]) * (columns[column, 1] - columns[column, 0])
            for c in range(channels):
                means[i, row, column, c] = total[c] / np.float32(area)
