"""Domain affinity, and whether what a method gains over a linear probe falls with it (the paper's figure 3)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from head2toe.bench.intervals import LEVEL, RESAMPLES, SAME, Interval, by_cell, difference
from head2toe.bench.result import Result, cell_text, marked, ordered

PROBE, SCRATCH = "linear", "scratch"


@dataclass(frozen=True)
class Affinity:
    """DA = acc(Linear) - acc(Scratch) of a task (equation 1), and every method's gain over Linear; all in [-1, 1].

    A low one is far from what the network was trained on.
    """

    suite: str
    task: str
    backbone: str
    affinity: float
    gains: dict[str, float]


@dataclass(frozen=True)
class Correlation:
    """How a method's gain goes with affinity over n tasks of one network; None where too few tasks say it.

    Both contain acc(Linear), one with each sign, so that its noise alone pulls the correlation below zero.
    """

    suite: str
    backbone: str
    method: str
    n: int
    pearson: float | None
    pearson_interval: Interval | None
    spearman: float | None
    spearman_interval: Interval | None


def affinities(results: Sequence[Result]) -> list[Affinity]:
    """One for each task and network that has both Linear and Scratch; means over the seeds that two methods share."""
    places: dict[tuple[str, str, str], dict[str, list[Result]]] = {}
    for cell, found in by_cell(results).items():
        places.setdefault((cell.suite, cell.task, cell.backbone), {})[cell.method] = found
    points = []
    for (suite, task, backbone), of in places.items():
        affinity = difference(of.get(PROBE, ()), of.get(SCRATCH, ()))
        if affinity is not None:
            ahead = {m: difference(found, of[PROBE]) for m, found in of.items() if m not in (PROBE, SCRATCH)}
            gains = {method: gain for method, gain in ahead.items() if gain is not None}
            points.append(Affinity(suite, task, backbone, affinity, gains))
    return points


def correlations(points: Sequence[Affinity]) -> list[Correlation]:
    """Each method's correlation over the tasks of each network, the methods in the order of tables."""
    networks = dict.fromkeys((p.suite, p.backbone) for p in points)
    methods = ordered(method for p in points for method in p.gains)
    places = dict.fromkeys((*network, method) for network in networks for method in methods)
    found = []
    for suite, backbone, method in places:
        of = [p for p in points if (p.suite, p.backbone) == (suite, backbone) and method in p.gains]
        if not of:
            continue
        x, y = np.array([p.affinity for p in of]), np.array([p.gains[method] for p in of])
        found.append(Correlation(suite, backbone, method, len(of), *_pearson(x, y), *_spearman(x, y)))
    return found


def affinity_markdown(points: Sequence[Affinity], upper_bounds: Collection[str] = ()) -> str:
    """Affinity and gains of each task in points of accuracy, the most distant first, and how they correlate."""
    if not points:
        return ""
    methods = ordered(method for point in points for method in point.gains)
    names = " | ".join(marked(method, upper_bounds) for method in methods)
    lines = [
        "Domain affinity (linear less scratch), and gains over linear:", "",
        f"| task | affinity | {names} |", "|---|" + "---:|" * (len(methods) + 1),
    ]  # fmt: skip
    for point in sorted(points, key=lambda point: point.affinity):
        gains = (_points(point.gains.get(method)) for method in methods)
        lines.append(f"| {cell_text(point.task)} | {_points(point.affinity)} | {' | '.join(gains)} |")
    told = {correlation.method: correlation for correlation in correlations(points)}
    for name in ("pearson", "spearman"):
        if any(getattr(of, name) is not None for of in told.values()):
            values = (_correlation(getattr(told[m], name), getattr(told[m], f"{name}_interval")) for m in methods)
            lines.append(f"| {name.capitalize()} of gain and affinity | | {' | '.join(values)} |")
    return "\n".join([*lines, ""])


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def _correlation(value: float | None, interval: Interval | None) -> str:
    span = f" ({interval.low:+.2f} to {interval.high:+.2f})" if interval else ""
    return "–" if value is None else f"{value:+.2f}{span}"


def _pearson(x: np.ndarray, y: np.ndarray) -> tuple[float | None, Interval | None]:
    """The correlation, with Fisher's interval."""
    from scipy import stats

    if not _varied(x, y):
        return None, None
    interval = stats.pearsonr(x, y).confidence_interval(LEVEL)
    return float(np.corrcoef(x, y)[0, 1]), Interval(float(interval.low), float(interval.high))


def _spearman(x: np.ndarray, y: np.ndarray) -> tuple[float | None, Interval | None]:
    """The rank correlation, with a percentile bootstrap interval over tasks."""
    from scipy import stats

    if not _varied(x, y):
        return None, None
    picked = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    ranks = [stats.rankdata(values[picked], axis=1) for values in (x, y)]
    a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    drawn = (a * b).sum(axis=1)[spread > 0] / spread[spread > 0]  # a draw of one task alone says nothing
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]), Interval(float(low), float(high))


def _varied(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether there are enough points for an interval, and both values vary."""
    return len(x) >= 4 and bool(min(np.ptp(x), np.ptp(y)) > SAME)
