"""Preprocessed inputs in memory, so that epochs decode nothing again; and their small changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from head2toe.backbones.core import Backbone
from head2toe.data.prepare import prepared
from head2toe.data.task import Split, damage_report, find_damaged
from head2toe.extract.jobs import Inputs, distinct
from head2toe.extract.passes import decoders
from head2toe.methods.training.settings import Augment

LIMIT = 2 << 30  # bytes of preprocessed inputs that are kept; 14,000 pictures of 224 x 224
_CHUNK = 32


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of some splits, one after the other; `kept` has every distinct input preprocessed, or nothing.

    `at` (n,) int64 is where each row stands among the distinct inputs.
    """

    backbone: Backbone
    inputs: Inputs
    at: np.ndarray
    kept: tuple[np.ndarray, ...]

    @property
    def pictures(self) -> bool:
        """Whether these are pictures that can be shifted and mirrored."""
        return _is_picture(self.kept[0] if self.kept else self.backbone.preprocess(self.inputs[0]))

    @contextmanager
    def batches(self, schedule: Sequence[np.ndarray]) -> Iterator[Iterator[list[np.ndarray]]]:
        """The preprocessed rows of each batch, in order; beyond the limit of memory they are decoded ahead."""
        wanted = [self.at[rows] for rows in schedule]
        if self.kept:
            yield ([self.kept[i] for i in batch] for batch in wanted)
            return
        workers = decoders(self.backbone, len(self.inputs))
        with prepared(self.backbone.preprocess, self.inputs, [b.tolist() for b in wanted], workers=workers) as ready:
            yield ready


def read_rows(backbone: Backbone, splits: Sequence[Split], test: Split | None = None, *, limit: int = LIMIT) -> Rows:
    """Check all inputs of `splits` and `test`, and preprocess those of `splits` at once if that fits `limit` bytes.

    Raises DataError that names the unreadable ones.
    """
    inputs = distinct(splits)
    everything = range(len(inputs))
    checked = inputs if test is None else distinct([*splits, test])
    if damaged := find_damaged(checked, range(len(checked)), backbone.check):
        raise damage_report("train", damaged, len(checked))
    rows = Rows(backbone, inputs, np.array([inputs.at[key] for split in splits for key in split.ids]), ())
    if backbone.preprocess(inputs[0]).nbytes * len(inputs) > limit:
        return rows
    chunks = [everything[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK)]
    with prepared(backbone.preprocess, inputs, chunks, workers=decoders(backbone, len(inputs))) as ready:
        return replace(rows, kept=tuple(row for batch in ready for row in batch))


def augmented(rows: list[np.ndarray], augment: Augment, random: np.random.Generator) -> list[np.ndarray]:
    """Each picture (H, W, 3) uint8 shifted, and mirrored where asked for; what is no picture stays as it is."""
    if augment == "none" or not all(map(_is_picture, rows)):
        return rows
    return [_changed(row, augment, random) for row in rows]


def _is_picture(row: np.ndarray) -> bool:
    return row.ndim == 3 and row.shape[2] == 3 and row.dtype == np.uint8


def _changed(row: np.ndarray, augment: Augment, random: np.random.Generator) -> np.ndarray:
    height, width = row.shape[:2]
    most = max(1, min(height, width) // 16)
    top, left = random.integers(0, 2 * most + 1, 2)
    mirror = random.random() < 0.5 and augment == "shift+flip"
    wide = np.pad(row, ((most, most), (most, most), (0, 0)), mode="edge")
    moved = wide[top : top + height, left : left + width]
    return np.ascontiguousarray(moved[:, ::-1] if mirror else moved)
