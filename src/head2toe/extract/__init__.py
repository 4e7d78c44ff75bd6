"""One frozen pass over what a store lacks: decode, network, pool inside the hook, commit, all at the same time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np

from head2toe.data.task import Split, damage_report, find_damaged
from head2toe.errors import DataError, FeatureError
from head2toe.extract.jobs import Inputs, Job, distinct, plan
from head2toe.extract.passes import Features, computed
from head2toe.table import FeatureTable
from head2toe.taps import COARSE, Pool, PooledTap, Tap

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.store import FeatureStore, View
    from head2toe.store.view import Dtype

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Extraction:
    """What an extraction did: of `total` distinct inputs, `computed` went through the network.

    `of_splits` says how many of those each split was the first to hold.
    """

    total: int
    computed: int
    seconds: float
    of_splits: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.computed:,} of {self.total:,} computed in {self.seconds:.1f} s"


def view_of(backbone: Backbone, pool: Pool, dtype: Dtype | None = None) -> View:
    """The view that holds the features of `backbone` under `pool`; float16 unless the network runs in float32."""
    from head2toe.store import View

    kept = dtype or ("float32" if backbone.precision == "float32" else "float16")
    return View(fingerprint=backbone.fingerprint, pool=pool, dtype=kept, backbone=backbone.id)


def stored_as(pool: Pool) -> Pool:
    """The pool under which the features of `pool` are kept for every method: with deviations where some read them.

    Means come first, so that a method which reads means alone needs no pass of its own after one that reads both.
    """
    return replace(pool, moments=2) if pool.target_size <= COARSE else pool


def read(backbone: Backbone, pool: Pool, store: FeatureStore, ids: Sequence[str], taps: Sequence[Tap]) -> FeatureTable:
    """The features of `taps` under `pool`, (n, length) a tap, from the view that `stored_as` names."""
    table = store.read(view_of(backbone, stored_as(pool)), ids, taps)
    if pool == stored_as(pool):
        return table
    pooled = tuple(PooledTap(tap, pool) for tap in taps)
    blocks = (np.ascontiguousarray(block[:, : tap.length]) for tap, block in zip(pooled, table.blocks, strict=True))
    return FeatureTable(table.ids, pooled, tuple(blocks))


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
    next and ends with the same numbers. `workers` processes share the work, as `passes.computed` says; with 0 this one
    does all of it. Raises DataError for unreadable inputs and FeatureError for NaN, infinite or too large features,
    naming tap and input; StoreError, before the network starts, where nothing can be written.
    """
    _check(batch_size, workers, dtype)
    start = time.perf_counter()
    asked = [backbone.tap(name) for name in taps] if taps is not None else list(backbone.taps)
    inputs = distinct(splits)
    jobs = plan(store, [view_of(backbone, pool, dtype) for pool in dict.fromkeys(pools)], asked, inputs.ids)
    if jobs:
        store.check_writable()
    rows = [inputs.at[key] for job in jobs for key in job.ids]
    if damaged := find_damaged(inputs, rows, backbone.check):
        raise damage_report("extract", damaged, len(inputs))
    if rows:
        batches = [batch for job in jobs for batch in job.batches(batch_size)]
        bar = _progress(len(rows), shown=progress)
        with bar as advance, computed(backbone, inputs, batches, workers) as ready:
            for batch, features in zip(batches, ready, strict=True):  # one is computed while another is committed
                _commit(store, inputs, batch, features)
                advance(len(batch.ids), sum(block.nbytes for view in features.values() for block in view.values()))
    first = [inputs.places[row][0] for row in rows]
    of_splits = tuple(sum(split is one for one in first) for split in splits)
    return Extraction(len(inputs), len(rows), time.perf_counter() - start, of_splits)


def _check(batch_size: int, workers: int | None, dtype: Dtype | None) -> None:
    from head2toe.store.view import Dtype

    if batch_size < 1:
        raise DataError(f"extract: batch_size must be at least 1, got {batch_size}")
    if workers is not None and workers < 0:
        raise DataError(f"extract: workers must be at least 0, got {workers}")
    if dtype not in (None, *get_args(Dtype)):
        raise DataError(f"extract: dtype must be one of {', '.join(get_args(Dtype))}, got {dtype}")


def _commit(store: FeatureStore, inputs: Inputs, batch: Job, features: Features) -> None:
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
