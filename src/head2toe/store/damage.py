"""Finding which features of a damaged file differ from their checksums, and saving the others."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from head2toe.store.codec import STORED, checks
from head2toe.store.index import Part
from head2toe.store.lance_folder import Fragment, LanceFolder, column
from head2toe.store.view import Damage


@dataclass(frozen=True, eq=False)
class Wreck:
    """What can still be read of a damaged part: stored numbers (n, length) by tap, and which rows (n,) bool are bad."""

    part: Part
    blocks: dict[str, np.ndarray]
    bad: dict[str, np.ndarray]

    def damages(self, folder: LanceFolder) -> list[Damage]:
        view, fragment, ids = folder.view, self.part.fragment, self.part.ids
        if ids is None:
            return [Damage(view, fragment.keys.name, None, None, fragment.n_rows)]
        name = fragment.data.name
        found = [Damage(view, name, tap, ids[row], 1) for tap, rows in self.bad.items() for row in np.flatnonzero(rows)]
        return found or [Damage(view, name, None, None, 0)]

    def save(self, folder: LanceFolder) -> Fragment | None:
        """Write the rows that are good in every tap to a new fragment, not yet committed; None if there is none."""
        rows = np.flatnonzero(~np.any(list(self.bad.values()), axis=0))
        if self.part.ids is None or not len(rows):
            return None
        blocks = {tap: self.blocks[tap][rows] for tap in self.part.fragment.taps}
        return write_part(folder, [self.part.ids[row] for row in rows], blocks).fragment


@contextmanager
def opened_wreck(folder: LanceFolder, part: Part) -> Iterator[Wreck]:
    """Read what can be read of a damaged part, and compare each row and tap with its checksum."""
    fragment = part.fragment
    with tempfile.TemporaryDirectory() as out:
        blocks = _dump(folder, fragment, Path(out)) if part.ids is not None else {}
        bad = {}
        for i, tap in enumerate(fragment.taps):
            bad[tap] = np.ones(fragment.n_rows, bool)
            if part.ids is not None and tap in blocks:
                bad[tap] = checks(part.ids, tap, blocks[tap]) != part.checks[:, i]
        yield Wreck(part, blocks, bad)


def write_part(folder: LanceFolder, ids: Sequence[str], stored: Mapping[str, np.ndarray]) -> Part:
    """Write stored numbers (n, length) by tap with their checksums, not yet committed."""
    sums = np.stack([checks(ids, tap, block) for tap, block in stored.items()], axis=1)
    return Part(folder.write(ids, sums, stored), tuple(ids), sums)


def _dump(folder: LanceFolder, fragment: Fragment, out: Path) -> dict[str, np.ndarray]:
    """The taps of a damaged file that a process of its own could read, in the planned shape."""
    copy = out / "file.lance"
    try:
        with copy.open("wb") as file:
            file.writelines(folder.content(fragment.data))
    except FileNotFoundError:
        return {}
    start = 0
    while start < len(fragment.taps):
        arguments = [f"{i}={column(tap)}" for i, tap in enumerate(fragment.taps) if i >= start]
        command = [sys.executable, "-P", str(Path(__file__).with_name("dump.py")), str(copy), str(out), *arguments]
        ended = subprocess.run(command, capture_output=True, check=False)
        tried = ended.stdout.split()
        if ended.returncode == 0 or not tried:
            break
        start = int(tried[-1]) + 1  # that column ended the process
    found = {tap: _load(folder, fragment, tap, out / f"{i}.npy") for i, tap in enumerate(fragment.taps)}
    return {tap: block for tap, block in found.items() if block is not None}


def _load(folder: LanceFolder, fragment: Fragment, tap: str, path: Path) -> np.ndarray | None:
    try:
        block = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    planned = (fragment.n_rows, folder.view.pool.length(folder.taps[tap])), STORED[folder.view.dtype]
    return block if (block.shape, block.dtype) == planned else None
