"""Linear probe, Head2Toe or fine-tuning? Numbers on a user's own data in minutes, and a sentence of advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from head2toe.apply import stored_logits
from head2toe.bench.intervals import Interval, interval_of_mean
from head2toe.data.task import joined
from head2toe.errors import DataError
from head2toe.extract import Extraction, extract, stored_as
from head2toe.head import Head
from head2toe.methods import TRAINED, check_method, method_named
from head2toe.methods.finetune import on_last_features
from head2toe.methods.frozen import Frozen
from head2toe.methods.problem import Journal, fold_of, folds_for, refuse_one_class, spread_inputs, training_splits
from head2toe.methods.training import Training
from head2toe.methods.training.choice import fitting, most_steps
from head2toe.methods.training.loop import step_flops, step_seconds
from head2toe.methods.training.rows import read_rows
from head2toe.store import FeatureStore, default_location
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task

METHODS = ("linear", "all-l2", "head2toe")
ROUNDS = 3  # of held-out thirds, where there is no test split
STEPS, BATCH = 400, 32  # of a fine-tuning that its cost is told for
WORTH = 0.01  # a gain over the linear probe that is worth a head on many layers
FAR = 0.1  # and one that shows how far a task is from what the network was trained on
LOW, ENOUGH = 0.85, 20  # accuracy below which, and images a class from which on, fine-tuning may bring more


@dataclass(frozen=True)
class Score:
    """What one method reaches: `accuracy` on rows that it never saw; by `cv_accuracy` its settings were chosen.

    `difference` and its 95 % interval are to the linear probe on the same rows. `flops`, `seconds` and `task_bytes` are
    of one fit, extraction of the training images counted in operations whether or not they were stored. What was chosen
    on the judged rows is an `upper_bound`.
    """

    method: str
    accuracy: float
    cv_accuracy: float
    difference: float
    interval: Interval | None
    n_kept: int
    n_features: int
    flops: int
    seconds: float
    task_bytes: int
    upper_bound: bool = False


@dataclass(frozen=True)
class FineTuning:
    """What training the whole network would cost: one step was counted and timed, the rest is multiplied.

    `steps`, `flops` and `seconds` are of one run; the tuned ones of all runs, at most, among which `FineTune` chooses.
    Head2Toe's costs hold its choice too.
    """

    steps: int
    batch_size: int
    flops: int
    seconds: float
    task_bytes: int
    tuned_steps: int
    tuned_flops: int
    tuned_seconds: float


@dataclass(frozen=True)
class Advice:
    """What to use, whether fine-tuning is worth a trial, and why, in a sentence."""

    method: Literal["linear", "head2toe"]
    try_finetuning: bool
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """Methods on one task and network; `judged_on` says which rows the accuracies are of.

    One pass of `n_passed` inputs, which were not in the store, took `pass_seconds` for all methods together.
    """

    task: str
    backbone: str
    n_train: int
    n_classes: int
    n_judged: int
    judged_on: Literal["test split", "held-out thirds"]
    scores: tuple[Score, ...]
    finetuning: FineTuning
    advice: Advice
    n_passed: int
    pass_seconds: float


def compare(
    backbone: Backbone,
    task: Task,
    store: FeatureStore | str | Path | None = None,
    *,
    methods: Sequence[str] = METHODS,
    target_size: int = 512,
    seed: int = 0,
) -> Comparison:
    """Fit every method, the linear probe and Head2Toe among them, and judge all on the same rows.

    These are the test split's or, where there is none, all rows: each third by a fit on the other two. What the store
    lacks is computed first, in one pass for all methods. DataError for a method that trains a network.
    """
    check_methods(methods)
    refuse_one_class(task)
    opened = store if isinstance(store, FeatureStore) else FeatureStore(store or default_location())
    rounds = _rounds(task, seed)
    names = dict.fromkeys(("linear", *methods, "head2toe"))
    passed = _extract_once(list(names), backbone, task, rounds, opened, target_size, seed)
    trials = {name: _trial(name, backbone, rounds, opened, target_size, seed) for name in names}
    scores = {name: _score(name, trial, trials["linear"]) for name, trial in trials.items()}
    finetuning = finetuning_cost(backbone, task)
    n_train = sum(split.n_rows for split in training_splits(task))
    return Comparison(
        task=task.name,
        backbone=backbone.id,
        n_train=n_train,
        n_classes=len(task.classes),
        n_judged=len(trials["linear"].right),
        judged_on="test split" if task.test is not None else "held-out thirds",
        scores=tuple(scores.values()),
        finetuning=finetuning,
        advice=advise(scores["linear"], scores["head2toe"], finetuning, n_train / len(task.classes)),
        n_passed=passed.computed,
        pass_seconds=passed.seconds,
    )


def check_methods(methods: Sequence[str]) -> None:
    """DataError for an unknown method, or one that trains a network."""
    for name in methods:
        if check_method(name) in TRAINED:
            raise DataError(f"compare: the cost of '{name}' is told without running it; run it with head2toe fit")


def advise(linear: Score, head2toe: Score, finetuning: FineTuning, images_per_class: float) -> Advice:
    """The paper's finding as a rule: what Head2Toe gains over a linear probe tells how far a task is from the source.

    A gain of a point or more that the interval tells from nothing is worth a head on all layers. One of less, or an
    interval that holds none of a point or more: the last layer is enough. An interval that holds both nothing and a
    point says that the rows are too few to know. Fine-tuning is worth a trial where accuracy is still low and there are
    images to learn from.
    """
    low = head2toe.interval.low if head2toe.interval else 0.0
    gains = low > 0 and head2toe.difference >= WORTH
    chosen = head2toe if gains else linear
    more = chosen.accuracy < LOW and images_per_class >= ENOUGH
    told = f"{100 * head2toe.difference:+.1f} points over a linear probe{_span(head2toe.interval)}"
    untold = low <= 0 and (head2toe.interval is None or head2toe.interval.high >= WORTH)
    if not gains and untold:
        reason = f"Use a linear probe: Head2Toe brings {told}, which so few rows cannot tell from nothing; label more"
    elif not gains:
        why = (
            "a gain, but of less than a point" if low > 0
            else "so the last layer holds what this task needs" if linear.accuracy >= LOW
            else "so other layers hold no more of it"
        )  # fmt: skip
        reason = f"A linear probe is enough: Head2Toe brings {told}, {why}"
    elif head2toe.difference >= FAR:
        reason = f"Use Head2Toe: it brings {told}, a task far from what the network was trained on"
    else:
        reason = f"Use Head2Toe: it brings {told}"
    if more:
        reason += (
            f"; at {chosen.accuracy:.0%} and with {images_per_class:.0f} images a class fine-tuning may bring more, "
            f"for about {_duration(finetuning.seconds)} a training run, up to "
            f"{_duration(finetuning.tuned_seconds)} with the choice of its settings, and "
            f"{finetuning.task_bytes / max(1, chosen.task_bytes):,.0f} times the bytes"
        )
    return Advice("head2toe" if gains else "linear", more, reason + ".")


def finetuning_cost(backbone: Backbone, task: Task, *, steps: int = STEPS, batch_size: int = BATCH) -> FineTuning:
    """Count the operations of a training step on one image, and time a step on `batch_size` of the task's images.

    The caller's network is left alone: steps are taken by a copy.
    """
    model = on_last_features(backbone, len(task.classes))
    picked = task.train.rows(np.arange(batch_size) % task.train.n_rows)
    rows = read_rows(model.backbone, [picked])
    flops, seconds = step_flops(model, rows, picked.labels), step_seconds(model, rows, picked.labels)
    tuned = most_steps(fitting(Training(), rows))
    return FineTuning(
        steps, batch_size, steps * batch_size * flops, steps * seconds, model.n_bytes,
        tuned, tuned * batch_size * flops, tuned * seconds,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Trial:
    """One method over all rounds: which judged rows it got right (n,) bool, its heads, and what the first one took."""

    right: np.ndarray
    heads: tuple[Head, ...]
    journal: Journal


def _rounds(task: Task, seed: int) -> list[Task]:
    """The task itself, or thirds that are held out in turn as its test split."""
    if task.test is not None:
        return [task]
    rows = joined(training_splits(task))
    third = spread_inputs(np.array(rows.ids), rows.labels, ROUNDS, seed)
    for out in range(ROUNDS):
        if len(left := np.unique(rows.labels[third != out])) < 2:
            raise DataError(
                f"compare: without a test split each third of the images is judged by a fit on the others, which once "
                f"hold {len(left)} of {len(task.classes)} classes; add images to the smallest class"
            )
    return [
        replace(task, train=rows.rows(third != out), validation=None, test=rows.rows(third == out))
        for out in range(ROUNDS)
    ]


def _extract_once(
    names: Sequence[str],
    backbone: Backbone,
    task: Task,
    rounds: Sequence[Task],
    store: FeatureStore,
    size: int,
    seed: int,
) -> Extraction:
    """One pass of the network for all methods; what any of them refuses is refused before."""
    pools: dict[Pool, None] = {}
    for name in names:
        for one in rounds:
            method = method_named(name, target_sizes=[size], folds=folds_for(one), seed=seed)
            assert isinstance(method, Frozen), "compare() refuses methods that train a network"
            method.reads(backbone, one)
            fold_of(one, np.concatenate([split.labels for split in training_splits(one)]), method.folds, seed)
            pools |= dict.fromkeys(map(stored_as, method.pools))
    return extract(backbone, task.splits, store, list(pools))


def _trial(
    name: str, backbone: Backbone, rounds: Sequence[Task], store: FeatureStore, target_size: int, seed: int
) -> _Trial:
    right, heads, journals = [], [], []
    for task in rounds:
        assert task.test is not None, "every round has one"
        method = method_named(name, target_sizes=[target_size], folds=folds_for(task), seed=seed)
        journal = Journal()
        head = method.fit(backbone, task, store, journal=journal)
        assert isinstance(head, Head), "compare() refuses methods that train a network"
        logits = stored_logits(head, task.test, backbone, store, progress=False)
        right.append(logits.argmax(axis=1) == task.test.labels)
        heads.append(head)
        journals.append(journal)
    return _Trial(np.concatenate(right), tuple(heads), journals[0])


def _score(name: str, trial: _Trial, probe: _Trial) -> Score:
    ahead = trial.right.astype(np.float64) - probe.right
    head, journal = trial.heads[0], trial.journal
    return Score(
        method=name,
        accuracy=float(trial.right.mean()),
        cv_accuracy=float(np.mean([head.metrics.cv_accuracy for head in trial.heads])),
        difference=float(ahead.mean()),
        interval=interval_of_mean(ahead),
        n_kept=head.n_kept,
        n_features=head.provenance.n_features,
        flops=sum(journal.flops.values()),
        seconds=sum(journal.seconds.values()),
        task_bytes=head.n_bytes,
        upper_bound=head.provenance.upper_bound,
    )


def _span(interval: Interval | None) -> str:
    return f" (95 % {100 * interval.low:+.1f} to {100 * interval.high:+.1f})" if interval else ""


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
