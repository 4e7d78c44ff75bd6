"""Every study on a tiny network: its lines, its figure, and that a stopped one goes on."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from head2toe.bench import figures, studies
from head2toe.bench.conditions import Conditions
from head2toe.bench.report import page_of
from head2toe.bench.result import read_results
from head2toe.bench.run import Failure
from head2toe.bench.studies import LeftOut, run, subset
from head2toe.bench.suite import Suite, SuiteTask
from head2toe.data import task_from_arrays
from head2toe.errors import DataError
from head2toe.methods.problem import folds_for
from head2toe.selection import n_kept
from head2toe.store import FeatureStore

from .measured import study, write


@pytest.fixture(scope="module")
def few():
    """Points that every study needs at least."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "FOLDS", 2)
        patch.setattr(studies, "LADDER", (0.1, 1.0))
        patch.setattr(studies, "TARGET_SIZES", (16, 64))
        patch.setattr(studies, "WINDOWS", (0, 31))
        patch.setattr(studies, "BUDGETS", (0.1, 0.5))
        patch.setattr(studies, "TRAIN_SIZES", (3, 16, 60, 1000))
        patch.setattr(studies, "CRITERIA", ("elimination", "variance", "random"))
        patch.setattr(studies, "SHARES", (1e-6, 0.9, 1.0))
        yield


@pytest.fixture(scope="module")
def suite(corners):
    sides = task_from_arrays(
        *(np.stack([corners.train.source[i] for i in range(60)]), corners.train.labels % 2),
        test=(np.stack([corners.test.source[i] for i in range(40)]), corners.test.labels % 2),
        name="sides",
    )
    return Suite("packs", (SuiteTask("corners", "all", lambda: corners), SuiteTask("sides", "all", lambda: sides)))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def out(tmp_path_factory, few, suite, network, store):
    """A folder in which all studies were made."""
    folder = tmp_path_factory.mktemp("out")
    events = list(run(list(studies.STUDIES), suite, network, "tiny", folder, store, conditions=Conditions((64,))))
    assert not [event for event in events if isinstance(event, Failure)]
    left_out = [str(event) for event in events if isinstance(event, LeftOut)]
    shallow = [one for one in left_out if "cut: no tap" in one]
    assert [one.partition(":")[0] for one in shallow] == ["corners, head2toe 1e-06", "sides, head2toe 1e-06"]
    assert len(left_out) - len(shallow) == 3  # numbers of training images: fewer than classes, or more than rows
    return folder


def lines(out, name):
    return read_results(out / "studies" / f"{name}.jsonl")


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_study_has_a_figure(out, name):
    results = lines(out, name)
    assert {result.suite for result in results} == {name}
    figure = figures.study_figure(name, results)
    assert figure is not None
    assert "<svg" in figure.svg


def test_the_report_shows_them_all(out):
    assert len(page_of(out).studies) == len(studies.STUDIES)


def test_what_is_there_is_not_fitted_again(out, suite, network, store, few):
    again = list(run(["keep-fraction", "layers"], suite, network, "tiny", out, store, conditions=Conditions((64,))))
    assert again == []
    path = out / "studies" / "layers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    (redone,) = run(["layers"], suite, network, "tiny", out, store, conditions=Conditions((64,)))
    assert redone == read_results(path)[-1]
    assert len(read_results(path)) == whole.count(b"\n")


@pytest.mark.parametrize("other", [Conditions((16,)), Conditions((64,), 20)])
def test_lines_under_other_conditions_are_not_mixed(tmp_path, suite, network, store, other):
    (line,) = study("layers", "features", {"corners": {0.1: 0.5}})
    there = replace(line, settings=line.settings | Conditions((64,), None).settings("head2toe"))
    write(tmp_path, [there], "studies/layers.jsonl")
    with pytest.raises(DataError, match="choose another --out"):
        next(run(["layers"], suite, network, "tiny", tmp_path, store, conditions=other))


def test_lines_of_another_suite_or_network_are_not_mixed(out, suite, network, store, few):
    def again(**changed):
        return list(
            run(["layers"], replace(suite, **changed), network, "tiny", out, store, conditions=Conditions((64,)))
        )

    assert again() == []
    with pytest.raises(DataError, match="tasks_of packs, asked for now is vtab"):
        again(name="vtab")
    other = replace(network, fingerprint="another")
    with pytest.raises(DataError, match="fingerprint"):
        list(run(["layers"], suite, other, "tiny", out, store, conditions=Conditions((64,))))


def test_another_task_of_the_same_name_is_not_taken_for_it(out, suite, corners, network, store, few):
    turned = replace(corners, test=corners.test.rows(np.arange(corners.test.n_rows)[::-1]))
    changed = replace(suite, tasks=(replace(suite.tasks[0], load=lambda: turned),))
    before = lines(out, "n-train")
    (failed,) = run(["n-train"], changed, network, "tiny", out, store, conditions=Conditions((64,)))
    assert isinstance(failed, Failure)
    assert "holds results of corners on other images" in str(failed)
    assert lines(out, "n-train") == before


def test_an_arm_for_which_memory_runs_out_fails_alone(corners, network, store, tmp_path, monkeypatch):
    def full(place):
        def fit(journal):
            raise RuntimeError("out of memory")

        yield studies.Arm("head2toe", 1.0, fit)
        yield from studies._layers(place)

    monkeypatch.setitem(studies.STUDIES, "layers", full)
    monkeypatch.setattr(studies, "BUDGETS", (0.1,))
    suite = Suite("packs", (SuiteTask("corners", "all", lambda: corners),))
    failure, *others = run(["layers"], suite, network, "tiny", tmp_path, store, conditions=Conditions((64,)))
    assert str(failure) == "corners, tiny, layers: head2toe 1, seed 0: RuntimeError: out of memory"
    assert [line.settings["series"] for line in others] == ["features", "whole layers"]


def test_every_line_says_its_conditions(out):
    assert {(r.settings["target_sizes"], r.settings["max_test"]) for r in lines(out, "layers")} == {("64", "all")}


def test_the_top_of_the_ranking_beats_its_end(out):
    corners = {
        result.settings["x"]: result.test_accuracy for result in lines(out, "window") if result.task == "corners"
    }
    assert corners[min(corners)] > corners[max(corners)]


def test_the_same_budget_is_spent_on_features_and_on_layers(out):
    kept = {(r.task, r.settings["series"], r.settings["x"]): r.n_kept for r in lines(out, "layers")}
    for (task, series, x), count in kept.items():
        assert count == kept[task, "features", x], (task, series, x)


def test_scores_of_the_task_itself_are_among_those_lent(out):
    assert {(r.settings["series"], r.task) for r in lines(out, "transfer")} == {
        (a, b) for a in ("corners", "sides") for b in ("corners", "sides")
    }


def test_every_criterion_keeps_equally_many_features(out):
    results = lines(out, "criteria")
    assert {r.settings["criterion"] for r in results} == set(studies.CRITERIA)
    assert all(r.settings["criterion"] == r.settings["series"] for r in results)
    assert {r.n_kept for r in results} == {n_kept(results[0].n_features, studies.KEEP)}


def test_a_criterion_that_cannot_judge_a_task_fails_alone(network, corners, store, tmp_path, monkeypatch):
    images = np.stack([corners.train.source[i] for i in range(7)])
    labels = corners.train.labels[:7]  # one of each class, then three of the four: too few to cross-validate
    task = task_from_arrays(images[:4], labels[:4], validation=(images[4:], labels[4:]))
    suite = Suite("packs", (SuiteTask("single", "all", lambda: replace(task, test=corners.test)),))
    monkeypatch.setattr(studies, "CRITERIA", ("mutual_info", "variance"))
    failure, line = run(["criteria"], suite, network, "tiny", tmp_path, store, conditions=Conditions((64,)))
    assert str(failure).startswith("single, tiny, criteria: mutual_info 0, seed 0: Head2Toe: scikit-learn cannot judge")
    assert [line] == lines(tmp_path, "criteria")
    assert line.settings["series"] == "variance"


def test_training_sizes_that_a_task_cannot_have_are_left_out(out):
    assert {(r.task, r.n_train) for r in lines(out, "n-train")} == {
        ("corners", 16), ("corners", 60), ("sides", 3), ("sides", 16), ("sides", 60),
    }  # fmt: skip


def test_a_shallower_pass_costs_fewer_operations(out):
    flops = {r.settings["x"]: r.flops["extract"] for r in lines(out, "flops-budget")}
    assert flops[0.9] < flops[1.0]


class TestSubset:
    def test_a_smaller_one_lies_within_a_larger_one_and_keeps_classes(self, corners):
        sizes = [4, 10, 30, 60]
        subsets = [subset(corners, n, seed=1) for n in sizes]
        for n, task in zip(sizes, subsets, strict=True):
            assert task.train.n_rows == n
            counts = task.train.counts(4)
            assert counts.min() >= 1
            assert counts.max() - counts.min() <= 1
        for small, large in pairwise(subsets):
            assert set(small.train.ids) <= set(large.train.ids)

    def test_rows_keep_their_labels_and_validation_rows_take_part(self, corners):
        images = np.stack([corners.train.source[i] for i in range(60)])
        labels = corners.train.labels
        task = task_from_arrays(images[:40], labels[:40], validation=(images[40:], labels[40:]))
        picked = subset(task, 50, seed=0)
        label_of = dict(zip(corners.train.ids, labels, strict=True))
        assert picked.validation is None
        assert [label_of[id] for id in picked.train.ids] == picked.train.labels.tolist()
        assert set(picked.train.ids) & set(task.validation.ids)
        assert picked.train.source.name(0) == task.train.source.name(0)

    def test_folds_follow_the_rarest_class(self, corners):
        assert folds_for(subset(corners, 4, seed=0)) == 1
        assert folds_for(subset(corners, 8, seed=0)) == 5
        assert folds_for(subset(corners, 8, seed=0), 9) == 1

    @pytest.mark.parametrize("n", [3, 61])
    def test_sizes_that_cannot_be_are_refused(self, corners, n):
        with pytest.raises(DataError, match="4 classes and 60 rows"):
            subset(corners, n, seed=0)


def test_an_unknown_study_is_refused_by_near_name(network, suite, store, tmp_path):
    with pytest.raises(DataError, match="did you mean 'layers'"):
        next(run(["layer"], suite, network, "tiny", tmp_path, store))
