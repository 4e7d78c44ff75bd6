"""Linear: the linear probe on the last features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from head2toe.errors import BackboneError
from head2toe.head import Head
from head2toe.methods.all_features import cross_validated_ridge
from head2toe.methods.outcome import head_of
from head2toe.methods.problem import Journal, prepare
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.store import FeatureStore


@dataclass(frozen=True)
class Linear:
    """A linear layer on the pre-logits, its l2 strength cross-validated."""

    target_size: int = 512
    folds: int = 5
    seed: int = 0

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
        if backbone.prelogits not in {tap.name for tap in backbone.taps}:
            raise BackboneError(f"linear: {backbone.id} was loaded without its last features '{backbone.prelogits}'")
        journal, pool = journal or Journal(), Pool(self.target_size)
        problem = prepare(
            backbone, task, store, [pool], taps=[backbone.prelogits],
            folds=self.folds, seed=self.seed, progress=progress, journal=journal,
        )  # fmt: skip
        return head_of("linear", problem, cross_validated_ridge(problem, pool, journal))
