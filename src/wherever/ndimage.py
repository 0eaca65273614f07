"""SciPy's linear image filters, by their names, with their arguments and their results, on this package's engine."""

from __future__ import annotations

import functools
import math
import numbers
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from wherever.engine import packed
from wherever.engine.algorithms.filter import Filter
from wherever.engine.algorithms.ordered import OrderedPrepared
from wherever.engine.algorithms.protocol import Prepared
from wherever.engine.algorithms.separable import Axis, passes_along
from wherever.engine.kernels.compile import unavailable
from wherever.engine.machine import longest_sum
from wherever.engine.plan import choose
from wherever.engine.run import get_threads
from wherever.problem import Array, Boundary, ConvProblem

# Everything here takes what `scipy.ndimage` takes, and raises what it raises. Results are SciPy's too:
#
# - Float results to the accuracy of their type. SciPy sums everything in float64; here, sums of what float32 holds are
#   taken in float32 when the result is float32.
# - Integer results to the last bit. SciPy truncates sums towards zero, so that every rounding error before shows: where
#   sums are not exact they are taken in SciPy's own order, in float64, without fused multiplications.
#
# What the engine cannot compute (numbers of no dimension, types that are neither float32 nor float64 at heart, any at
# all where LLVM is missing), SciPy computes itself.

__all__ = [
    "convolve",
    "convolve1d",
    "correlate",
    "correlate1d",
    "gaussian_filter",
    "gaussian_filter1d",
    "gaussian_gradient_magnitude",
    "gaussian_laplace",
    "generic_gradient_magnitude",
    "generic_laplace",
    "laplace",
    "prewitt",
    "sobel",
    "uniform_filter",
    "uniform_filter1d",
]

Output: TypeAlias = npt.DTypeLike | Array | None
Modes: TypeAlias = str | Sequence[str]

# SciPy's functions as they are now, so that ours may be put in their place.
_SCIPY: dict[str, Any] = {name: getattr(scipy.ndimage, name) for name in __all__}
_BOUNDARIES = {
    "reflect": "symmetric",
    "grid-mirror": "symmetric",
    "mirror": "reflect",
    "nearest": "edge",
    "wrap": "wrap",
    "grid-wrap": "wrap",
}
_EPSILON = float(np.finfo(np.float64).eps)  # weights up to it are none to SciPy's N-D filters
_WINDOW_TAPS = 25  # up to which sums over windows are faster than one axis after the other
_FEW_CHANNELS = 16  # of which fewer than so many are filtered where they lie side by side
_PANEL_BYTES = 8 << 20  # of the columns that are filtered in place at once


def correlate(
    input: npt.ArrayLike,  # noqa: A002
    weights: npt.ArrayLike,
    output: Output = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: Any = None,
) -> Array:
    """Correlate an array with an array of weights: `scipy.ndimage.correlate`.

    Parameters
    ----------
    input : array_like
        Of any number of dimensions.
    weights : array_like
        As many dimensions as ``input``, or as ``axes`` has entries.
    output : array or dtype, optional
        Where to put the result, or its type; by default the type of the input.
    mode : str
        How the input goes on beyond its ends: "reflect" (d c b a | a b c d | d c b a, also "grid-mirror"), "constant"
        (``cval``, also "grid-constant"), "nearest" (a a a a | a b c d), "mirror" (d c b | a b c d), or "wrap" (also
        "grid-wrap").
    cval : number
        For ``mode="constant"``.
    origin : int or sequence of int
        Shifts the weights: 0 puts their middle over a place.
    axes : int, sequence of int, or None
        The axes to filter along; None: all.

    Returns
    -------
    array of the shape of ``input``

    Examples
    --------
    >>> correlate([[1, 0, 0], [0, 0, 0], [0, 0, 2]], [[1, 2, 3], [4, 5, 6], [7, 8, 9]], mode="constant")
    array([[ 5,  4,  0],
           [ 2, 19, 16],
           [ 0, 12, 10]])
    """
    return _correlate_or_convolve(input, weights, output, mode, cval, origin, False, axes)


def convolve(
    input: npt.ArrayLike,  # noqa: A002
    weights: npt.ArrayLike,
    output: Output = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: Any = None,
) -> Array:
    """Convolve an array with an array of weights: `scipy.ndimage.convolve`. As `correlate`, with weights reversed."""
    return _correlate_or_convolve(input, weights, output, mode, cval, origin, True, axes)


def correlate1d(
    input: npt.ArrayLike,  # noqa: A002
    weights: npt.ArrayLike,
    axis: int = -1,
    output: Output = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int = 0,
) -> Array:
    """Correlate an array along one axis: `scipy.ndimage.correlate1d`.

    Parameters
    ----------
    input : array_like
    weights : array_like (n,)
    axis : int
    output, mode, cval, origin
        As for `correlate`.

    Returns
    -------
    array of the shape of ``input``
    """
    x, w = np.asarray(input), np.asarray(weights)
    if "c" in (x.dtype.kind, w.dtype.kind):
        if w.dtype.kind == "c":
            w = w.conj().astype(np.complex128, copy=False)
        result = _output(output, x, complex_output=True)

        def part(some: Array, factors: Array, into: Any, outside: complex) -> Array:
            return correlate1d(some, factors, axis, into, mode, outside, origin)

        return _by_parts(part, x, w, result, cval)
    result = _output(output, x)
    w = np.asarray(w, np.float64)
    if w.ndim != 1 or len(w) < 1:
        raise RuntimeError("no filter weights given")
    axis = _axis(axis, x.ndim)
    _check_origin(
        origin, len(w), "Invalid origin; origin must satisfy -(len(weights) // 2) <= origin <= (len(weights)-1) // 2"
    )
    _along_axes(x, [_Pass(axis, w, len(w) // 2 + origin, mode)], result, cval)
    return result


def convolve1d(
    input: npt.ArrayLike,  # noqa: A002
    weights: npt.ArrayLike,
    axis: int = -1,
    output: Output = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int = 0,
) -> Array:
    """Convolve an array along one axis: `scipy.ndimage.convolve1d`. As `correlate1d`, with weights reversed."""
    w = np.asarray(weights)[::-1]
    origin = -origin - (len(w) % 2 == 0)
    return correlate1d(input, w.conj() if w.dtype.kind == "c" else w, axis, output, mode, cval, origin)


def gaussian_filter1d(
    input: npt.ArrayLike,  # noqa: A002
    sigma: float,
    axis: int = -1,
    order: int = 0,
    output: Output = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    truncate: float = 4.0,
    *,
    radius: int | None = None,
) -> Array:
    """Convolve an array along one axis with a Gaussian or its derivative: `scipy.ndimage.gaussian_filter1d`.

    Parameters
    ----------
    input : array_like
    sigma : float
        Standard deviation, in places.
    axis : int
    order : int
        Of the derivative; 0: the Gaussian itself.
    output, mode, cval
        As for `correlate`.
    truncate : float
        The kernel ends at so many standard deviations.
    radius : int, optional
        The kernel has ``2 * radius + 1`` places, whatever ``truncate`` says.

    Returns
    -------
    array of the shape of ``input``
    """
    return correlate1d(input, _gaussian(float(sigma), order, truncate, radius), axis, output, mode, cval, 0)


def gaussian_filter(
    input: npt.ArrayLike,  # noqa: A002
    sigma: float | Sequence[float],
    order: int | Sequence[int] = 0,
    output: Output = None,
    mode: Modes = "reflect",
    cval: complex = 0.0,
    truncate: float = 4.0,
    *,
    radius: int | Sequence[int] | None = None,
    axes: Any = None,
) -> Array:
    """Convolve an array with a Gaussian or its derivatives: `scipy.ndimage.gaussian_filter`.

    Parameters
    ----------
    input : array_like
    sigma, order, mode, radius
        As for `gaussian_filter1d`; one for all axes, or one for each.
    output, cval, truncate
        As for `gaussian_filter1d`.
    axes : int, sequence of int, or None
        The axes to filter along; None: all.

    Returns
    -------
    array of the shape of ``input``
    """
    x = np.asarray(input)
    result = _output(output, x)
    along = _axes(axes, x.ndim)
    orders, sigmas, modes, radii = (_sequence(value, len(along)) for value in (order, sigma, mode, radius))
    passes = []
    for axis, s, o, m, r in zip(along, sigmas, orders, modes, radii, strict=True):
        if s > 1e-15:
            w = _gaussian(float(s), o, truncate, r)
            passes.append(_Pass(axis, w, len(w) // 2, m))
    if x.dtype.kind == "c" or result.dtype.kind == "c":
        for number, one in enumerate(passes):
            correlate1d(result if number else x, one.weights, one.axis, result, one.mode, cval, 0)
        if not passes:
            result[...] = x
        return result
    _along_axes(x, passes, result, cval)
    return result


def uniform_filter1d(
    input: npt.ArrayLike,  # noqa: A002
    size: int,
    axis: int = -1,
    output: Output = None,
    mode: str = "reflect",
    cval: complex = 0.0,
    origin: int = 0,
) -> Array:
    """Means of ``size`` neighbouring places along one axis: `scipy.ndimage.uniform_filter1d`.

    Other than SciPy's running sum, a number that is not finite reaches only the means that it is part of.

    Parameters
    ----------
    input : array_like
    size : int
    axis : int
    output, mode, cval, origin
        As for `correlate`.

    Returns
    -------
    array of the shape of ``input``
    """
    x = np.asarray(input)
    axis = _axis(axis, x.ndim)
    if size < 1:
        raise RuntimeError("incorrect filter size")
    result = _output(output, x, complex_output=x.dtype.kind == "c")
    if not 0 <= size // 2 + origin < size:
        raise ValueError("invalid origin")
    one = _uniform(axis, size, origin, mode)
    if x.dtype.kind == "c":
        _along_axes(x.real, [one], result.real, np.real(cval))
        _along_axes(x.imag, [one], result.imag, np.imag(cval))
    else:
        _along_axes(x, [one], result, cval)
    return result


def uniform_filter(
    input: npt.ArrayLike,  # noqa: A002
    size: int | Sequence[int] = 3,
    output: Output = None,
    mode: Modes = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: Any = None,
) -> Array:
    """Means over boxes: `scipy.ndimage.uniform_filter`.

    Parameters
    ----------
    input : array_like
    size, mode, origin
        As for `uniform_filter1d`; one for all axes, or one for each.
    output, cval
        As for `correlate`.
    axes : int, sequence of int, or None
        The axes to filter along; None: all.

    Returns
    -------
    array of the shape of ``input``
    """
    x = np.asarray(input)
    result = _output(output, x, complex_output=x.dtype.kind == "c")
    along = _axes(axes, x.ndim)
    sizes, origins, modes = (_sequence(value, len(along)) for value in (size, origin, mode))
    passes = []
    for axis, n, o, m in zip(along, sizes, origins, modes, strict=True):
        if n > 1:
            if not 0 <= int(n) // 2 + o < int(n):
                raise ValueError("invalid origin")
            passes.append(_uniform(axis, int(n), o, m))
    if x.dtype.kind == "c":
        _along_axes(x.real, passes, result.real, np.real(cval))
        _along_axes(x.imag, passes, result.imag, np.imag(cval))
    else:
        _along_axes(x, passes, result, cval)
    return result


def prewitt(
    input: npt.ArrayLike,  # noqa: A002
    axis: int = -1,
    output: Output = None,
    mode: Modes = "reflect",
    cval: complex = 0.0,
) -> Array:
    """Differences along one axis, summed along the others: `scipy.ndimage.prewitt`."""
    return _edges(input, axis, output, mode, cval, [1, 1, 1])


def sobel(
    input: npt.ArrayLike,  # noqa: A002
    axis: int = -1,
    output: Output = None,
    mode: Modes = "reflect",
    cval: complex = 0.0,
) -> Array:
    """Differences along one axis, smoothed along the others: `scipy.ndimage.sobel`.

    Examples
    --------
    >>> sobel([[0, 0, 4, 4], [0, 0, 4, 4]])
    array([[ 0, 16, 16,  0],
           [ 0, 16, 16,  0]])
    """
    return _edges(input, axis, output, mode, cval, [1, 2, 1])


def generic_laplace(
    input: npt.ArrayLike,  # noqa: A002
    derivative2: Callable[..., Array],
    output: Output = None,
    mode: Modes = "reflect",
    cval: complex = 0.0,
    extra_arguments: Sequence[Any] = (),
    extra_keywords: dict[str, Any] | None = None,
    *,
    axes: Any = None,
) -> Array:
    """The sum of second derivatives along the axes, by a function: `scipy.ndimage.generic_laplace`.

    Parameters
    ----------
    derivative2 : callable
        ``derivative2(input, axis, output, mode, cval, *extra_arguments, **extra_keywords)``.
    """
    x = np.asarray(input)
    result = _output(output, x)
    along = _axes(axes, x.ndim)
    if not along:
        result[...] = x
        return result
    modes, keywords = _sequence(mode, len(along)), extra_keywords or {}
    derivative2(x, along[0], result, modes[0], cval, *extra_arguments, **keywords)
    for axis, m in zip(along[1:], modes[1:], strict=True):
        result += derivative2(x, axis, result.dtype, m, cval, *extra_arguments, **keywords)
    return result


def laplace(
    input: npt.ArrayLike,  # noqa: A002
    output: Output = None,
    mode: Modes = "reflect",
    cval: complex = 0.0,
    *,
    axes: Any = None,
) -> Array:
    """The sum of second differences along the axes: `scipy.ndimage.laplace`.

    Examples
    --------
    >>> laplace([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    array([[ 0,  1,  0],
           [ 1, -4,  1],
           [ 0,  1,  0]])
    """

    def derivative2(some: Array, axis: int, into: Any, how: str, outside: complex) -> Array:
        return correlate1d(some, [1, -2, 1], axis, into, how, outside, 0)

    return generic_laplace(input, derivative2, output, mode, cval, axes=axes)


def gaussian_laplace(
    input: npt.ArrayLike,  # noqa: A002
    sigma: float | Sequence[float],
    output: Output = None,
    mode: Modes = "reflect",
    cval: complex = 0.0,
    *,
    axes: Any = None,
    **kwargs: Any,
) -> Array:
    """The Laplacian of an array convolved with a Gaussian: `scipy.ndimage.gaussian_laplace`."""
    x = np.asarray(input)

    def derivative2(
        some: Array, axis: int, into: Any, how: Modes, outside: complex, deviations: Any, **keywords: Any
    ) -> Array:
        orders = [0] * x.ndim
        orders[axis] = 2
        return gaussian_filter(some, deviations, orders, into, how, outside, **keywords)

    along = _axes(axes, x.ndim)
    deviations: list[Any] = [0] * x.ndim  # along other axes nothing is filtered
    for axis, s in zip(along, _sequence(sigma, len(along)), strict=True):
        deviations[axis] = s
    return generic_laplace(
        x, derivative2, output, mode, cval, extra_arguments=(deviations,), extra_keywords=kwargs, axes=axes
    )


def generic_gradient_magnitude(
    input: npt.ArrayLike,  # noqa: A002
    derivative: Callable[..., Array],
    output: Output = None,
    mode: Modes = "reflect",
    cval: complex = 0.0,
    extra_arguments: Sequence[Any] = (),
    extra_keywords: dict[str, Any] | None = None,
    *,
    axes: Any = None,
) -> Array:
    """The length of the gradient, by a function: `scipy.ndimage.generic_gradient_magnitude`.

    Parameters
    ----------
    derivative : callable
        ``derivative(input, axis, output, mode, cval, *extra_arguments, **extra_keywords)``; what it returns is
        modified.
    """
    x = np.asarray(input)
    result = _output(output, x)
    along = _axes(axes, x.ndim)
    if not along:
        result[...] = x
        return result
    modes, keywords = _sequence(mode, len(along)), extra_keywords or {}
    derivative(x, along[0], result, modes[0], cval, *extra_arguments, **keywords)
    np.multiply(result, result, result)
    for axis, m in zip(along[1:], modes[1:], strict=True):
        square = derivative(x, axis, result.dtype, m, cval, *extra_arguments, **keywords)
        np.multiply(square, square, square)
        result += square
    np.sqrt(result, result, casting="unsafe")
    return result


def gaussian_gradient_magnitude(
    input: npt.ArrayLike,  # noqa: A002
    sigma: float | Sequence[float],
    output: Output = None,
    mode: Modes = "reflect",
    cval: complex = 0.0,
    *,
    axes: Any = None,
    **kwargs: Any,
) -> Array:
    """The length of the gradient of an array convolved with a Gaussian: `scipy.ndimage.gaussian_gradient_magnitude`."""
    x = np.asarray(input)

    def derivative(
        some: Array, axis: int, into: Any, how: Modes, outside: complex, deviations: Any, **keywords: Any
    ) -> Array:
        orders = [0] * x.ndim
        orders[axis] = 1
        return gaussian_filter(some, deviations, orders, into, how, outside, **keywords)

    return generic_gradient_magnitude(
        x, derivative, output, mode, cval, extra_arguments=(sigma,), extra_keywords=kwargs, axes=axes
    )


# Arguments, as SciPy checks them.


def _output(output: Any, x: Array, *, complex_output: bool = False) -> Array:
    """The array that the result goes to."""
    if output is None:
        kind = np.promote_types(x.dtype, np.complex64) if complex_output else x.dtype.newbyteorder("=")
        return np.zeros(x.shape, kind)
    if isinstance(output, type | np.dtype):
        if complex_output and np.dtype(output).kind != "c":
            warnings.warn("promoting specified output dtype to complex", stacklevel=3)
            output = np.promote_types(output, np.complex64)
        return np.zeros(x.shape, output)
    if isinstance(output, str):
        kind = np.dtype(output)
        if complex_output and kind.kind != "c":
            raise RuntimeError("output must have complex dtype")
        if not issubclass(kind.type, np.number):
            raise RuntimeError("output must have numeric dtype")
        return np.zeros(x.shape, kind)
    result = np.asarray(output)
    if result.shape != x.shape:
        raise RuntimeError("output shape not correct")
    if complex_output and result.dtype.kind != "c":
        raise RuntimeError("output must have complex dtype")
    return result


def _sequence(value: Any, count: int) -> list[Any]:
    if isinstance(value, str) or not np.iterable(value):
        return [value] * count
    values = list(value)
    if len(values) != count:
        raise RuntimeError("sequence argument must have length equal to input rank")
    return values


def _axes(axes: Any, ndim: int) -> tuple[int, ...]:
    if axes is None:
        return tuple(range(ndim))
    if np.isscalar(axes):
        found = [_axis(operator.index(axes), ndim)]  # type: ignore[arg-type]
    elif isinstance(axes, Iterable):
        found = [operator.index(axis) for axis in axes]
        for axis in found:
            if not -ndim <= axis < ndim:
                raise ValueError(f"specified axis: {axis} is out of range")
        found = [axis % ndim for axis in found]
    else:
        raise ValueError("axes must be an integer, iterable of integers, or None")
    if len(set(found)) != len(found):
        raise ValueError("axes must be unique")
    return tuple(found)


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise np.exceptions.AxisError(axis, ndim)
    return axis % ndim


def _check_origin(origin: int, length: int, message: str) -> None:
    if not -(length // 2) <= origin <= (length - 1) // 2:
        raise ValueError(message)


def _boundary(mode: str, cval: complex) -> Boundary:
    """How the engine continues an array for one of SciPy's modes."""
    if mode in ("constant", "grid-constant"):
        return float(cval)  # type: ignore[arg-type]  # a complex number is an error here as it is in SciPy
    if mode not in _BOUNDARIES:
        raise RuntimeError("boundary mode not supported")
    return _BOUNDARIES[mode]


def _gaussian(sigma: float, order: int, truncate: float, radius: int | None) -> Array:
    """Weights of `correlate1d`: the derivative of a Gaussian, a polynomial times the Gaussian, reversed."""
    reach = int(truncate * sigma + 0.5) if radius is None else radius
    if not isinstance(reach, numbers.Integral) or reach < 0:
        raise ValueError("Radius must be a nonnegative integer.")
    if order < 0:
        raise ValueError("order must be non-negative")
    x = np.arange(-reach, reach + 1)
    gauss = np.exp(-0.5 / (sigma * sigma) * x**2)
    gauss /= gauss.sum()
    if order == 0:
        return gauss
    # (q g)' = (q' - q x / sigma^2) g, on the coefficients of q.
    powers = np.arange(order + 1)
    q = np.zeros(order + 1)
    q[0] = 1
    step = np.diag(powers[1:], 1) + np.diag(np.ones(order) / -(sigma * sigma), -1)
    for _ in range(order):
        q = step.dot(q)
    derivative: Array = (x[:, None] ** powers).dot(q) * gauss
    return derivative[::-1]


# Complex numbers, by parts.


def _by_parts(
    part: Callable[[Array, Array, Any, complex], Array], x: Array, w: Array, result: Array, cval: complex
) -> Array:
    """A filter of complex numbers as filters of their parts."""
    if x.dtype.kind == "c" and w.dtype.kind == "c":
        part(x.real, w.real, result.real, np.real(cval))
        result.real -= part(x.imag, w.imag, None, np.imag(cval))
        part(x.real, w.imag, result.imag, np.real(cval))
        result.imag += part(x.imag, w.real, None, np.imag(cval))
    elif x.dtype.kind == "c":
        part(x.real, w, result.real, np.real(cval))
        part(x.imag, w, result.imag, np.imag(cval))
    else:
        if np.iscomplexobj(cval):
            raise ValueError("Cannot provide a complex-valued cval when the input is real.")
        part(x, w.real, result.real, cval)
        part(x, w.imag, result.imag, cval)
    return result


# Any number of axes at once.


def _correlate_or_convolve(
    input: npt.ArrayLike,  # noqa: A002
    weights: npt.ArrayLike,
    output: Output,
    mode: Any,
    cval: complex,
    origin: int | Sequence[int],
    convolution: bool,
    axes: Any,
) -> Array:
    x, w = np.asarray(input), np.asarray(weights)
    if "c" in (x.dtype.kind, w.dtype.kind):
        if w.dtype.kind == "c" and not convolution:
            w = w.conj()
        result = _output(output, x, complex_output=True)

        def part(some: Array, factors: Array, into: Any, outside: complex) -> Array:
            return _correlate_or_convolve(some, factors, into, mode, outside, origin, convolution, axes)

        return _by_parts(part, x, w, result, cval)
    along = _axes(axes, x.ndim)
    w = np.asarray(w, np.float64)
    origins = [0] * x.ndim
    for axis, o in zip(along, _sequence(origin, len(along)), strict=True):
        origins[axis] = o
    if len(along) < x.ndim:
        if w.ndim != len(along):
            raise RuntimeError(f"weights.ndim ({w.ndim}) must match len(axes) ({len(along)})")
        w = np.expand_dims(w, tuple(axis for axis in range(x.ndim) if axis not in along))
    lengths = [n for n in w.shape if n > 0]
    if len(lengths) != x.ndim:
        raise RuntimeError(f"weights.ndim ({len(lengths)}) must match len(axes) ({len(along)})")
    if convolution:
        w = np.flip(w)
        origins = [-o - (n % 2 == 0) for o, n in zip(origins, lengths, strict=True)]
    for o, n in zip(origins, lengths, strict=True):
        _check_origin(
            o,
            n,
            "Invalid origin; origin must satisfy -(weights.shape[k] // 2) <= origin[k] <= (weights.shape[k]-1) // 2",
        )
    result = _output(output, x)
    if not isinstance(mode, str) and isinstance(mode, Iterable):
        raise RuntimeError("A sequence of modes is not supported")
    boundary = _boundary(mode, cval)
    if not _ours(x, result):
        return _with_scipy(_SCIPY["correlate"], x, result, w, mode=mode, cval=cval, origin=origins)
    if x.size:
        before = [n // 2 + o for n, o in zip(lengths, origins, strict=True)]
        source = x.copy() if np.may_share_memory(x, result) else x
        _sum_windows(source, w, before, boundary, result)
    return result


def _sum_windows(x: Array, w: Array, before: list[int], boundary: Boundary, result: Array) -> None:
    """Sum windows of x with the weights w into the result."""
    padding = [(b, n - 1 - b) for b, n in zip(before, w.shape, strict=True)]
    # Leading axes along which nothing is filtered are a batch.
    batch = 0
    while batch < x.ndim - 1 and w.shape[batch] == 1:
        batch += 1
    shape = x.shape[batch:]
    kernel = w.reshape(1, 1, *w.shape[batch:])

    def summed(dtype: npt.DTypeLike, how: str) -> Array:
        problem = ConvProblem.from_shapes(
            (math.prod(x.shape[:batch]), 1, *shape),
            kernel.shape,
            dtype=dtype,
            padding=padding[batch:],
            boundary=boundary,
        )
        direct = result.dtype == problem.dtype and result.flags.c_contiguous
        out = (result if direct else np.empty(result.shape, problem.dtype)).reshape(problem.y_shape)
        operand = kernel.astype(problem.dtype)
        if how == "ordered":
            OrderedPrepared(problem, operand, _EPSILON).run(x.reshape(problem.x_shape), out, get_threads())
        else:
            prepared = packed.prepared(choose(problem, precision=how, prepared=False), operand)
            prepared.run(x.reshape(problem.x_shape), out, get_threads())
        return out.reshape(result.shape)

    if result.dtype.kind == "f":
        y = summed(_sum_type(x, result), "fast")
        if (np.abs(w) <= _EPSILON).any() and not np.isfinite(np.sum(y)):
            y = summed(np.float64, "ordered")  # what is not finite and lies under no weight does not count
        if not np.may_share_memory(y, result):
            result[...] = y
        return
    exact = _exact_type(x, w, boundary)
    if _sum_exactly(x, w, before, boundary, result, exact):
        return
    _truncate(summed(np.float64, "ordered") if exact is None else summed(exact, "strict"), result)


def _sum_exactly(
    x: Array, w: Array, before: list[int], boundary: Boundary, result: Array, exact: np.dtype[Any] | None
) -> bool:
    """Sum windows of integers in float32, where that is exact, straight into an integer result; whether that is done.

    Whatever is truncated between passes, or wrapped around, an exact sum modulo the range of the result is the same.
    """
    if exact != np.float32 or result.dtype.kind not in "iu" or result.dtype.itemsize > 4:
        return False
    problem, batch = _window_problem(x, w, before, boundary, exact)
    if problem is None or not result.flags.c_contiguous:
        return False
    shape = (batch, 1, *problem.size)
    prepared = _prepared_filter(problem, w.astype(problem.dtype).tobytes())
    prepared.run(x.reshape(shape), result.reshape(shape), get_threads())
    return True


def _window_problem(
    x: Array, w: Array, before: list[int], boundary: Boundary, dtype: np.dtype[Any]
) -> tuple[ConvProblem | None, int]:
    """Sums over windows of the last two axes, or the last, as a problem that `Filter` takes, of so many images."""
    plane = 2 if x.ndim > 1 else 1
    if any(n > 1 for n in w.shape[:-plane]):
        return None, 0
    batch = math.prod(x.shape[:-plane])
    padding = [(b, n - 1 - b) for b, n in zip(before, w.shape, strict=True)][-plane:]
    shapes = (batch, 1, *x.shape[-plane:]), (1, 1, *w.shape[-plane:])
    return _filter_problem(*shapes, dtype, tuple(padding), boundary), batch


@functools.lru_cache(maxsize=256)
def _filter_problem(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    dtype: np.dtype[Any],
    padding: tuple[tuple[int, int], ...],
    boundary: Boundary,
) -> ConvProblem | None:
    problem = ConvProblem.from_shapes(x_shape, w_shape, dtype=dtype, padding=padding, boundary=boundary)
    return None if Filter().refuses(problem) else problem


@functools.lru_cache(maxsize=64)
def _prepared_filter(problem: ConvProblem, weights: bytes) -> Prepared:
    """`Filter` with these weights, of the problem's type: found again by later calls."""
    return Filter().prepare(problem, np.frombuffer(weights, problem.dtype).reshape(problem.w_shape))


def _as_window(x: Array, passes: list[_Pass], boundaries: list[Boundary], result: Array) -> bool:
    """Filter along two axes at once, where that is exact or as good, and faster; whether that is done."""
    if any(b != boundaries[0] for b in boundaries) or not (isinstance(boundaries[0], str) or boundaries[0] == 0):
        return False  # a number outside is not summed by the first pass; only zero is the same for both
    axes, taps = {one.axis for one in passes}, math.prod(len(one.weights) for one in passes)
    if taps > _WINDOW_TAPS or len(axes) < len(passes) or np.may_share_memory(x, result):
        return False
    w, before = np.ones([1] * x.ndim), [0] * x.ndim
    for one in passes:
        w = w * (one.weights / one.divisor).reshape([-1 if axis == one.axis else 1 for axis in range(x.ndim)])
        before[one.axis] = one.before
    if result.dtype.kind != "f":
        return _sum_exactly(x, w, before, boundaries[0], result, _exact_type(x, w, boundaries[0]))
    dtype = _sum_type(x, result)
    problem, batch = _window_problem(x, w, before, boundaries[0], dtype)
    if problem is None or dtype != result.dtype or not result.flags.c_contiguous:
        return False
    shape = (batch, 1, *problem.size)
    prepared = _prepared_filter(problem, w.astype(dtype).tobytes())
    prepared.run(x.reshape(shape), result.reshape(shape), get_threads())
    return True


def _exact_type(x: Array, w: Array, boundary: Boundary) -> np.dtype[Any] | None:
    """A float type in which no sum of these products rounds, in whatever order; None if there is none."""
    outside = 0.0 if isinstance(boundary, str) else float(np.real(boundary))
    if x.dtype.kind not in "biu" or outside != round(outside) or not np.array_equal(w, np.rint(w)):
        return None
    if x.dtype.kind == "b":
        largest = 1
    elif x.dtype.itemsize == 1:
        largest = 255
    else:
        largest = max(abs(int(x.max())), abs(int(x.min())))
    bound = max(largest, abs(outside)) * float(np.abs(w).sum())
    return np.dtype(np.float32) if bound < 1 << 24 else np.dtype(np.float64) if bound < 1 << 53 else None


# One axis after the other.


class _Pass:
    """A 1-D filter along one axis; ``divisor``: its weights are ones, and sums are divided by their number."""

    def __init__(self, axis: int, weights: Array, before: int, mode: str, divisor: int = 1) -> None:
        self.axis, self.weights, self.before, self.mode, self.divisor = axis, weights, before, mode, divisor

    def along(self, size: int, cval: complex, exact: bool) -> Axis:
        """The filter, for an axis of this size."""
        w = self.weights if exact or self.divisor == 1 else self.weights / self.divisor
        return Axis(size, w, self.before, len(w) - 1 - self.before, _boundary(self.mode, cval), _symmetry(w))


def _uniform(axis: int, size: int, origin: int, mode: str) -> _Pass:
    return _Pass(axis, np.ones(size), size // 2 + origin, mode, size)


def _symmetry(w: Array) -> str:
    """The symmetry that SciPy sees: it decides in which order terms are added."""
    half = len(w) // 2
    if half and len(w) % 2:
        first, last = w[:half], w[: -half - 1 : -1]
        if np.all(np.abs(first - last) <= _EPSILON):
            return "even"
        if np.all(np.abs(first + last) <= _EPSILON):
            return "odd"
    return "plain"


def _edges(input: npt.ArrayLike, axis: int, output: Output, mode: Modes, cval: complex, other: list[int]) -> Array:  # noqa: A002
    x = np.asarray(input)
    axis = _axis(axis, x.ndim)
    result = _output(output, x)
    modes = _sequence(mode, x.ndim)
    order = [axis, *(a for a in range(x.ndim) if a != axis)]
    kernels = [[-1, 0, 1], *[other] * (x.ndim - 1)]
    if "c" in (x.dtype.kind, result.dtype.kind):
        for number, (a, w) in enumerate(zip(order, kernels, strict=True)):
            correlate1d(result if number else x, w, a, result, modes[a], cval, 0)
        return result
    passes = [_Pass(a, np.array(w, np.float64), 1, modes[a]) for a, w in zip(order, kernels, strict=True)]
    _along_axes(x, passes, result, cval)
    return result


def _along_axes(x: Array, passes: list[_Pass], result: Array, cval: complex) -> None:
    """Filter one axis after the other; what lies between is of the type of the result."""
    boundaries = [_boundary(one.mode, cval) for one in passes]
    if not passes:
        result[...] = x
    elif not _ours(x, result):
        for number, one in enumerate(passes):
            _with_scipy_along(result if number else x, one, result, cval)
    elif not x.size:
        return
    elif result.dtype.kind == "b":
        bits = result.view(np.uint8) if result.dtype.itemsize == 1 else result
        _along_axes(x, passes, bits, cval)
        result[...] = bits != 0
    else:
        exact = result.dtype.kind != "f"
        if np.may_share_memory(x, result) and not _same_places(x, result):
            x = x.copy()
        if _as_window(x, passes, boundaries, result):
            return
        todo = list(zip(passes, boundaries, strict=True))
        source = x
        while todo:
            dtype = np.dtype(np.float64) if exact else _sum_type(source, result)
            plane, unit = _plane(source, result, [one for one, _ in todo])
            pair = _fused([one for one, _ in todo], plane, [b for _, b in todo], exact)
            if pair is not None and exact and not _stays_inside(source, pair, result, cval):
                pair = None
            if pair is not None and source is not result:
                _fused_pass(source, pair, result, cval, dtype, unit, exact)
                todo = todo[2:]
            else:
                (one, boundary), todo = todo[0], todo[1:]
                if exact or len(one.weights) <= longest_sum(dtype):
                    _single_pass(source, one, result, cval, dtype, exact)
                else:
                    _long_pass(source, one, boundary, result)
            source = result


def _plane(x: Array, result: Array, passes: list[_Pass]) -> tuple[int, int]:
    """The axis across which images are filtered, and how many channels lie side by side along it: the last axis.

    Or the one before, where the last holds a few channels that are filtered each by itself.
    """
    last = x.ndim - 1
    few = x.ndim > 2 and 1 < x.shape[last] < _FEW_CHANNELS and all(one.axis != last for one in passes)
    if few and x.flags.c_contiguous and result.flags.c_contiguous:
        return last - 1, x.shape[last]
    return last, 1


def _fused(passes: list[_Pass], last: int, boundaries: list[Boundary], exact: bool) -> tuple[_Pass, _Pass] | None:
    """The next two passes as (down, across), if they are along two last axes, and may change places if they must."""
    if any(len(one.weights) > longest_sum(np.dtype(np.float64)) for one in passes[:2]):
        return None
    if len(passes) < 2 or {passes[0].axis, passes[1].axis} != {last - 1, last}:
        return None
    if passes[0].axis < passes[1].axis:
        return passes[0], passes[1]
    # A number outside is not summed by the first pass; only zero makes the order immaterial.
    if exact or any(not isinstance(b, str) and b != 0 for b in boundaries[:2]):
        return None
    return passes[1], passes[0]


def _stays_inside(x: Array, pair: Sequence[_Pass], result: Array, cval: complex) -> bool:
    """Whether sums of integers, truncated, are in the range of the result's type before the last pass, and in int32's.

    Told from the types alone. A pass that divides its sums is none that the kernel knows.
    """
    if not all(a.dtype.kind in "biu" and a.dtype.itemsize <= 4 for a in (x, result)) or result.dtype.kind == "b":
        return False
    if x.dtype.kind == "b":
        low, high = 0.0, 1.0
    else:
        low, high = float(np.iinfo(x.dtype).min), float(np.iinfo(x.dtype).max)
    inside = np.iinfo(result.dtype)
    for number, one in enumerate(pair):
        if one.divisor != 1 or not np.isfinite(one.weights).all():
            return False
        if not isinstance(_boundary(one.mode, cval), str):
            low, high = min(low, float(np.real(cval))), max(high, float(np.real(cval)))
        up, down = one.weights[one.weights > 0].sum(), one.weights[one.weights < 0].sum()
        low, high = low * up + high * down, high * up + low * down
        if not (low > -(2.0**31) and high < 2.0**31 - 1):
            return False
        if number < len(pair) - 1 and not (low > inside.min - 0.5 and high < inside.max + 0.5):
            return False
    return True


def _fused_pass(
    x: Array,
    pair: tuple[_Pass, _Pass],
    result: Array,
    cval: complex,
    dtype: np.dtype[Any],
    unit: int,
    exact: bool,
) -> None:
    if np.may_share_memory(x, result):
        x = x.copy()
    down, across = (one.along(x.shape[one.axis], cval, exact) for one in pair)
    sums = passes_along(dtype, (down, across), fused=not exact, summed_outside=False, unit=unit, truncated=exact)
    if unit > 1:
        shape = (*x.shape[:-2], -1)
        x, result = x.reshape(shape), result.reshape(shape)
    for index in np.ndindex(x.shape[:-2]):
        sums.run(x[index], result[index], get_threads())


def _single_pass(x: Array, one: _Pass, result: Array, cval: complex, dtype: np.dtype[Any], exact: bool) -> None:
    """Filter along one axis, plane after plane; x and the result may be the same array."""
    filtered = one.along(x.shape[one.axis], cval, exact)
    divisor = one.divisor if exact else 1
    truncated = exact and _stays_inside(x, [one], result, cval)
    partner = _partner(x.shape, one.axis)
    if partner is None:
        x, result, partner, axis = x[None], result[None], 0, one.axis + 1
    else:
        axis = one.axis
    down = partner == x.ndim - 1  # the partner lies along memory: lanes are its places
    last = (axis, partner) if down else (partner, axis)
    x, result = (np.moveaxis(a, last, (-2, -1)) for a in (x, result))
    if not down and x.ndim > 2 and x.flags.c_contiguous and result.flags.c_contiguous:
        x, result = (a.reshape(-1, a.shape[-1]) for a in (x, result))
    height, width = x.shape[-2:]
    pair = (filtered, Axis(width)) if down else (Axis(height), filtered)
    for index in np.ndindex(x.shape[:-2]):
        source, target = x[index], result[index]
        if down and np.may_share_memory(x, result):
            # Rows that are still to be read must not change: columns by themselves, from a copy.
            step = max(64, _PANEL_BYTES // (x.itemsize * max(height, 1)))
            for j in range(0, width, step):
                some = slice(j, min(j + step, width))
                pair = (filtered, Axis(some.stop - j))
                sums = passes_along(dtype, pair, fused=not exact, divisor=divisor, truncated=truncated)
                sums.run(source[:, some].copy(), target[:, some], get_threads())
        else:
            sums = passes_along(dtype, pair, fused=not exact, divisor=divisor, truncated=truncated)
            sums.run(source, target, get_threads())


def _long_pass(x: Array, one: _Pass, boundary: Boundary, result: Array) -> None:
    """Filter along one axis with more weights than are summed one by one."""
    w = (one.weights / one.divisor).reshape([-1 if axis == one.axis else 1 for axis in range(x.ndim)])
    before = [one.before if axis == one.axis else 0 for axis in range(x.ndim)]
    _sum_windows(x.copy() if np.may_share_memory(x, result) else x, w, before, boundary, result)


def _partner(shape: tuple[int, ...], axis: int) -> int | None:
    """The axis that makes a plane with this one: the last, if it is long enough for vectors, else the longest."""
    others = [a for a in range(len(shape)) if a != axis]
    if not others:
        return None
    if others[-1] == len(shape) - 1 and shape[-1] >= 16:
        return others[-1]
    return max(others, key=lambda a: shape[a])


def _same_places(x: Array, result: Array) -> bool:
    """Whether two arrays are one and the same memory, element by element."""
    return (
        x.__array_interface__["data"][0] == result.__array_interface__["data"][0]
        and x.strides == result.strides
        and x.dtype == result.dtype
    )


# Types.


def _ours(x: Array, result: Array) -> bool:
    """Whether the engine computes these types; SciPy does the rest (and says what it cannot)."""
    known = all(a.dtype.kind in "biu" or a.dtype.char in "fd" for a in (x, result))
    return known and x.ndim > 0 and unavailable() is None


def _sum_type(x: Array, result: Array) -> np.dtype[Any]:
    """In which type sums are taken whose result is a float: float32, if both sides are no wider."""
    narrow = result.dtype.itemsize == 4 and np.can_cast(x.dtype, np.float32, "safe")
    return np.dtype(np.float32 if narrow else np.float64)


def _truncate(values: Array, result: Array) -> None:
    """Numbers as integers, as C converts them: towards zero, modulo the range."""
    if result.dtype.kind == "b":
        result[...] = values.astype(np.int64) != 0
    else:
        with np.errstate(invalid="ignore"):
            result[...] = values.astype(np.uint64 if result.dtype == np.uint64 else np.int64)


def _with_scipy(function: Callable[..., Any], x: Array, result: Array, *arguments: Any, **keywords: Any) -> Array:
    function(x, *arguments, output=result, **keywords)
    return result


def _with_scipy_along(x: Array, one: _Pass, result: Array, cval: complex) -> None:
    origin = one.before - len(one.weights) // 2
    if one.divisor > 1:
        _SCIPY["uniform_filter1d"](x, one.divisor, one.axis, result, one.mode, cval, origin)
    else:
        _SCIPY["correlate1d"](x, one.weights, one.axis, result, one.mode, cval, origin)
