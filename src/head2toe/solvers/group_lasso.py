"""Softmax regression with a group-lasso penalty on features: which of very many columns matter (equation 4).

min over W, b of sum_i w_i CE(x_i W + b, y_i) / sum_i w_i + lam sum_j ||W_j||_2, with a free intercept, at a falling
sequence of strengths. Each solution starts the next; the sequential strong rule (Tibshirani et al. 2012) says which few
columns to gather, and one product over all features then proves, by the duality gap, that no other was needed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from head2toe.errors import DataError, NotConvergedError
from head2toe.solvers import engine
from head2toe.solvers.kernels import GROUP
from head2toe.solvers.matrix import Columns, Matrix, columns, refuse_non_finite
from head2toe.solvers.targets import Targets, all_classes, targets

STEP = 0.25  # the logarithm by which `fit` lowers the strength on its way


@dataclass(frozen=True, eq=False)
class Path:
    """Solutions at k falling strengths.

    `objectives` (k,) float64 are in the form above; `residuals` (k,) are duality gaps over all features, relative to the
    objective, so that no other weights lower it by more; `n_active` (k,) counts non-zero rows; `seconds` (k,) per strength.
    """

    lams: np.ndarray
    objectives: np.ndarray
    residuals: np.ndarray
    n_active: np.ndarray
    seconds: np.ndarray
    solutions: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    gradient_norms: np.ndarray

    def coef(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(active (a,) feature indices in rising order, W (a, C) float64, b (C,)): the non-zero rows at lams[i]."""
        return self.solutions[i]

    def last(self) -> Path:
        """The weakest strength alone."""
        return replace(
            self,
            lams=self.lams[-1:],
            objectives=self.objectives[-1:],
            residuals=self.residuals[-1:],
            n_active=self.n_active[-1:],
            seconds=self.seconds[-1:],
            solutions=self.solutions[-1:],
        )

    def scores(self) -> np.ndarray:
        """A relevance score for every feature (F,): the row's norm at the end of the path.

        Features that are zero there follow by the norm of their gradient, scaled below every active one.
        """
        active, W, _ = self.solutions[-1]
        norms = np.linalg.norm(W, axis=1)
        top = self.gradient_norms.max(initial=0.0)
        floor = 0.5 * norms.min(initial=np.inf) if len(norms) else 1.0
        scores = self.gradient_norms * (floor / top if top > 0 else 0.0)
        scores[active] = norms
        return scores


def lam_max(
    X: Matrix, y: Int[np.ndarray, " n"], *, n_classes: int | None = None, sample_weight: np.ndarray | None = None
) -> float:
    """The smallest strength at which every weight is zero."""
    X = columns(X)
    return float(_null_scores(X, targets(y, X.n, n_classes, sample_weight), GROUP).max())


def path(
    X: Matrix,
    y: Int[np.ndarray, " n"],
    lams: Float[np.ndarray, " k"] | Sequence[float] | None = None,
    *,
    n_classes: int | None = None,
    n_lams: int = 20,
    lam_ratio: float = 0.05,
    tol: float = 1e-4,
    sample_weight: np.ndarray | None = None,
    stop_at: int | None = None,
    max_iter: int = 2000,
) -> Path:
    """Solve at every strength, by default `n_lams` from `lam_max` down to `lam_ratio` of it.

    X (n, F): numpy or torch of any float dtype, one matrix or a sequence of tap blocks. `tol` bounds the relative duality
    gap. `stop_at` ends the path at the first strength with that many active features. Raises NotConvergedError if a gap
    stays above `tol`, FeatureError for NaN or infinite features, DataError for labels or strengths that mean nothing.
    """
    X = columns(X)
    return solve_path(X, targets(y, X.n, n_classes, sample_weight), GROUP, lams, n_lams, lam_ratio, tol, stop_at, max_iter)


def fit(
    X: Matrix,
    y: Int[np.ndarray, " n"],
    lam: float,
    *,
    n_classes: int | None = None,
    tol: float = 1e-4,
    sample_weight: np.ndarray | None = None,
    max_iter: int = 2000,
) -> Path:
    """Solve at one strength, reached by a path from `lam_max`; the returned `Path` holds that solution alone."""
    X = columns(X)
    target = targets(y, X.n, n_classes, sample_weight)
    largest = float(_null_scores(X, target, GROUP).max())
    steps = 1 + max(0, int(np.ceil(np.log(max(largest, lam) / lam) / STEP)))
    lams = np.geomspace(max(largest, lam), lam, steps) if steps > 1 else np.array([lam])
    return solve_path(X, target, GROUP, lams, steps, 0.5, tol, None, max_iter).last()


def solve_path(
    X: Columns,
    target: Targets,
    kind: int,
    lams: np.ndarray | Sequence[float] | None,
    n_lams: int,
    lam_ratio: float,
    tol: float,
    stop_at: int | None,
    max_iter: int,
) -> Path:
    """The path for either penalty: the common part of `group_lasso.path` and `lasso.path`."""
    scores = _null_scores(X, target, kind)
    lams = strengths(float(scores.max()), lams, n_lams, lam_ratio)
    design = engine.Design(target.weights, np.float64 if X.double or tol < 1e-6 else np.float32)
    W, b = np.zeros((0, len(target.present))), np.log(target.prior)
    null = float(scores.max())
    previous = max(null, lams[0])
    records = []
    for lam in lams:
        begun = time.perf_counter()
        W, b, scores, record = _solve_one(X, target, kind, design, W, b, scores, float(lam), previous, null, tol, max_iter)
        previous = float(lam)
        records.append((*record, time.perf_counter() - begun))
        if stop_at is not None and len(record[2][0]) >= stop_at:
            break
    objectives, residuals, solutions, seconds = zip(*records, strict=True)
    return Path(
        lams[: len(records)],
        np.array(objectives),
        np.array(residuals),
        np.array([len(active) for active, _, _ in solutions]),
        np.array(seconds),
        tuple(solutions),
        scores,
    )


def strengths(
    largest: float, lams: np.ndarray | Sequence[float] | None, n_lams: int, lam_ratio: float
) -> np.ndarray:
    """The falling strengths of a path (k,), checked."""
    if lams is None:
        if n_lams < 1 or not 0 < lam_ratio < 1:
            raise DataError(f"path: n_lams >= 1 and 0 < lam_ratio < 1 are needed, got {n_lams} and {lam_ratio}")
        return max(largest, np.finfo(np.float32).tiny) * lam_ratio ** (np.arange(n_lams) / max(n_lams - 1, 1))
    lams = np.atleast_1d(np.asarray(lams, np.float64))
    if lams.ndim != 1 or not np.isfinite(lams).all() or (lams <= 0).any() or (np.diff(lams) > 0).any():
        raise DataError(f"path: strengths should be positive and falling, got {lams}")
    return lams


def _solve_one(
    X: Columns,
    target: Targets,
    kind: int,
    design: engine.Design,
    W: np.ndarray,
    b: np.ndarray,
    scores: np.ndarray,
    lam: float,
    previous: float,
    null: float,
    tol: float,
    max_iter: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple]:
    wanted = scores >= 2.0 * lam - previous
    inner = 0.5 * tol
    for _ in range(50):
        wanted[design.index] = False
        new = np.flatnonzero(wanted)
        if len(new):
            design.add(new, X.take(new))
            W = np.vstack((W, np.zeros((len(new), W.shape[1]), W.dtype)))
        begin = engine.start(design, W, b, target, kind)
        state, inner_gap, _ = engine.solve(design, begin, lam, null, target, kind, inner, max_iter)
        state = engine.start(design, state.W, state.b, target, kind)  # logits anew: the steps only added to them
        state = engine.free_intercept(state, target, kind)
        W, b = state.W, state.b
        scores = _scores(X, engine.residual(state, target), kind)
        gap = engine.relative_gap(state, lam, float(scores.max()), null, target)
        if gap <= tol:
            return W, b, scores, (state.value(lam), gap, _solution(design, state, target))
        wanted = scores > lam
        wanted[design.index] = False
        if not wanted.any():
            inner *= 0.3
        if inner_gap > inner and inner < 1e-3 * tol:
            break
    raise NotConvergedError(
        f"path: at strength {lam:g} the relative duality gap is {gap:.1e}, asked for {tol:g}; raise tol or max_iter"
    )


def _solution(design: engine.Design, state: engine.State, target: Targets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keep = np.flatnonzero(state.W.any(1))
    keep = keep[np.argsort(design.index[keep])]
    W = state.W[keep].astype(np.float64)
    return design.index[keep], *all_classes(W, state.b - design.means[keep] @ W, target.present, target.n_classes)


def _null_scores(X: Columns, target: Targets, kind: int) -> np.ndarray:
    R = np.tile(target.prior, (X.n, 1))
    R[np.arange(X.n), target.labels] -= 1.0
    return _scores(X, R * target.weights[:, None], kind)


def _scores(X: Columns, R: np.ndarray, kind: int) -> np.ndarray:
    """The dual norm of every feature's gradient (F,), from the gradient in the logits R (n, c)."""
    R = R - R.mean(0)  # intercepts are exact only to rounding; a column's mean must not count
    dtype = np.float64 if X.double else np.float32
    narrow = R.astype(dtype)
    out = np.empty(X.n_features)
    for block, first, chunk in X.chunks(dtype):
        part = engine.row_norms(chunk.T @ narrow, kind)
        refuse_non_finite(part, first, chunk, block)
        out[first : first + chunk.shape[1]] = part
    return out
