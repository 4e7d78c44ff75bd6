"""From a chosen layer to a head: what all methods end with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from head2toe.extract import view_of
from head2toe.head import Head, Metrics, Provenance, described
from head2toe.methods.design import Design, Scale
from head2toe.methods.final import Layer
from head2toe.methods.problem import Problem


@dataclass(frozen=True, eq=False)
class Outcome:
    """A layer on the features `index` (k,), rising, of a design, how they were standardised, and how it was chosen."""

    design: Design
    index: np.ndarray
    layer: Layer
    scale: Scale
    cv_accuracy: float
    settings: dict[str, float | int | str]


def head_of(method: str, problem: Problem, outcome: Outcome) -> Head:
    """The head, with its accuracy on the test split where there is one."""
    backbone, design = problem.backbone, outcome.design
    W, b = outcome.scale.undo(outcome.layer.W, outcome.layer.b)
    head = Head(
        backbone=backbone.id,
        fingerprint=backbone.fingerprint,
        precision=backbone.precision,
        preprocessing=described(backbone.preprocess),
        dtype=view_of(backbone, design.taps[0].pool).dtype,
        kept=design.kept(outcome.index),
        scaling=design.scaling,
        W=W,
        b=b,
        classes=problem.task.classes,
        metrics=Metrics(len(problem.labels), outcome.cv_accuracy),
        provenance=Provenance(method, outcome.settings, len(design.taps), design.n_features),
    )
    test = problem.task.test
    if test is None:
        return head
    table = problem.test_table(design.taps[0].pool, head.taps)
    accuracy = float((head.logits_of(table).argmax(axis=1) == test.labels).mean())
    return replace(head, metrics=replace(head.metrics, test_accuracy=accuracy))
