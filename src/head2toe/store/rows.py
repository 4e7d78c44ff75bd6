"""Reading: from the files of a view into preallocated arrays."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from head2toe.errors import StoreDamagedError
from head2toe.store.codec import STORED, file_name
from head2toe.store.index import Index, Part, split
from head2toe.store.lance_folder import File, Fragment, LanceFolder, column, explained, from_arrow

_BATCH_BYTES = 1 << 23
_JOB_BYTES = 1 << 26


@dataclass(frozen=True)
class Wanted:
    """A tap to read and how many numbers it has."""

    tap: str
    length: int


def load_index(folder: LanceFolder, known: Index | None) -> Index:
    """The index of the folder's version; only the keys of fragments that `known` lacks are read.

    `known` itself grows where it can: where fragments were only added.
    """
    old = {part.fragment: part for part in known.parts} if known is not None else {}
    fragments = folder.fragments()
    new = [fragment for fragment in fragments if fragment not in old]
    with ThreadPoolExecutor(_workers(folder)) as pool:
        parts = list(pool.map(lambda fragment: _load_part(folder, fragment), new))
    if known is not None and fragments == [*old, *new]:
        for part in parts:
            known.add(part)
        return known
    old.update(zip(new, parts, strict=True))
    return Index(old[fragment] for fragment in fragments)


def read_rows(folder: LanceFolder, index: Index, ids: Sequence[str], wanted: Sequence[Wanted]) -> list[np.ndarray]:
    """Stored numbers of `ids` (repeats allowed), one array (n, length) per wanted tap.

    KeyError (input, tap) where the index lacks one, StoreError where a file cannot be read.
    """
    dtype = STORED[folder.view.dtype]
    blocks = [np.empty((len(ids), want.length), dtype) for want in wanted]
    first: dict[str, int] = {}
    for i, key in enumerate(ids):
        first.setdefault(key, i)
    asked = np.fromiter(first.values(), np.int64, len(first))
    jobs = []
    for positions, addresses in index.locate(list(first), [want.tap for want in wanted]):
        lengths = [wanted[i].length for i in positions]
        step = max(1, _JOB_BYTES // max(1, sum(lengths) * dtype.itemsize))
        for part, rows, at in split(addresses):
            for start in range(0, len(rows), step):
                piece = slice(start, start + step)
                jobs.append((index.parts[part].fragment.data, positions, rows[piece], asked[at[piece]]))
    with ThreadPoolExecutor(_workers(folder)) as pool:
        for _ in pool.map(lambda job: _fill(folder, blocks, wanted, *job), jobs):
            pass
    if len(first) < len(ids):
        source = np.array([first[key] for key in ids])
        repeats = np.flatnonzero(source != np.arange(len(ids)))
        for block in blocks:
            block[repeats] = block[source[repeats]]
    return blocks


def damaged_parts(folder: LanceFolder, parts: Sequence[Part]) -> list[Part]:
    """Those of `parts` whose bytes are not those that were written."""
    with ThreadPoolExecutor(_workers(folder)) as pool:
        fine = pool.map(lambda part: part.ids is not None and _is_intact(folder, part.fragment.data), parts)
        return [part for part, is_fine in zip(parts, fine, strict=True) if not is_fine]


def _is_intact(folder: LanceFolder, file: File) -> bool:
    try:
        return file_name(folder.content(file)) == file.name
    except FileNotFoundError:
        return False


def _load_part(folder: LanceFolder, fragment: Fragment) -> Part:
    n_rows, n_taps = fragment.n_rows, len(fragment.taps)
    if not _is_intact(folder, fragment.keys):
        return Part(fragment, None, np.zeros((n_rows, n_taps), np.uint64))
    batches = list(folder.batches(fragment.keys, ("id", "checks"), range(n_rows), n_rows))
    ids = tuple(key for batch in batches for key in batch.column("id").to_pylist())
    sums = b"".join(row for batch in batches for row in batch.column("checks").to_pylist())
    return Part(fragment, ids, np.frombuffer(sums, np.uint64).reshape(n_rows, n_taps))


def _fill(
    folder: LanceFolder,
    blocks: list[np.ndarray],
    wanted: Sequence[Wanted],
    file: File,
    positions: Sequence[int],
    rows: np.ndarray,
    at: np.ndarray,
) -> None:
    """Copy ascending `rows` of a file to the rows `at` of `blocks[positions]`."""
    first, last = int(rows[0]), int(rows[-1])
    is_dense = last - first < 2 * len(rows)  # reading twice the rows costs less than finding each one
    offsets = rows - first if is_dense else np.arange(len(rows))
    in_order = bool((np.diff(at) == 1).all())
    row_bytes = sum(wanted[i].length for i in positions) * blocks[positions[0]].itemsize
    batch_rows = max(16, min(65536, _BATCH_BYTES // max(1, row_bytes)))
    columns = [column(wanted[i].tap) for i in positions]
    done = 0
    with explained("read", f"data/{file.name}"):
        where = range(first, last + 1) if is_dense else rows.tolist()
        for batch in folder.batches(file, columns, where, batch_rows):
            a, b = np.searchsorted(offsets, (done, done + batch.num_rows))
            done += batch.num_rows
            if a == b:
                continue
            source = None if b - a == batch.num_rows else offsets[a:b] - (done - batch.num_rows)
            target = slice(int(at[a]), int(at[a]) + int(b - a)) if in_order else at[a:b]
            for i, name in zip(positions, columns, strict=True):
                values = from_arrow(batch.column(name), wanted[i].length)
                blocks[i][target] = values if source is None else values[source]
    expected = last + 1 - first if is_dense else len(rows)
    if done != expected:
        raise StoreDamagedError(f"read: file {file.name} gave {done} rows, expected {expected}")


def _workers(folder: LanceFolder) -> int:
    """Threads that read: a disk wants few, an object store answers each request late."""
    return 4 if folder.place.local is not None else 16
