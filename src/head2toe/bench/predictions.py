"""What a fitted model says of the test images: probabilities for every interval, mistakes for every reader."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from head2toe.bench.intervals import SAME
from head2toe.bench.result import Result, slug
from head2toe.errors import DataError
from head2toe.files import replacing

if TYPE_CHECKING:
    from head2toe.data import Split
    from head2toe.data.task import Item

WORST = 12  # mistakes kept of each fit
SIDE = 96  # pixels of a thumbnail's longer side
LETTERS = 200  # of a text


@dataclass(frozen=True)
class Mistake:
    """A test input that was labelled wrong: a picture's `thumbnail`, a JPEG in base64, or the beginning of a `text`."""

    name: str
    label: str
    predicted: str
    probability: float
    thumbnail: str
    text: str = ""


def worst_mistakes(test: Split, probabilities: np.ndarray, classes: tuple[str, ...]) -> list[Mistake]:
    """The wrong predictions that the model, with probabilities (n, C), is surest of, the surest first."""
    predicted = probabilities.argmax(axis=1)
    surest = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-surest[wrong], kind="stable")[:WORST]]
    return [
        Mistake(
            name=test.source.name(int(row)),
            label=classes[test.labels[row]],
            predicted=classes[predicted[row]],
            probability=float(surest[row]),
            thumbnail=_thumbnail(item),
            text=item[:LETTERS] if isinstance(item, str) else "",
        )
        for row in worst
        for item in (test.source[int(row)],)
    ]


def write_predictions(
    out: Path, result: Result, test: Split, probabilities: np.ndarray, classes: tuple[str, ...]
) -> None:
    """Write mistakes/SLUG.json and predictions/SLUG.npz.

    The arrays are probabilities (n, C) float16, labels (n,) int64, and predicted (n,) int64, which rounding would blur.
    """
    numbers = {
        "probabilities": probabilities.astype(np.float16),
        "labels": test.labels.astype(np.int64),
        "predicted": probabilities.argmax(axis=1).astype(np.int64),
    }
    mistakes = [asdict(mistake) for mistake in worst_mistakes(test, probabilities, classes)]
    with replacing(predictions_file(out, result)) as new, new.open("wb") as file:
        np.savez_compressed(file, **numbers)
    with replacing(out / "mistakes" / f"{slug(result)}.json") as new:
        new.write_text(json.dumps(mistakes))


def read_right(out: Path, result: Result) -> np.ndarray | None:
    """Which test images a result got right: (n_test,) bool; None where its predictions are not there."""
    path = predictions_file(out, result)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            right = saved["predicted"] == saved["labels"]
    except (ValueError, KeyError, EOFError, OSError, BadZipFile) as error:
        raise DataError(f"results: {path} is damaged ({error}); remove it, and its intervals are left out") from error
    return right if len(right) == result.n_test and abs(right.mean() - result.test_accuracy) < SAME else None


def predictions_file(out: Path, result: Result) -> Path:
    return out / "predictions" / f"{slug(result)}.npz"


def _thumbnail(item: Item) -> str:
    """A small JPEG in base64; empty for what is no picture."""
    from head2toe.images import decode

    if isinstance(item, str):
        return ""
    try:
        image = decode(item)
    except DataError:
        return ""
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode()
