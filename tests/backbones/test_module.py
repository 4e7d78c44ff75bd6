"""Taps of networks written for the purpose: each shows one thing that hooks get wrong."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

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


def test_the_last_block_is_named_like_the_others():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.bn(self.conv(x))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ModuleList(Sum() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layer:
                x = layer(x)
            return x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.encoder = ConvNormRelu(), Encoder()

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(self.stem(x)).mean((2, 3))

    backbone = load(Model(), taps="encoder.layer.?")
    assert [tap.name for tap in backbone.taps] == [f"encoder.layer.{k}" for k in range(3)]
    assert torch.equal(*read(backbone, ["encoder", "encoder.layer.2"]).values())


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
        torch.testing.assert_close(got[name], expected)


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
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x) - super().forward(y)

    torch.manual_seed(0)
    backbone = load_backbone(
        Two(),
        preprocess=with_mirror_image,
        run=lambda module, batch: module(*batch.args[0].unbind(1)),
        precision="float32",
    )
    assert backbone.tap("stem#2").shape == backbone.tap("stem").shape == (8, 16, 16)
    rows = [with_mirror_image(row) for row in np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)]
    got = backbone.forward(backbone.collate(rows), ["stem", "stem#2"], lambda tap, output, mask: output)
    plain = small().eval()
    with torch.inference_mode():
        for name, side in zip(got, np.stack(rows).swapaxes(0, 1), strict=True):
            torch.testing.assert_close(got[name], plain.stem(torch.from_numpy(side)))
    with pytest.raises(BackboneError, match="probing pass"):
        load(Two())


def with_mirror_image(encoded: bytes | np.ndarray | str) -> np.ndarray:
    """Pixels (2, 3, 16, 16): the upper left corner, and its mirror image."""
    assert isinstance(encoded, np.ndarray)
    pixels = encoded[:16, :16].transpose(2, 0, 1).astype(np.float32) / 255
    return np.stack([pixels, pixels[..., ::-1]])


def test_a_compiled_module_is_read_through_its_eager_one():
    inside = small()
    inside.blocks[1] = torch.compile(inside.blocks[1])
    inside.stem.compile()
    for compiled in (torch.compile(small()), inside):
        backbone = load(compiled)
        assert backbone.taps == load(small()).taps
        assert backbone.fingerprint == load(small()).fingerprint
    assert isinstance(inside.blocks[1], torch._dynamo.OptimizedModule)


class Checkpointed(nn.Module):
    """Two blocks whose outputs are computed again when they are differentiated; not so where `reentrant` is None."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.stem = ConvNormRelu()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x.mean((2, 3))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_module_is_read_like_a_plain_one(reentrant):
    backbone, plain = load(Checkpointed(reentrant)), load(Checkpointed(None))
    assert backbone.taps == plain.taps
    for name, output in read(plain, [tap.name for tap in plain.taps]).items():
        assert torch.equal(read(backbone, [name])[name], output), name


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_checkpointed_module_is_trained_like_a_plain_one_or_refused():
    taps = ["stem", "blocks.1.2"]
    plain = gradients(load(Checkpointed(None)), taps)
    again = gradients(load(Checkpointed(False)), taps)
    assert set(again) == set(plain)
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, plain[name])
    with pytest.raises(BackboneError, match=r"'blocks\.1\.2' is computed without gradients.*use_reentrant=False"):
        gradients(load(Checkpointed(True)), taps)


def gradients(backbone: Backbone, taps: list[str]) -> dict[str, Tensor]:
    """Of the sum of the squared outputs, by parameter that has one."""
    module = backbone.networks[0].module.requires_grad_(True)
    outputs = backbone.forward(
        batch_of(backbone), taps, lambda tap, output, mask: output.clone().square().sum(), gradients=True
    )
    torch.stack(list(outputs.values())).sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert {"stem.conv.weight", "blocks.0.3.weight", "blocks.1.0.weight"} <= set(found)
    return found


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_fused_encoder_layers_are_read_part_by_part(activation):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, 4)
            layer = nn.TransformerEncoderLayer(16, 2, 32, activation=activation, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(self.patches(x).flatten(2).mT)

    torch.manual_seed(0)
    module = Encoder().eval()
    backbone = load(module)
    parts = [f"encoder.layers.{k}.{part}" for k in (0, 1) for part in ("norm1", "self_attn", "norm2")]
    assert set(parts) <= {tap.name for tap in backbone.taps}
    with torch.inference_mode():
        fused = module(batch_of(backbone)[0].args[0])
    for names in ([tap.name for tap in backbone.taps], ["encoder.layers.1"]):
        torch.testing.assert_close(read(backbone, names)["encoder.layers.1"], fused, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_tapped_is_refused_with_a_reason():
    with pytest.raises(BackboneError, match="needs its preprocessing"):
        load_backbone(small())
    with pytest.raises(BackboneError, match="no output that can be tapped"):
        load(nn.Flatten(0))
    with pytest.raises(BackboneError, match="lazy modules have no weights yet"):
        load(nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU()))
    with pytest.raises(BackboneError, match=r"near names: .*blocks\.0\.relu"):
        read(load(small()), ["blocks.0.rel"])


def test_an_output_that_is_not_shaped_as_planned_is_refused():
    backbone = load(small())
    wider = [np.zeros((3, 16, 24), np.float32)] * 2
    from head2toe.backbones.core import Batch

    with pytest.raises(BackboneError, match=r"should be \(2, 8, 16, 16\)"):
        backbone.forward((Batch((torch.from_numpy(np.stack(wider)),)),), ["stem"], lambda tap, output, mask: output)


class Flattening(nn.Module):
    """`view` wants a map's channels first in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.relu(self.conv(x)).view(len(x), -1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_that_must_have_its_channels_first_has_them(precision):
    backbone = load_backbone(Flattening(), preprocess=PIXELS, precision=precision)
    rows = [np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)] * 3
    out = backbone.forward(backbone.collate(rows), ["fc"], lambda _tap, output, _mask: output.is_contiguous())
    assert out == {"fc": True}


def test_convolutions_have_their_channels_last():
    backbone = load_backbone(small(), preprocess=PIXELS, precision="float32")
    rows = [np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)] * 3
    last = torch.channels_last
    out = backbone.forward(
        backbone.collate(rows), ["blocks.1"], lambda _tap, output, _mask: output.is_contiguous(memory_format=last)
    )
    assert out == {"blocks.1": True}


class Volumes(nn.Module):
    """A convolution over three axes, whose weights have no channels-last form in two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 3, 3))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.relu(self.conv(x[:, :, None])).mean((2, 3, 4)))


def test_convolutions_over_other_than_two_axes_run():
    assert load_backbone(Volumes(), preprocess=PIXELS, precision="float32").prelogits


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(functional.dropout(x)))


def test_a_network_that_draws_random_numbers_is_refused():
    with pytest.raises(BackboneError, match="two passes over the same inputs differ"):
        load(Random())


class Swallowing(nn.Module):
    """A forward that catches whatever goes wrong inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.second(self.first(x))
        # the case under test: a user's module may catch everything
        except Exception:
            return x


def test_a_cut_pass_is_no_exception_that_a_network_could_catch():
    backbone = load(Swallowing())
    assert read(backbone, ["first.1"])["first.1"].shape[1] == 4


class Inverted(nn.Module):
    """A block of maps with channels last inside, as ConvNeXt has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw, self.norm, self.pw = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.pw(functional.gelu(self.norm(self.dw(x).permute(0, 2, 3, 1))))
        return x + y.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("size", "channels"), [((16, 16), 8), ((16, 16), 16), ((16, 8), 8), ((16, 8), 16), ((8, 16), 8)]
)
def test_axes_of_maps_are_told_whatever_their_sizes(size, channels):
    # as many channels as rows, oblong pictures: sizes alone would take channels for rows
    module = nn.Sequential(
        nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels), nn.Sequential(Inverted(channels), Inverted(channels))
    )
    backbone = load_backbone(module, preprocess=ImagePreprocess(size, (0.0,) * 3, (1.0,) * 3), precision="float32")
    for tap in backbone.taps:
        assert (tap.name, tap.layout, tap.shape) in {
            *((f"2.{i}.norm", "NHWC", (*size, channels)) for i in range(2)),
            *((name, "NCHW", (channels, *size)) for name in ("1", "2.0", "2.1")),
        }


def test_a_module_has_its_size_in_its_preprocessing():
    with pytest.raises(BackboneError, match="go with a name"):
        load_backbone(small(), preprocess=PIXELS, image_size=64)
