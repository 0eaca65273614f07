"""Threads: every item once, errors passed on, and a forked child that works."""

import os
import sys
import threading

import numpy as np
import pytest

from wherever.engine import run


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_each_item_is_done_once(threads):
    done, lock = [], threading.Lock()

    def work(item):
        with lock:
            done.append(item)

    run.for_each(work, range(20), threads)
    assert sorted(done) == list(range(20))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bad", [0, 4])
def test_an_error_is_passed_on(threads, bad):
    def work(item):
        if item == bad:
            raise RuntimeError(f"item {item}")

    with pytest.raises(RuntimeError, match=f"item {bad}"):
        run.for_each(work, range(6), threads)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_convolves():
    from wherever.ops import conv

    x, w = np.ones((1, 300, 300), np.float32), np.ones((1, 1, 3, 3), np.float32)
    run.for_each(lambda item: None, range(4), 2)  # the parent has threads now
    truth = conv(x, w)
    child = os.fork()
    if child == 0:  # pragma: no cover
        same = False
        try:
            run.for_each(lambda item: None, range(4), 2)
            same = np.array_equal(conv(x, w), truth)
        finally:
            os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_writes_to_no_memory_of_its_parent():
    count, dtype = 1 << 19, np.dtype(np.float64)
    arrays = [*run.workspace("test", count, dtype=dtype), run.fresh(count, dtype), run.unwritten(count, dtype)]
    for array in arrays:
        array[:] = 1
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            for array in arrays:
                array[:] = 2
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert all((array == 1).all() for array in arrays)


def test_memory_is_taken_over_when_its_arrays_are_gone():
    count, dtype = 1 << 16, np.dtype(np.float64)
    first = run.unwritten(count, dtype)
    first[:] = 1
    view = first.reshape(256, -1)[3:]
    other = run.unwritten(count, dtype)
    assert not np.shares_memory(first, other)
    place = first.ctypes.data
    del first
    assert run.unwritten(count, dtype).ctypes.data != place  # a view of it is still here
    assert (view == 1).all()
    del view
    assert run.unwritten(count, dtype).ctypes.data == place


def test_no_more_memory_is_left_than_a_thread_keeps():
    for megabytes in (10, 20, 30, 40, 100):
        run.unwritten(megabytes << 17, np.dtype(np.float64))
    assert sum(map(len, run._left.values())) <= run._KEPT
