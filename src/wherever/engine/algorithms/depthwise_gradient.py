"""Depthwise gradient: gradients by the weights where channels meet in single pairs, by a generated kernel."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first, store
from wherever.engine.algorithms.depthwise import Looked, first_channel, order, runs_of, tables
from wherever.engine.algorithms.forward import refuses_sums
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, box, cut, fill_footprint
from wherever.engine.copies import assign, readable
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.depthwise import depthwise_gradient
from wherever.engine.machine import Machine, longest_sum, most_sums, wide_dtype, working_dtype
from wherever.problem import Array, ConvProblem

_PART_BYTES = 4 << 20  # of the input of one part, where it is copied
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
        return (sums + read + 2 * copied / machine.copy) * size + (5 + 8 * pairs) * machine.call

    def workspace(self, problem: ConvProblem) -> int:
        """Both images of one part, where they are copied."""
        return 2 * _PART_BYTES + 16 * problem.groups * problem.taps

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Nothing is packed beforehand: the other operand is as large."""
        return DepthwiseGradientPrepared(problem, operand)


class _Method:
    """What depends on the problem alone: the kernel's parameters, how the problem is cut, and tables found before."""

    def __init__(self, problem: ConvProblem) -> None:
        self.problem = p = problem
        self.dtype: np.dtype[Any] = working_dtype(p.dtype)
        self.size = self.dtype.itemsize
        self.lanes = host().lanes(self.dtype.name)
        self.wide, self.full, starts = runs_of(p.kernel[-1], _WIDEST)
        self.narrower = self.full < len(starts)
        self.rows = p.taps // p.kernel[-1]
        self.runs = self.rows * len(starts)
        self.across = min(range(1, 9), key=self._row_cost)
        # Places of a register tile are summed apart; so many of its sums are collected one after the other.
        self.chunk = longest_sum(self.dtype) // 2
        most = self.chunk * self.across
        if p.output[-1] <= most:
            most *= most_sums(self.dtype) // 2
        copied = max(1, _PART_BYTES // (self.size * p.groups * math.prod(p.stride)))
        self.parts = {
            True: [box(p, b.images, b.start, b.shape, gapless=True) for b in cut(p, most)],
            False: list(cut(p, min(copied, most))),
        }
        self.places = np.argsort(order(p, _WIDEST))  # where the kernel has the taps
        self.filler = np.zeros(p.groups, self.dtype)
        if not isinstance(p.boundary, str):
            self.filler[:] = p.boundary
        self.calls: dict[tuple[Any, ...], _Call] = {}

    def tall(self, across: int) -> int:
        """Rows of the kernel whose sums stay in registers, beside the places of y, a vector of x and one to spare."""
        return max(1, min(self.rows, (host().registers - 2 - across) // self.wide))

    def _row_cost(self, across: int) -> float:
        """Instructions for the columns of a row, with so many of them at once."""
        p, registers = self.problem, host().registers
        if across > max(1, registers - 2 - self.wide):
            return math.inf

        def step(n: int) -> float:
            seen = min(n * self.wide, (n - 1) * p.stride[-1] + self.wide)
            loads = n + self.runs * (seen + 3 * self.wide)
            return max(self.runs * self.wide * n, loads) + 10

        return p.output[-1] // across * step(across) + p.output[-1] % across * step(1)

    def call(self, number: int, part: Block, x: Array, y: Array, in_place: bool, threads: int) -> _Call:
        """What computes a part of so many, from x and y in this memory."""
        begin = first_channel(self.problem, x, self.lanes)
        key = (number, in_place, x.strides, y.strides, begin, threads)
        found = self.calls.get(key)
        if found is None:
            if len(self.calls) > 1000:  # of ever other memory orders
                self.calls.clear()
            found = self.calls[key] = _Call(self, part, x, y, in_place, begin, threads)
        return found


_method = functools.lru_cache(maxsize=256)(_Method)


class _Call:
    """What the kernel is called with for one part, in arrays of one memory order: tables, and ranges of channels."""

    def __init__(
        self, method: _Method, part: Block, x: Array, y: Array, in_place: bool, begin: int, threads: int
    ) -> None:
        p, self.begin, size = method.problem, begin, method.size
        found = tables(p, part, x, y, _WIDEST, in_place=in_place)
        columns, across = y.shape[-1], method.across
        down = max(1, method.chunk // (columns // across + columns % across))
        row_table = np.column_stack([found.inside, found.begins, found.lines_of_runs])
        kept = [np.ascontiguousarray(a, np.int64) for a in (row_table, found.run_table, found.column_table)]
        self.kernel = compiled(
            depthwise_gradient,
            dtype=method.dtype.name,
            tall=method.tall(across),
            wide=method.wide,
            narrower=method.narrower,
            stride=p.stride[-1],
            apart=part.spacing[-1],
            across=across,
        )
        self.looked = Looked(method.runs * across * method.wide)
        self.tables = [a.ctypes.data for a in kept]
        self.filler = method.filler.ctypes.data
        # Vectors of channels, shared out among the threads; the first may begin before the first channel.
        self.vectors = -(-(p.groups - begin) // method.lanes)
        pieces = min(threads, self.vectors)
        cuts = [self.vectors * i // pieces for i in range(pieces + 1)]
        self.pieces, sizes = [], []
        for low, high in itertools.pairwise(cuts):
            first = max(0, begin + low * method.lanes)
            channels = min(p.groups, begin + high * method.lanes) - first
            numbers = [len(row_table), down, columns, *found.within, begin if low == 0 else 0, channels]
            numbers += [method.rows * method.full, method.runs, p.taps, *found.steps]
            sizes.append(np.array(numbers, np.int64))
            self.pieces.append((first * size, low * method.lanes * p.taps * size, sizes[-1].ctypes.data))
        self.memory = [*kept, *sizes]  # what the addresses lead to

    def __call__(self, x: Array, y: Array, total: Array, threads: int) -> None:
        """Add the products to the total."""
        (collected,) = run.workspace("collected", total.size, dtype=total.dtype)
        images = x.ctypes.data, y.ctypes.data
        sums = collected.ctypes.data, total.ctypes.data

        def piece(which: tuple[int, int, int]) -> None:
            channels, taps, sizes = which
            x, y = (address + channels for address in images)
            collected, total = (address + taps for address in sums)
            self.kernel(x, self.filler, y, collected, total, *self.tables, self.looked.address, sizes)

        if len(self.pieces) == 1:
            piece(self.pieces[0])
        else:
            run.for_each(piece, self.pieces, threads)


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
        if p.group_in == p.group_out == 1:
            self._pair(x, y, out[:, 0], threads)
            return
        for c in range(p.group_in):
            for k in range(p.group_out):
                self._pair(x[:, c :: p.group_in], y[:, k :: p.group_out], out[k :: p.group_out, c], threads)

    def _pair(self, x: Array, y: Array, out: Array, threads: int) -> None:
        """The sums of one channel of every group of x with one of every group of y, (groups, *kernel)."""
        p, method = self.problem, self.method
        in_place = readable(x, method.dtype, 1)
        total: Array | None = None
        parts = method.parts[in_place]
        for number, part in enumerate(parts):
            some, outputs = x[part.images], y[part.outputs]
            if not in_place:
                some = self._copied("foot", some, part.foot_shape, functools.partial(self._fill, part), threads)
            if not readable(outputs, method.dtype, 1):
                outputs = self._copied("outputs", outputs, part.shape, assign, threads)
            call = method.call(number, part, some, outputs, in_place, threads)
            sums = np.zeros((call.vectors, p.taps, method.lanes), method.dtype)
            call(some, outputs, sums, threads)
            by_channel = sums.swapaxes(1, 2).reshape(-1, p.taps)[-call.begin : p.groups - call.begin]
            if method.runs > method.rows:
                by_channel = by_channel[:, method.places]
            if len(parts) == 1:
                store(out, by_channel.reshape(out.shape), None)
                return
            total = by_channel.astype(wide_dtype(method.dtype)) if total is None else total + by_channel
        assert total is not None
        store(out, total.reshape(out.shape), None)

    def _fill(self, part: Block, foot: Array, x: Array) -> None:
        """Write the footprint of a part."""
        fill_footprint(self.problem, x, part, foot)

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
