"""Parquet in the Hugging Face layout: a column `image` (or `text`) and a column `label`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from head2toe.data.folder import SPLIT_FOLDERS
from head2toe.data.sources import parquet_rows
from head2toe.data.task import SPLITS, Rows
from head2toe.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

INPUTS = ("image", "img", "text")


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split in `folder` or its `data/`: `train.parquet`, `train-00000-of-00002.parquet`, …"""
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    found: dict[str, list[Path]] = {}
    for path in files:
        if split := SPLIT_FOLDERS.get(path.stem.split("-")[0]):
            found.setdefault(split, []).append(path)
    return found


def read_parquet(files: dict[str, list[Path]]) -> tuple[dict[str, Rows], list[str] | None]:
    """The rows of every split, and the class names in the order that the files declare (None: they declare none).

    Names come from the ClassLabel of the Hugging Face metadata, then from `classes` in an `info.json` beside the file.
    """
    names = _declared(next(files[split] for split in SPLITS if split in files)[0])
    rows = {split: _rows(paths) for split, paths in files.items()}
    return rows, names or _numeric_order(rows)


def _rows(paths: list[Path]) -> Rows:
    """The rows of a split's files; a number is a class's place among the names that its own file declares."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = next((name for name in INPUTS if name in _schema(paths[0]).names), None)
    for path in paths:
        has = _schema(path).names
        if column not in has or "label" not in has:
            needed = column or f"one of {', '.join(INPUTS)}"
            raise DataError(f"load: {path} needs a column 'label' and {needed}; it has {', '.join(sorted(has))}")
    assert column is not None, "no file lacks it"
    _check_type(paths[0], column, _schema(paths[0]).field(column).type)
    labels: list[str] = []
    for path in paths:
        try:
            values = pq.ParquetFile(path).read(["label"]).column("label").to_pylist()  # read_table imports pandas
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"load: the labels of {path} cannot be read: {error}") from error
        names = _declared(path)
        labels += [_label(path, row, value, names) for row, value in enumerate(values)]
    return Rows(parquet_rows(paths, column), labels)


def _schema(path: Path) -> pa.Schema:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"load: {path} cannot be read as Parquet: {error}") from error


def _check_type(path: Path, column: str, kind: pa.DataType) -> None:
    import pyarrow.types as types

    encoded = types.is_struct(kind) and {field.name for field in kind} >= {"bytes", "path"}
    if types.is_string(kind) or types.is_large_string(kind):
        encoded = column == "text"
    elif types.is_binary(kind) or types.is_large_binary(kind):
        encoded = column != "text"
    if not encoded:
        raise DataError(
            f"load: column '{column}' of {path} should hold struct<bytes, path>, binary or text, got {kind}"
        )


def _label(path: Path, row: int, value: object, names: Sequence[str] | None) -> str:
    if value is None or value == "" or value != value or (isinstance(value, int) and value < 0):  # NaN is not itself
        raise DataError(f"load: row {row} of {path} has no label; remove it")
    if isinstance(value, str) or names is None:
        return str(value)
    if not isinstance(value, int):
        raise DataError(f"load: row {row} of {path} has label {value}; beside class names it should be a whole number")
    if value >= len(names):
        raise DataError(f"load: row {row} of {path} has label {value}, its class names end at {len(names) - 1}")
    return names[value]


def _declared(path: Path) -> list[str] | None:
    try:
        metadata = json.loads((_schema(path).metadata or {}).get(b"huggingface", b"{}"))
        names = metadata.get("info", {}).get("features", {}).get("label", {}).get("names")
    except (ValueError, AttributeError) as error:
        raise DataError(f"load: the Hugging Face metadata of {path} cannot be read: {error}") from error
    info = path.with_name("info.json")
    if names is None and info.is_file():
        try:
            names = json.loads(info.read_text()).get("classes")
        except (ValueError, AttributeError) as error:
            raise DataError(f"load: {info} should be a JSON object: {error}; repair or remove it") from error
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DataError(f"load: the class names of {path} should be a list of strings, got {names}; see {info}")
    return names


def _numeric_order(rows: dict[str, Rows]) -> list[str] | None:
    """0, 1, 2, …, 10 rather than 0, 1, 10, 2, … where every label is a number."""
    labels = {label for split in rows.values() for label in split.labels}
    return sorted(labels, key=int) if all(label.isdecimal() for label in labels) else None
