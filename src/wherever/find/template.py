"""Templates: where an image looks like a given piece of one, by normalised cross-correlation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wherever.engine.algorithms.separable import Axis, Passes
from wherever.engine.copies import assign
from wherever.engine.kernels.compile import unavailable
from wherever.engine.run import get_threads
from wherever.ops import conv

MODES = ("valid", "same")
_TERM_BY_TERM = 200  # height and width of a template together up to which windows are summed so
_STRIP = 128  # rows of the result whose windows are summed at once

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
    planes, missing = _centred(x, dtype)
    kernel = np.moveaxis(shape, 2, 0)[None].astype(dtype)
    scores: NDArray[np.floating[Any]] = conv(planes, kernel, padding=padding)[0]
    _normalise(scores, planes, (high, wide), padding)
    if missing is not None:
        scores[_window_sums(missing, (high, wide), padding) > 0.5] = np.nan
    return scores


def _channels(name: str, value: ArrayLike) -> NDArray[Any]:
    """An array (height, width, channels) of real numbers."""
    a = np.asarray(value)
    if a.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected real numbers, got {a.dtype}")
    if a.ndim not in (2, 3):
        raise ValueError(f"{name}: shape {a.shape}; it must be (height, width) or (height, width, channels)")
    return a if a.ndim == 3 else a[:, :, None]


def _centred(x: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Planes (C, H, W) without their means, between -1 and 1; and where pixels are not finite (they become 0)."""
    missing = None
    if x.dtype.kind == "f" and not np.isfinite(np.sum(x, dtype=np.float64)):
        finite = np.isfinite(x)
        if not finite.all():
            missing = (~finite.all(axis=2)).astype(np.float64)
            x = np.where(finite, x, 0)
    planes = np.empty((x.shape[2], *x.shape[:2]), dtype)
    assign(planes, np.moveaxis(x.astype(dtype, copy=False), 2, 0))
    for plane in planes:
        plane -= dtype.type(plane.mean(dtype=np.float64))
    largest = max(float(planes.max()), -float(planes.min()))
    if largest:
        planes /= dtype.type(largest)
    if missing is not None:
        planes[:, missing > 0] = 0
    return planes, missing


def _normalise(scores: NDArray[Any], planes: NDArray[Any], size: tuple[int, int], padding: Padding) -> None:
    """Divide by the length of each window without its means; 0 where that is nothing but rounding errors."""
    (high, wide), (before, _) = size, padding[0]
    rounding = 1e-15 * (high + wide) + (1e-13 if planes.dtype.itemsize == 4 else 0)
    step = max(_STRIP, 2 * high)
    for first in range(0, len(scores), step):  # strips of rows, so that what lies between stays in the cache
        strip = scores[first : first + step]
        start, stop = first - before, first + len(strip) + high - 1 - before
        seen = planes[:, max(start, 0) : stop]
        outside = [(max(-start, 0), max(stop - planes.shape[1], 0)), padding[1]]
        squares = np.zeros(seen.shape[1:])
        for plane in seen:
            squares += np.multiply(plane, plane, dtype=np.float64)
        energy = _window_sums(squares, size, outside)
        variance = energy.copy()
        for plane in seen:
            sums = _window_sums(plane, size, outside)
            sums *= sums
            sums /= high * wide
            variance -= sums
        flat = variance <= rounding * energy
        variance[flat] = 1
        np.sqrt(variance, out=variance)
        np.divide(strip, variance, out=strip, casting="same_kind")
        strip[flat] = 0
        np.clip(strip, -1, 1, out=strip)


def _window_sums(plane: NDArray[Any], size: tuple[int, int], padding: Padding) -> NDArray[np.float64]:
    """Sums over all windows of a plane (H, W), in float64."""
    if sum(size) <= _TERM_BY_TERM and unavailable() is None:
        pair = [
            Axis(n, np.ones(m), before, after, 0)
            for n, m, (before, after) in zip(plane.shape, size, padding, strict=True)
        ]
        sums = np.empty((pair[0].output, pair[1].output))
        Passes(np.dtype(np.float64), [(pair[0], pair[1])]).run(plane, sums, get_threads())
        return sums
    total = np.pad(plane.astype(np.float64), padding)
    for axis, m in enumerate(size):  # differences of running sums
        total = np.cumsum(total, axis=axis, out=total)
        rest = np.delete(total, slice(None, m - 1), axis=axis) if m > 1 else total.copy()
        later: tuple[Any, ...] = (slice(None),) * axis + (slice(1, None),)
        earlier: tuple[Any, ...] = (slice(None),) * axis + (slice(None, rest.shape[axis] - 1),)
        rest[later] -= total[earlier]
        total = rest
    return total
