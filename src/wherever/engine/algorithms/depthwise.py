"""Depthwise: a kernel for every channel, many channels that lie last; through a generated kernel."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.each_channel import PART_BYTES, PIECES, EachChannel
from wherever.engine.algorithms.forward import as_forward
from wherever.engine.algorithms.protocol import Prepared
from wherever.engine.blocks import Block, box, cut, fill_footprint, places
from wherever.engine.copies import assign, readable
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.depthwise import OUTSIDE, depthwise
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

_WIDEST = 7  # columns of a kernel that are summed together


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
        wide = _columns_together(problem)
        sums = problem.multiply_adds * waste * (1.2 if wide > 1 else 2.0) / machine.multiply_adds
        read = problem.batch * math.prod(problem.size) * problem.in_channels
        written = problem.batch * math.prod(problem.output) * problem.out_channels
        copied = 3 if problem.layout == "channels_first" and problem.in_channels > 1 else 0.5
        return (sums + copied * (read + written) / machine.copy) * size / 4 + 10 * machine.call

    def prepared(self, problem: ConvProblem, operand: Array, bias: Array | None) -> Prepared:
        """Weights with channels last."""
        return DepthwisePrepared(problem, operand, bias)


def _columns_together(problem: ConvProblem) -> int:
    """How many columns of a kernel are summed together: a divisor of all."""
    return max(n for n in range(1, _WIDEST + 1) if problem.kernel[-1] % n == 0)


@dataclass(frozen=True)
class _Call:
    """What the kernel is called with for arrays of one memory order: tables, and sizes for each piece of the rows."""

    tables: tuple[npt.NDArray[np.int64], ...]
    pieces_of_memory: list[npt.NDArray[np.int64]]
    addresses: list[int]
    pieces: list[tuple[int, int]]


class DepthwisePrepared:
    """Weights as (taps, channels)."""

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        self.problem = p = problem
        self.dtype: np.dtype[Any] = working_dtype(p.dtype)
        lanes = host().lanes(self.dtype.name)
        filled = -(-p.out_channels // lanes) * lanes
        self.bias, self.filler = np.zeros(filled, self.dtype), np.zeros(filled, self.dtype)
        if bias is not None:
            self.bias[: p.out_channels] = bias
        if not isinstance(p.boundary, str):
            self.filler[:] = p.boundary
        self.weight = np.zeros((p.taps, filled), self.dtype)
        assign(self.weight[:, : p.out_channels], operand.astype(self.dtype).reshape(-1, p.taps).T)
        self.wide = _columns_together(p)
        # Sums, the weights of a row, a vector of x and one to spare fit the registers; tiles of nearly one size.
        most = max(4, min(14, host().registers - self.wide - 2))
        self.across = -(-p.output[-1] // -(-p.output[-1] // most))
        self.before = [self.filler.ctypes.data, self.weight.ctypes.data, self.bias.ctypes.data]
        self.calls: dict[tuple[Any, ...], _Call] = {}
        self.parts: list[Block] | None = None

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        p = self.problem
        x, y = channels_first(p, source), channels_first(p, out)
        if readable(x, self.dtype, 1) and readable(y, self.dtype, 1):
            self._compute(x, y, None, threads)
            return
        if self.parts is None:
            self.parts = list(cut(p, max(1, PART_BYTES // (self.dtype.itemsize * p.in_channels))))
        run.for_each(lambda part: self._part(x, y, part), self.parts, threads)

    def _part(self, source: Array, result: Array, part: Block) -> None:
        """Compute a part from a copy of its footprint."""
        x, target = source[part.images], result[part.outputs]
        foot = self._buffer("footprint", len(x), part.foot_shape)
        fill_footprint(self.problem, x, part, foot)
        y = target if readable(target, self.dtype, 1) else self._buffer("result", len(x), part.shape)
        self._compute(foot, y, part, 1)
        if y is not target:
            assign(target, y)

    def _compute(self, x: Array, y: Array, part: Block | None, threads: int) -> None:
        """Compute the outputs of a part from its footprint, or of the problem from x itself."""
        shape = None if part is None else (part.foot_shape, part.spacing)
        key = (x.strides, y.strides, y.shape, shape, threads)
        call = self.calls.get(key)
        if call is None:
            if len(self.calls) > 100:  # of ever other memory orders
                self.calls.clear()
            call = self.calls[key] = self._call(x, y, part, threads)
        kernel = self._kernel(self.problem.dilation[-1] if part is None else part.spacing[-1])
        fixed = (x.ctypes.data, *self.before, y.ctypes.data, *call.addresses)
        run.for_each(lambda piece: kernel(*fixed, *piece), call.pieces, threads)

    def _kernel(self, apart: int) -> Any:
        return compiled(
            depthwise,
            dtype=self.dtype.name,
            wide=self.wide,
            stride=self.problem.stride[-1],
            apart=apart,
            across=self.across,
        )

    def _call(self, x: Array, y: Array, part: Block | None, threads: int) -> _Call:
        """The tables of rows and columns, and the pieces for the threads; see the kernel."""
        p, size = self.problem, self.dtype.itemsize
        if part is None:
            part = box(p, slice(0, p.batch), (0,) * p.spatial, p.output, gapless=True)
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
        rows = np.zeros((len(x), *part.shape[:-1], *p.kernel[:-1]), np.int64)
        begins = np.zeros((len(x), *part.shape[:-1]), np.int64)
        rows += _along(np.arange(len(x)) * x_images, 0, rows.ndim)
        begins += _along(np.arange(len(x)) * y_images, 0, begins.ndim)
        for dim in range(lead):
            offset = np.where(seen[dim] < 0, OUTSIDE, seen[dim] * x_pitches[dim])
            shape = [1] * rows.ndim
            shape[1 + dim], shape[1 + lead + dim] = offset.shape
            rows += offset.reshape(shape)
            begins += _along(np.arange(part.shape[dim]) * y_pitches[dim], 1 + dim, begins.ndim)
        repeats = p.kernel[-1] // self.wide
        rows = np.repeat(rows.reshape(begins.size, -1), repeats, axis=1) - before * x_pitches[-1]
        row_table = np.concatenate([begins.reshape(-1, 1), rows], axis=1)
        tap_table = np.tile(np.arange(repeats) * self.wide, rows.shape[1] // repeats)
        columns = seen[-1]
        column_table = np.where(shown[-1] < 0, OUTSIDE, (shown[-1] + before) * x_pitches[-1])
        inside = np.flatnonzero((columns >= 0).all(axis=1) & (np.diff(columns, axis=1) == part.spacing[-1]).all(axis=1))
        inside = inside[columns[inside, 0] == inside * p.stride[-1] - before]
        low, high = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        count = len(row_table)
        pieces = min(count, threads * PIECES) if threads > 1 else 1
        cuts = [count * i // pieces for i in range(pieces + 1)]
        numbers = [len(columns), low, high, p.in_channels, rows.shape[1], self.weight.shape[1]]
        # Of each piece the sizes, and memory for the places that a tile looks at.
        looked = rows.shape[1] * self.across * self.wide
        memory = [
            np.array([first, last, *numbers, x_pitches[-1], y_pitches[-1], *[0] * looked], np.int64)
            for first, last in itertools.pairwise(cuts)
        ]
        tables = tuple(np.ascontiguousarray(t, np.int64) for t in (row_table, tap_table, column_table))
        own = [(m[len(numbers) + 4 :].ctypes.data, m.ctypes.data) for m in memory]
        return _Call(tables, memory, [t.ctypes.data for t in tables], own)

    def _buffer(self, purpose: str, images: int, shape: tuple[int, ...]) -> Array:
        """Memory for (images, channels, *shape) with the channels last."""
        channels = self.problem.in_channels
        (flat,) = run.workspace(purpose, images * channels * math.prod(shape), dtype=self.dtype)
        return np.moveaxis(flat.reshape(images, *shape, channels), -1, 1)


def _along(values: npt.NDArray[np.int64], axis: int, dimensions: int) -> npt.NDArray[np.int64]:
    """The values along one axis of an array of so many dimensions."""
    return values.reshape([-1 if dim == axis else 1 for dim in range(dimensions)])
