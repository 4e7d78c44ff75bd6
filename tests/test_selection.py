import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from head2toe.errors import FeatureError
from head2toe.selection import n_kept, ranking, towards_taps


@given(st.integers(1, 500), st.integers(0, 9))
def test_the_ranking_falls_and_names_every_feature_once(n, seed):
    scores = np.random.default_rng(seed).integers(0, 5, n).astype(float)
    order = ranking(scores)
    assert sorted(order) == list(range(n))
    assert (np.diff(scores[order]) <= 0).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 9))
def test_drawing_scores_towards_their_tap_keeps_its_mean(lengths, share, seed):
    scores = np.random.default_rng(seed).random(sum(lengths))
    drawn = towards_taps(scores, lengths, share)
    cuts = np.cumsum(lengths)[:-1]
    for before, after in zip(np.split(scores, cuts), np.split(drawn, cuts), strict=True):
        assert np.isclose(before.mean(), after.mean())
        assert np.isclose(np.ptp(after), (1 - share) * np.ptp(before))


def test_drawing_scores_needs_a_score_for_every_feature():
    with pytest.raises(FeatureError, match="3 features"):
        towards_taps(np.ones(2), [1, 2], 0.5)


def test_equal_scores_keep_the_order_of_the_features():
    assert ranking(np.array([1.0, 2.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("n", "fraction", "kept"), [(1000, 0.01, 10), (1000, 1.0, 1000), (10, 0.001, 1), (100, 0.29, 29)]
)
def test_fraction_is_the_published_floor_and_at_least_one(n, fraction, kept):
    assert n_kept(n, fraction) == kept


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fractions_outside_are_refused(fraction):
    with pytest.raises(FeatureError, match="fraction"):
        n_kept(10, fraction)


def test_scores_must_be_numbers():
    with pytest.raises(FeatureError, match="finite"):
        ranking(np.array([1.0, np.nan]))
