"""Fine-tuning: all weights trained, from the pretrained ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from head2toe.head import KeptTap
from head2toe.methods import frozen
from head2toe.methods.problem import Journal
from head2toe.methods.training import Training
from head2toe.methods.training.choice import Start, fit_network
from head2toe.network import Network, Tapped
from head2toe.taps import Pool, PooledTap

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task
    from head2toe.store import FeatureStore

SAME_SCALE = 1e-3  # what a factor of one may miss by rounding to float16


@dataclass(frozen=True)
class FineTune:
    """A copy of the network with a fresh linear layer on its last features, all of it trained.

    Batch normalisation uses batch statistics, but where all of it `is_folded` into other weights.
    """

    training: Training = field(default_factory=Training)

    def fit(
        self,
        backbone: Backbone,
        task: Task,
        store: FeatureStore | str | Path | None = None,
        *,
        journal: Journal | None = None,
        progress: bool = True,
    ) -> Network:
        """Train on the train and validation rows; beside the store waits what a killed fit left.

        Raises DataError for labels that cannot be held out, NotConvergedError where every learning rate was too high.
        """
        model = on_last_features(backbone, len(task.classes))
        start, journal = Start(model, model, frozen_statistics=is_folded(model)), journal or Journal()
        return fit_network("finetune", self, self.training, start, backbone, task, store, journal, progress=progress)


def is_folded(model: nn.Module) -> bool:
    """Whether all batch normalisations of a trained network do nothing but add: their work is in other weights.

    So it is in a network that was converted from one made for inference. The statistics of a batch would then normalise
    what the network was never trained to see normalised, and its pretrained features would be lost. An untrained
    network's normalisations do not even add.
    """
    parts = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    biases = [part.bias for part in parts if part.bias is not None and part.bias.any()]
    return bool(biases) and all(map(_only_adds, parts))


def _only_adds(part: _BatchNorm) -> bool:
    if part.running_mean is None or part.running_var is None or part.running_mean.any():
        return False
    scale = (part.running_var + part.eps).rsqrt() * (1 if part.weight is None else part.weight)
    return bool((scale - 1).abs().max() < SAME_SCALE)


def on_last_features(backbone: Backbone, n_classes: int) -> Tapped:
    """The network under a linear layer of zeros on its pre-logits (the means of maps and tokens), of several on all.

    BackboneError where the backbone was loaded without them.
    """
    names = frozen.last_features(backbone, *backbone.all_prelogits())
    taps = [PooledTap(backbone.tap(name), Pool(0)) for name in names]
    kept = [KeptTap(tap, np.arange(tap.length)) for tap in taps]
    W = np.zeros((sum(tap.length for tap in taps), n_classes), np.float32)
    return Tapped(backbone, kept, "none", W, np.zeros(n_classes, np.float32))
