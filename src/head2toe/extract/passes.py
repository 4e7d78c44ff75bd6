"""The network's passes over batches, in order: in this process, or shared among copies of it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from head2toe.data.prepare import prepare_here, prepared, taken
from head2toe.data.task import Item
from head2toe.extract.copies import can_copy, copies, how_many
from head2toe.extract.jobs import Inputs, Job
from head2toe.images import ImagePreprocess
from head2toe.taps import Tap

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.store import View

Features = dict["View", dict[Tap, np.ndarray]]  # (n, length) float32 a view and tap
Submit = Callable[[int], list[Future[Features]]]  # the pieces of a batch, by its number
_FEW = 64  # inputs for which starting processes costs more than it brings
_PIECE = 16  # inputs of a pass on a CPU: the same ones however many copies there are, so that the bits are the same


def decoders(backbone: Backbone, n_rows: int) -> int:
    """Processes that decode: none for texts and preprocessing that another process may not know, or for a few rows."""
    if not isinstance(backbone.preprocess, ImagePreprocess) or n_rows < _FEW:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2) if backbone.device == "cpu" else cores


@contextmanager
def computed(
    backbone: Backbone, inputs: Inputs, batches: Sequence[Job], workers: int | None
) -> Iterator[Iterator[Features]]:
    """The features of each batch, in order, while the next are computed.

    On a CPU `workers` copies of this process share the work, by default one for each of torch's threads; for another
    device, or where a process cannot be copied, so many processes decode. With 0 all is done here. Raises DataError
    naming the input that cannot be read, BackboneError where a copy dies.
    """
    copied = backbone.device == "cpu" and can_copy()
    if workers is None:
        workers = how_many(backbone.device)
        copied = workers > 0
        workers = workers or decoders(backbone, sum(len(batch.ids) for batch in batches))
    with (_by_copies if copied and workers else _here)(backbone, inputs, batches, workers) as (submit, ahead):
        yield _in_order(submit, len(batches), ahead)


@contextmanager
def _here(backbone: Backbone, inputs: Inputs, batches: Sequence[Job], workers: int) -> Iterator[tuple[Submit, int]]:
    """A thread of this process passes what `workers` other processes decode."""
    rows = [[inputs.at[key] for key in batch.ids] for batch in batches]
    with (
        prepared(backbone.preprocess, inputs, rows, workers=workers) as ready,
        ThreadPoolExecutor(1, "head2toe-network") as thread,
    ):

        def submit(number: int) -> list[Future[Features]]:
            batch, decoded = batches[number], thread.submit(next, ready)
            size = _PIECE if backbone.device == "cpu" else len(batch.ids)

            def one(start: int) -> Features:
                return _forward(backbone, batch, decoded.result()[start : start + size])

            return [thread.submit(one, start) for start in range(0, len(batch.ids), size)]

        yield submit, 0


@contextmanager
def _by_copies(
    backbone: Backbone, inputs: Inputs, batches: Sequence[Job], workers: int
) -> Iterator[tuple[Submit, int]]:
    """Copies of this process decode and pass pieces of the batches, which are read here."""

    def answer(piece: _Piece) -> Features:
        return _forward(backbone, batches[piece.batch], prepare_here(backbone.preprocess, piece))

    first, pieces = inputs.at[batches[0].ids[0]], -(-len(batches[0].ids) // _PIECE)
    one = _Piece(0, taken(inputs, [first]), [inputs.name(first)])
    answer(one)  # what a process compiles or finds out once, copies have
    with copies(answer, min(workers, pieces * len(batches))) as ask:

        def submit(number: int) -> list[Future[Features]]:
            rows, asked = [inputs.at[key] for key in batches[number].ids], []
            for piece in (rows[start : start + _PIECE] for start in range(0, len(rows), _PIECE)):
                names = [inputs.name(row) for row in piece]
                asked.append(ask(_Piece(number, taken(inputs, piece), names)))
            return asked

        yield submit, -(-(workers - 1) // pieces)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some inputs of one batch, as they go to a copy; a `Source`."""

    batch: int
    items: Sequence[Item]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int, /) -> Item:
        return self.items[row]

    def name(self, row: int, /) -> str:
        return self.names[row]


def _in_order(submit: Submit, n: int, ahead: int) -> Iterator[Features]:
    """Each batch's features; while it is waited for, `ahead` more are under way, and one more once it is there."""
    waiting = deque(submit(number) for number in range(min(n, ahead + 1)))
    for number in range(n):
        features = _joined(waiting.popleft())
        if number + ahead + 1 < n:
            waiting.append(submit(number + ahead + 1))
        yield features


def _joined(pieces: Sequence[Future[Features]]) -> Features:
    """The rows of several pieces, one after the other."""
    parts = [piece.result() for piece in pieces]
    return {
        view: {tap: np.concatenate([part[view][tap] for part in parts]) for tap in blocks}
        for view, blocks in parts[0].items()
    }


def _forward(backbone: Backbone, batch: Job, rows: list[np.ndarray]) -> Features:
    """The pooled features of some rows of a batch; every tap is pooled inside the hook for all views that lack it."""
    wanted: dict[Tap, list[View]] = {}
    for view, taps in batch.lacking:
        for tap in taps:
            wanted.setdefault(tap, []).append(view)

    def reduce(tap: Tap, output: Tensor, mask: Tensor | None) -> list[tuple[View, Tensor]]:
        return [(view, view.pool(output, tap, mask)) for view in wanted[tap]]

    pooled = backbone.forward(backbone.collate(rows), [tap.name for tap in wanted], reduce)
    features: Features = {view: {} for view, _ in batch.lacking}
    for tap in wanted:
        for view, values in pooled[tap.name]:
            features[view][tap] = values.cpu().numpy()
    return features
