import numpy as np
import pytest
from hypothesis import given, settings

from head2toe.solvers import lasso

from .problems import dense, duality_gap, fista, odd, problems, softmax

PLAIN = odd("plain", 30, 40, 3, np.random.default_rng(0))


@settings(max_examples=6, deadline=None)
@given(problems())
def test_an_independent_duality_gap_proves_every_solution(problem):
    path = lasso.path(problem.X, problem.y, n_lams=4, tol=1e-6, sample_weight=problem.weights)
    for i, lam in enumerate(path.lams):
        assert duality_gap(problem, lam, *dense(path.coef(i), problem.X.shape[1]), entrywise=True) <= 2e-6


def test_plain_proximal_gradient_finds_the_same_objective():
    path = lasso.path(PLAIN.X, PLAIN.y, n_lams=4, tol=1e-7)
    assert path.objectives[2] == pytest.approx(fista(PLAIN, path.lams[2], entrywise=True), rel=1e-6)


def test_single_weights_are_zero_within_active_rows():
    _, W, _ = lasso.path(PLAIN.X, PLAIN.y, n_lams=4).coef(3)
    assert (W == 0).any()
    assert W.any(1).all()


def test_a_class_without_a_row_is_never_the_answer():
    # class c is where feature c is low: a row that is high in all of them is far from every class that has rows
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = rng.standard_normal((60, 3)) * 0.1 + 3.0 * (np.arange(3) != y[:, None])
    path = lasso.path(X, y, n_classes=4, lam_ratio=1e-3)
    W, b = dense(path.coef(len(path.lams) - 1), 3)
    assert softmax(np.full((1, 3), 6.0) @ W + b)[0, 3] < 1e-12
