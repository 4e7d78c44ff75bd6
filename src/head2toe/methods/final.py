"""The final linear layer: l2-regularised softmax regression whose strength is cross-validated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from head2toe.solvers import ridge, work
from head2toe.solvers.matrix import Matrix

# strengths as shares of the mean squared norm of the centred rows, so that they mean the same for any features
STRENGTHS = np.array([1e-2, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5])
SCORING = STRENGTHS[:1]  # its weights are relevance scores: a strong one, so that correlated features share
# of the weights' norm: those that score decide what is kept, held-out labels settle before the others' do
TOLERANCES = np.array([1e-3, 1e-2, 1e-2, 1e-2, 1e-2, 1e-2])
FINAL_TOLERANCE = 1e-3
MOST_STEPS = 100  # a strength, while choosing
FINAL_STEPS = 5000
ROUNDING = 1e-6  # of the rows' squared norm: what is left of equal rows, centred, in float32


@dataclass(frozen=True, eq=False)
class Layer:
    """Weights (k, C) and intercepts (C,) on the features that were fitted."""

    W: np.ndarray
    b: np.ndarray


def fits_without(
    K: np.ndarray,
    labels: np.ndarray,
    held_out: np.ndarray,
    n_classes: int,
    strengths: np.ndarray = STRENGTHS,
    features: np.ndarray | None = None,
) -> ridge.RidgePath:
    """Fits on the rows not in `held_out` (n,) bool, from inner products K (n, n) of all rows, at STRENGTHS or SCORING.

    The `features` (n, k) they are inner products of make it cheaper where they are fewer than the rows.
    """
    train = ~held_out
    K_train = K[np.ix_(train, train)].astype(np.float32)
    rows = K_train
    if features is not None and features.shape[1] < len(K_train):
        rows = ridge.row_space(features[train], np.float32)
    return ridge.path(
        rows,
        labels[train],
        strengths * scale_of(K_train),
        n_classes=n_classes,
        tol=TOLERANCES[: len(strengths)],
        max_iter=MOST_STEPS,
        strict=False,
    )


def right_without(K: np.ndarray, labels: np.ndarray, held_out: np.ndarray, n_classes: int) -> np.ndarray:
    """How many held-out rows the fits on the others get right at each strength: (len(STRENGTHS),) int64."""
    return held_out_right(K, labels, held_out, fits_without(K, labels, held_out, n_classes))


def held_out_right(K: np.ndarray, labels: np.ndarray, held_out: np.ndarray, fits: ridge.RidgePath) -> np.ndarray:
    """How many held-out rows each of the fits gets right: (k,) int64."""
    work.product((int(held_out.sum()), fits.dual.shape[1]), fits.dual[:, 0].size)
    logits = K[np.ix_(held_out, ~held_out)] @ fits.dual + fits.intercepts[:, None, :]
    return (logits.argmax(axis=2) == labels[held_out]).sum(axis=1)


def fit(features: Matrix, K: np.ndarray, labels: np.ndarray, strength: float, n_classes: int) -> Layer:
    """The layer at one relative strength on all rows of `features` (n, k), whose inner products are K (n, n)."""
    path = solve(K, labels, strength, n_classes)
    return Layer(ridge.weights(features, path.dual[0]), path.intercepts[0])


def solve(K: np.ndarray, labels: np.ndarray, strength: float, n_classes: int) -> ridge.RidgePath:
    """The fit at one relative strength on all rows, known by their inner products K (n, n)."""
    return ridge.path(
        K, labels, [strength * scale_of(K)], n_classes=n_classes, tol=FINAL_TOLERANCE, max_iter=FINAL_STEPS
    )


def scale_of(K: np.ndarray) -> float:
    """The mean squared norm of the centred rows, from their inner products; 1 where rounding is all there is."""
    whole = float(np.trace(K) / len(K))
    centred = whole - float(K.mean())
    return centred if centred > ROUNDING * whole else 1.0
