"""What the places of a layer see, measured: stride and window, from what changes when part of the image does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Run = Callable[[Array], dict[str, Array]]

_ALL_CUTS = 64  # places of an axis up to which the image is cut at each
_FEWEST_CUTS, _MOST_CUTS = 32, 192  # otherwise at each of some that follow each other, over two of the largest strides
_EVIDENCE, _MOST_COPIES = 256, 4  # places beside each other, in all copies, that are enough to see what a place sees
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
    run: Run, x: Array, axes: tuple[int, ...], *, batch: bool = False, seed: int = 0
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
    batch : bool
        Axis 0 of x is a batch of one, and may be one of several, each with other noise.
    seed : int

    Notes
    -----
    Noise is added, and the part of the image beyond a cut is replaced by other noise: the outputs that change see
    something there. The cut moves over the image, along all axes at once.
    """
    sizes = [x.shape[axis] for axis in axes]
    base, other = noises(x, axes, batch=batch, seed=seed)
    kept = run(base)
    spatial = {name: has_places(y, x, axes) for name, y in kept.items()}
    scales = {name: _TOLERANCE * float(np.abs(y).max(initial=0)) for name, y in kept.items()}
    around = borders(run, base, other, axes, kept)
    cuts = [_cuts(n, around.stride[i], around.widest[i]) for i, n in enumerate(sizes)]
    # The last pixel that a place is known to see, and the first.
    last = {name: [np.zeros(kept[name].shape[axis], np.int64) for axis in axes] for name in kept if spatial[name]}
    first = {name: [np.full(kept[name].shape[axis], x.shape[axis] - 1) for axis in axes] for name in last}
    for after in (False, True):
        for number in range(max(len(cut[after]) for cut in cuts)):
            at = [cut[after][min(number, len(cut[after]) - 1)] for cut in cuts]
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
        found[name] = tuple(map(_view, sizes, first[name], last[name], cuts)) if spatial[name] else None
    return found


@dataclass(frozen=True)
class Borders:
    """How far from the borders of an image its layers see them, in pixels along each axis.

    Attributes
    ----------
    stride : tuple of int
        Pixels from one place to the next, at most, of all layers.
    widest : tuple of int
        Pixels whose places see a border, of the layers that have others, too.
    blind : tuple of bool
        Whether there are layers of which every place sees a border.
    """

    stride: tuple[int, ...]
    widest: tuple[int, ...]
    blind: tuple[bool, ...]


def borders(
    run: Run, base: Array, other: Array, axes: tuple[int, ...], kept: dict[str, Array] | None = None
) -> Borders:
    """Find how far borders are seen, by an image with noise whose outermost pixels are replaced by other noise."""
    kept = run(base) if kept is None else kept
    found = []
    for axis in axes:
        n = base.shape[axis]
        edge = _index(base.ndim, (axis,), [slice(None, None, max(n - 1, 1))])
        framed = base.copy()
        framed[edge] = other[edge]
        stride, widest, blind = 1, 0, False
        for name, y in run(framed).items():
            if not has_places(y, base, axes) or y.shape != kept[name].shape:
                continue
            changed = np.abs(y - kept[name]) > _TOLERANCE * float(np.abs(kept[name]).max(initial=0))
            places = y.shape[axis]
            inside = places - int(changed.any(axis=tuple(a for a in range(y.ndim) if a != axis)).sum())
            stride = max(stride, -(-n // places))
            widest = max(widest, n - inside * n // places) if inside else widest
            blind |= not inside
        found.append((stride, widest, blind))
    strides, widths, blinds = zip(*found, strict=True)
    return Borders(strides, widths, blinds)


def noises(x: Array, axes: tuple[int, ...], *, batch: bool, seed: int = 0) -> tuple[Array, Array]:
    """Return the image with noise, and with other noise, of its type: as many copies as are needed to see a change."""
    rng = np.random.default_rng(seed)
    sizes = [x.shape[axis] for axis in axes]
    beside = math.prod(sizes) // max(sizes)
    copies = min(max(_EVIDENCE // beside, 1), _MOST_COPIES) if batch else 1
    spread = float(np.std(x.astype(np.float64))) or 1.0
    base = np.repeat(x, copies, axis=0).astype(np.float64) if copies > 1 else x.astype(np.float64)
    base = base + spread * rng.standard_normal(base.shape)
    other = base + 3 * spread * rng.standard_normal(base.shape)
    return like(x, base), like(x, other)


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


def _cuts(size: int, stride: int, widest: int) -> tuple[Sequence[int], Sequence[int]]:
    """Choose where to cut an axis to find the first pixels that places see, and the last ones.

    That is everywhere, or at the ends and where the places that see first and last what is there see no border.
    """
    if size <= _ALL_CUTS:
        return (everywhere := list(range(1, size)) or [0]), everywhere
    count = min(max(_FEWEST_CUTS, 2 * stride + 2), _MOST_CUTS)
    start = max((size - widest - count) // 2, 1)
    low = sorted({1, *range(start, min(start + count, size))})
    return low, [size - k for k in low]


def _view(
    size: int, first: npt.NDArray[np.int64], last: npt.NDArray[np.int64], cuts: tuple[Sequence[int], Sequence[int]]
) -> View:
    """Find the stride that fits best what the places see."""
    places = len(first)
    t = np.arange(places)
    within = (first > 0) & (last < size - 1)
    # Where an end lies is known where the image was cut on both sides of it.
    ends = []
    for end, beyond, cut in ((first, first, cuts[0]), (last, last + 1, cuts[1])):
        known = within & (end > 0) & (end < size - 1) & np.isin(beyond, cut)
        ends.append((t[known], end[known]))
    if min(len(at) for at, _ in ends) < 2:
        return View(size, places, Fraction(size, places).limit_denominator(64), None, None)

    def misfit(stride: Fraction) -> float:
        # In units of the denominator, so that all is exact.
        n = stride.denominator
        return sum(float(np.ptp(n * end - stride.numerator * at)) for at, end in ends) / n

    # Pixels a place, about; the exact stride has to be near.
    moved, passed = (sum(float(part[-1] - part[0]) for part in parts) for parts in zip(*ends, strict=True))
    about = max(passed / moved, 1 / size)
    nearby = {Fraction(n, d) for d in range(1, 9) for n in range(max(1, int(about * d / 2)), int(about * d * 2) + 3)}
    stride = min(nearby, key=lambda s: (round(misfit(s), 9), s.denominator, s))
    low, high = ([int(value) - stride * int(place) for place, value in zip(*end, strict=True)] for end in ends)
    return View(size, places, stride, min(low), max(high))
