"""Extractions that are killed, race each other, or run out of disk: real processes, a real network, real folders."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pytest
from PIL import Image

from extract_jobs import BATCH, POOLS, noise, run, tiny
from head2toe.extract import view_of
from head2toe.store import FeatureStore
from head2toe.store.lance_folder import column
from store_jobs import PROCESSES

N = 12 * BATCH
KILLS = 20


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    """The bytes of an uninterrupted extraction, by view and tap."""
    location = tmp_path_factory.mktemp("whole")
    run(str(location), 0, N)
    return contents(FeatureStore(location), backbone)


def contents(store, backbone) -> list[bytes]:
    tables = [store.read(view_of(backbone, pool), noise(0, N).ids, backbone.taps, verify=True) for pool in POOLS]
    return [block.tobytes() for table in tables for block in table.blocks]


def stored(store, backbone, pool) -> np.ndarray:
    """Which of the images have all their taps, (N,) bool."""
    ids = noise(0, N).ids
    missing = set(store.missing(view_of(backbone, pool), ids, backbone.taps))
    return np.array([key not in missing for key in ids])


def assert_whole_batches(store, backbone) -> int:
    """What is stored is the start of the list, cut between batches; how many batches have both pools."""
    done = [stored(store, backbone, pool) for pool in POOLS]
    for there in done:
        n = int(there.sum())
        assert there[:n].all()
        assert n % BATCH == 0
    assert 0 <= done[0].sum() - done[1].sum() <= BATCH
    return int(done[1].sum()) // BATCH


def test_killed_at_twenty_random_moments_it_goes_on_to_the_same_bytes(backbone, whole, tmp_path):
    rng = np.random.default_rng(0)
    kills = 0
    while kills < KILLS:
        location, before = tmp_path / f"after{kills}", 0
        for _ in range(3):
            workers = (0, 1, 2)[kills % 3]  # copies of the process, which have to end with it
            code, events = killed(location, int(rng.integers(0, 12)), float(rng.uniform(0, 0.02)), workers)
            kills += code < 0
            store = FeatureStore(location)
            done = assert_whole_batches(store, backbone)
            assert events.count("stored") // len(POOLS) <= done - before  # what was told is safe
            # the batch being committed, the one in the network, a second copy's, and what was passed before copying
            assert before + events.count("computed") - done <= (2, 3, 4)[workers]
            assert store.verify() == []
            before = done
        run(str(location), 0, N)
        assert contents(store, backbone) == whole
        assert {info.rows for info in store.views()} == {N}


def killed(location: Path, after: int, seconds: float, workers: int) -> tuple[int, list[str]]:
    """Start an extraction, kill it `seconds` after so many events: its exit code and all that it told."""
    told, report = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=run, args=(str(location), 0, N, workers, report))
    process.start()
    report.close()
    events: list[str] = []
    with told, contextlib.suppress(EOFError):
        while len(events) < after:
            events.append(told.recv())
        process.join(timeout=seconds)
        process.kill()
        while True:
            events.append(told.recv())
    process.join()
    assert process.exitcode is not None
    return process.exitcode, events


def test_two_processes_extracting_overlapping_data_lose_and_double_nothing(backbone, whole, tmp_path):
    jobs = [(0, 2 * N // 3), (N // 3, N)]
    processes = [PROCESSES.Process(target=run, args=(str(tmp_path), *job)) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    store = FeatureStore(tmp_path)
    assert all(stored(store, backbone, pool).all() for pool in POOLS)
    assert contents(store, backbone) == whole  # batches are cut alike: both start at a multiple of their size
    for pool in POOLS:
        table = lance.dataset(tmp_path / f"{view_of(backbone, pool).key}.lance").to_table()
        for tap in backbone.taps:
            there = table.filter(table[column(tap.name)].is_valid())["id"].to_pylist()
            assert sorted(there) == sorted(noise(0, N).ids)  # once each


def test_a_full_disk_ends_the_command_with_one_line_and_code_2(small_disk, tmp_path):
    images = tmp_path / "data"
    for i in range(8):
        (images / str(i % 2)).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / str(i % 2) / f"{i}.png")
    code = f"{small_disk.limit}; from head2toe.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "extract", str(images), "--store", str(small_disk.folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: write: no space is left at {small_disk.folder}")
    store = FeatureStore(small_disk.folder)
    assert store.verify() == []
    assert [info.rows for info in store.views()] in ([], [0])
