"""Winograd's tiles with many channels: whole vectors and tails, dilation and strides, borders, parts, threads."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, disguised, layer, numbers, summed

from wherever.engine.algorithms import Winograd, winograd
from wherever.engine.algorithms.finish import NOTHING, Finish, finishing
from wherever.problem import ConvProblem


@st.composite
def layers(draw):
    """Problems that Winograd does not refuse, of several tiles, vectors of channels, and images."""
    spatial = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    group_in, group_out = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    kernel, stride, dilation = [], [], []
    for _ in range(spatial):
        kernel.append(draw(st.sampled_from([1, 2, 3, 3, 4, 5, 7] if spatial < 3 else [1, 2, 3])))
        stride.append(draw(st.sampled_from([1, 1, 2, 2, 3])))
        dilation.append(draw(st.sampled_from([1, 1, stride[-1], 2 * stride[-1], 5 * stride[-1]])))
    larger, dtypes = {1: 200, 2: 30, 3: 9}, ["float32", "float32", "float64"]
    return draw(layer(3, groups, group_in, group_out, kernel, stride, dilation, larger, dtypes))


@given(problem=layers(), seed=st.integers(0, 1000), part_bytes=st.sampled_from([2 << 20, 20000, 3000]))
def test_layers(problem, seed, part_bytes):
    if Winograd().refuses(problem):
        return
    x, w = numbers(problem.x_shape, problem.dtype, seed), numbers(problem.w_shape, problem.dtype, seed + 1)
    bias = numbers(problem.out_channels, problem.dtype, seed + 2)
    truth = summed(problem, x, w, bias)
    given_x = disguised(x, seed) if seed % 3 == 0 else x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_PART_BYTES", part_bytes)
        winograd.best_tiling.cache_clear()
        prepared = Winograd().prepare(problem, w, bias)
        winograd.best_tiling.cache_clear()
    results = []
    for threads in (1, 2, 5):
        out = np.full(problem.y_shape, 9, problem.dtype)
        prepared.run(given_x, out, threads)
        results.append(out.tobytes())
    assert_close(out, truth, problem.dtype, least=(problem.group_in * problem.taps) ** 0.5)
    assert len(set(results)) == 1


@given(problem=layers(), seed=st.integers(0, 1000), more=st.integers(1, 20))
def test_channels_that_lie_among_others(problem, seed, more):
    """As results of a layer do that are to be joined with those of others: read and written where they lie."""
    problem = replace(problem, layout="channels_last")
    if Winograd().refuses(problem):
        return
    x, w = numbers(problem.x_shape, problem.dtype, seed), numbers(problem.w_shape, problem.dtype, seed + 1)
    prepared, expected = Winograd().prepare(problem, w), np.empty(problem.y_shape, problem.dtype)
    prepared.run(x, expected, 1)
    wide_x, wide_y = (np.full((*a.shape[:-1], a.shape[-1] + more), np.nan, a.dtype) for a in (x, expected))
    wide_x[..., more:] = x
    for finish in (NOTHING, Finish("relu")):
        finishing(prepared, finish)(wide_x[..., more:], wide_y[..., :-more], 1, None)
        np.testing.assert_array_equal(wide_y[..., :-more], np.maximum(expected, 0) if finish.activation else expected)
        assert np.isnan(wide_y[..., -more:]).all()


@given(problem=layers(), seed=st.integers(0, 1000))
def test_numbers_that_are_not_finite_stay_local(problem, seed):
    if Winograd().refuses(problem):
        return
    random = np.random.default_rng(seed)
    x, w = numbers(problem.x_shape, problem.dtype, seed), numbers(problem.w_shape, problem.dtype, seed + 1)
    x[tuple(random.integers(0, n) for n in x.shape)] = random.choice([np.nan, np.inf, -np.inf])
    with np.errstate(all="ignore"):
        truth = summed(problem, x, w)
    out = np.empty(problem.y_shape, problem.dtype)
    Winograd().prepare(problem, w).run(x, out, 1)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(truth))
    np.testing.assert_array_equal(np.isinf(out), np.isinf(truth))


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), (2, 2)), ((5, 4), (2, 2)), ((2, 3), (3, 1)), ((7, 1), (4, 3))])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_phases_of_a_stride(kernel, stride, dtype):
    """Phases of as many taps as others, of fewer, and of none; channels that share a vector with the next phase's."""
    for channels in (12, 16, 21, 70):
        problem = ConvProblem.from_shapes(
            (2, 29, 31, channels),
            (20, channels, *kernel),
            stride=stride,
            padding=2,
            layout="channels_last",
            dtype=dtype,
        )
        assert Winograd().refuses(problem) is None
        x, w = numbers(problem.x_shape, dtype), numbers(problem.w_shape, dtype, 1)
        out = np.empty(problem.y_shape, dtype)
        Winograd().prepare(problem, w).run(x, out, 1)
        assert_close(out, summed(problem, x, w), dtype)


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("dilation", [1, 8, 600])
def test_signals_with_dilation(kernel, dilation):
    """Parts whose tiles are of every class, and the last of which have few outputs of each."""
    problem = ConvProblem.from_shapes((1, 15_000, 40), (24, 40, kernel), dilation=dilation, layout="channels_last")
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    out = np.empty(problem.y_shape, np.float32)
    Winograd().prepare(problem, w).run(x, out, 1)
    assert_close(out, summed(problem, x, w), "float32")


@pytest.mark.parametrize("boundary", [0, 2.5])
def test_parts_that_see_nothing_of_the_image(boundary, monkeypatch):
    """Outputs that look at the padding alone, of an image that would have to be copied."""
    monkeypatch.setattr(winograd, "_PART_BYTES", 3000)
    winograd.best_tiling.cache_clear()
    problem = ConvProblem.from_shapes(
        (1, 2, 8, 3, 5), (1, 2, 2, 1, 3), padding=1, dilation=(5, 1, 1), boundary=boundary
    )
    x, w = disguised(numbers(problem.x_shape, "float32"), 4), numbers(problem.w_shape, "float32", 1)
    prepared = Winograd().prepare(problem, w)
    winograd.best_tiling.cache_clear()
    for given_x in (x, np.array(x, "float32")):
        out = np.empty(problem.y_shape, np.float32)
        prepared.run(given_x, out, 1)
        assert_close(out, summed(problem, x, w), "float32")
