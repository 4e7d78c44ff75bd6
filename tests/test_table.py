import numpy as np
import pytest

from head2toe.errors import FeatureError
from head2toe.table import FeatureTable, scaled
from head2toe.taps import Pool, PooledTap, Tap


@pytest.fixture
def table() -> FeatureTable:
    taps = tuple(PooledTap(Tap(name, (length,), "NC"), Pool()) for name, length in (("a", 2), ("b", 3)))
    return FeatureTable(("x", "y"), taps, (np.arange(4.0).reshape(2, 2), np.arange(6.0).reshape(2, 3)))


def test_offsets(table):
    assert table.offsets.tolist() == [0, 2, 5]
    assert (table.n_rows, table.n_features) == (2, 5)


def test_a_block_of_another_shape_is_refused(table):
    with pytest.raises(FeatureError, match="block 'a'"):
        FeatureTable(table.ids, table.taps[:1], (np.zeros((2, 3)),))


def test_scaling():
    block = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float16)
    assert scaled(block, np.array([0]), "none").tolist() == [[3.0], [0.0]]
    assert np.allclose(scaled(block, np.array([0]), "tap"), [[0.6], [0.0]])
    assert scaled(block, np.array([0]), "kept").tolist() == [[1.0], [0.0]]


def test_means_and_deviations_have_norms_of_their_own():
    block = np.array([[3.0, 4.0, 5.0, 12.0], [0.0, 0.0, 2.0, 0.0]], np.float32)
    whole = [[3 / 5, 4 / 5, 5 / 13, 12 / 13], [0.0, 0.0, 1.0, 0.0]]
    assert np.allclose(scaled(block, slice(None), "tap", 2), whole)
    assert np.allclose(scaled(block, np.array([1, 2]), "tap", 2), np.array(whole)[:, 1:3])
    assert np.allclose(scaled(block, np.array([1, 2, 3]), "kept", 2), [[1.0, 5 / 13, 12 / 13], [0.0, 1.0, 0.0]])
    assert np.allclose(scaled(block, np.array([2]), "kept", 2), [[1.0], [1.0]])
    assert np.allclose(scaled(block, slice(None), "kept", 4), block / np.linalg.norm(block, axis=1)[:, None])
