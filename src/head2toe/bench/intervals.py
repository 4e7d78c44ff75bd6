"""Bootstrap intervals of means, and means over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from head2toe.bench.result import Result, home

LEVEL = 0.95
RESAMPLES = 10_000
SAME = 1e-9  # accuracies that differ by less differ by rounding


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """Where results over seeds meet: one suite, task, backbone (Control's pair under its first) and method."""

    suite: str
    task: str
    backbone: str
    method: str


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def span(interval: Interval | None) -> str:
    """An interval in per cent."""
    return f"{percent(interval.low)} to {percent(interval.high)}" if interval else "–"


def by_cell(results: Iterable[Result]) -> dict[Cell, list[Result]]:
    """The results of each cell, one per seed; of two with the same key the later counts."""
    cells: dict[Cell, list[Result]] = defaultdict(list)
    for result in {result.key: result for result in results}.values():
        cells[Cell(result.suite, result.task, home(result), result.method)].append(result)
    return dict(cells)


def mean_accuracy(results: Iterable[Result]) -> float:
    """The mean test accuracy over seeds."""
    return float(np.mean([result.test_accuracy for result in results]))


def difference(results: Iterable[Result], others: Iterable[Result]) -> float | None:
    """How far the first are ahead of the others on a task: the mean over the seeds that both have; None without one."""
    a, b = ({result.seed: result.test_accuracy for result in of} for of in (results, others))
    shared = a.keys() & b.keys()
    return float(np.mean([a[seed] - b[seed] for seed in shared])) if shared else None


def interval_of_mean(*samples: np.ndarray) -> Interval | None:
    """The percentile bootstrap interval (95 %) of the mean of the samples' means; None where one has less than two.

    Each sample (n,) is resampled by itself. That only changes how often each distinct value is drawn, so the draws are
    multinomial: as exact as drawing one by one, and fast for 2,000 test images, which are right or wrong.
    """
    if not samples or min(map(len, samples)) < 2:
        return None
    random = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    for sample in samples:
        distinct, counts = np.unique(np.asarray(sample, np.float64), return_counts=True)
        draws = random.multinomial(len(sample), counts / len(sample), RESAMPLES)
        means += draws @ distinct / len(sample) / len(samples)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
