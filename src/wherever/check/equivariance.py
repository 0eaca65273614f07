"""How far model(shift(x)) is from shift(model(x)): for each shift and layer, inside and at borders, and where."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wherever.check.layers import Equivariance, Layer, Shift
from wherever.check.models import given, parts
from wherever.check.probes import Array, View, views
from wherever.problem import integer

Boundary = Literal["wrap", "zeros", "edge", "reflect"]
_PAD = {"zeros": "constant", "edge": "edge", "reflect": "reflect"}


def equivariance(
    model: Callable[[Any], Any],
    x: Any,
    shifts: Sequence[int | Sequence[int]] | None = None,
    *,
    axes: Sequence[int] | None = None,
    boundary: Boundary = "wrap",
    layers: Sequence[str] | None = None,
    tolerance: float | None = None,
) -> Equivariance:
    """Measure how far model(shift(x)) is from shift(model(x)), and find what breaks it.

    Parameters
    ----------
    model : torch.nn.Module, or callable from array to array
        Of a module every layer is looked at, of a copy of it in evaluation mode; of another callable the result alone.
    x : Tensor (N, C, *S), or array
        The images, as the model takes them. An array is one image (H, W) or (H, W, C) unless `axes` says otherwise.
    shifts : sequence of int or of tuples of int, optional
        In pixels: a tuple has a number for each spatial axis; one number is that shift along each axis in turn. If not
        given: 1 to 8 pixels, as far as the image allows, and multiples of the strides that are found.
    axes : sequence of int, optional
        The spatial axes of x and of the result; by default all behind the second of a module, the first two of an
        array. A result with another number of dimensions has no places, and should not change at all.
    boundary : {"wrap", "zeros", "edge", "reflect"}
        What moves into the image. "wrap" moves in what has left it on the other side; then the borders of the results
        can be compared, too, where the layer's places go around as often as the image.
    layers : sequence of str, optional
        Names, or patterns as "encoder.*", of the layers to look at; all by default.
    tolerance : float, optional
        Error up to which layers count as equivariant; 1e-6, or 1e-3 where the model computes in float32.

    Returns
    -------
    Equivariance

    Raises
    ------
    TypeError, ValueError
        If x, a shift, the axes or a pattern does not fit.

    Notes
    -----
    The stride of a layer, and the window of the image that a place of it sees, are measured: part of the image is
    replaced by noise, and what changes sees it. With a stride s, the result of a shift by d pixels should move by d/s
    places. Where that is no whole number, it is compared with what lies between two places (linearly), and counted
    separately: no subsampling is equivariant there, unless what it samples is smooth (Zhang 2019, "Making convolutional
    networks shift-invariant again").

    An error is the root mean square of the difference, over all places of a kind, divided by the root mean square of
    the layer's output. Inside are the places that see nothing of a border, before and after the shift. In maps, what
    differs because a place saw a border before the shift stands where it was then.

    Of images of more than 65,536 pixels a part is looked at, as if it were the image: as large as what a place of any
    layer sees, the shifts, and some places between them need; at most about 1000 x 1000 pixels, less where the layers'
    outputs would fill more than 1 GiB. Of each image it is the part with most contrast, and the result says how large
    it is. A model that takes images of one size alone is given the whole.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import ndimage
    >>> from wherever import check
    >>> x = np.random.default_rng(0).random((32, 32))
    >>> print(check.equivariance(lambda x: ndimage.uniform_filter(x, 3, mode="constant"), x).sentence)
    model: exact inside; its border, 1 place wide, differs by up to 30.1 %.
    """
    if boundary not in ("wrap", *_PAD):
        raise ValueError(f"boundary is {boundary!r}; it must be 'wrap', 'zeros', 'edge' or 'reflect'")
    images, make, batch = given(model, x)
    where = _axes(axes, images[0], plain=not batch and not hasattr(x, "detach"))
    whole = tuple(images[0].shape[axis] for axis in where)
    asked = _asked(shifts, whole)
    images, run = parts(images, make, where, asked, batch=batch)
    limit = tolerance if tolerance is not None else 1e-6 if run.exact else 1e-3
    seen = views(run, images[0], where, batch=batch)
    chosen = [name for name in seen if layers is None or any(fnmatch(name, pattern) for pattern in layers)]
    if not chosen:
        raise ValueError(f"layers: {list(layers or [])} fits none of {', '.join(seen)}")
    sizes = tuple(images[0].shape[axis] for axis in where)
    moves = asked or _usual(sizes, [seen[name] for name in chosen])
    found = {name: _Differences(seen[name], len(moves)) for name in chosen}
    for image in images:
        kept = run(image)
        for number, move in enumerate(moves):
            moved = run(shifted(image, move, where, boundary))
            for name in chosen:
                found[name].add(number, move, kept[name], moved[name], where, boundary)
    results = tuple(found[name].layer(name, run.kinds.get(name, ""), moves) for name in chosen)
    return Equivariance(tuple(moves), whole, boundary, limit, results, sizes)


def shifted(x: Array, move: Shift, axes: Sequence[int], boundary: str) -> Array:
    """Shift an array along some axes: what was at i is at i + move."""
    if boundary == "wrap":
        return np.roll(x, move, axis=tuple(axes))
    pads, index = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
    for axis, d in zip(axes, move, strict=True):
        pads[axis] = (max(d, 0), max(-d, 0))
        index[axis] = slice(max(-d, 0), max(-d, 0) + x.shape[axis])
    mode: Any = _PAD[boundary]
    padded: Array = np.pad(x, pads, mode=mode)
    return padded[tuple(index)]


# ---------------------------------------------------------------------------------------------------- what was given


def _axes(axes: Sequence[int] | None, image: Array, plain: bool) -> tuple[int, ...]:
    if axes is None:
        return tuple(range(min(2, image.ndim))) if plain else tuple(range(2, image.ndim))
    found = tuple(integer("axes", axis, minimum=-image.ndim) for axis in axes)
    where = tuple(axis + image.ndim if axis < 0 else axis for axis in found)
    if not where or len(set(where)) < len(where) or not all(0 <= axis < image.ndim for axis in where):
        raise ValueError(f"axes is {found}; it must name different axes of x, which has {image.ndim}")
    return where


def _asked(shifts: Sequence[int | Sequence[int]] | None, sizes: Sequence[int]) -> list[Shift]:
    """Check shifts, and give them a number for each axis; none if none are asked for."""
    n = len(sizes)
    moves: list[Shift] = []
    for shift in shifts if shifts is not None else ():
        if isinstance(shift, Sequence | np.ndarray):
            if len(shift) != n:
                raise ValueError(f"shifts: {tuple(shift)} has {len(shift)} numbers; there are {n} spatial axes")
            moves.append(tuple(integer("shifts", d, minimum=-max(sizes)) for d in shift))
        else:
            d = integer("shifts", shift, minimum=-max(sizes))
            moves += [tuple(d if axis == position else 0 for axis in range(n)) for position in range(n)]
    for move in moves:
        if not any(move) or any(abs(d) >= size for d, size in zip(move, sizes, strict=True)):
            raise ValueError(f"shifts: {move}; must not be zero everywhere, and less than the image's {tuple(sizes)}")
    if shifts is not None and not moves:
        raise ValueError("shifts: none is given")
    return list(dict.fromkeys(moves))


def _usual(sizes: Sequence[int], seen: Sequence[tuple[View, ...] | None]) -> list[Shift]:
    """Choose shifts for layers of some strides."""
    n = len(sizes)
    strides = {int(v.stride) for each in seen for v in each or () if v.stride.denominator == 1}
    distances = {*range(1, 9), *(m * s for s in strides for m in (1, 2)), *(s // 2 for s in strides)}
    moves = [
        tuple(d if axis == position else 0 for axis in range(n))
        for d in sorted(distances)
        for position in range(n)
        if 0 < d <= sizes[position] // 2
    ]
    if not moves:
        raise ValueError(f"x: an image of {tuple(sizes)} is too small to be shifted")
    return moves


# ------------------------------------------------------------------------------------------------------- the comparison


@dataclass
class _Differences:
    """Sums over images of what a layer's output differs by, for every shift."""

    views: tuple[View, ...] | None
    count: int
    squares: list[Any] = field(default_factory=list)
    power: float = 0.0
    images: int = 0

    def __post_init__(self) -> None:
        # For each shift: sums over inside, border and all, and how many places there are of each.
        self.sums, self.places = np.zeros((self.count, 3)), np.zeros((self.count, 3))
        self.maps: list[Any] = [[None, None], [None, None]]

    def add(self, number: int, move: Shift, kept: Array, moved: Array, axes: Sequence[int], boundary: str) -> None:
        """Add one image's difference for one shift."""
        if kept.shape != moved.shape:
            raise ValueError(f"model: gives shape {kept.shape}, and {moved.shape} after a shift")
        if number == 0:
            self.power += float((kept**2).mean())
            self.images += 1
        if self.views is None:
            self.sums[number, 2] += float(((moved - kept) ** 2).mean())
            self.places[number, 2] += 1
            return
        expected, valid, inside = kept, [], []
        for axis, d, view in zip(axes, move, self.views, strict=True):
            expected, compared, far = _moved(expected, axis, Fraction(d) / view.stride, view, boundary)
            valid.append(compared)
            inside.append(far)
        difference = ((moved - expected) ** 2).mean(axis=tuple(a for a in range(kept.ndim) if a not in axes))
        order = np.argsort(np.argsort(axes))
        difference = difference.transpose(order)
        allowed, within = _outer(valid), _outer(inside)
        for kind, mask in enumerate((allowed & within, allowed & ~within, allowed)):
            self.sums[number, kind] += float(difference[mask].sum())
            self.places[number, kind] += int(mask.sum())
        counted = [np.where(allowed, difference, 0), allowed.astype(np.float64)]
        target = self.maps[0 if self.on_stride(move) else 1]
        if self.on_stride(move):
            before = allowed & ~within & _outer([view.inside() for view in self.views])
            back = [-int(d / view.stride) for d, view in zip(move, self.views, strict=True)]
            along = tuple(range(len(back)))
            counted = [
                np.where(before, 0, values) + np.roll(np.where(before, values, 0), back, along) for values in counted
            ]
            # Where all that was compared stands elsewhere, nothing is wrong.
            counted[1] = np.maximum(counted[1], 1e-9 * before)
        for position, values in enumerate(counted):
            target[position] = values if target[position] is None else target[position] + values

    def on_stride(self, move: Shift) -> bool:
        """Whether a shift moves the output by whole places."""
        return self.views is None or all(
            (Fraction(d) / view.stride).denominator == 1 for d, view in zip(move, self.views, strict=True)
        )

    def layer(self, name: str, kind: str, moves: Sequence[Shift]) -> Layer:
        """Divide what was added up by the power of the output."""
        power = self.power / max(self.images, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = np.sqrt(self.sums / self.places / power) if power > 0 else np.where(self.places > 0, 0.0, math.nan)
            maps = [None if total is None else np.sqrt(total / often / power) for total, often in self.maps]
        views = self.views
        return Layer(
            name=name,
            kind=kind,
            places=() if views is None else tuple(view.places for view in views),
            stride=None if views is None else tuple(view.stride for view in views),
            window=None if views is None else tuple(view.window for view in views),
            margins=None if views is None else tuple(view.margins for view in views),
            inside=errors[:, 0],
            border=errors[:, 1],
            whole=errors[:, 2],
            on_stride=np.array([self.on_stride(move) for move in moves]),
            map=maps[0],
            map_between=maps[1],
        )


def _moved(
    y: Array, axis: int, by: Fraction, view: View, boundary: str
) -> tuple[Array, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Move an output by a number of places: the result, where it can be compared, and where no border is seen."""
    places = y.shape[axis]
    around = boundary == "wrap" and view.stride * places == view.size
    low = math.floor(by)
    share = float(by - low)
    t = np.arange(places)
    sources = [t - low] if share == 0 else [t - low, t - low - 1]
    compared, far = np.ones(places, bool), view.inside()
    for source in sources:
        real = (source >= 0) & (source < places)
        compared &= real | around
        far = far & real & view.inside()[source % places]
    parts = [y.take(source % places, axis=axis) for source in sources]
    result = parts[0] if share == 0 else (1 - share) * parts[0] + share * parts[1]
    return result, compared, far


def _outer(masks: Sequence[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    result = masks[0]
    for mask in masks[1:]:
        result = result[..., None] & mask
    return result
