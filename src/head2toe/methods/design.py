"""The matrix that a linear layer is fitted on: taps scaled per image, then features standardised over the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from head2toe.head import KeptTap
from head2toe.solvers.matrix import columns
from head2toe.table import FeatureTable, Scaling, scaled
from head2toe.taps import PooledTap

SMALLEST = 1e-4  # deviations below this share of a tap's largest are rounding of the stored float16, not signal


@dataclass(frozen=True, eq=False)
class Design:
    """Training features, standardised: one (n, length) float32 block per pooled tap, zero where a feature is constant.

    `mean` and `inverse_deviation` (F,) float64 take a standardised weight back to the scaled feature. They use every
    training image, held out or not, and no label.
    """

    taps: tuple[PooledTap, ...]
    blocks: tuple[np.ndarray, ...]
    scaling: Scaling
    mean: np.ndarray
    inverse_deviation: np.ndarray

    @property
    def n_features(self) -> int:
        return len(self.mean)

    def of_tap(self, name: str) -> np.ndarray:
        """The features of the tap called `name`: (k,) int64 in the whole."""
        offsets = np.cumsum([0, *(tap.length for tap in self.taps)])
        (at,) = (i for i, tap in enumerate(self.taps) if tap.name == name)
        return np.arange(offsets[at], offsets[at + 1])

    def features(self, index: np.ndarray) -> np.ndarray:
        """The columns `index` (k,) of the whole: (n, k) float32."""
        return columns(self.blocks).take(index, np.float32)

    def kept(self, index: np.ndarray) -> tuple[KeptTap, ...]:
        """The features `index`, in rising order, as columns of their taps; taps that keep nothing are left out."""
        offsets = np.cumsum([0, *(tap.length for tap in self.taps)])
        cuts = np.searchsorted(index, offsets)
        return tuple(
            KeptTap(tap, index[a:b] - offset)
            for tap, offset, a, b in zip(self.taps, offsets[:-1], cuts[:-1], cuts[1:], strict=True)
            if b > a
        )

    def to_scaled(self, index: np.ndarray, W: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (k, C) and intercepts (C,) on standardised features, rewritten for scaled ones, float32."""
        weights = W * self.inverse_deviation[index, None]
        return weights.astype(np.float32), (b - self.mean[index] @ weights).astype(np.float32)


def design_of(table: FeatureTable, scaling: Scaling = "tap") -> Design:
    """Scale and standardise a table's blocks."""
    blocks, means, inverses = [], [], []
    for block in table.blocks:
        values = scaled(block, slice(None), scaling)
        mean = values.mean(axis=0, dtype=np.float64)
        values -= mean.astype(np.float32)
        deviation = np.sqrt(np.einsum("ij,ij->j", values, values, dtype=np.float64) / len(values))
        inverse = np.zeros_like(deviation)
        np.divide(1.0, deviation, out=inverse, where=deviation > SMALLEST * deviation.max(initial=0.0))
        values *= inverse.astype(np.float32)
        blocks.append(values)
        means.append(mean)
        inverses.append(inverse)
    return Design(table.taps, tuple(blocks), scaling, np.concatenate(means), np.concatenate(inverses))
