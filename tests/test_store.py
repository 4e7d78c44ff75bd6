import numpy as np
from head2toe.store import FeatureStore, View
from head2toe.taps import Pool, Tap

A, B = Tap("blocks.0/a", (4,), "NC"), Tap("blocks.1", (3,), "NC")
VIEW = View("f" * 64, Pool(), "float16", "tiny")


def features(ids, *taps):
    return {t: np.stack([np.random.default_rng(list(f"{i}{t.name}".encode())).standard_normal(t.shape[0]) for i in ids]).astype(np.float16) for t in taps}


def test_smoke(tmp_path):
    store = FeatureStore(tmp_path)
    ids = [f"id{i}" for i in range(10)]
    assert store.missing(VIEW, ids, [A]) == ids
    assert store.views() == []
    assert store.write(VIEW, ids[:6], features(ids[:6], A, B)) == 6
    assert store.write(VIEW, ids[4:], features(ids[4:], A)) == 4
    assert store.missing(VIEW, ids, [A]) == []
    assert store.missing(VIEW, ids, [A, B]) == ids[6:]
    assert store.write(VIEW, ids, features(ids, A, B)) == 4
    got = FeatureStore(tmp_path).read(VIEW, ids[::-1] + ids[:2], [B, A], verify=True)
    for tap, block in zip((B, A), got.blocks):
        np.testing.assert_array_equal(block, features(ids[::-1] + ids[:2], tap)[tap])
    print(store.views())
    print(store.compact())
    print(store.views())
    assert store.verify() == []
    got = FeatureStore(tmp_path).read(VIEW, ids[::-1] + ids[:2], [B, A], verify=True)
    for tap, block in zip((B, A), got.blocks):
        np.testing.assert_array_equal(block, features(ids[::-1] + ids[:2], tap)[tap])
