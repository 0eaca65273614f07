"""Groups of few channels side by side in a vector: every number of channels, vectors that are not full, long sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, disguised, layer, numbers, summed

from wherever.engine.algorithms import Grouped
from wherever.problem import ConvProblem


@st.composite
def layers(draw):
    """Problems of many groups, whose rows are several tiles."""
    spatial = draw(st.integers(1, 3))

    def each(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * spatial))

    groups, group_in, group_out = draw(st.integers(2, 20)), draw(st.integers(1, 9)), draw(st.integers(1, 8))
    kernel, stride, dilation = each(1, 6 if spatial < 3 else 3), each(1, 3), each(1, 3)
    larger, dtypes = {1: 100, 2: 30, 3: 9}, ["float32", "float64"]
    return draw(layer(2, groups, group_in, group_out, kernel, stride, dilation, larger, dtypes))


@given(problem=layers(), seed=st.integers(0, 1000))
def test_layers(problem, seed):
    if Grouped().refuses(problem):
        return
    x, w = numbers(problem.x_shape, problem.dtype, seed), numbers(problem.w_shape, problem.dtype, seed + 1)
    bias = numbers(problem.out_channels, problem.dtype, seed + 2)
    prepared = Grouped().prepare(problem, w, bias)
    results = []
    for threads in (1, 2, 5):
        out = np.full(problem.y_shape, 9, problem.dtype)
        prepared.run(disguised(x, seed) if seed % 3 == 0 else x, out, threads)
        results.append(out.tobytes())
    terms = problem.group_in * problem.taps
    assert_close(out, summed(problem, x, w, bias), problem.dtype, least=terms**0.5)
    assert len(set(results)) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_sums(dtype):
    """Kernels of more taps than are summed in registers; a last dimension that is cut into several runs, or none."""
    for kernel in ((15, 9), (9, 7)):
        problem = ConvProblem.from_shapes(
            (1, 20, 20, 28), (28, 4, *kernel), groups=7, padding="same", layout="channels_last", dtype=dtype
        )
        if Grouped().refuses(problem):  # where vectors are short
            continue
        x, w = np.ones(problem.x_shape, dtype), np.full(problem.w_shape, 1 / 3, dtype)
        out = np.empty(problem.y_shape, dtype)
        Grouped().prepare(problem, w).run(x, out, 1)
        assert_close(out, summed(problem, x, w), dtype)


def test_the_last_groups_read_nothing_behind_the_image():
    """The image ends where a page of memory ends that may not be read."""
    mmap, ctypes = pytest.importorskip("mmap"), pytest.importorskip("ctypes")
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 8 * page)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mprotect") or libc.mprotect(ctypes.c_void_p(begin + 7 * page), page, 0):
        pytest.skip("no page can be protected here")
    for groups, group_in, group_out in ((5, 3, 2), (32, 4, 4), (7, 1, 1), (6, 5, 3)):
        problem = ConvProblem.from_shapes(
            (1, 5, 6, groups * group_in), (groups * group_out, group_in, 3, 3), groups=groups, layout="channels_last"
        )
        if Grouped().refuses(problem):  # where vectors are short
            continue
        count = int(np.prod(problem.x_shape))
        x = np.frombuffer(memory, np.float32, count, 7 * page - 4 * count).reshape(problem.x_shape)
        x[...] = numbers(problem.x_shape, "float32")
        w = numbers(problem.w_shape, "float32", 1)
        out = np.empty(problem.y_shape, np.float32)
        Grouped().prepare(problem, w).run(x, out, 1)
        assert_close(out, summed(problem, x, w), "float32")
