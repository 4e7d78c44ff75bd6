"""Head2Toe: rank the features of all taps by relevance, keep the best few, train a fresh linear layer on those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from head2toe.errors import DataError
from head2toe.head import Head
from head2toe.methods.design import Design, design_of
from head2toe.methods.final import STRENGTHS, fit, held_out_right, right_without
from head2toe.methods.outcome import Outcome, head_of
from head2toe.methods.problem import Journal, Problem, prepare
from head2toe.methods.relevance import LADDER, Criterion, kept_sets
from head2toe.selection import n_kept
from head2toe.solvers import ridge
from head2toe.table import Scaling
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.store import FeatureStore


@dataclass(frozen=True)
class Head2Toe:
    """Selection by relevance over all taps (see `relevance`), then a linear layer on the kept features.

    Keep fraction, l2 strength and, where several are given, target size are chosen by cross-validation on train and
    validation rows; scores are recomputed inside every fold. Equal accuracies go to fewer features. Unless `keep` is
    given, the last features alone are a candidate too: where they are best, the head is a linear probe. `scaling` says
    what each image's vector of a tap is divided by: the norm of the whole tap, that of its kept columns (as published,
    after selection), or nothing.
    """

    target_size: int | Sequence[int] = 512
    keep: float | Sequence[float] | None = None
    criterion: Criterion = "elimination"
    scaling: Scaling = "tap"
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for fraction in self.fractions:
            n_kept(1, fraction)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The keep fractions to choose from, rising."""
        given = LADDER if self.keep is None else self.keep
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
        journal: Journal | None = None,
        progress: bool = True,
    ) -> Head:
        """Fit a head on the train and validation rows. Raises DataError for labels that cannot be cross-validated."""
        journal = journal or Journal()
        problem = prepare(
            backbone, task, store, self.pools, folds=self.folds, seed=self.seed, progress=progress, journal=journal
        )
        with journal.phase("select"):
            chosen = max((_cross_validated(problem, pool, self) for pool in self.pools), key=_Choice.merit)
        with journal.phase("fit"):
            outcome = _fitted(problem, chosen, self)
        return head_of("head2toe", problem, outcome)


@dataclass(frozen=True)
class _Choice:
    """Settings and their held-out accuracy; equal ones go to fewer features, then to the stronger penalty."""

    pool: Pool
    strength: float
    count: int
    accuracy: float
    probe: bool = False

    def merit(self) -> tuple[float, int, float]:
        return self.accuracy, -self.count, self.strength


def _cross_validated(problem: Problem, pool: Pool, settings: Head2Toe) -> _Choice:
    design = design_of(problem.table(pool), settings.scaling)
    counts = [n_kept(design.n_features, fraction) for fraction in settings.fractions]
    whole = design.gram()
    right = problem.over_folds(lambda held_out: _right(problem, design, whole, counts, settings, held_out))
    choices = [_best(pool, count, row / problem.n_held_out) for count, row in zip(counts, right, strict=True)]
    if settings.keep is None and problem.backbone.prelogits in problem.tap_names:
        last = design.of_tap(problem.backbone.prelogits)
        K = ridge.gram(design.inputs(last).features)
        right = problem.over_folds(lambda out: right_without(K, problem.labels, out, problem.n_classes))
        choices.append(replace(_best(pool, len(last), right / problem.n_held_out), probe=True))
    return max(choices, key=_Choice.merit)


def _best(pool: Pool, count: int, accuracy: np.ndarray) -> _Choice:
    """The best of the strengths, whose held-out accuracies are (len(STRENGTHS),)."""
    choices = [_Choice(pool, float(s), count, float(a)) for s, a in zip(STRENGTHS, accuracy, strict=True)]
    return max(choices, key=_Choice.merit)


def _right(
    problem: Problem,
    design: Design,
    whole: np.ndarray,
    counts: Sequence[int],
    settings: Head2Toe,
    held_out: np.ndarray,
) -> np.ndarray:
    """Held-out rows that each (count, strength) gets right: (len(counts), len(STRENGTHS)) int64."""
    sets = kept_sets(
        design, whole, problem.labels, problem.n_classes, held_out, sorted(set(counts)), settings.criterion
    )
    right = {len(kept.index): held_out_right(kept.gram, problem.labels, held_out, kept.fits) for kept in sets}
    return np.array([right[count] for count in counts])


def _fitted(problem: Problem, chosen: _Choice, settings: Head2Toe) -> Outcome:
    design = design_of(problem.table(chosen.pool), settings.scaling)
    if chosen.probe:
        index = design.of_tap(problem.backbone.prelogits)
    else:
        nobody = np.zeros(len(problem.labels), dtype=bool)
        whole, counts = design.gram(), [chosen.count]
        (kept,) = kept_sets(design, whole, problem.labels, problem.n_classes, nobody, counts, settings.criterion)
        index = kept.index
    inputs = design.inputs(index)
    layer = fit(inputs.features, ridge.gram(inputs.features), problem.labels, chosen.strength, problem.n_classes)
    described: dict[str, float | int | str] = {
        "keep": chosen.count / design.n_features,
        "target_size": chosen.pool.target_size,
        "l2_strength": chosen.strength,
        "criterion": "last features" if chosen.probe else settings.criterion,
        "scaling": settings.scaling,
        "folds": problem.n_folds,
    }
    return Outcome(design, index, layer, inputs.scale, chosen.accuracy, described)
