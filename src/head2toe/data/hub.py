"""Hugging Face datasets by name; the only module that names `datasets`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from head2toe.data.folder import SPLIT_FOLDERS
from head2toe.data.parquet import INPUTS
from head2toe.data.sources import of_cell
from head2toe.data.task import Item, Rows
from head2toe.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from datasets import Dataset, Features


@dataclass(frozen=True, eq=False)
class HubRows:
    """The rows of `column` of a dataset, pictures as their encoded bytes."""

    dataset: Dataset
    column: str
    title: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int, /) -> Item:
        return of_cell(self.dataset[row][self.column], Path())

    def name(self, row: int, /) -> str:
        return f"{self.title}[{row}]"


def read_hub(name: str) -> tuple[dict[str, Rows], list[str] | None]:
    """The rows of every split of the dataset called `name` ("ORG/NAME" or "ORG/NAME:CONFIG"), and its class names.

    Splits other than train, validation and test are left out. DataError where the dataset cannot be had or has no
    pictures, texts or labels; MissingExtraError without `datasets`.
    """
    path, _, config = name.partition(":")
    with _asking_for(name):
        from datasets import DatasetDict, Image, load_dataset

        loaded = load_dataset(path, config or None)
    if not isinstance(loaded, DatasetDict):
        raise DataError(f"load: '{name}' should have named splits, got {type(loaded).__name__}")
    found: dict[str, Rows] = {}
    names: list[str] | None = None
    for split, dataset in loaded.items():
        if split not in SPLIT_FOLDERS:
            continue
        column, label = _columns(name, dataset.features)
        names = getattr(dataset.features[label], "names", None)
        if isinstance(dataset.features[column], Image):
            dataset = dataset.cast_column(column, Image(decode=False))
        labels = [_label(f"{name}/{split}", row, value, names) for row, value in enumerate(dataset[label])]
        found[SPLIT_FOLDERS[str(split)]] = Rows(HubRows(dataset, column, f"{name}/{split}"), labels)
    return found, names


def configurations(name: str) -> list[str]:
    """What the dataset called `name` ("ORG/NAME") is divided into; "default" where it is in one.

    DataError where the dataset cannot be had, MissingExtraError without `datasets`.
    """
    with _asking_for(name):
        from datasets import get_dataset_config_names

        return get_dataset_config_names(name)


@contextmanager
def _asking_for(name: str) -> Iterator[None]:
    """Ask Hugging Face for the dataset `name`, quietly where nobody watches; what goes wrong is an error of ours."""
    try:
        from datasets import disable_progress_bars
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtraError(f"hf:{name}", "datasets") from error
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except (OSError, ValueError, DatasetsError) as error:
        reason = error if error.__cause__ is None else f"{error}: {error.__cause__}"
        raise DataError(f"load: the dataset '{name}' cannot be had from Hugging Face: {reason}") from error


def _label(where: str, row: int, value: int | str | None, names: Sequence[str] | None) -> str:
    if value is None or value == "" or (isinstance(value, int) and value < 0):
        raise DataError(f"load: row {row} of {where} has no label; choose a dataset whose splits have them")
    return names[value] if names and isinstance(value, int) else str(value)


def _columns(name: str, features: Features) -> tuple[str, str]:
    """(inputs, labels): a column of a known name; labels may also be the only column with class names."""
    column = next((known for known in INPUTS if known in features), None)
    classed = [key for key, feature in features.items() if hasattr(feature, "names")]
    label = "label" if "label" in features else classed[0] if len(classed) == 1 else None
    if column is None or label is None:
        raise DataError(
            f"load: '{name}' needs one of the columns {', '.join(INPUTS)} and 'label' or one column with class names; "
            f"it has {', '.join(features)}"
        )
    return column, label
