"""A head, or a network trained whole, on new data: labels for files, accuracy on a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from head2toe import images
from head2toe.data.task import Check, joined
from head2toe.errors import DataError, HeadError
from head2toe.extract import extract, read, stored_as
from head2toe.extract.copies import copies, how_many
from head2toe.head import Head, check_fits, softmax
from head2toe.network import Network
from head2toe.store import FeatureStore, default_location
from head2toe.table import FeatureTable

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Split, Task

_BATCH = 16
_FEW = 4  # parts that this process labels sooner than it makes copies of itself


@dataclass(frozen=True)
class Prediction:
    """One file's label and the probability of every class."""

    file: str
    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy in [0, 1] over n inputs of one split, and (inputs, accuracy) of each class that it holds.

    An `upper_bound` is that of a head which was chosen on test images.
    """

    split: str
    n: int
    accuracy: float
    per_class: dict[str, tuple[int, float]]
    upper_bound: bool = False


def predict_files(
    head: Head | Network,
    files: Sequence[Path],
    *,
    device: str = "cpu",
    backbone: Backbone | None = None,
    trust_remote_code: bool = False,
) -> Iterator[Prediction]:
    """Label files in their order, batch by batch; every file is read and decoded before a head's network is loaded.

    `device`, `backbone` and `trust_remote_code` are for a head; a network is where it was loaded. DataError names the
    unreadable.
    """
    from head2toe.data import damage_report, find_damaged
    from head2toe.data.sources import Files

    absent = [str(path) for path in files if not path.is_file()]
    if absent:
        raise DataError(f"predict: no such file: {', '.join(absent[:20])}")
    source = Files(".", tuple(str(path) for path in files))
    damaged = find_damaged(source, range(len(files)), _check_of(head, backbone))
    if damaged:
        raise damage_report("predict", damaged, len(files))
    for path, row in zip(files, _probabilities(head, files, device, backbone, trust_remote_code), strict=True):
        best = head.classes[int(row.argmax())]
        yield Prediction(str(path), best, dict(zip(head.classes, map(float, row), strict=True)))


def evaluate_on(
    head: Head | Network,
    task: Task,
    store: FeatureStore | str | Path | None = None,
    *,
    device: str = "cpu",
    backbone: Backbone | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Accuracy on the task's test split, or on all rows where there is none.

    A head's features come from the store if they are there.
    Raises HeadError where the task has a class that the head does not know.
    """
    name, split = ("test", task.test) if task.test is not None else ("all", joined(task.splits))
    unknown = sorted(set(task.classes) - set(head.classes))
    if unknown:
        raise HeadError(f"evaluate: the head does not know the class '{unknown[0]}'; it knows {list(head.classes)}")
    number = np.array([head.classes.index(name) for name in task.classes])
    if isinstance(head, Network):
        from head2toe.data import damage_report, find_damaged

        if damaged := find_damaged(split.source, range(split.n_rows), head.model.backbone.check):
            raise damage_report("evaluate", damaged, split.n_rows)
        return evaluation(name, head.logits_of(split.source), number[split.labels], head.classes)
    network = backbone or head.load_backbone(device, trust_remote_code=trust_remote_code)
    check_fits(head, network.fingerprint, network.id)
    logits = stored_logits(head, split, network, store)
    found = evaluation(name, logits, number[split.labels], head.classes)
    return replace(found, upper_bound=head.provenance.upper_bound)


def stored_logits(
    head: Head,
    split: Split,
    backbone: Backbone,
    store: FeatureStore | str | Path | None = None,
    *,
    progress: bool = True,
) -> np.ndarray:
    """Logits (n, C) float32 of a split's rows; features come from the store, and go there where it lacks them."""
    opened = store if isinstance(store, FeatureStore) else FeatureStore(store or default_location())
    extract(backbone, [split], opened, [stored_as(pool) for pool in head.pools], taps=head.taps, progress=progress)
    return head.logits_of(_read(head, backbone, opened, split))


def evaluation(split: str, logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Evaluation:
    """Compare logits (n, C) with labels (n,)."""
    right = softmax(logits).argmax(axis=1) == labels
    per_class = {
        name: (int((labels == c).sum()), float(right[labels == c].mean()))
        for c, name in enumerate(classes)
        if (labels == c).any()
    }
    return Evaluation(split, len(labels), float(right.mean()), per_class)


def _probabilities(
    head: Head | Network, files: Sequence[Path], device: str, backbone: Backbone | None, trust_remote_code: bool
) -> Iterator[np.ndarray]:
    """Probabilities (C,) of every file, in order; of many files copies of this process label parts side by side."""
    parts = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
    if isinstance(head, Network):
        yield from chain.from_iterable(map(head.predict_proba, parts))
        return
    network = backbone or head.load_backbone(device, trust_remote_code=trust_remote_code)
    check_fits(head, network.fingerprint, network.id)
    answer = partial(head.predict_proba, backbone=network)
    n = how_many(network.device) if len(parts) > _FEW else 0
    if not n:
        yield from chain.from_iterable(map(answer, parts))
        return
    yield from answer(parts[0])  # what a process compiles or finds out once, copies have
    with copies(answer, min(n, len(parts) - 1)) as ask:
        yield from chain.from_iterable(future.result() for future in [ask(part) for part in parts[1:]])


def _check_of(model: Head | Network, backbone: Backbone | None) -> Check:
    """What refuses an unreadable file; texts and sounds are left to a network that is not there yet."""
    network = model.model.backbone if isinstance(model, Network) else backbone
    if network is not None:
        return network.check
    assert isinstance(model, Head)
    return images.check if {"size", "parts", "name"} & model.preprocessing.keys() else lambda item: None


def _read(head: Head, backbone: Backbone, store: FeatureStore, split: Split) -> FeatureTable:
    tables = [
        read(backbone, pool, store, split.ids, [kept.pooled.tap for kept in head.kept if kept.pooled.pool == pool])
        for pool in head.pools
    ]
    taps = tuple(tap for table in tables for tap in table.taps)
    return FeatureTable(split.ids, taps, tuple(block for table in tables for block in table.blocks))
