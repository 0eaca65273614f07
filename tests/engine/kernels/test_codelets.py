"""Fourier transforms that kernels write out: every codelet, and passes of them, against NumPy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_code import run

from wherever.engine.kernels.codelets import (
    LARGEST,
    Column,
    Complex,
    dft,
    dft_pass,
    frequencies,
    position,
    radices,
    twiddle_count,
    twiddles,
)
from wherever.engine.kernels.compile import host
from wherever.engine.kernels.vector import Kernel

TOLERANCE = {"float32": 3e-7, "float64": 1e-15}


def draw(n, lanes):
    random = np.random.default_rng(n)
    return random.standard_normal((n, lanes)) + 1j * random.standard_normal((n, lanes))


def split(values, dtype):
    """(places, part, lanes)."""
    return np.stack([values.real, values.imag], axis=1).astype(dtype)


def assert_transform(result, truth, dtype):
    found = result[:, 0] + 1j * result[:, 1].astype(np.float64)
    assert np.abs(found - truth).max() <= TOLERANCE[dtype] * np.abs(truth).max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [*range(1, LARGEST + 1), 18, 20, 25, 27, 32])
def test_codelets(n, dtype):
    lanes = host().lanes(dtype)
    kernel = Kernel("codelets", dtype, lanes, ["x", "forward", "inverse"])
    x, *results = (Column(kernel.array(name, 2 * lanes, lanes, 1)) for name in ("x", "forward", "inverse"))
    for result, inverse in zip(results, (False, True), strict=True):
        for f, value in enumerate(dft([x.load(0, i) for i in range(n)], inverse=inverse)):
            result.store(0, f, value)
    values = draw(n, lanes)
    forward, inverse = np.empty((2, n, 2, lanes), dtype)
    run(kernel, split(values, dtype), forward, inverse)
    assert_transform(forward, np.fft.fft(values, axis=0), dtype)
    assert_transform(inverse, np.fft.ifft(values, axis=0) * n, dtype)


@pytest.mark.parametrize("whole", [1, 2, 3, 4, 8, 24])
def test_turns(whole):
    lanes = host().lanes("float64")
    kernel = Kernel("turns", "float64", lanes, ["x", "y"])
    x, y = (Column(kernel.array(name, 2 * lanes, lanes, 1)) for name in "xy")
    parts = range(-whole, 2 * whole)
    for i, part in enumerate(parts):
        y.store(0, i, x.load(0, 0).turned(part, whole))
    value, result = draw(1, lanes), np.empty((len(parts), 2, lanes))
    run(kernel, split(value, "float64"), result)
    assert_transform(result, value * np.exp(-2j * np.pi * (np.array(parts) % whole) / whole)[:, None], "float64")


def test_complex_numbers_are_computed_as_in_python():
    lanes = host().lanes("float64")
    kernel = Kernel("numbers", "float64", lanes, ["x", "y"])
    x, y = (Column(kernel.array(name, 2 * lanes, lanes, 1)) for name in "xy")
    a, b = x.load(0, 0), x.load(0, 1)
    for i, value in enumerate([a + b, a - b, a * b, a * b.re, a * 2.5, a.conjugate(), a.plus(b, -3.0)]):
        y.store(0, i, value)
    values, result = draw(2, lanes), np.empty((7, 2, lanes))
    run(kernel, split(values, "float64"), result)
    p, q = values
    assert isinstance(a, Complex)
    truth = np.stack([p + q, p - q, p * q, p * q.real, p * 2.5, p.conj(), p - 3 * q])
    assert_transform(result, truth, "float64")


LISTS = [(5,), (4, 4), (6, 16), (2, 3, 5), (8, 8), (7, 9), (8, 8, 16), (15, 16), (12, 10)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factors", LISTS, ids=str)
def test_passes_there_and_back(factors, dtype):
    lanes, n = host().lanes(dtype), int(np.prod(factors))
    forward = Kernel("forward", dtype, lanes, ["x", "table"])
    inverse = Kernel("inverse", dtype, lanes, ["x", "table"])
    for kernel, numbers in ((forward, range(len(factors))), (inverse, reversed(range(len(factors))))):
        column, table = Column(kernel.array("x", 2 * lanes, lanes, 1)), kernel.array("table", 1)
        for number in numbers:
            dft_pass(kernel, factors, number, table, column.load, column.store, inverse=kernel is inverse)
    values, table = draw(n, lanes), twiddles(factors, dtype)
    assert len(table) == twiddle_count(factors)
    data = split(values, dtype)
    run(forward, data, table)
    assert_transform(data, np.fft.fft(values, axis=0)[frequencies(factors)], dtype)
    run(inverse, data, table)
    assert_transform(data, n * values, dtype)


@given(factors=st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_positions_are_those_of_the_frequencies(factors):
    order = frequencies(factors)
    assert sorted(order) == list(range(len(order)))
    assert all(position(f, factors) == place for place, f in enumerate(order))


@given(n=st.integers(1, 5000), largest=st.integers(2, 16))
def test_radices_are_the_fewest(n, largest):
    found = radices(n, largest)
    primes = [p for p in range(largest + 1, n + 1) if n % p == 0 and all(p % q for q in range(2, p))]
    assert (found is None) == bool(primes)
    if found is not None:
        assert np.prod(found, dtype=int) == n
        assert all(2 <= radix <= largest for radix in found)
    last = radices(n, largest, last=16)
    assert (last is None) == (n % 16 != 0 or radices(n // 16, largest) is None)
    assert last is None or (last[-1] == 16 and np.prod(last) == n)
