"""All-l2 and All-l2,1: a linear layer on every feature of every tap, with a penalty and without selection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from head2toe.errors import DataError
from head2toe.head import Head
from head2toe.methods.design import Design, design_of
from head2toe.methods.final import STRENGTHS, Layer, fit, right_without
from head2toe.methods.outcome import Outcome, head_of
from head2toe.methods.problem import Journal, Problem, prepare
from head2toe.solvers import group_lasso, ridge
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.store import FeatureStore

PATH_LENGTH = 20
PATH_END = 0.02  # of lam_max
TOLERANCE = 1e-3  # relative duality gap


@dataclass(frozen=True)
class AllFeatures:
    """A linear layer on all features; the strength of its penalty, l2 or l2,1 (equation 4), is cross-validated."""

    penalty: Literal["l2", "l21"] = "l2"
    target_size: int = 512
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.penalty not in ("l2", "l21"):
            raise DataError(f"AllFeatures: the penalty should be 'l2' or 'l21', got '{self.penalty}'")

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
        journal, pool = journal or Journal(), Pool(self.target_size)
        problem = prepare(
            backbone, task, store, [pool], folds=self.folds, seed=self.seed, progress=progress, journal=journal
        )
        choose = cross_validated_ridge if self.penalty == "l2" else _cross_validated_group_lasso
        return head_of(f"all-{self.penalty}", problem, choose(problem, pool, journal))


def cross_validated_ridge(problem: Problem, pool: Pool, journal: Journal) -> Outcome:
    """The l2-regularised layer on all features of the problem's taps, at the best cross-validated strength."""
    with journal.phase("select"):
        design = design_of(problem.table(pool))
        K = ridge.gram(design.blocks)
        right = problem.over_folds(lambda out: right_without(K, problem.labels, out, problem.n_classes))
        best = int(np.argmax(right))
    with journal.phase("fit"):
        layer = fit(design.blocks, K, problem.labels, STRENGTHS[best], problem.n_classes)
    settings = _settings(problem, pool) | {"l2_strength": float(STRENGTHS[best])}
    everything = np.arange(design.n_features)
    return Outcome(design, everything, layer, design.scale(everything), right[best] / problem.n_held_out, settings)


def _cross_validated_group_lasso(problem: Problem, pool: Pool, journal: Journal) -> Outcome:
    with journal.phase("select"):
        design = design_of(problem.table(pool))
        blocks, labels = design.blocks, problem.labels
        shares = np.geomspace(1.0, PATH_END, PATH_LENGTH)
        lams = shares * group_lasso.lam_max(blocks, labels, n_classes=problem.n_classes)
        right = problem.over_folds(lambda held_out: _right_on_path(design, problem, lams, held_out))
        best = int(np.argmax(right))
    with journal.phase("fit"):
        path = group_lasso.path(blocks, labels, lams[: best + 1], n_classes=problem.n_classes, tol=TOLERANCE)
        index, W, b = path.coef(best)
    settings = _settings(problem, pool) | {"l21_strength": float(lams[best])}
    return Outcome(design, index, Layer(W, b), design.scale(index), right[best] / problem.n_held_out, settings)


def _right_on_path(design: Design, problem: Problem, lams: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """How many held-out rows each strength gets right: (len(lams),) int64."""
    path = group_lasso.path(
        design.blocks,
        problem.labels,
        lams,
        n_classes=problem.n_classes,
        sample_weight=(~held_out).astype(np.float64),
        tol=TOLERANCE,
    )
    right = np.zeros(len(lams), dtype=np.int64)
    for i in range(len(lams)):
        index, W, b = path.coef(i)
        logits = design.features(index)[held_out] @ W + b
        right[i] = (logits.argmax(axis=1) == problem.labels[held_out]).sum()
    return right


def _settings(problem: Problem, pool: Pool) -> dict[str, float | int | str]:
    return {"target_size": pool.target_size, "folds": problem.n_folds}
