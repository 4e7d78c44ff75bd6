"""Where inputs lie: files, row groups of Parquet files, or memory. Each is picklable and reads only what is asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from head2toe.data.task import Item
from head2toe.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, eq=False)
class Files:
    """One file per row; `paths` are relative to `folder`, or absolute."""

    folder: str
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int, /) -> Item:
        return Path(self.folder, self.paths[row]).read_bytes()

    def name(self, row: int, /) -> str:
        return self.paths[row]


@dataclass(frozen=True, eq=False)
class Memory:
    """Inputs that are in memory already: encoded bytes, arrays or texts."""

    items: Sequence[Item] | np.ndarray
    title: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int, /) -> Item:
        return self.items[row]

    def name(self, row: int, /) -> str:
        return f"{self.title}[{row}]"


@dataclass(frozen=True, eq=False)
class RowGroup:
    """A row group of a Parquet file as it was when first seen (`stamp`: modification time in ns)."""

    path: str
    stamp: int
    index: int
    n_rows: int


@dataclass(frozen=True, eq=False)
class ParquetRows:
    """The rows of `column` over some row groups; two groups at most are held in memory.

    The column holds encoded bytes, a struct {bytes, path} as Hugging Face writes pictures, or texts.
    """

    groups: tuple[RowGroup, ...]
    column: str
    starts: np.ndarray

    def __len__(self) -> int:
        return sum(group.n_rows for group in self.groups)

    def __getitem__(self, row: int, /) -> Item:
        group, offset = self._find(row)
        if os.stat(group.path).st_mtime_ns != group.stamp:
            raise DataError(f"read: {group.path} has changed since it was loaded; load the task again")
        with _READING:
            column = _column(group.path, group.stamp, group.index, self.column)
        value = column[offset].as_py()
        return of_cell(value, Path(group.path).parent)

    def name(self, row: int, /) -> str:
        return f"{Path(self._find(row)[0].path).name}[{row}]"

    def _find(self, row: int) -> tuple[RowGroup, int]:
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.groups[at], row - int(self.starts[at])


def parquet_rows(paths: Sequence[Path], column: str) -> ParquetRows:
    """All rows of `column` over the files `paths`, read when asked for."""
    import pyarrow.parquet as pq

    groups = []
    for path in paths:
        metadata, stamp = pq.read_metadata(path), path.stat().st_mtime_ns
        groups += [
            RowGroup(str(path), stamp, index, metadata.row_group(index).num_rows)
            for index in range(metadata.num_row_groups)
        ]
    starts = np.cumsum([0, *(group.n_rows for group in groups)])[:-1]
    return ParquetRows(tuple(groups), column, starts)


def of_cell(value: Item | dict | None, folder: Path) -> Item:
    """The input in a table's cell, which may be {bytes, path} as Hugging Face writes pictures; DataError for none."""
    if isinstance(value, dict):
        path = value["path"]
        value = value["bytes"] or (folder.joinpath(path).read_bytes() if path else None)
    if value is None:
        raise DataError("it is empty")
    return value


_READING = Lock()  # rows that are asked for side by side lie in one group, which is read once


@lru_cache(maxsize=2)
def _column(path: str, stamp: int, group: int, column: str) -> pa.ChunkedArray:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, [column]).column(column)
