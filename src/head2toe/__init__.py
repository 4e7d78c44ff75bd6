"""Transfer learning from all layers of a frozen network.

Every public name is imported on first use, so that `import head2toe` loads neither torch nor Lance.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "AllFeatures": "methods.all_features",
    "Backbone": "backbones.core",
    "Control": "methods.linear",
    "FeatureStore": "store",
    "FeatureTable": "table",
    "FineTune": "methods.finetune",
    "Head": "head",
    "Head2Toe": "methods.head2toe",
    "Head2ToeError": "errors",
    "Head2ToeFT": "methods.head2toe_ft",
    "Linear": "methods.linear",
    "Network": "network",
    "Oracle": "methods.oracle",
    "Paper": "methods.paper",
    "Pool": "taps",
    "Scratch": "methods.scratch",
    "Tap": "taps",
    "Task": "data",
    "Training": "methods.training",
    "load_backbone": "backbones",
    "load_head": "head",
    "load_model": "network",
    "load_task": "data",
    "relevance_scores": "methods.relevance",
    "task_from_arrays": "data",
}

if TYPE_CHECKING:
    from head2toe.backbones import load_backbone
    from head2toe.backbones.core import Backbone
    from head2toe.data import Task, load_task, task_from_arrays
    from head2toe.errors import Head2ToeError
    from head2toe.head import Head, load_head
    from head2toe.methods.all_features import AllFeatures
    from head2toe.methods.finetune import FineTune
    from head2toe.methods.head2toe import Head2Toe
    from head2toe.methods.head2toe_ft import Head2ToeFT
    from head2toe.methods.linear import Control, Linear
    from head2toe.methods.oracle import Oracle
    from head2toe.methods.paper import Paper
    from head2toe.methods.relevance import relevance_scores
    from head2toe.methods.scratch import Scratch
    from head2toe.methods.training import Training
    from head2toe.network import Network, load_model
    from head2toe.store import FeatureStore
    from head2toe.table import FeatureTable
    from head2toe.taps import Pool, Tap

__all__ = [
    "AllFeatures",
    "Backbone",
    "Control",
    "FeatureStore",
    "FeatureTable",
    "FineTune",
    "Head",
    "Head2Toe",
    "Head2ToeError",
    "Head2ToeFT",
    "Linear",
    "Network",
    "Oracle",
    "Paper",
    "Pool",
    "Scratch",
    "Tap",
    "Task",
    "Training",
    "__version__",
    "load_backbone",
    "load_head",
    "load_model",
    "load_task",
    "relevance_scores",
    "task_from_arrays",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'head2toe' has no attribute '{name}'")
    return getattr(import_module(f"head2toe.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
