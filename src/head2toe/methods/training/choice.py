"""From start to `Network`: choose a run by held-out accuracy, then train it again on all rows."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from head2toe.data.task import Task
from head2toe.errors import NotConvergedError
from head2toe.head import Metrics, Provenance
from head2toe.methods.problem import Journal, fold_of, training_splits
from head2toe.methods.training.checkpoint import Checkpoint, checkpoint_beside
from head2toe.methods.training.loop import accuracy, step_flops, train
from head2toe.methods.training.rows import Rows, read_rows
from head2toe.methods.training.settings import Run, Training
from head2toe.network import Network, Tapped

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.store import FeatureStore

_FINAL = "final"


@dataclass(frozen=True, eq=False)
class Start:
    """What training starts from: `judged` has seen no held-out row, `final` may have seen them all."""

    judged: Tapped
    final: Tapped
    frozen_statistics: bool = False


@dataclass(frozen=True, eq=False)
class _Work:
    """What the runs of one fit share; `labels` (n,) and `held_out` (n,) bool go with the rows."""

    training: Training
    start: Start
    rows: Rows
    labels: np.ndarray
    held_out: np.ndarray
    checkpoint: Checkpoint
    advance: Callable[[int], None]


def held_out_rows(task: Task, seed: int) -> np.ndarray:
    """The rows (n,) bool of train and validation that judge: the validation split, or a stratified fifth of train."""
    labels = np.concatenate([split.labels for split in training_splits(task)])
    return fold_of(task, labels, 1, seed) == 0


def fitting(training: Training, rows: Rows) -> Training:
    """The training without augmentations where there are no pictures to shift: each would repeat the first."""
    return training if rows.pictures else replace(training, augments=training.augments[:1])


def most_steps(training: Training) -> int:
    """The steps of all runs of a fit, the choice's and the last one's, where the longest is the best."""
    first, longest = training.steps[0], max(training.steps)
    return len(training.lrs) * first + sum(training.steps[1:]) + len(training.augments) * longest


def fit_network(
    method: str,
    settings: object,
    training: Training,
    start: Start,
    backbone: Backbone,
    task: Task,
    store: FeatureStore | str | Path | None,
    journal: Journal,
    *,
    progress: bool,
) -> Network:
    """Choose a run on the rows that are not held out, then repeat it on all of them, from `start`.

    `settings` tell this fit from others, so that a killed one is continued. The journal gets the seconds and the
    counted operations of all training steps, those of the choice and of a killed process too, the test split's logits
    and, where it does not forget, what ends the checkpoint. Every input, the test split's too, is checked before the
    first step. Raises DataError for unreadable ones, NotConvergedError where every run failed.
    """
    splits = training_splits(task)
    labels, held_out = np.concatenate([split.labels for split in splits]), held_out_rows(task, training.seed)
    what = (
        method, settings, backbone.fingerprint, task.classes, [split.ids for split in splits], labels.tolist(),
        _digest(start.judged), _digest(start.final),
    )  # fmt: skip
    checkpoint = checkpoint_beside(store, what)
    with journal.phase("train"), _progress(most_steps(training), shown=progress) as advance:
        rows = read_rows(start.final.backbone, splits, task.test)
        training = fitting(training, rows)
        work = _Work(training, start, rows, labels, held_out, checkpoint, advance)
        tried = _tried(work)
        best = max(tried, key=lambda run: tried[run])
        if tried[best] < 0:
            raise NotConvergedError(f"train: the loss became no number in every run, also with {best}; lower the rates")
        model = _trained(work, start.final, best, np.arange(len(labels)), _FINAL)
        journal.seconds["train"] = checkpoint.before
        final = step_flops(start.final, rows, labels)
        judged = final if start.judged is start.final else step_flops(start.judged, rows, labels)
        batch = training.batch_size
        journal.flops["train"] = final * best.steps * min(batch, len(labels))
        journal.flops["train"] += judged * sum(run.steps for run in tried) * min(batch, int((~held_out).sum()))
    chosen: dict[str, float | int | str] = {
        "lr": best.lr, "steps": best.steps, "augment": best.augment, "batch_size": training.batch_size,
        "optimizer": training.optimizer, "weight_decay": training.weight_decay, "seed": training.seed,
    }  # fmt: skip
    n_features = sum(one.pooled.length for one in model.kept)
    provenance = Provenance(method, chosen, len(model.kept), n_features)
    network = Network(model, task.classes, Metrics(len(labels), tried[best]), provenance)
    if task.test is not None:
        journal.test_logits = network.logits_of(task.test.source)
        right = float((journal.test_logits.argmax(axis=1) == task.test.labels).mean())
        network = replace(network, metrics=replace(network.metrics, test_accuracy=right))
    if journal.forgets:
        checkpoint.remove()
    else:
        journal.forget = checkpoint.remove
    return network


def _tried(work: _Work) -> dict[Run, float]:
    """Held-out accuracies: of every rate, then with the best of every length, then of every augmentation."""
    training, tried = work.training, dict[Run, float]()
    best = Run(training.lrs[0], training.steps[0], training.augments[0])
    rows_of_runs: tuple[Callable[[Run], list[Run]], ...] = (
        lambda best: [replace(best, lr=lr) for lr in training.lrs],
        lambda best: [replace(best, steps=steps) for steps in training.steps],
        lambda best: [replace(best, augment=augment) for augment in training.augments],
    )
    for row in rows_of_runs:
        for run in row(best):
            if run not in tried:
                tried[run] = _judged(work, run)
        best = max(tried, key=lambda run: tried[run])
    return tried


def _judged(work: _Work, run: Run) -> float:
    """The held-out accuracy of a run; -1 where its loss became no number."""
    finished = work.checkpoint.finished()
    if str(run) in finished:
        work.advance(run.steps)
        return finished[str(run)]
    try:
        model = _trained(work, work.start.judged, run, np.flatnonzero(~work.held_out), str(run))
        right = accuracy(model, work.rows, work.labels, np.flatnonzero(work.held_out))
    except NotConvergedError:
        right = -1.0
    work.checkpoint.finish(str(run), right)
    return right


def _trained(work: _Work, start: Tapped, run: Run, chosen: np.ndarray, name: str) -> Tapped:
    model = copy.deepcopy(start)
    train(
        model, run, work.training, work.rows, work.labels, chosen, frozen_statistics=work.start.frozen_statistics,
        checkpoint=work.checkpoint, name=name, advance=work.advance,
    )  # fmt: skip
    return model


def _digest(start: Tapped) -> str:
    """What tells one start from another: the columns that it reads, and the layer on them."""
    digest = hashlib.sha256(repr([one.pooled for one in start.kept]).encode())
    layer = (parameter.detach().cpu().numpy() for parameter in start.classifier.parameters())
    for array in (*(one.columns for one in start.kept), *layer):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar of training steps on stderr with the time left at most; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True),
        disable=not (shown and sys.stderr.isatty()),
    )  # fmt: skip
    with bar:
        task = bar.add_task("train", total=total)
        yield lambda steps: bar.advance(task, steps)
