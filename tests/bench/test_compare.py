"""Advice on cases, and a comparison on a task whose answer is known."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from head2toe.backbones.select import flops
from head2toe.bench.compare import METHODS, Advice, FineTuning, Score, _rounds, advise, compare, finetuning_cost
from head2toe.bench.intervals import Interval
from head2toe.data import task_from_arrays
from head2toe.errors import BackboneError, DataError
from head2toe.extract import passes
from head2toe.methods.finetune import FineTune
from head2toe.methods.linear import Linear
from head2toe.methods.training import Training
from head2toe.methods.training.rows import Rows
from head2toe.present import advice_lines, comparison_table
from head2toe.store import FeatureStore

LINEAR = Score("linear", 0.7, 0.7, 0.0, Interval(0.0, 0.0), 100, 100, 10**9, 1.0, 1_000)
COST = FineTuning(400, 32, 10**12, 600.0, 50_000, 3000, 75 * 10**11, 4500.0)


def advice(gain: float, low: float, high: float, linear: float = 0.7, images: float = 50.0) -> Advice:
    probe = replace(LINEAR, accuracy=linear)
    return advise(probe, replace(LINEAR, method="head2toe", accuracy=linear + gain, difference=gain,
                                 interval=Interval(low, high)), COST, images)  # fmt: skip


class TestAdvice:
    def test_no_gain_means_a_linear_probe(self):
        given = advice(0.002, -0.004, 0.008, linear=0.95)
        assert (given.method, given.try_finetuning) == ("linear", False)
        assert "+0.2 points over a linear probe (95 % -0.4 to +0.8), so the last layer holds what" in given.sentence

    def test_what_the_last_layer_lacks_other_layers_may_lack_too(self):
        given = advice(0.0, -0.004, 0.008, linear=0.3)
        assert (given.method, given.try_finetuning) == ("linear", True)
        assert "so other layers hold no more of it; at 30%" in given.sentence

    def test_an_interval_that_holds_a_gain_says_that_rows_are_too_few(self):
        for gain, low, high in ((0.005, -0.1, 0.11), (0.0, -0.2, 0.2), (0.02, -0.01, 0.05)):
            given = advice(gain, low, high, linear=0.3)
            assert given.method == "linear"
            assert "which so few rows cannot tell from nothing; label more" in given.sentence

    def test_a_gain_that_may_be_none_is_no_proof_that_the_last_layer_is_enough(self):
        given = advice(0.08, -0.01, 0.17)
        assert given.method == "linear"
        assert "which so few rows cannot tell from nothing" in given.sentence
        assert "enough" not in given.sentence

    def test_a_sure_but_tiny_gain_is_not_worth_it(self):
        for gain, low, high in ((0.004, 0.001, 0.007), (0.006, 0.001, 0.012), (0.009, 0.002, 0.03)):
            given = advice(gain, low, high)
            assert given.method == "linear"
            assert "A linear probe is enough" in given.sentence
            assert "a gain, but of less than a point" in given.sentence

    def test_a_loss_means_a_linear_probe(self):
        assert advice(-0.05, -0.08, -0.02).method == "linear"

    def test_a_gain_means_head2toe(self):
        given = advice(0.05, 0.02, 0.08, linear=0.9)
        assert (given.method, given.try_finetuning) == ("head2toe", False)
        assert "far from" not in given.sentence

    def test_a_large_gain_tells_of_a_far_task(self):
        assert "far from what the network was trained on" in advice(0.2, 0.15, 0.25).sentence

    def test_fine_tuning_is_worth_a_trial_where_accuracy_is_low_and_images_are_many(self):
        given = advice(0.1, 0.05, 0.15, linear=0.5)
        assert given.try_finetuning
        assert "10 min a training run, up to 75 min with the choice of its settings, and 50 times the" in given.sentence
        assert not advice(0.1, 0.05, 0.15, linear=0.5, images=5.0).try_finetuning


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def comparison(network, corners, store):
    return compare(network, corners, store, target_size=64)


def test_where_the_spot_is_needs_middle_layers(comparison):
    assert [score.method for score in comparison.scores] == list(METHODS)
    assert comparison.advice.method == "head2toe"
    assert comparison.n_judged == 40


def test_scores_are_those_of_the_methods_alone(comparison, network, corners, store):
    head = Linear(64).fit(network, corners, store, progress=False)
    assert comparison.scores[0].accuracy == pytest.approx(head.metrics.test_accuracy, abs=1e-12)
    assert comparison.scores[0].difference == 0.0
    head2toe = comparison.scores[-1]
    assert head2toe.difference == pytest.approx(head2toe.accuracy - comparison.scores[0].accuracy, abs=1e-12)
    assert head2toe.interval.low < head2toe.difference < head2toe.interval.high


def test_without_a_test_split_every_row_is_judged_by_a_fit_that_did_not_see_it(network, corners, store):
    images = np.stack([corners.train.source[i] for i in range(60)])
    shuffled = np.random.default_rng(0).integers(0, 2, 60)
    found = compare(network, task_from_arrays(images, shuffled), store, target_size=64)
    assert (found.judged_on, found.n_judged) == ("held-out thirds", 60)
    assert all(0.25 < score.accuracy < 0.75 for score in found.scores)


def test_a_training_step_is_counted_and_leaves_the_network_alone(network, corners):
    before = {name: value.clone() for name, value in network.networks[0].module.state_dict().items()}
    cost = finetuning_cost(network, corners, steps=10, batch_size=4)
    forward = flops(network)[network.prelogits] + 2 * 16 * 4  # and a fresh linear layer for the four classes
    first = 2 * 8 * 8 * 8 * 3 * 9  # of the first convolution: the gradient of its input is not needed
    assert cost.flops == 10 * 4 * (3 * forward - first)
    trained = FineTune(Training(lrs=(1e-3,), steps=(1,), augments=("none",))).fit(network, corners, progress=False)
    assert cost.task_bytes == trained.n_bytes
    rates, longer, last_two = 5 * 200, 800 + 3200, 2 * 3200  # one more augmentation, and all rows
    assert cost.tuned_steps == rates + longer + last_two
    assert cost.tuned_flops * 10 == cost.flops * cost.tuned_steps
    for name, value in network.networks[0].module.state_dict().items():
        assert torch.equal(value, before[name])


def test_where_nothing_can_be_shifted_no_steps_are_counted_for_it(network, corners, monkeypatch):
    monkeypatch.setattr(Rows, "pictures", False)
    cost = finetuning_cost(network, corners, steps=10, batch_size=4)
    assert cost.tuned_steps == 5 * 200 + 800 + 3200 + 3200  # rates, lengths, and all rows


def test_what_was_chosen_on_the_judged_rows_is_marked(comparison):
    marked = replace(comparison, scores=(replace(LINEAR, method="oracle", upper_bound=True),))
    assert list(comparison_table(marked).columns[0].cells) == ["oracle †"]
    assert comparison_table(comparison).caption is None


def test_what_is_printed_holds_the_numbers(comparison):
    assert comparison_table(comparison).row_count == 3
    assert comparison.advice.sentence in advice_lines(comparison)


def test_one_pass_of_the_network_serves_all_methods(network, corners, tmp_path, monkeypatch):
    seen, forward = [], passes._forward

    def counted(backbone, batch, rows):
        seen.append(len(rows))
        return forward(backbone, batch, rows)

    monkeypatch.setattr(passes, "_forward", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # in this process, where passes can be counted
    with pytest.raises(BackboneError, match="one network"):
        compare(network, corners, tmp_path / "store", methods=("control",), target_size=64)
    assert not seen
    compare(network, corners, tmp_path / "store", target_size=64)
    assert sum(seen) == 100


def test_copies_of_an_input_are_held_out_together():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    task = task_from_arrays(np.concatenate([pixels, pixels]), [0, 1] * 12)
    for third in _rounds(task, seed=0):
        assert third.test is not None
        assert not set(third.train.ids) & set(third.test.ids)


def test_thirds_that_hold_one_class_are_told(network, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="once hold 1 of 2 classes"):
        compare(network, task_from_arrays(pixels, [0] + [1] * 9), tmp_path / "store", target_size=64)
    with pytest.raises(DataError, match="every training input of 'arrays' is '7'"):
        compare(network, task_from_arrays(pixels, [7] * 10), tmp_path / "store", target_size=64)


def test_the_table_is_whole_on_a_narrow_terminal(comparison):
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table(comparison))
    assert "…" not in console.file.getvalue()
