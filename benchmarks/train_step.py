"""One step of fine-tuning, in the network's precision and with depthwise convolutions as they are, or in float32.

python benchmarks/train_step.py --backbone efficientnet_lite0 --precision bfloat16
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from statistics import median

import numpy as np
import torch
from torch.nn import functional

from head2toe.backbones import load_backbone
from head2toe.methods.finetune import on_last_features
from head2toe.methods.training.depthwise import depthwise_in_float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model = on_last_features(
        load_backbone(arguments.backbone, precision=arguments.precision), arguments.classes
    ).train()
    (network,) = model.backbone.networks
    random = np.random.default_rng(0)
    shape = np.asarray(network.feed.example()).shape
    rows = random.integers(256, size=(arguments.batch, *shape), dtype=np.uint8)
    batch = model.backbone.collate(list(rows))
    labels = torch.from_numpy(random.integers(arguments.classes, size=arguments.batch))
    seconds: dict[str, list[float]] = {"as they are": [], "in float32": []}
    for _ in range(arguments.repeats + 1):
        for name, context in (("as they are", nullcontext()), ("in float32", depthwise_in_float32(model.backbone))):
            begun = time.perf_counter()
            with context:
                loss = functional.cross_entropy(model(batch), labels)
            model.zero_grad()
            loss.backward()
            seconds[name].append(time.perf_counter() - begun)
    plain, mixed = (median(one[1:]) for one in seconds.values())
    print(f"forward and backward, batch {arguments.batch}, {arguments.precision}: depthwise convolutions as they are")
    print(f"{plain:.2f} s, in float32 {mixed:.2f} s, {plain / mixed:.2f} times faster")


if __name__ == "__main__":
    main()
