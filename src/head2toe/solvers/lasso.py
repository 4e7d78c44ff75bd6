"""Softmax regression with an l1 penalty on every weight, by the engine of the group lasso.

min over W, b of sum_i w_i CE(x_i W + b, y_i) / sum_i w_i + lam sum_jc |W_jc|, with a free intercept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from head2toe.solvers.kernels import ENTRY
from head2toe.solvers.matrix import Matrix, columns
from head2toe.solvers.targets import targets
from head2toe.solvers.working_set import Path, Settings, null_scores, solve_paths


def lam_max(
    X: Matrix, y: Int[np.ndarray, " n"], *, n_classes: int | None = None, sample_weight: np.ndarray | None = None
) -> float:
    """The smallest strength at which every weight is zero."""
    X = columns(X)
    return float(null_scores(X, targets(y, X.n, n_classes, sample_weight), ENTRY).max())


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
    """Solve at every strength; arguments, results and errors are those of `group_lasso.path`."""
    X = columns(X).to(device)
    settings = Settings(ENTRY, tol, max_iter, stop_at)
    target = targets(y, X.n, n_classes, sample_weight)
    return solve_paths(X, [target], settings, lams, n_lams, lam_ratio, warm_start)[0]
