"""Head2Toe: rank all features by a group lasso, keep the best few, train a fresh linear layer on those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from head2toe.errors import DataError
from head2toe.head import Head
from head2toe.methods.design import Design, design_of
from head2toe.methods.final import STRENGTHS, fit, held_out_right
from head2toe.methods.outcome import Outcome, head_of
from head2toe.methods.problem import Clock, Problem, prepare
from head2toe.methods.relevance import relevance
from head2toe.selection import n_kept, ranking
from head2toe.solvers import ridge
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.store import FeatureStore

FRACTIONS = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0)


@dataclass(frozen=True)
class Head2Toe:
    """Selection by group-lasso relevance over all taps, then a linear layer on the kept features.

    Keep fraction, l2 strength and, where several are given, target size are chosen by cross-validation on train and
    validation rows; scores are recomputed inside every fold. Equal accuracies go to fewer features.
    """

    target_size: int | Sequence[int] = 512
    keep: float | Sequence[float] | None = None
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for fraction in self.fractions:
            n_kept(1, fraction)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The keep fractions to choose from, rising."""
        given = FRACTIONS if self.keep is None else self.keep
        return tuple(sorted({given} if isinstance(given, int | float) else set(given)))

    @property
    def pools(self) -> tuple[Pool, ...]:
        sizes = [self.target_size] if isinstance(self.target_size, int) else self.target_size
        if not sizes:
            raise DataError("Head2Toe: give at least one target size")
        return tuple(Pool(size) for size in sorted(set(sizes)))

    def fit(
        self,
        backbone: Backbone,
        task: Task,
        store: FeatureStore | str | Path | None = None,
        *,
        clock: Clock | None = None,
        progress: bool = True,
    ) -> Head:
        """Fit a head on the train and validation rows. Raises DataError for labels that cannot be cross-validated."""
        clock = clock or Clock()
        problem = prepare(
            backbone, task, store, self.pools, folds=self.folds, seed=self.seed, progress=progress, clock=clock
        )
        with clock("select"):
            chosen = max((_cross_validated(problem, pool, self.fractions) for pool in self.pools), key=_Choice.merit)
        with clock("fit"):
            outcome = _fitted(problem, chosen)
        return head_of("head2toe", problem, outcome)


@dataclass(frozen=True)
class _Choice:
    """The settings with the best held-out accuracy; among equals those with fewer features, then the stronger penalty."""

    pool: Pool
    fraction: float
    strength: float
    count: int
    accuracy: float

    def merit(self) -> tuple[float, int, float]:
        return self.accuracy, -self.count, self.strength


def _cross_validated(problem: Problem, pool: Pool, fractions: Sequence[float]) -> _Choice:
    design = design_of(problem.table(pool))
    counts = [n_kept(design.n_features, fraction) for fraction in fractions]
    whole = ridge.gram(list(design.blocks)) if counts[-1] == design.n_features else None
    right = np.sum([_right_in_fold(problem, design, counts, whole, f) for f in problem.fold_numbers], axis=0)
    choices = [
        _Choice(pool, fraction, float(strength), count, float(right[i, j] / problem.n_held_out))
        for i, (fraction, count) in enumerate(zip(fractions, counts, strict=True))
        for j, strength in enumerate(STRENGTHS)
    ]
    return max(choices, key=_Choice.merit)


def _right_in_fold(
    problem: Problem, design: Design, counts: Sequence[int], whole: np.ndarray | None, fold: int
) -> np.ndarray:
    """Held-out rows that each (count, strength) gets right: (len(counts), len(STRENGTHS)) int64.

    The kept sets are nested, so their Gram matrix grows by the features that each count adds.
    """
    held_out = problem.folds == fold
    if counts[0] < design.n_features:
        order = ranking(relevance(design, problem.labels, problem.n_classes, ~held_out))
    else:
        order = np.arange(design.n_features)
    K, done, right = np.zeros((len(held_out), len(held_out))), 0, []
    for count in counts:
        if count == design.n_features and whole is not None:
            K = whole
        else:
            K, done = K + ridge.gram(design.features(order[done:count])), count
        right.append(held_out_right(K, problem.labels, held_out, problem.n_classes))
    return np.array(right)


def _fitted(problem: Problem, chosen: _Choice) -> Outcome:
    design = design_of(problem.table(chosen.pool))
    everyone = np.ones(len(problem.labels), dtype=bool)
    order = np.arange(design.n_features)
    if chosen.count < design.n_features:
        order = ranking(relevance(design, problem.labels, problem.n_classes, everyone))
    index = np.sort(order[: chosen.count])
    features = design.features(index)
    layer = fit(features, ridge.gram(features), problem.labels, chosen.strength, problem.n_classes)
    settings: dict[str, float | int | str] = {
        "keep": chosen.fraction,
        "target_size": chosen.pool.target_size,
        "l2_strength": chosen.strength,
        "folds": len(problem.fold_numbers),
    }
    return Outcome(design, index, layer, chosen.accuracy, settings)
