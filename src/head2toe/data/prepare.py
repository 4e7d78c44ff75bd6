"""Preprocessing ahead of the network, in worker processes that import neither torch nor the user's script.

A worker is a plain Python process that answers pickles on a pipe. Unlike the workers of `multiprocessing` it never runs
the main script again, so that a script needs no `if __name__ == "__main__"`, and it ends by itself when this process
does, however that dies.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from head2toe.data.task import Item, Source
from head2toe.errors import DataError

Prepare = Callable[[Item], np.ndarray]
Answer = list[np.ndarray] | tuple[int, str]  # the rows, or which one failed and why
_AHEAD = 2  # batches that wait for the network, beside the one that each worker has in hand


@contextmanager
def prepared(
    prepare: Prepare, source: Source, batches: Sequence[Sequence[int]], *, workers: int
) -> Iterator[Iterator[list[np.ndarray]]]:
    """The preprocessed rows of each batch, in order, while `workers` processes are a few batches ahead.

    workers=0 preprocesses in a thread of this process: for texts, and for preprocessing that only the user's script
    defines. Raises DataError naming the input that cannot be read.
    """
    with ThreadPoolExecutor(max(1, workers), "head2toe-prepare") as threads:
        idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        started = [_Worker(prepare) for _ in range(workers)]
        for worker in started:
            idle.put(worker)
        run = partial(_run_idle, idle) if started else partial(_answer, prepare)
        ahead: deque[Future[list[np.ndarray]]] = deque()
        try:
            yield _in_order(batches, lambda rows: threads.submit(_prepare_batch, run, source, rows), ahead, workers)
        finally:
            for future in ahead:
                future.cancel()
            for worker in started:
                worker.stop()


def serve() -> None:
    """What a worker does: read a preprocessing, then lists of inputs, and answer each; ends with its pipe."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not reach the pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    warnings.simplefilter("ignore")
    try:
        prepare = pickle.load(requests)
        while True:
            pickle.dump(_answer(prepare, pickle.load(requests)), answers, protocol=5)
            answers.flush()
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)


def _in_order(
    batches: Sequence[Sequence[int]],
    submit: Callable[[Sequence[int]], Future[list[np.ndarray]]],
    ahead: deque[Future[list[np.ndarray]]],
    workers: int,
) -> Iterator[list[np.ndarray]]:
    for rows in batches:
        ahead.append(submit(rows))
        if len(ahead) > workers + _AHEAD:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def prepare_here(prepare: Prepare, source: Source) -> list[np.ndarray]:
    """The preprocessed rows of all of `source`; DataError naming the input that cannot be read."""
    return _prepare_batch(partial(_answer, prepare), source, range(len(source)))


def taken(source: Source, rows: Sequence[int]) -> list[Item]:
    """Those inputs of a source; DataError naming the one that cannot be had any more."""
    items = []
    for row in rows:
        try:
            items.append(source[row])
        except OSError as error:
            raise DataError(f"prepare: {source.name(row)}: it cannot be opened: {error.strerror or error}") from error
        except DataError as error:
            raise DataError(f"prepare: {source.name(row)}: {error}") from error
    return items


def _prepare_batch(run: Callable[[list[Item]], Answer], source: Source, rows: Sequence[int]) -> list[np.ndarray]:
    answer = run(taken(source, rows))
    if isinstance(answer, tuple):
        raise DataError(f"prepare: {source.name(rows[answer[0]])}: {answer[1]}")
    return answer


def _run_idle(idle: queue.SimpleQueue[_Worker], items: list[Item]) -> Answer:
    worker = idle.get()
    try:
        return worker.answer(items)
    finally:
        idle.put(worker)


def _answer(prepare: Prepare, items: list[Item]) -> Answer:
    rows = []
    for at, item in enumerate(items):
        try:
            rows.append(prepare(item))
        except DataError as error:
            return at, str(error)
    return rows


class _Worker:
    """One process with a preprocessing of its own."""

    def __init__(self, prepare: Prepare) -> None:
        path = [str(Path(__file__).parents[2]), *sys.path]  # this very package, whatever else sys.path offers
        start = f"import sys; sys.path[:] = {path!r}; from {__name__} import serve; serve()"
        self._process = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._send(prepare)

    def answer(self, items: list[Item]) -> Answer:
        self._send(items)
        try:
            return pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError) as error:
            raise self._lost() from error

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._answers.close()
        try:
            self._requests.close()
        except BrokenPipeError:
            return  # it was gone before it had read everything

    def _send(self, what: object) -> None:
        try:
            pickle.dump(what, self._requests, protocol=5)
            self._requests.flush()
        except BrokenPipeError as error:
            raise self._lost() from error

    def _lost(self) -> DataError:
        code = self._process.wait()
        return DataError(
            f"prepare: a decoding process ended (exit code {code}); if memory ran out, set fewer workers, or workers=0 "
            "to decode in this process"
        )
