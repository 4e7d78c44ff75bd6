"""VTAB-1k from TensorFlow Datasets: splits and labels, on a stand-in for the library that serves rows from memory."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from head2toe.bench.suite import vtab_suite
from head2toe.data.tfds import RECIPES, read_tfds, tfds_folder
from head2toe.data.vtab import VTAB
from head2toe.errors import DataError, MissingExtraError


def png(*pixels: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.array([pixels], np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def serve(monkeypatch):
    """Let the library hold these rows under each split instruction; any other is an error."""

    def served(splits: dict[str, list[dict]]) -> None:
        def as_data_source(instruction, decoders):
            assert set(decoders) == {"image"}
            return splits[instruction]

        module = SimpleNamespace(
            builder_from_directory=lambda folder: SimpleNamespace(as_data_source=as_data_source),
            decode=SimpleNamespace(SkipDecoding=object),
        )
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)

    return served


def test_the_first_rows_of_train_and_validation_and_all_of_test(serve, tmp_path):
    rows = [{"image": png(i % 256, i // 256), "label": i % 3} for i in range(1500)]
    serve({"train[:90%]": rows[:900], "train[90%:]": rows[900:1200], "test": rows[1200:]})
    task = read_tfds("caltech101", tmp_path)
    assert [split.n_rows for split in task.splits] == [800, 200, 300]
    assert task.classes == tuple(map(str, range(102)))
    assert task.validation.labels[:4].tolist() == [0, 1, 2, 0]
    assert task.validation.source[0] == rows[900]["image"]
    assert task.test.source.name(2) == "caltech101/test[2]"


def test_sprites_are_stored_as_zeros_and_ones(serve, tmp_path):
    rows = [{"image": png(0, 1, i), "label_orientation": i, "label_x_position": i % 32} for i in range(40)]
    serve(dict.fromkeys(RECIPES["dsprites_ori"].splits, rows))
    task = read_tfds("dsprites_ori", tmp_path)
    assert np.array_equal(task.train.source[0][0, :, 0], [0, 255, 0])
    assert task.train.labels.tolist() == [int(i / 2.5) for i in range(40)]
    assert np.bincount(read_tfds("dsprites_loc", tmp_path).train.labels).tolist() == [4] * 4 + [2] * 12


@pytest.mark.parametrize(
    ("depths", "label"), [([7.9, 30.0], 0), ([8.0], 0), ([8.1, 9.9], 1), ([9.2], 3), ([9.6], 4), ([11.0, 12.0], 5)]
)
def test_the_closest_object(depths, label):
    objects = {"pixel_coords": [np.array([100.0, 100.0, depth]) for depth in depths], "size": [0] * len(depths)}
    assert RECIPES["clevr_dist"].label({"objects": objects}) == label


@pytest.mark.parametrize(
    ("kinds", "ahead", "label"),
    [([0, 1], [5.0, 30.0], 0), ([2, 4], [15.0, 3.0], 1), ([1], [40.0], 2), ([3, 5], [4.0, 5.0], 3), ([], [], 3)],
)
def test_the_closest_vehicle(kinds, ahead, label):
    objects = {"type": kinds, "location": [np.array([0.0, 0.0, z]) for z in ahead]}
    assert RECIPES["kitti"].label({"objects": objects}) == label


def test_objects_are_counted_from_three():
    assert RECIPES["clevr_count"].label({"objects": {"size": [0] * 10}}) == 7


def test_every_task_of_the_benchmark_has_a_recipe():
    assert list(RECIPES) == [task.name for task in VTAB]


def test_the_newest_version_is_a_task_of_the_suite(serve, tmp_path):
    for version in ("2.0.0", "10.0.0", "incomplete"):
        (tmp_path / "eurosat" / "rgb" / version).mkdir(parents=True)
        (tmp_path / "eurosat" / "rgb" / version / "dataset_info.json").write_text(json.dumps({}))
    rows = [{"image": png(i), "label": i} for i in range(4)]
    serve(dict.fromkeys(RECIPES["eurosat"].splits, rows))
    assert tfds_folder("eurosat", tmp_path) == tmp_path / "eurosat" / "rgb" / "10.0.0"
    (task,) = vtab_suite(tmp_path).tasks
    assert (task.name, task.group, len(task.load().classes)) == ("eurosat", "specialized", 10)


def test_files_that_are_read_from_the_start_only_name_the_way_out(serve, tmp_path, monkeypatch):
    serve({})
    library = sys.modules["tensorflow_datasets"]

    def refuse(instruction, decoders):
        # what TensorFlow Datasets does with such files
        raise NotImplementedError

    monkeypatch.setattr(library, "builder_from_directory", lambda folder: SimpleNamespace(as_data_source=refuse))
    with pytest.raises(DataError, match=r"tfds convert_format .*array_record"):
        read_tfds("dtd", tmp_path)


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(MissingExtraError, match=r"head2toe\[tfds\]"):
        read_tfds("dtd", tmp_path)
