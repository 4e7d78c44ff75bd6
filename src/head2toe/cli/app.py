"""The application, the options that several commands have, and what they all do first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from head2toe import __version__

if TYPE_CHECKING:
    from head2toe.data import Task
    from head2toe.store import FeatureStore

LISTED = 20

app = typer.Typer(
    name="head2toe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Small heads on all layers of a frozen network: most of what fine-tuning gains, in seconds.",
)

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
ImageSizeOption = Annotated[
    int | None,
    typer.Option("--image-size", help="Side of the network's input in pixels; by default that of its training."),
]
TrustFlag = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that a Hugging Face model brings along.")
]
SkipBadFlag = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out instead of stopping.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def labelled(data: str, skip_bad: bool) -> Task:
    """The task in `data`; what was left out is said on stderr."""
    from head2toe.data import load_task

    task = load_task(data, skip_bad=skip_bad)
    if task.skipped:
        listed = "".join(f"\n  {reason}" for reason in task.skipped[:LISTED])
        typer.echo(f"left out {len(task.skipped):,} unreadable inputs:{listed}", err=True)
    return task


def words(text: str) -> list[str]:
    """Words separated by commas."""
    return [word.strip() for word in text.split(",")]


def numbers(option: str, text: str) -> list[int]:
    """Numbers from 0 on, separated by commas, as `option` takes them."""
    found = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in found):
        raise typer.BadParameter(f"{option} takes numbers from 0 on, separated by commas, got '{text}'")
    return [int(word) for word in found]


def opened(location: str | None) -> FeatureStore:
    """The store at a place, by default the user's."""
    from head2toe.store import FeatureStore, default_location

    return FeatureStore(location or default_location())
