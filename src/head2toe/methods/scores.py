"""Relevance scores by name: each one function from the evidence to a number per feature, the larger the more relevant.

Those called after a norm score a feature by its row of weights in the l2-regularised layer on all features; the
published code offers them with weights that stochastic steps found. All but "variance" and "random" look at labels, and
only at those of the rows that are not held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from head2toe.errors import DataError
from head2toe.methods.design import Design
from head2toe.methods.final import SCORING, fits_without
from head2toe.methods.problem import spread
from head2toe.selection import towards_taps
from head2toe.solvers import group_lasso, ridge
from head2toe.solvers.matrix import Matrix, columns

PATH_STOP = 30  # active features that end the path: later ones are better told by the gradient (docs/solver.md)
PATH_TOLERANCE = 1e-3  # relative duality gap
RUNS = 5  # that "stable" averages
TREES = 500


@dataclass(frozen=True, eq=False)
class Evidence:
    """What relevance is judged by: all rows of a design, and the labels (n,) of those not in `held_out` (n,) bool.

    `whole` (n, n) are the inner products of all rows in all features.
    """

    design: Design
    whole: np.ndarray
    labels: np.ndarray
    n_classes: int
    held_out: np.ndarray
    seed: int = 0

    @property
    def matrix(self) -> Matrix:
        """All features (n, F) as a layer on all of them reads them."""
        return self.design.whole()[0]

    @property
    def lengths(self) -> list[int]:
        return [tap.length for tap in self.design.taps]

    def weights(self, features: Matrix, fits: ridge.RidgePath) -> np.ndarray:
        """The rows of weights (k, C) float32 on `features` (n, k), of the strongest of some fits on the other rows."""
        dual = np.zeros((len(self.labels), self.n_classes))
        dual[~self.held_out] = fits.dual[0]
        return ridge.weights(features, dual)

    def layer(self) -> np.ndarray:
        """Weights (F, C) of the l2-regularised layer on all features."""
        fits = fits_without(self.whole, self.labels, self.held_out, self.n_classes, SCORING)
        return self.weights(self.matrix, fits)


def group_lasso_norm(evidence: Evidence) -> np.ndarray:
    """s_i of equation (4), the norms of the exact group lasso's rows, on a path that stops early."""
    return group_lasso_path(evidence, PATH_STOP).scores()


def group_lasso_path(evidence: Evidence, stop_at: int) -> group_lasso.Path:
    """The path of the rows not held out, to the first strength with so many active features."""
    return group_lasso.path(
        evidence.matrix,
        evidence.labels,
        n_classes=evidence.n_classes,
        sample_weight=(~evidence.held_out).astype(np.float64),
        tol=PATH_TOLERANCE,
        stop_at=stop_at,
    )


def l2(evidence: Evidence) -> np.ndarray:
    return np.linalg.norm(evidence.layer(), axis=1)


def l1(evidence: Evidence) -> np.ndarray:
    return np.abs(evidence.layer()).sum(axis=1)


def linf(evidence: Evidence) -> np.ndarray:
    return np.abs(evidence.layer()).max(axis=1)


def layer(evidence: Evidence) -> np.ndarray:
    """Every feature has its tap's mean l2 score: whole layers are kept, the last one as far as the count reaches."""
    return towards_taps(l2(evidence).astype(np.float64), evidence.lengths, 1.0)


def halfway(evidence: Evidence) -> np.ndarray:
    """Halfway between a feature's own l2 score and its tap's mean."""
    return towards_taps(l2(evidence).astype(np.float64), evidence.lengths, 0.5)


def stable(evidence: Evidence) -> np.ndarray:
    """The mean l2 score of several runs, each blind to another part of the rows (stability selection)."""
    seen = np.flatnonzero(~evidence.held_out)
    part = spread(evidence.labels[seen], RUNS, evidence.seed)
    total = np.zeros(evidence.design.n_features)
    for run in range(RUNS):
        held_out = evidence.held_out.copy()
        blind = seen[part == run]
        held_out[blind[np.isin(evidence.labels[blind], evidence.labels[seen[part != run]])]] = True  # no class is lost
        total += l2(replace(evidence, held_out=held_out))
    return total / RUNS


def variance(evidence: Evidence) -> np.ndarray:
    """The variance of the scaled feature over all rows."""
    inverse = evidence.design.whole()[1].inverse_deviation
    return np.divide(1.0, inverse, out=np.zeros_like(inverse), where=inverse > 0) ** 2


def random(evidence: Evidence) -> np.ndarray:
    return np.random.default_rng(evidence.seed).random(evidence.design.n_features)


def chi2(evidence: Evidence) -> np.ndarray:
    """scikit-learn's chi-squared statistic of features brought to 0 .. 1."""
    from sklearn.feature_selection import chi2
    from sklearn.preprocessing import minmax_scale

    return _of_varying(evidence, lambda X, y: chi2(minmax_scale(X), y)[0])


def f_classif(evidence: Evidence) -> np.ndarray:
    """scikit-learn's F statistic of a one-way analysis of variance."""
    from sklearn.feature_selection import f_classif

    return _of_varying(evidence, lambda X, y: f_classif(X, y)[0])


def mutual_info(evidence: Evidence) -> np.ndarray:
    """scikit-learn's nearest-neighbour estimate of the mutual information; some milliseconds a feature."""
    from sklearn.feature_selection import mutual_info_classif

    return _of_varying(evidence, lambda X, y: mutual_info_classif(X, y, random_state=evidence.seed))


def extra_trees(evidence: Evidence) -> np.ndarray:
    """The importance of the feature in scikit-learn's extremely randomised trees."""
    from sklearn.ensemble import ExtraTreesClassifier

    forest = ExtraTreesClassifier(TREES, random_state=evidence.seed)
    return _of_varying(evidence, lambda X, y: forest.fit(X, y).feature_importances_)


SCORES: Mapping[str, Callable[[Evidence], np.ndarray]] = MappingProxyType(
    {
        "group_lasso": group_lasso_norm,
        "l2": l2,
        "l1": l1,
        "linf": linf,
        "layer": layer,
        "halfway": halfway,
        "stable": stable,
        "variance": variance,
        "random": random,
        "chi2": chi2,
        "f_classif": f_classif,
        "mutual_info": mutual_info,
        "extra_trees": extra_trees,
    }
)


def _of_varying(evidence: Evidence, judge: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Scores (F,) by a filter on the rows not held out; features that are constant there score 0.

    A feature that tells the classes apart without error has an infinite F: the largest number stands for it. DataError
    where the filter cannot judge such rows.
    """
    design, seen = evidence.design, ~evidence.held_out
    X = columns(evidence.matrix).take(np.arange(design.n_features), np.float32)[seen]
    varying = np.ptp(X, axis=0) > 0
    scores = np.zeros(design.n_features)
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            scores[varying] = np.nan_to_num(judge(X[:, varying], evidence.labels[seen]))
    except ValueError as error:
        raise DataError(
            f"Head2Toe: scikit-learn cannot judge {varying.sum():,} features that vary over {len(X)} rows of "
            f"{len(np.unique(evidence.labels[seen]))} classes ({error}); choose another criterion"
        ) from error
    return scores
