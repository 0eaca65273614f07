"""PyTorch's layers as local operations: what each reads along every axis, and how it is computed on a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wherever.tiles.axes import Places, Resample, Spread, Window
from wherever.tiles.graph import Operation, Where
from wherever.torch import functional as ours
from wherever.torch.modules import BOUNDARIES

_CUBIC = -0.75  # Keys' parameter, as PyTorch has it


def each(value: Any, spatial: int) -> tuple[int, ...]:
    """Return one number for each spatial axis."""
    return tuple(int(v) for v in value) if isinstance(value, tuple | list) else (int(value),) * spatial


# --------------------------------------------------------------------------------------------------------- convolutions


def convolution(module: Any) -> Operation:
    """Return a convolutional layer, of PyTorch or of this package, as an operation."""
    return convolution_by(
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        boundary=BOUNDARIES[module.padding_mode],
    )


def convolution_by(
    w: Tensor,
    b: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    *,
    boundary: str = "zeros",
) -> Operation:
    """Return a convolution as an operation."""
    spatial = w.ndim - 2
    stride, dilation = each(stride, spatial), each(dilation, spatial)
    if padding == "same":
        before = tuple((k - 1) * d // 2 for k, d in zip(w.shape[2:], dilation, strict=True))
    else:
        before = (0,) * spatial if padding == "valid" else each(padding, spatial)
    rules = tuple(
        Window(k, s, d, p, boundary) for k, s, d, p in zip(w.shape[2:], stride, dilation, before, strict=True)
    )
    # On this engine: PyTorch's library keeps scratch memory for every shape of a tile.
    function = getattr(ours, f"conv{spatial}d")

    def compute(arrays: list[Any], where: Where) -> Tensor:
        result: Tensor = function(arrays[0], w, b, stride=stride, padding=0, dilation=dilation, groups=groups)
        return result

    return Operation(compute, rules)


def transposed(module: Any) -> Operation:
    """Return a transposed convolutional layer as an operation."""
    return transposed_by(module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups)


def transposed_by(w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int) -> Operation:
    """Return a transposed convolution as an operation; output_padding is known by the size of its result."""
    spatial = w.ndim - 2
    stride, dilation, before = (each(v, spatial) for v in (stride, dilation, padding))
    rules = tuple(Spread(k, s, d, p) for k, s, d, p in zip(w.shape[2:], stride, dilation, before, strict=True))
    function: Any = getattr(ours, f"conv_transpose{spatial}d")

    def compute(arrays: list[Any], where: Where) -> Tensor:
        y: Tensor = function(arrays[0], w, b, stride=stride, dilation=dilation, groups=groups)
        starts = [rule.start(low) for rule, (low, _) in zip(rules, where.covers[0], strict=True)]
        return _cut(y, where, starts)

    return Operation(compute, rules)


def _cut(y: Tensor, where: Where, starts: Sequence[int]) -> Tensor:
    """The box of a result whose first place lies at `starts`."""
    place: list[Any] = [slice(low - start, high - start) for (low, high), start in zip(where.box, starts, strict=True)]
    return y[(..., *place)]


# -------------------------------------------------------------------------------------------------------------- pooling


def max_pool(spatial: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Operation:
    """Return a pooling by maxima as an operation; ceil_mode is known by the size of its result."""
    kernel = each(kernel, spatial)
    stride = kernel if stride in (None, [], ()) else each(stride, spatial)
    dilation, before = each(dilation, spatial), each(padding, spatial)
    rules = tuple(Window(k, s, d, p) for k, s, d, p in zip(kernel, stride, dilation, before, strict=True))
    function: Any = getattr(functional, f"max_pool{spatial}d")
    return Operation(
        lambda arrays, where: function(arrays[0], kernel, stride, dilation=dilation), rules, fill=float("-inf")
    )


def average_pool(
    spatial: int, kernel: Any, stride: Any, padding: Any, count_padding: bool, divisor: int | None
) -> Operation:
    """Return a pooling by averages as an operation; windows over a border are divided by what PyTorch divides by."""
    kernel = each(kernel, spatial)
    stride = kernel if stride in (None, [], ()) else each(stride, spatial)
    before = each(padding, spatial)
    rules = tuple(Window(k, s, 1, p) for k, s, p in zip(kernel, stride, before, strict=True))

    def counts(axis: int, where: Where) -> Any:
        """How many places the windows of a box count along an axis."""
        starts = np.arange(*where.box[axis]) * stride[axis] - before[axis]
        n = where.sizes[0][axis]
        if count_padding:
            return np.minimum(starts + kernel[axis], n + before[axis]) - starts
        return np.minimum(starts + kernel[axis], n) - np.maximum(starts, 0)

    def compute(arrays: list[Any], where: Where) -> Tensor:
        x = arrays[0]
        wide = x[:, :, None] if spatial == 1 else x  # one dimension alone knows no divisor
        size, step = ((1, *kernel), (1, *stride)) if spatial == 1 else (kernel, stride)
        function: Any = functional.avg_pool3d if spatial == 3 else functional.avg_pool2d
        numbers = [counts(axis, where) for axis in range(spatial)]
        if divisor is not None or all((n == k).all() for n, k in zip(numbers, kernel, strict=True)):
            y = function(wide, size, step, divisor_override=divisor)
            return y[:, :, 0] if spatial == 1 else y
        y = function(wide, size, step, divisor_override=1)
        y = y[:, :, 0] if spatial == 1 else y
        number = numbers[0]
        for other in numbers[1:]:
            number = number[..., None] * other
        return y / torch.from_numpy(number).to(y.device, y.dtype)

    return Operation(compute, rules)


# ---------------------------------------------------------------------------------------------------------- resolutions


def pixel_shuffle(factor: int) -> Operation:
    """Return the rearrangement of channels to places as an operation."""
    rule = Resample(Fraction(1, factor))

    def compute(arrays: list[Any], where: Where) -> Tensor:
        return _cut(functional.pixel_shuffle(arrays[0], factor), where, [low * factor for low, _ in where.covers[0]])

    return Operation(compute, (rule, rule))


def pixel_unshuffle(factor: int) -> Operation:
    """Return the rearrangement of places to channels as an operation."""
    return Operation(lambda arrays, where: functional.pixel_unshuffle(arrays[0], factor), (Window(factor, factor),) * 2)


def resampling(
    source: Sequence[int],
    result: Sequence[int],
    factors: Sequence[float | None],
    mode: str,
    align_corners: bool,
    dtype: torch.dtype,
) -> Operation:
    """Return an interpolation as an operation.

    Parameters
    ----------
    source, result : sequence of int
        Spatial sizes.
    factors : sequence of float or None
        The scale factors that PyTorch computes with; None where it takes the quotient of the sizes.
    mode : str
        By `torch.nn.functional.interpolate`'s names.
    """
    if mode not in ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "bicubic"):
        raise ValueError(f"interpolates by mode {mode!r}, which is not known here")
    whole = [
        m // n if n and m % n == 0 and f in (None, m / n) else 0
        for n, m, f in zip(source, result, factors, strict=True)
    ]
    if all(whole) and not align_corners and mode != "bicubic":
        return _whole_factors(whole, mode)
    taps = {"nearest": 1, "nearest-exact": 1, "bicubic": 4}.get(mode, 2)
    tables = [_table(n, m, f, mode, align_corners, dtype) for n, m, f in zip(source, result, factors, strict=True)]
    rules = []
    for n, m, (index, _) in zip(source, result, tables, strict=True):
        # Where resolutions do not divide each other, the step is what is near to it with a short pattern.
        step = Fraction(max(n - 1, 1), max(m - 1, 1)) if align_corners else Fraction(n, m)
        step = step.limit_denominator(16) if m >= n else Fraction(1) / (1 / step).limit_denominator(16)
        shift = step / 2 - Fraction(1, 2) if taps > 1 and not align_corners else Fraction(0)
        rules.append(Resample(step, taps, shift, index))

    def compute(arrays: list[Any], where: Where) -> Tensor:
        y: Tensor = arrays[0]
        for number, ((low, high), (first, _), (index, weights)) in enumerate(
            zip(where.box, where.covers[0], tables, strict=True)
        ):
            axis = y.ndim - len(tables) + number
            seen = torch.from_numpy(index[low:high] - first).to(y.device)
            if weights is None:
                y = y.index_select(axis, seen[:, 0])
                continue
            shape = [1] * y.ndim
            shape[axis] = -1
            factor = torch.from_numpy(weights[low:high]).to(y.device, y.dtype)
            parts = [y.index_select(axis, seen[:, tap]) * factor[:, tap].reshape(shape) for tap in range(taps)]
            y = parts[0]
            for part in parts[1:]:
                y += part
        return y

    return Operation(compute, tuple(rules))


def _whole_factors(factors: Sequence[int], mode: str) -> Operation:
    """Enlargement by whole factors: on a part of an image it is what it is on the whole."""
    linear = not mode.startswith("nearest")
    rules = tuple(
        Resample(Fraction(1, f), 2, Fraction(1 - f, 2 * f)) if linear else Resample(Fraction(1, f)) for f in factors
    )
    options: dict[str, Any] = {"align_corners": False} if linear else {}

    def compute(arrays: list[Any], where: Where) -> Tensor:
        y = functional.interpolate(arrays[0], scale_factor=tuple(float(f) for f in factors), mode=mode, **options)
        return _cut(y, where, [low * f for (low, _), f in zip(where.covers[0], factors, strict=True)])

    return Operation(compute, rules)


def _table(
    n: int, m: int, factor: float | None, mode: str, align_corners: bool, dtype: torch.dtype
) -> tuple[Places, Any]:
    """Which neighbours each place of the result reads (m, taps), and their weights, rounded as PyTorch rounds."""
    if mode.startswith("nearest"):
        # In the type of the image: PyTorch computes where a neighbour lies in that type, and rounds.
        line = torch.arange(n, dtype=torch.float64 if dtype == torch.float64 else torch.float32)[None, None]
        options: dict[str, Any] = {"size": m} if factor is None else {"scale_factor": factor}
        found = functional.interpolate(line, mode=mode, **options)[0, 0]
        return found.to(torch.int64).numpy()[:, None], None
    number: Callable[[Any], Any] = np.float64 if dtype == torch.float64 else np.float32
    places = np.arange(m).astype(number(0).dtype)
    if align_corners:
        source = places * (number(n - 1) / number(m - 1) if m > 1 else number(0))
    else:
        step = number(1.0 / factor) if factor else number(n) / number(m)
        source = step * (places + number(0.5)) - number(0.5)
    if mode == "bicubic":
        base = np.floor(source)
        share = (source - base).astype(number(0).dtype)
        index = np.clip(base.astype(np.int64)[:, None] + np.arange(-1, 3), 0, n - 1)
        return index, np.stack([_far(share + 1), _near(share), _near(1 - share), _far(2 - share)], axis=1)
    source = np.maximum(source, number(0))
    base = np.minimum(source.astype(np.int64), n - 1)
    share = np.clip(source - base, number(0), number(1)).astype(number(0).dtype)
    return np.stack([base, np.minimum(base + 1, n - 1)], axis=1), np.stack([1 - share, share], axis=1)


def _near(t: Any) -> Any:
    return ((_CUBIC + 2) * t - (_CUBIC + 3)) * t * t + 1


def _far(t: Any) -> Any:
    return ((_CUBIC * t - 5 * _CUBIC) * t + 8 * _CUBIC) * t - 4 * _CUBIC
