"""Depthwise convolutions in training: torch's numbers, by other means."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from head2toe.methods.training.depthwise import fast_depthwise
from head2toe.methods.training.loop import COUNTED

PLACES = {
    "same": {"kernel_size": 3, "padding": 1},
    "beyond the map": {"kernel_size": 5, "padding": 3},
    "strided": {"kernel_size": 3, "stride": 2},
    "oblong": {"kernel_size": (5, 2), "stride": (1, 3), "padding": (0, 1), "dilation": (1, 2)},
    "dilated": {"kernel_size": (3, 2), "padding": (2, 1), "dilation": (2, 3)},
    "no bias": {"kernel_size": 3, "bias": False},
    "same, by name": {"kernel_size": 3, "padding": "same"},
    "mirrored edges": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}


def gradients(part: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """Those of the inputs and of all parameters, and the operations that were counted."""
    part.zero_grad()
    x = x.detach().requires_grad_()
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        out = part(x)
        (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    found = {"x": x.grad} | {name: one.grad for name, one in part.named_parameters()}
    return {name: one for name, one in found.items() if one is not None}, counter.get_total_flops()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [(9, 7), (6, 6)])
@pytest.mark.parametrize("groups", [12, 4])
def test_gradients_and_operations_are_torchs_own(network, place, size, groups):
    torch.manual_seed(0)
    part, x = nn.Conv2d(12, 12, groups=groups, **PLACES[place]), torch.randn(3, 12, *size)
    theirs, counted = gradients(part, x)
    with fast_depthwise(network):
        ours, ours_counted = gradients(part, x)
    assert ours.keys() == theirs.keys() == {"x", *dict(part.named_parameters())}
    for name in ours:
        assert ours[name].shape == theirs[name].shape
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-4)
    assert ours_counted == counted > 0


def test_our_gradient_is_the_one_that_is_taken(network):
    x, part = torch.randn(2, 8, 9, 9, requires_grad=True), nn.Conv2d(8, 8, 3, groups=8)
    with fast_depthwise(network), torch.profiler.profile() as profile:
        part(x).sum().backward()
    assert "head2toe::depthwise_weight_gradient" in {event.key for event in profile.key_averages()}


def test_the_number_of_threads_changes_no_bit(network):
    part, x, spread = nn.Conv2d(64, 64, 5, padding=2, groups=64), torch.randn(8, 64, 24, 24), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with fast_depthwise(network):
                found.append(gradients(part, x)[0]["weight"])
    finally:
        torch.set_num_threads(spread)
    assert torch.equal(*found)


def test_frozen_weights_get_no_gradient(network):
    part, x = nn.Conv2d(8, 8, 3, groups=8).requires_grad_(False), torch.randn(2, 8, 9, 9, requires_grad=True)
    with fast_depthwise(network):
        part(x).sum().backward()
    assert part.weight.grad is None
    assert x.grad is not None


def test_bfloat16_depthwise_convolutions_train_in_float32_on_a_processor(network):
    depthwise, dense = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3)
    seen: list[torch.dtype] = []
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), fast_depthwise(replace(network, precision="bfloat16")):
        once = depthwise(x)
        twice = dense(once)
    twice.register_hook(lambda gradient: seen.append(gradient.dtype))
    twice.sum().backward()
    assert once.dtype == twice.dtype == seen[0] == torch.bfloat16
    assert depthwise.weight.grad is not None
    assert depthwise.weight.grad.dtype == torch.float32
    assert torch.equal(once, depthwise(x).to(torch.bfloat16))
