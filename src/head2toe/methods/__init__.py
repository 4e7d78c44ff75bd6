"""The paper's methods: settings and `fit(backbone, task, store) -> Head | Network`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from head2toe.errors import DataError
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.head import Head
    from head2toe.methods.head2toe import Head2Toe
    from head2toe.methods.problem import Journal
    from head2toe.network import Network
    from head2toe.store import FeatureStore


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


SMALL = 512  # the target size of methods that do not choose one


@dataclass(frozen=True)
class _Asked:
    """What a user asked for."""

    target_sizes: tuple[int, ...] | None
    keep: tuple[float, ...] | None
    folds: int
    seed: int
    lrs: tuple[float, ...]
    steps: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.target_sizes[0] if self.target_sizes else SMALL


@dataclass(frozen=True)
class _Entry:
    """How a method is made of what was asked for, and the options that it has and others have not."""

    make: Callable[[_Asked], Method]
    options: tuple[str, ...] = ()


def _linear(asked: _Asked) -> Method:
    from head2toe.methods.linear import Linear

    return Linear(asked.size, asked.folds, asked.seed)


def _control(asked: _Asked) -> Method:
    from head2toe.methods.linear import Control

    return Control(asked.size, asked.folds, asked.seed)


def _all(penalty: Literal["l1", "l2", "l21"], asked: _Asked) -> Method:
    from head2toe.methods.all_features import AllFeatures
    from head2toe.methods.frozen import SIZES

    usual = SIZES if penalty == "l2" else SMALL  # the paths of l1 and l2,1 take minutes on the larger size
    return AllFeatures(penalty, asked.target_sizes or usual, asked.folds, asked.seed)


def _oracle(asked: _Asked) -> Method:
    from head2toe.methods.oracle import Oracle

    return Oracle(asked.size, asked.folds, asked.seed)


def _head2toe(asked: _Asked) -> Head2Toe:
    from head2toe.methods.frozen import SIZES
    from head2toe.methods.head2toe import Head2Toe

    return Head2Toe(asked.target_sizes or SIZES, asked.keep, folds=asked.folds, seed=asked.seed)


def _paper(recipe: Literal["linear", "all-l1", "all-l2", "all-l21", "head2toe"], asked: _Asked) -> Method:
    from head2toe.methods.paper import Paper

    return Paper(recipe, asked.target_sizes or SMALL, folds=asked.folds, seed=asked.seed)


def _trained(name: Literal["scratch", "finetune", "head2toe-ft"], asked: _Asked) -> Method:
    """A method that trains a whole network, with the given rates and steps in place of its own."""
    from head2toe.methods.finetune import FineTune
    from head2toe.methods.head2toe_ft import Head2ToeFT
    from head2toe.methods.scratch import Scratch

    method = (
        Head2ToeFT(_head2toe(asked)) if name == "head2toe-ft" else {"scratch": Scratch, "finetune": FineTune}[name]()
    )
    own = method.training
    training = replace(own, lrs=asked.lrs or own.lrs, steps=asked.steps or own.steps, seed=asked.seed)
    return replace(method, training=training)


_KEEP, _SIZES, _LR, _STEPS = "--keep", "a second --target-size", "--lr", "--steps"
_METHODS: Mapping[str, _Entry] = {
    "linear": _Entry(_linear),
    "all-l1": _Entry(partial(_all, "l1"), (_SIZES,)),
    "all-l2": _Entry(partial(_all, "l2"), (_SIZES,)),
    "all-l21": _Entry(partial(_all, "l21"), (_SIZES,)),
    "head2toe": _Entry(_head2toe, (_KEEP, _SIZES)),
    "control": _Entry(_control),
    "oracle": _Entry(_oracle),
    "scratch": _Entry(partial(_trained, "scratch"), (_LR, _STEPS)),
    "finetune": _Entry(partial(_trained, "finetune"), (_LR, _STEPS)),
    "head2toe-ft": _Entry(partial(_trained, "head2toe-ft"), (_KEEP, _SIZES, _LR, _STEPS)),
    "paper-linear": _Entry(partial(_paper, "linear")),
    "paper-all-l1": _Entry(partial(_paper, "all-l1")),
    "paper-all-l2": _Entry(partial(_paper, "all-l2")),
    "paper-all-l21": _Entry(partial(_paper, "all-l21")),
    "paper-head2toe": _Entry(partial(_paper, "head2toe"), (_SIZES,)),
}
NAMES = tuple(_METHODS)
TRAINED = ("scratch", "finetune", "head2toe-ft")  # whole networks, on a GPU or for hours


def chooses_target_size(name: str) -> bool:
    """Whether the method takes several target sizes."""
    return name in _METHODS and _SIZES in _METHODS[name].options


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
    """The method that a user calls `name`.

    DataError for an unknown one or an option that it does not have, FeatureError for a target size below zero.
    """
    if name not in _METHODS:
        near = difflib.get_close_matches(name, NAMES, 1)
        raise DataError(f"method '{name}' is unknown{f', did you mean {near[0]}?' if near else ''}; there are {NAMES}")
    sizes, fractions = tuple(target_sizes or ()), tuple(keep or ())
    for size in sizes:
        Pool(size)  # refuses one that means nothing, before anything is loaded
    asked = _Asked(sizes or None, fractions or None, folds, seed, tuple(lrs or ()), tuple(steps or ()))
    options = {_KEEP: asked.keep, _SIZES: sizes[1:], _LR: asked.lrs, _STEPS: asked.steps}
    for option, given in options.items():
        if given and option not in _METHODS[name].options:
            others = ", ".join(other for other, entry in _METHODS.items() if option in entry.options)
            raise DataError(f"method '{name}' has no use for {option}; it goes with {others}")
    return _METHODS[name].make(asked)
