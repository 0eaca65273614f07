"""A problem cut into blocks of output: what each block reads, gathered with its boundary or scattered back."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine.copies import assign
from wherever.problem import Array, Boundary, ConvProblem

_FOOTPRINT_ELEMENTS = 1 << 21  # of the inputs of one block: 8 MiB in float32


@dataclass(frozen=True)
class Block:
    """A box of outputs of a few images, and the footprint: the (padded) inputs that it reads.

    Attributes
    ----------
    images : slice
    start, shape : tuple of int
        First output, and number of outputs, in each spatial dimension.
    foot_start, foot_shape : tuple of int
        First input, and number of inputs; the start is negative and the end beyond x where the kernel looks over
        the border.
    spacing : tuple of int
        How far apart two neighbouring taps are in the footprint: the dilation; or less, where the dilation is wider
        than the block and the footprint leaves out what lies between the taps.
    """

    images: slice
    start: tuple[int, ...]
    shape: tuple[int, ...]
    foot_start: tuple[int, ...]
    foot_shape: tuple[int, ...]
    spacing: tuple[int, ...]

    @property
    def outputs(self) -> tuple[slice, ...]:
        """Index of this block in y seen as (N, K, *output)."""
        return (self.images, slice(None), *(slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True)))


def spacing(problem: ConvProblem, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How far apart the taps of a block of this shape are in its footprint: at most as far as the inputs of one."""
    return tuple(min(d, (n - 1) * s + 1) for n, s, d in zip(shape, problem.stride, problem.dilation, strict=True))


def footprint(problem: ConvProblem, shape: tuple[int, ...], apart: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """How many inputs a box of outputs reads in each dimension, with taps so far apart (else as `spacing` says)."""
    apart = apart or spacing(problem, shape)
    return tuple(
        (n - 1) * s + 1 + (r - 1) * d for n, s, r, d in zip(shape, problem.stride, problem.kernel, apart, strict=True)
    )


def cut(problem: ConvProblem, places: int) -> Iterator[Block]:
    """Cut the problem into blocks of about ``places`` outputs each (at least one), with bounded footprints.

    Trailing dimensions are kept whole as far as they fit, then images are taken together, so that a block is one
    run of memory in each channel.
    """
    if 0 in (problem.batch, *problem.output):
        return
    shape = block_shape(problem, places)
    images = max(1, places // math.prod(problem.output)) if shape == problem.output else 1
    yield from grid(problem, shape, images)


def block_shape(problem: ConvProblem, places: int) -> tuple[int, ...]:
    """The shape of the blocks of `cut`."""
    shape = [max(n, 1) for n in problem.output]
    for dim in range(problem.spatial):
        rest = math.prod(shape[dim + 1 :])
        if shape[dim] * rest <= places:
            break
        # As even as possible: blocks of nearly one size, instead of full ones and a sliver.
        most = max(1, places // rest)
        shape[dim] = -(-shape[dim] // -(-shape[dim] // most))
    while max(shape) > 1 and _inputs(problem, tuple(shape)) > _FOOTPRINT_ELEMENTS:
        longest = shape.index(max(shape))
        shape[longest] = -(-shape[longest] // 2)
    return tuple(shape)


def fewest_pieces(whole: int, fits: Callable[[int], bool]) -> int:
    """The length of each of the fewest equal pieces of which ``fits`` says that they fit; 1 if no pieces do.

    Found by bisection: images of any size are planned in no time.
    """
    pieces = 1 + bisect.bisect_left(range(1, whole + 1), True, key=fits)
    return -(-whole // pieces)


def fullness(count: int, together: int) -> float:
    """How full groups of so many are on average: the last one may be smaller."""
    return count / (together * -(-count // together)) if count else 1.0


def traffic(problem: ConvProblem, places: int) -> tuple[int, int, int]:
    """Number of blocks that `cut` makes (of one image each), inputs of one block, and inputs of all blocks."""
    shape = block_shape(problem, places)
    blocks = problem.batch * math.prod(-(-n // m) for n, m in zip(problem.output, shape, strict=True))
    inputs = _inputs(problem, shape)
    return blocks, inputs, blocks * inputs


def _inputs(problem: ConvProblem, shape: tuple[int, ...]) -> int:
    return problem.in_channels * math.prod(footprint(problem, shape))


def grid(problem: ConvProblem, shape: tuple[int, ...], images: int = 1, *, gapless: bool = False) -> Iterator[Block]:
    """All blocks of this shape (smaller at the far ends), image after image.

    With ``gapless`` footprints hold what lies between distant taps, too.
    """
    starts = [range(0, n, step) for n, step in zip(problem.output, shape, strict=True)]
    for first in range(0, problem.batch, images):
        some = slice(first, min(first + images, problem.batch))
        for start in itertools.product(*starts):
            clipped = tuple(min(m, n - o) for m, n, o in zip(shape, problem.output, start, strict=True))
            yield box(problem, some, start, clipped, gapless=gapless)


def box(
    problem: ConvProblem, images: slice, start: tuple[int, ...], shape: tuple[int, ...], *, gapless: bool = False
) -> Block:
    """The block of these outputs."""
    apart = problem.dilation if gapless else spacing(problem, shape)
    foot_start = tuple(o * s - before for o, s, (before, _) in zip(start, problem.stride, problem.padding, strict=True))
    return Block(images, start, shape, foot_start, footprint(problem, shape, apart), apart)


def last_axes(index: Iterable[Any]) -> tuple[Any, ...]:
    """The index of the last axes of an array, whatever is before them."""
    return (..., *index)


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


def places(start: int, length: int, size: int, boundary: Boundary) -> npt.NDArray[np.int64]:
    """The places of an axis of x that the ``length`` places from ``start`` on show; -1 for a number outside."""
    shown = np.full(length, -1, np.int64)
    for part in runs(start, length, size, boundary):
        shown[part.foot] = np.arange(*part.x.indices(size))
    return shown


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
        slice(a, a + n) if a >= 0 and a + n <= m and apart == d else None
        for a, n, m, apart, d in zip(
            part.foot_start, part.foot_shape, problem.size, part.spacing, problem.dilation, strict=True
        )
    )
    x = x[part.images]
    if None not in inside:
        seen: Array = x[last_axes(inside)].astype(dtype, copy=False)
        return seen
    # In the memory order of x, so that the copy runs along memory.
    if problem.layout == "channels_last":
        last = np.empty((len(x), *part.foot_shape, problem.in_channels), dtype)
        result = last.transpose(0, last.ndim - 1, *range(1, last.ndim - 1))
    else:
        result = np.empty((len(x), problem.in_channels, *part.foot_shape), dtype)
    fill_footprint(problem, x, part, result)
    return result


def fill_footprint(problem: ConvProblem, x: Array, part: Block, result: Array) -> None:
    """Write the footprint of a block, of images ``x``, into ``result`` (n, C, *foot_shape)."""
    if not isinstance(problem.boundary, str):
        result[...] = problem.boundary
    for foot, shown in _copies(problem, part):
        assign(result[foot], x[shown])


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


def _copies(problem: ConvProblem, part: Block) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """What is copied into a footprint, and from where in x; kept with the block, whose problem is always the same."""
    found: list[tuple[tuple[Any, ...], tuple[Any, ...]]] | None = part.__dict__.get("copies")
    if found is None:
        found = [
            (last_axes(run.foot for run in combination), last_axes(run.x for run in combination))
            for combination in _combinations(problem, part)
        ]
        part.__dict__["copies"] = found
    return found


def _combinations(problem: ConvProblem, part: Block) -> Iterator[tuple[Run, ...]]:
    """Every combination of one run for each axis."""
    return itertools.product(*(_axis_runs(problem, part, dim) for dim in range(problem.spatial)))


def shown(problem: ConvProblem, part: Block, dim: int) -> npt.NDArray[np.int64]:
    """Which place of x each place of a footprint shows along one axis; -1 where it shows none."""
    places = np.full(part.foot_shape[dim], -1, np.int64)
    for run in _axis_runs(problem, part, dim):
        places[run.foot] = np.arange(*run.x.indices(problem.size[dim]))
    return places


def _axis_runs(problem: ConvProblem, part: Block, dim: int) -> list[Run]:
    """The runs of one axis of a footprint; where it has gaps, of each tap's inputs by themselves."""
    start, length, size = part.foot_start[dim], part.foot_shape[dim], problem.size[dim]
    apart, dilation = part.spacing[dim], problem.dilation[dim]
    if apart == dilation:
        return runs(start, length, size, problem.boundary)
    return [
        Run(slice(run.foot.start + tap * apart, run.foot.stop + tap * apart), run.x)
        for tap in range(problem.kernel[dim])
        for run in runs(start + tap * dilation, apart, size, problem.boundary)
    ]
