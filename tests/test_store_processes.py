"""Killed, concurrent and short of disk: real processes on real folders."""

import shutil

import lance
import numpy as np
import pytest

from head2toe.store import FeatureStore
from store_jobs import BLOCK, LAST, PROCESSES, STEM, VIEW, assert_holds, features, fill, fill_small_disk, names

BATCHES = [names(start, start + 8) for start in range(0, 96, 8)]
EVERYTHING = names(0, 96)


def rows_of(batch: list[str], store: FeatureStore) -> int:
    return len(batch) - len(store.missing(VIEW, batch, [STEM, BLOCK]))


def test_killed_at_twenty_random_moments_it_holds_whole_batches_and_ends_up_the_same(tmp_path):
    fill(str(tmp_path / "uninterrupted"), BATCHES, (STEM, BLOCK))
    expected = FeatureStore(tmp_path / "uninterrupted").read(VIEW, EVERYTHING, [STEM, BLOCK])
    rng = np.random.default_rng(0)
    kills = finished = 0
    while kills < 20:
        location = tmp_path / f"run{finished}"
        told, report = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=fill, args=(str(location), BATCHES, (STEM, BLOCK), report))
        process.start()
        report.close()
        after = int(rng.integers(0, 5))
        done = 0
        try:
            for _ in range(after):  # some batches, and then a part of one
                done = told.recv()
        except EOFError:
            pass
        process.join(timeout=float(rng.uniform(0, 0.02)))
        process.kill()
        process.join()
        store = FeatureStore(location)
        counts = [rows_of(batch, store) for batch in BATCHES]
        assert set(counts) <= {0, 8}  # whole or absent
        assert all(counts[:done])  # what was reported is safe
        assert store.verify() == []
        if process.exitcode == 0:
            finished += 1
            continue
        kills += 1
        if kills % 5 == 0:
            fill(str(location), BATCHES, (STEM, BLOCK))
            table = FeatureStore(location).read(VIEW, EVERYTHING, [STEM, BLOCK])
            for block, whole in zip(table.blocks, expected.blocks, strict=True):
                assert block.tobytes() == whole.tobytes()
            assert store.views()[0].rows == len(EVERYTHING)
            finished += 1


def test_two_processes_filling_one_store_lose_and_double_nothing(tmp_path):
    # one goes forwards with two taps, the other backwards with three, and their batches overlap by halves
    shifted = [names(start, start + 8) for start in range(84, -5, -8) if start >= 0]
    jobs = [(BATCHES, (STEM, BLOCK)), (shifted, (STEM, BLOCK, LAST))]
    processes = [PROCESSES.Process(target=fill, args=(str(tmp_path), *job)) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    store = FeatureStore(tmp_path)
    assert_holds(store, EVERYTHING, STEM, BLOCK)
    assert_holds(store, [key for batch in shifted for key in batch], LAST)
    table = lance.dataset(tmp_path / f"{VIEW.key}.lance").to_table()
    for column in ("tap/stem", "tap/blocks/0%2Fconv"):
        there = table.filter(table[column].is_valid())["id"].to_pylist()
        assert sorted(there) == EVERYTHING  # once each


@pytest.mark.parametrize("disk", ["small_disk", "quota"])
def test_a_full_disk_gives_one_clear_error_and_leaves_the_store_readable(disk, request):
    disk = request.getfixturevalue(disk)
    # a file system fills up in any of the files of a batch, a quota only in a large one
    sizes = (1, 2, 5, 20) if disk.mounted else (3000,)
    for size in sizes:
        location = disk.folder / str(size)
        batches = [names(start, start + size) for start in range(0, 3000, size)]
        few = names(9000, 9004)
        FeatureStore(location).write(VIEW, few, features(few, STEM, BLOCK, LAST))
        told, report = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=fill_small_disk, args=(str(location), batches, disk.limit, report))
        process.start()
        done, message = told.recv()
        process.join()
        assert message.startswith(f"write: no space is left at {location}")
        assert "run the same command again" in message
        store = FeatureStore(location)
        written = [key for batch in batches[:done] for key in batch]
        assert store.missing(VIEW, [*written, *batches[done]], [STEM]) == batches[done]
        assert_holds(store, few + written, STEM, BLOCK, LAST)
        assert store.verify() == []
        if size != sizes[-1]:
            shutil.rmtree(location)
    disk.grow()
    store.write(VIEW, batches[done], features(batches[done], STEM, BLOCK, LAST))
    assert_holds(store, few + written + batches[done], STEM, BLOCK, LAST)
