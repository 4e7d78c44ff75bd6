import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from scipy import sparse

from head2toe.errors import DataError, FeatureError, NotConvergedError
from head2toe.solvers import group_lasso, ridge

from .problems import ODDITIES, cross_entropy, dense, duality_gap, fista, norms, odd, problems, softmax

RNG = np.random.default_rng
PLAIN = odd("plain", 40, 60, 4, RNG(0))


def solve(problem, **settings):
    return group_lasso.path(problem.X, problem.y, n_lams=6, sample_weight=problem.weights, **settings)


@settings(max_examples=12, deadline=None)
@given(problems())
def test_an_independent_duality_gap_proves_every_solution(problem):
    path = solve(problem, tol=1e-6)
    assert (path.residuals <= 1e-6).all()
    for i, lam in enumerate(path.lams):
        W, b = dense(path.coef(i), problem.X.shape[1])
        assert duality_gap(problem, lam, W, b) <= 2e-6
        value = cross_entropy(problem.X @ W + b, problem) + lam * norms(W)
        assert path.objectives[i] == pytest.approx(value, rel=1e-9)
        assert path.n_active[i] == W.any(1).sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weights", [None, np.array([1.8342356, 1.25260797, 1.48604347, 1.13288748])])
def test_where_every_feature_is_constant_none_is_active(dtype, weights):
    path = group_lasso.path(np.full((4, 2), 3.0, dtype), np.array([0, 1, 0, 1]), n_lams=6, sample_weight=weights)
    assert len(path.lams) == 6
    assert (path.residuals <= 1e-4).all()
    assert (path.n_active == 0).all()


@pytest.mark.parametrize("kind", ODDITIES)
def test_float32_reaches_the_default_tolerance(kind):
    problem = odd(kind, 30, 50, 3, RNG(1))
    path = group_lasso.path(problem.X.astype(np.float32), problem.y, n_lams=6)
    assert (path.residuals <= 1e-4).all()
    for i, lam in enumerate(path.lams):
        assert duality_gap(problem, lam, *dense(path.coef(i), 50)) <= 1.1e-4


def test_plain_proximal_gradient_finds_the_same_objective():
    lam = 0.3 * group_lasso.lam_max(PLAIN.X, PLAIN.y)
    fitted = group_lasso.fit(PLAIN.X, PLAIN.y, lam, tol=1e-7)
    assert fitted.objectives[0] == pytest.approx(fista(PLAIN, lam), rel=1e-6)


def test_weights_leave_zero_exactly_at_lam_max():
    top = group_lasso.lam_max(PLAIN.X, PLAIN.y)
    path = group_lasso.path(PLAIN.X, PLAIN.y, [top * 1.0001, top * 0.99])
    assert path.n_active.tolist() == [0, 1]


def test_order_of_features_and_classes_does_not_matter():
    rng = RNG(2)
    features, classes = rng.permutation(60), rng.permutation(4)
    path = solve(PLAIN, tol=1e-7)
    moved = group_lasso.path(PLAIN.X[:, features], classes[PLAIN.y], path.lams, tol=1e-7)
    W, _ = dense(path.coef(5), 60)
    moved_W, _ = dense(moved.coef(5), 60)
    np.testing.assert_allclose(moved_W[:, classes], W[features], atol=2e-3)
    np.testing.assert_allclose(moved.objectives, path.objectives, rtol=1e-6)


def test_a_duplicate_changes_no_objective():
    twice = group_lasso.path(np.hstack((PLAIN.X, PLAIN.X)), PLAIN.y, n_lams=6, tol=1e-7)
    np.testing.assert_allclose(twice.objectives, solve(PLAIN, tol=1e-7).objectives, rtol=1e-6)


def test_constant_columns_stay_out():
    X = np.hstack((PLAIN.X, np.full((40, 1), 7.0), np.zeros((40, 1))))
    active, _, _ = group_lasso.path(X, PLAIN.y, n_lams=6).coef(5)
    assert not set(active) & {60, 61}


def test_integer_weights_are_repeated_rows():
    counts = RNG(3).integers(0, 3, 40)
    weighted = group_lasso.path(PLAIN.X, PLAIN.y, n_lams=6, tol=1e-7, sample_weight=counts.astype(float))
    repeated = group_lasso.path(np.repeat(PLAIN.X, counts, 0), np.repeat(PLAIN.y, counts), weighted.lams, tol=1e-7)
    np.testing.assert_allclose(weighted.objectives, repeated.objectives, rtol=1e-6)


def test_blocks_of_any_dtype_are_one_matrix():
    half = PLAIN.X.astype(np.float16)
    brain = torch.from_numpy(PLAIN.X[:, 40:]).bfloat16()
    blocks = [half[:, :15], torch.from_numpy(half[:, 15:30]), half[:, 30:40].astype(np.float32), brain]
    whole = np.hstack((half[:, :40].astype(np.float64), brain.double().numpy()))
    split, joined = (group_lasso.path(X, PLAIN.y, n_lams=6, tol=1e-5) for X in (blocks, whole))
    np.testing.assert_allclose(split.objectives, joined.objectives, rtol=2e-5)
    assert np.isin(split.coef(2)[0], joined.coef(2)[0]).mean() > 0.9


def test_a_memory_map_gives_what_its_array_gives(tmp_path):
    mapped = np.memmap(tmp_path / "X", np.float16, "w+", shape=(40, 60))
    mapped[:] = PLAIN.X
    mapped.flush()
    here, there = group_lasso.path(np.array(mapped), PLAIN.y), group_lasso.path(mapped, PLAIN.y)
    np.testing.assert_array_equal(here.objectives, there.objectives)


def test_many_chunks_give_what_one_gives(monkeypatch):
    half = PLAIN.X.astype(np.float16)
    whole = group_lasso.path(half, PLAIN.y, n_lams=6)
    monkeypatch.setattr("head2toe.solvers.matrix.BUFFER_BYTES", 7 * 4 * 40)
    np.testing.assert_allclose(group_lasso.path(half, PLAIN.y, n_lams=6).objectives, whole.objectives, rtol=1e-6)


def test_many_columns_are_swept_in_blocks(monkeypatch):
    whole = solve(PLAIN, tol=1e-6)
    monkeypatch.setattr("head2toe.solvers.engine.SMALL", 0)
    monkeypatch.setattr("head2toe.solvers.engine.BLOCK", 5)
    blocked = solve(PLAIN, tol=1e-6)
    np.testing.assert_allclose(blocked.objectives, whole.objectives, rtol=2e-6)


def test_columns_that_join_a_model_one_at_a_time_end_at_the_same_point(monkeypatch):
    whole = solve(PLAIN, tol=1e-6)
    monkeypatch.setattr("head2toe.solvers.engine.FRESH", 1)
    monkeypatch.setattr("head2toe.solvers.engine.DENSE", 1.0)  # and leave it as soon as they are idle
    few = solve(PLAIN, tol=1e-6)
    np.testing.assert_allclose(few.objectives, whole.objectives, rtol=2e-6)


def test_a_strength_begun_ahead_ends_where_it_ends_alone():
    path = solve(PLAIN, tol=1e-7)
    for i in (3, 5):
        alone = group_lasso.fit(PLAIN.X, PLAIN.y, path.lams[i], tol=1e-7)
        assert path.objectives[i] == pytest.approx(alone.objectives[0], rel=2e-7)


def test_the_same_call_gives_the_same_bits():
    one, two = solve(PLAIN), solve(PLAIN)
    np.testing.assert_array_equal(one.objectives, two.objectives)
    np.testing.assert_array_equal(one.coef(5)[1], two.coef(5)[1])


def test_a_warm_start_where_nothing_is_active_moves_the_intercept_alone():
    top = group_lasso.lam_max(PLAIN.X, PLAIN.y)
    weights = np.random.default_rng(0).uniform(0.1, 2, len(PLAIN.y))
    begun = group_lasso.path(PLAIN.X, PLAIN.y, [2 * top])
    path = group_lasso.path(PLAIN.X, PLAIN.y, [3 * top], warm_start=begun, sample_weight=weights)
    _, _, b = path.coef(0)
    shares = np.bincount(PLAIN.y, weights) / weights.sum()
    np.testing.assert_allclose(softmax(b[None])[0], shares, atol=1e-6)
    path = group_lasso.path(PLAIN.X, PLAIN.y, [2 * top], warm_start=group_lasso.path(PLAIN.X, PLAIN.y, [0.1 * top]))
    assert path.n_active.tolist() == [0]


@pytest.mark.parametrize(
    "X",
    [PLAIN.X[:, ::-1], PLAIN.X.astype(">f4"), [PLAIN.X[:, :0], PLAIN.X], [PLAIN.X.astype(np.float32)[:, :0], PLAIN.X]],
)
def test_matrices_that_lie_oddly_in_memory_are_read(X):
    usual = PLAIN.X[:, ::-1].copy() if isinstance(X, np.ndarray) and X.strides[1] < 0 else PLAIN.X
    path, same = group_lasso.path(X, PLAIN.y, n_lams=3), group_lasso.path(usual, PLAIN.y, n_lams=3)
    np.testing.assert_allclose(path.objectives, same.objectives, rtol=1e-4)
    np.testing.assert_allclose(ridge.gram(X), usual @ usual.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("convert", [sparse.csr_array, pd.DataFrame])
def test_what_gives_no_arrays_is_named(convert):
    with pytest.raises(FeatureError, match="should be a numpy array or a torch tensor"):
        group_lasso.path(convert(PLAIN.X), PLAIN.y)


def test_a_warm_start_continues_the_path():
    path = solve(PLAIN, tol=1e-6)
    begun = group_lasso.path(PLAIN.X, PLAIN.y, path.lams[:3], tol=1e-6)
    rest = group_lasso.path(PLAIN.X, PLAIN.y, path.lams[3:], tol=1e-6, warm_start=begun)
    np.testing.assert_allclose(rest.objectives, path.objectives[3:], rtol=2e-6)
    with pytest.raises(DataError, match="warm_start"):
        group_lasso.path(PLAIN.X[:, :5], PLAIN.y, warm_start=begun)


def test_a_path_stops_when_enough_features_are_active():
    path = solve(PLAIN, stop_at=5)
    assert path.n_active[-1] >= 5
    assert (path.n_active[:-1] < 5).all()


def test_scores_rank_the_active_first_and_the_rest_by_gradient():
    path = solve(PLAIN, stop_at=3)
    active, W, _ = path.coef(len(path.lams) - 1)
    order = np.argsort(-path.scores(), kind="stable")
    assert set(order[: len(active)]) == set(active)
    np.testing.assert_allclose(path.scores()[active], np.linalg.norm(W, axis=1))
    rest = path.gradient_norms[order[len(active) :]]
    assert (np.diff(rest) <= 0).all()


def test_scores_exist_where_nothing_is_active():
    top = group_lasso.lam_max(PLAIN.X, PLAIN.y)
    scores = group_lasso.path(PLAIN.X, PLAIN.y, [2 * top]).scores()
    assert scores.shape == (60,)
    assert scores.min() > 0


def test_folds_together_are_folds_alone():
    folds = RNG(4).integers(0, 3, 40)
    lams = group_lasso.lam_max(PLAIN.X, PLAIN.y) * np.array([0.6, 0.3, 0.15])
    for fold, path in enumerate(group_lasso.cross_validate(PLAIN.X, PLAIN.y, folds, lams, tol=1e-6)):
        keep = folds != fold
        alone = group_lasso.path(PLAIN.X[keep], PLAIN.y[keep], lams, n_classes=4, tol=1e-6)
        np.testing.assert_allclose(path.objectives, alone.objectives, rtol=2e-6)


def test_a_class_that_a_fold_lacks_is_never_predicted():
    y = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    X = np.eye(9) + RNG(5).standard_normal((9, 9)) * 0.1
    folds = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0])
    for path in group_lasso.cross_validate(X, y, folds, n_lams=3):
        assert path.coef(2)[1].shape[1] == 3
    without = group_lasso.cross_validate(X, y, folds, n_lams=3)[0]
    W, b = dense(without.coef(2), 9)
    assert ((X @ W + b).argmax(1) != 2).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(bad):
    X = PLAIN.X.astype(np.float32)
    X[7, 33] = bad
    with pytest.raises(FeatureError, match=r"feature 33 \(block 1\) is -?(nan|inf) in row 7"):
        group_lasso.path([X[:, :20], X[:, 20:]], PLAIN.y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(40, int)}, "only class 0"),
        ({"y": np.zeros(39, int)}, "40 integers"),
        ({"y": PLAIN.y - 1}, "labels should lie in"),
        ({"y": PLAIN.y, "n_classes": 3}, "labels should lie in"),
        ({"sample_weight": -np.ones(40)}, "at least 0"),
        ({"sample_weight": np.full(40, np.nan)}, "finite"),
        ({"lams": [0.1, 0.2]}, "falling"),
        ({"lams": [0.1, -0.2]}, "positive"),
        ({"lam_ratio": 1.5}, "lam_ratio"),
        ({"tol": 0.0}, "tol"),
    ],
)
def test_what_means_nothing_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        group_lasso.path(**({"X": PLAIN.X, "y": PLAIN.y} | change))


@pytest.mark.parametrize("X", [[], np.zeros(40), [np.zeros((40, 2)), np.zeros((39, 2))], np.zeros((40, 0))])
def test_what_is_no_matrix_is_refused(X):
    with pytest.raises(FeatureError, match=r"X should|every block"):
        group_lasso.path(X, PLAIN.y)


def test_too_few_steps_are_an_error_that_names_the_gap():
    with pytest.raises(NotConvergedError, match="duality gap"):
        solve(PLAIN, tol=1e-9, max_iter=1)
