"""Suites x backbones x methods x seeds -> results, one line as each comes; what is there is not fitted again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from head2toe.apply import stored_logits
from head2toe.bench.conditions import Conditions, Settings, check_same, packages, treatment
from head2toe.bench.memory import peak_bytes, reset_peak
from head2toe.bench.predictions import write_predictions
from head2toe.bench.result import Result, append_result, read_results
from head2toe.bench.suite import Suite, SuiteTask
from head2toe.errors import DataError, Head2ToeError
from head2toe.head import Head, softmax
from head2toe.methods import TRAINED, Method, method_named, options_of, target_sizes_of
from head2toe.methods.problem import Journal, folds_for
from head2toe.store import FeatureStore, default_location

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Split, Task
    from head2toe.network import Network


@dataclass(frozen=True)
class Fit:
    """One fit that is still to be made."""

    task: SuiteTask
    backbone: str
    method: str
    seed: int


@dataclass(frozen=True)
class Failure:
    """A fit that could not be made, and why."""

    fit: Fit
    reason: str

    def __str__(self) -> str:
        return f"{self.fit.task.name}, {self.fit.backbone}, {self.fit.method}, seed {self.fit.seed}: {self.reason}"


def plan(
    suite: Suite,
    backbones: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    conditions: Conditions,
) -> list[Fit]:
    """The fits that `out` lacks, ordered so that networks and tasks are loaded seldom and images pass once.

    What reads most of a network comes first: the others find their features in the store. Raises DataError for an
    unknown method, or where `out` holds results of the same fits under other conditions.
    """
    for method in methods:
        _method(method, 0, 1, conditions)
    widest_first = sorted(dict.fromkeys(methods), key=lambda name: -sum(target_sizes_of(name, conditions.target_sizes)))
    there = {result.key: result for result in read_results(results_file(out))}
    fits = []
    for backbone in dict.fromkeys(backbones):
        for task in suite.tasks:
            for method in widest_first:
                for seed in dict.fromkeys(seeds):
                    result = there.get((suite.name, task.name, backbone, method, seed))
                    if result is None:
                        fits.append(Fit(task, backbone, method, seed))
                    else:
                        check_same(result, conditions, out)
    return fits


def run(
    fits: Sequence[Fit],
    suite: Suite,
    load: Callable[[str], Backbone],
    out: Path,
    store: FeatureStore | str | Path | None = None,
    *,
    conditions: Conditions | None = None,
) -> Iterator[Result | Failure]:
    """Make the fits, one after the other; each result is on disk, with its predictions and mistakes, when it comes.

    `load` gives the network by its name in the fits. What goes wrong for one fit does not stop the others.
    """
    conditions = conditions or Conditions()
    opened = store if isinstance(store, FeatureStore) else FeatureStore(store or default_location())
    out.mkdir(parents=True, exist_ok=True)
    network = lru_cache(1)(load)
    data = lru_cache(1)(lambda task: limited(task.load(), conditions.max_test))
    for fit in fits:
        try:
            yield _measured(fit, suite, data(fit.task), network(fit.backbone), out, opened, conditions)
        except Head2ToeError as error:
            yield Failure(fit, str(error))
        except (MemoryError, RuntimeError) as error:  # torch's word for a device that is full is RuntimeError
            yield Failure(fit, f"{type(error).__name__}: {error}")


def results_file(out: Path) -> Path:
    return out / "results.jsonl"


def shown(backbone: str) -> str:
    """A backbone's name in results: its id, without the folders of a `file:`."""
    return re.sub(r"file:(?:[^+]*/)?([^/+]+)\.safetensors", r"\1", backbone)


def limited(task: Task, max_test: int | None) -> Task:
    """The task with at most `max_test` test images: of every class the first ones, in proportion."""
    test = task.test
    if test is None:
        raise DataError(f"task '{task.name}' has no test split; a benchmark measures on one")
    if max_test is None or test.n_rows <= max_test:
        return task
    counts = test.counts(len(task.classes))
    order = np.argsort(test.labels, kind="stable")
    place = np.empty(test.n_rows)  # within the row's class, in (0, 1)
    place[order] = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return replace(task, test=test.rows(np.sort(np.argsort(place, kind="stable")[:max_test])))


def _measured(
    fit: Fit, suite: Suite, task: Task, backbone: Backbone, out: Path, store: FeatureStore, conditions: Conditions
) -> Result:
    """Fit, predict, write: the line comes last, so that a result has its predictions and mistakes."""
    method, journal = _method(fit.method, fit.seed, folds_for(task), conditions), Journal()
    reset_peak()
    # a trained network's only pass over the test images is the one below
    learned = replace(task, test=None) if fit.method in TRAINED else task
    model = method.fit(backbone, learned, store, journal=journal, progress=False)
    peak, test = peak_bytes(), task.test
    assert test is not None, "limited() asks for one"
    probabilities = _probabilities(model, test, backbone, store)
    result = Result(
        suite=suite.name,
        task=fit.task.name,
        group=fit.task.group,
        backbone=fit.backbone,
        method=fit.method,
        seed=fit.seed,
        test_accuracy=float((probabilities.argmax(axis=1) == test.labels).mean()),
        cv_accuracy=float(model.metrics.cv_accuracy),
        n_train=model.metrics.n_train,
        n_test=test.n_rows,
        n_classes=len(task.classes),
        n_features=model.provenance.n_features,
        n_kept=model.n_kept if isinstance(model, Head) else 0,
        kept=_kept(model) if isinstance(model, Head) else {},
        settings=conditions.settings(fit.method)
        | treatment(backbone)
        | _extracted(journal)
        | model.provenance.settings,
        seconds={phase: round(seconds, 3) for phase, seconds in journal.seconds.items()},
        flops=dict(journal.flops),
        peak_bytes=peak,
        task_bytes=model.n_bytes,
        backbone_bytes=backbone.n_bytes,
        upper_bound=model.provenance.upper_bound,
        packages=dict(packages()),
    )
    write_predictions(out, result, test, probabilities, task.classes)
    append_result(results_file(out), [result])
    return result


def _method(name: str, seed: int, folds: int, conditions: Conditions) -> Method:
    """The method under those of the conditions that it has a use for."""
    options, sizes = options_of(name), conditions.target_sizes
    if sizes and not target_sizes_of(name):  # it reads the last features alone, or no stored ones
        sizes = sizes[:1] if "--target-size" in options else None
    trained = name in TRAINED
    return method_named(
        name, target_sizes=sizes, folds=folds if "--folds" in options else None, seed=seed,
        lrs=conditions.lrs if trained else None, steps=conditions.steps if trained else None,
    )  # fmt: skip


def _probabilities(model: Head | Network, test: Split, backbone: Backbone, store: FeatureStore) -> np.ndarray:
    """Probabilities (n, C) of the test images: a head's from stored features."""
    if isinstance(model, Head):
        return softmax(stored_logits(model, test, backbone, store, progress=False))
    return softmax(model.logits_of(test.source))


def _kept(head: Head) -> dict[str, int]:
    """How many features each tap keeps, in order of depth."""
    counts: dict[str, int] = {}
    for kept in head.kept:
        counts[kept.pooled.name] = counts.get(kept.pooled.name, 0) + len(kept.columns)
    return counts


def _extracted(journal: Journal) -> Settings:
    """How many images went through the network while fitting: the others were in the store, and cost no seconds."""
    return {} if journal.extraction is None else {"extracted_images": journal.extraction.computed}
