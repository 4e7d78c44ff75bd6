"""Relevance: which features matter to a task, as nested sets from all features down to the fewest asked for.

Two criteria give a feature the norm of its row of weights as score s_i (equation 4):

- "elimination": the weights of the l2-regularised layer on all features; the least relevant are dropped, the layer is
  fitted again on the rest, and so on (recursive feature elimination, Guyon et al. 2002, with softmax regression). What
  a dropped feature had said moves to those that say the same, so that sets stay rich where features are correlated.
- "group_lasso": the exact group lasso of the paper's equation (4), one ranking for all sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from head2toe.methods.design import Design
from head2toe.methods.final import SCORING, STRENGTHS, fits_without
from head2toe.selection import n_kept, ranking
from head2toe.solvers import group_lasso, ridge

Criterion = Literal["elimination", "group_lasso"]
LADDER = (1.0, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.0025)  # keep fractions that elimination passes on its way down
PATH_LENGTH = 12
PATH_END = 0.05  # of lam_max: the group lasso's ranking has settled there
PATH_TOLERANCE = 1e-3  # relative duality gap


@dataclass(frozen=True, eq=False)
class Kept:
    """Features `index` (k,), rising; inner products (n, n) of all rows in them; fits on the rows not held out."""

    index: np.ndarray
    gram: np.ndarray
    fits: ridge.RidgePath


def kept_sets(
    design: Design,
    whole: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    held_out: np.ndarray,
    counts: Sequence[int],
    criterion: Criterion,
) -> Iterator[Kept]:
    """The kept features for each of `counts`, from the largest to the smallest, judged by rows not in `held_out` (n,).

    `whole` (n, n) are the inner products of all rows in all features.
    """
    if criterion == "group_lasso":
        yield from _by_group_lasso(design, whole, labels, n_classes, held_out, counts)
    else:
        yield from _by_elimination(design, whole, labels, n_classes, held_out, counts)


def _by_elimination(
    design: Design,
    whole: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    held_out: np.ndarray,
    counts: Sequence[int],
) -> Iterator[Kept]:
    smallest = min(counts)
    on_the_way = {n_kept(design.n_features, fraction) for fraction in LADDER}
    steps = sorted({count for count in on_the_way if count > smallest} | set(counts), reverse=True)
    index = np.arange(design.n_features)
    for count, following in zip(steps, [*steps[1:], 0], strict=True):
        everything = count == design.n_features
        features = design.blocks if everything and design.scaling != "kept" else design.inputs(index).features
        K = whole if everything else ridge.gram(features)
        judged = count in counts and held_out.any()  # else the weights that give relevance are all that is needed
        fits = fits_without(K, labels, held_out, n_classes, STRENGTHS if judged else SCORING)
        if count in counts:
            yield Kept(index, K, fits)
        if following:
            weights = ridge.weights(features, _padded(fits.dual[0], held_out))
            index = np.sort(index[ranking(np.linalg.norm(weights, axis=1))[:following]])


def _by_group_lasso(
    design: Design,
    whole: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    held_out: np.ndarray,
    counts: Sequence[int],
) -> Iterator[Kept]:
    order = np.arange(design.n_features)
    if min(counts) < design.n_features:
        path = group_lasso.path(
            design.blocks,
            labels,
            n_classes=n_classes,
            n_lams=PATH_LENGTH,
            lam_ratio=PATH_END,
            sample_weight=(~held_out).astype(np.float64),
            tol=PATH_TOLERANCE,
        )
        order = ranking(path.scores())
    for count in sorted(counts, reverse=True):
        index = np.sort(order[:count])
        K = whole if count == design.n_features else ridge.gram(design.inputs(index).features)
        yield Kept(index, K, fits_without(K, labels, held_out, n_classes))


def _padded(dual: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Dual coefficients (n, C) of all rows, zero for those held out."""
    full = np.zeros((len(held_out), dual.shape[1]))
    full[~held_out] = dual
    return full
