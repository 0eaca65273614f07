"""Counting what a layer holds and does from its shapes alone; and the checks of shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from wherever.problem import Array, integer

Shape: TypeAlias = tuple[int, ...]
Sizes: TypeAlias = int | Iterable[int]


@dataclass(frozen=True)
class Count:
    """What a layer holds and does, computed from its shapes; nothing is allocated.

    Attributes
    ----------
    weights : int
        Numbers in ``W`` or ``V``. These are what the source counts.
    biases : int
        Numbers in ``U`` or ``u``, which the source leaves out of its counts.
    multiply_adds : int
        Products ``weight x pixel`` whose pixel lies inside the image, for one image.
    multiply_adds_upper : int
        The terms of the source's sums as they are written, (hidden pixels) x (weights of a pixel): it includes those
        that fall outside the image, which a computation on a zero-padded image would do.
    input_values, hidden_values : int
        Numbers in the image and in its hidden representation.
    """

    weights: int
    biases: int
    multiply_adds: int
    multiply_adds_upper: int
    input_values: int
    hidden_values: int

    @property
    def parameters(self) -> int:
        """Weights and biases together."""
        return self.weights + self.biases

    def bytes(self, dtype: npt.DTypeLike = "float32") -> int:
        """Bytes that the parameters fill."""
        return self.parameters * np.dtype(dtype).itemsize

    def bytes_to_run(self, dtype: npt.DTypeLike = "float32") -> int:
        """Bytes of the parameters, the image and the hidden representation: the least that running it needs."""
        return (self.parameters + self.input_values + self.hidden_values) * np.dtype(dtype).itemsize


def _pairs(hidden: int, size: int, lowest: int, highest: int) -> int:
    """Count the pairs (i, k), 0 <= i < hidden and 0 <= k < size, with lowest <= k - i <= highest.

    The pairs with k - i <= m number Σ_i (max(0, i+m+1) - max(0, i+m+1-size)), and each half is a difference of
    triangular numbers, so that nothing as long as the image is summed.
    """

    def triangular(n: int) -> int:
        return n * (n + 1) // 2 if n > 0 else 0

    def up_to(m: int) -> int:
        return triangular(m + hidden) - triangular(m) - triangular(m + hidden - size) + triangular(m - size)

    return up_to(highest) - up_to(lowest - 1)


def count_kernel(
    input_shape: Shape, hidden_shape: Shape, lowest: Shape, highest: Shape, channels: tuple[int, int]
) -> Count:
    """Count a layer with one weight for each offset from `lowest` to `highest` and each pair of channels."""
    c, d = channels
    weights = c * d * math.prod(hi - lo + 1 for lo, hi in zip(lowest, highest, strict=True))
    return Count(
        weights=weights,
        biases=d,
        multiply_adds=c * d * math.prod(map(_pairs, hidden_shape, input_shape, lowest, highest)),
        multiply_adds_upper=math.prod(hidden_shape) * weights,
        input_values=c * math.prod(input_shape),
        hidden_values=d * math.prod(hidden_shape),
    )


def checked_weights(values: npt.ArrayLike) -> Array:
    """Take weights as they are if they are floating or complex, else as float64."""
    array: Array = np.asarray(values)
    if array.dtype.kind in "fc":
        return array
    if array.dtype.kind not in "uib":
        raise TypeError(f"weights must be numbers; given dtype {array.dtype}")
    return array.astype(np.float64)


def checked_biases(name: str, values: npt.ArrayLike, weights: Array) -> tuple[Array, Array]:
    """Bring biases and weights to one type: that of the weights, or its complex one where the biases are complex.

    Raises
    ------
    TypeError
        If the biases are no numbers.
    """
    biases: Array = np.asarray(values)
    if biases.dtype.kind not in "uibfc":
        raise TypeError(f"{name} must be numbers; given dtype {biases.dtype}")
    if biases.dtype.kind == "c":
        weights = weights.astype(np.result_type(weights.dtype, np.complex64), copy=False)
    return biases.astype(weights.dtype, copy=False), weights


def _entries(value: Sizes, repeat: int = 1) -> tuple[Any, ...]:
    """Give the numbers of an iterable; what is none, also an array without dimensions, `repeat` times."""
    try:
        numbers = iter(cast(Iterable[int], value))
    except TypeError:
        return (value,) * repeat
    return tuple(numbers)


def checked_shape(name: str, value: Sizes, dimensions: int | None = None) -> Shape:
    """Check a spatial shape; one number is a shape of one dimension."""
    sizes = _entries(value)
    if not sizes or (dimensions is not None and len(sizes) != dimensions):
        wanted = "at least one dimension" if dimensions is None else f"{dimensions} dimension(s)"
        raise ValueError(f"{name} is {sizes}; it must have {wanted}")
    return tuple(integer(name, size, minimum=1) for size in sizes)


def both_shapes(input_shape: Sizes, hidden_shape: Sizes | None) -> tuple[Shape, Shape]:
    """Check the shape of the image and that of the hidden representation, which is the same if it is None."""
    inputs = checked_shape("input_shape", input_shape)
    return inputs, inputs if hidden_shape is None else checked_shape("hidden_shape", hidden_shape, len(inputs))


def checked_delta(value: Sizes, dimensions: int) -> Shape:
    """Check Δ: one number for all dimensions, or one for each."""
    reach = _entries(value, dimensions)
    if len(reach) != dimensions:
        raise ValueError(f"delta is {reach}; it must be one number, or one for each of {dimensions} dimension(s)")
    return tuple(integer("delta", r, minimum=0) for r in reach)


def checked_channels(value: Iterable[int]) -> tuple[int, int]:
    """Check a pair of channel counts, how many in and how many out."""
    pair = _entries(value)
    if len(pair) != 2:
        raise ValueError(f"channels is {value!r}; it must be two numbers, how many in and how many out")
    c, d = (integer("channels", number, minimum=1) for number in pair)
    return c, d


def checked_middle(sizes: Shape) -> Shape:
    """Give Δ of a kernel of 2Δ+1."""
    if not sizes or any(size % 2 == 0 for size in sizes):
        raise ValueError(f"V has the spatial shape {sizes}; every size must be odd, 2Δ+1")
    return tuple(size // 2 for size in sizes)
