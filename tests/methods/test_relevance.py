"""Scores, rankings and windows: each criterion against its definition, or the library that it comes from."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from sklearn.feature_selection import chi2, f_classif, mutual_info_classif
from sklearn.preprocessing import minmax_scale

from head2toe.errors import DataError, FeatureError
from head2toe.methods.design import design_of
from head2toe.methods.head2toe import Head2Toe
from head2toe.methods.problem import prepare
from head2toe.methods.relevance import Criterion, check_criterion, kept_sets, relevance, relevance_scores
from head2toe.methods.scores import SCORES, Evidence
from head2toe.selection import n_kept
from head2toe.solvers.work import counted
from head2toe.store import FeatureStore
from head2toe.table import scaled
from head2toe.taps import Pool

NAMES = get_args(Criterion)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def problem(network, corners, store):
    return prepare(network, corners, store, [Pool(64)], progress=False)


@pytest.fixture(scope="module")
def evidence(problem) -> Evidence:
    design = design_of(problem.table(Pool(64)))
    return Evidence(design, design.gram(), problem.labels, problem.n_classes, problem.folds == 0, seed=5)


@pytest.fixture(scope="module")
def seen(evidence) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of the rows not held out."""
    rows = ~evidence.held_out
    return np.hstack(evidence.design.blocks)[rows], evidence.labels[rows]


def test_every_name_has_its_score():
    assert set(NAMES) == {"elimination", *SCORES}


@pytest.mark.parametrize("criterion", NAMES)
def test_every_feature_is_scored_the_same_way_twice_and_without_held_out_labels(evidence, criterion):
    scores = relevance(evidence, criterion)
    assert scores.shape == (evidence.design.n_features,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    shuffled = np.where(evidence.held_out, (evidence.labels + 1) % 4, evidence.labels)
    assert np.array_equal(scores, relevance(replace(evidence, labels=shuffled), criterion))


@pytest.mark.parametrize("criterion", ["elimination", "group_lasso", "f_classif"])
class TestHead2Toe:
    def test_a_window_from_the_start_keeps_what_a_fraction_keeps(self, network, corners, store, criterion):
        settings = {"target_size": 64, "criterion": criterion}
        kept = Head2Toe(keep=0.1, **settings).fit(network, corners, store, progress=False)
        window = Head2Toe(window=(0, kept.n_kept), **settings).fit(network, corners, store, progress=False)
        assert np.array_equal(window.W, kept.W)
        assert kept.n_kept == n_kept(kept.provenance.n_features, 0.1)
        assert kept.provenance.settings["criterion"] == criterion
        assert kept.metrics.test_accuracy > 0.8

    def test_scores_handed_over_rank_as_the_criterion_does(self, network, corners, store, criterion):
        scores = relevance_scores(network, corners, store, criterion, target_size=64, seed=2)
        own = Head2Toe(64, criterion=criterion, window=(3, 9), seed=2)
        given = replace(own, criterion="random", scores=scores)
        own, given = (method.fit(network, corners, store, progress=False) for method in (own, given))
        assert np.array_equal(given.W, own.W)
        assert given.provenance.settings["criterion"] == "given scores"


@pytest.mark.parametrize(
    ("criterion", "norm"),
    [
        ("l2", lambda W: np.sqrt((W**2).sum(1))),
        ("l1", lambda W: np.abs(W).sum(1)),
        ("linf", lambda W: np.abs(W).max(1)),
    ],
)
def test_norms_are_of_the_layers_rows(evidence, criterion, norm):
    W = evidence.layer()
    assert W.shape == (evidence.design.n_features, 4)
    assert np.allclose(relevance(evidence, criterion), norm(W), rtol=1e-5)


def test_statistics_are_scikit_learns(evidence, seen):
    X, y = seen
    varying = np.ptp(X, axis=0) > 0
    expected = {
        "chi2": chi2(minmax_scale(X[:, varying]), y)[0],
        "f_classif": f_classif(X[:, varying], y)[0],
        "mutual_info": mutual_info_classif(X[:, varying], y, random_state=5),
    }
    for criterion, values in expected.items():
        scores = relevance(evidence, criterion)
        assert np.allclose(scores[varying], values, rtol=1e-5), criterion
        assert (scores[~varying] == 0).all()


def test_variance_is_that_of_the_scaled_features(problem, evidence):
    table = problem.table(Pool(64))
    X = np.hstack([scaled(block, slice(None), "tap") for block in table.blocks])
    scores = relevance(evidence, "variance")
    assert (scores > 0).mean() > 0.9
    assert np.allclose(scores[scores > 0], X.var(axis=0)[scores > 0], rtol=1e-3)


def test_importances_sum_to_one(evidence):
    assert relevance(evidence, "extra_trees").sum() == pytest.approx(1.0)


def test_random_scores_follow_the_seed_alone(evidence):
    everyone = replace(evidence, held_out=np.zeros_like(evidence.held_out))
    assert np.array_equal(relevance(everyone, "random"), relevance(evidence, "random"))
    assert not np.array_equal(relevance(replace(evidence, seed=6), "random"), relevance(evidence, "random"))


def test_whole_layers_are_kept_but_for_the_last_one_begun(network, corners, store):
    head = Head2Toe(64, criterion="layer", keep=0.5).fit(network, corners, store, progress=False)
    cut = [kept for kept in head.kept if len(kept.columns) < kept.pooled.length]
    assert len(cut) <= 1
    assert len(head.kept) > 1


def test_halfway_lies_between_features_and_layers(evidence):
    halves = (relevance(evidence, "l2") + relevance(evidence, "layer")) / 2
    assert np.allclose(relevance(evidence, "halfway"), halves)


def test_windows_side_by_side_share_no_feature_and_cover_the_ranking(evidence):
    n_features = evidence.design.n_features
    size = n_features // 3
    parts = [next(kept_sets(evidence, [size], "l2", at)).index for at in range(0, n_features - size + 1, size)]
    joined = np.concatenate(parts)
    assert len(set(joined)) == len(joined) == 3 * size
    scores = relevance(evidence, "l2")
    assert scores[parts[0]].min() >= scores[parts[1]].max()
    assert scores[parts[1]].min() >= scores[parts[2]].max()


def test_rows_that_a_filter_cannot_judge_are_told_of(evidence):
    one_each = np.ones_like(evidence.held_out)
    one_each[np.unique(evidence.labels, return_index=True)[1]] = False
    with pytest.raises(DataError, match=r"4 rows of 4 classes .* choose another criterion"):
        relevance(replace(evidence, held_out=one_each), "mutual_info")


def test_unknown_criteria_are_named():
    with pytest.raises(DataError, match="did you mean 'chi2'"):
        check_criterion("chi")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": (0, 5), "keep": 0.1}, "either keep or window"),
        ({"window": (-1, 5)}, "offset >= 0"),
        ({"window": (0, 0)}, "count >= 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Head2Toe(64, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"window": (1000, 100)}, "ends beyond"), ({"scores": np.ones(3)}, "scores are needed")],
)
def test_windows_and_scores_that_do_not_fit_the_features_are_refused(network, corners, store, settings, message):
    with pytest.raises(FeatureError, match=message):
        Head2Toe(64, **settings).fit(network, corners, store, progress=False)


def test_a_set_that_nobody_looks_into_costs_nothing(evidence):
    """Of a ranking only the ranking, of an elimination no fit on what is left at its end."""
    counts = [n_kept(evidence.design.n_features, share) for share in (0.1, 0.5)]
    with counted() as ranked:
        relevance(evidence, "l2")
    with counted() as named:
        sets = [kept.index for kept in kept_sets(evidence, counts, "l2")]
    assert named.flops == ranked.flops > 0
    with counted() as fitted:
        kept = list(kept_sets(evidence, counts, "l2"))
        assert all(len(one.fits.lams) for one in kept)
    assert fitted.flops > named.flops
    assert [len(index) for index in sets] == sorted(counts, reverse=True)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_criterion_judges_what_a_layer_on_all_features_reads(problem, evidence, name):
    # all features kept: scaled before or after they are chosen, they are the same numbers
    kept = replace(evidence, design=design_of(problem.table(Pool(64)), "kept"))
    bare = replace(evidence, design=design_of(problem.table(Pool(64)), "none"))
    scores = SCORES[name](evidence)
    np.testing.assert_allclose(SCORES[name](kept), scores, rtol=1e-3, atol=1e-3 * scores.max())
    assert name == "random" or not np.allclose(SCORES[name](bare), scores, rtol=1e-3, atol=1e-3 * scores.max())
