"""VTAB-1k's folder layout, on a stand-in made here."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from head2toe.data import load_task
from head2toe.data.vtab import VTAB, read_vtab
from head2toe.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """A stand-in of KITTI's task, whose four classes are not all in train: `images/` and three lists."""
    folder = tmp_path / "kitti"
    random = np.random.default_rng(0)
    for split, name, labels in (
        ("train", "train800.txt", [3, 0, 1, 3]), ("val", "val200.txt", [1, 0]), ("test", "test.txt", [0, 2, 1]),
    ):  # fmt: skip
        (folder / "images" / split).mkdir(parents=True)
        lines = []
        for i, label in enumerate(labels):
            path = f"images/{split}/image {i}.png"
            Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / path)
            lines.append(f"{path} {label}")
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_a_known_task_has_the_benchmarks_classes_whichever_its_rows_hold(folder):
    (folder / "test.txt").write_text("images/test/image 0.png 0\n")
    (folder / "train800.txt").write_text("".join(f"images/train/image {i}.png {i // 2}\n" for i in range(4)))
    assert read_vtab(folder).classes == ("0", "1", "2", "3")
    other = folder.rename(folder.with_name("birds"))
    assert read_vtab(other).classes == ("0", "1")


def test_the_lists_are_the_splits(folder):
    task = read_vtab(folder)
    assert (task.name, task.classes) == ("kitti", ("0", "1", "2", "3"))
    assert [split.labels.tolist() for split in task.splits] == [[3, 0, 1, 3], [1, 0], [0, 2, 1]]
    assert task.test.source.name(1) == "images/test/image 1.png"
    assert task.test.source[1] == (folder / "images/test/image 1.png").read_bytes()


def test_train_and_validation_in_one_list_give_the_same_rows(folder):
    apart = read_vtab(folder)
    lines = [(folder / name).read_text() for name in ("train800.txt", "val200.txt")]
    (folder / "train800val200.txt").write_text("".join(lines))
    (folder / "train800.txt").unlink()
    joined = read_vtab(folder)
    assert joined.validation is None
    assert joined.train.ids == apart.train.ids + apart.validation.ids
    assert joined.classes == apart.classes


@pytest.mark.parametrize("prefix", ["", "vtab:"])
def test_load_task_knows_the_layout(folder, prefix):
    assert load_task(f"{prefix}{folder}").test.ids == read_vtab(folder).test.ids


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("val200.txt", "images/val/image 0.png\n", "line 1 of .*val200.txt should be 'path number'"),
        ("test.txt", "images/test/image 0.png 1\nimages/test/image 1.png 4\n", "line 2 .* kitti has 4 classes"),
        ("train800.txt", "images/train/none.png 1\nimages/train/image 0.png 0\n", "cannot be opened"),
    ],
)
def test_a_list_that_cannot_be_read_is_named(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_vtab(folder)


def test_a_folder_without_lists_is_no_task(folder):
    (folder / "test.txt").unlink()
    with pytest.raises(DataError, match=r"no VTAB-1k task; expected test\.txt"):
        load_task(f"vtab:{folder}")


def test_the_benchmark_has_nineteen_tasks_in_three_groups():
    assert Counter(task.group for task in VTAB) == {"natural": 7, "specialized": 4, "structured": 8}
    names = [name for task in VTAB for name in task.folders]
    assert len(set(names)) == len(names)


def test_all_tasks_are_resized_alike_as_one_network_reads_them():
    assert {task.resize for task in VTAB} == {"squash"}
