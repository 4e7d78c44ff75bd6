"""The report's figures: from results to a drawing with its caption and its words for who cannot see it.

Each is drawn only where its data are: a figure of nothing is None.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import numpy as np

from head2toe.bench.affinity import Affinity, Correlation
from head2toe.bench.charts import WIDE, Axis, Panel, Series, bars, curves, dots, heat, scatter
from head2toe.bench.costs import Cost, pass_note
from head2toe.bench.intervals import by_cell, mean_accuracy
from head2toe.bench.result import BOUND_NOTE, MARK, Result, home, marked, plain_name
from head2toe.bench.tables import Table

ACCURACY = Axis("test accuracy", percent=True)
SHOWN_GAINS = ("oracle", "control", "head2toe", "finetune", "head2toe-ft")
MOST_PANELS = 3
REFERENCE = "elimination"  # the criterion that others are compared with


@dataclass(frozen=True)
class Figure:
    """A drawing: a `name` for links, its title, how it was made, and its numbers in words for who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Study:
    """How a study is drawn: over what x, and what the reader should look for."""

    title: str
    x: Axis
    caption: str


STUDIES = {
    "keep-fraction": Study(
        "Accuracy against keep fraction", Axis("features kept", log=True, percent=True),
        "Head2Toe made to keep one fraction of all features; everything else cross-validated.",
    ),
    "target-size": Study(
        "Accuracy against target size", Axis("target size of a tap", log=True),
        "Larger targets keep more of where things are; keep fraction and strength cross-validated at each.",
    ),
    "window": Study(
        "Accuracy by window of the ranking", Axis("rank of the window's first feature"),
        "A head on equally many features, taken further and further down the ranking. "
        "If relevance scores say anything, it falls.",
    ),
    "layers": Study(
        "Single features against whole layers", Axis("features kept", log=True, percent=True),
        "The same budget spent on the best features, and on whole taps by their mean score.",
    ),
    "n-train": Study(
        "Accuracy against number of training images", Axis("training images", log=True),
        "Stratified subsets, each contained in the next, at least one image per class.",
    ),
    "flops-budget": Study(
        "Accuracy against the share of the network that runs", Axis("operations of the whole network", percent=True),
        "Only taps that a pass with this share of the network's operations reaches.",
    ),
}  # fmt: skip


def accuracy_dots(table: Table) -> Figure | None:
    """Every method's accuracy on every task of one network and suite."""
    rows = [row for row in table.rows if row.kind == "task"]
    if not rows or len(table.methods) < 2:
        return None
    columns = {
        marked(method, table.upper_bounds): [
            row.entries[method].accuracy if method in row.entries else None for row in rows
        ]
        for method in table.methods
    }
    best = {
        row.name: max((m for m in row.entries if m not in table.upper_bounds), key=lambda m: row.entries[m].accuracy)
        for row in rows
        if set(row.entries) - set(table.upper_bounds)
    }
    return Figure(
        plain_name(f"accuracy-{table.suite}-{table.backbone}"),
        "Accuracy per task and method",
        _noted(
            "Every dot is one method's test accuracy on one task."
            + " Hollow circles are the published recipe, hollow squares the same on its full grid."
            * any(method.startswith("paper-") for method in table.methods),
            columns,
        ),
        "Best method per task: " + ", ".join(f"{task} {method}" for task, method in best.items()),
        dots([row.name for row in rows], columns, ACCURACY),
    )


def network_dots(tables: Sequence[Table], methods: Sequence[str], upper_bounds: Collection[str]) -> Figure | None:
    """Every method's mean over the tasks that all networks share in one suite, network by network."""
    tasks = set.intersection(*({row.name for row in table.rows if row.kind == "task"} for table in tables))
    columns = {method: [_mean_over(tasks, table, method) for table in tables] for method in methods}
    shown = {method: values for method, values in columns.items() if any(value is not None for value in values)}
    named = {marked(method, upper_bounds): values for method, values in shown.items()}
    if not shown:
        return None
    spoken = (
        f"{table.backbone}: " + ", ".join(f"{m} {mean:.1%}" for m, of in named.items() if (mean := of[i]) is not None)
        for i, table in enumerate(tables)
    )
    return Figure(
        plain_name(f"networks-{tables[0].suite}"),
        "Mean accuracy per network and method",
        _noted(f"Every dot is one method's mean test accuracy over the {len(tasks)} tasks of all networks.", named),
        "; ".join(spoken),
        dots([table.backbone for table in tables], named, ACCURACY),
    )


def affinity_scatter(
    points: Sequence[Affinity], correlations: Sequence[Correlation], upper_bounds: Collection[str] = ()
) -> Figure | None:
    """The paper's figure 3 for one network: what methods gain over Linear against domain affinity."""
    shown = [c for name in SHOWN_GAINS for c in correlations if c.method == name and c.n > 1][:MOST_PANELS]
    if not shown:
        return None
    panels = []
    for correlation in shown:
        of = [point for point in points if correlation.method in point.gains]
        gains = np.array([point.gains[correlation.method] for point in of])
        names = tuple(point.task for point in of)
        title = f"{marked(correlation.method, upper_bounds)}: {_correlation(correlation)}"
        panels.append(Panel(correlation.method, title, names, np.array([point.affinity for point in of]), gains))
    return Figure(
        plain_name(f"affinity-{shown[0].suite}-{shown[0].backbone}"),
        "Gain over Linear against domain affinity",
        _noted(
            "Affinity is accuracy of Linear less that of Scratch: on the left, tasks far from what the network learned "
            "on. r is Pearson's correlation with its 95 % interval.",
            [panel.title for panel in panels],
        ),
        "; ".join(panel.title for panel in panels),
        scatter(panels, Axis("domain affinity", percent=True), Axis("gain over Linear", percent=True)),
    )


def study_curves(name: str, results: Sequence[Result]) -> Figure | None:
    """A study's accuracy over its x: a line per task and their mean or, where it compares several series, those."""
    kinds = list(dict.fromkeys(str(result.settings["series"]) for result in results))
    grids = {kind: _grid([r for r in results if r.settings["series"] == kind]) for kind in kinds}
    shared = [task for task in grids[kinds[0]][0] if all(task in tasks for tasks, _, _ in grids.values())]
    lines = [
        Series(kind, x, y[[tasks.index(task) for task in shared]].mean(axis=0), bold=len(kinds) > 1 or kind == "mean")
        for kind, (tasks, x, y) in grids.items()
        if shared and len(x) > 1
    ]
    study, caption = STUDIES[name], STUDIES[name].caption
    if len(kinds) > 1:
        caption += f" Means over {', '.join(shared)}."
    else:
        tasks, x, y = grids[kinds[0]]
        own = {task: sorted(of.items()) for task, of in _by_x(results).items() if len(of) > 1}
        lines = [Series(task, np.array(of)[:, 0], np.array(of)[:, 1]) for task, of in own.items()]
        lines += [Series("mean", x, y.mean(axis=0), bold=True)] if len(tasks) > 1 and len(x) > 1 else []
    if not lines:
        return None
    spoken = (
        f"{line.name} from {line.y[0]:.1%} at {line.x[0]:g} to {line.y[-1]:.1%} at {line.x[-1]:g}" for line in lines
    )
    return Figure(
        plain_name(f"{name}-{results[0].backbone}"), study.title, caption, "; ".join(spoken),
        curves(lines, study.x, ACCURACY),
    )  # fmt: skip


def transfer_heat(results: Sequence[Result]) -> Figure | None:
    """Scores of one task used for another: accuracy less that with the task's own scores."""
    accuracy = _by_series(results)
    targets = list(dict.fromkeys(task for _, task in accuracy))
    sources = list(dict.fromkeys(source for source, _ in accuracy))
    if len(targets) < 2 or not any((task, task) in accuracy for task in targets):
        return None
    change = _change(accuracy, sources, targets, targets)
    borrowed = change[np.array(sources)[:, None] != np.array(targets)]
    mean = float(np.nanmean(borrowed)) if np.isfinite(borrowed).any() else 0.0
    return Figure(
        plain_name(f"transfer-{results[0].backbone}"),
        "Scores of one task used for another",
        "Points of accuracy won or lost on the column's task when features are ranked by the row's task.",
        f"On average a borrowed ranking changes accuracy by {100 * mean:+.1f} points",
        heat(change, sources, targets, Axis("target task"), signed=True, numbers=True),
    )


def criteria_heat(results: Sequence[Result]) -> Figure | None:
    """Relevance criteria from the best to the worst: accuracy less that with the default one."""
    accuracy = _by_series(results)
    tasks = [task for criterion, task in accuracy if criterion == REFERENCE]
    criteria = list(dict.fromkeys(criterion for criterion, task in accuracy if task in tasks))
    if len(criteria) < 2:
        return None
    change = _change(accuracy, criteria, tasks, [REFERENCE] * len(tasks))
    means = np.nanmean(change, axis=1).round(3) + 0.0  # as shown, and no -0.0
    order = np.argsort(-means, kind="stable")
    spoken = [f"{criteria[i]} {100 * means[i]:+.1f}" for i in order]
    return Figure(
        plain_name(f"criteria-{results[0].backbone}"),
        "Accuracy by relevance criterion",
        f"Points of accuracy won or lost against {REFERENCE} where all criteria keep equally many features; each name "
        "stands with its mean over the tasks that it could judge.",
        f"On average against {REFERENCE}: {', '.join(spoken)} points",
        heat(change[order], spoken, tasks, Axis("task"), signed=True, numbers=True),
    )


HEATS = {"transfer": transfer_heat, "criteria": criteria_heat}  # studies that have no x


def study_figure(name: str, results: Sequence[Result]) -> Figure | None:
    """What a study, one of STUDIES or HEATS, found with one network."""
    return HEATS[name](results) if name in HEATS else study_curves(name, results)


def layer_heat(results: Sequence[Result], method: str = "head2toe") -> Figure | None:
    """Where each task's kept features lie: how many per tap, taps in order of depth."""
    kept = {r.task: r.kept for r in results if r.method == method and r.kept}
    if not kept:
        return None
    taps = depth_order([result.kept for result in results if result.kept and result.backbone == home(result)])
    shares = np.array([[of.get(tap, 0) / sum(of.values()) for tap in taps] for of in kept.values()])
    favourite = (f"{task} {max(of, key=lambda tap: of[tap])}" for task, of in kept.items())
    return Figure(
        plain_name(f"layers-{results[0].suite}-{home(results[0])}"),
        "Where the kept features lie",
        f"The share of a task's kept features that each tap gives: none where a cell is empty, {shares.max():.0%} "
        "where it is strongest. The input is on the left, the last features on the right.",
        "The tap that gives each task most: " + ", ".join(favourite),
        heat(shares, list(kept), taps, Axis("tap, by depth"), width=WIDE),
    )


def cost_bars(costs: Sequence[Cost], suite: str, upper_bounds: Collection[str] = ()) -> Figure | None:
    """How many times the reference's a task costs with each method of one network, on the tasks that both have."""
    titles = {
        "flops": "Training operations",
        "seconds": "Wall time",
        "peak_bytes": "Peak memory",
        "task_bytes": "Bytes per task",
    }
    panels = {
        title: {marked(cost.method, upper_bounds): cost.ratios[name] for cost in costs if name in cost.ratios}
        for name, title in titles.items()
    }
    panels = {title: values for title, values in panels.items() if values}
    if not panels or len(costs) < 2:
        return None
    return Figure(
        plain_name(f"costs-{suite}-{costs[0].backbone}"),
        f"What one more task costs, times {costs[0].reference}",
        _noted(
            f"Ratios of means over the tasks that a method shares with {costs[0].reference}, logarithmic; "
            f"{pass_note(costs)}.",
            [name for values in panels.values() for name in values],
        ),
        "; ".join(
            f"{marked(c.method, upper_bounds)}: " + ", ".join(f"{k} {v:.3g} times" for k, v in c.ratios.items())
            for c in costs
        ),
        bars(panels),
    )


def _mean_over(tasks: Collection[str], table: Table, method: str) -> float | None:
    """A method's mean accuracy over some tasks; None where it lacks one, or there is none."""
    rows = [row.entries for row in table.rows if row.kind == "task" and row.name in tasks]
    found = [entries[method].accuracy for entries in rows if method in entries]
    return float(np.mean(found)) if found and len(found) == len(rows) else None


def _noted(caption: str, names: Iterable[str]) -> str:
    """A caption that says what the mark on any of the names means."""
    return f"{caption} {BOUND_NOTE}" if any(MARK in name for name in names) else caption


def depth_order(kept: Sequence[dict[str, int]]) -> list[str]:
    """All taps in an order of depth that agrees with every head's own, each as deep as they allow."""
    after: dict[str, dict[str, None]] = {tap: {} for of in kept for tap in of}  # a set's order changes with the process
    for of in kept:
        for earlier, later in pairwise(of):
            after[earlier][later] = None
    try:
        return list(TopologicalSorter(after).static_order())[::-1]
    except CycleError:  # several networks use one name for different places
        return list(after)


def _grid(results: Sequence[Result]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(tasks, x (k,), accuracy (tasks, k)), means over seeds: the tasks that were measured at every x.

    Where none was, as a study leaves out what a small task has no images for: all tasks, at the x that they share.
    """
    accuracy = _by_x(results)
    x = sorted({at for of in accuracy.values() for at in of})
    whole = [task for task, of in accuracy.items() if len(of) == len(x)]
    if not whole:
        x = [at for at in x if all(at in of for of in accuracy.values())]
        whole = list(accuracy)
    rows = [[accuracy[task][at] for at in x] for task in whole]
    return whole, np.array(x), np.array(rows).reshape(len(whole), len(x))


def _by_x(results: Sequence[Result]) -> dict[str, dict[float, float]]:
    """The accuracy of each task at each x, a mean over seeds."""
    found: dict[str, dict[float, float]] = {}
    for cell, of in by_cell(results).items():
        found.setdefault(cell.task, {})[_x(of[0])] = mean_accuracy(of)
    return found


def _by_series(results: Sequence[Result]) -> dict[tuple[str, str], float]:
    """The accuracy of each (series, task), a mean over seeds."""
    cells = by_cell(results)
    return {(str(found[0].settings["series"]), cell.task): mean_accuracy(found) for cell, found in cells.items()}


def _change(
    accuracy: Mapping[tuple[str, str], float], series: Sequence[str], tasks: Sequence[str], against: Sequence[str]
) -> np.ndarray:
    """Accuracies (series, tasks) less those of one series for each task; NaN where either is not there."""
    found = np.array([[accuracy.get((one, task), np.nan) for task in tasks] for one in series])
    return found - [accuracy.get(pair, np.nan) for pair in zip(against, tasks, strict=True)]


def _x(result: Result) -> float:
    return float(result.settings["x"])


def _correlation(correlation: Correlation) -> str:
    if correlation.pearson is None:
        return f"{correlation.n} tasks"
    span = correlation.pearson_interval
    return f"r {correlation.pearson:+.2f}" + (f" ({span.low:+.2f} to {span.high:+.2f})" if span else "")
