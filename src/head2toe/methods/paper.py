"""The paper's methods by its published recipe: stochastic steps, scaling after selection, nothing standardised.

Adam with cosine decay to zero, batches of 128 in one fixed order, integer pooling windows; each image's vector of a tap
has unit norm over the columns that are kept; relevance is the norm of a feature's row in the layer trained with the
l2,1 penalty (equation 4), and the final layer is trained without it. Our own recipe solves the same problems exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from head2toe.errors import DataError, NotConvergedError
from head2toe.methods import frozen
from head2toe.methods.final import Layer
from head2toe.methods.outcome import Outcome, kept_taps
from head2toe.methods.problem import Journal, Problem
from head2toe.selection import n_kept, ranking
from head2toe.solvers import sgd
from head2toe.table import FeatureTable, scaled
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task

Recipe = Literal["linear", "all-l1", "all-l2", "all-l21", "head2toe"]
_PENALTIES: dict[Recipe, sgd.Penalty] = {"all-l1": "l1", "all-l2": "l2", "all-l21": "l21", "head2toe": "l21"}


@dataclass(frozen=True)
class Grid:
    """What cross-validation chooses from: steps of Adam x learning rates x penalties' strengths x keep fractions."""

    steps: tuple[int, ...]
    lrs: tuple[float, ...]
    lams: tuple[float, ...]
    kappas: tuple[float, ...]


THIN = Grid((500,), (0.01, 0.1), (1e-5, 1e-4), (0.005, 0.02, 0.1, 0.3))  # minutes on two cores
FULL = Grid(
    (500, 5000),
    (0.01, 0.1),
    (1e-5, 1e-4, 1e-3),
    (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
)


@dataclass(frozen=True)
class Paper:
    """Linear, All or Head2Toe by the published recipe; `grid` and target sizes are chosen from by cross-validation.

    The default grid is a THIN part of the published values; FULL has all of them, takes 11 (linear) to 40 (head2toe)
    times as many training steps, and the name says so. Both layers of Head2Toe are trained with the same steps and
    learning rate.
    """

    method: Recipe = "head2toe"
    target_size: int | Sequence[int] = 512
    grid: Grid = THIN
    folds: int = 5
    seed: int = 0
    fit = frozen.fit

    def __post_init__(self) -> None:
        if self.method not in get_args(Recipe):
            raise DataError(f"Paper: the method should be one of {get_args(Recipe)}, got '{self.method}'")
        if not self.settings:
            raise DataError(f"Paper: the grid should name at least one value of each setting, got {self.grid}")
        for values in (self.grid.steps, self.grid.lrs, self.grid.lams, self.grid.kappas):
            if len(set(values)) < len(values):
                raise DataError(f"Paper: the grid should name every value once, got {values}")
        for kappa in self.grid.kappas:
            n_kept(1, kappa)

    @property
    def name(self) -> str:
        return f"paper-full-{self.method}" if self.grid_name == "full" else f"paper-{self.method}"

    @property
    def grid_name(self) -> str:
        return "full" if self.grid == FULL else "thin" if self.grid == THIN else "given"

    @property
    def pools(self) -> tuple[Pool, ...]:
        return frozen.pools_of(self.target_size, moments=1)

    @property
    def settings(self) -> list[Setting]:
        """The grid as far as the method has a use for it."""
        lams = self.grid.lams if self.method in _PENALTIES else (0.0,)
        kappas = self.grid.kappas if self.method == "head2toe" else (1.0,)
        return [Setting(*values) for values in product(self.grid.steps, self.grid.lrs, lams, kappas)]

    def reads(self, backbone: Backbone, task: Task) -> tuple[str, ...]:
        return frozen.last_features(backbone) if self.method == "linear" else tuple(tap.name for tap in backbone.taps)

    def choose(self, problem: Problem, journal: Journal) -> Outcome:
        with journal.phase("select"):
            choices = [choice for pool in self.pools for choice in _cross_validated(self, problem, pool)]
            best = max(choices, key=_Choice.merit)
        with journal.phase("fit"):
            table, everyone = problem.table(best.pool), np.ones(len(problem.labels), dtype=bool)
            (trained,) = _trained(self, problem, table, everyone, [best.setting])
        if best.accuracy < 0 or trained is None:
            raise NotConvergedError(f"{self.name}: the loss became no number with {best.setting}; lower the grid's lrs")
        settings: dict[str, float | int | str] = {
            "grid": self.grid_name,
            "steps": best.setting.steps,
            "lr": best.setting.lr,
            "lam": best.setting.lam,
            "keep": best.setting.kappa,
            "target_size": best.pool.target_size,
            "moments": best.pool.moments,
            "folds": problem.n_folds,
        }
        return Outcome(table.taps, "kept", trained.index, trained.layer, best.accuracy, settings)


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    steps: int
    lr: float
    lam: float
    kappa: float


@dataclass(frozen=True)
class _Choice:
    """A setting and its held-out accuracy, below zero where its loss became no number in some fold.

    Equal ones go to fewer features, then to fewer steps.
    """

    pool: Pool
    setting: Setting
    n_kept: int
    accuracy: float

    def merit(self) -> tuple[float, int, int]:
        return self.accuracy, -self.n_kept, -self.setting.steps


@dataclass(frozen=True, eq=False)
class _Trained:
    """The layer of one setting on the features `index` (k,), and what it reads of all rows: (n, k) float32."""

    index: np.ndarray
    features: np.ndarray
    layer: Layer

    def right(self, labels: np.ndarray, rows: np.ndarray) -> int:
        """How many of `rows` (n,) bool it gets right."""
        predicted = (self.features[rows] @ self.layer.W + self.layer.b).argmax(axis=1)
        return int((predicted == labels[rows]).sum())


def _cross_validated(paper: Paper, problem: Problem, pool: Pool) -> list[_Choice]:
    table, settings = problem.table(pool), paper.settings
    with problem.bar(f"{paper.name}, {pool.target_size}", problem.n_folds * len(settings)) as advance:

        def right(held_out: np.ndarray) -> np.ndarray:
            """Held-out rows that each setting gets right: (len(settings),) int64; fewer than none if it diverged."""
            counts = []
            for one in _trained(paper, problem, table, ~held_out, settings):
                counts.append(-1 - problem.n_held_out if one is None else one.right(problem.labels, held_out))
                advance()
            return np.array(counts)

        accuracies = problem.over_folds(right) / problem.n_held_out
    return [
        _Choice(pool, setting, n_kept(table.n_features, setting.kappa), float(accuracy))
        for setting, accuracy in zip(settings, accuracies, strict=True)
    ]


def _trained(
    paper: Paper, problem: Problem, table: FeatureTable, rows: np.ndarray, settings: Sequence[Setting]
) -> Iterator[_Trained | None]:
    """Each setting's layer on `rows` (n,) bool, in their order: settings that share data are trained side by side.

    None where the loss became no number.
    """
    labels, n_classes, seed = problem.labels[rows], problem.n_classes, paper.seed
    everything = np.arange(table.n_features)
    features = _scaled(table, everything)
    for steps, alike in groupby(settings, key=lambda setting: setting.steps):
        kappas: dict[tuple[float, float], list[float]] = {}
        for setting in alike:
            kappas.setdefault((setting.lr, setting.lam), []).append(setting.kappa)
        layers = sgd.fit_all(
            features[rows], labels, *zip(*kappas, strict=True),
            n_classes=n_classes, steps=steps, penalty=_PENALTIES.get(paper.method), seed=seed,
        )  # fmt: skip
        for ((lr, _), fractions), layer in zip(kappas.items(), layers, strict=True):
            if layer is None:
                yield from [None] * len(fractions)
                continue
            if paper.method != "head2toe":
                yield _Trained(everything, features, Layer(*layer))
                continue
            order = ranking(np.linalg.norm(layer[0], axis=1))
            for kappa in fractions:
                index = np.sort(order[: n_kept(table.n_features, kappa)])
                kept = _scaled(table, index)
                (final,) = sgd.fit_all(kept[rows], labels, [lr], [0.0], n_classes=n_classes, steps=steps, seed=seed)
                yield None if final is None else _Trained(index, kept, Layer(*final))


def _scaled(table: FeatureTable, index: np.ndarray) -> np.ndarray:
    """The features `index`, rising, each tap scaled to unit norm over them: (n, k) float32."""
    blocks = dict(zip(table.taps, table.blocks, strict=True))
    return np.hstack([scaled(blocks[kept.pooled], kept.columns, "kept") for kept in kept_taps(table.taps, index)])
