"""Hugging Face datasets, on one that lies on disk."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value, config
from datasets import Image as Picture
from PIL import Image

from head2toe.data import load_task
from head2toe.errors import DataError, MissingExtraError


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a dataset of shades, and say how `load_task` calls it."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def written(label: str = "label", **more) -> str:
        (tmp_path / "shades").mkdir()
        for split, labels in (("train", [1, 0, 1, 0]), ("test", [0, 1]), ("extra", [0])):
            columns = {
                "image": [{"bytes": png(10 * len(labels) + i), "path": None} for i in range(len(labels))],
                label: labels,
                **{name: [value] * len(labels) for name, (value, _) in more.items()},
            }
            kinds = {"image": Picture(), label: ClassLabel(names=["zebra", "ant"])}
            features = Features(kinds | {name: kind for name, (_, kind) in more.items()})
            Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "shades" / f"{split}.parquet")
        return f"hf:{tmp_path / 'shades'}"

    return written


@pytest.mark.parametrize("label", ["label", "animal"])
def test_splits_classes_and_bytes_are_the_datasets(write, label):
    task = load_task(write(label))
    assert task.classes == ("zebra", "ant")
    assert [split.labels.tolist() for split in task.splits] == [[1, 0, 1, 0], [0, 1]]
    assert [task.train.source[i] for i in range(4)] == [png(40 + i) for i in range(4)]
    assert task.test.source.name(1).endswith("shades/test[1]")


def test_two_columns_with_class_names_are_one_too_many(write):
    with pytest.raises(DataError, match="one column with class names; it has image, fine, coarse"):
        load_task(write("fine", coarse=(0, ClassLabel(names=["x", "y"]))))


def test_a_column_that_is_no_label_is_none(write):
    assert load_task(write(weight=(0.5, Value("float64")))).classes == ("zebra", "ant")


def test_a_dataset_that_is_not_there(monkeypatch):
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="'no/such_dataset' cannot be had from Hugging Face"):
        load_task("hf:no/such_dataset")


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"head2toe\[datasets\]"):
        load_task("hf:no/such_dataset")


def test_a_damaged_file_is_said_to_be_none(write):
    name = write()
    Path(name.removeprefix("hf:"), "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="shades' cannot be had from Hugging Face"):
        load_task(name)
