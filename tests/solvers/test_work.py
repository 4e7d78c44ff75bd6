"""Operations that solvers report, against counts by hand and against torch's counter on the same products."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from head2toe.solvers import group_lasso, lasso, nested, ridge, sgd
from head2toe.solvers.matrix import columns
from head2toe.solvers.work import counted, product

RNG = np.random.default_rng(0)
N, F, C = 40, 300, 3
X = RNG.standard_normal((N, F)).astype(np.float32)
Y = np.arange(N) % C


def test_nothing_is_counted_outside_and_contexts_nest():
    product((9, 9), 9)
    with counted() as outer:
        product((2, 3), 4)
        with counted() as inner:
            product((1, 1), 1)
        product((1, 5), 1)
    product((9, 9), 9)
    assert (inner.flops, outer.flops) == (2, 48 + 2 + 10)


def test_every_thread_is_counted():
    with counted() as work, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: product((1, 1), 1), range(1000)))
    assert work.flops == 2000


def test_a_gram_matrix_in_blocks_costs_what_it_costs_whole():
    with counted() as whole:
        ridge.gram(X)
    with counted() as parts:
        ridge.gram([X[:, :100], X[:, 100:].astype(np.float16)])
    with FlopCounterMode(display=False) as torch_counts:
        torch.from_numpy(X) @ torch.from_numpy(X).T
    assert whole.flops == parts.flops == torch_counts.get_total_flops() == 2 * N * F * N


def test_gradients_and_weights_are_one_product_each():
    with counted() as gradient:
        list(columns([X[:, :7], X[:, 7:]]).products(RNG.standard_normal((N, C))))
    with counted() as weights:
        ridge.weights(X, RNG.standard_normal((N, C)))
    assert gradient.flops == weights.flops == 2 * F * N * C


def test_a_ridge_path_is_counted_per_step():
    space = ridge.row_space(X)
    rank = space.coordinates.shape[1] + 1
    with counted() as work:
        fit = ridge.path(space, Y, [1e-2])
    # a start (logits and gradient), then logits of the direction and a gradient in each step, then both in float64
    assert work.flops == 2 * N * rank * C * 2 * (fit.n_iter + 2)


def test_adam_is_a_forward_and_a_backward_product_a_step():
    with counted() as work:
        sgd.fit(X, Y, n_classes=C, steps=5, batch_size=10)
    batch, W = torch.from_numpy(X[:10]), torch.zeros(F, C, requires_grad=True)
    with FlopCounterMode(display=False) as torch_counts:
        (batch @ W).sum().backward()
    assert work.flops == 5 * torch_counts.get_total_flops()


def test_sparse_paths_cost_at_least_their_passes_over_all_features():
    for solve in (group_lasso.path, lasso.path, nested.path):
        with counted() as work:
            path = solve(X, Y, n_lams=3)
        assert work.flops >= 2 * N * F * C * (1 + len(path.lams))
