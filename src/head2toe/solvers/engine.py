"""The model on a few columns: what group_lasso and lasso do between two passes over all features.

Proximal steps in the metric of the columns' own Gram matrix: the softmax Hessian is at most s X'X (x) I for a scalar s
(Boehning 1992 has s = 1/2; the steps find the much smaller s that holds where they are), the penalised quadratic is
minimised by block coordinate descent, and the sequence is extrapolated (Anderson), guarded by the objective.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from head2toe.solvers.kernels import ENTRY, GROUP, descend
from head2toe.solvers.targets import Targets

MEMORY = 6  # iterates that the extrapolation combines
SWEEPS, SWEEP_TOL = 20, 1e-2


@dataclass(eq=False)
class Design:
    """The gathered columns: `index` (a,), centred `X` (n, a), their `means` (a,), and `gram` X' diag(w) X (a, a)."""

    weights: np.ndarray
    dtype: type[np.floating]
    index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    X: np.ndarray = field(init=False)
    means: np.ndarray = field(default_factory=lambda: np.zeros(0))
    gram: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.X = np.zeros((len(self.weights), 0), self.dtype, order="F")
        self.gram = np.zeros((0, 0), self.dtype)

    def add(self, index: np.ndarray, raw: np.ndarray) -> None:
        """Append the columns `raw` (n, m) float64 of the features `index` (m,)."""
        means = self.weights @ raw
        new = np.asfortranarray((raw - means).astype(self.dtype))
        weighted = new * self.weights[:, None].astype(self.dtype)
        cross, corner = self.X.T @ weighted, new.T @ weighted
        self.gram = np.block([[self.gram, cross], [cross.T, corner]])
        self.X = np.asfortranarray(np.hstack((self.X, new)))
        self.index = np.concatenate((self.index, index))
        self.means = np.concatenate((self.means, means))


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
    return evaluate(W, b, design.X @ W + b, target, kind)


def residual(state: State, target: Targets) -> np.ndarray:
    """w (P - Y): the gradient in the logits (n, c)."""
    R = state.P.copy()
    R[np.arange(len(R)), target.labels] -= 1.0
    R *= target.weights[:, None]
    return R


def relative_gap(state: State, lam: float, largest: float, target: Targets) -> float:
    """The duality gap over the objective, `largest` being the largest dual norm among the features looked at.

    The dual value of P, shrunk towards the labels until every feature is feasible, is its mean entropy. Intercepts are
    free, so P must also keep each class's share: what it misses is added, and mixed with the shares to stay positive.
    """
    P = state.P.astype(np.float64)
    P += target.prior - target.weights @ P
    below = float(max(0.0, -(P / target.prior).min()))
    P = (P + below * target.prior) / (1.0 + below)
    shrink = min(1.0, lam / largest) if largest > 0 else 1.0
    P *= shrink
    P[np.arange(len(P)), target.labels] += 1.0 - shrink
    entropy = -(P * np.log(np.maximum(P, np.finfo(float).tiny))).sum(1) @ target.weights
    return float((state.value(lam) - entropy) / max(abs(state.value(lam)), np.finfo(float).tiny))


def solve(
    design: Design, state: State, lam: float, target: Targets, kind: int, tol: float, max_iter: int
) -> tuple[State, float, int]:
    """Minimise over the design's columns until their duality gap is at most `tol`: (state, gap, steps)."""
    curvature = float((target.weights @ (state.P * (1.0 - state.P))).mean())
    past: list[tuple[State, np.ndarray]] = []
    gap = np.inf
    for step in range(max_iter):
        R = residual(state, target)
        G = design.X.T @ R
        sizes = row_norms(G, kind)
        gap = relative_gap(state, lam, float(sizes.max(initial=0.0)), target)
        if gap <= tol:
            return state, gap, step
        hot = np.flatnonzero((sizes > lam) | state.W.any(1))
        state_next, curvature, reset = _proximal_step(design, state, lam, target, kind, R, G, hot, curvature)
        past = [] if reset else past[-MEMORY + 1 :]
        past.append((state_next, state_next.Z - state.Z))
        state = _extrapolate(past, lam, target, kind)
    return state, gap, max_iter


def _proximal_step(
    design: Design,
    state: State,
    lam: float,
    target: Targets,
    kind: int,
    R: np.ndarray,
    G: np.ndarray,
    hot: np.ndarray,
    curvature: float,
) -> tuple[State, float, bool]:
    """One step of the majorised problem, its curvature raised until it majorises; whether it had to be raised."""
    gram, old = design.gram[np.ix_(hot, hot)], np.ascontiguousarray(state.W[hot].T)
    slope, drift, raised = np.ascontiguousarray(G[hot].T), R.sum(0), False
    while True:
        D = np.zeros_like(old)
        descend(gram * design.dtype(curvature), slope, old, D, design.dtype(lam), kind, SWEEPS, SWEEP_TOL)
        move = -drift / design.dtype(curvature)
        shift = design.X[:, hot] @ D.T + move
        W = state.W.copy()
        W[hot] += D.T
        new = evaluate(W, state.b + move, state.Z + shift, target, kind)
        bend = 0.5 * curvature * float(target.weights @ np.einsum("nc,nc->n", shift, shift))
        bound = state.loss + float(np.einsum("nc,nc->", R, shift)) + bend
        if new.loss <= bound + 1e-7 * abs(state.loss) or curvature > 1.0:
            return new, curvature, raised
        curvature, raised = 1.5 * curvature, True


def _extrapolate(past: list[tuple[State, np.ndarray]], lam: float, target: Targets, kind: int) -> State:
    """The affine combination of past iterates whose last moves cancel best, if it lowers the objective."""
    latest = past[-1][0]
    if len(past) < 3:
        return latest
    moves = np.stack([move.ravel() for _, move in past])
    products = (moves @ moves.T).astype(np.float64)
    products /= np.trace(products) + np.finfo(float).tiny
    mix = np.linalg.solve(products + 1e-8 * np.eye(len(past)), np.ones(len(past)))
    mix = (mix / mix.sum()).astype(latest.W.dtype)
    W = sum(m * s.W for m, (s, _) in zip(mix, past, strict=True))
    b = sum(m * s.b for m, (s, _) in zip(mix, past, strict=True))
    Z = sum(m * s.Z for m, (s, _) in zip(mix, past, strict=True))
    mixed = evaluate(W, b, Z, target, kind)
    return mixed if mixed.value(lam) < latest.value(lam) else latest
