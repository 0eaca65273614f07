"""Templates: where an image looks like a given piece of one, by normalised cross-correlation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wherever.engine.copies import assign
from wherever.engine.kernels.compile import compiled, host, unavailable
from wherever.engine.kernels.windows import centred, normalised
from wherever.engine.run import for_each, fresh, get_threads, workspace
from wherever.ops import conv

MODES = ("valid", "same")
_SAMPLED = 16  # rows that tell about where the means are
_LEAST = 1e-15  # of the largest number of an image, or 1 / that, that needs no scale
_ROUNDED = 64  # places that rows of planes are multiples of: groups of vectors of any machine
_BLOCK = 1 << 16  # numbers that are centred at once
_APART = 4  # channels up to which a kernel tells them apart
_TILE = 1024  # columns of windows that are summed at once, or as many as a window has
_STRIP = 16  # rows

Padding = list[tuple[int, int]]


def match_template(image: ArrayLike, template: ArrayLike, *, mode: str = "valid") -> NDArray[np.floating[Any]]:
    r"""Correlate a template with every window of an image, both without their means and of unit length.

    .. math:: \frac{\sum_c \sum_a (w_c(a) - \bar w_c) (x_c(i + a) - \bar x_c(i))}
                   {\sqrt{\sum_c \sum_a (w_c(a) - \bar w_c)^2} \sqrt{\sum_c \sum_a (x_c(i + a) - \bar x_c(i))^2}}

    with the means of each channel c by itself, over the template and over the window at i. This is OpenCV's
    ``TM_CCOEFF_NORMED``; for one channel it is scikit-image's ``match_template``, too (which takes one mean of all).

    Parameters
    ----------
    image : array_like, (H, W) or (H, W, C)
        Of any real type.
    template : array_like, (h, w) or (h, w, C)
        Not larger than the image.
    mode : {"valid", "same"}
        "valid": windows inside the image; the result at i belongs to the window that begins at i. "same": windows
        around every pixel, which begin h // 2 and w // 2 pixels before it; the image is continued by the
        means of its channels.

    Returns
    -------
    array, (H - h + 1, W - w + 1) or (H, W)
        Between -1 and 1; 0 where the window or the template is of one colour, NaN where a pixel of the window is not
        finite. float32, or float64 where image or template do not fit float32.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what was given, and what is possible.

    Notes
    -----
    The variances of windows are differences of sums, taken in float64 of the image without its means.

    Examples
    --------
    >>> image = np.zeros((5, 6))
    >>> image[2:4, 3:5] = [[1, 2], [3, 4]]
    >>> scores = match_template(image, [[10, 20], [30, 40]])
    >>> [int(i) for i in np.unravel_index(scores.argmax(), scores.shape)], round(float(scores.max()), 6)
    ([2, 3], 1.0)
    """
    x, w = _channels("image", image), _channels("template", template)
    if mode not in MODES:
        raise ValueError(f"mode: {mode!r} is unknown; possible are {', '.join(map(repr, MODES))}")
    if x.shape[2] != w.shape[2]:
        raise ValueError(f"template: {w.shape[2]} channels, but the image has {x.shape[2]}")
    high, wide = w.shape[:2]
    if 0 in w.shape or high > x.shape[0] or wide > x.shape[1]:
        raise ValueError(f"template: shape {w.shape[:2]} must not be empty, nor larger than the image, {x.shape[:2]}")
    if not np.isfinite(w).all():
        raise ValueError("template: some of its numbers are not finite")
    narrow = all(np.can_cast(a.dtype, np.float32, "safe") for a in (x, w))
    dtype = np.dtype(np.float32 if narrow else np.float64)
    padding = [(n // 2, (n - 1) // 2) if mode == "same" else (0, 0) for n in (high, wide)]

    shape = w.astype(np.float64)
    shape = shape - shape.mean(axis=(0, 1))
    largest = np.abs(shape).max()
    if largest <= 1e-14 * np.abs(w.astype(np.float64)).max():  # one colour, but for the rounding of its mean
        shape[:] = 0
    else:
        shape /= largest
        shape /= np.sqrt(np.sum(shape * shape))
    planes, missing = _centred(x, dtype, padding)
    kernel = np.moveaxis(shape, 2, 0)[None].astype(dtype)
    rows, columns = (n + sum(pads) - m + 1 for n, m, pads in zip(x.shape, (high, wide), padding, strict=False))
    scores: NDArray[np.floating[Any]] = fresh(rows * columns, dtype).reshape(rows, columns)
    seen = planes[:, :, : columns + wide - 1].transpose(1, 0, 2)
    conv(seen, kernel, out=scores[None])
    _normalise(scores, planes, (high, wide))
    if missing is not None:
        scores[_window_sums(np.pad(missing, padding), (high, wide)) > 0.5] = np.nan
    return scores


def _channels(name: str, value: ArrayLike) -> NDArray[Any]:
    """An array (height, width, channels) of real numbers."""
    a = np.asarray(value)
    if a.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected real numbers, got {a.dtype}")
    if a.ndim not in (2, 3):
        raise ValueError(f"{name}: shape {a.shape}; it must be (height, width) or (height, width, channels)")
    return a if a.ndim == 3 else a[:, :, None]


def _centred(
    x: NDArray[Any], dtype: np.dtype[Any], padding: Padding
) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """Rows of planes (H, C, W) of about mean 0, continued by their means; and where pixels are not finite (if any do).

    What is subtracted is the mean of a few rows. Correlations with a template without its mean do not depend on it but
    for rounding, and all pixels' means are known when all are subtracted from.
    """
    planes, means, largest = _without(x, _about(x, dtype), dtype, padding)
    missing = None
    if not (largest == 0 or _LEAST < largest < 1 / _LEAST):
        finite = np.isfinite(x)
        x = np.where(finite, x, 0)
        x = x / (float(np.max(np.abs(x))) or 1.0)
        if not finite.all():
            seen = finite.all(axis=2, keepdims=True)
            missing = (~seen[:, :, 0]).astype(np.float64)
            count = max(int(np.count_nonzero(seen)), 1)
            about = np.sum(x * seen, axis=(0, 1), dtype=np.float64) / count
            x = np.where(seen, x, about)
        planes, means, _ = _without(x, _about(x, dtype), dtype, padding)
    (above, _), (left, _) = padding
    below, right = above + x.shape[0], left + x.shape[1]
    for part in (planes[:above], planes[below:], planes[..., :left], planes[..., right:]):
        part[...] = means[:, None]
    return planes, missing


def _about(x: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The means (C,) of a few rows; of integers an integer, so that differences are exact."""
    with np.errstate(all="ignore"):
        means = x[:: max(1, len(x) // _SAMPLED)].mean(axis=(0, 1), dtype=np.float64)
    means[~np.isfinite(means)] = 0
    found: NDArray[Any] = (means if x.dtype.kind == "f" else np.rint(means)).astype(dtype)
    return found


def _without(
    x: NDArray[Any], centre: NDArray[Any], dtype: np.dtype[Any], padding: Padding
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Rows of planes (H, C, W) of x - centre; their means; and their largest number, of integers 0 (none is too large).

    Rows are whole groups of vectors, and so far apart that they do not all fall into the same sets of a cache.
    """
    (height, width, channels), (above, below), (left, right) = x.shape, *padding
    high, wide = above + height + below, -(-(left + width + right) // _ROUNDED) * _ROUNDED
    pitch = wide if channels * wide // 16 % 2 else wide + 16
    (memory,) = workspace("planes", high * channels * pitch, dtype=dtype)
    planes = memory.reshape(high, channels, pitch)[..., :wide]
    inside = planes[above : above + height, :, left : left + width]
    blocks = range(0, height, max(1, _BLOCK // (width * channels)))  # of rows that stay in the cache
    found = [_subtract(x[i : i + blocks.step], centre, inside[i : i + blocks.step]) for i in blocks]
    totals = np.sum([sums for sums, _ in found], axis=0)
    largest = float(np.max([most for _, most in found])) if x.dtype.kind == "f" else 0.0
    return planes, (totals / (height * width)).astype(dtype), largest


def _subtract(x: NDArray[Any], centre: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Put rows of x (h, w, C) less the centre (C,) into y (h, C, w); return its sums (C,), and its largest."""
    with np.errstate(all="ignore"):
        x = x.astype(y.dtype, copy=False)
        (high, wide, channels), size = x.shape, y.itemsize
        if channels > _APART or unavailable() is not None:
            assign(y, x.transpose(0, 2, 1))
            y -= centre[:, None]
            return y.sum(axis=2).sum(axis=0, dtype=np.float64), float(np.maximum(y.max(), -y.min()))
        if x.strides[1:] != (channels * size, size) or x.strides[0] % size or not x.flags.aligned:
            x = np.ascontiguousarray(x)
        found = np.empty((high, channels, 3, host().lanes(y.dtype.name)), y.dtype)
        sizes = [high, wide, x.strides[0] // size, y.strides[0] // size, y.strides[1] // size]
        kernel = compiled(centred, dtype=y.dtype.name, channels=channels)
        kernel(x, centre, y, found, np.array(sizes, np.int64))
        sums = found[:, :, 0].sum(axis=(0, 2), dtype=np.float64)
        largest = max(float(found[:, :, 1].max()), -float(found[:, :, 2].min()))
        return sums, largest if np.isfinite(sums).all() else math.nan


def _normalise(scores: NDArray[Any], planes: NDArray[Any], size: tuple[int, int]) -> None:
    """Divide by the length of each window without its means; 0 where that is nothing but rounding errors."""
    rounding = 1e-15 * sum(size) + (1e-13 if planes.dtype.itemsize == 4 else 0)
    numbers = np.array([1 / math.prod(size), rounding])
    if unavailable() is not None:
        squares = np.sum(np.square(planes, dtype=np.float64), axis=1)
        energy = _window_sums(squares, size)[:, : scores.shape[1]]
        variance = energy.copy()
        for plane in np.moveaxis(planes, 1, 0):
            variance -= numbers[0] * np.square(_window_sums(plane, size)[:, : scores.shape[1]])
        flat = variance <= rounding * energy
        scores /= np.sqrt(np.where(flat, 1, variance))
        scores[flat] = 0
        np.clip(scores, -1, 1, out=scores)
        return
    kernel, (high, wide) = compiled(normalised, dtype=planes.dtype.name), size
    columns = min(max(_TILE, -(-wide // _ROUNDED) * _ROUNDED), -(-scores.shape[1] // _ROUNDED) * _ROUNDED)
    pitch = columns + -(-wide // _ROUNDED) * _ROUNDED + _ROUNDED
    strip = max(1, min(high, _STRIP, _STRIP * 2 * _TILE // pitch))
    counts = [strip * pitch, strip * pitch, strip * columns, pitch]
    distances = [a // planes.itemsize for a in (scores.strides[0], *planes.strides[:2])]

    def some(part: tuple[int, int]) -> None:
        arrays = [planes, scores, numbers, *workspace("windows", *counts, dtype=np.dtype(np.float64))]
        sizes = [*part, scores.shape[1], planes.shape[1], *size, strip, columns, pitch, *distances]
        kernel(*arrays, np.array(sizes, np.int64))

    threads, rows = get_threads(), len(scores)
    step = -(-rows // (strip * 4 * threads)) * strip if threads > 1 else rows
    for_each(some, [(first, min(first + step, rows)) for first in range(0, rows, step)], threads)


def _window_sums(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """Sums over all windows of a plane (H, W), in float64, as differences of running sums."""
    total = plane.astype(np.float64)
    for axis, m in enumerate(size):
        total = np.cumsum(total, axis=axis, out=total)
        rest = np.delete(total, slice(None, m - 1), axis=axis) if m > 1 else total.copy()
        later: tuple[Any, ...] = (slice(None),) * axis + (slice(1, None),)
        earlier: tuple[Any, ...] = (slice(None),) * axis + (slice(None, rest.shape[axis] - 1),)
        rest[later] -= total[earlier]
        total = rest
    return total
