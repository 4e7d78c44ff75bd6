"""Commands that measure and tell: bench, compare, study, report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from head2toe.cli.app import (
    DeviceOption,
    ImageSizeOption,
    JsonFlag,
    PrecisionOption,
    SkipBadFlag,
    StoreOption,
    TrustFlag,
    app,
    labelled,
    numbers,
    opened,
    words,
)

RootOption = Annotated[
    str, typer.Option("--root", help="Folder with one folder per task; of vtab also a data set, hf:OWNER/NAME.")
]
ReferenceOption = Annotated[str, typer.Option(help="Method that wins and losses are counted against.")]


@app.command(epilog="Example: head2toe bench packs --root tasks/ --methods linear,head2toe --out results")
def bench(
    suite: Annotated[str, typer.Argument(help="packs (any folder of tasks) or vtab (VTAB-1k).")],
    root: RootOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; what it holds is not fitted again.")],
    backbones: Annotated[str, typer.Option(help="Backbone ids, separated by commas.")] = "efficientnet_lite0",
    methods: Annotated[str, typer.Option(help="Methods as in fit, separated by commas.")] = "linear,all-l2,head2toe",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    tasks: Annotated[str | None, typer.Option(help="Tasks of the suite, separated by commas; by default all.")] = None,
    target_size: Annotated[
        list[int] | None, typer.Option(help="Length that a tap is pooled to; repeatable, by default each method's own.")
    ] = None,
    max_test: Annotated[int | None, typer.Option(help="Measure on so many test images, spread over classes.")] = None,
    lr: Annotated[list[float] | None, typer.Option(help="Learning rate that trained networks try; repeatable.")] = None,
    steps: Annotated[
        list[int] | None, typer.Option(help="Number of steps that trained networks try; repeatable.")
    ] = None,
    groups: Annotated[Path | None, typer.Option(help='Groups of packs: {"natural": ["caltech101", ...]}.')] = None,
    reference: ReferenceOption = "linear",
    image_size: ImageSizeOption = None,
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure methods on a suite of tasks: results.jsonl as they come, then table.md and table.csv."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.bench.conditions import Conditions
    from head2toe.bench.result import told
    from head2toe.bench.run import Failure, names_of, plan, results_file, run
    from head2toe.bench.suite import read_groups, suite_named
    from head2toe.bench.tables import write_tables
    from head2toe.methods import check_method

    chosen = suite_named(suite, root, groups=read_groups(groups) if groups else None)
    chosen = chosen.only(words(tasks)) if tasks else chosen
    ids = names_of(words(backbones))
    check_method(reference)
    conditions = Conditions(
        tuple(target_size) if target_size else None,
        max_test,
        tuple(lr) if lr else None,
        tuple(steps) if steps else None,
        image_size,
        precision,
    )
    fits = plan(chosen, list(ids), words(methods), numbers("--seeds", seeds), out, conditions)
    events = run(
        fits,
        chosen,
        lambda name: load_backbone(
            ids[name],
            device=device,
            precision=precision,
            resize=chosen.resize,
            image_size=image_size,
            trust_remote_code=trust_remote_code,
        ),
        out,
        store,
        conditions=conditions,
    )
    failed = 0
    with present.progress("bench") as advance:
        for done in range(len(fits)):
            advance(done, len(fits), str(fits[done]))
            event = next(events)
            if isinstance(event, Failure):
                failed += 1
                typer.echo(f"{done + 1} of {len(fits)}, failed: {event}", err=True)
            else:
                typer.echo(f"{done + 1} of {len(fits)}, {fits[done]}: {told(event)}", err=True)
    if results_file(out).is_file():
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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds.")] = 0,
    image_size: ImageSizeOption = None,
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    trust_remote_code: TrustFlag = False,
    skip_bad: SkipBadFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Linear probe, Head2Toe or fine-tuning? Measure on your data, and get advice with its reason."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.bench.compare import check_methods
    from head2toe.bench.compare import compare as run

    check_methods(words(methods))
    task = labelled(data, skip_bad)
    networks = [
        load_backbone(
            id, device=device, precision=precision, image_size=image_size, trust_remote_code=trust_remote_code
        )
        for id in words(backbones)
    ]
    for loaded in networks:
        comparison = run(loaded, task, store, methods=words(methods), target_size=target_size, seed=seed)
        if as_json:
            typer.echo(json.dumps(asdict(comparison)))
        else:
            present.show(present.comparison_table(comparison))
            typer.echo(present.advice_lines(comparison))


@app.command(epilog="Example: head2toe study keep-fraction n-train --root tasks/ --out results")
def study(
    names: Annotated[
        list[str],
        typer.Argument(help="keep-fraction, target-size, window, layers, transfer, criteria, n-train or flops-budget."),
    ],
    root: RootOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; what it holds is not fitted again.")],
    suite: Annotated[str, typer.Option(help="packs (any folder of tasks) or vtab (VTAB-1k).")] = "packs",
    tasks: Annotated[str | None, typer.Option(help="Tasks of the suite, separated by commas; by default all.")] = None,
    backbone: Annotated[str, typer.Option(help="Backbone id.")] = "efficientnet_lite0",
    target_size: Annotated[int, typer.Option(help="Length that a tap is pooled to.")] = 512,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    max_test: Annotated[int | None, typer.Option(help="Measure on so many test images, spread over classes.")] = None,
    image_size: ImageSizeOption = None,
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Vary one thing about Head2Toe and measure: lines go to studies/NAME.jsonl as they come, figures to the report."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.bench.conditions import Conditions
    from head2toe.bench.run import Failure, shown
    from head2toe.bench.studies import LeftOut, check_studies, run
    from head2toe.bench.suite import suite_named

    chosen = suite_named(suite, root)
    chosen = chosen.only(words(tasks)) if tasks else chosen
    conditions = Conditions((target_size,), max_test, image_size=image_size, precision=precision)
    seed_numbers = numbers("--seeds", seeds)
    check_studies(names, chosen, shown(backbone), out, conditions)
    loaded = load_backbone(
        backbone, device=device, precision=precision, resize=chosen.resize, image_size=image_size,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    failed = 0
    with present.progress("study") as advance:
        for event in run(
            names, chosen, loaded, shown(backbone), out, opened(store),
            conditions=conditions, seeds=seed_numbers, advance=advance,
        ):  # fmt: skip
            if isinstance(event, LeftOut):
                typer.echo(f"left out: {event}", err=True)
            elif isinstance(event, Failure):
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
    figures: Annotated[
        Path | None, typer.Option(help="Folder of every figure as SVG; by default figures/ beside the page.")
    ] = None,
    reference: ReferenceOption = "linear",
    as_json: JsonFlag = False,
) -> None:
    """Everything that was measured on one HTML page that needs nothing else: tables, figures, mistakes, costs."""
    from head2toe.bench.report import write_report
    from head2toe.methods import check_method

    check_method(reference)
    page = write_report(folder, out, figures, reference=reference)
    typer.echo(json.dumps({"report": str(page), "bytes": page.stat().st_size}) if as_json else str(page))
