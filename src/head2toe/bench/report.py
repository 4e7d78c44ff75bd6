"""Everything that a folder of results says, on one page that needs nothing else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from head2toe import __version__
from head2toe.bench import figures
from head2toe.bench.affinity import Correlation, affinities, correlations
from head2toe.bench.charts import colour_of, quantity
from head2toe.bench.conditions import backbone_option, options
from head2toe.bench.costs import Cost, costs, pass_note
from head2toe.bench.figures import Figure
from head2toe.bench.intervals import percent, span
from head2toe.bench.predictions import Mistake, read_right
from head2toe.bench.result import BOUND_NOTE, Result, home, latest, marked, ordered, read_results, slug
from head2toe.bench.suite import EVERY
from head2toe.bench.tables import Table, best, mean_of, protocol_line, seeds_note, sizes_note, tables_of
from head2toe.errors import DataError, MissingExtraError
from head2toe.files import replacing

MISTAKES = 8  # shown of each task
LAYERS = 5
XML = '<?xml version="1.0" encoding="utf-8"?>'


@dataclass(frozen=True)
class Wrong:
    """A task's surest mistakes by one method."""

    task: str
    method: str
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Layers:
    """The taps that a task's head takes most features from: (tap, share of the kept)."""

    task: str
    n_kept: int
    n_features: int
    taps: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Chapter:
    """What was found with one network on one suite."""

    table: Table
    accuracy: Figure | None
    affinity: Figure | None
    correlations: tuple[Correlation, ...]
    layer_figure: Figure | None
    layers: tuple[Layers, ...]
    cost_figure: Figure | None
    costs: tuple[Cost, ...]
    wrong: tuple[Wrong, ...]


@dataclass(frozen=True)
class Overview:
    """The networks that were measured on one suite, beside each other."""

    suite: str
    tables: tuple[Table, ...]
    methods: tuple[str, ...]
    upper_bounds: tuple[str, ...]
    figure: Figure


@dataclass(frozen=True)
class Origin:
    """What a reader needs to do it again."""

    versions: tuple[str, ...]
    packages: tuple[str, ...]
    seeds: tuple[int, ...]
    n_results: int
    commands: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Page:
    """The whole report, before it is HTML."""

    overviews: tuple[Overview, ...]
    chapters: tuple[Chapter, ...]
    studies: tuple[Figure, ...]
    origin: Origin

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Every drawing on the page, in its order."""
        networks = [overview.figure for overview in self.overviews]
        drawn = [f for c in self.chapters for f in (c.accuracy, c.affinity, c.layer_figure, c.cost_figure)]
        return tuple(figure for figure in (*networks, *drawn, *self.studies) if figure is not None)


def write_report(
    folder: Path, out: Path | None = None, figures: Path | None = None, *, reference: str = "linear"
) -> Path:
    """Write the report on `folder`, by default as its `report.html`, and every figure as `figures`/NAME.svg.

    That folder lies beside the page unless given. Wins and losses are against `reference`. Every file appears
    whole. Raises DataError where the folder holds no results, MissingExtraError without jinja2 and matplotlib.
    """
    target = out or folder / "report.html"
    if target.is_dir():
        raise DataError(f"report: --out {target} should be a file, it is a folder; give {target / 'report.html'}")
    page = page_of(folder, reference=reference)
    text = render(page)
    for figure in page.figures:
        _write((figures or target.parent / "figures") / f"{figure.name}.svg", f"{XML}\n{figure.svg}")
    _write(target, text)
    return target


def page_of(folder: Path, *, reference: str = "linear") -> Page:
    """What `results.jsonl`, `predictions/`, `mistakes/` and `studies/` of a folder say, methods against `reference`."""
    results = latest(read_results(folder / "results.jsonl"))
    studied = {path.stem: latest(read_results(path)) for path in sorted((folder / "studies").glob("*.jsonl"))}
    if not results and not any(studied.values()):
        raise DataError(f"report: {folder} holds no results; `head2toe bench SUITE --out {folder}` writes them")
    tables = tables_of(results, partial(read_right, folder), reference=reference)
    return Page(
        tuple(_overviews(tables)),
        tuple(_chapter(folder, table, results) for table in tables),
        tuple(_study_figures(studied)),
        _origin([*results, *(result for of in studied.values() for result in of)]),
    )


def render(page: Page) -> str:
    """The page as HTML: styles, script, figures and pictures inside."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("the report", "report") from error

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": _points, "span": span, "quantity": quantity}
    environment.globals |= {"colour": colour_of, "best": best, "mean_of": mean_of}
    environment.globals |= {"sizes_note": sizes_note, "seeds_note": seeds_note}
    environment.globals |= {"protocol_line": protocol_line, "marked": marked, "bound_note": BOUND_NOTE}
    environment.globals["pass_note"] = pass_note
    template = environment.from_string((files("head2toe.bench") / "report.html.jinja").read_text(encoding="utf-8"))
    return template.render(page=page, version=__version__)


def _overviews(tables: Sequence[Table]) -> list[Overview]:
    """One for each suite that several networks were measured on."""
    found = []
    for suite in dict.fromkeys(table.suite for table in tables):
        of = tuple(table for table in tables if table.suite == suite)
        methods = tuple(ordered(method for table in of for method in table.methods))
        bounds = tuple(dict.fromkeys(bound for table in of for bound in table.upper_bounds))
        if len(of) > 1 and (figure := figures.network_dots(of, methods, bounds)) is not None:
            found.append(Overview(suite, of, methods, bounds, figure))
    return found


def _chapter(folder: Path, table: Table, everything: Sequence[Result]) -> Chapter:
    results = [r for r in everything if (r.suite, home(r)) == (table.suite, table.backbone)]
    points = affinities(results)
    correlated = correlations(points)
    spent = costs(results)
    first = _of_first_seed(results)
    return Chapter(
        table=table,
        accuracy=figures.accuracy_dots(table),
        affinity=figures.affinity_scatter(points, correlated, table.upper_bounds),
        correlations=tuple(correlated),
        layer_figure=figures.layer_heat(first),
        layers=tuple(_layers(r) for r in first if r.method == "head2toe" and r.kept),
        cost_figure=figures.cost_bars(spent, table.suite, table.upper_bounds),
        costs=tuple(spent),
        wrong=tuple(_wrong(folder, first)),
    )


def _of_first_seed(results: Sequence[Result]) -> list[Result]:
    """Each method's results on each task at the least seed that it has there."""
    least: dict[tuple[str, str, str], int] = {}
    for result in results:
        place = result.task, result.backbone, result.method
        least[place] = min(result.seed, least.get(place, result.seed))
    return [r for r in results if r.seed == least[r.task, r.backbone, r.method]]


def _study_figures(studied: Mapping[str, Sequence[Result]]) -> list[Figure]:
    drawn = []
    for name in (*figures.STUDIES, *figures.HEATS):
        results = studied.get(name, ())
        for backbone in dict.fromkeys(result.backbone for result in results):
            of = [result for result in results if result.backbone == backbone]
            drawn.append(figures.study_figure(name, of))
    return [figure for figure in drawn if figure is not None]


def _layers(result: Result) -> Layers:
    most = sorted(result.kept, key=lambda tap: -result.kept[tap])[:LAYERS]
    whole = sum(result.kept.values())
    shares = tuple((tap, result.kept[tap] / whole) for tap in most)
    return Layers(result.task, result.n_kept, result.n_features, shares)


def _wrong(folder: Path, results: Sequence[Result]) -> list[Wrong]:
    """The mistakes of Head2Toe or, for a task without it, of whatever was measured first."""
    found: dict[str, Wrong] = {}
    for result in sorted(results, key=lambda result: result.method != "head2toe"):
        path = folder / "mistakes" / f"{slug(result)}.json"
        if result.task in found or not path.is_file():
            continue
        try:
            mistakes = tuple(Mistake(**entry) for entry in json.loads(path.read_text())[:MISTAKES])
        except (ValueError, TypeError) as error:
            raise DataError(
                f"report: {path} is damaged ({error}); remove it and its result to measure again"
            ) from error
        method = marked(result.method, [result.method] if result.upper_bound else [])
        found[result.task] = Wrong(result.task, method, mistakes)
    return sorted((wrong for wrong in found.values() if wrong.mistakes), key=lambda wrong: wrong.task)


def _origin(results: Sequence[Result]) -> Origin:
    settings: dict[str, dict[str, None]] = {}
    for result in results:
        for name, value in result.settings.items():
            settings.setdefault(name, {})[str(value)] = None
    told = ("target_size", "target_sizes", "max_test", "folds", "precision", "image_size", "resize", "normalised")
    return Origin(
        versions=tuple(sorted({result.version for result in results})),
        packages=tuple(sorted({f"{name} {of}" for result in results for name, of in result.packages.items()})),
        seeds=tuple(sorted({result.seed for result in results})),
        n_results=len(results),
        commands=tuple(_commands(results)),
        settings={name: tuple(settings[name]) for name in told if name in settings},
    )


def _commands(results: Sequence[Result]) -> list[str]:
    """Commands that measure the same again, no more and no less: methods that share their tasks share one."""
    places: dict[tuple[str, ...], set[tuple[str, int]]] = {}
    for result in results:
        places.setdefault((*_what(result), _unit(result)), set()).add((result.task, result.seed))
    alike: dict[tuple[tuple[str, ...], frozenset[tuple[str, int]]], list[Result]] = {}
    for result in results:
        shared = frozenset(places[*_what(result), _unit(result)])
        alike.setdefault((_what(result), shared), []).append(result)
    return [
        _command(kind, suite, given, [result for result in of if result.task in tasks])
        for ((kind, suite, _, given), shared), of in alike.items()
        for tasks in _of_same_seeds(shared)
    ]


def _of_same_seeds(places: Iterable[tuple[str, int]]) -> list[set[str]]:
    """The tasks that were measured on the same seeds: a command makes every task on every seed that it names."""
    seeds: dict[str, set[int]] = {}
    for task, seed in sorted(places):
        seeds.setdefault(task, set()).add(seed)
    tasks: dict[frozenset[int], set[str]] = {}
    for task, of in seeds.items():
        tasks.setdefault(frozenset(of), set()).add(task)
    return list(tasks.values())


def _what(result: Result) -> tuple[str, str, str, str]:
    """What all results of one command share: the command, a benchmark's suite, the network and the options."""
    study = "series" in result.settings
    return "study" if study else "bench", "" if study else result.suite, result.backbone, options(result)


def _unit(result: Result) -> str:
    """What a command names several of: a benchmark's methods, or studies."""
    return result.suite if "series" in result.settings else result.method


def _command(kind: str, suite: str, given: str, results: Sequence[Result]) -> str:
    def listed(values: Iterable[object]) -> str:
        return shlex.quote(",".join(dict.fromkeys(map(str, values))))

    backbone = shlex.quote(backbone_option(results[0]))
    units = listed(map(_unit, results))
    if kind == "study":
        words = [units.replace(",", " "), "--root ROOT", f"--backbone {backbone}"]
    else:
        words = [suite, "--root ROOT", f"--backbones {backbone}", f"--methods {units}"]
        if suite == "packs" and any(result.group != EVERY for result in results):
            words.append("--groups GROUPS")
    words += [f"--tasks {listed(result.task for result in results)}", f"--seeds {listed(r.seed for r in results)}"]
    return " ".join(["head2toe", kind, *words, *([given] if given else []), "--out OUT"])


def _write(path: Path, text: str) -> None:
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need be no UTF-8


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
