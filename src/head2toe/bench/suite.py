"""Suites: named tasks in groups, loaded when their turn comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from head2toe.errors import DataError, meant
from head2toe.images import Resize

if TYPE_CHECKING:
    from head2toe.data import Task

Groups = Mapping[str, Sequence[str]]
HUB = "hf:"  # what the name of a Hugging Face dataset begins with
EVERY = "all"  # the group of a task that has no other


@dataclass(frozen=True)
class SuiteTask:
    """A task by name and group; `load` reads it."""

    name: str
    group: str
    load: Callable[[], Task]


@dataclass(frozen=True)
class Suite:
    """Tasks to measure.

    `resize` is how the suite's protocol brings pictures to the network's size: one for all, as is the network.
    """

    name: str
    tasks: tuple[SuiteTask, ...]
    resize: Resize = "squash"

    def only(self, names: Sequence[str]) -> Suite:
        """The tasks called `names`, in the suite's order; DataError for one that it does not have."""
        known = [task.name for task in self.tasks]
        for name in names:
            if name not in known:
                raise DataError(
                    f"bench: suite '{self.name}' has no task '{name}'{meant(name, known)}; it has {', '.join(known)}"
                )
        return replace(self, tasks=tuple(task for task in self.tasks if task.name in names))


def suite_named(name: str, root: str | Path, *, groups: Groups | None = None) -> Suite:
    """The suite that a user calls `name`, "packs" or "vtab", in the folder `root`; vtab also in "hf:OWNER/NAME"."""
    if name not in ("packs", "vtab"):
        raise DataError(f"bench: suite '{name}' is unknown; there are packs (any folder of tasks) and vtab (VTAB-1k)")
    if str(root).startswith(HUB):
        if name != "vtab":
            raise DataError(f"bench: suite '{name}' reads a folder, got --root {root}; only vtab reads {HUB}OWNER/NAME")
        return vtab_hub_suite(str(root).removeprefix(HUB))
    folder = Path(root)
    if not folder.is_dir():
        either = f", or a dataset as {HUB}OWNER/NAME" if name == "vtab" else ""
        raise DataError(
            f"bench: there is no folder '{root}'; give the folder that holds one folder per task as --root{either}"
        )
    return vtab_suite(folder) if name == "vtab" else packs_suite(folder, groups=groups)


def packs_suite(root: Path, *, groups: Groups | None = None) -> Suite:
    """Every folder in `root` as a task, whatever `load_task` reads.

    A task's group is what `groups` says (group -> names of tasks), else "group" in its `info.json`, else "all".
    """
    from head2toe.data import load_task

    folders = sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith((".", "__")))
    if not folders:
        raise DataError(f"bench: {root} holds no folder; expected one folder per task")
    given = {task: group for group, tasks in (groups or {}).items() for task in tasks}
    tasks = (SuiteTask(f.name, given.get(f.name) or _group(f), partial(load_task, f)) for f in folders)
    return Suite("packs", tuple(tasks))


def vtab_suite(root: Path) -> Suite:
    """Those of the nineteen VTAB-1k tasks that are in `root`; DataError where none is.

    A task is a folder in the layout that the community shares, or its data set as TensorFlow Datasets prepared it.
    """
    from head2toe.data.tfds import read_tfds, tfds_folder
    from head2toe.data.vtab import VTAB, is_vtab, read_vtab

    loaders: dict[str, Callable[[], Task]] = {}
    for task in VTAB:
        folder = next((root / name for name in task.folders if is_vtab(root / name)), None)
        if folder is not None:
            loaders[task.name] = partial(read_vtab, folder)
        elif (prepared := tfds_folder(task.name, root)) is not None:
            loaders[task.name] = partial(read_tfds, task.name, prepared)
    if not loaders:
        raise DataError(
            f"bench: {root} holds no VTAB-1k task; expected folders such as {root / 'caltech101'} with images/, "
            "train800.txt, val200.txt and test.txt, or data sets that TensorFlow Datasets prepared"
        )
    return _vtab(loaders)


def vtab_hub_suite(dataset: str) -> Suite:
    """Those of the nineteen VTAB-1k tasks that the Hugging Face dataset `dataset` has a configuration of.

    DataError where it has none, or cannot be had. A task is downloaded when it is loaded.
    """
    from head2toe.data.hub import configurations
    from head2toe.data.vtab import VTAB, read_vtab_hub

    there = configurations(dataset)
    loaders: dict[str, Callable[[], Task]] = {}
    for task in VTAB:
        config = next((name for name in task.folders if name in there), None)
        if config is not None:
            loaders[task.name] = partial(read_vtab_hub, task, dataset, config)
    if not loaders:
        known = ", ".join(task.name for task in VTAB)
        raise DataError(
            f"bench: {HUB}{dataset} has no configuration named like a VTAB-1k task ({known}); it has {', '.join(there)}"
        )
    return _vtab(loaders)


def read_groups(path: Path) -> Groups:
    """Groups from a JSON object: {"natural": ["caltech101", ...], ...}."""
    try:
        groups = json.loads(path.read_text())
        if text := [group for group, tasks in groups.items() if isinstance(tasks, str)]:
            raise TypeError(f"'{text[0]}' should be a list of tasks")
        return {group: [str(task) for task in tasks] for group, tasks in groups.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f'bench: {path} should be JSON like {{"natural": ["caltech101"]}}: {error}') from error


def _vtab(loaders: Mapping[str, Callable[[], Task]]) -> Suite:
    """The suite of the tasks that a loader was found for, in the benchmark's order."""
    from head2toe.data.vtab import VTAB

    found = tuple(SuiteTask(task.name, task.group, loaders[task.name]) for task in VTAB if task.name in loaders)
    return Suite("vtab", found, VTAB[0].resize)  # that of all: a network is loaded once for them


def _group(folder: Path) -> str:
    info = folder / "info.json"
    if not info.is_file():
        return EVERY
    try:
        return str(json.loads(info.read_text()).get("group", EVERY))
    except (ValueError, AttributeError) as error:
        raise DataError(f"bench: {info} should be a JSON object: {error}") from error
