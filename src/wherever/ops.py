"""The operation: conv, conv_transpose, correlate, convolve, their gradients, and plan, on NumPy arrays."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wherever.engine import packed
from wherever.engine.algorithms import Prepared
from wherever.engine.plan import Choice, choose
from wherever.engine.run import get_threads
from wherever.engine.sums import over_places
from wherever.problem import (
    LAYOUTS,
    Array,
    Boundary,
    ConvProblem,
    Padding,
    checked_boundary,
    checked_dtype,
    integer,
    one_of,
    sizes,
    with_boundary,
)

__all__ = [
    "Convolution",
    "Plan",
    "conv",
    "conv_bias_gradient",
    "conv_input_gradient",
    "conv_transpose",
    "conv_transpose_input_gradient",
    "conv_transpose_weight_gradient",
    "conv_weight_gradient",
    "convolve",
    "convolve_gradients",
    "correlate",
    "correlate_gradients",
    "plan",
]

Mode = Literal["full", "same", "valid"]
MODES = ("full", "same", "valid")


def conv(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zeros",
    layout: str = "channels_first",
    out: Array | None = None,
) -> Array:
    r"""Convolve images with kernels, as a convolutional layer does (a cross-correlation; `convolve` flips).

    .. math:: y[n, k, i] = bias[k] + \sum_a \sum_c w[k, c, a] \; x[n, c, i \cdot stride + a \cdot dilation - before]

    Parameters
    ----------
    x : array_like, (N, C, *S) or (C, *S)
        Any number of spatial dimensions from 1 up; with ``layout="channels_last"`` (N, *S, C) or (*S, C).
        Any strides, alignment and byte order; not modified.
    w : array_like, (K, C / groups, *R)
        One kernel of size R for each pair of output and input channel of a group.
    bias : array_like, (K,), optional
    stride, dilation : int or sequence of int
        One number, or one for each spatial dimension.
    padding : int, sequence of int, sequence of (before, after), "valid", "same" or "full"
        Places added around x. "valid": none; "same": as many as give ceil(S / stride) outputs (the odd one
        after); "full": extent of the kernel less one, everywhere that x and kernel overlap.
    groups : int
        Output channels of group g see the input channels of group g only; ``groups=C`` is a depthwise convolution.
    boundary : "zeros", number, "edge", "reflect", "symmetric" or "wrap"
        What lies in the padding, by `numpy.pad`'s names.
    layout : "channels_first" or "channels_last"
        Of x and of the result.
    out : array, optional
        Where to put the result. A type wider than the result's is computed in: with ``out`` of int32, uint8 images do
        not wrap around.

    Returns
    -------
    array, (N, K, *output) or (K, *output), channels where x has them
        Spatial sizes ``(S + before + after - (R - 1) * dilation - 1) // stride + 1``. The type is NumPy's promotion of
        x, w, bias (and boundary); integers are exact modulo the range of that type; float16 and bfloat16 are
        summed in float32.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what was given, and what is possible.

    See Also
    --------
    plan : the same with shapes first, to see the choice of algorithm and to prepare weights once.

    Notes
    -----
    What the latest calls prepared of their weights is kept (48 MiB at most) and used again by calls with the same
    weights, which are compared byte for byte.

    Examples
    --------
    >>> import numpy as np
    >>> edges = conv(np.eye(4)[None], [[[[1, -1]]]])
    >>> edges[0].astype(int)
    array([[ 1,  0,  0],
           [-1,  1,  0],
           [ 0, -1,  1],
           [ 0,  0, -1]])
    """
    x, w, b = _array("x", x), _array("w", w), _optional("bias", bias)
    boundary = checked_boundary(boundary)
    dtype = _result_dtype([("x", x), ("w", w), ("bias", b)], boundary, out)
    geometry = (stride, padding, dilation, groups)
    find = _forward_once if _all_plain(*geometry, layout) else _forward
    problem, squeezed = find(x.shape, w.shape, dtype, *geometry, boundary, layout)
    _check_bias(b, problem.out_channels)
    return _execute(problem, x, w, b, out, squeezed)


def conv_transpose(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "channels_first",
    out: Array | None = None,
) -> Array:
    """Transposed convolution: every input places a weighted kernel into the output (PyTorch's and ONNX's meaning).

    The transpose, as a linear map, of `conv` with the same arguments from the result's shape to x's. With w (C,
    K / groups, *R), as a layer that goes from C to K channels.

    Parameters
    ----------
    x : array_like, (N, C, *S) or (C, *S)
        With ``layout="channels_last"`` (N, *S, C) or (*S, C).
    w : array_like, (C, K / groups, *R)
    bias : array_like, (K,), optional
    stride, dilation, groups, layout, out
        As for `conv`.
    padding : int, sequence of int, sequence of (before, after), or "valid"
        Places taken away at the borders of the result.
    output_padding : int or sequence of int
        Places added after the end of the result, smaller than stride or dilation.

    Returns
    -------
    array, (N, K, *output) or (K, *output)
        Spatial sizes ``(S - 1) * stride - before - after + (R - 1) * dilation + 1 + output_padding``.
    """
    x, w, b = _array("x", x), _array("w", w), _optional("bias", bias)
    _check_ranks(x.shape, w.shape)
    batched = _batched(x.shape, w.shape, layout)
    problem = ConvProblem.transposed(
        batched,
        w.shape,
        dtype=_result_dtype([("x", x), ("w", w), ("bias", b)], 0, out),
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
        layout=layout,
    )
    _check_bias(b, problem.in_channels)
    return _execute(problem, x, w, b, out, x.ndim < len(batched))


# Gradients. With a loss L and g = dL/dy, these are dL/dx, dL/dw, dL/dbias; of complex numbers, by the convention of the
# frameworks, the conjugate adjoint.


def conv_input_gradient(
    g: npt.ArrayLike,
    w: npt.ArrayLike,
    x_shape: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zeros",
    layout: str = "channels_first",
) -> Array:
    """Gradient of `conv` by its input.

    Parameters
    ----------
    g : array_like, of the shape of ``conv(x, w, ...)``
        Gradient by the output.
    w : array_like, (K, C / groups, *R)
    x_shape : sequence of int
        Shape of x, which g does not tell where the stride is not 1.
    stride, padding, dilation, groups, boundary, layout
        As for `conv`.

    Returns
    -------
    array of shape ``x_shape``
    """
    g, w = _array("g", g), _array("w", w)
    shape = sizes("x_shape", x_shape)
    _check_ranks(shape, w.shape)
    batched = _batched(shape, w.shape, layout)
    problem = ConvProblem.from_shapes(
        batched,
        w.shape,
        dtype=_result_dtype([("g", g), ("w", w)], 0, None),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        boundary=boundary if isinstance(checked_boundary(boundary), str) else 0,  # a number does not depend on x
        layout=layout,
        direction="transpose",
    )
    squeezed = len(shape) < len(batched)
    _check_output_shape(g, problem, squeezed)
    return _execute(problem, g, w.conj(), None, None, squeezed)


def conv_weight_gradient(
    g: npt.ArrayLike,
    x: npt.ArrayLike,
    w_shape: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zeros",
    layout: str = "channels_first",
) -> Array:
    """Gradient of `conv` by its weights.

    Parameters
    ----------
    g : array_like, of the shape of ``conv(x, w, ...)``
        Gradient by the output.
    x : array_like, (N, C, *S) or (C, *S), or as ``layout`` says
    w_shape : sequence of int
        Shape of w, (K, C / groups, *R).
    stride, padding, dilation, groups, boundary, layout
        As for `conv`.

    Returns
    -------
    array of shape ``w_shape``
    """
    g, x = _array("g", g), _array("x", x)
    boundary = checked_boundary(boundary)
    shape = sizes("w_shape", w_shape)
    _check_ranks(x.shape, shape)
    batched = _batched(x.shape, shape, layout)
    problem = ConvProblem.from_shapes(
        batched,
        shape,
        dtype=_result_dtype([("g", g), ("x", x)], boundary, None),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        boundary=boundary.conjugate() if isinstance(boundary, complex) else boundary,
        layout=layout,
        direction="weight_gradient",
    )
    squeezed = x.ndim < len(batched)
    _check_output_shape(g, problem, squeezed)
    return _execute(problem, x.conj(), g[None] if squeezed else g, None, None, squeezed)


def conv_bias_gradient(g: npt.ArrayLike, *, spatial: int, layout: str = "channels_first") -> Array:
    """Gradient of `conv` by its bias: the sum of ``g`` over images and places.

    Parameters
    ----------
    g : array_like
        Gradient by the output, with or without a batch.
    spatial : int
        Number of spatial dimensions.
    layout : str

    Returns
    -------
    array (K,)
    """
    g = _array("g", g)
    spatial = integer("spatial", spatial, minimum=1)
    layout = one_of("layout", layout, LAYOUTS)
    if g.ndim not in (spatial + 1, spatial + 2):
        raise ValueError(f"g: shape {g.shape} does not have {spatial} spatial dimensions, channels, and maybe a batch")
    channel = g.ndim - 1 if layout == "channels_last" else g.ndim - spatial - 1
    if g.dtype.kind in "biu":
        exact: Array = np.sum(g, axis=tuple(a for a in range(g.ndim) if a != channel), dtype=g.dtype)
        return exact
    batched = g if g.ndim == spatial + 2 else g[None]
    last = layout == "channels_last"
    places = math.prod(batched.shape[1:-1] if last else batched.shape[2:])
    if places and g.flags.c_contiguous:
        flat = (len(batched), places, g.shape[channel]) if last else (len(batched), g.shape[channel], places)
        sums = over_places(batched.reshape(flat), last)
        if sums is not None:
            return sums.astype(g.dtype)
    # The bias is the weight of a channel that is one everywhere.
    ones = np.broadcast_to(np.ones(1, g.dtype), _with_channels(batched.shape, 1, layout))
    shape = (g.shape[channel], 1, *[1] * spatial)
    return conv_weight_gradient(batched, ones, shape, layout=layout).reshape(-1)


def _with_channels(shape: tuple[int, ...], channels: int, layout: str) -> tuple[int, ...]:
    """The shape (N, C, *S), or (N, *S, C), with another number of channels."""
    return (shape[0], channels, *shape[2:]) if layout == "channels_first" else (*shape[:-1], channels)


def conv_transpose_input_gradient(
    g: npt.ArrayLike,
    w: npt.ArrayLike,
    x_shape: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "channels_first",
) -> Array:
    """Gradient of `conv_transpose` by its input: a convolution of ``g`` with w.

    Parameters
    ----------
    g : array_like, of the shape of ``conv_transpose(x, w, ...)``
    w : array_like, (C, K / groups, *R)
    x_shape : sequence of int
        Shape of x.
    stride, padding, output_padding, dilation, groups, layout
        As for `conv_transpose`.

    Returns
    -------
    array of shape ``x_shape``
    """
    g, w = _array("g", g), _array("w", w)
    problem, squeezed = _transposed_backwards(
        sizes("x_shape", x_shape), w.shape, g, w, "forward", stride, padding, output_padding, dilation, groups, layout
    )
    return _execute(problem, g, w.conj(), None, None, squeezed)


def conv_transpose_weight_gradient(
    g: npt.ArrayLike,
    x: npt.ArrayLike,
    w_shape: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "channels_first",
) -> Array:
    """Gradient of `conv_transpose` by its weights.

    Parameters
    ----------
    g : array_like, of the shape of ``conv_transpose(x, w, ...)``
    x : array_like, (N, C, *S) or (C, *S), or as ``layout`` says
    w_shape : sequence of int
        Shape of w, (C, K / groups, *R).
    stride, padding, output_padding, dilation, groups, layout
        As for `conv_transpose`.

    Returns
    -------
    array of shape ``w_shape``
    """
    g, x = _array("g", g), _array("x", x)
    problem, squeezed = _transposed_backwards(
        x.shape,
        sizes("w_shape", w_shape),
        g,
        x,
        "weight_gradient",
        stride,
        padding,
        output_padding,
        dilation,
        groups,
        layout,
    )
    # The roles change: g is what the windows are taken of, and x is what they are weighted with.
    return _execute(problem, g, (x[None] if squeezed else x).conj(), None, None, squeezed)


def correlate(a: npt.ArrayLike, v: npt.ArrayLike, mode: Mode = "full", boundary: Boundary = "zeros") -> Array:
    """Cross-correlate two arrays of one number of dimensions: ``sum over k of a[k + i] conj(v[k])``.

    Parameters
    ----------
    a, v : array_like
        Arrays of the same number of dimensions, at least one.
    mode : {"full", "same", "valid"}
        Where v overlaps a at all; the middle part of that with the size of a; where v lies wholly inside a.
        With "valid", one of the two must be at least as large as the other in every dimension.
    boundary : "zeros", number, "edge", "reflect", "symmetric" or "wrap"
        What lies outside a.

    Returns
    -------
    array
        SciPy's `scipy.signal.correlate` (and, in one dimension, `numpy.correlate` for a at least as long as v).

    Examples
    --------
    >>> correlate([1, 2, 3], [0, 1, 0.5])
    array([0.5, 2. , 3.5, 3. , 0. ])
    """
    a, v = _pair(a, v, mode)
    if _swapped(a, v, mode):
        # The smaller inside the larger; what was passed over it backwards comes out backwards.
        return _reversed(correlate(v, a, mode, boundary).conj())
    return _plain(a, v.conj(), mode, boundary)


def convolve(a: npt.ArrayLike, v: npt.ArrayLike, mode: Mode = "full", boundary: Boundary = "zeros") -> Array:
    """Convolve two arrays of one number of dimensions: ``sum over k of a[i - k] v[k]``.

    Parameters
    ----------
    a, v : array_like
        Arrays of the same number of dimensions, at least one.
    mode : {"full", "same", "valid"}
        As for `correlate`.
    boundary : "zeros", number, "edge", "reflect", "symmetric" or "wrap"
        What lies outside a.

    Returns
    -------
    array
        SciPy's `scipy.signal.convolve` (and, in one dimension, `numpy.convolve` for a at least as long as v).

    Examples
    --------
    >>> convolve([1, 2, 3], [0, 1, 0.5])
    array([0. , 1. , 2.5, 4. , 1.5])
    """
    a, v = _pair(a, v, mode)
    if _swapped(a, v, mode):
        return convolve(v, a, mode, boundary)
    return _plain(a, _reversed(v), mode, boundary)


def correlate_gradients(
    g: npt.ArrayLike, a: npt.ArrayLike, v: npt.ArrayLike, mode: Mode = "full", boundary: Boundary = "zeros"
) -> tuple[Array, Array]:
    """Gradients of `correlate` by ``a`` and by ``v``, from the gradient ``g`` by its result."""
    a, v = _pair(a, v, mode)
    g = _array("g", g)
    if _swapped(a, v, mode):
        by_v, by_a = correlate_gradients(_reversed(g).conj(), v, a, mode, boundary)
        return by_a, by_v
    by_a, by_kernel = _plain_gradients(g, a, v.conj(), mode, boundary)
    return by_a, by_kernel.conj()


def convolve_gradients(
    g: npt.ArrayLike, a: npt.ArrayLike, v: npt.ArrayLike, mode: Mode = "full", boundary: Boundary = "zeros"
) -> tuple[Array, Array]:
    """Gradients of `convolve` by ``a`` and by ``v``, from the gradient ``g`` by its result."""
    a, v = _pair(a, v, mode)
    g = _array("g", g)
    if _swapped(a, v, mode):
        by_v, by_a = convolve_gradients(g, v, a, mode, boundary)
        return by_a, by_v
    by_a, by_kernel = _plain_gradients(g, a, _reversed(v), mode, boundary)
    return by_a, _reversed(by_kernel)


class Plan:
    """A convolution of known shapes: which algorithm computes it, and why (``print(plan)``).

    Attributes
    ----------
    problem : ConvProblem
    algorithm : str
        Name of the chosen algorithm. Weights that factor into few passes down and across may be separated instead:
        see `Convolution.algorithm`.
    """

    def __init__(self, problem: ConvProblem, choice: Choice, threads: int | None, squeezed: bool) -> None:
        self.problem = problem
        self._choice = choice
        self._threads = threads
        self._squeezed = squeezed

    @property
    def algorithm(self) -> str:
        """Name of the chosen algorithm."""
        return self._choice.algorithm.name

    def prepare(self, w: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Convolution:
        """Pack (or transform) weights once, for any number of calls.

        Parameters
        ----------
        w : array_like, of the plan's shape
            Of a type that converts safely to the plan's. Copied: later changes have no effect.
        bias : array_like, (K,), optional

        Returns
        -------
        Convolution
            Call it with x, and ``out`` if wanted.
        """
        weights, b = _array("w", w), _optional("bias", bias)
        if weights.shape != self.problem.w_shape:
            raise ValueError(f"w: shape {weights.shape}, but the plan is for {self.problem.w_shape}")
        _check_bias(b, self.problem.out_channels)
        for name, array in (("w", weights), ("bias", b)):
            if array is not None:
                _check_safe(name, array.dtype, self.problem.dtype)
        algorithm = self._choice.of_weights(weights)
        prepared = algorithm.prepare(self.problem, weights.copy(), None if b is None else b.copy())
        return Convolution(self, prepared, algorithm.name)

    def __str__(self) -> str:
        threads = self._threads or get_threads()
        return f"{self._choice}\nthreads {threads}; matrix products use the threads of NumPy's BLAS"

    def __repr__(self) -> str:
        return f"<Plan: {self.algorithm} for x {self.problem.x_shape}, w {self.problem.w_shape}, {self.problem.dtype}>"


class Convolution:
    """A convolution with its weights prepared: ``f(x, out=None)``.

    Attributes
    ----------
    plan : Plan
    algorithm : str
        What computes it: what the plan chose, or "separable" where only the weights show that this is faster.
    """

    def __init__(self, plan: Plan, prepared: Prepared, algorithm: str) -> None:
        self.plan, self.algorithm = plan, algorithm
        self._prepared = prepared
        self._problem, first = plan.problem, int(plan._squeezed)
        self._x_shape, self._y_shape = plan.problem.x_shape[first:], plan.problem.y_shape[first:]

    def __call__(self, x: npt.ArrayLike, out: Array | None = None) -> Array:
        """Convolve x, of the plan's shape and of a type that converts safely to the plan's."""
        plan, problem = self.plan, self._problem
        x = _array("x", x)
        if x.shape != self._x_shape:
            raise ValueError(f"x: shape {x.shape}, but the plan is for {self._x_shape}")
        if x.dtype != problem.dtype:
            _check_safe("x", x.dtype, problem.dtype)
        threads = plan._threads or get_threads()
        return _run(self._prepared, problem, x, out, self._y_shape, threads, plan._squeezed)

    def __repr__(self) -> str:
        return f"<Convolution: {self.algorithm}, {self._x_shape} -> {self._y_shape}, {self.plan.problem.dtype}>"


def plan(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    dtype: npt.DTypeLike = "float32",
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zeros",
    layout: str = "channels_first",
    threads: int | None = None,
    precision: str = "fast",
    measure: bool = False,
    prepared: bool = True,
) -> Plan:
    """Plan a convolution of known shapes.

    Parameters
    ----------
    x_shape, w_shape : sequence of int
        As for `conv`.
    dtype : dtype
        Of x, w and the result.
    stride, padding, dilation, groups, boundary, layout
        As for `conv`.
    threads : int, optional
        At most so many; by default what `set_threads` says. The result does not depend on it.
    precision : {"fast", "strict"}
        "fast": whichever algorithm is fastest. "strict": only direct summation.
    measure : bool
        Time the candidates instead of estimating, and remember the times for this processor, in the user's cache:
        later plans (and calls) of the same problem, precision and threads use them.
    prepared : bool
        Whether weights are prepared once, for any number of calls. False: preparing them counts, as it does for `conv`,
        which computes the same, to the last bit, as ``plan(..., prepared=False).prepare(w, bias)(x)``.

    Returns
    -------
    Plan
        ``print`` it to see every candidate, what it would cost, and why others were refused; ``plan.prepare(w, bias)``
        gives a callable ``f(x, out=None)``.

    Examples
    --------
    >>> import numpy as np
    >>> f = plan((3, 32, 32), (8, 3, 5, 5), padding="same").prepare(np.ones((8, 3, 5, 5), np.float32))
    >>> f(np.ones((3, 32, 32), np.float32)).shape
    (8, 32, 32)
    """
    x_shape, w_shape = sizes("x_shape", x_shape), sizes("w_shape", w_shape)
    if threads is not None:
        threads = integer("threads", threads, minimum=1)
    problem, squeezed = _forward(x_shape, w_shape, dtype, stride, padding, dilation, groups, boundary, layout)
    choice = choose(problem, precision=precision, measure=measure, threads=threads, prepared=prepared)
    return Plan(problem, choice, threads, squeezed)


# What the functions above share.


def _forward(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    boundary: Boundary,
    layout: str,
) -> tuple[ConvProblem, bool]:
    """The problem of a convolution, and whether x comes without a batch."""
    _check_ranks(x_shape, w_shape)
    batched = _batched(x_shape, w_shape, layout)
    problem = ConvProblem.from_shapes(
        batched,
        w_shape,
        dtype=dtype,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        boundary=boundary,
        layout=layout,
    )
    return problem, len(x_shape) < len(batched)


# Checked once, found again in a microsecond. Typed, since 1 == 1.0 == True and only one of them is an integer.
_forward_once = functools.lru_cache(maxsize=4096, typed=True)(_forward)


_PLAIN = frozenset((int, str))


def _all_plain(*arguments: object) -> bool:
    """Whether of all these arguments whatever equals them, and has their type, means the same."""
    return _PLAIN.issuperset(map(type, arguments)) or all(map(_plain_numbers, arguments))


def _plain_numbers(argument: object) -> bool:
    """Whether whatever equals this argument, and has its type, means the same: an int, a word, or ints in tuples."""
    if type(argument) is tuple:
        return all(type(entry) is int or (type(entry) is tuple and _plain_numbers(entry)) for entry in argument)
    return type(argument) in (int, str)


def _execute(
    problem: ConvProblem, source: Array, operand: Array, bias: Array | None, out: Array | None, squeezed: bool
) -> Array:
    """Choose, prepare (or find what the latest calls prepared) and run."""
    shape = problem.result_shape
    if squeezed and problem.direction != "weight_gradient":
        shape = shape[1:]
    threads = get_threads()
    prepared = packed.prepared(choose(problem, threads=threads, prepared=False), operand, bias)
    return _run(prepared, problem, source, out, shape, threads, squeezed)


def _run(
    prepared: Prepared,
    problem: ConvProblem,
    source: Array,
    out: Array | None,
    shape: tuple[int, ...],
    threads: int,
    squeezed: bool,
) -> Array:
    """Run into ``out`` if it can hold the result directly, else into fresh memory and copy."""
    if out is None:
        target = result = np.empty(shape, problem.dtype)
    else:
        _check_out(out, shape, problem.dtype)
        target = result = np.asarray(out)  # of a subclass, the numbers
        if result.dtype != problem.dtype or np.may_share_memory(result, source):
            result = np.empty(shape, problem.dtype)
    if result.size:
        batched = result[None] if len(shape) < len(problem.result_shape) else result
        prepared.run(source[None] if squeezed else source, batched, threads)
    if result is not target:
        with np.errstate(all="ignore"):  # what a narrower type cannot hold becomes infinite: data, no error
            np.copyto(target, result, casting="same_kind")
    return target if out is None else out


def _array(name: str, value: npt.ArrayLike) -> Array:
    if type(value) is np.ndarray:
        checked_dtype(name, value.dtype)
        return value
    if np.ma.is_masked(value):
        raise TypeError(f"{name}: some of its elements are masked; fill them first (filled)")
    try:
        array = np.asarray(value)
    except (ValueError, RuntimeError) as error:  # RuntimeError: PyTorch, of tensors that need gradients
        raise ValueError(f"{name}: not an array of numbers: {error}") from None
    checked_dtype(name, array.dtype)
    return array


def _optional(name: str, value: npt.ArrayLike | None) -> Array | None:
    return None if value is None else _array(name, value)


def _check_ranks(x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> None:
    if len(w_shape) < 3:
        raise ValueError(f"w: shape {w_shape} has {len(w_shape)} dimensions; it needs at least 3, (K, C / groups, *R)")
    spatial = len(w_shape) - 2
    if len(x_shape) not in (spatial + 1, spatial + 2):
        raise ValueError(
            f"x: shape {x_shape} has {len(x_shape)} dimensions; with w of shape {w_shape} the convolution is "
            f"{spatial}-D and x must have {spatial + 1} (channels and space) or {spatial + 2} (with a batch)"
        )


def _batched(x_shape: tuple[int, ...], w_shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The shape of x with a batch."""
    return (1, *x_shape) if len(x_shape) == len(w_shape) - 1 else tuple(x_shape)


def _check_bias(bias: Array | None, channels: int) -> None:
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias: shape {bias.shape}; it must be ({channels},), one number for each output channel")


def _check_output_shape(g: Array, problem: ConvProblem, squeezed: bool) -> None:
    expected = problem.y_shape[1:] if squeezed else problem.y_shape
    if g.shape != expected:
        raise ValueError(f"g: shape {g.shape}, but the convolution's result has shape {expected}")


def _check_safe(name: str, given: np.dtype[Any], wanted: np.dtype[Any]) -> None:
    if not np.can_cast(given, wanted, "safe"):
        raise TypeError(
            f"{name}: {given} does not convert safely to the plan's {wanted}; plan with dtype={str(given)!r}"
        )


def _check_out(out: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected an array, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out: shape {out.shape}, but the result has shape {shape}")
    if not out.flags.writeable:
        raise ValueError("out: the array is read-only")
    if out.dtype != dtype and not np.can_cast(dtype, checked_dtype("out", out.dtype), "same_kind"):
        raise TypeError(f"out: {out.dtype} cannot hold the result, which is {dtype}")
    if not out.flags.forc and _overlaps_itself(out):
        raise ValueError("out: several of its elements are one place of memory; give an array with room for each")


def _overlaps_itself(a: Array) -> bool:
    """Whether several elements share memory."""
    axes = sorted((abs(stride), n) for n, stride in zip(a.shape, a.strides, strict=True) if n > 1)
    if not a.size:
        return False
    reach = a.itemsize  # bytes that the axes so far span
    for stride, n in axes:
        if stride < reach:  # they interleave, at best: look at where each element begins
            places = functools.reduce(np.add.outer, (np.arange(n) * stride for stride, n in axes))
            return bool((np.diff(np.sort(places, axis=None)) < a.itemsize).any())
        reach += (n - 1) * stride
    return False


def _result_dtype(operands: list[tuple[str, Array | None]], boundary: Boundary, out: Array | None) -> np.dtype[Any]:
    """NumPy's promotion of the operands, of a number that lies outside, and of a wider ``out``."""
    given = [(name, array.dtype) for name, array in operands if array is not None]
    if boundary == 0 and type(boundary) is int and (out is None or type(out) is np.ndarray):
        all_of_them = [d for _, d in given] if out is None else [*(d for _, d in given), out.dtype]
        first = all_of_them[0]
        if first.isnative and all_of_them.count(first) == len(all_of_them):
            return first
    try:
        dtype = np.result_type(*(d for _, d in given))
        dtype = with_boundary(dtype.newbyteorder("="), boundary)
    except TypeError:
        types = ", ".join(f"{name} {d}" for name, d in given)
        raise TypeError(f"{given[0][0]}: NumPy has no common type for {types}; convert one of them first") from None
    if isinstance(out, np.ndarray) and np.can_cast(dtype, out.dtype, "safe"):
        return checked_dtype("out", out.dtype)
    return dtype.newbyteorder("=")


def _transposed_backwards(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    g: Array,
    other: Array,
    direction: Literal["forward", "weight_gradient"],
    stride: int | Sequence[int],
    padding: Padding,
    output_padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    layout: str,
) -> tuple[ConvProblem, bool]:
    """The problem of a transposed convolution in one of its other directions; g takes the place of x there."""
    _check_ranks(x_shape, w_shape)
    batched = _batched(x_shape, w_shape, layout)
    problem = _turned(
        ConvProblem.transposed(
            batched,
            w_shape,
            dtype=_result_dtype([("g", g), ("the other operand", other)], 0, None),
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
            groups=groups,
            layout=layout,
        ),
        direction,
    )
    squeezed = len(x_shape) < len(batched)
    expected = problem.x_shape[1:] if squeezed else problem.x_shape
    if g.shape != expected:
        raise ValueError(f"g: shape {g.shape}, but the transposed convolution's result has shape {expected}")
    return problem, squeezed


@functools.lru_cache(maxsize=1024)
def _turned(problem: ConvProblem, direction: Literal["forward", "weight_gradient"]) -> ConvProblem:
    return dataclasses.replace(problem, direction=direction)


# Plain arrays: one image of one channel, a kernel of any size, the paddings of "full", "same" and "valid".


def _pair(a: npt.ArrayLike, v: npt.ArrayLike, mode: str) -> tuple[Array, Array]:
    a, v = _array("a", a), _array("v", v)
    one_of("mode", mode, MODES)
    if a.ndim != v.ndim or a.ndim == 0:
        raise ValueError(f"v: {v.ndim} dimensions and a: {a.ndim}; both must have the same number, at least one")
    if a.size == 0 or v.size == 0:
        name, array = ("a", a) if a.size == 0 else ("v", v)
        raise ValueError(f"{name}: shape {array.shape} is empty")
    return a, v


def _swapped(a: Array, v: Array, mode: str) -> bool:
    """Whether v is the one that a lies inside of."""
    if mode != "valid" or all(n >= m for n, m in zip(a.shape, v.shape, strict=True)):
        return False
    if all(n <= m for n, m in zip(a.shape, v.shape, strict=True)):
        return True
    raise ValueError(
        f"v: shape {v.shape} and a: shape {a.shape}: for mode='valid' one must be at least as large as the "
        "other in every dimension"
    )


def _plain_padding(kernel: tuple[int, ...], mode: str) -> list[tuple[int, int]]:
    if mode == "valid":
        return [(0, 0)] * len(kernel)
    if mode == "full":
        return [(r - 1, r - 1) for r in kernel]
    return [(r // 2, (r - 1) // 2) for r in kernel]  # the middle of "full", as SciPy cuts it


def _plain(a: Array, kernel: Array, mode: str, boundary: Boundary) -> Array:
    x, w = a[None], kernel[None, None]
    y: Array = conv(x, w, padding=_plain_padding(kernel.shape, mode), boundary=boundary)[0]
    return y


def _plain_gradients(g: Array, a: Array, kernel: Array, mode: str, boundary: Boundary) -> tuple[Array, Array]:
    padding = _plain_padding(kernel.shape, mode)
    x, w = a[None], kernel[None, None]
    by_a = conv_input_gradient(g[None], w, x.shape, padding=padding, boundary=boundary)[0]
    by_kernel = conv_weight_gradient(g[None], x, w.shape, padding=padding, boundary=boundary)[0, 0]
    return by_a, by_kernel


def _reversed(a: Array) -> Array:
    flipped: Array = np.flip(a)
    return flipped
