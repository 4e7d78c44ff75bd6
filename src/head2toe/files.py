"""Files that appear whole or not at all, and that processes write in turn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file, beside `path`, that takes its place once it is written; an error leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def alone(file: IO) -> Iterator[bool]:
    """Wait until no other process is in here with the same open file; whether the system has such locks.

    It frees them when a process is killed. What was written is on its way to the disk when the next one enters.
    """
    if fcntl is None:
        yield False
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield True
    finally:
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)
