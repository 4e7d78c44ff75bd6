"""One measured fit: a line of `results.jsonl`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from head2toe import __version__
from head2toe.errors import DataError


@dataclass(frozen=True)
class Result:
    """What one method reached on one task with one backbone and seed, and what that cost.

    Accuracies lie in [0, 1]; `cv_accuracy` is what the settings were chosen by. `kept` counts kept features per tap, in
    order of depth; it is empty for a network that was trained whole. `seconds` and `flops` are per phase, seconds as
    they passed, operations counted for the training images; `peak_bytes` is memory, a GPU's included; `task_bytes` is
    what one more task costs on disk. An `upper_bound` was chosen on test images, so it is no method to ship. `packages`
    are the versions that it was measured with.
    """

    suite: str
    task: str
    group: str
    backbone: str
    method: str
    seed: int
    test_accuracy: float
    cv_accuracy: float
    n_train: int
    n_test: int
    n_classes: int
    n_features: int
    n_kept: int
    kept: dict[str, int] = field(default_factory=dict)
    settings: dict[str, float | int | str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = 0
    task_bytes: int = 0
    backbone_bytes: int = 0
    upper_bound: bool = False
    version: str = __version__
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What tells results apart: a rerun of the same key is the same experiment."""
        return self.suite, self.task, self.backbone, self.method, self.seed


def slug(result: Result) -> str:
    """The name of a result's own files: predictions/SLUG.npz and mistakes/SLUG.json."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", "--".join(map(str, result.key)))


def home(result: Result) -> str:
    """The backbone beside whose other results this one stands: Control's pair stands beside its first network."""
    return result.backbone.partition("+")[0] if result.method == "control" else result.backbone


def read_results(path: Path) -> list[Result]:
    """The results of a file of JSON lines, in its order; a last line that was cut short is passed over."""
    lines = path.read_text().splitlines() if path.exists() else []
    results = []
    for number, line in enumerate(lines, 1):
        try:
            results.append(Result(**json.loads(line)))
        except (ValueError, TypeError) as error:
            if number == len(lines) and isinstance(error, ValueError):
                break
            raise DataError(f"results: line {number} of {path} is no result ({error}); remove it") from error
    return results


def append_result(path: Path, results: Iterable[Result]) -> None:
    """Add lines at the end of a file of results, in place of a last line that was cut short."""
    whole = path.read_bytes() if path.exists() else b""
    if whole and not whole.endswith(b"\n"):
        _mend(path, whole)
    with path.open("a") as file:
        for result in results:
            file.write(json.dumps(asdict(result)) + "\n")


def _mend(path: Path, whole: bytes) -> None:
    """End the last line where it is whole, else drop it."""
    before, _, last = whole.rpartition(b"\n")
    try:
        json.loads(last)
    except ValueError:
        path.write_bytes(before + b"\n" if before else b"")
    else:
        path.write_bytes(whole + b"\n")
