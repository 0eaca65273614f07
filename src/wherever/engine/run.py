"""Threads: how many processors are used, and how work is shared among them."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from wherever.engine.kernels.entry import address
from wherever.problem import Array, integer

T = TypeVar("T")

_threads: int | None = None


def available_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(threads: int | None) -> None:
    """Set how many threads a convolution uses when its plan does not say.

    Parameters
    ----------
    threads : int or None
        At least 1. None: the processors that this process may use (the default).

    Notes
    -----
    Results do not depend on the number of threads, to the last bit. Matrix products of the portable algorithms run on
    NumPy's BLAS, whose own threads are set by its own means (`OPENBLAS_NUM_THREADS`, `MKL_NUM_THREADS`).
    """
    global _threads
    _threads = None if threads is None else integer("threads", threads, minimum=1)


def get_threads() -> int:
    """Return how many threads a convolution uses when its plan does not say."""
    return _threads or available_threads()


class _Arena(threading.local):
    """Memory that a thread uses again for each of its convolutions, by purpose."""

    def __init__(self) -> None:
        self.memory: dict[str, npt.NDArray[np.uint8]] = {}


_arena = _Arena()
_KEPT = 64 << 20  # bytes that a thread keeps for the next call
_HUGE = 2 << 20  # bytes of a huge page


def workspace(purpose: str, *counts: int, dtype: np.dtype[Any]) -> list[Array]:
    """Return flat arrays of so many numbers, in memory that the next call for this purpose in this thread takes over.

    Each begins on a cache line of its own. Fresh memory costs a page fault every 4 KiB, which is half the time of some
    convolutions; this is asked of the system once, in huge pages where it has them.
    """
    sizes = [-(-count * dtype.itemsize // 64) * 64 + 64 for count in counts]
    total = sum(sizes)
    memory = _arena.memory.get(purpose)
    if memory is None or memory.size < total:
        memory = _fresh(total)
        if total <= _KEPT:
            _arena.memory[purpose] = memory
    found, start = [], -address(memory) % 64
    for count, size in zip(counts, sizes, strict=True):
        found.append(memory[start : start + count * dtype.itemsize].view(dtype))
        start += size
    return found


def workspaces() -> list[Array]:
    """Return the memory that this thread keeps for its calls, as whole words."""
    return [memory[: memory.size // 8 * 8].view(np.int64) for memory in _arena.memory.values()]


def fresh(count: int, dtype: np.dtype[Any]) -> Array:
    """Return a flat array of so many numbers, in memory of its own, zero at first: huge pages, if it fills some."""
    size = count * dtype.itemsize
    return np.zeros(count, dtype) if size < _HUGE else _fresh(size)[:size].view(dtype)


def unwritten(count: int, dtype: np.dtype[Any]) -> Array:
    """Return a flat array of so many numbers, of any values, in memory of its own.

    Where weights come with every call they are packed into other memory each time, whose page faults cost more than the
    packing. So what is large is taken over from an array that this function returned and that is gone.
    """
    size = count * dtype.itemsize
    if size < _FOUND_AGAIN:
        return np.empty(count, dtype)
    for key, pages in reversed(list(_left.items())):  # what was left last is still in the caches
        if size <= len(pages) <= 2 * size and _left.pop(key, None) is not None:
            break
    else:
        pages = _pages(size)
    memory = np.frombuffer(pages, np.uint8)
    weakref.finalize(memory, _leave, pages).atexit = False
    return memory[:size].view(dtype)


_FOUND_AGAIN = 128 << 10  # bytes from which on memory is taken over
_left: dict[int, mmap.mmap] = {}  # by what is never the same; each step on it is whole, whatever thread takes it
_numbers = itertools.count()


def _leave(pages: mmap.mmap) -> None:
    """Keep memory whose array is gone; what was left longest goes, where that is too much."""
    _left[next(_numbers)] = pages
    while sum(map(len, list(_left.values()))) > _KEPT:
        for key in list(_left)[:1]:
            _left.pop(key, None)


def _pages(size: int) -> mmap.mmap:
    """Memory of this process alone. By `mmap`'s own default a forked child would write where its parent computes."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _fresh(size: int) -> npt.NDArray[np.uint8]:
    size = -(-(size + 64) // _HUGE) * _HUGE
    pages = _pages(size + _HUGE)
    if hasattr(pages, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(pages, np.uint8)
    start = -address(memory) % _HUGE
    return memory[start : start + size]


def for_each(function: Callable[[T], object], items: Iterable[T], threads: int) -> None:
    """Call ``function`` on each item, on up to ``threads`` threads; the first error is raised.

    The items must write to disjoint places: then the result is the same for any number of threads. Numbers that
    overflow or are not finite are data here, not errors: NumPy's warnings about them are off.
    """
    work = items if isinstance(items, Sequence) else list(items)
    workers = min(threads, len(work))
    if workers <= 1:
        with np.errstate(all="ignore"):
            for item in work:
                function(item)
        return
    # Whoever is free takes the next item: items may differ in cost, and other work may slow a processor down.
    following = itertools.count()

    def share() -> None:
        with np.errstate(all="ignore"):
            while (number := next(following)) < len(work):
                function(work[number])

    helpers = [_Worker.free() for _ in range(1, workers)]
    for helper in helpers:
        helper.begin.put(share)
    try:
        share()
    finally:
        errors = [helper.ended.get() for helper in helpers]
        _Worker.idle += reversed(helpers)
    for error in errors:
        if error is not None:
            raise error


def pieces(number: int, step: int, most: int) -> list[range]:
    """At most so many ranges of nearly one size, which begin at multiples of a step."""
    steps = -(-number // step)
    most = min(most, steps)
    cuts = [min(number, steps * i // most * step) for i in range(most + 1)]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


class _Worker:
    """A thread that waits for work.

    The one that ended last begins first: a thread that begins again finds its workspaces in the caches.
    """

    idle: ClassVar[list[_Worker]] = []

    def __init__(self) -> None:
        self.begin: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self.ended: SimpleQueue[BaseException | None] = SimpleQueue()
        threading.Thread(target=self._serve, name="wherever", daemon=True).start()

    @classmethod
    def free(cls) -> _Worker:
        """One that is idle, or a new one."""
        try:
            return cls.idle.pop()
        except IndexError:
            return cls()

    def _serve(self) -> None:
        while True:
            self.ended.put(_error(self.begin.get()))


def _error(work: Callable[[], object]) -> BaseException | None:
    """What a piece of work raises."""
    try:
        work()
    except BaseException as error:
        return error
    return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Worker.idle.clear)  # a child has none of its parent's threads
