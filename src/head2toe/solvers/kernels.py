"""The compiled loops: block coordinate descent on a small quadratic model, a softmax with all that follows from it, the
recursion of L-BFGS, and a step of Adam.

Compiled on first use and cached on disk, once per float width.
"""

from __future__ import annotations

import math

import numba
import numpy as np

LEAST = 1e-25  # smaller probabilities are none: numbers near the least of float32 slow every product they are in
GROUP, ENTRY = 0, 1  # the penalty of a row: its l2 norm, or its l1 norm
SQUARE = 2  # or half its squared norm, which a smooth step alone can take
FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-8  # Adam's decay of both moments, and what it adds (Kingma and Ba 2015)
STRIPE = 1024  # features whose weights stay in the cache between their norms and their step


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


@compiled
def mean_cross_entropies(Z, y, losses):
    """The mean cross-entropy of each of K models' logits Z (K, C, m) by labels y (m,): losses (K,).

    Z becomes its gradient. The inner loops run along memory, so they vectorise.
    """
    n_models, n_classes, m = Z.shape
    share = np.float32(1.0 / m)
    for k in range(n_models):
        logits = Z[k]
        top = logits[0].copy()
        for c in range(1, n_classes):
            for i in range(m):
                top[i] = max(top[i], logits[c, i])
        loss, total = 0.0, np.zeros(m, Z.dtype)
        for i in range(m):
            loss += top[i] - logits[y[i], i]
        for c in range(n_classes):
            for i in range(m):
                logits[c, i] = np.exp(logits[c, i] - top[i])
                total[i] += logits[c, i]
        for i in range(m):
            loss += np.log(total[i])
            total[i] = share / total[i]
        for c in range(n_classes):
            for i in range(m):
                logits[c, i] *= total[i]
        for i in range(m):
            logits[y[i], i] -= share
        losses[k] = loss / m


@compiled
def adam(W, first, second, G, rates, lams, kind, step):
    """The step-th step of Adam, from 1, of K models' weights W (K, C, F) along gradients G, with their two moments.

    rates, lams (K,): learning rates, and strengths of a penalty of that kind on a feature's weights.
    """
    n_models, n_classes, n_features = W.shape
    keep, take = np.float32(FIRST), np.float32(1.0 - FIRST)
    keep2, take2 = np.float32(SECOND), np.float32(1.0 - SECOND)
    root = np.float32(1.0 / math.sqrt(1.0 - SECOND**step))
    epsilon = np.float32(EPSILON)
    pull = np.empty(STRIPE, np.float32)
    for k in range(n_models):
        rate = np.float32(rates[k] / (1.0 - FIRST**step))
        lam = np.float32(lams[k])
        for start in range(0, n_features, STRIPE):
            size = min(STRIPE, n_features - start)
            if kind == GROUP and lam > 0.0:
                pull[:size] = 0.0
                for c in range(n_classes):
                    w = W[k, c, start : start + size]
                    for j in range(size):
                        pull[j] += w[j] * w[j]
                for j in range(size):
                    pull[j] = lam / np.sqrt(pull[j]) if pull[j] > 0.0 else np.float32(0.0)
            else:
                pull[:size] = lam if kind == SQUARE else np.float32(0.0)
            for c in range(n_classes):
                w, g = W[k, c, start : start + size], G[k, c, start : start + size]
                m, v = first[k, c, start : start + size], second[k, c, start : start + size]
                if kind == ENTRY and lam > 0.0:
                    for j in range(size):
                        g[j] += lam * np.sign(w[j])
                for j in range(size):
                    slope = g[j] + pull[j] * w[j]
                    m[j] = keep * m[j] + take * slope
                    v[j] = keep2 * v[j] + take2 * slope * slope
                    w[j] -= rate * m[j] / (np.sqrt(v[j]) * root + epsilon)
