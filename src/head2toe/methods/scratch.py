"""Scratch: the same architecture trained from random weights, what domain affinity is measured against."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone
from head2toe.errors import BackboneError
from head2toe.head import described, picture_options
from head2toe.methods.finetune import on_last_features
from head2toe.methods.problem import Journal
from head2toe.methods.training import Training
from head2toe.methods.training.choice import Start, fit_network
from head2toe.network import Network

if TYPE_CHECKING:
    from head2toe.data import Task
    from head2toe.store import FeatureStore


def _longer() -> Training:
    return Training(lrs=(1e-2, 3e-3, 1e-3, 3e-4), steps=(800, 3200))


@dataclass(frozen=True)
class Scratch:
    """Fine-tuning without pretraining, its shortest run four times as long."""

    training: Training = field(default_factory=_longer)

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

        Raises DataError for labels that cannot be held out, BackboneError for weights that cannot be drawn anew.
        """
        model = on_last_features(untrained(backbone, self.training.seed), len(task.classes))
        start, journal = Start(model, model), journal or Journal()
        return fit_network("scratch", self, self.training, start, backbone, task, store, journal, progress=progress)


def untrained(backbone: Backbone, seed: int) -> Backbone:
    """A copy with random weights, drawn as the architecture's own code draws them.

    A module of your own is drawn anew part by part; BackboneError names the parts that have no `reset_parameters`.
    """
    networks = tuple(replace(one, module=copy.deepcopy(one.module)) for one in backbone.networks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if backbone.id.startswith("module:"):
            _reset(networks[0].module)
        else:
            fresh = load_backbone(
                backbone.id, weights=False, precision=backbone.precision, device=backbone.device,
                **picture_options(described(backbone.preprocess)),
                trust_remote_code=any(_brought(network.module) for network in networks),
            )  # fmt: skip
            for mine, drawn in zip(networks, fresh.networks, strict=True):
                mine.module.load_state_dict(drawn.module.state_dict())
    return replace(backbone, networks=networks)


def _brought(module: nn.Module) -> bool:
    """Whether a network's code came with its weights: it was trusted when the backbone was loaded."""
    return type(module).__module__.partition(".")[0] == "transformers_modules"


def _reset(module: nn.Module) -> None:
    stuck = []
    for name, part in module.named_modules():
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if reset is not None:
            reset()
        elif next(part.parameters(recurse=False), None) is not None:
            stuck.append(name or type(part).__name__)
    if stuck:
        raise BackboneError(f"scratch: these parts have no reset_parameters(): {', '.join(stuck)}; give them one")
