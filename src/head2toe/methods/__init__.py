"""The paper's methods: settings and `fit(backbone, task, store) -> Head | Network`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from head2toe.errors import DataError, meant
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.head import Head
    from head2toe.methods.head2toe import Head2Toe
    from head2toe.methods.paper import Paper, Recipe
    from head2toe.methods.problem import Journal
    from head2toe.methods.training import Training
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


SIZES = (512, 4096)  # target sizes that a fit chooses from by default: what there is, and where it is
SMALL = (512,)  # of methods that would take minutes on the larger one
FOLDS = 5


@dataclass(frozen=True)
class _Asked:
    """What a user asked for, and in its absence the method's own target sizes and folds."""

    target_sizes: tuple[int, ...]
    keep: tuple[float, ...] | None
    folds: int
    seed: int
    lrs: tuple[float, ...]
    steps: tuple[int, ...]
    criterion: str | None


@dataclass(frozen=True)
class _Entry:
    """How a method is made of what was asked for, its options, and the target sizes that it chooses from by default."""

    make: Callable[[_Asked], Method]
    options: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()


def _linear(asked: _Asked) -> Method:
    from head2toe.methods.linear import Linear

    return Linear(asked.target_sizes[0], asked.folds, asked.seed)


def _control(asked: _Asked) -> Method:
    from head2toe.methods.linear import Control

    return Control(asked.target_sizes[0], asked.folds, asked.seed)


def _all(penalty: Literal["l1", "l2", "l21"], asked: _Asked) -> Method:
    from head2toe.methods.all_features import AllFeatures

    return AllFeatures(penalty, asked.target_sizes, asked.folds, asked.seed)


def _oracle(asked: _Asked) -> Method:
    from head2toe.methods.oracle import Oracle

    return Oracle(asked.target_sizes, asked.folds, asked.seed)


def _head2toe(asked: _Asked) -> Head2Toe:
    from head2toe.methods.head2toe import Head2Toe
    from head2toe.methods.relevance import check_criterion

    own = Head2Toe(asked.target_sizes, asked.keep, folds=asked.folds, seed=asked.seed)
    return own if asked.criterion is None else replace(own, criterion=check_criterion(asked.criterion))


def _paper(recipe: Recipe, asked: _Asked) -> Paper:
    from head2toe.methods.paper import Paper

    return Paper(recipe, asked.target_sizes, folds=asked.folds, seed=asked.seed)


def _paper_full(recipe: Recipe, asked: _Asked) -> Method:
    from head2toe.methods.paper import FULL

    return replace(_paper(recipe, asked), grid=FULL)


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


_KEEP, _CRITERION, _LR, _STEPS = "--keep", "--criterion", "--lr", "--steps"
_READS = ("--target-size", "--folds")  # a linear probe
_CHOOSES = (*_READS, "a second --target-size")  # whatever reads middle layers
_SELECTS = (*_CHOOSES, _KEEP, _CRITERION)
_TRAINS = (_LR, _STEPS)
_METHODS: Mapping[str, _Entry] = {
    "linear": _Entry(_linear, _READS),
    "all-l1": _Entry(partial(_all, "l1"), _CHOOSES, SMALL),
    "all-l2": _Entry(partial(_all, "l2"), _CHOOSES, SIZES),
    "all-l21": _Entry(partial(_all, "l21"), _CHOOSES, SMALL),
    "head2toe": _Entry(_head2toe, _SELECTS, SIZES),
    "control": _Entry(_control, _READS),
    "oracle": _Entry(_oracle, _CHOOSES, SMALL),
    "scratch": _Entry(partial(_trained, "scratch"), _TRAINS),
    "finetune": _Entry(partial(_trained, "finetune"), _TRAINS),
    "head2toe-ft": _Entry(partial(_trained, "head2toe-ft"), (*_SELECTS, *_TRAINS), SIZES),
    "paper-linear": _Entry(partial(_paper, "linear"), _READS),
    "paper-all-l1": _Entry(partial(_paper, "all-l1"), _CHOOSES, SMALL),
    "paper-all-l2": _Entry(partial(_paper, "all-l2"), _CHOOSES, SMALL),
    "paper-all-l21": _Entry(partial(_paper, "all-l21"), _CHOOSES, SMALL),
    "paper-head2toe": _Entry(partial(_paper, "head2toe"), _CHOOSES, SMALL),
    "paper-full-linear": _Entry(partial(_paper_full, "linear"), _READS),
    "paper-full-all-l1": _Entry(partial(_paper_full, "all-l1"), _CHOOSES, SMALL),
    "paper-full-all-l2": _Entry(partial(_paper_full, "all-l2"), _CHOOSES, SMALL),
    "paper-full-all-l21": _Entry(partial(_paper_full, "all-l21"), _CHOOSES, SMALL),
    "paper-full-head2toe": _Entry(partial(_paper_full, "head2toe"), _CHOOSES, SMALL),
}
NAMES = tuple(_METHODS)
TRAINED = ("scratch", "finetune", "head2toe-ft")  # whole networks, on a GPU or for hours


def options_of(name: str) -> tuple[str, ...]:
    """The options that a method has and others have not; DataError for an unknown one."""
    return _entry(name).options


def target_sizes_of(name: str, given: Sequence[int] | None = None) -> tuple[int, ...]:
    """The target sizes of the middle layers that a method reads, of the `given` or its own; none for other methods."""
    own = _METHODS[name].sizes if name in _METHODS else ()
    return tuple(given) if given and own else own


def method_named(
    name: str,
    *,
    target_sizes: Sequence[int] | None = None,
    keep: Sequence[float] | None = None,
    folds: int | None = None,
    seed: int = 0,
    lrs: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    criterion: str | None = None,
) -> Method:
    """The method that a user calls `name`; what is None or empty is left to it.

    DataError for an unknown one, an unknown criterion or an option that it does not have, FeatureError for a target
    size below zero.
    """
    entry, sizes, fractions = _entry(name), tuple(target_sizes or ()), tuple(keep or ())
    for size in sizes:
        Pool(size)  # refuses one that means nothing, before anything is loaded
    given = {
        "--target-size": sizes, "a second --target-size": sizes[1:], "--folds": folds is not None, _KEEP: fractions,
        _CRITERION: criterion is not None, _LR: lrs, _STEPS: steps,
    }  # fmt: skip
    for option in (option for option, value in given.items() if value and option not in entry.options):
        others = ", ".join(other for other, one in _METHODS.items() if option in one.options)
        raise DataError(f"method '{name}' has no use for {option}; it goes with {others}")
    return entry.make(
        _Asked(
            sizes or entry.sizes or SMALL, fractions or None, FOLDS if folds is None else folds, seed,
            tuple(lrs or ()), tuple(steps or ()), criterion,
        )
    )  # fmt: skip


def training_of(name: str, lrs: Sequence[float] | None = None, steps: Sequence[int] | None = None) -> Training:
    """How one of TRAINED trains, with the given rates and steps in place of its own."""
    from head2toe.methods.finetune import FineTune
    from head2toe.methods.head2toe_ft import Head2ToeFT
    from head2toe.methods.scratch import Scratch

    method = method_named(name, lrs=lrs, steps=steps)
    assert isinstance(method, FineTune | Scratch | Head2ToeFT), f"{name} trains no network"
    return method.training


def check_method(name: str) -> str:
    """The name of a method; DataError for an unknown one."""
    _entry(name)
    return name


def _entry(name: str) -> _Entry:
    if name not in _METHODS:
        raise DataError(f"method '{name}' is unknown{meant(name, NAMES)}; there are {', '.join(NAMES)}")
    return _METHODS[name]
