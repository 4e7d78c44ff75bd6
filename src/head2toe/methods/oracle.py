"""Oracle: the last features and the one tap that helps most on the test images; an upper bound, no method to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from head2toe.errors import DataError
from head2toe.head import UPPER_BOUND
from head2toe.methods import frozen
from head2toe.methods.design import Design, design_of
from head2toe.methods.final import STRENGTHS, fit, right_without, solve
from head2toe.methods.outcome import Outcome
from head2toe.methods.problem import Journal, Problem
from head2toe.solvers import ridge
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task


@dataclass(frozen=True)
class Oracle:
    """An upper bound: a linear layer on the last features and one tap, that of the best test accuracy (Figure 3).

    Each tap's l2 strength is cross-validated; the tap and, where several are given, the target size are chosen on test
    images. The last features alone are a candidate, so that Oracle is never below Linear. DataError for a task without
    a test split.
    """

    target_size: int | Sequence[int] = 512
    folds: int = 5
    seed: int = 0
    fit = frozen.fit

    @property
    def name(self) -> str:
        return "oracle"

    @property
    def pools(self) -> tuple[Pool, ...]:
        return frozen.pools_of(self.target_size)

    def reads(self, backbone: Backbone, task: Task) -> tuple[str, ...]:
        if task.test is None:
            raise DataError(
                f"oracle: task '{task.name}' has no test split, and Oracle chooses a tap on it; use head2toe"
            )
        frozen.last_features(backbone)
        return tuple(tap.name for tap in backbone.taps)

    def choose(self, problem: Problem, journal: Journal) -> Outcome:
        with journal.phase("select"):
            best, design = max((_best(problem, pool) for pool in self.pools), key=lambda one: one[0].merit())
        with journal.phase("fit"):
            last = problem.backbone.prelogits
            beside = [] if best.tap == last else [design.of_tap(best.tap)]
            index = np.sort(np.concatenate([design.means(last), *beside]))
            features = design.features(index)
            layer = fit(features, ridge.gram(features), problem.labels, best.strength, problem.n_classes)
        settings: dict[str, float | int | str] = {
            UPPER_BOUND: "chosen on test images",
            "tap": best.tap,
            "target_size": best.pool.target_size,
            "moments": best.pool.moments,
            "l2_strength": best.strength,
            "folds": problem.n_folds,
        }
        layer = design.scale(index).undo(layer)
        return Outcome(design.taps, design.scaling, index, layer, best.cv_accuracy, settings)


@dataclass(frozen=True)
class _Candidate:
    """One tap beside the last features, at its best cross-validated strength."""

    pool: Pool
    tap: str
    strength: float
    cv_accuracy: float
    test_accuracy: float

    def merit(self) -> tuple[float, float]:
        return self.test_accuracy, self.cv_accuracy


def _best(problem: Problem, pool: Pool) -> tuple[_Candidate, Design]:
    """The best of all taps at one target size, from inner products alone, and the features that it was chosen on.

    Inner products of the last features are computed once, each tap's own added.
    """
    design, last = design_of(problem.table(pool)), problem.backbone.prelogits
    K_last, test_last = _inner(problem, design, pool, last, len(design.means(last)))
    candidates = [_judged(problem, pool, last, K_last, test_last)]
    others = [tap.name for tap in design.taps if tap.name != last]
    with problem.bar(f"oracle, {pool.target_size}, tap by tap", len(others)) as advance:
        for name in others:
            K, test = _inner(problem, design, pool, name)
            candidates.append(_judged(problem, pool, name, K_last + K, test_last + test))
            advance()
    return max(candidates, key=_Candidate.merit), design


def _inner(
    problem: Problem, design: Design, pool: Pool, name: str, n: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The training rows' inner products in a tap's first n features (n, n), and the test rows' with them (m, n)."""
    (block,) = (block[:, :n] for tap, block in zip(design.taps, design.blocks, strict=True) if tap.name == name)
    (test,) = design.like(problem.test_table(pool, [name]))
    return ridge.gram(block), ridge.gram(test[:, :n], block)


def _judged(problem: Problem, pool: Pool, name: str, K: np.ndarray, test: np.ndarray) -> _Candidate:
    labels, n_classes = problem.labels, problem.n_classes
    right = problem.over_folds(lambda out: right_without(K, labels, out, n_classes))
    best = int(np.argmax(right))
    path = solve(K, labels, STRENGTHS[best], n_classes)
    assert problem.task.test is not None
    predicted = (test @ path.dual[0] + path.intercepts[0]).argmax(axis=1)
    accuracy = float((predicted == problem.task.test.labels).mean())
    return _Candidate(pool, name, float(STRENGTHS[best]), float(right[best] / problem.n_held_out), accuracy)
