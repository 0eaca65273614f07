"""Panels: tiles and segments of rows of every length, strides, borders, memory orders, groups and threads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import BOUNDARIES, assert_close, disguised, expected, numbers

from wherever.engine.algorithms import Panels, panels
from wherever.problem import ConvProblem


@st.composite
def layers(draw):
    """Problems of several tiles, chunks of terms and blocks of output channels."""
    spatial = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2]))
    group_in, group_out = draw(st.integers(1, 70)), draw(st.integers(1, 40))
    each = st.tuples(*[st.integers(1, 3)] * spatial)
    kernel, dilation = draw(each), draw(each)
    stride = draw(st.tuples(*[st.integers(1, 6)] * spatial))
    extent = [(r - 1) * d + 1 for r, d in zip(kernel, dilation, strict=True)]
    size = [e + draw(st.integers(0, {1: 300, 2: 20, 3: 5}[spatial])) for e in extent]
    boundary = draw(st.sampled_from(BOUNDARIES))
    layout = draw(st.sampled_from(["channels_first", "channels_first", "channels_last"]))
    batch, channels = draw(st.integers(1, 3)), groups * group_in
    return ConvProblem.from_shapes(
        (batch, channels, *size) if layout == "channels_first" else (batch, *size, channels),
        (groups * group_out, group_in, *kernel),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        stride=stride,
        padding=draw(st.sampled_from([0, 0, 1, "same", ((0, 2),) * spatial])),
        dilation=dilation,
        groups=groups,
        boundary=2.5 if boundary == "number" else boundary,
        layout=layout,
    )


@given(problem=layers(), seed=st.integers(0, 1000), part_bytes=st.sampled_from([1 << 20, 20000]))
def test_layers(problem, seed, part_bytes):
    x, w = numbers(problem.x_shape, problem.dtype, seed), numbers(problem.w_shape, problem.dtype, seed + 1)
    bias = numbers(problem.out_channels, problem.dtype, seed + 2)
    along = (1, -1, *[1] * problem.spatial) if problem.layout == "channels_first" else (-1,)
    truth = expected(problem, x, w) + bias.reshape(along)
    given_x = disguised(x, seed) if seed % 3 == 0 else x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panels, "_PART_BYTES", part_bytes)
        patch.setattr(panels, "_FEWEST_PLACES", 20)
        prepared = Panels().prepare(problem, w, bias)
        results = []
        for threads in (1, 2, 5):
            out = np.full(problem.y_shape, 9, problem.dtype)
            prepared.run(given_x, out, threads)
            results.append(out.tobytes())
    assert_close(out, truth, problem.dtype)
    assert len(set(results)) == 1


def test_nothing_behind_an_image_is_read():
    """Whole vectors of a strided row would reach beyond the last place of the image; what is there is NaN here."""
    for stride in (1, 2, 3, 4, 7):
        memory = np.full(5 * 97 + 64, np.nan, np.float32)
        x = memory[: 5 * 97].reshape(1, 5, 97)
        x[...] = numbers(x.shape, "float32")
        problem = ConvProblem.from_shapes(x.shape, (3, 5, 1), stride=stride)
        w = numbers(problem.w_shape, "float32", 1)
        out = np.full(problem.y_shape, np.nan, np.float32)
        Panels().prepare(problem, w).run(x, out, 1)
        assert_close(out, expected(problem, x, w), "float32")


def test_results_of_any_memory_order():
    problem = ConvProblem.from_shapes((2, 20, 9, 40), (30, 20, 3, 3), padding=1)
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    truth = expected(problem, x, w)
    prepared = Panels().prepare(problem, w)
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3), (3, 2, 1, 0)):
        memory = np.full([2 * truth.shape[axis] for axis in order], 7, np.float32)
        out = memory[tuple(slice(None, truth.shape[axis]) for axis in order)].transpose(np.argsort(order))
        prepared.run(x, out, 2)
        assert_close(out, truth, "float32")
        assert (memory == 7).sum() >= memory.size - truth.size
