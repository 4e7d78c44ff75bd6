"""The paper's methods: settings and `fit(backbone, task, store) -> Head`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from head2toe.errors import DataError

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.head import Head
    from head2toe.methods.problem import Journal
    from head2toe.store import FeatureStore


@runtime_checkable
class Method(Protocol):
    """Settings, and a way from a task to a head."""

    def fit(
        self,
        backbone: Backbone,
        task: Task,
        store: FeatureStore | str | Path | None = None,
        *,
        journal: Journal | None = None,
        progress: bool = True,
    ) -> Head: ...


@dataclass(frozen=True)
class _Entry:
    """Where a method is, what its name fixes, which of `method_named`'s settings it takes, how many target sizes."""

    home: str
    fixed: Mapping[str, str] = field(default_factory=dict)
    takes: tuple[str, ...] = ("target_size", "folds", "seed")
    several_sizes: bool = False


_METHODS: Mapping[str, _Entry] = {
    "linear": _Entry("linear.Linear"),
    "all-l1": _Entry("all_features.AllFeatures", {"penalty": "l1"}),
    "all-l2": _Entry("all_features.AllFeatures", {"penalty": "l2"}),
    "all-l21": _Entry("all_features.AllFeatures", {"penalty": "l21"}),
    "head2toe": _Entry("head2toe.Head2Toe", takes=("target_size", "keep", "folds", "seed"), several_sizes=True),
    "control": _Entry("linear.Control"),
    "oracle": _Entry("oracle.Oracle"),
    "paper-linear": _Entry("paper.Paper", {"method": "linear"}),
    "paper-all-l1": _Entry("paper.Paper", {"method": "all-l1"}),
    "paper-all-l2": _Entry("paper.Paper", {"method": "all-l2"}),
    "paper-all-l21": _Entry("paper.Paper", {"method": "all-l21"}),
    "paper-head2toe": _Entry("paper.Paper", {"method": "head2toe"}, several_sizes=True),
}
NAMES = tuple(_METHODS)


def method_named(
    name: str,
    *,
    target_sizes: Sequence[int] | None = None,
    keep: Sequence[float] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Method:
    """The method that a user calls `name`; DataError for an unknown one, or more settings than it can choose from."""
    if name not in _METHODS:
        near = difflib.get_close_matches(name, NAMES, 1)
        raise DataError(f"method '{name}' is unknown{f', did you mean {near[0]}?' if near else ''}; there are {NAMES}")
    entry, sizes = _METHODS[name], tuple(target_sizes or (512,))
    if keep and "keep" not in entry.takes:
        raise DataError(f"method '{name}' has no fraction to choose; --keep goes with head2toe")
    if len(sizes) > 1 and "target_size" in entry.takes and not entry.several_sizes:
        raise DataError(f"method '{name}' takes one --target-size; several go with head2toe")
    given: dict[str, object] = {
        "target_size": sizes if entry.several_sizes else sizes[0],
        "keep": tuple(keep) if keep else None,
        "folds": folds,
        "seed": seed,
    }
    taken = {setting: value for setting, value in given.items() if setting in entry.takes}
    module, _, cls = entry.home.rpartition(".")
    return getattr(import_module(f"head2toe.methods.{module}"), cls)(**entry.fixed, **taken)
