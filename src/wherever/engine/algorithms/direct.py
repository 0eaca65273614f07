"""Direct: summation by a generated kernel whose lanes are output channels, on images with their channels last."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.finish import NOTHING, Finish, alike
from wherever.engine.algorithms.forward import as_forward, finite, forward_weights, refuses_sums
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, box, cut, fill_footprint, last_axes
from wherever.engine.copies import assign
from wherever.engine.footprint import Footprint
from wherever.engine.kernels.compile import Entry, address, compiled, host
from wherever.engine.kernels.direct import CHUNK, LINE_BYTES, direct
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

_PART_BYTES = 1 << 19  # of the input of one part, where it is copied
_TURNED_BYTES = 1 << 21  # of the input, or of the result, where its channels lie first: a part costs many calls then
_SMALL_BYTES = 1 << 17  # of an image that is copied whole rather than in place but for its borders
_FEW_CHANNELS = 16  # up to which copies cost little beside the sums: images four times as large are copied
_SCRATCH_BYTES = 1 << 18  # of the copies of one part that are kept for the next call
_STREAMED_BYTES = 1 << 22  # of x, that no cache is taken to hold
_FEW_TERMS = 256
_WIDEST_RUN = 64  # channels below which a row of the kernel is summed as one run
_WAYS, _WAY_BYTES = 7, 4096  # of the first cache: so many lines a multiple of a way apart find room
# How much longer sums take whose places have so many lines in one set of it.
_CROWDED = (0, 0, 0, 0, 0, 0.03, 0.06, 0.1)
_FIRST_CACHE = 24 << 10  # bytes of it for weights
_MORE_PIECES = 4  # than rows of places have to be cut into, by how many times: shorter tiles are considered too


class Direct(Algorithm):
    """Direct summation at the speed of the machine's multiply-add units."""

    name = "direct"
    sums_directly = True

    def refuses(self, problem: ConvProblem) -> str | None:
        """The gradient by the weights, most transposes, and what is not a real floating-point number."""
        return refuses_sums(problem)

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The multiply-adds of whole tiles, and the copies of what has its channels first or looks over a border."""
        problem = as_forward(problem)
        size = working_dtype(problem.dtype).itemsize
        tile = self.tile(problem)
        given, problem = problem, thinned(problem)
        sums = tile.cost * host().lanes(working_dtype(problem.dtype).name) * size / 4 / machine.multiply_adds
        read = problem.batch * math.prod(problem.size) * problem.in_channels
        written = problem.batch * math.prod(problem.output) * problem.out_channels
        moved, part, calls = 0.0, _PART_BYTES, 1
        turned = read * (read > problem.batch * problem.in_channels > problem.batch)
        turned += written * (written > problem.batch * problem.out_channels > problem.batch)
        if problem.layout == "channels_first" and turned:
            if problem.size[-1] != given.size[-1]:  # places that lie apart are copied one by one
                turned += 3 * read
            moved, part, calls = 4.0 * turned, 4 * _TURNED_BYTES, 13
        elif any(before or after for before, after in problem.padding):
            moved = read
        parts = -(-moved * size // part)
        return sums + moved / machine.copy * size / 4 + (0.5 + calls * parts) * machine.call

    def workspace(self, problem: ConvProblem) -> int:
        """Input and result of one part, where they are copied."""
        problem = thinned(as_forward(problem))
        size = working_dtype(problem.dtype).itemsize
        place = size * (problem.in_channels * problem.taps + problem.out_channels)
        return min(2 * _TURNED_BYTES, problem.batch * math.prod(problem.output) * place) + place

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Pack the weights by blocks of output channels."""
        if problem.direction == "transpose" and not finite(operand):
            # An infinite weight would meet the zeros outside, and they are not there.
            return Im2colPrepared(problem, operand, bias)
        return _arranged(self, as_forward(problem)).with_weights(forward_weights(problem, operand), bias)

    # What an algorithm with another kernel does in another way.

    @property
    def prepared(self) -> type[DirectPrepared]:
        """Who computes it."""
        return DirectPrepared

    def tile(self, problem: ConvProblem) -> Tile:
        """The tile for all places of a problem, as if they lay in one image."""
        return _tile(problem)


def thinned(problem: ConvProblem) -> ConvProblem:
    """The problem of stride 1 that sees only the places that a kernel of one place reads."""
    thin = _thin(problem)
    if not any(thin):
        return problem
    size = tuple(m if t else n for n, m, t in zip(problem.size, problem.output, thin, strict=True))
    stride = tuple(1 if t else s for s, t in zip(problem.stride, thin, strict=True))
    padding = tuple((0, 0) if t else pair for pair, t in zip(problem.padding, thin, strict=True))
    return dataclasses.replace(problem, size=size, stride=stride, padding=padding)


def _thin(problem: ConvProblem) -> list[bool]:
    """The dimensions in which most places are read by no window, and no window looks over a border."""
    p = problem
    axes = zip(p.size, p.output, p.kernel, p.stride, p.padding, strict=True)
    return [r == 1 and s > 1 and before == 0 and 0 < m <= -(-n // s) for n, m, r, s, (before, _) in axes]


# Register tiles.


@dataclass(frozen=True)
class Tile:
    """A register tile: rows of places times vectors of output channels.

    Attributes
    ----------
    cost : float
        Of summing all places by it, in multiply-adds of the machine's widest vectors.
    down, across : int
        Rows of places, and places of a row.
    vectors, lanes : int
        Vectors of output channels, and how many numbers each has.
    """

    cost: float
    down: int
    across: int
    vectors: int
    lanes: int


@functools.lru_cache(maxsize=4096)
def _best_tile(
    counts: tuple[int, ...],
    outputs: int,
    terms: int,
    dtype: str,
    pitches: tuple[int, int],
    copy: float = math.inf,
    fixed: tuple[int, int] | None = None,
) -> Tile:
    """The tile that costs least on places of these counts.

    Sums, the vectors of weights and one number of x must fit the registers together. Few sums wait for each other; each
    tile has to be begun and stored; x that is read, and y that is written, in several passes moves between caches.
    Places that crowd the cache are copied, or are slow.

    Parameters
    ----------
    pitches : (int, int)
        Bytes from one row to the next, and from one place to the next.
    copy : float
        What a copy of all places costs.
    fixed : (int, int), optional
        Vectors and lanes, where they have been decided.
    """
    rows, columns = (1, 1, *counts)[-2:]
    others = math.prod(counts[:-2])
    target = host()
    full = target.lanes(dtype)
    tiles = []
    for v, lanes in [fixed] if fixed else _shapes(outputs, full, full * 16 // target.vector_bytes):
        most = max(1, (target.registers - 1) // v - 1)
        fewest = -(-columns // most)
        width = 0.65 if target.halves and lanes < full else 1.0
        passes = -(-outputs // (lanes * v))
        again = 8 if passes > 1 else 0
        beyond = terms * v * lanes * np.dtype(dtype).itemsize > _FIRST_CACHE
        for across in {-(-columns // pieces) for pieces in range(fewest, _MORE_PIECES * fewest + 1)}:
            down = 1
            if across == columns and rows > 1:
                down = max(1, most // columns)
                down = -(-rows // -(-rows // down))
            for height in {1, down}:
                places = height * across
                if target.halves:  # which load twice as fast as they multiply, but not from the second cache
                    term = max(places * v, (places + v) / 2, 5.5, 2.5 * v * lanes / full if beyond else 0)
                else:
                    term = max(places * v, places + v, 8)
                number = others * -(-rows // height) * -(-columns // across) * passes
                cost = number * (width * (term * terms + 2 * places * v) + 30 + again * places)
                lines = _lines_of_a_set(*pitches, height, across)
                cost += min(copy, cost / 2) if lines > _WAYS else _CROWDED[lines] * cost
                tiles.append(Tile(cost, height, across, v, lanes))
    return min(tiles, key=lambda tile: (tile.cost, tile.down * tile.across))


def _shapes(outputs: int, full: int, fewest: int) -> Iterator[tuple[int, int]]:
    """(vectors, lanes) that may hold so many output channels: vectors of half the width too, and of less for a few."""
    lanes = full
    while lanes >= fewest:
        if lanes >= full // 2 or outputs <= lanes:
            for vectors in range(1, min(-(-outputs // lanes), 6) + 1):
                yield vectors, lanes
        lanes //= 2


def _tile(problem: ConvProblem) -> Tile:
    """The tile for all places of a problem, as if they lay in one image."""
    p, dtype = problem, working_dtype(problem.dtype)
    counts = tuple(n for n in p.output if n > 1)
    if p.taps == 1 and set(p.stride) == {1}:
        counts = (math.prod(counts),)
    pixel = p.in_channels * dtype.itemsize
    row = pixel * p.size[-1] * p.stride[-2] if p.spatial > 1 else 0
    copy = 10 * math.prod(p.size) * p.group_in / host().lanes(dtype.name)
    pitches = row, pixel * p.stride[-1]
    tile = _best_tile(counts, p.group_out, p.group_in * p.taps, dtype.name, pitches, copy)
    return dataclasses.replace(tile, cost=tile.cost * p.batch * p.groups)


@functools.lru_cache(maxsize=4096)
def _lines_of_a_set(row: int, step: int, down: int, across: int) -> int:
    """How many lines of a tile with these pitches, in bytes, fall into one set of the first cache, at most."""
    lines = {(i * row + j * step) // LINE_BYTES for i in range(down) for j in range(across)}
    return max(collections.Counter(line % (_WAY_BYTES // LINE_BYTES) for line in lines).values())


def _chunk(taps: int, channels: int, terms: int) -> tuple[int, int]:
    """How many taps and channels are summed in registers: at most so many terms, in chunks of about one size."""
    if channels > terms:
        return 1, -(-channels // -(-channels // terms))
    most = min(taps, terms // channels)
    return -(-taps // -(-taps // most)), channels


_KNOWN, _KNOWN_TILES = 128, 1 << 13  # problems whose parts are kept, and tiles that they have at most
_known_parts: dict[tuple[Any, ...], list[_Part]] = {}


@functools.lru_cache(maxsize=512)
def _arranged(algorithm: Direct, problem: ConvProblem) -> DirectPrepared:
    """A problem without weights, for whichever come."""
    return algorithm.prepared(problem)


class DirectPrepared:
    """Weights as (groups, blocks of output channels, taps, channels, vectors * lanes)."""

    weight: Array
    bias: Array
    operands: tuple[int, int]
    ahead: int
    band: int
    finishes = True
    finish = NOTHING
    plain: DirectPrepared  # the same without a finish
    _plans: dict[tuple[Any, ...], list[_Part]]

    def __init__(self, problem: ConvProblem) -> None:
        self.given = problem
        self.problem = p = thinned(problem)
        steps = (s if thin else 1 for s, thin in zip(problem.stride, _thin(problem), strict=True))
        self.seen = last_axes(slice(None, None, step) for step in steps)
        self.dtype: np.dtype[Any] = working_dtype(p.dtype)
        self.arrange(problem)
        # What comes from beyond the cache is asked for where sums are too short to wait for it.
        read = p.batch * math.prod(p.size) * p.in_channels * self.dtype.itemsize
        self.fetch_x, self.fetch_y = read > _STREAMED_BYTES, p.group_in * p.taps <= _FEW_TERMS
        self.unbiased = np.zeros((self.groups, self.blocks * self.width), self.dtype)

    def with_weights(self, operand: Array, bias: Array | None) -> DirectPrepared:
        """The same with these weights."""
        new = copy.copy(self)
        new.weight = self.packed(operand)
        # Weights that the cache does not hold are asked for ahead of their use, and used for as many tiles as possible.
        streamed = new.weight.nbytes > Machine().cache // 2
        p, tile = self.problem, self.tile
        tiles = -(-p.batch * math.prod(p.output) // (tile.down * tile.across))
        new.ahead = -(-tile.vectors // max(1, tiles)) if streamed else 0
        new.band = Machine().cache if streamed else Machine().cache // 16  # of x and y, before the next weights
        new.bias = self.unbiased
        if bias is not None:
            new.bias = np.zeros_like(self.unbiased)
            given = np.zeros((self.groups, self.outputs), self.dtype)
            given.reshape(-1)[: self.problem.out_channels] = bias
            new.bias[:, : self.outputs] = given
        new.operands = (address(new.weight), address(new.bias))
        new._plans = {}
        return new

    def finished(self, finish: Finish) -> DirectPrepared:
        """The same, which finishes its results where it stores them."""
        new = copy.copy(self)
        new.plain, new.finish, new._plans = self, finish, {}
        return new

    # What another kernel does in another way.

    def arrange(self, given: ConvProblem) -> None:
        """Decide what a kernel sums at a time, and in which order."""
        p = self.problem
        self.tile = _tile(given)
        self.width = self.tile.vectors * self.tile.lanes  # of a block of output channels
        self.groups, self.outputs = p.groups, p.group_out  # groups of outputs that follow each other
        self.blocks = -(-p.group_out // self.width)
        # Where few channels lie side by side, what is summed in one run is a row of the kernel.
        self.joined = p.groups == 1 and p.dilation[-1] == 1 and p.kernel[-1] > 1 and p.in_channels <= _WIDEST_RUN
        self.taps = p.kernel[:-1] if self.joined else p.kernel
        self.run_length = p.taps * p.group_in // math.prod(self.taps)
        self.chunk = _chunk(math.prod(self.taps), self.run_length, CHUNK[self.dtype.name])

    def tile_of(self, counts: tuple[int, ...], pitches: tuple[int, int]) -> Tile:
        """The register tile for places of these counts, with these pitches in bytes."""
        p, fixed = self.problem, (self.tile.vectors, self.tile.lanes)
        return _best_tile(counts, p.group_out, p.group_in * p.taps, self.dtype.name, pitches, fixed=fixed)

    def offsets(self, spacing: tuple[int, ...], pitches: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """How far away each tap looks."""
        return offsets(self.taps, spacing, pitches)

    def kernel(self, tile: Tile, row: int, step: int, apart: int) -> Entry:
        """The kernel for this tile: numbers of x from row to row, from place to place, and from tap to tap."""
        return compiled(
            direct,
            dtype=self.dtype.name,
            step=step,
            row=row,
            down=tile.down,
            across=tile.across,
            vectors=tile.vectors,
            lanes=tile.lanes,
            ahead=self.ahead,
            fetch_x=self.fetch_x,
            fetch_y=self.fetch_y,
            activation=self.finish.activation,
            adds=self.finish.adds,
        )

    def sizes(self, taps: int) -> list[int]:
        """The sizes of the kernel behind those of tiles and blocks."""
        return [self.outputs, taps, self.run_length, *self.chunk, self.problem.group_in]

    def packed(self, operand: Array) -> Array:
        """The weights in the order in which the kernel reads them."""
        p, width = self.problem, self.width
        shape = (p.groups, self.blocks, *p.kernel, p.group_in, width)
        packed = run.unwritten(math.prod(shape), self.dtype).reshape(shape)
        given = operand.astype(self.dtype, copy=False).reshape(p.groups, p.group_out, p.group_in, *p.kernel)
        whole, rest = divmod(p.group_out, width)  # blocks, and output channels of one more
        blocks = given[:, : whole * width].reshape(p.groups, whole, width, p.group_in, *p.kernel)
        taps = range(3, given.ndim)  # may lie apart, or backwards
        assign(packed[:, :whole], blocks.transpose(0, 1, *(axis + 1 for axis in taps), 3, 2))
        if rest:
            packed[:, whole, ..., rest:] = 0
            assign(packed[:, whole, ..., :rest], given[:, whole * width :].transpose(0, *taps, 2, 1))
        return packed

    def run(self, source: Array, out: Array, threads: int, beside: Array | None = None) -> None:
        """Compute into ``out``; see `Prepared.run`, and `Finished.run`."""
        key = (source.strides, out.strides, source.dtype, source.flags.aligned, out.flags.aligned, threads)
        parts = self._plans.get(key)
        if parts is None:
            if len(self._plans) > 20:  # of ever other memory orders
                self._plans.clear()
            parts = self._plans[key] = self._known(key, source, out)
        operands = self.operands
        if self.finish is not NOTHING and not (alike(beside, out) and all(part.writes_in_place for part in parts)):
            self.plain.run(source, out, threads)
            self.finish.apply(out, beside, threads)
            return
        if len(parts) == 1 and parts[0].by_kernels_alone and threads == 1:
            parts[0].run(source, out, operands, 1, beside)
            return
        for part in parts:
            if len(part.shares) > 1:
                part.run(source, out, operands, threads, beside)
        rest = [part for part in parts if len(part.shares) == 1]
        run.for_each(lambda part: part.run(source, out, operands, 1, beside), rest, threads)

    def _known(self, key: tuple[Any, ...], source: Array, out: Array) -> list[_Part]:
        """The parts for arrays like these, which do not depend on the weights: other weights may have found them."""
        full = (type(self), self.given, self.finish, *key)
        parts = _known_parts.get(full)
        if parts is None:
            parts = list(self._parts(source, out, key[-1]))
            if sum(len(part.x_tiles) for part in parts) <= _KNOWN_TILES:
                if len(_known_parts) >= _KNOWN:
                    _known_parts.clear()
                _known_parts[full] = parts
        return parts

    def _parts(self, source: Array, out: Array, threads: int) -> Iterator[_Part]:
        """What there is to do for arrays of these strides, by at most so many threads."""
        p = self.problem
        x, y = (
            self._pitches(channels_first(p, source)[self.seen], p.size),
            self._pitches(channels_first(p, out), p.output),
        )
        inner = _interior(p, self.tile.across)
        whole, places = math.prod(p.output), math.prod(b - a for a, b in inner)
        small = _SMALL_BYTES * (4 if p.in_channels <= _FEW_CHANNELS else 1)
        large = p.batch * math.prod(p.size) * p.in_channels * self.dtype.itemsize > small
        bytes_of_place = self.dtype.itemsize * max(p.in_channels * math.prod(p.stride), 0 if y else p.out_channels)
        most = max(1, (_PART_BYTES if x and y else _TURNED_BYTES) // bytes_of_place)
        if x is not None and self._within_reach(x) and (places == whole or (large and 2 * places > whole)):
            start, shape = tuple(a for a, _ in inner), tuple(b - a for a, b in inner)
            if y is None:
                interior = list(_pieces(start, shape, most))
            else:
                interior = [(start, shape)]
            shares = 1 if len(interior) >= threads else threads
            every = slice(0, p.batch)
            for first, size in interior:
                yield _Part(self, box(p, every, first, size, gapless=True), x, y, True, shares)
            for image, (first, size) in itertools.product(range(p.batch), _border(p.output, inner, most)):
                yield _Part(self, box(p, slice(image, image + 1), first, size), x, y, False, 1)
        else:
            if p.batch * whole >= 8 * threads * self.tile.down * self.tile.across:
                most = min(most, -(-p.batch * whole // threads))
            blocks = list(cut(p, most))
            for block in blocks:
                yield _Part(self, block, x, y, False, 1 if len(blocks) >= threads else threads)

    def _pitches(self, a: Array, counts: tuple[int, ...]) -> tuple[int, ...] | None:
        """Pitches, in elements, of images and places of an array (n, channels, *places), if a kernel can work there."""
        size = self.dtype.itemsize
        if a.dtype != self.dtype or not a.flags.aligned or any(stride % size for stride in a.strides):
            return None
        if a.strides[1] != size and a.shape[1] > 1:
            return None
        return tuple(
            stride // size if n > 1 else 0
            for n, stride in zip((a.shape[0], *counts), (a.strides[0], *a.strides[2:]), strict=True)
        )

    def crowded(self, pitches: tuple[int, ...], tile: Tile) -> bool:
        """Whether places with these pitches, in numbers, fall into the same few sets of the first cache."""
        apart = [pitch * s * self.dtype.itemsize for pitch, s in zip(pitches, self.problem.stride, strict=True)]
        row, step = (0, *apart)[-2:]
        return _lines_of_a_set(row, step, tile.down, tile.across) > _WAYS

    def _within_reach(self, x: tuple[int, ...]) -> bool:
        """Whether the places of x lie in memory as the kernel wants them."""
        p = self.problem
        if p.size[-1] == 1:
            return not self.joined
        if self.crowded(x[1:], self.tile):
            return False
        return x[-1] == p.in_channels if self.joined else 0 < x[-1] <= 8 * p.in_channels


# Which outputs look over no border.


def _interior(problem: ConvProblem, across: int) -> list[tuple[int, int]]:
    """From which to which output windows lie inside x, in each dimension; in the last one, whole tiles."""
    p, found = problem, []
    for n, m, e, s, (before, _) in zip(p.size, p.output, p.extent, p.stride, p.padding, strict=True):
        low = min(m, -(-max(before, 0) // s))
        high = max(low, min(m, (n - e + before) // s + 1))
        found.append((low, high))
    low, high = found[-1]
    if low > 0:
        low = min(-(-low // across) * across, high)
    if high < p.output[-1]:
        high -= (high - low) % across
    found[-1] = low, high
    return found


def _border(
    output: tuple[int, ...], inner: Sequence[tuple[int, int]], most: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Boxes (start, shape) of at most so many places, where it can be, of all that lies around a box."""
    for dim, (low, high) in enumerate(inner):
        for first, last in ((0, low), (high, output[dim])):
            start = (*(a for a, _ in inner[:dim]), first, *(0 for _ in output[dim + 1 :]))
            shape = (*(b - a for a, b in inner[:dim]), last - first, *output[dim + 1 :])
            yield from _pieces(start, shape, most)


def _pieces(
    start: tuple[int, ...], shape: tuple[int, ...], most: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A box cut along its first dimensions into boxes (start, shape) of at most so many places."""
    if math.prod(shape) <= most:
        if 0 not in shape:
            yield start, shape
        return
    rest = math.prod(shape[1:])
    length = max(1, most // rest)
    length = -(-shape[0] // -(-shape[0] // length))
    for first in range(0, shape[0], length):
        size = min(length, shape[0] - first)
        if size * rest <= most or len(shape) == 1:
            yield (start[0] + first, *start[1:]), (size, *shape[1:])
        else:
            for inner_start, inner_shape in _pieces(start[1:], shape[1:], most):
                yield (start[0] + first, *inner_start), (size, *inner_shape)


# A part of the problem, and everything that can be known before a call.


@dataclass(frozen=True)
class _Axis:
    """One axis of the places of a part: how many there are, and how far apart, in x and in y."""

    count: int
    x: int
    y: int


def _joined(axes: Iterable[_Axis]) -> list[_Axis]:
    """The axes of more than one place; two that are one long axis both in x and in y are joined."""
    found: list[_Axis] = []
    for axis in axes:
        if axis.count == 1:
            continue
        if found and (found[-1].x, found[-1].y) == (axis.count * axis.x, axis.count * axis.y):
            found[-1] = _Axis(found[-1].count * axis.count, axis.x, axis.y)
        else:
            found.append(axis)
    return found


class _Copies:
    """Memory for a footprint and a result, and where it is."""

    def __init__(self, foot: Array, result: Array) -> None:
        self.foot, self.result = foot, result
        self.foot_address, self.result_address = address(foot), address(result)


class _Part:
    """A block of outputs: where its tiles begin, and how its footprint is put together.

    Parameters
    ----------
    x, y : tuple of int, or None
        Pitches of the given arrays, if a kernel can read, and write, there.
    in_place : bool
        Whether the tiles read x where it is, or a copy.
    threads : int
        That share the work.
    """

    def __init__(
        self,
        prepared: DirectPrepared,
        block: Block,
        x: tuple[int, ...] | None,
        y: tuple[int, ...] | None,
        in_place: bool,
        threads: int,
    ) -> None:
        p, size = prepared.problem, prepared.dtype.itemsize
        self.problem, self.dtype, self.seen = p, prepared.dtype, prepared.seen
        self.block, self.in_place = block, in_place
        self.writes_in_place = y is not None
        self.images = block.images.stop - block.images.start
        self.gather: Footprint | None = None
        self.foot_pixel = self.foot = self.result = 0  # the last two in elements: of the copies
        self.x_start = self.y_start = 0  # in bytes
        if in_place:
            assert x is not None
            x_pitches = x
            self.x_start = size * _position((block.images.start, *block.foot_start), x)
        else:
            self.foot_pixel = p.in_channels
            x_pitches = _dense((self.images, *block.foot_shape), self.foot_pixel)
            if not prepared.joined and prepared.crowded(x_pitches[1:], prepared.tile):
                self.foot_pixel += LINE_BYTES // size
                x_pitches = _dense((self.images, *block.foot_shape), self.foot_pixel)
            self.foot = self.images * x_pitches[0]
            if x is not None:
                rows = np.arange(block.images.start, block.images.stop, dtype=np.int64) * x[0]
                self.gather = Footprint(p, block, rows, x[1:], p.in_channels, self.foot_pixel, prepared.dtype)
        if y is None:
            y_pitches = _dense((self.images, *block.shape), p.out_channels)
            self.result = self.images * y_pitches[0]
        else:
            y_pitches = y
            self.y_start = size * _position((block.images.start, *block.start), y)
        self.small = (self.foot + self.result) * size <= _SCRATCH_BYTES
        self.spare: list[_Copies] = []
        self.by_kernels_alone = y is not None and (in_place or self.gather is not None)

        steps = (x_pitches[0], *(s * pitch for s, pitch in zip(p.stride, x_pitches[1:], strict=True)))
        counts = (self.images, *block.shape)
        axes = _joined(_Axis(*axis) for axis in zip(counts, steps, y_pitches, strict=True))
        counts, (row, step) = tuple(axis.count for axis in axes), (0, 0, *(axis.x * size for axis in axes))[-2:]
        tile = prepared.tile_of(counts, (row, step))
        axes = [_Axis(1, 0, 0)] * (2 - len(axes)) + axes
        lengths = (*(1 for _ in axes[2:]), tile.down, tile.across)
        self.x_tiles = _corners([(a.count, a.x) for a in axes], lengths)
        self.y_tiles = _corners([(a.count, a.y) for a in axes], lengths)
        self.offsets = prepared.offsets(block.spacing, x_pitches[1:])
        row, step = axes[-2].x if tile.down > 1 else 0, axes[-1].x if tile.across > 1 else 0
        self.kernel = prepared.kernel(tile, row, step, block.spacing[-1] * x_pitches[-1])
        place = size * (p.in_channels * math.prod(p.stride) + p.out_channels)
        together = max(4, prepared.band // (place * tile.down * tile.across))
        rest = [*prepared.sizes(len(self.offsets)), axes[-2].y, axes[-1].y]
        self.shares = []
        for tiles, blocks in _shared(len(self.x_tiles), prepared.blocks, threads):
            span = [tiles.start, tiles.stop, together, prepared.groups, blocks.start, blocks.stop, prepared.blocks]
            self.shares.append(np.array([*span, *rest], np.int64))
        tables = [address(a) for a in (self.offsets, self.x_tiles, self.y_tiles)]
        self.calls = [(*tables, address(sizes)) for sizes in self.shares]

    def run(
        self, source: Array, out: Array, operands: tuple[int, int], threads: int, beside: Array | None = None
    ) -> None:
        """Compute this part of ``out``, by the packed weights and the bias at these addresses."""
        # Where a kernel begins at the first number of an array, it finds that itself.
        x: Array | int = address(source) + self.x_start if self.x_start else source
        y: Array | int = address(out) + self.y_start if self.y_start else out
        copies: _Copies | None = None
        if not self.in_place or not self.writes_in_place:
            copies = self._copies()
            if not self.in_place:
                if self.gather is not None:
                    self.gather(x, copies.foot_address)
                else:
                    self._fill(source, copies.foot)
                x = copies.foot_address
            if not self.writes_in_place:
                y = copies.result_address
        given = (x, *operands, y) if beside is None else (x, *operands, y, address(beside) + self.y_start)
        if len(self.calls) == 1:
            self.kernel(*given, *self.calls[0])
        else:
            run.for_each(lambda call: self.kernel(*given, *call), self.calls, threads)
        if copies is None:
            return
        if not self.writes_in_place:
            p = self.problem
            whole = copies.result.reshape(self.images, *self.block.shape, p.out_channels)
            assign(channels_first(p, out)[self.block.outputs], np.moveaxis(whole, -1, 1))
        if self.small:
            self.spare.append(copies)

    def _copies(self) -> _Copies:
        """Memory for copies: where they are small, what an earlier call has left; no other call uses it meanwhile."""
        dtype = self.dtype
        if not self.small:
            return _Copies(*run.workspace("direct", self.foot, self.result, dtype=dtype))
        try:
            return self.spare.pop()
        except IndexError:
            return _Copies(np.empty(self.foot, dtype), np.empty(self.result, dtype))

    def _fill(self, source: Array, foot: Array) -> None:
        """Copy the footprint out of an array of any kind."""
        p = self.problem
        x = channels_first(p, source)[self.seen][self.block.images]
        pixels = foot.reshape(self.images, *self.block.foot_shape, self.foot_pixel)[..., : p.in_channels]
        fill_footprint(p, x, self.block, np.moveaxis(pixels, -1, 1))


def _dense(shape: tuple[int, ...], pixel: int) -> tuple[int, ...]:
    """Pitches of an array of places without gaps."""
    return tuple(pixel * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _position(index: Sequence[int], pitches: Sequence[int]) -> int:
    return sum(i * pitch for i, pitch in zip(index, pitches, strict=True))


def _corners(axes: list[tuple[int, int]], lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Where tiles of these lengths begin, row after row; the last of each axis ends where the axis ends."""
    corners = np.zeros(1, np.int64)
    for (count, pitch), length in zip(axes, lengths, strict=True):
        starts = np.minimum(np.arange(-(-count // length), dtype=np.int64) * length, count - length)
        corners = (corners[:, None] + starts * pitch).ravel()
    return corners


def offsets(taps: tuple[int, ...], spacing: tuple[int, ...], pitches: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """How far away each tap looks."""
    offsets = np.zeros(1, np.int64)
    for count, apart, pitch in zip(taps, spacing, pitches, strict=False):
        offsets = (offsets[:, None] + np.arange(count, dtype=np.int64) * apart * pitch).ravel()
    return offsets


def _shared(tiles: int, blocks: int, threads: int) -> list[tuple[range, range]]:
    """Ranges of tiles and of blocks of output channels for so many threads: tiles, unless there are few of them."""
    number, by_tiles = (tiles, True) if tiles >= 8 * threads or tiles >= blocks else (blocks, False)
    cuts = [number * i // min(threads, number) for i in range(min(threads, number) + 1)]
    pieces = [range(a, b) for a, b in itertools.pairwise(cuts)]
    return [(piece, range(blocks)) if by_tiles else (range(tiles), piece) for piece in pieces]
