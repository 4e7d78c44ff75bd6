"""Which file and row holds a tap of an input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat

import numpy as np

from head2toe.store.lance_folder import Fragment

_ROW_BITS = 32


@dataclass(frozen=True, eq=False)
class Part:
    """A fragment as seen by a reader: its inputs, None where its file of keys is damaged, and checks (n, L) uint64."""

    fragment: Fragment
    ids: tuple[str, ...] | None
    checks: np.ndarray


class Index:
    """The rows of a view at one version: every (input, tap) stands in at most one part. It only grows."""

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self.parts: list[Part] = []
        # for each set of taps that fragments hold: input -> part << 32 | row
        self._addresses: dict[frozenset[str], dict[str, int]] = {}
        for part in parts:
            self.add(part)

    def add(self, part: Part) -> None:
        start = len(self.parts) << _ROW_BITS
        self.parts.append(part)
        rows = self._addresses.setdefault(frozenset(part.fragment.taps), {})
        ids = part.ids or ()
        rows.update(zip(ids, range(start, start + len(ids)), strict=True))

    def ids(self) -> list[str]:
        """The distinct inputs, oldest first."""
        return list(dict.fromkeys(key for rows in self._addresses.values() for key in rows))

    def taps_of(self, key: str) -> frozenset[str]:
        return frozenset().union(*(taps for taps, rows in self._addresses.items() if key in rows))

    def lacking(self, ids: Sequence[str], taps: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Of each distinct input that lacks any of `taps`: those it lacks, in the asked order."""
        lacking: dict[str, tuple[str, ...]] = {}
        wanted = tuple(dict.fromkeys(taps))
        for key in dict.fromkeys(ids):
            present = self.taps_of(key)
            if not present.issuperset(wanted):
                lacking[key] = tuple(tap for tap in wanted if tap not in present)
        return lacking

    def parts_of(self, ids: Sequence[str], taps: Sequence[str]) -> list[Part]:
        """The parts that hold any of `taps` of any of `ids`."""
        tables = [rows for kept, rows in self._addresses.items() if not kept.isdisjoint(taps)]
        numbers = [np.fromiter(map(rows.get, ids, repeat(-1)), np.int64, len(ids)) >> _ROW_BITS for rows in tables]
        return [self.parts[number] for number in np.unique(numbers) if number >= 0]

    def locate(self, ids: Sequence[str], taps: Sequence[str]) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """Addresses of `ids` for each group of taps that stand together: (positions in `taps`, (n,) int64).

        KeyError (input, tap) on the first one that is not there.
        """
        homes: dict[tuple[frozenset[str], ...], list[int]] = {}
        for i, tap in enumerate(taps):
            homes.setdefault(tuple(kept for kept in self._addresses if tap in kept), []).append(i)
        found = []
        for kept, positions in homes.items():
            addresses = _addresses([self._addresses[taps_there] for taps_there in kept], ids)
            if len(lost := np.flatnonzero(addresses < 0)):
                raise KeyError(ids[int(lost[0])], taps[positions[0]])
            found.append((tuple(positions), addresses))
        return found


def split(addresses: np.ndarray, places: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Ascending addresses (n,) and what belongs to each, by part: (part, rows in it, `places` of them)."""
    parts = addresses >> _ROW_BITS
    ends = np.append(np.flatnonzero(np.diff(parts, prepend=-1)), len(parts))
    return [(int(parts[a]), addresses[a:b] & (1 << _ROW_BITS) - 1, places[a:b]) for a, b in pairwise(ends)]


def _addresses(tables: list[dict[str, int]], ids: Sequence[str]) -> np.ndarray:
    """Where each of `ids` stands in the first table that has it, (n,) int64, -1 for none."""
    found = np.full(len(ids), -1)
    for table in tables:
        lacking = np.flatnonzero(found < 0)
        asked = ids if len(lacking) == len(ids) else [ids[i] for i in lacking.tolist()]
        found[lacking] = np.fromiter(map(table.get, asked, repeat(-1)), np.int64, len(asked))
    return found
