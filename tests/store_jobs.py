"""What the store's tests write: features that anyone can compute again from an input's id and a tap's name."""

import multiprocessing
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from head2toe.errors import StoreError
from head2toe.store import FeatureStore, View
from head2toe.taps import Pool, Tap

STEM, BLOCK, LAST = Tap("stem", (8,), "NC"), Tap("blocks.0/conv", (5,), "NC"), Tap("last", (3, 2, 2), "NCHW")
VIEW = View("f" * 64, Pool(12), "float16", "tiny")

# a server that has imported what is slow once; its children start in milliseconds and have no thread of Lance yet
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch.utils.flop_counter", "PIL.Image", "lance.file", "lance.fragment"])


def names(start: int, stop: int) -> list[str]:
    return [f"input{i:04d}" for i in range(start, stop)]


def features(ids: Sequence[str], *taps: Tap, view: View = VIEW) -> dict[Tap, np.ndarray]:
    """(n, length) float16 by tap."""

    def row(key: str, tap: Tap) -> np.ndarray:
        return np.random.default_rng(zlib.crc32(f"{key} {tap.name}".encode())).standard_normal(view.pool.length(tap))

    blocks = {tap: np.array([row(key, tap) for key in ids], np.float16) for tap in taps}
    return {tap: block.reshape(-1, view.pool.length(tap)) for tap, block in blocks.items()}


def assert_holds(store: FeatureStore, ids: list[str], *taps: Tap, view: View = VIEW) -> None:
    table = store.read(view, ids, taps, verify=True)
    for block, expected in zip(table.blocks, features(ids, *taps, view=view).values(), strict=True):
        np.testing.assert_array_equal(block, expected)


def fill(location: str, batches: list[list[str]], taps: tuple[Tap, ...], report=None, options=None) -> None:
    """What an extraction does: write the batches that are missing, and tell how many are done."""
    store = FeatureStore(location, options)
    for done, ids in enumerate(batches, 1):
        missing = store.missing(VIEW, ids, taps)
        if missing:
            store.write(VIEW, missing, features(missing, *taps))
        if report is not None:
            report.send(done)


def fill_small_disk(location: str, batches: list[list[str]], limit: str, report) -> None:
    """Write batches until the disk is full; send how many were written and the error's text."""
    exec(limit)
    store, done = FeatureStore(location), 0
    try:
        for done, ids in enumerate(batches):  # noqa: B007
            store.write(VIEW, ids, features(ids, STEM, BLOCK, LAST))
    except StoreError as error:
        report.send((done, str(error)))
    else:
        report.send((len(batches), "no error"))


def data_files(location: Path, view: View = VIEW) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((location / f"{view.key}.lance" / "data").iterdir())}
