"""Commands about one task: taps, fit, predict, evaluate, extract, demo."""

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
    opened,
)
from head2toe.methods import NAMES as METHODS
from head2toe.methods import SIZES


@app.command(epilog="Example: head2toe taps efficientnet_lite0 --target-size 4096")
def taps(
    backbone: Annotated[str, typer.Argument(help="Backbone id, such as efficientnet_lite0 or timm/resnet50.a1_in1k.")],
    target_size: Annotated[int, typer.Option(help="Length that a tap is pooled to, about.")] = 512,
    preset: Annotated[str, typer.Option("--taps", help="all, blocks, paper, or comma-separated globs.")] = "all",
    no_weights: Annotated[bool, typer.Option(help="Random weights: list any architecture offline.")] = False,
    image_size: ImageSizeOption = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """List what can be read from a network: name, layout, shape, pooled length, share of the FLOPs up to it."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.backbones.select import flops

    loaded = load_backbone(
        backbone, weights=not no_weights, image_size=image_size, trust_remote_code=trust_remote_code, taps=preset
    )
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
    criterion: Annotated[
        str | None,
        typer.Option(help="Relevance score of the features, such as l2 or f_classif; by default elimination."),
    ] = None,
    taps: Annotated[str, typer.Option(help="all, blocks, paper, or comma-separated globs.")] = "all",
    max_flops: Annotated[
        float | None, typer.Option(help="Read no tap beyond this share (0 to 1] of the network's operations.")
    ] = None,
    image_size: ImageSizeOption = None,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validation folds, by default 5; 1 uses the validation split.")
    ] = None,
    lr: Annotated[
        list[float] | None,
        typer.Option(help="Learning rate of a trained network; repeat to choose on held-out images."),
    ] = None,
    steps: Annotated[list[int] | None, typer.Option(help="Training steps; repeat to choose.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds and of training.")] = 0,
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    trust_remote_code: TrustFlag = False,
    skip_bad: SkipBadFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Extract features, choose by cross-validation, fit and save a head; or train and save a whole network."""
    from head2toe import present
    from head2toe.backbones import load_backbone
    from head2toe.head import check_target
    from head2toe.methods import method_named
    from head2toe.methods.problem import Journal

    check_target(out)
    chosen = method_named(
        method, target_sizes=target_size, keep=keep, folds=folds, seed=seed, lrs=lr, steps=steps, criterion=criterion
    )
    task, journal = labelled(data, skip_bad), Journal(forgets=False)
    with journal.phase("load"):
        loaded = load_backbone(
            backbone,
            device=device,
            precision=precision,
            image_size=image_size,
            trust_remote_code=trust_remote_code,
            taps=taps,
            max_flops=max_flops,
        )
    head = chosen.fit(loaded, task, store, journal=journal)
    head.save_pretrained(out)
    journal.forget()
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
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Label images, with probabilities: one line a file."""
    from head2toe import present
    from head2toe.apply import predict_files
    from head2toe.network import load_model

    model = load_model(head, device=device, trust_remote_code=trust_remote_code)
    for prediction in predict_files(model, files, device=device, trust_remote_code=trust_remote_code):
        typer.echo(json.dumps(asdict(prediction)) if as_json else present.prediction_line(prediction))


@app.command(epilog="Example: head2toe evaluate flowers-head flowers/ --json")
def evaluate(
    head: Annotated[Path, typer.Argument(help="Folder of a head or a network.")],
    data: Annotated[
        str, typer.Argument(help="Labelled data; its test split is used, or all rows where there is none.")
    ],
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    trust_remote_code: TrustFlag = False,
    skip_bad: SkipBadFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Accuracy of a head on labelled data, overall and per class."""
    from head2toe import present
    from head2toe.apply import evaluate_on
    from head2toe.network import load_model

    model = load_model(head, device=device, trust_remote_code=trust_remote_code)
    task = labelled(data, skip_bad)
    evaluation = evaluate_on(model, task, store, device=device, trust_remote_code=trust_remote_code)
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
    image_size: ImageSizeOption = None,
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    trust_remote_code: TrustFlag = False,
    skip_bad: SkipBadFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Run the frozen network once over what the store lacks."""
    from head2toe.backbones import load_backbone
    from head2toe.extract import extract as run
    from head2toe.methods.frozen import pools_of

    pools, task = pools_of(target_size or SIZES), labelled(data, skip_bad)
    loaded = load_backbone(
        backbone,
        device=device,
        precision=precision,
        image_size=image_size,
        trust_remote_code=trust_remote_code,
        taps=taps,
    )
    done = run(loaded, task.splits, opened(store), pools)
    typer.echo(json.dumps(asdict(done)) if as_json else str(done))


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
