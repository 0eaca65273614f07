"""SciPy's convolutions of signals, by their names, with their arguments and their results, on this package's engine."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal

from wherever.engine import packed
from wherever.engine.plan import choose
from wherever.engine.run import get_threads
from wherever.problem import Array, Boundary, ConvProblem

# Everything here takes what `scipy.signal` takes, gives its types, and raises what it raises. All functions go through
# the planner: ``method="direct"`` is direct summation (precision "strict"), anything else whatever is fastest. Integers
# are exact throughout. Types that are no numbers to the engine (objects), SciPy computes itself.

__all__ = ["convolve", "convolve2d", "correlate", "correlate2d", "fftconvolve", "oaconvolve"]

# SciPy's functions as they are now, so that ours may be put in their place.
_SCIPY: dict[str, Any] = {name: getattr(scipy.signal, name) for name in __all__}
_MODES = ("valid", "same", "full")
_METHODS = ("auto", "direct", "fft")
_BOUNDARIES: dict[str, Boundary] = {"wrap": "wrap", "circular": "wrap", "symm": "symmetric", "symmetric": "symmetric"}


def correlate(in1: npt.ArrayLike, in2: npt.ArrayLike, mode: str = "full", method: str = "auto") -> Array:
    """Cross-correlate two arrays: `scipy.signal.correlate`.

    Parameters
    ----------
    in1, in2 : array_like
        Of one number of dimensions.
    mode : {"full", "valid", "same"}
        Where they overlap at all; where one lies wholly inside the other; the middle, of the size of ``in1``.
    method : {"auto", "direct", "fft"}
        "direct": by direct summation only; otherwise as is fastest.

    Returns
    -------
    array

    Examples
    --------
    >>> correlate([1, 2, 3], [0, 1, 2])
    array([2, 5, 8, 3, 0])
    """
    a, v = np.asarray(in1), np.asarray(in2)
    if a.ndim == v.ndim == 0:
        return np.asarray(a * v.conj())[()]
    if a.ndim != v.ndim:
        raise ValueError("in1 and in2 should have the same dimensionality")
    _check("mode", mode, _MODES)
    _check("method", method, _METHODS)
    if not _ours(a, v):
        return np.asarray(_SCIPY["correlate"](a, v, mode, method))
    return _convolve(a, np.flip(v).conj(), mode, method)


def convolve(in1: npt.ArrayLike, in2: npt.ArrayLike, mode: str = "full", method: str = "auto") -> Array:
    """Convolve two arrays: `scipy.signal.convolve`.

    Parameters
    ----------
    in1, in2, mode, method
        As for `correlate`.

    Returns
    -------
    array

    Examples
    --------
    >>> convolve([1, 2, 3], [0, 1, 2])
    array([0, 1, 4, 7, 6])
    """
    a, v = np.asarray(in1), np.asarray(in2)
    if a.ndim == v.ndim == 0:
        return np.asarray(a * v)[()]
    if a.ndim != v.ndim:
        raise ValueError("volume and kernel should have the same dimensionality")
    _check("mode", mode, _MODES)
    _check("method", method, _METHODS)
    if not _ours(a, v):
        return np.asarray(_SCIPY["convolve"](a, v, mode, method))
    return _convolve(a, v, mode, method)


def fftconvolve(in1: npt.ArrayLike, in2: npt.ArrayLike, mode: str = "full", axes: Any = None) -> Array:
    """Convolve two arrays along some axes, one array for each place along the others: `scipy.signal.fftconvolve`.

    Parameters
    ----------
    in1, in2 : array_like
        Of one number of dimensions; along axes that are not convolved their sizes must match, or be 1.
    mode : {"full", "valid", "same"}
        As for `correlate`.
    axes : int, sequence of int, or None
        The axes to convolve along; None: all.

    Returns
    -------
    array
        Of a float type, also for integers.
    """
    a, v = np.asarray(in1), np.asarray(in2)
    if a.ndim == v.ndim == 0:
        return np.asarray(a * v)[()]
    if a.ndim != v.ndim:
        raise ValueError("in1 and in2 should have the same dimensionality")
    if a.size == 0 or v.size == 0:
        return np.array([])
    if not _ours(a, v):
        return np.asarray(_SCIPY["fftconvolve"](a, v, mode, axes))
    along = _axes(axes, a.ndim)
    # Along an axis of one place there is nothing to convolve: numbers are multiplied, as beside the axes.
    along = [axis for axis in along if a.shape[axis] != 1 and v.shape[axis] != 1]
    beside = [axis for axis in range(a.ndim) if axis not in along]
    if any(a.shape[i] != v.shape[i] and 1 not in (a.shape[i], v.shape[i]) for i in beside):
        raise ValueError(f"incompatible shapes for in1 and in2: {a.shape} and {v.shape}")
    if _swapped(mode, a.shape, v.shape, along):
        a, v = v, a
    if mode not in _MODES:
        raise ValueError("acceptable mode flags are 'valid', 'same', or 'full'")
    if along:
        a, v = (b.astype(np.float64) if b.dtype.kind in "biu" else b for b in (a, v))
    return _convolve_along(a, v, along, beside, mode)


def oaconvolve(in1: npt.ArrayLike, in2: npt.ArrayLike, mode: str = "full", axes: Any = None) -> Array:
    """Convolve two arrays along some axes: `scipy.signal.oaconvolve`. As `fftconvolve`: tiles are the plan's affair."""
    return fftconvolve(in1, in2, mode, axes)


def convolve2d(
    in1: npt.ArrayLike, in2: npt.ArrayLike, mode: str = "full", boundary: str = "fill", fillvalue: complex = 0
) -> Array:
    """Convolve two images: `scipy.signal.convolve2d`.

    Parameters
    ----------
    in1, in2 : array_like (H, W)
    mode : {"full", "valid", "same"}
        As for `correlate`.
    boundary : {"fill", "wrap", "symm"}
        What lies outside ``in1``: ``fillvalue``, the image again, or its mirror image.
    fillvalue : number

    Returns
    -------
    array (h, w)
    """
    a, v = np.asarray(in1), np.asarray(in2)
    if not a.ndim == v.ndim == 2:
        raise ValueError("convolve2d inputs must both be 2-D arrays")
    if _swapped(mode, a.shape, v.shape, range(2)):
        a, v = v, a
    if not _ours(a, v) or 0 in (a.size, v.size):
        return np.asarray(_SCIPY["convolve2d"](a, v, mode, boundary, fillvalue))
    return _image(a, v, mode, boundary, fillvalue)


def correlate2d(
    in1: npt.ArrayLike, in2: npt.ArrayLike, mode: str = "full", boundary: str = "fill", fillvalue: complex = 0
) -> Array:
    """Cross-correlate two images: `scipy.signal.correlate2d`.

    Parameters
    ----------
    in1, in2, mode, boundary, fillvalue
        As for `convolve2d`.

    Returns
    -------
    array (h, w)
    """
    a, v = np.asarray(in1), np.asarray(in2)
    if not a.ndim == v.ndim == 2:
        raise ValueError("correlate2d inputs must both be 2-D arrays")
    if not _ours(a, v) or 0 in (a.size, v.size):
        return np.asarray(_SCIPY["correlate2d"](a, v, mode, boundary, fillvalue))
    if _swapped(mode, a.shape, v.shape, range(2)):
        return np.flip(_image(v, np.flip(a).conj(), mode, boundary, fillvalue))
    return _image(a, np.flip(v).conj(), mode, boundary, fillvalue, later=True)


# Arguments, as SciPy checks them.


def _check(name: str, value: str, possible: tuple[str, ...]) -> None:
    if value not in possible:
        raise ValueError(f"Acceptable {name} flags are {', '.join(map(repr, possible))}.")


def _swapped(mode: str, a: Sequence[int], v: Sequence[int], axes: Iterable[int]) -> bool:
    """Whether v is the one that a lies inside of."""
    if mode != "valid":
        return False
    pairs = [(a[i], v[i]) for i in axes]
    if all(n >= m for n, m in pairs):
        return False
    if all(n <= m for n, m in pairs):
        return True
    raise ValueError("For 'valid' mode, one must be at least as large as the other in every dimension")


def _axes(axes: Any, ndim: int) -> list[int]:
    if axes is None:
        return list(range(ndim))
    try:
        found = [operator.index(axis) for axis in (axes if isinstance(axes, Iterable) else [axes])]
    except TypeError:
        raise ValueError("axes must be a scalar or iterable of integers") from None
    if not found:
        raise ValueError("when provided, axes cannot be empty")
    if any(not -ndim <= axis < ndim for axis in found):
        raise ValueError("axes exceeds dimensionality of input")
    found = [axis % ndim for axis in found]
    if len(set(found)) != len(found):
        raise ValueError("all axes must be unique")
    return found


def _ours(a: Array, v: Array) -> bool:
    """Whether the engine computes these types."""
    return a.dtype.kind in "biufc" and v.dtype.kind in "biufc"


# One convolution.


def _padding(kernel: Sequence[int], mode: str) -> list[tuple[int, int]]:
    """What surrounds the first array; "same" is the middle of "full"."""
    if mode == "valid":
        return [(0, 0)] * len(kernel)
    if mode == "full":
        return [(r - 1, r - 1) for r in kernel]
    return [(r // 2, (r - 1) // 2) for r in kernel]


def _convolve(a: Array, v: Array, mode: str, method: str) -> Array:
    """Convolve two arrays of a type of numbers."""
    if _swapped(mode, a.shape, v.shape, range(a.ndim)):
        a, v = v, a
    if a.size == 0 or v.size == 0:
        return np.asarray(_SCIPY["convolve"](a, v, mode, method))
    # The smaller array is the kernel: the problem is the same, and its memory is less.
    if mode == "full" and v.size > a.size:
        a, v = v, a
    y = _run(a[None, None], np.flip(v)[None, None], _padding(v.shape, mode), precision=_precision(method))
    result: Array = y[0, 0]
    return result


def _precision(method: str) -> str:
    return "strict" if method == "direct" else "fast"


def _run(
    x: Array,
    w: Array,
    padding: list[tuple[int, int]],
    *,
    groups: int = 1,
    boundary: Boundary = 0,
    precision: str = "fast",
) -> Array:
    """Cross-correlate, in the type that the operands have in common."""
    problem = ConvProblem.from_shapes(
        x.shape,
        w.shape,
        dtype=np.result_type(x, w),
        padding=padding,
        groups=groups,
        boundary=boundary,
    )
    y = np.empty(problem.y_shape, problem.dtype)
    choice = choose(problem, precision=precision, prepared=False)
    packed.prepared(choice, w.astype(problem.dtype, copy=False)).run(x, y, get_threads())
    return y


def _convolve_along(a: Array, v: Array, along: list[int], beside: list[int], mode: str) -> Array:
    """Convolve along some axes (all of more than one place), multiply beside them."""
    if not along:
        y = a * v
    else:
        kernel = [v.shape[axis] for axis in along]
        shape = np.broadcast_shapes(*([b.shape[axis] for axis in beside] for b in (a, v)))
        places = math.prod(shape)
        order = (*beside, *along)
        a_first, v_first = a.transpose(order), v.transpose(order)
        one = math.prod(v.shape[axis] for axis in beside) == 1
        w = np.flip(v_first, tuple(range(len(beside), a.ndim)))
        if one:  # one kernel for all
            x = np.broadcast_to(a_first, (*shape, *a_first.shape[len(beside) :]))
            x = x.reshape(places, 1, *x.shape[len(beside) :])
            w = w.reshape(1, 1, *kernel)
        else:
            x, w = (np.broadcast_to(b, (*shape, *b.shape[len(beside) :])) for b in (a_first, w))
            x = x.reshape(1, places, *x.shape[len(beside) :])
            w = w.reshape(places, 1, *kernel)
        y = _run(x, w, _padding(kernel, mode), groups=1 if one else places)
        y = y.reshape(*shape, *y.shape[2:]).transpose(np.argsort(order))
    if mode == "same":  # the middle, also beside the axes
        start = [(n - m) // 2 for n, m in zip(y.shape, a.shape, strict=True)]
        y = y[tuple(slice(s, s + m) for s, m in zip(start, a.shape, strict=True))]
    return np.ascontiguousarray(y)


def _image(a: Array, v: Array, mode: str, boundary: str, fillvalue: Any, *, later: bool = False) -> Array:
    """Convolve an image with a kernel; of the two middles of an even kernel, "same" may mean the later one."""
    _check("mode", mode, _MODES)
    if boundary not in ("fill", "pad") and boundary not in _BOUNDARIES:
        raise ValueError("Acceptable boundary flags are 'fill', 'circular' (or 'wrap'), and 'symmetric' (or 'symm').")
    outside = _BOUNDARIES.get(boundary)
    if outside is None:
        value = np.asarray(fillvalue)
        if value.dtype.kind == "c" and "c" not in (a.dtype.kind, v.dtype.kind):
            raise ValueError("could not cast `fillvalue` directly to the output type, which is real")
        if value.size != 1:
            raise ValueError("`fillvalue` must be scalar or an array with one element.")
        outside = value.astype(np.result_type(a, v)).item()
    padding = _padding(v.shape, mode)
    if later:
        padding = [(after, before) for before, after in padding]
    y = _run(a[None, None], np.flip(v)[None, None], padding, boundary=outside)
    result: Array = y[0, 0]
    return result
