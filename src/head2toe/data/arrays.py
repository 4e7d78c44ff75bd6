"""Inputs in memory: pixels, encoded bytes, paths or texts, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from head2toe.data.sources import Files, Memory
from head2toe.data.task import Item, Rows, Source, Task, assemble
from head2toe.errors import DataError

Inputs = np.ndarray | Sequence[np.ndarray] | Sequence[bytes] | Sequence[str] | Sequence[Path]
Labels = np.ndarray | Sequence[int] | Sequence[str]
Labelled = tuple[Inputs, Labels]


def task_from_arrays(
    inputs: Inputs,
    labels: Labels,
    *,
    validation: Labelled | None = None,
    test: Labelled | None = None,
    skip_bad: bool = False,
    name: str = "arrays",
) -> Task:
    """A task from memory; classes are the sorted labels.

    `inputs` are images (n, H, W) or (n, H, W, C) as `images.decode` takes them, or a sequence of arrays, of encoded
    bytes, of `Path`s of image files, or of texts (str).
    """
    given: dict[str, Labelled | None] = {"train": (inputs, labels), "validation": validation, "test": test}
    pairs = {split: _checked(split, pair) for split, pair in given.items() if pair is not None}
    classes = [str(label) for label in np.unique(np.concatenate([values for _, values in pairs.values()]))]
    rows = {split: Rows(source, [str(label) for label in values]) for split, (source, values) in pairs.items()}
    return assemble(name, rows, skip_bad=skip_bad, classes=classes)


def _checked(split: str, pair: Labelled) -> tuple[Source, np.ndarray]:
    inputs, labels = pair[0], np.asarray(pair[1])
    if labels.ndim != 1 or labels.dtype.kind not in "iuUb" or len(labels) != len(inputs):
        raise DataError(
            f"load: {split} needs one int or str label per input, got {len(inputs)} inputs and labels {labels.dtype} "
            f"of shape {labels.shape}"
        )
    if isinstance(inputs, np.ndarray):
        if inputs.ndim not in (3, 4):
            raise DataError(f"load: {split} images should have shape (n, H, W) or (n, H, W, C), got {inputs.shape}")
        return Memory(inputs, split), labels
    paths = tuple(str(item.resolve()) for item in inputs if isinstance(item, Path))
    if paths and len(paths) == len(inputs):
        return Files(".", paths), labels
    return Memory(tuple(_item(split, row, item) for row, item in enumerate(inputs)), split), labels


def _item(split: str, row: int, item: object) -> Item:
    if isinstance(item, bytes | np.ndarray | str):
        return item
    raise DataError(f"load: {split}[{row}] should be an array, bytes, a Path or a str, got {type(item).__name__}")
