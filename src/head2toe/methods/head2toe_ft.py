"""Head2Toe-FT: the kept taps' network and the head trained together, from the Head2Toe solution."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from head2toe.data.task import Task, joined
from head2toe.methods.head2toe import Head2Toe
from head2toe.methods.problem import Journal, fold_of, folds_for, training_splits
from head2toe.methods.training import Training
from head2toe.methods.training.choice import Start, fit_network, held_out_rows
from head2toe.network import Network, Tapped

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.head import Head
    from head2toe.store import FeatureStore


@dataclass(frozen=True)
class Head2ToeFT:
    """A Head2Toe head, then all weights below and in it trained on.

    Runs are judged from a head that was fitted without the held-out rows. Batch normalisation keeps the statistics
    that the head was fitted under, so that the first step starts from the head's own predictions.
    """

    head2toe: Head2Toe = field(default_factory=Head2Toe)
    training: Training = field(default_factory=Training)

    def fit(
        self,
        backbone: Backbone,
        task: Task,
        store: FeatureStore | str | Path | None = None,
        *,
        journal: Journal | None = None,
        progress: bool = True,
    ) -> Network:
        """Fit the head, then train on the train and validation rows; beside the store waits what a killed fit left.

        Raises DataError for labels that cannot be cross-validated, NotConvergedError where every rate was too high.
        """
        journal = journal or Journal()
        judging = _judging(task, self.training.seed)
        with_fewer_rows = replace(self.head2toe, folds=folds_for(judging, self.head2toe.folds))
        fold_of(judging, judging.train.labels, with_fewer_rows.folds, self.head2toe.seed)  # refuses before the pass
        final = self.head2toe.fit(backbone, replace(task, test=None), store, journal=journal, progress=progress)
        extraction, operations = journal.extraction, journal.flops["extract"]
        judged = with_fewer_rows.fit(backbone, judging, store, journal=journal, progress=False)
        # the second fit found everything in the store
        journal.extraction, journal.flops["extract"] = extraction, operations
        start = Start(from_head(judged, backbone), from_head(final, backbone), frozen_statistics=True)
        network = fit_network(
            "head2toe-ft", self, self.training, start, backbone, task, store, journal, progress=progress
        )
        settings = final.provenance.settings | network.provenance.settings  # of the head, then of its training
        return replace(network, provenance=replace(network.provenance, settings=settings))


def from_head(head: Head, backbone: Backbone) -> Tapped:
    """The network under a head's linear layer, which computes what the head computes."""
    return Tapped(backbone, head.kept, head.scaling, head.W, head.b)


def _judging(task: Task, seed: int) -> Task:
    """The rows that are not held out."""
    rows = joined(training_splits(task))
    return Task(task.name, task.classes, rows.rows(np.flatnonzero(~held_out_rows(task, seed))))
