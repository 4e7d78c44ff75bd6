"""Results -> a table per network: accuracies, means over tasks and over groups, intervals, wins and losses."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from head2toe.bench.affinity import affinities, affinity_markdown
from head2toe.bench.costs import cost_markdown, costs
from head2toe.bench.intervals import (
    SAME,
    Cell,
    Interval,
    by_cell,
    difference,
    interval_of_mean,
    mean_accuracy,
    percent,
    span,
)
from head2toe.bench.predictions import read_right
from head2toe.bench.result import (
    BOUND_NOTE,
    Result,
    cell_text,
    home,
    latest,
    marked,
    ordered,
    read_results,
    upper_bounds,
)
from head2toe.data.vtab import VTAB
from head2toe.errors import DataError
from head2toe.files import replacing
from head2toe.methods import target_sizes_of

GROUPS = ("natural", "specialized", "structured")  # VTAB's order; other groups follow by name
PROTOCOL = ("target_sizes", "max_test", "precision", "image_size", "resize", "normalised")
COMPLETE = {"vtab": tuple(task.name for task in VTAB)}  # suites that have a fixed set of tasks
Kind = Literal["task", "group", "tasks", "groups"]
RightOf = Callable[[Result], np.ndarray | None]


@dataclass(frozen=True)
class Entry:
    """An accuracy in [0, 1] with its 95 % interval: over test images for a task, over tasks for a mean."""

    accuracy: float
    interval: Interval | None
    n_seeds: int


@dataclass(frozen=True)
class Row:
    """A task, the mean of a group, of all tasks, or of the groups' means; a mean is there for methods that have all."""

    kind: Kind
    name: str
    group: str
    entries: Mapping[str, Entry]


@dataclass(frozen=True)
class Comparison:
    """A method against the reference on the tasks and seeds that both have: the mean difference, and who is ahead."""

    method: str
    reference: str
    n_tasks: int
    difference: float
    interval: Interval | None
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Table:
    """Everything measured with one network on one suite; `missing` are tasks of the suite without any result.

    `target_sizes` are those that the heads of each method read, where methods were left to their own.
    """

    suite: str
    backbone: str
    methods: tuple[str, ...]
    upper_bounds: tuple[str, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    missing: tuple[str, ...] = ()
    protocol: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    target_sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def tables_of(results: Sequence[Result], right_of: RightOf | None = None, *, reference: str = "linear") -> list[Table]:
    """A table for each suite and network; `right_of` gives the test images that a result got right, for intervals."""
    cells = by_cell(results)
    pairs = dict.fromkeys((cell.suite, cell.backbone) for cell in cells)
    return [_table(pair, _of(cells, *pair), right_of or (lambda result: None), reference) for pair in pairs]


def sizes_note(table: Table) -> str:
    """What each method's heads read, in a sentence; nothing where all methods have the same target sizes."""
    methods: dict[tuple[int, ...], list[str]] = {}
    for method, sizes in table.target_sizes.items():
        methods.setdefault(sizes, []).append(marked(method, table.upper_bounds))
    if len(methods) < 2:
        return ""
    read = (f"{', '.join(of)} {' or '.join(f'{size:,}' for size in sizes)}" for sizes, of in methods.items())
    return f"Not the same features for all; target sizes of the heads: {'; '.join(read)}."


def seeds_note(table: Table) -> str:
    """A sentence where methods were measured on different numbers of seeds."""
    counts: dict[str, set[int]] = {}
    for row in table.rows:
        for method, entry in row.entries.items() if row.kind == "task" else ():
            counts.setdefault(method, set()).add(entry.n_seeds)
    if len(set().union(*counts.values())) < 2:
        return ""
    told = "; ".join(
        f"{marked(method, table.upper_bounds)} {' or '.join(map(str, sorted(of)))}" for method, of in counts.items()
    )
    return f"Numbers of seeds: {told}. Differences are on the seeds that both methods have."


def protocol_line(table: Table) -> str:
    """What the table's fits share, in a line; several values where they do not."""
    return "; ".join(f"{name.replace('_', ' ')} {' or '.join(values)}" for name, values in table.protocol.items())


def best(row: Row, table: Table) -> set[str]:
    """The methods that share the row's best accuracy as it is shown; upper bounds are never best."""
    shown = {m: percent(entry.accuracy) for m, entry in row.entries.items() if m not in table.upper_bounds}
    return {method for method, text in shown.items() if float(text) == max(map(float, shown.values()))}


def mean_of(table: Table, method: str) -> float | None:
    """A method's mean over all tasks; None where it lacks one."""
    entries = [row.entries[method].accuracy for row in table.rows if row.kind == "tasks" and method in row.entries]
    return entries[0] if entries else None


def write_tables(out: Path, *, reference: str = "linear") -> list[Table]:
    """Write `table.md`, with domain affinity and costs, and `table.csv` from the results in `out`.

    DataError where there is none.
    """
    results = latest(read_results(out / "results.jsonl"))
    if not results:
        raise DataError(f"bench: {out} holds no results.jsonl with results; run `head2toe bench` with --out {out}")
    tables = tables_of(results, lambda result: read_right(out, result), reference=reference)
    pages = []
    for table in tables:
        of = [r for r in results if (r.suite, home(r)) == (table.suite, table.backbone)]
        bounds = table.upper_bounds
        pages += [markdown(table), affinity_markdown(affinities(of), bounds), cost_markdown(costs(of), bounds)]
    for name, text in (("table.md", "\n".join(page for page in pages if page)), ("table.csv", as_csv(tables))):
        with replacing(out / name) as new:
            new.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need be no UTF-8
    return tables


def markdown(table: Table) -> str:
    """The table as a page: accuracies in per cent, the best of each row bold, upper bounds marked with †."""
    names = [marked(method, table.upper_bounds) for method in table.methods]
    lines = [
        f"## {table.suite}, {table.backbone}", "",
        protocol_line(table), "",
        f"| task | {' | '.join(names)} |", "|---|" + "---:|" * len(names),
    ]  # fmt: skip
    for row in table.rows:
        lines.append(f"| {cell_text(row.name)} | {' | '.join(_cells(row, table))} |")
        if row.kind != "task" and any(entry.interval for entry in row.entries.values()):
            intervals = (row.entries.get(method) for method in table.methods)
            lines.append(f"| 95 % interval | {' | '.join(span(e and e.interval) for e in intervals)} |")
    lines += ["", *_notes(table), ""]
    if table.comparisons:
        reference = marked(table.comparisons[0].reference, table.upper_bounds)
        lines += [f"| against {reference} | tasks | difference | 95 % interval | wins | ties | losses |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|"]
        lines += [
            f"| {marked(c.method, table.upper_bounds)} | {c.n_tasks} | {100 * c.difference:+.1f} | {span(c.interval)} "
            f"| {c.wins} | {c.ties} | {c.losses} |"
            for c in table.comparisons
        ]
        lines.append("")
    return "\n".join(lines)


def as_csv(tables: Iterable[Table]) -> str:
    """Every entry of every table on a line of its own, accuracies in [0, 1]; wins and losses beside the means."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = ("suite", "backbone", "row", "name", "group", "method", "upper_bound", "accuracy", "low", "high", "seeds")
    writer.writerow((*columns, "reference", "wins", "ties", "losses"))
    for table in tables:
        compared = {c.method: (c.reference, c.wins, c.ties, c.losses) for c in table.comparisons}
        for row in table.rows:
            for method, entry in row.entries.items():
                low, high = (entry.interval.low, entry.interval.high) if entry.interval else ("", "")
                bound = method in table.upper_bounds
                what = (table.suite, table.backbone, row.kind, row.name, row.group, method, bound)
                against = compared.get(method, ("",) * 4) if row.kind == "tasks" else ("",) * 4
                writer.writerow((*what, entry.accuracy, low, high, entry.n_seeds, *against))
    return stream.getvalue()


def _of(cells: Mapping[Cell, list[Result]], suite: str, backbone: str) -> dict[Cell, list[Result]]:
    return {cell: found for cell, found in cells.items() if (cell.suite, cell.backbone) == (suite, backbone)}


def _table(pair: tuple[str, str], cells: Mapping[Cell, list[Result]], right_of: RightOf, reference: str) -> Table:
    results = [result for found in cells.values() for result in found]
    methods = ordered(cell.method for cell in cells)
    groups = {result.task: result.group for result in results}
    tasks = _task_rows(groups, methods, cells, right_of)
    return Table(
        suite=pair[0],
        backbone=pair[1],
        methods=tuple(methods),
        upper_bounds=upper_bounds(results),
        rows=(*tasks, *_mean_rows(tasks, methods)),
        comparisons=tuple(
            compared
            for method in methods
            if method != reference and (compared := _compared(cells.values(), method, reference)).n_tasks
        ),
        missing=tuple(task for task in COMPLETE.get(pair[0], ()) if task not in groups),
        protocol={
            name: tuple(dict.fromkeys(str(r.settings[name]) for r in results if name in r.settings))
            for name in PROTOCOL
            if any(name in result.settings for result in results)
        },
        target_sizes=_own_sizes(methods, results),
    )


def _own_sizes(methods: Sequence[str], results: Sequence[Result]) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, set[int]] = {method: set() for method in methods if target_sizes_of(method)}
    for result in results:
        if result.method in sizes and result.settings.get("target_sizes") == "default":
            sizes[result.method] |= {int(result.settings["target_size"])} if "target_size" in result.settings else set()
    return {method: tuple(sorted(of)) for method, of in sizes.items() if of}


def _task_rows(
    groups: Mapping[str, str], methods: Sequence[str], cells: Mapping[Cell, list[Result]], right_of: RightOf
) -> list[Row]:
    found = {(cell.task, cell.method): results for cell, results in cells.items()}
    order = sorted(groups, key=lambda task: (_place(groups[task], GROUPS), groups[task], task))
    return [
        Row("task", task, groups[task], {m: _entry(found[task, m], right_of) for m in methods if (task, m) in found})
        for task in order
    ]


def _entry(results: Sequence[Result], right_of: RightOf) -> Entry:
    right = [right_of(result) for result in results]
    per_image = [one for one in right if one is not None]
    whole = len(per_image) == len(results) and len({len(one) for one in per_image}) == 1
    interval = interval_of_mean(np.mean(per_image, axis=0)) if whole else None
    return Entry(mean_accuracy(results), interval, len(results))


def _mean_rows(tasks: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    groups: dict[str, list[Row]] = {}
    for row in tasks:
        groups.setdefault(row.group, []).append(row)
    rows = []
    if len(groups) > 1:
        rows += [_mean("group", f"mean of {group}", group, [of], methods) for group, of in groups.items()]
    rows.append(_mean("tasks", f"mean of {len(tasks)} task{'s' * (len(tasks) > 1)}", "", [tasks], methods))
    if len(groups) > 1:
        rows.append(_mean("groups", f"mean of {len(groups)} groups", "", list(groups.values()), methods))
    return rows


def _mean(kind: Kind, name: str, group: str, samples: Sequence[Sequence[Row]], methods: Sequence[str]) -> Row:
    entries = {}
    for method in methods:
        if all(method in row.entries for sample in samples for row in sample):
            found = [[row.entries[method] for row in sample] for sample in samples]
            values = [np.array([entry.accuracy for entry in sample]) for sample in found]
            seeds = min(entry.n_seeds for sample in found for entry in sample)
            entries[method] = Entry(float(np.mean([v.mean() for v in values])), interval_of_mean(*values), seeds)
    return Row(kind, name, group, entries)


def _compared(cells: Iterable[Sequence[Result]], method: str, reference: str) -> Comparison:
    of = {(found[0].task, found[0].method): found for found in cells}
    tasks = sorted({task for task, _ in of})
    gains = [difference(of.get((task, method), ()), of.get((task, reference), ())) for task in tasks]
    ahead = np.array([gain for gain in gains if gain is not None])
    return Comparison(
        method=method,
        reference=reference,
        n_tasks=len(ahead),
        difference=float(ahead.mean()) if len(ahead) else 0.0,
        interval=interval_of_mean(ahead),
        wins=int((ahead > SAME).sum()),
        ties=int((abs(ahead) <= SAME).sum()),
        losses=int((ahead < -SAME).sum()),
    )


def _cells(row: Row, table: Table) -> list[str]:
    """A row's accuracies in per cent, the best bold."""
    shown = {method: percent(entry.accuracy) for method, entry in row.entries.items()}
    bold = best(row, table)
    return [f"**{shown[m]}**" if m in bold else shown.get(m, "–") for m in table.methods]


def _notes(table: Table) -> list[str]:
    notes = []
    if table.upper_bounds:
        notes.append(BOUND_NOTE)
    if note := sizes_note(table):
        notes.append(note)
    if note := seeds_note(table):
        notes.append(note)
    if table.missing:
        notes.append(f"Not measured, so in no mean: {', '.join(table.missing)}.")
    widths = [
        (entry.interval.high - entry.interval.low) / 2
        for row in table.rows
        for entry in row.entries.values()
        if row.kind == "task" and entry.interval
    ]
    if widths:
        notes.append(
            f"A task's accuracy is known to ±{100 * max(widths):.1f} points or better (95 %, test images resampled); "
            "intervals of means resample tasks. All of them are in table.csv."
        )
    return notes


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)
