"""The way into kernels: arrays and addresses arrive, anything else is an error, and what is needed stays in memory."""

import gc
import sys
import threading

import numpy as np
import pytest

from wherever.engine.kernels import entry as module
from wherever.engine.kernels.compile import address, callable_from_python, host, link
from wherever.engine.kernels.vector import MOST_ARGUMENTS, Kernel

native = pytest.mark.skipif(not module.NATIVE, reason="kernels are called through ctypes here")


def library():
    """The code of y[i] = x[i] + x[i] for i below ``count``; twice for each of ``times``."""
    kernel = Kernel("doubled", "float32", 1, ["x", "y"], ["count", "times"])
    x, y = kernel.array("x", 1), kernel.array("y", 1)
    with kernel.loop(kernel.size("times")), kernel.loop(kernel.size("count")) as i:
        y[i].store(x[i].load() + x[i].load())
    return link(host().emit(kernel), kernel.name)


@pytest.fixture(scope="module")
def doubled():
    return callable_from_python("doubled", library(), 3)


@pytest.fixture(scope="module")
def through_ctypes():
    code = library()
    return module.entry("doubled", code["doubled"], 3, None, code)


@pytest.mark.parametrize("way", ["doubled", "through_ctypes"])
@pytest.mark.parametrize("kind", ["arrays", "addresses", "subclass", "view"])
def test_arrays_and_addresses_arrive(way, kind, request):
    kernel = request.getfixturevalue(way)
    x, y, sizes = np.arange(8, dtype=np.float32), np.zeros(8, np.float32), np.array([6, 1])
    if kind == "arrays":
        kernel(x, y, sizes)
    elif kind == "addresses":
        kernel(x.ctypes.data, y.ctypes.data, sizes.ctypes.data)
    elif kind == "subclass":
        kernel(x.view(np.recarray), np.ma.array(y, copy=False), sizes)
    else:
        kernel(x[2:], y[2:].reshape(3, 2).T, np.array([[4, 1]])[0])
        assert y.tolist() == [0, 0, 4, 6, 8, 10, 0, 0]
        return
    assert y.tolist() == [0, 2, 4, 6, 8, 10, 0, 0]


@pytest.mark.parametrize("way", ["doubled", "through_ctypes"])
@pytest.mark.parametrize("more", [(), (1.5,), (None,), ("x",), ([1],), (np.zeros(1), 5)])
def test_anything_else_is_an_error(way, more, request):
    x, y = np.ones(4, np.float32), np.zeros(4, np.float32)
    with pytest.raises((TypeError, OverflowError)):
        request.getfixturevalue(way)(x, y, *more)
    assert not y.any()


@native
@pytest.mark.parametrize("number", [1 << 70, -(1 << 70)])
def test_no_number_beyond_memory_is_an_address(doubled, number):
    with pytest.raises(OverflowError):
        doubled(number, 0, 0)


@native
def test_nothing_is_counted_wrong(doubled):
    """References, of None too, which a function that returns it has to count."""
    x, y, sizes = np.ones(4, np.float32), np.zeros(4, np.float32), np.array([4, 1])
    before = [sys.getrefcount(thing) for thing in (None, x, sizes, doubled)]
    for _ in range(5000):
        doubled(x, y, sizes)
    after = [sys.getrefcount(thing) for thing in (None, x, sizes, doubled)]
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 100


def test_the_code_lives_as_long_as_what_calls_it():
    kernels = [callable_from_python("doubled", library(), 3) for _ in range(3)]
    gc.collect()
    x, y, sizes = np.ones(4, np.float32), np.zeros(4, np.float32), np.array([4, 1])
    while kernels:
        kernels.pop()(x, y, sizes)
        gc.collect()
    assert y.tolist() == [2] * 4


@native
def test_other_threads_run_meanwhile(doubled):
    x, y, sizes = np.ones(1000, np.float32), np.zeros(1000, np.float32), np.array([1000, 100_000])
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (doubled(x, y, sizes), ended.set()))
    thread.start()
    turns = 0
    while not ended.is_set():
        turns += 1
    thread.join()
    assert turns > 1000


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((4, 4))[1:, ::-2], np.zeros(0), np.ma.zeros(3), np.array(1)])
def test_address(array):
    assert address(array) == array.ctypes.data


def test_a_kernel_has_no_more_arguments_than_are_passed():
    with pytest.raises(ValueError, match="arguments"):
        Kernel("many", "float32", 4, [f"x{i}" for i in range(MOST_ARGUMENTS)])
