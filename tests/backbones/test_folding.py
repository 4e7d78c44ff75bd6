"""Normalisations in their convolutions: equal features, and none folded that something else reads."""

import copy
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from head2toe.backbones import folding, load_backbone
from head2toe.backbones.core import Backbone, Precision
from head2toe.errors import BackboneError
from head2toe.images import ImagePreprocess

SIDE = 8
PREPROCESS = ImagePreprocess((SIDE, SIDE), (0.5,) * 3, (0.25,) * 3, "nearest")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x)))


class Added(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.last(x + self.norm(x))


class Written(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x[:, 0] = 0.0
        return self.last(self.norm(x))


class Computed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        norm, gain = self.norm, 1 + x.mean((0, 2, 3)).mean().expand(4)
        return self.last(functional.batch_norm(self.conv(x), norm.running_mean, norm.running_var, gain, norm.bias))


class TwoNorms(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x)) + self.other(self.conv(-x)))


class TwoConvolutions(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x)) + self.norm(self.other(x)))


class OfTheBatch(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


class InFloat32(Plain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.last(self.norm(self.conv(x.float())))


class Moody(Plain):
    mood = "plain"

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = {"plain": x, "doubled": 2 * x if self.mood == "doubled" else x, "bare": x}[self.mood]
        return self.last(x if self.mood == "bare" else self.norm(x))


def hidden(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return torch.sigmoid(x)


class Unseen(Plain):
    """A function that torch does not show to anyone reads what the convolution made."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.last(self.norm(x) + hidden(x))


class Sometimes(Plain):
    bright = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.norm(x)
        return self.last(y + x if self.bright else y)


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Statistics and factors as a trained network has them: none is 0 or 1."""
    torch.manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_mean, norm.bias):
                if tensor is not None:
                    tensor.data.normal_()
            for tensor in (norm.running_var, norm.weight):
                if tensor is not None:
                    tensor.data.uniform_(0.2, 3.0)
    return module


def backbone_of(module: nn.Module, precision: Precision = "float32") -> Backbone:
    return load_backbone(module, preprocess=PREPROCESS, precision=precision)


def maps(backbone: Backbone, names: list[str]) -> dict[str, Tensor]:
    images = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    return backbone.forward(backbone.collate(list(images)), names, lambda tap, output, mask: output.clone())


def norms_run(backbone: Backbone, names: list[str]) -> int:
    """How many normalisations a pass computes, once what folds is known."""
    maps(backbone, names)
    with mock.patch("torch.batch_norm", wraps=torch.batch_norm) as compute:
        maps(backbone, names)
    return compute.call_count


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), bias=st.booleans(), affine=st.booleans(), groups=st.sampled_from([1, 2, 4]),
    stride=st.sampled_from([1, 2]), eps=st.sampled_from([1e-5, 1e-2]),
)  # fmt: skip
def test_features_are_equal(seed, bias, affine, groups, stride, eps):
    torch.manual_seed(seed)
    module = randomised(nn.Sequential(
        nn.Conv2d(3, 4, 3, stride, bias=bias), nn.BatchNorm2d(4, eps, affine=affine), nn.ReLU(inplace=True),
        nn.Conv2d(4, 8, 3, padding=1, groups=groups, bias=bias), nn.BatchNorm2d(8, eps, affine=affine), nn.SiLU(),
    ), seed)  # fmt: skip
    backbone = backbone_of(module)
    names = [tap.name for tap in backbone.taps]
    got = maps(backbone, names)
    assert norms_run(backbone, names) == 0
    expected = maps(trained(backbone), names)
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


def trained(backbone: Backbone) -> Backbone:
    """The same network with weights that are trained: none of it is folded."""
    network = backbone.networks[0]
    return replace(backbone, networks=(replace(network, module=copy.deepcopy(network.module).requires_grad_(True)),))


@pytest.mark.parametrize("kind", [Added, Written, Computed, TwoNorms, TwoConvolutions, OfTheBatch, Unseen])
def test_a_convolution_that_is_read_or_made_otherwise_stays(kind):
    backbone = backbone_of(randomised(kind(), 0))
    got, expected = maps(backbone, ["last"]), maps(trained(backbone), ["last"])
    torch.testing.assert_close(got["last"], expected["last"], rtol=1e-5, atol=1e-5)
    assert norms_run(backbone, ["last"]) == norms_run(trained(backbone), ["last"]) > 0


def test_a_convolution_that_is_tapped_stays():
    backbone = backbone_of(randomised(Plain(), 1))
    assert norms_run(backbone, ["last"]) == 0
    site = backbone.networks[0].by_name["last"]
    tapped = replace(site, tap=replace(site.tap, name="conv"), module="conv")
    network = replace(backbone.networks[0], sites=(tapped, *backbone.networks[0].sites))
    both = replace(backbone, networks=(network,))
    assert norms_run(both, ["conv", "last"]) == 1
    with torch.inference_mode():
        after = network.module.get_submodule("norm")(maps(both, ["conv"])["conv"]).relu()
    torch.testing.assert_close(after, maps(backbone, ["last"])["last"])


def test_a_convolution_that_a_hook_sees_stays():
    backbone, seen = backbone_of(randomised(Plain(), 2)), list[Tensor]()
    before = maps(backbone, ["last"])["last"]
    conv = backbone.networks[0].module.get_submodule("conv")
    conv.register_forward_hook(lambda _part, args, output: seen.append(output - conv.forward(args[0])))
    torch.testing.assert_close(maps(backbone, ["last"])["last"], before)
    assert torch.equal(seen[-1], torch.zeros_like(seen[-1]))


@pytest.mark.parametrize("kind", [Plain, InFloat32])
def test_bfloat16_is_as_near_to_float32_as_without(kind):
    exact = backbone_of(randomised(kind(), 3))
    fast = backbone_of(exact.networks[0].module, "bfloat16")
    expected = maps(exact, ["last"])["last"]
    errors = [float((maps(b, ["last"])["last"].float() - expected).norm()) for b in (fast, trained(fast))]
    assert errors[0] <= max(1.5 * errors[1], 1e-5 * float(expected.norm()))
    assert norms_run(fast, ["last"]) == 0


def test_weights_that_change_are_folded_again():
    backbone = backbone_of(randomised(Plain(), 4))
    other = randomised(Plain(), 5)
    maps(backbone, ["last"])
    backbone.networks[0].module.load_state_dict(other.state_dict())
    torch.testing.assert_close(maps(backbone, ["last"])["last"], maps(backbone_of(other), ["last"])["last"])


def test_statistics_that_are_being_learned_are_not_skipped():
    backbone = backbone_of(randomised(Plain(), 6))
    assert norms_run(backbone, ["last"]) == 0
    backbone.networks[0].module.train()
    assert norms_run(backbone, ["last"]) == 1


@pytest.mark.parametrize("mood", ["doubled", "bare"])
def test_a_network_that_takes_another_path_is_refused(mood):
    backbone = backbone_of(randomised(Moody(), 7))
    maps(backbone, ["last"])
    backbone.networks[0].module.mood = mood
    with pytest.raises(BackboneError, match="read beside its normalisation"):
        maps(backbone, ["last"])


def test_a_map_that_is_read_after_its_normalisation_on_another_path_is_refused():
    backbone = backbone_of(randomised(Sometimes(), 7))
    assert norms_run(backbone, ["last"]) == 0
    backbone.networks[0].module.bright = True
    with pytest.raises(BackboneError, match="read beside its normalisation"):
        maps(backbone, ["last"])


def test_choices_of_taps_share_the_folded_weights():
    backbone = backbone_of(randomised(nn.Sequential(Plain(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 8))
    for names in (["0.last"], ["0.last", "3"], ["3"]):
        maps(backbone, names)
    known = folding._KNOWN[backbone.networks[0].module]
    assert sorted(len(pairs) for pairs in known.passes.values()) == [1, 2, 2]
    assert len({id(pair) for pairs in known.passes.values() for pair in pairs}) == 2
