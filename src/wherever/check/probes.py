"""What the places of a layer see, measured: stride and window, from what changes when part of the image does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Run = Callable[[Array], dict[str, Array]]

_ALL_CUTS = 64  # places of an axis up to which the image is cut at each
_CENTRAL, _COARSE = 96, 8  # otherwise so many cuts in the middle one by one, and every so many places outside
_TOLERANCE = 1e-9  # relative change of an output below which it counts as none


@dataclass(frozen=True)
class View:
    """What the places of a layer see along one axis: place t sees pixels from stride·t + low to stride·t + high.

    Attributes
    ----------
    size, places : int
        Pixels of the image, and places of the layer.
    stride : Fraction
        Pixels from one place to the next.
    low, high : Fraction or None
        None where no two places see less than the whole axis.
    """

    size: int
    places: int
    stride: Fraction
    low: Fraction | None
    high: Fraction | None

    @property
    def window(self) -> int | None:
        """Pixels that a place sees, at most; None where that reaches over the whole axis."""
        return None if self.low is None or self.high is None else int(self.high - self.low) + 1

    def inside(self) -> npt.NDArray[np.bool_]:
        """Say for each place whether it sees no border."""
        if self.low is None or self.high is None:
            return np.zeros(self.places, bool)
        low = [self.stride * t + self.low >= 0 for t in range(self.places)]
        high = [self.stride * t + self.high <= self.size - 1 for t in range(self.places)]
        both: npt.NDArray[np.bool_] = np.array(low) & np.array(high)
        return both

    @property
    def margins(self) -> tuple[int, int] | None:
        """Places before and behind those that see no border; None where all see one."""
        inside = np.flatnonzero(self.inside())
        return (int(inside[0]), self.places - 1 - int(inside[-1])) if len(inside) else None


def views(
    run: Run, x: Array, axes: tuple[int, ...], *, copies: int = 1, seed: int = 0
) -> dict[str, tuple[View, ...] | None]:
    """Measure what each layer sees: None for layers without places.

    Parameters
    ----------
    run : callable
        From x to the outputs of all layers by name.
    x : array
        The image.
    axes : tuple of int
        The spatial axes of x, and of each output with as many dimensions.
    copies : int
        With more than one, axis 0 of x is a batch of one, and so many are run at once, each with other noise.
    seed : int

    Notes
    -----
    Noise is added, and the part of the image beyond a cut is replaced by other noise: the outputs that change see
    something there. The cut moves over the image, along all axes at once.
    """
    rng = np.random.default_rng(seed)
    spread = float(np.std(x.astype(np.float64))) or 1.0
    base = np.repeat(x, copies, axis=0).astype(np.float64) if copies > 1 else x.astype(np.float64)
    base = base + spread * rng.standard_normal(base.shape)
    other = base + 3 * spread * rng.standard_normal(base.shape)
    base, other = like(x, base), like(x, other)
    kept = run(base)
    spatial = {name: has_places(y, x, axes) for name, y in kept.items()}
    scales = {name: _TOLERANCE * float(np.abs(y).max(initial=0)) for name, y in kept.items()}
    cuts = [_cuts(x.shape[axis]) for axis in axes]
    # The last pixel that a place is known to see, and the first.
    last = {name: [np.zeros(kept[name].shape[axis], np.int64) for axis in axes] for name in kept if spatial[name]}
    first = {name: [np.full(kept[name].shape[axis], x.shape[axis] - 1) for axis in axes] for name in last}
    for number in range(max(map(len, cuts))):
        at = [cut[min(number, len(cut) - 1)] for cut in cuts]
        for after in (True, False):
            mixed = base.copy()
            part = _index(x.ndim, axes, [slice(k, None) if after else slice(k) for k in at])
            mixed[part] = other[part]
            for name, y in run(mixed).items():
                if name not in last or y.shape != kept[name].shape:
                    continue
                changed = np.abs(y - kept[name]) > scales[name]
                for position, (axis, k) in enumerate(zip(axes, at, strict=True)):
                    seen = changed.any(axis=tuple(a for a in range(y.ndim) if a != axis))
                    if after:
                        np.maximum(last[name][position], np.where(seen, k, 0), out=last[name][position])
                    else:
                        lower = np.where(seen, k - 1, x.shape[axis] - 1)
                        np.minimum(first[name][position], lower, out=first[name][position])
    found: dict[str, tuple[View, ...] | None] = {}
    for name in kept:
        if not spatial[name]:
            found[name] = None
            continue
        sizes = [x.shape[axis] for axis in axes]
        found[name] = tuple(map(_view, sizes, first[name], last[name]))
    return found


def has_places(y: Array, x: Array, axes: tuple[int, ...]) -> bool:
    """Whether an output has the spatial axes of the image, with more than one place."""
    return y.ndim == x.ndim and any(y.shape[axis] > 1 for axis in axes)


def like(x: Array, values: Array) -> Array:
    """Bring values to the type of x: integers are rounded and stay in their range."""
    if x.dtype.kind in "ui":
        limits = np.iinfo(x.dtype)
        return np.clip(np.round(values), limits.min, limits.max).astype(x.dtype)
    return values.astype(x.dtype)


def _index(ndim: int, axes: Iterable[int], parts: Iterable[slice]) -> tuple[slice, ...]:
    index = [slice(None)] * ndim
    for axis, part in zip(axes, parts, strict=True):
        index[axis] = part
    return tuple(index)


def _cuts(size: int) -> list[int]:
    """Choose where to cut an axis: everywhere, or everywhere in the middle and here and there outside of it."""
    if size <= _ALL_CUTS:
        return list(range(1, size)) or [0]
    low, high = max(1, (size - _CENTRAL) // 2), min(size, (size + _CENTRAL) // 2)
    return sorted({*range(low, high), *range(1, size, _COARSE), size - 1})


def _view(size: int, first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]) -> View:
    """Find the stride that fits best what the places see."""
    places = len(first)
    t = np.arange(places)
    within = t[(first > 0) & (last < size - 1) & (first <= last)]
    if len(within) < 2:
        return View(size, places, Fraction(size, places).limit_denominator(64), None, None)
    low, high = first[within], last[within]

    def misfit(stride: Fraction) -> float:
        # In units of the denominator, so that all is exact.
        moved = stride.numerator * within
        n = stride.denominator
        return float((np.ptp(n * low - moved) + np.ptp(n * high - moved)) / n)

    # Pixels a place, about; the exact stride has to be near.
    about = max(float(low[-1] - low[0] + high[-1] - high[0]) / (2 * (within[-1] - within[0])), 1 / size)
    strides = {Fraction(n, d) for d in range(1, 9) for n in range(max(1, int(about * d / 2)), int(about * d * 2) + 3)}
    stride = min(strides, key=lambda s: (round(misfit(s), 9), s.denominator, s))
    offsets = [
        [Fraction(int(value)) - stride * int(place) for value, place in zip(ends, within, strict=True)]
        for ends in (low, high)
    ]
    return View(size, places, stride, min(offsets[0]), max(offsets[1]))
