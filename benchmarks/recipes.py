"""What would make a head more accurate, with the network still frozen and one linear layer a head?

python benchmarks/recipes.py PACKS/nlvr_top_xpos PACKS/sign_digits --out recipes.jsonl

Each variant changes one thing about the recipe at one target size and is judged by the same cross-validation, with
selection repeated inside every fold: nothing here looks at a test image. A line per variant and task goes to --out as
it comes, and what it holds is not run again; the table has every variant's difference from the recipe it changes.

  size-T          target size T alone;  sizes-A-B  both in one ranking
  grid            exact cells that cover the whole map, in place of the published windows
  max, deviation  every cell's maximum, or standard deviation, beside its mean;  max-deviation  both
  deviation-4096  means and deviations at target size 4096
  means-4096-deviation  means at target size 4096, deviations at the base size
  energy  means weighted by how strongly
                  a place is activated (attention without parameters)
  attention       means weighted by a softmax over places, its query one vector a block of the network, learned with a
                  linear layer on the block's map of at most 5 x 5 places, beside the means
  flip-mean       features of the picture and its mirror image averaged;  flip-rows  mirror images as more rows
  shift-rows      copies shifted by an eighth of the picture as more rows
  unit, raw       taps scaled after selection as published, or not at all, in place of before
  tap-deviation   features centred and divided by one deviation a tap, in place of each by its own
  stable          one ranking by scores averaged over folds;  layers  whole taps ranked
  layers-half     taps first: those half of them whose features score best on average, then features
  products        the pairwise products of the 48 best features beside all
  kernel          a support vector machine with a Gaussian kernel on what the best keep fraction keeps, in place of the
                  linear layer: what linear leaves on the table, not a head
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone, Batch
from head2toe.backbones.select import select
from head2toe.data import Task, load_task
from head2toe.data.prepare import prepared
from head2toe.data.task import joined
from head2toe.methods import design as designs
from head2toe.methods.design import Inputs, Scale, design_of
from head2toe.methods.head2toe import Head2Toe
from head2toe.methods.problem import Journal, Problem, fold_of, training_splits
from head2toe.methods.relevance import relevance
from head2toe.methods.scores import Evidence
from head2toe.selection import ranking
from head2toe.store import FeatureStore
from head2toe.table import FeatureTable
from head2toe.taps import Pool, PooledTap, Tap

SIZES = (512, 4096, 16384)
BATCH = 32
PLACES = 5  # a side of the maps that attention looks at
STEPS = 40  # of Adam on all rows, for a query
Blocks = dict[str, list[np.ndarray]]  # by statistic, one (n, length) float16 a tap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--base", type=int, default=512, help="target size of the recipe that variants change")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    done = {(line["task"], line["variant"], line["base"], line["seed"]) for line in lines}
    backbone = load_backbone(options.backbone, image_size=options.image_size)
    for pack in options.packs:
        features = Features(backbone, load_task(pack), options.base, options.seed)
        for variant in options.variants:
            if (pack.name, variant, options.base, options.seed) in done:
                continue
            start = time.perf_counter()
            found = VARIANTS[variant](features)
            line = {
                "task": pack.name, "variant": variant, "base": options.base, "seed": options.seed,
                "cv_accuracy": found.accuracy, "n_features": found.n_features, "n_kept": found.n_kept,
                "seconds": round(time.perf_counter() - start, 1),
            }  # fmt: skip
            lines.append(line)
            print(json.dumps(line), flush=True)
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    _print([line for line in lines if (line["base"], line["seed"]) == (options.base, options.seed)])


@dataclass(frozen=True)
class Found:
    """Cross-validated accuracy of one variant, how many features it had and kept."""

    accuracy: float
    n_features: int
    n_kept: int


@dataclass(frozen=True, eq=False)
class Given(Problem):
    """A problem whose features are in memory; `labels` and `folds` may be of more rows than the task has."""

    given: FeatureTable | None = None

    def table(self, pool: Pool) -> FeatureTable:
        assert self.given is not None
        return self.given


class Features:
    """Pooled outputs of one task's train and validation pictures, computed when first asked for."""

    def __init__(self, backbone: Backbone, task: Task, base: int, seed: int) -> None:
        self.backbone, self.task, self.base = backbone, task, base
        self.split = joined(training_splits(task))
        self.folds = fold_of(task, self.split.labels, 5, seed)
        self.statistics = {
            **{f"mean-{size}": _mean(Pool(size)) for size in {*SIZES, base}},
            "grid": _mean(Pool(base, "grid")), "max": _of_maps(base, functional.adaptive_max_pool2d),
            "deviation": _of_maps(base, _deviation), "deviation-4096": _of_maps(4096, _deviation),
            "energy": _of_maps(base, _energy), "map": _map,
        }  # fmt: skip
        self._passes: dict[str, Blocks] = {}

    def of(self, statistic: str, view: str = "as-is") -> list[np.ndarray]:
        """One (n, length) float16 a tap of a statistic, over pictures as they are, mirrored or shifted."""
        if statistic not in self._passes.get(view, {}):
            cheap = ["grid", "max", "deviation", "energy", f"mean-{self.base}"]
            wanted = cheap if view == "as-is" and statistic in cheap else [statistic]
            self._passes.setdefault(view, {}).update(_one_pass(self, wanted, VIEWS[view]))
        return self._passes[view][statistic]

    def table(self, *statistics: str) -> FeatureTable:
        """Several statistics side by side, each a tap of its own."""
        return _table(self.backbone, {statistic: self.of(statistic) for statistic in statistics})

    def judged(self, table: FeatureTable, recipe: Head2Toe | None = None, copies: int = 1) -> Found:
        """A recipe's cross-validated accuracy on a table whose rows are `copies` of the task's, one after the other."""
        problem = Given(
            self.backbone, self.task, cast("FeatureStore", None), tuple(tap.name for tap in table.taps),
            np.tile(self.split.labels, copies), np.tile(self.folds, copies), False, table,
        )  # fmt: skip
        outcome = (recipe or Head2Toe(self.base)).choose(problem, Journal())
        return Found(outcome.cv_accuracy, table.n_features, len(outcome.index))


def _one_pass(features: Features, wanted: Sequence[str], view: Callable[[Tensor], Tensor]) -> Blocks:
    backbone, n = features.backbone, features.split.n_rows
    taps = [tap.name for tap in backbone.taps]

    def reduce(tap: Tap, output: Tensor, mask: Tensor | None) -> dict[str, np.ndarray]:
        return {name: features.statistics[name](output, tap).half().numpy() for name in wanted}

    batches = [range(start, min(start + BATCH, n)) for start in range(0, n, BATCH)]
    parts: list[dict[str, dict[str, np.ndarray]]] = []
    with prepared(backbone.preprocess, features.split.source, batches, workers=1) as ready:
        for rows in ready:
            (batch,) = backbone.collate(rows)
            seen = Batch(tuple(view(one) for one in batch.args), batch.kwargs, batch.mask)
            parts.append(backbone.forward((seen,), taps, reduce))
    return {name: [np.concatenate([part[tap][name] for part in parts]) for tap in taps] for name in wanted}


VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "as-is": lambda pixels: pixels,
    "mirrored": lambda pixels: pixels.flip(-1),
    "left": lambda pixels: _shifted(pixels, -1, 0),
    "right": lambda pixels: _shifted(pixels, 1, 0),
    "up": lambda pixels: _shifted(pixels, 0, -1),
    "down": lambda pixels: _shifted(pixels, 0, 1),
}


def _shifted(pixels: Tensor, across: int, down: int) -> Tensor:
    """Moved by an eighth of the picture, its edge repeated."""
    height, width = pixels.shape[-2] // 8, pixels.shape[-1] // 8
    padded = functional.pad(pixels, (width, width, height, height), mode="replicate")
    top, left = height * (1 - down), width * (1 - across)
    moved = padded[..., top : top + pixels.shape[-2], left : left + pixels.shape[-1]]
    return moved.contiguous(memory_format=torch.channels_last)


def _mean(pool: Pool) -> Callable[[Tensor, Tap], Tensor]:
    return lambda output, tap: pool(output, tap)


def _cells(output: Tensor, tap: Tap, target_size: int) -> tuple[Tensor, tuple[int, int]]:
    """The map (n, C, H, W) float32 and how many cells of it are about `target_size` numbers."""
    image = output.permute(0, 3, 1, 2) if tap.layout == "NHWC" else output
    side = max(1, int((target_size // tap.channels) ** 0.5))
    return image.float(), (min(side, image.shape[2]), min(side, image.shape[3]))


def _of_maps(target_size: int, of: Callable[[Tensor, tuple[int, int]], Tensor]) -> Callable[[Tensor, Tap], Tensor]:
    """A statistic of a map's cells; what is no map has none."""

    def pooled(output: Tensor, tap: Tap) -> Tensor:
        if len(tap.shape) != 3:
            return output.float().flatten(1)[:, :0]
        return of(*_cells(output, tap, target_size)).flatten(1)

    return pooled


def _deviation(image: Tensor, cells: tuple[int, int]) -> Tensor:
    mean = functional.adaptive_avg_pool2d(image, cells)
    return (functional.adaptive_avg_pool2d(image.square(), cells) - mean.square()).clamp_min(0).sqrt()


def _energy(image: Tensor, cells: tuple[int, int]) -> Tensor:
    weight = image.square().mean(1, keepdim=True)
    total = functional.adaptive_avg_pool2d(weight, cells).clamp_min(1e-6)
    return functional.adaptive_avg_pool2d(image * weight, cells) / total


def _map(output: Tensor, tap: Tap) -> Tensor:
    """The map at no more than PLACES x PLACES places, (n, C P)."""
    if len(tap.shape) != 3:
        return output.float().flatten(1)[:, :0]
    image, _ = _cells(output, tap, 1)
    height, width = image.shape[2:]
    return functional.adaptive_avg_pool2d(image, (min(PLACES, height), min(PLACES, width))).flatten(1)


def _table(backbone: Backbone, statistics: Mapping[str, Sequence[np.ndarray]]) -> FeatureTable:
    taps, blocks = [], []
    for at, (statistic, arrays) in enumerate(statistics.items()):
        for tap, block in zip(backbone.taps, arrays, strict=True):
            if block.shape[1]:  # the first statistic keeps the names, so that the last features are found
                name = tap.name if at == 0 else f"{tap.name}/{statistic}"
                taps.append(PooledTap(Tap(name, (block.shape[1],), "NC"), Pool()))
                blocks.append(block)
    ids = tuple(str(row) for row in range(len(blocks[0])))
    return FeatureTable(ids, tuple(taps), tuple(blocks))


def _size(size: int) -> Callable[[Features], Found]:
    return lambda features: features.judged(features.table(f"mean-{size}"))


def _beside(statistic: str) -> Callable[[Features], Found]:
    return lambda features: features.judged(features.table(f"mean-{features.base}", statistic))


def _with(**changed: str) -> Callable[[Features], Found]:
    def run(features: Features) -> Found:
        recipe = replace(Head2Toe(features.base), **changed)
        return features.judged(features.table(f"mean-{features.base}"), recipe)

    return run


def _tap_deviation(features: Features) -> Found:
    with mock.patch.object(designs, "_standardised", _centred):
        return features.judged(features.table(f"mean-{features.base}"))


def _centred(values: np.ndarray) -> Inputs:
    """A tap's features (n, k) float32 with zero means and, all of them together, unit deviation."""
    mean = values.mean(axis=0, dtype=np.float64)
    centred = values - mean.astype(np.float32)
    deviation = np.sqrt(np.mean(np.square(centred), dtype=np.float64))
    inverse = 1 / deviation if deviation else 0.0
    return Inputs(centred * np.float32(inverse), Scale(mean, np.full(len(mean), inverse)))


def _flip_mean(features: Features) -> Found:
    pairs = zip(_base(features), _base(features, "mirrored"), strict=True)
    return features.judged(_table(features.backbone, {"mean": [(a + b) / np.float16(2) for a, b in pairs]}))


def _more_rows(*views: str) -> Callable[[Features], Found]:
    """Copies are trained on and judged like their originals, always in the same fold."""

    def run(features: Features) -> Found:
        arrays = zip(*(_base(features, view) for view in ("as-is", *views)), strict=True)
        table = _table(features.backbone, {"mean": [np.concatenate(one) for one in arrays]})
        return features.judged(table, copies=1 + len(views))

    return run


def _base(features: Features, view: str = "as-is") -> list[np.ndarray]:
    return features.of(f"mean-{features.base}", view)


def _in_folds(features: Features, table_of: Callable[[np.ndarray], FeatureTable]) -> Found:
    """A table of its own for each fold, made without the rows (n,) bool that it holds out."""
    right, kept, n_features = 0.0, 0, 0
    for fold in range(5):
        held_out = features.folds == fold
        table = table_of(held_out)
        only = Given(
            features.backbone, features.task, cast("FeatureStore", None), tuple(tap.name for tap in table.taps),
            features.split.labels, np.where(held_out, 0, -1), False, table,
        )  # fmt: skip
        outcome = Head2Toe(features.base).choose(only, Journal())  # keep fraction chosen in each fold: a bit too good
        right += outcome.cv_accuracy * held_out.sum()
        kept, n_features = max(kept, len(outcome.index)), table.n_features
    return Found(right / len(features.folds), n_features, kept)


def _scores(features: Features, table: FeatureTable, held_out: np.ndarray) -> np.ndarray:
    design, labels = design_of(table), features.split.labels
    evidence = Evidence(design, design.gram(), labels, len(features.task.classes), held_out, 0)
    return relevance(evidence, "l2")


def _layers_first(features: Features) -> Found:
    whole = features.table(f"mean-{features.base}")

    def table_of(held_out: np.ndarray) -> FeatureTable:
        parts = np.split(_scores(features, whole, held_out), whole.offsets[1:-1])
        order = np.argsort([-part.mean() for part in parts])[: (len(parts) + 1) // 2]
        names = [tap.name for tap in whole.taps]
        last = names.index(features.backbone.prelogits)
        chosen = sorted({*order.tolist(), last})
        return FeatureTable(whole.ids, tuple(whole.taps[i] for i in chosen), tuple(whole.blocks[i] for i in chosen))

    return _in_folds(features, table_of)


def _attention(features: Features) -> Found:
    """Queries are learned on the rows that a fold trains on."""
    whole, maps = features.table(f"mean-{features.base}"), features.of("map")
    labels, ends = torch.from_numpy(features.split.labels), select(features.backbone, "blocks")

    def table_of(held_out: np.ndarray) -> FeatureTable:
        taps, blocks = list(whole.taps), list(whole.blocks)
        for tap, values in zip(features.backbone.taps, maps, strict=True):
            if values.shape[1] and tap in ends:
                places = torch.from_numpy(values).view(len(values), tap.channels, -1)
                pooled = _attended(places.float(), labels, torch.from_numpy(~held_out), len(features.task.classes))
                taps.append(PooledTap(Tap(f"{tap.name}/attention", (tap.channels,), "NC"), Pool()))
                blocks.append(pooled.half().numpy())
        return FeatureTable(whole.ids, tuple(taps), tuple(blocks))

    return _in_folds(features, table_of)


def _attended(places: Tensor, labels: Tensor, train: Tensor, n_classes: int) -> Tensor:
    """Maps (n, C, P) averaged by learned attention (n, C)."""
    scale = places[train].std(dim=(0, 2), keepdim=True).clamp_min(1e-6)
    seen = (places - places[train].mean(dim=(0, 2), keepdim=True)) / scale
    channels = places.shape[1]
    torch.manual_seed(0)
    query, layer = torch.zeros(channels, requires_grad=True), torch.nn.Linear(channels, n_classes)

    def pooled(of: Tensor) -> Tensor:
        weight = torch.einsum("ncp,c->np", of, query / channels**0.5).softmax(dim=1)
        return torch.einsum("ncp,np->nc", of, weight)

    optimiser = torch.optim.AdamW([query, *layer.parameters()], lr=0.01, weight_decay=0.01)
    for _ in range(STEPS):
        loss = functional.cross_entropy(layer(pooled(seen[train])), labels[train])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return pooled(seen).detach()


def _products(features: Features, n: int = 48) -> Found:
    whole = features.table(f"mean-{features.base}")
    design = design_of(whole)

    def table_of(held_out: np.ndarray) -> FeatureTable:
        best = design.features(np.sort(ranking(_scores(features, whole, held_out))[:n]))
        a, b = np.triu_indices(n)
        products = (best[:, a] * best[:, b]).astype(np.float16)
        tap = PooledTap(Tap("products", (products.shape[1],), "NC"), Pool())
        return FeatureTable(whole.ids, (*whole.taps, tap), (*whole.blocks, products))

    return _in_folds(features, table_of)


def _kernel(features: Features) -> Found:
    from sklearn.svm import SVC

    design, labels = design_of(features.table(f"mean-{features.base}")), features.split.labels
    recipe, classes = Head2Toe(features.base), len(features.task.classes)
    counts = recipe.counts(design.n_features)
    grid = [(count, gamma, C) for count in counts for gamma in (0.25, 1.0) for C in (1.0, 10.0)]
    right, whole = np.zeros(len(grid)), design.gram()
    for out in (features.folds == fold for fold in range(5)):
        evidence = Evidence(design, whole, labels, classes, out, 0)
        found = {len(kept.index): kept.gram for kept in recipe.sets(evidence, sorted(set(counts)))}
        for at, (count, gamma, C) in enumerate(grid):
            norms = np.diag(found[count])
            K = np.exp(-gamma * (norms[:, None] + norms[None] - 2 * found[count]) / (2 * norms.mean()))
            machine = SVC(C=C, kernel="precomputed").fit(K[np.ix_(~out, ~out)], labels[~out])
            right[at] += (machine.predict(K[np.ix_(out, ~out)]) == labels[out]).sum()
    best = int(right.argmax())
    return Found(float(right[best]) / len(labels), design.n_features, grid[best][0])


def _sizes(*sizes: int) -> Callable[[Features], Found]:
    return lambda features: features.judged(features.table(*(f"mean-{size}" for size in sizes)))


VARIANTS: Mapping[str, Callable[[Features], Found]] = {
    "size-512": _size(512), "size-4096": _size(4096), "size-16384": _size(16384), "sizes-512-4096": _sizes(512, 4096),
    "grid": lambda features: features.judged(features.table("grid")),
    "max": _beside("max"), "deviation": _beside("deviation"), "energy": _beside("energy"),
    "max-deviation": lambda features: features.judged(features.table(f"mean-{features.base}", "max", "deviation")),
    "deviation-4096": lambda features: features.judged(features.table("mean-4096", "deviation-4096")),
    "means-4096-deviation": lambda features: features.judged(features.table("mean-4096", "deviation")),
    "flip-mean": _flip_mean, "flip-rows": _more_rows("mirrored"),
    "shift-rows": _more_rows("left", "right", "up", "down"),
    "tap-deviation": _tap_deviation, "unit": _with(scaling="kept"), "raw": _with(scaling="none"),
    "stable": _with(criterion="stable"), "layers": _with(criterion="layer"), "layers-half": _layers_first,
    "products": _products, "kernel": _kernel, "attention": _attention,
}  # fmt: skip


def _print(lines: Sequence[dict]) -> None:
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    at = {(line["task"], line["variant"]): line for line in lines}
    base = f"size-{lines[0]['base']}" if lines else ""
    print(f"\n{'variant':16}" + "".join(f"{task[:14]:>16}" for task in tasks) + f"{'mean':>9}{'seconds':>9}")
    for variant in dict.fromkeys(line["variant"] for line in lines):
        found = [at.get((task, variant)) for task in tasks]
        print(f"{variant:16}" + "".join(_cells_of(found, at, tasks, base, variant)))


def _cells_of(
    found: Sequence[dict | None], at: Mapping, tasks: Sequence[str], base: str, variant: str
) -> Iterator[str]:
    gains, seconds = [], []
    for task, line in zip(tasks, found, strict=True):
        of = at.get((task, base))
        if line is None:
            yield f"{'-':>16}"
            continue
        seconds.append(line["seconds"])
        if of is None or variant == base:
            yield f"{100 * line['cv_accuracy']:16.1f}"
        else:
            gains.append(100 * (line["cv_accuracy"] - of["cv_accuracy"]))
            yield f"{gains[-1]:+16.1f}"
    yield f"{np.mean(gains):+9.1f}" if gains else f"{'':9}"
    yield f"{np.mean(seconds):9.1f}" if seconds else ""


if __name__ == "__main__":
    main()
