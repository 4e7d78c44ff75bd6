"""Ids: what they load, what they refuse, and which taps a preset or a budget asks for."""

import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from head2toe.backbones import load_backbone
from head2toe.backbones.select import cut, flops, flops_of, select
from head2toe.errors import BackboneError


@pytest.fixture(scope="module")
def resnet50():
    return load_backbone("timm/resnet50", weights=False, precision="float32", image_size=64)


@pytest.fixture(scope="module")
def vit():
    return load_backbone("timm/vit_base_patch16_224", weights=False, precision="float32", image_size=64)


def test_the_published_list_of_resnet50_has_52_taps(resnet50):
    names = [tap.name for tap in select(resnet50, "paper")]
    inside = [
        f"layer{k}.{unit}.act{i}" for k, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for unit in range(n) for i in (1, 2, 3)
    ]
    assert names == ["act1", *inside, "layer4", "global_pool", "fc"]
    assert len(names) == 52
    assert resnet50.tap("layer4").shape == resnet50.tap("layer4.2.act3").shape == (2048, 2, 2)


def test_a_resnet50_without_a_classifier_has_the_published_list_but_its_logits(resnet50):
    headless = load_backbone(
        timm.create_model("resnet50", num_classes=0), preprocess=resnet50.preprocess, precision="float32"
    )
    assert headless.logits is None
    assert [tap.name for tap in select(headless, "paper")] == [tap.name for tap in select(resnet50, "paper")][:-1]


def test_the_published_list_of_vit_b16_has_53_taps(vit):
    names = [tap.name for tap in select(vit, "paper")]
    inside = [f"blocks.{k}.{part}" for k in range(12) for part in ("norm1", "attn", "mlp.act", "mlp")]
    assert names == ["patch_embed", "pos_drop", *inside, "norm", "fc_norm", "head_drop"]
    assert len(names) == 53


def test_blocks_and_globs(resnet50, vit):
    assert [tap.name for tap in select(vit, "blocks")] == [*(f"blocks.{k}" for k in range(12)), "fc_norm"]
    assert len(select(resnet50, "blocks")) == 17
    assert [tap.name for tap in select(resnet50, "layer1.0,act1,*.1.act3")][:3] == ["act1", "layer1.0", "layer1.1.act3"]
    assert select(resnet50, "all") == resnet50.taps
    with pytest.raises(BackboneError, match="near names"):
        select(resnet50, ["layer9.*"])


def test_asked_taps_are_the_backbones_taps():
    backbone = load_backbone("timm/resnet18", weights=False, precision="float32", image_size=64, taps="blocks")
    assert len(backbone.taps) == 9
    assert backbone.tap("layer1.0.bn2").shape == (64, 16, 16)


def test_operations_grow_with_depth_and_end_at_the_whole(resnet50):
    counts = flops(resnet50)
    depth = [counts[tap.name] for tap in resnet50.taps if "downsample" not in tap.name]
    assert depth == sorted(depth)
    assert depth[-1] == counts[""]
    stem = 2 * 64 * 3 * 7 * 7 * 32 * 32
    assert counts["act1"] == stem
    assert flops_of(resnet50, ["act1", "layer1.0"]) == counts["layer1.0.act3"]


def test_a_budget_keeps_what_it_reaches(resnet50):
    counts = flops(resnet50)
    half = cut(resnet50, 0.5)
    assert {tap.name for tap in half} == {tap.name for tap in resnet50.taps if counts[tap.name] <= 0.5 * counts[""]}
    assert cut(resnet50, 1.0) == resnet50.taps
    with pytest.raises(BackboneError, match="no tap"):
        cut(resnet50, 1e-6)


def test_a_file_with_a_card(tmp_path):
    torch.manual_seed(0)
    module = timm.create_model("resnet18", num_classes=0).eval()
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in module.state_dict().items()
    }
    save_file(state, tmp_path / "net.safetensors")
    card = {
        "architecture": "resnet18", "model_args": {"num_classes": 0}, "mean": [0, 0, 0], "std": [1, 1, 1],
        "input_size": [3, 64, 64], "interpolation": "bilinear", "crop_pct": 0.875,
    }  # fmt: skip
    path = f"file:{tmp_path / 'net.safetensors'}"
    with pytest.raises(BackboneError, match=r"net\.json' is missing"):
        load_backbone(path)
    (tmp_path / "net.json").write_text(json.dumps(card))
    backbone = load_backbone(path, precision="float32")
    assert (backbone.prelogits, backbone.logits) == ("global_pool", None)
    assert backbone.preprocess.size == (64, 64)
    assert load_backbone(path, precision="float32", resize="crop").preprocess.crop_pct == 0.875
    assert load_backbone(path, precision="float32", resize="crop").fingerprint != backbone.fingerprint
    both = load_backbone(f"{path}+{path}", precision="float32", taps="blocks")
    assert len(both.taps) == 2 * 9
    (tmp_path / "net.json").write_text(json.dumps(card | {"architecture": "resnet34"}))
    with pytest.raises(BackboneError, match="do not fit"):
        load_backbone(path)
    for change, message in (
        ({"architecture": "resnet19"}, "did you mean 'resnet1"), ({"model_args": {"wings": 2}}, "wings"),
        ({"interpolation": "cubic"}, "cannot be used.*cubic"), ({"std": [1, 0, 1]}, "those of std above 0"),
        ({"mean": [0, 0]}, "a number a channel"), ({"input_size": [3, 64.0, 64.0]}, r"cannot be used.*64\.0"),
        ({"architecture": None}, "cannot be used"),
    ):  # fmt: skip
        (tmp_path / "net.json").write_text(json.dumps(card | change))
        with pytest.raises(BackboneError, match=message):
            load_backbone(path)
    (tmp_path / "net.json").write_text(json.dumps(card))
    (tmp_path / "net.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:1000])
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone(path)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("the code of a file ran",)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_pickled_file_gives_tensors_and_runs_nothing(tmp_path, capsys, suffix):
    torch.manual_seed(0)
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    card = {
        "architecture": "resnet18", "model_args": {"num_classes": 0}, "mean": [0, 0, 0], "std": [1, 1, 1],
        "input_size": [3, 32, 32], "interpolation": "bilinear",
    }  # fmt: skip
    for name in ("good", "evil", "safe"):
        (tmp_path / f"{name}.json").write_text(json.dumps(card))
    torch.save(state, tmp_path / f"good{suffix}")
    torch.save(state | {"trap": Trap()}, tmp_path / f"evil{suffix}")
    save_file(state, tmp_path / "safe.safetensors")
    good = load_backbone(f"file:{tmp_path / 'good'}{suffix}", precision="float32")
    assert good.fingerprint == load_backbone(f"file:{tmp_path}/safe.safetensors", precision="float32").fingerprint
    with pytest.raises(BackboneError, match="weights_only"):
        load_backbone(f"file:{tmp_path / 'evil'}{suffix}")
    assert "ran" not in capsys.readouterr().out


def test_torchvisions_checkpoints_run_nothing(tmp_path, monkeypatch, capsys):
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    cache.parent.mkdir(parents=True)
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state | {"trap": Trap()}, cache)
    with pytest.raises(BackboneError, match="weights_only"):
        load_backbone("torchvision/resnet18")
    assert "ran" not in capsys.readouterr().out
    torch.save(state, cache)
    loaded = load_backbone("torchvision/resnet18", precision="float32").networks[0].module.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet_lite1", "did you mean 'efficientnet_lite0'"),
        ("Lite0", "did you mean 'efficientnet_lite0'"),
        ("resnet50", "did you mean 'timm/resnet50'"),
        ("timm/resnet51", "near names: .*resnet50"),
        ("torchvision/resnet51", "near names: .*resnet50"),
        ("file:weights.npz", "expected weights in .safetensors"),
        ("file:weights.pth", "'weights.pth' is missing"),
        ("timm/", "no backbone id"),
        ("torchvison/resnet50", "did you mean 'torchvision/resnet50'"),
        ("timm/resnet50.nosuch", "no weights called 'nosuch' of resnet50; it has a1_in1k"),
    ],
)
def test_unknown_ids_are_refused_with_near_names(name, message):
    with pytest.raises(BackboneError, match=message):
        load_backbone(name)


def test_weights_that_cannot_be_had_say_how_to_get_them(monkeypatch):
    import timm

    def offline(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(BackboneError, match=r"HF_HUB_OFFLINE.*safetensors.*--no-weights"):
        load_backbone("timm/resnet18")


def test_devices_and_precisions_that_are_not_here_are_refused():
    with pytest.raises(BackboneError, match="available"):
        load_backbone("efficientnet_lite0", device="xla")
    with pytest.raises(BackboneError, match="GPU"):
        load_backbone("efficientnet_lite0", precision="float16")


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_torchvision(name):
    backbone = load_backbone(f"torchvision/{name}", weights=False, precision="float32")
    assert backbone.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    assert backbone.logits is not None
    assert backbone.tap(backbone.logits).shape == (1000,)
    assert backbone.tap(backbone.prelogits).channels in (512, 1024)
    assert len(backbone.taps) > 20


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_branches_are_the_same_with_weights_and_without(name, tmp_path, monkeypatch):
    from torchvision import models

    weights = models.get_model_weights(name)["DEFAULT"]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    cache.parent.mkdir(parents=True)
    torch.save(models.get_model(name, weights=None, aux_logits=True, init_weights=False).state_dict(), cache)
    trained, bare = (
        load_backbone(f"torchvision/{name}", weights=asked, image_size=96, precision="float32").networks[0].module
        for asked in (True, False)
    )
    assert trained.state_dict().keys() == bare.state_dict().keys()
    bare.load_state_dict(trained.state_dict())
    with torch.inference_mode():
        pixels = torch.rand(2, 3, 96, 96)
        assert torch.equal(trained(pixels), bare(pixels))


def test_a_crop_that_timm_makes_otherwise_is_refused():
    with pytest.raises(BackboneError, match="crop mode 'squash'"):
        load_backbone("timm/dm_nfnet_f0", weights=False, resize="crop", image_size=32)
