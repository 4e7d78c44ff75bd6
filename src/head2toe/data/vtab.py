"""VTAB-1k: its nineteen tasks as data, and the two layouts in which they are shared.

Zhai et al. 2019, "A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark". A task's
folder holds `images/` and lists of "path label-number" lines: `train800.txt` and `val200.txt`, or both in one as
`train800val200.txt`, and `test.txt`. A repository on Hugging Face holds a configuration for each task.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from head2toe.data.hub import read_hub
from head2toe.data.sources import Files
from head2toe.data.task import Rows, Task, assemble
from head2toe.errors import DataError
from head2toe.images import Resize

Group = Literal["natural", "specialized", "structured"]
SIZES = {"train": 800, "validation": 200}  # images to learn from; test is all the others
BOTH = "train800val200.txt"
LISTS = {"train": "train800.txt", "validation": "val200.txt", "test": "test.txt"}


@dataclass(frozen=True)
class VtabTask:
    """A task of the benchmark; `folders` are the names under which it is shared, the usual one first.

    `resize` is how its pictures come to the square input of the network: whole, as the benchmark's own code does for
    every task. Mean and standard deviation of the pixels are the network's.
    """

    group: Group
    n_classes: int
    folders: tuple[str, ...]
    resize: Resize = "squash"

    @property
    def name(self) -> str:
        return self.folders[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Its classes, called by their numbers."""
        return tuple(map(str, range(self.n_classes)))


VTAB = (
    VtabTask("natural", 102, ("caltech101",)),
    VtabTask("natural", 100, ("cifar", "cifar100")),
    VtabTask("natural", 47, ("dtd",)),
    VtabTask("natural", 102, ("oxford_flowers102", "flowers102")),
    VtabTask("natural", 37, ("oxford_iiit_pet", "pets")),
    VtabTask("natural", 397, ("sun397",)),
    VtabTask("natural", 10, ("svhn",)),
    VtabTask("specialized", 5, ("diabetic_retinopathy", "retinopathy")),
    VtabTask("specialized", 10, ("eurosat",)),
    VtabTask("specialized", 2, ("patch_camelyon", "camelyon")),
    VtabTask("specialized", 45, ("resisc45",)),
    VtabTask("structured", 8, ("clevr_count",)),
    VtabTask("structured", 6, ("clevr_dist", "clevr_distance")),
    VtabTask("structured", 6, ("dmlab",)),
    VtabTask("structured", 16, ("dsprites_loc", "dsprites_location")),
    VtabTask("structured", 16, ("dsprites_ori", "dsprites_orientation")),
    VtabTask("structured", 4, ("kitti",)),
    VtabTask("structured", 18, ("smallnorb_azi", "smallnorb_azimuth")),
    VtabTask("structured", 9, ("smallnorb_ele", "smallnorb_elevation")),
)


def is_vtab(folder: Path) -> bool:
    """Whether a folder has the lists of a VTAB-1k task."""
    return (folder / LISTS["test"]).is_file() and any((folder / name).is_file() for name in (BOTH, LISTS["train"]))


def read_vtab(folder: Path, *, skip_bad: bool = False) -> Task:
    """The task in `folder`; classes are called by their numbers, as the layout has no names.

    A known task has as many classes as the benchmark says, whichever the rows hold: 397 classes do not all fit into
    1,000 training images, and labels of test images must not tell. DataError for a missing list, a line that is no
    "path number", or a number outside a known task's classes.
    """
    if not is_vtab(folder):
        wanted = f"{LISTS['test']} and {LISTS['train']} with {LISTS['validation']}, or {BOTH}"
        raise DataError(f"load: {folder} is no VTAB-1k task; expected {wanted}")
    lists = LISTS if (folder / LISTS["train"]).is_file() else {"train": BOTH, "test": LISTS["test"]}
    known = next((task for task in VTAB if folder.resolve().name in task.folders), None)
    rows = {
        split: _rows(folder, folder / name, known)
        for split, name in lists.items()
        if split != "validation" or (folder / name).is_file()
    }
    if known is not None:
        return assemble(known.name, rows, skip_bad=skip_bad, classes=known.classes, unseen=True)
    numbers = sorted({label for split in rows.values() for label in split.labels}, key=int)
    return assemble(folder.resolve().name, rows, skip_bad=skip_bad, classes=numbers, unseen=True)


def read_vtab_hub(task: VtabTask, dataset: str, config: str) -> Task:
    """`task` from the configuration `config` of the Hugging Face dataset `dataset` ("OWNER/NAME").

    Its classes are called by the dataset's names for them, else by numbers. DataError for other classes than the
    task's, or for more images to learn from than the benchmark has: a whole data set under the same name.
    """
    rows, names = read_hub(f"{dataset}:{config}")
    what = f"load: '{config}' of hf:{dataset}"
    classes = tuple(names or task.classes)
    if len(classes) != task.n_classes:
        raise DataError(f"{what} names {len(classes)} classes, {task.name} has {task.n_classes}")
    if strange := {label for split in rows.values() for label in split.labels} - set(classes):
        raise DataError(f"{what} has the label '{min(strange)}', {task.name} has {task.n_classes} classes from 0")
    n, most = sum(len(rows[split].labels) for split in SIZES if split in rows), sum(SIZES.values())
    if n > most:
        raise DataError(f"{what} has {n:,} images to learn from, a VTAB-1k task has {most:,}; choose its thousand")
    return assemble(task.name, rows, skip_bad=False, classes=classes, unseen=True)


def _rows(folder: Path, path: Path, known: VtabTask | None) -> Rows:
    paths, labels = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        image, _, label = line.strip().rpartition(" ")
        if not image or not label.isdecimal():
            raise DataError(f"load: line {number} of {path} should be 'path number', got '{line}'")
        if known is not None and int(label) >= known.n_classes:
            raise DataError(
                f"load: line {number} of {path} has label {label}, {known.name} has {known.n_classes} classes from 0"
            )
        paths.append(image)
        labels.append(str(int(label)))
    return Rows(Files(str(folder.resolve()), tuple(paths)), labels)
