"""Results made by hand: three tasks, five methods, numbers that tests can know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from head2toe.bench.result import Result, append_result

ACCURACY = {
    "linear": {"far": 0.2, "near": 0.81, "middle": 0.5},
    "head2toe": {"far": 0.7, "near": 0.83, "middle": 0.625},
    "finetune": {"far": 0.8, "near": 0.82, "middle": 0.6},
    "scratch": {"far": 0.15, "near": 0.3, "middle": 0.3},
    "oracle": {"far": 0.9, "near": 0.9, "middle": 0.9},
}
SECONDS = {"finetune": {"train": 300.0}, "scratch": {"train": 300.0}}
FLOPS = {"finetune": {"train": 10**12}, "scratch": {"train": 10**12}}
KEPT = {"linear": {"pool": 8}, "head2toe": {"stem": 3, "block1": 5, "pool": 2}}
BLANK = Result("packs", "far", "structured", "tiny", "linear", 0, 0.2, 0.25, 100, 50, 4, 64, 8, task_bytes=100)


def results() -> list[Result]:
    return [
        replace(
            BLANK,
            task=task,
            group="natural" if task == "near" else "structured",
            method=method,
            test_accuracy=accuracy,
            n_kept=sum(KEPT.get(method, {}).values()),
            kept=KEPT.get(method, {}),
            settings={"target_size": 64},
            seconds=SECONDS.get(method, {"load": 50.0, "extract": 2.0, "select": 1.0}),
            flops=FLOPS.get(method, {"extract": 10**9, "select": 10**6}),
            peak_bytes=10**9,
            task_bytes=20_000 if method in FLOPS else 100,
            upper_bound=method == "oracle",
        )
        for method, row in ACCURACY.items()
        for task, accuracy in row.items()
    ]


def study(name: str, series: str, accuracy: dict[str, dict[float, float]]) -> list[Result]:
    """Lines of a study: task -> x -> accuracy."""
    return [
        replace(
            BLANK, suite=name, task=task, method=f"{series} {x:g}", test_accuracy=y, settings={"series": series, "x": x}
        )
        for task, row in accuracy.items()
        for x, y in row.items()
    ]


def write(folder: Path, lines: list[Result], where: str = "results.jsonl") -> None:
    (folder / where).parent.mkdir(parents=True, exist_ok=True)
    append_result(folder / where, lines)
