"""The compiled loops: block coordinate descent on a small quadratic model, a softmax with all that follows from it, and
the recursion of L-BFGS.

Compiled on first use and cached on disk, once per float width.
"""

from __future__ import annotations

import math

import numba
import numpy as np

LEAST = 1e-25  # smaller probabilities are none: numbers near the least of float32 slow every product they are in
GROUP, ENTRY = 0, 1  # the penalty of a row: its l2 norm, or its l1 norm


compiled = numba.njit(cache=True, fastmath={"nsz", "arcp", "contract", "afn", "reassoc"}, nogil=True)


@compiled
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


@compiled
def cross_entropy(Z, y, w, residual, curvature):
    """The weighted cross-entropy of logits Z (C, n), by labels y (n,) and weights w (n,).

    Fills residual (C, n) = w (P - Y), the gradient in the logits, and curvature (C,) = sum_i w P (1 - P). The inner
    loops run along memory, so they vectorise.
    """
    n_classes, n = Z.shape
    top = Z[0].copy()
    for c in range(1, n_classes):
        z = Z[c]
        for i in range(n):
            top[i] = max(top[i], z[i])
    total = np.zeros(n, Z.dtype)
    for c in range(n_classes):
        z, p = Z[c], residual[c]
        for i in range(n):
            share = np.exp(z[i] - top[i])
            p[i] = share if share > LEAST else 0.0
            total[i] += share
    loss = 0.0
    for i in range(n):
        loss += w[i] * (np.log(total[i]) + top[i] - Z[y[i], i])
        total[i] = 1.0 / total[i]
    for c in range(n_classes):
        p, bend = residual[c], 0.0
        for i in range(n):
            share = p[i] * total[i]
            p[i] = w[i] * share
            bend += p[i] * (1.0 - share)
        curvature[c] = bend
    for i in range(n):
        residual[y[i], i] -= w[i]
    return loss


@compiled
def two_loops(gradient, S, G, oldest, scale):
    """The inverse Hessian's estimate times the gradient (m,): L-BFGS (Nocedal and Wright 2006, algorithm 7.4).

    S, G (k, m) are the last steps and the changes of the gradient along them, `oldest` which row begins; scale (m,) is
    the estimate's diagonal before them.
    """
    k = S.shape[0]
    share, bend = np.empty(k, S.dtype), np.empty(k, S.dtype)
    q = gradient.copy()
    for age in range(k - 1, -1, -1):
        j = (oldest + age) % k
        bend[j] = np.dot(S[j], G[j])
        share[j] = np.dot(S[j], q) / bend[j]
        q -= share[j] * G[j]
    q *= scale
    for age in range(k):
        j = (oldest + age) % k
        q += (share[j] - np.dot(G[j], q) / bend[j]) * S[j]
    return q
