"""The one compiled loop: block coordinate descent on a small quadratic model.

Compiled on first use and cached on disk, once per float width.
"""

from __future__ import annotations

import math

import numba
import numpy as np

GROUP, ENTRY = 0, 1  # the penalty of a row: its l2 norm, or its l1 norm


@numba.njit(cache=True, fastmath={"nsz", "arcp", "contract", "afn", "reassoc"}, nogil=True)
def descend(K, G, W, D, curvature, lam, kind):  # noqa: ANN001
    """One sweep over the rows of the model <G, D> + curvature/2 tr(D' K D) + lam * penalty(W + D); returns its gain.

    W (a, C) is the point, D (a, C) the move so far, G (a, C) the model's gradient at D, and K (a, a); D and G are moved
    along. Each row has a closed form because the curvature is a multiple of the identity over classes, and a row that
    stays zero costs one norm.
    """
    size, n_classes = W.shape
    v = np.empty(n_classes, W.dtype)
    gain = 0.0
    for j in range(size):
        bend = curvature * K[j, j]
        if bend <= 0.0:
            continue
        squares = 0.0
        for c in range(n_classes):
            v[c] = bend * (W[j, c] + D[j, c]) - G[j, c]
            squares += v[c] * v[c]
        if kind == GROUP:
            norm = math.sqrt(squares)
            shrink = (1.0 - lam / norm) / bend if norm > lam else 0.0
            for c in range(n_classes):
                v[c] *= shrink
        else:
            for c in range(n_classes):
                v[c] = math.copysign(max(abs(v[c]) - lam, 0.0), v[c]) / bend
        moved = 0.0
        for c in range(n_classes):
            step = v[c] - W[j, c] - D[j, c]
            D[j, c] = v[c] - W[j, c]
            v[c] = step
            moved += step * step
        if moved > 0.0:
            gain += bend * moved
            for k in range(size):
                scale = curvature * K[j, k]
                for c in range(n_classes):
                    G[k, c] += scale * v[c]
    return gain
