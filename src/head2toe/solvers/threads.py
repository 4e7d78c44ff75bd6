"""Many small problems at once: that beats many threads on the small matrices of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def side_by_side() -> Iterator[ThreadPoolExecutor]:
    """Threads, one a core, whose jobs' algebra, numpy's and torch's, stays in their thread.

    An error or Ctrl-C cancels the jobs that have not begun.
    """
    import torch

    spread = torch.get_num_threads()
    try:
        with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count(), "", torch.set_num_threads, (1,)) as threads:
            try:
                yield threads
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(spread)
