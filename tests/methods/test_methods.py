"""One contract for every method that fits a head, then what each promises of its own."""

import numpy as np
import pytest

from head2toe.data import task_from_arrays
from head2toe.errors import DataError
from head2toe.extract import view_of
from head2toe.head import load_head, softmax
from head2toe.methods import NAMES, TRAINED, method_named
from head2toe.methods.all_features import AllFeatures
from head2toe.methods.final import fits_without
from head2toe.methods.head2toe import Head2Toe
from head2toe.methods.linear import Linear
from head2toe.methods.relevance import Kept
from head2toe.store import FeatureStore


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module", params=[name for name in NAMES if name not in TRAINED])
def head(request, network, corners, store):
    return method_named(request.param, target_sizes=[64], seed=3).fit(network, corners, store, progress=False)


class TestEveryMethod:
    def test_it_reports_what_it_was_fitted_on(self, head, corners, network):
        assert head.classes == corners.classes
        assert head.metrics.n_train == 60
        assert head.fingerprint == network.fingerprint
        assert head.n_kept == sum(len(kept.columns) for kept in head.kept) <= head.provenance.n_features

    def test_predictions_equal_those_while_fitting(self, head, corners, network, tmp_path):
        again = load_head(head.save_pretrained(tmp_path / "head"))
        inputs = [corners.test.source[i] for i in range(corners.test.n_rows)]
        right = again.predict_proba(inputs, network).argmax(1) == corners.test.labels
        assert right.mean() == pytest.approx(head.metrics.test_accuracy, abs=1e-12)

    def test_probabilities_equal_those_from_stored_features(self, head, corners, network, store):
        view = view_of(network, head.pools[0])
        table = store.read(view, corners.test.ids, [kept.pooled.tap for kept in head.kept])
        inputs = [corners.test.source[i] for i in range(corners.test.n_rows)]
        assert np.allclose(head.predict_proba(inputs, network), softmax(head.logits_of(table)), atol=1e-5)

    def test_the_same_seed_gives_the_same_head(self, head, corners, network, store):
        again = method_named(head.provenance.method, target_sizes=[64], seed=3)
        again = again.fit(network, corners, store, progress=False)
        assert np.array_equal(again.W, head.W)
        assert again.metrics == head.metrics


def test_middle_layers_know_where_the_spot_is(network, corners, store):
    linear = Linear(64).fit(network, corners, store, progress=False)
    head = Head2Toe(64).fit(network, corners, store, progress=False)
    assert head.metrics.test_accuracy > 0.9
    assert head.metrics.test_accuracy > linear.metrics.test_accuracy + 0.2


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
    assert np.allclose(head.W, linear.W, rtol=1e-3)
    assert head.metrics == linear.metrics


def _useless_sets(design, whole, labels, n_classes, held_out, counts, criterion):
    """Features in which every image is alike to no other."""
    for count in counts:
        nothing = np.eye(len(whole))
        yield Kept(np.arange(count), nothing, fits_without(nothing, labels, held_out, n_classes))


@pytest.mark.parametrize("criterion", ["elimination", "group_lasso"])
def test_the_keep_fraction_is_kept(network, corners, store, criterion):
    head = Head2Toe(64, keep=0.1, criterion=criterion).fit(network, corners, store, progress=False)
    assert head.n_kept == int(0.1 * head.provenance.n_features)
    assert head.metrics.test_accuracy > 0.8


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
    with pytest.raises(DataError, match="did you mean head2toe"):
        method_named("head2to")
    with pytest.raises(DataError, match="--keep"):
        method_named("linear", keep=[0.1])
    with pytest.raises(DataError, match="--lr and --steps go with"):
        method_named("head2toe", steps=[10])


@pytest.mark.parametrize("name", TRAINED)
def test_rates_steps_and_seed_reach_the_training(name):
    training = method_named(name, lrs=[0.5], steps=[3, 4], seed=7).training
    assert (training.lrs, training.steps, training.seed) == ((0.5,), (3, 4), 7)
