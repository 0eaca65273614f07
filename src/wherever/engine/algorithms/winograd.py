"""Winograd: small kernels by fewer multiplications than direct summation needs, on tiles, through generated kernels."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first, per_channel, store
from wherever.engine.algorithms.finish import NOTHING, Finish, alike
from wherever.engine.algorithms.forward import as_forward, finite, forward_weights, refuses_sums
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, fewest_pieces, footprint, fullness, gather, grid, last_axes, places
from wherever.engine.copies import assign, exchanging, readable
from wherever.engine.kernels.compile import Entry, compiled, host
from wherever.engine.kernels.cook_toom import MOST_POINTS
from wherever.engine.kernels.entry import address as where
from wherever.engine.kernels.winograd import OUTSIDE, Phases, active, tile_pitch, winograd, winograd_weights
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

_TILES = (2, 3, 4, 5, 6)  # outputs of a tile along one dimension that are considered
# Points along one dimension, by how many are transformed: errors multiply. In float64 the promise leaves less room.
_MOST_POINTS = {"f": {1: MOST_POINTS, 2: 7, 3: 6}, "d": {1: 6, 2: 6, 3: 6}}
_MOST_OF_ALL = {1: MOST_POINTS, 2: 42, 3: 144}  # of all dimensions together
_USUAL_POINTS = 6  # of a transform; with more its time grows with their square
_MOST_PHASES = 4  # of a stride, in all dimensions together
_STREAMED_TILES = 28  # at least so many tiles share one reading of the transformed weights
_ONCE_BYTES = 48 << 20  # of a workspace
_PART_BYTES = 2 << 20  # of the input of one part, and of its result where both have their channels first


class Winograd(Algorithm):
    """Winograd's minimal filtering F(m, r) in each dimension.

    A tile of m outputs of a kernel of r taps takes m + r - 1 multiplications instead of m r, in each of the dimensions.
    Rounding errors are those of the transforms: with the points used here (`cook_toom`) 1.5 to 3 times those
    of direct summation. A tile with a number that is not finite is summed directly.

    Where the dilation d is a multiple of the stride s, outputs that lie d / s apart read places of x that lie d apart:
    each residue class of the outputs is a convolution without stride and dilation, and its tiles lie on a wider grid.
    Without dilation, a stride s is a sum over the s phases of x, of which each meets every s-th tap: convolutions
    without stride of smaller kernels, whose products are added before they are transformed back.
    """

    name = "winograd"
    sums_directly = False

    def refuses(self, problem: ConvProblem) -> str | None:
        """Most strides, kernels that are too large or too small, what is not a real floating-point number."""
        refusal = refuses_sums(problem)
        if refusal is not None:
            return refusal
        axes = zip(problem.kernel, problem.stride, problem.dilation, strict=True)
        if any(r > 1 and d > 1 and d % s for r, s, d in axes):
            return "tiles overlap where there is no dilation, or where it is a multiple of the stride"
        if math.prod(map(len, phase_taps(problem))) > _MOST_PHASES:
            return f"adds up to {_MOST_PHASES} phases of a stride"
        return refuses_tiles(problem)

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The cost of the best tiles."""
        return best_tiling(as_forward(problem), machine).seconds

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """A copy in another order; transformed weights written, of more points than the kernel has taps."""
        forward, size = as_forward(problem), working_dtype(problem.dtype).itemsize
        points, pairs = _work(forward, best_tiling(forward, machine).tile), math.prod(problem.w_shape[:2])
        beyond = min(1.0, points * pairs * size / (24 * machine.cache))
        return (1.5 + 2.5 * beyond) * (problem.taps + points) * pairs * size / 4 / machine.copy

    def workspace(self, problem: ConvProblem) -> int:
        """Of one block: its input and output, and both transformed."""
        return best_tiling(as_forward(problem), Machine()).workspace

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Transform the weights."""
        if problem.direction == "transpose" and not finite(operand):
            return Im2colPrepared(problem, operand, bias)
        forward = as_forward(problem)
        arranged = self.arranged(forward)
        return arranged.with_weights(forward_weights(problem, operand), bias)

    def arranged(self, forward: ConvProblem) -> WinogradPrepared:
        """A forward problem without weights, for whichever come."""
        return _arranged(WinogradPrepared, forward, best_tiling(forward, Machine()))


class WinogradOnce(Winograd):
    """Winograd for weights that are used once: a block of output channels at a time is transformed, and used.

    What is transformed of all weights of a layer is several times as large as they are, and too large for the caches;
    to write it to memory, and to read it again, takes longer than the products with a few tiles. Of a block it stays in
    the cache. All tiles are transformed before, and wait for their products with each of the blocks.
    """

    name = "winograd_once"

    def refuses(self, problem: ConvProblem) -> str | None:
        """What `Winograd` refuses, phases of a stride, and too many tiles."""
        refusal = super().refuses(problem)
        if refusal is not None:
            return refusal
        forward = as_forward(problem)
        if math.prod(map(len, phase_taps(forward))) > 1:
            return "has no phases of a stride"
        if self.workspace(problem) > _ONCE_BYTES:
            return "transforms all tiles before any product, and here they are too many"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The cost of the best tiles, and of transforming the weights: never below that with weights prepared."""
        return max(once_tiling(as_forward(problem), machine).seconds, 1.01 * super().estimate(problem, machine))

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """Nothing: weights are looked at when they are used."""
        return 0.0

    def workspace(self, problem: ConvProblem) -> int:
        """All tiles transformed; weights, and their products, of one block; what is turned."""
        return once_tiling(as_forward(problem), Machine()).workspace

    def arranged(self, forward: ConvProblem) -> WinogradPrepared:
        """A forward problem without weights."""
        return _arranged(WinogradOncePrepared, forward, once_tiling(forward, Machine()))


def refuses_tiles(problem: ConvProblem) -> str | None:
    """Why no tile of a problem can be transformed, in words; None if one can."""
    dimensions = sum(r > 1 for r in _taps(problem))
    if not 1 <= dimensions <= 3:
        return f"transforms 1 to 3 dimensions, not {dimensions}"
    if not allowed_tiles(problem):
        kernel = "x".join(map(str, problem.kernel))
        return f"a kernel of {kernel} needs transforms that are too large, or that round too much"
    return None


def allowed_tiles(problem: ConvProblem) -> list[tuple[int, ...]]:
    """The tiles that the promise about errors, and memory, allow."""
    dimensions = sum(r > 1 for r in _taps(problem))
    most = _MOST_POINTS[working_dtype(problem.dtype).char][dimensions]
    options = [[1] if r == 1 else [m for m in _TILES if m + r - 1 <= most] for r in _taps(problem)]
    return [
        tile for tile in itertools.product(*options) if math.prod(points_of(problem, tile)) <= _MOST_OF_ALL[dimensions]
    ]


def phase_taps(problem: ConvProblem) -> list[list[int]]:
    """How many taps each phase of the stride has, in each dimension; one phase has all, where no more are needed."""
    axes = zip(problem.kernel, problem.stride, problem.dilation, strict=True)
    return [[r] if r == 1 or d % s == 0 else [-(-(r - q) // s) for q in range(min(r, s))] for r, s, d in axes]


def _taps(problem: ConvProblem) -> tuple[int, ...]:
    """Taps of the kernel that is transformed: of the largest phase."""
    return tuple(taps[0] for taps in phase_taps(problem))


def _work(problem: ConvProblem, tile: tuple[int, ...]) -> int:
    """Products of one tile and one channel: the points of all phases; short ones have none at infinity."""
    return math.prod(sum(m + r - 1 for r in taps) for m, taps in zip(tile, phase_taps(problem), strict=True))


def x_steps(problem: ConvProblem) -> tuple[int, ...]:
    """How far apart the places of x are that one tile reads; where a kernel has one tap, as far as outputs look."""
    axes = zip(problem.kernel, problem.stride, problem.dilation, strict=True)
    return tuple(s if r == 1 or d % s else d for r, s, d in axes)


def y_steps(problem: ConvProblem) -> tuple[int, ...]:
    """How many residue classes the outputs fall into, in each dimension: how far apart the outputs of a tile are."""
    return tuple(apart // s for apart, s in zip(x_steps(problem), problem.stride, strict=True))


def tiles_along(outputs: int, tile: int, classes: int) -> int:
    """How many tiles it takes for so many outputs of one dimension, each class by itself."""
    shorter, longer = divmod(outputs, classes)
    return (classes - longer) * -(-shorter // tile) + longer * -(-(shorter + 1) // tile)


@dataclass(frozen=True)
class Tiling:
    """Tiles, and how they are worked on.

    Attributes
    ----------
    tile : tuple of int
        Outputs of a tile in each dimension.
    shape : tuple of int
        Outputs of a part, whose input is read at once: in each dimension a multiple of the tile (of each class).
    images : int
        That a part takes together.
    together : int
        Tiles that are transformed, multiplied and transformed back before the next.
    rows, vectors : int
        Register tile of the products: tiles times vectors of output channels.
    seconds : float
    workspace : int
        Bytes.
    """

    tile: tuple[int, ...]
    shape: tuple[int, ...]
    images: int
    together: int
    rows: int
    vectors: int
    seconds: float
    workspace: int


@functools.lru_cache(maxsize=512)
def best_tiling(problem: ConvProblem, machine: Machine) -> Tiling:
    """The cheapest tiles."""
    tilings = (_tiling(problem, machine, tile) for tile in allowed_tiles(problem))
    return min(tilings, key=lambda tiling: tiling.seconds)


def points_of(problem: ConvProblem, tile: tuple[int, ...]) -> tuple[int, ...]:
    """Points that a tile is transformed to, in each dimension."""
    return tuple(m + r - 1 for m, r in zip(tile, _taps(problem), strict=True))


def _v_pixel(problem: ConvProblem, lanes: int) -> int:
    """Numbers from one point of a transformed tile to the next: whole vectors of the last of all phases."""
    phases = math.prod(map(len, phase_taps(problem)))
    return _pixel((phases - 1) * problem.group_in + -(-problem.group_in // lanes) * lanes, lanes)


def _pixel(channels: int, lanes: int) -> int:
    """Channels padded to whole vectors; many of them to one more, so that rows do not share the sets of a cache."""
    vectors = -(-channels // lanes)
    return (vectors + (vectors >= 4)) * lanes


def _tiling(problem: ConvProblem, machine: Machine, tile: tuple[int, ...]) -> Tiling:
    dtype = working_dtype(problem.dtype)
    lanes, size = host().lanes(dtype.name), dtype.itemsize
    points = math.prod(points_of(problem, tile))
    work, phases = _work(problem, tile), math.prod(map(len, phase_taps(problem)))
    v_pixel, m_pixel = _v_pixel(problem, lanes), _pixel(problem.group_out, lanes)
    tile_bytes = points * (v_pixel + m_pixel) * size
    weights = work * problem.group_in * problem.group_out
    classes = y_steps(problem)
    steps = [m * e for m, e in zip(tile, classes, strict=True)]  # outputs of one tile of each class
    along = [-(-n // step) for n, step in zip(problem.output, steps, strict=True)]

    # A part: as much of an image (or as many images) as may be read at once.
    def foot(counts: list[int]) -> int:
        return math.prod(footprint(problem, tuple(c * m for c, m in zip(counts, steps, strict=True)), problem.dilation))

    first = problem.layout == "channels_first"
    streamed = weights * size > machine.cache / 2

    def held(counts: list[int]) -> int:
        """Numbers that a part reads; and writes, where channels lie first and are turned, but rather few parts."""
        outputs = math.prod(c * step for c, step in zip(counts, steps, strict=True)) * problem.out_channels
        return foot(counts) * problem.in_channels + (outputs if first and not streamed else 0)

    counts, most = list(along), _PART_BYTES // size
    for dim, whole in enumerate(along):

        def fits(pieces: int, dim: int = dim, whole: int = whole) -> bool:
            counts[dim] = -(-whole // pieces)
            return held(counts) <= most

        counts[dim] = fewest_pieces(whole, fits)
    images = max(1, min(problem.batch, most // held(counts))) if counts == along else 1
    parts = -(-problem.batch // images) * math.prod(-(-n // c) for n, c in zip(along, counts, strict=True))
    shape = tuple(c * step for c, step in zip(counts, steps, strict=True))
    numbers = zip(shape, problem.output, tile, classes, strict=True)
    tiles = images * math.prod(tiles_along(min(n, most), m, e) for n, most, m, e in numbers)

    # As many tiles together as the cache holds; more where the weights do not fit and are read again for each of them.
    wanted = max(1, int(0.6 * machine.cache / tile_bytes))
    if streamed:
        wanted = max(wanted, _STREAMED_TILES * (1 if weights * size < 16 * machine.cache else 2))
    rounds = -(-tiles // wanted)
    rows, vectors = _register_tile(-(-tiles // rounds), -(-problem.group_out // lanes))
    together = -(-tiles // rounds // rows) * rows if rounds > 1 else tiles
    rounds = -(-tiles // together)

    worked = parts * rounds * -(-min(together, tiles) // rows) * rows * problem.groups
    padded_out = -(-problem.group_out // (vectors * lanes)) * vectors * lanes
    sums = worked * work * problem.group_in * padded_out * _loads(rows, vectors) / machine.multiply_adds
    seen = work * v_pixel / phases
    passes = sum(max(1.0, n / _USUAL_POINTS) ** 2 for n in points_of(problem, tile))
    transforms = worked * (seen + points * m_pixel) * passes / machine.transforms
    reading = parts * rounds * problem.groups * weights / machine.stream if streamed else 0.0
    places = parts * tiles * math.prod(tile)
    moved = places * (1.5 * phases * problem.in_channels + problem.out_channels) / machine.copy
    if problem.in_channels * math.prod(problem.size) * problem.batch * size > machine.cache:
        moved *= 2  # from behind it
    if first:
        moved += 2 * parts * images * held(counts) / machine.copy
    # The weights of phases are read with gaps, which no prefetcher follows as well.
    products = max(sums, reading) if phases == 1 else sums + reading / 2
    seconds = (products + transforms + moved) * size / 4 * fullness(problem.batch, images)
    seconds += parts * (6 + 3 * problem.groups) * machine.call
    outputs = tiles * math.prod(tile) * problem.out_channels
    workspace = together * tile_bytes + (images * foot(counts) * problem.in_channels + outputs) * size
    return Tiling(tile, shape, images, together, rows, vectors, seconds, workspace)


@functools.lru_cache(maxsize=512)
def once_tiling(problem: ConvProblem, machine: Machine) -> Tiling:
    """The cheapest tiles for weights that are used once."""
    tilings = (_once_tiling(problem, machine, tile) for tile in allowed_tiles(problem))
    return min(tilings, key=lambda tiling: tiling.seconds)


def _once_tiling(problem: ConvProblem, machine: Machine, tile: tuple[int, ...]) -> Tiling:
    dtype = working_dtype(problem.dtype)
    lanes, size, points = host().lanes(dtype.name), dtype.itemsize, math.prod(points_of(problem, tile))
    classes = y_steps(problem)
    steps = [m * e for m, e in zip(tile, classes, strict=True)]
    shape = tuple(-(-n // step) * step for n, step in zip(problem.output, steps, strict=True))
    axes = zip(problem.output, tile, classes, strict=True)
    tiles = problem.batch * math.prod(tiles_along(*axis) for axis in axes)
    outputs = -(-problem.group_out // lanes)
    # One vector at a time, where more of the transformed weights would not stay in the cache.
    each = points * problem.group_in * lanes * size
    rows, vectors = _register_tile(tiles, min(outputs, max(1, 2 * machine.cache // each)))
    worked = -(-tiles // rows) * rows * problem.groups
    padded_out = -(-outputs // vectors) * vectors * lanes
    v_pixel = _v_pixel(problem, lanes)
    sums = worked * points * problem.group_in * padded_out * _loads(rows, vectors) / machine.multiply_adds
    transforms = worked * points * (v_pixel + padded_out) * problem.spatial / machine.transforms
    weights = problem.groups * problem.group_in * padded_out
    prepared = weights * ((2 * problem.taps + points) / machine.copy + points * problem.spatial / machine.transforms)
    foot = math.prod(footprint(problem, shape, problem.dilation)) * problem.in_channels * problem.batch
    written = problem.batch * math.prod(shape) * problem.out_channels
    turned = foot + written if problem.layout == "channels_first" else 0
    moved = (1.5 * foot + written + 2 * turned) / machine.copy
    calls = 6 + problem.groups * (3 + 8 * padded_out // (vectors * lanes))
    seconds = (sums + transforms + prepared + moved) * size / 4 + calls * machine.call
    held = worked // problem.groups * points * (v_pixel + vectors * lanes) + turned
    workspace = (held + (points + problem.taps) * problem.group_in * vectors * lanes) * size
    return Tiling(tile, shape, problem.batch, tiles, rows, vectors, seconds, workspace)


def _register_tile(tiles: int, blocks: int) -> tuple[int, int]:
    """(tiles, vectors of output channels) of the products: what wastes least of both, and loads least."""
    favourite = 1 if host().halves else 2
    best = (math.inf, 1, 1)
    for vectors in range(1, min(blocks, 6) + 1):
        most = (host().registers - 1) // vectors - 1
        rows = -(-tiles // -(-tiles // most))
        waste = -(-tiles // rows) * rows / tiles * (-(-blocks // vectors) * vectors / blocks)
        seconds = waste * max(_loads(rows, vectors), 8 / (rows * vectors)) + 0.05 * abs(vectors - favourite)
        best = min(best, (seconds, rows, vectors))
    return best[1], best[2]


def _loads(rows: int, vectors: int) -> float:
    """How much longer the products take for what they load: a core that works in halves loads while it multiplies."""
    return max(1.0, (rows + vectors) / (rows * vectors) / (2 if host().halves else 1))


class Part:
    """One part of the problem: a block of outputs, and its tiles."""

    def __init__(self, problem: ConvProblem, tile: tuple[int, ...], block: Block) -> None:
        self.block, self.tile = block, tile
        self.images = block.images.stop - block.images.start
        self.phases = list(itertools.product(*(range(len(taps)) for taps in phase_taps(problem))))
        axes = zip(block.shape, tile, phase_taps(problem), problem.stride, x_steps(problem), strict=True)
        self.axes = [_Axis(*axis) for axis in axes]
        self.count = self.images * math.prod(len(axis.first) for axis in self.axes)
        seen = [
            places(start, n, size, problem.boundary)
            for start, n, size in zip(block.foot_start, block.foot_shape, problem.size, strict=True)
        ]
        self.seen = [np.where(axis.x < 0, -1, shown[axis.x]) for axis, shown in zip(self.axes, seen, strict=True)]
        # What of x is copied, where its channels lie first: from the first place that is seen to the last.
        there = [shown[shown >= 0] for shown in self.seen]
        self.low = tuple(int(shown.min(initial=size)) for shown, size in zip(there, problem.size, strict=True))
        self.region = tuple(int(shown.max(initial=-1)) + 1 for shown in there)
        self.tables: dict[tuple[Any, ...], tuple[npt.NDArray[np.int64], ...]] = {}

    def table(
        self, low: tuple[int, ...], x_pitches: tuple[int, ...], y_pitches: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.int64], ...]:
        """The tables of the kernel: where tiles are in x, from the place ``low`` on, and in y, with these pitches."""
        key = (low, x_pitches, y_pitches)
        if key not in self.tables:
            if len(self.tables) > 10:  # of ever other memory orders
                self.tables.clear()
            shown = [np.where(seen < 0, -1, seen - first) for seen, first in zip(self.seen, low, strict=True)]
            self.tables[key] = self._table(shown, x_pitches, y_pitches)
        return self.tables[key]

    def _table(
        self, shown: list[npt.NDArray[np.int64]], x_pitches: tuple[int, ...], y_pitches: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.int64], ...]:
        counts = (self.images, *(len(axis.first) for axis in self.axes))
        image, *tiles = np.unravel_index(np.arange(self.count), counts)
        firsts = [axis.first[tile] for axis, tile in zip(self.axes, tiles, strict=True)]
        phases = len(self.phases)
        rows = np.zeros((self.count, phases + 3 + len(firsts)), np.int64)
        for number, phase in enumerate(self.phases):
            met = [seen[q] for seen, q in zip(shown, phase, strict=True)]
            runs = [(axis.seen[q], axis.apart) for axis, q in zip(self.axes, phase, strict=True)]
            rows[:, number] = _corners(image * x_pitches[0], firsts, met, runs, x_pitches[1:])
        written, runs = [axis.y for axis in self.axes], [(axis.tile, axis.classes) for axis in self.axes]
        rows[:, phases] = _corners(image * y_pitches[0], firsts, written, runs, y_pitches[1:])
        rows[:, phases + 1], rows[:, phases + 2] = image * x_pitches[0], image * y_pitches[0]
        start = 0
        for dim, (first, seen) in enumerate(zip(firsts, shown, strict=True)):
            rows[:, phases + 3 + dim] = start + first
            start += seen.size
        # An entry is at the same place in both tables: y is repeated for every phase of x.
        repeated = [np.tile(axis.y, len(axis.x)) for axis in self.axes]
        return (
            rows,
            _distances([seen.ravel() for seen in shown], x_pitches[1:]),
            _distances(repeated, y_pitches[1:]),
        )


def _corners(
    image: npt.NDArray[np.int64],
    firsts: list[npt.NDArray[np.int64]],
    places: list[npt.NDArray[np.int64]],
    runs: list[tuple[int, int]],
    pitches: tuple[int, ...],
) -> npt.NDArray[np.int64]:
    """Where tiles begin, whose places in each dimension are a run of so many, so far apart; OUTSIDE if they are not."""
    corner, outside = image.copy(), np.zeros(len(image), bool)
    for first, place, (width, step), pitch in zip(firsts, places, runs, pitches, strict=True):
        corner += place[first] * pitch
        breaks = np.r_[0, np.cumsum((np.diff(place) != step) | (place[1:] < 0))]
        outside |= (place[first] < 0) | (breaks[first + width - 1] > breaks[first])
    return np.where(outside, OUTSIDE, corner)


def _distances(places: list[npt.NDArray[np.int64]], pitches: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """How far places are from the beginning, all dimensions one behind the other; OUTSIDE where there are none."""
    far = [np.where(place < 0, OUTSIDE, place * pitch) for place, pitch in zip(places, pitches, strict=True)]
    return np.concatenate(far)


def tiled(p: ConvProblem, tile: tuple[int, ...], shape: tuple[int, ...], images: int) -> list[Part]:
    """The parts of a problem, of so many outputs and images each; where tiles are few, kept for other weights."""
    return (_tiled_once if _few(p, tile) else _tiled)(p, tile, shape, images)


def _few(p: ConvProblem, tile: tuple[int, ...]) -> bool:
    return math.prod(-(-n // m) for n, m in zip((p.batch, *p.output), (1, *tile), strict=True)) <= _KEPT


def _tiled(p: ConvProblem, tile: tuple[int, ...], shape: tuple[int, ...], images: int) -> list[Part]:
    return [Part(p, tile, block) for block in grid(p, shape, images, gapless=True)]


_KEPT = 1 << 14  # tiles of a problem
_FAR = 16  # times the channels of a place: where places are farther apart, images are copied
_tiled_once = functools.lru_cache(maxsize=64)(_tiled)


class _Axis:
    """The tiles of a part along one dimension, as stretches of two lists of places: in its footprint and its outputs.

    Attributes
    ----------
    first : array of int
        Where the places of each tile begin in the lists; tiles of all classes that lie side by side follow each other.
    x, y : array of int
        Places in the footprint, of each phase of a stride, and among the outputs; -1 behind the last one.
    tile : int
        How many outputs a tile has.
    seen : list of int
        How many places of each phase it reads.
    classes, apart : int
        How far apart its outputs and these places are.
    """

    def __init__(self, outputs: int, tile: int, taps: list[int], stride: int, apart: int) -> None:
        self.tile, self.seen = tile, [tile + r - 1 for r in taps]
        self.apart, self.classes = apart, apart // stride
        first: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
        x: list[list[npt.NDArray[np.int64]]] = []
        y: list[npt.NDArray[np.int64]] = []
        begin = 0
        for residue in range(min(self.classes, outputs)):
            count = -(-(outputs - residue) // self.classes)
            tiles = -(-count // tile)
            place = np.arange(tiles * tile + taps[0] - 1)
            first.append((np.arange(tiles), begin + np.arange(tiles) * tile))
            x.append(
                [np.where(place < count + r - 1, residue * stride + q + place * apart, -1) for q, r in enumerate(taps)]
            )
            y.append(np.where(place < count, residue + place * self.classes, -1))
            begin += len(place)
        numbers, firsts = np.concatenate(first, 1)
        self.first = firsts[np.argsort(numbers, kind="stable")]
        self.x, self.y = np.concatenate(x, 1), np.concatenate(y)


def _spread(pitches: tuple[int, ...], apart: tuple[int, ...]) -> tuple[int, ...]:
    """How far places lie apart in memory that are so far apart in each dimension."""
    return tuple(pitch * step for pitch, step in zip(pitches, apart, strict=True))


def _arranged(kind: Callable[..., WinogradPrepared], problem: ConvProblem, tiling: Tiling) -> WinogradPrepared:
    """A problem without weights; kept, where its tables are small."""
    return _kept(kind, problem, tiling) if _few(problem, tiling.tile) else kind(problem, tiling)


@functools.lru_cache(maxsize=256)
def _kept(kind: Callable[..., WinogradPrepared], problem: ConvProblem, tiling: Tiling) -> WinogradPrepared:
    return kind(problem, tiling)


class WinogradPrepared:
    """Weights transformed, as (groups, point, block of output channels, phase, input channel, vectors * lanes)."""

    operand: Array
    given_bias: Array | None
    weight: Array
    bias: Array
    finishes = True
    finish = NOTHING
    plain: WinogradPrepared  # the same without a finish

    def __init__(self, problem: ConvProblem, tiling: Tiling) -> None:
        self.problem = p = problem
        self.dtype = working_dtype(p.dtype)
        self.tiling = tiling
        name = self.dtype.name
        self.lanes = lanes = host().lanes(name)
        points, phases = points_of(p, tiling.tile), phase_taps(p)
        self.points = math.prod(points)
        self.phases: Phases = tuple(
            itertools.product(*([(q, r < taps[0]) for q, r in enumerate(taps)] for taps in phases))
        )
        # How many products are added at each point.
        self.terms = np.array([p.group_in * len(active(self.phases, points, i)) for i in np.ndindex(points)], np.int64)
        self.width = tiling.vectors * lanes  # of a block of output channels
        self.blocks = -(-p.group_out // self.width)
        self.summed = len(self.phases) * p.group_in
        self.panel = self.points * self.blocks * self.summed * self.width  # numbers of a group's transformed weights
        self.v_pixel, self.m_pixel = _v_pixel(p, lanes), _pixel(self.held_blocks * self.width, lanes)
        self.transforms = [
            compiled(
                winograd_weights,
                dtype=name,
                tile=tiling.tile,
                taps=_taps(p),
                phases=self.phases,
                phase=number,
                vectors=tiling.vectors,
            )
            for number in range(len(self.phases))
        ]
        # The taps of each phase, as an index of kernels.
        split = [len(taps) > 1 for taps in phases]
        self.phase_taps = [
            last_axes(
                slice(q, None, s if several else None)
                for (q, _), s, several in zip(phase, p.stride, split, strict=True)
            )
            for phase in self.phases
        ]
        self.unbiased = np.zeros((p.groups, self.blocks * self.width), self.dtype)
        self.filler = np.full(p.group_in, 0 if isinstance(p.boundary, str) else p.boundary, self.dtype)
        self.parts = tiled(p, tiling.tile, tiling.shape, tiling.images)
        self._work: dict[tuple[Any, ...], list[_Work]] = {}  # does not depend on weights

    def kernel(self, x_pixel: int, y_pixel: int) -> Entry:
        """The kernel, for images whose places are so many numbers apart."""
        p, tiling = self.problem, self.tiling
        return compiled(
            winograd,
            dtype=self.dtype.name,
            tile=tiling.tile,
            taps=_taps(p),
            phases=self.phases,
            channels=p.group_in,
            outputs=p.group_out,
            x_pixel=x_pixel,
            y_pixel=y_pixel,
            v_pixel=self.v_pixel,
            m_pixel=self.m_pixel,
            sparse=x_steps(p)[-1] > 1,
            rows=tiling.rows,
            vectors=tiling.vectors,
            ahead=-(-tiling.vectors // -(-tiling.together // tiling.rows)),
            activation=self.finish.activation,
            adds=self.finish.adds,
        )

    @property
    def held_blocks(self) -> int:
        """How many blocks of output channels are multiplied by one call of the kernel."""
        return self.blocks

    def finished(self, finish: Finish) -> WinogradPrepared:
        """The same, which finishes its results where it stores them."""
        new = copy.copy(self)
        new.plain, new.finish, new._work = self, finish, {}
        return new

    def with_weights(self, operand: Array, bias: Array | None) -> WinogradPrepared:
        """The same with these weights."""
        new = copy.copy(self)
        new.operand, new.given_bias = operand, bias
        new.bias = self.unbiased
        if bias is not None:
            new.bias = np.zeros_like(self.unbiased)
            new.bias[:, : self.problem.group_out] = bias.reshape(self.problem.groups, -1)
        new.weight = self.transformed(self.by_group(operand))
        return new

    def by_group(self, operand: Array) -> Array:
        """The weights as (groups, K / groups, C / groups, *kernel), in the type of the sums."""
        p = self.problem
        return operand.astype(self.dtype, copy=False).reshape(p.groups, p.group_out, p.group_in, *p.kernel)

    def transformed(self, given: Array) -> Array:
        """All weights transformed."""
        p, size = self.problem, self.dtype.itemsize
        u = run.unwritten(p.groups * self.panel, self.dtype)
        for group in range(p.groups):
            self.transform(given[group], self.blocks, where(u) + group * self.panel * size)
        return u

    def transform(self, given: Array, blocks: int, u: int) -> None:
        """Transform some blocks of weights (k, C, *kernel) to an address."""
        p, size = self.problem, self.dtype.itemsize
        for kernel, taps in zip(self.transforms, self.phase_taps, strict=True):
            some = given[taps]
            if len(some) != blocks * self.width or not readable(some, self.dtype, 0):
                # Output channels are brought together first.
                shape = (*some.shape[2:], p.group_in, blocks * self.width)
                w = run.workspace("weights", math.prod(shape), dtype=self.dtype)[0].reshape(shape)
                w[..., len(some) :] = 0
                assign(w[..., : len(some)], some.transpose(*range(2, some.ndim), 1, 0))
                some = w.transpose(-1, -2, *range(p.spatial))
            sizes = np.array([p.group_in, blocks, *(stride // size for stride in some.strides[1:])], np.int64)
            kernel(some, u, sizes)

    @property
    def direct(self) -> Im2colPrepared:
        """Direct summation of what a transform would spoil."""
        return Im2colPrepared(self.problem, self.operand)

    def share(self, x: int, y: int, work: _Work, call: _Call, *beside: int) -> bool:
        """Compute some tiles of some output channels; return whether all results are finite."""
        last, size = call.scratch[-1], self.dtype.itemsize
        (memory,) = run.workspace("tiles", last + self.lanes, dtype=self.dtype)
        address, odd = where(memory), memory[last:]
        fixed = (*(address + start * size for start in call.scratch), *call.addresses, call.sizes)
        filler, weight, bias = self.filler, where(self.weight), where(self.bias)
        finite = True
        for in_x, in_weight, in_bias, in_y in work.groups:
            others = (other + in_y for other in beside)
            work.kernel(x + in_x, filler, weight + in_weight, bias + in_bias, y + in_y, *others, *fixed)
            finite = finite and bool(odd.dot(odd) == 0)  # zeros, or NaN
        return finite

    def run(self, source: Array, out: Array, threads: int, beside: Array | None = None) -> None:
        """Compute into ``out``; see `Prepared.run`, and `Finished.run`."""
        x, y = channels_first(self.problem, source), channels_first(self.problem, out)
        if self.finish is not NOTHING and (
            not alike(beside, out) or self.pitches(y, self.problem.out_channels) is None
        ):
            self.plain.run(source, out, threads)
            self.finish.apply(out, beside, threads)
            return
        key = (x.strides, y.strides, x.dtype, y.dtype, x.flags.aligned, y.flags.aligned, threads)
        work = self._work.get(key)
        # Parts for the threads; if there are too few of them, threads share the tiles or the output channels of each.
        within = 1 if len(self.parts) >= 2 * threads else threads
        if work is None:
            if len(self._work) > 10:  # of ever other memory orders
                self._work.clear()
            work = self._work[key] = [_Work(self, part, x, y, within) for part in self.parts]
        begin = (where(x), where(y), *(() if beside is None else (where(beside),)))
        finite: list[bool] = []
        run.for_each(
            lambda part: finite.append(part.run(self, x, y, begin, within)), work, threads if within == 1 else 1
        )
        if self.finish is not NOTHING and not all(finite):  # sums without a finish are among the others
            self.plain.run(source, out, threads)
            self.finish.apply(out, beside, threads)

    def shares(self, tiles: int, threads: int) -> list[tuple[range, range]]:
        """Ranges of tiles and of blocks of output channels: the tiles shared out, where there are enough; else both."""
        step = self.tiling.rows
        groups = -(-tiles // step)
        if threads == 1 or groups >= 2 * threads or self.problem.groups > 1 or self.blocks == 1:
            return [(piece, range(self.blocks)) for piece in run.pieces(tiles, step, threads)]
        pieces = min(threads, self.blocks)
        cuts = [self.blocks * i // pieces for i in range(pieces + 1)]
        return [(range(tiles), range(a, b)) for a, b in itertools.pairwise(cuts)]

    def sizes_of(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The sizes of each call of the kernel for a share."""
        return sizes

    def pitches(self, a: Array, channels: int) -> tuple[int, ...] | None:
        """Pitches of the images and dimensions of an array (n, channels, *S), if the kernel can work on it as it is."""
        size = self.dtype.itemsize
        images, channel, *places = a.strides
        if a.dtype != self.dtype or not a.flags.aligned or any(s % size for s in a.strides):
            return None
        apart = places[-1] if a.shape[-1] > 1 else channels * size
        if (channel != size and channels > 1) or not channels * size <= apart <= _FAR * channels * size:
            return None
        return (images // size, *(stride // size for stride in places))


class WinogradOncePrepared(WinogradPrepared):
    """Weights as they are, of which one block of output channels at a time is transformed."""

    finishes = False

    @property
    def held_blocks(self) -> int:
        """How many blocks of output channels are multiplied by one call of the kernel."""
        return 1

    def transformed(self, given: Array) -> Array:
        """The weights themselves."""
        return given

    def shares(self, tiles: int, threads: int) -> list[tuple[range, range]]:
        """All tiles and some blocks of output channels."""
        pieces = min(threads, self.blocks)
        cuts = [self.blocks * i // pieces for i in range(pieces + 1)]
        return [(range(tiles), range(a, b)) for a, b in itertools.pairwise(cuts)]

    def sizes_of(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Of the calls for each block: the first transforms the tiles; all find nothing but one block of weights."""
        first, last = sizes[4:6]
        each = np.repeat(sizes[None], last - first, axis=0)
        each[1:, 3] = 0
        each[:, 4] = np.arange(first, last)
        each[:, 5], each[:, 6] = each[:, 4] + 1, 1
        return each

    def share(self, x: int, y: int, work: _Work, call: _Call, *beside: int) -> bool:
        """Compute all tiles of some output channels; return whether all results are finite."""
        size, lanes = self.dtype.itemsize, self.lanes
        panel = self.points * self.summed * self.width
        memory, u = run.workspace("tiles", call.scratch[-1] + lanes, panel, dtype=self.dtype)
        address, weight, odd = where(memory), where(u), memory[call.scratch[-1] :]
        v, m, *rest = (address + start * size for start in call.scratch)
        filler, bias = self.filler, where(self.bias)
        finite = True
        for group, (in_x, _, in_bias, in_y) in enumerate(work.groups):
            for sizes in call.sizes:
                block = int(sizes[4])
                outputs = slice(block * self.width, (block + 1) * self.width)
                self.transform(self.weight[group, outputs], 1, weight)
                # The kernel counts blocks from the first of all.
                before = block * self.width * size
                arrays = (x + in_x, filler, weight - self.summed * before, bias + in_bias, y + in_y, v, m - before)
                work.kernel(*arrays, *rest, *call.addresses, sizes)
                finite = finite and bool(odd.dot(odd) == 0)  # zeros, or NaN
        return finite


@dataclass(frozen=True)
class _Call:
    """What the kernel is called with for a share of a part: sizes, where its workspaces begin, addresses of tables."""

    sizes: npt.NDArray[np.int64]
    scratch: tuple[int, ...]
    addresses: tuple[int, ...]


class _Work:
    """A part, and everything that can be known of its computation for arrays of one memory order.

    Where channels lie last, the kernel works on x and y themselves; else they are turned into memory, and back.

    Parameters
    ----------
    x, y : array (N, channels, *S)
        Arrays like those that will be given.
    threads : int
        That share the part.
    """

    def __init__(self, prepared: WinogradPrepared, part: Part, x: Array, y: Array, threads: int) -> None:
        p, block, size, tiling = prepared.problem, part.block, prepared.dtype.itemsize, prepared.tiling
        self.part = part
        x_pitches, y_pitches = prepared.pitches(x, p.in_channels), prepared.pitches(y, p.out_channels)
        # Where, in bytes: the images of x, or what is seen of them; the outputs of y.
        low = (0,) * p.spatial if x_pitches is not None else part.low
        self.x_start = block.images.start * x.strides[0] + _position(low, x.strides[2:])
        self.y_start = block.images.start * y.strides[0] + _position(block.start, y.strides[2:])
        # What is copied: of both the place in memory, and how it gets there.
        self.foot: tuple[int, ...] | None = None
        self.result: tuple[int, ...] | None = None
        self.seen = (block.images, slice(None), *(slice(a, max(a, b)) for a, b in zip(low, part.region, strict=True)))
        self.turn_in = self.turn_out = None
        numbers = 0
        if x_pitches is None:
            self.foot = (part.images, *x[self.seen].shape[2:], p.in_channels)
            x_pitches, numbers = _dense(self.foot), -(-math.prod(self.foot) // prepared.lanes) * prepared.lanes
            self.turn_in = exchanging(_channels_behind(np.empty(self.foot, prepared.dtype)), x[self.seen])
        self.result_start = numbers
        if y_pitches is None:
            self.result = (part.images, *block.shape, p.out_channels)
            y_pitches, numbers = _dense(self.result), numbers + math.prod(self.result)
            self.turn_out = exchanging(y[block.outputs], _channels_behind(np.empty(self.result, prepared.dtype)))
        self.copied = numbers
        x_pixel = _apart(x, size) if self.foot is None else p.in_channels
        y_pixel = _apart(y, size) if self.result is None else p.out_channels
        self.kernel = prepared.kernel(x_pixel, y_pixel)

        tables = (*part.table(low, x_pitches, y_pitches), prepared.terms)
        pitches = (*_spread(x_pitches[1:], x_steps(p)), *_spread(y_pitches[1:], y_steps(p)))
        self.calls = []
        for tiles, blocks in prepared.shares(part.count, threads):
            span = (tiles.start, tiles.stop, tiling.together, 1, blocks.start, blocks.stop, prepared.blocks)
            sizes = np.array([*span, *pitches, *(axis.x.shape[1] for axis in part.axes)], np.int64)
            sizes = prepared.sizes_of(sizes)
            held = -(-min(tiling.together, len(tiles)) // tiling.rows) * tiling.rows
            v, m = (held * tile_pitch(prepared.points, n, size) for n in (prepared.v_pixel, prepared.m_pixel))
            edge = max(prepared.points * x_pixel, (1 + prepared.finish.adds) * math.prod(tiling.tile) * y_pixel)
            ends = np.cumsum([v, m, -(-edge // prepared.lanes) * prepared.lanes])
            self.calls.append(_Call(sizes, (0, *ends.tolist()), tuple(array.ctypes.data for array in tables)))
        self.tables = tables
        # Where the channels, weights, bias and outputs of each group begin, in bytes.
        steps = (p.group_in * size, prepared.panel * size, prepared.unbiased.strides[0], p.group_out * size)
        self.groups = [tuple(group * step for step in steps) for group in range(p.groups)]

    def run(
        self, prepared: WinogradPrepared, source: Array, result: Array, begin: tuple[int, ...], threads: int
    ) -> bool:
        """Compute the part of ``result`` with some weights; return whether nothing had to be summed directly.

        Both arrays, and where they begin; and what is added to the result, which lies in memory as the result does.
        """
        x, y, *beside = begin[0] + self.x_start, *(address + self.y_start for address in begin[1:])
        seen, target, block, size = x, y, self.part.block, prepared.dtype.itemsize
        memory = None
        if self.copied:
            (memory,) = run.workspace("turned", self.copied, dtype=prepared.dtype)
            address = where(memory)
            if self.foot is not None:
                seen = address
            if self.result is not None:
                target = address + self.result_start * size
        if self.turn_in is not None:
            self.turn_in(x, seen)
        elif self.foot is not None and memory is not None:  # there is none where nothing of x is seen
            foot = memory[: math.prod(self.foot)].reshape(self.foot)
            assign(_channels_behind(foot), source[self.seen])
        if len(self.calls) == 1:
            finite = prepared.share(seen, target, self, self.calls[0], *beside)
        else:
            each: list[bool] = []
            run.for_each(
                lambda call: each.append(prepared.share(seen, target, self, call, *beside)), self.calls, threads
            )
            finite = all(each)
        if not finite:
            sums = prepared.direct.forward_block(gather(prepared.problem, source, block, prepared.dtype), block)
            added = per_channel(prepared.problem, prepared.given_bias, prepared.dtype)
            store(result[block.outputs], sums, added)
        elif self.turn_out is not None:
            self.turn_out(target, y)
        elif self.result is not None:
            assert memory is not None
            values = memory[self.result_start : self.copied].reshape(self.result)
            assign(result[block.outputs], _channels_behind(values))
        return finite


def _channels_behind(a: Array) -> Array:
    """An array (n, *S, channels) as (n, channels, *S)."""
    return a.transpose(0, a.ndim - 1, *range(1, a.ndim - 1))


def _apart(a: Array, size: int) -> int:
    """How many numbers the places of an array (n, channels, *S) are apart in the last dimension."""
    return a.strides[-1] // size if a.shape[-1] > 1 else a.shape[1]


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Pitches of the images and dimensions of an array (n, *S, channels) without gaps."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape) - 1))


def _position(index: tuple[int, ...], pitches: tuple[int, ...]) -> int:
    return sum(i * pitch for i, pitch in zip(index, pitches, strict=True))
