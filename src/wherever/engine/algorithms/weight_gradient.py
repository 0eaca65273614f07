"""Outer: gradients by the weights, as outer products of the channels at every place, by a generated kernel."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.forward import refuses_sums
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, cut, fill_footprint, footprint, last_axes
from wherever.engine.copies import assign, readable
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.weight_gradient import outer_products
from wherever.engine.machine import Machine, longest_sum, most_sums, wide_dtype, working_dtype
from wherever.problem import Array, ConvProblem

_PART_BYTES = 16 << 20  # of both images of one part, where they are copied
_WIDE_BYTES = 24 << 20  # of the sum over several parts
_SUM_BYTES = 1 << 21  # of the sums that one call of the kernel adds to: they stay in the cache


class Outer(Algorithm):
    """The gradient by the weights: at every place, each channel of x times each channel of y, summed over places."""

    name = "outer"
    sums_directly = True

    def refuses(self, problem: ConvProblem) -> str | None:
        """Other directions, and what is not a real floating-point number."""
        return refuses_sums(problem, gradient=True)

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The multiply-adds of whole register tiles, and the copies of x, y and the weights."""
        p = _simplified(problem)
        dtype = working_dtype(p.dtype)
        tile = best_tile(dataclasses.replace(p, groups=1, in_channels=p.group_in, out_channels=p.group_out))
        places = p.batch * math.prod(p.output)
        lanes = host().lanes("float32")  # a vector of doubles holds half as many and takes as long
        sums = p.groups * places * tile.seconds * lanes / machine.multiply_adds
        last = problem.layout == "channels_last"
        moved = (math.prod(p.x_shape) if p.taps > 1 or not last else 0) + (0 if last else math.prod(p.y_shape))
        slow = 12 / min(12, p.group_in if last else p.output[-1])  # short runs
        copied = (moved * slow + 2 * math.prod(p.w_shape)) / machine.copy * dtype.itemsize / 4
        parts = -(-places // _places(p))
        return sums + copied + p.groups * (40 + 30 * parts) * machine.call

    def workspace(self, problem: ConvProblem) -> int:
        """Both images of one part, and the sums."""
        p = _simplified(problem)
        size = working_dtype(p.dtype).itemsize
        shape = tuple(min(n, _places(p)) for n in p.output)
        images = min(p.batch * math.prod(p.output), _places(p)) * p.group_out
        images += min(math.prod(footprint(p, shape)) * p.batch, _places(p) * math.prod(p.stride) * 2) * p.group_in
        return images * size + min(math.prod(p.w_shape) // p.groups * size, _WIDE_BYTES + _SUM_BYTES)

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Nothing is packed beforehand: the other operand is as large."""
        return OuterPrepared(problem, operand)


@dataclass(frozen=True)
class Tile:
    """A register tile of `outer_products`, and how its operands are chosen.

    Attributes
    ----------
    x_rows : bool
        Whether the rows are channels of x and the lanes channels of y; or the other way round.
    run : int
        Channels of x, times the taps of the last dimension where these lie side by side with them.
    taps : int
        All others.
    joined, rows, vectors, strands : int
        As for the kernel.
    seconds : float
        For each place, in vectors multiplied and added.
    """

    x_rows: bool
    run: int
    taps: int
    joined: int
    rows: int
    vectors: int
    strands: int
    seconds: float


@functools.lru_cache(maxsize=512)
def best_tile(problem: ConvProblem) -> Tile:
    """The cheapest tile for a problem of one group."""
    return min(_tiles(problem), key=lambda tile: tile.seconds)


def _tiles(p: ConvProblem) -> Iterator[Tile]:
    lanes, registers = host().lanes(working_dtype(p.dtype).name), host().registers
    # Few channels make one run with those of the neighbouring taps, if these are neighbours in memory.
    beside = p.in_channels < 16 and p.dilation[-1] == 1
    run, taps = (p.in_channels * p.kernel[-1], math.prod(p.kernel[:-1])) if beside else (p.in_channels, p.taps)
    for x_rows in (False, True):
        count, width = (run, p.out_channels) if x_rows else (p.out_channels, run)
        across = -(-width // lanes)
        for vectors in range(1, min(across, 4) + 1):
            for joined in (n for n in range(1, 7) if taps % n == 0 and (x_rows or n == 1)):
                most = (registers - 1 - vectors) // (vectors * joined)
                if most < 1:
                    continue
                blocks = -(-count // most)
                rows = -(-count // blocks)
                strands = max(1, min(4, 8 // (joined * rows * vectors)))

                def step(
                    vectors: int, joined: int = joined, rows: float = count / blocks, apart: int = strands
                ) -> float:
                    """One place of one tile: multiplications, or loads, or the wait for the sum before."""
                    sums = joined * rows
                    loads = sums + vectors
                    return max(sums * vectors, 1.15 * loads, 4 / apart) + 0.1 * loads + 2 + joined

                each = across // vectors * step(vectors) + across % vectors * step(1)
                seconds = taps // joined * blocks * each * (1.02 if x_rows else 1)
                yield Tile(x_rows, run, taps, joined, rows, vectors, strands, seconds)


def _simplified(p: ConvProblem) -> ConvProblem:
    """The same problem on every so-many-th place of x, in dimensions where the others are never looked at."""
    skipped = [_skips(p, dim) for dim in range(p.spatial)]
    if not any(skipped):
        return p

    def choose(fewer: tuple[Any, ...], given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a if skip else b for skip, a, b in zip(skipped, fewer, given, strict=True))

    ones = (1,) * p.spatial
    return dataclasses.replace(
        p,
        size=choose(p.output, p.size),
        stride=choose(ones, p.stride),
        dilation=choose(ones, p.dilation),
        padding=choose(((0, 0),) * p.spatial, p.padding),
    )


def _skips(p: ConvProblem, dim: int) -> bool:
    """Whether a dimension with a kernel of one place looks at nothing but every so-many-th place of x."""
    before, after = p.padding[dim]
    return p.kernel[dim] == 1 and before == 0 and after <= 0


def _places(p: ConvProblem) -> int:
    """Places of one part: as few as bound its sums, and its memory."""
    dtype = working_dtype(p.dtype)
    inputs = p.group_in * math.prod(min(s, r) for s, r in zip(p.stride, p.extent, strict=True))
    held = _PART_BYTES // (dtype.itemsize * max(1, inputs + p.group_out))
    return max(1, min(held, most_sums(dtype) * longest_sum(dtype)))


@functools.lru_cache(maxsize=32)
def offsets(shape: tuple[int, ...], steps: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Where the places of a box lie."""
    result = np.zeros(1, np.int64)
    for n, step in zip(shape, steps, strict=True):
        result = np.add.outer(result, np.arange(n, dtype=np.int64) * step).ravel()
    return result


def store_taps(out: Array, values: Array) -> None:
    """Write gradients (K, C, taps), in any memory order, to an array (K, C, *kernel)."""
    flat = out.reshape(values.shape)
    if np.may_share_memory(flat, out):
        assign(flat, values)
    else:  # memory that does not take the taps as one axis
        out[...] = values.reshape(out.shape)


class OuterPrepared:
    """The gradient of the output, and the tables by which it meets x."""

    def __init__(self, problem: ConvProblem, operand: Array) -> None:
        self.whole = problem
        simple = _simplified(problem)
        # Groups are problems of their own.
        self.problem = p = dataclasses.replace(
            simple, groups=1, in_channels=problem.group_in, out_channels=problem.group_out
        )
        self.operand = channels_first(problem, operand)
        self.dtype: np.dtype[Any] = working_dtype(p.dtype)
        self.tile = tile = best_tile(p)
        self.kernel = compiled(
            outer_products,
            dtype=self.dtype.name,
            joined=tile.joined,
            rows=tile.rows,
            vectors=tile.vectors,
            strands=tile.strands,
        )
        self.width = tile.vectors * host().lanes(self.dtype.name)
        self.chunk = longest_sum(self.dtype)
        self.nowhere = np.zeros(tile.taps, np.int64)

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        whole, p = self.whole, self.problem
        x = channels_first(whole, source)
        x = x[
            (
                ...,
                *(
                    slice(0, (n - 1) * s + 1, s) if _skips(whole, dim) else slice(None)
                    for dim, (n, s) in enumerate(zip(whole.output, whole.stride, strict=True))
                ),
            )
        ]
        parts = list(cut(p, _places(p)))
        for group in range(whole.groups):
            inputs = slice(group * p.in_channels, (group + 1) * p.in_channels)
            outputs = slice(group * p.out_channels, (group + 1) * p.out_channels)
            self._group(x[:, inputs], self.operand[:, outputs], out[outputs], parts, threads)

    def _group(self, x: Array, y: Array, out: Array, parts: list[Block], threads: int) -> None:
        p = self.problem
        cuts = self._cuts()
        # Output channels whose wide sums fit the memory; all of them, where no wide sums are needed.
        step = len(cuts) - 1
        if len(parts) > 1:
            each = p.in_channels * p.taps * wide_dtype(self.dtype).itemsize * cuts[1]
            step = min(step, max(1, _WIDE_BYTES // each))
        for first in range(0, len(cuts) - 1, step):
            some = cuts[first : first + step + 1]
            sums = None
            if len(parts) > 1:
                sums = np.zeros(self._sums_shape(some[-1] - some[0]), wide_dtype(self.dtype))
            for part in parts:
                self._part(x, y, out, part, some, sums, threads)
            if sums is not None:
                self._store(out[some[0] : some[-1]], sums)

    def _cuts(self) -> list[int]:
        """Where the register tiles' blocks of output channels begin, and where the last one ends."""
        p, tile = self.problem, self.tile
        if tile.x_rows:
            return [*range(0, p.out_channels, self.width), p.out_channels]
        blocks = -(-p.out_channels // tile.rows)
        tall = p.out_channels - blocks * (tile.rows - 1)
        return [block * tile.rows - max(0, block - tall) for block in range(blocks + 1)]

    def _part(
        self, x: Array, y: Array, out: Array, part: Block, cuts: list[int], sums: Array | None, threads: int
    ) -> None:
        """Sum over the places of one part: into the result if it is the only one, else added to the wide sums."""
        p, tile, size = self.problem, self.tile, self.dtype.itemsize
        foot = self._foot(x, part, threads)
        seen = self._seen(y[:, cuts[0] : cuts[-1]], part, threads)
        shape = (part.images.stop - part.images.start, *part.shape)
        x_steps = (foot.pitches[0], *(a * s for a, s in zip(foot.pitches[1:], p.stride, strict=True)))
        x_places, y_places = offsets(shape, x_steps), offsets(shape, seen.pitches)
        apart = (a * d for a, d in zip(foot.pitches[1:], part.spacing, strict=True))
        beside = tile.run != p.in_channels  # the taps of the last dimension are part of the run
        kernel = p.kernel[:-1] if beside else p.kernel
        x_taps = offsets(kernel, tuple(apart)[: len(kernel)])
        tables = [x_places, y_places, x_taps, self.nowhere]

        def some(span: range) -> None:
            """The sums of some output channels."""
            result = out[span.start : span.stop]
            # The sums of a kernel of one place are the result, as they lie.
            here = sums is None and p.taps == 1 and not tile.x_rows and out.dtype == self.dtype
            if here and result.flags.c_contiguous and result.flags.aligned:
                total = result.reshape(self._sums_shape(len(span)))
            else:
                (flat,) = run.workspace("sums", len(span) * tile.run * tile.taps, dtype=self.dtype)
                total = flat.reshape(self._sums_shape(len(span)))
            # Spans of lanes begin where blocks do.
            offset = span.start - cuts[0]
            if tile.x_rows:
                offset = offset // self.width * seen.block
            a, b, block = foot.array.ctypes.data, seen.array.ctypes.data + offset * size, seen.block
            addresses = [table.ctypes.data for table in tables]
            count, width = (tile.run, len(span)) if tile.x_rows else (len(span), tile.run)
            if not tile.x_rows:
                a, b, block = b, a, foot.block
                addresses = [addresses[i] for i in (1, 0, 3, 2)]
            blocks = -(-count // tile.rows)
            tall = count - blocks * (tile.rows - 1)
            pitches = [total.strides[axis] // size for axis in ((0, 1) if tile.x_rows else (1, 0))]
            numbers = [len(x_places), self.chunk, tile.taps, tall, blocks - tall, width, block, *pitches]
            sizes = np.array(numbers, np.int64)
            self.kernel(a, b, total.ctypes.data, *addresses, sizes.ctypes.data)
            if sums is not None:
                added = slice(span.start - cuts[0], span.stop - cuts[0])
                sums[(..., added) if tile.x_rows else added] += total
            elif not np.may_share_memory(total, result):
                self._store(result, total)

        run.for_each(some, self._spans(cuts, threads), threads)

    def _spans(self, cuts: list[int], threads: int) -> list[range]:
        """Output channels in ranges whose sums stay in the cache."""
        p, blocks = self.problem, len(cuts) - 1
        each = self.dtype.itemsize * p.in_channels * p.taps * cuts[1]
        pieces = min(blocks, max(-(-blocks * each // _SUM_BYTES), threads))
        return [range(cuts[blocks * i // pieces], cuts[blocks * (i + 1) // pieces]) for i in range(pieces)]

    def _sums_shape(self, channels: int) -> tuple[int, ...]:
        tile = self.tile
        return (tile.taps, tile.run, channels) if tile.x_rows else (channels, tile.taps, tile.run)

    def _store(self, out: Array, sums: Array) -> None:
        """Write the sums of some output channels to (k, C, *kernel)."""
        p, count = self.problem, len(out)
        if self.tile.x_rows:
            ordered = sums.reshape(p.taps, p.in_channels, count).transpose(2, 1, 0)
        else:
            ordered = sums.reshape(count, p.taps, p.in_channels).transpose(0, 2, 1)
        store_taps(out, ordered)

    def _foot(self, x: Array, part: Block, threads: int) -> _Image:
        """The footprint of a part: where it lies, if it can be, or else copied."""
        p, tile = self.problem, self.tile
        x = x[part.images]
        inside = all(a >= 0 and a + n <= m for a, n, m in zip(part.foot_start, part.foot_shape, p.size, strict=True))
        # Several taps look at a place: then it pays to bring the channels of a register tile together.
        few = p.taps == 1 or tile.x_rows or p.in_channels <= self.width
        if inside and part.spacing == p.dilation and readable(x, self.dtype, 1) and few:
            seen = x[last_axes(slice(a, a + n) for a, n in zip(part.foot_start, part.foot_shape, strict=True))]
            if tile.run == p.in_channels or seen.strides[-1] == p.in_channels * self.dtype.itemsize:
                return _Image.of(seen, self.width)
        return self._copied(
            "foot",
            x,
            part.foot_shape,
            not tile.x_rows and tile.run == p.in_channels,
            threads,
            lambda target, given: fill_footprint(p, given, part, target),
        )

    def _seen(self, y: Array, part: Block, threads: int) -> _Image:
        """The same for the outputs."""
        y = y[part.outputs]
        if readable(y, self.dtype, 1):
            return _Image.of(y, self.width)
        return self._copied("outputs", y, part.shape, self.tile.x_rows, threads, assign)

    def _copied(
        self,
        purpose: str,
        given: Array,
        shape: tuple[int, ...],
        in_blocks: bool,
        threads: int,
        copy: Callable[[Array, Array], None],
    ) -> _Image:
        """A copy with channels last; in blocks of as many channels as a register tile takes, if these are its lanes."""
        images, channels = given.shape[:2]
        width = min(self.width, channels) if in_blocks else channels
        starts = range(0, channels, width)
        (flat,) = run.workspace(purpose, len(starts) * images * math.prod(shape) * width, dtype=self.dtype)
        blocks = np.moveaxis(flat.reshape(len(starts), images, *shape, width), -1, 2)
        pieces = min(images, -(-threads // len(starts)))
        cuts = [images * i // pieces for i in range(pieces + 1)]
        work = [(start, slice(a, b)) for start in starts for a, b in itertools.pairwise(cuts)]

        def piece(what: tuple[int, slice]) -> None:
            start, some = what
            part = given[some, start : start + width]
            copy(blocks[start // width, some, : part.shape[1]], part)

        run.for_each(piece, work, threads)
        return _Image.of(blocks[0], blocks.strides[0] // self.dtype.itemsize if in_blocks else self.width)


@dataclass(frozen=True)
class _Image:
    """What the kernel reads: its pitches by image and dimension, and from one block of channels to the next."""

    array: Array
    pitches: tuple[int, ...]
    block: int

    @classmethod
    def of(cls, array: Array, block: int) -> _Image:
        """An array (n, channels, *places), of which neighbouring channels are neighbours in memory."""
        size = array.itemsize
        return cls(array, tuple(stride // size for stride in (array.strides[0], *array.strides[2:])), block)
