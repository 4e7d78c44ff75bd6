"""The published recipe, for comparisons: a linear layer by some hundred steps of Adam (Head2Toe's own code).

Facts of that code: Adam, learning rate with cosine decay to zero, batches of 128 in one fixed order (no shuffling
between epochs), Glorot-uniform start, intercept from zero and not penalised. Nothing here is solved to an optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from head2toe.errors import DataError, FeatureError
from head2toe.solvers import work
from head2toe.solvers.matrix import Matrix, columns
from head2toe.solvers.targets import targets

if TYPE_CHECKING:
    from torch import Tensor

Penalty = Literal["l1", "l2", "l21"]


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
    import torch
    from torch.nn.functional import cross_entropy

    X = columns(X)
    targets(y, X.n, n_classes)  # refuses labels that mean nothing
    if len(lrs) != len(lams) or not lrs:
        raise DataError(f"sgd: as many learning rates as strengths are needed, got {len(lrs)} and {len(lams)}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(X.n, generator=generator).numpy()
    batches = [_batch(X.blocks, y, order[at : at + batch_size]) for at in range(0, X.n, batch_size)]
    bound = math.sqrt(6.0 / (X.n_features + n_classes))
    start = torch.empty(X.n_features, n_classes).uniform_(-bound, bound, generator=generator)
    W = [start.clone().requires_grad_() for _ in lrs]
    b = [torch.zeros(n_classes, requires_grad=True) for _ in lrs]
    groups = [{"params": list(layer), "lr": lr} for layer, lr in zip(zip(W, b, strict=True), lrs, strict=True)]
    optimiser = torch.optim.Adam(groups, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    finite = torch.ones(len(lrs), dtype=torch.bool)
    for step in range(steps):
        batch, labels = batches[step % len(batches)]
        work.product(batch.shape, 2 * len(lrs) * n_classes)  # forward, and back to the weights
        logits = (batch @ torch.cat(W, 1) + torch.cat(b)).view(-1, n_classes)
        losses = cross_entropy(logits, labels.repeat_interleave(len(lrs)), reduction="none").view(-1, len(lrs)).mean(0)
        losses = losses + torch.stack([_penalty(one, penalty, lam) for one, lam in zip(W, lams, strict=True)])
        finite &= torch.isfinite(losses)
        if not finite.any():
            break
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
        schedule.step()
    return [
        (w.detach().numpy(), c.detach().numpy()) if kept else None
        for w, c, kept in zip(W, b, finite.tolist(), strict=True)
    ]


def _batch(blocks: tuple, y: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """The rows of every block side by side, (m, F) float32, and their labels (m,)."""
    import torch

    parts = [
        block[rows].float().cpu().numpy() if isinstance(block, torch.Tensor) else np.asarray(block[rows], np.float32)
        for block in blocks
    ]
    return torch.from_numpy(np.hstack(parts)), torch.from_numpy(np.asarray(y, np.int64)[rows])


def _penalty(W: Tensor, penalty: Penalty | None, lam: float) -> Tensor:
    if penalty is None or lam == 0.0:
        return W.new_zeros(())
    if penalty == "l1":
        return lam * W.abs().sum()
    if penalty == "l2":
        return 0.5 * lam * W.square().sum()
    return lam * W.norm(dim=1).sum()
