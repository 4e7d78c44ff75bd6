"""Flipped bytes, lost files: found, named, refused and repaired."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from head2toe.errors import StoreDamagedError
from head2toe.store import Damage, FeatureStore, dump
from store_jobs import BLOCK, LAST, STEM, VIEW, assert_holds, data_files, features, names


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def find(location: Path, wanted: bytes) -> tuple[Path, int]:
    """The file, and where in it, that holds these bytes."""
    ((name, at),) = [(n, c.index(wanted)) for n, c in data_files(location).items() if wanted in c]
    return location / f"{VIEW.key}.lance" / "data" / name, at


@pytest.fixture
def filled(tmp_path):
    """Two batches of four inputs: two files of keys, two of features."""
    store = FeatureStore(tmp_path)
    for start in (0, 4):
        ids = names(start, start + 4)
        store.write(VIEW, ids, features(ids, STEM, BLOCK))
    return tmp_path


def repaired(location: Path, lost: list[str]) -> None:
    """The next extraction computes `lost` and nothing else, and leaves no damage."""
    store, ids = FeatureStore(location), names(0, 8)
    missing = store.missing(VIEW, ids, [STEM, BLOCK])
    assert missing == lost
    store.write(VIEW, missing, features(missing, STEM, BLOCK))
    assert store.verify() == []
    assert_holds(store, ids, STEM, BLOCK)
    assert FeatureStore(location).views()[0].rows == 8


def test_a_flipped_feature_is_named_refused_and_repaired(filled):
    store, ids = FeatureStore(filled), names(0, 8)
    path, at = find(filled, features([ids[5]], BLOCK)[BLOCK].tobytes())
    flip(path, at + 3)
    assert store.verify() == [Damage(VIEW, path.name, "blocks.0/conv", ids[5], 1)]
    assert_holds(store, ids[:4], STEM, BLOCK)  # the other batch is sound
    with pytest.raises(StoreDamagedError, match=rf"{re.escape(str(VIEW))}.*tap 'blocks.0/conv' of input {ids[5]}"):
        store.read(VIEW, ids, [STEM], verify=True)
    repaired(filled, [ids[5]])


def test_one_flip_anywhere_in_any_file_is_found_named_refused_and_repaired(filled, tmp_path_factory):
    rng, rows = np.random.default_rng(0), rows_on_disk(filled)
    for name, content in data_files(filled).items():
        is_of_features = any(place[0] == name for place in rows)
        for at in (*rng.integers(len(content), size=2 if is_of_features else 6).tolist(), len(content) - 1):
            location = tmp_path_factory.mktemp("copy") / "store"
            shutil.copytree(filled, location)
            flip(location / f"{VIEW.key}.lance" / "data" / name, at)
            store, ids = FeatureStore(location), names(0, 8)
            found = store.verify()
            assert {damage.file for damage in found} == {name}
            hit = {owner for (file, first, last), owner in rows.items() if file == name and first <= at < last}
            if hit:  # in a feature: its tap and row, and nothing else
                assert [(damage.tap, damage.id, damage.rows) for damage in found] == [(*hit.pop(), 1)]
            elif not is_of_features:  # whose names are lost, all is lost
                assert [(damage.id, damage.rows) for damage in found] == [(None, 4)]
            assert all(str(VIEW) in str(damage) for damage in found)
            with pytest.raises(StoreDamagedError, match=re.escape(str(VIEW))):
                store.read(VIEW, ids, [STEM, BLOCK], verify=True)
            lost = store.missing(VIEW, ids, [STEM, BLOCK])
            assert set(lost) >= {damage.id for damage in found if damage.id}
            repaired(location, lost)


def rows_on_disk(location: Path) -> dict[tuple[str, int, int], tuple[str, str]]:
    """Where each feature lies: (file, first byte, end) -> (tap, input)."""
    rows = {}
    for tap in (STEM, BLOCK):
        for key in names(0, 8):
            row = features([key], tap)[tap].tobytes()
            path, at = find(location, row)
            rows[path.name, at, at + len(row)] = tap.name, key
    return rows


def test_a_flip_outside_of_the_features_loses_none(filled):
    path, _ = find(filled, features([names(5, 6)[0]], BLOCK)[BLOCK].tobytes())
    flip(path, -1)  # Lance's magic number
    assert FeatureStore(filled).verify()
    repaired(filled, names(4, 8))


def test_flips_that_ask_for_all_memory_do_not_end_the_process(filled):
    # positions in the file's metadata, where lengths stand
    path, at = find(filled, features([names(5, 6)[0]], BLOCK)[BLOCK].tobytes())
    sound = path.read_bytes()
    for position in np.linspace(at + 10, len(sound) - 1, 3).astype(int):
        flip(path, int(position))
        assert FeatureStore(filled).verify()
        path.write_bytes(sound)
    assert FeatureStore(filled).verify() == []


@pytest.mark.parametrize("harm", ["lost", "cut"])
def test_a_lost_or_cut_file_is_found_and_repaired(filled, harm):
    path, at = find(filled, features(["input0001"], STEM)[STEM].tobytes())
    if harm == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: at + 1])
    assert {damage.id for damage in FeatureStore(filled).verify()} == set(names(0, 4))
    repaired(filled, names(0, 4))


def test_compaction_drops_what_is_damaged(filled):
    path, at = find(filled, features(["input0001"], STEM)[STEM].tobytes())
    flip(path, at)
    store = FeatureStore(filled)
    store.compact()
    assert store.verify() == []
    repaired(filled, ["input0001"])


def test_a_damaged_manifest_names_the_view(filled):
    for manifest in (filled / f"{VIEW.key}.lance" / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"\xff" * manifest.stat().st_size)
    with pytest.raises(StoreDamagedError, match=rf"{VIEW.key}\.lance cannot be read.*delete that folder"):
        FeatureStore(filled).read(VIEW, names(0, 1), [STEM])


def test_an_unreadable_view_hides_no_other(filled, command):
    other = replace(VIEW, backbone="other", fingerprint="0" * 64)
    store = FeatureStore(filled)
    store.write(other, names(0, 3), features(names(0, 3), STEM))
    assert store.unreadable() == {}
    for manifest in (filled / f"{VIEW.key}.lance" / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"\xff" * manifest.stat().st_size)
    store = FeatureStore(filled)
    assert [info.view for info in store.views()] == [other]
    assert list(store.unreadable()) == [VIEW.key]
    assert store.find("other") == other
    assert store.verify(other) == []
    for refused in (store.verify, store.compact, lambda: store.find(VIEW.key[:8])):
        with pytest.raises(StoreDamagedError, match="delete that folder"):
            refused()

    code, out, err = command("store", "ls", "--store", filled, "--json")
    assert (code, [row["backbone"] for row in json.loads(out)]) == (0, ["other"])
    assert f"{VIEW.key}.lance cannot be read" in err
    for words, said in ((["verify"], "every byte of features in the other views"), (["compact"], "files")):
        code, out, err = command("store", *words, "--store", filled)
        assert (code, said in out, VIEW.key in err) == (1, True, True)
        assert command("store", *words, "other", "--store", filled)[::2] == (0, "")


def test_a_manifest_that_names_a_tap_twice_is_damaged(tmp_path):
    # one flipped bit: the features of one tap would be given as those of another
    FeatureStore(tmp_path).write(VIEW, names(0, 4), features(names(0, 4), STEM, LAST))
    manifest = min(tmp_path.glob("*.lance/_versions/*.manifest"))
    content = bytearray(manifest.read_bytes())
    at = content.rindex(b"\x02\x03")  # the numbers of the two columns
    content[at] ^= 1
    manifest.write_bytes(content)
    with pytest.raises(StoreDamagedError, match="names one tap twice"):
        FeatureStore(tmp_path).read(VIEW, names(0, 4), [LAST])


def test_equal_features_in_one_file_are_repaired_one_by_one(tmp_path):
    store, ids = FeatureStore(tmp_path), names(0, 2)
    same = features(ids[:1], STEM)
    store.write(VIEW, ids[:1], same)
    keys, _ = find(tmp_path, ids[0].encode())
    store.write(VIEW, ids[1:], same)
    assert len(data_files(tmp_path)) == 3
    flip(keys, 5)
    assert FeatureStore(tmp_path).missing(VIEW, ids, [STEM]) == ids[:1]


def test_a_damaged_row_is_found_where_memory_cannot_be_limited(filled, monkeypatch):
    program = Path(dump.__file__).read_text()
    assert "/proc/self/statm" in program
    (filled / "dump.py").write_text(program.replace("/proc/self/statm", "/nowhere"))
    monkeypatch.setattr("head2toe.store.damage.__file__", str(filled / "damage.py"))
    path, at = find(filled, features([names(0, 8)[3]], STEM)[STEM].tobytes())
    flip(path, at)
    repaired(filled, [names(0, 8)[3]])


def test_a_view_that_was_killed_at_birth_is_made_again(tmp_path):
    (tmp_path / f"{VIEW.key}.lance" / "_versions").mkdir(parents=True)
    store = FeatureStore(tmp_path)
    assert not store.exists(VIEW)
    store.write(VIEW, names(0, 2), features(names(0, 2), STEM))
    assert_holds(store, names(0, 2), STEM)
