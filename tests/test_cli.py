"""The command line on real images and the bundled network: a user's session, and a user's mistakes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from datasets import config
from PIL import Image

from head2toe import backbones
from head2toe.data import vtab
from head2toe.errors import BackboneError
from head2toe.head import load_head
from standins import write_repository


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with `data/train|test/LABEL/*.png`: stripes that lie or stand, on noise."""
    root = tmp_path_factory.mktemp("home")
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 5)):
        for label in ("lying", "standing"):
            (root / "data" / split / label).mkdir(parents=True)
            for i in range(count):
                image = random.integers(0, 100, (64, 64, 3), dtype=np.uint8)
                at = random.integers(5, 50)
                image[(slice(at, at + 6), slice(None)) if label == "lying" else (slice(None), slice(at, at + 6))] += 150
                Image.fromarray(image).save(root / "data" / split / label / f"{i}.png")
    return root


@pytest.fixture
def store(home):
    return home / "store"


def test_a_users_session(command, home, store):
    data, head = home / "data", home / "head"
    code, out, err = command("fit", data, "--out", head, "--store", store, "--target-size", 64, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    report = json.loads(out)
    assert set(report) == {
        "method", "backbone", "n_train", "n_classes", "n_taps", "n_features", "n_kept", "keep_fraction", "target_size",
        "cv_accuracy", "test_accuracy", "seconds", "head_bytes", "backbone_bytes", "flops_share", "inputs", "computed",
        "upper_bound",
    }  # fmt: skip
    assert (report["n_train"], report["n_classes"], report["inputs"], report["computed"]) == (20, 2, 30, 30)
    assert set(report["seconds"]) == {"load", "extract", "extract_test", "select", "fit"}
    assert report["seconds"]["extract"] > report["seconds"]["extract_test"] > 0  # 20 images and 10
    assert report["test_accuracy"] >= 0.9

    code, out, _ = command("fit", data, "--out", head, "--store", store, "--target-size", 64, "--json")
    assert (json.loads(out)["inputs"], json.loads(out)["computed"]) == (30, 0)

    images = sorted((data / "test").rglob("*.png"))
    code, out, _ = command("predict", head, *images, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in images]
    assert (
        np.mean([line["label"] == path.parent.name for line, path in zip(lines, images, strict=True)])
        == (report["test_accuracy"])
    )
    assert all(sum(line["probabilities"].values()) == pytest.approx(1) for line in lines)

    code, out, _ = command("evaluate", head, data, "--store", store, "--json")
    assert json.loads(out)["accuracy"] == report["test_accuracy"]
    alone = home / "alone"  # images of one class: what a head makes of them can be asked, a head cannot be made of them
    alone.mkdir()
    kind = images[0].parent
    (alone / kind.name).symlink_to(kind)
    code, out, _ = command("evaluate", head, alone, "--store", store, "--json")
    assert list(json.loads(out)["per_class"]) == [kind.name]
    code, _, err = command("fit", alone, "--out", home / "none", "--store", store)
    assert (code, f"every training input of 'alone' is '{kind.name}'" in " ".join(err.split())) == (2, True)

    code, out, _ = command("store", "ls", "--store", store, "--json")
    (view,) = json.loads(out)
    assert (view["backbone"], view["rows"], view["target_size"]) == ("efficientnet_lite0", 30, 64)
    assert command("store", "verify", "--store", store)[:2] == (0, "every byte of features matches its checksum\n")
    assert command("store", "show", view["key"][:8], "--store", store)[0] == 0
    for doing in ("verify", "compact"):  # a mistyped place is no sound store
        code, _, err = command("store", doing, "--store", home / "nowhere")
        assert (code, "there is no view at" in err) == (2, True)
    assert command("store", "compact", "--store", store, "--json")[0] == 0
    assert command("store", "rm", view["key"], "--yes", "--store", store)[0] == 0
    assert command("store", "ls", "--store", store, "--json")[1] == "[]\n"

    (home / "notes.png").write_text("not an image")
    code, out, err = command("predict", head, home / "notes.png")
    assert (code, out) == (2, "")
    assert "notes.png" in err


def test_a_benchmark_of_tasks(command, home, store, tmp_path):
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    tasks.mkdir()
    (tasks / "stripes").symlink_to(home / "data")
    words = ["bench", "packs", "--root", tasks, "--out", out, "--store", store, "--target-size", 64]
    code, page, err = command(*words, "--methods", "linear")
    assert code == 0, err
    assert page == (out / "table.md").read_text() + "\n"
    (line,) = (out / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["settings"]["target_sizes"] == "64"

    (tasks / "empty").mkdir()
    code, text, err = command(*words, "--methods", "linear", "--json")
    assert code == 1
    assert "failed: empty, efficientnet_lite0, linear, seed 0" in err
    assert "1 of 1 fits failed" in err
    assert json.loads(text)[0]["rows"][0]["name"] == "stripes"  # what was measured before
    code, text, _ = command(*words, "--methods", "linear", "--tasks", "stripes", "--json")
    assert code == 0
    (table,) = json.loads(text)
    assert table["rows"][0]["entries"]["linear"]["n_seeds"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "linea"], "did you mean 'linear'"),
        (["--tasks", "tset"], "did you mean 'test'"),
        (["--seeds", "a"], "--seeds takes numbers"),
        (["--seeds", -1], "--seeds takes numbers"),
        (["--max-test", 0], "--max-test"),
        (["--reference", "linea"], "did you mean 'linear'"),
        (["--backbones", "timm/resnet5o"], "near names: resnet50"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--root", "nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_a_mistake_in_a_benchmark(command, home, tmp_path, words, message):
    code, out, err = command("bench", "packs", "--root", home / "data", "--out", tmp_path / "out", *words)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert not (tmp_path / "out").exists()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A stand-in for a dataset repository with one task of VTAB-1k."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return write_repository(tmp_path / "vtab-1k", {"svhn": 10})


@pytest.mark.parametrize("words", [["bench", "vtab"], ["study", "n-train", "--suite", "vtab"]])
def test_networks_are_loaded_to_resize_as_the_suite_says(command, repository, tmp_path, monkeypatch, words):
    asked = []

    def load_backbone(name, *, resize, **others):
        asked.append(resize)
        raise BackboneError("none here")

    monkeypatch.setattr(backbones, "load_backbone", load_backbone)
    monkeypatch.setattr(vtab, "VTAB", tuple(replace(task, resize="crop") for task in vtab.VTAB))
    code, _, err = command(*words, "--root", repository, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert code != 0
    assert "none here" in err
    assert set(asked) == {"crop"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vtab", "--tasks", "dtd"], "suite 'vtab' has no task 'dtd'; it has svhn"),
        (["packs"], "suite 'packs' reads a folder"),
    ],
)
def test_a_mistake_in_a_benchmark_from_hugging_face(command, repository, tmp_path, words, message):
    code, out, err = command("bench", *words, "--root", repository, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_taps_as_json_lines(command):
    code, out, _ = command("taps", "efficientnet_lite0", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert rows[0]["name"] == "bn1"
    assert (rows[0]["layout"], rows[0]["shape"], rows[0]["length"]) == ("NCHW", [32, 112, 112], 1024)
    assert [row["flops_share"] for row in rows] == sorted(row["flops_share"] for row in rows)
    assert rows[-1]["flops_share"] == pytest.approx(1, abs=1e-3)


def test_a_smaller_input_gives_smaller_maps(command):
    lines = {}
    for side in (64, 128):
        code, text, err = command("taps", "efficientnet_lite0", "--no-weights", "--image-size", side, "--json")
        assert code == 0, err
        lines[side] = [json.loads(line) for line in text.splitlines()]
    assert [one["name"] for one in lines[64]] == [one["name"] for one in lines[128]]
    assert (lines[64][0]["shape"], lines[128][0]["shape"]) == ([32, 32, 32], [32, 64, 64])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "efficientnet_lite1"], "did you mean 'efficientnet_lite0'"),
        (["--backbone", "timm/resnet5o"], "resnet50"),
        (["--method", "linea"], "did you mean 'linear'"),
        (["--keep", "1.5"], "fraction"),
        (["--criterion", "f_clasif"], "did you mean 'f_classif'"),
        (["--method", "linear", "--criterion", "l2"], "no use for --criterion"),
        (["--folds", "99"], "99 folds"),
        (["--target-size", "-3"], "target_size"),
        (["--device", "tpu"], "device"),
        (["--lr", "0.1"], "no use for --lr"),
        (["--method", "finetune", "--folds", "3"], "no use for --folds"),
        (["--method", "scratch", "--target-size", "512"], "no use for --target-size"),
        (["--method", "finetune", "--lr", "nan"], "positive number"),
    ],
)
def test_a_mistake_ends_with_one_message_and_leaves_nothing(command, home, store, words, message):
    out_folder = home / "never"
    code, out, err = command("fit", home / "data", "--out", out_folder, "--store", store, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not out_folder.exists()


def test_a_criterion_is_kept_with_the_head(command, home, store):
    saved = home / "random-head"
    words = ["--target-size", 64, "--keep", 0.1, "--criterion", "random"]
    code, _, err = command("fit", home / "data", "--out", saved, "--store", store, *words)
    assert code == 0, err
    assert load_head(saved).provenance.settings["criterion"] == "random"


def test_a_network_is_trained_saved_and_used_like_a_head(command, home, store):
    data, saved = home / "data", home / "network"
    training = ["--method", "finetune", "--steps", 1, "--lr", "1e-3"]
    code, out, err = command("fit", data, "--out", saved, "--store", store, *training, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["method"], report["n_train"]) == ("finetune", 20)
    assert report["seconds"]["train"] > 0
    assert 0.6 < report["head_bytes"] / report["backbone_bytes"] < 0.8  # all but the old classifier
    assert not list(home.glob("store-training/*"))

    images = sorted((data / "test").rglob("*.png"))
    code, out, _ = command("predict", saved, *images, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    right = [line["label"] == path.parent.name for line, path in zip(lines, images, strict=True)]
    assert np.mean(right) == report["test_accuracy"]
    code, out, _ = command("evaluate", saved, data, "--json")
    assert json.loads(out)["accuracy"] == report["test_accuracy"]


def test_data_that_is_not_there(command, home, store, tmp_path):
    code, _, err = command("fit", tmp_path / "nowhere", "--out", home / "never", "--store", store)
    assert code == 2
    assert "nowhere" in err


def test_corrupt_images_are_listed_or_skipped(command, home, store, tmp_path):
    data = tmp_path / "data"
    for label in ("lying", "standing"):
        (data / label).mkdir(parents=True)
        for path in sorted((home / "data" / "train" / label).iterdir()):
            (data / label / path.name).write_bytes(path.read_bytes())
    (data / "lying" / "broken.png").write_bytes((data / "lying" / "0.png").read_bytes()[:200])
    words = ["fit", data, "--out", tmp_path / "head", "--store", store, "--method", "linear", "--target-size", 64]
    code, _, err = command(*words)
    assert code == 2
    assert "broken.png" in err
    assert "--skip-bad" in err
    code, out, err = command(*words, "--skip-bad", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["n_train"], report["test_accuracy"]) == (20, None)
    assert "left out 1 unreadable" in err


def test_ctrl_c_ends_with_a_word_and_its_code(command, monkeypatch):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(backbones, "load_backbone", stopped)
    code, out, err = command("taps", "efficientnet_lite0")
    assert (code, out) == (130, "")
    assert "run the same command to go on" in err


def test_help_of_every_command_has_an_example(command):
    for words in (
        ["taps"],
        ["fit"],
        ["predict"],
        ["evaluate"],
        ["extract"],
        ["bench"],
        ["demo"],
        ["store", "ls"],
        ["store", "rm"],
    ):
        code, out, _ = command(*words, "--help")
        assert code == 0
        assert f"Example: head2toe {' '.join(words)}" in " ".join(out.split())
