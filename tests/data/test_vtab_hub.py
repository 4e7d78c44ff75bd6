"""VTAB-1k from a Hugging Face dataset repository, on one that lies on disk."""

import pytest
from datasets import config

from head2toe.bench.suite import suite_named
from head2toe.data import load_task
from head2toe.data.vtab import SIZES, VTAB, read_vtab_hub
from head2toe.errors import DataError
from standins import ROWS, write_pack, write_repository

KNOWN = {task.name: task for task in VTAB}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_each_task_is_the_configuration_of_its_name(tmp_path):
    root = write_repository(tmp_path / "vtab-1k", {"birds": 5, "clevr_distance": 6, "svhn": 10})
    suite = suite_named("vtab", root)
    assert [(task.name, task.group) for task in suite.tasks] == [("svhn", "natural"), ("clevr_dist", "structured")]
    task, pack = suite.tasks[1].load(), load_task(tmp_path / "vtab-1k" / "clevr_distance")
    assert (task.name, task.classes) == ("clevr_dist", tuple("012345"))
    assert [split.n_rows for split in task.splits] == list(ROWS.values())
    assert [split.ids for split in task.splits] == [split.ids for split in pack.splits]
    assert [split.labels.tolist() for split in task.splits] == [split.labels.tolist() for split in pack.splits]


def test_a_task_has_all_of_the_benchmarks_classes(tmp_path):
    repository = write_repository(tmp_path / "vtab-1k", {"cifar100": 10}).removeprefix("hf:")
    assert read_vtab_hub(KNOWN["cifar"], repository, "cifar100").classes == tuple(map(str, range(100)))


def test_classes_are_called_as_the_repository_calls_them(tmp_path):
    names = ["AnnualCrop", "Forest", *"abcdefgh"]
    write_pack(tmp_path / "eurosat", 10, names=names)
    task = read_vtab_hub(KNOWN["eurosat"], str(tmp_path / "eurosat"), "default")
    assert task.classes == tuple(names)


def test_labels_that_are_not_the_tasks_are_refused(tmp_path):
    repository = write_repository(tmp_path / "vtab-1k", {"kitti": 10}).removeprefix("hf:")
    with pytest.raises(DataError, match=r"'kitti' of hf:.*vtab-1k has the label '\d', kitti has 4 classes from 0"):
        read_vtab_hub(KNOWN["kitti"], repository, "kitti")


def test_another_number_of_class_names_is_refused(tmp_path):
    write_pack(tmp_path / "dtd", 3, names=["banded", "dotted", "lined"])
    with pytest.raises(DataError, match=r"'default' of hf:.*dtd names 3 classes, dtd has 47"):
        read_vtab_hub(KNOWN["dtd"], str(tmp_path / "dtd"), "default")


def test_a_whole_data_set_is_not_taken_for_the_thousand_images(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "train", 30)
    monkeypatch.setitem(SIZES, "validation", 19)
    repository = write_repository(tmp_path / "vtab-1k", {"svhn": 10}).removeprefix("hf:")
    with pytest.raises(DataError, match=r"'svhn' of hf:.* has 50 images to learn from, a VTAB-1k task has 49"):
        read_vtab_hub(KNOWN["svhn"], repository, "svhn")


def test_a_repository_without_any_task_names_what_is_there(tmp_path):
    root = write_repository(tmp_path / "birds", {"crows": 5, "owls": 6})
    with pytest.raises(DataError, match=r"birds has no configuration named like a VTAB-1k task .*; it has crows, owls"):
        suite_named("vtab", root)


def test_a_repository_that_is_not_there(monkeypatch):
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="'no/such_dataset' cannot be had from Hugging Face"):
        suite_named("vtab", "hf:no/such_dataset")


def test_packs_are_folders():
    with pytest.raises(DataError, match="'packs' reads a folder"):
        suite_named("packs", "hf:some/dataset")
