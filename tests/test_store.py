import pickle
import subprocess
import sys
from dataclasses import replace

import lance
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from head2toe.errors import FeatureError, StoreError
from head2toe.store import FeatureStore, View, default_location, feature_store, rows
from head2toe.store.codec import checks, decode, encode
from head2toe.store.damage import write_part
from head2toe.taps import Pool, Tap
from store_jobs import BLOCK, LAST, STEM, VIEW, assert_holds, data_files, features, names

TAPS = (STEM, BLOCK, LAST)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path)


@pytest.fixture(params=["pages", "lance"])
def _reader(request, monkeypatch):
    """Folders are read straight from their files' pages, buckets by Lance's reader: both read a folder here."""
    if request.param == "lance":
        monkeypatch.setattr(rows, "_fill_from_disk", rows._fill)


@pytest.mark.usefixtures("_reader")
def test_any_sequence_of_writes_equals_a_dictionary(store, tmp_path):
    # the model: what was written is there, nothing else is; compaction and a second reader change nothing
    rng = np.random.default_rng(0)
    everything = names(0, 40)
    model: dict[Tap, set[str]] = {tap: set() for tap in TAPS}
    reader = FeatureStore(tmp_path)
    for step in range(25):
        ids = [everything[i] for i in rng.integers(0, 40, rng.integers(1, 9))]
        taps = [tap for tap in TAPS if rng.random() < 0.6] or [STEM]
        new = {key for key in ids if any(key not in model[tap] for tap in taps)}
        assert store.write(VIEW, ids, features(ids, *taps)) == len(new)
        for tap in taps:
            model[tap].update(ids)
        if step % 8 == 7:
            store.compact(VIEW)
        wanted = [TAPS[i] for i in rng.permutation(3)[: rng.integers(1, 4)]]
        asked = [everything[i] for i in rng.integers(0, 40, 30)]
        lacking = [key for key in dict.fromkeys(asked) if any(key not in model[tap] for tap in wanted)]
        assert reader.missing(VIEW, asked, wanted) == lacking
        assert_holds(reader, [key for key in asked if key not in lacking], *wanted)
    keys = lance.dataset(tmp_path / f"{VIEW.key}.lance").to_table(columns=["id"])["id"].to_pylist()
    store.compact()
    (info,) = store.views()
    assert info.rows == len(set.union(*model.values())) == len(set(keys))
    assert lance.dataset(tmp_path / f"{VIEW.key}.lance").count_rows() == info.rows  # one row a distinct input
    assert store.verify() == []


def test_read_keeps_the_asked_order_of_rows_and_taps(store):
    ids = names(0, 9)
    store.write(VIEW, ids[:4], features(ids[:4], *TAPS))
    store.write(VIEW, ids[4:], features(ids[4:], *TAPS))
    asked = [ids[8], ids[0], ids[8], ids[5]]
    table = store.read(VIEW, asked, [LAST, STEM])
    assert table.ids == tuple(asked)
    assert [(tap.name, tap.length) for tap in table.taps] == [("last", 12), ("stem", 8)]
    assert_holds(store, asked, LAST, STEM)
    assert store.read(VIEW, [], TAPS).n_rows == 0


@pytest.mark.usefixtures("_reader")
def test_rows_far_apart_in_one_file(store):
    ids = names(0, 500)
    store.write(VIEW, ids, features(ids, STEM, BLOCK))
    assert_holds(store, ids[3:400:97], STEM)  # taken one by one
    assert_holds(store, ids[400:3:-1], BLOCK)  # streamed
    assert_holds(store, [*ids[7:300:90], *ids[:9:4], ids[8], ids[97], ids[7]], BLOCK, STEM)  # with repeats


def test_batches_are_the_table_within_the_memory_limit(store):
    ids = names(0, 23)
    store.write(VIEW, ids, features(ids, STEM, BLOCK))
    tables = list(store.batches(VIEW, ids, [STEM, BLOCK], memory=130))  # rows of 26 bytes
    assert [table.n_rows for table in tables] == [5, 5, 5, 5, 3]
    whole = store.read(VIEW, ids, [STEM, BLOCK])
    for i, block in enumerate(whole.blocks):
        np.testing.assert_array_equal(np.concatenate([table.blocks[i] for table in tables]), block)


def test_adding_rows_a_tap_and_a_target_size_rewrites_no_byte(store, tmp_path):
    ids = names(0, 6)
    store.write(VIEW, ids[:4], features(ids[:4], STEM))
    before = data_files(tmp_path)
    larger = replace(VIEW, pool=Pool(3))
    assert store.missing(VIEW, ids, [STEM]) == ids[4:]
    store.write(VIEW, ids[4:], features(ids[4:], STEM))
    assert store.missing(VIEW, ids, [STEM, LAST]) == ids
    store.write(VIEW, ids, features(ids, STEM, LAST))
    store.write(larger, ids, features(ids, LAST, view=larger))
    after = data_files(tmp_path)
    assert before.items() <= after.items()
    added = sum(len(content) for name, content in after.items() if name not in before)
    assert_holds(store, ids, STEM, LAST)
    assert_holds(store, ids, LAST, view=larger)
    # LAST joined rows that had STEM: STEM was not written again
    fragments = lance.dataset(tmp_path / f"{VIEW.key}.lance").get_fragments()
    assert [f.count_rows() for f in fragments] == [4, 2, 6]
    assert added > 0


@pytest.mark.parametrize(
    "other",
    [
        replace(VIEW, fingerprint="e" * 64),
        replace(VIEW, pool=Pool(11)),
        replace(VIEW, pool=Pool(12, "grid")),
        replace(VIEW, pool=Pool(12, class_token="only_cls")),
        replace(VIEW, pool=Pool(12, moments=2)),
        replace(VIEW, dtype="float32"),
    ],
)
def test_other_weights_pool_or_precision_are_never_mixed(store, other):
    ids = names(0, 2)
    store.write(VIEW, ids, features(ids, STEM))
    assert store.missing(other, ids, [STEM]) == ids
    with pytest.raises(StoreError, match="holds nothing of the view"):
        store.read(other, ids, [STEM])


def test_the_backbone_s_id_is_only_a_description(store):
    ids = names(0, 2)
    store.write(VIEW, ids, features(ids, STEM))
    assert store.missing(replace(VIEW, backbone="the same weights under another name"), ids, [STEM]) == []


def test_a_tap_of_another_shape_under_the_same_name_is_refused(store):
    ids = names(0, 2)
    store.write(VIEW, ids, features(ids, STEM))
    other = Tap("stem", (9,), "NC")
    for ask in (
        lambda: store.missing(VIEW, ids, [other]),
        lambda: store.write(VIEW, ids, features(ids, other)),
        lambda: store.read(VIEW, ids, [other]),
    ):
        with pytest.raises(StoreError, match=r"tap 'stem'.*was stored as"):
            ask()


def test_reading_what_is_not_there_names_it(store):
    store.write(VIEW, ["here"], features(["here"], STEM))
    with pytest.raises(StoreError, match="lacks tap 'stem' of input gone"):
        store.read(VIEW, ["here", "gone"], [STEM])
    with pytest.raises(StoreError, match="lacks tap 'last' of input here"):
        store.read(VIEW, ["here"], [STEM, LAST])


@pytest.mark.parametrize(
    ("value", "dtype", "sentence"),
    [
        (np.nan, "float16", "feature 2 of tap 'last' is nan for input input0001"),
        (np.inf, "float32", "feature 2 of tap 'last' is inf for input input0001"),
        (
            70000.0,
            "float16",
            "is 70000 for input input0001, beyond the largest float16; taps that need float32: 'last'",
        ),
        (3.4e38, "bfloat16", "beyond the largest bfloat16"),
    ],
)
def test_numbers_that_cannot_be_stored_stop_the_run(store, value, dtype, sentence):
    view, ids = replace(VIEW, dtype=dtype), names(0, 3)
    blocks = {tap: block.astype(np.float32) for tap, block in features(ids, STEM, LAST).items()}
    blocks[LAST][1, 2] = value
    with pytest.raises(FeatureError, match=sentence):
        store.write(view, ids, blocks)
    assert store.missing(view, ids, [STEM]) == ids  # whole or absent


def test_a_block_of_the_wrong_shape_is_refused(store):
    with pytest.raises(FeatureError, match=r"tap 'stem' should be \(2, 8\) after pooling, got \(2, 7\)"):
        store.write(VIEW, names(0, 2), {STEM: np.zeros((2, 7))})


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_each_dtype_reads_back_what_torch_would_round_to(store, dtype):
    view, ids = replace(VIEW, dtype=dtype), names(0, 5)
    block = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    store.write(view, ids, {STEM: block})
    (got,) = store.read(view, ids, [STEM]).blocks
    assert got.dtype == (np.float16 if dtype == "float16" else np.float32)
    np.testing.assert_array_equal(got.astype(np.float32), torch.from_numpy(block).to(getattr(torch, dtype)).float())


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_float16_rounds_as_numpy(numbers):
    block = np.array([numbers], np.float32)
    with np.errstate(over="ignore"):
        expected = block.astype(np.float16)
    np.testing.assert_array_equal(encode(block, "float16"), expected)
    np.testing.assert_array_equal(encode(np.broadcast_to(block, (3, *block.shape[1:])), "float16")[2:], expected)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_bfloat16_rounds_as_torch(numbers):
    block = np.array([numbers], np.float32)
    expected = torch.from_numpy(block).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(decode(encode(block, "bfloat16"), "bfloat16"), expected)


def test_checksums_know_their_row_and_tap():
    row = np.ones((1, 4), np.float16)
    assert len({int(checks([key], tap, row)[0]) for key in "ab" for tap in "ab"}) == 4


def test_views_are_listed_found_and_removed(store, tmp_path):
    other = replace(VIEW, backbone="other", fingerprint="0" * 64)
    assert store.views() == []
    assert not store.exists(VIEW)
    store.write(VIEW, names(0, 3), features(names(0, 3), STEM))
    store.write(VIEW, names(2, 5), features(names(2, 5), STEM, BLOCK))
    store.write(other, names(0, 1), features(names(0, 1), LAST))
    infos = {info.view: info for info in store.views()}
    info = infos[VIEW]
    assert (info.rows, info.taps, info.fragments, info.n_features) == (5, (STEM, BLOCK), 3, 13)
    assert info.bytes == sum(p.stat().st_size for p in (tmp_path / f"{VIEW.key}.lance").rglob("*") if p.is_file())
    assert info.created <= info.last_used
    assert store.find("other") == other
    assert store.find(VIEW.key[:8]) == VIEW
    with pytest.raises(StoreError, match="'nothing' fits 0 views"):
        store.find("nothing")
    store.remove(VIEW)
    assert [i.view for i in store.views()] == [other]
    with pytest.raises(StoreError, match="has no view"):
        store.remove(VIEW)
    store.write(VIEW, names(0, 1), features(names(0, 1), STEM))  # and can be made again
    assert_holds(store, names(0, 1), STEM)


def test_compaction_joins_files_and_an_open_reader_goes_on(store, tmp_path):
    ids = names(0, 12)
    for start in range(0, 12, 3):
        store.write(VIEW, ids[start : start + 3], features(ids[start : start + 3], STEM))
    store.write(VIEW, ids, features(ids, BLOCK))
    reader = FeatureStore(tmp_path)
    assert_holds(reader, ids, STEM)
    (result,) = store.compact()
    assert result.fragments == (5, 1)
    assert result.bytes[1] < result.bytes[0]
    assert len(data_files(tmp_path)) == 2
    assert_holds(reader, ids, STEM, BLOCK)


def test_a_reader_between_two_looks_survives_a_compaction(store, tmp_path, monkeypatch):
    # the files vanish after the reader looked for the newest version
    ids = names(0, 4)
    for key in ids:
        store.write(VIEW, [key], features([key], STEM))
    reader = FeatureStore(tmp_path)
    assert reader.missing(VIEW, ids, [STEM]) == []
    folder, *_ = reader._open[VIEW.key]
    looks = iter([False])
    monkeypatch.setattr(folder, "refresh", lambda: next(looks, None) is None and type(folder).refresh(folder))
    store.compact()
    assert_holds(reader, ids, STEM)


@pytest.mark.parametrize("again", [BLOCK, STEM])
def test_an_open_store_sees_that_a_view_was_removed_and_made_again(store, tmp_path, again):
    # both views stand at the same version: what one store knows of the old one must not reach the new one
    reader = FeatureStore(tmp_path)
    store.write(VIEW, ["old"], features(["old"], STEM))
    assert_holds(reader, ["old"], STEM)
    store.remove(VIEW)
    store.write(VIEW, ["new"], features(["new"], again))
    assert reader.missing(VIEW, ["old", "new"], [STEM]) == ["old", "new"][: 1 if again is STEM else 2]
    assert reader.write(VIEW, ["old"], features(["old"], STEM)) == 1
    assert_holds(FeatureStore(tmp_path), ["new"], again)
    assert_holds(reader, ["old"], STEM)
    assert store.verify() == []


def test_a_compaction_while_files_are_verified_is_no_damage(store, tmp_path):
    ids = names(0, 4)
    for key in ids:
        store.write(VIEW, [key], features([key], STEM))
    reader, looks = FeatureStore(tmp_path), []

    def compact_once(done: int, total: int) -> None:
        looks.append((done, total))
        if len(looks) == 1:
            store.compact()

    assert reader.verify(VIEW, compact_once) == []
    assert looks == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 1)]
    assert_holds(reader, ids, STEM)


def test_an_interrupt_while_the_index_is_read_doubles_nothing(store, tmp_path, monkeypatch):
    other = FeatureStore(tmp_path)
    store.write(VIEW, ["x"], features(["x"], STEM))
    other.write(VIEW, ["y"], features(["y"], STEM))
    with monkeypatch.context() as stopped:
        stopped.setattr(feature_store, "load_index", lambda *of: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.missing(VIEW, ["y"], [STEM])
    assert store.write(VIEW, ["y"], features(["y"], STEM)) == 0


def test_a_compaction_that_fails_leaves_nothing_and_one_that_brings_nothing_writes_nothing(
    store, tmp_path, monkeypatch
):
    ids = names(0, 6)
    for key in ids:
        store.write(VIEW, [key], features([key], STEM))
    before = data_files(tmp_path)
    monkeypatch.setattr(feature_store, "_FILE_BYTES", 48)  # three inputs a file
    with monkeypatch.context() as full:
        files = iter(range(1))
        full.setattr(feature_store, "write_part", lambda *of: write_part(*of) if next(files, None) == 0 else is_full())
        with pytest.raises(StoreError, match="no space is left"):
            store.compact()
    assert data_files(tmp_path) == before
    assert store.compact()[0].fragments == (6, 2)
    monkeypatch.setattr(feature_store, "write_part", lambda *of: pytest.fail("a file was written"))
    assert store.compact()[0].fragments == (2, 2)
    assert_holds(store, ids, STEM)


def is_full():
    raise OSError(28, "os error 28")


def test_old_versions_do_not_pile_up(store, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "_VERSIONS", 4)
    ids, reader = names(0, 20), FeatureStore(tmp_path)
    for key in ids:
        store.write(VIEW, [key], features([key], STEM))
        assert_holds(reader, [key, ids[0]], STEM)
    assert store.views()[0].versions <= 4
    assert_holds(reader, ids, STEM)
    assert store.verify() == []


def test_no_text_finds_no_view(store):
    store.write(VIEW, ["x"], features(["x"], STEM))
    with pytest.raises(StoreError, match="'' fits 0 views"):
        store.find("")


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path):
    (tmp_path / "notes").write_text("")
    for place in (tmp_path / "notes", tmp_path / "notes" / "features"):
        with pytest.raises(StoreError, match=r"nothing can be written in .*notes"):
            FeatureStore(place).check_writable()
    FeatureStore(tmp_path / "new").check_writable()


def test_a_store_travels_to_other_processes_by_its_address(store):
    store.write(VIEW, names(0, 2), features(names(0, 2), STEM))
    assert_holds(pickle.loads(pickle.dumps(store)), names(0, 2), STEM)


def test_default_location_honours_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("HEAD2TOE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_location() == tmp_path / ".cache" / "head2toe" / "store"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_location() == tmp_path / "x" / "head2toe" / "store"
    monkeypatch.setenv("HEAD2TOE_HOME", str(tmp_path / "h"))
    assert default_location() == tmp_path / "h" / "store"


def test_importing_the_store_loads_no_lance():
    code = "import sys, head2toe.store; sys.exit('lance' in sys.modules or 'torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_lance_dataset_of_somebody_else_is_left_alone(store, tmp_path):
    import pyarrow as pa

    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / f"{VIEW.key}.lance"))
    with pytest.raises(StoreError, match="no view of head2toe"):
        store.write(VIEW, names(0, 1), features(names(0, 1), STEM))


def test_view_key_is_stable():
    # renaming a field or a default would orphan every stored feature: then raise FORMAT_VERSION
    assert View("0" * 64, Pool(512), "float16", "any").key == "bcd59d4e90786d66d2a555e0c646f4d5"
