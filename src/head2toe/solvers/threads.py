"""Many small problems at once: that beats many threads on the small matrices of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def side_by_side(n_jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for `n_jobs` jobs, at most one a core, whose algebra, numpy's and torch's, stays in its thread."""
    import torch

    spread = torch.get_num_threads()
    workers = min(n_jobs, os.cpu_count() or 1)
    try:
        with (
            threadpool_limits(1),
            ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as threads,
        ):
            yield threads
    finally:
        torch.set_num_threads(spread)
