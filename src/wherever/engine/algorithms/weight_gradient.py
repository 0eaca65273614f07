"""Outer: gradients by the weights, as outer products of the channels at every place, by a generated kernel."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.forward import refuses_sums
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, cut, fill_footprint, footprint, last_axes
from wherever.engine.copies import Exchange, assign, exchanging, readable
from wherever.engine.footprint import Footprint
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.entry import address as where
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
        return sums + copied + (10 + p.groups * 4 * parts) * machine.call

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
    flat = taps_joined(out, values.shape[2])
    if flat is not None:
        assign(flat, values)
    else:
        assign(out, values.reshape(out.shape))


def taps_joined(out: Array, taps: int) -> Array | None:
    """An array (K, C, *kernel) as (K, C, taps); None if its memory does not take the taps as one axis."""
    single = _pitch(list(zip(reversed(out.shape[2:]), reversed(out.strides[2:]), strict=True))) != 0
    return out.reshape(*out.shape[:2], taps) if single else None


class OuterPrepared:
    """The gradient of the output, and everything about its problem that does not depend on numbers."""

    def __init__(self, problem: ConvProblem, operand: Array) -> None:
        self.layout = _layout(problem)
        self.operand = operand

    @property
    def tile(self) -> Tile:
        """The register tile."""
        return self.layout.tile

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        layout, y = self.layout, self.operand
        key = (
            *(source.strides, y.strides, out.strides, source.dtype, y.dtype, out.dtype, threads),
            *(source.flags.aligned, y.flags.aligned, out.flags.aligned),
        )
        work = layout.known.get(key) or layout.work(key, source, y, out)
        work.run(source, y, out)


@functools.lru_cache(maxsize=256)
def _layout(problem: ConvProblem) -> _Layout:
    return _Layout(problem)


_KNOWN, _KNOWN_BYTES = 8, 1 << 20  # memory orders of a problem, and bytes of tables, that are kept
_SCRATCH_BYTES = 1 << 18  # of the copies and sums that are kept for the next call


class _Layout:
    """What is known of a problem: its tile, kernel and parts; and for arrays of some memory order, all tables."""

    def __init__(self, problem: ConvProblem) -> None:
        self.whole = problem
        # Groups are problems of their own.
        self.problem = p = dataclasses.replace(
            _simplified(problem), groups=1, in_channels=problem.group_in, out_channels=problem.group_out
        )
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
        skipped = [
            slice(0, (n - 1) * s + 1, s) if _skips(problem, dim) else slice(None)
            for dim, (n, s) in enumerate(zip(problem.output, problem.stride, strict=True))
        ]
        self.seen = (..., *skipped)
        self.parts = list(cut(p, _places(p)))
        self.cuts = self._cuts()
        self.known: dict[tuple[Any, ...], _Work] = {}

    def work(self, key: tuple[Any, ...], source: Array, y: Array, out: Array) -> _Work:
        """What there is to do for arrays like these; kept, unless its tables are large."""
        work = _Work(self, *self.arrays(source, y, 0), out[: self.problem.out_channels], key[6])
        if work.table_bytes <= _KNOWN_BYTES:
            if len(self.known) >= _KNOWN:
                self.known.clear()
            self.known[key] = work
        return work

    def arrays(self, source: Array, y: Array, group: int) -> tuple[Array, Array]:
        """The images of one group, with channels first, of x only those places that are looked at."""
        p = self.problem
        inputs = slice(group * p.in_channels, (group + 1) * p.in_channels)
        outputs = slice(group * p.out_channels, (group + 1) * p.out_channels)
        return channels_first(self.whole, source)[self.seen][:, inputs], channels_first(self.whole, y)[:, outputs]

    def _cuts(self) -> list[int]:
        """Where the register tiles' blocks of output channels begin, and where the last one ends."""
        p, tile = self.problem, self.tile
        if tile.x_rows:
            return [*range(0, p.out_channels, self.width), p.out_channels]
        blocks = -(-p.out_channels // tile.rows)
        tall = p.out_channels - blocks * (tile.rows - 1)
        return [block * tile.rows - max(0, block - tall) for block in range(blocks + 1)]

    def passes(self) -> list[list[int]]:
        """The cuts of output channels whose wide sums fit the memory; of all, where no wide sums are needed."""
        step = len(self.cuts) - 1
        if len(self.parts) > 1:
            p = self.problem
            each = p.in_channels * p.taps * wide_dtype(self.dtype).itemsize * self.cuts[1]
            step = min(step, max(1, _WIDE_BYTES // each))
        return [self.cuts[first : first + step + 1] for first in range(0, len(self.cuts) - 1, step)]

    def spans(self, cuts: list[int], threads: int) -> list[range]:
        """Output channels in ranges whose sums stay in the cache."""
        p, blocks = self.problem, len(cuts) - 1
        each = self.dtype.itemsize * p.in_channels * p.taps * cuts[1]
        pieces = min(blocks, max(-(-blocks * each // _SUM_BYTES), threads))
        return [range(cuts[blocks * i // pieces], cuts[blocks * (i + 1) // pieces]) for i in range(pieces)]

    def sums_shape(self, channels: int) -> tuple[int, ...]:
        """The order in which the kernel writes the sums of so many output channels."""
        tile = self.tile
        return (tile.taps, tile.run, channels) if tile.x_rows else (channels, tile.taps, tile.run)

    def ordered(self, sums: Array) -> Array:
        """The sums of some output channels as (k, C, taps)."""
        p = self.problem
        if self.tile.x_rows:
            return sums.reshape(p.taps, p.in_channels, -1).transpose(2, 1, 0)
        return sums.reshape(-1, p.taps, p.in_channels).transpose(0, 2, 1)

    def in_place(self, out: Array) -> tuple[int, int] | None:
        """From one tap, and one output channel, to the next in the result, if the kernel can write its sums there."""
        p, size, few = self.problem, self.dtype.itemsize, self.problem.in_channels
        if len(self.parts) > 1 or self.tile.x_rows or out.dtype != self.dtype or not out.flags.aligned:
            return None
        if any(stride % size for stride in out.strides):
            return None
        row, channel, *taps = (stride // size for stride in out.strides)
        axes = [(few, channel), *((n, pitch) for n, pitch in reversed(list(zip(p.kernel, taps, strict=True))))]
        lanes, rest = (axes[:2], axes[2:]) if self.tile.run != few else (axes[:1], axes[1:])
        if _pitch(lanes) not in (None, 1):
            return None
        tap = _pitch(rest)
        return None if tap == 0 else (tap or 0, row)


def _pitch(axes: list[tuple[int, int]]) -> int | None:
    """From one place to the next along axes (count, pitch), the fastest first; 0 if they are no single axis.

    None where there is but one place.
    """
    following = first = None
    for count, pitch in axes:
        if count == 1:
            continue
        if following is not None and pitch != following:
            return 0
        first = pitch if first is None else first
        following = count * pitch
    return first


class _Image:
    """What the kernel reads of one image in a part: it lies where it is given, or is copied with its channels last.

    Attributes
    ----------
    pitches : tuple of int
        By image and dimension, in elements.
    block : int
        From one block of channels, as wide as a register tile, to the next.
    start : int
        Bytes from where the given image begins to what is read, where it is not copied.
    numbers : int
        Of a copy; 0 where there is none.
    """

    def __init__(self, pitches: Sequence[int], block: int, start: int = 0, numbers: int = 0) -> None:
        self.pitches, self.block, self.start, self.numbers = tuple(pitches), block, start, numbers
        self.gathers: list[tuple[Footprint, int, int]] = []  # each with bytes from where both arrays begin
        self.copies: list[Callable[[Array, Array], None]] = []  # of arrays that `Footprint` cannot read

    def at(self, given: Callable[[], Array], address: int, copy: Array | None, begin: int, threads: int) -> int:
        """Where it is: of an image at an address, or in memory for a copy, of which some are made."""
        if not self.numbers:
            return address + self.start
        if len(self.gathers) == 1:
            gather, source, target = self.gathers[0]
            gather(address + source, begin + target)
        elif self.gathers:
            run.for_each(lambda each: each[0](address + each[1], begin + each[2]), self.gathers, threads)
        else:
            assert copy is not None
            image = given()
            run.for_each(lambda each: each(image, copy), self.copies, threads)
        return begin


def _in_place(given: Array, start: tuple[int, ...], block: int) -> _Image:
    """Places from ``start`` on (of image and dimension), where they lie."""
    strides = (given.strides[0], *given.strides[2:])
    begin = sum(i * stride for i, stride in zip(start, strides, strict=True))
    return _Image([stride // given.itemsize for stride in strides], block, begin)


def _copied(
    layout: _Layout,
    given: Array,
    part: Block,
    shape: tuple[int, ...],
    in_blocks: bool,
    threads: int,
    fill: Callable[[Array, Array], None] | None,
) -> _Image:
    """A copy of a part with channels last; in blocks of as many as a register tile takes, if these are its lanes.

    ``fill`` copies images (n, channels, *places); None: the footprint in x is copied, with what lies outside.
    """
    p, dtype = layout.problem, layout.dtype
    images, channels = part.images.stop - part.images.start, given.shape[1]
    width = min(layout.width, channels) if in_blocks else channels
    starts = range(0, channels, width)
    each = images * math.prod(shape) * width
    pitches = [width * math.prod(shape[axis:]) for axis in range(len(shape) + 1)]
    copy = _Image(pitches, each if in_blocks else layout.width, 0, len(starts) * each)
    if fill is None and readable(given, dtype, 1):
        size = dtype.itemsize
        image, *others = (stride // size for stride in (given.strides[0], *given.strides[2:]))
        rows = np.arange(part.images.start, part.images.stop, dtype=np.int64) * image
        for start in starts:
            some = min(width, channels - start)
            gather = Footprint(p, part, rows, tuple(others), some, width, dtype)
            copy.gathers.append((gather, start * size, start // width * each * size))
        return copy
    pieces = min(images, -(-threads // len(starts)))
    cuts = [images * i // pieces for i in range(pieces + 1)]
    for start, (low, high) in itertools.product(starts, itertools.pairwise(cuts)):

        def piece(given: Array, flat: Array, start: int = start, some: slice = slice(low, high)) -> None:
            seen = given[part.images][some, start : start + width]
            blocks = np.moveaxis(flat.reshape(len(starts), images, *shape, width), -1, 2)
            target = blocks[start // width, some, : seen.shape[1]]
            if fill is None:
                fill_footprint(p, seen, part, target)
            else:
                fill(target, seen)

        copy.copies.append(piece)
    return copy


def _of_x(layout: _Layout, x: Array, part: Block, threads: int) -> _Image:
    """The footprint of a part."""
    p, tile = layout.problem, layout.tile
    inside = all(a >= 0 and a + n <= m for a, n, m in zip(part.foot_start, part.foot_shape, p.size, strict=True))
    # Several taps look at a place: then it pays to bring the channels of a register tile together.
    few = p.taps == 1 or tile.x_rows or p.in_channels <= layout.width
    beside = tile.run == p.in_channels or x.strides[-1] == p.in_channels * layout.dtype.itemsize
    if inside and part.spacing == p.dilation and readable(x, layout.dtype, 1) and few and beside:
        return _in_place(x, (part.images.start, *part.foot_start), layout.width)
    in_blocks = not tile.x_rows and tile.run == p.in_channels
    return _copied(layout, x, part, part.foot_shape, in_blocks, threads, None)


def _of_y(layout: _Layout, y: Array, part: Block, threads: int) -> _Image:
    """The same of the outputs."""
    if readable(y, layout.dtype, 1):
        return _in_place(y, (part.images.start, *part.start), layout.width)
    places = last_axes(slice(a, a + n) for a, n in zip(part.start, part.shape, strict=True))
    fill = lambda target, given: assign(target, given[places])  # noqa: E731
    return _copied(layout, y, part, part.shape, layout.tile.x_rows, threads, fill)


@dataclass(frozen=True)
class _Span:
    """Some output channels of a part, which one call of the kernel sums.

    Attributes
    ----------
    channels : slice
        Of the result.
    shift : int
        Bytes from the first output channel of the pass to these, in what the kernel reads of y.
    sizes : array
        That the kernel is called with.
    target : int
        Bytes from where the result begins, if the sums are written there.
    """

    channels: slice
    shift: int
    sizes: npt.NDArray[np.int64]
    target: int


class _PartWork:
    """A part of one pass over the output channels: its images, tables and spans."""

    def __init__(self, layout: _Layout, x: Array, y: Array, part: Block, cuts: list[int], threads: int) -> None:
        p, tile = layout.problem, layout.tile
        self.foot, self.seen = foot, seen = _of_x(layout, x, part, threads), _of_y(layout, y, part, threads)
        shape = (part.images.stop - part.images.start, *part.shape)
        x_steps = (foot.pitches[0], *(a * s for a, s in zip(foot.pitches[1:], p.stride, strict=True)))
        apart = [a * d for a, d in zip(foot.pitches[1:], part.spacing, strict=True)]
        # The taps of the last dimension may be part of the run.
        kernel = p.kernel[:-1] if tile.run != p.in_channels else p.kernel
        x_taps = offsets(kernel, tuple(apart)[: len(kernel)])
        self.tables = (offsets(shape, x_steps), offsets(shape, seen.pitches), x_taps, layout.nowhere)
        order = (0, 1, 2, 3) if tile.x_rows else (1, 0, 3, 2)
        self.addresses = tuple(self.tables[i].ctypes.data for i in order)
        self.places, self.cuts = len(self.tables[0]), cuts

    def span(self, layout: _Layout, channels: range, written: tuple[int, int] | None) -> _Span:
        """One call; ``written`` tells the pitches of taps and output channels in the result."""
        tile, size, offset = layout.tile, layout.dtype.itemsize, channels.start - self.cuts[0]
        count, width, block = len(channels), tile.run, self.foot.block
        tap, row = written or (tile.run, tile.taps * tile.run)
        target = channels.start * row * size if written else -1
        if tile.x_rows:
            offset = offset // layout.width * self.seen.block
            count, width, block = width, count, self.seen.block
            tap, row = tile.run * width, width
        blocks = -(-count // tile.rows)
        tall = count - blocks * (tile.rows - 1)
        numbers = [self.places, layout.chunk, tile.taps, tall, blocks - tall, width, block, tap, row]
        return _Span(slice(channels.start, channels.stop), offset * size, np.array(numbers, np.int64), target)


class _Call(NamedTuple):
    """A call of a kernel: pointers to places of x (0), y (1), the result (2), or copies and sums (3); and to tables."""

    kernel: Callable[..., None]
    moving: tuple[tuple[int, int], ...]
    fixed: tuple[int, ...]


class _Work:
    """All that is done for arrays of one memory order, by so many threads.

    Parameters
    ----------
    x, y : array (N, channels, *S)
        Of the first group, like those that will be given.
    out : array (K, C, *kernel)
        The same.
    """

    def __init__(self, layout: _Layout, x: Array, y: Array, out: Array, threads: int) -> None:
        p, size = layout.problem, layout.dtype.itemsize
        self.layout, self.threads = layout, threads
        groups = layout.whole.groups
        self.steps = [
            (g * p.in_channels * x.strides[1], g * p.out_channels * y.strides[1], g * p.out_channels * out.strides[0])
            for g in range(groups)
        ]
        written = layout.in_place(out)
        self.passes: list[tuple[list[int], list[tuple[_PartWork, list[_Span]]]]] = []
        most = [0, 0, 0]  # numbers of a copy of x, and of y, and of the sums of one call
        for cuts in layout.passes():
            spans = layout.spans(cuts, threads)
            parts = []
            for part in layout.parts:
                some = _PartWork(layout, x, y[:, cuts[0] : cuts[-1]], part, cuts, threads)
                parts.append((some, [some.span(layout, channels, written) for channels in spans]))
                sums = 0 if written else max(map(len, spans)) * layout.tile.run * layout.tile.taps
                most = [max(a, b) for a, b in zip(most, (some.foot.numbers, some.seen.numbers, sums), strict=True)]
            self.passes.append((cuts, parts))
        # One piece of memory for all of them, on lines of the cache.
        ends = [0, *itertools.accumulate(-(-number * size // 64) * 64 for number in most)]
        self.begins, self.bytes, self.numbers = ends[:3], ends[3], most
        self.spare: list[tuple[Array, int]] = []
        self.calls = self._calls(out)

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables; parts of one shape share them."""
        parts = [part for _, parts in self.passes for part, _ in parts]
        return sum({id(table): table.nbytes for part in parts for table in part.tables}.values())

    def _calls(self, out: Array) -> list[_Call] | None:
        """The calls of kernels that are all there is to do, one after the other; None if there is more."""
        if self.threads > 1 or len(self.passes) > 1 or len(self.passes[0][1]) > 1:
            return None
        layout, ((_, ((part, spans),)),) = self.layout, self.passes
        foot, seen, calls = part.foot, part.seen, []
        if foot.copies or seen.copies:
            return None
        stores: list[Exchange | None] = []
        for span in spans if spans[0].target < 0 else []:
            count = span.channels.stop - span.channels.start
            result = taps_joined(out[span.channels], layout.problem.taps)
            sums = layout.ordered(np.empty(layout.sums_shape(count), layout.dtype))
            stores.append(None if result is None else exchanging(result, sums))
        if None in stores:
            return None
        for x, y, result_start in self.steps:
            calls += [_Call(g, ((0, x + start), (3, target)), ()) for g, start, target in foot.gathers]
            a = (3, self.begins[0]) if foot.numbers else (0, x + foot.start)
            for number, span in enumerate(spans):
                b = (1, y + seen.start + span.shift)
                total = (2, result_start + span.target) if span.target >= 0 else (3, self.begins[2])
                operands = (a, b) if layout.tile.x_rows else (b, a)
                tables = (*part.addresses, span.sizes.ctypes.data)
                calls.append(_Call(layout.kernel, (*operands, total), tables))
                if span.target < 0:
                    store, target = stores[number], result_start + span.channels.start * out.strides[0]
                    assert store is not None
                    calls.append(_Call(store, (total, (2, target)), ()))
        return calls

    def run(self, source: Array, y: Array, out: Array) -> None:
        """Compute into ``out``."""
        memory: Array | None = None
        address = 0
        if self.bytes:
            memory, address = self._memory()
        begin = (where(source), where(y), where(out), address)
        if self.calls is not None:
            for kernel, moving, fixed in self.calls:
                kernel(*[begin[which] + offset for which, offset in moving], *fixed)
        else:
            with np.errstate(all="ignore"):  # sums that overflow or are not finite are data
                for group, steps in enumerate(self.steps):
                    starts = (begin[0] + steps[0], begin[1] + steps[1], begin[2] + steps[2])
                    self._group(group, starts, source, y, out, memory, address)
        if memory is not None and self.bytes <= _SCRATCH_BYTES:
            self.spare.append((memory, address))

    def _group(
        self,
        group: int,
        starts: tuple[int, int, int],
        source: Array,
        y: Array,
        out: Array,
        memory: Array | None,
        address: int,
    ) -> None:
        """Compute the gradient by the weights of one group."""
        layout = self.layout
        result = out[group * layout.problem.out_channels :]
        for cuts, parts in self.passes:
            sums = None
            if len(parts) > 1:
                sums = np.zeros(layout.sums_shape(cuts[-1] - cuts[0]), wide_dtype(layout.dtype))
            for part, spans in parts:
                self._part(part, spans, (source, y), group, starts, result, sums, memory, address)
            if sums is not None:
                store_taps(result[cuts[0] : cuts[-1]], layout.ordered(sums))

    def _memory(self) -> tuple[Array, int]:
        """Memory for copies and sums: where they are small, what an earlier call has left."""
        if self.bytes <= _SCRATCH_BYTES:
            with contextlib.suppress(IndexError):  # there is none, or another thread has taken it
                return self.spare.pop()
            memory = np.empty(self.bytes + 64, np.uint8)
        else:
            (memory,) = run.workspace("outer", self.bytes + 64, dtype=np.dtype(np.uint8))
        return memory, memory.ctypes.data + -memory.ctypes.data % 64

    def _view(self, memory: Array | None, address: int, number: int, count: int) -> Array:
        """The copy of x (0) or of y (1), or the sums (2)."""
        assert memory is not None
        start = address + self.begins[number] - where(memory)
        return memory[start : start + count * self.layout.dtype.itemsize].view(self.layout.dtype)

    def _part(
        self,
        part: _PartWork,
        spans: list[_Span],
        given: tuple[Array, Array],
        group: int,
        starts: tuple[int, int, int],
        out: Array,
        sums: Array | None,
        memory: Array | None,
        address: int,
    ) -> None:
        """Sum over the places of one part: into the result if it is the only one, else added to the wide sums."""
        layout, threads, first = self.layout, self.threads, part.cuts[0]
        foot, seen = part.foot, part.seen
        copies = [
            self._view(memory, address, number, image.numbers) if image.copies else None
            for number, image in enumerate((foot, seen))
        ]
        x = foot.at(lambda: layout.arrays(*given, group)[0], starts[0], copies[0], address + self.begins[0], threads)
        y = seen.at(
            lambda: layout.arrays(*given, group)[1][:, first : part.cuts[-1]],
            starts[1] + first * layout.dtype.itemsize,  # if it is read where it lies
            copies[1],
            address + self.begins[1],
            threads,
        )

        def some(span: _Span) -> None:
            """The sums of some output channels."""
            total: Array | None = None
            if span.target >= 0:
                target = starts[2] + span.target
            else:
                count = (span.channels.stop - span.channels.start) * layout.tile.run * layout.tile.taps
                if threads == 1:
                    total, target = self._view(memory, address, 2, count), address + self.begins[2]
                else:
                    (total,) = run.workspace("sums", count, dtype=layout.dtype)
                    target = total.ctypes.data
            a, b = (x, y + span.shift) if layout.tile.x_rows else (y + span.shift, x)
            layout.kernel(a, b, target, *part.addresses, span.sizes)
            if total is None:
                return
            total = total.reshape(layout.sums_shape(span.channels.stop - span.channels.start))
            if sums is not None:
                added = slice(span.channels.start - first, span.channels.stop - first)
                sums[(..., added) if layout.tile.x_rows else added] += total
            else:
                store_taps(out[span.channels], layout.ordered(total))

        if len(spans) == 1:
            some(spans[0])
        else:
            run.for_each(some, spans, threads)
