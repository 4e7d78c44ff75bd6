import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from head2toe.errors import FeatureError
from head2toe.selection import n_kept, ranking, top


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 9))
def test_top_keeps_the_largest(n, count, seed):
    scores = np.random.default_rng(seed).integers(0, 5, n).astype(float)
    mask = top(scores, count)
    assert mask.sum() == min(n, count)
    if 0 < count < n:
        assert scores[mask].min() >= scores[~mask].max()


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
        top(np.array([1.0, np.nan]), 1)
