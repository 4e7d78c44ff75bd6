"""Labels as the solvers use them, and the refusal of labels that no softmax can learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from head2toe.errors import DataError

# What stands for minus infinity in the intercept of a class without a row: its probability is then below 1e-13.
ABSENT = 30.0


@dataclass(frozen=True, eq=False)
class Targets:
    """Labels of n rows: `labels` (n,) index `present` (c,), the classes that have weight; `weights` (n,) sum to one."""

    labels: np.ndarray
    present: np.ndarray
    n_classes: int
    weights: np.ndarray

    @property
    def prior(self) -> np.ndarray:
        """The weighted share of each present class: (c,)."""
        return np.bincount(self.labels, self.weights, len(self.present))


def targets(
    y: np.ndarray, n_rows: int, n_classes: int | None = None, sample_weight: np.ndarray | None = None
) -> Targets:
    """Check labels y (n,) of integers 0 .. n_classes - 1 and non-negative weights (n,).

    Rows without weight may carry any class; the classes of the others become `present`.
    """
    y = np.asarray(y)
    if y.shape != (n_rows,) or y.dtype.kind not in "iu":
        raise DataError(f"solver: y should be {n_rows} integers, one a row of X, got {y.dtype} of shape {y.shape}")
    n_classes = int(y.max()) + 1 if n_classes is None else n_classes
    if y.min() < 0 or y.max() >= n_classes:
        raise DataError(f"solver: labels should lie in 0 .. {n_classes - 1}, got {y.min()} .. {y.max()}")
    weights = check_weights(sample_weight, n_rows)
    present = np.unique(y[weights > 0])
    if len(present) < 2:
        raise DataError(f"solver: two classes are needed to learn from, got only class {int(present[0])}")
    labels = np.clip(np.searchsorted(present, y), 0, len(present) - 1)
    return Targets(labels.astype(np.int64), present.astype(np.int64), n_classes, weights)


def check_weights(sample_weight: np.ndarray | None, n_rows: int) -> np.ndarray:
    """Weights (n,) float64 that sum to one; uniform if none are given."""
    if sample_weight is None:
        return np.full(n_rows, 1.0 / n_rows)
    weights = np.asarray(sample_weight, np.float64)
    if weights.shape != (n_rows,):
        raise DataError(f"solver: {n_rows} sample weights are needed, one a row of X, got shape {weights.shape}")
    if not np.isfinite(weights.sum()) or (weights < 0).any() or weights.sum() == 0:
        raise DataError("solver: sample weights should be finite, at least 0 and not all 0")
    return weights / weights.sum()


def all_classes(W: np.ndarray, b: np.ndarray, present: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Spread W (a, c) and b (c,) of the present classes over all: absent ones get their mean and a far intercept.

    Whatever the row, an absent class is then below the mean of the others. With l2 and l2,1 that mean is zero.
    """
    full_W = np.zeros((W.shape[0], n_classes), W.dtype)
    if len(present) < n_classes:
        full_W += W.mean(axis=1, keepdims=True)
    full_b = np.full(n_classes, b.min() - ABSENT)
    full_W[:, present] = W
    full_b[present] = b
    return full_W, full_b
