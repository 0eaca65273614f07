"""Filter: a kernel for every channel, on images whose places lie side by side; through a generated kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import blocks, run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.each_channel import PART_BYTES, PIECES, EachChannel
from wherever.engine.algorithms.forward import as_forward
from wherever.engine.algorithms.protocol import Prepared
from wherever.engine.blocks import Block, box, cut, fill_footprint, grid
from wherever.engine.copies import assign, readable
from wherever.engine.kernels.compile import Entry, compiled, host
from wherever.engine.kernels.entry import address
from wherever.engine.kernels.filter import filter_rows, ring_shape
from wherever.engine.kernels.gather import NOWHERE
from wherever.engine.kernels.vector import STORED
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

STREAMED_BYTES = 8 << 20  # results from this size on leave the caches before anybody reads them
_WIDEST = 1 << 12  # places that a kernel of several rows may span


class Filter(EachChannel):
    """Images of few channels, or with channels first: lanes are neighbouring places of a row."""

    name = "filter"

    def refuses_forward(self, problem: ConvProblem) -> str | None:
        """Strides, more than two dimensions, kernels of very many rows."""
        if set(problem.stride) != {1}:
            return "neighbouring places of a result are neighbours in the image at stride 1 only"
        if problem.spatial > 2:
            return f"filters signals and images, not {problem.spatial} dimensions"
        if problem.spatial == 2 and problem.kernel[0] > 63:
            return f"its kernel would hold {problem.kernel[0]} rows at once"
        if problem.spatial == 2 and problem.kernel[0] > 1 and problem.extent[1] > _WIDEST:
            return f"its kernel would hold rows of {problem.extent[1]} places at once"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """Multiply-adds, most of them with a load of their own; and copies, where channels lie last."""
        problem = as_forward(problem)
        size = working_dtype(problem.dtype).itemsize
        down, across = _tile(problem)
        high = problem.kernel[0] if problem.spatial == 2 else 1
        loads = (down + high - 1) / (down * high) + 1 / across  # for each multiply-add
        lanes = host().lanes(working_dtype(problem.dtype).name)
        width = problem.output[-1]
        waste = -(-width // lanes) * lanes / width
        sums = problem.multiply_adds * waste * max(1.05, loads * 1.5) / machine.multiply_adds
        pixels = problem.batch * math.prod(problem.output) * (problem.in_channels + problem.out_channels)
        # Tall kernels read so many rows of the ring for each few that all come from the second cache.
        tall = max(0, high - 16) / down * problem.batch * math.prod(problem.output) * problem.out_channels
        # Where channels lie last each image is turned, by calls of Python.
        copied, calls = (3, 40) if problem.layout == "channels_last" and problem.out_channels > 1 else (0.5, 1.3)
        rows = problem.batch * problem.out_channels * math.prod(problem.output[:-1])
        return (sums + (copied * pixels + tall) / machine.copy) * size / 4 + (calls + 0.012 * rows) * machine.call

    def prepared(self, problem: ConvProblem, operand: Array, bias: Array | None) -> Prepared:
        """Weights as they are."""
        return FilterPrepared(problem, operand, bias)


def _tile(problem: ConvProblem) -> tuple[int, int]:
    """(rows, vectors) of the register tile of `filter_rows`: sums, a row of x and a weight fit the registers."""
    registers = host().registers
    if problem.spatial == 1 or problem.kernel[0] == problem.output[0] == 1:
        return 1, min(8, registers - 4)
    return (4, 3) if registers >= 32 else (4, 2)


@dataclass(frozen=True)
class _Part:
    """A part of the outputs, and the places of an image that it shows, by row and by column; -1: the number outside."""

    block: Block
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    before: int  # columns between the first that is seen and the first of the image
    low: int  # columns from here on, up to ``end``, show the image itself
    end: int


class _Call:
    """A call of the kernel: on the image and into the result at these addresses, or so many bytes behind others."""

    def __init__(self, kernel: Entry, x: int, y: int, ring: int, tables: tuple[npt.NDArray[np.int64], ...]) -> None:
        self.kernel, self.x, self.y, self.ring, self.tables = kernel, x, y, ring, tables
        self.addresses = tuple(table.ctypes.data for table in tables)

    def behind(self, x: int, y: int) -> _Call:
        """The same, counted from these addresses."""
        return _Call(self.kernel, self.x - x, self.y - y, self.ring, self.tables)


class _Ring:
    """Memory for a ring of rows, of so many bytes, from a line of the cache on."""

    def __init__(self, size: int) -> None:
        self.size, self.memory = size, run.fresh(size + 64, np.dtype(np.uint8))
        self.address = -(-address(self.memory) // 64) * 64


_rings: list[_Ring] = []  # that nobody uses: asking for a workspace takes as long as a small filter


class FilterPrepared:
    """Weights as (K, rows, columns). Images are read and written where they lie, whatever the boundary; if they can.

    ``out`` may also be of a type of integers of at most 4 bytes, where sums, which an int32 must hold, are truncated
    towards zero and taken modulo the range of the type.
    """

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        self.problem = problem
        self.dtype: np.dtype[Any] = working_dtype(problem.dtype)
        self.bias = np.zeros(problem.out_channels, self.dtype)
        if bias is not None:
            self.bias[:] = bias
        self.weight = np.ascontiguousarray(operand, self.dtype)
        self.outside = np.zeros(1, self.dtype)
        if not isinstance(problem.boundary, str):
            self.outside[:] = problem.boundary
        self.down, self.across = _tile(problem)
        self.fixed = [a.ctypes.data for a in (self.weight, self.bias, self.outside)]
        self._parts: dict[tuple[bool, bool, int], list[_Part]] = {}
        self._calls: dict[tuple[Any, ...], list[list[_Call]]] = {}

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        x_address, y_address = address(source), address(out)
        # What decides which kernel is called with which tables; where the arrays are, apart from that, does not.
        remainders = x_address % source.itemsize, y_address % 64
        key = (source.dtype, source.strides, out.dtype, out.strides, remainders, threads)
        calls = self._calls.get(key)
        if calls is None:
            p = self.problem
            x, y = channels_first(p, source), channels_first(p, out)
            in_place, direct = _readable(x), _readable(y) and y.dtype.kind in "fiu"
            direct = direct and (y.dtype == self.dtype or y.dtype.kind != "f")
            parts = self._all_parts(in_place, direct, threads)
            if not (in_place and direct):
                run.for_each(lambda part: self._copied(x, y, part, in_place, direct), parts, threads)
                return
            if len(self._calls) > 30:  # arrays of ever other memory orders
                self._calls.clear()
            size = y.nbytes
            calls = [self._of_part(x[part.block.images], y[part.block.outputs], part, size) for part in parts]
            calls = [[call.behind(x_address, y_address) for call in some] for some in calls]
            self._calls[key] = calls
        if len(calls) == 1:
            self._compute(calls[0], x_address, y_address)
        else:
            run.for_each(lambda some: self._compute(some, x_address, y_address), calls, threads)

    def _all_parts(self, in_place: bool, direct: bool, threads: int) -> list[_Part]:
        key = (in_place, direct, threads)
        if key not in self._parts:
            self._parts[key] = [self._part(part, in_place) for part in self._cut(in_place and direct, threads)]
        return self._parts[key]

    def _cut(self, in_place: bool, threads: int) -> list[Block]:
        """Blocks of outputs: a few for each thread, and small where they are copied."""
        p = self.problem
        places = max(1, PART_BYTES // (self.dtype.itemsize * max(p.in_channels, p.out_channels)))
        total = p.batch * math.prod(p.output)
        pieces = threads * PIECES if threads > 1 else 1
        if not in_place:
            return list(cut(p, max(1, min(places, -(-total // pieces)))))
        each = -(-pieces // p.batch)  # of an image
        lengths = list(p.output)
        # Whole tiles of rows; of a signal, so much that copying what two pieces see costs little.
        unit = self.down * p.dilation[0] if p.spatial == 2 else max(4 * p.kernel[0], 1024)
        lengths[0] = min(lengths[0], -(-lengths[0] // (each * unit)) * unit)
        return list(grid(p, tuple(lengths)))

    def _part(self, part: Block, in_place: bool) -> _Part:
        """What the kernel needs to know of a part: of the image itself, or of a copy of its footprint."""
        p = self.problem
        if in_place:
            part = box(p, part.images, part.start, part.shape, gapless=True)
            bounds = zip(part.foot_start, part.foot_shape, p.size, strict=True)
            shown = [blocks.places(start, length, size, p.boundary) for start, length, size in bounds]
            before, size = -part.foot_start[-1], p.size[-1]
        else:
            shown, before, size = [np.arange(length) for length in part.foot_shape], 0, part.foot_shape[-1]
        if p.spatial == 1:
            shown.insert(0, np.zeros(1, np.int64))
        length = len(shown[-1])
        low = min(max(before, 0), length)
        return _Part(part, shown[0], shown[1], before, low, max(low, min(before + size, length)))

    def _copied(self, source: Array, result: Array, part: _Part, in_place: bool, direct: bool) -> None:
        """Compute a part from a copy of what it sees, or into a copy of what it is."""
        p, block = self.problem, part.block
        x, target = source[block.images], result[block.outputs]
        if not in_place:
            foot = self._buffer("foot", len(x), p.in_channels, block.foot_shape)
            fill_footprint(p, x, block, foot)
            x = foot
        y = target if direct else self._buffer("result", len(x), p.out_channels, block.shape)
        self._compute(self._of_part(x, y, part, result.nbytes), 0, 0)
        if y is not target:
            assign(target, y)

    def _compute(self, calls: list[_Call], x: int, y: int) -> None:
        """Make some calls on images that begin at these addresses."""
        weight, bias, outside = self.fixed
        needed = max(call.ring for call in calls) * self.dtype.itemsize
        try:
            ring = _rings.pop()
        except IndexError:
            ring = _Ring(needed)
        if ring.size < needed:
            ring = _Ring(needed)
        for call in calls:
            call.kernel(x + call.x, weight, y + call.y, bias, outside, ring.address, *call.addresses)
        _rings.append(ring)

    def _buffer(self, purpose: str, images: int, channels: int, shape: tuple[int, ...]) -> Array:
        """Memory for (images, channels, *shape)."""
        (flat,) = run.workspace(purpose, images * channels * math.prod(shape), dtype=self.dtype)
        return flat.reshape(images, channels, *shape)

    def _of_part(self, x: Array, y: Array, part: _Part, out_bytes: int) -> list[_Call]:
        """The calls for a part: one for each image, and for each phase of rows that lie apart."""
        p, lanes = self.problem, host().lanes(self.dtype.name)
        if p.spatial == 1:
            x, y = x[:, :, None], y[:, :, None]
        spacing, apart = part.block.spacing[0] if p.spatial == 2 else 1, part.block.spacing[-1]
        x_channel, x_row = (stride // x.itemsize for stride in x.strides[1:3])
        y_channel, y_row = (stride // y.itemsize for stride in y.strides[1:3])
        vector = lanes * y.itemsize
        # Of one channel or row, NumPy's pitch may be anything.
        steps = [(y.strides[1], y.shape[1]), (y.strides[2] * spacing, y.shape[2])]
        even = all(step % vector == 0 or length == 1 for step, length in steps)
        streamed = even and out_bytes >= STREAMED_BYTES and y.shape[-1] >= 4 * lanes
        kernel = self._kernel(x.dtype.name, y.dtype.name, apart, streamed)
        slots, _, pitch = ring_shape(host(), self.dtype.name, self.high, (p.kernel[-1] - 1) * apart, self.down)
        ring = (slots * self.down + self.high) * pitch
        rows = np.where(part.rows < 0, NOWHERE, part.rows * x_row)
        calls = []
        for phase in range(min(spacing, y.shape[2])):
            seen = np.ascontiguousarray(rows[phase::spacing])
            count = -(-(y.shape[2] - phase) // spacing)
            for image, sums in zip(x, y[:, :, phase:], strict=True):
                head = -sums.ctypes.data // y.itemsize % lanes if even else 0
                pitches = [x_channel, y_channel, y_row * spacing]
                numbers = [p.groups, p.group_out, count, y.shape[3], *pitches, head, part.low, part.end, part.before]
                tables = (seen, part.columns, np.array(numbers, np.int64))
                calls.append(_Call(kernel, image.ctypes.data, sums.ctypes.data, ring, tables))
        return calls

    @property
    def high(self) -> int:
        """Rows of the kernel."""
        return self.problem.kernel[0] if self.problem.spatial == 2 else 1

    def _kernel(self, source: str, result: str, apart: int, streamed: bool) -> Entry:
        return compiled(
            filter_rows,
            dtype=self.dtype.name,
            source=source,
            result=result,
            high=self.high,
            wide=self.problem.kernel[-1],
            apart=apart if self.problem.kernel[-1] > 1 else 1,
            down=self.down,
            across=self.across,
            streamed=streamed,
        )


def _readable(a: Array) -> bool:
    """Whether the kernel can work on an array (N, C, *size) where it lies."""
    return a.dtype.name in STORED and a.dtype.isnative and readable(a, a.dtype, -1)
