"""Domain affinity by hand, correlations against scipy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from head2toe.bench.affinity import affinities, correlations
from head2toe.bench.result import Result

LINEAR = [0.9, 0.5, 0.7, 0.3, 0.6, 0.2]
SCRATCH = [0.2, 0.3, 0.6, 0.4, 0.1, 0.5]
ORACLE = [0.9, 0.7, 0.75, 0.8, 0.62, 0.9]


def results(method: str, accuracies: list[float], backbone: str = "tiny") -> list[Result]:
    return [
        Result("packs", f"task{i}", "all", backbone, method, 0, accuracy, 0.5, 10, 20, 2, 8, 8)
        for i, accuracy in enumerate(accuracies)
    ]


@pytest.fixture
def points():
    return affinities(
        [
            *results("linear", LINEAR),
            *results("scratch", SCRATCH),
            *results("oracle", ORACLE),
            *results("control", [a + 0.01 for a in LINEAR[:5]], backbone="tiny+other"),
            *results("head2toe", [1.0] * 6, backbone="untrained"),
        ]
    )


def test_affinity_is_linear_less_scratch_and_gains_are_over_linear(points):
    assert [p.affinity for p in points] == pytest.approx([a - b for a, b in zip(LINEAR, SCRATCH, strict=True)])
    assert [p.gains["oracle"] for p in points] == pytest.approx([a - b for a, b in zip(ORACLE, LINEAR, strict=True)])
    assert points[0].gains == pytest.approx({"oracle": 0.0, "control": 0.01})
    assert set(points[5].gains) == {"oracle"}
    assert {p.backbone for p in points} == {"tiny"}


def test_differences_are_means_over_the_seeds_that_both_have():
    linear, scratch = results("linear", [0.8]), results("scratch", [0.4])
    again = [replace(linear[0], seed=1, test_accuracy=0.6)]
    (point,) = affinities([*linear, *again, *scratch])
    assert point.affinity == pytest.approx(0.4)
    (point,) = affinities([*linear, *again, *scratch, replace(scratch[0], seed=1, test_accuracy=0.5)])
    assert point.affinity == pytest.approx(0.25)


def test_correlations_are_scipys(points):
    found = {c.method: c for c in correlations(points)}["oracle"]
    x, y = [p.affinity for p in points], [p.gains["oracle"] for p in points]
    pearson, spearman = stats.pearsonr(x, y), stats.spearmanr(x, y)
    assert found.n == 6
    assert found.pearson == pytest.approx(pearson.statistic)
    assert (found.pearson_interval.low, found.pearson_interval.high) == pytest.approx(pearson.confidence_interval(0.95))
    assert found.spearman == pytest.approx(spearman.statistic)


def test_the_rank_interval_is_a_bootstrap_over_tasks():
    random = np.random.default_rng(0)
    x = random.random(19)
    y = 0.6 * x + 0.4 * random.random(19)
    made = affinities([
        *results("linear", x.tolist()), *results("scratch", [0.0] * 19), *results("oracle", (x + y).tolist()),
    ])  # fmt: skip
    (found,) = correlations(made)
    expected = stats.bootstrap(
        (x, y), rank_correlation, paired=True, vectorized=False, n_resamples=2000, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found.spearman_interval.low == pytest.approx(expected.low, abs=0.06)
    assert found.spearman_interval.high == pytest.approx(expected.high, abs=0.06)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]


def test_too_few_or_constant_values_say_nothing(points):
    few = correlations(points[:3])
    assert all(c.pearson is None and c.spearman_interval is None for c in few)
    control = {c.method: c for c in correlations(points)}["control"]
    assert (control.n, control.pearson) == (5, None)
    flat = affinities([*results("linear", [0.5] * 6), *results("scratch", [0.1] * 6), *results("oracle", ORACLE)])
    assert correlations(flat)[0].pearson is None
