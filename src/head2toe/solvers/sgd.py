"""The published recipe, for comparisons: a linear layer by some hundred steps of Adam (Head2Toe's own code).

Facts of that code: Adam, learning rate with cosine decay to zero, batches of 128 in one fixed order (no shuffling
between epochs), Glorot-uniform start, intercept from zero and not penalised. Nothing here is solved to an optimum.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from head2toe.errors import FeatureError
from head2toe.solvers import work
from head2toe.solvers.matrix import Matrix, columns
from head2toe.solvers.targets import targets


def fit(
    X: Matrix,
    y: Int[np.ndarray, " n"],
    *,
    n_classes: int,
    steps: int = 500,
    lr: float = 0.01,
    batch_size: int = 128,
    penalty: Literal["l1", "l2", "l21"] | None = None,
    lam: float = 0.0,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "F C"], Float[np.ndarray, " C"]]:
    """Weights W (F, C) and intercepts b (C,), both float32, after `steps` batches of Adam.

    The penalty adds lam * sum |W|, lam * sum W^2 / 2 or lam * sum_j ||W_j||_2 to the mean cross-entropy of each batch.
    """
    import torch
    from torch.nn.functional import cross_entropy

    X = columns(X)
    targets(y, X.n, n_classes)  # refuses labels that mean nothing
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(X.n, generator=generator).numpy()
    labels = torch.from_numpy(np.asarray(y, np.int64))
    bound = math.sqrt(6.0 / (X.n_features + n_classes))
    W = torch.empty(X.n_features, n_classes).uniform_(-bound, bound, generator=generator).requires_grad_()
    b = torch.zeros(n_classes, requires_grad=True)
    optimiser = torch.optim.Adam((W, b), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    batches = max(1, math.ceil(X.n / batch_size))
    for step in range(steps):
        first = step % batches * batch_size
        rows = order[first : first + batch_size]
        batch = torch.from_numpy(np.ascontiguousarray(_rows(X.blocks, rows)))
        work.product((len(rows), X.n_features), 2 * n_classes)  # forward, and back to the weights
        loss = cross_entropy(batch @ W + b, labels[rows]) + _penalty(W, penalty, lam)
        if not torch.isfinite(loss):
            raise FeatureError(f"sgd: the loss is {loss.item()} at step {step}; look for NaN features or lower lr")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return W.detach().numpy(), b.detach().numpy()


def _rows(blocks: tuple, rows: np.ndarray) -> np.ndarray:
    """The rows of every block side by side: (m, F) float32."""
    import torch

    return np.hstack(
        [
            block[rows].float().cpu().numpy()
            if isinstance(block, torch.Tensor)
            else np.asarray(block[rows], np.float32)
            for block in blocks
        ]
    )


def _penalty(W, penalty: str | None, lam: float):
    if penalty is None or lam == 0.0:
        return 0.0
    if penalty == "l1":
        return lam * W.abs().sum()
    if penalty == "l2":
        return 0.5 * lam * W.square().sum()
    return lam * W.norm(dim=1).sum()
