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
