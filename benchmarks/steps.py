"""What did each step towards the default recipe bring, and what does it cost?

python benchmarks/steps.py PACKS/nlvr_count PACKS/sign_digits --out steps.jsonl

A line per step and task goes to --out as it comes, and what it holds is not run again. Every step is a setting of
a method, chosen by cross-validation and then measured on the test split; the table has means over the tasks that all
steps have. Operations hold the pass over the training images, seconds do not.

  linear       the last features
  all-l2       every layer at target size 512, means and deviations, every feature kept
  means        selection by elimination at target size 512, one mean a cell
  deviations   and a standard deviation a cell
  last         and the last features alone as a candidate
  sizes        and target size 4096 as a candidate: the default
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from head2toe.backbones import load_backbone
from head2toe.data import load_task
from head2toe.head import Head
from head2toe.methods import Method
from head2toe.methods.all_features import AllFeatures
from head2toe.methods.head2toe import Head2Toe
from head2toe.methods.linear import Linear
from head2toe.methods.problem import Journal
from head2toe.methods.relevance import LADDER
from head2toe.store import FeatureStore

STEPS: Mapping[str, Method] = {
    "linear": Linear(512),
    "all-l2": AllFeatures("l2", 512),
    "means": Head2Toe(512, keep=LADDER, moments=1),  # named fractions leave the last features out
    "deviations": Head2Toe(512, keep=LADDER),
    "last": Head2Toe(512),
    "sizes": Head2Toe(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", type=Path, nargs="+", help="tasks that load_task reads, with a test split")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--store", type=Path, default=Path("features"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    backbone, store = load_backbone(args.backbone, precision="float32"), FeatureStore(args.store)
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(line["task"], line["step"]) for line in lines}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for pack in args.packs:
        task = load_task(pack)
        for step in (step for step in args.steps if (pack.name, step) not in done):
            journal = Journal()
            head = STEPS[step].fit(backbone, task, store, journal=journal, progress=False)
            assert isinstance(head, Head), "every step ends in a head"
            line = {
                "task": pack.name, "step": step, "test_accuracy": head.metrics.test_accuracy,
                "cv_accuracy": head.metrics.cv_accuracy, "n_kept": head.n_kept, "flops": sum(journal.flops.values()),
                "seconds": round(sum(journal.seconds.get(phase, 0.0) for phase in ("select", "fit")), 2),
                "bytes": head.n_bytes,
            }  # fmt: skip
            lines.append(line)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{pack.name}, {step}: {line['test_accuracy']:.4f}", flush=True)
    print(table(lines))


def table(lines: list[dict]) -> str:
    """Means over the tasks that every step has."""
    found = {(line["task"], line["step"]): line for line in lines}
    steps = [step for step in STEPS if any(step == other for _, other in found)]
    tasks = [task for task in dict.fromkeys(task for task, _ in found) if all((task, step) in found for step in steps)]
    rows = [f"| step | mean of {len(tasks)} tasks | operations | seconds | bytes |", "|---|---:|---:|---:|---:|"]
    for step in steps:
        of = [found[task, step] for task in tasks]
        mean = {name: np.mean([line[name] for line in of]) for name in ("test_accuracy", "flops", "seconds", "bytes")}
        rows.append(
            f"| {step} | {100 * mean['test_accuracy']:.1f} | {mean['flops']:.2g} | {mean['seconds']:.0f} | "
            f"{mean['bytes']:,.0f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
