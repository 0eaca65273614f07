"""Winograd: small kernels by fewer multiplications than direct summation needs, on tiles, through generated kernels."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first, per_channel, store
from wherever.engine.algorithms.forward import as_forward, forward_weights, refuses_direction
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.protocol import Prepared
from wherever.engine.blocks import Block, fill_footprint, gather, grid
from wherever.engine.copies import assign
from wherever.engine.kernels.compile import compiled, host, unavailable
from wherever.engine.kernels.cook_toom import MOST_POINTS
from wherever.engine.kernels.winograd import winograd, winograd_weights
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

_TILES = (2, 3, 4, 6)  # outputs of a tile along one dimension that are considered
# Points along one dimension, by how many are transformed: errors multiply. In float64 the promise leaves less room.
_MOST_POINTS = {"f": {1: MOST_POINTS, 2: 6, 3: 6}, "d": {1: 6, 2: 6, 3: 6}}
_MOST_OF_ALL = {1: MOST_POINTS, 2: 36, 3: 144}  # of all dimensions together
_STREAMED_TILES = 28  # at least so many tiles share one reading of the transformed weights
_PART_BYTES = 2 << 20  # of the input of one part: what is read, and then cut into tiles


class Winograd:
    """Winograd's minimal filtering F(m, r) in each dimension.

    A tile of m outputs of a kernel of r taps takes m + r - 1 multiplications instead of m r, in each of the dimensions.
    Rounding errors are those of the transforms: with the points used here (`cook_toom`) 1.5 to 3 times those
    of direct summation. A tile with a number that is not finite is summed directly.
    """

    name = "winograd"
    sums_directly = False

    def refuses(self, problem: ConvProblem) -> str | None:
        """Strides, dilation, kernels that are too large or too small, what is not a real floating-point number."""
        refusal = unavailable() or refuses_direction(problem)
        if refusal is not None:
            return refusal
        if set(problem.stride) != {1}:
            return "tiles overlap at stride 1 only"
        if any(d != 1 and r > 1 for d, r in zip(problem.dilation, problem.kernel, strict=True)):
            return "has no tiles for dilated kernels"
        if not 1 <= _dimensions(problem) <= 3:
            return f"transforms 1 to 3 dimensions, not {_dimensions(problem)}"
        if working_dtype(problem.dtype).char not in "fd":
            return f"has kernels for float32 and float64, not {problem.dtype}"
        if not _tiles(problem):
            kernel = "x".join(map(str, problem.kernel))
            return f"a kernel of {kernel} needs transforms that are too large, or that round too much"
        if not as_forward(problem).multiply_adds:
            return "there is nothing to sum"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The cost of the best tiles."""
        return best_tiling(as_forward(problem), machine).seconds

    def workspace(self, problem: ConvProblem) -> int:
        """Of one block: its input and output, and both transformed."""
        return best_tiling(as_forward(problem), Machine()).workspace

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Transform the weights."""
        if problem.direction == "transpose" and not np.isfinite(operand).all():
            return Im2colPrepared(problem, operand, bias)
        return WinogradPrepared(as_forward(problem), forward_weights(problem, operand), bias)


def _tiles(problem: ConvProblem) -> list[tuple[int, ...]]:
    """The tiles that the promise about errors, and memory, allow."""
    dimensions = _dimensions(problem)
    most = _MOST_POINTS[working_dtype(problem.dtype).char][dimensions]
    options = [[1] if r == 1 else [m for m in _TILES if m + r - 1 <= most] for r in problem.kernel]
    return [
        tile for tile in itertools.product(*options) if math.prod(_points(problem, tile)) <= _MOST_OF_ALL[dimensions]
    ]


def _dimensions(problem: ConvProblem) -> int:
    """How many dimensions are transformed."""
    return sum(r > 1 for r in problem.kernel)


@dataclass(frozen=True)
class Tiling:
    """Tiles, and how they are worked on.

    Attributes
    ----------
    tile : tuple of int
        Outputs of a tile in each dimension.
    shape : tuple of int
        Outputs of a part, whose input is read at once: in each dimension a multiple of the tile.
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
    tilings = (_tiling(problem, machine, tile) for tile in _tiles(problem))
    return min(tilings, key=lambda tiling: tiling.seconds)


def _points(problem: ConvProblem, tile: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(m + r - 1 for m, r in zip(tile, problem.kernel, strict=True))


def _pixel(channels: int, lanes: int) -> int:
    """Channels padded to whole vectors, and a vector more, so that rows do not fall into the same sets of a cache."""
    return -(-channels // lanes) * lanes + lanes


def _tiling(problem: ConvProblem, machine: Machine, tile: tuple[int, ...]) -> Tiling:
    dtype = working_dtype(problem.dtype)
    lanes, size = host().lanes(dtype.name), dtype.itemsize
    points = math.prod(_points(problem, tile))
    v_pixel, m_pixel = _pixel(problem.group_in, lanes), _pixel(problem.group_out, lanes)
    tile_bytes = points * (v_pixel + m_pixel) * size
    weights = points * problem.group_in * problem.group_out
    along = [-(-n // m) for n, m in zip(problem.output, tile, strict=True)]

    # A part: as much of an image (or as many images) as may be read at once.
    def foot(counts: list[int]) -> int:
        return math.prod(c * m + r - 1 for c, m, r in zip(counts, tile, problem.kernel, strict=True))

    counts, most = list(along), _PART_BYTES // (problem.in_channels * size)
    for dim in range(problem.spatial):
        while counts[dim] > 1 and foot(counts) > most:
            pieces = -(-along[dim] // counts[dim]) + 1
            counts[dim] = min(counts[dim] - 1, -(-along[dim] // pieces))
    images = max(1, min(problem.batch, most // foot(counts))) if counts == along else 1
    parts = -(-problem.batch // images) * math.prod(-(-n // c) for n, c in zip(along, counts, strict=True))
    tiles = images * math.prod(counts)

    # As many tiles together as the cache holds; more where the weights do not fit and are read again for each of them.
    wanted = max(1, int(0.6 * machine.cache / tile_bytes))
    streamed = weights * size > machine.cache / 2
    if streamed:
        wanted = max(wanted, _STREAMED_TILES * (1 if weights * size < 16 * machine.cache else 2))
    rounds = -(-tiles // wanted)
    rows, vectors = _register_tile(-(-tiles // rounds), -(-problem.group_out // lanes))
    together = -(-tiles // rounds // rows) * rows if rounds > 1 else tiles
    rounds = -(-tiles // together)

    worked = parts * rounds * -(-min(together, tiles) // rows) * rows * points * problem.groups
    padded_out = -(-problem.group_out // (vectors * lanes)) * vectors * lanes
    loads = max(1.0, (rows + vectors) / (rows * vectors))
    sums = worked * problem.group_in * padded_out * loads / machine.multiply_adds
    transforms = worked * (v_pixel + m_pixel) * problem.spatial / machine.transforms
    reading = parts * rounds * problem.groups * weights / machine.stream if streamed else 0.0
    places = parts * tiles * math.prod(tile)
    moved = places * (1.5 * problem.in_channels + problem.out_channels) / machine.copy
    seconds = (max(sums, reading) + transforms + moved) * size / 4 + parts * (20 + 5 * problem.groups) * machine.call
    outputs = tiles * math.prod(tile) * problem.out_channels
    workspace = together * tile_bytes + (images * foot(counts) * problem.in_channels + outputs) * size
    shape = tuple(c * m for c, m in zip(counts, tile, strict=True))
    return Tiling(tile, shape, images, together, rows, vectors, seconds, workspace)


def _register_tile(tiles: int, blocks: int) -> tuple[int, int]:
    """(tiles, vectors of output channels) of the products: what wastes least of both, and loads least."""
    registers = host().registers
    best = (math.inf, 1, 1)
    for vectors in range(1, min(blocks, 6) + 1):
        most = (registers - 1) // vectors - 1
        rows = -(-tiles // -(-tiles // most))
        waste = -(-tiles // rows) * rows / tiles * (-(-blocks // vectors) * vectors / blocks)
        loads = (rows + vectors) / (rows * vectors)
        best = min(best, (waste * max(1.0, loads, 8 / (rows * vectors)) + 0.05 * abs(vectors - 2), rows, vectors))
    return best[1], best[2]


class _Part:
    """One part of the problem: a block of outputs, and where its tiles begin in its input and in its output."""

    def __init__(self, prepared: WinogradPrepared, block: Block) -> None:
        p, tile = prepared.problem, prepared.tiling.tile
        self.block = block
        self.images = block.images.stop - block.images.start
        counts = tuple(-(-n // m) for n, m in zip(block.shape, tile, strict=True))
        self.foot = tuple(c * m + r - 1 for c, m, r in zip(counts, tile, p.kernel, strict=True))
        self.output = tuple(c * m for c, m in zip(counts, tile, strict=True))
        self.tiles = np.stack(np.unravel_index(np.arange(self.images * math.prod(counts)), (self.images, *counts)), 1)
        self.count = len(self.tiles)
        self.x_pitches = _pitches((self.images, *self.foot), prepared.x_pixel)
        self.x_tiles = self._corners(tile, self.x_pitches)
        self.y_pitches = _pitches((self.images, *self.output), prepared.y_pixel)
        self._y_tiles: dict[tuple[int, ...], npt.NDArray[np.int64]] = {}
        self.tile = tile

    def y_tiles(self, pitches: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Where tiles begin in an output with these pitches."""
        found = self._y_tiles.get(pitches)
        if found is None:
            if len(self._y_tiles) > 10:  # outputs of ever other memory orders
                self._y_tiles.clear()
            found = self._y_tiles[pitches] = self._corners(self.tile, pitches)
        return found

    def _corners(self, tile: tuple[int, ...], pitches: tuple[int, ...]) -> npt.NDArray[np.int64]:
        steps = (pitches[0], *(m * pitch for m, pitch in zip(tile, pitches[1:], strict=True)))
        return np.ascontiguousarray(self.tiles @ np.array(steps, np.int64))


class WinogradPrepared:
    """Weights transformed, as (groups, point, block of output channels, input channel, vectors * lanes)."""

    def __init__(
        self, problem: ConvProblem, operand: Array, bias: Array | None = None, tiling: Tiling | None = None
    ) -> None:
        self.problem = p = problem
        self.operand, self.given_bias = operand, bias
        self.dtype = working_dtype(p.dtype)
        self.tiling = tiling = tiling or best_tiling(p, Machine())
        name = self.dtype.name
        self.lanes = lanes = host().lanes(name)
        self.points = math.prod(_points(p, tiling.tile))
        self.width = tiling.vectors * lanes  # of a block of output channels
        self.blocks = -(-p.group_out // self.width)
        self.filled = -(-p.group_out // lanes) * lanes
        self.panel = self.points * self.blocks * p.group_in * self.width  # numbers of one group's transformed weights
        self.x_pixel = -(-p.in_channels // lanes) * lanes
        self.y_pixel = p.out_channels - p.group_out + self.filled  # what is written beyond a group is the next one's
        self.v_pixel, self.m_pixel = _pixel(p.group_in, lanes), _pixel(self.blocks * self.width, lanes)
        self.kernel = compiled(
            winograd,
            dtype=name,
            tile=tiling.tile,
            taps=p.kernel,
            channels=p.group_in,
            x_pixel=self.x_pixel,
            y_pixel=self.y_pixel,
            v_pixel=self.v_pixel,
            m_pixel=self.m_pixel,
            rows=tiling.rows,
            vectors=tiling.vectors,
            ahead=tiling.vectors if tiling.together <= tiling.rows else 1,
        )
        self.bias = np.zeros((p.groups, self.blocks * self.width), self.dtype)
        if bias is not None:
            self.bias[:, : p.group_out] = bias.reshape(p.groups, p.group_out)
        self.weight = self._transformed(operand)
        self.parts = [_Part(self, block) for block in grid(p, tiling.shape, tiling.images)]

    @functools.cached_property
    def direct(self) -> Im2colPrepared:
        """Direct summation of what a transform would spoil."""
        return Im2colPrepared(self.problem, self.operand)

    def _transformed(self, operand: Array) -> Array:
        p, size = self.problem, self.dtype.itemsize
        kernel = compiled(
            winograd_weights,
            dtype=self.dtype.name,
            tile=self.tiling.tile,
            taps=p.kernel,
            vectors=self.tiling.vectors,
        )
        u = np.empty(p.groups * self.panel, self.dtype)
        w = np.zeros((p.taps, p.group_in, self.blocks * self.width), self.dtype)
        given = operand.astype(self.dtype, copy=False).reshape(p.groups, p.group_out, p.group_in, p.taps)
        sizes = np.array([p.group_in, self.blocks], np.int64)
        for group in range(p.groups):
            assign(w[:, :, : p.group_out], given[group].transpose(2, 1, 0))
            kernel(w.ctypes.data, u.ctypes.data + group * self.panel * size, sizes.ctypes.data)
        return u

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        source, result = channels_first(self.problem, source), channels_first(self.problem, out)
        # Parts for the threads; if there are too few of them, threads share the tiles or the output channels of each.
        within = 1 if len(self.parts) >= 2 * threads else threads
        run.for_each(lambda part: self._part(source, result, part, within), self.parts, threads if within == 1 else 1)

    def _part(self, source: Array, result: Array, part: _Part, threads: int) -> None:
        p, block = self.problem, part.block
        x, y = run.workspace(
            "parts",
            part.images * part.x_pitches[0] + self.lanes,
            part.images * part.y_pitches[0] + self.width,
            dtype=self.dtype,
        )
        foot = np.moveaxis(x[: x.size - self.lanes].reshape(part.images, *part.foot, self.x_pixel), -1, 1)
        exact = foot[(slice(None), slice(0, p.in_channels), *(slice(0, n) for n in block.foot_shape))]
        if exact.shape != foot.shape:
            x[...] = 0
        fill_footprint(p, source[block.images], block, exact)
        target = result[block.outputs]
        pitches = self._pitches(target, block)
        address = y.ctypes.data if pitches is None else target.ctypes.data
        finite: list[bool] = []
        run.for_each(
            lambda share: finite.append(self._share(part, x.ctypes.data, address, pitches or part.y_pitches, *share)),
            self._shares(part.count, threads),
            threads,
        )
        if not all(finite):
            sums = self.direct.forward_block(gather(p, source, block, self.dtype), block)
            store(target, sums, per_channel(p, self.given_bias, self.dtype))
        elif pitches is None:
            whole = np.moveaxis(y[: y.size - self.width].reshape(part.images, *part.output, self.y_pixel), -1, 1)
            assign(target, whole[(slice(None), slice(0, p.out_channels), *(slice(0, n) for n in block.shape))])

    def _shares(self, tiles: int, threads: int) -> list[tuple[range, range]]:
        """Ranges of tiles and of blocks of output channels: the tiles shared out, where there are enough; else both."""
        step = self.tiling.together
        rounds = -(-tiles // step)
        if threads == 1 or rounds >= 2 * threads or self.problem.groups > 1 or self.blocks == 1:
            pieces = min(threads, rounds)
            cuts = [min(tiles, rounds * i // pieces * step) for i in range(pieces + 1)]
            return [(range(a, b), range(self.blocks)) for a, b in itertools.pairwise(cuts)]
        pieces = min(threads, self.blocks)
        cuts = [self.blocks * i // pieces for i in range(pieces + 1)]
        return [(range(tiles), range(a, b)) for a, b in itertools.pairwise(cuts)]

    def _share(self, part: _Part, x: int, y: int, y_pitches: tuple[int, ...], tiles: range, blocks: range) -> bool:
        """Compute some tiles of some output channels; return whether all results are finite."""
        p, size, tiling = self.problem, self.dtype.itemsize, self.tiling
        held = -(-min(tiling.together, len(tiles)) // tiling.rows) * tiling.rows * self.points
        v, m, odd = run.workspace("tiles", held * self.v_pixel, held * self.m_pixel, self.lanes, dtype=self.dtype)
        span = [tiles.start, tiles.stop, tiling.together, blocks.start, blocks.stop, self.blocks, self.filled]
        sizes = np.array([*span, *part.x_pitches[1:-1], *y_pitches[1:-1]], np.int64)
        fixed = [v, m, odd, part.x_tiles, part.y_tiles(y_pitches), sizes]
        addresses = [array.ctypes.data for array in fixed]
        finite = True
        for group in range(p.groups):
            self.kernel(
                x + group * p.group_in * size,
                self.weight.ctypes.data + group * self.panel * size,
                self.bias.ctypes.data + group * self.bias.strides[0],
                y + group * p.group_out * size,
                *addresses,
            )
            finite = finite and not np.isnan(odd).any()
        return finite

    def _pitches(self, target: Array, block: Block) -> tuple[int, ...] | None:
        """Pitches of the output's images and dimensions, if whole tiles can be written there directly."""
        p, size = self.problem, self.dtype.itemsize
        strides = (target.strides[0], *target.strides[2:])
        if target.dtype != self.dtype or not target.flags.aligned or target.strides[1] != size:
            return None
        if p.out_channels != self.y_pixel or strides[-1] != self.y_pixel * size or p.groups > 1:
            return None
        if any(n % m for n, m in zip(block.shape, self.tiling.tile, strict=True)) or any(s % size for s in strides):
            return None
        return tuple(stride // size for stride in strides)


def _pitches(shape: tuple[int, ...], pixel: int) -> tuple[int, ...]:
    """Numbers from one index to the next of each axis of an array of places."""
    return tuple(pixel * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
