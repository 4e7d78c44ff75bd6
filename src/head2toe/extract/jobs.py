"""Which inputs lack which taps of which views: the batches that an extraction passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from head2toe.data.task import Item, Split, item_id
from head2toe.errors import DataError
from head2toe.taps import Tap

if TYPE_CHECKING:
    from head2toe.store import FeatureStore, View


@dataclass(frozen=True, eq=False)
class Inputs:
    """The distinct inputs of several splits, in the order of their first appearance; a `Source`."""

    ids: tuple[str, ...]
    at: Mapping[str, int]
    places: Sequence[tuple[Split, int]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int, /) -> Item:
        split, at = self.places[row]
        item = split.source[at]
        if item_id(item) != self.ids[row]:
            raise DataError("it has changed since it was loaded; load the task again")
        return item

    def name(self, row: int, /) -> str:
        split, at = self.places[row]
        return split.source.name(at)


def distinct(splits: Sequence[Split]) -> Inputs:
    """Every input of several splits once."""
    first: dict[str, tuple[Split, int]] = {}
    for split in splits:
        for row, key in enumerate(split.ids):
            first.setdefault(key, (split, row))
    return Inputs(tuple(first), {key: row for row, key in enumerate(first)}, list(first.values()))


@dataclass(frozen=True, eq=False)
class Job:
    """Inputs that lack the same taps of the same views."""

    lacking: tuple[tuple[View, tuple[Tap, ...]], ...]
    ids: tuple[str, ...]

    def batches(self, size: int) -> Iterator[Job]:
        for start in range(0, len(self.ids), size):
            yield Job(self.lacking, self.ids[start : start + size])


def plan(store: FeatureStore, views: Sequence[View], taps: Sequence[Tap], ids: Sequence[str]) -> list[Job]:
    """Inputs grouped by what they lack, each group in the asked order."""
    lacking: dict[str, dict[View, list[Tap]]] = {}
    for view in views:
        incomplete = store.missing(view, ids, taps)
        for tap in taps if incomplete else ():
            for key in store.missing(view, incomplete, [tap]):
                lacking.setdefault(key, {}).setdefault(view, []).append(tap)
    groups: dict[tuple[tuple[View, tuple[Tap, ...]], ...], list[str]] = {}
    for key in ids:
        if key in lacking:
            wanted = tuple((view, tuple(missing)) for view, missing in lacking[key].items())
            groups.setdefault(wanted, []).append(key)
    return [Job(wanted, tuple(keys)) for wanted, keys in groups.items()]
