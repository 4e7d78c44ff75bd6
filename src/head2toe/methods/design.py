"""The matrix that a linear layer is fitted on: taps scaled per image, then features standardised over the images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from head2toe.methods.final import Layer
from head2toe.solvers import ridge
from head2toe.solvers.matrix import Matrix, columns
from head2toe.table import FeatureTable, Scaling, scaled
from head2toe.taps import PooledTap

SMALLEST = 1e-4  # deviations below this share of a tap's largest are taken for rounding of stored and scaled numbers


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

    @property
    def offsets(self) -> np.ndarray:
        """Where each tap's features start, and at the end how many there are: (L + 1,) int64."""
        return np.cumsum([0, *(tap.length for tap in self.taps)])

    def of_tap(self, name: str) -> np.ndarray:
        """The features of the tap called `name`: (k,) int64 in the whole."""
        offsets = self.offsets
        (at,) = (i for i, tap in enumerate(self.taps) if tap.name == name)
        return np.arange(offsets[at], offsets[at + 1])

    def means(self, name: str | None = None) -> np.ndarray:
        """The features that are means, of one tap or of all: (k,) int64 in the whole."""
        starts = zip(self.taps, self.offsets[:-1], strict=True)
        return np.concatenate([np.arange(a, a + tap.n_means) for tap, a in starts if name in (None, tap.name)])

    def features(self, index: np.ndarray) -> np.ndarray:
        """The columns `index` (k,) of the whole: (n, k) float32."""
        return columns(self.blocks).take(index, np.float32)

    def like(self, table: FeatureTable) -> tuple[np.ndarray, ...]:
        """Other rows' blocks of some of these taps, scaled and standardised as these are: (m, length) float32 each."""
        blocks = []
        for tap, block in zip(table.taps, table.blocks, strict=True):
            at = self.of_tap(tap.name)
            values = scaled(block, slice(None), _before(self.scaling), tap.n_means) - self.mean[at].astype(np.float32)
            blocks.append(values * self.inverse_deviation[at].astype(np.float32))
        return tuple(blocks)

    def scale(self, index: np.ndarray) -> Scale:
        """How the features `index` were standardised."""
        return Scale(self.mean[index], self.inverse_deviation[index])

    def inputs(self, index: np.ndarray) -> Inputs:
        """What a layer on the features `index`, rising, reads; scaling="kept" scales them now that they are chosen."""
        features, scale = self.features(index), self.scale(index)
        if self.scaling != "kept":
            return Inputs(features, scale)
        known = scale.inverse_deviation > 0
        deviation = np.divide(1.0, scale.inverse_deviation, out=np.zeros(len(index)), where=known)
        raw = features * deviation.astype(np.float32) + scale.mean.astype(np.float32)
        parts = [part for tap in self.taps for part in (tap.n_means, tap.length - tap.n_means)]
        cuts = np.unique(np.searchsorted(index, np.cumsum([0, *parts])))
        return _standardised(np.hstack([scaled(raw[:, a:b], slice(None), "kept") for a, b in pairwise(cuts)]))

    def whole(self) -> tuple[Matrix, Scale]:
        """All features (n, F) as a layer on all of them reads them."""
        if self.scaling != "kept":
            return self.blocks, Scale(self.mean, self.inverse_deviation)
        inputs = self.inputs(np.arange(self.n_features))
        return inputs.features, inputs.scale

    def gram(self) -> np.ndarray:
        """Inner products (n, n) of all rows in what a layer on all features reads."""
        return ridge.gram(self.whole()[0])


@dataclass(frozen=True, eq=False)
class Scale:
    """How k features were standardised: `mean` and `inverse_deviation` (k,) float64, 0 for a constant feature."""

    mean: np.ndarray
    inverse_deviation: np.ndarray

    def undo(self, layer: Layer) -> Layer:
        """A layer on standardised features, rewritten for scaled ones, float32."""
        W = layer.W * self.inverse_deviation[:, None]
        return Layer(W.astype(np.float32), (layer.b - self.mean @ W).astype(np.float32))


@dataclass(frozen=True, eq=False)
class Inputs:
    """Standardised features (n, k) float32 and how they came to be."""

    features: np.ndarray
    scale: Scale


def design_of(table: FeatureTable, scaling: Scaling = "tap") -> Design:
    """Scale and standardise a table's blocks; with scaling="kept" they are scaled when features are chosen."""
    parts = [
        _standardised(scaled(block, slice(None), _before(scaling), tap.n_means))
        for tap, block in zip(table.taps, table.blocks, strict=True)
    ]
    return Design(
        table.taps,
        tuple(part.features for part in parts),
        scaling,
        np.concatenate([part.scale.mean for part in parts]),
        np.concatenate([part.scale.inverse_deviation for part in parts]),
    )


def _before(scaling: Scaling) -> Scaling:
    """What a tap goes through before features are chosen."""
    return "none" if scaling == "kept" else scaling


def _standardised(values: np.ndarray) -> Inputs:
    """Zero mean and unit deviation over the rows, in place; `values` is (n, k) float32."""
    mean = values.mean(axis=0, dtype=np.float64)
    values -= mean.astype(np.float32)
    deviation = np.sqrt(np.einsum("ij,ij->j", values, values, dtype=np.float64) / len(values))
    inverse = np.zeros_like(deviation)
    np.divide(1.0, deviation, out=inverse, where=deviation > SMALLEST * deviation.max(initial=0.0))
    values *= inverse.astype(np.float32)
    return Inputs(values, Scale(mean, inverse))
