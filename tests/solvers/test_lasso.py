import numpy as np
import pytest
from hypothesis import given, settings

from head2toe.solvers import lasso

from .problems import dense, duality_gap, fista, odd, problems

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
