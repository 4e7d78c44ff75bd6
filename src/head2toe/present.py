"""What commands print: result rows as dataclasses (the JSON), and rich tables of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from head2toe.apply import Evaluation, Prediction
    from head2toe.backbones.core import Backbone
    from head2toe.bench.compare import Comparison
    from head2toe.head import Head
    from head2toe.methods.problem import Journal
    from head2toe.network import Network
    from head2toe.store.view import ViewInfo

PHASES = ("load", "extract", "extract_test", "select", "fit")
BAR = 40


@dataclass(frozen=True)
class TapRow:
    name: str
    layout: str
    shape: tuple[int, ...]
    length: int
    depth: int
    flops_share: float


@dataclass(frozen=True)
class FitReport:
    """The JSON object of `head2toe fit`; accuracies in [0, 1], seconds per phase, sizes in bytes.

    Of `inputs` distinct images, `computed` went through the network; the others were in the store. A prediction takes
    `flops_share` of the network's operations, since it ends at the deepest kept tap. An `upper_bound` was chosen on
    test images. For a network that was trained whole, `head_bytes` are the network's and `cv_accuracy` is that of
    held-out images.
    """

    method: str
    backbone: str
    n_train: int
    n_classes: int
    n_taps: int
    n_features: int
    n_kept: int
    keep_fraction: float
    target_size: int
    cv_accuracy: float
    test_accuracy: float | None
    seconds: dict[str, float]
    head_bytes: int
    backbone_bytes: int
    flops_share: float
    inputs: int
    computed: int
    upper_bound: bool


@dataclass(frozen=True, eq=False)
class Demo:
    """One report per method, the Head2Toe head, and the command that uses it."""

    reports: tuple[FitReport, ...]
    head: Head
    extract_seconds: float
    next_command: str


def tap_rows(backbone: Backbone, flops: Mapping[str, int], target_size: int) -> list[TapRow]:
    """`flops` are operations up to each tap, and under "" those of the whole network."""
    from head2toe.methods.frozen import pools_of

    (pool,), whole = pools_of(target_size), max(1, flops[""])
    return [
        TapRow(tap.name, tap.layout, tap.shape, pool.length(tap), depth, round(flops[tap.name] / whole, 4))
        for depth, tap in enumerate(backbone.taps)
    ]


def tap_table(title: str, rows: Sequence[TapRow]) -> Table:
    total = sum(row.length for row in rows)
    table = Table(title=f"{escape(title)}: {len(rows)} taps, {total:,} features", title_justify="left")
    for name in ("depth", "tap", "layout", "shape", "pooled", "FLOPs up to it"):
        table.add_column(name, justify="left" if name in ("tap", "layout") else "right")
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        table.add_row(str(row.depth), row.name, row.layout, shape, f"{row.length:,}", f"{row.flops_share:.1%}")
    return table


def fit_report(fitted: Head | Network, backbone: Backbone, journal: Journal) -> FitReport:
    from head2toe.backbones.select import flops, flops_of

    done = journal.extraction
    n_kept = sum(len(kept.columns) for kept in fitted.kept)
    return FitReport(
        method=fitted.provenance.method,
        backbone=fitted.backbone,
        n_train=fitted.metrics.n_train,
        n_classes=len(fitted.classes),
        n_taps=fitted.provenance.n_taps,
        n_features=fitted.provenance.n_features,
        n_kept=n_kept,
        keep_fraction=n_kept / fitted.provenance.n_features,
        target_size=max(kept.pooled.pool.target_size for kept in fitted.kept),
        cv_accuracy=fitted.metrics.cv_accuracy,
        test_accuracy=fitted.metrics.test_accuracy,
        seconds={name: round(seconds, 3) for name, seconds in (dict.fromkeys(PHASES, 0.0) | journal.seconds).items()},
        head_bytes=fitted.n_bytes,
        backbone_bytes=backbone.n_bytes,
        flops_share=flops_of(backbone, [kept.pooled.name for kept in fitted.kept]) / max(1, flops(backbone)[""]),
        inputs=done.total if done else 0,
        computed=done.computed if done else 0,
        upper_bound=fitted.provenance.upper_bound,
    )


def show_fit(report: FitReport, fitted: Head | Network, out: Path) -> None:
    test = "no test split: the held-out accuracy is all there is"
    if report.test_accuracy is not None:
        test = f"{report.test_accuracy:.4f}{', an upper bound: chosen on test images' if report.upper_bound else ''}"
    taps = list(dict.fromkeys(kept.pooled.name for kept in fitted.kept))
    trained = "train" in report.seconds
    lines = [
        f"{report.method} on {report.backbone}: {report.n_train:,} images, {report.n_classes} classes",
        f"  {'held-out accuracy       ' if trained else 'cross-validated accuracy'}  {report.cv_accuracy:.4f}",
        f"  test accuracy             {test}",
        f"  features kept             {report.n_kept:,} of {report.n_features:,} ({report.keep_fraction:.2%}) "
        f"from {len(taps)} of {report.n_taps} taps",
        f"  network                   {report.head_bytes:,} bytes"
        if trained
        else f"  head                      {report.head_bytes:,} bytes, "
        f"{report.backbone_bytes / report.head_bytes:,.0f} times smaller than a fine-tuned copy",
        f"  a prediction              {report.flops_share:.1%} of the network's operations, up to {taps[-1]}",
        *([f"  extraction                {report.computed:,} of {report.inputs:,} computed"] if report.inputs else []),
        "  seconds                   " + ", ".join(f"{k} {v:.1f}" for k, v in report.seconds.items() if v),
        f"saved to {out}; try: head2toe predict {out} IMAGE",
    ]
    Console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def layer_table(head: Head) -> Table:
    """Which layers the kept features come from, in order of depth."""
    table = Table(title="where the kept features come from", title_justify="left", box=None)
    table.add_column("tap")
    table.add_column("kept", justify="right")
    table.add_column("of", justify="right")
    table.add_column("")
    largest = max(len(kept.columns) for kept in head.kept)
    for kept in head.kept:
        bar = "█" * max(1, round(BAR * len(kept.columns) / largest))
        table.add_row(kept.pooled.name, str(len(kept.columns)), str(kept.pooled.length), bar)
    return table


def prediction_line(prediction: Prediction) -> str:
    best = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:3]
    return f"{prediction.file}\t{prediction.label}\t" + ", ".join(f"{name} {p:.3f}" for name, p in best)


def evaluation_table(evaluation: Evaluation) -> Table:
    bound = ", an upper bound: the head was chosen on test images" if evaluation.upper_bound else ""
    title = f"accuracy {evaluation.accuracy:.4f} on {evaluation.n:,} images{bound}"
    table = Table(title=title, title_justify="left")
    for name in ("class", "images", "accuracy"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, (count, accuracy) in evaluation.per_class.items():
        table.add_row(escape(name), str(count), f"{accuracy:.4f}")
    return table


def comparison_table(comparison: Comparison) -> Table:
    title = (
        f"{comparison.task} on {comparison.backbone}: {comparison.n_train:,} images to train, accuracy on "
        f"{comparison.n_judged:,} of the {comparison.judged_on}"
    )
    bound = any(score.upper_bound for score in comparison.scores)
    caption = "† chosen on the judged images: an upper bound, no method to use" if bound else None
    table = Table(
        title=escape(title), title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=0
    )
    for name in ("method", "accuracy", "gain", "95 %", "by folds", "kept", "of", "s", "bytes"):
        table.add_column(name, justify="left" if name == "method" else "right", overflow="fold")
    for score in comparison.scores:
        span = f"{100 * score.interval.low:+.1f} .. {100 * score.interval.high:+.1f}" if score.interval else ""
        probe = score.method == "linear"
        table.add_row(
            f"{score.method} †" if score.upper_bound else score.method, f"{score.accuracy:.4f}",
            "" if probe else f"{100 * score.difference:+.1f}",
            "" if probe else span,
            f"{score.cv_accuracy:.4f}", f"{score.n_kept:,}", f"{score.n_features:,}", f"{score.seconds:.1f}",
            f"{score.task_bytes:,}",
        )  # fmt: skip
    return table


def advice_lines(comparison: Comparison) -> str:
    cost = comparison.finetuning
    (head2toe,) = (score for score in comparison.scores if score.method == "head2toe")

    def of_head2toe(flops: int) -> str:
        return f"{flops:.2e} operations ({flops / max(1, head2toe.flops):,.0f} times Head2Toe's)"

    return (
        f"fine-tuning, {cost.steps} steps of {cost.batch_size} images: {of_head2toe(cost.flops)}, about "
        f"{cost.seconds:,.0f} s, {cost.task_bytes:,} bytes; with the choice of its settings, as Head2Toe's has, up to "
        f"{cost.tuned_steps:,} steps: {of_head2toe(cost.tuned_flops)}, about {cost.tuned_seconds:,.0f} s"
        f"\nthe pass of the network, once for all methods and in none of their seconds: "
        f"{comparison.pass_seconds:,.0f} s for the {comparison.n_passed:,} inputs that were not in the store"
        f"\n\n{comparison.advice.sentence}"
    )


def show_demo(demo: Demo) -> None:
    table = Table(title="scikit-learn's digits, 800 to train, the rest to test", title_justify="left")
    for name in ("method", "accuracy", "features", "of", "head bytes", "x smaller", "seconds"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for report in demo.reports:
        table.add_row(
            report.method,
            f"{report.test_accuracy:.4f}",
            f"{report.n_kept:,}",
            f"{report.n_features:,}",
            f"{report.head_bytes:,}",
            f"{report.backbone_bytes / report.head_bytes:,.0f}",
            f"{sum(report.seconds[phase] for phase in ('select', 'fit')):.1f}",
        )
    console = Console()
    console.print(table)
    console.print(
        "accuracy: on the test images; x smaller: than a fine-tuned copy of the network\n"
        f"extraction, once for all three: {demo.extract_seconds:.1f} s\n",
        highlight=False,
    )
    console.print(layer_table(demo.head))
    console.print(f"\nnext: {demo.next_command}", highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class ViewRow:
    """A view of a store, as `store ls` prints it; dates in ISO format."""

    key: str
    backbone: str
    fingerprint: str
    target_size: int
    rule: str
    class_token: str
    moments: int
    dtype: str
    rows: int
    n_taps: int
    n_features: int
    bytes: int
    files: int
    versions: int
    created: str
    last_used: str | None


def view_row(info: ViewInfo) -> ViewRow:
    view = info.view
    return ViewRow(
        key=view.key,
        backbone=view.backbone,
        fingerprint=view.fingerprint,
        target_size=view.pool.target_size,
        rule=view.pool.rule,
        class_token=view.pool.class_token,
        moments=view.pool.moments,
        dtype=view.dtype,
        rows=info.rows,
        n_taps=len(info.taps),
        n_features=info.n_features,
        bytes=info.bytes,
        files=info.fragments,
        versions=info.versions,
        created=info.created.isoformat(timespec="seconds"),
        last_used=None if info.last_used is None else info.last_used.isoformat(timespec="seconds"),
    )


def view_table(rows: Sequence[ViewRow]) -> Table:
    size = sum(row.bytes for row in rows) / 1e6
    table = Table(title=f"{len(rows)} views, {size:,.1f} MB", title_justify="left", box=SIMPLE_HEAD, padding=0)
    for name in ("view", "backbone", "size", "dtype", "inputs", "taps", "MB", "last used"):
        justify = "left" if name in ("view", "backbone", "dtype", "last used") else "right"
        # a key is there to be copied: where the terminal is narrow, only the name of the backbone breaks
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name != "backbone")
    for row in rows:
        size = f"{row.target_size} x 2" if row.moments > 1 else str(row.target_size)
        table.add_row(
            row.key[:8], escape(row.backbone), size, row.dtype, f"{row.rows:,}", str(row.n_taps),
            f"{row.bytes / 1e6:,.1f}", (row.last_used or "unknown")[:10],
        )  # fmt: skip
    return table


def stored_tap_table(info: ViewInfo) -> Table:
    what = f"{len(info.taps)} taps, {info.n_features:,} features, {info.fragments} files, {info.versions} versions"
    table = Table(title=what, title_justify="left")
    for name in ("tap", "layout", "shape", "stored"):
        table.add_column(name, justify="left" if name in ("tap", "layout") else "right")
    for tap in info.taps:
        table.add_row(tap.name, tap.layout, " x ".join(map(str, tap.shape)), f"{info.view.pool.length(tap):,}")
    return table


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr that is told (done, total) and what is being done now; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int, now: str = "") -> None:
            bar.update(task, completed=done, total=total, description=escape(f"{what}: {now}" if now else what))

        yield advance


def show(table: Table) -> None:
    Console().print(table)
