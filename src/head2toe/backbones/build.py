"""From a module to a backbone: freeze, fingerprint, find the taps."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from head2toe import images
from head2toe.backbones.core import Backbone, Batch, Feed, Network, Precision, Preprocess, Run, call_module, pack
from head2toe.backbones.identity import describe
from head2toe.backbones.probe import BATCH, Site, find_sites, first_tensor
from head2toe.errors import BackboneError
from head2toe.taps import Tap

# raise one when a tap's name, shape or values change for the same network in that precision
TAP_FORMATS: Mapping[Precision, int] = {"float32": 3, "bfloat16": 2, "float16": 2}
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@dataclass(frozen=True)
class Options:
    """How to run a network; what every family needs to know."""

    precision: Precision
    device: str
    resize: Literal["squash", "crop"] = "squash"
    image_size: int | None = None
    weights: bool = True
    trust_remote_code: bool = False


def build(
    name: str,
    architecture: str,
    module: nn.Module,
    preprocess: Preprocess,
    feed: Feed,
    options: Options,
    *,
    run: Run = call_module,
    prefix_tokens: int | None = None,
    sequence: int | None = None,
    repeats: bool = False,
) -> Backbone:
    """Freeze `module` (which the caller gives away), find its taps and sign everything that decides its features.

    It runs with channels last in memory, where convolutions are faster, unless it can only be run without. With
    `repeats`, for networks that nobody has looked at, one whose two passes over the same inputs differ is refused.
    """
    module = module.eval().requires_grad_(False)
    fingerprint = _fingerprint(architecture, module, preprocess, options.precision)
    module = module.to(options.device)
    batch = feed.collate([feed.example()] * BATCH, options.device)

    def found() -> tuple[Site, ...]:
        return find_sites(module, _probing(name, module, run, batch), prefix_tokens=prefix_tokens, sequence=sequence)

    try:
        _lay_out(module, torch.channels_last)
        sites = found()
    except BackboneError:
        _lay_out(module, torch.contiguous_format)
        run = _contiguous(run)
        sites = found()
    if repeats:
        _refuse_random(name, _probing(name, module, run, batch))
    if batch.mask is not None:
        sites = tuple(replace(site, tap=_padded(site.tap, batch.mask)) for site in sites)
    return Backbone(
        id=name,
        taps=tuple(site.tap for site in sites),
        preprocess=preprocess,
        fingerprint=fingerprint,
        precision=options.precision,
        device=options.device,
        n_bytes=4 * sum(tensor.numel() for tensor in module.state_dict().values()),
        networks=(Network(module, feed, run, sites),),
    )


def _padded(tap: Tap, mask: Tensor) -> Tap:
    return replace(tap, padded=tap.layout == "NLC" and tap.shape[0] == mask.shape[1])


def side_by_side(backbones: tuple[Backbone, ...]) -> Backbone:
    """Several networks as one: their taps in a row, named `0:tap`, `1:tap` and so on."""
    first = backbones[0]
    joined = Backbone(
        id="+".join(backbone.id for backbone in backbones),
        taps=(),
        preprocess=SideBySide(tuple(backbone.preprocess for backbone in backbones)),
        fingerprint=hashlib.sha256("+".join(backbone.fingerprint for backbone in backbones).encode()).hexdigest(),
        precision=first.precision,
        device=first.device,
        n_bytes=sum(backbone.n_bytes for backbone in backbones),
        networks=tuple(network for backbone in backbones for network in backbone.networks),
    )
    return replace(joined, taps=tuple(site.tap for site in joined.sites))


@dataclass(frozen=True)
class SideBySide:
    """Every network's own preprocessing of one input, packed into one array."""

    parts: tuple[Preprocess, ...]

    def check(self, encoded: bytes | np.ndarray | str, /) -> None:
        """Raise DataError for what one of them cannot read."""
        for part in self.parts:
            getattr(part, "check", images.check)(encoded)

    def __call__(self, encoded: bytes | np.ndarray | str, /) -> np.ndarray:
        return pack([part(encoded) for part in self.parts])


@contextmanager
def only_weights() -> Iterator[None]:
    """Whatever library loads a checkpoint here, torch unpickles tensors alone; torchvision does not ask for that."""
    before = os.environ.get(_ONLY_WEIGHTS)
    os.environ[_ONLY_WEIGHTS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ONLY_WEIGHTS]
        else:
            os.environ[_ONLY_WEIGHTS] = before


def default_precision(device: str) -> Precision:
    """bfloat16 where the hardware multiplies it fast, else float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if kind != "cpu":
        return "float32"
    fast = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if fast.get("amx_bf16") or fast.get("avx512_bf16") else "float32"


def _lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Put the weights of two-dimensional convolutions in that order in memory."""
    for weight in module.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=layout)


def _contiguous(run: Run) -> Run:
    """The same on inputs that lie in memory in the order of their axes."""

    def passed(module: nn.Module, batch: Batch) -> object:
        args = tuple(tensor.contiguous() for tensor in batch.args)
        return run(module, replace(batch, args=args, kwargs={k: v.contiguous() for k, v in batch.kwargs.items()}))

    return passed


def _probing(name: str, module: nn.Module, run: Run, batch: Batch) -> Callable[[], object]:
    def probe() -> object:
        try:
            return run(module, batch)
        except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, IndexError) as error:
            raise BackboneError(
                f"{name}: a probing pass of {BATCH} inputs failed ({type(error).__name__}: {error}); check the input "
                "size and, for a module of your own, its preprocess and run"
            ) from error

    return probe


def _refuse_random(name: str, probe: Callable[[], object]) -> None:
    """BackboneError where two passes over the same inputs differ by more than rounding."""
    with torch.inference_mode():
        one, other = first_tensor(probe()), first_tensor(probe())
    if one is None or other is None:
        return
    if one.shape != other.shape or (one - other).norm() > 1e-2 * one.norm():
        raise BackboneError(
            f"{name}: two passes over the same inputs differ, so that its features would not be those of the inputs; "
            "it draws random numbers though it is in eval mode (a mask, a dropout by function): switch that off"
        )


def _fingerprint(architecture: str, module: nn.Module, preprocess: Preprocess, precision: Precision) -> str:
    """sha256 (hex) over what decides a feature: architecture, every weight, preprocessing, precision, tap format."""
    digest = hashlib.sha256()
    digest.update(json.dumps([TAP_FORMATS[precision], architecture, describe(preprocess), precision]).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name}={tensor!r};".encode())
            continue
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{data.dtype}:{tuple(data.shape)};".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
