"""Copies: NumPy's assignment for every memory order, and nothing written beside it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherever.engine.copies import assign


@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    dtype=st.sampled_from(["float32", "float64", "int32", ">f4"]),
    seed=st.integers(0, 1000),
)
def test_whatever_the_memory_order(shape, dtype, seed):
    random = np.random.default_rng(seed)
    arrays = []
    for _ in range(2):
        order = random.permutation(len(shape))
        memory = np.full([shape[axis] + 3 for axis in order], 7, dtype)
        inside = memory[tuple(slice(1, 1 + shape[axis]) for axis in order)].transpose(np.argsort(order))
        arrays.append((memory, inside))
    (memory, target), (_, source) = arrays
    source[...] = random.integers(-99, 99, shape)
    assign(target, source)
    np.testing.assert_array_equal(target, source)
    target[...] = 7
    assert (memory == 7).all()


@pytest.mark.parametrize("size", [0, 1, 3, 4, 100])
def test_channels_from_first_to_last(size):
    x = np.random.default_rng(0).standard_normal((size, 67, 53)).astype(np.float32)
    y = np.empty((67, 53, size), np.float32)
    assign(np.moveaxis(y, -1, 0), x)
    np.testing.assert_array_equal(y, np.moveaxis(x, 0, -1))
    assign(x[:, ::-1], np.moveaxis(y, -1, 0))
    np.testing.assert_array_equal(x[:, ::-1], np.moveaxis(y, -1, 0))


def test_one_place_is_shown_at_many():
    """Reading beyond the source, where it is one place wide, would show whatever lies behind it in memory."""
    source = np.arange(12, dtype=np.float32).reshape(4, 3, 1)
    for order in [(0, 1, 2), (2, 1, 0), (1, 2, 0)]:
        target = np.zeros([(4, 3, 6)[axis] for axis in order], np.float32).transpose(np.argsort(order))
        assign(target, source)
        np.testing.assert_array_equal(target, np.repeat(source, 6, 2))
