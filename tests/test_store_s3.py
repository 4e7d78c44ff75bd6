"""The same store in a bucket, on a real S3 server on the loopback."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

import lance
import pytest

from head2toe.errors import StoreDamagedError, StoreError
from head2toe.store import FeatureStore
from store_jobs import BLOCK, LAST, STEM, VIEW, assert_holds, features, fill, names


@pytest.fixture(scope="module")
def bucket():
    """(address, storage options, the server's own client) of an empty bucket."""
    with warnings.catch_warnings():  # of the server's own imports
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    urlopen(Request(f"{url}/bucket", method="PUT")).close()
    options = {
        "aws_endpoint": url,
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "aws_region": "us-east-1",
        "allow_http": "true",
    }
    yield "s3://bucket", options, f"{url}/bucket"
    server.stop()


def test_a_bucket_holds_what_a_folder_holds(bucket):
    address, options, _ = bucket
    store, ids = FeatureStore(f"{address}/features", options), names(0, 9)
    assert store.views() == []
    assert store.missing(VIEW, ids, [STEM]) == ids
    store.write(VIEW, ids[:5], features(ids[:5], STEM, BLOCK))
    store.write(VIEW, ids, features(ids, STEM))
    other = FeatureStore(f"{address}/features", options)
    assert other.missing(VIEW, ids, [STEM, BLOCK]) == ids[5:]
    other.write(VIEW, ids, features(ids, STEM, BLOCK, LAST))
    assert_holds(store, ids[::-1], LAST, STEM, BLOCK)
    assert store.verify() == []
    (info,) = store.views()
    assert (info.rows, info.taps, info.last_used) == (9, (STEM, BLOCK, LAST), None)
    store.compact()
    assert_holds(other, ids, LAST, STEM, BLOCK)
    assert store.views()[0].bytes < info.bytes
    store.remove(VIEW)
    assert not other.exists(VIEW)


def test_writers_to_one_bucket_lose_and_double_nothing(bucket):
    address, options, _ = bucket
    location = f"{address}/shared"
    batches = [names(start, start + 6) for start in range(0, 36, 6)]
    shifted = [names(start, start + 6) for start in range(27, -1, -6)]
    with ThreadPoolExecutor(2) as pool:  # two stores: they share nothing but the bucket
        jobs = [(location, batches, (STEM,), None, options), (location, shifted, (STEM, BLOCK), None, options)]
        for job in [pool.submit(fill, *job) for job in jobs]:
            job.result()
    store = FeatureStore(location, options)
    assert_holds(store, names(0, 36), STEM)
    assert_holds(store, names(3, 33), BLOCK)
    table = lance.dataset(f"{location}/{VIEW.key}.lance", storage_options=options).to_table()
    assert sorted(table.filter(table["tap/stem"].is_valid())["id"].to_pylist()) == names(0, 36)


def test_a_flipped_byte_in_a_bucket_is_found_and_repaired(bucket):
    address, options, url = bucket
    store, ids = FeatureStore(f"{address}/flip", options), names(0, 4)
    store.write(VIEW, ids, features(ids, STEM))
    row = features(ids[2:3], STEM)[STEM].tobytes()
    files = lance.dataset(f"{address}/flip/{VIEW.key}.lance", storage_options=options).get_fragments()[0].data_files()
    path = f"{url}/flip/{VIEW.key}.lance/data/{files[1].path}"
    content = bytearray(urlopen(path).read())
    content[content.index(row)] ^= 1
    urlopen(Request(path, bytes(content), method="PUT")).close()
    assert [(damage.tap, damage.id) for damage in store.verify()] == [("stem", ids[2])]
    with pytest.raises(StoreDamagedError, match=f"tap 'stem' of input {ids[2]}"):
        store.read(VIEW, ids, [STEM], verify=True)
    assert store.missing(VIEW, ids, [STEM], verify=True) == [ids[2]]
    store.write(VIEW, ids, features(ids, STEM))
    assert store.verify() == []
    assert_holds(store, ids, STEM)


def test_a_bucket_that_is_not_there_gives_one_error(bucket):
    _, options, _ = bucket
    with pytest.raises(StoreError, match="s3://nowhere"):
        FeatureStore("s3://nowhere/features", options).write(VIEW, ["a"], features(["a"], STEM))
