"""Reading: from the files of a view into preallocated arrays."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from head2toe.errors import StoreDamagedError
from head2toe.store.codec import STORED, file_name
from head2toe.store.index import Index, Part, split
from head2toe.store.lance_folder import File, Fragment, LanceFolder, column, explained, from_arrow
from head2toe.store.pages import mapped_pages

_BATCH_BYTES = 1 << 23
_JOB_BYTES = 1 << 24


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
    new = {fragment: place for place, fragment in enumerate(fragments) if fragment not in old}
    parts = _load_parts(folder, new)
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
    jobs, repeats = [], []
    for positions, addresses in index.locate(ids, [want.tap for want in wanted]):
        distinct, first, again = np.unique(addresses, return_index=True, return_inverse=True)
        repeats.append((positions, first[again]))
        step = max(1, _JOB_BYTES // max(1, sum(wanted[i].length for i in positions) * dtype.itemsize))
        for part, rows, at in split(distinct, first):
            for start in range(0, len(rows), step):
                piece = slice(start, start + step)
                jobs.append((index.parts[part].fragment, positions, rows[piece], at[piece]))
    if folder.place.local is not None:  # threads would wait for each other: half of the time is spent in Python
        for job in jobs:
            _fill_from_disk(folder, blocks, wanted, *job)
    else:
        with ThreadPoolExecutor(_workers(folder)) as pool:
            deque(pool.map(lambda job: _fill(folder, blocks, wanted, *job), jobs), maxlen=0)
    for positions, source in repeats:
        copies = np.flatnonzero(source != np.arange(len(ids)))
        for i in positions if len(copies) else ():
            blocks[i][copies] = blocks[i][source[copies]]
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


def _load_parts(folder: LanceFolder, new: Mapping[Fragment, int]) -> list[Part]:
    """The keys of `new` fragments: each file is compared with its name, and those intact are read in one scan."""
    with ThreadPoolExecutor(_workers(folder)) as pool:
        check = map if folder.place.local is not None else pool.map  # a thread's turn costs more than a small file
        intact = list(check(lambda fragment: _is_intact(folder, fragment.keys), new))
    keys = folder.keys([place for place, is_intact in zip(new.values(), intact, strict=True) if is_intact])
    ids, sums = keys["id"].to_pylist(), keys["checks"].to_pylist()
    parts, start = [], 0
    for fragment, is_intact in zip(new, intact, strict=True):
        shape = fragment.n_rows, len(fragment.taps)
        if not is_intact:
            parts.append(Part(fragment, None, np.zeros(shape, np.uint64)))
            continue
        rows = slice(start, start + fragment.n_rows)
        parts.append(Part(fragment, tuple(ids[rows]), np.frombuffer(b"".join(sums[rows]), np.uint64).reshape(shape)))
        start = rows.stop
    return parts


def _fill_from_disk(
    folder: LanceFolder,
    blocks: list[np.ndarray],
    wanted: Sequence[Wanted],
    fragment: Fragment,
    positions: Sequence[int],
    rows: np.ndarray,
    at: np.ndarray,
) -> None:
    """Copy ascending `rows` of a file to the rows `at` of `blocks[positions]`, straight from its pages."""
    with explained("read", f"data/{fragment.data.name}"):
        columns = [fragment.taps.index(wanted[i].tap) for i in positions]
        spans: dict[tuple[int, int], tuple[np.ndarray | slice, np.ndarray | slice]] = {}
        for i, pages in zip(positions, mapped_pages(folder.path(fragment.data), columns), strict=True):
            start = 0
            for page in pages:
                values = page.view(blocks[i].dtype).reshape(-1, wanted[i].length)
                stop = start + len(values)
                if (start, stop) not in spans:
                    a, b = np.searchsorted(rows, (start, stop))
                    spans[start, stop] = _slice(at[a:b]), _slice(rows[a:b] - start)
                to, of = spans[start, stop]
                blocks[i][to] = values[of]
                start = stop
            _refuse_other_count(fragment, start, fragment.n_rows)


def _fill(
    folder: LanceFolder,
    blocks: list[np.ndarray],
    wanted: Sequence[Wanted],
    fragment: Fragment,
    positions: Sequence[int],
    rows: np.ndarray,
    at: np.ndarray,
) -> None:
    """As `_fill_from_disk`, by Lance's reader, which asks an object store for no more than it needs."""
    first, last = int(rows[0]), int(rows[-1])
    is_dense = last - first < 2 * len(rows)  # reading twice the rows costs less than finding each one
    offsets = rows - first if is_dense else np.arange(len(rows))
    row_bytes = sum(wanted[i].length for i in positions) * blocks[positions[0]].itemsize
    batch_rows = max(16, min(65536, _BATCH_BYTES // max(1, row_bytes)))
    columns = [column(wanted[i].tap) for i in positions]
    done = 0
    with explained("read", f"data/{fragment.data.name}"):
        where = range(first, last + 1) if is_dense else rows.tolist()
        for batch in folder.batches(fragment.data, columns, where, batch_rows):
            a, b = np.searchsorted(offsets, (done, done + batch.num_rows))
            for i, name in zip(positions, columns, strict=True):
                values = from_arrow(batch.column(name), wanted[i].length)
                blocks[i][_slice(at[a:b])] = values[_slice(offsets[a:b] - done)]
            done += batch.num_rows
    _refuse_other_count(fragment, done, last + 1 - first if is_dense else len(rows))


def _refuse_other_count(fragment: Fragment, got: int, expected: int) -> None:
    if got != expected:
        raise StoreDamagedError(f"read: file {fragment.data.name} gave {got} rows, expected {expected}")


def _slice(rows: np.ndarray) -> np.ndarray | slice:
    """Consecutive rows as a slice, which copies several times faster."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _workers(folder: LanceFolder) -> int:
    """Threads that read: a disk wants few, an object store answers each request late."""
    return 4 if folder.place.local is not None else 16
