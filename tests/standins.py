"""Small data sets of real pictures, scikit-learn's digits, in the formats in which tasks are shared."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as Picture
from PIL import Image
from sklearn.datasets import load_digits

from head2toe.data import load_task

LISTS = {"train": "train800.txt", "validation": "val200.txt", "test": "test.txt"}
ROWS = {"train": 40, "validation": 10, "test": 30}


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_pack(folder: Path, n_classes: int, *, first: int = 0, names: list[str] | None = None) -> None:
    """The digits below `n_classes` from row `first` on, in the Hugging Face layout: a Parquet file for each split."""
    digits = load_digits()
    rows = iter(np.flatnonzero(digits.target < n_classes)[first:])
    features = Features({"image": Picture(), "label": ClassLabel(names=names) if names else Value("int64")})
    folder.mkdir(parents=True)
    for split, n in ROWS.items():
        picked = [next(rows) for _ in range(n)]
        columns = {
            "image": [{"bytes": png((15 * digits.images[row]).astype(np.uint8)), "path": None} for row in picked],
            "label": digits.target[picked].tolist(),
        }
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def write_repository(folder: Path, configs: Mapping[str, int]) -> str:
    """A dataset repository with a configuration of so many classes per name; how `--root` calls it."""
    card = ["---", "configs:"]
    for config, n_classes in configs.items():
        write_pack(folder / config, n_classes)
        card += [f"- config_name: {config}", "  data_files:"]
        card += [f"  - split: {split}\n    path: {config}/{split}-*" for split in ROWS]
    (folder / "README.md").write_text("\n".join([*card, "---"]))
    return f"hf:{folder}"


def write_vtab(folder: Path, pack: Path) -> None:
    """The rows of a pack in VTAB-1k's folder layout: `images/` and lists of "path number" lines."""
    task = load_task(pack)
    for name, split in zip(LISTS, task.splits, strict=True):
        (folder / "images" / name).mkdir(parents=True)
        lines = []
        for row in range(split.n_rows):
            path = f"images/{name}/{row:06d}.png"
            (folder / path).write_bytes(split.source[row])
            lines.append(f"{path} {split.labels[row]}\n")
        (folder / LISTS[name]).write_text("".join(lines))
