"""Depthwise: a kernel for every channel, many channels that lie last; through a generated kernel."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.each_channel import PART_BYTES, PIECES, EachChannel
from wherever.engine.algorithms.finish import NOTHING, Finish, alike
from wherever.engine.algorithms.forward import as_forward
from wherever.engine.algorithms.protocol import Prepared
from wherever.engine.blocks import Block, box, cut, fill_footprint, places
from wherever.engine.copies import assign, exchanging, readable
from wherever.engine.kernels.compile import Entry, compiled, host
from wherever.engine.kernels.depthwise import OUTSIDE, depthwise
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

_LINE = 64  # bytes of a line of the cache
_WIDEST = 13  # columns of a kernel that are summed together
_FEW_SUMS = 3  # for which a vector of x is loaded, so that loads set the pace
_FEW_TAPS = 9  # that leave time for loads, and whose kernel is small enough to be written out


class Depthwise(EachChannel):
    """Lanes are channels. Any stride, dilation, boundary and number of dimensions, where channels lie last."""

    name = "depthwise"

    def refuses_forward(self, problem: ConvProblem) -> str | None:
        """Several kernels for a channel."""
        if problem.group_out != 1:
            return "has one kernel for each channel"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """Multiply-adds of whole vectors, and copies, where channels lie first."""
        problem = as_forward(problem)
        size = working_dtype(problem.dtype).itemsize
        lanes = host().lanes(working_dtype(problem.dtype).name)
        waste = -(-problem.in_channels // lanes) * lanes / problem.in_channels
        # A vector of x is loaded for as many multiply-adds as the kernel is wide; if few, memory sets the pace.
        wide = runs_of(problem.kernel[-1], _WIDEST)[0]
        sums = problem.multiply_adds * waste * (0.8 if wide > 3 else 1.0 if wide > 1 else 1.5) / machine.multiply_adds
        read = problem.batch * math.prod(problem.size) * problem.in_channels
        written = problem.batch * math.prod(problem.output) * problem.out_channels
        copied, calls = (2, 9) if problem.layout == "channels_first" and problem.in_channels > 1 else (0.5, 2.7)
        return (sums + copied * (read + written) / machine.copy) * size / 4 + calls * machine.call

    def prepared(self, problem: ConvProblem, operand: Array, bias: Array | None) -> Prepared:
        """Weights with channels last."""
        return DepthwisePrepared(problem, operand, bias)


def runs_of(columns: int, widest: int) -> tuple[int, int, list[int]]:
    """The columns of a kernel in runs that are summed together: the longest, how many of these, and where all begin.

    The others are one column shorter.
    """
    count = -(-columns // widest)
    wide = -(-columns // count)
    full = columns - count * (wide - 1)
    return wide, full, [i * wide - max(0, i - full) for i in range(count)]


def order(problem: ConvProblem, widest: int) -> npt.NDArray[np.int64]:
    """The taps in the order in which kernels sum them: the longest runs of all rows, and then the others."""
    wide, full, _ = runs_of(problem.kernel[-1], widest)
    taps = np.arange(problem.taps).reshape(-1, problem.kernel[-1])
    split = full * wide
    return np.concatenate([taps[:, :split].ravel(), taps[:, split:].ravel()])


def first_channel(problem: ConvProblem, x: Array, lanes: int) -> int:
    """The channel at which vectors begin: before the first, if then none of x crosses a line of the cache.

    A vector more for each place pays where there are few sums to a load.
    """
    line = min(_LINE, lanes * x.itemsize)
    if problem.taps > _FEW_TAPS or x.shape[1] < 4 * lanes or any(step % line for step in x.strides[2:]):
        return 0
    return -(x.ctypes.data % line // x.itemsize)


@dataclass(frozen=True)
class Tables:
    """What the windows of a block see, as the kernels look it up.

    Attributes
    ----------
    begins : array (rows,)
        Where each row of y begins: of every image, and every place of all dimensions but the last.
    lines : array (rows, rows of the kernel)
        The lines of x that it sees, or OUTSIDE.
    inside : array (rows,)
        Whether all these are inside x.
    runs : tuple
        Of the columns of the kernel, see `runs_of`.
    run_table : array
        The first column of every run.
    lines_of_runs : array (rows, runs)
    column_table : array
        How far each place of a row that windows look at is from where the line begins, or OUTSIDE.
    within : tuple of int
        The first column of y, and end of those, whose windows are inside x.
    steps : tuple of int
        From one place of x, and y, to the next.
    """

    begins: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    inside: npt.NDArray[np.bool_]
    runs: tuple[int, int, list[int]]
    run_table: npt.NDArray[np.int64]
    lines_of_runs: npt.NDArray[np.int64]
    column_table: npt.NDArray[np.int64]
    within: tuple[int, int]
    steps: tuple[int, int]


def tables(p: ConvProblem, part: Block, x: Array, y: Array, widest: int, *, in_place: bool) -> Tables:
    """The tables of a block, of images x (n, C, *size) if ``in_place``, else of its footprint; and of its outputs y."""
    size = x.itemsize
    if in_place:
        bounds = zip(part.foot_start, part.foot_shape, p.size, strict=True)
        shown = [places(start, length, n, p.boundary) for start, length, n in bounds]
        before = -part.foot_start[-1]
    else:
        shown, before = [np.arange(length) for length in part.foot_shape], 0
    x_images, _, *x_pitches = (stride // size for stride in x.strides)
    y_images, _, *y_pitches = (stride // size for stride in y.strides)
    # The place that each output sees through each tap, in every dimension.
    seen = [
        place[np.arange(n)[:, None] * s + np.arange(r) * d]
        for place, n, s, r, d in zip(shown, part.shape, p.stride, p.kernel, part.spacing, strict=True)
    ]
    # Rows: images and all dimensions but the last, times the taps of these dimensions.
    lead = p.spatial - 1
    lines = np.zeros((len(x), *part.shape[:-1], *p.kernel[:-1]), np.int64)
    begins = np.zeros((len(x), *part.shape[:-1]), np.int64)
    lines += _along(np.arange(len(x)) * x_images, 0, lines.ndim)
    begins += _along(np.arange(len(x)) * y_images, 0, begins.ndim)
    for dim in range(lead):
        offset = np.where(seen[dim] < 0, OUTSIDE, seen[dim] * x_pitches[dim])
        shape = [1] * lines.ndim
        shape[1 + dim], shape[1 + lead + dim] = offset.shape
        lines += offset.reshape(shape)
        begins += _along(np.arange(part.shape[dim]) * y_pitches[dim], 1 + dim, begins.ndim)
    lines = lines.reshape(begins.size, -1) - before * x_pitches[-1]
    inside: npt.NDArray[np.bool_] = np.all(lines > OUTSIDE // 2, axis=1)
    # Of every line the runs of columns; those of one column less come last, and are looked up as if they were not.
    runs = runs_of(p.kernel[-1], widest)
    _, full, starts = runs
    kinds = [np.array(kind, np.int64) for kind in (starts[:full], starts[full:])]
    run_table = np.concatenate([np.tile(kind, lines.shape[1]) for kind in kinds])
    lines_of_runs = np.concatenate([lines.repeat(len(kind), axis=1) for kind in kinds], axis=1)
    columns, apart = seen[-1], part.spacing[-1]
    column_table = np.where(shown[-1] < 0, OUTSIDE, (shown[-1] + before) * x_pitches[-1])
    column_table = np.append(column_table, [OUTSIDE] * apart)
    whole = np.flatnonzero((columns >= 0).all(axis=1) & (np.diff(columns, axis=1) == apart).all(axis=1))
    whole = whole[columns[whole, 0] == whole * p.stride[-1] - before]
    within = (int(whole[0]), int(whole[-1]) + 1) if len(whole) else (0, 0)
    steps = x_pitches[-1], y_pitches[-1]
    return Tables(begins.ravel(), lines, inside, runs, run_table, lines_of_runs, column_table, within, steps)


@functools.lru_cache(maxsize=256)
def _tile(rows: int, wide: int, runs: int, height: int, width: int, streams: bool) -> tuple[int, int]:
    """Rows and places of the register tile: those of the cheapest tiling of so many rows and columns.

    For the first three see the kernel. Where images stream from behind the second cache for few sums, small tiles were
    measured to be faster; why is not known.
    """
    registers = host().registers
    most_down, most_across = (4, 14) if not streams else (3 if rows > 1 else 2, 4)
    best, least = (1, 1), math.inf
    for down in range(1, min(height, most_down) + 1):
        for across in range(1, min(width, most_across) + 1):
            # Sums, a window of x that moves by a place, and two weights.
            if down * across + across + 3 > registers and (down, across) != (1, 1):
                continue
            groups, lines = runs // rows, down + rows - 1
            sums = rows * wide * down * across
            loads = lines * (across + wide - 1) + rows * wide * down
            tiles = -(-height // down) * -(-width // across)
            # Every tile pays for looking up its places, and for lines of x that the tile before has loaded, too.
            cost = tiles * (groups * (max(sums, loads) + lines * (across + wide - 1)) + down * across + 20)
            if cost < least:
                best, least = (down, across), cost
    return best


class Looked(threading.local):
    """Memory for the places that a tile looks at: of each thread its own."""

    def __init__(self, count: int) -> None:
        self.memory = np.empty(count, np.int64)
        self.address = self.memory.ctypes.data


@dataclass(frozen=True)
class _Call:
    """What the kernel is called with for arrays of one memory order: tables, and sizes for each piece of the rows."""

    kernel: Entry
    memory: list[Array]  # what the addresses below lead to
    packed: tuple[int, int, int]
    tables: tuple[int, ...]
    looked: Looked
    pieces: list[int]

    def __call__(self, x: int, y: int, threads: int, *beside: int, weights: int = 0, bias: int = 0) -> None:
        """Compute from the image at one address into the one at another, by weights so many bytes behind the first."""
        filler, first_weights, first_bias = self.packed
        given = (x, filler, first_weights + weights, first_bias + bias, y, *beside)
        if len(self.pieces) == 1:
            self._piece(given, self.pieces[0])
        else:
            run.for_each(lambda sizes: self._piece(given, sizes), self.pieces, threads)

    def _piece(self, given: tuple[int, ...], sizes: int) -> None:
        self.kernel(*given, *self.tables, self.looked.address, sizes)


class DepthwisePrepared:
    """Weights as (vectors of channels, taps, lanes)."""

    finishes = True
    finish = NOTHING
    plain: DepthwisePrepared  # the same without a finish

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        self.problem = p = problem
        self.dtype: np.dtype[Any] = working_dtype(p.dtype)
        self.lanes = host().lanes(self.dtype.name)
        filled = -(-p.out_channels // self.lanes) * self.lanes
        self.filler = np.zeros(filled, self.dtype)
        if not isinstance(p.boundary, str):
            self.filler[:] = p.boundary
        self.weight = operand.reshape(-1, p.taps)[:, order(p, _WIDEST)].astype(self.dtype)
        self.bias = np.zeros(p.out_channels, self.dtype)
        if bias is not None:
            self.bias[:] = bias
        self.packed: dict[int, tuple[Array, Array]] = {}
        self.calls: dict[tuple[Any, ...], _Call | None] = {}
        self.part_calls: dict[tuple[Any, ...], _Call] = {}
        self.turned: dict[tuple[Any, ...], list[_Turned]] = {}
        self.parts: list[Block] | None = None

    def finished(self, finish: Finish) -> DepthwisePrepared:
        """The same, which finishes its results where it stores them."""
        new = copy.copy(self)
        new.plain, new.finish, new.calls, new.part_calls, new.turned = self, finish, {}, {}, {}
        return new

    def run(self, source: Array, out: Array, threads: int, beside: Array | None = None) -> None:
        """Compute into ``out``; see `Prepared.run`, and `Finished.run`."""
        x_address, y_address = source.ctypes.data, out.ctypes.data
        offsets = x_address % _LINE, y_address % self.dtype.itemsize
        key = (source.strides, out.strides, source.dtype, out.dtype, offsets, threads)
        if key in self.calls:
            call = self.calls[key]
        else:
            if len(self.calls) > 100:  # of ever other memory orders
                self.calls.clear()
            x, y = channels_first(self.problem, source), channels_first(self.problem, out)
            in_place = readable(x, self.dtype, 1) and readable(y, self.dtype, 1)
            call = self.calls[key] = self._call(x, y, None, threads) if in_place else None
        if self.finish is not NOTHING and (call is None or not alike(beside, out)):
            self.plain.run(source, out, threads)
            self.finish.apply(out, beside, threads)
            return
        if call is not None:
            call(x_address, y_address, threads, *(() if beside is None else (beside.ctypes.data,)))
            return
        x, y = channels_first(self.problem, source), channels_first(self.problem, out)
        if key not in self.turned:
            if len(self.turned) > 20:
                self.turned.clear()
            self.turned[key] = [_Turned(self, x, y, *some) for some in self._pieces()]
        if self.turned[key]:
            run.for_each(lambda some: some.run(x, y), self.turned[key], threads)
            return
        p = self.problem
        if self.parts is None:
            self.parts = list(cut(p, max(1, PART_BYTES // (self.dtype.itemsize * p.in_channels))))
        run.for_each(lambda part: self._part(x, y, part), self.parts, threads)

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """Images, and channels, that are turned together; none, if a few channels of one image are too large."""
        p = self.problem
        one = (math.prod(p.size) + math.prod(p.output)) * self.dtype.itemsize
        most = PART_BYTES // one // self.lanes * self.lanes  # channels
        if not most:
            return
        images = max(1, most // p.in_channels)
        for image, channel in itertools.product(range(0, p.batch, images), range(0, p.in_channels, most)):
            yield slice(image, min(image + images, p.batch)), slice(channel, min(channel + most, p.in_channels))

    def _pack(self, begin: int) -> tuple[Array, Array]:
        """Weights as (vectors of channels, taps, lanes) and the bias, for vectors that begin at channel ``begin``."""
        if begin not in self.packed:
            lanes, count = self.lanes, self.problem.in_channels
            filled = -(-(count - begin) // lanes) * lanes
            weight, bias = np.zeros((filled, self.problem.taps), self.dtype), np.zeros(filled, self.dtype)
            weight[-begin : count - begin], bias[-begin : count - begin] = self.weight, self.bias
            weight = np.ascontiguousarray(weight.reshape(-1, lanes, self.problem.taps).swapaxes(1, 2))
            self.packed[begin] = weight, bias
        return self.packed[begin]

    def _part(self, source: Array, result: Array, part: Block) -> None:
        """Compute a part from a copy of its footprint."""
        x, target = source[part.images], result[part.outputs]
        foot = self._buffer("footprint", len(x), part.foot_shape)
        fill_footprint(self.problem, x, part, foot)
        y = target if readable(target, self.dtype, 1) else self._buffer("result", len(x), part.shape)
        x_address, y_address = foot.ctypes.data, y.ctypes.data
        # Parts in footprints of one shape see the same boundary: none.
        key = (y.shape, part.foot_shape, y.strides, x_address % _LINE)
        call = self.part_calls.get(key)
        if call is None:
            if len(self.part_calls) > 100:
                self.part_calls.clear()
            call = self.part_calls[key] = self._call(foot, y, part, 1)
        call(x_address, y_address, 1)
        if y is not target:
            assign(target, y)

    def _call(self, x: Array, y: Array, part: Block | None, threads: int) -> _Call:
        """The tables of rows and columns, and the pieces for the threads; see the kernel."""
        p, begin = self.problem, first_channel(self.problem, x, self.lanes)
        if part is None:
            whole = box(p, slice(0, p.batch), (0,) * p.spatial, p.output, gapless=True)
            found, spacing = tables(p, whole, x, y, _WIDEST, in_place=True), p.dilation
        else:
            found, spacing = tables(p, part, x, y, _WIDEST, in_place=False), part.spacing
        wide, full, starts = found.runs
        lines, columns, run_count = found.lines, y.shape[-1], len(found.run_table)
        row_table = np.concatenate([found.begins.reshape(-1, 1), found.lines_of_runs], axis=1)
        # Tiles of rows; they do not go over the end of an image where the lines of their rows slide.
        slides = p.spatial > 1 and p.stride[-2] == spacing[-2] == 1 and p.kernel[-2] * wide <= _FEW_TAPS
        rows, height = (p.kernel[-2], y.shape[-2]) if slides else (1, len(lines))
        touched = (x[0].size + y[0].size) * self.dtype.itemsize
        streams = wide <= _FEW_SUMS * p.stride[-1] and touched > Machine().cache
        down, across = _tile(rows, wide, run_count, height, columns, streams)
        firsts = np.minimum(np.arange(0, height, down), height - down)  # the last tile overlaps the one before
        firsts = np.add.outer(np.arange(0, len(lines), height), firsts).ravel()
        lines_inside = np.all(found.inside[firsts[:, None] + np.arange(down)], axis=1)
        tile_table = np.stack([firsts, lines_inside], axis=1)
        pieces = min(len(firsts), threads * PIECES) if threads > 1 else 1
        cuts = [len(firsts) * i // pieces for i in range(pieces + 1)]
        numbers = [columns, *found.within, begin, x.shape[1], lines.shape[1] * full, run_count, p.taps]
        sizes = [np.array([*ends, *numbers, *found.steps], np.int64) for ends in itertools.pairwise(cuts)]
        kernel = compiled(
            depthwise,
            dtype=self.dtype.name,
            rows=rows,
            wide=wide,
            narrower=full < len(starts),
            stride=p.stride[-1],
            apart=spacing[-1],
            down=down,
            across=across,
            activation=self.finish.activation,
            adds=self.finish.adds,
        )
        packed = [self.filler, *self._pack(begin)]
        given = (tile_table, row_table, found.run_table, found.column_table)
        kept = [np.ascontiguousarray(table, np.int64) for table in given]
        return _Call(
            kernel,
            [*packed, *kept, *sizes],
            (packed[0].ctypes.data, packed[1].ctypes.data, packed[2].ctypes.data),
            tuple(table.ctypes.data for table in kept),
            Looked(run_count // rows * (down + rows - 1) * across * wide),
            [piece.ctypes.data for piece in sizes],
        )

    def whole(self, x: Array, y: Array) -> _Call:
        """What the kernel is called with for whole images, and so many channels, with the channels last."""
        key = (x.shape, x.ctypes.data % _LINE)
        call = self.part_calls.get(key)
        if call is None:
            if len(self.part_calls) > 100:
                self.part_calls.clear()
            call = self.part_calls[key] = self._call(x, y, None, 1)
        return call

    def _buffer(self, purpose: str, images: int, shape: tuple[int, ...]) -> Array:
        """Memory for (images, channels, *shape) with the channels last."""
        channels = self.problem.in_channels
        (flat,) = run.workspace(purpose, images * channels * math.prod(shape), dtype=self.dtype)
        return np.moveaxis(flat.reshape(images, *shape, channels), -1, 1)


class _Turned:
    """Some channels of some images, that lie first in both arrays: turned to lie last, and back.

    Parameters
    ----------
    x, y : array (N, channels, *S)
        Arrays like those that will be given.
    """

    def __init__(self, prepared: DepthwisePrepared, x: Array, y: Array, images: slice, channels: slice) -> None:
        p, self.dtype = prepared.problem, prepared.dtype
        self.index = (images, channels)
        some, many = images.stop - images.start, channels.stop - channels.start
        self.shapes = [(some, *p.size, many), (some, *p.output, many)]
        self.ends = list(itertools.accumulate(-(-math.prod(s) // prepared.lanes) * prepared.lanes for s in self.shapes))
        _, foot, result = self._memory()
        self.call = prepared.whole(foot, result)
        self.turn_in, self.turn_out = exchanging(foot, x[self.index]), exchanging(y[self.index], result)
        steps = [images.start * a.strides[0] + channels.start * a.strides[1] for a in (x, y)]
        self.x_start, self.y_start = steps
        size = self.dtype.itemsize
        self.packed = channels.start * p.taps * size, channels.start * size

    def run(self, source: Array, out: Array) -> None:
        """Compute these channels of ``out``."""
        (memory,) = run.workspace("turned", self.ends[1], dtype=self.dtype)
        foot = memory.ctypes.data
        result = foot + self.ends[0] * self.dtype.itemsize
        if self.turn_in is not None:
            self.turn_in(source.ctypes.data + self.x_start, foot)
        else:
            assign(self._memory()[1], source[self.index])
        self.call(foot, result, 1, weights=self.packed[0], bias=self.packed[1])
        if self.turn_out is not None:
            self.turn_out(result, out.ctypes.data + self.y_start)
        else:
            assign(out[self.index], self._memory()[2])

    def _memory(self) -> tuple[Array, Array, Array]:
        """The workspace; and the image, and the result, in it, as (n, channels, *S)."""
        (memory,) = run.workspace("turned", self.ends[1], dtype=self.dtype)
        found = []
        for start, shape in zip((0, self.ends[0]), self.shapes, strict=True):
            found.append(np.moveaxis(memory[start : start + math.prod(shape)].reshape(shape), -1, 1))
        return memory, found[0], found[1]


def _along(values: npt.NDArray[np.int64], axis: int, dimensions: int) -> npt.NDArray[np.int64]:
    """The values along one axis of an array of so many dimensions."""
    return values.reshape([-1 if dim == axis else 1 for dim in range(dimensions)])
