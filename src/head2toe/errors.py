"""The exception tree. A message says what was done, what was expected, what came, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(name: str, known: Iterable[str]) -> str:
    """The part of a message that names the nearest of the `known` names, empty where none is near.

    >>> meant("head2to", ["linear", "head2toe"])
    ", did you mean 'head2toe'?"
    """
    near = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean '{near[0]}'?" if near else ""


class Head2ToeError(Exception):
    """Anything that a user can mend; the command line prints its message and exits with 2."""


class DataError(Head2ToeError, ValueError):
    """The labelled inputs cannot be used: unreadable images, one class, too few rows, wrong shapes."""


class BackboneError(Head2ToeError, ValueError):
    """The network cannot be loaded, tapped or run."""


class FeatureError(Head2ToeError, ValueError):
    """Features that no solver can use: NaN, infinite, or of the wrong shape."""


class StoreError(Head2ToeError, RuntimeError):
    """The feature store cannot be read or written."""


class StoreDamagedError(StoreError):
    """Stored bytes differ from their checksum."""


class NotConvergedError(Head2ToeError, RuntimeError):
    """A solver ended above the tolerance that it was asked for."""


class HeadError(Head2ToeError, ValueError):
    """A saved head cannot be read, or was fitted on another backbone."""


class MissingExtraError(Head2ToeError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}'; install it with: pip install 'head2toe[{extra}]'")
