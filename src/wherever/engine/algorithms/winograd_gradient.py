"""Winograd gradient: gradients by the weights of small kernels, by fewer multiplications than sums over places."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.forward import refuses_sums
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.algorithms.weight_gradient import OuterPrepared, store_taps
from wherever.engine.algorithms.winograd import (
    Part,
    allowed_tiles,
    phase_taps,
    points_of,
    refuses_tiles,
    tiled,
    tiles_along,
    y_steps,
)
from wherever.engine.blocks import last_axes
from wherever.engine.copies import assign, readable
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.entry import address as where
from wherever.engine.kernels.winograd_gradient import winograd_gradient
from wherever.engine.machine import Machine, wide_dtype, working_dtype
from wherever.problem import Array, ConvProblem

_TOGETHER = {"f": 128, "d": 64}  # tiles that are summed in one go, at most
_FEWEST = 48  # such tiles, so that the transform of their sums costs little
_ROUNDS = {"f": 32, "d": 16}  # such sums that are added up in the type of the numbers, before a wider one
_ROUND_BYTES = 2 << 20  # of what is transformed of the tiles of one round
_PART_BYTES = 16 << 20  # of both images of one part, where they are copied
_SUM_BYTES = 24 << 20  # of the totals of one pass over the images


class WinogradGradient(Algorithm):
    """The gradient by the weights within tiles of y is a correlation too, with few outputs: F(taps, tile).

    What is summed over all tiles are products of transformed channels: of a 3x3 kernel and 4x4 places 36 instead of
    144. A gradient that is not finite is summed directly.
    """

    name = "winograd_gradient"
    sums_directly = False

    def refuses(self, problem: ConvProblem) -> str | None:
        """Other directions and types, most strides, kernels that are too large or too small."""
        refusal = refuses_sums(problem, gradient=True)
        if refusal is not None:
            return refusal
        if any(len(taps) > 1 for taps in phase_taps(problem)):
            return "tiles overlap where the dilation is a multiple of the stride"
        return refuses_tiles(problem)

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The cost of the best tiles."""
        return best_tiling(problem, machine).seconds

    def workspace(self, problem: ConvProblem) -> int:
        """What is transformed of one round, the totals, and copies of both images."""
        p, tiling = problem, best_tiling(problem, Machine())
        size = working_dtype(p.dtype).itemsize
        images = 0 if p.layout == "channels_last" else (math.prod(p.x_shape) + math.prod(p.y_shape)) * size
        totals = min(3 * math.prod(p.w_shape) // p.groups * size, _SUM_BYTES)
        return tiling.transformed + totals + min(images, _PART_BYTES)

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Nothing is transformed beforehand: the other operand is as large."""
        return WinogradGradientPrepared(problem, operand)


def _count(p: ConvProblem, tile: tuple[int, ...]) -> int:
    """How many tiles there are."""
    axes = zip(p.output, tile, y_steps(p), strict=True)
    return p.batch * math.prod(tiles_along(*axis) for axis in axes)


@dataclass(frozen=True)
class Tiling:
    """Tiles, and how they are worked on.

    Attributes
    ----------
    tile : tuple of int
        Places of y in a tile in each dimension.
    together : int
        Tiles that are transformed, and whose products are summed, before the next.
    rows, vectors : int
        Register tile of the products: channels of y, and vectors of channels of x.
    seconds : float
    transformed : int
        Bytes of what is transformed of the tiles together.
    """

    tile: tuple[int, ...]
    together: int
    rows: int
    vectors: int
    seconds: float
    transformed: int


@functools.lru_cache(maxsize=512)
def best_tiling(problem: ConvProblem, machine: Machine) -> Tiling:
    """The cheapest tiles."""
    return min((_tiling(problem, machine, tile) for tile in allowed_tiles(problem)), key=lambda tiling: tiling.seconds)


def _tiling(p: ConvProblem, machine: Machine, tile: tuple[int, ...]) -> Tiling:
    dtype = working_dtype(p.dtype)
    lanes, size, registers = host().lanes(dtype.name), dtype.itemsize, host().registers
    points = math.prod(points_of(p, tile))
    tiles = _count(p, tile)
    x_vectors, y_vectors = -(-p.group_in // lanes), -(-p.group_out // lanes)
    rows = min(lanes, 8 if registers > 16 else 4)
    most = (registers - 1) // (rows + 1)
    # As few passes as possible, of one width.
    vectors = -(-x_vectors // -(-x_vectors // most))
    tile_bytes = points * (x_vectors + y_vectors) * lanes * size
    together = min(tiles, _TOGETHER[dtype.char], max(_FEWEST, _ROUND_BYTES // tile_bytes))
    rounds = -(-tiles // together)
    together = -(-tiles // rounds)
    padded_in, padded_out = x_vectors * lanes, -(-p.group_out // rows) * rows
    sums = tiles * points * padded_in * padded_out / machine.multiply_adds
    # Transforms are written far apart; and those of the sums are read from the second cache.
    transforms = 2 * tiles * points * (x_vectors + y_vectors) * lanes * p.spatial
    transforms += rounds * points * padded_in * padded_out * (1 + p.spatial)
    images = (math.prod(p.x_shape) + math.prod(p.y_shape)) / p.groups
    moved = images * (0.5 if p.layout == "channels_last" else 4) + math.prod(p.w_shape) / p.groups * 3
    seconds = (sums + transforms / machine.transforms + moved / machine.copy) * size / 4 + 40 * machine.call
    seconds = p.groups * (seconds + tiles * machine.call / 64)
    return Tiling(tile, together, rows, vectors, seconds, (together | 1) * tile_bytes)


def _parts(p: ConvProblem, tiling: Tiling, in_place: bool) -> list[Part]:
    """A problem of one group in parts, whose totals are added up in a wider type."""
    dtype, tile = working_dtype(p.dtype), math.prod(tiling.tile)
    most = _ROUNDS[dtype.char] * tiling.together * tile  # places
    if not in_place:
        most = min(most, _PART_BYTES // ((p.in_channels + p.out_channels) * dtype.itemsize))
    # Whole tiles of every residue class of the outputs.
    least = [m * step for m, step in zip(tiling.tile, y_steps(p), strict=True)]
    shape = [-(-n // m) * m for n, m in zip(p.output, least, strict=True)]
    for dim, m in enumerate(least):
        rest = math.prod(shape[dim + 1 :])
        if shape[dim] * rest > most:
            shape[dim] = max(1, most // rest // m) * m
    images = max(1, most // math.prod(shape))
    whole = all(n >= m for n, m in zip(shape, p.output, strict=True))
    return tiled(p, tiling.tile, tuple(shape), images if whole else 1)


@functools.lru_cache(maxsize=512)
def _of_one_group(problem: ConvProblem) -> ConvProblem:
    """Groups are problems of their own."""
    return dataclasses.replace(problem, groups=1, in_channels=problem.group_in, out_channels=problem.group_out)


class WinogradGradientPrepared:
    """The gradient of the output, which is transformed tile by tile together with x."""

    def __init__(self, problem: ConvProblem, operand: Array, tiling: Tiling | None = None) -> None:
        self.whole = problem
        self.tiling = tiling = tiling or best_tiling(problem, Machine())
        self.problem = p = _of_one_group(problem)
        self.given = operand
        self.operand = channels_first(problem, operand)
        self.dtype: np.dtype[Any] = working_dtype(p.dtype)
        self.lanes = host().lanes(self.dtype.name)
        self.points = math.prod(points_of(p, tiling.tile))
        self.across, self.blocks = -(-p.in_channels // self.lanes), -(-p.out_channels // tiling.rows)
        self.kernel = compiled(
            winograd_gradient,
            dtype=self.dtype.name,
            tile=tiling.tile,
            taps=p.kernel,
            rows=tiling.rows,
            vectors=tiling.vectors,
        )
        self.filler = np.full(p.in_channels, 0 if isinstance(p.boundary, str) else p.boundary, self.dtype)
        self.nothing = np.zeros(p.out_channels, self.dtype)

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        p, x, y = self.problem, channels_first(self.whole, source), self.operand
        in_place = readable(x, self.dtype, 1) and readable(y, self.dtype, 1)
        parts = _parts(p, self.tiling, in_place)
        for group in range(self.whole.groups):
            inputs = slice(group * p.in_channels, (group + 1) * p.in_channels)
            outputs = slice(group * p.out_channels, (group + 1) * p.out_channels)
            if not self._group(x[:, inputs], y[:, outputs], out[outputs], parts, threads):
                OuterPrepared(self.whole, self.given).run(source, out, threads)
                return

    def _group(self, x: Array, y: Array, out: Array, parts: list[Part], threads: int) -> bool:
        """The gradient of one group; return whether it is finite."""
        p, rows, wide = self.problem, self.tiling.rows, wide_dtype(self.dtype)
        block = rows * p.taps * self.across * self.lanes * (self.dtype.itemsize + (len(parts) > 1) * wide.itemsize)
        step = max(1, _SUM_BYTES // block)
        finite = True
        for first in range(0, self.blocks, step):
            # A block of rows lies within one vector of channels of y.
            some = range(first, min(first + step, self.blocks))
            outputs = slice(some.start * rows, min(some.stop * rows, p.out_channels))
            shape = (len(some) * rows, p.taps, self.across * self.lanes)
            (total,) = run.workspace("total", math.prod(shape), dtype=self.dtype)
            total = total.reshape(shape)
            sums = np.zeros(shape, wide) if len(parts) > 1 else total
            for part in parts:
                finite = self._part(x, y[:, outputs], part, total, threads) and finite
                if sums is not total:
                    sums += total
            count = outputs.stop - outputs.start
            store_taps(out[outputs], sums[:count, :, : p.in_channels].transpose(0, 2, 1))
        return finite

    def _part(self, x: Array, y: Array, part: Part, total: Array, threads: int) -> bool:
        """The total of one part; return whether it is finite."""
        p, tiling, size, lanes = self.problem, self.tiling, self.dtype.itemsize, self.lanes
        x, low, y = self._seen(x, y, part)
        x_pitches, y_pitches = (tuple(a.strides[axis] // size for axis in (0, *range(2, a.ndim))) for a in (x, y))
        tables = part.table(low, x_pitches, y_pitches)
        steps = [pitch * axis.apart for pitch, axis in zip(x_pitches[1:], part.axes, strict=True)]
        steps += [pitch * axis.classes for pitch, axis in zip(y_pitches[1:], part.axes, strict=True)]
        outputs, blocks = y.shape[1], len(total) // tiling.rows
        held = tiling.together | 1  # an odd number of lines lie in different sets of a cache
        y_vectors = -(-outputs // lanes)
        counts = (held * self.points * self.across * lanes, held * self.points * y_vectors * lanes)
        transformed = run.workspace("transformed", *counts, dtype=self.dtype)
        v, d = map(where, transformed)
        apart = max(self.across, y_vectors) * lanes
        finite: list[bool] = []

        def call(tiles: range, moved: int, transforming: bool, some: range, adding: bool) -> None:
            """Transform some tiles, the first as number ``moved``, and multiply some blocks, or either."""
            counts = (self.points * apart, self.points * tiling.rows * tiling.vectors * lanes, lanes)
            edge, sums, odd = run.workspace("tiles", *counts, dtype=self.dtype)
            channels = (0, p.in_channels, 0, outputs) if transforming else (0, 0, 0, 0)
            span = (tiles.start, tiles.stop, tiling.together, held, *channels, some.start, some.stop, self.across)
            numbers = (*span, total.strides[0] // size, adding, *steps, apart)
            sizes = np.array(numbers, np.int64)
            images = (x, self.filler, y, self.nothing)
            place = moved * lanes * size
            work = (v + place, d + place, edge, sums, total, odd)
            self.kernel(*images, *work, *tables, sizes)
            finite.append(bool(odd.dot(odd) == 0))  # zeros, or NaN

        if threads == 1:
            with np.errstate(all="ignore"):
                call(range(part.count), 0, True, range(blocks), False)
            return all(finite)
        for start in range(0, part.count, tiling.together):
            tiles = range(start, min(start + tiling.together, part.count))
            cuts = [tiles.start + len(tiles) * i // threads for i in range(threads + 1)]
            shares = [range(a, b) for a, b in itertools.pairwise(cuts) if a < b]
            run.for_each(lambda some: call(some, some.start - start, True, range(0), True), shares, threads)  # noqa: B023
            cuts = [blocks * i // threads for i in range(threads + 1)]
            shares = [range(a, b) for a, b in itertools.pairwise(cuts) if a < b]
            run.for_each(lambda some: call(tiles, 0, False, some, start > 0), shares, threads)  # noqa: B023
        return all(finite)

    def _seen(self, x: Array, y: Array, part: Part) -> tuple[Array, tuple[int, ...], Array]:
        """What is read of x, and from which place on, and of y: where they lie, or copied with their channels last."""
        x, low = x[part.block.images], (0,) * (x.ndim - 2)
        if not readable(x, self.dtype, 1):
            low = part.low
            x = self._last(
                "images", x[last_axes(slice(a, max(a, b)) for a, b in zip(part.low, part.region, strict=True))]
            )
        y = y[part.block.outputs]
        return x, low, y if readable(y, self.dtype, 1) else self._last("outputs", y)

    def _last(self, purpose: str, given: Array) -> Array:
        """A copy of an array (images, channels, *S) with the channels last."""
        images, channels, *shape = given.shape
        (flat,) = run.workspace(purpose, given.size, dtype=self.dtype)
        copy = np.moveaxis(flat.reshape(images, *shape, channels), -1, 1)
        assign(copy, given)
        return copy
