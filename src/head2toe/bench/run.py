"""Suites x backbones x methods x seeds -> results, one line as each comes; what is there is not fitted again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from head2toe.apply import stored_logits
from head2toe.bench.conditions import Conditions, Settings, check_folder, check_same, packages, treatment
from head2toe.bench.memory import peak_bytes, reset_peak
from head2toe.bench.predictions import write_predictions
from head2toe.bench.result import CONTROL, SIDE_BY_SIDE, Result, append_result, read_results
from head2toe.bench.suite import Suite, SuiteTask
from head2toe.errors import DataError, Head2ToeError
from head2toe.head import Head, softmax
from head2toe.methods import TRAINED, Method, method_named, options_of, target_sizes_of
from head2toe.methods.problem import Journal, folds_for
from head2toe.store import FeatureStore, default_location

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task


IMAGES = "images"  # the setting that tells a task's images from those of another task of its name
# torch's word for a device that is full is RuntimeError; a full disk is an OSError
MENDABLE = (Head2ToeError, MemoryError, RuntimeError, OSError, np.linalg.LinAlgError)


@dataclass(frozen=True)
class Fit:
    """One fit that is still to be made."""

    task: SuiteTask
    backbone: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task.name}, {self.backbone}, {self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Failure:
    """A fit that could not be made, and why."""

    fit: Fit
    reason: str

    def __str__(self) -> str:
        return f"{self.fit}: {self.reason}"


def plan(
    suite: Suite,
    backbones: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    conditions: Conditions,
) -> list[Fit]:
    """The fits that `out` lacks, ordered so that networks and tasks are loaded seldom and images pass once.

    What reads most of a network comes first: the others find their features in the store. Where single networks and
    pairs are named, Control reads the pairs and all other methods the networks. Raises DataError for an unknown method,
    for two Control pairs that would stand beside one network, and where `out` holds results of the same methods on the
    same tasks and networks under other conditions, or of tasks in another group.
    """
    check_folder(out)
    for method in methods:
        _method(method, 0, 1, conditions)
    if (conditions.lrs or conditions.steps) and not set(methods) & set(TRAINED):
        raise DataError(f"bench: --lr and --steps go with {', '.join(TRAINED)}; got {', '.join(methods)}")
    if CONTROL in methods and not any(SIDE_BY_SIDE in backbone for backbone in backbones):
        raise DataError(f"bench: {CONTROL} reads two networks of one architecture side by side; name a pair, as A+B")
    widest_first = sorted(dict.fromkeys(methods), key=lambda name: -sum(target_sizes_of(name, conditions.target_sizes)))
    there = [result for result in read_results(results_file(out)) if result.suite == suite.name]
    groups = {task.name: task.group for task in suite.tasks}
    for result in there:
        if result.task in groups and result.backbone in backbones and result.method in methods:
            check_same(result, conditions.settings(result.method), out)
        if result.task in groups and result.backbone in backbones:
            check_same(result, {"max_test": conditions.settings(result.method)["max_test"]}, out)
        if (group := groups.get(result.task, result.group)) != result.group:
            raise DataError(
                f"bench: {out} holds {result.task} in the group '{result.group}', asked for now is '{group}'; give the "
                "same --groups, or choose another --out"
            )
    _check_pairs([*(result.backbone for result in there if result.method == CONTROL), *backbones], methods, out)
    done = {result.key for result in there}
    mixed = CONTROL in methods and len({SIDE_BY_SIDE in backbone for backbone in backbones}) > 1
    fits = [
        Fit(task, backbone, method, seed)
        for backbone in dict.fromkeys(backbones)
        for task in suite.tasks
        for method in widest_first
        if not mixed or (method == CONTROL) == (SIDE_BY_SIDE in backbone)
        for seed in dict.fromkeys(seeds)
    ]
    return [fit for fit in fits if (suite.name, fit.task.name, fit.backbone, fit.method, fit.seed) not in done]


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

    `load` gives the network by its name in the fits. What goes wrong for one fit does not stop the others; nor does a
    network that cannot be had, or whose results in `out` are of other weights, in another precision or with other
    preprocessing, unless it is the only one: then BackboneError or DataError.
    """
    conditions = conditions or Conditions()
    opened = store if isinstance(store, FeatureStore) else FeatureStore(store or default_location())
    data = lru_cache(1)(lambda task: limited(task.load(), conditions.max_test))
    several = len({fit.backbone for fit in fits}) > 1

    @lru_cache(1)
    def network(name: str) -> Backbone | str:
        """The network, once for all its fits, or why it cannot be had."""
        try:
            backbone = load(name)
            for result in read_results(results_file(out)):
                if (result.suite, result.backbone) == (suite.name, name):
                    check_same(result, treatment(backbone), out)
        except MENDABLE as error:
            if not several:
                raise
            return reason(error)
        return backbone

    if fits and not several:
        network(fits[0].backbone)
    out.mkdir(parents=True, exist_ok=True)
    for fit in fits:
        backbone = network(fit.backbone)
        if isinstance(backbone, str):
            yield Failure(fit, backbone)
            continue
        try:
            yield _measured(fit, suite, data(fit.task), backbone, out, opened, conditions)
        except MENDABLE as error:
            yield Failure(fit, reason(error))


def results_file(out: Path) -> Path:
    return out / "results.jsonl"


def reason(error: Exception) -> str:
    """What one of MENDABLE says, with its kind where it is not ours."""
    return str(error) if isinstance(error, Head2ToeError) else f"{type(error).__name__}: {error}"


def names_of(backbones: Sequence[str]) -> dict[str, str]:
    """Backbone ids by the names that results show; DataError where two share one."""
    ids: dict[str, str] = {}
    for id in backbones:
        there = ids.setdefault(shown(id), id)
        if there != id:
            raise DataError(
                f"bench: {there} and {id} would both be called '{shown(id)}' in the results; rename the file of one"
            )
    return ids


def shown(backbone: str) -> str:
    """A backbone's name in results: its id, without the folders of a `file:`."""
    return re.sub(r"file:(?:[^+]*/)?([^/+]+)\.(?:safetensors|pth|pt|bin)", r"\1", backbone)


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
    of_suite = (result for result in read_results(results_file(out)) if result.suite == suite.name)
    images = refuse_other_images(of_suite, task, fit.task.name, out)
    method, journal = _method(fit.method, fit.seed, folds_for(task), conditions), Journal(forgets=False)
    reset_peak()
    model = method.fit(backbone, task, store, journal=journal, progress=False)
    peak, test = peak_bytes(), task.test
    assert test is not None, "limited() asks for one"
    if isinstance(model, Head):
        logits = stored_logits(model, test, backbone, store, progress=False)
    else:
        assert journal.test_logits is not None, "a network that was trained saw the test split"
        logits = journal.test_logits
    probabilities = softmax(logits)
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
        | {IMAGES: images}
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
    journal.forget()
    return result


def refuse_other_images(results: Iterable[Result], task: Task, name: str, out: Path) -> str:
    """A digest of the task's inputs, splits and labels; DataError where one of the task's `results` is on others."""
    rows = [(split.ids, split.labels.tolist()) for split in task.splits]
    digest = hashlib.sha256(repr((task.classes, rows)).encode(errors="surrogateescape")).hexdigest()[:16]
    n_test, n_classes = 0 if task.test is None else task.test.n_rows, len(task.classes)
    for result in results:
        there = result.n_test, result.n_classes, result.settings.get(IMAGES, digest)
        if result.task == name and there != (n_test, n_classes, digest):
            raise DataError(
                f"bench: {out} holds results of {name} on other images ({result.n_test} to test on, "
                f"{result.n_classes} classes), now there are {n_test} and {n_classes}; choose another --out"
            )
    return digest


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


def _check_pairs(backbones: Sequence[str], methods: Sequence[str], out: Path) -> None:
    """DataError for two pairs of networks that begin with one: tables show Control beside the first of its pair."""
    pairs = dict.fromkeys(name for name in backbones if SIDE_BY_SIDE in name) if CONTROL in methods else {}
    first: dict[str, str] = {}
    for pair in pairs:
        there = first.setdefault(pair.partition(SIDE_BY_SIDE)[0], pair)
        if there != pair:
            raise DataError(f"bench: {out} cannot show control of both {there} and {pair}; choose another --out")


def _kept(head: Head) -> dict[str, int]:
    """How many features each tap keeps, in order of depth."""
    counts: dict[str, int] = {}
    for kept in head.kept:
        counts[kept.pooled.name] = counts.get(kept.pooled.name, 0) + len(kept.columns)
    return counts


def _extracted(journal: Journal) -> Settings:
    """How many images went through the network while fitting: the others were in the store, and cost no seconds."""
    return {} if journal.extraction is None else {"extracted_images": journal.extraction.computed}
