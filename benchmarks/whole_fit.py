"""How long does a whole fit take on a filled store, and where does the time go?

    python benchmarks/whole_fit.py packs/nlvr_count --store STORE --target-size 512
    python benchmarks/whole_fit.py packs/nlvr_count --store STORE --target-size 512 --recipe paper-head2toe --repeats 1

A fit is all that `head2toe fit` does, from the pack's files to the head in memory: load the network and the task, find
the features in the store, choose by cross-validation ("select"), fit the chosen layer ("fit"). Fits are repeated in one
process; the imports of Python's packages are timed apart, before the first. STORE is filled first where it lacks
features. `outside` is a fit's time outside of "select" and "fit", which read the features too. Last line: medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="folder of a task")
    parser.add_argument("--store", help="feature store; by default the one that head2toe itself would use")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--target-size", type=int, default=512)
    parser.add_argument("--recipe", default="head2toe", help="a method of head2toe")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    begun = time.perf_counter()
    import head2toe as h2t
    from head2toe.extract import extract
    from head2toe.methods import method_named
    from head2toe.methods.frozen import pools_of
    from head2toe.methods.problem import Journal
    from head2toe.store import default_location

    filled = extract(
        h2t.load_backbone(options.backbone),
        h2t.load_task(str(options.pack)).splits,
        h2t.FeatureStore(options.store or default_location()),
        pools_of(options.target_size),
    )
    print(f"imports, and a store with all: {time.perf_counter() - begun:.1f} s ({filled.computed} rows computed)")
    rows, accuracy = list[list[float]](), 0.0
    print("| fit | load | extract | select | fit | outside | whole |\n|---|---|---|---|---|---|---|")
    for repeat in range(options.repeats):
        begun, journal = time.perf_counter(), Journal()
        with journal.phase("load"):
            backbone, task = h2t.load_backbone(options.backbone), h2t.load_task(str(options.pack))
        method = method_named(options.recipe, target_sizes=[options.target_size])
        head = method.fit(backbone, task, options.store, journal=journal)
        accuracy = head.metrics.cv_accuracy
        whole, parts = time.perf_counter() - begun, journal.seconds
        solving = parts["select"] + parts["fit"]
        rows.append([*(parts[name] for name in ("load", "extract", "select", "fit")), whole - solving, whole])
        show(str(repeat + 1), rows[-1])
    show("median", [statistics.median(column) for column in zip(*rows, strict=True)])
    print(f"\ncross-validated accuracy {accuracy:.4f}")


def show(name: str, seconds: list[float]) -> None:
    print(f"| {name} | {' | '.join(f'{value:.2f}' for value in seconds)} |", flush=True)


if __name__ == "__main__":
    main()
