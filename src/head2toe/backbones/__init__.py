"""Pretrained networks: one file per family, one way to load them all."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

from head2toe.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn

    from head2toe.backbones.build import Options
    from head2toe.backbones.core import Backbone, Precision, Preprocess, Run

FAMILIES = ("efficientnet_lite0", "timm/NAME", "torchvision/NAME", "hf/ORG/NAME", "file:PATH.safetensors", "ID+ID")


def load_backbone(
    model: str | nn.Module,
    *,
    precision: Precision | None = None,
    device: str = "cpu",
    weights: bool = True,
    resize: Literal["squash", "crop"] = "squash",
    image_size: int | None = None,
    taps: str | Sequence[str] = "all",
    max_flops: float | None = None,
    preprocess: Preprocess | None = None,
    run: Run | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """The frozen network called `model`, or an nn.Module of your own (which is copied, never changed).

    `precision` defaults to bfloat16 where the hardware has it fast; `weights=False` gives random weights, to list taps
    offline; `image_size` replaces the size that the weights were trained at; `taps` is a preset ("all", "blocks",
    "paper"), a glob or a list of names and globs; `max_flops` (0..1] leaves those that a pass of this share of the
    network's operations reaches, for heads that must be quick. A module needs `preprocess`; `run(module, batch)` adapts
    one that is not simply called. BackboneError says what cannot be had.

    >>> load_backbone("efficientnet_lite0").taps[0].name
    'bn1'
    """
    from head2toe.backbones import build as make
    from head2toe.backbones import core
    from head2toe.backbones.select import cut, select

    if precision not in (None, *get_args(core.Precision)):
        raise BackboneError(f"precision '{precision}': expected one of {', '.join(get_args(core.Precision))}")
    if resize not in ("squash", "crop"):
        raise BackboneError(f"resize '{resize}': expected squash or crop")
    options = make.Options(_precision(precision, device), device, resize, image_size, weights, trust_remote_code)
    if isinstance(model, str):
        if preprocess is not None or run is not None:
            raise BackboneError(f"{model}: preprocess and run go with a module of your own, not with a name")
        parts = tuple(_load_named(name.strip(), options) for name in _names(model))
        backbone = parts[0] if len(parts) == 1 else make.side_by_side(parts)
    else:
        from head2toe.backbones.module import load_module

        if image_size is not None or resize != "squash":
            raise BackboneError("image_size and resize go with a name; a module has them in its preprocess")
        backbone = load_module(model, preprocess, run, options)
    if taps != "all":
        backbone = replace(backbone, taps=select(backbone, taps))
    return backbone if max_flops is None else replace(backbone, taps=cut(backbone, max_flops))


_ID = r"efficientnet_lite0$|efficientnet_lite0\+|timm/|torchvision/|hf/|file:"


def _names(model: str) -> list[str]:
    """The ids of `ID+ID`; a plus inside a path separates nothing."""
    return re.split(rf"\+(?={_ID})", model)


def _load_named(name: str, options: Options) -> Backbone:
    family, separator, rest = name.partition("/")
    if name == "efficientnet_lite0":
        from head2toe.backbones.timm_models import load_lite0

        return load_lite0(options)
    if name.startswith("file:"):
        from head2toe.backbones.timm_models import load_file

        return load_file(name.removeprefix("file:"), options)
    if family == "timm" and rest:
        from head2toe.backbones.timm_models import load_timm

        return load_timm(rest, options)
    if family == "torchvision" and rest:
        from head2toe.backbones.torchvision_models import load_torchvision

        return load_torchvision(rest, options)
    if family == "hf" and rest:
        from head2toe.backbones.transformers_models import load_transformers

        return load_transformers(rest, options)
    bundled = "efficientnet_lite0"
    near = [bundled] if name and name.lower() in bundled else difflib.get_close_matches(name, [bundled], 1, 0.5)
    if not separator and not near:
        near = [f"{kind}/{name}" for kind in ("timm", "torchvision") if _has(kind, name)]
    if separator:
        near = [
            f"{kind}/{rest}" for kind in difflib.get_close_matches(family.lower(), ("timm", "torchvision", "hf"), 1)
        ]
    meant = f"; did you mean '{near[0]}'?" if near else "."
    raise BackboneError(f"'{name}' is no backbone id{meant} Expected one of: {', '.join(FAMILIES)}")


def _has(family: str, name: str) -> bool:
    """Whether timm or torchvision knows an architecture of that name."""
    if family == "timm":
        import timm

        return timm.is_model(name.partition(".")[0])
    import torchvision

    return name in torchvision.models.list_models(torchvision.models)


def _precision(asked: Precision | None, device: str) -> Precision:
    import torch

    from head2toe.backbones.build import default_precision

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise BackboneError(f"device '{device}': {error}") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise BackboneError(f"device '{device}' is not here; available: {', '.join(k for k, v in there.items() if v)}")
    if asked == "float16" and kind == "cpu":
        raise BackboneError("float16 needs a GPU; on a CPU use bfloat16 or float32")
    return asked or default_precision(device)
