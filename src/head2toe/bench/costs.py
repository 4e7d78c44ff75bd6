"""What one more task costs: operations, seconds, memory and bytes, method by method."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from head2toe.bench.result import Result, home, marked, ordered

PHASES = ("select", "fit", "train")  # beside the pass; loading the network is no cost of a task
REFERENCES = ("head2toe", "linear")  # what costs are compared with: the first that was measured


@dataclass(frozen=True)
class Cost:
    """Means over the tasks that a method and the `reference` share, over seeds, and ratios to the reference.

    `flops` and `seconds` hold the pass over the training images, whether or not their features were in the store: the
    network's operations, and the mean seconds of all images that passed it for these results; where none did, since all
    were stored, `is_whole` is false and `seconds` lack it. `peak_bytes` is the
    resident memory of the process that fits (not of those that extract) and a GPU's, `task_bytes` what the task adds on
    disk. None: not measured.
    """

    backbone: str
    method: str
    reference: str
    n_tasks: int
    flops: float | None
    seconds: float | None
    peak_bytes: float | None
    task_bytes: float | None
    ratios: dict[str, float]
    is_whole: bool = True


QUANTITIES = ("flops", "seconds", "peak_bytes", "task_bytes")


def costs(results: Sequence[Result]) -> list[Cost]:
    """A cost for each backbone and method that shares a task with the reference, in the order of tables."""
    found, passes = [], _seconds_an_image(results)
    for backbone in dict.fromkeys(map(home, results)):
        here = [result for result in results if home(result) == backbone]
        measured = ordered(result.method for result in here)
        reference = next((method for method in REFERENCES if method in measured), None)
        if reference is None:
            continue
        baseline = [result for result in here if result.method == reference]
        for method in measured:
            own = [result for result in here if result.method == method]
            tasks = {result.task for result in own} & {result.task for result in baseline}
            if tasks:
                spent, against = (
                    {name: _mean(of, tasks, name, passes) for name in QUANTITIES} for of in (own, baseline)
                )
                ratios = {name: value / there for name, value in spent.items() if value and (there := against[name])}
                is_whole = all(result.backbone in passes or "extract" not in result.seconds for result in own)
                found.append(Cost(backbone, method, reference, len(tasks), **spent, ratios=ratios, is_whole=is_whole))
    return found


def cost_markdown(found: Sequence[Cost], upper_bounds: Collection[str] = ()) -> str:
    """What a task costs with one network, means over tasks; in brackets how many times the reference's."""
    if not found:
        return ""
    reference = found[0].reference
    lines = [
        f"Cost of a task, {pass_note(found)}, and in brackets how many times that of {reference} on the same tasks:",
        "",
        "| method | tasks | operations | seconds | peak bytes | bytes on disk |", "|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    forms = {"flops": ".2e", "seconds": ".1f", "peak_bytes": ",.0f", "task_bytes": ",.0f"}
    for cost in found:
        cells = []
        for name, form in forms.items():
            value, ratio = getattr(cost, name), cost.ratios.get(name)
            times = f" ({ratio:.3g})" if ratio is not None and cost.method != reference else ""
            cells.append("–" if value is None else f"{value:{form}}{times}")
        lines.append(f"| {marked(cost.method, upper_bounds)} | {cost.n_tasks} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def pass_note(found: Sequence[Cost]) -> str:
    """What of the costs holds the pass over the training images."""
    if all(cost.is_whole for cost in found):
        return "the pass over its training images included"
    return "the operations of the pass over its training images included, not its seconds, as features were stored"


def _seconds_an_image(results: Sequence[Result]) -> dict[str, float]:
    """What an image's pass took each backbone, over all that passed it; backbones that none passed are not there.

    A pass is in the account of the method that made it, while others found its features stored: told so, it is in
    everybody's.
    """
    images: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for result in results:
        passed = float(result.settings.get("extracted_images", 0))
        if passed:
            images[result.backbone] = images.get(result.backbone, 0.0) + passed
            took = result.seconds.get("extract", 0.0) + result.seconds.get("extract_test", 0.0)
            seconds[result.backbone] = seconds.get(result.backbone, 0.0) + took
    return {backbone: seconds[backbone] / images[backbone] for backbone in images}


def _mean(results: Sequence[Result], tasks: set[str], name: str, passes: Mapping[str, float]) -> float | None:
    """The mean over tasks of a quantity's mean over seeds; None unless every result has it."""
    values: dict[str, list[float]] = {}
    for result in results:
        if result.task in tasks:
            values.setdefault(result.task, []).append(_quantity(result, name, passes))
    means = [float(np.mean(of)) for of in values.values() if min(of) > 0]
    return float(np.mean(means)) if means and len(means) == len(values) else None


def _quantity(result: Result, name: str, passes: Mapping[str, float]) -> float:
    if name == "flops":
        return float(sum(result.flops.values()))
    if name == "seconds":
        passed = result.seconds.get("extract")  # 0.0 where others had stored its features; none where there is no pass
        if passed is not None:
            passed = passes.get(result.backbone, passed / result.n_train) * result.n_train
        return (passed or 0.0) + sum(result.seconds.get(phase, 0.0) for phase in PHASES)
    return float(getattr(result, name))
