"""One step of fine-tuning on a processor, forward and backward: depthwise convolutions by torch alone, and by ours.

python benchmarks/train_step.py --backbone efficientnet_lite0 --precision float32 --image-size 64
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
from head2toe.methods.training.depthwise import fast_depthwise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.backbone, precision=arguments.precision, image_size=arguments.image_size)
    model = on_last_features(backbone, arguments.classes).train()
    (network,) = model.backbone.networks
    random = np.random.default_rng(0)
    shape = np.asarray(network.feed.example()).shape
    rows = random.integers(256, size=(arguments.batch, *shape), dtype=np.uint8)
    batch = model.backbone.collate(list(rows))
    labels = torch.from_numpy(random.integers(arguments.classes, size=arguments.batch))
    seconds: dict[str, list[float]] = {"torch": [], "ours": []}
    for _ in range(arguments.repeats + 1):
        for name, context in (("torch", nullcontext()), ("ours", fast_depthwise(model.backbone))):
            begun = time.perf_counter()
            with context:
                loss = functional.cross_entropy(model(batch), labels)
            model.zero_grad()
            loss.backward()
            seconds[name].append(time.perf_counter() - begun)
    torchs, ours = (median(one[1:]) for one in seconds.values())
    print(f"{arguments.backbone}, {shape[0]} x {shape[1]}, batch {arguments.batch}, {arguments.precision}: ", end="")
    print(f"torch {torchs:.3f} s, ours {ours:.3f} s, {torchs / ours:.2f} times faster")


if __name__ == "__main__":
    main()
