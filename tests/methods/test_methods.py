"""One contract for every method that fits a head, then what each promises of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from head2toe.backbones import load_backbone
from head2toe.backbones.build import side_by_side
from head2toe.backbones.select import flops_of
from head2toe.data import task_from_arrays
from head2toe.errors import BackboneError, DataError, FeatureError
from head2toe.extract import read
from head2toe.head import load_head, model_card, softmax
from head2toe.images import ImagePreprocess
from head2toe.methods import NAMES, TRAINED, method_named, target_sizes_of
from head2toe.methods.all_features import AllFeatures
from head2toe.methods.design import design_of
from head2toe.methods.final import STRENGTHS, fits_without, scale_of
from head2toe.methods.frozen import pools_of
from head2toe.methods.head2toe import Head2Toe
from head2toe.methods.head2toe_ft import Head2ToeFT
from head2toe.methods.linear import Control, Linear
from head2toe.methods.oracle import Oracle
from head2toe.methods.paper import Grid, Paper
from head2toe.methods.problem import Journal, fold_of, prepare
from head2toe.methods.relevance import Kept, relevance_scores
from head2toe.store import FeatureStore
from head2toe.table import FeatureTable
from head2toe.taps import Pool, PooledTap, Tap


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def pair(network):
    """A network and its twin, as what Control compares."""
    return side_by_side((network, network))


FULL = {name for name in NAMES if name.startswith("paper-full-")}  # as paper-*, for hours: tests/methods/test_paper.py


@pytest.fixture(scope="module", params=[name for name in NAMES if name not in {*TRAINED, *FULL}])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def backbone(name, network, pair):
    return pair if name == "control" else network


@pytest.fixture(scope="module")
def method(name):
    named = method_named(name, target_sizes=[64], seed=3)
    return replace(named, grid=Grid((60,), (0.1,), (1e-4,), (0.1,))) if isinstance(named, Paper) else named


@pytest.fixture(scope="module")
def head(method, backbone, corners, store):
    return method.fit(backbone, corners, store, progress=False)


class TestEveryMethod:
    def test_it_reports_what_it_was_fitted_on(self, name, head, corners, backbone):
        assert head.provenance.method == name
        assert head.classes == corners.classes
        assert head.metrics.n_train == 60
        assert head.fingerprint == backbone.fingerprint
        assert head.n_kept == sum(len(kept.columns) for kept in head.kept) <= head.provenance.n_features

    def test_predictions_equal_those_while_fitting(self, head, corners, backbone, tmp_path):
        again = load_head(head.save_pretrained(tmp_path / "head"))
        inputs = [corners.test.source[i] for i in range(corners.test.n_rows)]
        right = again.predict_proba(inputs, backbone).argmax(1) == corners.test.labels
        assert right.mean() == pytest.approx(head.metrics.test_accuracy, abs=1e-12)

    def test_probabilities_equal_those_from_stored_features(self, head, corners, backbone, store):
        table = read(backbone, head.pools[0], store, corners.test.ids, [kept.pooled.tap for kept in head.kept])
        inputs = [corners.test.source[i] for i in range(corners.test.n_rows)]
        assert np.allclose(head.predict_proba(inputs, backbone), softmax(head.logits_of(table)), atol=1e-5)

    def test_the_same_seed_gives_the_same_head(self, method, head, corners, backbone, store):
        again = method.fit(backbone, corners, store, progress=False)
        assert np.array_equal(again.W, head.W)
        assert again.metrics == head.metrics


def test_middle_layers_know_where_the_spot_is(network, corners, store):
    linear = Linear(64).fit(network, corners, store, progress=False)
    head = Head2Toe(64).fit(network, corners, store, progress=False)
    assert head.metrics.test_accuracy > 0.9
    assert head.metrics.test_accuracy > linear.metrics.test_accuracy + 0.2


@pytest.mark.parametrize("method", [Linear(64), Head2Toe(64, keep=0.25), Head2Toe(64, keep=0.25, moments=1)])
def test_a_linear_probe_reads_means_whatever_the_last_features_are(method, corners, store):
    """Without a pooled output, the last features are a map: eight channels here, of which each has a deviation too."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    preprocess = ImagePreprocess((16, 16), (0.5,) * 3, (0.25,) * 3, "nearest")
    backbone = load_backbone(module, preprocess=preprocess, precision="float32")
    (tap,) = {tap for tap in backbone.taps if tap.name == backbone.prelogits}
    head = method.fit(backbone, corners, store, progress=False)
    (means,) = pools_of(64, moments=1)
    n_means = means.length(tap)
    assert head.pools == pools_of(64, method.moments if isinstance(method, Head2Toe) else None)
    columns = np.concatenate([kept.columns for kept in head.kept if kept.pooled.name == tap.name])
    if isinstance(method, Linear):
        assert columns.tolist() == list(range(n_means))
    else:
        assert (columns.max() >= n_means) == (method.moments != 1)


def test_keeping_everything_is_all_l2(network, corners, store):
    everything = Head2Toe(64, keep=1.0).fit(network, corners, store, progress=False)
    all_l2 = AllFeatures("l2", 64).fit(network, corners, store, progress=False)
    assert everything.metrics == all_l2.metrics
    assert np.allclose(everything.W, all_l2.W, atol=1e-6)


def test_where_the_last_features_are_best_the_head_is_a_linear_probe(network, corners, store, monkeypatch):
    monkeypatch.setattr("head2toe.methods.head2toe.kept_sets", _useless_sets)
    head = Head2Toe(64).fit(network, corners, store, progress=False)
    linear = Linear(64).fit(network, corners, store, progress=False)
    assert head.taps == (network.prelogits,)
    assert np.abs(head.W - linear.W).max() < 1e-3 * np.abs(linear.W).max()
    assert head.metrics == linear.metrics


def _useless_sets(evidence, counts, criterion, offset):
    """Features in which every image is alike to no other."""
    for count in counts:
        nothing = np.eye(len(evidence.whole))
        fits = fits_without(nothing, evidence.labels, evidence.held_out, evidence.n_classes)
        kept = Kept(evidence, np.arange(count), STRENGTHS)
        vars(kept).update(gram=nothing, fits=fits)
        yield kept


def test_a_lasso_of_two_classes_pulls_them_apart_and_drops_features(network, corners, store):
    images = np.stack([corners.train.source[i] for i in range(60)])
    task = task_from_arrays(images, corners.train.labels % 2)
    head = AllFeatures("l1", 64).fit(network, task, store, progress=False)
    assert (head.W[:, 0] * head.W[:, 1] <= 0).all()  # what both classes share costs and says nothing
    assert 0 < head.n_kept < head.provenance.n_features
    assert head.metrics.cv_accuracy > 0.9


@pytest.mark.parametrize("penalty", ["l1", "l21"])
def test_features_that_say_nothing_still_give_a_head_that_predicts(penalty, network, corners, store):
    """Here the larger class alone is the best guess, and the layer that keeps nothing makes it."""
    images = np.stack([corners.train.source[i] for i in range(60)])
    labels = (np.random.default_rng(0).random(60) > 0.85).astype(np.int64)
    task = task_from_arrays(images, labels, test=(images[:8], labels[:8]))
    head = AllFeatures(penalty, 64).fit(network, task, store, progress=False)
    assert head.n_kept > 0
    assert head.predict_proba([images[0]], network).shape == (1, 2)


@pytest.mark.parametrize("penalty", ["l1", "l2", "l21"])
def test_features_that_never_vary_still_give_a_head(penalty, network, store, monkeypatch):
    task = task_from_arrays(pictures(12), [0, 0, 0, 1] * 3)
    problem = prepare(network, task, store, pools_of(64), progress=False)
    table = problem.table(pools_of(64)[0])
    same = replace(table, blocks=tuple(np.ones_like(block) for block in table.blocks))
    monkeypatch.setattr(type(problem), "table", lambda *of: same)
    assert AllFeatures(penalty, 64).choose(problem, Journal()).cv_accuracy == pytest.approx(0.75)


class TestFolds:
    def task(self, labels, copies=0, **given):
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
        images[len(labels) - copies :] = images[:copies]
        return task_from_arrays(images, np.array(labels), **given)

    def test_copies_of_an_input_are_held_out_together(self):
        task = self.task([0, 1] * 20 + [0, 1] * 5, copies=10)
        folds = fold_of(task, task.train.labels, 5, 0)
        assert np.array_equal(folds[40:], folds[:10])
        assert np.bincount(folds[:40]).tolist() == [8] * 5

    def test_the_only_image_of_a_class_is_never_held_out(self):
        task = self.task([0] * 10 + [1])
        folds = fold_of(task, task.train.labels, 1, 0)
        assert set(folds.tolist()) == {0, -1}
        assert folds[10] == -1

    def test_a_validation_split_whose_classes_train_lacks_judges_nothing(self):
        images = np.random.default_rng(1).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
        task = self.task([0] * 10, validation=(images, np.array([0, 1] * 3)))
        labels = np.concatenate([task.train.labels, task.validation.labels])
        folds = fold_of(task, labels, 1, 0)
        assert set(labels[folds < 0]) == {0, 1}
        assert (folds == 0).any()

    def test_where_nothing_can_be_held_out_that_is_said(self):
        task = self.task([0, 1])
        with pytest.raises(DataError, match="one image of each class"):
            fold_of(task, task.train.labels, 1, 0)


def test_last_features_that_were_not_loaded_are_missed_before_the_network_runs(network, pair, corners, store):
    first = replace(pair, taps=tuple(tap for tap in pair.taps if tap.name.startswith("0:")))
    with pytest.raises(BackboneError, match=r"without its last features '1:"):
        Control(64).fit(first, corners, store, progress=False)
    with pytest.raises(BackboneError, match="without its last features"):
        Paper("linear", 64).fit(replace(network, taps=network.taps[:1]), corners, store, progress=False)


class TestControl:
    def test_a_network_beside_itself_brings_nothing(self, network, pair, corners, store):
        control = Control(64).fit(pair, corners, store, progress=False)
        linear = Linear(64).fit(network, corners, store, progress=False)
        assert control.taps == pair.all_prelogits()
        assert control.metrics.cv_accuracy == linear.metrics.cv_accuracy
        assert control.metrics.test_accuracy == linear.metrics.test_accuracy

    def test_one_network_is_refused_before_it_runs(self, network, corners, store, monkeypatch):
        monkeypatch.setattr(type(network), "forward", lambda *a: pytest.fail("the network ran"))
        with pytest.raises(BackboneError, match="at least two"):
            Control(64).fit(network, corners, store, progress=False)

    def test_two_architectures_are_refused(self, network, corners, store):
        from torch import nn

        other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        other = load_backbone(other, preprocess=network.preprocess, precision="float32")
        with pytest.raises(BackboneError, match="differ in architecture"):
            Control(64).fit(side_by_side((network, other)), corners, store, progress=False)


class TestOracle:
    def test_it_is_the_best_of_all_heads_on_the_last_features_and_one_tap(self, network, corners, store):
        oracle = Oracle(64).fit(network, corners, store, progress=False)
        rivals = []
        for tap in network.taps:
            names = {tap.name, network.prelogits}
            two = replace(network, taps=tuple(t for t in network.taps if t.name in names))
            rivals.append(AllFeatures("l2", 64).fit(two, corners, store, progress=False).metrics.test_accuracy)
        assert oracle.metrics.test_accuracy == max(rivals)
        assert oracle.metrics.test_accuracy > rivals[-1]
        assert set(oracle.taps) == {oracle.provenance.settings["tap"], network.prelogits}

    def test_of_several_target_sizes_the_better_on_test_wins(self, network, corners, store):
        sizes = (0, 64)
        apart = [Oracle(size, folds=2).fit(network, corners, store, progress=False) for size in sizes]
        both = Oracle(sizes, folds=2).fit(network, corners, store, progress=False)
        best = max(apart, key=lambda head: head.metrics.test_accuracy)
        assert both.metrics == best.metrics
        assert both.provenance.settings == best.provenance.settings

    def test_it_is_shown_as_an_upper_bound(self, network, corners, store):
        oracle = Oracle(64).fit(network, corners, store, progress=False)
        assert oracle.provenance.upper_bound
        assert "an upper bound: chosen on test images" in model_card(oracle)
        linear = Linear(64).fit(network, corners, store, progress=False)
        assert not linear.provenance.upper_bound
        assert "upper bound" not in model_card(linear)

    def test_without_a_test_split_there_is_nothing_to_choose_on(self, network, corners, store):
        with pytest.raises(DataError, match="no test split"):
            Oracle(64).fit(network, replace(corners, test=None), store, progress=False)


@pytest.mark.parametrize("scaling", ["none", "kept"])
@pytest.mark.parametrize("keep", [0.1, 1.0])
def test_scaling_after_selection_or_none_at_all(network, corners, store, scaling, keep):
    head = Head2Toe(64, keep=keep, scaling=scaling).fit(network, corners, store, progress=False)
    inputs = [corners.test.source[i] for i in range(corners.test.n_rows)]
    right = head.predict_proba(inputs, network).argmax(1) == corners.test.labels
    assert head.scaling == scaling
    assert right.mean() == pytest.approx(head.metrics.test_accuracy, abs=1e-12)
    assert abs(head.metrics.test_accuracy - head.metrics.cv_accuracy) < 0.2
    assert head.metrics.test_accuracy > 0.8


def test_a_target_size_is_chosen_among_several(network, corners, store):
    sizes = (0, 64)
    head = Head2Toe(sizes).fit(network, corners, store, progress=False)
    best = max(sizes, key=lambda size: Head2Toe(size).fit(network, corners, store, progress=False).metrics.cv_accuracy)
    assert head.pools[0].target_size == best


def test_without_a_test_split_only_the_cross_validated_accuracy_is_there(network, corners, store):
    task = task_from_arrays(np.stack([corners.train.source[i] for i in range(40)]), corners.train.labels[:40])
    head = Linear(64).fit(network, task, store, progress=False)
    assert head.metrics.test_accuracy is None
    assert 0 <= head.metrics.cv_accuracy <= 1


def test_labels_of_held_out_rows_do_not_reach_the_selection(network, corners, store):
    """Shuffled labels: with any leak, the cross-validated accuracy would be far above chance."""
    images = np.stack([corners.train.source[i] for i in range(60)])
    task = task_from_arrays(images, np.random.default_rng(0).integers(0, 2, 60))
    head = Head2Toe(64, keep=0.02).fit(network, task, store, progress=False)
    assert head.metrics.cv_accuracy < 0.75


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([0] * 8, {}, "two classes"),
        ([0] * 7 + [1], {}, "class '1' has 1 image"),
        ([0, 1] * 4, {"folds": 9}, "9 folds need at least 9"),
        ([0, 1] * 4, {"folds": 0}, "at least 1"),
    ],
)
def test_labels_that_cannot_be_cross_validated_are_refused_before_the_network_runs(
    network, store, monkeypatch, labels, settings, message
):
    images = np.random.default_rng(9).integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(type(network), "forward", lambda *a: pytest.fail("the network ran"))
    with pytest.raises(DataError, match=message):
        Linear(64, **settings).fit(network, task_from_arrays(images, np.array(labels)), store, progress=False)


def test_one_fold_holds_out_the_validation_split(network, corners, store):
    images = np.stack([corners.train.source[i] for i in range(60)])
    labels = corners.train.labels
    task = task_from_arrays(images[:40], labels[:40], validation=(images[40:], labels[40:]))
    head = Linear(64, folds=1).fit(network, task, store, progress=False)
    assert (head.metrics.cv_accuracy * 20) == pytest.approx(round(head.metrics.cv_accuracy * 20))


def test_names_and_settings_are_checked():
    with pytest.raises(DataError, match="did you mean 'head2toe'"):
        method_named("head2to")
    with pytest.raises(DataError, match="--keep"):
        method_named("linear", keep=[0.1])
    with pytest.raises(DataError, match="second --target-size"):
        method_named("linear", target_sizes=[64, 512])
    with pytest.raises(DataError, match=r"'scratch' has no use for --target-size; it goes with linear"):
        method_named("scratch", target_sizes=[64])
    with pytest.raises(DataError, match="--folds"):
        method_named("finetune", folds=5)
    with pytest.raises(DataError, match=r"'all-l2' has no use for --criterion; it goes with head2toe, head2toe-ft"):
        method_named("all-l2", criterion="l2")
    with pytest.raises(DataError, match="criterion 'extra_tree' is unknown, did you mean 'extra_trees'"):
        method_named("head2toe", criterion="extra_tree")
    assert method_named("head2toe", target_sizes=[64, 512], keep=[0.1], folds=3, seed=1).target_size == (64, 512)


def test_scores_and_windows_that_do_not_fit_are_refused_before_the_network_runs(network, corners, store, monkeypatch):
    monkeypatch.setattr(type(network), "forward", lambda *a: pytest.fail("the network ran"))
    for wrong in ({"keep": ()}, {"scores": np.ones(3), "target_size": (64, 512)}, {"scores": np.array([np.nan])}):
        with pytest.raises(DataError):
            Head2Toe(**({"target_size": 64} | wrong))
    for far in ({"scores": np.ones(3)}, {"window": (0, 10**6)}):
        with pytest.raises(FeatureError, match=r"one a feature|ends beyond"):
            Head2Toe(64, **far).fit(network, corners, store, progress=False)


def test_a_criterion_is_that_of_the_selection_and_by_default_its_own():
    assert method_named("head2toe", criterion="variance").criterion == "variance"
    assert method_named("head2toe-ft", criterion="variance").head2toe.criterion == "variance"
    assert method_named("head2toe").criterion == Head2Toe().criterion


@pytest.mark.parametrize("name", [name for name in NAMES if target_sizes_of(name)])
def test_whatever_reads_middle_layers_takes_the_same_target_sizes(name):
    method = method_named(name, target_sizes=[4096, 512])
    settings = method.head2toe if isinstance(method, Head2ToeFT) else method
    assert [pool.target_size for pool in settings.pools] == [512, 4096]
    own = method_named(name)
    own = own.head2toe if isinstance(own, Head2ToeFT) else own
    assert tuple(pool.target_size for pool in own.pools) == target_sizes_of(name)


def test_a_journal_counts_operations_of_the_task_on_its_own(network, corners, store):
    first, again = Journal(), Journal()
    Linear(64).fit(network, corners, store, journal=first, progress=False)
    Linear(64).fit(network, corners, store, journal=again, progress=False)
    assert again.extraction is not None
    assert again.extraction.computed == 0
    assert first.flops == again.flops
    assert first.flops["extract"] == 60 * flops_of(network, [network.prelogits])
    assert first.flops["select"] > first.flops["fit"] > 0


def test_copies_of_one_image_are_one_when_classes_are_counted(network, corners):
    pixels = np.concatenate([np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)), np.zeros((12, 16, 16, 3))])
    task = task_from_arrays(pixels.astype(np.uint8), [0] * 12 + [1] * 12)
    with pytest.raises(DataError, match="has 1 image, 5-fold cross-validation needs at least 2"):
        fold_of(task, task.train.labels, 5, 0)


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("labels", [[0, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5, 6, 7, 1, 2], [0, 0, 1, 1]])
def test_a_fifth_is_of_the_classes_that_can_spare_a_row(labels):
    for seed in range(20):
        out = fold_of(task_from_arrays(pictures(len(labels)), labels), np.array(labels), 1, seed) == 0
        assert out.any()
        assert set(np.array(labels)[~out]) == set(labels)


def test_copies_of_training_images_do_not_judge():
    images, labels = pictures(20), np.arange(20) % 2
    task = task_from_arrays(images[:12], labels[:12], validation=(images[8:], labels[8:]))
    both = np.concatenate([labels[:12], labels[8:]])
    assert fold_of(task, both, 1, 0).tolist() == [-1] * 16 + [0] * 8
    same = task_from_arrays(images, labels, validation=(images, labels))
    dealt = fold_of(same, np.tile(labels, 2), 1, 0)
    assert (dealt[:20] == dealt[20:]).all()
    assert (dealt == 0).sum() == 8


def test_the_callers_table_stays_as_it_is():
    values = np.random.default_rng(0).random((6, 4), dtype=np.float32)
    table = FeatureTable(tuple("abcdef"), (PooledTap(Tap("last", (4,), "NC"), Pool()),), (values.copy(),))
    design_of(table, "none")
    assert (table.blocks[0] == values).all()


def test_equal_rows_are_no_scale():
    for n in range(10, 200):
        assert scale_of(np.full((n, n), 0.1, np.float32)) == 1.0
    assert scale_of(4.0 * np.eye(10)) == pytest.approx(3.6)


def test_stable_runs_lose_no_class(network, store):
    random = np.random.default_rng(0)
    task = task_from_arrays(random.integers(0, 256, (11, 16, 16, 3), dtype=np.uint8), [0] + [1] * 10)
    assert np.isfinite(relevance_scores(network, task, store, "stable", 64)).all()
