"""ConvProblem: one convolution, completely described and checked, before any number is touched."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, TypeGuard, cast

import numpy as np
import numpy.typing as npt

Padding: TypeAlias = int | str | Sequence[int] | Sequence[tuple[int, int]]
Boundary: TypeAlias = str | float | complex
Direction: TypeAlias = Literal["forward", "transpose", "weight_gradient"]
Array: TypeAlias = npt.NDArray[Any]

LAYOUTS = ("channels_first", "channels_last")
BOUNDARIES = ("zeros", "edge", "reflect", "symmetric", "wrap")
PADDINGS = ("valid", "same", "full")
DIRECTIONS = ("forward", "transpose", "weight_gradient")

_MOST_BYTES = (1 << 63) - 1  # of an array
_MOST = 1 << 48  # of a stride, a dilation, or a padding: whatever is computed with them fits into 64 bits


@dataclass(frozen=True)
class ConvProblem:
    r"""One convolution: the geometry of the forward map, the direction in which it is used, and the number type.

    The forward map is the convolutional layer of every learning framework (a cross-correlation), for spatial
    dimensions ``1 .. d``:

    .. math:: y[n, k, i] = \sum_a \sum_c w[k, c, a] \; x[n, c, i \cdot stride + a \cdot dilation - before]

    It is bilinear in ``x`` and ``w``. ``direction`` says which of its three faces is asked for: ``"forward"``
    takes x and w to y; ``"transpose"`` takes y and w to x (the adjoint in x: transposed convolution, the gradient by
    the input); ``"weight_gradient"`` takes x and y to w (the adjoint in w). No direction conjugates.

    Attributes
    ----------
    batch, in_channels, out_channels, groups : int
    size : tuple of int
        Spatial sizes of x.
    kernel, stride, dilation : tuple of int
        One for each spatial dimension.
    padding : tuple of (int, int)
        Places added before and after x in each dimension. The arguments of a convolution cannot be negative; problems
        derived from others may have negative ones: places of x that are never looked at.
    boundary : str or number
        What lies outside x: a number, or ``"edge"``, ``"reflect"``, ``"symmetric"``, ``"wrap"`` as in `numpy.pad`.
    layout : str
        ``"channels_first"`` or ``"channels_last"``, of x and y; w is always (K, C / groups, *kernel).
    dtype : numpy.dtype
        Of the result.
    direction : str
    """

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    boundary: Boundary
    layout: str
    dtype: np.dtype[Any]
    direction: Direction = "forward"

    @classmethod
    def from_shapes(
        cls,
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
        direction: Direction = "forward",
    ) -> ConvProblem:
        """Check the arguments of a convolution and return its problem.

        Parameters
        ----------
        x_shape : sequence of int
            (N, C, *S), or (N, *S, C) with ``layout="channels_last"``: always with a batch.
        w_shape : sequence of int
            (K, C / groups, *R).

        Raises
        ------
        ValueError, TypeError
            Naming the argument, what was given and what is possible.
        """
        layout = one_of("layout", layout, LAYOUTS)
        out_channels, group_channels, *kernel_list = w_shape
        kernel = tuple(kernel_list)
        spatial = len(kernel)
        if spatial < 1:
            raise ValueError(f"w: shape {tuple(w_shape)} has no spatial dimension; it must be (K, C / groups, *R)")
        batch, *rest = x_shape
        channels, size = (rest[0], rest[1:]) if layout == "channels_first" else (rest[-1], rest[:-1])
        stride = per_dimension("stride", stride, spatial, minimum=1)
        dilation = per_dimension("dilation", dilation, spatial, minimum=1)
        groups = integer("groups", groups, minimum=1)
        if min(kernel) < 1:
            raise ValueError(f"w: shape {tuple(w_shape)} has a kernel of size 0; every kernel size must be at least 1")
        if channels != group_channels * groups:
            raise ValueError(
                f"w: shape {tuple(w_shape)} takes {group_channels} x groups={groups} = {group_channels * groups} "
                f"input channels, but x has {channels} ({layout}, shape {tuple(x_shape)})"
            )
        if out_channels % groups:
            raise ValueError(f"groups: {groups} does not divide the {out_channels} output channels of w")
        extent = tuple((r - 1) * d + 1 for r, d in zip(kernel, dilation, strict=True))
        pairs = _padding_pairs(padding, tuple(size), extent, stride)
        for dim, (n, (before, after), e) in enumerate(zip(size, pairs, extent, strict=True)):
            if n and n + before + after < e:
                raise ValueError(
                    f"w: the kernel spans {e} places in spatial dimension {dim}, "
                    f"but x has {n} (with padding {n + before + after}); pad more or use a smaller kernel"
                )
        number_type = checked_dtype("dtype", _dtype(dtype))
        boundary = checked_boundary(boundary)
        if not isinstance(boundary, str) and with_boundary(number_type, boundary) != number_type:
            raise TypeError(f"boundary: {boundary!r} does not fit into {number_type}; choose a wider dtype")
        if type(boundary) is int and number_type.kind in "fc" and abs(boundary) > 1 << 53:
            boundary = float(boundary)  # NumPy takes integers of more than 64 bits for objects
        if isinstance(boundary, str):
            for dim, (n, (before, after)) in enumerate(zip(size, pairs, strict=True)):
                if n == 0 and (before or after):
                    raise ValueError(
                        f"boundary: {boundary!r} continues x, but x is empty in spatial dimension {dim}; "
                        "use boundary='zeros'"
                    )
        problem = cls(
            batch=batch,
            in_channels=channels,
            out_channels=out_channels,
            groups=groups,
            size=tuple(size),
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=pairs,
            boundary=boundary,
            layout=layout,
            dtype=number_type,
            direction=cast(Direction, one_of("direction", direction, DIRECTIONS)),
        )
        return problem._of_possible_size("padding", padding)

    @classmethod
    def transposed(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        *,
        dtype: npt.DTypeLike = "float32",
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        layout: str = "channels_first",
    ) -> ConvProblem:
        """Check the arguments of a transposed convolution and return its problem.

        ``x_shape`` (N, C, *S), ``w_shape`` (C, K / groups, *R), in PyTorch's and ONNX's meaning; the result has
        sizes ``(S - 1) * stride - before - after + (R - 1) * dilation + 1 + output_padding``. It is the transpose of
        the convolution that takes K channels of that size to C channels of size S.
        """
        layout = one_of("layout", layout, LAYOUTS)
        in_channels, group_channels, *kernel_list = w_shape
        kernel = tuple(kernel_list)
        spatial = len(kernel)
        if spatial < 1 or min(kernel) < 1:
            raise ValueError(
                f"w: shape {tuple(w_shape)} must be (C, K / groups, *R) with at least one spatial "
                "dimension and kernel sizes of at least 1"
            )
        batch, *rest = x_shape
        channels, given = (rest[0], rest[1:]) if layout == "channels_first" else (rest[-1], rest[:-1])
        stride = per_dimension("stride", stride, spatial, minimum=1)
        dilation = per_dimension("dilation", dilation, spatial, minimum=1)
        extra = per_dimension("output_padding", output_padding, spatial, minimum=0)
        groups = integer("groups", groups, minimum=1)
        if channels != in_channels:
            raise ValueError(
                f"w: shape {tuple(w_shape)} takes {in_channels} input channels, but x has {channels} "
                f"({layout}, shape {tuple(x_shape)})"
            )
        if in_channels % groups:
            raise ValueError(f"groups: {groups} does not divide the {in_channels} input channels of w")
        if isinstance(padding, str) and padding != "valid":
            raise ValueError(
                f"padding: {padding!r} has no single meaning for a transposed convolution; "
                "give 'valid', an int, one per dimension, or (before, after) pairs"
            )
        extent = tuple((r - 1) * d + 1 for r, d in zip(kernel, dilation, strict=True))
        pairs = _padding_pairs(padding, tuple(given), extent, stride)
        for dim, (more, s, d) in enumerate(zip(extra, stride, dilation, strict=True)):
            if more >= max(s, d):
                raise ValueError(
                    f"output_padding: {more} in spatial dimension {dim} must be smaller than stride {s} or dilation {d}"
                )
        # Output padding uncovers places after the end: padding taken back there.
        pairs = tuple((b, a - more) for (b, a), more in zip(pairs, extra, strict=True))
        size = tuple((n - 1) * s + e - b - a for n, s, e, (b, a) in zip(given, stride, extent, pairs, strict=True))
        if any(n and m < 0 for n, m in zip(given, size, strict=True)):
            raise ValueError(f"padding: {padding!r} is larger than the result of the transposed convolution")
        problem = cls(
            batch=batch,
            in_channels=group_channels * groups,
            out_channels=in_channels,
            groups=groups,
            size=tuple(0 if n == 0 else m for n, m in zip(given, size, strict=True)),
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=pairs,
            boundary=0,
            layout=layout,
            dtype=checked_dtype("dtype", _dtype(dtype)),
            direction="transpose",
        )
        larger = ("dilation", dilation) if max(dilation) > max(stride) else ("stride", stride)
        return problem._of_possible_size(*larger)

    def _of_possible_size(self, name: str, given: object) -> ConvProblem:
        """Return the problem itself; raise ValueError, naming an argument, if no array could hold x or y."""
        for shape in (self.x_shape, self.y_shape):
            if math.prod(shape) * self.dtype.itemsize > _MOST_BYTES:
                raise ValueError(f"{name}: {given!r} makes an array of shape {shape}: more numbers than any can hold")
        return self

    @property
    def spatial(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    @functools.cached_property
    def extent(self) -> tuple[int, ...]:
        """How many places of x the dilated kernel spans in each dimension."""
        return tuple((r - 1) * d + 1 for r, d in zip(self.kernel, self.dilation, strict=True))

    @functools.cached_property
    def output(self) -> tuple[int, ...]:
        """Spatial sizes of y."""
        return tuple(
            (n + before + after - e) // s + 1 if n + before + after >= e else 0
            for n, (before, after), e, s in zip(self.size, self.padding, self.extent, self.stride, strict=True)
        )

    @property
    def taps(self) -> int:
        """Number of places in the kernel."""
        return math.prod(self.kernel)

    @property
    def group_in(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @functools.cached_property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the forward map's input, in this layout."""
        return self._shape(self.in_channels, self.size)

    @functools.cached_property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the forward map's output, in this layout."""
        return self._shape(self.out_channels, self.output)

    @functools.cached_property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of the weights, (K, C / groups, *kernel)."""
        return (self.out_channels, self.group_in, *self.kernel)

    def _shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.batch, channels, *size) if self.layout == "channels_first" else (self.batch, *size, channels)

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of the operand that streams through: y for the transpose, else x."""
        return self.y_shape if self.direction == "transpose" else self.x_shape

    @property
    def operand_shape(self) -> tuple[int, ...]:
        """Shape of the operand that is prepared: y for the gradient by the weights, else w."""
        return self.y_shape if self.direction == "weight_gradient" else self.w_shape

    @functools.cached_property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of what is computed."""
        return {"forward": self.y_shape, "transpose": self.x_shape, "weight_gradient": self.w_shape}[self.direction]

    @functools.cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def __hash__(self) -> int:
        return self._hash  # computed once: every call looks for its plan

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_hash"}  # words hash anew in each process

    @functools.cached_property
    def multiply_adds(self) -> int:
        """Multiply-adds of direct summation, terms that fall on the padding included."""
        return self.batch * self.out_channels * math.prod(self.output) * self.group_in * self.taps

    def __str__(self) -> str:
        kernel, output = "x".join(map(str, self.kernel)), "x".join(map(str, self.output))
        parts = [
            f"{self.direction} convolution, {self.spatial}-D, {self.dtype}, {self.layout}",
            f"x {self.x_shape}, w {self.w_shape} -> y {self.y_shape}",
            f"kernel {kernel}, output {output}, stride {self.stride}, dilation {self.dilation}, "
            f"padding {self.padding}, groups {self.groups}, boundary {self.boundary!r}",
        ]
        return "\n".join(parts)


def integer(name: str, value: object, *, minimum: int) -> int:
    """Return ``value`` as an int of at least ``minimum``; raise naming the argument otherwise."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name}: {number} is too small; it must be at least {minimum}")
    if number > _MOST:
        raise ValueError(f"{name}: {number} is too large; it must be at most {_MOST}")
    return number


def per_dimension(name: str, value: int | Sequence[int], spatial: int, *, minimum: int) -> tuple[int, ...]:
    """Return one int for each spatial dimension from an int or a sequence of them."""
    if not _is_sequence(value):
        return (integer(name, value, minimum=minimum),) * spatial
    numbers = tuple(integer(name, v, minimum=minimum) for v in value)
    if len(numbers) != spatial:
        raise ValueError(f"{name}: {numbers} has {len(numbers)} entries; give one int, or {spatial}: one per dimension")
    return numbers


def sizes(name: str, value: Iterable[int]) -> tuple[int, ...]:
    """Return a shape as a tuple of ints that are not negative; raise naming the argument otherwise."""
    if not _is_sequence(value):
        raise TypeError(f"{name}: expected a sequence of integers, got {value!r}")
    return tuple(integer(name, n, minimum=0) for n in value)


def _is_sequence(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether it has entries in an order, and is no text."""
    if isinstance(value, (str, bytes, bytearray, Set, Mapping)):
        return False
    return isinstance(value, Iterable) and not (isinstance(value, np.ndarray) and value.ndim == 0)


def _dtype(given: npt.DTypeLike) -> np.dtype[Any]:
    try:
        return np.dtype(given)
    except TypeError:
        raise TypeError(f"dtype: {given!r} is no type of NumPy's; give for example 'float32'") from None


@functools.lru_cache(maxsize=256)
def checked_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return ``dtype`` in native byte order if numbers can be convolved in it; raise TypeError otherwise."""
    if (dtype.kind not in "biufc" and dtype.name != "bfloat16") or "float8" in dtype.name:
        raise TypeError(f"{name}: cannot convolve {dtype}; possible are booleans, integers, floats and complex numbers")
    return dtype if dtype.isnative else dtype.newbyteorder("=")  # the same object: what is identical is equal soonest


def one_of(name: str, value: str, possible: tuple[str, ...]) -> str:
    """Return a word that is one of the possible ones; raise naming the argument otherwise."""
    if not isinstance(value, str) or value not in possible:
        raise ValueError(f"{name}: {value!r} is unknown; possible are {', '.join(map(repr, possible))}")
    return value


def checked_boundary(boundary: Boundary) -> Boundary:
    """The boundary as a mode of continuation, or the (Python) number that lies outside."""
    if isinstance(boundary, str):
        return 0 if one_of("boundary", boundary, BOUNDARIES) == "zeros" else boundary
    if isinstance(boundary, (bool, int, float, complex, np.number, np.bool_)):
        return cast(Boundary, boundary.item() if isinstance(boundary, np.generic) else boundary)
    raise TypeError(f"boundary: {boundary!r} is neither a number nor one of {', '.join(map(repr, BOUNDARIES))}")


def with_boundary(dtype: np.dtype[Any], boundary: Boundary) -> np.dtype[Any]:
    """NumPy's type of an array of ``dtype`` with a number around it; ValueError for integers out of its range."""
    if isinstance(boundary, int) and abs(boundary) >= 1 << 1023:
        raise ValueError(f"boundary: an integer of {boundary.bit_length()} bits fits into no type of numbers")
    if isinstance(boundary, complex) and dtype.kind != "c":
        return np.result_type(dtype, np.complex64)
    if isinstance(boundary, float) and dtype.kind in "biu":
        return np.result_type(dtype, np.float64)
    if isinstance(boundary, int) and boundary not in (0, 1) and dtype.kind == "b":
        return np.result_type(dtype, np.int64)
    if isinstance(boundary, int) and dtype.kind in "iu" and not np.iinfo(dtype).min <= boundary <= np.iinfo(dtype).max:
        raise ValueError(f"boundary: {boundary} does not fit into {dtype}; convert x to a wider type first")
    return dtype


def _padding_pairs(
    padding: Padding, size: tuple[int, ...], extent: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Padding in any of its forms as (before, after) for each dimension."""
    spatial = len(size)
    if isinstance(padding, str):
        one_of("padding", padding, PADDINGS)
        if padding == "valid":
            return ((0, 0),) * spatial
        if padding == "full":
            return tuple((e - 1, e - 1) for e in extent)
        # "same": the output has ceil(size / stride) places; an odd one goes after, as in PyTorch, TensorFlow and ONNX.
        totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(size, stride, extent, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    if not _is_sequence(padding):
        return ((integer("padding", padding, minimum=0),) * 2,) * spatial
    entries = list(padding)
    if len(entries) != spatial:
        raise ValueError(
            f"padding: {padding!r} has {len(entries)} entries; give one int, {spatial} ints, {spatial} "
            f"(before, after) pairs, or one of {', '.join(map(repr, PADDINGS))}"
        )
    pairs = []
    for entry in entries:
        if not _is_sequence(entry):
            pairs.append((integer("padding", entry, minimum=0),) * 2)
            continue
        pair = tuple(integer("padding", v, minimum=0) for v in entry)
        if len(pair) != 2:
            raise ValueError(f"padding: {entry!r} is not a (before, after) pair")
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)
