"""Real fits of a tiny network on a tiny suite: what is written, what is resumed, what fails alone."""

import base64
import io
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from head2toe.backbones.build import side_by_side
from head2toe.bench.conditions import Conditions
from head2toe.bench.predictions import predictions_file, read_right, worst_mistakes
from head2toe.bench.result import append_result, read_results, slug
from head2toe.bench.run import Failure, limited, names_of, plan, results_file, run, shown
from head2toe.bench.suite import Suite, SuiteTask, suite_named
from head2toe.bench.tables import write_tables
from head2toe.data import task_from_arrays
from head2toe.errors import BackboneError, DataError
from head2toe.methods.finetune import FineTune
from head2toe.methods.head2toe import Head2Toe
from head2toe.methods.linear import Linear
from head2toe.methods.training import Training
from head2toe.network import Network
from head2toe.store import FeatureStore
from standins import LISTS, write_repository, write_vtab

METHODS, CONDITIONS = ("all-l2", "linear"), Conditions((64,), 20)


@pytest.fixture(scope="module")
def suite(corners):
    return Suite("packs", (SuiteTask("corners", "structured", lambda: corners),))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, suite, network):
    """A folder of results, and the results as they came; with a store that was empty before."""
    out, store = tmp_path_factory.mktemp("out"), FeatureStore(tmp_path_factory.mktemp("empty"))
    fits = plan(suite, ["tiny"], METHODS, [0], out, CONDITIONS)
    return out, list(run(fits, suite, lambda name: network, out, store, conditions=CONDITIONS))


@pytest.fixture
def out(measured, tmp_path):
    """A copy of the measured folder, to spoil."""
    results_file(tmp_path).write_bytes(results_file(measured[0]).read_bytes())
    return tmp_path


def test_every_fit_becomes_a_line(measured, corners, network, store):
    out, results = measured
    assert read_results(results_file(out)) == results
    assert [(r.task, r.group, r.backbone, r.method, r.n_test) for r in results] == [
        ("corners", "structured", "tiny", method, 20) for method in METHODS
    ]
    head = Linear(64).fit(network, limited(corners, 20), store, progress=False)
    all_l2, linear = results
    assert linear.test_accuracy == pytest.approx(head.metrics.test_accuracy, abs=1e-12)
    assert linear.cv_accuracy == head.metrics.cv_accuracy
    assert linear.kept == {network.prelogits: linear.n_kept}
    assert sum(all_l2.kept.values()) == all_l2.n_kept == all_l2.n_features > linear.n_kept
    assert list(all_l2.kept) == [tap.name for tap in network.taps]
    assert (linear.settings["resize"], linear.settings["max_test"]) == ("squash", 20)
    assert linear.settings["normalised"] == "mean 0.5 0.5 0.5, std 0.25 0.25 0.25"
    assert min(linear.peak_bytes, linear.task_bytes, linear.backbone_bytes) > 0
    assert set(linear.seconds) >= {"extract", "select", "fit"}
    assert (all_l2.settings["extracted_images"], linear.settings["extracted_images"]) == (80, 0)


def test_predictions_and_mistakes_say_the_same_as_the_result(measured, corners):
    out, results = measured
    test = limited(corners, 20).test
    for result in results:
        with np.load(out / "predictions" / f"{slug(result)}.npz", allow_pickle=False) as saved:
            assert np.array_equal(saved["labels"], test.labels)
            assert saved["probabilities"].dtype == np.float16
            assert np.allclose(saved["probabilities"].sum(axis=1), 1, atol=1e-2)
        right = read_right(out, result)
        assert right.mean() == pytest.approx(result.test_accuracy)
        mistakes = json.loads((out / "mistakes" / f"{slug(result)}.json").read_text())
        assert len(mistakes) == min(12, (~right).sum())
        assert all(mistake["label"] != mistake["predicted"] for mistake in mistakes)
        surest = [mistake["probability"] for mistake in mistakes]
        assert surest == sorted(surest, reverse=True)
        for mistake in mistakes:
            picture = Image.open(io.BytesIO(base64.b64decode(mistake["thumbnail"])))
            assert (picture.format, max(picture.size)) == ("JPEG", 16)


def test_nothing_is_fitted_twice(measured, suite):
    assert plan(suite, ["tiny"], METHODS, [0], measured[0], CONDITIONS) == []
    (fit,) = plan(suite, ["tiny"], ["linear"], [0, 1], measured[0], CONDITIONS)
    assert fit.seed == 1


@pytest.mark.parametrize("given", [None, (64, 512)])
def test_what_reads_most_comes_first_so_that_images_pass_once(suite, tmp_path, given):
    names = ["linear", "scratch", "oracle", "head2toe", "finetune"]
    fits = plan(suite, ["tiny"], names, [0, 1], tmp_path, Conditions(given))
    last = ["linear", "linear", "scratch", "scratch", "finetune", "finetune"]
    first = ["head2toe", "head2toe", "oracle", "oracle"]  # alike where sizes are given: as they were asked for
    assert [fit.method for fit in fits] == ([*first, *last] if given is None else [*first[2:], *first[:2], *last])


@pytest.mark.parametrize("cut", [1, 40])
def test_a_killed_run_goes_on(out, measured, suite, network, store, cut):
    """Killed while the last line was written; without its end alone, the line is still whole."""
    lines = results_file(out).read_bytes()
    results_file(out).write_bytes(lines[:-cut])
    fits = plan(suite, ["tiny"], METHODS, [0], out, CONDITIONS)
    assert [fit.method for fit in fits] == ([] if cut == 1 else ["linear"])
    again = list(run(fits, suite, lambda name: network, out, store, conditions=CONDITIONS))
    append_result(results_file(out), [replace(measured[1][0], seed=9)])
    there = read_results(results_file(out))
    assert [result.key for result in there[:2]] == [result.key for result in measured[1]]
    assert [result.seed for result in there] == [0, 0, 9]
    assert [r.test_accuracy for r in again] == [r.test_accuracy for r in measured[1][2 - len(again) :]]


@pytest.mark.parametrize("other", [Conditions((128,), 20), Conditions((64,), None)])
def test_results_under_other_conditions_are_not_mixed(measured, suite, other):
    with pytest.raises(DataError, match="choose another --out"):
        plan(suite, ["tiny"], METHODS, [0], measured[0], other)


def test_an_unknown_method_is_refused_before_anything_runs(suite, tmp_path):
    with pytest.raises(DataError, match="did you mean 'linear'"):
        plan(suite, ["tiny"], ["linea"], [0], tmp_path, CONDITIONS)


def test_two_suites_in_one_folder_keep_their_predictions_apart(measured):
    one = measured[1][0]
    assert slug(one) != slug(replace(one, suite="vtab"))


def test_what_fails_does_not_stop_the_others(corners, network, store, tmp_path):
    def broken():
        raise DataError("the third image is damaged")

    train_only = task_from_arrays(np.stack([corners.train.source[i] for i in range(8)]), corners.train.labels[:8])
    tasks = {"broken": broken, "untested": lambda: train_only, "corners": lambda: corners}
    suite = Suite("packs", tuple(SuiteTask(name, "all", load) for name, load in tasks.items()))
    fits = plan(suite, ["tiny"], ["linear"], [0], tmp_path, CONDITIONS)
    bad, untested, good = run(fits, suite, lambda name: network, tmp_path, store, conditions=CONDITIONS)
    assert isinstance(bad, Failure)
    assert "broken, tiny, linear, seed 0: the third image" in str(bad)
    assert isinstance(untested, Failure)
    assert "test split" in untested.reason
    assert read_results(results_file(tmp_path)) == [good]


def test_a_class_with_one_image_is_judged_by_the_validation_split(corners, network, store, tmp_path):
    images = np.stack([corners.train.source[i] for i in range(24)])
    labels = corners.train.labels[:24].copy()
    labels[0] = 4
    task = task_from_arrays(images[:16], labels[:16], validation=(images[16:], labels[16:]), test=(images, labels))
    suite = Suite("packs", (SuiteTask("rare", "all", lambda: task),))
    fits = plan(suite, ["tiny"], ["linear"], [0], tmp_path, Conditions())
    (result,) = run(fits, suite, lambda name: network, tmp_path, store)
    assert result.settings["folds"] == 1
    assert result.cv_accuracy * 8 == pytest.approx(round(result.cv_accuracy * 8))


def test_a_network_trained_whole_is_measured_by_its_own_predictions(
    suite, corners, network, store, tmp_path, monkeypatch
):
    short = FineTune(Training(lrs=(1e-2,), steps=(6,), augments=("none",)))
    monkeypatch.setattr("head2toe.bench.run.method_named", lambda name, **settings: short)
    fits = plan(suite, ["tiny"], ["finetune"], [0], tmp_path, Conditions())
    passes, logits_of = [], Network.logits_of
    monkeypatch.setattr(Network, "logits_of", lambda self, source: passes.append(source) or logits_of(self, source))
    (result,) = run(fits, suite, lambda name: network, tmp_path, store)
    assert passes == [corners.test.source]
    trained = short.fit(network, corners, store, progress=False)
    assert result.test_accuracy == trained.metrics.test_accuracy == read_right(tmp_path, result).mean()
    assert (result.n_test, result.n_kept, result.kept, result.task_bytes) == (40, 0, {}, trained.n_bytes)
    assert (set(result.flops), result.settings["lr"], result.upper_bound) == ({"train"}, 1e-2, False)


def test_trained_networks_try_the_rates_and_steps_that_were_asked_for(suite, network, store, tmp_path):
    asked, methods = Conditions(max_test=20, lrs=(1e-2, 1e-3), steps=(2,)), ["linear", "finetune"]
    fits = plan(suite, ["tiny"], methods, [0], tmp_path, asked)
    linear, tuned = run(fits, suite, lambda name: network, tmp_path, store, conditions=asked)
    assert "tried_lrs" not in linear.settings
    assert (tuned.settings["tried_lrs"], tuned.settings["tried_steps"], tuned.settings["steps"]) == (
        "0.01,0.001",
        "2",
        2,
    )
    assert plan(suite, ["tiny"], ["linear"], [0], tmp_path, Conditions(max_test=20)) == []
    with pytest.raises(DataError, match=r"tried_lrs 0\.01,0\.001, asked for now is 0\.01,0\.003"):
        plan(suite, ["tiny"], methods, [0], tmp_path, Conditions(max_test=20))


def test_what_a_trained_network_chose_from_is_written_out_where_nothing_was_asked_for():
    asked = Conditions(steps=(7,)).settings("scratch")
    assert (asked["tried_lrs"], asked["tried_steps"]) == ("0.01,0.003,0.001,0.0003", "7")
    assert Conditions().settings("scratch")["tried_steps"] == "800,3200"
    assert "tried_lrs" not in Conditions(steps=(7,)).settings("head2toe")


def test_a_training_whose_result_could_not_be_written_is_not_lost(suite, network, store, tmp_path, monkeypatch):
    alone = replace(suite, tasks=suite.tasks[:1])
    asked = Conditions(lrs=(1e-2,), steps=(2,))
    fits = plan(alone, ["tiny"], ["finetune"], [0], tmp_path, asked)
    with monkeypatch.context() as full:
        full.setattr("head2toe.bench.run.append_result", lambda *of: (_ for _ in ()).throw(OSError(28, "disk is full")))
        (lost,) = run(fits, alone, lambda name: network, tmp_path, store, conditions=asked)
    assert isinstance(lost, Failure)
    monkeypatch.setattr("head2toe.methods.training.loop._step", lambda *of: pytest.fail("a step was made again"))
    monkeypatch.setattr("head2toe.methods.training.choice.step_flops", lambda *of: 1)
    (result,) = run(fits, alone, lambda name: network, tmp_path, store, conditions=asked)
    assert read_results(results_file(tmp_path)) == [result]
    assert not Path(f"{store.location}-training").exists()


def test_results_at_another_image_size_are_not_taken_for_these(suite, network, store, tmp_path):
    small = Conditions((64,), 20, image_size=16)
    fits = plan(suite, ["tiny"], ["linear"], [0], tmp_path, small)
    list(run(fits, suite, lambda name: network, tmp_path, store, conditions=small))
    assert plan(suite, ["tiny"], ["linear"], [0], tmp_path, small) == []
    with pytest.raises(DataError, match="asked_image_size 16, asked for now is default"):
        plan(suite, ["tiny"], ["linear"], [0], tmp_path, CONDITIONS)


def test_results_in_another_precision_are_not_taken_for_these(suite, network, store, tmp_path):
    fits = plan(suite, ["tiny"], ["linear"], [0], tmp_path, CONDITIONS)
    list(run(fits, suite, lambda name: network, tmp_path, store, conditions=CONDITIONS))
    with pytest.raises(DataError, match="asked_precision default, asked for now is bfloat16"):
        plan(suite, ["tiny"], ["linear"], [0], tmp_path, replace(CONDITIONS, precision="bfloat16"))


def test_results_say_which_networks_saw_what_and_which_versions_ran(suite, network, store, tmp_path):
    pair = side_by_side((network, replace(network, id="file:some/nets/b.safetensors")))
    fits = plan(suite.only(["corners"]), ["tiny"], ["linear"], [0], tmp_path, CONDITIONS)
    (result,) = run(fits, suite, lambda name: pair, tmp_path, store, conditions=CONDITIONS)
    assert result.settings["backbone_id"] == f"{network.id}+file:WEIGHTS/b.safetensors"
    assert (result.settings["image_size"], result.settings["resize"]) == ("16x16", network.preprocess.resize)
    assert torch.__version__.startswith(result.packages["torch"])


def test_a_limited_test_split_keeps_the_classes_in_proportion():
    images = np.random.default_rng(0).integers(0, 255, (60, 4, 4, 3), dtype=np.uint8)
    labels = np.repeat([0, 1, 2], [40, 15, 5])
    task = task_from_arrays(images, labels, test=(images, labels))
    test = limited(task, 12).test
    assert test.counts(3).tolist() == [8, 3, 1]
    assert limited(task, 12).test.ids == test.ids
    assert set(test.ids) < set(task.test.ids)
    assert limited(task, 60) is task


def test_seeds_under_other_conditions_are_not_averaged(measured, suite):
    with pytest.raises(DataError, match="max_test 20, asked for now is all"):
        plan(suite, ["tiny"], METHODS, [1], measured[0], Conditions((64,)))


@pytest.mark.parametrize("changed", [{"precision": "bfloat16"}, {"fingerprint": "other weights"}])
def test_another_network_of_the_same_name_is_refused(out, suite, network, store, changed):
    fits = plan(suite, ["tiny"], ["linear"], [1], out, CONDITIONS)
    with pytest.raises(DataError, match=f"{next(iter(changed))} .* choose another --out"):
        list(run(fits, suite, lambda name: replace(network, **changed), out, store, conditions=CONDITIONS))


def test_a_network_that_cannot_be_had_ends_a_run_of_its_own_and_fails_beside_others(suite, network, store, tmp_path):
    asked = []

    def load(name):
        asked.append(name)
        if name == "absent":
            raise BackboneError("there is no such network")
        if name == "large":
            raise RuntimeError("out of memory")
        return network

    with pytest.raises(BackboneError, match="no such network"):
        list(run(plan(suite, ["absent"], ["linear"], [0], tmp_path, CONDITIONS), suite, load, tmp_path, store))
    asked.clear()
    fits = plan(suite, ["absent", "large", "tiny"], ["linear"], [0, 1], tmp_path, CONDITIONS)
    *failures, first, second = run(fits, suite, load, tmp_path, store, conditions=CONDITIONS)
    assert [type(failure) for failure in failures] == [Failure] * 4
    assert (first.backbone, second.backbone) == ("tiny", "tiny")
    assert asked == ["absent", "large", "tiny"]


def test_control_of_two_pairs_cannot_stand_beside_one_network(suite, tmp_path, measured):
    with pytest.raises(DataError, match=r"control of both a\+b and a\+c"):
        plan(suite, ["a+b", "a+c"], ["control"], [0], tmp_path, CONDITIONS)
    append_result(results_file(tmp_path), [replace(measured[1][0], backbone="a+b", method="control")])
    with pytest.raises(DataError, match="choose another --out"):
        plan(suite, ["a+c"], ["control"], [0], tmp_path, CONDITIONS)
    assert len(plan(suite, ["a+b", "a+c"], ["linear"], [0], tmp_path, CONDITIONS)) == 2


def test_another_task_of_the_same_name_is_not_taken_for_it(out, suite, corners, network, store):
    # as many images of the same classes, but others: differences would be between different test images
    turned = replace(corners, test=corners.test.rows(np.arange(corners.test.n_rows)[::-1]))
    for other in (turned, replace(corners, test=corners.test.rows(np.arange(12)))):
        changed = replace(suite, tasks=(replace(suite.tasks[0], load=lambda other=other: other),))
        fits = plan(changed, ["tiny"], ["oracle"], [0], out, CONDITIONS)
        (failed,) = run(fits, changed, lambda name: network, out, store, conditions=CONDITIONS)
        assert isinstance(failed, Failure)
        assert "holds results of corners on other images" in str(failed)


def test_files_of_results_have_names_of_their_own(measured, tmp_path):
    one = measured[1][0]
    names = ["a b", "a_b", "\u82b1", "\u9ce5", "a+b"]
    assert len({slug(replace(one, task=name)) for name in names}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", slug(replace(one, task=name))) for name in names)


def test_predictions_that_are_not_a_results_own_are_passed_over(measured):
    out, (result, _) = measured
    assert read_right(out, result) is not None
    assert read_right(out, replace(result, test_accuracy=result.test_accuracy + 0.05)) is None


def test_damaged_results_and_predictions_are_named(measured, tmp_path):
    _, (result, _) = measured
    predictions_file(tmp_path, result).parent.mkdir()
    predictions_file(tmp_path, result).write_bytes(b"PK")
    with pytest.raises(DataError, match="is damaged"):
        read_right(tmp_path, result)
    results_file(tmp_path).write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="is damaged"):
        read_results(results_file(tmp_path))


def test_processes_append_in_turn(measured, tmp_path):
    line = asdict(measured[1][0])
    code = (
        "import json, sys; from pathlib import Path; from head2toe.bench.result import *\n"
        "one = Result(**json.loads(sys.argv[2]))\n"
        "for _ in range(200): append_result(Path(sys.argv[1]), [one])"
    )
    command = [sys.executable, "-c", code, str(results_file(tmp_path)), json.dumps(line)]
    writers = [subprocess.Popen(command) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(read_results(results_file(tmp_path))) == 400


def test_two_files_of_one_name_are_refused():
    assert names_of(["file:a/net.safetensors", "file:a/net.safetensors"]) == {"net": "file:a/net.safetensors"}
    with pytest.raises(DataError, match="both be called 'net'"):
        names_of(["file:a/net.safetensors", "file:b/net.pth"])


def test_names_of_networks_say_nothing_of_folders():
    assert shown("file:some/nets/a.safetensors+file:b.pth") == "a+b"
    assert shown("timm/resnet50.a1_in1k") == "timm/resnet50.a1_in1k"


def test_the_peak_is_that_of_the_stretch():
    """In a process of its own: where the system cannot forget a peak, the tests before this one stand in it."""
    subprocess.run([sys.executable, "-c", PEAK], check=True, timeout=120)


PEAK = """
import numpy as np
from head2toe.bench.memory import peak_bytes, reset_peak
reset_peak()
before = peak_bytes()
block = np.ones(60_000_000)
assert peak_bytes() >= before + block.nbytes // 2, (before, peak_bytes())
"""


@pytest.fixture(scope="module")
def standins(tmp_path_factory):
    """Four packs of digits as tasks of VTAB-1k: a repository in Parquet, and the folder layout made from it."""
    root = tmp_path_factory.mktemp("vtab")
    tasks = {"svhn": 10, "retinopathy": 5, "clevr_distance": 6, "kitti": 4}
    repository = write_repository(root / "packs", tasks)
    for name in tasks:
        write_vtab(root / "vtab-1k" / name, root / "packs" / name)
    both = root / "vtab-1k" / "kitti"
    lists = [both / LISTS["train"], both / LISTS["validation"]]
    (both / "train800val200.txt").write_text("".join(path.read_text() for path in lists))
    for path in lists:
        path.unlink()
    return root / "vtab-1k", repository


def test_vtab_from_folder_to_table(standins, network, store, tmp_path, monkeypatch):
    """The whole way: the two means are over all four tasks, and over the three groups that they are in."""
    quick = {"linear": Linear(64, folds=2), "head2toe": Head2Toe(64, keep=0.1, criterion="l2", folds=2)}
    monkeypatch.setattr("head2toe.bench.run.method_named", lambda name, **settings: quick[name])
    suite, conditions = suite_named("vtab", standins[0]), Conditions((64,))
    fits = plan(suite, ["tiny"], ["linear", "head2toe"], [0], tmp_path, conditions)
    results = list(run(fits, suite, lambda name: network, tmp_path, store, conditions=conditions))
    (table,) = write_tables(tmp_path)
    assert [(row.name, row.group) for row in table.rows[:4]] == [
        ("svhn", "natural"), ("diabetic_retinopathy", "specialized"), ("clevr_dist", "structured"),
        ("kitti", "structured"),
    ]  # fmt: skip
    assert len(table.missing) == 15
    tasks, groups = table.rows[-2:]
    assert (tasks.name, groups.name) == ("mean of 4 tasks", "mean of 3 groups")
    for method in ("linear", "head2toe"):
        by = {result.task: result.test_accuracy for result in results if result.method == method}
        structured = (by["clevr_dist"] + by["kitti"]) / 2
        assert tasks.entries[method].accuracy == pytest.approx(sum(by.values()) / 4, abs=1e-12)
        three = (by["svhn"] + by["diabetic_retinopathy"] + structured) / 3
        assert groups.entries[method].accuracy == pytest.approx(three, abs=1e-12)
        assert by["kitti"] > 0.5
    page = (tmp_path / "table.md").read_text()
    assert "resize squash; normalised mean 0.5 0.5 0.5, std 0.25 0.25 0.25" in page
    assert page.index("| mean of 4 tasks |") < page.index("| mean of 3 groups |")


def test_vtab_is_the_same_from_folders_and_from_hugging_face(standins, network, store, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    accuracies = []
    for root in standins:
        suite = suite_named("vtab", root).only(["svhn", "kitti"])
        out = tmp_path / str(len(accuracies))
        fits = plan(suite, ["tiny"], ["linear"], [0], out, Conditions())
        accuracies.append([result.test_accuracy for result in run(fits, suite, lambda name: network, out, store)])
    assert accuracies[0] == accuracies[1]


def test_a_task_does_not_change_its_group_in_a_resumed_run(out, suite):
    other = Suite("packs", (replace(suite.tasks[0], group="all"),))
    with pytest.raises(DataError, match="in the group 'structured', asked for now is 'all'"):
        plan(other, ["tiny"], ["head2toe"], [0], out, CONDITIONS)


def test_methods_are_measured_on_the_same_test_images(out, suite):
    with pytest.raises(DataError, match="max_test"):
        plan(suite, ["tiny"], ["head2toe"], [0], out, Conditions((64,), 10))


@pytest.mark.parametrize(
    ("methods", "conditions", "message"),
    [
        (["control"], Conditions(), "name a pair"),
        (["linear"], Conditions(lrs=(0.1,)), "--lr and --steps go with"),
    ],
)
def test_what_no_fit_could_use_is_refused_before_any(methods, conditions, message, suite, tmp_path):
    with pytest.raises(DataError, match=message):
        plan(suite, ["tiny"], methods, [0], tmp_path / "new", conditions)


def test_results_go_to_a_folder(suite, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(DataError, match="should be a folder"):
            plan(suite, ["tiny"], ["linear"], [0], out, CONDITIONS)


def test_control_reads_the_pairs_and_other_methods_the_networks(suite, tmp_path):
    fits = plan(suite, ["a", "a+b"], ["linear", "control"], [0], tmp_path, CONDITIONS)
    assert [(fit.backbone, fit.method) for fit in fits] == [("a", "linear"), ("a+b", "control")]
    fits = plan(suite, ["a+b"], ["linear", "control"], [0], tmp_path, CONDITIONS)
    assert [fit.method for fit in fits] == ["linear", "control"]


def test_a_network_with_other_results_stops_no_other(out, measured, suite, network, store):
    """`out` holds `tiny` with other weights: its fits fail, and those of the next network are made."""
    other = replace(network, fingerprint="f" * 64)
    fits = plan(suite, ["tiny", "next"], ["linear"], [1], out, CONDITIONS)
    load = {"tiny": other, "next": network}
    failure, result = run(fits, suite, load.__getitem__, out, store, conditions=CONDITIONS)
    assert isinstance(failure, Failure)
    assert "fingerprint" in failure.reason
    assert result.backbone == "next"


def test_mistakes_show_pictures_and_texts_and_spare_sounds():
    probabilities = np.array([[0.9, 0.1]] * 2)
    sounds = task_from_arrays([np.zeros(400, np.float32), np.ones(400, np.float32)], [1, 0]).train
    texts = task_from_arrays(["a" * 300, "b"], [1, 0]).train
    (sound,), (text,) = (worst_mistakes(split, probabilities, ("0", "1")) for split in (sounds, texts))
    assert (sound.thumbnail, sound.text) == ("", "")
    assert (text.thumbnail, text.text) == ("", "a" * 200)
