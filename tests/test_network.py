import json
from dataclasses import replace

import numpy as np
import pytest

from head2toe.apply import evaluate_on
from head2toe.backbones import load_backbone
from head2toe.data.sources import Memory
from head2toe.data.task import Split
from head2toe.errors import DataError, HeadError
from head2toe.head import Head, KeptTap, Metrics, Provenance, load_head
from head2toe.methods.finetune import on_last_features
from head2toe.network import Network, Tapped, load_model, load_network
from head2toe.taps import Pool, PooledTap


def random_network(backbone, seed: int = 0) -> Network:
    model = on_last_features(backbone, 4)
    random = np.random.default_rng(seed)
    state = {name: array + np.abs(random.normal(0, 0.1, array.shape)).astype(array.dtype)
             for name, array in model.tensors().items()}  # fmt: skip
    model.load_tensors(state)
    provenance = Provenance("finetune", {"lr": 0.1, "augment": "none"}, 1, 16)
    return Network(model, ("0", "1", "2", "3"), Metrics(60, 0.5, 0.25), provenance)


@pytest.fixture
def trained(network) -> Network:
    return random_network(network)


@pytest.fixture(scope="module")
def lite0():
    return load_backbone("efficientnet_lite0", precision="bfloat16", image_size=64)


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))


def test_a_saved_network_predicts_the_same(trained, network, images, tmp_path):
    again = load_network(trained.save_pretrained(tmp_path / "network"), backbone=network)
    assert np.array_equal(again.predict_logits(images), trained.predict_logits(images))
    assert (again.metrics, again.provenance, again.classes) == (trained.metrics, trained.provenance, trained.classes)
    assert again.n_bytes == trained.n_bytes


def test_a_named_network_is_rebuilt_from_its_id(lite0, images, tmp_path):
    trained = random_network(lite0)
    again = load_model(trained.save_pretrained(tmp_path / "network"))
    assert isinstance(again, Network)
    assert again.model.backbone.preprocess == lite0.preprocess
    assert np.array_equal(again.predict_proba(images), trained.predict_proba(images))
    kernel = again.model.get_parameter("bodies.0.conv_stem.weight").detach().numpy()
    assert not np.allclose(kernel, lite0.networks[0].module.get_parameter("conv_stem.weight").numpy(), atol=1e-3)


def test_the_old_classifier_is_not_saved(network):
    trained = random_network(network)
    module = network.networks[0].module
    features, classes = 16, 4
    counter = sum(8 for name in module.state_dict() if name.endswith("num_batches_tracked"))
    floats = sum(t.numel() for name, t in module.state_dict().items() if "tracked" not in name and name[0] != "4")
    assert trained.n_bytes == 4 * (floats + features * classes + classes) + counter
    assert trained.model.unread == {"bodies.0.4.weight", "bodies.0.4.bias"}


def test_layers_beyond_the_deepest_kept_tap_are_not_saved(network):
    tap = PooledTap(network.taps[0], Pool(0))
    kept = [KeptTap(tap, np.arange(tap.length))]
    model = Tapped(network, kept, "none", np.ones((tap.length, 2), np.float32), np.zeros(2, np.float32))
    named = {name for name, _ in model.named_parameters()}
    assert named - model.unread == {
        "bodies.0.0.0.weight", "bodies.0.0.0.bias", "bodies.0.0.1.weight", "bodies.0.0.1.bias",
        "classifier.weight", "classifier.bias",
    }  # fmt: skip


def test_a_module_of_ones_own_has_to_be_given(trained, tmp_path):
    with pytest.raises(HeadError, match="backbone="):
        load_model(trained.save_pretrained(tmp_path / "network"))


def test_weights_of_another_architecture_are_refused(trained, network):
    tensors = trained.model.tensors()
    fresh = on_last_features(network, 4)
    with pytest.raises(HeadError, match=r"do not fit module:Sequential.*classifier\.bias"):
        fresh.load_tensors({name: array for name, array in tensors.items() if name != "classifier.bias"})
    with pytest.raises(HeadError, match=r"do not fit.*bodies\.0\.4\.bias"):
        fresh.load_tensors(tensors | {"bodies.0.4.bias": np.zeros(5, np.float32)})
    with pytest.raises(HeadError, match="do not fit"):
        fresh.load_tensors(tensors | {"classifier.bias": np.zeros(7, np.float32)})


def test_all_unreadable_pictures_are_named_before_any_is_labelled(trained, corners):
    source = Memory((b"no picture", *(corners.test.source[i] for i in range(2)), b"nor this"), "test")
    test = Split(("a", *corners.test.ids[:2], "b"), corners.test.labels[:4], source)
    with pytest.raises(DataError, match="2 of 4 inputs"):
        evaluate_on(trained, replace(corners, test=test))


@pytest.mark.parametrize("file", ["config.json", "network.safetensors"])
def test_a_damaged_network_is_refused(trained, network, tmp_path, file):
    folder = trained.save_pretrained(tmp_path / "network")
    (folder / file).write_bytes((folder / file).read_bytes()[:40])
    with pytest.raises(HeadError, match="damaged"):
        load_network(folder, backbone=network)


def test_another_preprocessing_is_refused(lite0, tmp_path):
    folder = random_network(lite0).save_pretrained(tmp_path / "network")
    config = json.loads((folder / "config.json").read_text())
    config["preprocessing"]["mean"] = [0.0, 0.0, 0.0]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(HeadError, match="preprocesses its inputs in another way"):
        load_model(folder)


def test_a_folder_says_whether_it_holds_a_head_or_a_network(trained, network, tmp_path):
    pooled = PooledTap(network.taps[0], Pool(32))
    W, b = np.ones((2, 4), np.float32), np.zeros(4, np.float32)
    head = Head(
        network.id, network.fingerprint, "float32", {"size": [16, 16]}, "float32",
        (KeptTap(pooled, np.array([0, 3])),), "tap", W, b, trained.classes, trained.metrics, trained.provenance,
    )  # fmt: skip
    assert isinstance(load_model(head.save_pretrained(tmp_path / "one")), Head)
    trained.save_pretrained(tmp_path / "one")
    with pytest.raises(HeadError, match="holds a network, not a head"):
        load_head(tmp_path / "one")
    with pytest.raises(HeadError, match="holds a head, not a network"):
        load_network(head.save_pretrained(tmp_path / "two"))


def test_it_is_evaluated_like_a_head(trained, corners):
    found = evaluate_on(trained, corners)
    right = trained.logits_of(corners.test.source).argmax(1) == corners.test.labels
    assert (found.split, found.n, found.accuracy) == ("test", 40, right.mean())
    untested = replace(corners, validation=corners.test, test=None)
    everything = evaluate_on(trained, untested)
    seen = trained.logits_of(corners.train.source).argmax(1) == corners.train.labels
    assert (everything.split, everything.n, everything.accuracy) == ("all", 100, np.r_[seen, right].mean())
    with pytest.raises(HeadError, match="does not know the class"):
        evaluate_on(replace(trained, classes=("a", "b", "c", "d")), corners)


def test_the_card_says_how_it_was_trained(trained, tmp_path):
    card = (trained.save_pretrained(tmp_path / "network") / "README.md").read_text()
    assert "| lr | 0.1 |" in card
    assert "| test accuracy | 0.2500 |" in card
