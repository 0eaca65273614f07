"""Depthwise layers with many channels and places: tiles and their tails, runs of columns, alignment, threads."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import BOUNDARIES, assert_close, disguised, numbers, summed

from wherever.engine.algorithms import Depthwise, DepthwiseGradient
from wherever.problem import ConvProblem


@st.composite
def layers(draw):
    """Problems larger than `strategies.problems`: rows of several tiles, channels of several vectors."""
    spatial = draw(st.integers(1, 3))

    def each(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * spatial))

    kernel, stride, dilation = each(1, {1: 31, 2: 11, 3: 4}[spatial]), each(1, 3), each(1, 2)
    extent = tuple((r - 1) * d + 1 for r, d in zip(kernel, dilation, strict=True))
    size = tuple(e + draw(st.integers(0, {1: 200, 2: 40, 3: 10}[spatial])) for e in extent)
    boundary = draw(st.sampled_from(BOUNDARIES))
    batch, channels = draw(st.integers(1, 2)), draw(st.integers(1, 150))
    return ConvProblem.from_shapes(
        (batch, *size, channels),
        (channels, 1, *kernel),
        dtype=draw(st.sampled_from(["float32", "float32", "float64"])),
        stride=stride,
        padding=[(draw(st.integers(0, r - 1)), draw(st.integers(0, r - 1))) for r in kernel],
        dilation=dilation,
        groups=channels,
        boundary=2.5 if boundary == "number" else boundary,
        layout="channels_last",
        direction=draw(st.sampled_from(["forward", "weight_gradient"])),
    )


def from_byte(a, byte):
    """A copy that begins so many bytes behind a line of the cache."""
    memory = np.zeros(a.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + byte
    result = memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    result[...] = a
    return result


@given(problem=layers(), seed=st.integers(0, 1000))
def test_layers_agree_with_matrix_products(problem, seed):
    source, operand = numbers(problem.source_shape, problem.dtype, seed), numbers(problem.operand_shape, problem.dtype)
    bias = numbers(problem.out_channels, problem.dtype, seed) if problem.direction == "forward" else None
    algorithm = Depthwise() if problem.direction == "forward" else DepthwiseGradient()
    if algorithm.refuses(problem):
        return
    given_source = disguised(source, seed) if seed % 3 == 0 else source
    prepared = algorithm.prepare(problem, operand, bias)
    results = [np.empty(problem.result_shape, problem.dtype) for _ in range(2)]
    for threads, out in zip((1, 3), results, strict=True):
        prepared.run(given_source, out, threads)
    assert_close(results[0], summed(problem, source, operand, bias), problem.dtype)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("direction", ["forward", "weight_gradient"])
@pytest.mark.parametrize("channels", [64, 75, 128])
@pytest.mark.parametrize("stride", [1, 2])
def test_memory_that_begins_anywhere_in_a_line(direction, channels, stride):
    """Vectors begin before the first channel where they cross no line then; the same layer, memory by memory."""
    problem = ConvProblem.from_shapes(
        (2, 15, 13, channels),
        (channels, 1, 3, 3),
        stride=stride,
        padding=1,
        groups=channels,
        layout="channels_last",
        direction=direction,
    )
    source, operand = numbers(problem.source_shape, "float32"), numbers(problem.operand_shape, "float32", 1)
    truth = summed(problem, source, operand)
    algorithm = Depthwise() if direction == "forward" else DepthwiseGradient()
    prepared = algorithm.prepare(problem, from_byte(operand, 4))
    for byte in (0, 4, 16, 60, 2, 0):
        frame = np.full(truth.size + 2, 7, np.float32)
        out = frame[1:-1].reshape(truth.shape)
        prepared.run(from_byte(source, byte), out, 1)
        assert_close(out, truth, "float32")
        assert frame[0] == frame[-1] == 7


@pytest.mark.parametrize("direction", ["forward", "weight_gradient"])
def test_one_prepared_layer_in_several_threads(direction):
    """Where the places of a tile lie is looked up in memory of each thread's own."""
    problem = ConvProblem.from_shapes(
        (1, 20, 20, 70), (70, 1, 3, 3), padding=1, groups=70, layout="channels_last", direction=direction
    )
    operand = numbers(problem.operand_shape, "float32", 1)
    algorithm = Depthwise() if direction == "forward" else DepthwiseGradient()
    prepared = algorithm.prepare(problem, operand)
    sources = [numbers(problem.source_shape, "float32", seed) for seed in range(4)]
    results = [np.empty(problem.result_shape, np.float32) for _ in sources]

    def work(source, out):
        for _ in range(50):
            prepared.run(source, out, 1)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(sources, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for source, out in zip(sources, results, strict=True):
        assert_close(out, summed(problem, source, operand), "float32")
