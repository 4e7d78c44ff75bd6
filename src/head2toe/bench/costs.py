"""What one more task costs: operations, seconds, memory and bytes, method by method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from head2toe.bench.result import Result, home

PHASES = ("extract", "select", "fit", "train")  # loading the network is no cost of a task


@dataclass(frozen=True)
class Cost:
    """Means over the tasks that a method and the reference share, over seeds, and ratios to the reference.

    `flops` are for the training images whether or not their features were in the store, `seconds` as they passed,
    `peak_bytes` the resident memory of the process that fits (not of those that extract), `task_bytes` what the task
    adds on disk. None: not measured.
    """

    backbone: str
    method: str
    n_tasks: int
    flops: float | None
    seconds: float | None
    peak_bytes: float | None
    task_bytes: float | None
    ratios: dict[str, float]


QUANTITIES = ("flops", "seconds", "peak_bytes", "task_bytes")


def costs(results: Sequence[Result], reference: str = "head2toe") -> list[Cost]:
    """A cost for each backbone and method that shares a task with `reference`, in the order of their appearance."""
    found = []
    for backbone in dict.fromkeys(map(home, results)):
        here = [result for result in results if home(result) == backbone]
        baseline = [result for result in here if result.method == reference]
        for method in dict.fromkeys(result.method for result in here):
            own = [result for result in here if result.method == method]
            tasks = {result.task for result in own} & {result.task for result in baseline}
            if tasks:
                found.append(_cost(backbone, method, tasks, own, baseline))
    return found


def cost_markdown(found: Sequence[Cost], reference: str = "head2toe") -> str:
    """What a task costs, means over tasks; in brackets how many times the reference's on the same tasks."""
    if not found:
        return ""
    lines = [
        f"Cost of a task, and in brackets how many times that of {reference} on the same tasks:", "",
        "| method | tasks | operations | seconds | peak bytes | bytes on disk |", "|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    forms = {"flops": ".2e", "seconds": ".1f", "peak_bytes": ",.0f", "task_bytes": ",.0f"}
    for cost in found:
        cells = []
        for name, form in forms.items():
            value, ratio = getattr(cost, name), cost.ratios.get(name)
            times = f" ({ratio:.3g})" if ratio is not None and cost.method != reference else ""
            cells.append("–" if value is None else f"{value:{form}}{times}")
        lines.append(f"| {cost.method} | {cost.n_tasks} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cost(backbone: str, method: str, tasks: set[str], own: Sequence[Result], baseline: Sequence[Result]) -> Cost:
    spent = {name: _mean(own, tasks, name) for name in QUANTITIES}
    against = {name: _mean(baseline, tasks, name) for name in QUANTITIES}
    ratios = {name: value / there for name, value in spent.items() if value and (there := against[name])}
    return Cost(backbone, method, len(tasks), **spent, ratios=ratios)


def _mean(results: Sequence[Result], tasks: set[str], name: str) -> float | None:
    """The mean over tasks of a quantity's mean over seeds; None unless every result has it."""
    values: dict[str, list[float]] = {}
    for result in results:
        if result.task in tasks:
            values.setdefault(result.task, []).append(_quantity(result, name))
    means = [float(np.mean(of)) for of in values.values() if min(of) > 0]
    return float(np.mean(means)) if means and len(means) == len(values) else None


def _quantity(result: Result, name: str) -> float:
    if name == "flops":
        return float(sum(result.flops.values()))
    if name == "seconds":
        return sum(result.seconds.get(phase, 0.0) for phase in PHASES)
    return float(getattr(result, name))
