"""From a chosen layer to a head: what all methods end with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from head2toe.extract import view_of
from head2toe.head import Head, KeptTap, Metrics, Provenance, described
from head2toe.methods.final import Layer
from head2toe.methods.problem import Problem
from head2toe.table import Scaling
from head2toe.taps import PooledTap


@dataclass(frozen=True, eq=False)
class Outcome:
    """A layer on the features `index` (k,), rising, of all `taps` that were read, and how it was chosen.

    The layer's inputs are scaled by `scaling` (see `table.scaled`) and not standardised.
    """

    taps: tuple[PooledTap, ...]
    scaling: Scaling
    index: np.ndarray
    layer: Layer
    cv_accuracy: float
    settings: dict[str, float | int | str]


def head_of(method: str, problem: Problem, outcome: Outcome) -> Head:
    """The head, with its accuracy on the test split where there is one."""
    backbone, taps = problem.backbone, outcome.taps
    head = Head(
        backbone=backbone.id,
        fingerprint=backbone.fingerprint,
        precision=backbone.precision,
        preprocessing=described(backbone.preprocess),
        dtype=view_of(backbone, taps[0].pool).dtype,
        kept=kept_taps(taps, outcome.index),
        scaling=outcome.scaling,
        W=outcome.layer.W,
        b=outcome.layer.b,
        classes=problem.task.classes,
        metrics=Metrics(len(problem.labels), float(outcome.cv_accuracy)),
        provenance=Provenance(method, outcome.settings, len(taps), sum(tap.length for tap in taps)),
    )
    test = problem.task.test
    if test is None:
        return head
    table = problem.test_table(taps[0].pool, head.taps)
    accuracy = float((head.logits_of(table).argmax(axis=1) == test.labels).mean())
    return replace(head, metrics=replace(head.metrics, test_accuracy=accuracy))


def kept_taps(taps: tuple[PooledTap, ...], index: np.ndarray) -> tuple[KeptTap, ...]:
    """The features `index` (k,), rising, as columns of their taps; taps that keep nothing are left out."""
    offsets = np.cumsum([0, *(tap.length for tap in taps)])
    cuts = np.searchsorted(index, offsets)
    return tuple(
        KeptTap(tap, index[a:b] - offset)
        for tap, offset, a, b in zip(taps, offsets[:-1], cuts[:-1], cuts[1:], strict=True)
        if b > a
    )
