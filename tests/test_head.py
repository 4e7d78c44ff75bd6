import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from head2toe.apply import predict_files
from head2toe.backbones import load_backbone
from head2toe.backbones.build import side_by_side
from head2toe.backbones.module import Transformed
from head2toe.errors import FeatureError, HeadError
from head2toe.gather import encoded, forward
from head2toe.head import (
    Head,
    KeptTap,
    Metrics,
    Provenance,
    check_target,
    described,
    load_head,
    picture_options,
    softmax,
)
from head2toe.taps import Pool, PooledTap


@pytest.fixture
def head(network) -> Head:
    random = np.random.default_rng(0)
    pooled = [PooledTap(tap, Pool(32)) for tap in network.taps[:2]]
    kept = tuple(KeptTap(tap, np.array([0, 3, tap.length - 1])) for tap in pooled)
    W, b = random.standard_normal((6, 3)).astype(np.float32), np.zeros(3, np.float32)
    return Head(
        network.id, network.fingerprint, "float32", {"size": [16, 16]}, "float32", kept, "tap", W, b, ("x", "y", "z"),
        Metrics(10, 0.5), Provenance("head2toe", {"keep": 0.1}, 5, 60),
    )  # fmt: skip


@pytest.fixture
def images():
    return list(np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))


def test_a_saved_head_predicts_the_same(head, network, images, tmp_path):
    again = load_head(head.save_pretrained(tmp_path / "head"))
    assert np.array_equal(again.predict_logits(images, network), head.predict_logits(images, network))
    assert again.metrics == head.metrics
    assert again.provenance == head.provenance
    assert again.classes == head.classes


def test_the_backbone_is_found_again_at_the_size_that_the_head_was_fitted_at(head):
    small = load_backbone("efficientnet_lite0", precision="float32", image_size=64)
    fitted = replace(head, backbone=small.id, preprocessing=described(small.preprocess))
    assert fitted.load_backbone().fingerprint == small.fingerprint


def test_a_prediction_runs_no_deeper_than_the_deepest_kept_tap(head, network, images):
    module = network.networks[0].module
    ran = []
    hooks = [
        part.register_forward_hook(lambda m, i, o: ran.append(m)) for part in module.modules() if part is not module
    ]
    head.predict_logits(images, network)
    for hook in hooks:
        hook.remove()
    assert ran
    assert module[-1] not in ran


def test_only_kept_columns_are_gathered(network, images):
    pooled = PooledTap(network.taps[0], Pool(32))
    batch = network.collate([network.preprocess(image) for image in images])
    wanted = [(pooled, np.arange(pooled.length)), (pooled, np.array([4, 2]))]
    whole, some = forward(network, batch, wanted, "none", "float32", [""] * len(images))
    assert np.array_equal(some, whole[:, [4, 2]])


def test_another_backbone_is_refused(head, network, images):
    with pytest.raises(HeadError, match="fingerprint"):
        replace(head, fingerprint="0" * 64).predict_logits(images, network)


def test_saving_twice_replaces_the_head_and_spares_strangers(head, tmp_path):
    folder = head.save_pretrained(tmp_path / "head")
    replace(head, b=np.ones(3, np.float32)).save_pretrained(folder)
    assert load_head(folder).b.tolist() == [1, 1, 1]
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(HeadError, match=r"thesis\.txt"):
        head.save_pretrained(folder)
    assert (folder / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("file", ["config.json", "head.safetensors"])
def test_a_damaged_head_is_refused(head, tmp_path, file):
    folder = head.save_pretrained(tmp_path / "head")
    (folder / file).write_bytes((folder / file).read_bytes()[:40])
    with pytest.raises(HeadError, match="damaged"):
        load_head(folder)


def test_columns_outside_their_tap_are_refused(head, tmp_path):
    first = head.kept[0]
    broken = replace(head, kept=(KeptTap(first.pooled, np.array([0, 1, first.pooled.length])), *head.kept[1:]))
    with pytest.raises(HeadError, match="outside"):
        load_head(broken.save_pretrained(tmp_path / "head"))


def test_a_newer_format_is_refused(head, tmp_path):
    folder = head.save_pretrained(tmp_path / "head")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(HeadError, match="format 99"):
        load_head(folder)


def test_a_folder_without_a_head_is_refused(tmp_path):
    with pytest.raises(HeadError, match=r"config\.json"):
        load_head(tmp_path)


def test_the_card_names_every_kept_layer(head, tmp_path):
    card = (head.save_pretrained(tmp_path / "head") / "README.md").read_text()
    for kept in head.kept:
        assert f"| {kept.pooled.name} |" in card


def test_softmax_sums_to_one_for_huge_logits():
    p = softmax(np.array([[1e4, 0.0], [0.0, 0.0]]))
    assert np.allclose(p.sum(1), 1)
    assert p[1].tolist() == [0.5, 0.5]


# elsewhere prediction does without copies, which the tests above see
@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")
def test_copies_of_this_process_label_many_files_in_their_order(head, network, tmp_path, monkeypatch):
    monkeypatch.setattr("head2toe.apply.how_many", lambda device: 2)
    pixels = np.random.default_rng(2).integers(0, 256, (100, 16, 16, 3), dtype=np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(len(pixels))]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    seen: list[int] = []
    hook = network.networks[0].module[0].register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    found = list(predict_files(head, files, backbone=network))
    hook.remove()
    assert [one.file for one in found] == [str(file) for file in files]
    rows = np.array([list(one.probabilities.values()) for one in found])
    assert np.allclose(rows, softmax(head.predict_logits(list(pixels), network)), atol=1e-6)
    assert seen == [16]  # the first of them, by this process


def test_a_folder_that_is_no_head_is_left_alone(head, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "README.md").write_text("mine")
    with pytest.raises(HeadError, match="is not a head"):
        head.save_pretrained(notes)
    with pytest.raises(HeadError, match="nothing can be written"):
        check_target(notes / "README.md" / "head")
    assert (notes / "README.md").read_text() == "mine"


def test_a_head_whose_replacement_fails_is_still_there(head, network, images, tmp_path, monkeypatch):
    folder = head.save_pretrained(tmp_path / "head")
    rename = Path.rename

    def failing(self, target):
        if self.name == "head" and self != folder:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(KeyboardInterrupt):
            replace(head, b=head.b + 1).save_pretrained(folder)
    assert np.array_equal(load_head(folder).b, head.b)
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize("config", ["[]", "null", '{"format": 1, "kept": 3}'])
def test_a_config_of_another_form_is_damage(config, head, tmp_path):
    folder = head.save_pretrained(tmp_path / "head")
    (folder / "config.json").write_text(config)
    with pytest.raises(HeadError, match="damaged"):
        load_head(folder)


def test_a_head_on_two_networks_finds_them_at_their_size(head):
    pair = load_backbone("efficientnet_lite0+efficientnet_lite0", precision="float32", image_size=64, resize="crop")
    fitted = replace(head, backbone=pair.id, preprocessing=json.loads(json.dumps(described(pair.preprocess))))
    assert fitted.load_backbone().fingerprint == pair.fingerprint


def test_a_name_is_a_file_to_every_network_that_sees(head, network, images, tmp_path):
    pair = side_by_side((network, network))
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    assert encoded(str(tmp_path / "a.png"), pair) == (tmp_path / "a.png").read_bytes()


def test_networks_of_two_sizes_are_found_at_their_own(head):
    sizes = {"parts": [{"size": [224, 224], "resize": "crop"}, {"size": [160, 160], "resize": "crop"}]}
    assert picture_options(sizes) == {"resize": "crop", "image_size": None}
    assert picture_options({"parts": [{"size": [64, 64]}, {"size": [64, 64]}]})["image_size"] == 64


def test_a_preprocessing_that_json_cannot_hold_is_told_by_its_name(head, network, tmp_path):
    assert described(Transformed(str)) == {"name": "Transformed"}
    replace(head, preprocessing=described(Transformed(str))).save_pretrained(tmp_path / "head")


def test_what_is_not_finite_gets_no_label_and_is_named(head, network, images, tmp_path):
    huge = replace(network.networks[0], run=lambda module, batch: module(batch.args[0] * 1e30))
    wild, asked = replace(network, networks=(huge,)), replace(head, dtype="float16")
    with pytest.raises(FeatureError, match=rf"tap '{network.taps[0].name}' is no finite float16 number for input 0 \("):
        asked.predict_proba(images, wild)
    Image.fromarray(images[0]).save(tmp_path / "wild.png")
    with pytest.raises(FeatureError, match=r"for '.*wild\.png'"):
        asked.predict_proba([tmp_path / "wild.png"], wild)


def test_files_are_read_batch_by_batch(head, network, tmp_path, monkeypatch):
    for i in range(40):
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    read, passes, read_bytes = [], [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self) or read_bytes(self))

    def run(module, batch):
        passes.append((len(read), len(batch.args[0])))
        return module(*batch.args)

    told = replace(network.networks[0], run=run)
    head.predict_proba(sorted(tmp_path.glob("*.png")), replace(network, networks=(told,)))
    assert passes[-2:] == [(32, 32), (40, 8)]  # before them: what a network is asked once, on a few invented inputs


def test_no_inputs_have_no_labels_and_a_module_must_be_given(head, network):
    assert head.predict_proba([], network).shape == (0, 3)
    with pytest.raises(HeadError, match="give backbone="):
        head.predict([])


def test_a_link_stays_and_what_it_points_to_is_replaced(head, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    head.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_head(tmp_path / "disk").classes == head.classes


def test_a_folder_that_cannot_be_replaced_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HeadError, match="choose a new folder within it"):
        check_target(Path())


@pytest.mark.parametrize(
    "changed",
    [
        {"scaling": "bogus"}, {"precision": "x"}, {"dtype": "foo"}, {"dtype": None}, {"classes": "xyz"},
        {"backbone": 5}, {"fingerprint": None}, {"preprocessing": []},
    ],
)  # fmt: skip
def test_values_that_no_head_has_are_damage(head, tmp_path, changed):
    folder = head.save_pretrained(tmp_path / "head")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(HeadError, match="is damaged"):
        load_head(folder)


def test_weights_that_are_no_numbers_are_damage(head, tmp_path):
    folder = replace(head, W=np.full_like(head.W, np.nan)).save_pretrained(tmp_path / "head")
    with pytest.raises(HeadError, match="NaN"):
        load_head(folder)
