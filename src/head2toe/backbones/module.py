"""Any `nn.Module` with a preprocessing of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from head2toe.backbones.build import Options, build
from head2toe.backbones.core import Backbone, Preprocess, Run, call_module
from head2toe.backbones.feeds import ArrayFeed, PixelFeed
from head2toe.backbones.identity import describe, describe_module
from head2toe.errors import BackboneError
from head2toe.images import ImagePreprocess, decode


@dataclass(frozen=True)
class Transformed:
    """A torchvision-like transform (PIL image -> tensor or array) as preprocessing of encoded images."""

    transform: Callable[[Image.Image], object]

    def __call__(self, encoded: bytes | np.ndarray | str, /) -> np.ndarray:
        if isinstance(encoded, str):
            raise BackboneError("an image transform was given text; expected encoded bytes or an array")
        return np.asarray(self.transform(decode(encoded)))


def load_module(module: nn.Module, preprocess: Preprocess | None, run: Run | None, options: Options) -> Backbone:
    """A frozen copy of `module`; later changes of the caller's weights do not reach it.

    `preprocess` is an `ImagePreprocess`, a `Transformed(transform)`, or anything picklable that turns an encoded image
    into an array of one shape. Compiled parts run eagerly. BackboneError for scripted modules, whose inner outputs no
    hook sees, and for lazy ones, which have no weights yet.
    """
    kind = type(module)
    if preprocess is None:
        raise BackboneError(
            f"{kind.__name__}: a module of your own needs its preprocessing: load_backbone(module, preprocess="
            "ImagePreprocess(size, mean, std)) or preprocess=Transformed(your_transform)"
        )
    module = _eager(module)
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise BackboneError(f"{kind.__name__}: scripted modules hide their inner outputs; give the eager module")
    if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters()):
        raise BackboneError(f"{kind.__name__}: lazy modules have no weights yet; run it once on a batch of yours first")
    try:
        frozen = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise BackboneError(f"{kind.__name__}: the module cannot be copied ({error}); freeze it first") from error
    for part in frozen.modules():
        for name, child in part._modules.items():
            part._modules[name] = None if child is None else _eager(child)
    name, signed = f"module:{kind.__name__}", f"module:{describe_module(frozen)}"
    if run is not None:
        signed += describe(run)
    if isinstance(preprocess, ImagePreprocess):
        feed = PixelFeed(preprocess)
    else:
        feed = ArrayFeed(preprocess(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    return build(name, signed, frozen, preprocess, feed, options, run=run or call_module, repeats=True)


def _eager(module: nn.Module) -> nn.Module:
    """What torch.compile wrapped: the module that hooks can see."""
    return getattr(module, "_orig_mod", module)
