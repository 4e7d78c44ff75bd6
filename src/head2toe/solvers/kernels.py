"""The one compiled loop: block coordinate descent on a small quadratic model.

Compiled on first use and cached on disk, once per float width.
"""

from __future__ import annotations

import math

import numba
import numpy as np

GROUP, ENTRY = 0, 1  # the penalty of a row: its l2 norm, or its l1 norm


@numba.njit(cache=True, fastmath={"nnan", "ninf", "nsz", "arcp", "contract", "afn", "reassoc"}, nogil=True)
def descend(K, G, W, D, lam, kind, max_sweeps, tol):  # noqa: ANN001
    """Move D towards the minimum of <G, D> + 1/2 tr(D K D') + lam * penalty(W + D), all (C, a), K (a, a).

    Every row (a column here) has a closed form because the model's curvature is a multiple of the identity over
    classes. Stops when a sweep's gain falls below `tol` of the largest one, and returns the number of sweeps.
    """
    n_classes, size = W.shape
    v = np.empty(n_classes, W.dtype)
    largest = 0.0
    for sweep in range(max_sweeps):
        gain = 0.0
        for j in range(size):
            curvature = K[j, j]
            if curvature <= 0.0:
                continue
            squares = 0.0
            for c in range(n_classes):
                dot = W.dtype.type(0.0)
                for k in range(size):
                    dot += K[j, k] * D[c, k]
                v[c] = curvature * (W[c, j] + D[c, j]) - G[c, j] - dot
                squares += v[c] * v[c]
            if kind == GROUP:
                norm = math.sqrt(squares)
                shrink = (1.0 - lam / norm) / curvature if norm > lam else 0.0
                for c in range(n_classes):
                    v[c] *= shrink
            else:
                for c in range(n_classes):
                    v[c] = math.copysign(max(abs(v[c]) - lam, 0.0), v[c]) / curvature
            for c in range(n_classes):
                step = v[c] - W[c, j] - D[c, j]
                gain += curvature * step * step
                D[c, j] = v[c] - W[c, j]
        largest = max(largest, gain)
        if gain <= tol * largest:
            return sweep + 1
    return max_sweeps
