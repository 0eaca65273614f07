"""Panels: direct summation as matrix products of panels that are packed in the cache, on images with channels first."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.forward import as_forward, forward_weights, refuses_sums
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, box, cut, fill_footprint
from wherever.engine.copies import assign, readable
from wherever.engine.footprint import Footprint
from wherever.engine.kernels.compile import address, compiled, host
from wherever.engine.kernels.direct import CHUNK
from wherever.engine.kernels.panels import SPREAD, panels
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

_PART_BYTES = 1 << 20  # of the input of one part, where it looks over a border and is copied
_SCRATCH_BYTES = 1 << 16  # of the copies and panels of one part that are kept for the next call
_FEWEST_PLACES = 512  # of one part: they share one reading of the weights


class Panels(Algorithm):
    """Direct summation with neighbouring places as lanes; nothing is turned, and images of any memory order packed."""

    name = "panels"
    sums_directly = True

    def refuses(self, problem: ConvProblem) -> str | None:
        """The gradient by the weights, most transposes, and what is not a real floating-point number."""
        return refuses_sums(problem)

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The multiply-adds of whole tiles, packing, and copies of what looks over a border, or has channels last."""
        problem = as_forward(problem)
        dtype = working_dtype(problem.dtype)
        lanes, places = host().lanes(dtype.name), math.prod(problem.output)
        rows, vectors = _tile(problem.group_out, -(-places // lanes))
        terms = problem.group_in * problem.taps
        padded = -(-problem.group_out // rows) * rows
        columns = problem.batch * problem.groups * -(-places // lanes) * terms
        loads = max(1.0, (rows + vectors) / (2 * rows * vectors), 4 / (rows * vectors))
        # Rows of an image are packed in whole vectors, and cut once more where a tile ends.
        across = problem.output[-1] if set(problem.stride) != {1} or problem.taps > 1 else places
        ragged = (across / lanes + 1) / (across / lanes)
        packed = columns * min(ragged, lanes) * (3 + (problem.stride[-1] > 1) * 2 * min(problem.stride[-1], lanes))
        stored = problem.batch * problem.out_channels * places / lanes * (4 + 4 * -(-terms // CHUNK[dtype.name]))
        sums = (columns * padded * loads + packed + stored) * lanes / machine.multiply_adds
        moved = 0.0
        read = problem.batch * math.prod(problem.size) * problem.in_channels
        if any(before or after for before, after in problem.padding):
            moved += 2.0 * read
        if problem.layout == "channels_last":
            moved += 4.0 * (read * (problem.in_channels > 1))
            moved += 4.0 * problem.batch * places * problem.out_channels * (problem.out_channels > 1)
        parts = 1 + moved * dtype.itemsize // _PART_BYTES
        calls = 5 if problem.layout == "channels_last" and moved else 1
        return (sums + moved / machine.copy) * dtype.itemsize / 4 + (1 + calls * parts) * machine.call

    def workspace(self, problem: ConvProblem) -> int:
        """Panels, and input and result of one part, where they are copied."""
        problem = as_forward(problem)
        size = working_dtype(problem.dtype).itemsize
        place = size * (problem.in_channels * problem.taps + problem.out_channels)
        return Machine().cache + min(2 * _PART_BYTES, problem.batch * math.prod(problem.output) * place) + 64 * place

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Pack the weights by blocks of output channels."""
        if problem.direction == "transpose" and not np.isfinite(operand).all():
            # An infinite weight would meet the zeros outside, and they are not there.
            return Im2colPrepared(problem, operand, bias)
        return PanelsPrepared(as_forward(problem), forward_weights(problem, operand), bias)


@functools.lru_cache(maxsize=4096)
def _tile(outputs: int, wide: int) -> tuple[int, int]:
    """(output channels, vectors of places) of the register tile that wastes least on so many vectors of places.

    Sums, one vector of each column, and a weight must fit the registers together; few sums wait for each other.
    """
    registers = host().registers
    best = (math.inf, 1, 1)
    for vectors in range(1, min(wide, 6) + 1):
        most = min(max(1, (registers - 1) // vectors - 1), max(outputs, 1))
        blocks = -(-max(outputs, 1) // most)
        rows = -(-max(outputs, 1) // blocks)
        # Two loads go with one multiply-add; a column is loaded, and a sum stored, beside them.
        cost = blocks * max(rows * vectors, (rows + vectors) / 2 + 1, 6) / vectors
        best = min(best, (cost * (1 + 0.01 * abs(vectors - 3)), rows, vectors))
    return best[1], best[2]


class PanelsPrepared:
    """Weights as (groups, blocks of output channels, pairs of channel and tap, rows)."""

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        self.problem = p = problem
        self.dtype: np.dtype[Any] = working_dtype(p.dtype)
        self.lanes = host().lanes(self.dtype.name)
        self.rows, self.vectors = _tile(p.group_out, -(-math.prod(p.output) // self.lanes))
        self.blocks = -(-p.group_out // self.rows)
        self.terms = p.group_in * p.taps
        self.chunk = -(-self.terms // -(-self.terms // CHUNK[self.dtype.name]))
        self.weight = np.zeros((p.groups, self.blocks, self.terms, self.rows), self.dtype)
        self.bias = np.zeros((p.groups, self.blocks * self.rows), self.dtype)
        given = operand.astype(self.dtype, copy=False).reshape(p.groups, p.group_out, self.terms)
        for group, block in np.ndindex(p.groups, self.blocks):
            some = given[group, block * self.rows : (block + 1) * self.rows]
            assign(self.weight[group, block, :, : len(some)], some.T)
        if bias is not None:
            self.bias[:, : p.group_out] = bias.reshape(p.groups, p.group_out)
        step = p.stride[-1]
        self.kernel = compiled(
            panels,
            dtype=self.dtype.name,
            rows=self.rows,
            vectors=self.vectors,
            stride=step if step <= min(SPREAD, self.lanes) else 0,
        )
        self.operands = (address(self.weight), address(self.bias))
        # Of the panels that are packed together: beside them the cache holds the weights, or y; and what is read ahead.
        self.band = Machine().cache // (2 if self.weight.nbytes > Machine().cache // 4 else 8)
        self._plans: dict[tuple[Any, ...], list[_Part]] = {}

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        key = (source.strides, out.strides, source.dtype, source.flags.aligned, out.flags.aligned, threads)
        parts = self._plans.get(key)
        x, y = channels_first(self.problem, source), channels_first(self.problem, out)
        if parts is None:
            if len(self._plans) > 20:  # of ever other memory orders
                self._plans.clear()
            parts = self._plans[key] = list(self._parts(x, y, threads))
        if len(parts) == 1 and threads == 1:
            parts[0].run(x, y, 1)
            return
        for part in parts:
            if len(part.calls) > 1:
                part.run(x, y, threads)
        run.for_each(lambda part: part.run(x, y, 1), [part for part in parts if len(part.calls) == 1], threads)

    def _parts(self, x: Array, y: Array, threads: int) -> Iterator[_Part]:
        """What there is to do for arrays of these strides, by at most so many threads."""
        p = self.problem
        whole = box(p, slice(0, p.batch), (0,) * p.spatial, p.output, gapless=True)
        inside = all(a >= 0 and a + n <= m for a, n, m in zip(whole.foot_start, whole.foot_shape, p.size, strict=True))
        if inside and readable(x, self.dtype, -1) and _columns(y, whole, self.dtype) is not None:
            yield _Part(self, whole, x, y, True, threads)
            return
        total = p.batch * math.prod(p.output)
        most = max(_FEWEST_PLACES, _PART_BYTES // (self.dtype.itemsize * p.in_channels * math.prod(p.stride)))
        most = min(most, max(_FEWEST_PLACES, -(-total // threads)))
        blocks = list(cut(p, most))
        for block in blocks:
            yield _Part(self, block, x, y, False, 1 if len(blocks) >= threads else threads)


def _columns(y: Array, block: Block, dtype: np.dtype[Any]) -> tuple[int, ...] | None:
    """Pitches of images and channels of y, and where the block begins, in elements, if its places lie side by side."""
    if y.dtype != dtype or not y.flags.aligned or any(stride % dtype.itemsize for stride in y.strides):
        return None
    images, channels, *places = (stride // dtype.itemsize for stride in y.strides)
    following = 1
    for count, pitch in zip(reversed(block.shape), reversed(places), strict=True):
        if count > 1 and pitch != following:
            return None
        following *= count
    start = block.images.start * images + sum(a * pitch for a, pitch in zip(block.start, places, strict=True))
    return images, channels, start


@dataclass(frozen=True)
class _Tables:
    """What the kernel is told of the columns of a part: tiles and segments (see the kernel); and the tiles' numbers."""

    tiles: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int64]
    wide: int
    all: int


def _tables(begins: npt.NDArray[np.int64], length: int, step: int, lanes: int, vectors: int) -> _Tables:
    """The tables for rows that begin at these places of x, each of so many columns."""
    columns = len(begins) * length
    wide = columns // (vectors * lanes)
    narrow = np.arange(wide * vectors * lanes, columns, lanes)
    tiles = np.concatenate([np.arange(wide) * (vectors * lanes), narrow])
    # Rows that follow each other in x, too, are one; a segment ends with its row, or with its tile.
    apart = np.flatnonzero(np.diff(begins) != length * step) + 1
    starts = np.union1d(tiles, apart * length)
    row, place = np.divmod(starts, length)
    number = np.searchsorted(tiles, starts, side="right") - 1
    segments = np.stack([starts - tiles[number], begins[row] + place * step, np.diff(starts, append=columns)], 1)
    first = np.searchsorted(starts, tiles)
    table = np.stack([np.append(tiles, columns), np.append(first, len(starts))], 1)
    return _Tables(np.ascontiguousarray(table, np.int64), np.ascontiguousarray(segments, np.int64), wide, len(tiles))


class _Part:
    """A block of outputs, and everything that can be known of it before a call.

    Parameters
    ----------
    x, y : array (N, channels, *S)
        Arrays like those that will be given.
    in_place : bool
        Whether x is packed from where it is; else a copy of the footprint is put together first.
    threads : int
        That share the work.
    """

    def __init__(
        self, prepared: PanelsPrepared, block: Block, x: Array, y: Array, in_place: bool, threads: int
    ) -> None:
        p, dtype = prepared.problem, prepared.dtype
        self.prepared, self.block = prepared, block
        images = block.images.stop - block.images.start
        self.x_start, self.y_start = 0, 0  # in bytes
        self.foot_shape: tuple[int, ...] | None = None
        self.gather: Footprint | None = None
        if in_place:
            pitches = tuple(stride // dtype.itemsize for stride in x.strides)
            look = sum(a * pitch for a, pitch in zip(block.foot_start, pitches[2:], strict=True))
            self.x_start = dtype.itemsize * (block.images.start * pitches[0] + look)
        else:
            self.foot_shape = (images, p.in_channels, *block.foot_shape)
            pitches = tuple(math.prod(self.foot_shape[axis + 1 :]) for axis in range(len(self.foot_shape)))
            if readable(x, dtype, -1):
                given = [stride // dtype.itemsize for stride in x.strides]
                each = np.arange(block.images.start, block.images.stop, dtype=np.int64)[:, None] * given[0]
                rows = (each + np.arange(p.in_channels) * given[1]).ravel()
                # Of one place only the pitch may be anything.
                pitch = (*given[2:-1], 1)
                self.gather = Footprint(p, block, rows, pitch, 1, 1, dtype)
        self.result_shape: tuple[int, ...] | None = None
        written = _columns(y, block, dtype)
        if written is None:
            self.result_shape = (images, p.out_channels, *block.shape)
            places = math.prod(block.shape)
            written = (p.out_channels * places, places, 0)
        self.y_start = written[2] * dtype.itemsize

        begins = np.zeros(1, np.int64)
        for number, step, far in zip(block.shape[:-1], p.stride, pitches[2:], strict=False):
            begins = (begins[:, None] + np.arange(number, dtype=np.int64) * step * far).ravel()
        self.tables = tables = _tables(begins, block.shape[-1], p.stride[-1], prepared.lanes, prepared.vectors)
        offsets = np.arange(p.group_in, dtype=np.int64) * pitches[1]
        for taps, apart, far in zip(p.kernel, block.spacing, (*pitches[2:-1], 1), strict=True):
            offsets = (offsets[:, None] + np.arange(taps, dtype=np.int64) * apart * far).ravel()
        self.offsets = offsets
        addresses = tuple(address(table) for table in (offsets, tables.tiles, tables.segments))
        # So many wide tiles are packed together that their panels stay in the cache.
        width = prepared.vectors * prepared.lanes
        together = max(1, prepared.band // (prepared.chunk * width * dtype.itemsize))
        self.sizes, self.calls = [], []
        for first, last, blocks in _shared(tables, prepared.blocks, threads):
            wide, narrow = range(min(first, tables.wide), min(last, tables.wide)), range(max(first, tables.wide), last)
            pitch_of = (pitches[0], written[0], p.groups, p.group_in * pitches[1])
            channels = (blocks.start, blocks.stop, prepared.blocks, p.group_out, written[1])
            counts = (prepared.terms, prepared.chunk, len(begins) * block.shape[-1])
            spans = (wide.start, wide.stop, together, narrow.start, max(narrow.start, narrow.stop), p.stride[-1])
            sizes = np.array([images, *pitch_of, *channels, *counts, *spans], np.int64)
            self.sizes.append(sizes)
            packed = (min(together, len(wide)) * width + len(narrow) * prepared.lanes) * prepared.chunk
            self.calls.append((packed, (*addresses, address(sizes))))
        # One piece of memory: the footprint, the result, and the panels, if there is one call.
        copies = (math.prod(shape or (0,)) for shape in (self.foot_shape, self.result_shape))
        needed = [*copies, self.calls[0][0] if len(self.calls) == 1 else 0]
        ends = [0, *itertools.accumulate(-(-number // 16) * 16 for number in needed)]
        self.begins, self.numbers = [dtype.itemsize * end for end in ends[:3]], ends[3]
        self.small = self.numbers * dtype.itemsize <= _SCRATCH_BYTES
        self.spare: list[tuple[Array, list[int]]] = []

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute this part of ``out``, both seen as (N, channels, *S)."""
        x: Array | int = address(source) + self.x_start if self.x_start else source
        y: Array | int = address(out) + self.y_start if self.y_start else out
        memory, (foot, result, panel) = self._memory()
        if self.foot_shape is not None:
            if self.gather is not None:
                self.gather(x, foot)
            else:
                images = source[self.block.images]
                fill_footprint(self.prepared.problem, images, self.block, self._held(memory, 0, self.foot_shape))
            x = foot
        if self.result_shape is not None:
            y = result
        if len(self.calls) == 1:
            self.prepared.kernel(x, *self.prepared.operands, y, panel, *self.calls[0][1])
        else:
            run.for_each(lambda call: self._share(x, y, *call), self.calls, threads)
        if self.result_shape is not None:
            assign(out[self.block.outputs], self._held(memory, 1, self.result_shape))
        if self.small:
            self.spare.append((memory, [foot, result, panel]))

    def _memory(self) -> tuple[Array, list[int]]:
        """Memory for copies and panels, and where they begin: if they are small, what an earlier call has left."""
        if self.small and self.spare:
            with contextlib.suppress(IndexError):  # another thread has taken it
                return self.spare.pop()
        if self.small:
            memory = np.empty(self.numbers, self.prepared.dtype)
        else:
            (memory,) = run.workspace("panels", self.numbers, dtype=self.prepared.dtype)
        begin = address(memory)
        return memory, [begin + start for start in self.begins]

    def _held(self, memory: Array, number: int, shape: tuple[int, ...]) -> Array:
        """The copy of the footprint (0), or of the result (1)."""
        start = self.begins[number] // memory.itemsize
        return memory[start : start + math.prod(shape)].reshape(shape)

    def _share(self, x: Array | int, y: Array | int, packed: int, addresses: tuple[int, ...]) -> None:
        """Some tiles, or some output channels, by one of several threads."""
        (panel,) = run.workspace("panels of a share", packed, dtype=self.prepared.dtype)
        self.prepared.kernel(x, *self.prepared.operands, y, address(panel), *addresses)


def _shared(tables: _Tables, blocks: int, threads: int) -> list[tuple[int, int, range]]:
    """Ranges of tiles, and of blocks of output channels, for so many threads: tiles, unless there are few of them."""
    if threads == 1 or tables.all >= 4 * threads or tables.all >= blocks:
        pieces = min(threads, tables.all)
        cuts = [tables.all * i // pieces for i in range(pieces + 1)]
        return [(a, b, range(blocks)) for a, b in itertools.pairwise(cuts)]
    pieces = min(threads, blocks)
    cuts = [blocks * i // pieces for i in range(pieces + 1)]
    return [(0, tables.all, range(a, b)) for a, b in itertools.pairwise(cuts)]
