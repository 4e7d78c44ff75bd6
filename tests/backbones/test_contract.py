"""What every pretrained network must keep, whatever its family: one class, run over all architectures.

At least one small architecture per model file of timm and per family of torchvision, random weights, small pictures.
By default a dozen that differ most in how they are built; `pytest -m slow` runs the rest.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import is_model_in_modules, list_modules
from torch import Tensor, nn

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone
from head2toe.backbones.probe import first_tensor
from head2toe.taps import Pool, Tap

from .families import TIMM, TORCHVISION, readme_table

DEFAULT = (
    "resnet18", "densenet121", "mobilenetv3_small_050", "convnext_atto_rms", "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224", "cait_xxs24_224", "swin_tiny_patch4_window7_224", "xcit_nano_12_p8_224",
    "mixer_s16_224", "vit_tiny_patch16_dinov3_qkvb", "coat_tiny",
)  # fmt: skip
NAMES = [name for names in TIMM.values() for name in names]
SLOW = [name for name in NAMES if name not in DEFAULT] + [f"torchvision/{name}" for name in TORCHVISION]
# networks whose layout needs other than 128 pixels: fixed windows, patches of 14, or a size that they are built for
SIZES = {
    "coat_tiny": 224, "nest_tiny": 224, "crossvit_tiny_240": 240, "swin_tiny_patch4_window7_224": 224,
    "gcvit_xxtiny": 224, "sam2_hiera_tiny": 256, "hiera_tiny_224": 224, "mvitv2_tiny": 224, "pit_ti_224": 224,
    "efficientformer_l1": 224, "halonet_h1": 256, "vit_small_patch14_dinov2": 112, "eva02_tiny_patch14_224": 112,
    "deepseek_vit_412m": 112, "torchvision/maxvit_t": 224, "torchvision/vit_b_16": 224,
}  # fmt: skip
# architectures of 22 to 412 million parameters, built small
TRANSFORMER = {"depth": 2, "embed_dim": 64, "num_heads": 4}
SMALLER: dict[str, dict[str, object]] = {
    "nasnetalarge": {"stem_size": 16, "num_features": 192},
    "mobilenetv5_base": {"channel_multiplier": 0.125},
    "naflexvit_base_patch16_gap": TRANSFORMER,
    "vit_base_patch16_clip_224": TRANSFORMER | {"img_size": 128},
    "vit_base_patch16_siglip_224": TRANSFORMER | {"img_size": 128},
    "vit_small_patch14_dinov2": TRANSFORMER | {"img_size": 112},
    "deepseek_vit_412m": TRANSFORMER | {"img_size": 112, "num_classes": 5},
    "gemma4_vit_167m": TRANSFORMER | {"img_size": 128, "head_dim": 16, "intermediate_size": 128},
    "samvit_base_patch16": TRANSFORMER | {
        "img_size": 128, "window_size": 4, "global_attn_indexes": [1], "neck_chans": 32,
    },
}  # fmt: skip
# class and register tokens beside the 8 x 8 patches of a picture
PREFIX = {
    "vit_tiny_patch16_224": 1, "deit_tiny_distilled_patch16_224": 2, "vit_tiny_patch16_dinov3_qkvb": 5,
    "naflexvit_base_patch16_gap": 4, "vit_base_patch16_clip_224": 1, "vit_base_patch16_siglip_224": 0,
    "vit_small_patch14_dinov2": 1, "eva02_tiny_patch14_224": 1, "gemma4_vit_167m": 0, "beit_base_patch16_224": 1,
}  # fmt: skip
BATCH = 3


@dataclass(frozen=True)
class Passes:
    """What one architecture gave: all taps in one pass, and its own plain output."""

    name: str
    backbone: Backbone
    outputs: dict[str, Tensor]
    plain: Tensor


@pytest.fixture(scope="class", params=[*DEFAULT, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def passes(request, tmp_path_factory) -> Iterator[Passes]:
    name = request.param
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are small, and the suite may run in several processes
    backbone = load(name, tmp_path_factory.mktemp("card"))
    batch = inputs(backbone)
    outputs = backbone.forward(batch, [tap.name for tap in backbone.taps], lambda tap, output, mask: output.clone())
    with torch.inference_mode():
        plain = first_tensor(backbone.networks[0].module(*batch[0].args))
    assert plain is not None
    yield Passes(name, backbone, outputs, plain)
    torch.set_num_threads(threads)


def load(name: str, folder: Path) -> Backbone:
    """By name, or, where it is to be built smaller, by a card without weights."""
    size = SIZES.get(name, 128)
    if name not in SMALLER:
        id = name if "/" in name else f"timm/{name}"
        return load_backbone(id, weights=False, precision="float32", image_size=size)
    card = {
        "architecture": name, "model_args": SMALLER[name], "mean": [0.5] * 3, "std": [0.5] * 3,
        "input_size": [3, size, size], "interpolation": "bicubic",
    }  # fmt: skip
    (folder / "net.json").write_text(json.dumps(card))
    return load_backbone(f"file:{folder / 'net.safetensors'}", weights=False, precision="float32")


def test_every_model_file_of_timm_has_an_architecture_here():
    assert len(set(NAMES)) == len(NAMES) >= 60
    assert set(DEFAULT) < set(NAMES)
    assert [name for name in NAMES if not timm.is_model(name)] == []
    tested = {file for file in list_modules() for name in NAMES if is_model_in_modules(name, [file])}
    assert set(list_modules()) - tested == set()


def test_the_readme_lists_what_is_tested_here():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    shown = readme.partition("<!-- networks -->\n")[2].partition("\n<!-- /networks -->")[0]
    assert shown == readme_table()
    assert f"each of timm's {len(list_modules())} model files" in readme


def inputs(backbone: Backbone):
    pixels = np.random.default_rng(1).integers(0, 256, (BATCH, 64, 64, 3), np.uint8)
    return backbone.collate([backbone.preprocess(image) for image in pixels])


class TestEveryArchitecture:
    def test_taps_are_many_and_named_once(self, passes):
        names = [tap.name for tap in passes.backbone.taps]
        assert len(set(names)) == len(names) >= 8
        assert passes.backbone.prelogits in names

    def test_shapes_are_as_planned(self, passes):
        for tap in passes.backbone.taps:
            output = passes.outputs[tap.name]
            assert output.shape == (BATCH, *tap.shape)
            assert Pool(512)(output, tap).shape == (BATCH, Pool(512).length(tap))

    def test_the_channel_axis_is_the_one_that_norms_and_linear_layers_know(self, passes):
        for site in passes.backbone.sites:
            width = known_width(passes.backbone.networks[0].module.get_submodule(site.module))
            if site.side == "output" and width is not None:
                assert site.tap.channels == width, site.tap

    def test_maps_are_square_and_tokens_share_few_lengths(self, passes):
        for tap in passes.backbone.taps:
            if tap.layout in ("NCHW", "NHWC"):
                height, width = tap.shape[1:] if tap.layout == "NCHW" else tap.shape[:2]
                assert height == width, tap
        lengths = {tap.shape[0] for tap in passes.backbone.taps if tap.layout == "NLC"}
        assert len(lengths) <= 12

    def test_prefix_tokens_are_told(self, passes):
        known = getattr(passes.backbone.networks[0].module, "num_prefix_tokens", 0)
        assert all(tap.prefix_tokens in (0, known) for tap in passes.backbone.taps) or not known
        if passes.name in PREFIX:
            tokens = [tap for tap in passes.backbone.taps if tap.layout == "NLC"]
            assert all(tap.prefix_tokens == tap.shape[0] - 8 * 8 for tap in tokens)
            # the patch embedding comes before the class token is put in front
            later = [tap for tap in tokens if "patch_embed" not in tap.name]
            assert {tap.prefix_tokens for tap in later} == {PREFIX[passes.name]}
            assert len(later) >= len(tokens) - 1

    def test_one_pass_equals_a_plain_forward(self, passes):
        end = passes.backbone.logits or passes.backbone.prelogits
        got, plain = passes.outputs[end], passes.plain
        if got.numel() == plain.numel():
            largest = max(1.0, float(plain.abs().max()))  # sums round by a share of their terms, however small they end
            torch.testing.assert_close(got.reshape(plain.shape), plain, rtol=1e-4, atol=1e-4 * largest)
        else:
            assert end.endswith(":input")

    def test_a_cut_network_equals_the_whole_one(self, passes):
        taps = [tap.name for tap in passes.backbone.taps[: max(1, len(passes.backbone.taps) // 2)]]
        part = passes.backbone.forward(inputs(passes.backbone), taps[::5], lambda tap, output, mask: output.clone())
        for name, output in part.items():
            torch.testing.assert_close(output, passes.outputs[name], rtol=1e-4, atol=1e-4)

    def test_no_hook_is_left(self, passes):
        parts = passes.backbone.networks[0].module.modules()
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)

    def test_features_differ_between_inputs(self, passes):
        # half: a residual branch whose last norm starts at zero says the same of every picture
        varied = [tap.name for tap in passes.backbone.taps if differs(passes.outputs[tap.name], tap)]
        assert len(varied) >= 0.5 * len(passes.backbone.taps)


def known_width(part: nn.Module) -> int | None:
    """How many channels a module's output has, from its own parameters."""
    if isinstance(part, nn.Linear):
        return part.out_features
    if isinstance(part, nn.LayerNorm):
        return part.normalized_shape[-1]
    if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return part.num_features
    return None


def differs(output: Tensor, tap: Tap) -> bool:
    pooled = Pool(0)(output, tap)
    return bool((pooled[0] != pooled[1]).any())
