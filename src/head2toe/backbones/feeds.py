"""How preprocessed rows become batches: pixels, and arrays that are ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from head2toe.backbones.core import Batch
from head2toe.errors import BackboneError
from head2toe.images import ImagePreprocess


@dataclass(frozen=True)
class PixelFeed:
    """uint8 pixels (H, W, 3) to a normalised float32 batch (n, 3, H, W), channels last in memory."""

    preprocess: ImagePreprocess

    def collate(self, rows: Sequence[np.ndarray], device: str) -> Batch:
        expected = (*self.preprocess.size, 3)
        for row in rows:
            if row.shape != expected or row.dtype != np.uint8:
                raise BackboneError(f"collate: pixels should be {expected} uint8, got {row.shape} {row.dtype}")
        pixels = torch.from_numpy(np.stack(rows)).to(device).permute(0, 3, 1, 2).float()
        mean = torch.tensor(self.preprocess.mean, device=device).view(1, -1, 1, 1) * 255.0
        std = torch.tensor(self.preprocess.std, device=device).view(1, -1, 1, 1) * 255.0
        return Batch((pixels.sub_(mean).div_(std),))

    def example(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (*self.preprocess.size, 3), np.uint8)


@dataclass(frozen=True, eq=False)
class ArrayFeed:
    """Arrays of one shape, stacked as they are; `row` is an example."""

    row: np.ndarray

    def collate(self, rows: Sequence[np.ndarray], device: str) -> Batch:
        for row in rows:
            if row.shape != self.row.shape:
                raise BackboneError(f"collate: arrays should be {self.row.shape}, got {row.shape}")
        return Batch((torch.from_numpy(np.stack(rows)).to(device),))

    def example(self) -> np.ndarray:
        return self.row
