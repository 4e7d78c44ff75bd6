"""What a run's fits share, as results record it, as a resumed run checks it and as a command gives it."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from head2toe.backbones.build import SideBySide
from head2toe.bench.result import Result
from head2toe.errors import DataError
from head2toe.images import ImagePreprocess
from head2toe.methods import SMALL, TRAINED, training_of

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone

Settings = dict[str, float | int | str]
DEFAULT = "default"
TASKS_OF = "tasks_of"  # the suite that a study's tasks come from
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "numba", "scikit-learn")
_OPTIONS = {
    TASKS_OF: "--suite",
    "target_sizes": "--target-size",
    "max_test": "--max-test",
    "asked_image_size": "--image-size",
    "precision": "--precision",  # the one used: the default differs between processors
    "tried_lrs": "--lr",
    "tried_steps": "--steps",
}


@dataclass(frozen=True)
class Conditions:
    """What holds for every fit of a run.

    `target_sizes` None leaves them to each method; those that take one get the first. `max_test` measures on so many
    test images, spread over the classes, where the whole split would take too long. `lrs` and `steps` are what networks
    trained whole choose from, in place of their own. `image_size` and `precision` say how the backbones were loaded.
    """

    target_sizes: tuple[int, ...] | None = None
    max_test: int | None = None
    lrs: tuple[float, ...] | None = None
    steps: tuple[int, ...] | None = None
    image_size: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.max_test is not None and self.max_test < 1:
            raise DataError(f"bench: --max-test must be at least 1, got {self.max_test}")

    @property
    def one_size(self) -> int:
        """The target size of what has a single one."""
        return (self.target_sizes or SMALL)[0]

    def settings(self, method: str) -> Settings:
        """As every result of `method` records them: results that differ in them are not comparable.

        What a trained network chooses from is written out also where it is the method's own: that may change.
        """
        common: Settings = {
            "target_sizes": _listed(self.target_sizes),
            "max_test": self.max_test or "all",
            "asked_image_size": self.image_size or DEFAULT,
            "asked_precision": self.precision or DEFAULT,
        }
        if method not in TRAINED:
            return common
        tried = training_of(method, self.lrs, self.steps)
        return common | {"tried_lrs": _listed(tried.lrs), "tried_steps": _listed(tried.steps)}


def check_folder(out: Path) -> None:
    """DataError where `out`, or what it should lie in, is a file."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise DataError(f"bench: --out {out} should be a folder, {there} is a file")


def check_same(result: Result, settings: Settings, out: Path) -> None:
    """DataError where a result in `out` was measured under other settings than these."""
    for name, asked in settings.items():
        there = result.settings.get(name, asked)
        if there != asked:
            raise DataError(
                f"bench: {out} holds {result.task}, {result.method} measured with {name} {there}, asked for now is "
                f"{asked}; choose another --out"
            )


def options(result: Result) -> str:
    """The options of a command that repeats the conditions of a result; those left to their defaults are not named."""
    words = []
    for name, option in _OPTIONS.items():
        value = str(result.settings.get(name, DEFAULT))
        if value not in (DEFAULT, "all"):
            words += [f"{option} {one}" for one in value.split(",")]
    return " ".join(words)


def backbone_option(result: Result) -> str:
    """A backbone id that can be loaded; WEIGHTS stands for the folder of its files."""
    return str(result.settings.get("backbone_id", result.backbone))


def treatment(backbone: Backbone) -> Settings:
    """Which network, what happens to a picture before it, and the numbers that it computes in."""
    preprocess = backbone.preprocess
    parts = preprocess.parts if isinstance(preprocess, SideBySide) else (preprocess,)
    pictures = [_picture(part) for part in parts if isinstance(part, ImagePreprocess)]
    told: Settings = {
        "precision": backbone.precision,
        "fingerprint": backbone.fingerprint,
        "backbone_id": re.sub(r"file:(?:[^+]*/)?", "file:WEIGHTS/", backbone.id),
    }
    for name in pictures[0] if pictures else ():
        told[name] = " + ".join(dict.fromkeys(picture[name] for picture in pictures))
    return told


@cache
def packages() -> Mapping[str, str]:
    """Versions that decide numbers, and what seconds were measured on."""
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    machine = {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads{gpu}"}
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES} | machine


def _picture(preprocess: ImagePreprocess) -> dict[str, str]:
    height, width = preprocess.size
    mean, std = (" ".join(f"{value:.4g}" for value in of) for of in (preprocess.mean, preprocess.std))
    return {"image_size": f"{height}x{width}", "resize": preprocess.resize, "normalised": f"mean {mean}, std {std}"}


def _listed(values: Sequence[int] | Sequence[float] | None) -> str:
    """Asked-for values as a result records them."""
    return DEFAULT if values is None else ",".join(f"{value:g}" for value in values)
