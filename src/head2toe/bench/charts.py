"""The forms of the report's figures: curves, dots, scatter, heat and bars, each from numbers to one SVG string.

One style for all: colours that colour-blind readers can tell apart (Okabe and Ito 2008), labels beside what they name,
ink in the page's own text colour, so that a figure is at home on a light page, a dark one and on paper.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from head2toe.bench.result import MARK
from head2toe.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, WIDTH, NARROW = 10.4, 7.4, 5.4  # inches: the whole of a page, most of it, half of it beside a table or another
LARGEST = 6.8  # rem an inch: how far a page may enlarge a drawing
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # what a name may hold, and a drawing not
INK, FAINT = "#010203", "#040506"  # stand for the page's text colour and for its lines until the drawing is text
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7f7f7f")
STRONG, WEAK = PALETTE[1], PALETTE[0]
COLOURS = {
    "linear": "#7f7f7f", "all-l1": "#56b4e9", "all-l2": "#0072b2", "all-l21": "#cc79a7", "head2toe": "#d55e00",
    "head2toe-ft": "#e69f00", "finetune": "#009e73", "scratch": "#8a6d3b", "control": "#8f7ee7", "oracle": INK,
}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """What an axis shows; `percent` numbers are shares, shown in per cent."""

    label: str
    log: bool = False
    percent: bool = False


@dataclass(frozen=True, eq=False)
class Series:
    """A named line or cloud: x (k,) and y (k,). `bold` is what the figure is about."""

    name: str
    x: np.ndarray
    y: np.ndarray
    bold: bool = False


@dataclass(frozen=True, eq=False)
class Panel:
    """One of several drawings side by side: named points x (k,), y (k,) of a method."""

    method: str
    title: str
    names: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray


def curves(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Lines over x, each with its name at its end."""
    series = [replace(one, name=_drawable(one.name)) for one in series]
    with _drawing(3.9, NARROW) as figure:
        axes = figure.add_subplot()
        for i, one in enumerate(series):
            _line(axes, one, _colour(one, i), "-" if i < len(PALETTE) or one.bold else "--")
        _scales(axes, x, y)
        if x.log and len(shown := np.unique(np.concatenate([one.x for one in series]))) <= 10:
            axes.set_xticks(shown, [_number(value, x) for value in shown])
            axes.xaxis.minorticks_off()
        _label_ends(axes, series)
        return _svg(figure)


def dots(rows: Sequence[str], columns: Mapping[str, Sequence[float | None]], x: Axis) -> str:
    """A row per task and a dot per method: `columns` gives each method's values, None where there is none.

    Marked methods are hollow diamonds.
    """
    rows = [*map(_drawable, rows)]
    with _drawing(0.9 + 0.27 * len(rows) + 0.06 * len(columns), NARROW) as figure:
        axes = figure.add_subplot()
        for row in range(len(rows)):
            axes.axhline(row, color=FAINT, linewidth=0.5, zorder=0)
        for name, values in columns.items():
            there = [i for i, value in enumerate(values) if value is not None]
            colour = colour_of(name)
            bound = name.endswith(MARK)
            filled = not bound and not name.startswith("paper-")
            axes.scatter(
                [value for value in values if value is not None], there, s=44 if name == "head2toe" else 28, label=name,
                color=colour, facecolors=colour if filled else "none", zorder=3 if name == "head2toe" else 2,
                marker="D" if bound else "s" if name.startswith("paper-full-") else "o", linewidths=1.2,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _scales(axes, x, Axis(""))
        axes.grid(visible=False, axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, handletextpad=0.1)
        return _svg(figure)


def scatter(panels: Sequence[Panel], x: Axis, y: Axis) -> str:
    """Named points with the line of least squares, panels side by side on the same scales."""
    panels = [replace(panel, names=tuple(map(_drawable, panel.names))) for panel in panels]
    with _drawing(3.6, min(WIDE, 3.5 * len(panels))) as figure:
        drawn = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, panel in zip(drawn, panels, strict=True):
            colour = colour_of(panel.method)
            axes.axhline(0, color=FAINT, linewidth=1)
            axes.scatter(panel.x, panel.y, s=26, color=colour, zorder=3)
            if len(panel.x) > 2 and np.ptp(panel.x) > 0:
                slope, start = np.polyfit(panel.x, panel.y, 1)
                ends = np.array([panel.x.min(), panel.x.max()])
                axes.plot(ends, start + slope * ends, color=colour, linewidth=1.2, alpha=0.6)
            _scales(axes, x, y if axes is drawn[0] else Axis("", percent=y.percent))
            axes.set_title(panel.title, fontsize=9)
            axes.margins(x=0.22, y=0.12)
        figure.draw_without_rendering()
        for axes, panel in zip(drawn, panels, strict=True):
            _name_points(axes, panel)
        return _svg(figure)


def heat(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    axis: Axis,
    *,
    signed: bool = False,
    numbers: bool = False,
    width: float = WIDTH,
) -> str:
    """A matrix (r, c) as coloured cells, the stronger the larger; signed ones below zero in another colour.

    Cells are as opaque as their value is large, so that the page shines through; NaN is left empty.
    """
    rows, columns = [*map(_drawable, rows)], [*map(_drawable, columns)]
    size = np.nan_to_num(np.abs(values) / (np.nanmax(np.abs(values), initial=0) or 1.0))
    cells = np.empty((*values.shape, 4))
    cells[..., :3] = np.where((values < 0)[..., None], _rgb(STRONG), _rgb(WEAK)) if signed else _rgb(STRONG)
    cells[..., 3] = 0.04 + 0.9 * np.sqrt(size)
    with _drawing(0.9 + 0.27 * len(rows) + 0.075 * max(map(len, columns)), width) as figure:
        axes = figure.add_subplot()
        axes.imshow(cells, aspect="auto", interpolation="nearest")
        step = max(1, -(-len(columns) // int(4.6 * width)))
        axes.set_xticks(range(0, len(columns), step), columns[::step], rotation=90, fontsize=7)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel(axis.label)
        axes.grid(visible=False)
        for (row, column), value in np.ndenumerate(values) if numbers else ():
            if np.isfinite(value):
                text = f"{100 * value:{'+' if signed else ''}.0f}"
                text = "0" if text in ("+0", "-0") else text
                axes.text(column, row, text, ha="center", va="center", fontsize=7)
        return _svg(figure)


def bars(panels: Mapping[str, Mapping[str, float]]) -> str:
    """Logarithmic bars from 1 on, one panel per quantity: a ratio per method, written at its end."""
    rows = max(len(values) for values in panels.values())
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    with _drawing(down * (0.75 + 0.27 * rows), NARROW) as figure:
        for place, (title, values) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(down, across, place)
            names = list(values)
            ratios = np.array(list(values.values()))
            colours = [colour_of(name) for name in names]
            axes.barh(range(len(names)), ratios - 1, left=1, color=colours, height=0.62)
            axes.axvline(1, color=INK, linewidth=0.8)
            for row, ratio in enumerate(ratios):
                axes.annotate(
                    f"{_rounded(ratio)}×", (max(ratio, 1), row), (3, 0), textcoords="offset points", va="center"
                )
            axes.set_xscale("log")
            axes.set_xlim(min(ratios.min(), 1) / 1.5, max(ratios.max(), 1) * 12)
            axes.xaxis.minorticks_off()
            axes.set_yticks(range(len(names)), names)
            axes.invert_yaxis()
            axes.tick_params(axis="x", labelbottom=False)
            axes.grid(visible=False, axis="y")
            axes.set_title(title, fontsize=9)
        return _svg(figure)


def quantity(value: float, unit: str) -> str:
    """A number with a prefix: 1.2e9 FLOPs is "1.2 GFLOPs"; seconds keep theirs.

    >>> quantity(1.23e9, "FLOPs"), quantity(90.0, "s")
    ('1.2 GFLOPs', '90 s')
    """
    power = 0 if unit == "s" or value < 1 else min(5, int(np.log10(value) // 3))
    return f"{_rounded(value / 1000**power)} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}"


def colour_of(method: str) -> str:
    """A method's colour, marked or not; the published recipe of a method has the same."""
    return COLOURS.get(method.removesuffix(f" {MARK}").removeprefix("paper-").removeprefix("full-"), PALETTE[-1])


@contextmanager
def _drawing(height: float, width: float = WIDTH) -> Iterator[Figure]:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing figures", "report") from error

    with rc_context({
        "svg.fonttype": "none", "svg.hashsalt": "head2toe", "font.size": 8.5, "axes.labelsize": 8.5, "text.color": INK,
        "axes.edgecolor": FAINT, "axes.labelcolor": INK, "xtick.color": FAINT, "ytick.color": FAINT,
        "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.5, "axes.axisbelow": True, "axes.facecolor": "none",
        "legend.fontsize": 8, "xtick.major.size": 0, "ytick.major.size": 0, "text.parse_math": False,
    }):  # fmt: skip
        yield Figure((width, height), layout="constrained")


def _drawable(name: str) -> str:
    """A name without control characters; bytes that are no UTF-8, which a file's name may hold, as their numbers."""
    return _NOT_XML.sub("", name).encode(errors="backslashreplace").decode()


def _svg(figure: Figure) -> str:
    """The drawing as an `svg` element as wide as its place, up to a limit; its ids are unlike any other drawing's."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    text = text.replace("<svg", f'<svg style="max-width: {LARGEST * figure.get_figwidth():.0f}rem"', 1)
    text = text.replace(FAINT, "var(--line, #c8ccd4)").replace(INK, "currentColor")
    text = re.sub(r"(\d+(?:\.\d+)?px) '[^;\"]*", r"\1 system-ui, sans-serif", text)
    salt = f"h{zlib.crc32(text.encode()):08x}-"
    return re.sub(r'(\bid="|href="#|url\(#)', lambda found: found[0] + salt, text)


def _line(axes: Axes, one: Series, colour: str, style: str) -> None:
    axes.plot(
        one.x, one.y, color=colour, linewidth=2.6 if one.bold else 1.1, alpha=1.0 if one.bold else 0.75, marker="o",
        markersize=4.5 if one.bold else 2.5, zorder=3 if one.bold else 2, linestyle=style,
    )  # fmt: skip


def _label_ends(axes: Axes, series: Sequence[Series]) -> None:
    """Each line's name to the right of its last point, moved apart where they would overlap, with a thread to it."""
    low, high = axes.get_ylim()
    height = 0.046
    ends = np.array([(one.y[-1] - low) / (high - low) for one in series])
    for i, (one, at) in enumerate(zip(series, _apart(ends, height), strict=True)):
        axes.annotate(
            one.name, (one.x[-1], one.y[-1]), (1.05, at), textcoords="axes fraction", va="center",
            color=_colour(one, i), fontweight="bold" if one.bold else "normal", fontsize=8, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": _colour(one, i), "alpha": 0.4, "linewidth": 0.6, "shrinkB": 3},
        )  # fmt: skip


def _name_points(axes: Axes, panel: Panel) -> None:
    """The names of points, the loneliest first, as long as they find room beside their point."""
    places = axes.transData.transform(np.column_stack((panel.x, panel.y)))
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    taken: list[tuple[float, float, float]] = [(x - 3, x + 3, y) for x, y in places]
    left, right = axes.bbox.x0, axes.bbox.x1
    for i in np.argsort(-np.sort(distance, axis=1)[:, : 1 + min(2, len(places) - 1)].sum(axis=1), kind="stable"):
        (x, y), width = places[i], 4.4 * len(panel.names[i])
        for low, high, side in ((x + 4, x + 4 + width, "left"), (x - 4 - width, x - 4, "right")):
            free = all(high < a or low > b or abs(y - at) > 7 for a, b, at in taken)
            if free and left - 20 <= low and high <= right + 20:
                taken.append((low, high, y))
                axes.annotate(
                    panel.names[i], (panel.x[i], panel.y[i]), (4 if side == "left" else -4, 0), ha=side, va="center",
                    textcoords="offset points", fontsize=6.5, color=INK,
                )  # fmt: skip
                break


def _apart(places: np.ndarray, gap: float) -> np.ndarray:
    """Places (k,) moved as little as a pass up and a pass down need to be `gap` apart, none above 1 for it."""
    out = places.copy()
    order = np.argsort(places, kind="stable")
    for below, above in pairwise(order):
        out[above] = max(out[above], out[below] + gap)
    if len(order):
        out[order[-1]] = min(out[order[-1]], max(1.0, float(places.max())))
    for above, below in pairwise(order[::-1]):
        out[below] = min(out[below], out[above] - gap)
    return out


def _scales(axes: Axes, x: Axis, y: Axis) -> None:
    from matplotlib.ticker import PercentFormatter

    if x.log:
        axes.set_xscale("log")
    if y.log:
        axes.set_yscale("log")
    if x.percent and not x.log:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    if y.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_xlabel(x.label)
    axes.set_ylabel(y.label)


def _colour(one: Series, place: int) -> str:
    if one.name in COLOURS:
        return COLOURS[one.name]
    return INK if one.bold and one.name == "mean" else PALETTE[place % len(PALETTE)]


def _number(value: float, axis: Axis) -> str:
    return f"{100 * value:g} %" if axis.percent else f"{value:,.10g}"


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
