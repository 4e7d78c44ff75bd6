"""Networks and preprocessings that differ in what weights and names do not show."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from head2toe.backbones import load_backbone
from head2toe.backbones.module import Transformed
from head2toe.images import ImagePreprocess

PIXELS = ImagePreprocess((16, 16), (0.0,) * 3, (1.0,) * 3)


class Scaled(nn.Module):
    """A value that no weight holds decides its features."""

    def __init__(self, by: object) -> None:
        super().__init__()
        self.conv, self.by = nn.Conv2d(3, 4, 3), by
        self.register_buffer("shift", torch.full((1,), float(len(str(by)))), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x)) * (self.by if isinstance(self.by, float) else self.by(x).mean())


class Deeper(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Divided:
    """A preprocessing of its own, told by its attributes."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, encoded: bytes | np.ndarray | str, /) -> np.ndarray:
        return np.asarray(encoded, np.float32).transpose(2, 0, 1) / self.by


def closed_over(by: float):
    return lambda picture: np.asarray(picture, np.float32).transpose(2, 0, 1) / by


def by_default(picture, by=255.0):
    return np.asarray(picture, np.float32).transpose(2, 0, 1) / by


def in_rows(picture):
    return np.stack([np.asarray(picture, np.float32)[:, :, i] for i in {0, 1, 2}])


def highest(picture):
    return np.asarray(picture, np.float32).transpose(2, 0, 1) - np.asarray(picture).max()


def lowest(picture):
    return np.asarray(picture, np.float32).transpose(2, 0, 1) - np.asarray(picture).min()


def fingerprints() -> dict[str, str]:
    """Of networks and preprocessings that differ in what weights and names do not show."""
    weights = Scaled(1.0).requires_grad_(False)
    for parameter in weights.parameters():
        parameter.fill_(0.5)

    def of(module: nn.Module, preprocess: object, run: object = None) -> str:
        module.load_state_dict(weights.state_dict())
        return load_backbone(module, preprocess=preprocess, run=run, precision="float32").fingerprint

    return {
        "one": of(Scaled(1.0), PIXELS),
        "two": of(Scaled(2.0), PIXELS),
        "function": of(Scaled(torch.exp), PIXELS),
        "code": of(Deeper(1.0), PIXELS),
        "run": of(Scaled(1.0), PIXELS, lambda module, batch: module(batch.args[0] * 7)),
        "other run": of(Scaled(1.0), PIXELS, lambda module, batch: module(batch.args[0] * 8)),
        "attribute": of(Scaled(1.0), Divided(255.0)),
        "other attribute": of(Scaled(1.0), Divided(100.0)),
        "closure": of(Scaled(1.0), Transformed(closed_over(255.0))),
        "other closure": of(Scaled(1.0), Transformed(closed_over(100.0))),
        "default": of(Scaled(1.0), Transformed(by_default)),
        "partial": of(Scaled(1.0), Transformed(partial(by_default, by=7.0))),
        "comprehension": of(Scaled(1.0), Transformed(in_rows)),
        "highest": of(Scaled(1.0), Transformed(highest)),
        "lowest": of(Scaled(1.0), Transformed(lowest)),
    }


def test_what_a_module_computes_is_signed_and_the_same_in_every_process():
    # whatever differs is signed differently, and nothing that is the same, whatever its place in memory
    here = fingerprints()
    assert len(set(here.values())) == len(here)
    folder = Path(__file__).parents[1]
    code = "import json; from backbones.test_identity import fingerprints; print(json.dumps(fingerprints()))"
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{os.pathsep.join(sys.path)}", "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(there.stdout) == here
