"""Finding which features of a damaged file differ from their checksums, and saving the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from head2toe.errors import StoreError
from head2toe.store.codec import checks
from head2toe.store.index import Part
from head2toe.store.lance_folder import DataFile, LanceFolder, explained
from head2toe.store.rows import read_column
from head2toe.store.view import Damage


@dataclass(frozen=True, eq=False)
class Inspection:
    """A file whose bytes changed: per tap, which rows (n,) bool are bad."""

    part: Part
    bad: dict[str, np.ndarray]

    @property
    def good_rows(self) -> np.ndarray:
        """Rows good in every tap, ascending."""
        return np.flatnonzero(~np.any(list(self.bad.values()), axis=0))

    def damages(self, folder: LanceFolder) -> list[Damage]:
        view, file, ids = folder.view, self.part.file.name, self.part.ids
        if ids is None:
            return [Damage(view, file, tap, None) for tap in self.bad]
        found = [Damage(view, file, tap, ids[row]) for tap, rows in self.bad.items() for row in np.flatnonzero(rows)]
        return found or [Damage(view, file, None, None)]


def inspect(folder: LanceFolder, part: Part) -> Inspection:
    """Compare each row and tap of a damaged file with its checksum."""
    all_bad = np.ones(part.file.n_rows, bool)
    expected = _expected(folder, part)
    if part.ids is None or expected is None:
        return Inspection(part, dict.fromkeys(part.file.taps, all_bad))
    bad_ids = np.isin(np.arange(part.file.n_rows), list(part.bad_rows))
    bad = {}
    for i, tap in enumerate(part.file.taps):
        try:
            bad[tap] = bad_ids | (checks(part.ids, tap, read_column(folder, part.file, tap)) != expected[:, i])
        except StoreError:
            bad[tap] = all_bad
    return Inspection(part, bad)


def save_good_rows(folder: LanceFolder, inspection: Inspection) -> DataFile | None:
    """Write the rows that are good in every tap to a new file, not yet committed; None if there is none."""
    part, rows = inspection.part, inspection.good_rows
    if part.ids is None or not len(rows):
        return None
    blocks = {tap: read_column(folder, part.file, tap)[rows] for tap in part.file.taps}
    return write_file(folder, [part.ids[row] for row in rows], blocks)


def write_file(folder: LanceFolder, ids: Sequence[str], stored: Mapping[str, np.ndarray]) -> DataFile:
    """Write stored numbers (n, length) by tap with their checksums, not yet committed."""
    sums = np.stack([checks(ids, tap, block) for tap, block in stored.items()], axis=1)
    return folder.write(ids, sums, stored)


def _expected(folder: LanceFolder, part: Part) -> np.ndarray | None:
    """The checksums (n, L) that the file keeps, None if they cannot be read."""
    n_rows, n_taps = part.file.n_rows, len(part.file.taps)
    try:
        with explained("read", part.file.name):
            batches = list(folder.batches(part.file.name, ("checks",), range(n_rows), 65536))
            kept = [value for batch in batches for value in batch.column("checks").to_pylist()]
    except StoreError:
        return None
    # a damaged length makes that row bad, not the others
    sums = np.zeros((n_rows, n_taps), np.uint64)
    for row, value in enumerate(kept[:n_rows]):
        if value is not None and len(value) == 8 * n_taps:
            sums[row] = np.frombuffer(value, np.uint64)
    return sums
