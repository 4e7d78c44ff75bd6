"""The published recipe, for comparisons: a linear layer by some hundred steps of Adam (Head2Toe's own code).

Facts of that code: Adam, learning rate with cosine decay to zero, batches of 128 in one fixed order (no shuffling
between epochs), Glorot-uniform start, intercept from zero and not penalised. Nothing here is solved to an optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from head2toe.errors import DataError, FeatureError
from head2toe.solvers import work
from head2toe.solvers.kernels import ENTRY, GROUP, SQUARE, adam, mean_cross_entropies
from head2toe.solvers.matrix import Columns, Matrix, columns
from head2toe.solvers.targets import targets

Penalty = Literal["l1", "l2", "l21"]
KINDS: dict[Penalty | None, int] = {"l1": ENTRY, "l2": SQUARE, "l21": GROUP, None: SQUARE}


def fit(
    X: Matrix,
    y: Int[np.ndarray, " n"],
    *,
    n_classes: int,
    steps: int = 500,
    lr: float = 0.01,
    batch_size: int = 128,
    penalty: Penalty | None = None,
    lam: float = 0.0,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "F C"], Float[np.ndarray, " C"]]:
    """Weights W (F, C) and intercepts b (C,), both float32, after `steps` batches of Adam.

    The penalty adds lam * sum |W|, lam * sum W^2 / 2 or lam * sum_j ||W_j||_2 to the mean cross-entropy of each batch.
    Raises FeatureError where the loss becomes no number.
    """
    settings = {"n_classes": n_classes, "steps": steps, "batch_size": batch_size, "seed": seed}
    (layer,) = fit_all(X, y, [lr], [lam], penalty=penalty, **settings)
    if layer is None:
        raise FeatureError(f"sgd: the loss became no number at lr {lr}; look for NaN features or lower lr")
    return layer


def fit_all(
    X: Matrix,
    y: Int[np.ndarray, " n"],
    lrs: Sequence[float],
    lams: Sequence[float],
    *,
    n_classes: int,
    steps: int = 500,
    batch_size: int = 128,
    penalty: Penalty | None = None,
    seed: int = 0,
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """One `fit` for each pair of learning rate and strength, side by side: every batch is read once for all.

    None stands for a pair whose loss became no number; it leaves the others alone. The batches are held in float32,
    which is a copy of X.
    """
    X = columns(X)
    targets(y, X.n, n_classes)  # refuses labels that mean nothing
    if len(lrs) != len(lams) or not lrs:
        raise DataError(f"sgd: as many learning rates as strengths are needed, got {len(lrs)} and {len(lams)}")
    start, order = _drawn(X, n_classes, seed)
    batches = [_batch(X.blocks, y, order[at : at + batch_size]) for at in range(0, X.n, batch_size)]
    kind, strengths = KINDS[penalty], np.array(lams if penalty else [0.0] * len(lams))
    W = np.tile(start, (len(lrs), 1, 1))  # classes first: thin products are twice as fast, and loops run along features
    b = np.zeros((len(lrs), n_classes, 1), np.float32)
    G, (first, second, first_b, second_b) = np.empty_like(W), [np.zeros_like(one) for one in (W, W, b, b)]
    losses, finite = np.zeros(len(lrs)), np.ones(len(lrs), dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):  # what diverges is told by its loss
        for step in range(steps):
            batch, labels = batches[step % len(batches)]
            work.product(batch.shape, 2 * len(lrs) * n_classes)  # forward, and back to the weights
            Z = (W.reshape(-1, X.n_features) @ batch.T).reshape(len(lrs), n_classes, len(labels)) + b
            mean_cross_entropies(Z, labels, losses)
            finite &= np.isfinite(losses)
            if not finite.any():
                break
            np.matmul(Z.reshape(-1, len(labels)), batch, out=G.reshape(-1, X.n_features))
            rates = 0.5 * (1 + math.cos(math.pi * step / steps)) * np.array(lrs)
            adam(W, first, second, G, rates, strengths, kind, step + 1)
            adam(b, first_b, second_b, Z.sum(2, keepdims=True), rates, np.zeros(len(lrs)), SQUARE, step + 1)
    finite &= np.isfinite(W).all(axis=(1, 2))
    return [
        (np.ascontiguousarray(w.T), c[:, 0]) if kept else None for w, c, kept in zip(W, b, finite.tolist(), strict=True)
    ]


def _drawn(X: Columns, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Glorot-uniform weights (C, F) float32, and the order (n,) of the rows."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(X.n, generator=generator).numpy()
    bound = math.sqrt(6.0 / (X.n_features + n_classes))
    start = torch.empty(X.n_features, n_classes).uniform_(-bound, bound, generator=generator)
    return start.numpy().T, order


def _batch(blocks: tuple, y: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of every block side by side, (m, F) float32, and their labels (m,)."""
    import torch

    parts = [
        block[rows].float().cpu().numpy() if isinstance(block, torch.Tensor) else np.asarray(block[rows], np.float32)
        for block in blocks
    ]
    return np.hstack(parts), np.asarray(y, np.int64)[rows]
