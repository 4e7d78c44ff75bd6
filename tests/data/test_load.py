"""One small task, written in every format that `load_task` reads: all of them must give the same rows."""

import csv
import hashlib
import io
import json
import pickle
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from head2toe.data import damage_report, find_damaged, item_id, load_task, task_from_arrays
from head2toe.errors import DataError

CLASSES = ("ant", "bee", "cat")
LABELS = {"train": (0, 0, 1, 2, 2), "validation": (1, 0), "test": (2, 1, 0)}


def picture(split: str, row: int) -> bytes:
    out = io.BytesIO()
    rng = np.random.default_rng(list(LABELS).index(split) * 100 + row)
    Image.fromarray(rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def pictures(split: str) -> list[bytes]:
    return [picture(split, row) for row in range(len(LABELS[split]))]


def as_folder(root: Path) -> Path:
    for split in LABELS:
        for row, (label, encoded) in enumerate(zip(LABELS[split], pictures(split), strict=True)):
            path = root / split / CLASSES[label] / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded)
    return root


def as_flat_folder(root: Path) -> Path:
    return as_folder(root) / "train"


def write_parquet(path: Path, split: str, *, struct=True, numbers=True, declare=True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = pictures(split)
    table = pa.table(
        {
            "image": pa.array([{"bytes": b, "path": None} for b in encoded] if struct else encoded),
            "label": list(LABELS[split]) if numbers else [CLASSES[label] for label in LABELS[split]],
        }
    )
    if struct:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = table.set_column(0, "image", table["image"].cast(kind))
    if declare:
        features = {"label": {"_type": "ClassLabel", "names": list(CLASSES)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)


def as_parquet_folder(root: Path) -> Path:
    for split in LABELS:
        write_parquet(root / f"{split}.parquet", split)
    return root


def as_sharded_parquet(root: Path) -> Path:
    for split in LABELS:
        write_parquet(root / "data" / f"{split}-00000-of-00001.parquet", split, struct=False, numbers=False)
    return root


def as_parquet_with_info(root: Path) -> Path:
    for split in LABELS:
        write_parquet(root / f"{split}.parquet", split, declare=False)
    (root / "info.json").write_text(json.dumps({"classes": list(CLASSES)}))
    return root


def as_parquet_file(root: Path) -> Path:
    write_parquet(root / "bugs.parquet", "train")
    return root / "bugs.parquet"


def as_csv(root: Path) -> Path:
    as_folder(root)
    with (root / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "path", "label"])
        for split in LABELS:
            for row, label in enumerate(LABELS[split]):
                writer.writerow([split.replace("idation", ""), f"{split}/{CLASSES[label]}/{row}.png", CLASSES[label]])
    return root / "rows.csv"


def as_memory(root: Path) -> tuple:
    return pictures("train"), [CLASSES[label] for label in LABELS["train"]]


FORMATS = (
    as_folder, as_flat_folder, as_parquet_folder, as_sharded_parquet, as_parquet_with_info, as_parquet_file, as_csv,
    as_memory,
)  # fmt: skip


@pytest.fixture(params=FORMATS, ids=lambda write: write.__name__)
def loaded(request, tmp_path):
    return load_task(request.param(tmp_path))


class TestEveryFormat:
    """The contract of a data source."""

    def test_rows_are_the_written_ones(self, loaded):
        assert loaded.classes == CLASSES
        splits = {"train": loaded.train, "validation": loaded.validation, "test": loaded.test}
        for name, split in splits.items():
            if split is None:
                assert name != "train"
                continue
            written = sorted(
                (hashlib.sha256(b).hexdigest(), c) for b, c in zip(pictures(name), LABELS[name], strict=True)
            )
            assert sorted(zip(split.ids, split.labels, strict=True)) == written
            assert split.labels.dtype == np.int64

    def test_inputs_have_their_ids_and_names(self, loaded):
        for split in loaded.splits:
            assert [item_id(split.source[row]) for row in range(split.n_rows)] == list(split.ids)
            assert len({split.source.name(row) for row in range(split.n_rows)}) == split.n_rows

    def test_sources_travel_to_other_processes(self, loaded):
        copy = pickle.loads(pickle.dumps(loaded.train.source))
        assert [copy[row] for row in range(len(copy))] == [loaded.train.source[row] for row in range(len(copy))]

    def test_rows_of_a_split_keep_their_inputs(self, loaded):
        some = loaded.train.rows(np.array([3, 1])).rows(np.array([True, False]))
        assert some.ids == (loaded.train.ids[3],)
        assert item_id(some.source[0]) == some.ids[0]
        assert some.labels.tolist() == [loaded.train.labels[3]]

    def test_nothing_is_damaged(self, loaded):
        assert loaded.skipped == ()
        assert find_damaged(loaded.train.source, range(loaded.train.n_rows)) == []
        assert loaded.train.counts(3).tolist() == [2, 1, 2]


def test_missing_splits_are_none(tmp_path):
    task = load_task(as_flat_folder(tmp_path))
    assert (task.name, task.validation, task.test) == ("train", None, None)
    assert len(load_task(tmp_path).splits) == 3


def test_damaged_images_are_listed_and_skipped(tmp_path):
    as_folder(tmp_path)
    for bad in ("train/ant/0.png", "test/bee/1.png"):
        (tmp_path / bad).write_bytes(picture("train", 0)[:60])
    task = load_task(tmp_path)
    assert [line.split(":")[0] for line in find_damaged(task.train.source, range(5))] == ["train/ant/0.png"]
    kept = load_task(tmp_path, skip_bad=True)
    assert [line.split(":")[0] for line in kept.skipped] == ["train/ant/0.png", "test/bee/1.png"]
    assert kept.train.labels.tolist() == [0, 1, 2, 2]
    assert kept.train.ids == task.train.ids[1:]
    assert [item_id(kept.train.source[row]) for row in range(4)] == list(kept.train.ids)
    assert kept.test is not None
    assert kept.test.n_rows == 2


def test_files_that_cannot_be_opened_stop_the_load(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\ngone.png,ant\nlost.png,bee\n")
    with pytest.raises(DataError, match=r"2 of 2 inputs(.|\n)*gone.png(.|\n)*lost.png(.|\n)*--skip-bad"):
        load_task(tmp_path / "a.csv")


def test_a_report_names_twenty_and_counts_the_rest():
    message = str(damage_report("check", [f"{row}.png: cut" for row in range(23)], 1000))
    assert "23 of 1,000" in message
    assert "19.png" in message
    assert "20.png" not in message
    assert "and 3 more" in message


def test_numbers_are_ordered_as_numbers(tmp_path):
    pq.write_table(
        pa.table({"image": [picture("train", r) for r in range(3)], "label": [10, 2, 1]}), tmp_path / "a.parquet"
    )
    assert load_task(tmp_path / "a.parquet").classes == ("1", "2", "10")
    assert task_from_arrays(np.zeros((3, 4, 4), np.uint8), [10, 2, 1]).classes == ("1", "2", "10")


def test_a_declared_class_without_images_is_left_out(tmp_path):
    features = {"label": {"names": ["zebra", "none", "ant"]}}
    table = pa.table({"image": [picture("train", 0), picture("train", 1)], "label": [2, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    task = load_task(tmp_path / "a.parquet")
    assert task.classes == ("zebra", "ant")
    assert task.train.labels.tolist() == [1, 0]


def test_every_parquet_file_has_class_numbers_of_its_own(tmp_path):
    for split in LABELS:
        write_parquet(tmp_path / f"{split}.parquet", split)
    table = pq.read_table(tmp_path / "test.parquet")
    features = {"label": {"_type": "ClassLabel", "names": list(reversed(CLASSES))}}
    turned = table.set_column(1, "label", pa.array([2 - label for label in LABELS["test"]]))
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(turned.replace_schema_metadata(metadata), tmp_path / "test.parquet")
    task = load_task(tmp_path)
    assert task.classes == CLASSES
    assert task.test.labels.tolist() == list(LABELS["test"])


def test_a_shard_without_labels_is_named(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", "train")
    pq.write_table(pa.table({"image": pictures("test")}), tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet needs a column 'label'"):
        load_task(tmp_path)


def test_a_name_that_no_file_can_have_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\na\0b.png,ant\nc.png,bee\n")
    with pytest.raises(DataError, match="cannot be"):
        load_task(tmp_path / "a.csv")


def test_a_parquet_file_that_changes_is_noticed(tmp_path):
    path = as_parquet_file(tmp_path)
    task = load_task(path)
    write_parquet(path, "test")
    with pytest.raises(DataError, match="changed"):
        task.train.source[0]


def test_arrays_with_splits():
    pixels = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
    task = task_from_arrays(pixels[:3], np.array([5, 7, 5]), validation=(pixels[3:4], [7]), test=(pixels[4:], [5, 7]))
    assert task.classes == ("5", "7")
    assert [split.labels.tolist() for split in task.splits] == [[0, 1, 0], [1], [0, 1]]
    assert np.array_equal(task.train.source[1], pixels[1])


def test_the_id_of_an_array_tells_shape_and_type_apart():
    flat = np.zeros((4, 2), np.uint8)
    ids = {item_id(a) for a in (flat, flat.reshape(2, 4), flat.astype(bool), flat.reshape(4, 2, 1))}
    assert len(ids) == 4
    assert item_id(np.asfortranarray(np.arange(6.0).reshape(2, 3))) == item_id(np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("kind", ["csv", "parquet", "memory"])
def test_texts(kind, tmp_path):
    texts, labels = ("good, I say", "bad"), ("pos", "neg")
    if kind == "csv":
        data = tmp_path / "a.csv"
        data.write_text('text,label\n"good, I say",pos\nbad,neg\n')
    elif kind == "parquet":
        data = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": texts, "label": labels}), data)
    else:
        data = (texts, labels)
    task = load_task(data, skip_bad=True)
    assert task.classes == ("neg", "pos")
    assert [task.train.source[row] for row in range(2)] == list(texts)
    assert task.train.ids[1] == hashlib.sha256(b"bad").hexdigest()


def test_paths_in_memory(tmp_path):
    root = as_folder(tmp_path)
    task = load_task(([root / "train/ant/0.png", root / "train/bee/2.png"], [0, 1]))
    assert task.train.source[1] == picture("train", 2)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def without_train(root):
    write(root / "test/ant/0.png", "x")
    return root


def class_only_in_test(root):
    as_folder(root)
    (root / "test/dog").mkdir()
    (root / "test/dog/0.png").write_bytes(picture("test", 0))
    return root


def empty_class(root):
    as_folder(root)
    (root / "train/dog").mkdir()
    write(root / "train/dog/notes.txt", "x")
    return root


def parquet(columns):
    def at(root):
        pq.write_table(pa.table(columns), root / "a.parquet")
        return root / "a.parquet"

    return at


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda root: root / "none", "there is no"), (lambda root: write(root / "a.zip", ""), "accepted|give an image"),
     (lambda root: root, "holds no folder"), (without_train, "train split is needed"),
     (class_only_in_test, "train lacks: 'dog'"), (empty_class, "holds no image"),
     (lambda root: write(root / "a.csv", ""), "empty file"), (lambda root: write(root / "a.csv", "a,b\n1,2\n"), "a,b"),
     (lambda root: write(root / "a.csv", "path,label\nx.png,\n"), "line 2 .* no label"),
     (lambda root: write(root / "a.csv", "path,label,split\nx.png,a,dev\n"), "split 'dev'"),
     (lambda root: write(root / "a.csv", "path,label\n"), "train split is needed"),
     (parquet({"image": [b"x"]}), "needs a column 'label'"), (parquet({"image": [1], "label": [0]}), "int64"),
     (parquet({"image": [b"x", b"y"], "label": [0, None]}), "row 1 .* no label"),
     (lambda root: write(root / "a.parquet", "no parquet"), "a.parquet"),
     (lambda root: (np.zeros((2, 4, 4)), [0]), "one int or str label per input"),
     (lambda root: (np.zeros((2, 4, 4)), np.array([0.5, 1.0])), "float64"),
     (lambda root: (np.zeros((2, 4)), [0, 1]), "shape"),
     (lambda root: ([], []), "label")],
)  # fmt: skip
def test_what_cannot_serve_as_a_task_is_refused(make, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load_task(make(tmp_path))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train", "ship"):
        (tmp_path / name / ".thumbnails").mkdir(parents=True)
        for row in range(2):
            (tmp_path / name / f"{row}.png").write_bytes(picture("train", row + len(name)))
        (tmp_path / name / ".thumbnails" / "0.png").write_bytes(picture("test", 0))
    task = load_task(tmp_path)
    assert task.classes == ("bus", "ship", "train")
    assert task.train.n_rows == 6  # nothing of the hidden folders


@pytest.mark.parametrize("cell", [{"bytes": None, "path": None}, None])
def test_an_empty_cell_is_an_unreadable_input(cell, tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": picture("train", row), "path": None} for row in range(4)]
    pq.write_table(
        pa.table({"image": pa.array([*cells, cell], kind), "label": [0, 1, 0, 1, 0]}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"a\.parquet\[4\]: it is empty"):
        load_task(tmp_path / "a.parquet")
    assert load_task(tmp_path / "a.parquet", skip_bad=True).train.n_rows == 4


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["crane", "owl", "crane"], [0, 1, 2], "two classes are called 'crane'"),
        (["Cat", "Dog"], ["cat", "dog", "cat"], "not among its class names: 'cat', 'dog'"),
        (10, [0, 1, 2], "should be a list of strings, got 10"),
        ({"0": "a"}, [0, 0, 0], "should be a list of strings"),
        (["cat", "dog"], [0.0, 1.0, 0.0], "should be a whole number"),
    ],
)
def test_class_names_that_cannot_be_meant_are_refused(names, labels, message, tmp_path):
    table = pa.table({"image": [picture("train", row) for row in range(3)], "label": labels})
    pq.write_table(table, tmp_path / "train.parquet")
    (tmp_path / "info.json").write_text(json.dumps({"classes": names}))
    with pytest.raises(DataError, match=message):
        load_task(tmp_path)
    (tmp_path / "info.json").write_text("{")
    with pytest.raises(DataError, match="should be a JSON object"):
        load_task(tmp_path)


def test_a_csv_that_is_not_utf8_is_refused_and_lines_are_counted_as_an_editor_does(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\ncaf\xe9,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read as CSV in UTF-8"):
        load_task(path)
    path.write_text('text,label\n"two\nlines",1\n\nthree,\n')
    with pytest.raises(DataError, match=r"line 5 of .* has no label"):
        load_task(path)


def test_rows_asked_for_side_by_side_read_their_group_once(tmp_path, monkeypatch):
    table = pa.table({"image": [picture("train", row) for row in range(32)], "label": [0, 1] * 16})
    pq.write_table(table, tmp_path / "a.parquet")
    reads, read = [], pq.ParquetFile.read_row_group

    def slow(*given):
        reads.append(given[-1])
        time.sleep(0.05)
        return read(*given)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", slow)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert find_damaged(load_task(tmp_path / "a.parquet").train.source, range(32)) == []
    assert reads.count(["image"]) == 1


def test_damaged_labels_are_named(tmp_path):
    table = pa.table({"image": [picture("train", row) for row in range(4)], "label": [0, 1, 0, 1]})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path)
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    damaged = bytearray(path.read_bytes())
    damaged[start : start + 8] = b"\xff" * 8
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"labels of .*train\.parquet cannot be read"):
        load_task(path)
