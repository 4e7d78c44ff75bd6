"""Extraction on a network small enough to compute by hand what must be stored."""

import io
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone
from head2toe.data import Split, task_from_arrays
from head2toe.data.sources import Files
from head2toe.data.task import item_id
from head2toe.errors import BackboneError, DataError, FeatureError, StoreError
from head2toe.extract import Extraction, extract, view_of
from head2toe.images import ImagePreprocess
from head2toe.store import FeatureStore
from head2toe.taps import Pool

SIZE = 8
POOL = Pool(16)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.second(self.first(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    preprocess = ImagePreprocess((SIZE, SIZE), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), "nearest")
    return load_backbone(Net(), preprocess=preprocess, precision="float32")


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


@pytest.fixture
def passes(monkeypatch) -> list[tuple[int, tuple[str, ...]]]:
    """(batch size, taps) of every pass through the network."""
    seen, forward = [], Backbone.forward

    def spy(self, batch, taps, reduce):
        seen.append((len(batch[0].args[0]), tuple(taps)))
        return forward(self, batch, taps, reduce)

    monkeypatch.setattr(Backbone, "forward", spy)
    return seen


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


def split(pixels: np.ndarray) -> Split:
    return task_from_arrays(pixels, np.arange(len(pixels)) % 2).train


def names(backbone: Backbone) -> list[str]:
    return [tap.name for tap in backbone.taps]


def stored(store, backbone, data: Split, pool: Pool = POOL) -> list[np.ndarray]:
    return list(store.read(view_of(backbone, pool), data.ids, backbone.taps).blocks)


@pytest.mark.parametrize("workers", [0, 2])
def test_stored_features_are_the_pooled_outputs_of_the_network(backbone, store, workers):
    pixels = images(7)
    data = split(pixels)
    done = extract(backbone, [data], store, [POOL], batch_size=3, workers=workers, progress=False)
    assert (done.total, done.computed) == (7, 7)

    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2
    outputs, net = {}, backbone.networks[0].module
    for name, part in net.named_modules():
        part.register_forward_hook(lambda _part, _args, out, name=name: outputs.update({name: out.clone()}))
    with torch.inference_mode():
        net(x)
    for part in net.modules():
        part._forward_hooks.clear()
    table = store.read(view_of(backbone, POOL), data.ids, backbone.taps)
    compared = 0
    for tap, block in zip(backbone.taps, table.blocks, strict=True):
        if tap.name in outputs:
            np.testing.assert_allclose(block, POOL(outputs[tap.name], tap).numpy(), atol=1e-5)
            compared += 1
    assert compared >= 3


def test_processes_and_threads_store_the_same_bytes(backbone, tmp_path):
    data, stores = split(images(70)), [FeatureStore(tmp_path / str(workers)) for workers in (0, 1, 2)]
    for workers, store in enumerate(stores):
        extract(backbone, [data], store, [POOL], workers=workers, progress=False)
    for a, b, c in zip(*(stored(store, backbone, data) for store in stores), strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)


def test_an_input_that_a_copy_cannot_prepare_is_named(backbone, store):
    def prepare(pixels):
        if pixels.max() == 0:
            raise DataError("it is black")
        return backbone.preprocess(pixels)

    pixels = images(40)
    pixels[37] = 0
    with pytest.raises(DataError, match=r"prepare: .*37.*: it is black"):
        extract(replace(backbone, preprocess=prepare), [split(pixels)], store, [POOL], workers=2, progress=False)
    assert len(store.missing(view_of(backbone, POOL), split(pixels).ids, backbone.taps)) == 8


def test_a_copy_that_dies_is_an_error_with_a_way_out(backbone, store):
    parent = os.getpid()

    def prepare(pixels):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return backbone.preprocess(pixels)

    with pytest.raises(BackboneError, match=r"if memory ran out, .*OMP_NUM_THREADS=1, or workers=0"):
        extract(replace(backbone, preprocess=prepare), [split(images(9))], store, [POOL], workers=2, progress=False)


def test_the_same_image_is_computed_once(backbone, store, passes):
    pixels = images(5)
    train, test = split(pixels[[0, 1, 0, 2]]), split(pixels[[2, 3, 4, 4]])
    done = extract(backbone, [train, test], store, [POOL], workers=0, progress=False)
    assert (done.total, done.computed, sum(size for size, _ in passes)) == (5, 5, 5)
    again = extract(backbone, [test, train], store, [POOL], workers=0, progress=False)
    assert str(again).startswith("0 of 5 computed")
    assert len(passes) == 1
    more = extract(
        backbone, [split(images(8))], store, [POOL], workers=0, progress=False
    )  # its first five are these five
    assert (more.total, more.computed) == (8, 3)


def test_several_pools_share_one_pass(backbone, tmp_path, passes):
    data, pools = split(images(4)), [Pool(0), Pool(16), Pool(16, "grid"), Pool(64)]
    together, alone = FeatureStore(tmp_path / "together"), FeatureStore(tmp_path / "alone")
    extract(backbone, [data], together, pools, workers=0, progress=False)
    assert len(passes) == 1
    for pool in pools:
        extract(backbone, [data], alone, [pool], workers=0, progress=False)
        for a, b in zip(stored(together, backbone, data, pool), stored(alone, backbone, data, pool), strict=True):
            assert np.array_equal(a, b)
    assert extract(backbone, [data], together, [Pool(16), Pool(8)], workers=0, progress=False).computed == 4


def test_only_what_each_input_lacks_is_computed(backbone, store, passes):
    data, taps = split(images(6)), names(backbone)
    shallow, deep = taps[:1], [taps[0], taps[-1]]
    extract(backbone, [data.rows(np.arange(2))], store, [POOL], taps=shallow, workers=0, progress=False)
    passes.clear()
    done = extract(backbone, [data], store, [POOL], taps=deep, workers=0, progress=False)
    assert done.computed == 6
    assert passes == [(2, (taps[-1],)), (4, tuple(deep))]
    assert extract(backbone, [data], store, [POOL], taps=deep, workers=0, progress=False).computed == 0


def test_dtype_follows_the_precision(backbone):
    assert view_of(backbone, POOL).dtype == "float32"
    assert view_of(replace(backbone, precision="bfloat16"), POOL).dtype == "float16"
    assert view_of(backbone, POOL, "bfloat16").dtype == "bfloat16"


def test_unreadable_images_are_found_before_the_network_starts(backbone, store, passes, tmp_path):
    good = io.BytesIO()
    Image.new("RGB", (30, 30), "red").save(good, "PNG")
    for name, content in {"a.png": good.getvalue(), "b.png": good.getvalue()[:50], "c.png": b"?"}.items():
        (tmp_path / name).write_bytes(content)
    source = Files(str(tmp_path), ("a.png", "b.png", "c.png"))
    data = Split(tuple(item_id(source[row]) for row in range(3)), np.array([0, 1, 1]), source)
    with pytest.raises(DataError, match=r"2 of 3 inputs(.|\n)*b.png(.|\n)*c.png(.|\n)*skip_bad"):
        extract(backbone, [data], store, [POOL], progress=False)
    assert passes == []
    assert extract(backbone, [data.rows(np.array([0]))], store, [POOL], progress=False).computed == 1


def test_features_that_no_float16_can_hold_name_tap_and_input(store):
    net = Net()
    with torch.no_grad():
        net.fc.weight.fill_(1e8)
    preprocess = ImagePreprocess((SIZE, SIZE), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    loud = load_backbone(net, preprocess=preprocess, precision="float32")
    data = split(images(3))
    with pytest.raises(FeatureError, match=r"tap 'fc' is .*'train\[0\]'.*taps that need float32: 'fc';"):
        extract(loud, [data], store, [POOL], dtype="float16", progress=False)
    assert extract(loud, [data], store, [POOL], progress=False).computed == 3


def test_features_that_are_no_numbers_name_tap_and_input(store):
    net = Net()
    with torch.no_grad():
        net.second[0].weight[2].fill_(torch.nan)
    preprocess = ImagePreprocess((SIZE, SIZE), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    broken = load_backbone(net, preprocess=preprocess, precision="float32")
    data = split(images(3))
    with pytest.raises(FeatureError, match=r"tap 'second.*' is nan.*'train\[0\]'.*taps with such numbers: 'second"):
        extract(broken, [data], store, [POOL], progress=False)
    assert store.missing(view_of(broken, POOL), data.ids, broken.taps) == list(data.ids)


def test_an_interrupted_extraction_is_continued_to_the_same_bytes(backbone, tmp_path, monkeypatch):
    data, pools = split(images(11)), [POOL, Pool(64)]
    whole, broken = FeatureStore(tmp_path / "whole"), FeatureStore(tmp_path / "broken")
    extract(backbone, [data], whole, pools, batch_size=2, workers=0, progress=False)

    forward, calls = Backbone.forward, []

    def interrupted(self, batch, taps, reduce):
        calls.append(taps)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, batch, taps, reduce)

    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(backbone, [data], broken, pools, batch_size=2, workers=0, progress=False)
    for pool in pools:
        assert broken.missing(view_of(backbone, pool), data.ids, backbone.taps) == list(data.ids[6:])
    assert extract(backbone, [data], broken, pools, batch_size=2, workers=0, progress=False).computed == 5
    for pool in pools:
        for a, b in zip(stored(whole, backbone, data, pool), stored(broken, backbone, data, pool), strict=True):
            assert np.array_equal(a, b)


def test_a_failing_store_stops_the_extraction(backbone, store, monkeypatch):
    def full(self, view, ids, features):
        raise OSError("disk full")

    monkeypatch.setattr(FeatureStore, "write", full)
    with pytest.raises(OSError, match="disk full"):
        extract(backbone, [split(images(3))], store, [POOL], progress=False)


def test_progress_stays_out_of_pipes(backbone, store, capfd):
    extract(backbone, [split(images(3))], store, [POOL])
    assert capfd.readouterr() == ("", "")


def test_progress_shows_speed_on_a_terminal(backbone, store, capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    extract(backbone, [split(images(3))], store, [POOL])
    out, err = capfd.readouterr()
    assert out == ""
    assert "3/3" in err
    assert "inputs/s" in err
    assert "MB/s" in err


def test_an_extraction_reads_as_a_sentence():
    assert str(Extraction(1000, 0, 0.04)) == "0 of 1,000 computed in 0.0 s"


def test_an_input_that_changed_since_it_was_loaded_is_refused(backbone, store):
    pixels = images(6)
    data = split(pixels)
    pixels[4] += 1
    with pytest.raises(DataError, match=r"\[4\]: it has changed since it was loaded"):
        extract(backbone, [data], store, [POOL], progress=False)
    assert store.missing(view_of(backbone, POOL), data.ids, backbone.taps) == list(data.ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_input_that_vanishes_while_others_are_computed_is_named(backbone, store, tmp_path, workers):
    for i, pixels in enumerate(images(200)):
        Image.fromarray(pixels).save(tmp_path / f"{i:03}.png")
    files = Files(str(tmp_path), tuple(f"{i:03}.png" for i in range(200)))
    data = Split(tuple(item_id(item) for item in files), np.zeros(200, np.int64), files)
    run, ran = backbone.networks[0].run, []

    def vanishing(module, batch):
        if not ran:
            ran.append((tmp_path / "199.png").unlink())
        return run(module, batch)

    changed = replace(backbone, networks=(replace(backbone.networks[0], run=vanishing),))
    with pytest.raises(DataError, match=r"199\.png: it cannot be opened: No such file"):
        extract(changed, [data], store, [POOL], workers=workers, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": -3}, "batch_size must be at least 1, got -3"), ({"workers": -1}, "workers must be at least 0"),
     ({"dtype": "float8"}, "dtype must be one of float16, float32, bfloat16, got float8")],
)  # fmt: skip
def test_options_are_checked_before_anything(backbone, store, options, message):
    with pytest.raises(DataError, match=message):
        extract(backbone, [split(images(2))], store, [POOL], **options)


def test_a_store_that_cannot_be_written_is_told_before_the_network_starts(backbone, passes, tmp_path):
    (tmp_path / "notes").write_text("")
    with pytest.raises(StoreError, match="it is a file"):
        extract(backbone, [split(images(2))], FeatureStore(tmp_path / "notes"), [POOL], progress=False)
    assert passes == []


def test_seconds_are_told_by_split(backbone, store):
    first, second = split(images(6)), split(np.concatenate([images(2), images(4, seed=1)]))
    done = extract(backbone, [first, second], store, [POOL], progress=False)
    assert (done.total, done.computed, done.of_splits) == (10, 10, (6, 4))
    assert extract(backbone, [first, second], store, [POOL], progress=False).of_splits == (0, 0)
