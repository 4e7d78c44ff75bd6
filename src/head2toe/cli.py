"""The command line: parse, call, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from head2toe import __version__
from head2toe.errors import Head2ToeError
from head2toe.methods import NAMES as METHODS

if TYPE_CHECKING:
    from head2toe.data import Task
    from head2toe.store import FeatureStore

LISTED = 20

app = typer.Typer(
    name="head2toe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Small heads on all layers of a frozen network, about as good as fine-tuning.",
)
store_app = typer.Typer(no_args_is_help=True, help="Look after a feature store.")
app.add_typer(store_app, name="store")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Feature store, a folder or object-store URL; by default the user's cache."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or mps.")]
PrecisionOption = Annotated[
    Literal["bfloat16", "float32", "float16"] | None,
    typer.Option("--precision", help="bfloat16, float32 or float16; by default what the device is fast in."),
]


def main() -> None:
    """Run the command line; a mistake of the user's ends with one line and exit code 2."""
    try:
        app()
    except Head2ToeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("stopped; what was extracted stays in the store, run the same command to go on", err=True)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(epilog="Example: head2toe taps efficientnet_lite0 --target-size 4096")
def taps(
    backbone: Annotated[str, typer.Argument(help="Backbone id, such as efficientnet_lite0 or timm/resnet50.a1_in1k.")],
    target_size: Annotated[int, typer.Option(help="Length that a tap is pooled to, about.")] = 512,
    preset: Annotated[str, typer.Option("--taps", help="all, blocks, paper, or comma-separated globs.")] = "all",
    no_weights: Annotated[bool, typer.Option(help="Random weights: list any architecture offline.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List what can be read from a network: name, layout, shape, pooled length, share of the FLOPs up to it."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.backbones.select import flops

    loaded = load_backbone(backbone, weights=not no_weights, taps=preset)
    rows = present.tap_rows(loaded, flops(loaded), target_size)
    if as_json:
        for row in rows:
            typer.echo(json.dumps(asdict(row)))
    else:
        present.show(present.tap_table(loaded.id, rows))


@app.command(epilog="Example: head2toe fit flowers/ --out flowers-head --json")
def fit(
    data: Annotated[str, typer.Argument(help="Image folder, Parquet file or folder, or CSV (path,label).")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the head.")],
    backbone: Annotated[str, typer.Option(help="Backbone id.")] = "efficientnet_lite0",
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "head2toe",
    target_size: Annotated[
        list[int] | None, typer.Option(help="Length that a tap is pooled to; repeat to choose by cross-validation.")
    ] = None,
    keep: Annotated[
        list[float] | None, typer.Option(help="Fraction of features to keep; by default cross-validated.")
    ] = None,
    taps: Annotated[str, typer.Option(help="all, blocks, paper, or comma-separated globs.")] = "all",
    max_flops: Annotated[
        float | None, typer.Option(help="Read no tap beyond this share (0 to 1] of the network's operations.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Cross-validation folds; 1 uses the validation split.")] = 5,
    lr: Annotated[
        list[float] | None,
        typer.Option(help="Learning rate of a trained network; repeat to choose on held-out images."),
    ] = None,
    steps: Annotated[list[int] | None, typer.Option(help="Training steps; repeat to choose.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the folds and of training.")] = 0,
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave unreadable images out instead of stopping.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Extract features, choose by cross-validation, fit and save a head; or train and save a whole network."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.head import check_target
    from head2toe.methods import method_named
    from head2toe.methods.problem import Journal

    check_target(out)
    chosen = method_named(method, target_sizes=target_size, keep=keep, folds=folds, seed=seed, lrs=lr, steps=steps)
    journal = Journal()
    with journal.phase("load"):
        loaded = load_backbone(backbone, device=device, precision=precision, taps=taps, max_flops=max_flops)
        task = _task(data, skip_bad)
    head = chosen.fit(loaded, task, store, journal=journal)
    head.save_pretrained(out)
    report = present.fit_report(head, loaded, journal)
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    else:
        present.show_fit(report, head, out)


@app.command(epilog="Example: head2toe predict flowers-head new.jpg other.jpg --json")
def predict(
    head: Annotated[Path, typer.Argument(help="Folder of a head or a network.")],
    files: Annotated[list[Path], typer.Argument(help="Images.")],
    device: DeviceOption = "cpu",
    as_json: JsonFlag = False,
) -> None:
    """Label images, with probabilities: one line a file."""
    from head2toe import present
    from head2toe.apply import predict_files
    from head2toe.network import load_model

    for prediction in predict_files(load_model(head, device=device), files, device=device):
        typer.echo(json.dumps(asdict(prediction)) if as_json else present.prediction_line(prediction))


@app.command(epilog="Example: head2toe evaluate flowers-head flowers/ --json")
def evaluate(
    head: Annotated[Path, typer.Argument(help="Folder of a head or a network.")],
    data: Annotated[
        str, typer.Argument(help="Labelled data; its test split is used, or all rows where there is none.")
    ],
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    skip_bad: Annotated[bool, typer.Option(help="Leave unreadable images out instead of stopping.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Accuracy of a head on labelled data, overall and per class."""
    from head2toe import present
    from head2toe.apply import evaluate_on
    from head2toe.network import load_model

    evaluation = evaluate_on(load_model(head, device=device), _task(data, skip_bad), store, device=device)
    if as_json:
        typer.echo(json.dumps(asdict(evaluation)))
    else:
        present.show(present.evaluation_table(evaluation))


@app.command(epilog="Example: head2toe extract flowers/ --backbone efficientnet_lite0 --target-size 512")
def extract(
    data: Annotated[str, typer.Argument(help="Image folder, Parquet file or folder, or CSV (path,label).")],
    backbone: Annotated[str, typer.Option(help="Backbone id.")] = "efficientnet_lite0",
    target_size: Annotated[list[int] | None, typer.Option(help="Length that a tap is pooled to; repeatable.")] = None,
    taps: Annotated[str, typer.Option(help="all, blocks, paper, or comma-separated globs.")] = "all",
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave unreadable images out instead of stopping.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run the frozen network once over what the store lacks."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.extract import extract as run
    from head2toe.methods.frozen import SIZES
    from head2toe.taps import Pool

    loaded = load_backbone(backbone, device=device, precision=precision, taps=taps)
    task = _task(data, skip_bad)
    done = run(loaded, task.splits, _opened(store), [Pool(size) for size in target_size or SIZES])
    typer.echo(json.dumps(asdict(done)) if as_json else present.extraction_line(done))


@app.command(epilog="Example: head2toe bench packs --root tasks/ --methods linear,head2toe --out results")
def bench(
    suite: Annotated[str, typer.Argument(help="packs (any folder of tasks) or vtab (VTAB-1k).")],
    root: Annotated[Path, typer.Option("--root", help="Folder with one folder per task.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; what it holds is not fitted again.")],
    backbones: Annotated[str, typer.Option(help="Backbone ids, separated by commas.")] = "efficientnet_lite0",
    methods: Annotated[str, typer.Option(help="Methods as in fit, separated by commas.")] = "linear,all-l2,head2toe",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    tasks: Annotated[str | None, typer.Option(help="Tasks of the suite, separated by commas; by default all.")] = None,
    target_size: Annotated[
        list[int] | None, typer.Option(help="Length that a tap is pooled to; repeatable, by default each method's own.")
    ] = None,
    max_test: Annotated[int | None, typer.Option(help="Measure on so many test images, spread over classes.")] = None,
    groups: Annotated[Path | None, typer.Option(help='Groups of packs: {"natural": ["caltech101", ...]}.')] = None,
    reference: Annotated[str, typer.Option(help="Method that wins and losses are counted against.")] = "linear",
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure methods on a suite of tasks: results.jsonl as they come, then table.md and table.csv."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.bench.run import Conditions, Failure, plan, run, shown
    from head2toe.bench.suite import read_groups, suite_named
    from head2toe.bench.tables import write_tables

    chosen = suite_named(suite, root, groups=read_groups(groups) if groups else None)
    chosen = chosen.only(tasks.split(",")) if tasks else chosen
    ids = {shown(id): id for id in backbones.split(",")}
    conditions = Conditions(tuple(target_size) if target_size else None, max_test)
    fits = plan(chosen, list(ids), methods.split(","), _numbers("--seeds", seeds), out, conditions)
    events = run(
        fits,
        chosen,
        lambda name: load_backbone(ids[name], device=device, precision=precision),
        out,
        store,
        conditions=conditions,
    )
    failed = 0
    with present.progress("bench") as advance:
        for done, event in enumerate(events, 1):
            advance(done, len(fits))
            if isinstance(event, Failure):
                failed += 1
                typer.echo(f"failed: {event}", err=True)
    if failed < len(fits) or not fits:
        tables = write_tables(out, reference=reference)
        typer.echo(json.dumps([asdict(table) for table in tables]) if as_json else (out / "table.md").read_text())
    if failed:
        typer.echo(f"{failed} of {len(fits)} fits failed; the same command tries them again", err=True)
        raise typer.Exit(1)


@app.command(epilog="Example: head2toe compare flowers/")
def compare(
    data: Annotated[str, typer.Argument(help="Image folder, Parquet file or folder, or CSV (path,label).")],
    methods: Annotated[str, typer.Option(help="Methods beside linear and head2toe, separated by commas.")] = "all-l2",
    backbones: Annotated[str, typer.Option(help="Backbone ids, separated by commas.")] = "efficientnet_lite0",
    target_size: Annotated[int, typer.Option(help="Length that a tap is pooled to.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the folds.")] = 0,
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave unreadable images out instead of stopping.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Linear probe, Head2Toe or fine-tuning? Measure on your data, and get advice with its reason."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.bench.compare import compare as run

    task = _task(data, skip_bad)
    for id in backbones.split(","):
        loaded = load_backbone(id, device=device, precision=precision)
        comparison = run(loaded, task, store, methods=methods.split(","), target_size=target_size, seed=seed)
        if as_json:
            typer.echo(json.dumps(asdict(comparison)))
        else:
            present.show(present.comparison_table(comparison))
            typer.echo(present.advice_lines(comparison))


@app.command(epilog="Example: head2toe study keep-fraction n-train --root tasks/ --out results")
def study(
    names: Annotated[
        list[str],
        typer.Argument(help="keep-fraction, target-size, window, layers, transfer, n-train or flops-budget."),
    ],
    root: Annotated[Path, typer.Option("--root", help="Folder with one folder per task.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; what it holds is not fitted again.")],
    suite: Annotated[str, typer.Option(help="packs (any folder of tasks) or vtab (VTAB-1k).")] = "packs",
    tasks: Annotated[str | None, typer.Option(help="Tasks of the suite, separated by commas; by default all.")] = None,
    backbone: Annotated[str, typer.Option(help="Backbone id.")] = "efficientnet_lite0",
    target_size: Annotated[int, typer.Option(help="Length that a tap is pooled to.")] = 512,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    max_test: Annotated[int | None, typer.Option(help="Measure on so many test images, spread over classes.")] = None,
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Vary one thing about Head2Toe and measure: lines go to studies/NAME.jsonl as they come, figures to the report."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.bench.run import Failure, shown
    from head2toe.bench.studies import run
    from head2toe.bench.suite import suite_named

    chosen = suite_named(suite, root)
    chosen = chosen.only(tasks.split(",")) if tasks else chosen
    loaded = load_backbone(backbone, device=device, precision=precision)
    failed = 0
    with present.progress("study") as advance:
        for event in run(
            names, chosen, loaded, shown(backbone), out, _opened(store),
            target_size=target_size, seeds=_numbers("--seeds", seeds), max_test=max_test, advance=advance,
        ):  # fmt: skip
            if isinstance(event, Failure):
                failed += 1
                typer.echo(f"failed: {event}", err=True)
            else:
                line = f"{event.suite}\t{event.task}\t{event.method}\t{event.test_accuracy:.4f}"
                typer.echo(json.dumps(asdict(event)) if as_json else line)
    if failed:
        typer.echo(f"{failed} fits failed; the same command tries them again", err=True)
        raise typer.Exit(1)


@app.command(epilog="Example: head2toe report results")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that head2toe bench or head2toe study filled.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; by default report.html in the folder.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Everything that was measured on one HTML page that needs nothing else: tables, figures, mistakes, costs."""
    from head2toe.bench.report import write_report

    page = write_report(folder, out)
    typer.echo(json.dumps({"report": str(page), "bytes": page.stat().st_size}) if as_json else str(page))


@app.command(epilog="Example: head2toe demo --out demo-head")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the head and of a sample image.")] = Path("demo-out"),
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Linear, All-l2 and Head2Toe on scikit-learn's digits with the bundled backbone; no network needed."""
    from head2toe import present
    from head2toe.demo import run

    result = run(out, store)
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in result.reports]))
    else:
        present.show_demo(result)


@store_app.command("ls", epilog="Example: head2toe store ls --json")
def store_ls(store: StoreOption = None, as_json: JsonFlag = False) -> None:
    """List the views: one per network, pooling and number format."""
    from head2toe import present

    rows = [present.view_row(info) for info in _opened(store).views()]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
    else:
        present.show(present.view_table(rows))


@store_app.command("show", epilog="Example: head2toe store show efficientnet_lite0")
def store_show(
    view: Annotated[str, typer.Argument(help="The view's key (or its beginning), or the id of its backbone.")],
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """One view in full, with its taps."""
    from head2toe import present

    opened = _opened(store)
    found = opened.find(view)
    (info,) = (info for info in opened.views() if info.view == found)
    if as_json:
        taps = [asdict(tap) for tap in info.taps]
        typer.echo(json.dumps(asdict(present.view_row(info)) | {"taps": taps}))
    else:
        present.show(present.view_table([present.view_row(info)]))
        present.show(present.stored_tap_table(info))


@store_app.command("verify", epilog="Example: head2toe store verify")
def store_verify(
    view: Annotated[str | None, typer.Argument(help="One view; by default all.")] = None,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare every stored byte with its checksum; exit code 1 where something is damaged."""
    from head2toe import present

    opened = _opened(store)
    with present.progress("verify") as advance:
        damages = opened.verify(opened.find(view) if view else None, progress=advance)
    if as_json:
        typer.echo(json.dumps([{"view": d.view.key, "tap": d.tap, "input": d.id, "file": d.file} for d in damages]))
    else:
        for damage in damages:
            typer.echo(str(damage))
        typer.echo(f"{len(damages)} damaged" if damages else "every byte matches its checksum")
    if damages:
        typer.echo("the next extraction of these inputs repairs them", err=True)
        raise typer.Exit(1)


@store_app.command("compact", epilog="Example: head2toe store compact")
def store_compact(
    view: Annotated[str | None, typer.Argument(help="One view; by default all.")] = None,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Join small files into large ones and drop old versions."""
    opened = _opened(store)
    for done in opened.compact(opened.find(view) if view else None):
        files, size = done.fragments, done.bytes
        if as_json:
            typer.echo(json.dumps({"view": done.view.key, "files": files, "bytes": size}))
        else:
            typer.echo(f"{done.view}: {files[0]} -> {files[1]} files, {size[0]:,} -> {size[1]:,} bytes")


@store_app.command("rm", epilog="Example: head2toe store rm 3f2a --yes")
def store_rm(
    view: Annotated[str, typer.Argument(help="The view's key (or its beginning), or the id of its backbone.")],
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete one view and its features."""
    opened = _opened(store)
    found = opened.find(view)
    if not yes:
        typer.confirm(f"delete {found} from {opened.location}?", abort=True, err=True)
    opened.remove(found)
    typer.echo(json.dumps({"removed": found.key}) if as_json else f"removed {found}")


def _task(data: str, skip_bad: bool) -> Task:
    from head2toe.data import load_task

    task = load_task(data, skip_bad=skip_bad)
    if task.skipped:
        listed = "".join(f"\n  {reason}" for reason in task.skipped[:LISTED])
        typer.echo(f"left out {len(task.skipped):,} unreadable inputs:{listed}", err=True)
    return task


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{option} takes numbers separated by commas, got '{text}'") from error


def _opened(location: str | None) -> FeatureStore:
    from head2toe.store import FeatureStore, default_location

    return FeatureStore(location or default_location())


if __name__ == "__main__":
    main()
