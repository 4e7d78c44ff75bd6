import math

import numpy as np
import pytest
import torch

from head2toe.errors import FeatureError
from head2toe.solvers import sgd
from head2toe.solvers.matrix import columns

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 150)
X = np.hstack((2.0 * np.eye(3)[Y], RNG.standard_normal((150, 5)))).astype(np.float32)


def test_it_learns_what_is_easy_the_same_way_twice():
    W, b = sgd.fit([X[:, :4], X[:, 4:].astype(np.float16)], Y, n_classes=3, steps=80, lr=0.1)
    again, _ = sgd.fit([X[:, :4], X[:, 4:].astype(np.float16)], Y, n_classes=3, steps=80, lr=0.1)
    assert ((X @ W + b).argmax(1) == Y).mean() > 0.95
    np.testing.assert_array_equal(W, again)
    assert not np.array_equal(W, sgd.fit(X, Y, n_classes=3, steps=80, lr=0.1, seed=1)[0])


@pytest.mark.parametrize(
    ("penalty", "size"),
    [
        ("l1", lambda W: np.abs(W).sum()),
        ("l2", lambda W: (W**2).sum()),
        ("l21", lambda W: np.linalg.norm(W, axis=1).sum()),
    ],
)
def test_a_penalty_shrinks_what_it_penalises(penalty, size):
    plain, _ = sgd.fit(X, Y, n_classes=3, steps=80)
    small, _ = sgd.fit(X, Y, n_classes=3, steps=80, penalty=penalty, lam=0.1)
    assert size(small) < 0.8 * size(plain)


def test_nan_features_are_refused():
    with pytest.raises(FeatureError, match="became no number"):
        sgd.fit(np.full((6, 2), np.nan, np.float32), np.array([0, 1, 0, 1, 0, 1]), n_classes=2)


def test_a_rate_that_diverges_leaves_the_others_alone():
    first, lost, last = sgd.fit_all(X, Y, [0.1, 1e38, 0.01], [0.0] * 3, n_classes=3, steps=60)
    kept = sgd.fit_all(X, Y, [0.1, 0.01], [0.0] * 2, n_classes=3, steps=60)
    assert lost is None
    for (W, _), (alone, _) in zip((first, last), kept, strict=True):
        np.testing.assert_allclose(W, alone, atol=1e-3)


@pytest.mark.parametrize("penalty", [None, "l1", "l2", "l21"])
def test_settings_side_by_side_end_where_each_ends_alone(penalty):
    lrs, lams = [0.1, 0.01, 0.1], [1e-3, 1e-3, 1e-1]
    together = sgd.fit_all(X, Y, lrs, lams, n_classes=3, steps=60, penalty=penalty)
    for (W, b), lr, lam in zip(together, lrs, lams, strict=True):
        alone = sgd.fit(X, Y, n_classes=3, steps=60, lr=lr, penalty=penalty, lam=lam)
        np.testing.assert_allclose(W, alone[0], atol=1e-3)
        np.testing.assert_allclose(b, alone[1], atol=1e-3)


@pytest.mark.parametrize("penalty", [None, "l1", "l2", "l21"])
def test_every_step_is_that_of_torchs_adam(penalty):
    """The same start, batches, rates and penalty by autograd and torch's optimiser, in float64."""
    steps, lr, lam, size = 25, 0.05, 1e-2, 64
    start, order = sgd._drawn(columns(X), 3, 0)
    W = torch.tensor(start.T.astype(np.float64), requires_grad=True)
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([W, b], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    penalties = {
        None: lambda W: W.new_zeros(()), "l1": lambda W: W.abs().sum(), "l2": lambda W: 0.5 * W.square().sum(),
        "l21": lambda W: W.norm(dim=1).sum(),
    }  # fmt: skip
    rows = [order[at : at + size] for at in range(0, len(X), size)]
    for step in range(steps):
        at = rows[step % len(rows)]
        logits = torch.from_numpy(X[at].astype(np.float64)) @ W + b
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(Y[at])) + lam * penalties[penalty](W)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    mine, intercept = sgd.fit(X, Y, n_classes=3, steps=steps, lr=lr, batch_size=size, penalty=penalty, lam=lam)
    np.testing.assert_allclose(mine, W.detach().numpy(), atol=2e-4)
    np.testing.assert_allclose(intercept, b.detach().numpy(), atol=2e-4)
