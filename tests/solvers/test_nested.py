import numpy as np
import pytest

from head2toe.errors import DataError
from head2toe.solvers import group_lasso, nested

from .problems import cross_entropy, dense, odd, softmax

PROBLEM = odd("plain", 40, 30, 3, np.random.default_rng(0))
TAPS = [PROBLEM.X[:, :4], PROBLEM.X[:, 4:10], PROBLEM.X[:, 10:]]
BOUNDS = [(0, 4), (4, 10), (10, 30)]


def test_without_a_tap_penalty_it_is_the_group_lasso():
    path = nested.path(TAPS, PROBLEM.y, tap_share=0.0, n_lams=4, tol=1e-6)
    same = group_lasso.path(TAPS, PROBLEM.y, path.lams, tol=1e-6)
    np.testing.assert_allclose(path.objectives, same.objectives, rtol=2e-6)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_taps_and_features_meet_their_optimality_conditions(share):
    path = nested.path(TAPS, PROBLEM.y, tap_share=share, n_lams=5, tol=1e-8)
    for i, lam in enumerate(path.lams):
        W, b = dense(path.coef(i), 30)
        G = PROBLEM.X.T @ (softmax(PROBLEM.X @ W + b) - np.eye(3)[PROBLEM.y]) / 40
        omega = (1 - share) * np.linalg.norm(W, axis=1).sum()
        for first, last in BOUNDS:
            w, g, root = W[first:last], G[first:last], np.sqrt(last - first)
            omega += share * root * np.linalg.norm(w)
            if not w.any():
                over = np.maximum(np.linalg.norm(g, axis=1) - (1 - share) * lam, 0)
                assert np.linalg.norm(over) <= share * root * lam * 1.01
                continue
            pull = g + lam * share * root * w / np.linalg.norm(w)
            sizes = np.linalg.norm(w, axis=1)
            assert (np.linalg.norm(pull[sizes == 0], axis=1) <= (1 - share) * lam * 1.01 + 1e-12).all()
            unit = w[sizes > 0] / sizes[sizes > 0, None]
            np.testing.assert_allclose(pull[sizes > 0], -(1 - share) * lam * unit, atol=0.02 * lam)
        assert path.objectives[i] == pytest.approx(cross_entropy(PROBLEM.X @ W + b, PROBLEM) + lam * omega, rel=1e-9)


def test_whole_taps_stay_out_at_first():
    path = nested.path(TAPS, PROBLEM.y, tap_share=1.0, n_lams=10)
    used = [np.unique(np.searchsorted([4, 10, 30], path.coef(i)[0], side="right")) for i in range(10)]
    assert len(used[0]) == 0
    assert any(0 < len(taps) < 3 for taps in used)
    assert path.n_active[-1] > 0


def test_wrong_shares_are_refused():
    with pytest.raises(DataError, match="tap_share"):
        nested.path(TAPS, PROBLEM.y, tap_share=1.5)
