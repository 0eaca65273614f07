"""A problem cut into blocks of output: what each block reads, gathered with its boundary or scattered back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from wherever.problem import Array, Boundary, ConvProblem


@dataclass(frozen=True)
class Block:
    """A box of outputs of a few images, and the footprint: the box of (padded) inputs that it reads.

    Attributes
    ----------
    images : slice
    start, shape : tuple of int
        First output, and number of outputs, in each spatial dimension.
    foot_start, foot_shape : tuple of int
        The same of the inputs; the start is negative and the end beyond x where the kernel looks over the border.
    """

    images: slice
    start: tuple[int, ...]
    shape: tuple[int, ...]
    foot_start: tuple[int, ...]
    foot_shape: tuple[int, ...]

    @property
    def outputs(self) -> tuple[slice, ...]:
        """Index of this block in y seen as (N, K, *output)."""
        return (self.images, slice(None), *(slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True)))


def block(problem: ConvProblem, images: slice, start: tuple[int, ...], shape: tuple[int, ...]) -> Block:
    """The block of these outputs, with its footprint."""
    foot_start = tuple(o * s - before for o, s, (before, _) in zip(start, problem.stride, problem.padding, strict=True))
    return Block(images, start, shape, foot_start, footprint(problem, shape))


def footprint(problem: ConvProblem, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many inputs a box of outputs reads in each dimension."""
    return tuple((n - 1) * s + e for n, s, e in zip(shape, problem.stride, problem.extent, strict=True))


def cut(problem: ConvProblem, places: int) -> Iterator[Block]:
    """Cut the problem into blocks of about ``places`` outputs each (at least one).

    Trailing dimensions are kept whole as far as they fit, then images are taken together, so that a block is one
    run of memory in each channel.
    """
    if 0 in (problem.batch, *problem.output):
        return
    shape = list(problem.output)
    for dim in range(problem.spatial):
        rest = math.prod(shape[dim + 1 :])
        if shape[dim] * rest <= places:
            break
        # As even as possible: blocks of nearly one size, instead of full ones and a sliver.
        most = max(1, places // rest)
        shape[dim] = -(-shape[dim] // -(-shape[dim] // most))
    images = max(1, places // math.prod(problem.output)) if tuple(shape) == problem.output else 1
    yield from grid(problem, tuple(shape), images)


def last_axes(index: Iterable[Any]) -> tuple[Any, ...]:
    """The index of the last axes of an array, whatever is before them."""
    return (..., *index)


def grid(problem: ConvProblem, shape: tuple[int, ...], images: int = 1) -> Iterator[Block]:
    """All blocks of this shape (smaller at the far ends), image after image."""
    starts = [range(0, n, step) for n, step in zip(problem.output, shape, strict=True)]
    for first in range(0, problem.batch, images):
        for start in itertools.product(*starts):
            clipped = tuple(min(m, n - o) for m, n, o in zip(shape, problem.output, start, strict=True))
            yield block(problem, slice(first, min(first + images, problem.batch)), start, clipped)


# The boundary, in one place: an axis of a footprint falls into runs of consecutive places that read x forwards,
# backwards, or one place of it over and over. Gathering copies the runs, scattering adds them back: adjoints.


@dataclass(frozen=True)
class Run:
    """Places of a footprint along one axis, and the places of x that they show (one place: shown at all of them)."""

    foot: slice
    x: slice


def runs(start: int, length: int, size: int, boundary: Boundary) -> list[Run]:
    """The runs of the ``length`` places from ``start`` on, of an axis of x with ``size`` places.

    ``boundary`` "edge", "reflect", "symmetric" and "wrap" continue x as `numpy.pad` does; with a number, only the
    places inside x are listed.
    """
    if not isinstance(boundary, str):
        first, last = max(start, 0), min(start + length, size)
        return [Run(slice(first - start, last - start), slice(first, last))] if first < last else []
    found = []
    place = start
    while place < start + length:
        source, step, stop = _continuation(place, size, boundary)
        count = min(stop, start + length) - place
        if step:
            end = source + step * count
            x = slice(source, end if end >= 0 else None, step)
        else:
            x = slice(source, source + 1)
        found.append(Run(slice(place - start, place - start + count), x))
        place += count
    return found


def _continuation(place: int, size: int, boundary: str) -> tuple[int, int, int]:
    """The place of x shown at ``place``, the step from there on, and the place at which the run ends."""
    if 0 <= place < size:
        return place, 1, size
    if boundary == "edge" or (boundary == "reflect" and size == 1):
        return (0, 0, 0) if place < 0 else (size - 1, 0, place + (1 << 62))
    if boundary == "wrap":
        turn, source = divmod(place, size)
        return source, 1, (turn + 1) * size
    # Reflections repeat with a period: forwards through x, then backwards, without ("reflect") or with
    # ("symmetric") the border places twice.
    period = 2 * size - 2 if boundary == "reflect" else 2 * size
    turn, phase = divmod(place, period)
    if phase < size:
        return phase, 1, turn * period + size
    return period - phase - (boundary == "symmetric"), -1, (turn + 1) * period


def gather(problem: ConvProblem, x: Array, part: Block, dtype: np.dtype[Any]) -> Array:
    """Return the footprint of a block, (n, C, *foot_shape), as ``dtype``: a view of x where that is possible.

    Parameters
    ----------
    x : array (N, C, *size)
        Of any strides and any dtype that converts to ``dtype``.
    """
    inside = tuple(
        slice(a, a + n) if a >= 0 and a + n <= m else None
        for a, n, m in zip(part.foot_start, part.foot_shape, problem.size, strict=True)
    )
    x = x[part.images]
    if None not in inside:
        seen: Array = x[last_axes(inside)].astype(dtype, copy=False)
        return seen
    # In the memory order of x, so that the copy runs along memory.
    if problem.layout == "channels_last":
        result = np.moveaxis(np.empty((len(x), *part.foot_shape, problem.in_channels), dtype), -1, 1)
    else:
        result = np.empty((len(x), problem.in_channels, *part.foot_shape), dtype)
    fill_footprint(problem, x, part, result)
    return result


def fill_footprint(problem: ConvProblem, x: Array, part: Block, result: Array) -> None:
    """Write the footprint of a block, of images ``x``, into ``result`` (n, C, *foot_shape)."""
    if not isinstance(problem.boundary, str):
        result[...] = problem.boundary
    for combination in _combinations(problem, part):
        result[last_axes(run.foot for run in combination)] = x[last_axes(run.x for run in combination)]


def scatter(problem: ConvProblem, x: Array, part: Block, foot: Array) -> None:
    """Add a footprint (n, C, *foot_shape) to the places of x that `gather` would read: its adjoint."""
    x = x[part.images]
    for combination in _combinations(problem, part):
        piece = foot[last_axes(run.foot for run in combination)]
        shown_often = tuple(
            axis
            for axis, run in enumerate(combination, start=2)
            if run.x.step is None and run.foot.stop - run.foot.start > run.x.stop - run.x.start
        )
        if shown_often:
            piece = piece.sum(axis=shown_often, keepdims=True)
        x[last_axes(run.x for run in combination)] += piece


def _combinations(problem: ConvProblem, part: Block) -> Iterator[tuple[Run, ...]]:
    axes = zip(part.foot_start, part.foot_shape, problem.size, strict=True)
    return itertools.product(*[runs(start, length, size, problem.boundary) for start, length, size in axes])
