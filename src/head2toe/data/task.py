"""The nouns of labelled data, and the one way from rows to a `Task`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Int64

from head2toe import images
from head2toe.errors import DataError

Item = bytes | np.ndarray | str
Check = Callable[[Item], object]
SPLITS = ("train", "validation", "test")
_NAMED = 20
_CHUNK = 1024  # inputs looked at together: what bounds the memory
_PART = 64  # of them, one after the other in a thread


@runtime_checkable
class Source(Protocol):
    """Inputs that are read when asked for; picklable, and safe to read from several threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Item:
        """The encoded bytes of a picture, its pixels, or a text."""
        ...

    def name(self, row: int, /) -> str:
        """What a user calls this row: a relative path, or a row of a file."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one split: `ids` are hashes of the inputs (duplicates allowed), `labels` (n,) int64 index the classes."""

    ids: tuple[str, ...]
    labels: np.ndarray
    source: Source

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.labels) == len(self.source):
            lengths = len(self.ids), len(self.labels), len(self.source)
            raise DataError(f"split: ids, labels and inputs should be equally many, got {lengths}")

    @property
    def n_rows(self) -> int:
        return len(self.ids)

    def counts(self, n_classes: int) -> Int64[np.ndarray, " C"]:
        """How many rows each class has."""
        return np.bincount(self.labels, minlength=n_classes)

    def rows(self, index: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> Split:
        """The rows `index`, in that order."""
        picked = np.arange(self.n_rows)[index]
        return Split(tuple(self.ids[i] for i in picked), self.labels[picked], Subset(self.source, picked))


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task; label c means `classes[c]` in every split, and `skipped` names the rows left out."""

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split | None = None
    test: Split | None = None
    skipped: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[Split, ...]:
        """Train, then validation and test where there are any."""
        return tuple(split for split in (self.train, self.validation, self.test) if split is not None)


@dataclass(frozen=True, eq=False)
class Rows:
    """One split as a reader found it: an input and a class name per row."""

    source: Source
    labels: Sequence[str]


@dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of another source."""

    source: Source
    picked: np.ndarray

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, row: int, /) -> Item:
        return self.source[int(self.picked[row])]

    def name(self, row: int, /) -> str:
        return self.source.name(int(self.picked[row]))


@dataclass(frozen=True, eq=False)
class _Joined:
    """Rows of several sources, one after the other."""

    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, row: int, /) -> Item:
        source, at = self._place(row)
        return source[at]

    def name(self, row: int, /) -> str:
        source, at = self._place(row)
        return source.name(at)

    def _place(self, row: int) -> tuple[Source, int]:
        for source in self.sources:
            if row < len(source):
                return source, row
            row -= len(source)
        raise IndexError(row)


def joined(splits: Sequence[Split]) -> Split:
    """The rows of several splits, one after the other."""
    ids = tuple(id for split in splits for id in split.ids)
    labels = np.concatenate([split.labels for split in splits])
    return Split(ids, labels, _Joined(tuple(split.source for split in splits)))


def item_id(item: Item) -> str:
    """The stable id of an input: SHA-256 of its encoded bytes; of type, shape and values where it is an array."""
    if isinstance(item, np.ndarray):
        digest = hashlib.sha256(f"{item.dtype.str}{item.shape}".encode())
        digest.update(np.ascontiguousarray(item).data)
        return digest.hexdigest()
    return hashlib.sha256(item.encode() if isinstance(item, str) else item).hexdigest()


def find_damaged(source: Source, rows: Sequence[int], check: Check = images.check) -> list[str]:
    """What is wrong with each unreadable input among `rows`, one sentence each, in their order.

    `check` raises DataError for an input that cannot be read; texts always can.
    """
    return [f"{source.name(row)}: {reason}" for row, _, reason in _inspect(source, rows, check) if reason]


def damage_report(what: str, damaged: Sequence[str], total: int) -> DataError:
    """The error that names up to twenty unreadable inputs, counts them all and says how to go on without them."""
    lines = [f"{what}: {len(damaged):,} of {total:,} inputs cannot be read:", *damaged[:_NAMED]]
    if len(damaged) > _NAMED:
        lines.append(f"and {len(damaged) - _NAMED:,} more")
    lines.append("repair or remove them, or continue without them: skip_bad=True (--skip-bad)")
    return DataError("\n  ".join(lines))


def assemble(
    name: str,
    rows: Mapping[str, Rows],
    *,
    skip_bad: bool,
    classes: Sequence[str] | None = None,
    unseen: bool = False,
) -> Task:
    """A checked `Task` from what a reader found; `classes` gives an order of its own to their names, else sorted.

    Raises DataError where inputs cannot be opened, no train split exists, or test holds a class that neither train nor
    validation has. unseen=True keeps all declared classes, whoever has them (every answer on rows of a class that train
    and validation lack is wrong). skip_bad=True decodes every input and leaves out the damaged.
    """
    if "train" not in rows:
        raise DataError(f"load '{name}': a train split is needed, found only {', '.join(rows) or 'nothing'}")
    found: dict[str, tuple[tuple[str, ...], list[str], Source]] = {}
    damaged: list[str] = []
    for split in (split for split in SPLITS if split in rows):
        source, labels = rows[split].source, rows[split].labels
        inspected = list(_inspect(source, range(len(source)), _check_picture if skip_bad else None))
        damaged += [f"{source.name(row)}: {reason}" for row, _, reason in inspected if reason]
        good = [row for row, _, reason in inspected if not reason]
        kept = source if len(good) == len(source) else Subset(source, np.array(good, np.int64))
        found[split] = tuple(key for _, key, reason in inspected if not reason), [labels[row] for row in good], kept
    if damaged and not skip_bad:
        raise damage_report(f"load '{name}'", damaged, sum(len(split.source) for split in rows.values()))
    names = _class_names(name, {split: labels for split, (_, labels, _) in found.items()}, classes, unseen)
    index = {label: c for c, label in enumerate(names)}
    splits = {
        split: Split(ids, np.array([index[label] for label in labels], np.int64), source)
        for split, (ids, labels, source) in found.items()
        if ids or split == "train"
    }
    return Task(name, names, splits["train"], splits.get("validation"), splits.get("test"), tuple(damaged))


def _check_picture(item: bytes | np.ndarray | str, /) -> None:
    """Raise DataError for a picture that cannot be read; sound is left to the network that hears it."""
    if not (isinstance(item, bytes) and (item[:4], item[8:12]) == (b"RIFF", b"WAVE")):
        images.check(item)


def _class_names(
    name: str, labels: Mapping[str, Sequence[str]], declared: Sequence[str] | None, unseen: bool
) -> tuple[str, ...]:
    if not labels["train"]:
        raise DataError(f"load '{name}': the train split holds no readable input; add some or choose another folder")
    known = {label for split in ("train", "validation") for label in labels.get(split, ())}
    unknown = sorted(set(labels.get("test", ())) - known)
    if unknown and not unseen:
        raise DataError(
            f"load '{name}': test holds classes that train lacks: {_listing(unknown)}; add images of them to train, "
            "or remove them from test"
        )
    if declared is None:
        return tuple(sorted(known | set(unknown)))
    twice = sorted({label for label in declared if declared.count(label) > 1})
    if twice:
        raise DataError(f"load '{name}': two classes are called '{twice[0]}'; give each a name of its own")
    strange = sorted((known | set(unknown)) - set(declared))
    if strange:
        raise DataError(f"load '{name}': labels are not among its class names: {_listing(strange)}; correct either")
    return tuple(label for label in declared if unseen or label in known)


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED:,} more"


def _inspect(source: Source, rows: Sequence[int], check: Check | None) -> Iterator[tuple[int, str, str | None]]:
    """(row, id, what is wrong or None) per row; reads and checks in threads, in bounded memory."""

    def one(row: int) -> tuple[int, str, str | None]:
        try:
            item = source[row]
            if check is not None and not isinstance(item, str):
                check(item)
        except OSError as error:
            return row, "", f"it cannot be opened: {error.strerror or error}"
        except ValueError as error:  # DataError, a damaged page of Parquet, a name that no file can have
            return row, "", str(error)
        return row, item_id(item), None

    # Pillow and hashlib let go of the interpreter's lock while they work; a job for every row would cost more than they
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(rows), _CHUNK):
            parts = [rows[first : first + _PART] for first in range(start, min(start + _CHUNK, len(rows)), _PART)]
            yield from chain.from_iterable(pool.map(lambda part: [one(row) for row in part], parts))
