"""One frozen pass over what a store lacks: decode, network, pool inside the hook, commit, all at the same time."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from head2toe.data.prepare import prepared
from head2toe.data.task import Item, Split, damage_report, find_damaged
from head2toe.errors import FeatureError
from head2toe.images import ImagePreprocess
from head2toe.taps import Pool, Tap

if TYPE_CHECKING:
    from torch import Tensor

    from head2toe.backbones.core import Backbone
    from head2toe.store import FeatureStore, View
    from head2toe.store.view import Dtype

Advance = Callable[[int, int], None]
_WAITING_WRITES = 1  # so that a kill loses the batch in the network and the batch being committed, no more
_FEW = 64  # inputs for which starting processes costs more than it brings


@dataclass(frozen=True)
class Extraction:
    """What an extraction did: of `total` distinct inputs, `computed` went through the network."""

    total: int
    computed: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.computed:,} of {self.total:,} computed in {self.seconds:.1f} s"


def view_of(backbone: Backbone, pool: Pool, dtype: Dtype | None = None) -> View:
    """The view that holds the features of `backbone` under `pool`; float16 unless the network runs in float32."""
    from head2toe.store import View

    kept = dtype or ("float32" if backbone.precision == "float32" else "float16")
    return View(fingerprint=backbone.fingerprint, pool=pool, dtype=kept, backbone=backbone.id)


def extract(
    backbone: Backbone,
    splits: Sequence[Split],
    store: FeatureStore,
    pools: Sequence[Pool],
    *,
    taps: Sequence[str] | None = None,
    dtype: Dtype | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    progress: bool = True,
) -> Extraction:
    """Fill `store` with the pooled `taps` (default: all of the backbone's) of every input, one view per pool.

    Only what is missing is computed, every input once, for all pools in one pass. Unreadable inputs are found before
    the network starts. Batches are written whole and in order, so that an interrupted extraction is continued by the
    next and ends with the same numbers. `workers` processes decode (0: none, in this process). Raises DataError for
    unreadable inputs and FeatureError for NaN, infinite or too large features, naming tap and input.
    """
    start = time.perf_counter()
    asked = [backbone.tap(name) for name in taps] if taps is not None else list(backbone.taps)
    inputs = distinct(splits)
    jobs = _plan(store, [view_of(backbone, pool, dtype) for pool in dict.fromkeys(pools)], asked, inputs.ids)
    rows = [inputs.at[key] for job in jobs for key in job.ids]
    if damaged := find_damaged(inputs, rows):
        raise damage_report("extract", damaged, len(inputs))
    if rows:
        batches = [batch for job in jobs for batch in job.batches(batch_size)]
        bar = _progress(len(rows), shown=progress)
        _run(backbone, inputs, store, batches, decoders(backbone, len(rows)) if workers is None else workers, bar)
    return Extraction(len(inputs), len(rows), time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The distinct inputs of several splits, in the order of their first appearance; a `Source`."""

    ids: tuple[str, ...]
    at: Mapping[str, int]
    places: Sequence[tuple[Split, int]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int, /) -> Item:
        split, at = self.places[row]
        return split.source[at]

    def name(self, row: int, /) -> str:
        split, at = self.places[row]
        return split.source.name(at)


@dataclass(frozen=True, eq=False)
class _Job:
    """Inputs that lack the same taps of the same views."""

    lacking: tuple[tuple[View, tuple[Tap, ...]], ...]
    ids: tuple[str, ...]

    def batches(self, size: int) -> Iterator[_Job]:
        for start in range(0, len(self.ids), size):
            yield _Job(self.lacking, self.ids[start : start + size])


def distinct(splits: Sequence[Split]) -> Inputs:
    """Every input of several splits once."""
    first: dict[str, tuple[Split, int]] = {}
    for split in splits:
        for row, key in enumerate(split.ids):
            first.setdefault(key, (split, row))
    return Inputs(tuple(first), {key: row for row, key in enumerate(first)}, list(first.values()))


def _plan(store: FeatureStore, views: Sequence[View], taps: Sequence[Tap], ids: Sequence[str]) -> list[_Job]:
    """Inputs grouped by what they lack, each group in the asked order."""
    lacking: dict[str, dict[View, list[Tap]]] = {}
    for view in views:
        incomplete = store.missing(view, ids, taps)
        for tap in taps if incomplete else ():
            for key in store.missing(view, incomplete, [tap]):
                lacking.setdefault(key, {}).setdefault(view, []).append(tap)
    groups: dict[tuple[tuple[View, tuple[Tap, ...]], ...], list[str]] = {}
    for key in ids:
        if key in lacking:
            wanted = tuple((view, tuple(missing)) for view, missing in lacking[key].items())
            groups.setdefault(wanted, []).append(key)
    return [_Job(wanted, tuple(keys)) for wanted, keys in groups.items()]


def decoders(backbone: Backbone, n_rows: int) -> int:
    """Processes that decode: none for texts and preprocessing that another process may not know, or for a few rows."""
    if not isinstance(backbone.preprocess, ImagePreprocess) or n_rows < _FEW:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2) if backbone.device == "cpu" else cores


def _run(
    backbone: Backbone,
    inputs: Inputs,
    store: FeatureStore,
    batches: Sequence[_Job],
    workers: int,
    bar: AbstractContextManager[Advance],
) -> None:
    rows = [[inputs.at[key] for key in batch.ids] for batch in batches]
    with (
        bar as advance,
        _writer(store, inputs) as write,
        prepared(backbone.preprocess, inputs, rows, workers=workers) as ready,
    ):
        for batch, arrays in zip(batches, ready, strict=True):
            features = _forward(backbone, batch, arrays)
            write(batch, features)
            advance(len(batch.ids), sum(block.nbytes for view in features.values() for block in view.values()))


def _forward(backbone: Backbone, batch: _Job, rows: list[np.ndarray]) -> dict[View, dict[Tap, np.ndarray]]:
    """The pooled features of one batch; every tap is pooled inside the hook for all views that lack it."""
    wanted: dict[Tap, list[View]] = {}
    for view, taps in batch.lacking:
        for tap in taps:
            wanted.setdefault(tap, []).append(view)

    def reduce(tap: Tap, output: Tensor, mask: Tensor | None) -> list[tuple[View, Tensor]]:
        return [(view, view.pool(output, tap, mask)) for view in wanted[tap]]

    pooled = backbone.forward(backbone.collate(rows), [tap.name for tap in wanted], reduce)
    features: dict[View, dict[Tap, np.ndarray]] = {view: {} for view, _ in batch.lacking}
    for tap in wanted:
        for view, values in pooled[tap.name]:
            features[view][tap] = values.cpu().numpy()
    return features


@contextmanager
def _writer(store: FeatureStore, inputs: Inputs) -> Iterator[Callable[[_Job, dict[View, dict[Tap, np.ndarray]]], None]]:
    """Commit batches in a thread, in order, one while the next is computed; leaving waits for all of them."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "head2toe-write") as thread:

        def write(batch: _Job, features: dict[View, dict[Tap, np.ndarray]]) -> None:
            waiting.append(thread.submit(_commit, store, inputs, batch, features))
            while len(waiting) > _WAITING_WRITES or (waiting and waiting[0].done()):
                waiting.popleft().result()

        yield write
        while waiting:
            waiting.popleft().result()


def _commit(store: FeatureStore, inputs: Inputs, batch: _Job, features: dict[View, dict[Tap, np.ndarray]]) -> None:
    for view, blocks in features.items():
        try:
            store.write(view, batch.ids, blocks)
        except FeatureError as error:
            raise FeatureError(_with_names(str(error), inputs, batch.ids)) from error


def _with_names(message: str, inputs: Inputs, ids: Sequence[str]) -> str:
    """The store knows inputs by their hash; a user knows them by their name."""
    for key in ids:
        message = message.replace(key, f"'{inputs.name(inputs.at[key])}' ({key[:12]})")
    return message


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Advance]:
    """A bar on stderr with inputs/s, MB/s of features and the time left; nothing where stderr is no terminal."""
    if not (shown and sys.stderr.isatty()):
        yield lambda inputs, size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("extract"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
    start, done, stored = time.perf_counter(), 0, 0
    with bar:
        task = bar.add_task("extract", total=total, speed="")

        def advance(inputs: int, size: int) -> None:
            nonlocal done, stored
            done, stored = done + inputs, stored + size
            seconds = time.perf_counter() - start
            speed = f"{done / seconds:,.0f} inputs/s, {stored / seconds / 1e6:,.1f} MB/s"
            bar.update(task, completed=done, speed=speed)

        yield advance
