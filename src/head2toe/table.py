"""A matrix of features in tap blocks: what the store gives and the methods take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from head2toe.errors import FeatureError
from head2toe.taps import PooledTap

Scaling = Literal["none", "tap", "kept"]


def scaled(block: np.ndarray, columns: np.ndarray | slice, scaling: Scaling, n_means: int | None = None) -> np.ndarray:
    """Some columns of a tap's block (n, length) as the linear layer reads them: (n, k) float32.

    "tap" divides each row by the L2 norm of the whole tap, "kept" by that of the columns taken (the published order:
    scaling after selection), "none" by nothing. A zero row stays zero. Deviations, which come after the first `n_means`
    columns, have a norm of their own. `columns` are rising indices, or slice(None).
    """
    taken = _floats(block[:, columns])
    if scaling == "none":
        return taken.copy() if np.may_share_memory(taken, block) else taken
    cut = block.shape[1] if n_means is None else n_means
    at = int(np.searchsorted(columns, cut)) if isinstance(columns, np.ndarray) else cut
    measured, edge = (taken, at) if scaling == "kept" or not isinstance(columns, np.ndarray) else (_floats(block), cut)
    out = np.zeros_like(taken)
    for mine, of in ((slice(at), slice(edge)), (slice(at, None), slice(edge, None))):
        norm = np.sqrt(np.einsum("ij,ij->i", measured[:, of], measured[:, of]))[:, None]
        np.divide(taken[:, mine], norm, out=out[:, mine], where=norm > 0)
    return out


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
