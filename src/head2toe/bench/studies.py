"""The paper's further studies: one thing about Head2Toe is varied, task by task; every fit is a line of a result.

A line's suite is the study, its `settings` hold the "series" that it belongs to and its place "x" there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from head2toe.bench.conditions import TASKS_OF, Conditions, Settings, check_folder, check_same, packages, treatment
from head2toe.bench.result import Result, append_result, read_results
from head2toe.bench.run import IMAGES, MENDABLE, Failure, Fit, limited, reason, refuse_other_images
from head2toe.bench.suite import Suite, SuiteTask
from head2toe.data.task import joined
from head2toe.errors import BackboneError, DataError, meant
from head2toe.head import Head
from head2toe.methods import method_named
from head2toe.methods.frozen import pools_of
from head2toe.methods.head2toe import Head2Toe
from head2toe.methods.problem import Journal, fold_of, folds_for, training_splits
from head2toe.methods.relevance import LADDER, Criterion, relevance_scores
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.methods import Method
    from head2toe.store import FeatureStore

TARGET_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
WINDOWS = (0, 1, 2, 4, 8, 16, 31)  # places in the ranking, in windows of 1/32 of all features
BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # spent on features or on whole layers
KEEP = 0.05  # keep fraction where what ranks the features is varied
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
TRAIN_SIZES = (10, 20, 50, 100, 200, 500, 1000)
COMPARED = ("linear", "all-l2", "head2toe")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Place:
    """Where a study is made: a task of a suite, a network, a store, and what all its fits share.

    `lend` gives the relevance scores (F,) of any task of the suite.
    """

    suite: Suite
    task: Task
    lend: Callable[[SuiteTask], np.ndarray]
    backbone: Backbone
    store: FeatureStore
    target_size: int
    seed: int
    conditions: Conditions


@dataclass(frozen=True)
class LeftOut:
    """A point that a study cannot have on this task or network, and why."""

    task: str
    series: str
    x: float
    reason: str

    def __str__(self) -> str:
        return f"{self.task}, {self.series} {self.x:g}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Arm:
    """One fit of a study: the series and the place in it that its accuracy is drawn at."""

    series: str
    x: float
    fit: Callable[[Journal], Head]


def run(
    names: Sequence[str],
    suite: Suite,
    backbone: Backbone,
    backbone_name: str,
    out: Path,
    store: FeatureStore,
    *,
    conditions: Conditions | None = None,
    seeds: Sequence[int] = (0,),
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Result | Failure | LeftOut]:
    """Make the studies `names` on every task; lines go to `out/studies/NAME.jsonl` as they come, what is there stays.

    What goes wrong for one fit does not stop the others; DataError as `check_studies` says, and where `out` holds lines
    of another network of that name.
    """
    conditions = conditions or Conditions()
    check_studies(names, suite, backbone_name, out, conditions)
    for result in _there(names, backbone_name, out):
        check_same(result, treatment(backbone), out)
    max_test, target_size = conditions.max_test, conditions.one_size
    (out / "studies").mkdir(parents=True, exist_ok=True)
    load = cache(lambda task: limited(task.load(), max_test))

    @cache
    def lend(task: SuiteTask, seed: int) -> np.ndarray:
        return relevance_scores(backbone, load(task), store, target_size=target_size, seed=seed)

    places = [(name, task, seed) for name in names for task in suite.tasks for seed in seeds]
    for done, (name, task, seed) in enumerate(places):
        advance(done, len(places))
        try:
            place = Place(suite, load(task), partial(lend, seed=seed), backbone, store, target_size, seed, conditions)
            yield from _study(name, task, place, backbone_name, _lines(out, name))
        except MENDABLE as error:
            yield Failure(Fit(task, backbone_name, name, seed), reason(error))
    advance(len(places), len(places))


def check_studies(names: Sequence[str], suite: Suite, backbone_name: str, out: Path, conditions: Conditions) -> None:
    """DataError for an unknown study, or where `out` holds lines of one under other conditions or of another suite.

    FeatureError for a target size that means nothing.
    """
    check_folder(out)
    Pool(conditions.one_size)
    for name in names:
        if name not in STUDIES:
            raise DataError(f"study '{name}' is unknown{meant(name, STUDIES)}; there are {', '.join(STUDIES)}")
    for result in _there(names, backbone_name, out):
        check_same(result, _shared(conditions, suite), out)


def _there(names: Sequence[str], backbone_name: str, out: Path) -> Iterator[Result]:
    """The lines of these studies on a network."""
    for name in names:
        yield from (result for result in read_results(_lines(out, name)) if result.backbone == backbone_name)


def _shared(conditions: Conditions, suite: Suite) -> Settings:
    """What every line of a study records."""
    asked = replace(conditions, target_sizes=(conditions.one_size,))
    return asked.settings("head2toe") | {TASKS_OF: suite.name}


def subset(task: Task, n: int, seed: int) -> Task:
    """The task with `n` of its train and validation rows; a smaller subset lies within a larger one.

    Classes keep their shares and at least one row. DataError where there are more classes, or fewer rows.
    """
    rows = joined(training_splits(task))
    labels, present = rows.labels, len(np.unique(rows.labels))
    if not present <= n <= len(labels):
        raise DataError(f"subset: '{task.name}' has {present} classes and {len(labels)} rows; {n} rows hold neither")
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    share = np.concatenate([np.arange(count) / count for count in counts])  # 0 for the first row of each class
    picked = np.sort(by_class[np.argsort(share, kind="stable")[:n]])
    return replace(task, train=rows.rows(picked), validation=None)


def _lines(out: Path, study: str) -> Path:
    return out / "studies" / f"{study}.jsonl"


def _study(
    name: str, task: SuiteTask, place: Place, backbone_name: str, path: Path
) -> Iterator[Result | Failure | LeftOut]:
    lines = read_results(path)
    there, images = {line.key for line in lines}, refuse_other_images(lines, place.task, task.name, path)
    for arm in STUDIES[name](place):
        if isinstance(arm, LeftOut):
            yield arm
            continue
        method = f"{arm.series} {arm.x:g}"
        if (name, task.name, backbone_name, method, place.seed) in there:
            continue
        journal = Journal()
        try:
            head = arm.fit(journal)
        except MENDABLE as error:
            yield Failure(Fit(task, backbone_name, f"{name}: {method}", place.seed), reason(error))
            continue
        settings: Settings = head.provenance.settings | {IMAGES: images, "series": arm.series, "x": arm.x}
        result = _result(name, task, backbone_name, method, place, head, settings, journal)
        append_result(path, [result])
        yield result


def _result(
    study: str,
    task: SuiteTask,
    backbone: str,
    method: str,
    place: Place,
    head: Head,
    settings: Settings,
    journal: Journal,
) -> Result:
    assert place.task.test is not None, "limited() asks for one"
    assert head.metrics.test_accuracy is not None, "there is a test split"
    return Result(
        suite=study,
        task=task.name,
        group=task.group,
        backbone=backbone,
        method=method,
        seed=place.seed,
        test_accuracy=head.metrics.test_accuracy,
        cv_accuracy=head.metrics.cv_accuracy,
        n_train=head.metrics.n_train,
        n_test=place.task.test.n_rows,
        n_classes=len(head.classes),
        n_features=head.provenance.n_features,
        n_kept=head.n_kept,
        settings=_shared(place.conditions, place.suite) | treatment(place.backbone) | settings,
        seconds={phase: round(seconds, 3) for phase, seconds in journal.seconds.items()},
        flops=dict(journal.flops),
        task_bytes=head.n_bytes,
        backbone_bytes=place.backbone.n_bytes,
        packages=dict(packages()),
    )


def _fit(
    place: Place, method: Method, task: Task | None = None, backbone: Backbone | None = None
) -> Callable[[Journal], Head]:
    """How an arm is fitted: on the place's own task and network unless others are given."""
    network = backbone or place.backbone

    def fit(journal: Journal) -> Head:
        head = method.fit(network, task or place.task, place.store, journal=journal, progress=False)
        assert isinstance(head, Head), "studies vary methods on a frozen network"
        return head

    return fit


def _keep_fraction(place: Place) -> Iterator[Arm]:
    for keep in sorted(LADDER):
        yield Arm("head2toe", keep, _fit(place, _head2toe(place, keep=keep)))


def _target_size(place: Place) -> Iterator[Arm]:
    """One pass of the network serves all sizes."""
    from head2toe.extract import extract

    extract(place.backbone, place.task.splits, place.store, pools_of(TARGET_SIZES), progress=False)
    for size in TARGET_SIZES:
        yield Arm("head2toe", float(size), _fit(place, _head2toe(replace(place, target_size=size))))


def _window(place: Place) -> Iterator[Arm | LeftOut]:
    (pool,) = pools_of(place.target_size)
    n_features = sum(pool.length(tap) for tap in place.backbone.taps)
    width = max(1, n_features // 32)
    for start in WINDOWS:
        if (start + 1) * width <= n_features:
            yield Arm("head2toe", float(start * width), _fit(place, _head2toe(place, window=(start * width, width))))
        else:
            reason = f"{n_features:,} features have no window of {width:,} there"
            yield LeftOut(place.task.name, "head2toe", float(start * width), reason)


def _layers(place: Place) -> Iterator[Arm]:
    for series, criterion in (("features", "l2"), ("whole layers", "layer")):
        for keep in BUDGETS:
            yield Arm(series, keep, _fit(place, _head2toe(place, keep=keep, criterion=criterion)))


def _transfer(place: Place) -> Iterator[Arm]:
    """Every task of the suite lends its scores, the task itself included."""
    for source in place.suite.tasks:

        def fit(journal: Journal, source: SuiteTask = source) -> Head:
            return _fit(place, _head2toe(place, keep=KEEP, scores=place.lend(source)))(journal)

        yield Arm(source.name, 0.0, fit)


def _criteria(place: Place) -> Iterator[Arm]:
    """Every criterion ranks by its own scores; one that cannot judge the task fails, and the others go on."""
    for criterion in CRITERIA:
        yield Arm(criterion, 0.0, _fit(place, _head2toe(place, keep=KEEP, criterion=criterion)))


def _n_train(place: Place) -> Iterator[Arm | LeftOut]:
    for n in TRAIN_SIZES:
        try:
            task = subset(place.task, n, place.seed)
            folds = folds_for(task, FOLDS)
            fold_of(task, task.train.labels, folds, place.seed)
        except DataError as error:
            yield LeftOut(place.task.name, "all series", float(n), str(error))
            continue
        for name in COMPARED:
            method = method_named(name, target_sizes=[place.target_size], folds=folds, seed=place.seed)
            yield Arm(name, float(n), _fit(place, method, task))


def _flops_budget(place: Place) -> Iterator[Arm | LeftOut]:
    """Shares that no tap lies within are left out."""
    from head2toe.backbones.select import cut

    method = _head2toe(place, keep=LADDER)  # named fractions: the last features may be out of reach
    for share in SHARES:
        try:
            reached = replace(place.backbone, taps=cut(place.backbone, share))
        except BackboneError as error:
            yield LeftOut(place.task.name, "head2toe", share, str(error))
        else:
            yield Arm("head2toe", share, _fit(place, method, backbone=reached))


STUDIES: dict[str, Callable[[Place], Iterator[Arm | LeftOut]]] = {
    "keep-fraction": _keep_fraction,
    "target-size": _target_size,
    "window": _window,
    "layers": _layers,
    "transfer": _transfer,
    "criteria": _criteria,
    "n-train": _n_train,
    "flops-budget": _flops_budget,
}


def _head2toe(place: Place, **varied) -> Head2Toe:
    return Head2Toe(place.target_size, folds=folds_for(place.task, FOLDS), seed=place.seed, **varied)
