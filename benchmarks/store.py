"""How near is the feature store to plain files? Writes and reads against .npy memory maps and the raw disk.

    python benchmarks/store.py --folder /path/on/the/disk --json store.json

Every line is the best of `--repeats` in one run; the page cache is warm, for all alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from head2toe.store import FeatureStore, View
from head2toe.taps import Pool, Tap


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--folder", type=Path, default=Path("build/bench-store"))
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--json", type=Path)
    options = options.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    table = [
        *one_task(options.folder / "task", options.repeats),
        *one_wide_tap(options.folder / "wide", options.repeats),
    ]
    shutil.rmtree(options.folder)
    print(f"{'what':58} {'ms':>9} {'MB/s':>8}")
    for what, seconds, n_bytes in table:
        print(f"{what:58} {1e3 * seconds:9.1f} {n_bytes / seconds / 1e6:8.0f}")
    if options.json:
        rows = [{"what": what, "seconds": seconds, "bytes": n_bytes} for what, seconds, n_bytes in table]
        options.json.write_text(json.dumps({"argv": sys.argv, "rows": rows}, indent=1))


def one_task(folder: Path, repeats: int) -> list[tuple[str, float, int]]:
    """2,240 inputs of 61 taps of 512 numbers, in batches of 32 as extraction writes them."""
    folder.mkdir()
    n, batch = 2240, 32
    taps = [Tap(f"blocks.{i}", (512,), "NC") for i in range(61)]
    view = View("0" * 64, Pool(512), "float16", "bench")
    ids = [f"{i:064x}" for i in range(n)]
    rng = np.random.default_rng(0)
    data = {tap: rng.standard_normal((n, 512), np.float32).astype(np.float16) for tap in taps}
    size = sum(block.nbytes for block in data.values())

    def write_store() -> None:
        store = FeatureStore(folder / "store")
        for a in range(0, n, batch):
            store.write(view, ids[a : a + batch], {tap: block[a : a + batch] for tap, block in data.items()})

    def write_maps() -> None:
        for i, tap in enumerate(taps):
            held = np.lib.format.open_memmap(folder / f"{i}.npy", "w+", np.float16, (n, 512))
            held[:] = data[tap]
            held.flush()

    def write_raw() -> None:
        with (folder / "raw").open("wb") as file:
            for block in data.values():
                file.write(block.data)

    def read_maps() -> None:
        for i in range(len(taps)):
            np.array(np.load(folder / f"{i}.npy", mmap_mode="r"))

    def read_raw() -> None:
        into = np.empty(size, np.uint8)
        with (folder / "raw").open("rb", buffering=0) as file:
            while file.readinto(into.data):
                pass

    store = FeatureStore(folder / "store")

    def read(asked: list[str], some: list[Tap]) -> float:
        return best(lambda: store.read(view, asked, some, verify=False), repeats)

    shuffled = list(np.random.default_rng(1).permutation(ids))
    name = "2,240 x 61 x 512 float16"
    rows = [
        (f"{name}: write .npy memory maps", best(write_maps, 1), size),
        (f"{name}: write raw file", best(write_raw, 1), size),
        (f"{name}: write store, batches of 32", best(write_store, 1), size),
        (f"{name}: read .npy memory maps", best(read_maps, repeats), size),
        (f"{name}: read raw file", best(read_raw, repeats), size),
    ]
    for state in ("70 batches", "compacted"):
        if state == "compacted":
            rows.append((f"{name}: compact", best(store.compact, 1), size))
        opening = best(lambda: FeatureStore(folder / "store").missing(view, ids, taps, verify=False), repeats)
        rows += [
            (f"{state}: open and find nothing missing", opening, size),
            (f"{state}: compare all with the checksums", best(lambda: store.verify(view), repeats), size),
            (f"{state}: read all", read(ids, taps), size),
            (
                f"{state}: read all, shuffled",
                read(shuffled, taps),
                size,
            ),
            (
                f"{state}: read one tap",
                read(ids, taps[7:8]),
                size // 61,
            ),
        ]
    return rows


def one_wide_tap(folder: Path, repeats: int) -> list[tuple[str, float, int]]:
    """20,000 inputs of one tap of 1,024 numbers: the whole tap, and 1,000 random rows of it."""
    folder.mkdir()
    n, width = 20_000, 1024
    tap, view = Tap("last", (width,), "NC"), View("0" * 64, Pool(0), "float16", "bench")
    ids = [f"{i:064x}" for i in range(n)]
    block = np.random.default_rng(0).standard_normal((n, width), np.float32).astype(np.float16)
    store = FeatureStore(folder / "store")
    for a in range(0, n, 500):
        store.write(view, ids[a : a + 500], {tap: block[a : a + 500]})
    np.save(folder / "tap.npy", block)
    chosen = np.random.default_rng(1).permutation(n)[:1000]
    asked = [ids[i] for i in chosen]
    held = np.load(folder / "tap.npy", mmap_mode="r")
    rows = [
        ("20,000 x 1,024: read .npy memory map", best(lambda: np.array(held), repeats), block.nbytes),
        ("20,000 x 1,024: 1,000 random rows of the map", best(lambda: held[chosen], repeats), block.nbytes // 20),
    ]
    for state in ("40 batches", "compacted"):
        if state == "compacted":
            store.compact()
        rows += [
            (f"{state}: whole tap", best(lambda: store.read(view, ids, [tap], verify=False), repeats), block.nbytes),
            (
                f"{state}: 1,000 random rows",
                best(lambda: store.read(view, asked, [tap], verify=False), repeats),
                block.nbytes // 20,
            ),
        ]
    return rows


def best(work: Callable[[], object], repeats: int) -> float:
    """The shortest of `repeats` runs, in seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
