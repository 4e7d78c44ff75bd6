"""Relevance: which features matter to a task, as nested sets from all features down to the fewest asked for.

By default features are eliminated: the l2-regularised layer is fitted on all, the features with the smallest rows of
weights are dropped, the layer is fitted again on the rest, and so on (recursive feature elimination, Guyon et al. 2002,
with softmax regression). What a dropped feature had said moves to those that say the same, so that sets stay rich where
features are correlated. Every other criterion is one ranking for all sets, by a score of `scores.SCORES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np

from head2toe.errors import DataError, FeatureError, meant
from head2toe.methods.design import design_of
from head2toe.methods.final import SCORING, STRENGTHS, fits_without
from head2toe.methods.frozen import pools_of
from head2toe.methods.problem import prepare
from head2toe.methods.scores import SCORES, Evidence
from head2toe.selection import n_kept, ranking
from head2toe.solvers import ridge
from head2toe.solvers.matrix import Matrix
from head2toe.taps import Moments

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.store import FeatureStore

Criterion = Literal[
    "elimination", "group_lasso", "l2", "l1", "linf", "layer", "halfway", "stable", "variance", "random", "chi2",
    "f_classif", "mutual_info", "extra_trees",
]  # fmt: skip
LADDER = (1.0, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.0025)  # keep fractions that elimination passes on its way down


@dataclass(frozen=True, eq=False)
class Kept:
    """Features `index` (k,), rising, of the evidence; all else is computed when it is first asked for."""

    evidence: Evidence
    index: np.ndarray
    strengths: np.ndarray

    @property
    def is_everything(self) -> bool:
        return len(self.index) == self.evidence.design.n_features

    @cached_property
    def features(self) -> Matrix:
        """What a layer on them reads, (n, k)."""
        return self.evidence.matrix if self.is_everything else self.evidence.design.inputs(self.index).features

    @cached_property
    def gram(self) -> np.ndarray:
        """Inner products (n, n) of all rows in them."""
        return self.evidence.whole if self.is_everything else ridge.gram(self.features)

    @cached_property
    def fits(self) -> ridge.RidgePath:
        """Fits on the rows not held out, at the `strengths`."""
        seen, few = self.evidence, None if self.is_everything else np.asarray(self.features)
        return fits_without(self.gram, seen.labels, seen.held_out, seen.n_classes, self.strengths, few)

    def ranked(self) -> np.ndarray:
        """Positions (k,) from the largest to the smallest row of weights (equation 4)."""
        return ranking(np.linalg.norm(self.evidence.weights(self.features, self.fits), axis=1))


def relevance_scores(
    backbone: Backbone,
    task: Task,
    store: FeatureStore | str | Path | None = None,
    criterion: Criterion = "elimination",
    target_size: int = 512,
    seed: int = 0,
    moments: Moments | None = None,
) -> np.ndarray:
    """A score for every feature (F,) float64, judged by all train and validation rows: `Head2Toe(scores=...)` takes it.

    Raises DataError for an unknown criterion.
    """
    check_criterion(criterion)
    (pool,) = pools_of(target_size, moments)
    problem = prepare(backbone, task, store, [pool], folds=1, seed=seed)
    design = design_of(problem.table(pool))
    nobody = np.zeros(len(problem.labels), dtype=bool)
    return relevance(Evidence(design, design.gram(), problem.labels, problem.n_classes, nobody, seed), criterion)


def relevance(evidence: Evidence, criterion: Criterion) -> np.ndarray:
    """A score for every feature (F,) float64."""
    score = _elimination_scores if criterion == "elimination" else SCORES[criterion]
    return score(evidence).astype(np.float64)


def kept_sets(
    evidence: Evidence, counts: Sequence[int], criterion: Criterion | np.ndarray, offset: int = 0
) -> Iterator[Kept]:
    """The kept features for each of `counts`, from the largest to the smallest.

    A criterion may be scores (F,) that are known already. The first `offset` features of the ranking are passed over.
    """
    if isinstance(criterion, str) and criterion == "elimination" and offset == 0:
        yield from _by_elimination(evidence, counts)
        return
    n_features = evidence.design.n_features
    if offset + max(counts) > n_features:
        raise FeatureError(f"keep: a window of {max(counts)} features from {offset} on ends beyond the {n_features}")
    if isinstance(criterion, np.ndarray) and criterion.shape != (n_features,):
        raise FeatureError(f"keep: {n_features} scores are needed, one a feature, got shape {criterion.shape}")
    order = np.arange(n_features)
    if min(counts) < n_features:
        order = ranking(relevance(evidence, criterion) if isinstance(criterion, str) else criterion)[offset:]
    for count in sorted(counts, reverse=True):
        yield Kept(evidence, np.sort(order[:count]), STRENGTHS)


def check_criterion(name: str) -> Criterion:
    """The criterion of that name; DataError for an unknown one."""
    names = get_args(Criterion)
    if name not in names:
        raise DataError(f"Head2Toe: criterion '{name}' is unknown{meant(name, names)}; there are {', '.join(names)}")
    return cast("Criterion", name)


def _by_elimination(evidence: Evidence, counts: Sequence[int]) -> Iterator[Kept]:
    smallest = min(counts)
    steps = sorted({count for count in _ladder(evidence) if count > smallest} | set(counts), reverse=True)
    index = np.arange(evidence.design.n_features)
    for count, following in zip(steps, [*steps[1:], 0], strict=True):
        judged = count in counts and evidence.held_out.any()  # else the weights that give relevance are all it takes
        kept = Kept(evidence, index, STRENGTHS if judged else SCORING)
        if count in counts:
            yield kept
        if following:
            index = np.sort(index[kept.ranked()[:following]])


def _elimination_scores(evidence: Evidence) -> np.ndarray:
    """How late a feature is dropped: F for the last one left, 1 for the first to go."""
    order = np.arange(evidence.design.n_features)
    for count in _ladder(evidence):
        index = np.sort(order[:count])
        order[:count] = index[Kept(evidence, index, SCORING).ranked()]
    scores = np.empty(len(order))
    scores[order] = np.arange(len(order), 0, -1)
    return scores


def _ladder(evidence: Evidence) -> list[int]:
    """The counts at which features are dropped, falling."""
    return sorted({n_kept(evidence.design.n_features, fraction) for fraction in LADDER}, reverse=True)
