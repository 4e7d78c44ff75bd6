"""What every method starts from: features in the store, labels, folds, and a journal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import Progress

from head2toe.errors import DataError
from head2toe.extract import Extraction, extract, read, stored_as
from head2toe.solvers.threads import side_by_side
from head2toe.solvers.work import counted
from head2toe.store import FeatureStore, default_location
from head2toe.table import FeatureTable
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Split, Task


@dataclass
class Journal:
    """What a fit did: seconds and floating point operations of each named phase, and what extraction had to compute.

    Operations of "extract" are those of the task on its own: every distinct training image once, in the store or not.
    Of one pass over training and test images, "extract_test" are the seconds of the latter, by their number.
    `test_logits` (n, C) are what a network that was trained whole says of the test split. With `forgets` false a
    training that has ended can be continued from its last step until `forget` is called: once its network is saved.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    extraction: Extraction | None = None
    test_logits: np.ndarray | None = None
    forgets: bool = True
    forget: Callable[[], None] = lambda: None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with counted() as work:
            try:
                yield
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
                if work.flops:
                    self.flops[name] = self.flops.get(name, 0) + work.flops


@dataclass(frozen=True, eq=False)
class Problem:
    """A task on a backbone, its features extracted: train and validation rows pooled for cross-validation.

    `labels` (n,) int64 and `folds` (n,) int64 follow the rows of `table(pool)`; `progress` allows bars.
    """

    backbone: Backbone
    task: Task
    store: FeatureStore
    tap_names: tuple[str, ...]
    labels: np.ndarray
    folds: np.ndarray
    progress: bool = True

    @property
    def n_classes(self) -> int:
        return len(self.task.classes)

    @property
    def n_folds(self) -> int:
        """How many folds are held out in turn; rows in fold -1 are always trained on."""
        return int(self.folds.max()) + 1

    @property
    def n_held_out(self) -> int:
        """How many rows are held out in some fold."""
        return int((self.folds >= 0).sum())

    def held_out(self) -> list[np.ndarray]:
        """The rows (n,) bool that each fold holds out."""
        return [self.folds == fold for fold in range(self.n_folds)]

    def over_folds(self, right: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The sum over folds of `right(held_out)`, held_out (n,) bool: how many rows each setting gets right."""
        with side_by_side() as threads:
            return np.sum(list(threads.map(right, self.held_out())), axis=0)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar on stderr with the time left, one step a call; nothing where stderr is no terminal."""
        console = Console(stderr=True)
        with Progress(console=console, disable=not (self.progress and console.is_terminal), transient=True) as shown:
            bar = shown.add_task(what, total=total)
            yield lambda: shown.advance(bar)

    def table(self, pool: Pool) -> FeatureTable:
        """Features (n, F) of the train and validation rows."""
        return self._read(pool, [id for split in training_splits(self.task) for id in split.ids], self.tap_names)

    def test_table(self, pool: Pool, names: Sequence[str]) -> FeatureTable:
        """Features of the test rows on the named taps."""
        if self.task.test is None:
            raise DataError(f"task '{self.task.name}' has no test split; evaluate by cross-validation")
        return self._read(pool, self.task.test.ids, names)

    def _read(self, pool: Pool, ids: Sequence[str], names: Sequence[str]) -> FeatureTable:
        return read(self.backbone, pool, self.store, ids, [tap for tap in self.backbone.taps if tap.name in names])


def prepare(
    backbone: Backbone,
    task: Task,
    store: FeatureStore | str | Path | None,
    pools: Sequence[Pool],
    *,
    taps: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    progress: bool = True,
    journal: Journal | None = None,
) -> Problem:
    """Check the labels, then extract what the store lacks, and count what the training images cost.

    Raises DataError for labels that no cross-validation can use, before the network runs.
    """
    from head2toe.backbones.select import flops_of

    labels = np.concatenate([split.labels for split in training_splits(task)])
    assignment = fold_of(task, labels, folds, seed)
    opened = store if isinstance(store, FeatureStore) else FeatureStore(store or default_location())
    names = tuple(tap.name for tap in backbone.taps) if taps is None else tuple(taps)
    splits = [*training_splits(task), *([task.test] if task.test is not None else [])]
    journal = journal or Journal()
    with journal.phase("extract"):
        stored = [stored_as(pool) for pool in pools]
        done = journal.extraction = extract(backbone, splits, opened, stored, taps=names, progress=progress)
    if task.test is not None and done.computed:  # what is only measured on is no cost of the head
        tested = done.seconds * done.of_splits[-1] / done.computed
        journal.seconds["extract"] -= tested
        journal.seconds["extract_test"] = journal.seconds.get("extract_test", 0.0) + tested
    training = {id for split in training_splits(task) for id in split.ids}
    journal.flops["extract"] = len(training) * flops_of(backbone, names)
    return Problem(backbone, task, opened, names, labels, assignment, progress)


def training_splits(task: Task) -> list[Split]:
    return [task.train, *([task.validation] if task.validation is not None else [])]


def folds_for(task: Task, folds: int = 5) -> int:
    """So many folds or, where a class has too few images to be held out (VTAB-1k's sun397), one."""
    counts = _counts(task)
    return folds if min(counts.values()) > 1 and counts.total() >= folds else 1


def _counts(task: Task) -> Counter[int]:
    """How many inputs each class has to learn from; copies of one input are one."""
    classes = {id: c for split in training_splits(task) for id, c in zip(split.ids, split.labels.tolist(), strict=True)}
    return Counter(classes.values())


def refuse_one_class(task: Task) -> None:
    """DataError where every training input is of one class: such data can be judged, not learned from."""
    if len(counts := _counts(task)) < 2:
        only = task.classes[next(iter(counts))]
        raise DataError(f"fit: at least two classes are needed, every training input of '{task.name}' is '{only}'")


def fold_of(task: Task, labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (n,) int64 that holds each row out, every class spread evenly; -1 means never held out.

    folds=1 holds out the validation split, but for copies of training rows, or else a stratified fifth of the rows.
    """
    counts = _counts(task)
    refuse_one_class(task)
    if folds < 1:
        raise DataError(f"fit: --folds must be at least 1, got {folds}")
    single = [task.classes[c] for c, count in counts.items() if count < 2]
    if folds > 1 and single:
        raise DataError(
            f"fit: class '{single[0]}' has 1 image, {folds}-fold cross-validation needs at least 2 (better {folds}); "
            "add images or pass --folds 1"
        )
    if folds > counts.total():
        raise DataError(f"fit: {folds} folds need at least {folds} images, got {counts.total()}; lower --folds")
    ids = np.array([id for split in training_splits(task) for id in split.ids])
    if folds > 1:
        return spread_inputs(ids, labels, folds, seed)
    out = np.zeros(len(ids), dtype=bool)
    if task.validation is not None and len(np.unique(task.train.labels)) > 1:
        out[task.train.n_rows :] = ~np.isin(task.validation.ids, task.train.ids)
    if not out.any():
        several = np.isin(labels, [c for c, count in counts.items() if count > 1])
        out[several] = spread_inputs(ids[several], labels[several], 5, seed) == 0
    if not out.any():
        raise DataError(f"fit: '{task.name}' has one image of each class, none can be held out to judge; add images")
    return np.where(out, 0, -1)


def spread_inputs(ids: np.ndarray, labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """As `spread`, but copies of one input, whose ids (n,) are equal, share a fold: none is judged by a model that has
    seen it.
    """
    _, first, copies = np.unique(ids, return_index=True, return_inverse=True)
    once = np.sort(first)
    dealt = np.empty(len(labels), dtype=np.int64)
    dealt[once] = spread(labels[once], folds, seed)
    return dealt[first][copies]


def spread(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Deal the shuffled rows of each class to the folds in turn, the next class starting where the last one ended."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold
