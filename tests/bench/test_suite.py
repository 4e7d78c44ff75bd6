"""Which tasks a folder holds, and in which groups."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from head2toe.bench.suite import read_groups, suite_named
from head2toe.data import vtab
from head2toe.errors import DataError


def write_folder(folder, seed: int) -> None:
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        pixels = np.random.default_rng([seed, ord(label)]).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / label / "0.png")


def write_vtab(folder) -> None:
    write_folder(folder / "images", 0)
    for name in ("train800.txt", "test.txt"):
        (folder / name).write_text("images/a/0.png 0\nimages/b/0.png 1\n")


def test_every_folder_is_a_task_in_a_group(tmp_path):
    for seed, name in enumerate(("one", "two", "three")):
        write_folder(tmp_path / name, seed)
    (tmp_path / "two" / "info.json").write_text(json.dumps({"group": "natural"}))
    (tmp_path / "notes.txt").write_text("no task")
    (tmp_path / "groups.json").write_text(json.dumps({"structured": ["three"]}))
    suite = suite_named("packs", tmp_path, groups=read_groups(tmp_path / "groups.json"))
    assert [(task.name, task.group) for task in suite.tasks] == [
        ("one", "all"), ("three", "structured"), ("two", "natural"),
    ]  # fmt: skip
    assert suite.tasks[0].load().classes == ("a", "b")


def test_tasks_are_chosen_by_name(tmp_path):
    for name in ("one", "two"):
        write_folder(tmp_path / name, 0)
    suite = suite_named("packs", tmp_path)
    assert [task.name for task in suite.only(["two"]).tasks] == ["two"]
    with pytest.raises(DataError, match="did you mean 'two'"):
        suite.only(["tow"])


def test_vtab_runs_what_is_there(tmp_path):
    write_vtab(tmp_path / "dsprites_location")
    write_vtab(tmp_path / "caltech101")
    write_folder(tmp_path / "of_my_own", 1)
    suite = suite_named("vtab", tmp_path)
    assert [(task.name, task.group) for task in suite.tasks] == [
        ("caltech101", "natural"), ("dsprites_loc", "structured"),
    ]  # fmt: skip
    assert suite.tasks[1].load().name == "dsprites_loc"


def test_the_benchmark_says_how_pictures_are_resized(tmp_path, monkeypatch):
    write_vtab(tmp_path / "dtd")
    assert suite_named("vtab", tmp_path).resize == "squash"
    monkeypatch.setattr(vtab, "VTAB", tuple(replace(task, resize="crop") for task in vtab.VTAB))
    assert suite_named("vtab", tmp_path).resize == "crop"


@pytest.mark.parametrize(
    ("name", "message"),
    [("vtab", "holds no VTAB-1k task"), ("packs", "holds no folder"), ("imagenet", "there are packs .* and vtab")],
)
def test_a_root_without_tasks_and_an_unknown_suite_are_refused(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        suite_named(name, tmp_path)


def test_a_root_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        suite_named("packs", tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["[1]", "{", '{"natural": 3}', '{"natural": "caltech101"}'])
def test_groups_that_are_none(tmp_path, text):
    (tmp_path / "groups.json").write_text(text)
    with pytest.raises(DataError, match="should be JSON like"):
        read_groups(tmp_path / "groups.json")
