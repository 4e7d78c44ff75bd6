"""Image folders: `class/…`, or `train|validation|test/class/…`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from head2toe.data.sources import Files
from head2toe.data.task import Rows
from head2toe.errors import DataError

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp")
)
SPLIT_FOLDERS: dict[str, str] = {
    "train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test",
}  # fmt: skip


def read_folder(folder: Path) -> dict[str, Rows]:
    """The labelled image files under `folder`, in the order of their paths; folder names are the classes."""
    children = _folders(folder)
    names = {child.name for child in children}
    if ("train" in names and _folders(folder / "train")) or (names and names <= SPLIT_FOLDERS.keys()):
        named = [(SPLIT_FOLDERS[child.name], child) for child in children if child.name in SPLIT_FOLDERS]
        if len({split for split, _ in named}) < len(named):
            raise DataError(f"load: {folder} has two validation folders; keep one of {[c.name for _, c in named]}")
        return {split: _read_classes(folder, child) for split, child in named}
    return {"train": _read_classes(folder, folder)}


def _read_classes(root: Path, folder: Path) -> Rows:
    classes = _folders(folder)
    if not classes:
        raise DataError(
            f"load: {folder} should hold one folder of images per class (class/…, or train|validation|test/class/…); "
            "it holds no folder"
        )
    paths, labels = [], []
    for child in classes:
        files = sorted(
            Path(where, name).relative_to(root).as_posix()
            for where, names in _walk(child)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        )
        if not files:
            raise DataError(f"load: the class folder {child} holds no image; accepted: {' '.join(sorted(SUFFIXES))}")
        paths += files
        labels += [child.name] * len(files)
    return Rows(Files(str(root.resolve()), tuple(paths)), labels)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder from `folder` down that is not hidden, with the names of its files."""
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if _seen(name)]
        yield where, names


def _seen(name: str) -> bool:
    return not name.startswith((".", "__"))


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and _seen(child.name))
