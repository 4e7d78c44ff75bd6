import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from head2toe.cells import FORMATS
from head2toe.errors import FeatureError
from head2toe.taps import Pool, Tap

sizes = st.integers(1, 40)
moments = st.sampled_from([1, 2])
formats = st.sampled_from(FORMATS)


def ramp(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


@settings(deadline=None)  # the first example compiles
@given(sizes, sizes, sizes, st.integers(0, 3000), st.sampled_from(["paper", "grid"]), st.booleans(), moments)
def test_map_length_is_planned_exactly(channels, height, width, target, rule, channels_last, moments):
    tap = Tap("t", (height, width, channels), "NHWC") if channels_last else Tap("t", (channels, height, width), "NCHW")
    pool = Pool(target, rule, moments=moments)
    out = pool(ramp(2, *tap.shape), tap)
    assert out.shape == (2, pool.length(tap))
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


@given(
    st.integers(1, 60), st.integers(1, 40), st.integers(0, 3), st.integers(0, 3000), st.sampled_from(["paper", "grid"]),
    st.sampled_from(["normal", "only_cls", "nopool_cls"]), moments,
)  # fmt: skip
def test_token_length_is_planned_exactly(length, channels, prefix, target, rule, class_token, moments):
    tap = Tap("t", (length + prefix, channels), "NLC", prefix)
    pool = Pool(target, rule, class_token, moments)
    out = pool(ramp(2, *tap.shape), tap)
    assert out.shape == (2, pool.length(tap))
    assert torch.isfinite(out).all()


def test_published_window_can_exceed_the_target():
    # method.md: W = 15 and g = 4 give windows of 3 and 5 x 5 cells
    tap = Tap("t", (32, 15, 15), "NCHW")
    assert Pool(512).length(tap) == 25 * 32
    assert Pool(512, "grid").length(tap) == 16 * 32


def test_paper_map_matches_an_explicit_loop():
    tap = Tap("t", (3, 7, 7), "NCHW")
    x = ramp(1, 3, 7, 7)
    out = Pool(27)(x, tap).reshape(3, 3, 3)  # g = 3, window 2, 3 x 3 cells
    for row in range(3):
        for column in range(3):
            cell = x[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
            assert torch.allclose(out[row, column], cell)


def test_more_cells_than_pixels_means_the_global_mean():
    tap = Tap("t", (1, 4, 4), "NCHW")
    assert Pool(100).length(tap) == 1
    assert Pool(100, "grid").length(tap) == 16


def test_layouts_agree():
    x = ramp(2, 6, 12, 12)
    a = Pool(100)(x, Tap("t", (6, 12, 12), "NCHW"))
    b = Pool(100)(x.permute(0, 2, 3, 1), Tap("t", (12, 12, 6), "NHWC"))
    assert torch.equal(a, b)


def test_class_token_rules():
    tap = Tap("t", (5, 4), "NLC", prefix_tokens=1)
    x = ramp(1, 5, 4)
    assert torch.equal(Pool(0, class_token="only_cls")(x, tap), x[:, 0])
    assert torch.equal(Pool(0)(x, tap), x.mean(1))
    both = Pool(0, class_token="nopool_cls")(x, tap)
    assert torch.equal(both, torch.cat((x[:, 0], x[:, 1:].mean(1)), 1))


def test_padding_stays_out_of_the_mean():
    tap = Tap("t", (3, 2), "NLC")
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]]])
    out = Pool(0)(x, tap, mask=torch.tensor([[True, True, False]]))
    assert out.tolist() == [[2.0, 3.0]]
    assert Pool(0, moments=2)(x, tap, torch.tensor([[True, True, False]])).tolist() == [[2.0, 3.0, 1.0, 1.0]]
    with pytest.raises(FeatureError, match="padded"):
        Pool(6)(x, tap, mask=torch.tensor([[True, True, False]]))


@pytest.mark.parametrize("rule", ["paper", "grid"])
@pytest.mark.parametrize("target_size", [0, 2, 6, 4096])
def test_padded_tokens_are_one_mean_at_every_target_size(target_size, rule):
    tap, mask = Tap("t", (3, 2), "NLC", padded=True), torch.tensor([[True, True, False]])
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]]])
    pool = Pool(target_size, rule, moments=2)
    assert pool(x, tap, mask).tolist() == [[2.0, 3.0, 1.0, 1.0]]
    assert pool.length(tap) == 4


def test_float16_maps_are_pooled_in_float32():
    x = torch.full((1, 1, 64, 64), 60000.0, dtype=torch.float16)
    assert Pool(0)(x, Tap("t", (1, 64, 64), "NCHW")).item() == 60000.0 // 32 * 32


@settings(deadline=None, max_examples=60)  # the first example compiles
@given(
    sizes, sizes, sizes, st.integers(0, 3000), st.sampled_from(["paper", "grid"]),
    st.sampled_from(["NCHW", "NHWC", "NLC"]), st.sampled_from(["normal", "only_cls", "nopool_cls"]), moments, formats,
)  # fmt: skip
@example(40, 40, 40, 0, "paper", "NHWC", "normal", 2, torch.bfloat16)  # one long sum is off by 0.002
def test_maps_are_pooled_in_one_reading_as_torch_does(
    channels, height, width, target, rule, layout, class_token, moments, dtype
):
    shapes = {"NCHW": (channels, height, width), "NHWC": (height, width, channels), "NLC": (height + 1, channels)}
    shape = shapes[layout]
    tap = Tap("t", shape, layout, prefix_tokens=1 if layout == "NLC" else 0)
    x = (torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    if layout == "NCHW":
        x = x.contiguous(memory_format=torch.channels_last)
    pool = Pool(target, rule, class_token, moments)
    torch.testing.assert_close(pool(x, tap), _by_torch(pool, x, tap), rtol=1e-5, atol=1e-5 if moments == 1 else 1e-3)


@pytest.mark.parametrize("dtype", FORMATS)
def test_large_maps_are_pooled_row_by_row(dtype):
    tap, pool = Tap("t", (64, 64, 96), "NHWC"), Pool(1000, moments=2)
    x = torch.rand(2, 64, 64, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    one = torch.cat([pool(row, tap) for row in x.split(1)])
    assert torch.equal(pool(x, tap), one)
    torch.testing.assert_close(one, _by_torch(pool, x, tap))


def _by_torch(pool: Pool, x: torch.Tensor, tap: Tap) -> torch.Tensor:
    """What torch's own functions make of a map: they alone can be differentiated."""
    return pool(x.float().requires_grad_(), tap).detach()


@pytest.mark.parametrize("rule", ["paper", "grid"])
def test_deviations_match_numpys_over_each_cell(rule):
    tap = Tap("t", (3, 8, 6), "NCHW")
    x = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    means, deviations = Pool(12, rule, moments=2)(x, tap).split(Pool(12, rule).length(tap), 1)
    assert torch.equal(means, Pool(12, rule)(x, tap))
    windows = [
        (slice(0, 4), slice(0, 3)),
        (slice(0, 4), slice(3, 6)),
        (slice(4, 8), slice(0, 3)),
        (slice(4, 8), slice(3, 6)),
    ]
    if rule == "paper":  # method.md: the window is floor(6 / 2) a side
        windows = [(slice(y, y + 3), slice(x, x + 3)) for y in (0, 3) for x in (0, 3)]
    expected = [x.numpy()[:, :, rows, columns].std((2, 3)) for rows, columns in windows]
    np.testing.assert_allclose(deviations.numpy(), np.concatenate(expected, 1), rtol=1e-5)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_flat_cell_has_no_deviation_at_all(dtype):
    x = torch.full((1, 3, 16, 16), 0.1).to(dtype).contiguous(memory_format=torch.channels_last)
    assert Pool(12, moments=2)(x, Tap("t", (3, 16, 16), "NCHW"))[:, 12:].tolist() == [[0.0] * 12]


def test_what_has_one_place_a_cell_has_no_deviation():
    pool = Pool(512, moments=2)
    assert pool.length(Tap("t", (7,), "NC")) == 7
    assert pool.length(Tap("t", (7, 1, 1), "NCHW")) == 7
    assert Pool(512, "grid", moments=2).length(Tap("t", (8, 8, 8), "NCHW")) == 512
    assert Pool(0, class_token="only_cls", moments=2).length(Tap("t", (5, 4), "NLC", 1)) == 4


def test_the_slope_of_a_deviation_is_finite_where_it_is_zero():
    x = torch.zeros(1, 2, 4, 4, requires_grad=True)
    Pool(2, moments=2)(x, Tap("t", (2, 4, 4), "NCHW")).sum().backward()
    tokens = torch.zeros(1, 3, 2, requires_grad=True)
    Pool(0, moments=2)(tokens, Tap("t", (3, 2), "NLC"), torch.tensor([[True, True, False]])).sum().backward()
    for gradient in (x.grad, tokens.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


def test_pooled_vectors_survive_what_the_network_does_next():
    x = torch.tensor([[-1.0, 2.0]])
    out = Pool()(x, Tap("t", (2,), "NC"))
    x.relu_()
    assert out.tolist() == [[-1.0, 2.0]]


def test_wrong_layout_is_refused():
    with pytest.raises(FeatureError, match="layout"):
        Tap("t", (3, 4), "NCHW")
