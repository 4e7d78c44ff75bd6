"""What the extraction's process tests run in processes of their own: a tiny network on noise."""

import threading

import numpy as np
import torch
from torch import nn

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone
from head2toe.data import Split, task_from_arrays
from head2toe.extract import extract
from head2toe.images import ImagePreprocess
from head2toe.store import FeatureStore
from head2toe.taps import Pool

POOLS = (Pool(16), Pool(64))
BATCH = 8


def tiny() -> Backbone:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((3, 4), (4, 6))]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    preprocess = ImagePreprocess((8, 8), (0.5,) * 3, (0.25,) * 3, "nearest")
    return load_backbone(module, preprocess=preprocess, precision="float32")


def noise(start: int, stop: int) -> Split:
    """Images whose bytes depend on their number only."""
    images = np.stack([np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8) for i in range(stop)])
    return task_from_arrays(images, np.arange(stop) % 2).train.rows(np.arange(start, stop))


def run(location: str, start: int, stop: int, workers: int = 0, report=None) -> None:
    """Extract images start..stop; `report` is told "computed" after a pass, "stored" after a commit of one pool."""
    if report is not None:
        _tell(report)
    extract(
        tiny(), [noise(start, stop)], FeatureStore(location), POOLS, batch_size=BATCH, workers=workers, progress=False
    )


def _tell(report) -> None:
    """Only ever in a process that ends after one job: the originals are not put back."""
    lock = threading.Lock()

    def telling(method, what: str):
        def told(*args, **kwargs):
            result = method(*args, **kwargs)
            with lock:
                report.send(what)
            return result

        return told

    Backbone.forward = telling(Backbone.forward, "computed")
    FeatureStore.write = telling(FeatureStore.write, "stored")
