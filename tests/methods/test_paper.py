"""The published recipe: what it promises that ours does not."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from head2toe.apply import stored_logits
from head2toe.errors import DataError, FeatureError, NotConvergedError
from head2toe.extract import extract, read, view_of
from head2toe.methods import method_named, paper
from head2toe.methods.head2toe import Head2Toe
from head2toe.methods.paper import FULL, THIN, Grid, Paper, Recipe
from head2toe.methods.problem import Journal
from head2toe.solvers import sgd
from head2toe.store import FeatureStore
from head2toe.table import scaled
from head2toe.taps import Pool

SMALL = Grid((80,), (0.1,), (1e-4, 1e-3), (0.05, 0.2))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def head(network, corners, store):
    return Paper("head2toe", 64, SMALL).fit(network, corners, store, progress=False)


def test_it_finds_where_the_spot_is_and_the_last_features_do_not(network, corners, store, head):
    linear = Paper("linear", 64, SMALL).fit(network, corners, store, progress=False)
    assert linear.taps == (network.prelogits,)
    assert head.metrics.test_accuracy > 0.8
    assert head.metrics.test_accuracy > linear.metrics.test_accuracy + 0.2


def test_the_settings_come_from_the_grid(head):
    settings = head.provenance.settings
    assert settings["steps"] in SMALL.steps
    assert settings["lr"] in SMALL.lrs
    assert settings["lam"] in SMALL.lams
    assert settings["keep"] in SMALL.kappas
    assert head.n_kept == int(settings["keep"] * head.provenance.n_features)
    assert head.pools[0] == Pool(64, rule="paper")


def test_the_head_is_adam_on_features_scaled_after_selection(network, corners, store, head):
    """The saved weights are those of the solver on unit-norm kept columns: no standardisation lies between."""
    from head2toe.methods.problem import prepare

    problem = prepare(network, corners, store, [Pool(64)], progress=False)
    table = problem.table(Pool(64))
    blocks = dict(zip(table.taps, table.blocks, strict=True))
    X = np.hstack([scaled(blocks[kept.pooled], kept.columns, "kept") for kept in head.kept])
    for kept, part in zip(head.kept, np.split(X, np.cumsum([len(k.columns) for k in head.kept])[:-1], 1), strict=True):
        norms = np.linalg.norm(part, axis=1)
        assert np.allclose(norms[norms > 0], 1.0, atol=1e-5), kept.pooled.name
    W, b = sgd.fit(X, problem.labels, n_classes=4, steps=80, lr=0.1)
    assert np.array_equal(head.W, W)
    assert np.array_equal(head.b, b)


def test_means_come_from_the_pass_of_whoever_read_deviations_too(network, corners, tmp_path):
    store = FeatureStore(tmp_path / "store")
    Head2Toe(64).fit(network, corners, store, progress=False)
    journal = Journal()
    head = Paper("all-l2", 64, SMALL).fit(network, corners, store, journal=journal, progress=False)
    assert journal.extraction is not None
    assert journal.extraction.computed == 0
    assert {kept.pooled.pool for kept in head.kept} == {Pool(64)}
    extract(network, corners.splits, store, [Pool(64)], progress=False)
    alone = store.read(view_of(network, Pool(64)), corners.train.ids, network.taps)
    shared = read(network, Pool(64), store, corners.train.ids, network.taps)
    for a, b in zip(alone.blocks, shared.blocks, strict=True):
        assert a.shape == b.shape
        assert np.allclose(a, b, rtol=1e-3, atol=1e-5)
    assert stored_logits(head, corners.test, network, store, progress=False).shape == (corners.test.n_rows, 4)


def test_a_stronger_l1_penalty_makes_smaller_weights(network, corners, store):
    sizes = []
    for lam in (1e-5, 1e-1):
        grid = replace(SMALL, lams=(lam,))
        sizes.append(np.abs(Paper("all-l1", 64, grid).fit(network, corners, store, progress=False).W).sum())
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize("method", ["all-l2", "head2toe"])
def test_a_rate_that_diverges_loses(network, corners, store, method):
    grid = Grid((30,), (0.1,), (1e-4,), (0.2,))
    head = Paper(method, 64, replace(grid, lrs=(1e38, 0.1))).fit(network, corners, store, progress=False)
    alone = Paper(method, 64, grid).fit(network, corners, store, progress=False)
    assert head.provenance.settings == alone.provenance.settings
    assert head.metrics == alone.metrics
    with pytest.raises(NotConvergedError, match="lower"):
        Paper(method, 64, replace(grid, lrs=(1e38,))).fit(network, corners, store, progress=False)


def test_the_thin_grid_is_part_of_the_full_one():
    for field in ("steps", "lrs", "lams"):
        assert set(getattr(THIN, field)) <= set(getattr(FULL, field))
    assert (min(FULL.kappas), max(FULL.kappas)) == (0.0005, 1.0)
    assert len(Paper("head2toe", grid=FULL).settings) == 2 * 2 * 3 * len(FULL.kappas)
    assert len(Paper("linear", grid=FULL).settings) == 2 * 2


@pytest.mark.parametrize(("prefix", "grid"), [("paper-", THIN), ("paper-full-", FULL)])
@pytest.mark.parametrize("recipe", get_args(Recipe))
def test_every_recipe_has_a_name_for_each_grid(prefix, grid, recipe):
    method = method_named(prefix + recipe, target_sizes=[64], folds=3, seed=7)
    assert method == Paper(recipe, (64,), grid, folds=3, seed=7)
    assert method.name == prefix + recipe


@pytest.mark.parametrize(
    ("named", "name", "recorded"),
    [("FULL", "paper-full-all-l2", "full"), ("THIN", "paper-all-l2", "thin"), (None, "paper-all-l2", "given")],
)
def test_a_head_says_which_grid_it_was_chosen_from(network, corners, store, monkeypatch, named, name, recorded):
    if named:
        monkeypatch.setattr(paper, named, SMALL)
    head = Paper("all-l2", 64, SMALL).fit(network, corners, store, progress=False)
    assert (head.provenance.method, head.provenance.settings["grid"]) == (name, recorded)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"grid": replace(THIN, lrs=())}, DataError, "at least one value"),
        ({"grid": replace(THIN, lrs=(0.1, 0.01, 0.1))}, DataError, "every value once"),
        ({"grid": replace(THIN, kappas=(0.0,))}, FeatureError, "fraction"),
        ({"target_size": ()}, DataError, "at least one target size"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        _ = Paper(**settings).pools
