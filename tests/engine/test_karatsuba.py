"""Signals by Karatsuba's products: segments and ends, what is not finite, threads, and when it is chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import BOUNDARIES, assert_close, numbers

from wherever.engine.algorithms import Filter, Karatsuba
from wherever.engine.kernels.karatsuba import leaves
from wherever.engine.plan import choose
from wherever.problem import ConvProblem


@st.composite
def signals(draw):
    """Signals of several segments, and of part of one, with any padding."""
    taps, channels, each = draw(st.integers(8, 96)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    size = draw(st.one_of(st.integers(taps, 300), st.integers(300, 40_000)))
    boundary = draw(st.sampled_from(BOUNDARIES))
    return ConvProblem.from_shapes(
        (draw(st.integers(1, 2)), channels, size),
        (channels * each, 1, taps),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        padding=[(draw(st.integers(0, taps + 3)), draw(st.integers(0, taps + 3)))],
        groups=channels,
        boundary=2.5 if boundary == "number" else boundary,
    )


@given(problem=signals(), seed=st.integers(0, 1000))
def test_signals_agree_with_direct_sums_on_any_number_of_threads(problem, seed):
    source, operand = numbers(problem.source_shape, problem.dtype, seed), numbers(problem.operand_shape, problem.dtype)
    bias = numbers(problem.out_channels, problem.dtype, seed)
    truth = np.empty(problem.result_shape, problem.dtype)
    Filter().prepare(problem, operand, bias).run(source, truth, 1)
    prepared, results = Karatsuba().prepare(problem, operand, bias), []
    for threads in (1, 2, 5):
        out = np.full(problem.result_shape, np.nan, problem.dtype)
        prepared.run(source, out, threads)
        results.append(out)
    assert_close(results[0], truth, problem.dtype)
    assert all(result.tobytes() == results[0].tobytes() for result in results)


@given(problem=signals(), seed=st.integers(0, 1000), odd=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_reaches_the_windows_that_cover_it(problem, seed, odd):
    source, operand = numbers(problem.source_shape, problem.dtype, seed), numbers(problem.operand_shape, problem.dtype)
    source.reshape(-1)[np.random.default_rng(seed).integers(source.size)] = odd
    truth, out = (np.empty(problem.result_shape, problem.dtype) for _ in range(2))
    Filter().prepare(problem, operand).run(source, truth, 1)
    Karatsuba().prepare(problem, operand).run(source, out, 1)
    assert np.array_equal(np.isfinite(out), np.isfinite(truth))
    assert np.array_equal(np.isnan(out), np.isnan(truth))


@pytest.mark.parametrize("taps", [8, 9, 31, 64, 95])
def test_two_steps_leave_nine_sixteenths_of_the_products(taps):
    assert 9 * taps <= 4 * sum(leaves(taps, 2)) <= 9 * (taps + 3)


def test_long_signals_are_divided_and_strict_ones_are_not():
    problem = ConvProblem.from_shapes((1, 1, 10**6), (1, 1, 31), dtype="float32", padding="same")
    assert choose(problem).algorithm.name == "karatsuba"
    assert choose(problem, precision="strict").algorithm.name != "karatsuba"
