"""Copies between arrays of any memory order, fast also where rows and columns change places."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from wherever.engine.kernels.compile import Compiled, compiled, unavailable
from wherever.engine.kernels.transpose import transpose
from wherever.problem import Array

_FEWEST = 4  # rows and columns from which on the kernel is ahead of NumPy's own copy


def assign(target: Array, source: Array) -> None:
    """``target[...] = source``, broadcast as NumPy does, for arrays that share no memory.

    NumPy copies along the memory of one of the two, and jumps through the other: 20 times slower than necessary when
    channels move from first to last.
    """
    if source.shape != target.shape:
        source = np.broadcast_to(source, target.shape)
    # What the source shows backwards is copied backwards.
    turned = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in source.strides)
    target, source = target[turned], source[turned]
    axes = _exchanged(target, source)
    if axes is None or unavailable() is not None:
        with np.errstate(all="ignore"):  # a number too large for the target's type becomes infinite: data, no error
            target[...] = source
        return
    inner, outer = axes  # along which target, and source, lie side by side
    others = sorted((axis for axis in range(target.ndim) if axis not in axes), key=lambda axis: target.shape[axis])
    target, source = target.transpose(*others, outer, inner), source.transpose(*others, inner, outer)
    if not others:
        target, source = target[None], source[None]
    kernel, size = _kernel(target.dtype.name), target.itemsize
    (count, columns, rows), x, y = target.shape[-3:], source.strides[-3:], target.strides[-3:]
    sizes = np.array([count, rows, columns, x[0] // size, x[1] // size, y[0] // size, y[1] // size], np.int64)
    address = sizes.ctypes.data
    for index in np.ndindex(target.shape[:-3]):
        kernel(source[index].ctypes.data, target[index].ctypes.data, address)


def readable(a: Array, dtype: np.dtype[Any], axis: int) -> bool:
    """Whether a kernel for this type, for which neighbours along an axis lie side by side, can read ``a`` in place."""
    if a.dtype != dtype or not a.flags.aligned or any(stride % dtype.itemsize for stride in a.strides):
        return False
    return a.strides[axis] == dtype.itemsize or a.shape[axis] == 1


@functools.cache
def _kernel(dtype: str) -> Compiled:
    return compiled(transpose, dtype=dtype)


def _exchanged(target: Array, source: Array) -> tuple[int, int] | None:
    """The axes along which target and source lie side by side in memory, if the kernel should exchange them."""
    if target.dtype != source.dtype or target.dtype.char not in "fd" or not target.dtype.isnative:
        return None
    if not (target.flags.aligned and source.flags.aligned):
        return None
    size = target.itemsize
    inner = next((a for a, (n, s) in enumerate(zip(target.shape, target.strides, strict=True)) if s == size), None)
    outer = next((a for a, (n, s) in enumerate(zip(source.shape, source.strides, strict=True)) if s == size), None)
    if inner is None or outer is None or inner == outer:
        return None
    if target.shape[inner] < _FEWEST or target.shape[outer] < _FEWEST:
        return None
    if any(stride % size for stride in (*target.strides, *source.strides)):
        return None
    return inner, outer
