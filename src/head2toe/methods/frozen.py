"""What every method on a frozen network shares: extract, let it choose a layer, make that a head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from head2toe.errors import BackboneError, DataError
from head2toe.head import Head
from head2toe.methods.outcome import Outcome, head_of
from head2toe.methods.problem import Journal, Problem, prepare
from head2toe.taps import COARSE, Moments, Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.store import FeatureStore


@runtime_checkable
class Frozen(Protocol):
    """What a method says of itself: its name, what it reads, and how it chooses and fits a layer."""

    @property
    def name(self) -> str: ...

    @property
    def pools(self) -> tuple[Pool, ...]: ...

    @property
    def folds(self) -> int: ...

    @property
    def seed(self) -> int: ...

    def reads(self, backbone: Backbone, task: Task) -> tuple[str, ...]:
        """Names of the taps that are needed; raises for a backbone or task that the method has no use for."""
        ...

    def choose(self, problem: Problem, journal: Journal) -> Outcome:
        """The layer on its features, timed as the phases "select" and "fit"."""
        ...


def fit(
    self: Frozen,
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
        backbone, task, store, self.pools, taps=self.reads(backbone, task),
        folds=self.folds, seed=self.seed, progress=progress, journal=journal,
    )  # fmt: skip
    return head_of(self.name, problem, self.choose(problem, journal))


def pools_of(target_size: int | Sequence[int], moments: Moments | None = None) -> tuple[Pool, ...]:
    """The pools of one or several target sizes, from the smallest to the largest; DataError for none.

    Unless `moments` says so, deviations stand beside means up to `COARSE`.
    """
    sizes = {target_size} if isinstance(target_size, int) else set(target_size)
    if not sizes:
        raise DataError("fit: give at least one target size")
    return tuple(Pool(size, moments=moments or (2 if size <= COARSE else 1)) for size in sorted(sizes))


def last_features(backbone: Backbone, *names: str) -> tuple[str, ...]:
    """The tap that a linear probe reads, or those `names`; BackboneError where the backbone was loaded without one."""
    wanted, there = names or (backbone.prelogits,), {tap.name for tap in backbone.taps}
    if absent := [name for name in wanted if name not in there]:
        raise BackboneError(
            f"fit: {backbone.id} was loaded without its last features '{absent[0]}', which this method reads; "
            "load all taps and no budget of operations"
        )
    return wanted
