"""One axis of a local operation: which places of its input an interval of its output reads, and what lies outside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Interval: TypeAlias = tuple[int, int]  # first place, and the one after the last
Runs: TypeAlias = tuple[Interval, ...]  # disjoint intervals in order: what is there of an axis
Places: TypeAlias = npt.NDArray[np.int64]

# What lies outside an axis: numpy.pad's names; and "cut", for functions that treat the border of an image themselves.
BOUNDARIES = ("zeros", "edge", "reflect", "symmetric", "wrap", "cut")


class Rule(Protocol):
    """What an operation does along one axis, at any place alike.

    Attributes
    ----------
    boundary : str
        What its input is outside: one of `BOUNDARIES`.
    step : Fraction
        How many places of the input go by for each place of the output.
    """

    @property
    def boundary(self) -> str: ...  # noqa: D102
    @property
    def step(self) -> Fraction: ...  # noqa: D102

    def cover(self, interval: Interval) -> Interval:
        """Return an interval of the input, maybe beyond its ends, from which an interval of the output follows."""
        ...

    def touched(self, places: Places) -> Places:
        """Return exactly the places of an endless input on which some places of the output depend."""
        ...


@dataclass(frozen=True)
class Window:
    """A window that moves over the input: convolution, pooling, padding, cutting; by default one place for one.

    Attributes
    ----------
    kernel, stride, dilation : int
    before : int
        Places of padding before the first; negative where the first places are never looked at.
    boundary : str
    """

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    boundary: str = "zeros"

    @property
    def step(self) -> Fraction:
        """Places of the input a place of the output."""
        return Fraction(self.stride)

    def cover(self, interval: Interval) -> Interval:
        """Return the interval of the input that an interval of the output reads."""
        extent = (self.kernel - 1) * self.dilation + 1
        return interval[0] * self.stride - self.before, (interval[1] - 1) * self.stride - self.before + extent

    def touched(self, places: Places) -> Places:
        """Return the places of the input that places of the output depend on."""
        taps = np.arange(self.kernel) * self.dilation - self.before
        return np.unique(places[:, None] * self.stride + taps)


@dataclass(frozen=True)
class Spread:
    """A window spread over the output: the transposed convolution.

    Attributes
    ----------
    kernel, stride, dilation : int
        Of the convolution that it is the transpose of.
    before : int
        Places that are cut off before the first.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    boundary: str = field(default="zeros", init=False)

    @property
    def step(self) -> Fraction:
        """Places of the input a place of the output."""
        return Fraction(1, self.stride)

    @property
    def reach(self) -> int:
        """Places from the first to the last tap."""
        return (self.kernel - 1) * self.dilation

    def cover(self, interval: Interval) -> Interval:
        """Return an interval of the input whose outputs cover an interval; beyond the ends lie zeros."""
        low, high = interval[0] + self.before, interval[1] - 1 + self.before
        first = (low - self.reach) // self.stride
        last = max(high // self.stride, -((self.reach - high) // self.stride))
        return first, last + 1

    def start(self, first: int) -> int:
        """Return the place of the output where the first tap of a place of the input lies."""
        return first * self.stride - self.before

    def touched(self, places: Places) -> Places:
        """Return the places of the input that places of the output depend on."""
        taps = np.arange(self.kernel) * self.dilation
        whole, rest = np.divmod(places[:, None] + self.before - taps, self.stride)
        return np.unique(whole[rest == 0])


@dataclass(frozen=True)
class Resample:
    """A change of resolution: every place of the output lies somewhere in the input, and reads its neighbours there.

    Attributes
    ----------
    step : Fraction
    taps : int
        How many neighbours: 1 (nearest), 2 (linear) or 4 (cubic).
    shift : Fraction
        Where place 0 of the output lies in the input (of nearest neighbours the floor of that is taken).
    index : array (n, taps), optional
        The neighbours of every place of the output, where they do not follow from the above: made for one size.
    """

    step: Fraction
    taps: int = 1
    shift: Fraction = Fraction(0)
    index: Places | None = field(default=None, compare=False, repr=False)
    boundary: str = field(default="edge", init=False)

    def _first(self, place: int) -> int:
        return (place * self.step + self.shift).__floor__() - max(self.taps // 2 - 1, 0)

    def cover(self, interval: Interval) -> Interval:
        """Return the interval of the input that an interval of the output reads."""
        if self.index is None:
            return self._first(interval[0]), self._first(interval[1] - 1) + self.taps
        seen = self.index[interval[0] : interval[1]]
        return int(seen.min()), int(seen.max()) + 1

    def touched(self, places: Places) -> Places:
        """Return the places of the input that places of the output depend on."""
        seen: list[int] = []
        for place in places.tolist():
            first = self._first(place)
            exactly = (place * self.step + self.shift).denominator == 1
            # Linear and cubic interpolation at a place of the input is that place.
            seen += [first + self.taps // 2 - 1] if exactly and self.taps > 1 else range(first, first + self.taps)
        return np.unique(np.array(seen, np.int64))


def continued(interval: Interval, size: int, boundary: str) -> Places:
    """Return the places of an axis of `size` places that stand for an interval beyond its ends; -1 for none at all."""
    places = np.arange(interval[0], interval[1])
    if size == 0:
        return np.full_like(places, -1)
    if boundary in ("zeros", "cut"):
        return np.where((places >= 0) & (places < size), places, -1)
    if boundary == "edge":
        return np.clip(places, 0, size - 1)
    if boundary == "wrap":
        return places % size
    if boundary == "reflect":
        if size == 1:
            return np.zeros_like(places)
        places = places % (2 * size - 2)
        return np.where(places < size, places, 2 * size - 2 - places)
    places = places % (2 * size)  # symmetric
    return np.where(places < size, places, 2 * size - 1 - places)


def real(interval: Interval, size: int, boundary: str) -> Runs:
    """Return what has to be there of an axis so that an interval, maybe beyond its ends, can be gathered from it."""
    low, high = interval
    if low >= 0 and high <= size:
        return (interval,)
    if boundary in ("zeros", "cut") or (boundary == "edge" and low < size and high > 0):
        first, last = max(low, 0), min(high, size)
        if first < last:
            return ((first, last),)
        nearest = min(max(low, 0), size - 1)  # nothing of it is seen, but an array has to have some size
        return ((nearest, nearest + 1),)
    places = np.unique(continued(interval, size, boundary))
    cuts = np.flatnonzero(np.diff(places) > 1) + 1
    return tuple((int(part[0]), int(part[-1]) + 1) for part in np.split(places, cuts))


def union(runs: Iterable[Interval]) -> Runs:
    """Return intervals joined where they overlap or touch, in order."""
    joined: list[Interval] = []
    for low, high in sorted(runs):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


def length(runs: Runs) -> int:
    """Return the number of places of runs."""
    return sum(high - low for low, high in runs)


def locate(places: Places, runs: Runs) -> Places:
    """Return where places lie in an array that holds runs one after the other; -1 stays -1."""
    starts = np.array([low for low, _ in runs])
    before = np.cumsum([0, *(high - low for low, high in runs)])[:-1]
    which = np.maximum(np.searchsorted(starts, places, side="right") - 1, 0)
    return np.where(places < 0, -1, places - starts[which] + before[which])
