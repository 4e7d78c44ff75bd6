"""Commands that look after a feature store."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from head2toe.cli.app import JsonFlag, StoreOption, app, opened
from head2toe.errors import StoreError

if TYPE_CHECKING:
    from head2toe.store import FeatureStore, View

store_app = typer.Typer(no_args_is_help=True, help="Look after a feature store.")
app.add_typer(store_app, name="store")


@store_app.command("ls", epilog="Example: head2toe store ls --json")
def store_ls(store: StoreOption = None, as_json: JsonFlag = False) -> None:
    """List the views: one per network, pooling and number format."""
    from head2toe import present

    place = opened(store)
    rows = [present.view_row(info) for info in place.views()]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
    else:
        present.show(present.view_table(rows))
    _tell_unreadable(place)


@store_app.command("show", epilog="Example: head2toe store show efficientnet_lite0")
def store_show(
    view: Annotated[str, typer.Argument(help="The view's key (or its beginning), or the id of its backbone.")],
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """One view in full, with its taps."""
    from head2toe import present

    place = opened(store)
    found = place.find(view)
    (info,) = (info for info in place.views() if info.view == found)
    if as_json:
        taps = [asdict(tap) for tap in info.taps]
        typer.echo(json.dumps(asdict(present.view_row(info)) | {"taps": taps}))
    else:
        present.show(present.view_table([present.view_row(info)]))
        present.show(present.stored_tap_table(info))


def _asked(place: FeatureStore, view: str | None) -> list[View]:
    """The named view, or all that can be opened; StoreError where there is none, as in a mistyped --store."""
    found = [info.view for info in place.views()] if view is None else [place.find(view)]
    if not found and not place.unreadable():
        raise StoreError(f"store: there is no view at {place.location}; `head2toe extract` makes one")
    return found


def _tell_unreadable(place: FeatureStore, view: str | None = None) -> bool:
    """Say on stderr which views cannot be opened; whether there is one. A named view was opened."""
    broken = {} if view is not None else place.unreadable()
    for error in broken.values():
        typer.echo(str(error), err=True)
    return bool(broken)


@store_app.command("verify", epilog="Example: head2toe store verify")
def store_verify(
    view: Annotated[str | None, typer.Argument(help="One view; by default all.")] = None,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare every byte of features with its checksum; exit code 1 where something is damaged."""
    from head2toe import present

    place = opened(store)
    with present.progress("verify") as advance:
        damages = [damage for one in _asked(place, view) for damage in place.verify(one, progress=advance)]
    broken = _tell_unreadable(place, view)
    if as_json:
        typer.echo(json.dumps([{"view": d.view.key, "tap": d.tap, "input": d.id, "file": d.file} for d in damages]))
    else:
        for damage in damages:
            typer.echo(str(damage))
        sound = f"every byte of features{' in the other views' if broken else ''} matches its checksum"
        typer.echo(f"{len(damages)} damaged" if damages else sound)
    if damages:
        typer.echo("the next extraction of these inputs repairs them", err=True)
    if damages or broken:
        raise typer.Exit(1)


@store_app.command("compact", epilog="Example: head2toe store compact")
def store_compact(
    view: Annotated[str | None, typer.Argument(help="One view; by default all.")] = None,
    store: StoreOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Join small files into large ones and drop old versions."""
    place = opened(store)
    for done in [done for one in _asked(place, view) for done in place.compact(one)]:
        files, size = done.fragments, done.bytes
        if as_json:
            typer.echo(json.dumps({"view": done.view.key, "files": files, "bytes": size}))
        else:
            typer.echo(f"{done.view}: {files[0]} -> {files[1]} files, {size[0]:,} -> {size[1]:,} bytes")
    if _tell_unreadable(place, view):
        raise typer.Exit(1)


@store_app.command("rm", epilog="Example: head2toe store rm 3f2a --yes")
def store_rm(
    view: Annotated[str, typer.Argument(help="The view's key (or its beginning), or the id of its backbone.")],
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete one view and its features."""
    place = opened(store)
    found = place.find(view)
    if not yes:
        typer.confirm(f"delete {found} from {place.location}?", abort=True, err=True)
    place.remove(found)
    typer.echo(json.dumps({"removed": found.key}) if as_json else f"removed {found}")
