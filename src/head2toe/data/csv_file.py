"""CSV files: columns `path` (or `text`) and `label`, and `split` where the rows are split."""

from __future__ import annotations

import csv
from pathlib import Path

from head2toe.data.folder import SPLIT_FOLDERS
from head2toe.data.sources import Files, Memory
from head2toe.data.task import Rows
from head2toe.errors import DataError

_LONGEST = 1 << 30  # characters of a text


def read_csv(path: Path) -> dict[str, Rows]:
    """The rows of every split; paths are relative to the CSV's folder. Without a `split` column all rows are train."""
    try:
        return _read(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"load: {path} cannot be read as CSV in UTF-8: {error}") from error


def _read(path: Path) -> dict[str, Rows]:
    csv.field_size_limit(_LONGEST)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or ()
        column = next((name for name in ("path", "text") if name in columns), None)
        if column is None or "label" not in columns:
            raise DataError(
                f"load: the first line of {path} should be path,label or text,label (and maybe split), "
                f"got {','.join(columns) or 'an empty file'}"
            )
        found: dict[str, tuple[list[str], list[str]]] = {}
        for row in reader:
            line = reader.line_num
            inputs, labels = found.setdefault(_split(path, line, row.get("split", "train")), ([], []))
            if not row[column] or not row["label"]:
                raise DataError(f"load: line {line} of {path} has no {column if not row[column] else 'label'}")
            inputs.append(row[column])
            labels.append(row["label"])
    return {split: Rows(_source(path, column, tuple(inputs)), labels) for split, (inputs, labels) in found.items()}


def _source(path: Path, column: str, inputs: tuple[str, ...]) -> Files | Memory:
    return Files(str(path.resolve().parent), inputs) if column == "path" else Memory(inputs, path.name)


def _split(path: Path, line: int, name: str | None) -> str:
    if name not in SPLIT_FOLDERS:
        raise DataError(f"load: line {line} of {path} has split '{name}'; accepted: {', '.join(SPLIT_FOLDERS)}")
    return SPLIT_FOLDERS[name]
