"""A matrix of features in tap blocks: what the store gives and the methods take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from head2toe.errors import FeatureError
from head2toe.taps import PooledTap

Scaling = Literal["none", "tap", "kept"]


def scaled(block: np.ndarray, columns: np.ndarray | slice, scaling: Scaling) -> np.ndarray:
    """Some columns of a tap's block (n, length) as the linear layer reads them: (n, k) float32.

    "tap" divides each row by the L2 norm of the whole tap, "kept" by that of the columns taken (the published order:
    scaling after selection), "none" by nothing. A zero row stays zero.
    """
    taken = _floats(block[:, columns])
    if scaling == "none":
        return taken
    everything = isinstance(columns, slice) and columns == slice(None)
    measured = taken if scaling == "kept" or everything else _floats(block)
    norm = np.sqrt(np.einsum("ij,ij->i", measured, measured))[:, None]
    return np.divide(taken, norm, out=np.zeros_like(taken), where=norm > 0)


def _floats(values: np.ndarray) -> np.ndarray:
    """The values in float32; torch converts float16 ten times as fast as numpy."""
    if values.dtype != np.float16:
        return np.asarray(values, np.float32)
    import torch

    return torch.from_numpy(np.require(values, requirements=("C", "W"))).float().numpy()


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of n inputs, one block (n, length) per pooled tap, never concatenated unless asked.

    `ids` are the rows' stable ids; `taps` and `blocks` go together. Feature j of the whole table is column
    j - offsets[l] of block l.
    """

    ids: tuple[str, ...]
    taps: tuple[PooledTap, ...]
    blocks: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        for tap, block in zip(self.taps, self.blocks, strict=True):
            if block.shape != (len(self.ids), tap.length):
                raise FeatureError(
                    f"table: block '{tap.name}' should be {(len(self.ids), tap.length)}, got {block.shape}"
                )

    @property
    def n_rows(self) -> int:
        return len(self.ids)

    @property
    def offsets(self) -> np.ndarray:
        """Where each block starts, and at the end the number of features: (L + 1,) int64."""
        return np.concatenate(([0], np.cumsum([tap.length for tap in self.taps]))).astype(np.int64)

    @property
    def n_features(self) -> int:
        return int(self.offsets[-1])
