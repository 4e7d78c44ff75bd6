"""What every pretrained network must keep, whatever its family: one class, run over all architectures.

One small architecture per timm module, random weights, small pictures. By default a dozen that differ most in how
they are built; `pytest -m slow` runs the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone
from head2toe.backbones.probe import first_tensor
from head2toe.taps import Pool, Tap

DEFAULT = (
    "resnet18", "densenet121", "mobilenetv3_small_050", "convnext_atto_rms", "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224", "cait_xxs24_224", "swin_tiny_patch4_window7_224", "xcit_nano_12_p8_224",
    "mixer_s16_224", "vit_tiny_patch16_dinov3_qkvb", "coat_tiny",
)  # fmt: skip
# networks whose layout needs more than 128 pixels: fixed windows, or a size that the architecture is built for
LARGER = {
    "coat_tiny": 224, "nest_tiny": 224, "crossvit_tiny_240": 240, "swin_tiny_patch4_window7_224": 224,
    "gcvit_xxtiny": 224, "sam2_hiera_tiny": 256, "hiera_tiny_224": 224, "mvitv2_tiny": 224, "pit_ti_224": 224,
    "efficientformer_l1": 224, "halonet_h1": 256,
}  # fmt: skip
SLOW = (
    "beit_base_patch16_224", "halonet_h1", "mobileone_s1", "convit_tiny", "convmixer_768_32", "cpubone_nano",
    "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s", "cspnext_tiny", "davit_tiny", "dla34", "dpn48b",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "tinynet_d", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "fasternet_t0", "fastvit_s12", "focalnet_tiny_srf", "gcvit_xxtiny",
    "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small",
    "iformer_t", "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small",
    "levit_384_s8", "lowformer_b0", "mambaout_femto", "maxvit_pico_rw_256", "caformer_s18", "gmlp_ti16_224",
    "mobilevit_xxs", "mvitv2_tiny", "nest_tiny", "nextvit_small", "nf_regnet_b0", "pit_ti_224", "pvt_v2_b0",
    "qwen3_vit_88m", "rdnet_tiny", "regnetx_004_tv", "repghostnet_050", "repvit_m1", "res2next50", "resnest14d",
    "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18",
    "starnet_s1", "swiftformer_xs", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small", "vgg11", "visformer_tiny", "vit_tiny_r_s16_p8_224",
    "vit_srelpos_small_patch16_224", "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim_dw", "legacy_xception",
    "xception41p", "vgg11_bn", "resmlp_12_224", "poolformer_s12", "coatnet_nano_rw_224", "resnext26ts",
)  # fmt: skip
PREFIX = {"vit_tiny_patch16_224": 1, "deit_tiny_distilled_patch16_224": 2, "vit_tiny_patch16_dinov3_qkvb": 5}
BATCH = 3


@dataclass(frozen=True)
class Passes:
    """What one architecture gave: all taps in one pass, and its own plain output."""

    backbone: Backbone
    outputs: dict[str, Tensor]
    plain: Tensor


@pytest.fixture(scope="class", params=[*DEFAULT, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def passes(request) -> Iterator[Passes]:
    name = request.param
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are small, and the suite may run in several processes
    backbone = load_backbone(f"timm/{name}", weights=False, precision="float32", image_size=LARGER.get(name, 128))
    batch = inputs(backbone)
    outputs = backbone.forward(batch, [tap.name for tap in backbone.taps], lambda tap, output, mask: output.clone())
    with torch.inference_mode():
        plain = first_tensor(backbone.networks[0].module(*batch[0].args))
    assert plain is not None
    yield Passes(backbone, outputs, plain)
    torch.set_num_threads(threads)


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
        name = passes.backbone.id.removeprefix("timm/")
        known = getattr(passes.backbone.networks[0].module, "num_prefix_tokens", 0)
        assert all(tap.prefix_tokens in (0, known) for tap in passes.backbone.taps) or not known
        if name in PREFIX:
            tokens = [tap for tap in passes.backbone.taps if tap.layout == "NLC"]
            patches = (128 // 16) ** 2
            assert all(tap.prefix_tokens == tap.shape[0] - patches for tap in tokens)
            # the patch embedding comes before the class token is put in front
            later = [tap for tap in tokens if not tap.name.startswith("patch_embed")]
            assert {tap.prefix_tokens for tap in later} == {PREFIX[name]}
            assert len(later) >= len(tokens) - 1

    def test_one_pass_equals_a_plain_forward(self, passes):
        end = passes.backbone.logits or passes.backbone.prelogits
        got, plain = passes.outputs[end], passes.plain
        if got.numel() == plain.numel():
            torch.testing.assert_close(got.reshape(plain.shape), plain, rtol=1e-4, atol=1e-4)
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
