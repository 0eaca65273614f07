"""Depthwise gradient: gradients by the weights where channels meet in single pairs, by a generated kernel."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.forward import refuses_sums
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.algorithms.weight_gradient import offsets
from wherever.engine.blocks import Block, cut, fill_footprint
from wherever.engine.copies import assign, readable
from wherever.engine.kernels.compile import Compiled, compiled, host
from wherever.engine.kernels.weight_gradient import channel_products
from wherever.engine.machine import Machine, longest_sum, most_sums, wide_dtype, working_dtype
from wherever.problem import Array, ConvProblem

_PART_BYTES = 4 << 20  # of the input of one part, where it is copied
_LINE_BYTES = 1 << 20  # of a line of what lies outside
_WIDEST = 7  # columns of a kernel that are summed together


class DepthwiseGradient(Algorithm):
    """The gradient by the weights of many groups of few channels: lanes are groups, sums are places of the kernel."""

    name = "depthwise_gradient"
    sums_directly = True

    def refuses(self, problem: ConvProblem) -> str | None:
        """Other directions, groups of many channels, and what is not a real floating-point number."""
        refusal = refuses_sums(problem, gradient=True)
        if refusal is not None:
            return refusal
        if problem.group_in * problem.group_out > 64:
            return f"passes over both images for each of {problem.group_in * problem.group_out} pairs of channels"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """Multiply-adds of whole vectors, a load for each, and the copies of both images."""
        p = problem
        dtype = working_dtype(p.dtype)
        lanes = host().lanes(dtype.name)
        waste = -(-p.groups // lanes) * lanes / p.groups
        sums = p.multiply_adds * waste * (1.3 if p.kernel[-1] <= _WIDEST else 2) / machine.multiply_adds
        pairs, size = p.group_in * p.group_out, dtype.itemsize / 4
        last = p.layout == "channels_last"
        # Every pair reads both images; they are copied where their channels do not lie side by side.
        read = (math.prod(p.x_shape) * p.group_out + math.prod(p.y_shape) * p.group_in) / (2 * machine.copy)
        copied = (0 if last else math.prod(p.x_shape)) + (
            0 if last and pairs == 1 else math.prod(p.y_shape) * p.group_in
        )
        return (sums + read + 2 * copied / machine.copy) * size + (40 + 20 * pairs) * machine.call

    def workspace(self, problem: ConvProblem) -> int:
        """Both images of one part, where they are copied."""
        return 2 * _PART_BYTES + _LINE_BYTES + 16 * problem.groups * problem.taps

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Nothing is packed beforehand: the other operand is as large."""
        return DepthwiseGradientPrepared(problem, operand)


@functools.lru_cache(maxsize=64)
def _rows(
    shape: tuple[int, ...],
    pitches: tuple[int, ...],
    taps: tuple[int, ...],
    stride: tuple[int, ...],
    spacing: tuple[int, ...],
    start: tuple[int, ...],
    size: tuple[int, ...],
) -> npt.NDArray[np.int64]:
    """Where the rows of x lie that each row of outputs sees through each row of the kernel; -1 if outside.

    All but ``pitches`` (which begins with the images) and ``shape`` (the same) are of all dimensions but the last.
    """
    where = np.zeros((*shape, *taps), np.int64)
    outside = np.zeros((*shape, *taps), bool)
    axes = where.ndim
    where += (np.arange(shape[0]) * pitches[0]).reshape(-1, *[1] * (axes - 1))
    for dim, (n, pitch, r, s, d, first, m) in enumerate(
        zip(shape[1:], pitches[1:], taps, stride, spacing, start, size, strict=True)
    ):
        place = first + np.add.outer(np.arange(n) * s, np.arange(r) * d)
        along = [1] * axes
        along[1 + dim], along[len(shape) + dim] = n, r
        place = place.reshape(along)
        where += place * pitch
        outside |= (place < 0) | (place >= m)
    where[outside] = -1
    return where.ravel()


class _Method:
    """What depends on the problem alone: the kernel's parameters, and how the problem is cut."""

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = p = problem
        self.dtype: np.dtype[Any] = working_dtype(p.dtype)
        self.size = self.dtype.itemsize
        self.lanes = host().lanes(self.dtype.name)
        registers = host().registers
        self.joined = p.kernel[-1] <= _WIDEST
        self.wide = p.kernel[-1] if self.joined else 1
        self.taps = p.taps // self.wide  # rows of the kernel; single places, where these are not joined
        self.high = max(1, min(self.taps, 27 // self.wide))
        self.across = min(range(1, max(2, min(9, registers - 1 - self.wide))), key=self._row_cost)
        # Places of a register tile are summed apart; so many of its sums are collected one after the other.
        self.chunk = longest_sum(self.dtype) // 2
        most = self.chunk * self.across
        if p.output[-1] <= most:
            most *= most_sums(self.dtype) // 2
        copied = max(1, _PART_BYTES // (self.size * p.groups * math.prod(p.stride)))
        self.parts = {in_place: list(cut(p, most if in_place else min(copied, most))) for in_place in (False, True)}
        self._kernels: dict[int, Compiled] = {}

    def _row_cost(self, across: int) -> float:
        """Instructions for the columns of a row that see x alone, with so many of them at once."""
        p = self.problem
        inner = max(1, p.output[-1] - -(-sum(max(pad, 0) for pad in p.padding[-1]) // p.stride[-1]))

        def step(n: int) -> float:
            seen = min(n * self.wide, (n - 1) * p.stride[-1] + self.wide)
            return self.high * max(self.wide * n, 3 * self.wide + seen) + n + 4

        return inner // across * step(across) + inner % across * step(1)

    def kernel(self, apart: int) -> Compiled:
        """The kernel for taps so far apart."""
        apart = apart if self.joined else 1
        if apart not in self._kernels:
            self._kernels[apart] = compiled(
                channel_products,
                dtype=self.dtype.name,
                high=self.high,
                wide=self.wide,
                stride=self.problem.stride[-1],
                apart=apart,
                across=self.across,
                pixel=self.problem.groups,
            )
        return self._kernels[apart]

    def usable(self, a: Array) -> bool:
        """Whether the kernel can read an array (n, groups, *places) where it lies."""
        return readable(a, self.dtype, 1) and a.strides[-1] == self.problem.groups * self.size and min(a.strides) >= 0


_method = functools.lru_cache(maxsize=256)(_Method)


class DepthwiseGradientPrepared:
    """The gradient of the output, to be met with x."""

    def __init__(self, problem: ConvProblem, operand: Array) -> None:
        self.problem = problem
        self.method = _method(problem)
        self.operand = channels_first(problem, operand)

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        p = self.problem
        x, y = channels_first(p, source), self.operand
        for c in range(p.group_in):
            for k in range(p.group_out):
                total = self._pair(x[:, c :: p.group_in], y[:, k :: p.group_out], threads)
                by_channel = total.swapaxes(1, 2).reshape(-1, p.taps)[: p.groups]
                out[k :: p.group_out, c] = by_channel.reshape(p.groups, *p.kernel)

    def _pair(self, x: Array, y: Array, threads: int) -> Array:
        """The sums (vectors of groups, taps, lanes) of one channel of every group of x with one of every group of y."""
        p, method = self.problem, self.method
        # A line of what lies outside stands for rows and columns that are not there; a continued image is copied.
        in_place = method.joined and not isinstance(p.boundary, str) and method.usable(x)
        in_place = in_place and x.shape[-1] * x.strides[-1] <= _LINE_BYTES
        parts = method.parts[in_place]
        shape = (-(-p.groups // method.lanes), p.taps, method.lanes)
        sums = np.zeros(shape, method.dtype if len(parts) == 1 else wide_dtype(method.dtype))
        for part in parts:
            total = sums if len(parts) == 1 else np.zeros(sums.shape, method.dtype)
            self._part(x, y, part, total, in_place, threads)
            if total is not sums:
                sums += total
        return sums

    def _part(self, x: Array, y: Array, part: Block, total: Array, in_place: bool, threads: int) -> None:
        """Add the products of one part to the total."""
        p, method = self.problem, self.method
        size, dtype = method.size, method.dtype
        x, y = x[part.images], y[part.outputs]
        if not method.usable(y):
            y = self._copied("outputs", y, part.shape, assign, threads)
        if in_place:
            start, inside, spacing = part.foot_start, p.size, p.dilation
        else:
            x = self._copied("foot", x, part.foot_shape, lambda to, of: fill_footprint(p, of, part, to), threads)
            start, inside, spacing = (0,) * p.spatial, part.foot_shape, part.spacing
        x_pitches, y_pitches = (tuple(s // size for s in (a.strides[0], *a.strides[2:])) for a in (x, y))
        shape = (len(y), *part.shape[:-1])
        x_rows = _rows(shape, x_pitches[:-1], p.kernel[:-1], p.stride[:-1], spacing[:-1], start[:-1], inside[:-1])
        if not method.joined:  # every column of the kernel sees rows of its own
            x_rows = np.add.outer(x_rows, np.arange(p.kernel[-1]) * spacing[-1] * x_pitches[-1]).ravel()
        y_rows = offsets(shape, y_pitches[:-1])
        columns, before, width, stride = part.shape[-1], start[-1], inside[-1], p.stride[-1]
        extent = (method.wide - 1) * spacing[-1] + 1
        first = min(columns, -(min(before, 0) // stride))
        last = min(columns, max(first, (width - before - extent) // stride + 1))
        (collected,) = run.workspace("collected", total.size, dtype=dtype)
        line = np.full(
            (width + 1) * p.groups if in_place else 0, 0 if isinstance(p.boundary, str) else p.boundary, dtype
        )
        outside = (line.ctypes.data - x.ctypes.data) // size
        steps = (last - first) // method.across + (last - first) % method.across + columns - (last - first)
        down = max(1, method.chunk // steps)
        numbers = [len(y_rows), columns, p.groups, method.taps, width, -before, first, last, outside, down]
        kernel = method.kernel(spacing[-1])
        tables = [x_rows.ctypes.data, y_rows.ctypes.data]
        arrays = [array.ctypes.data for array in (x, y, collected, total)]

        def some(channels: range) -> None:
            sizes = np.array(numbers, np.int64)
            sizes[2] = len(channels)
            images = [address + channels.start * size for address in arrays[:2]]
            totals = [address + channels.start * p.taps * size for address in arrays[2:]]
            kernel(*images, *totals, *tables, sizes.ctypes.data)

        if threads == 1:
            some(range(p.groups))
            return
        vectors = -(-p.groups // method.lanes)
        pieces = min(threads, vectors)
        cuts = [min(p.groups, vectors * i // pieces * method.lanes) for i in range(pieces + 1)]
        run.for_each(some, [range(a, b) for a, b in itertools.pairwise(cuts)], threads)

    def _copied(
        self, purpose: str, given: Array, shape: tuple[int, ...], copy: Callable[[Array, Array], None], threads: int
    ) -> Array:
        """A copy with channels last."""
        images, channels = given.shape[:2]
        (flat,) = run.workspace(purpose, images * math.prod(shape) * channels, dtype=self.method.dtype)
        target = np.moveaxis(flat.reshape(images, *shape, channels), -1, 1)
        cuts = [channels * i // threads for i in range(threads + 1)]
        work = [slice(a, b) for a, b in itertools.pairwise(cuts) if a < b]
        run.for_each(lambda some: copy(target[:, some], given[:, some]), work, threads)
        return target
