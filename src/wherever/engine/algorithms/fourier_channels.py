"""Fourier transforms of small tiles of many channels, by generated kernels, and matrix products at each frequency."""

from __future__ import annotations

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
from wherever.engine.algorithms.finite import again, of_footprint
from wherever.engine.algorithms.forward import as_forward, forward_weights, refuses_sums
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.overlap_save import transform_length
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, fewest_pieces, fill_footprint, fullness, gather, grid, runs
from wherever.engine.copies import assign
from wherever.engine.kernels.compile import Entry, compiled, host, unavailable
from wherever.engine.kernels.fourier_channels import (
    OUTSIDE,
    fourier_forward,
    fourier_inverse,
    fourier_product,
    fourier_weights,
    mirrored,
    passes,
    roots,
    tile_numbers,
    tile_pitches,
)
from wherever.engine.kernels.vector import Kernel
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

_LENGTHS = (4, 6, 8, 10, 12, 14, 16, 18, 20, 21, 24, 28, 30, 32, 36, 40, 48, 56, 64, 80, 96, 128, 192, 256, 512)
_MOST_PLACES = 4096  # of a tile: its workspace stays in the second cache
_SPECTRA_BYTES = 16 << 20  # of the tiles of a part, transformed, and of their products
_PART_BYTES = 4 << 20  # of the input of a part
# Bytes, both of the kernel's spectrum and of all else, from which on the two push each other out of the caches; and how
# much longer everything takes then.
_MANY_BYTES, _STREAMS = 6 << 20, 1.25
_WEIGHT_BYTES = 64 << 20  # that the kernel's spectrum may take, or as much as 16 times the kernel
# Threads share tiles, and each reads the whole spectrum of the kernel, where that is up to so many times as large as
# the spectra of all tiles; else they share output channels, and each transforms all tiles.
_READ_AGAIN = 10
_WORTH_THREADS = 3e-4  # seconds, estimated, from which on threads share the work of a part
# How much longer a pass over a tile takes than one of Winograd's transforms: frequencies of spectra lie far apart.
_PASS = 4.0


class FourierChannels(Algorithm):
    """The convolution theorem on small tiles: y = F^-1[conj F[w] F[x]] where nothing wraps around.

    Two tiles are transformed as one of complex numbers. At each frequency the channels are summed by a product of
    complex matrices.
    Numbers that are not finite add their terms to the transform of the others.
    """

    name = "fourier_channels"
    sums_directly = False

    def refuses(self, problem: ConvProblem) -> str | None:
        """Strides, kernels of one place or too long for the tiles, what is not a real floating-point number."""
        refusal = refuses_sums(problem)
        if refusal is not None:
            return refusal
        if set(problem.stride) != {1}:
            return "a transform computes every place; stride is 1 only"
        if problem.taps == 1:
            return "a kernel of one place needs no transform"
        if problem.spatial > 3:
            return f"transforms 1 to 3 dimensions, not {problem.spatial}"
        if problem.group_in == problem.group_out == 1:
            return "sums channels; here each has a kernel of its own"
        if not _tiles(as_forward(problem)):
            return "the kernel spans more than its tiles, or its spectrum would take too much memory"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The cost of the best tiles; the kernel's spectrum is taken to be there."""
        tiling = best_tiling(as_forward(problem), machine)
        streams = min(tiling.kernel_bytes, tiling.workspace - tiling.kernel_bytes) > _MANY_BYTES
        return tiling.seconds * (_STREAMS if streams else 1)

    def least(self, problem: ConvProblem, machine: Machine) -> float:
        """As if tiles overlapped nowhere, and every dimension took one pass."""
        forward = as_forward(problem)
        places = forward.batch * math.prod(forward.output)
        count = 1 + sum(r > 1 for r in forward.kernel)
        return _least(forward, machine)(places, count) if unavailable() is None else 0.0

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """Transforms of the kernel, and its spectrum written, into memory that is new."""
        places = math.prod(best_tiling(as_forward(problem), machine).lengths)
        return super().preparation(problem, machine) * (1 + 1.3 * places / problem.taps)

    def workspace(self, problem: ConvProblem) -> int:
        """Spectra of a part, its input and output where they are copied, and the kernel's spectrum."""
        return best_tiling(as_forward(problem), Machine()).workspace

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Transform the kernel."""
        if problem.direction == "transpose" and not np.isfinite(operand).all():
            # An infinite weight would meet the zeros outside, and they are not there.
            return Im2colPrepared(problem, operand, bias)
        return FourierChannelsPrepared(as_forward(problem), forward_weights(problem, operand), bias)


@functools.lru_cache(maxsize=64)
def _tiles(problem: ConvProblem) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(lengths of the transforms, outputs of a tile) that are possible."""
    options = [_axis_tiles(problem, dim) for dim in range(problem.spatial)]
    kernel_bytes = math.prod(problem.w_shape) * working_dtype(problem.dtype).itemsize
    most = max(_WEIGHT_BYTES, 16 * kernel_bytes) / (kernel_bytes / problem.taps)
    found = []
    most = min(_MOST_PLACES, most)
    for choice in itertools.product(*options):
        lengths, shape = zip(*choice, strict=True)
        if math.prod(lengths) <= most:
            found.append((lengths, shape))
    return found


def _axis_tiles(problem: ConvProblem, dim: int) -> list[tuple[int, int]]:
    """(length, outputs) along one dimension: pieces of it, and the whole, which may wrap into its zero border."""
    if problem.kernel[dim] == 1:
        return [(1, 1)]
    whole, extent = problem.output[dim], problem.extent[dim]
    found = []
    for length in _LENGTHS:
        if length >= transform_length(problem, dim, 0, whole):
            found.append((length, whole))
            break
        if length >= extent:
            found.append((length, length - extent + 1))
    # Of tiles that are hardly longer than the kernel most is thrown away.
    return [pair for pair in found if 8 * pair[1] >= pair[0]] or found[-1:]


@dataclass(frozen=True)
class Tiling:
    """Tiles, and how they are worked on.

    Attributes
    ----------
    lengths : tuple of int
        Of the transforms in each dimension.
    shape : tuple of int
        Outputs of a tile in each dimension.
    part : tuple of int
        Outputs of a part, whose tiles are worked on together: in each dimension a multiple of the tile's.
    images : int
        That a part takes together.
    rows, vectors : int
        Register tile of the products: pairs of tiles times vectors of output channels.
    seconds : float
    workspace, kernel_bytes : int
        Bytes of everything, and of the kernel's spectrum.
    """

    lengths: tuple[int, ...]
    shape: tuple[int, ...]
    part: tuple[int, ...]
    images: int
    rows: int
    vectors: int
    seconds: float
    workspace: int
    kernel_bytes: int


@functools.lru_cache(maxsize=512)
def best_tiling(problem: ConvProblem, machine: Machine) -> Tiling:
    """The cheapest tiles, found without a close look at those whose arithmetic alone takes longer."""
    best = None
    for bound, lengths, shape in sorted(_bounds(problem, machine)):
        if best is not None and bound >= best.seconds:
            break
        tiling = _tiling(problem, machine, lengths, shape)
        if best is None or tiling.seconds < best.seconds:
            best = tiling
    assert best is not None, "problems without tiles are refused"
    return best


def _bounds(problem: ConvProblem, machine: Machine) -> Iterator[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """For all tiles the seconds they take at least, as if every register tile and every part were full."""
    seconds = _least(problem, machine)
    for lengths, shape in _tiles(problem):
        places, count = problem.batch, 1
        for n, m, outputs in zip(lengths, shape, problem.output, strict=True):
            places *= n * -(-outputs // m)
            count += len(passes(n))
        yield seconds(places, count), lengths, shape


def _least(problem: ConvProblem, machine: Machine) -> Callable[[int, int], float]:
    """A lower bound of the seconds, given the places of all tiles and the passes over each."""
    dtype = working_dtype(problem.dtype)
    lanes = host().lanes(dtype.name) if dtype.char in "fd" else 1
    padded = sum(-(-c // lanes) * lanes for c in (problem.in_channels, problem.out_channels))
    each_pass = _PASS * padded / 2 / machine.transforms
    sums = 2 * problem.in_channels * (-(-problem.group_out // lanes) * lanes) / machine.multiply_adds
    scale, fixed = dtype.itemsize / 4, 30 * machine.call
    if problem.layout == "channels_first":
        fixed += scale * 2 * problem.batch * math.prod(problem.output) * padded / machine.copy
    return lambda places, count: scale * places * (count * each_pass + sums) + fixed


def _tiling(problem: ConvProblem, machine: Machine, lengths: tuple[int, ...], shape: tuple[int, ...]) -> Tiling:
    dtype = working_dtype(problem.dtype)
    lanes, size = host().lanes(dtype.name), dtype.itemsize
    places = math.prod(lengths)
    along = [-(-n // m) for n, m in zip(problem.output, shape, strict=True)]
    padded_in, padded_out = (-(-c // lanes) * lanes for c in (problem.in_channels, problem.out_channels))
    pair_bytes = places * 2 * (padded_in + padded_out) * size

    # A part: as many tiles as may be read, and transformed, at once; whole rows of tiles, as even as possible.
    most = min(_PART_BYTES // (math.prod(shape) * padded_in * size), 2 * _SPECTRA_BYTES // pair_bytes)
    counts, most = list(along), max(1, most)
    for dim, whole in enumerate(along):

        def fits(pieces: int, dim: int = dim, whole: int = whole) -> bool:
            counts[dim] = -(-whole // pieces)
            return math.prod(counts) <= most

        counts[dim] = fewest_pieces(whole, fits)
    images = max(1, min(problem.batch, most // math.prod(counts))) if counts == along else 1
    parts = -(-problem.batch // images) * math.prod(-(-n // c) for n, c in zip(along, counts, strict=True))
    tiles = images * math.prod(counts)
    # Passes over complex numbers, each of two tiles or of two vectors of channels; reading and writing is one more.
    every = places * (1 + sum(len(passes(n)) for n in lengths)) / machine.transforms
    moved = 0.0
    if problem.layout == "channels_first":
        moved = 2 * parts * tiles * math.prod(shape) * (padded_in + padded_out) / machine.copy
    pairs = -(-tiles // 2)
    rows, vectors = _register_tile(pairs, -(-problem.group_out // lanes))
    width = vectors * lanes
    filled = -(-problem.group_out // width) * width
    spectrum = problem.groups * places * problem.group_in * filled
    held = -(-pairs // rows) * rows
    loads = max(1.0, (rows + vectors) / (rows * vectors))
    sums = 4 * held * places * problem.groups * problem.group_in * filled * loads / machine.multiply_adds
    seconds = parts * max(sums, spectrum / machine.stream)
    seconds += _PASS * every * parts * pairs * (padded_in + padded_out)
    calls = 40 + 5 * problem.groups
    seconds = (seconds + moved) * size / 4 * fullness(problem.batch, images) + parts * calls * machine.call
    foot = images * math.prod(c * s + r for c, s, r in zip(counts, shape, problem.extent, strict=True))
    outputs = images * math.prod(c * s for c, s in zip(counts, shape, strict=True))
    workspace = held * pair_bytes + (foot * padded_in + outputs * padded_out + spectrum) * size
    part = tuple(c * s for c, s in zip(counts, shape, strict=True))
    return Tiling(lengths, shape, part, images, rows, vectors, seconds, workspace, spectrum * size)


@functools.lru_cache(maxsize=4096)
def _register_tile(pairs: int, blocks: int) -> tuple[int, int]:
    """(pairs of tiles, vectors of output channels) of the products: what wastes least of both, and loads least."""
    registers = host().registers
    choices = []
    for vectors in range(1, min(blocks, 4) + 1):
        for rows in range(1, min(pairs, (registers - 2 - 2 * vectors) // (2 * vectors)) + 1):
            waste = -(-pairs // rows) * rows / pairs * (-(-blocks // vectors) * vectors / blocks)
            loads = (rows + vectors) / (2 * rows * vectors)  # for each multiply-add
            # The spectrum of the kernel comes from the second cache, once for so many rows.
            cost = waste * (max(1.0, loads + 0.55, 5 / (rows * vectors)) + 0.5 / rows)
            choices.append((cost, -rows * vectors, rows, vectors))
    *_, rows, vectors = min(choices)
    return rows, vectors


@dataclass(frozen=True)
class _Tables:
    """Where the places of the tiles of a part lie in an array: for each tile, and of each dimension."""

    tiles: npt.NDArray[np.int64]
    places: tuple[npt.NDArray[np.int64], ...]

    @property
    def arrays(self) -> tuple[npt.NDArray[np.int64], ...]:
        """In the order in which kernels take them."""
        return (self.tiles, *self.places)


class _Part:
    """One part of the problem: a block of outputs, its tiles, and the places of x and y that they are of."""

    def __init__(self, prepared: FourierChannelsPrepared, block: Block) -> None:
        p, tiling = prepared.problem, prepared.tiling
        self.problem, self.tiling, self.block = p, tiling, block
        self.images = block.images.stop - block.images.start
        self.counts = tuple(-(-n // m) for n, m in zip(block.shape, tiling.shape, strict=True))
        self.tiles = self.images * math.prod(self.counts)
        self._known: dict[tuple[str, tuple[int, ...]], _Tables] = {}

    def in_source(self, steps: tuple[int, ...]) -> _Tables:
        """Of x itself, with its boundary; from one image, and place of each dimension, to the next it is so far."""

        def shown(dim: int) -> npt.NDArray[np.int64]:
            p, block = self.problem, self.block
            found = np.full(block.foot_shape[dim], -1)
            for piece in runs(block.foot_start[dim], block.foot_shape[dim], p.size[dim], p.boundary):
                found[piece.foot] = np.arange(*piece.x.indices(p.size[dim]))
            return found

        return self._tables("source", steps, self.block.images.start, shown)

    def in_footprint(self, steps: tuple[int, ...]) -> _Tables:
        """Of a copy of all that the part reads."""
        return self._tables("footprint", steps, 0, lambda dim: np.arange(self.block.foot_shape[dim]))

    def in_target(self, steps: tuple[int, ...]) -> _Tables:
        """Of the part's outputs."""
        return self._tables("target", steps, 0, lambda dim: np.arange(self.block.shape[dim]))

    def _tables(
        self, name: str, steps: tuple[int, ...], first: int, shown: Callable[[int], npt.NDArray[np.int64]]
    ) -> _Tables:
        """``shown`` gives of each place of the part, along a dimension, the index in the array, or -1."""
        found = self._known.get((name, steps))
        if found is None:
            if len(self._known) > 10:  # arrays of ever other memory orders
                self._known.clear()
            found = self._known[name, steps] = self._written(name, steps, first, shown)
        return found

    def _written(
        self, name: str, steps: tuple[int, ...], first: int, shown: Callable[[int], npt.NDArray[np.int64]]
    ) -> _Tables:
        p, tiling = self.problem, self.tiling
        tiles = np.full((self.tiles + self.tiles % 2, 1 + p.spatial), OUTSIDE)
        index = np.stack(np.unravel_index(np.arange(self.tiles), (self.images, *self.counts)), 1)
        tiles[: len(index), 0] = (first + index[:, 0]) * steps[0]
        tiles[:, 1:] = 0
        tiles[: len(index), 1:] = index[:, 1:] * tiling.lengths
        places = []
        for dim, (count, n, m) in enumerate(zip(self.counts, tiling.lengths, tiling.shape, strict=True)):
            one = shown(dim)
            # A tile reads what its outputs see, and no further; it writes its outputs.
            seen = m if name == "target" else min(n, m + p.extent[dim] - 1)
            at = np.arange(count)[:, None] * m + np.arange(n)
            inside = (np.arange(n) < seen) & (at < len(one))
            there = one[np.where(inside, at, 0)]
            places.append(np.where(inside & (there >= 0), there * steps[1 + dim], OUTSIDE).ravel())
        return _Tables(tiles, tuple(places))


class FourierChannelsPrepared:
    """The spectrum of the kernel, (groups, f, block of output channels, input channel, part, vectors * lanes)."""

    def __init__(
        self, problem: ConvProblem, operand: Array, bias: Array | None = None, tiling: Tiling | None = None
    ) -> None:
        self.problem = p = problem
        self.operand = operand.astype(working_dtype(p.dtype), copy=False)
        self.dtype = working_dtype(p.dtype)
        self.tiling = tiling = tiling or best_tiling(p, Machine())
        self.lanes = lanes = host().lanes(self.dtype.name)
        self.frequencies = math.prod(tiling.lengths)
        self.roots = roots(tiling.lengths, self.dtype)
        self.mirrored = mirrored(tiling.lengths)
        steps = np.array(tile_pitches(tiling.lengths, lanes))
        self.in_workspace = np.ascontiguousarray(np.stack(np.unravel_index(self.mirrored, tiling.lengths), -1) @ steps)
        self.width = tiling.vectors * lanes  # of a block of output channels
        self.blocks = -(-p.group_out // self.width)
        filled = self.blocks * self.width
        # From one frequency of the spectrum to the next, and from one group.
        self.g_frequency = self.blocks * p.group_in * 2 * self.width + 2 * lanes
        self.panel = len(self.mirrored) * self.g_frequency
        self.x_pixel, y_pixel = (-(-c // lanes) * lanes for c in (p.in_channels, p.out_channels))
        self.y_pixel = y_pixel
        self.written = p.out_channels - p.group_out + filled  # what is written beyond a group is the next one's
        self.m_pixel = -(-max(self.written, y_pixel) // lanes) * lanes
        self.bias = np.zeros(y_pixel + lanes, self.dtype)
        if bias is not None:
            self.bias[: p.out_channels] = bias
        self.weight = self._spectrum(operand)
        self.parts = [_Part(self, block) for block in grid(p, tiling.part, tiling.images, gapless=True)]

    # The kernel's spectrum.

    def _spectrum(self, operand: Array) -> Array:
        p, filled = self.problem, self.blocks * self.width
        g = run.fresh(p.groups * self.panel, self.dtype)
        w = np.zeros((p.taps, p.group_in, filled), self.dtype)
        given = operand.astype(self.dtype, copy=False).reshape(p.groups, p.group_out, p.group_in, p.taps)
        block = p.group_in * 2 * self.width
        goals = np.arange(p.group_in) * (2 * self.width)
        table = self._frequency_table(np.arange(len(self.mirrored)) * self.g_frequency)
        for group in range(p.groups):
            assign(w[:, :, : p.group_out], given[group].transpose(2, 1, 0))
            address = g.ctypes.data + group * self.panel * self.dtype.itemsize
            self._transform(w, np.arange(p.group_in) * filled, address, goals, table, (self.blocks, block))
        return g

    def _frequency_table(self, there: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where f and -f lie in a tile's workspace, and f in the spectrum."""
        return np.ascontiguousarray(np.concatenate([self.in_workspace, there[:, None]], 1))

    def _transform(
        self,
        w: Array,
        bases: npt.NDArray[np.int64],
        g: int,
        goals: npt.NDArray[np.int64],
        frequencies: npt.NDArray[np.int64],
        blocks: tuple[int, int],
    ) -> None:
        """Transform kernels w (taps, ...) that begin at these bases to these goals in g, two at a time."""
        p, lengths = self.problem, self.tiling.lengths
        kernel = compiled(
            fourier_weights,
            dtype=self.dtype.name,
            lengths=lengths,
            vectors=self.tiling.vectors,
        )
        pairs = -(-len(bases) // 2)
        tiles = np.zeros((2 * pairs, 1 + p.spatial), np.int64)
        tiles[:, 0] = OUTSIDE
        tiles[: len(bases), 0] = bases
        if len(goals) % 2:
            goals = np.append(goals, goals[-1])  # of a kernel that is not there: overwritten by the other one
        step = w[0].size
        places: list[npt.NDArray[np.int64]] = []
        for n, r, d in reversed(list(zip(lengths, p.kernel, p.dilation, strict=True))):
            tap, apart = np.divmod(np.arange(n), d)
            places.insert(0, np.where((apart == 0) & (tap < r), tap * step, OUTSIDE))
            step *= r
        work, elsewhere = self._workspace()
        sizes = np.array([pairs, blocks[0], len(frequencies), blocks[1]], np.int64)
        arrays = [work, self.roots, tiles, *places, np.ascontiguousarray(goals), frequencies, sizes]
        work_at, roots_at, *rest = (array.ctypes.data for array in arrays)
        kernel(w.ctypes.data, elsewhere.ctypes.data, work_at, roots_at, g, *rest)

    def _workspace(self) -> list[Array]:
        """Of one tile; and zeros, and what is overwritten."""
        numbers = tile_numbers(self.tiling.lengths, self.lanes)
        work, elsewhere = run.workspace("tile", numbers, 2 * self.lanes, dtype=self.dtype)
        elsewhere[...] = 0
        return [work, elsewhere]

    # The convolution.

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        source, result = channels_first(self.problem, source), channels_first(self.problem, out)
        # Parts for the threads; if there are too few of them, threads share the work on each.
        within = 1 if len(self.parts) >= 2 * threads or len(self.parts) % threads == 0 else threads
        run.for_each(lambda part: self._part(source, result, part, within), self.parts, threads if within == 1 else 1)

    def _part(self, source: Array, result: Array, part: _Part, threads: int) -> None:
        p, block = self.problem, part.block
        target = result[block.outputs]
        read, written = self._usable(source) and (p.boundary == 0 or isinstance(p.boundary, str)), self._usable(target)
        x_shape, y_shape = (part.images, *block.foot_shape, self.x_pixel), (part.images, *block.shape, self.y_pixel)
        x_buffer, y_buffer = run.workspace(
            "parts", 0 if read else math.prod(x_shape), 0 if written else math.prod(y_shape), dtype=self.dtype
        )
        if read:
            x, x_tables = source, part.in_source(self._steps(source))
        else:
            x = np.moveaxis(x_buffer.reshape(x_shape), -1, 1)
            if self.x_pixel > p.in_channels:
                x[:, p.in_channels :] = 0
            fill_footprint(p, source[block.images], block, x[:, : p.in_channels])
            x_tables = part.in_footprint(self._steps(x))
        y = target if written else np.moveaxis(y_buffer.reshape(y_shape), -1, 1)
        y_tables = part.in_target(self._steps(y))
        if not self._compute(x, x_tables, y, y_tables, part.tiles, threads):
            self._again(source, target, part)
        elif not written:
            assign(target, y[:, : p.out_channels])

    def _again(self, source: Array, target: Array, part: _Part) -> None:
        """Compute a part whose transform is not finite."""
        p, block = self.problem, part.block
        foot = gather(p, source, block, self.dtype)
        x = np.moveaxis(np.zeros((len(foot), *block.foot_shape, self.x_pixel), self.dtype), -1, 1)
        y = np.moveaxis(np.zeros((len(foot), *block.shape, self.y_pixel), self.dtype), -1, 1)
        x_tables, y_tables = part.in_footprint(self._steps(x)), part.in_target(self._steps(y))

        def transformed(numbers: Array) -> bool:
            x[:, : p.in_channels] = numbers
            return self._compute(x, x_tables, y, y_tables, part.tiles, 1)

        result, bias = y[:, : p.out_channels], self.bias[: p.out_channels]
        again(of_footprint(p, block, self.dtype), foot, result, self.operand, bias, transformed)
        assign(target, result)

    def _usable(self, a: Array) -> bool:
        """Whether kernels can work on an array (n, channels, *places) where it lies."""
        size = self.dtype.itemsize
        if a.dtype != self.dtype or not a.flags.aligned or any(stride % size for stride in a.strides):
            return False
        return a.strides[1] == size or a.shape[1] == 1

    def _steps(self, a: Array) -> tuple[int, ...]:
        size = self.dtype.itemsize
        return tuple(stride // size for axis, stride in enumerate(a.strides) if axis != 1)

    def _kernel(self, write: Callable[..., Kernel], channels: int, step: int, *, shape: bool = True) -> Entry:
        parameters: dict[str, Any] = {
            "dtype": self.dtype.name,
            "lengths": self.tiling.lengths,
            "tail": channels % step > 0,
        }
        if shape:
            parameters["shape"] = self.tiling.shape
        return compiled(write, **parameters)

    def _compute(self, x: Array, x_tables: _Tables, y: Array, y_tables: _Tables, tiles: int, threads: int) -> bool:
        """Compute the tiles of a part; return whether all results are finite."""
        pairs, blocks, arrays = range(-(-tiles // 2)), range(self.blocks), (x, x_tables, y, y_tables)
        if self.tiling.seconds <= _WORTH_THREADS:
            threads = 1
        # Each thread goes from x to y for some of the tiles, or of the output channels: what another one wrote would
        # come from its caches.
        spectra = len(pairs) * self.frequencies * 2 * (self.x_pixel + self.m_pixel)
        if self.problem.groups == 1 and self.weight.size > _READ_AGAIN * spectra:
            shares = [(pairs, share) for share in run.pieces(self.blocks, 1, threads)]
        else:
            shares = [(share, blocks) for share in run.pieces(len(pairs), 1, threads)]
        finite: list[bool] = []
        run.for_each(lambda share: finite.append(self._phases(*arrays, *share)), shares, threads)
        return all(finite)

    def _phases(self, x: Array, x_tables: _Tables, y: Array, y_tables: _Tables, pairs: range, blocks: range) -> bool:
        """Transform some pairs of tiles, multiply them for some blocks of output channels, and transform these back."""
        p, tiling, lanes, size = self.problem, self.tiling, self.lanes, self.dtype.itemsize
        forward = self._kernel(fourier_forward, x.shape[1], lanes, shape=False)
        inverse = self._kernel(fourier_inverse, y.shape[1], lanes)
        groups = -(-len(pairs) // tiling.rows)
        rows = -(-len(pairs) // groups)
        product = compiled(
            fourier_product,
            dtype=self.dtype.name,
            z_pixel=self.x_pixel,
            y_pixel=self.m_pixel,
            rows=rows,
            vectors=tiling.vectors,
        )
        z_frequency, m_frequency = (self._pitch(groups * rows, pixel) for pixel in (self.x_pixel, self.m_pixel))
        z, m = run.workspace(
            "spectra", self.frequencies * z_frequency, self.frequencies * m_frequency, dtype=self.dtype
        )
        if self.written < self.y_pixel:  # channels that are transformed back without being there
            spectra = m.reshape(self.frequencies, m_frequency)[:, : groups * rows * 2 * self.m_pixel]
            spectra.reshape(self.frequencies, -1, self.m_pixel)[:, :, self.written :] = 0
        # Kernels count pairs from the first of all; spectra begin with the first of these.
        z_first, m_first = (
            array.ctypes.data - pairs.start * 2 * pixel * size
            for array, pixel in ((z, self.x_pixel), (m, self.m_pixel))
        )
        work, elsewhere = self._workspace()
        (odd,) = run.workspace("odd", self.lanes, dtype=self.dtype)

        numbers = [pairs.start, pairs.stop, 0, x.shape[1], z_frequency, 2 * self.x_pixel, self.x_pixel]
        forward(x, elsewhere, work, self.roots, z_first, *x_tables.arrays, np.array(numbers, np.int64))
        # Of several groups all output channels are computed.
        begin, width = blocks.start * self.width, self.width
        numbers = [0, len(self.mirrored), groups, p.group_in, len(blocks), self.g_frequency, z_frequency, m_frequency]
        sizes = np.array(numbers, np.int64)
        for group in range(p.groups):
            product(
                z.ctypes.data + group * p.group_in * size,
                self.weight.ctypes.data + (group * self.panel + begin * 2 * p.group_in) * size,
                m.ctypes.data + (group * p.group_out + begin) * size,
                self.mirrored,
                sizes,
            )
        end = y.shape[1] if blocks.stop == self.blocks else blocks.stop * width
        numbers = [pairs.start, pairs.stop, begin, end, m_frequency, 2 * self.m_pixel, self.m_pixel]
        tables = (*y_tables.arrays, np.array(numbers, np.int64))
        inverse(m_first, y, elsewhere, work, self.roots, self.bias, odd, *tables)
        return not np.isnan(odd).any()

    def _pitch(self, pairs: int, pixel: int) -> int:
        """From one frequency to the next: no large power of two, so that caches have room for all of them."""
        numbers = pairs * 2 * pixel
        return numbers + 2 * self.lanes if numbers * self.dtype.itemsize % 1024 == 0 else numbers
