"""One training run: stochastic gradient steps on a whole network, repeatable and resumable."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from head2toe.errors import NotConvergedError
from head2toe.methods.training.checkpoint import Checkpoint
from head2toe.methods.training.depthwise import fast_depthwise, weight_gradient_flops
from head2toe.methods.training.rows import Rows, augmented
from head2toe.methods.training.settings import Run, Training
from head2toe.network import Tapped

WARM_UP = 0.05  # of the steps
CLIP = 1.0  # largest norm of all gradients together
EVALUATED = 64  # images in a batch without gradients
SAVED_EVERY = 100  # steps


def train(
    model: Tapped,
    run: Run,
    training: Training,
    rows: Rows,
    labels: np.ndarray,
    chosen: np.ndarray,
    *,
    frozen_statistics: bool,
    checkpoint: Checkpoint,
    name: str,
    advance: Callable[[int], None],
) -> None:
    """Train `model` in place on the rows `chosen` (m,) of `rows`, whose labels are (n,); it ends in evaluation mode.

    Batch normalisation uses each batch's own statistics and keeps its running ones by the network's own momentum; with
    frozen_statistics=True it uses the running ones and leaves them alone. `name` is the run's in the checkpoint, from
    which it goes on. Raises NotConvergedError where the loss is no number any more.
    """
    schedule = [chosen[batch] for batch in _schedule(len(chosen), run.steps, training)]
    optimizer = _optimizer(model, training)
    first = checkpoint.load(name, model, optimizer)
    advance(first)
    model.train()
    if frozen_statistics:
        for part in model.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
    with _repeatable(model.backbone.device), rows.batches(schedule[first:]) as batches:
        for step, (index, batch) in enumerate(zip(schedule[first:], batches, strict=True), first):
            random = np.random.default_rng([training.seed, step])
            torch.manual_seed(int(random.integers(2**62)))  # dropout
            for group in optimizer.param_groups:
                group["lr"] = run.lr * share_of_lr(step, run.steps)
            loss = _step(model, optimizer, augmented(batch, run.augment, random), labels[index])
            if not math.isfinite(loss):
                raise NotConvergedError(f"train: the loss became {loss} at step {step + 1} ({run}); lower the rate")
            advance(1)
            if (step + 1) % SAVED_EVERY == 0 or step + 1 == run.steps:
                checkpoint.save(name, step + 1, model, optimizer)
    model.eval()


def accuracy(model: Tapped, rows: Rows, labels: np.ndarray, chosen: np.ndarray) -> float:
    """The share of the rows `chosen` (m,) whose label (n,) the model gives."""
    batches = np.array_split(chosen, math.ceil(len(chosen) / EVALUATED))
    with rows.batches(batches) as ready:
        found = np.concatenate([model.logits(batch).argmax(axis=1) for batch in ready])
    return float((found == labels[chosen]).mean())


def step_flops(model: Tapped, rows: Rows, labels: np.ndarray) -> int:
    """Floating point operations of one image's part of a step, forward and backward, counted on a copy's real step."""
    copied, index = copy.deepcopy(model), np.arange(2)
    copied.train()
    counter = FlopCounterMode(display=False, custom_mapping=COUNTED)
    with rows.batches([index]) as batches, _repeatable(model.backbone.device), counter:
        _step(copied, _optimizer(copied, Training()), next(batches), labels[index])
    return counter.get_total_flops() // len(index)


def convolution_backward(
    out: Sequence[int], x: Sequence[int], w: Sequence[int], _bias: object, _stride: object, _padding: object,
    _dilation: object, transposed: bool, _output_padding: object, _groups: int, wanted: Sequence[bool], **_: object,
) -> int:  # fmt: skip
    """Operations of a convolution's gradients, from shapes: each costs what the forward product does.

    torch's own formula forgets the groups of a convolution in the gradient of its weights, which counts a depthwise one
    by as many times too much as it has channels.
    """
    places = x if transposed else out
    return 2 * math.prod(w) * places[0] * math.prod(places[2:]) * sum(wanted[:2])


COUNTED = {  # in place of torch's own formula, and what it has none for
    torch.ops.aten.convolution_backward: convolution_backward,
    torch.ops.head2toe.depthwise_weight_gradient: weight_gradient_flops,
}


def step_seconds(model: Tapped, rows: Rows, labels: np.ndarray) -> float:
    """Seconds of a step on all `rows` at once, whose labels are (n,): a copy's second step, as the first warms up."""
    copied, index = copy.deepcopy(model), np.arange(len(labels))
    copied.train()
    optimizer, seconds = _optimizer(copied, Training()), 0.0
    with rows.batches([index]) as batches, _repeatable(model.backbone.device):
        batch = next(batches)
        for _ in range(2):
            start = time.perf_counter()
            _step(copied, optimizer, batch, labels)
            if model.backbone.device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
    return seconds


def share_of_lr(step: int, steps: int) -> float:
    """The share of the learning rate at step 0 .. steps - 1: a linear warm-up, then a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step + 1 - warm) / (steps + 1 - warm)))


def _schedule(n: int, steps: int, training: Training) -> np.ndarray:
    """The rows 0 .. n - 1 of each step, (steps, batch): shuffled epochs, one after the other."""
    random, size = np.random.default_rng(training.seed), min(training.batch_size, n)
    epochs = math.ceil(steps * size / n)
    order = np.concatenate([np.empty(0, np.int64), *(random.permutation(n) for _ in range(epochs))])
    return order[: steps * size].reshape(steps, size)


def _optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """As asked for; biases, norms and other vectors do not decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, fused=True)  # one loop over each weight: on a CPU four times as fast


def _step(model: Tapped, optimizer: torch.optim.Optimizer, rows: list[np.ndarray], labels: np.ndarray) -> float:
    """One step; the loss before it. A loss that is no number changes nothing."""
    batch = model.backbone.collate(rows)
    with fast_depthwise(model.backbone):
        logits: Tensor = model(batch)
    loss = functional.cross_entropy(logits, torch.from_numpy(labels).to(logits.device))
    value = loss.item()
    if math.isfinite(value):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return value


@contextmanager
def _repeatable(device: str) -> Iterator[None]:
    """Leave the caller's random numbers alone, and choose no algorithm by the clock."""
    cuda = [torch.device(device).index or 0] if torch.device(device).type == "cuda" else []
    with (
        torch.random.fork_rng(cuda),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        yield
