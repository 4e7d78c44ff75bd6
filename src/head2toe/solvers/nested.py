"""Softmax regression that selects whole taps and features within them (sparse group lasso, Simon et al. 2013).

min over W, b of mean cross-entropy + lam * Omega(W), with a free intercept and
Omega(W) = (1 - tap_share) sum_j ||W_j||_2 + tap_share sum_l sqrt(p_l) ||W_l||_F over taps l of p_l features.
tap_share = 0 is the group lasso; tap_share = 1 keeps or drops taps as they are.

Both norms have one proximal operator in closed form, the rows' followed by the taps', so that accelerated proximal
gradient on the taps in sight does; taps come into sight when the gradient asks for them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from head2toe.errors import DataError, NotConvergedError
from head2toe.solvers import engine, work
from head2toe.solvers.iterates import State, evaluate, row_norms
from head2toe.solvers.kernels import GROUP
from head2toe.solvers.matrix import Columns, Matrix, columns
from head2toe.solvers.targets import Targets, all_classes, targets
from head2toe.solvers.working_set import Path, null_scores, scores_of, strengths

ROUNDS = 30  # products over all features at one strength before giving up
CHECK_EVERY = 20  # steps between two looks at the duality gap


@dataclass(frozen=True, eq=False)
class Penalty:
    """Omega for features whose taps start at `starts` (t,) and have `roots` (t,), the square roots of their sizes."""

    starts: np.ndarray
    roots: np.ndarray
    tap_share: float

    def value(self, W: np.ndarray) -> float:
        rows = row_norms(W.astype(np.float64), GROUP)
        taps = np.sqrt(np.add.reduceat(rows * rows, self.starts))
        return float((1.0 - self.tap_share) * rows.sum() + self.tap_share * self.roots @ taps)

    def prox(self, W: np.ndarray, step: float) -> np.ndarray:
        """The minimiser of ||V - W||^2 / 2 + step * Omega(V)."""
        rows = row_norms(W, GROUP)
        left = np.maximum(rows - step * (1.0 - self.tap_share), 0.0)
        taps = np.sqrt(np.add.reduceat(left * left, self.starts))
        with np.errstate(divide="ignore", invalid="ignore"):
            keep = np.where(taps > 0, np.maximum(1.0 - step * self.tap_share * self.roots / taps, 0.0), 0.0)
            factor = np.where(rows > 0, left / rows, 0.0)
        sizes = np.diff(np.append(self.starts, len(W)))
        return W * (factor * np.repeat(keep, sizes)).astype(W.dtype)[:, None]

    def per_tap(self, gradient_norms: np.ndarray) -> np.ndarray:
        """For each tap the strength (t,) at which it would be zero, from the features' gradient norms; bisection."""
        low, high = np.zeros(len(self.roots)), np.maximum.reduceat(gradient_norms, self.starts)
        if self.tap_share > 0:
            sums = np.sqrt(np.add.reduceat(gradient_norms**2, self.starts))
            high = np.minimum(high / max(1.0 - self.tap_share, 1e-12), sums / (self.tap_share * self.roots))
        sizes = np.diff(np.append(self.starts, len(gradient_norms)))
        for _ in range(60):
            middle = 0.5 * (low + high)
            over = np.maximum(gradient_norms - (1.0 - self.tap_share) * np.repeat(middle, sizes), 0.0)
            fits = np.sqrt(np.add.reduceat(over * over, self.starts)) <= self.tap_share * self.roots * middle
            low, high = np.where(fits, low, middle), np.where(fits, middle, high)
        return high

    def only(self, taps: np.ndarray) -> Penalty:
        """The same penalty on the features of the taps `taps` (s,), side by side."""
        sizes = np.round(self.roots[taps] ** 2).astype(np.int64)
        return Penalty(np.concatenate(([0], np.cumsum(sizes)[:-1])), self.roots[taps], self.tap_share)


def path(
    X: Matrix,
    y: Int[np.ndarray, " n"],
    lams: Float[np.ndarray, " k"] | Sequence[float] | None = None,
    *,
    tap_share: float = 0.5,
    n_classes: int | None = None,
    n_lams: int = 20,
    lam_ratio: float = 0.05,
    tol: float = 1e-4,
    sample_weight: np.ndarray | None = None,
    max_iter: int = 20_000,
) -> Path:
    """Solve at every strength. Each block of X (n, p_l) is a tap; other arguments, results and errors as `group_lasso`.

    `gradient_norms` of the result are those of single features.
    """
    X = columns(X)
    if not 0.0 <= tap_share <= 1.0:
        raise DataError(f"nested: tap_share should lie in 0 .. 1, got {tap_share}")
    if (np.diff(X.offsets) == 0).any():
        raise DataError("nested: every tap should have at least one feature")
    target = targets(y, X.n, n_classes, sample_weight)
    penalty = Penalty(X.offsets[:-1], np.sqrt(np.diff(X.offsets)), tap_share)
    norms = null_scores(X, target, GROUP)
    null = float(penalty.per_tap(norms).max())
    point = _Point(np.zeros(0, np.int64), np.zeros((0, len(target.present))), np.log(target.prior), norms)
    records = []
    for lam in strengths(null, lams, n_lams, lam_ratio):
        begun = time.perf_counter()
        point, objective, gap, solution = _solve(X, target, penalty, point, float(lam), null, tol, max_iter)
        records.append((float(lam), objective, gap, len(solution[0]), time.perf_counter() - begun, solution))
    *table, solutions = zip(*records, strict=True)
    lams, objectives, gaps, n_active, seconds = (np.array(column) for column in table)
    return Path(lams, objectives, gaps, n_active, seconds, tuple(solutions), point.norms)


@dataclass(frozen=True, eq=False)
class _Point:
    """Where a path is: the `taps` in sight, W on their features, b, and all features' gradient norms."""

    taps: np.ndarray
    W: np.ndarray
    b: np.ndarray
    norms: np.ndarray


def _solve(
    X: Columns, target: Targets, penalty: Penalty, point: _Point, lam: float, null: float, tol: float, max_iter: int
) -> tuple[_Point, float, float, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    inner, gap = 0.5 * tol, np.inf
    for _ in range(ROUNDS):
        wanted = np.union1d(point.taps, np.flatnonzero(penalty.per_tap(point.norms) > lam)).astype(np.int64)
        index = np.concatenate([np.arange(int(X.offsets[t]), int(X.offsets[t + 1])) for t in wanted] or [point.taps])
        W = np.zeros((len(index), point.W.shape[1]))
        W[np.repeat(np.isin(wanted, point.taps), np.diff(X.offsets)[wanted])] = point.W
        raw = X.take(index)
        means = target.weights @ raw
        state = _evaluate(raw - means, W, point.b, target, penalty.only(wanted))
        if len(wanted):
            state = _accelerate(raw - means, state, lam, null, target, penalty.only(wanted), inner, max_iter)
        state = replace(engine.free_intercept(state, target, GROUP), norms=state.norms)
        norms = scores_of(X, [engine.residual(state, target)], GROUP)[0]
        point = _Point(wanted, state.W, state.b, norms)
        gap = engine.relative_gap(state, lam, float(penalty.per_tap(norms).max()), null, target)
        if gap <= tol:
            keep = np.flatnonzero(state.W.any(1))
            b = state.b - means[keep] @ state.W[keep]
            W, b = all_classes(state.W[keep], b, target.present, target.n_classes)
            return point, state.value(lam), gap, (index[keep], W, b)
        if np.isin(np.flatnonzero(penalty.per_tap(norms) > lam), wanted).all():
            inner *= 0.3
    raise NotConvergedError(
        f"nested: at strength {lam:g} the relative duality gap is {gap:.1e}, asked for {tol:g}; raise tol or max_iter"
    )


def _evaluate(X: np.ndarray, W: np.ndarray, b: np.ndarray, target: Targets, penalty: Penalty) -> State:
    work.product(X.shape, W.shape[1])
    state = evaluate(W, b, X @ W + b, target, GROUP)
    return replace(state, norms=penalty.value(W) if len(W) else 0.0)


def _accelerate(
    X: np.ndarray,
    state: State,
    lam: float,
    null: float,
    target: Targets,
    penalty: Penalty,
    tol: float,
    max_iter: int,
) -> State:
    """FISTA with backtracking and restarts (O'Donoghue and Candes 2015) until the gap on these taps is at most tol."""
    work.product(X.shape, X.shape[1])
    spread = max(float(np.linalg.eigvalsh((X * target.weights[:, None]).T @ X)[-1]), np.finfo(float).tiny)
    curvature = float((target.weights @ (state.P * (1.0 - state.P))).mean())
    ahead, momentum = state, 1.0
    for step in range(max_iter):
        R = engine.residual(ahead, target)
        work.product(X.shape, R.shape[1])
        G = X.T @ R
        while True:
            W = penalty.prox(ahead.W - G / (curvature * spread), lam / (curvature * spread))
            new = _evaluate(X, W, ahead.b - R.sum(0) / curvature, target, penalty)
            moved, shifted = new.W - ahead.W, new.b - ahead.b
            bend = 0.5 * curvature * (spread * np.vdot(moved, moved) + shifted @ shifted)
            if new.loss <= ahead.loss + np.vdot(G, moved) + R.sum(0) @ shifted + bend + 1e-13 or curvature > 1.0:
                break
            curvature *= 1.5
        if step % CHECK_EVERY == 0:
            work.product(X.shape, R.shape[1])
            norms = row_norms(X.T @ engine.residual(new, target), GROUP)
            if engine.relative_gap(new, lam, float(penalty.per_tap(norms).max()), null, target) <= tol:
                return new
        if np.vdot(ahead.W - new.W, new.W - state.W) > 0:
            momentum = 1.0
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        push = (momentum - 1.0) / following
        W, b = new.W + push * (new.W - state.W), new.b + push * (new.b - state.b)
        ahead = evaluate(W, b, new.Z + push * (new.Z - state.Z), target, GROUP)
        state, momentum = new, following
    return state
