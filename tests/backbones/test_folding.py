"""Normalisations in their convolutions: equal features, and none folded that something else reads."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone
from head2toe.errors import BackboneError
from head2toe.images import ImagePreprocess

SIDE = 8
PREPROCESS = ImagePreprocess((SIDE, SIDE), (0.5,) * 3, (0.25,) * 3, "nearest")


class Branches(nn.Module):
    """Normalisations that read a map alone (a), beside an addition (b), twice (c), or by the batch's statistics (d)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, affine=False)
        self.c, self.norm_c = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.d, self.norm_d = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_a(self.a(x)).relu_()
        y = self.b(x)
        x = y + self.norm_b(y)
        x = self.norm_c(self.c(self.norm_c(self.c(x))))
        return self.norm_d(self.d(x)).mean((2, 3))


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


def backbone_of(module: nn.Module) -> Backbone:
    return load_backbone(module, preprocess=PREPROCESS, precision="float32")


def maps(backbone: Backbone, names: list[str]) -> dict[str, Tensor]:
    images = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    return backbone.forward(backbone.collate(list(images)), names, lambda tap, output, mask: output.clone())


def norms_run(monkeypatch, backbone: Backbone, names: list[str]) -> int:
    """How many normalisations a pass computes, once what folds is known."""
    maps(backbone, names)
    calls, compute = [], torch.batch_norm
    monkeypatch.setattr(torch, "batch_norm", lambda *args: calls.append(1) or compute(*args))
    maps(backbone, names)
    monkeypatch.undo()
    return len(calls)


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
    expected = maps(trained(backbone), names)
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


def trained(backbone: Backbone) -> Backbone:
    """The same network with weights that are trained: none of it is folded."""
    network = backbone.networks[0]
    return replace(backbone, networks=(replace(network, module=copy.deepcopy(network.module).requires_grad_(True)),))


def test_only_a_convolution_that_its_norm_alone_reads_is_folded(monkeypatch):
    backbone = backbone_of(randomised(Branches(), 0))
    names = [tap.name for tap in backbone.taps]
    got, expected = maps(backbone, names), maps(trained(backbone), names)
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)
    assert norms_run(monkeypatch, trained(backbone), names) == 5
    assert norms_run(monkeypatch, backbone, names) == 4


def test_a_convolution_that_is_tapped_stays_as_it_is(monkeypatch):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.conv(x)))

    backbone = backbone_of(randomised(Plain(), 1))
    assert norms_run(monkeypatch, backbone, ["last"]) == 0
    site = backbone.networks[0].by_name["last"]
    tapped = replace(site, tap=replace(site.tap, name="conv"), module="conv")
    network = replace(backbone.networks[0], sites=(tapped, *backbone.networks[0].sites))
    both = replace(backbone, networks=(network,))
    assert norms_run(monkeypatch, both, ["conv", "last"]) == 1
    with torch.inference_mode():
        after = network.module.get_submodule("norm")(maps(both, ["conv"])["conv"]).relu()
    torch.testing.assert_close(after, maps(backbone, ["last"])["last"])


def test_a_network_that_takes_another_path_is_refused():
    class Moody(nn.Module):
        doubled = False

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.act(self.norm(2 * x if self.doubled else x))

    backbone = backbone_of(Moody())
    maps(backbone, ["act"])
    backbone.networks[0].module.doubled = True
    with pytest.raises(BackboneError, match="another map"):
        maps(backbone, ["act"])
