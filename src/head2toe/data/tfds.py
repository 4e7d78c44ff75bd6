"""VTAB-1k from the files of TensorFlow Datasets; the only module that names `tensorflow_datasets`.

Splits and labels are those of the benchmark's own code (github.com/google-research/task_adaptation): the first 800 rows
of train, the first 200 of validation, all of test. Reading needs no TensorFlow, but files in a random-access format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from head2toe.data.task import Item, Rows, Task, assemble
from head2toe.data.vtab import SIZES, VTAB
from head2toe.errors import DataError, MissingExtraError

Example = Mapping  # name of a feature -> bytes, numbers, or another of these


@dataclass(frozen=True)
class Recipe:
    """Where a task's rows are and what their labels say; `scale` takes stored pixels to 0..255."""

    dataset: str
    splits: tuple[str, str, str]  # train, validation, test
    label: Callable[[Example], int]
    scale: int = 1


@runtime_checkable
class Examples(Protocol):
    """Rows that are read when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Example: ...


@dataclass(frozen=True, eq=False)
class TfdsRows:
    """The first `n` pictures of a split, as encoded bytes, or as pixels where they have to be scaled."""

    examples: Examples
    n: int
    scale: int
    title: str

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int, /) -> Item:
        encoded = self.examples[row]["image"]
        if self.scale == 1:
            return encoded
        from head2toe.images import decode

        return np.asarray(decode(encoded)) * np.uint8(self.scale)

    def name(self, row: int, /) -> str:
        return f"{self.title}[{row}]"


def tfds_folder(name: str, data_dir: Path) -> Path | None:
    """The folder of the newest version of a VTAB-1k task's data set in `data_dir`; None where it is not there."""
    versions = [info.parent for info in (data_dir / RECIPES[name].dataset).glob("*/dataset_info.json")]
    numbered = [folder for folder in versions if folder.name.replace(".", "").isdecimal()]
    return max(numbered, key=lambda folder: [int(part) for part in folder.name.split(".")], default=None)


def read_tfds(name: str, folder: Path) -> Task:
    """The VTAB-1k task called `name` from a prepared data set; classes are all numbers that the benchmark has for it.

    MissingExtraError without tensorflow_datasets, DataError for files that cannot be read row by row.
    """
    try:
        tfds = import_module("tensorflow_datasets")
    except ImportError as error:
        raise MissingExtraError(f"reading {folder}", "tfds") from error
    recipe, builder = RECIPES[name], tfds.builder_from_directory(str(folder))
    rows = {}
    for split, instruction in zip(("train", "validation", "test"), recipe.splits, strict=True):
        try:
            examples = builder.as_data_source(instruction, decoders={"image": tfds.decode.SkipDecoding()})
        # TensorFlow Datasets raises it for files that can be read from their start only, such as TFRecord
        except NotImplementedError as error:
            raise DataError(
                f"load: {folder} is not in a random-access format; convert it with "
                f"`tfds convert_format --dataset_dir {folder} --out_file_format array_record`"
            ) from error
        n = min(len(examples), SIZES.get(split, len(examples)))
        labels = [str(recipe.label(examples[row])) for row in range(n)]
        rows[split] = Rows(TfdsRows(examples, n, recipe.scale, f"{name}/{split}"), labels)
    (known,) = (task for task in VTAB if task.name == name)
    return assemble(name, rows, skip_bad=False, classes=known.classes, unseen=True)


def _given(feature: str, bins: int = 1) -> Callable[[Example], int]:
    """The number stored as `feature`, `bins` neighbours of it joined."""
    return lambda example: int(example[feature]) // bins


def _orientation(example: Example) -> int:
    """Sixteen bins of 40 orientations: 2.5 each."""
    return int(example["label_orientation"] // 2.5)


def _count(example: Example) -> int:
    """Three to ten objects."""
    return len(example["objects"]["size"]) - 3


def _closest_object(example: Example) -> int:
    depths = np.array(example["objects"]["pixel_coords"])[:, 2]
    return _bin(float(depths.min()), (0.0, 8.0, 8.5, 9.0, 9.5, 10.0))


def _closest_vehicle(example: Example) -> int:
    """How far the next car, van or truck is; the last class is that there is none."""
    kinds = np.array(example["objects"]["type"])
    ahead = np.array(example["objects"]["location"], np.float64).reshape(-1, 3)[kinds < 3, 2]
    return _bin(float(ahead.min(initial=1000.0)), (-100.0, 8.0, 20.0, 999.0))


def _bin(value: float, edges: Sequence[float]) -> int:
    """The last edge that lies below."""
    return int(np.searchsorted(edges, value, side="left")) - 1


def _shares(train: int, validation: int) -> tuple[str, str, str]:
    """A data set without splits of its own, cut by per cent; test is the rest."""
    end = train + validation
    return f"train[:{train}%]", f"train[{train}%:{end}%]", f"train[{end}%:]"


OFFICIAL = ("train", "validation", "test")
NINE_TENTHS = ("train[:90%]", "train[90%:]", "test")
RECIPES = {
    "caltech101": Recipe("caltech101", NINE_TENTHS, _given("label")),
    "cifar": Recipe("cifar100", NINE_TENTHS, _given("label")),
    "dtd": Recipe("dtd", OFFICIAL, _given("label")),
    "oxford_flowers102": Recipe("oxford_flowers102", OFFICIAL, _given("label")),
    "oxford_iiit_pet": Recipe("oxford_iiit_pet", ("train[:80%]", "train[80%:]", "test"), _given("label")),
    "sun397": Recipe("sun397/tfds", OFFICIAL, _given("label")),
    "svhn": Recipe("svhn_cropped", NINE_TENTHS, _given("label")),
    "diabetic_retinopathy": Recipe("diabetic_retinopathy_detection/btgraham-300", OFFICIAL, _given("label")),
    "eurosat": Recipe("eurosat/rgb", _shares(60, 20), _given("label")),
    "patch_camelyon": Recipe("patch_camelyon", OFFICIAL, _given("label")),
    "resisc45": Recipe("resisc45", _shares(60, 20), _given("label")),
    "clevr_count": Recipe("clevr", ("train[:90%]", "train[90%:]", "validation"), _count),
    "clevr_dist": Recipe("clevr", ("train[:90%]", "train[90%:]", "validation"), _closest_object),
    "dmlab": Recipe("dmlab", OFFICIAL, _given("label")),
    "dsprites_loc": Recipe("dsprites", _shares(80, 10), _given("label_x_position", bins=2), scale=255),
    "dsprites_ori": Recipe("dsprites", _shares(80, 10), _orientation, scale=255),
    "kitti": Recipe("kitti", OFFICIAL, _closest_vehicle),
    "smallnorb_azi": Recipe("smallnorb", ("train", "test[:50%]", "test[50%:]"), _given("label_azimuth")),
    "smallnorb_ele": Recipe("smallnorb", ("train", "test[:50%]", "test[50%:]"), _given("label_elevation")),
}
