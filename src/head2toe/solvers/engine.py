"""The model on a few columns: what group_lasso and lasso do between two passes over all features.

Proximal steps in the metric of the columns' own Gram matrix: the softmax Hessian is at most s X'X (x) I for a scalar s
(Boehning 1992 has s = 1/2; the steps find the much smaller s that holds where they are), the penalised quadratic is
minimised by block coordinate descent, and the sequence is extrapolated (Anderson), guarded by the objective.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from head2toe.solvers import work
from head2toe.solvers.kernels import ENTRY, GROUP, descend
from head2toe.solvers.targets import Targets

MEMORY = 6  # iterates that the extrapolation combines
PATIENCE = 25  # steps that have to lower the objective by more than rounding
SWEEPS, SWEEP_TOL = 5, 1e-2
SMALL, BLOCK = 8192, 64  # numbers in W up to which a sweep is one compiled call, and rows of a block beyond
NEARLY = 0.03  # by how much a feature may exceed the strength for the duality gap to be worth computing


@dataclass(eq=False)
class Design:
    """The gathered columns: `index` (a,) features, centred `X` (n, a) and their `means` (a,).

    Inner products X' diag(w) X are kept for the columns that a model has asked for, the `place` (a,) of each in `gram`
    or -1: far fewer than are gathered.
    """

    weights: np.ndarray
    dtype: type[np.floating]
    index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    means: np.ndarray = field(default_factory=lambda: np.zeros(0))
    place: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    X: np.ndarray = field(init=False)
    gram: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.X = np.zeros((len(self.weights), 0), self.dtype, order="F")
        self.gram = np.zeros((0, 0), self.dtype)

    def add(self, index: np.ndarray, raw: np.ndarray) -> None:
        """Append the columns `raw` (n, m) float64 of the features `index` (m,)."""
        old, means = len(self.index), self.weights @ raw
        X = np.empty((len(raw), old + len(index)), self.dtype, order="F")
        X[:, :old] = self.X
        X[:, old:] = raw - means
        self.X = X
        self.index = np.concatenate((self.index, index))
        self.means = np.concatenate((self.means, means))
        self.place = np.concatenate((self.place, np.full(len(index), -1)))

    def gram_of(self, rows: np.ndarray) -> np.ndarray:
        """The inner products (h, h) of the columns at `rows` (h,)."""
        new = rows[self.place[rows] < 0]
        if len(new):
            old, size = len(self.gram), len(self.gram) + len(new)
            self.place[new] = np.arange(old, size)
            known = np.flatnonzero(self.place >= 0)
            work.product((len(new), len(self.X)), len(known))
            fresh = (self.X[:, new] * self.weights[:, None].astype(self.dtype)).T @ self.X[:, known]
            gram = np.empty((size, size), self.dtype)
            gram[:old, :old] = self.gram
            gram[old:, self.place[known]] = fresh
            gram[:old, old:] = gram[old:, :old].T
            self.gram = gram
        at = self.place[rows]
        return np.ascontiguousarray(self.gram[at][:, at])


@dataclass(frozen=True, eq=False)
class State:
    """A point: W (a, c) on the design's columns, b (c,), logits Z (n, c), probabilities P (n, c), objective parts."""

    W: np.ndarray
    b: np.ndarray
    Z: np.ndarray
    P: np.ndarray
    loss: float
    norms: float

    def value(self, lam: float) -> float:
        return self.loss + lam * self.norms


def row_norms(G: np.ndarray, kind: int) -> np.ndarray:
    """The penalty's dual norm of each row of G (a, c): a row may be zero at the optimum while this is at most lam."""
    return np.abs(G).max(1, initial=0.0) if kind == ENTRY else np.sqrt(np.einsum("ac,ac->a", G, G))


def penalty(W: np.ndarray, kind: int) -> float:
    """Sum of the rows' norms, in float64."""
    return float(np.abs(W).sum(dtype=np.float64) if kind == ENTRY else row_norms(W, GROUP).sum(dtype=np.float64))


def evaluate(W: np.ndarray, b: np.ndarray, Z: np.ndarray, target: Targets, kind: int) -> State:
    top = Z.max(1, keepdims=True)
    P = np.exp(Z - top)
    total = P.sum(1, keepdims=True)
    own = Z[np.arange(len(Z)), target.labels]
    loss = float(target.weights @ (np.log(total[:, 0]) + top[:, 0] - own).astype(np.float64))
    return State(W, b, Z, P / total, loss, penalty(W, kind))


def start(design: Design, W: np.ndarray, b: np.ndarray, target: Targets, kind: int) -> State:
    W, b = W.astype(design.dtype), b.astype(design.dtype)
    work.product(design.X.shape, W.shape[1])
    return evaluate(W, b, design.X @ W + b, target, kind)


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

    Steps look only at a model of the columns that are, or want to be, active; the others are looked at when that model
    is solved.
    """
    curvature = float((target.weights @ (state.P * (1.0 - state.P))).mean())
    past: list[tuple[State, np.ndarray]] = []
    gap, aim, model = np.inf, tol, None
    earlier, rounding = np.inf, float(np.finfo(design.dtype).eps)
    for step in range(max_iter):
        if step % PATIENCE == PATIENCE - 1:
            if earlier - state.value(lam) <= rounding * abs(state.value(lam)):
                break  # this precision has no more to give
            earlier = state.value(lam)
        R = residual(state, target)
        G = None if model is None else model.gradient(R)
        if model is None or G is None or _small_gap(state, row_norms(G, kind), lam, null, target, aim):
            work.product(design.X.shape, R.shape[1])
            G = design.X.T @ R
            sizes = row_norms(G, kind)
            gap = relative_gap(state, lam, float(sizes.max(initial=0.0)), null, target)
            if gap <= tol:
                return state, gap, step
            wanted = np.flatnonzero((sizes > lam) | state.W.any(1))
            aim = 0.5 * aim if model is not None and np.isin(wanted, model.rows).all() else tol
            model, G = _Model.of(design, wanted), G[wanted]
        after, curvature, raised = _proximal_step(model, state, lam, target, kind, R, G, curvature)
        past = [] if raised else past[-MEMORY + 1 :]
        past.append((after, after.Z - state.Z))
        state = _extrapolate(past, lam, target, kind)
    return state, gap, max_iter


def _small_gap(state: State, sizes: np.ndarray, lam: float, null: float, target: Targets, aim: float) -> bool:
    """Whether the gap among features of these gradient norms is at most `aim`; hopeless cases cost nothing."""
    largest = float(sizes.max(initial=0.0))
    return largest <= (1.0 + NEARLY) * lam and relative_gap(state, lam, largest, null, target) <= aim


@dataclass(frozen=True, eq=False)
class _Model:
    """The columns that may move: `rows` (h,) of the design, their X (n, h) and gram (h, h), copied to lie together."""

    rows: np.ndarray
    X: np.ndarray
    gram: np.ndarray

    @staticmethod
    def of(design: Design, rows: np.ndarray) -> _Model:
        return _Model(rows, design.X[:, rows], design.gram_of(rows))

    def gradient(self, R: np.ndarray) -> np.ndarray:
        """X' R (h, C)."""
        work.product(self.X.shape, R.shape[1])
        return self.X.T @ R

    def minimise(self, G: np.ndarray, W: np.ndarray, curvature: float, lam: float, kind: int) -> np.ndarray:
        """The move D (h, C) that nearly minimises the penalised quadratic with gradient G and curvature * gram (x) I.

        Few rows go through the compiled sweep whole; many go block by block, and a matrix product carries each block's
        move to the others.
        """
        dtype = W.dtype.type
        W, G = np.ascontiguousarray(W.T), G.T.copy()
        D, largest, size = np.zeros_like(W), 0.0, W.shape[1]
        block = max(1, size) if W.size <= SMALL else BLOCK
        for _ in range(SWEEPS):
            gain = 0.0
            for first in range(0, size, block):
                last = min(first + block, size)
                before = D[:, first:last].copy()
                work.product((len(W), last - first), size)
                gained = descend(self.gram, G, W, D, first, last, dtype(curvature), dtype(lam), kind)
                if gained > 0.0 and block < size:
                    move = ((D[:, first:last] - before) * dtype(curvature)) @ self.gram[first:last]
                    move[:, first:last] = 0.0
                    G += move
                gain += gained
            largest = max(largest, gain)
            if gain <= SWEEP_TOL * largest:
                break
        return D.T


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
    here, drift, raised = state.W[model.rows], R.sum(0), False
    rounding = float(np.finfo(here.dtype).eps)
    while True:
        D = model.minimise(G, here, curvature, lam, kind)
        move = -drift / here.dtype.type(curvature)
        work.product(model.X.shape, D.shape[1])
        shift = model.X @ D + move
        W = state.W.copy()
        W[model.rows] += D
        new = evaluate(W, state.b + move, state.Z + shift, target, kind)
        bend = 0.5 * curvature * float(target.weights @ np.einsum("nc,nc->n", shift, shift))
        bound = state.loss + float(np.einsum("nc,nc->", R, shift)) + bend
        if new.loss <= bound + rounding * abs(state.loss) or curvature > 1.0:
            return new, curvature, raised
        curvature, raised = 1.5 * curvature, True


def _extrapolate(past: list[tuple[State, np.ndarray]], lam: float, target: Targets, kind: int) -> State:
    """The affine combination of past iterates whose last moves cancel best, if it lowers the objective."""
    latest = past[-1][0]
    if len(past) < 3:
        return latest
    moves = np.stack([move.ravel() for _, move in past])
    work.product(moves.shape, len(past))
    products = (moves @ moves.T).astype(np.float64)
    products /= np.trace(products) + np.finfo(float).tiny
    mix = np.linalg.solve(products + 1e-8 * np.eye(len(past)), np.ones(len(past)))
    mix = (mix / mix.sum()).astype(latest.W.dtype)
    states = [state for state, _ in past]
    W = np.tensordot(mix, np.stack([state.W for state in states]), 1)
    b = np.tensordot(mix, np.stack([state.b for state in states]), 1)
    Z = np.tensordot(mix, np.stack([state.Z for state in states]), 1)
    mixed = evaluate(W, b, Z, target, kind)
    return mixed if mixed.value(lam) < latest.value(lam) else latest
