"""Copies between arrays of any memory order, fast also where rows and columns change places."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wherever.engine.kernels.compile import Entry, address, compiled, unavailable
from wherever.engine.kernels.transpose import transpose
from wherever.problem import Array

_FEWEST = 4  # rows and columns from which on the kernel is ahead of NumPy's own copy, if there are many numbers
_MANY = 1 << 13  # numbers from which on it matters how they are copied; with fewer, NumPy's call takes longer than that


def assign(target: Array, source: Array) -> None:
    """``target[...] = source``, broadcast as NumPy does, for arrays that share no memory.

    NumPy copies along the memory of one of the two, and jumps through the other: 20 times slower than necessary when
    channels move from first to last.
    """
    if source.shape != target.shape:
        source = np.broadcast_to(source, target.shape)
    if (exchange := exchanging(target, source)) is not None:
        exchange(address(source), address(target))
        return
    if min(source.strides, default=0) < 0:  # what the source shows backwards is copied backwards
        turned = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in source.strides)
        target, source = target[turned], source[turned]
    axis = _short(target, source)
    with np.errstate(all="ignore"):  # a number too large for the target's type becomes infinite: data, no error
        if axis is None:
            target[...] = source
            return
        before: tuple[Any, ...] = (slice(None),) * axis
        for place in range(target.shape[axis]):
            target[(*before, place)] = source[(*before, place)]


def _short(target: Array, source: Array) -> int | None:
    """An axis of a few places side by side in the target alone, along which NumPy would copy: a few colours.

    One colour after the other, along long rows, is copied five times faster.
    """
    if target.size < _MANY:
        return None
    for axis, (n, a, b) in enumerate(zip(target.shape, target.strides, source.strides, strict=True)):
        if 1 < n <= _FEWEST and a == target.itemsize and b > n * source.itemsize:
            return axis
    return None


def exchanging(target: Array, source: Array) -> Exchange | None:
    """The copy from ``source`` to ``target``, of one shape, if it exchanges rows and columns: for arrays like these."""
    if target.dtype != source.dtype or not (target.flags.aligned and source.flags.aligned):
        return None
    return _exchange(target.dtype, target.shape, target.strides, source.strides)


def readable(a: Array, dtype: np.dtype[Any], axis: int) -> bool:
    """Whether a kernel for this type, for which neighbours along an axis lie side by side, can read ``a`` in place."""
    if a.dtype != dtype or not a.flags.aligned or any(stride % dtype.itemsize for stride in a.strides):
        return False
    return a.strides[axis] == dtype.itemsize or a.shape[axis] == 1


@functools.cache
def _kernel(dtype: str) -> Entry:
    return compiled(transpose, dtype=dtype)


@dataclass(frozen=True)
class _Axis:
    """An axis of both arrays: how many places, and how many bytes apart in the target and in the source."""

    count: int
    target: int
    source: int


class Exchange:
    """A copy whose rows and columns change places: what can be known of it beforehand, but where the arrays are."""

    def __init__(self, dtype: np.dtype[Any], outer: _Axis, inner: _Axis, others: Sequence[_Axis], start: _Axis) -> None:
        self.kernel = _kernel(dtype.name)
        self.source_start, self.target_start = start.source, start.target
        *rest, each = sorted(others or [_Axis(1, 0, 0)], key=lambda axis: axis.count)
        pitches = (each.source, inner.source, each.target, outer.target)
        counts = (each.count, inner.count, outer.count)
        self.sizes = np.array([*counts, *(pitch // dtype.itemsize for pitch in pitches)], np.int64)
        self.address = address(self.sizes)
        self.offsets = [
            (
                sum(i * a.source for i, a in zip(index, rest, strict=True)),
                sum(i * a.target for i, a in zip(index, rest, strict=True)),
            )
            for index in itertools.product(*(range(axis.count) for axis in rest))
        ]

    def __call__(self, source: int, target: int) -> None:
        """Copy, from the array at one address to that at another."""
        source, target = source + self.source_start, target + self.target_start
        for behind_source, behind_target in self.offsets:
            self.kernel(source + behind_source, target + behind_target, self.address)


@functools.lru_cache(maxsize=1024)
def _exchange(
    dtype: np.dtype[Any], shape: tuple[int, ...], targets: tuple[int, ...], sources: tuple[int, ...]
) -> Exchange | None:
    """The copy between aligned arrays of one type, of this shape and these strides, if the kernel should do it."""
    if dtype.char not in "fd" or not dtype.isnative or any(stride % dtype.itemsize for stride in targets + sources):
        return None
    # What the source shows backwards is copied backwards.
    axes = [_Axis(*axis) for axis in zip(shape, targets, sources, strict=True)]
    back = [axis for axis in axes if axis.source < 0]
    start = _Axis(1, sum((a.count - 1) * a.target for a in back), sum((a.count - 1) * a.source for a in back))
    axes = [_Axis(a.count, -a.target, -a.source) if a.source < 0 else a for a in axes]
    axes = _joined(axes)
    inner = next((axis for axis in axes if axis.target == dtype.itemsize), None)
    outer = next((axis for axis in axes if axis.source == dtype.itemsize), None)
    if inner is None or outer is None or inner is outer:
        return None
    if min(inner.count, outer.count) < _FEWEST and math.prod(shape) >= _MANY:
        return None
    if unavailable() is not None:
        return None
    return Exchange(dtype, outer, inner, [axis for axis in axes if axis is not inner and axis is not outer], start)


def _joined(axes: Sequence[_Axis]) -> list[_Axis]:
    """The axes of more than one place; those that are one long axis in both arrays are joined."""
    found: list[_Axis] = []
    for axis in sorted((a for a in axes if a.count != 1), key=lambda a: -abs(a.target)):
        if found and (found[-1].target, found[-1].source) == (axis.count * axis.target, axis.count * axis.source):
            found[-1] = _Axis(found[-1].count * axis.count, axis.target, axis.source)
        else:
            found.append(axis)
    return found
