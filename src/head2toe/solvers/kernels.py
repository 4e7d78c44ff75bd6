"""The compiled loops: block coordinate descent on a small quadratic model, and a softmax with all that follows from it.

Compiled on first use and cached on disk, once per float width.
"""

from __future__ import annotations

import math

import numba
import numpy as np

GROUP, ENTRY = 0, 1  # the penalty of a row: its l2 norm, or its l1 norm


@numba.njit(cache=True, fastmath={"nsz", "arcp", "contract", "afn", "reassoc"}, nogil=True)
def descend(K, G, W, curvature, lam, kind):
    """One sweep over the rows of <G, D> + curvature/2 tr(D K D') + lam * penalty(W + D), at D = 0: its gain.

    W (C, a), G (C, a) the model's gradient, K (a, a). W moves by D, and G with it. Each row (a column here, so that the
    long axis is the inner loop) has a closed form because the curvature is a multiple of the identity over classes, and
    one that stays where it is costs one norm.
    """
    n_classes = W.shape[0]
    v = np.empty(n_classes, W.dtype)
    gain = 0.0
    for j in range(W.shape[1]):
        bend = curvature * K[j, j]
        if bend <= 0.0:
            continue
        squares = 0.0
        for c in range(n_classes):
            v[c] = bend * W[c, j] - G[c, j]
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
            step = v[c] - W[c, j]
            W[c, j] = v[c]
            v[c] = step
            moved += step * step
        if moved > 0.0:
            gain += bend * moved
            across = K[j]
            for c in range(n_classes):
                scale, along = curvature * v[c], G[c]
                for k in range(across.shape[0]):  # plain slices: this loop must vectorise
                    along[k] += scale * across[k]
    return gain


@numba.njit(cache=True, error_model="numpy", nogil=True)
def cross_entropy(Z, y, w, absent, residual, curvature):
    """The weighted cross-entropy (p,) float64 of logits Z (n, p, C), by labels y (n,) and weights w (n, p).

    Fills residual (n, p, C) = w (P - Y), the gradient in the logits, and curvature (p, C) = sum_i w P (1 - P). Classes
    that are `absent` (p, C) have no probability.
    """
    n, n_weightings, n_classes = Z.shape
    loss = np.zeros(n_weightings)
    curvature[:] = 0.0
    for i in range(n):
        for p in range(n_weightings):
            if w[i, p] == 0.0:
                residual[i, p, :] = 0.0
                continue
            top = -np.inf
            for c in range(n_classes):
                if not absent[p, c] and Z[i, p, c] > top:
                    top = Z[i, p, c]
            total = 0.0
            for c in range(n_classes):
                share = Z.dtype.type(0.0) if absent[p, c] else np.exp(Z[i, p, c] - Z.dtype.type(top))
                residual[i, p, c] = share
                total += share
            for c in range(n_classes):
                share = residual[i, p, c] / total
                curvature[p, c] += w[i, p] * share * (1.0 - share)
                residual[i, p, c] = w[i, p] * share
            residual[i, p, y[i]] -= w[i, p]
            loss[p] += w[i, p] * (np.log(total) + top - Z[i, p, y[i]])
    return loss
