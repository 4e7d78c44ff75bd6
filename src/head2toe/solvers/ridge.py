"""l2-regularised softmax regression, exact, in the row space of X.

min over W, b of sum_i w_i CE(x_i W + b, y_i) / sum_i w_i + lam / 2 ||W||_F^2, with a free intercept. At the optimum
W = X' A (the representer theorem), so n x n inner products carry everything: one Gram matrix and one eigendecomposition
serve every strength and every fold, and the cost of a fit does not depend on the number of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from head2toe.errors import DataError, FeatureError
from head2toe.solvers import work
from head2toe.solvers.lbfgs import problem_of, solutions
from head2toe.solvers.matrix import Matrix, columns, refuse_non_finite
from head2toe.solvers.targets import ABSENT, Targets, all_classes, check_weights, targets
from head2toe.solvers.threads import side_by_side

SMALLEST_EIGENVALUE = 1e-8  # of the largest: below it lies the rounding of float32 inner products
SMALLEST_IN_FLOAT32 = 1e-6  # where the eigenvalues themselves are float32


@dataclass(frozen=True, eq=False)
class RowSpace:
    """The n rows in coordinates of their own span.

    `coordinates` V (n, r), centred, with V V' = the centred Gram matrix and orthogonal columns; `offset` (n,)
    are the inner products of each row with the mean row, which move an intercept back to uncentred features.
    """

    coordinates: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True, eq=False)
class RidgePath:
    """Fits at k strengths, in the order they were asked for.

    Logits of new rows are K_new @ dual[i] + intercepts[i], with K_new (m, n) their inner products with the fitted rows;
    the weights are `weights(X, dual[i])`. `residuals` (k,) bound the relative error of those weights. They (the
    norm of the objective's gradient over that of lam W) and `objectives` are of where the iteration ended; `dual` is
    one step further.
    """

    lams: np.ndarray
    dual: np.ndarray
    intercepts: np.ndarray
    objectives: np.ndarray
    residuals: np.ndarray
    n_iter: int


def gram(X: Matrix, other: Matrix | None = None) -> Float[np.ndarray, "m n"]:
    """Inner products of the rows of X (m, F) with those of `other` (n, F), or of X itself: (m, n) float64.

    Products are float32 (float64 for float64 input), chunks of features are summed in float64.
    """
    left = columns(X)
    right = left if other is None else columns(other)
    if left.n_features != right.n_features:
        raise FeatureError(f"gram: both sides need the same features, got {left.n_features} and {right.n_features}")
    dtype = np.float64 if left.double or right.double else np.float32
    total = np.zeros((left.n, right.n))
    for block, first, a in left.chunks(dtype):
        b = a if right is left else right.take(np.arange(first, first + a.shape[1]), dtype)
        work.product(a.shape, right.n)
        product = (a @ b.T).astype(np.float64)
        refuse_non_finite(product, first, a, block)
        total += product
    return total


def row_space(X: Matrix, dtype: type[np.floating] = np.float64) -> RowSpace:
    """Coordinates of the rows of X (n, F) in their span; the smaller of the n x n and F x F products is used."""
    X = columns(X)
    if X.n_features >= X.n:
        return row_space_of_gram(gram(X).astype(dtype), exact=X.double)
    features = X.take(np.arange(X.n_features), dtype)
    refuse_non_finite(features, 0, features, 0)
    mean = features.mean(0)
    offset = features @ mean
    features -= mean
    work.product(features.shape, 2 * X.n_features)
    work.eigendecomposition(X.n_features)
    _, rotation = _eigh(features.T @ features)
    return RowSpace(features @ rotation, offset)


def row_space_of_gram(K: Float[np.ndarray, "n n"], *, exact: bool = False) -> RowSpace:
    """Coordinates of rows known only by their inner products K (n, n); float32 stays float32, for speed.

    Directions are left out that rounding could have made: those with 1e-8 of the largest eigenvalue, as products of
    float32 features have it, or, where K is `exact` in float64, with n times that type's rounding.
    """
    if not np.isfinite(K).all():
        raise FeatureError("ridge: the Gram matrix should be finite; look for NaN or infinite features")
    work.eigendecomposition(len(K))
    offset = K.mean(1)
    values, vectors = _eigh(K - offset[:, None] - offset[None, :] + offset.mean())
    share = SMALLEST_IN_FLOAT32 if K.dtype == np.float32 else SMALLEST_EIGENVALUE
    if exact and K.dtype == np.float64:
        share = len(K) * np.finfo(np.float64).eps
    keep = values > share * max(values[-1], np.finfo(np.float32).tiny)
    return RowSpace(vectors[:, keep] * np.sqrt(values[keep]), offset)


def path(
    K: RowSpace | Float[np.ndarray, "n n"],
    y: Int[np.ndarray, " n"],
    lams: Float[np.ndarray, " k"] | Sequence[float],
    *,
    n_classes: int | None = None,
    sample_weight: np.ndarray | None = None,
    tol: float | Float[np.ndarray, " k"] = 1e-6,
    max_iter: int = 500,
    strict: bool = True,
) -> RidgePath:
    """Fit every strength, warm-started from the strongest down. K: inner products (n, n), or a `RowSpace`.

    float32 inner products or coordinates are solved in float32: about twice as fast, for a `tol` of 1e-3 or more.

    A class without a row gets the others' mean weights, which are zero, and an intercept far below them. Raises
    NotConvergedError if a residual stays above `tol`, one for all strengths or one each; with strict=False the
    residuals alone tell, for fits that only choose between settings.
    """
    space = K if isinstance(K, RowSpace) else row_space_of_gram(_floating(K))
    target = targets(y, len(space.coordinates), n_classes, sample_weight)
    lams = _check_strengths(lams)
    shape = (len(lams), len(space.coordinates), target.n_classes)
    dual, intercepts = np.zeros(shape), np.zeros((shape[0], shape[2]))
    objectives, residuals = np.zeros(len(lams)), np.zeros(len(lams))
    problem = problem_of(space.coordinates, target)
    steps = 0
    for i, state in solutions(problem, lams, np.broadcast_to(tol, lams.shape), max_iter, strict):
        steps += state.steps
        present = -state.residual.T / lams[i]
        present -= target.weights[:, None] * present.sum(0)  # zero at the optimum: else the mean row would have a say
        dual[i], intercepts[i] = all_classes(
            present, state.U[:, -1] - space.offset @ present, target.present, target.n_classes
        )
        objectives[i], residuals[i] = state.objective, state.error
    return RidgePath(lams, dual, intercepts, objectives, residuals, steps)


def cross_validate(
    K: RowSpace | Float[np.ndarray, "n n"],
    y: Int[np.ndarray, " n"],
    lams: Float[np.ndarray, " k"] | Sequence[float],
    folds: Int[np.ndarray, " n"],
    *,
    n_classes: int | None = None,
    sample_weight: np.ndarray | None = None,
    tol: float = 1e-4,
    max_iter: int = 500,
) -> Float[np.ndarray, "k n C"]:
    """Out-of-fold logits of every row at every strength: (k, n, C). `folds` (n,) says in which fold a row is held out.

    A fold is the same problem with zero weight on its own rows, so all folds share one set of coordinates; they run
    side by side, one thread each. A class that a fold's rows lack gets logits far below the others.
    """
    space = K if isinstance(K, RowSpace) else row_space_of_gram(_floating(K))
    n = len(space.coordinates)
    if folds.shape != (n,):
        raise DataError(f"cross_validate: {n} fold numbers are needed, one a row, got shape {folds.shape}")
    n_classes = targets(y, n, n_classes, sample_weight).n_classes
    weights, lams = check_weights(sample_weight, n), _check_strengths(lams)
    splits = []
    for name in np.unique(folds):
        out = folds == name
        if not weights[~out].any():
            raise DataError(f"cross_validate: fold {name} holds every row out; at least two folds are needed")
        splits.append((out, targets(y, n, n_classes, np.where(out, 0.0, weights))))  # refuses folds of one class
    logits = np.zeros((len(lams), n, n_classes))

    def fill(split: tuple[np.ndarray, Targets]) -> None:
        out, target = split
        for i, state in solutions(problem_of(space.coordinates, target), lams, np.full(len(lams), tol), max_iter, True):
            Z = state.Z[:, out].T
            of_all = np.tile(Z.min(1, keepdims=True) - ABSENT, n_classes)
            of_all[:, target.present] = Z
            logits[i, out] = of_all

    with side_by_side() as threads:
        list(threads.map(fill, splits))
    return logits


def weights(X: Matrix, dual: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "F C"]:
    """W = X' dual, (F, C) float32: the weights of a row-space solution."""
    X = columns(X)
    out = np.empty((X.n_features, dual.shape[1]), np.float32)
    dtype = np.float64 if X.double else np.float32
    narrow = dual.astype(dtype)
    work.product(dual.shape, X.n_features)
    for _, first, chunk in X.chunks(dtype):
        out[first : first + chunk.shape[1]] = chunk.T @ narrow
    return out


def _eigh(K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, rising, and eigenvectors; torch's LAPACK is twice as fast as numpy's in float32."""
    if K.dtype != np.float32:
        return np.linalg.eigh(K)
    import torch

    values, vectors = torch.linalg.eigh(torch.from_numpy(K))
    return values.numpy(), vectors.numpy()


def _floating(K: np.ndarray) -> np.ndarray:
    return K if K.dtype == np.float32 else np.asarray(K, np.float64)


def _check_strengths(lams: np.ndarray | Sequence[float]) -> np.ndarray:
    lams = np.atleast_1d(np.asarray(lams, np.float64))
    if lams.ndim != 1 or len(lams) == 0 or not np.isfinite(lams).all() or (lams <= 0).any():
        raise DataError(f"ridge: strengths should be positive numbers, got {lams}")
    return lams
