"""Head2Toe: rank the features of all taps by relevance, keep the best few, train a fresh linear layer on those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from head2toe.errors import DataError, FeatureError
from head2toe.methods import SIZES, frozen
from head2toe.methods.design import Design, design_of
from head2toe.methods.final import STRENGTHS, fit, held_out_right, right_without
from head2toe.methods.outcome import Outcome
from head2toe.methods.problem import Journal, Problem
from head2toe.methods.relevance import LADDER, Criterion, Kept, check_criterion, kept_sets
from head2toe.methods.scores import Evidence
from head2toe.selection import n_kept
from head2toe.solvers import ridge
from head2toe.solvers.threads import side_by_side
from head2toe.table import Scaling
from head2toe.taps import Moments, Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task


@dataclass(frozen=True, eq=False)
class Head2Toe:
    """Selection by relevance over all taps (see `relevance`), then a linear layer on the kept features.

    Keep fraction, l2 strength and, where several are given, target size are chosen by cross-validation on train and
    validation rows; scores are recomputed inside every fold. Equal accuracies go to fewer features. Unless `keep` or
    `window` is given, the last features alone are a candidate too: where they are best, the head is a linear probe.
    `scaling` says what each image's vector of a tap is divided by: the norm of the whole tap, that of its kept columns
    (as published, after selection), or nothing. With moments=2 each cell of a map gives its mean and its standard
    deviation, with 1 the mean alone, as published; None takes both up to target size 512.

    For studies, `window=(offset, count)` keeps so many features from that place of the ranking on, and `scores` (F,)
    stand for the criterion: those of another task, say (see `relevance_scores`). Scores that held-out rows had a part
    in make the cross-validated accuracy too good.
    """

    target_size: int | Sequence[int] = SIZES
    keep: float | Sequence[float] | None = None
    criterion: Criterion = "elimination"
    scaling: Scaling = "tap"
    folds: int = 5
    seed: int = 0
    moments: Moments | None = None
    window: tuple[int, int] | None = None
    scores: np.ndarray | None = None
    fit = frozen.fit

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        for fraction in self.fractions:
            n_kept(1, fraction)
        if not self.fractions:
            raise DataError("Head2Toe: keep should name at least one fraction")
        if self.scores is not None and (len(self.pools) > 1 or not np.isfinite(self.scores).all()):
            raise DataError("Head2Toe: scores should be finite numbers, those of one target size")
        if self.window is None:
            return
        if self.keep is not None:
            raise DataError("Head2Toe: a window says how many features to keep; give either keep or window")
        offset, count = self.window
        if offset < 0 or count < 1:
            raise DataError(f"Head2Toe: a window is (offset >= 0, count >= 1), got {self.window}")

    @property
    def name(self) -> str:
        return "head2toe"

    @property
    def fractions(self) -> tuple[float, ...]:
        """The keep fractions to choose from, rising."""
        given = LADDER if self.keep is None else self.keep
        return tuple(sorted({given} if isinstance(given, int | float) else set(given)))

    @property
    def pools(self) -> tuple[Pool, ...]:
        return frozen.pools_of(self.target_size, self.moments)

    def reads(self, backbone: Backbone, task: Task) -> tuple[str, ...]:
        for pool in self.pools:
            n_features = sum(pool.length(tap) for tap in backbone.taps)
            if self.scores is not None and np.shape(self.scores) != (n_features,):
                raise FeatureError(
                    f"keep: {n_features} scores are needed, one a feature, got shape {np.shape(self.scores)}"
                )
            if self.window is not None and sum(self.window) > n_features:
                offset, count = self.window
                raise FeatureError(f"keep: a window of {count} features from {offset} on ends beyond the {n_features}")
        return tuple(tap.name for tap in backbone.taps)

    def choose(self, problem: Problem, journal: Journal) -> Outcome:
        with journal.phase("select"):
            tried = (_cross_validated(problem, pool, self) for pool in self.pools)
            chosen, design = max(tried, key=lambda one: one[0].merit())
        with journal.phase("fit"):
            return _fitted(problem, chosen, design, self)

    def counts(self, n_features: int) -> list[int]:
        """How many of `n_features` each setting keeps."""
        if self.window is not None:
            return [self.window[1]]
        return [n_kept(n_features, fraction) for fraction in self.fractions]

    def sets(self, evidence: Evidence, counts: Sequence[int]) -> Iterator[Kept]:
        """The kept features for each of `counts`, from the largest to the smallest."""
        criterion = self.criterion if self.scores is None else np.asarray(self.scores, np.float64)
        return kept_sets(evidence, counts, criterion, 0 if self.window is None else self.window[0])


@dataclass(frozen=True, eq=False)
class _Choice:
    """Settings, the features `index` (k,) that they keep, and their held-out accuracy.

    Equal ones go to fewer features, then to the stronger penalty.
    """

    pool: Pool
    strength: float
    index: np.ndarray
    accuracy: float
    probe: bool = False

    def merit(self) -> tuple[float, int, float]:
        return self.accuracy, -len(self.index), self.strength


def _cross_validated(problem: Problem, pool: Pool, settings: Head2Toe) -> tuple[_Choice, Design]:
    """The best settings at one target size, and the features of all rows that they were chosen on.

    What all rows together keep is found beside the folds, where a core would be idle.
    """
    design, labels = design_of(problem.table(pool), settings.scaling), problem.labels
    counts, held_out = settings.counts(design.n_features), problem.held_out()
    nobody = np.zeros(len(labels), dtype=bool)
    evidence = Evidence(design, design.gram(), labels, problem.n_classes, nobody, settings.seed)
    last = _last_features(problem, design, settings)
    K = ridge.gram(design.inputs(last).features) if len(last) else None
    with side_by_side() as threads:
        rights = [threads.submit(_right, replace(evidence, held_out=out), counts, settings) for out in held_out]
        kept = threads.submit(_kept, evidence, counts, settings)
        probes = (
            [] if K is None else [threads.submit(right_without, K, labels, out, problem.n_classes) for out in held_out]
        )
    accuracy = np.sum([one.result() for one in rights], axis=0) / problem.n_held_out
    tried = [_best(pool, kept.result()[count], row) for count, row in zip(counts, accuracy, strict=True)]
    if probes:
        accuracy = np.sum([one.result() for one in probes], axis=0) / problem.n_held_out
        tried.append(replace(_best(pool, last, accuracy), probe=True))
    return max(tried, key=_Choice.merit), design


def _last_features(problem: Problem, design: Design, settings: Head2Toe) -> np.ndarray:
    """The features (k,) of a linear probe where it is a candidate, else none."""
    if settings.keep is not None or settings.window is not None or problem.backbone.prelogits not in problem.tap_names:
        return np.zeros(0, np.int64)
    return design.means(problem.backbone.prelogits)


def _kept(evidence: Evidence, counts: Sequence[int], settings: Head2Toe) -> dict[int, np.ndarray]:
    """The features that each of `counts` keeps."""
    return {len(kept.index): kept.index for kept in settings.sets(evidence, sorted(set(counts)))}


def _best(pool: Pool, index: np.ndarray, accuracy: np.ndarray) -> _Choice:
    """The best of the strengths, whose held-out accuracies are (len(STRENGTHS),)."""
    choices = [_Choice(pool, float(s), index, float(a)) for s, a in zip(STRENGTHS, accuracy, strict=True)]
    return max(choices, key=_Choice.merit)


def _right(evidence: Evidence, counts: Sequence[int], settings: Head2Toe) -> np.ndarray:
    """Held-out rows that each (count, strength) gets right: (len(counts), len(STRENGTHS)) int64."""
    labels, held_out = evidence.labels, evidence.held_out
    sets = settings.sets(evidence, sorted(set(counts)))
    right = {len(kept.index): held_out_right(kept.gram, labels, held_out, kept.fits) for kept in sets}
    return np.array([right[count] for count in counts])


def _fitted(problem: Problem, chosen: _Choice, design: Design, settings: Head2Toe) -> Outcome:
    inputs = design.inputs(chosen.index)
    layer = fit(inputs.features, ridge.gram(inputs.features), problem.labels, chosen.strength, problem.n_classes)
    described = _described(problem, design, chosen, settings)
    return Outcome(design.taps, design.scaling, chosen.index, inputs.scale.undo(layer), chosen.accuracy, described)


def _described(problem: Problem, design: Design, chosen: _Choice, settings: Head2Toe) -> dict[str, float | int | str]:
    criterion = settings.criterion if settings.scores is None else "given scores"
    return {
        "keep": len(chosen.index) / design.n_features,
        "target_size": chosen.pool.target_size,
        "moments": chosen.pool.moments,
        "l2_strength": chosen.strength,
        "criterion": "last features" if chosen.probe else criterion,
        **({} if settings.window is None else {"offset": settings.window[0]}),
        "scaling": settings.scaling,
        "folds": problem.n_folds,
    }
