"""The one compiled loop: block coordinate descent on a small quadratic model.

Compiled on first use and cached on disk, once per float width.
"""

from __future__ import annotations

import math

import numba
import numpy as np

GROUP, ENTRY = 0, 1  # the penalty of a row: its l2 norm, or its l1 norm


@numba.njit(cache=True, fastmath={"nsz", "arcp", "contract", "afn", "reassoc"}, nogil=True)
def descend(K, G, W, D, first, last, curvature, lam, kind):
    """One sweep over the rows first .. last of <G, D> + curvature/2 tr(D K D') + lam * penalty(W + D): its gain.

    W (C, a) is the point, D (C, a) the move so far, G (C, a) the model's gradient at D, K (a, a). D is moved, and G
    within first .. last. Each row (a column here, so that the long axis is the inner loop) has a closed form because
    the curvature is a multiple of the identity over classes, and one that stays where it is costs one norm.
    """
    n_classes = W.shape[0]
    v = np.empty(n_classes, W.dtype)
    gain = 0.0
    for j in range(first, last):
        bend = curvature * K[j, j]
        if bend <= 0.0:
            continue
        squares = 0.0
        for c in range(n_classes):
            v[c] = bend * (W[c, j] + D[c, j]) - G[c, j]
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
            step = v[c] - W[c, j] - D[c, j]
            D[c, j] = v[c] - W[c, j]
            v[c] = step
            moved += step * step
        if moved > 0.0:
            gain += bend * moved
            across = K[j, first:last]
            for c in range(n_classes):
                scale, along = curvature * v[c], G[c, first:last]
                for k in range(across.shape[0]):  # plain slices: this loop must vectorise
                    along[k] += scale * across[k]
    return gain
