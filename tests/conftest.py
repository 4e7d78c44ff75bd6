"""Shapes and types of every public function are checked while the tests run."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook

import head2toe.solvers.kernels  # noqa: F401  numba compiles plain functions only: before the hook wraps them

install_import_hook("head2toe", "beartype.beartype")

SIZE = 16


@pytest.fixture(scope="session")
def network():
    """A small convolutional network with random weights, as a backbone in float32."""
    import torch
    from torch import nn

    from head2toe.backbones import load_backbone
    from head2toe.images import ImagePreprocess

    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((3, 8), (8, 16))]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    preprocess = ImagePreprocess((SIZE, SIZE), (0.5,) * 3, (0.25,) * 3, "nearest")
    return load_backbone(module, preprocess=preprocess, precision="float32")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `head2toe ...` in this process: (exit code, stdout, stderr)."""
    from head2toe import cli

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["head2toe", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def positions(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise images (n, 16, 16, 3) with a bright spot in one of four corners, and the corner (n,)."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 120, (n, SIZE, SIZE, 3), dtype=np.uint8)
    corner = np.arange(n) % 4
    for image, c in zip(images, corner, strict=True):
        row, column = 8 * (c // 2) + random.integers(4), 8 * (c % 2) + random.integers(4)
        image[row : row + 4, column : column + 4] = 255
    return images, corner


@pytest.fixture(scope="session")
def corners():
    """Where is the spot? A task that the pooled last layer cannot see and earlier layers can."""
    from head2toe.data import task_from_arrays

    return task_from_arrays(*positions(60, 0), test=positions(40, 1), name="corners")


@dataclass(frozen=True)
class SmallDisk:
    """A folder that holds `size` bytes; where `mounted` is False, one whose writers run `limit` first."""

    folder: Path
    size: int
    mounted: bool

    @property
    def limit(self) -> str:
        """A statement after which a process can write no file of more than `size` bytes."""
        if self.mounted:
            return "pass"
        return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({self.size}, {self.size}))"

    def grow(self) -> None:
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,size=16m", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[SmallDisk]:
    """A file system of 128 KiB where we may mount one, else a limit on the size of a file."""
    folder, size = tmp_path / "small", 1 << 17
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    yield SmallDisk(folder, size, mounted)
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def quota(tmp_path) -> SmallDisk:
    """The limit on the size of a file, which every machine has."""
    (tmp_path / "quota").mkdir()
    return SmallDisk(tmp_path / "quota", 1 << 17, mounted=False)
