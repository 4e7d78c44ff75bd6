"""The command line: parse, call, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import sys

import typer

from head2toe.cli import models, results, store
from head2toe.cli.app import app
from head2toe.errors import Head2ToeError

_INTERRUPTED = 130  # what Ctrl-C ends a command with
__all__ = ["app", "main", "models", "results", "store"]


def main() -> None:
    """Run the command line; a mistake of the user's ends with one line and exit code 2."""
    try:
        app()
    except Head2ToeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written to
        typer.echo(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", err=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            typer.echo("stopped; what was extracted stays in the store, run the same command to go on", err=True)
        raise
