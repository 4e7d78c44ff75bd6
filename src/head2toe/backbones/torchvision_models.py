"""torchvision's classification networks by name."""

from __future__ import annotations

import difflib
import warnings
from dataclasses import replace
from typing import cast

from torch import nn

from head2toe.backbones.build import Options, build, only_weights
from head2toe.backbones.core import Backbone
from head2toe.backbones.feeds import PixelFeed
from head2toe.errors import BackboneError
from head2toe.images import ImagePreprocess, Interpolation


def load_torchvision(name: str, options: Options) -> Backbone:
    """`torchvision/NAME`, with its default weights and their own preprocessing, or random weights."""
    from torchvision import models

    known = models.list_models(models)
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        raise BackboneError(
            f"torchvision/{name}: no such classification network; near names: {', '.join(near) or 'none'}"
        )
    weights = models.get_model_weights(name)["DEFAULT"]
    with warnings.catch_warnings(), only_weights():
        warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet's about its initialisation, which no one sees
        try:
            module = models.get_model(name, weights=weights if options.weights else None)
        except Exception as error:  # damaged files have no common base class
            raise BackboneError(
                f"torchvision/{name}: the weights could not be had ({error}); run once online, put {weights.url} into "
                "torch's hub folder (TORCH_HOME moves it), or list taps with random weights (--no-weights)"
            ) from error
    if name in ("googlenet", "inception_v3"):
        _without_branches(module)
    pixels = _pixels(weights.transforms(), options)
    return build(f"torchvision/{name}", f"torchvision:{name}", module, pixels, PixelFeed(pixels), options)


def _without_branches(module: nn.Module) -> None:
    """As the network is evaluated, with weights and without (which a saved network is built from)."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(module, name):
            setattr(module, name, None)
    setattr(module, "aux_logits", False)  # noqa: B010
    setattr(module, "transform_input", True)  # noqa: B010


def _pixels(transform: object, options: Options) -> ImagePreprocess:
    """The preset that comes with the weights, as our own preprocessing."""
    from torchvision.transforms._presets import ImageClassification

    assert isinstance(transform, ImageClassification)
    side, resized = transform.crop_size[0], transform.resize_size[0]
    mode = cast(Interpolation, transform.interpolation.value)
    pixels = ImagePreprocess((side, side), tuple(transform.mean), tuple(transform.std), mode, options.resize)
    if options.image_size is not None:
        pixels = replace(pixels, size=(options.image_size, options.image_size))
    return replace(pixels, crop_pct=side / resized) if options.resize == "crop" else pixels
