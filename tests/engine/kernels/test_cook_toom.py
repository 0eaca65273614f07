"""The matrices of Winograd's convolution: exact, and applied by a kernel as they stand."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_code import run

from wherever.engine.kernels.compile import host
from wherever.engine.kernels.cook_toom import MOST_POINTS, cook_toom, transformed
from wherever.engine.kernels.vector import Kernel


def product(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


@given(st.data())
def test_they_are_exactly_a_correlation(data):
    outputs = data.draw(st.integers(1, MOST_POINTS))
    taps = data.draw(st.integers(1, MOST_POINTS + 1 - outputs))
    numbers = st.fractions(-9, 9, max_denominator=9)
    w = data.draw(st.lists(numbers, min_size=taps, max_size=taps))
    x = data.draw(st.lists(numbers, min_size=outputs + taps - 1, max_size=outputs + taps - 1))
    a, g, b = cook_toom(outputs, taps)
    y = product(a, [u * v for u, v in zip(product(g, w), product(b, x), strict=True)])
    assert y == [sum((w[t] * x[i + t] for t in range(taps)), Fraction(0)) for i in range(outputs)]


def test_more_points_than_floating_point_bears_are_refused():
    with pytest.raises(ValueError, match=r"F\(6, 7\) needs 12 points"):
        cook_toom(6, 7)


@pytest.mark.parametrize(("outputs", "taps"), [(2, 3), (3, 3), (4, 3), (2, 5), (6, 3), (4, 5), (3, 2), (1, 4)])
def test_a_kernel_applies_them(outputs, taps):
    lanes = host().lanes("float64")
    for matrix in cook_toom(outputs, taps):
        kernel = Kernel("apply", "float64", lanes, ["x", "y"])
        x, y = kernel.array("x", lanes, 1), kernel.array("y", lanes, 1)
        seen = np.array([x[i, 0].load() for i in range(len(matrix[0]))], object)
        for i, vector in enumerate(transformed(kernel, [matrix], seen)):
            y[i, 0].store(vector)
        numbers = np.random.default_rng(0).standard_normal((len(matrix[0]), lanes))
        result = np.empty((len(matrix), lanes))
        run(kernel, numbers, result)
        np.testing.assert_allclose(result, np.array(matrix, float) @ numbers, rtol=1e-13, atol=1e-13)
