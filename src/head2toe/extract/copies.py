"""Work shared among copies of this process, one core each: a network's passes over the pieces of a batch.

Cores that share every layer of one pass wait for the slowest at each layer's end; copies that have images of their own
do not. A copy is a fork, so that whatever this process holds, a network with its weights, is there and shared.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from head2toe.errors import BackboneError

Request = TypeVar("Request")
Answer = TypeVar("Answer")
_LOOK = 0.2  # seconds after which a copy sees that the process is gone
_KEEP_UP_TO, _KEEP_FREE = -3, -1  # mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
_MOST_BYTES = 1 << 30
_MOST_COPIES = 16
_answer: Callable[[Any], Any]  # in a copy: what it was made for


def can_copy() -> bool:
    """Whether this process can be copied: on Linux, where it is not itself a process that may have none."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def how_many(device: str) -> int:
    """So many copies share the passes of a network on `device` best: one for each of torch's threads, or 0."""
    threads = min(torch.get_num_threads(), _MOST_COPIES) if device == "cpu" and can_copy() else 1
    return threads if threads > 1 else 0


@contextmanager
def copies(answer: Callable[[Request], Answer], n: int) -> Iterator[Callable[[Request], Future[Answer]]]:
    """`n` copies of this process that answer requests; requests and answers are pickled, `answer` need not be.

    They compute in one thread each, leave Ctrl-C to this process, and end with it even when it is killed. An answer's
    exception is its future's; where a copy has died, the context ends with BackboneError.
    """
    pool = ProcessPoolExecutor(n, multiprocessing.get_context("fork"), _begin, (answer, os.getpid()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lance and Python 3.12 warn of any fork; a copy never touches a store
            pool.submit(os.getpid)  # the first request makes all copies
        yield lambda request: pool.submit(_run, request)
    except BrokenProcessPool as error:
        raise BackboneError(
            "extract: a process that ran the network ended; if memory ran out, run it in one process: "
            "OMP_NUM_THREADS=1, or workers=0 in Python"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(answer: Callable[[Any], Any], parent: int) -> None:
    """What a copy does first."""
    global _answer
    _answer = answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # a map is as large as the last one: keep its pages, do not ask for new ones each time
        libc.mallopt(_KEEP_UP_TO, _MOST_BYTES)
        libc.mallopt(_KEEP_FREE, _MOST_BYTES)
    torch.set_num_threads(1)  # the threads that OpenMP has in the parent are not here


def _end_with(parent: int) -> None:
    """A copy waits on queues that its siblings hold open, too: their end would not tell it."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def _run(request: Any) -> Any:
    return _answer(request)
