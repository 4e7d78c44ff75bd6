"""Taps of networks written for the purpose: each shows one thing that hooks get wrong."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone
from head2toe.errors import BackboneError
from head2toe.images import ImagePreprocess

PIXELS = ImagePreprocess((16, 16), (0.0,) * 3, (1.0,) * 3)


class Residual(nn.Module):
    """conv-norm-act with everything in place, and one activation module called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        y += x
        return self.relu(y)


class ConvNormRelu(nn.Module):
    """A functional activation after the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormRelu()
        self.blocks = nn.Sequential(Residual(8), Residual(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.relu(self.blocks(self.stem(x))).mean((2, 3)))


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def load(module: nn.Module, **kwargs) -> Backbone:
    return load_backbone(module, preprocess=PIXELS, precision="float32", **kwargs)


def batch_of(backbone: Backbone, n: int = 3):
    rows = np.random.default_rng(1).integers(0, 256, (n, 16, 16, 3), np.uint8)
    return backbone.collate(list(rows))


def read(backbone: Backbone, names, n: int = 3) -> dict[str, Tensor]:
    return backbone.forward(batch_of(backbone, n), names, lambda tap, output, mask: output.clone())


def test_names_are_the_parts_that_made_the_tensors():
    backbone = load(small())
    assert [tap.name for tap in backbone.taps] == [
        "stem", "blocks.0.relu", "blocks.0.relu#2", "blocks.1.relu", "blocks.1.relu#2", "fc:input", "fc",
    ]  # fmt: skip
    assert (backbone.prelogits, backbone.logits) == ("fc:input", "fc")
    assert backbone.tap("blocks.0").shape == (8, 16, 16)


def test_values_are_those_at_the_time_of_the_call():
    backbone = load(small())
    model = small().eval()
    x = batch_of(backbone)[0].args[0]
    with torch.inference_mode():
        stem = functional.relu(model.stem.bn(model.stem.conv(x)))
        first = functional.relu(model.blocks[0].bn(model.blocks[0].conv(stem)))
        second = functional.relu(first + stem)
        pooled = functional.relu(model.blocks(stem.clone())).mean((2, 3))
    got = read(backbone, ["stem", "blocks.0.relu", "blocks.0.relu#2", "blocks.0", "fc:input"])
    for name, expected in zip(got, (stem, first, second, second, pooled), strict=True):
        torch.testing.assert_close(got[name], expected, rtol=0, atol=0)


def test_a_cut_pass_stops_and_equals_the_whole_one():
    model = small()
    ran: list[str] = []
    model.fc.register_forward_hook(lambda *_: ran.append("fc"))
    backbone = load(model)
    whole = read(backbone, [tap.name for tap in backbone.taps])
    ran.clear()
    part = read(backbone, ["blocks.0.relu#2", "stem"])
    assert ran == []
    assert list(part) == ["blocks.0.relu#2", "stem"]
    assert all(torch.equal(part[name], whole[name]) for name in part)


def test_the_callers_module_is_left_alone_and_hooks_are_gone():
    model = small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backbone = load(model)
    with pytest.raises(ZeroDivisionError):
        backbone.forward(batch_of(backbone), ["fc"], lambda tap, output, mask: 1 / 0)
    read(backbone, ["fc"])
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for module in (model, backbone.networks[0].module):
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    with torch.no_grad():
        model.fc.weight.zero_()
    assert read(backbone, ["fc"])["fc"].abs().sum() > 0


def test_fingerprint_changes_with_a_weight_a_buffer_preprocessing_and_precision():
    backbone = load(small())
    assert backbone.fingerprint == load(small()).fingerprint
    one_weight, one_buffer = small(), small()
    with torch.no_grad():
        one_weight.fc.bias[0] += 1e-6
        one_buffer.stem.bn.running_mean[0] += 1e-6
    others = [load(one_weight), load(one_buffer)]
    others.append(
        load_backbone(small(), preprocess=ImagePreprocess((16, 16), (0.1,) * 3, (1.0,) * 3), precision="float32")
    )
    others.append(load_backbone(small(), preprocess=PIXELS, precision="bfloat16"))
    assert len({backbone.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_two_networks_side_by_side():
    from head2toe.backbones.build import side_by_side

    first, second = load(small(0)), load(small(1))
    both = side_by_side((first, second))
    assert [tap.name for tap in both.taps][:2] == ["0:stem", "0:blocks.0.relu"]
    assert both.all_prelogits() == ("0:fc:input", "1:fc:input")
    pixels = np.random.default_rng(2).integers(0, 256, (4, 16, 16, 3), np.uint8)
    batch = both.collate([both.preprocess(image) for image in pixels])
    together = both.forward(batch, ["1:fc", "0:blocks.1"], lambda tap, output, mask: output)
    alone = second.forward(second.collate(list(pixels)), ["fc"], lambda tap, output, mask: output)
    assert torch.equal(together["1:fc"], alone["fc"])
    assert together["0:blocks.1"].shape == (4, 8, 16, 16)
    assert both.fingerprint != side_by_side((second, first)).fingerprint


def test_a_module_that_takes_more_than_one_input_runs_through_an_adapter():
    class Two(Small):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return super().forward(x) * scale

    torch.manual_seed(0)
    backbone = load(Two(), run=lambda module, batch: module(*batch.args, torch.tensor(2.0)))
    plain = load(small())
    assert torch.equal(read(backbone, ["blocks.1"])["blocks.1"], read(plain, ["blocks.1"])["blocks.1"])
    with pytest.raises(BackboneError, match="probing pass"):
        load(Two())


def test_a_compiled_module_is_read_through_its_eager_one():
    assert load(torch.compile(small())).fingerprint == load(small()).fingerprint


def test_what_cannot_be_tapped_is_refused_with_a_reason():
    with pytest.raises(BackboneError, match="needs its preprocessing"):
        load_backbone(small())
    with pytest.raises(BackboneError, match="no output that can be tapped"):
        load(nn.Flatten(0))
    with pytest.raises(BackboneError, match=r"near names: .*blocks\.0\.relu"):
        read(load(small()), ["blocks.0.rel"])


def test_an_output_that_is_not_shaped_as_planned_is_refused():
    backbone = load(small())
    wider = [np.zeros((3, 16, 24), np.float32)] * 2
    from head2toe.backbones.core import Batch

    with pytest.raises(BackboneError, match=r"should be \(2, 8, 16, 16\)"):
        backbone.forward((Batch((torch.from_numpy(np.stack(wider)),)),), ["stem"], lambda tap, output, mask: output)
