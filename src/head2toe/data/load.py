"""`load_task`: whatever a user points at, as a `Task`."""

from __future__ import annotations

from pathlib import Path

from head2toe.data.arrays import Labelled, task_from_arrays
from head2toe.data.csv_file import read_csv
from head2toe.data.folder import read_folder
from head2toe.data.hub import read_hub
from head2toe.data.parquet import read_parquet, split_files
from head2toe.data.task import Task, assemble
from head2toe.data.vtab import is_vtab, read_vtab
from head2toe.errors import DataError

ACCEPTED = (
    "an image folder (class/… or train|validation|test/class/…), a .parquet file or a folder of "
    "train|validation|test.parquet (columns image and label), a .csv file (columns path and label), a VTAB-1k task "
    "(vtab:ROOT/TASK), or a Hugging Face dataset (hf:ORG/NAME or hf:ORG/NAME:CONFIG)"
)


def load_task(data: str | Path | Labelled, *, skip_bad: bool = False) -> Task:
    """The task in `data`: an image folder, Parquet, CSV, VTAB-1k, hf:NAME, or a pair (inputs, labels) in memory.

    Only ids are computed; the extraction decodes. skip_bad=True decodes every picture here too, leaves out what cannot
    be read and lists it in `Task.skipped`. DataError where the data cannot serve as a task.
    """
    if isinstance(data, tuple):
        return task_from_arrays(*data, skip_bad=skip_bad)
    named = str(data)
    if named.startswith("hf:"):
        rows, classes = read_hub(named.removeprefix("hf:"))
        return assemble(named.removeprefix("hf:"), rows, skip_bad=skip_bad, classes=classes)
    path = Path(named.removeprefix("vtab:"))
    if not path.exists():
        raise DataError(f"load: there is no '{data}'; give {ACCEPTED}")
    name = path.resolve().stem if path.is_file() else path.resolve().name
    if named.startswith("vtab:") or is_vtab(path):
        return read_vtab(path, skip_bad=skip_bad)
    if path.is_dir() and (files := split_files(path)):
        rows, classes = read_parquet(files)
        return assemble(name, rows, skip_bad=skip_bad, classes=classes)
    if path.is_dir():
        return assemble(name, read_folder(path), skip_bad=skip_bad)
    if path.suffix == ".parquet":
        rows, classes = read_parquet({"train": [path]})
        return assemble(name, rows, skip_bad=skip_bad, classes=classes)
    if path.suffix == ".csv":
        return assemble(name, read_csv(path), skip_bad=skip_bad)
    raise DataError(f"load: '{path.name}' is of no known format; give {ACCEPTED}")
