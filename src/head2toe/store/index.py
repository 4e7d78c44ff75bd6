"""Which file and row holds a tap of an input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
        rows.update((key, start | row) for row, key in enumerate(part.ids or ()))

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
        numbers = {rows[key] >> _ROW_BITS for rows in tables for key in ids if key in rows}
        return [self.parts[number] for number in sorted(numbers)]

    def locate(self, ids: Sequence[str], taps: Sequence[str]) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """Addresses of `ids` for each group of taps that stand together: (positions in `taps`, (n,) int64).

        KeyError (input, tap) on the first one that is not there.
        """
        homes: dict[tuple[frozenset[str], ...], list[int]] = {}
        for i, tap in enumerate(taps):
            homes.setdefault(tuple(kept for kept in self._addresses if tap in kept), []).append(i)
        found = []
        for kept, positions in homes.items():
            tables = [self._addresses[taps_there] for taps_there in kept]
            addresses = [_first(tables, key) for key in ids]
            if -1 in addresses:
                raise KeyError(ids[addresses.index(-1)], taps[positions[0]])
            found.append((tuple(positions), np.array(addresses, np.int64)))
        return found


def split(addresses: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Addresses (n,) by part: (part, ascending rows in it, where each of them was asked)."""
    if not len(addresses):
        return []
    order = np.argsort(addresses, kind="stable")
    parts = addresses[order] >> _ROW_BITS
    starts = np.flatnonzero(np.diff(parts, prepend=-1))
    return [
        (int(parts[a]), addresses[order[a:b]] & (1 << _ROW_BITS) - 1, order[a:b])
        for a, b in zip(starts, [*starts[1:], len(order)], strict=True)
    ]


def _first(tables: list[dict[str, int]], key: str) -> int:
    return next((table[key] for table in tables if key in table), -1)
