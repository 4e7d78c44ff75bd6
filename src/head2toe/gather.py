"""Kept features straight from inputs, without a store: only the taps asked for, no deeper than the deepest of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from head2toe.errors import FeatureError
from head2toe.table import Scaling, scaled
from head2toe.taps import PooledTap

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from head2toe.backbones.core import Backbone, Batch
    from head2toe.taps import Tap

Encoded = bytes | np.ndarray | str
Wanted = Sequence[tuple[PooledTap, np.ndarray]]


def gather(
    backbone: Backbone,
    inputs: Sequence[Encoded | Path],
    wanted: Wanted,
    scaling: Scaling,
    dtype: str,
    batch_size: int = 32,
) -> list[np.ndarray]:
    """The wanted columns (k_l,) of each pooled tap for n inputs, scaled: one (n, k_l) float32 array an entry.

    Files are read batch by batch. Numbers are rounded to `dtype`, so that they equal those of a store of that type.
    """
    parts = []
    for start in range(0, len(inputs), batch_size):
        asked = inputs[start : start + batch_size]
        batch = backbone.collate([backbone.preprocess(encoded(one, backbone)) for one in asked])
        names = [
            f"'{one}'" if isinstance(one, (str, Path)) else f"input {i} (counted from 0)"
            for i, one in enumerate(asked, start)
        ]
        parts.append(forward(backbone, batch, wanted, scaling, dtype, names))
    return [np.concatenate(blocks) for blocks in zip(*parts, strict=True)]


def encoded(one: Encoded | Path, backbone: Backbone) -> Encoded:
    """A path becomes the file's bytes; a str is a path to a network that sees and a text to one that reads."""
    from head2toe.backbones.sequences import Tokens

    if isinstance(one, str) and not isinstance(backbone.preprocess, Tokens):
        one = Path(one)
    return one.read_bytes() if isinstance(one, Path) else one


def forward(
    backbone: Backbone, batch: tuple[Batch, ...], wanted: Wanted, scaling: Scaling, dtype: str, names: Sequence[str]
) -> list[np.ndarray]:
    """One pass of the network over a collated batch; several heads share it by asking for all their columns.

    FeatureError where a number is not finite in `dtype`, with the input's name: no head was fitted on such.
    """
    import torch

    rounding: torch.dtype = getattr(torch, dtype)
    blocks = pooled(backbone, batch, [tap for tap, _ in wanted])
    numbers = {tap: block.to(rounding).float().cpu().numpy() for tap, block in blocks.items()}
    for tap, block in numbers.items():
        if not np.isfinite(block).all():
            row = int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise FeatureError(f"predict: tap '{tap.name}' is no finite {dtype} number for {names[row]}; look at it")
    return [scaled(numbers[tap], columns, scaling, tap.n_means) for tap, columns in wanted]


def pooled(
    backbone: Backbone, batch: tuple[Batch, ...], wanted: Sequence[PooledTap], *, gradients: bool = False
) -> dict[PooledTap, Tensor]:
    """One pass of the network over a collated batch: every wanted block (n, length) float32, on its device."""
    import torch

    pools: dict[str, set[PooledTap]] = {}
    for one in wanted:
        pools.setdefault(one.name, set()).add(one)

    def reduce(tap: Tap, output: Tensor, mask: Tensor | None) -> dict[PooledTap, Tensor]:
        if (
            gradients and output.dtype == torch.float32
        ):  # what pooling keeps for its gradient, the network may overwrite
            output = output.clone()
        return {one: one.pool(output, tap, mask) for one in pools[tap.name]}

    found = backbone.forward(batch, list(pools), reduce, gradients=gradients)
    return {one: block for blocks in found.values() for one, block in blocks.items()}
