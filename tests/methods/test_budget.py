"""A budget of operations: only taps within it are read, and methods that need a deeper one say so."""

from dataclasses import replace

import pytest

from head2toe import Head2Toe, Linear
from head2toe.backbones.select import cut, flops, flops_of
from head2toe.errors import BackboneError


@pytest.fixture(scope="module")
def shallow(network):
    return replace(network, taps=cut(network, 0.6))


def test_a_head_within_a_budget_needs_no_more_operations_than_that(shallow, corners, tmp_path):
    head = Head2Toe(target_size=64).fit(shallow, corners, tmp_path)
    assert shallow.prelogits not in head.taps
    assert 0 < flops_of(shallow, head.taps) <= 0.6 * flops(shallow)[""]
    assert head.metrics.test_accuracy > 0.9, "the first layer alone sees where the spot is"


def test_a_linear_probe_beyond_the_budget_is_refused(shallow, corners, tmp_path):
    with pytest.raises(BackboneError, match="without its last features"):
        Linear().fit(shallow, corners, tmp_path)


def test_the_budget_is_an_argument_of_loading():
    from head2toe import load_backbone

    whole = load_backbone("timm/resnet10t", weights=False, image_size=64)
    half = load_backbone("timm/resnet10t", weights=False, image_size=64, max_flops=0.5)
    assert half.taps == whole.taps[: len(half.taps)]
    assert 0 < len(half.taps) < len(whole.taps)
