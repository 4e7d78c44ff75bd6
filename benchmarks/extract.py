"""How near is an extraction to the bare network?

python benchmarks/extract.py --packs PACKS --weights WEIGHTS --thingsvision OTHER/bin/python --peak 250 1000 \
    --out extract.json

One table per run, all of it from the same images, precision and layout, in images per second:
  bare      the network's forward alone, as its library runs it
  folded    the same with normalisations in their convolutions, as every frozen pass here runs
  pooled    that with every tap pooled inside its hook, in one process
  kept      the same job done with ordinary hooks that keep the full maps and pool them after the pass
  copies    decoded pictures to pooled taps, passed as an extraction passes them; the goal is 0.95 of bare
  decode    JPEG to pixels alone, in as many processes as `extract` starts
  end       JPEG files to committed store; the goal is 0.90 of min(bare, decode)
  things    the same with thingsvision, from JPEG to numpy files of means; --thingsvision names a Python that has it
Bare, folded, pooled and kept take turns batch by batch, so that a noisy machine slows all of them alike; every ratio is
the median over turns. So do bare, copies, decode, end and things, in --rounds over all images. --peak prints the peak
memory of an extraction by the first network in a fresh process, for two numbers of images: it should not grow.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone
from head2toe.bench.memory import peak_bytes
from head2toe.data import Split, load_task
from head2toe.data.prepare import prepared
from head2toe.data.sources import Memory
from head2toe.data.task import Item, item_id, joined
from head2toe.extract import extract, view_of
from head2toe.extract.jobs import Job, distinct
from head2toe.extract.passes import computed
from head2toe.methods.frozen import pools_of
from head2toe.store import FeatureStore
from head2toe.taps import Pool, Tap


@dataclass(frozen=True)
class Result:
    backbone: str
    precision: str
    n_taps: int
    n_images: int
    bare: float
    folded: float
    pooled: float
    kept: float
    copies: float
    decode: float
    end: float
    things: float | None
    folded_of_bare: float
    pooled_of_bare: float
    pooled_of_folded: float
    kept_of_bare: float
    copies_of_bare: float
    end_of_bare_bound: float
    end_of_folded_bound: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pack", default="caltech101")
    parser.add_argument("--backbones", nargs="+", default=["efficientnet_lite0", "mobilenetv2_a", "resnet50"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--target-size", type=int, default=512)
    parser.add_argument("--moments", type=int, default=2, choices=(1, 2), help="means alone, or deviations too")
    parser.add_argument("--thingsvision", help="a Python that has thingsvision")
    parser.add_argument("--peak", nargs=2, type=int, metavar="N", help="images of the two memory measurements")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train = joined(load_task(options.packs / options.pack).splits)
    ids = [_id(name, options.weights) for name in options.backbones]
    if options.peak_of:
        _extract(load_backbone(ids[0]), _first(train, options.peak_of), options)
        copies = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(peak_bytes() / 2**20, copies)  # not this process's ru_maxrss, which holds that of the one it came from
        return
    results = [_measure(name, load_backbone(name), _first(train, options.images), options) for name in ids]
    _print(results)
    peaks = {n: _peak(n) for n in options.peak or ()}
    for n, (own, copy) in peaks.items():
        print(f"peak memory with {n:,} images: {own:,.0f} MB, of the largest copy {copy:,.0f} MB, the network included")
    if options.out:
        found = {"argv": sys.argv, "results": [asdict(r) for r in results], "peak_mb": peaks}
        options.out.write_text(json.dumps(found, indent=1))


def _measure(name: str, backbone: Backbone, split: Split, options: argparse.Namespace) -> Result:
    (pool,) = pools_of(options.target_size, options.moments)
    rows = [backbone.preprocess(split.source[row]) for row in range(options.batch_size)]
    batch, names = backbone.collate(rows), [tap.name for tap in backbone.taps]
    turns = {
        "bare": lambda: _bare(backbone, batch),
        "folded": lambda: backbone.forward(batch, names[-1:], lambda tap, output, mask: output),
        "pooled": lambda: backbone.forward(batch, names, lambda tap, output, mask: pool(output, tap, mask)),
        "kept": lambda: _kept(backbone, batch, names, pool),
    }
    seconds = _take_turns(turns, options.turns)
    jobs = {
        "bare": lambda: split.n_rows / options.batch_size * statistics.median(_take_turns({"": turns["bare"]}, 4)[""]),
        "decode": lambda: _seconds(lambda: _decode(backbone, split, options.batch_size, options.threads)),
        "copies": lambda: _seconds(lambda: _pass(backbone, rows, split.n_rows, pool)),
        "end": lambda: _seconds(lambda: _extract(backbone, split, options)),
    }
    if options.thingsvision:
        jobs["things"] = lambda: _thingsvision(backbone, name, split, options, max(1, options.threads // 2))
    rounds = [{kind: split.n_rows / job() for kind, job in jobs.items()} for _ in range(options.rounds)]
    speed = {kind: statistics.median(one[kind] for one in rounds) for kind in jobs}
    speed |= {kind: options.batch_size / statistics.median(times) for kind, times in seconds.items()}

    def ratio(kind: str, of: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[of], seconds[kind], strict=True))

    faster = ratio("folded", "bare")
    return Result(
        name, backbone.precision, len(names), split.n_rows, speed["bare"], speed["folded"], speed["pooled"],
        speed["kept"], speed["copies"], speed["decode"], speed["end"], speed.get("things"), faster,
        ratio("pooled", "bare"), ratio("pooled", "folded"), ratio("kept", "bare"),
        statistics.median(one["copies"] / one["bare"] for one in rounds),
        statistics.median(one["end"] / min(one["bare"], one["decode"]) for one in rounds),
        statistics.median(one["end"] / min(one["bare"] * faster, one["decode"]) for one in rounds),
    )  # fmt: skip


def _bare(backbone: Backbone, batch: tuple) -> None:
    network = backbone.networks[0]
    autocast = torch.autocast(backbone.device, torch.bfloat16, enabled=backbone.precision == "bfloat16")
    with torch.inference_mode(), autocast:
        network.run(network.module, batch[0])


def _kept(backbone: Backbone, batch: tuple, names: Sequence[str], pool: Pool) -> list[torch.Tensor]:
    """What hooks around timm do: keep every map to the end of the pass, then pool in float32."""
    maps: list[tuple[Tap, torch.Tensor]] = []
    backbone.forward(batch, names, lambda tap, output, mask: maps.append((tap, output.float())))
    return [pool(output, tap) for tap, output in maps]


def _decode(backbone: Backbone, split: Split, size: int, workers: int) -> None:
    batches = [range(start, min(start + size, split.n_rows)) for start in range(0, split.n_rows, size)]
    with prepared(backbone.preprocess, split.source, batches, workers=workers) as ready:
        for _ in ready:
            pass


def _pass(backbone: Backbone, rows: Sequence[np.ndarray], n: int, pool: Pool) -> None:
    """The passes of an extraction of n pictures that are decoded already; nothing is stored."""
    pictures = [rows[row % len(rows)].copy() for row in range(n)]
    for row, picture in enumerate(pictures):  # each an input of its own
        picture.flat[:3] = row % 256, row // 256 % 256, row // 65536
    ids = tuple(map(item_id, pictures))
    split = Split(ids, np.zeros(n, np.int64), Memory(pictures, "decoded"))
    jobs = list(Job(((view_of(backbone, pool), backbone.taps),), ids).batches(len(rows)))
    with computed(replace(backbone, preprocess=_decoded), distinct([split]), jobs, None) as ready:
        for _ in ready:
            pass


def _decoded(row: Item) -> np.ndarray:
    return np.asarray(row)


def _extract(backbone: Backbone, split: Split, options: argparse.Namespace) -> None:
    pools = pools_of(options.target_size, options.moments)
    with tempfile.TemporaryDirectory() as folder:
        extract(backbone, [split], FeatureStore(folder), pools, batch_size=options.batch_size)


def _thingsvision(backbone: Backbone, name: str, split: Split, options: argparse.Namespace, workers: int) -> float:
    """Seconds that thingsvision takes for the same images and the modules whose outputs are our taps."""
    network, card = backbone.networks[0], {"architecture": "tf_efficientnet_lite0"}
    if name.startswith("file:"):
        card = json.loads(Path(name.removeprefix("file:")).with_suffix(".json").read_text())
    modules = dict.fromkeys(site.module for site in network.sites if site.side == "output" and site.module)
    with tempfile.TemporaryDirectory() as folder:
        for row in range(split.n_rows):
            (Path(folder) / f"{row:06d}").write_bytes(_encoded(split.source[row]))
        asked = {
            "folder": folder, "architecture": card["architecture"], "precision": backbone.precision,
            "model-args": json.dumps(card.get("model_args", {})), "target-size": options.target_size,
            "batch-size": options.batch_size, "workers": workers, "threads": options.threads,
        }  # fmt: skip
        words = [word for option, value in asked.items() for word in (f"--{option}", str(value))]
        script = str(Path(__file__).with_name("thingsvision_job.py"))
        command = [options.thingsvision, "-W", "ignore", script, *words, "--modules", *modules]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return split.n_rows / float(told.splitlines()[-1])


def _encoded(item: Item) -> bytes:
    if not isinstance(item, bytes):
        raise SystemExit(f"extract: --thingsvision needs pictures in files, this pack holds {type(item).__name__}")
    return item


def _take_turns(turns: dict[str, Callable[[], object]], n: int) -> dict[str, list[float]]:
    for run in turns.values():
        run()
    seconds: dict[str, list[float]] = {kind: [] for kind in turns}
    for _ in range(n):
        for kind, run in turns.items():
            seconds[kind].append(_seconds(run))
    return seconds


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _peak(n: int) -> list[float]:
    """Peak resident memory in MB of a process that extracts n images, and of the largest one that it started."""
    command = [sys.executable, *sys.argv, "--peak-of", str(n)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(number) for number in printed.split()]


def _first(split: Split, n: int) -> Split:
    """The first n images, or all where there are fewer."""
    return split.rows(np.arange(min(n, split.n_rows)))


def _id(name: str, weights: Path | None) -> str:
    if weights is not None and (path := weights / f"{name}.safetensors").is_file():
        return f"file:{path}"
    return name


def _print(results: Sequence[Result]) -> None:
    columns = ("bare", "folded", "pooled", "kept", "copies", "decode", "end", "things")
    ratios = {
        "folded/bare": "folded_of_bare", "pooled/bare": "pooled_of_bare", "pooled/folded": "pooled_of_folded",
        "kept/bare": "kept_of_bare", "copies/bare": "copies_of_bare", "end/bound": "end_of_bare_bound",
        "with folded": "end_of_folded_bound",
    }  # fmt: skip
    print(f"{'backbone':24}{'taps':>5}" + "".join(f"{column:>9}" for column in columns), end="")
    print("".join(f"{ratio:>15}" for ratio in ratios))
    for r in results:
        print(f"{Path(r.backbone).stem:24}{r.n_taps:5}" + "".join(_cell(getattr(r, c)) for c in columns), end="")
        print("".join(f"{getattr(r, ratio):15.2f}" for ratio in ratios.values()))


def _cell(speed: float | None) -> str:
    return f"{'-':>9}" if speed is None else f"{speed:9.1f}"


if __name__ == "__main__":
    main()
