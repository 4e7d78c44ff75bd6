"""The paper's methods: settings and `fit(backbone, task, store) -> Head`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from head2toe.errors import DataError

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.head import Head
    from head2toe.methods.problem import Clock
    from head2toe.store import FeatureStore

NAMES = ("linear", "all-l2", "all-l21", "head2toe")


@runtime_checkable
class Method(Protocol):
    """Settings, and a way from a task to a head."""

    def fit(
        self,
        backbone: Backbone,
        task: Task,
        store: FeatureStore | str | Path | None = None,
        *,
        clock: Clock | None = None,
        progress: bool = True,
    ) -> Head: ...


def method_named(
    name: str,
    *,
    target_sizes: Sequence[int] | None = None,
    keep: Sequence[float] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Method:
    """The method that a user calls `name`; DataError for an unknown one or a setting that it does not have."""
    from head2toe.methods.all_features import AllFeatures
    from head2toe.methods.head2toe import Head2Toe
    from head2toe.methods.linear import Linear

    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        raise DataError(f"method '{name}' is unknown{f', did you mean {near[0]}?' if near else ''}; there are {NAMES}")
    sizes = list(target_sizes or [512])
    if name == "head2toe":
        return Head2Toe(target_size=tuple(sizes), keep=tuple(keep) if keep else None, folds=folds, seed=seed)
    if keep:
        raise DataError(f"method '{name}' keeps every feature it reads; --keep goes with head2toe")
    if len(sizes) > 1:
        raise DataError(f"method '{name}' takes one --target-size; several go with head2toe")
    if name == "linear":
        return Linear(target_size=sizes[0], folds=folds, seed=seed)
    return AllFeatures("l2" if name == "all-l2" else "l21", target_size=sizes[0], folds=folds, seed=seed)
