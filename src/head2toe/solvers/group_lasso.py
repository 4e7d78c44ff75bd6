"""Softmax regression with a group-lasso penalty on features: which of very many columns matter (equation 4).

min over W, b of sum_i w_i CE(x_i W + b, y_i) / sum_i w_i + lam sum_j ||W_j||_2, with a free intercept, at a falling
sequence of strengths, each solution certified by its duality gap over all features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from head2toe.errors import DataError
from head2toe.solvers.kernels import GROUP
from head2toe.solvers.matrix import Matrix, columns
from head2toe.solvers.targets import check_weights, targets
from head2toe.solvers.working_set import Path, Settings, null_scores, solve_paths

STEP = 0.25  # the logarithm by which `fit` lowers the strength on its way


def lam_max(
    X: Matrix, y: Int[np.ndarray, " n"], *, n_classes: int | None = None, sample_weight: np.ndarray | None = None
) -> float:
    """The smallest strength at which every weight is zero."""
    X = columns(X)
    return float(null_scores(X, targets(y, X.n, n_classes, sample_weight), GROUP).max())


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
    warm_start: Path | None = None,
    stop_at: int | None = None,
    device: str = "cpu",
    max_iter: int = 2000,
) -> Path:
    """Solve at every strength, by default `n_lams` from `lam_max` down to `lam_ratio` of it.

    X (n, F): numpy or torch of any float dtype, one matrix or a sequence of tap blocks, in memory or mapped from disk.
    `tol` bounds the relative duality gap. `warm_start` begins at another path's last solution. `stop_at` ends the path
    at the first strength with that many active features. `device` is where the products over all features are taken.
    Raises NotConvergedError if a gap stays above `tol`, FeatureError for NaN or infinite features, DataError for labels
    or strengths that mean nothing.
    """
    X = columns(X).to(device)
    settings = Settings(GROUP, tol, max_iter, stop_at)
    target = targets(y, X.n, n_classes, sample_weight)
    return solve_paths(X, [target], settings, lams, n_lams, lam_ratio, warm_start)[0]


def fit(
    X: Matrix,
    y: Int[np.ndarray, " n"],
    lam: float,
    *,
    n_classes: int | None = None,
    tol: float = 1e-4,
    sample_weight: np.ndarray | None = None,
    device: str = "cpu",
    max_iter: int = 2000,
) -> Path:
    """Solve at one strength: a `Path` of that solution alone, reached by a coarse path from `lam_max`."""
    X = columns(X).to(device)
    target = targets(y, X.n, n_classes, sample_weight)
    largest = float(null_scores(X, target, GROUP).max())
    steps = int(np.ceil(np.log(max(largest / lam, 1.0)) / STEP)) if lam > 0 else 0
    warm = None
    if steps > 1:
        way = np.geomspace(largest, lam, steps + 1)[1:-1]
        warm = solve_paths(X, [target], Settings(GROUP, max(tol, 1e-2), max_iter), way, 1, 0.5)[0]
    return solve_paths(X, [target], Settings(GROUP, tol, max_iter), [lam], 1, 0.5, warm)[0]


def cross_validate(
    X: Matrix,
    y: Int[np.ndarray, " n"],
    folds: Int[np.ndarray, " n"],
    lams: Float[np.ndarray, " k"] | Sequence[float] | None = None,
    *,
    n_classes: int | None = None,
    n_lams: int = 20,
    lam_ratio: float = 0.05,
    tol: float = 1e-4,
    sample_weight: np.ndarray | None = None,
    stop_at: int | None = None,
    device: str = "cpu",
    max_iter: int = 2000,
) -> tuple[Path, ...]:
    """One path per fold, in rising order of the fold numbers, each without the rows that `folds` (n,) gives to it.

    All folds meet the same strengths and share every product over all features and every gathered column. A class that
    a fold's rows lack gets zero weights and an intercept far below the others.
    """
    X, y = columns(X).to(device), np.asarray(y)
    if folds.shape != (X.n,):
        raise DataError(f"cross_validate: {X.n} fold numbers are needed, one a row, got shape {folds.shape}")
    if len(np.unique(folds)) < 2:
        raise DataError("cross_validate: at least two folds are needed, `folds` names one")
    weights = check_weights(sample_weight, X.n)
    n_classes = int(y.max()) + 1 if n_classes is None else n_classes
    weightings = [targets(y, X.n, n_classes, np.where(folds == fold, 0.0, weights)) for fold in np.unique(folds)]
    return solve_paths(X, weightings, Settings(GROUP, tol, max_iter, stop_at), lams, n_lams, lam_ratio)
