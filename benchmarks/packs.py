"""Test accuracy of every method on a folder of packs: the results table of the README.

    python benchmarks/packs.py --packs ../shared/packs --out docs/results

Each pack is a folder of train, validation and test Parquet files. One JSON line per result is written as it comes; a
stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from head2toe import load_backbone, load_task
from head2toe.methods import method_named
from head2toe.methods.problem import Clock
from head2toe.present import fit_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of packs; by default all")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--methods", nargs="+", default=["head2toe", "all-l2", "linear"])
    parser.add_argument("--target-size", type=int, default=512)
    parser.add_argument("--store")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    name = args.backbone.rsplit("/", 1)[-1].removesuffix(".safetensors")
    log = args.out / f"{name}-{args.target_size}.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    backbone = None
    for pack in sorted(path.name for path in args.packs.iterdir() if not args.only or path.name in args.only):
        left = [m for m in args.methods if not any((r["pack"], r["method"]) == (pack, m) for r in done)]
        if not left:
            continue
        backbone = backbone or load_backbone(args.backbone)
        task = load_task(args.packs / pack)
        for method in left:
            clock = Clock()
            head = method_named(method, target_sizes=[args.target_size]).fit(backbone, task, args.store, clock=clock)
            done.append({"pack": pack} | asdict(fit_report(head, backbone, clock)) | {"backbone": name})
            with log.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(pack, method, f"{head.metrics.test_accuracy:.4f}", f"{head.n_kept:,}", flush=True)
    table = results_table(done, args.methods[::-1])
    (args.out / f"{name}-{args.target_size}.md").write_text(table)
    print("\n" + table)


def results_table(results: list[dict], methods: list[str]) -> str:
    """A Markdown table: a row a pack, test accuracy in per cent, and how much Head2Toe kept."""
    by = {(r["pack"], r["method"]): r for r in results}
    packs = sorted({r["pack"] for r in results})
    lines = ["| pack | " + " | ".join(methods) + " | kept |", "|---|" + "---:|" * (len(methods) + 1)]
    for pack in packs:
        cells = [f"{100 * by[pack, m]['test_accuracy']:.1f}" for m in methods]
        lines.append(f"| {pack} | " + " | ".join(cells) + f" | {by[pack, 'head2toe']['keep_fraction']:.2%} |")
    means = [sum(100 * by[pack, m]["test_accuracy"] for pack in packs) / len(packs) for m in methods]
    lines.append("| mean | " + " | ".join(f"{mean:.1f}" for mean in means) + " | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
