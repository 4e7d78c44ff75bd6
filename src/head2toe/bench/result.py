"""One measured fit: a line of `results.jsonl`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from head2toe import __version__
from head2toe.errors import DataError
from head2toe.files import alone
from head2toe.methods import NAMES

CONTROL = "control"  # the method that reads two networks
SIDE_BY_SIDE = "+"  # stands between the names of networks that are read as one
MARK = "†"
LONGEST = 150  # letters of a file's name; file systems take 255 bytes, with an ending and what is written beside it
BOUND_NOTE = f"{MARK} chosen on test images: an upper bound, no method to use."


@dataclass(frozen=True)
class Result:
    """What one method reached on one task with one backbone and seed, and what that cost.

    Accuracies lie in [0, 1]; `cv_accuracy` is what the settings were chosen by. `kept` counts kept features per tap, in
    order of depth; it is empty for a network that was trained whole. `seconds` and `flops` are per phase, seconds as
    they passed, operations counted for the training images; `peak_bytes` is memory, a GPU's included; `task_bytes` is
    what one more task costs on disk. An `upper_bound` was chosen on test images, so it is no method to ship. `packages`
    are the versions, and the machine, that it was measured with.
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
    return plain_name("--".join(map(str, result.key)))


def plain_name(name: str) -> str:
    """A name that a file or an HTML element can have; unlike names stay unlike.

    What such a name may not hold, or has no room for, is replaced, and a hash tells such names apart.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:LONGEST]
    if plain == name:
        return plain
    return f"{plain}--{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}"


def marked(method: str, upper_bounds: Collection[str]) -> str:
    """A method's name as it is shown: what was chosen on test images is marked wherever it stands."""
    return f"{method} {MARK}" if method in upper_bounds else method


def told(result: Result) -> str:
    """The test accuracy of a fit as a line tells it, with a note where the fit was chosen on those images."""
    return f"{result.test_accuracy:.4f}" + (f" {BOUND_NOTE}" if result.upper_bound else "")


def ordered(methods: Iterable[str]) -> list[str]:
    """Methods, each once, as every table shows them: in the order of `NAMES`, unknown ones after them by name."""
    return sorted(set(methods), key=lambda name: (NAMES.index(name) if name in NAMES else len(NAMES), name))


def cell_text(name: str) -> str:
    """A name in a cell of a Markdown table."""
    return name.replace("|", "\\|")


def upper_bounds(results: Iterable[Result]) -> tuple[str, ...]:
    """The methods that were chosen on test images."""
    return tuple(sorted({result.method for result in results if result.upper_bound}))


def home(result: Result) -> str:
    """The backbone beside whose other results this one stands: Control's pair stands beside its first network."""
    return result.backbone.partition(SIDE_BY_SIDE)[0] if result.method == CONTROL else result.backbone


def latest(results: Iterable[Result]) -> list[Result]:
    """One result of each key, the last: two processes that fill one folder can make the same fit."""
    return list({result.key: result for result in results}.values())


def read_results(path: Path) -> list[Result]:
    """The results of a file of JSON lines, in its order; a last line that was cut short is passed over."""
    try:
        lines = path.read_text().splitlines() if path.exists() else []
    except UnicodeDecodeError as error:
        raise DataError(f"results: {path} is damaged ({error}); restore it, or choose another --out") from error
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
    """Add lines at the end of a file of results, in place of a last line that was cut short; processes take turns."""
    lines = b"".join(json.dumps(asdict(result)).encode() + b"\n" for result in results)
    with path.open("ab+") as file, alone(file):
        file.seek(0)
        before, newline, last = file.read().rpartition(b"\n")
        if last:
            try:
                json.loads(last)
                lines = b"\n" + lines
            except ValueError:
                file.truncate(len(before + newline))
        file.write(lines)
