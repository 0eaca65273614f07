"""Direct summation with many channels and many tiles: whole vectors and their tails, borders, chunks, threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import assert_close, disguised, layer, numbers, summed

from wherever.engine.algorithms import Direct, direct
from wherever.problem import ConvProblem


@st.composite
def layers(draw):
    """Problems larger than `strategies.problems`: rows of several tiles, channels of several vectors."""
    spatial = draw(st.integers(1, 3))

    def each(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * spatial))

    groups = draw(st.sampled_from([1, 1, 1, 2, 5]))
    group_in, group_out = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    kernel, stride, dilation = each(1, 4), each(1, 3), each(1, 3)
    larger, dtypes = {1: 300, 2: 40, 3: 12}, ["float32", "float32", "float64"]
    return draw(layer(2, groups, group_in, group_out, kernel, stride, dilation, larger, dtypes))


@settings(max_examples=settings().max_examples)
@given(problem=layers(), seed=st.integers(0, 1000), scale=st.sampled_from([1, 1000]))
def test_layers_agree_with_matrix_products(problem, seed, scale):
    x, w = numbers(problem.x_shape, problem.dtype, seed), numbers(problem.w_shape, problem.dtype, seed + 1)
    bias = numbers(problem.out_channels, problem.dtype, seed + 2)
    truth = summed(problem, x, w, bias)
    given_x = disguised(x, seed) if seed % 3 == 0 else x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "_SMALL_BYTES", direct._SMALL_BYTES // scale)
        patch.setattr(direct, "_PART_BYTES", direct._PART_BYTES // scale)
        patch.setattr(direct, "_TURNED_BYTES", direct._TURNED_BYTES // scale)
        prepared = Direct().prepare(problem, w, bias)
        results = []
        for threads in (1, 2, 5, 1):
            out = np.full(problem.y_shape, 9, problem.dtype)
            prepared.run(given_x, out, threads)
            results.append(out.tobytes())
    assert_close(out, truth, problem.dtype, least=(problem.group_in * problem.taps) ** 0.5)
    assert len(set(results)) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [512, 1030])
def test_long_sums_over_places_that_crowd_the_cache(channels, dtype):
    """Places whole pages apart are copied; sums of more than a chunk are continued where the result is."""
    problem = ConvProblem.from_shapes(
        (1, 15, 9, channels), (40, channels, 1, 2), dtype=dtype, stride=2, layout="channels_last"
    )
    x, w = numbers(problem.x_shape, dtype), numbers(problem.w_shape, dtype, 1)
    out = np.empty(problem.y_shape, dtype)
    Direct().prepare(problem, w).run(x, out, 1)
    assert_close(out, summed(problem, x, w), dtype)


def test_weights_that_are_streamed():
    problem = ConvProblem.from_shapes((1, 7, 7, 600), (700, 600, 1, 1), layout="channels_last")
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    prepared = Direct().prepare(problem, w)
    assert prepared.ahead
    for threads in (1, 3):
        out = np.empty(problem.y_shape, np.float32)
        prepared.run(x, out, threads)
        assert_close(out, summed(problem, x, w), "float32")


@pytest.mark.parametrize("boundary", ["zeros", "reflect"])
def test_a_strided_kernel_of_one_place_may_look_over_the_border(boundary):
    problem = ConvProblem.from_shapes(
        (1, 20, 1, 6), (5, 6, 1, 1), stride=(3, 2), padding=((0, 2), (0, 0)), layout="channels_last", boundary=boundary
    )
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    out = np.empty(problem.y_shape, np.float32)
    Direct().prepare(problem, w).run(x, out, 1)
    assert_close(out, summed(problem, x, w), "float32")
