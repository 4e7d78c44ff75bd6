"""The paper's methods: settings and `fit(backbone, task, store) -> Head | Network`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from head2toe.errors import DataError

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.head import Head
    from head2toe.methods.head2toe import Head2Toe
    from head2toe.methods.problem import Journal
    from head2toe.network import Network
    from head2toe.store import FeatureStore

NAMES = ("linear", "all-l2", "all-l21", "head2toe", "scratch", "finetune", "head2toe-ft")
TRAINED = NAMES[-3:]


@runtime_checkable
class Method(Protocol):
    """Settings, and a way from a task to a head or a network."""

    def fit(
        self,
        backbone: Backbone,
        task: Task,
        store: FeatureStore | str | Path | None = None,
        *,
        journal: Journal | None = None,
        progress: bool = True,
    ) -> Head | Network: ...


def method_named(
    name: str,
    *,
    target_sizes: Sequence[int] | None = None,
    keep: Sequence[float] | None = None,
    folds: int = 5,
    seed: int = 0,
    lrs: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
) -> Method:
    """The method that a user calls `name`; DataError for an unknown one or a setting that it does not have."""
    from head2toe.methods.all_features import AllFeatures
    from head2toe.methods.head2toe import Head2Toe
    from head2toe.methods.linear import Linear

    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        raise DataError(f"method '{name}' is unknown{f', did you mean {near[0]}?' if near else ''}; there are {NAMES}")
    sizes = list(target_sizes or [512])
    head2toe = Head2Toe(target_size=tuple(sizes), keep=tuple(keep) if keep else None, folds=folds, seed=seed)
    if keep and not name.startswith("head2toe"):
        raise DataError(f"method '{name}' keeps every feature it reads; --keep goes with head2toe")
    if name in TRAINED:
        return _trained(name, head2toe, lrs, steps, seed)
    if lrs or steps:
        raise DataError(f"method '{name}' trains no network; --lr and --steps go with {', '.join(TRAINED)}")
    if name == "head2toe":
        return head2toe
    if len(sizes) > 1:
        raise DataError(f"method '{name}' takes one --target-size; several go with head2toe")
    if name == "linear":
        return Linear(target_size=sizes[0], folds=folds, seed=seed)
    return AllFeatures("l2" if name == "all-l2" else "l21", target_size=sizes[0], folds=folds, seed=seed)


def _trained(
    name: str, head2toe: Head2Toe, lrs: Sequence[float] | None, steps: Sequence[int] | None, seed: int
) -> Method:
    """The method that trains a whole network, with the given rates and steps in place of its own."""
    from head2toe.methods.finetune import FineTune
    from head2toe.methods.head2toe_ft import Head2ToeFT
    from head2toe.methods.scratch import Scratch

    method = {"scratch": Scratch(), "finetune": FineTune(), "head2toe-ft": Head2ToeFT(head2toe)}[name]
    own = method.training
    training = replace(own, lrs=tuple(lrs or own.lrs), steps=tuple(steps or own.steps), seed=seed)
    return replace(method, training=training)
