"""The model on a few columns: what group_lasso and lasso do between two passes over all features.

Proximal steps in the metric of the columns' own Gram matrix: the softmax Hessian is at most s X'X (x) I for a scalar s
(Boehning 1992 has s = 1/2; the steps find the much smaller s that holds where they are), the penalised quadratic is
minimised by block coordinate descent, and the sequence is extrapolated (Anderson), guarded by the objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from head2toe.solvers import work
from head2toe.solvers.iterates import Iterates, State, evaluate, row_norms
from head2toe.solvers.kernels import descend
from head2toe.solvers.targets import Targets

PATIENCE = 25  # steps that have to lower the objective by more than rounding
SWEEPS, SWEEP_TOL = 5, 1e-2
SMALL, BLOCK = 8192, 64  # numbers in W up to which a sweep is one compiled call, and rows of a block beyond
FRESH = 200  # columns that may join a model at a time; more where more are active
ROUGHLY = 0.3  # the share of its duality gap that a model which others may still join is solved to
DENSE = 0.8  # the share of a model's columns that are not idle, below which it is made smaller


class Design:
    """The gathered columns: `index` (a,) features, centred `X` (n, a) and their `means` (a,)."""

    def __init__(self, weights: np.ndarray, dtype: type[np.floating]) -> None:
        self.weights, self.dtype = weights, dtype
        self.index, self.means = np.zeros(0, np.int64), np.zeros(0)
        self._room = np.zeros((len(weights), 0), dtype, order="F")

    @property
    def X(self) -> np.ndarray:
        return self._room[:, : len(self.index)]

    def add(self, index: np.ndarray, raw: np.ndarray) -> None:
        """Append the columns `raw` (n, m) of the features `index` (m,)."""
        old, size, means = self.X, len(self.index) + len(index), self.weights @ raw
        if size > self._room.shape[1]:
            self._room = np.empty((len(raw), max(size, 3 * len(self.index) // 2)), self.dtype, order="F")
            self._room[:, : len(self.index)] = old
        self._room[:, len(self.index) : size] = raw - means
        self.index = np.concatenate((self.index, index))
        self.means = np.concatenate((self.means, means))


def start(design: Design, W: np.ndarray, b: np.ndarray, target: Targets, kind: int) -> State:
    W, b, used = W.astype(design.dtype), b.astype(design.dtype), np.flatnonzero(W.any(1))
    work.product((len(design.X), len(used)), W.shape[1])
    return evaluate(W, b, design.X[:, used] @ W[used] + b, target, kind)


def residual(state: State, target: Targets) -> np.ndarray:
    """w (P - Y): the gradient in the logits (n, c)."""
    R = state.P.copy()
    R[np.arange(len(R)), target.labels] -= 1.0
    R *= target.weights[:, None]
    return R


def free_intercept(state: State, target: Targets, kind: int) -> State:
    """The same weights with the best intercept, by Newton's method on c numbers: a certificate needs it exact."""
    b, Z = state.b.astype(np.float64), state.Z.astype(np.float64)
    for _ in range(20):
        state = evaluate(state.W, b, Z, target, kind)
        drift = target.weights @ state.P - target.prior
        if np.abs(drift / target.prior).max() <= 1e-9:
            break
        hessian = np.diag(target.weights @ state.P) - (state.P * target.weights[:, None]).T @ state.P
        move = -np.linalg.solve(hessian + target.prior.min(), drift)  # the ones matrix fills the null space
        move *= min(1.0, 2.0 / np.abs(move).max())
        b, Z = b + move, Z + move
    return state


def relative_gap(state: State, lam: float, largest: float, null: float, target: Targets) -> float:
    """The duality gap over the objective.

    `largest` is the largest dual norm among the features looked at, `null` that of the model without weights. The dual
    value of P, shrunk towards the labels until every feature is feasible, is its mean entropy. Intercepts are free, so
    P must also keep each class's share exactly: what it misses by rounding is added, and mixed with the shares (whose
    dual norm is `null`) to stay positive.
    """
    P = state.P.astype(np.float64)
    P += target.prior - target.weights @ P
    below = float(max(0.0, -(P / target.prior).min()))
    P = (P + below * target.prior) / (1.0 + below)
    largest = (largest + below * null) / (1.0 + below)
    shrink = min(1.0, lam / largest) if largest > 0 else 1.0
    P *= shrink
    P[np.arange(len(P)), target.labels] += 1.0 - shrink
    entropy = -(P * np.log(np.maximum(P, np.finfo(float).tiny))).sum(1) @ target.weights
    return float((state.value(lam) - entropy) / max(abs(state.value(lam)), np.finfo(float).tiny))


def solve(
    design: Design, state: State, lam: float, null: float, target: Targets, kind: int, tol: float, max_iter: int
) -> tuple[State, float, int]:
    """Minimise over the design's columns until their duality gap is at most `tol`: (state, gap, steps).

    Steps look only at a model of the columns that are, or most want to be, active; when it is solved, all are seen.
    """
    curvature = float((target.weights @ (state.P * (1.0 - state.P))).mean())
    iterates, model = Iterates(state), None
    gap, aim, earlier, rounding, step = np.inf, tol, np.inf, float(np.finfo(design.dtype).eps), 0
    for step in range(max_iter):
        state = iterates.latest
        if step % PATIENCE == PATIENCE - 1:
            if earlier - state.value(lam) <= rounding * abs(state.value(lam)):
                break  # this precision has no more to give
            earlier = state.value(lam)
        R = residual(state, target)
        G = np.zeros((0, R.shape[1])) if model is None else model.gradient(R)
        sizes = row_norms(G, kind)
        if model is None or _small_gap(state, sizes, lam, null, target, aim):
            work.product(design.X.shape, R.shape[1])
            G = design.X.T @ R
            sizes = row_norms(G, kind)
            gap = relative_gap(state, lam, float(sizes.max(initial=0.0)), null, target)
            if gap <= tol:
                break
            rows = np.union1d(_largest(sizes, lam, max(FRESH, len(iterates.support))), iterates.support)
            complete = model is not None and np.isin(rows, model.rows).all()
            aim = 0.5 * aim if complete else max(tol, ROUGHLY * gap)
            model, G = _Model.of(design, rows), G[rows]
            iterates.hold(rows)
        elif np.count_nonzero(state.W.any(1) | (sizes > lam)) < DENSE * len(model.rows):
            keep = np.flatnonzero((sizes > lam) | iterates.used)
            model, G = model.part(keep), G[keep]
            iterates.hold(model.rows)
        after, curvature, raised = _proximal_step(model, iterates.latest, lam, target, kind, R, G, curvature)
        iterates.append(after, lam, target, kind, forget=raised)
    iterates.hold(np.arange(len(design.index)))
    return iterates.latest, gap, step


def _small_gap(state: State, sizes: np.ndarray, lam: float, null: float, target: Targets, aim: float) -> bool:
    """Whether the gap among features of these gradient norms is at most `aim`; hopeless cases cost nothing.

    Shrinking the dual point by lam / largest costs (largest - lam) * norms of the dual value, to first order.
    """
    largest = float(sizes.max(initial=0.0))
    hopeless = (largest - lam) * state.norms > 2.0 * aim * state.value(lam)
    return not hopeless and relative_gap(state, lam, largest, null, target) <= aim


def _largest(sizes: np.ndarray, lam: float, most: int) -> np.ndarray:
    """The features whose gradient norms exceed the strength, the `most` largest of them."""
    over = np.flatnonzero(sizes > lam)
    return over[np.argsort(-sizes[over], kind="stable")[:most]]


@dataclass(frozen=True, eq=False)
class _Model:
    """The columns that may move: `rows` (h,) of the design, their X (n, h) and gram (h, h), copied to lie together."""

    rows: np.ndarray
    X: np.ndarray
    gram: np.ndarray

    @staticmethod
    def of(design: Design, rows: np.ndarray) -> _Model:
        """The model of the design's columns at `rows`, rising."""
        X = design.X[:, rows]
        weighted = X * np.sqrt(design.weights)[:, None].astype(design.dtype)
        work.product((len(rows), len(X)), len(rows))
        return _Model(rows, X, weighted.T @ weighted)

    def part(self, keep: np.ndarray) -> _Model:
        """The model of the rows at `keep` (k,) alone."""
        return _Model(self.rows[keep], self.X[:, keep], self.gram.take(keep, 0).take(keep, 1))

    def gradient(self, R: np.ndarray) -> np.ndarray:
        """X' R (h, C)."""
        work.product(self.X.shape, R.shape[1])
        return self.X.T @ R

    def minimise(self, G: np.ndarray, W: np.ndarray, curvature: float, lam: float, kind: int) -> np.ndarray:
        """The move (h, C) that nearly minimises the penalised quadratic with gradient G and curvature * gram (x) I.

        Few rows go through the compiled sweep whole; many go block by block, and a matrix product carries each block's
        move to the others.
        """
        bend, strength, size = W.dtype.type(curvature), W.dtype.type(lam), len(W)
        block = size if W.size <= SMALL else BLOCK
        parts = [slice(first, first + block) for first in range(0, size, max(1, block))]
        own = [np.ascontiguousarray(self.gram[part, part]) for part in parts]
        V, G, largest = W.T.copy(), G.T.copy(), 0.0
        for _ in range(SWEEPS):
            gain = 0.0
            for part, K in zip(parts, own, strict=True):
                v, g = V[:, part].copy(), G[:, part].copy()
                work.product(v.shape, size)
                gained = descend(K, g, v, bend, strength, kind)
                if gained > 0.0 and len(parts) > 1:
                    G += ((v - V[:, part]) * bend) @ self.gram[part]
                if gained > 0.0:
                    V[:, part], G[:, part] = v, g
                gain += gained
            largest = max(largest, gain)
            if gain <= SWEEP_TOL * largest:
                break
        return V.T - W


def _proximal_step(
    model: _Model,
    state: State,
    lam: float,
    target: Targets,
    kind: int,
    R: np.ndarray,
    G: np.ndarray,
    curvature: float,
) -> tuple[State, float, bool]:
    """One step of the majorised problem, its curvature raised until it majorises; whether it had to be raised."""
    here, drift, raised = state.W, R.sum(0), False
    rounding = float(np.finfo(here.dtype).eps)
    while True:
        D = model.minimise(G, here, curvature, lam, kind)
        move = -drift / here.dtype.type(curvature)
        work.product(model.X.shape, D.shape[1])
        shift = model.X @ D + move
        new = evaluate(here + D, state.b + move, state.Z + shift, target, kind)
        bend = 0.5 * curvature * float(target.weights @ np.einsum("nc,nc->n", shift, shift))
        bound = state.loss + float(np.einsum("nc,nc->", R, shift)) + bend
        if new.loss <= bound + rounding * abs(state.loss) or curvature > 1.0:
            return new, curvature, raised
        curvature, raised = 1.5 * curvature, True
