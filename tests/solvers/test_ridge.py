import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from head2toe.errors import DataError, FeatureError, NotConvergedError
from head2toe.solvers import ridge

from .problems import odd, softmax

LAMS = [1e-1, 1e-3, 1e-2]
WIDE = odd("plain", 40, 90, 4, np.random.default_rng(0))
TALL = odd("plain", 90, 12, 3, np.random.default_rng(1))


@pytest.mark.parametrize("problem", [WIDE, TALL])
@pytest.mark.parametrize("weighted", [False, True])
def test_probabilities_are_those_of_scikit_learn(problem, weighted):
    n = len(problem.y)
    weights = np.random.default_rng(2).integers(1, 4, n).astype(float) if weighted else np.ones(n)
    path = ridge.path(ridge.row_space(problem.X), problem.y, LAMS, sample_weight=weights)
    for i, lam in enumerate(LAMS):
        other = LogisticRegression(C=1 / (lam * weights.sum()), tol=1e-9, max_iter=5000)
        other.fit(problem.X, problem.y, sample_weight=weights)
        P = softmax(problem.X @ ridge.weights(problem.X, path.dual[i]) + path.intercepts[i])
        np.testing.assert_allclose(P, other.predict_proba(problem.X), atol=1e-4)


def test_new_rows_need_only_their_inner_products():
    train, new = WIDE.X[:30], WIDE.X[30:]
    path = ridge.path(ridge.gram(train), WIDE.y[:30], LAMS, n_classes=4)
    logits = ridge.gram(new, train) @ path.dual[1] + path.intercepts[1]
    np.testing.assert_allclose(logits, new @ ridge.weights(train, path.dual[1]) + path.intercepts[1], atol=1e-5)


def test_the_gradient_is_as_small_as_the_residual_says():
    path = ridge.path(ridge.row_space(WIDE.X), WIDE.y, LAMS)
    for i, lam in enumerate(LAMS):
        W = WIDE.X.T @ path.dual[i]
        R = (softmax(WIDE.X @ W + path.intercepts[i]) - np.eye(4)[WIDE.y]) / 40
        assert np.linalg.norm(WIDE.X.T @ R + lam * W) <= 1e-4 * lam * np.linalg.norm(W)
        assert np.abs(R.sum(0)).max() <= 1e-6
        assert path.residuals[i] <= 1e-6


def test_a_strength_begun_ahead_ends_where_it_ends_alone():
    K = ridge.gram(WIDE.X)
    lams = np.geomspace(1e-4, 1.0, 5)
    path = ridge.path(K, WIDE.y, lams)
    for i, lam in enumerate(lams):
        alone = ridge.path(K, WIDE.y, [lam])
        np.testing.assert_allclose(path.dual[i], alone.dual[0], rtol=0, atol=1e-5 * np.abs(alone.dual).max())


def test_every_strength_has_its_own_tolerance():
    tols = np.array([1e-2, 1e-8, 1e-4])
    path = ridge.path(ridge.gram(WIDE.X), WIDE.y, LAMS, tol=tols)
    assert (path.residuals <= tols).all()
    assert path.residuals[0] > 1e-8  # what is not asked for is not computed


def test_float32_coordinates_give_the_same_layer():
    wide, narrow = (
        ridge.path(ridge.row_space(TALL.X, dtype), TALL.y, LAMS, tol=1e-3) for dtype in (np.float64, np.float32)
    )
    np.testing.assert_allclose(narrow.dual, wide.dual, rtol=0, atol=3e-3 * np.abs(wide.dual).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_that_never_vary_leave_the_classes_shares(dtype):
    y = np.repeat([0, 1, 2], [61, 23, 7])
    path = ridge.path(np.zeros((91, 91), dtype), y, [1e-2, 1e-5], tol=1e-3)
    assert path.residuals.tolist() == [0.0, 0.0]
    np.testing.assert_allclose(softmax(path.intercepts), np.tile([61 / 91, 23 / 91, 7 / 91], (2, 1)), rtol=1e-5)


def test_folds_together_are_folds_alone():
    folds = np.random.default_rng(3).integers(0, 3, 40)
    logits = ridge.cross_validate(ridge.gram(WIDE.X), WIDE.y, LAMS, folds, tol=1e-5)
    for fold in range(3):
        keep = folds != fold
        path = ridge.path(ridge.gram(WIDE.X[keep]), WIDE.y[keep], LAMS, n_classes=4)
        for i in range(len(LAMS)):
            alone = ridge.gram(WIDE.X[~keep], WIDE.X[keep]) @ path.dual[i] + path.intercepts[i]
            np.testing.assert_allclose(softmax(logits[i, ~keep]), softmax(alone), atol=1e-4)


def test_a_class_that_a_fold_lacks_is_never_predicted():
    y = np.array([0, 0, 1, 1, 0, 1, 2, 2])
    folds = np.array([0, 1, 0, 1, 0, 1, 2, 2])
    logits = ridge.cross_validate(np.eye(8), y, LAMS, folds, n_classes=3)
    assert np.isfinite(logits).all()
    assert (logits[:, 6:].argmax(2) != 2).all()
    path = ridge.path(np.eye(8), y, LAMS, n_classes=5)
    assert (path.intercepts[:, 3:] < path.intercepts[:, :3].min(1, keepdims=True) - 20).all()


def test_blocks_of_any_dtype_give_the_inner_products_of_the_whole():
    half, brain = WIDE.X[:, :50].astype(np.float16), torch.from_numpy(WIDE.X[:, 50:]).bfloat16()
    whole = np.hstack((half.astype(float), brain.double().numpy()))
    np.testing.assert_allclose(ridge.gram([half, brain]), whole @ whole.T, rtol=1e-5, atol=1e-4)


def solved(X: np.ndarray, y: np.ndarray, lam: float, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """W (F, C) and its probabilities by Newton's method on centred float64 features."""
    X = X - X.mean(0)
    n, f = X.shape
    ones = np.hstack([X, np.ones((n, 1))])
    shrink = np.diag(np.tile(np.r_[np.full(f, lam), 0.0], n_classes))
    U, Y = np.zeros((n_classes, f + 1)), np.eye(n_classes)[y]
    for _ in range(60):
        P = softmax(ones @ U.T)
        g = ((P - Y).T @ ones / n + np.r_[np.full(f, lam), 0.0] * U).ravel()
        H = np.block([[ones.T @ ((P[:, [a]] * ((a == b) - P[:, [b]]) / n) * ones) for b in range(n_classes)]
                      for a in range(n_classes)]) + shrink  # fmt: skip
        U = U - np.linalg.lstsq(H, g, rcond=1e-14)[0].reshape(U.shape)
    return U[:, :-1].T, softmax(ones @ U.T)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_features_far_from_zero_have_the_weights_of_centred_ones(offset):
    rng = np.random.default_rng(0)
    y = np.arange(40) % 3
    X = rng.standard_normal((40, 60))
    X[:, 0] += 2 * (y == 1)
    W, P = solved(X, y, 1e-2, 3)
    path = ridge.path(ridge.gram(X + offset), y, [1e-2], tol=1e-3)
    found = (X + offset).T @ path.dual[0]
    assert np.linalg.norm(found - W) <= 2e-3 * np.linalg.norm(W)
    np.testing.assert_allclose(softmax((X + offset) @ found + path.intercepts[0]), P, atol=2e-3)


@pytest.mark.parametrize("wide", [1.0, 1e4])
def test_one_wide_feature_hides_no_other(wide):
    rng = np.random.default_rng(0)
    y = np.arange(40) % 3
    X = rng.standard_normal((40, 60)) * np.r_[np.ones(59), wide]
    X[:, 0] += 2 * (y == 1)
    W, _ = solved(X, y, 0.1, 3)
    found = X.T @ ridge.path(ridge.row_space(X), y, [0.1]).dual[0]
    assert np.linalg.norm(found - W) <= 1e-4 * np.linalg.norm(W)


@pytest.mark.parametrize("seed", range(6))
def test_float32_products_do_not_lead_for_ever(seed):
    # few features at a weak strength: float32 rounds the gradient more coarsely than the error that is asked for
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, 300)
    X = np.maximum(rng.standard_normal((300, 2)), 0)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    path = ridge.path(ridge.gram(X), y, [1e-5], tol=1e-4)
    assert path.residuals[0] <= 1e-4


def test_wrong_input_is_refused():
    with pytest.raises(DataError, match="strengths should be positive"):
        ridge.path(np.eye(4), np.array([0, 1, 0, 1]), [0.0])
    with pytest.raises(DataError, match="only class 1"):
        ridge.path(np.eye(4), np.ones(4, int), [1.0])
    with pytest.raises(DataError, match="holds every row out"):
        ridge.cross_validate(np.eye(4), np.array([0, 1, 0, 1]), [1.0], np.zeros(4, int))
    with pytest.raises(FeatureError, match=r"feature 2 .* is nan in row 1"):
        ridge.gram(np.where(np.arange(12).reshape(3, 4) == 6, np.nan, 1.0))
    with pytest.raises(FeatureError, match="same features"):
        ridge.gram(np.eye(3), np.ones((3, 4)))


def test_too_few_steps_are_an_error():
    with pytest.raises(NotConvergedError, match=r"strength 0\.001"):
        ridge.path(ridge.row_space(WIDE.X), WIDE.y, [1e-3], max_iter=2)
