"""Networks trained whole: what each method promises, and that a run is repeatable, resumable and counted."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from head2toe.backbones import load_backbone
from head2toe.data import task_from_arrays
from head2toe.data.sources import Memory
from head2toe.errors import BackboneError, DataError, NotConvergedError
from head2toe.gather import pooled
from head2toe.head import KeptTap, softmax
from head2toe.images import ImagePreprocess
from head2toe.methods.finetune import FineTune, is_folded, on_last_features
from head2toe.methods.head2toe import Head2Toe
from head2toe.methods.head2toe_ft import Head2ToeFT, _judging
from head2toe.methods.linear import Linear
from head2toe.methods.problem import Journal, training_splits
from head2toe.methods.scratch import Scratch, untrained
from head2toe.methods.training import Training, choice, loop
from head2toe.methods.training.checkpoint import Checkpoint
from head2toe.methods.training.choice import _digest, held_out_rows
from head2toe.methods.training.rows import Rows, augmented, read_rows
from head2toe.network import Network, Tapped
from head2toe.table import scaled
from head2toe.taps import Pool, PooledTap

SHORT = Training(lrs=(1e-2,), steps=(6,), augments=("none",), batch_size=16)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture(scope="module")
def narrow():
    """A network whose last features are three numbers: too few for a probe, enough for a network that learns them."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((3, 8), (8, 16))]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 3), nn.ReLU(), nn.Linear(3, 5))
    preprocess = ImagePreprocess((16, 16), (0.5,) * 3, (0.25,) * 3, "nearest")
    return load_backbone(module, preprocess=preprocess, precision="float32")


def weights(network: Network) -> dict[str, np.ndarray]:
    return network.model.tensors()


def alike(a: Network, b: Network) -> bool:
    mine, other = weights(a), weights(b)
    return mine.keys() == other.keys() and all(np.array_equal(mine[name], other[name]) for name in mine)


def test_fine_tuning_beats_the_linear_probe_and_spares_the_callers_network(narrow, corners, store):
    module = narrow.networks[0].module
    before = copy.deepcopy(module.state_dict())
    tuned = FineTune(Training(lrs=(1e-2, 1e-9), steps=(60,), augments=("none",))).fit(narrow, corners, store)
    linear = Linear(64).fit(narrow, corners, store, progress=False)
    assert tuned.metrics.test_accuracy > linear.metrics.test_accuracy + 0.3
    assert tuned.provenance.settings["lr"] == 1e-2
    assert not module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_gradient_descent_with_momentum_learns_too_and_steps_otherwise(narrow, corners, store):
    one = Training(lrs=(1e-1,), steps=(60,), augments=("none",), optimizer="sgd")
    tuned = FineTune(one).fit(narrow, corners, store)
    linear = Linear(64).fit(narrow, corners, store, progress=False)
    assert tuned.metrics.test_accuracy > linear.metrics.test_accuracy + 0.3
    assert tuned.provenance.settings["optimizer"] == "sgd"
    assert not alike(tuned, FineTune(replace(one, optimizer="adamw")).fit(narrow, corners, store))


def test_predictions_equal_those_while_fitting(network, corners, store):
    tuned = FineTune(SHORT).fit(network, corners, store)
    inputs = [corners.test.source[i] for i in range(corners.test.n_rows)]
    right = tuned.predict_proba(inputs).argmax(1) == corners.test.labels
    assert right.mean() == tuned.metrics.test_accuracy
    assert tuned.predict(inputs[:1])[0] in corners.classes


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_fit_goes_on_and_ends_bitwise_alike(optimizer, network, corners, store, tmp_path, monkeypatch):
    training = Training(lrs=(1e-2, 3e-2), steps=(7,), augments=("shift",), batch_size=16, optimizer=optimizer)
    method = FineTune(training)
    whole = method.fit(network, corners, tmp_path / "another")
    monkeypatch.setattr(loop, "SAVED_EVERY", 3)
    steps, one_step = 0, loop._step

    def killed_at(step):
        def counted(*arguments):
            nonlocal steps
            steps += 1
            if steps == step:
                raise KeyboardInterrupt
            return one_step(*arguments)

        monkeypatch.setattr(loop, "_step", counted)

    for step, done in ((5, 0), (9, 1), (10, 2)):  # in the first run, in the second, in the last
        steps = 0
        killed_at(step)
        with pytest.raises(KeyboardInterrupt):
            method.fit(network, corners, store)
        (left,) = store.with_name("store-training").iterdir()
        assert len(Checkpoint(left).finished()) == done
    steps, journal = 0, Journal()
    killed_at(0)
    (left / "seconds.json").write_text('{"spent": 1000.0}')
    again = method.fit(network, corners, store, journal=journal)
    assert 1000 < journal.seconds["train"] < 1100  # those of the killed processes, too
    assert steps == 7 - 3 + 1  # the last run from its third step, and the step that is counted
    assert alike(whole, again)
    assert again.metrics == whole.metrics
    assert not store.with_name("store-training").exists()


def test_head2toe_ft_starts_at_the_heads_own_predictions_and_learns(network, corners, store):
    head2toe = Head2Toe(64, keep=0.05)
    head = head2toe.fit(network, corners, store, progress=False)
    inputs = [corners.test.source[i] for i in range(corners.test.n_rows)]
    untouched = Head2ToeFT(head2toe, replace(SHORT, steps=(0,))).fit(network, corners, store)
    assert np.allclose(untouched.predict_logits(inputs), head.predict_logits(inputs, network), rtol=1e-4, atol=1e-4)
    assert untouched.metrics.test_accuracy == head.metrics.test_accuracy
    trained = Head2ToeFT(head2toe, replace(SHORT, lrs=(1e-3,), steps=(30,))).fit(network, corners, store)

    def loss(network):
        right = network.predict_proba([corners.train.source[i] for i in range(60)])[range(60), corners.train.labels]
        return -np.log(right).mean()

    assert loss(trained) < 0.9 * loss(untouched)
    first, last = (weights(one)["bodies.0.0.0.weight"] for one in (untouched, trained))
    assert not np.array_equal(first, last)


def test_head2toe_ft_says_which_head_it_started_from(network, corners, store):
    head2toe = Head2Toe(64, keep=0.2)
    head = head2toe.fit(network, corners, store)
    tuned = Head2ToeFT(head2toe, SHORT).fit(network, corners, store).provenance
    assert head.provenance.settings.items() <= tuned.settings.items()
    assert (tuned.method, tuned.settings["lr"], tuned.settings["steps"]) == ("head2toe-ft", 1e-2, 6)


def test_head2toe_ft_judges_by_a_head_that_saw_no_held_out_label(network, corners, store):
    images = np.stack([corners.train.source[i] for i in range(60)])
    task = task_from_arrays(images, np.random.default_rng(0).integers(0, 2, 60))
    fitted = Head2ToeFT(Head2Toe(64, keep=1.0), replace(SHORT, steps=(0,))).fit(network, task, store)
    assert fitted.metrics.cv_accuracy < 0.85  # all 60 labels are known by heart to a head that has seen them


def test_head2toe_ft_counts_the_extraction_of_all_training_images(network, corners, store):
    method, whole, alone = Head2ToeFT(Head2Toe(64, keep=0.05), replace(SHORT, steps=(0,))), Journal(), Journal()
    method.fit(network, corners, store, journal=whole)
    method.head2toe.fit(network, corners, store, journal=alone)
    assert whole.flops["extract"] == alone.flops["extract"]
    assert whole.extraction.computed == 60


def test_head2toe_ft_is_judged_by_a_head_of_as_few_rows_as_there_are(network, corners, store):
    images = np.stack([corners.train.source[i] for i in range(17)])
    labels = np.concatenate([corners.train.labels[:16], [4]])
    other = corners.train.source[17]
    task = task_from_arrays(images, labels, validation=(other[None], labels[-1:]))  # one of the last class in each
    assert np.bincount(labels).min() == 1
    fitted = Head2ToeFT(Head2Toe(64, keep=0.2), replace(SHORT, steps=(0,))).fit(network, task, store)
    assert fitted.metrics.n_train == 18


def test_an_unreadable_test_picture_is_found_before_the_first_step(network, corners, store, monkeypatch):
    broken = replace(corners.test, source=Memory([b"no picture"] * corners.test.n_rows, "broken"))
    monkeypatch.setattr(loop, "_step", lambda *arguments: pytest.fail("a step was made"))
    with pytest.raises(DataError, match=r"broken\[0\]"):
        FineTune(SHORT).fit(network, replace(corners, test=broken), store)


def test_trainings_from_other_heads_have_checkpoints_of_their_own(network):
    starts = []
    for seed in (0, 1):
        model = on_last_features(network, 4)
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.classifier.weight)
        starts.append(model)
    wider = on_last_features(network, 5)
    assert len({_digest(start) for start in (*starts, wider)}) == 3
    assert _digest(starts[0]) == _digest(copy.deepcopy(starts[0]))


def test_what_is_no_picture_is_not_trained_twice_for_nothing(network, corners, store, monkeypatch):
    tuned, runs, trained = FineTune(replace(SHORT, augments=("none", "shift"))), [], choice._trained

    def seen(work, start, run, *more):
        runs.append(run.augment)
        return trained(work, start, run, *more)

    monkeypatch.setattr(choice, "_trained", seen)
    tuned.fit(network, corners, store)
    assert runs[:-1] == ["none", "shift"]
    runs.clear()
    monkeypatch.setattr(Rows, "pictures", False)
    tuned.fit(network, corners, store)
    assert runs == ["none", "none"]  # judged, then on all rows


def test_a_fit_killed_while_it_is_tested_loses_no_training(network, corners, store, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Network, "logits_of", killed)
        with pytest.raises(KeyboardInterrupt):
            FineTune(SHORT).fit(network, corners, store)
    steps, one_step = [], loop._step
    monkeypatch.setattr(loop, "_step", lambda *given: steps.append(1) or one_step(*given))
    FineTune(SHORT).fit(network, corners, store)
    assert len(steps) == 1  # the one whose operations are counted


def _scaled(blocks, kept, scaling):
    return scaled(blocks[kept.pooled].numpy(), kept.columns, scaling, kept.pooled.n_means)


@pytest.mark.parametrize("scaling", ["none", "tap", "kept"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_taps_are_read_with_gradients_as_without(network, scaling, precision):
    backbone = replace(network, precision=precision)
    pools = Pool(32), Pool(32, rule="grid"), Pool(32, moments=2)
    taps = [PooledTap(tap, pool) for tap in network.taps[:3] for pool in pools]
    kept = [KeptTap(tap, np.arange(0, tap.length, 2)) for tap in taps]
    random = np.random.default_rng(0)
    W = random.standard_normal((sum(len(one.columns) for one in kept), 3)).astype(np.float32)
    model = Tapped(backbone, kept, scaling, W, np.zeros(3, np.float32))
    batch = backbone.collate(list(random.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)))
    blocks = pooled(backbone, batch, taps)
    plain = np.hstack([_scaled(blocks, one, scaling) for one in kept]) @ W
    logits = model(batch)
    assert np.allclose(logits.detach().numpy(), plain, rtol=1e-3, atol=1e-3 * np.abs(plain).max())
    logits.sum().backward()
    assert all(model.get_parameter(f"bodies.0.{k}.0.weight").grad.abs().sum() > 0 for k in (0, 1))


def test_an_output_that_the_network_overwrites_has_its_own_gradient():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.norm(x)
            y += x
            return self.last(y)

    preprocess = ImagePreprocess((8, 8), (0.5,) * 3, (0.25,) * 3, "nearest")
    backbone = load_backbone(Overwriting(), preprocess=preprocess, precision="float32")
    tap = PooledTap(backbone.tap("norm"), Pool(12))
    last = PooledTap(backbone.tap("last"), Pool(0))
    kept = [KeptTap(tap, np.arange(tap.length)), KeptTap(last, np.arange(3))]
    model = Tapped(backbone, kept, "none", np.ones((tap.length + 3, 2), np.float32), np.zeros(2, np.float32))
    model(backbone.collate([np.full((8, 8, 3), 9, np.uint8)] * 2)).sum().backward()
    assert model.get_parameter("bodies.0.norm.bias").grad is not None


def test_scratch_draws_its_weights_from_the_seed(network, corners, store):
    one, again, other = (
        Scratch(replace(SHORT, seed=seed)).fit(network, corners, store / str(k)) for k, seed in enumerate((1, 1, 2))
    )
    assert alike(one, again)
    assert not alike(one, other)
    drawn = untrained(network, 1).networks[0].module.state_dict()
    mine = network.networks[0].module.state_dict()
    assert not torch.equal(drawn["0.0.weight"], mine["0.0.weight"])


def test_scratch_of_a_named_network_draws_as_its_architecture_does():
    mine = load_backbone("timm/resnet10t", weights=False, precision="float32", image_size=64)
    one, again, other = (untrained(mine, seed).networks[0].module.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["conv1.0.weight"], other["conv1.0.weight"])
    kernel = one["layer4.0.conv1.weight"]
    assert kernel.std() == pytest.approx((2 / (9 * len(kernel))) ** 0.5, rel=0.05)  # He's, by fan-out


def test_parts_that_cannot_be_drawn_anew_are_named(network):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.last = nn.Parameter(torch.zeros(3, 1, 1)), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.last(x + self.shift)

    preprocess = ImagePreprocess((8, 8), (0.5,) * 3, (0.25,) * 3, "nearest")
    with pytest.raises(BackboneError, match="Odd"):
        untrained(load_backbone(Odd(), preprocess=preprocess, precision="float32"), 0)


def test_operations_equal_a_count_by_hand(store):
    size, channels, classes = 8, 5, 3
    conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    module = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 7))
    preprocess = ImagePreprocess((size, size), (0.5,) * 3, (0.25,) * 3, "nearest")
    backbone = load_backbone(module, preprocess=preprocess, precision="float32")
    images = np.random.default_rng(0).integers(0, 256, (20, size, size, 3), dtype=np.uint8)
    journal = Journal()
    training = Training(lrs=(1e-3, 1e-4), steps=(3,), augments=("none",), batch_size=4)
    FineTune(training).fit(backbone, task_from_arrays(images, np.arange(20) % classes), store, journal=journal)
    forward = 2 * size * size * 9 * 3 * channels + 2 * channels * classes
    # backward: gradients of both kernels, and of the features but not of the pixels
    backward = 2 * size * size * 9 * 3 * channels + 2 * (2 * channels * classes)
    assert journal.flops["train"] == (forward + backward) * 4 * 3 * (2 + 1)
    assert journal.seconds["train"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lrs": (float("nan"),)}, "positive number"),
        ({"lrs": (-1.0,)}, "positive number"),
        ({"lrs": ()}, "at least one"),
        ({"steps": (-1,)}, "negative"),
        ({"batch_size": 1}, "at least 2"),
        ({"weight_decay": float("inf")}, "weight decay"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(DataError, match=message):
        Training(**settings)


def test_a_rate_whose_loss_becomes_nan_loses(network, corners, store):
    settings = Training(lrs=(1e30, 1e-2), steps=(8,), augments=("none",), batch_size=16)
    assert FineTune(settings).fit(network, corners, store).provenance.settings["lr"] == 1e-2
    with pytest.raises(NotConvergedError, match="lower the rates"):
        FineTune(replace(settings, lrs=(1e30,))).fit(network, corners, store)


def test_the_validation_split_judges_where_there_is_one(network, corners, store):
    images, labels = np.stack([corners.train.source[i] for i in range(60)]), corners.train.labels
    task = task_from_arrays(images[:50], labels[:50], validation=(images[50:], labels[50:]))
    fitted = FineTune(SHORT).fit(network, task, store)
    assert fitted.metrics.cv_accuracy * 10 == pytest.approx(round(fitted.metrics.cv_accuracy * 10))
    assert fitted.metrics.n_train == 60
    assert fitted.metrics.test_accuracy is None


def test_frozen_statistics_stay(network, corners, tmp_path):
    rows, labels = read_rows(network, [corners.train]), corners.train.labels
    for frozen in (True, False):
        model = on_last_features(network, 4)
        before = model.bodies[0][0][1].running_mean.clone()
        (run,) = [loop.Run(1e-2, 2, "none")]
        loop.train(
            model, run, SHORT, rows, labels, np.arange(60), frozen_statistics=frozen,
            checkpoint=Checkpoint(tmp_path / str(frozen)), name="run", advance=lambda steps: None,
        )  # fmt: skip
        assert torch.equal(before, model.bodies[0][0][1].running_mean) == frozen


def test_rows_beyond_the_limit_of_memory_are_the_same(network, corners):
    schedule = [np.array([3, 1, 3]), np.array([59, 0, 7])]
    kept, read = read_rows(network, [corners.train]), read_rows(network, [corners.train], limit=1000)
    assert kept.kept
    assert not read.kept
    with kept.batches(schedule) as a, read.batches(schedule) as b:
        assert np.array_equal(np.array(list(a)), np.array(list(b)))


def test_a_shift_moves_a_picture_by_a_few_pixels_and_repeats_its_edge():
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    wide = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = {wide[y : y + 32, x : x + 32].tobytes() for y in range(5) for x in range(5)}
    moved = augmented([picture] * 1000, "shift", random)
    assert {one.tobytes() for one in moved} == windows
    mirrored = augmented([picture] * 2000, "shift+flip", random)
    turned = [np.ascontiguousarray(one[:, ::-1]).tobytes() for one in mirrored]
    assert {one.tobytes() for one in mirrored} == set(turned) > windows
    assert augmented([picture], "none", random)[0] is picture
    words = np.arange(5)
    assert augmented([words], "shift", random)[0] is words


def test_a_grouped_convolution_costs_what_its_groups_cost_one_by_one():
    def counted(convolutions: list[nn.Module], inputs: list[torch.Tensor]) -> int:
        with FlopCounterMode(display=False, custom_mapping=loop.COUNTED) as counter:
            torch.cat([part(x) for part, x in zip(convolutions, inputs, strict=True)], 1).sum().backward()
        return counter.get_total_flops()

    for make in (nn.Conv2d, nn.ConvTranspose2d):
        x = torch.zeros(2, 8, 6, 6, requires_grad=True)
        together = counted([make(8, 8, 3, groups=4)], [x])
        assert together == counted([make(2, 2, 3) for _ in range(4)], list(x.chunk(4, 1))) > 0


def test_the_rate_warms_up_and_ends_at_nothing():
    shares = [loop.share_of_lr(step, 100) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert 0 < shares[-1] < 0.01


def test_probabilities_are_those_of_the_logits(network, corners, store):
    tuned = FineTune(SHORT).fit(network, corners, store)
    logits = tuned.logits_of(corners.test.source)
    inputs = [corners.test.source[i] for i in range(40)]
    assert np.allclose(tuned.predict_proba(inputs), softmax(logits), atol=1e-6)


def test_channels_first_are_no_picture_to_shift():
    row = np.arange(3 * 32 * 32).reshape(3, 32, 32).astype(np.uint8)
    (same,) = augmented([row], "shift", np.random.default_rng(0))
    assert np.array_equal(same, row)


def test_a_network_without_its_last_features_is_not_trained(network):
    with pytest.raises(BackboneError, match="last features"):
        on_last_features(replace(network, taps=network.taps[:1]), 4)


def test_what_judges_is_never_in_what_is_judged(corners):
    """Train alone holds one class, so that validation rows are learned from, too."""
    rows = corners.train
    train, validation = rows.rows(np.flatnonzero(rows.labels == 0)), rows.rows(np.flatnonzero(rows.labels != 0))
    task = replace(corners, train=train, validation=validation)
    judging, held_out = _judging(task, 0), held_out_rows(task, 0)
    ids = np.array([id for split in training_splits(task) for id in split.ids])
    assert sorted(judging.train.ids) == sorted(ids[~held_out])
    assert len(np.unique(judging.train.labels)) == 4


def test_a_training_that_is_not_saved_yet_can_be_had_again(network, corners, store, monkeypatch):
    method, journal = FineTune(SHORT), Journal(forgets=False)
    first = method.fit(network, corners, store, journal=journal)
    monkeypatch.setattr(loop, "_step", lambda *of: pytest.fail("a step was made again"))
    monkeypatch.setattr(choice, "step_flops", lambda *of: 1)
    assert alike(first, method.fit(network, corners, store, journal=Journal(forgets=False)))
    journal.forget()
    assert not store.with_name(f"{store.name}-training").exists()


def test_what_is_damaged_of_a_checkpoint_is_done_again(network, tmp_path):
    left = Checkpoint(tmp_path)
    left.finish("one", 0.5)
    (tmp_path / "runs.json").write_text('{"one"')
    assert left.finished() == {}
    model = on_last_features(network, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    left.save("two", 3, model, optimizer)
    assert left.load("two", model, optimizer) == 3
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert left.load("two", model, optimizer) == 0


def folded(depth: int) -> nn.Sequential:
    """A network whose normalisations only add, as after a conversion from weights made for inference."""
    torch.manual_seed(0)
    parts = []
    for channels in (3, *[8] * (depth - 1)):
        norm = nn.BatchNorm2d(8)
        norm.bias.data.uniform_(-1, 1)
        norm.running_var.fill_(1 - norm.eps)
        parts += [nn.Conv2d(channels, 8, 3, padding=1), norm, nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def test_folded_normalisations_stay_as_they_are(corners, store):
    model = folded(2)
    backbone = load_backbone(model, preprocess=ImagePreprocess((16, 16), (0.5,) * 3, (0.5,) * 3), precision="float32")
    assert is_folded(model)
    tuned = FineTune(SHORT).fit(backbone, corners, store)
    norms = [part for part in tuned.model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert [part.running_mean.any().item() for part in norms] == [False, False]
    assert norms[0].bias.tolist() != model[1].bias.tolist()


def test_only_what_only_adds_is_folded():
    fresh, trained = folded(1), folded(1)
    fresh[1].bias.data.zero_()
    trained[1].running_var.fill_(0.5)
    assert not is_folded(fresh)
    assert not is_folded(trained)
    assert not is_folded(nn.Linear(2, 2))


def test_nothing_of_a_training_stays(network, corners, store):
    FineTune(SHORT).fit(network, corners, store)
    assert not store.with_name(f"{store.name}-training").exists()
