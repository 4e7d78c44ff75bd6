"""All-l1, All-l2 and All-l2,1: a linear layer on every feature of every tap, with a penalty and without selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from head2toe.errors import DataError
from head2toe.methods import frozen
from head2toe.methods.design import Design, design_of
from head2toe.methods.final import STRENGTHS, Layer, fit, right_without
from head2toe.methods.outcome import Outcome
from head2toe.methods.problem import Journal, Problem
from head2toe.solvers import group_lasso, lasso, ridge
from head2toe.solvers.working_set import Path
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task

PATH_LENGTH = 20
PATH_END = 0.02  # of lam_max
TOLERANCE = 1e-3  # relative duality gap


@dataclass(frozen=True)
class AllFeatures:
    """A linear layer on all features, with an l1, l2 or l2,1 penalty (equation 4).

    Its strength and, where several are given, the target size are chosen by cross-validation.
    """

    penalty: Literal["l1", "l2", "l21"] = "l2"
    target_size: int | Sequence[int] = 512
    folds: int = 5
    seed: int = 0
    fit = frozen.fit

    def __post_init__(self) -> None:
        if self.penalty not in ("l1", "l2", "l21"):
            raise DataError(f"AllFeatures: the penalty should be 'l1', 'l2' or 'l21', got '{self.penalty}'")

    @property
    def name(self) -> str:
        return f"all-{self.penalty}"

    @property
    def pools(self) -> tuple[Pool, ...]:
        return frozen.pools_of(self.target_size)

    def reads(self, backbone: Backbone, task: Task) -> tuple[str, ...]:
        return tuple(tap.name for tap in backbone.taps)

    def choose(self, problem: Problem, journal: Journal) -> Outcome:
        with journal.phase("select"):
            best = max((self._at(pool, problem) for pool in self.pools), key=lambda choice: choice.cv_accuracy)
        with journal.phase("fit"):
            return best.fit()

    def _at(self, pool: Pool, problem: Problem) -> Choice:
        if self.penalty == "l2":
            return cross_validated_ridge(problem, pool)
        return _cross_validated_path(problem, pool, self.penalty)


@dataclass(frozen=True)
class Choice:
    """The best strength at one target size: its cross-validated accuracy, and how the layer is fitted."""

    cv_accuracy: float
    fit: Callable[[], Outcome]


def cross_validated_ridge(problem: Problem, pool: Pool, *, means_only: bool = False) -> Choice:
    """The l2-regularised layer on all features of the problem's taps, at the best cross-validated strength.

    means_only=True leaves deviations out, as a linear probe does where its last features are a map.
    """
    design = design_of(problem.table(pool))
    index = design.means() if means_only else np.arange(design.n_features)
    features = design.blocks if len(index) == design.n_features else (design.features(index),)
    K = ridge.gram(features)
    right = problem.over_folds(lambda out: right_without(K, problem.labels, out, problem.n_classes))
    best = int(np.argmax(right))
    accuracy = right[best] / problem.n_held_out

    def fitted() -> Outcome:
        layer = fit(features, K, problem.labels, STRENGTHS[best], problem.n_classes)
        settings = _settings(problem, pool) | {"l2_strength": float(STRENGTHS[best])}
        return Outcome(design.taps, design.scaling, index, design.scale(index).undo(layer), accuracy, settings)

    return Choice(accuracy, fitted)


def _cross_validated_path(problem: Problem, pool: Pool, penalty: Literal["l1", "l21"]) -> Choice:
    """The exact l1- or l2,1-penalised layer at the best of the strengths below lam_max, where it keeps nothing."""
    solver, design = lasso if penalty == "l1" else group_lasso, design_of(problem.table(pool))

    def path(lams: np.ndarray, held_out: np.ndarray | None = None) -> Path:
        weight = None if held_out is None else (~held_out).astype(np.float64)
        return solver.path(
            design.blocks, problem.labels, lams, n_classes=problem.n_classes, sample_weight=weight, tol=TOLERANCE
        )

    shares = np.geomspace(1.0, PATH_END, PATH_LENGTH)
    largest = solver.lam_max(design.blocks, problem.labels, n_classes=problem.n_classes)
    lams = shares * max(largest, float(np.finfo(np.float32).tiny))  # 0 where every feature is constant
    with problem.bar(f"all-{penalty}, fold by fold", problem.n_folds) as advance:

        def on_path(held_out: np.ndarray) -> np.ndarray:
            right = _held_out_right(design, problem.labels, held_out, path(lams, held_out))
            advance()
            return right

        right = problem.over_folds(on_path)
    best = 1 + int(np.argmax(right[1:]))
    accuracy = right[best] / problem.n_held_out

    def fitted() -> Outcome:
        index, W, b = path(lams[: best + 1]).coef(best)
        settings = _settings(problem, pool) | {f"{penalty}_strength": float(lams[best])}
        layer = design.scale(index).undo(Layer(W, b))
        return Outcome(design.taps, design.scaling, index, layer, accuracy, settings)

    return Choice(accuracy, fitted)


def _held_out_right(design: Design, labels: np.ndarray, held_out: np.ndarray, path: Path) -> np.ndarray:
    """How many held-out rows each strength of a path gets right: (k,) int64."""
    right = np.zeros(len(path.lams), dtype=np.int64)
    for i in range(len(right)):
        index, W, b = path.coef(i)
        logits = design.features(index)[held_out] @ W + b
        right[i] = (logits.argmax(axis=1) == labels[held_out]).sum()
    return right


def _settings(problem: Problem, pool: Pool) -> dict[str, float | int | str]:
    return {"target_size": pool.target_size, "moments": pool.moments, "folds": problem.n_folds}
