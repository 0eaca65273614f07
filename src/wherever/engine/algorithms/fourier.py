"""Fourier: images and signals of few channels, convolved by generated Fourier transforms of tiles."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.finite import add_terms
from wherever.engine.algorithms.forward import as_forward, forward_weights, refuses_sums
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.overlap_save import transform_length
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Run, box, fill_footprint, runs
from wherever.engine.copies import assign
from wherever.engine.kernels.codelets import frequencies, radices, twiddles
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.fourier_image import OUTSIDE, PAIR, TILE, Layout, fourier_tiles
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

_LARGEST_RADIX = 8  # of all codelets but the last of a column: larger ones spill, and take long to compile
_APART = 1.12  # ratio of two lengths of tiles that are compared
_CALL = 20  # calls that one of ours costs beside its arithmetic
_COPIED = 40  # calls that a pair of tiles costs which are copied
_CACHED = 4 << 20  # bytes of x and y beyond which they come from memory, which no transform overlaps
_PRODUCT = 3.0  # what it takes to add a channel's product, in passes of a transform through one dimension
_LONGEST = 1 << 14  # places along one dimension of a tile
_MOST_ODD = 1 / 8  # numbers that are not finite, for each output of a tile, whose terms are added one number at a time
_MOST_KERNELS = 256  # of one group of channels: with more, channels as lanes are faster
_MOST_BYTES = 64 << 20  # of workspace and spectra, or 32 times the kernels, unless no smaller tiles exist


class Fourier(Algorithm):
    """Overlap-save on tiles of an image, or of a signal, by generated kernels.

    Every tile is correlated with the whole kernel by the convolution theorem; where nothing wraps around, the result
    is written. Two tiles are transformed as the real and the imaginary part of one. To a tile with numbers
    that are not finite their terms are added; one whose transform overflows is summed directly.
    """

    name = "fourier"
    sums_directly = False

    def refuses(self, problem: ConvProblem) -> str | None:
        """Many channels that are summed, more than two dimensions, what is not a real floating-point number."""
        refusal = refuses_sums(problem)
        if refusal is not None:
            return refusal
        forward = as_forward(problem)
        if forward.group_in * forward.group_out > _MOST_KERNELS:
            return f"transforms channels one by one, not {forward.group_in} for {forward.group_out} sums"
        if problem.spatial > 2:
            return f"has tiles of images and signals, not of {problem.spatial} dimensions"
        if problem.taps == 1:
            return "a kernel of one place needs no transform"
        if not isinstance(problem.boundary, str) and not np.isfinite(problem.boundary):
            return "transforms no boundary that is not finite"
        if best_tiling(dense(as_forward(problem)), Machine()) is None:
            return f"has no tiles for a kernel that spans {'x'.join(map(str, problem.extent))} places"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The cost of the best tiles; with a stride, of all outputs of stride 1 and of choosing among them."""
        forward = as_forward(problem)
        tiling = best_tiling(dense(forward), machine)
        if tiling is None:
            return math.inf
        chosen = 0.0
        if set(problem.stride) != {1}:
            pairs = forward.out_channels * -(-forward.batch * tiling.tiles // 2)
            chosen = pairs * (_COPIED * machine.call + 16 * math.prod(tiling.shape) / machine.copy)
        numbers = math.prod(forward.x_shape) + math.prod(forward.y_shape)
        size = working_dtype(forward.dtype).itemsize
        memory = 1.75 * numbers * size / 4 / machine.copy if numbers * size > _CACHED else 0.0
        return tiling.seconds + chosen + memory

    def least(self, problem: ConvProblem, machine: Machine) -> float:
        """As if tiles overlapped nowhere, and every transform took one pass."""
        forward = as_forward(problem)
        places = forward.batch * math.prod(forward.output) * (forward.in_channels + forward.out_channels) / 2
        each = 2.5 * 4 / machine.transforms + 4 / machine.copy
        return places / 2 * each * working_dtype(forward.dtype).itemsize / 4 + _CALL * machine.call

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """Nothing more: estimates count the spectra of the kernels."""
        return 0.0

    def workspace(self, problem: ConvProblem) -> int:
        """Of one pair of tiles; the spectra of the kernels; and x and y with channels first, where these are copied."""
        forward = as_forward(problem)
        tiling = best_tiling(dense(forward), Machine())
        if tiling is None:
            return 0
        return tiling.workspace + (_turned_bytes(forward) if _turns(forward, tiling.workspace) else 0)

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Transform the kernels."""
        if problem.direction == "transpose" and not np.isfinite(operand).all():
            return Im2colPrepared(problem, operand, bias)
        return FourierPrepared(as_forward(problem), forward_weights(problem, operand), bias)


def dense(problem: ConvProblem) -> ConvProblem:
    """The problem of stride 1 whose outputs include those of this one; as an image of one row, if it is a signal."""
    padding = tuple(
        (before, (m - 1) * s + e - n - before)
        for n, m, s, e, (before, _) in zip(
            problem.size, problem.output, problem.stride, problem.extent, problem.padding, strict=True
        )
    )
    ones, zero = (1,) * (2 - problem.spatial), ((0, 0),) * (2 - problem.spatial)
    return dataclasses.replace(
        problem,
        size=(*ones, *problem.size),
        kernel=(*ones, *problem.kernel),
        stride=(1, 1),
        dilation=(*ones, *problem.dilation),
        padding=(*zero, *padding),
    )


@dataclass(frozen=True)
class Tiling:
    """Tiles, and what they cost.

    Attributes
    ----------
    layout : Layout
        Their transforms.
    signal : bool
        Whether a tile is one long row.
    shape : tuple of int
        Outputs of a tile in each dimension.
    tiles : int
        Of one image.
    seconds : float
    workspace : int
        Bytes.
    """

    layout: Layout
    signal: bool
    shape: tuple[int, int]
    tiles: int
    seconds: float
    workspace: int


@functools.lru_cache(maxsize=512)
def best_tiling(problem: ConvProblem, machine: Machine) -> Tiling | None:
    """The cheapest tiles of a dense problem; None if there are none.

    Those that are cheapest if they stay in the cache are counted first, until no other can be cheaper.
    """
    limit = max(_MOST_BYTES, 32 * math.prod(problem.w_shape) * working_dtype(problem.dtype).itemsize)
    bounds = sorted(((_least(problem, machine, some), some) for some in _candidates(problem)), key=lambda pair: pair[0])
    best: Tiling | None = None
    for bound, some in bounds:
        if best is not None and bound >= best.seconds:
            break
        tiling = _tiling(problem, machine, some)
        if tiling.workspace <= limit and (best is None or tiling.seconds < best.seconds):
            best = tiling
    return best or min(tilings(problem, machine), key=lambda tiling: tiling.seconds, default=None)


def tilings(problem: ConvProblem, machine: Machine) -> list[Tiling]:
    """All tiles of a dense problem that are considered."""
    return [_tiling(problem, machine, some) for some in _candidates(problem)]


@dataclass(frozen=True)
class _Candidate:
    """Tiles before their cost is known: radices of columns and rows, and what `Tiling` says of them."""

    down: tuple[int, ...]
    across: tuple[int, ...]
    places: int
    signal: bool
    shape: tuple[int, int]
    tiles: int

    @property
    def passes(self) -> int:
        """Through one dimension, there and back; and for a signal the roots."""
        return 2 * (len(self.down) + len(self.across)) + (3 if self.signal else 0)


def _candidates(problem: ConvProblem) -> list[_Candidate]:
    return _signal_candidates(problem) if problem.extent[0] == 1 else _image_candidates(problem)


def _lengths(step: int, last: int | None, longest: int) -> list[tuple[int, tuple[int, ...]]]:
    """Multiples of a step with few radices, and these; as long as asked for, or longer."""
    return _lengths_to(step, last, min(_LONGEST, 1 << max(longest - 1, 511).bit_length()))


@functools.cache
def _lengths_to(step: int, last: int | None, longest: int) -> list[tuple[int, tuple[int, ...]]]:
    found = []
    for length in range(step, longest + 1, step):
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        factors = radices(length, _LARGEST_RADIX, last) if rest == 1 else None
        if factors is not None and len(factors) <= 5:
            found.append((length, factors))
    return found


def _image_candidates(problem: ConvProblem) -> list[_Candidate]:
    lanes = host().lanes(working_dtype(problem.dtype).name)
    down = _axis_options(problem, 0, _last(lanes), _last(lanes), 1)
    across = _axis_options(problem, 1, lanes, None, lanes)
    return [
        _Candidate(rows, columns, math.prod(rows) * math.prod(columns), False, (high, wide), count * number)
        for high, rows, count in down
        for wide, columns, number in across
    ]


def _last(lanes: int) -> int:
    """The last radix of the columns."""
    return max(lanes, 8)


def _axis_options(
    problem: ConvProblem, dim: int, step: int, last: int | None, multiple: int
) -> list[tuple[int, tuple[int, ...], int]]:
    """(outputs of a tile, radices, number of tiles) for tiles of all good lengths, up to the whole axis."""
    n, extent = problem.output[dim], problem.extent[dim]
    whole = transform_length(problem, dim, 0, n)
    options: list[tuple[int, tuple[int, ...], int]] = []
    longest, before, fewest = max(512, 8 * extent), 0.0, math.inf
    for length, factors in _lengths(step, last, 2 * max(whole, extent)):
        if length >= whole:
            options.append((n, factors, 1))
            break
        most = length - extent + 1
        most = most // multiple * multiple if most < n else most
        if most < 1 or length < min(1.15 * extent, extent + 32) or (length > longest and options):
            continue
        tiles = -(-n // most)
        # Lengths far enough apart, and only those that need fewer tiles.
        if length < _APART * before or tiles >= fewest:
            continue
        before, fewest = length, tiles
        options.append((min(most, -(-n // tiles // multiple) * multiple), factors, tiles))
    return options


def _spread(step: int, last: int | None, longest: int) -> list[tuple[int, tuple[int, ...]]]:
    """Those of the lengths that are far enough apart."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for length, factors in _lengths(step, last, longest):
        if not found or length >= _APART * found[-1][0]:
            found.append((length, factors))
    return found


def _signal_candidates(problem: ConvProblem) -> list[_Candidate]:
    """Tiles that are one long row: of a square of places, about."""
    lanes = host().lanes(working_dtype(problem.dtype).name)
    n, extent, last = problem.output[1], problem.extent[1], _last(lanes)
    found = []
    longest = math.isqrt(8 * (2 * n + extent)) + 8 * last  # of the rows below
    for (high, rows), (wide, columns) in itertools.product(_spread(last, last, longest), _spread(lanes, None, longest)):
        if not wide / 8 <= high <= 2 * wide or high * wide > _LONGEST * 64:
            continue
        most = (high * wide - extent + 1) // wide
        if most < 1 or (most * wide > 2 * n and high > last):
            continue
        # Whole rows of a tile are written.
        tiles = problem.output[0] * -(-n // (most * wide))
        found.append(_Candidate(rows, columns, high * wide, True, (1, most * wide), tiles))
    return found


def _least(problem: ConvProblem, machine: Machine, some: _Candidate) -> float:
    """What tiles cost that stay in the cache: the transforms alone."""
    inputs, results = problem.group_in, problem.group_out
    pairs = problem.groups * -(-problem.batch * some.tiles // 2)
    # A spectrum takes half of the transforms, and is written.
    transforms = pairs * (inputs + results) / 2 + 0.6 * problem.groups * inputs * results
    return some.places * transforms * _per_place(problem, machine, some, 0.0)


def _per_place(problem: ConvProblem, machine: Machine, some: _Candidate, beyond: float) -> float:
    """Seconds for a place of a pair of tiles, there and back, which are so many times as large as the cache (log2)."""
    seconds = 2.5 * some.passes / machine.transforms + (4 + 4 * beyond) / machine.copy
    return seconds * (1.5 if some.signal else 1.0) * working_dtype(problem.dtype).itemsize / 4


def _tiling(problem: ConvProblem, machine: Machine, some: _Candidate) -> Tiling:
    dtype, inputs, results = working_dtype(problem.dtype), problem.group_in, problem.group_out
    layout, size = Layout(dtype.name, host().lanes(dtype.name), some.down, some.across), dtype.itemsize
    pairs = problem.groups * -(-problem.batch * some.tiles // 2)
    scratch, spectrum = layout.scratch, layout.spectrum
    # What passes through the cache for each pair; and between columns and rows of a signal the roots, twice.
    touched = (sum(scratch) + spectrum * (2 if some.signal else 1)) * size
    beyond = max(0.0, math.log2(touched / (4 * machine.cache)))
    seconds = _least(problem, machine, some)
    if beyond:
        seconds *= _per_place(problem, machine, some, beyond) / _per_place(problem, machine, some, 0.0)
    seconds += _CALL * machine.call
    if inputs * results > 1:
        kernels = max(0.0, math.log2(inputs * (results + 1) * spectrum * size / (2 * machine.cache)))
        per_product = _PRODUCT / machine.transforms + kernels / machine.copy
        seconds += some.places * per_product * pairs * inputs * results * size / 4
    works = inputs + 1 if inputs * results > 1 else 1
    workspace = (sum(scratch[:2]) + works * scratch[2] + spectrum * problem.groups * inputs * results) * size
    # Pairs are copied one by one where channels lie side by side and are too many to be turned, and at signals' ends.
    copied = 2 * problem.output[0] * problem.batch * problem.groups if some.signal else 0
    if problem.layout == "channels_last" and max(problem.in_channels, problem.out_channels) > 1:
        if _turns(problem, workspace):
            seconds += _turned_bytes(problem) / 4 * 2 / machine.copy + 4 * machine.call
        else:
            copied = pairs
    seconds += min(copied, pairs) * (_COPIED * machine.call + 8 * some.places * size / 4 / machine.copy)
    return Tiling(layout, some.signal, some.shape, some.tiles, seconds, workspace)


def _turned_bytes(problem: ConvProblem) -> int:
    """Of x and y, where they are copied."""
    inputs, results = (math.prod(a) for a in (problem.x_shape, problem.y_shape))
    return (inputs + results) * working_dtype(problem.dtype).itemsize


def _turns(problem: ConvProblem, workspace: int) -> bool:
    """Whether x and y may be copied as a whole, if the kernel cannot work on them where they are."""
    return set(problem.stride) == {1} and workspace + _turned_bytes(problem) <= _MOST_BYTES


class _Grid:
    """The tiles of one image, row after row, and the tables that tell the kernel what they show.

    Attributes
    ----------
    starts, counts : array (tiles, 2)
        First output of each tile, and number of outputs.
    corners : array (tiles, 2)
        First place of x that each tile shows.
    rows, columns : array
        Tables as `fourier_tiles` reads them: of each row and of each column of tiles, then of a copy of a tile.
    tables : array (tiles, 2)
        Where each tile's part of the tables begins.
    copies : tuple of int
        Where that of a copy begins.
    """

    def __init__(self, problem: ConvProblem, tiling: Tiling) -> None:
        layout, p = tiling.layout, problem
        starts = [np.arange(0, n, m) for n, m in zip(p.output, tiling.shape, strict=True)]
        down, across = (a.ravel() for a in np.meshgrid(*(np.arange(len(s)) for s in starts), indexing="ij"))
        self.starts = np.stack([starts[0][down], starts[1][across]], axis=1)
        self.counts = np.minimum(tiling.shape, np.array(p.output) - self.starts)
        self.corners = self.starts - [before for before, _ in p.padding]
        rows, columns = [np.arange(layout.high)], [[1, 0, 0, layout.wide, 0, 1]]
        if not tiling.signal:
            rows = [*(_rows(p, int(start), layout.high) for start in starts[0]), *rows]
            columns = [*(_columns(p, int(start), layout.wide) for start in starts[1]), *columns]
        self.rows, self.columns = np.concatenate(rows), np.concatenate(columns)
        begin = np.cumsum([0, *map(len, columns)])
        self.copies = (len(self.rows) - layout.high, int(begin[-2]))
        tables = np.zeros_like(down), np.zeros_like(down)
        if not tiling.signal:
            tables = down * layout.high, begin[across]
        self.tables = np.stack(tables, axis=1)


def _rows(problem: ConvProblem, start: int, length: int) -> npt.NDArray[np.int64]:
    """The rows of x, or OUTSIDE, that a tile shows which computes the outputs from row ``start`` on."""
    rows = np.full(length, OUTSIDE)
    for piece in _runs(problem, 0, start, length):
        rows[piece.foot] = np.arange(*piece.x.indices(problem.size[0]))
    return rows


def _columns(problem: ConvProblem, start: int, length: int) -> list[int]:
    """The pieces that the columns of a tile fall into: see `fourier_tiles`."""
    pieces, covered = [], 0
    for piece in _runs(problem, 1, start, length):
        count = piece.foot.stop - piece.foot.start
        step = piece.x.step or int(piece.x.stop - piece.x.start == count)
        pieces += [piece.foot.start, count, piece.x.start, step]
        covered += count
    return [len(pieces) // 4, int(covered < length), *pieces]


def _runs(problem: ConvProblem, dim: int, start: int, length: int) -> list[Run]:
    """The runs of what a tile shows: as much as its outputs need, and what else is inside x."""
    size, first = problem.size[dim], start - problem.padding[dim][0]
    needed = problem.output[dim] - start + problem.extent[dim] - 1
    return runs(first, min(length, max(needed, size - first)), size, problem.boundary)


@dataclass(frozen=True)
class _Tile:
    """A tile of an image and of a group of channels."""

    image: int
    group: int
    number: int


@dataclass(frozen=True)
class _Job:
    """What the kernel is called with.

    ``distances``: of rows of x and y, then of channels.
    """

    x: Array
    y: Array
    distances: tuple[int, int, int, int]
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.int64]
    odd: Array


class FourierPrepared:
    """Spectra of the kernels, one for each output channel, and tables of what the tiles show."""

    def __init__(
        self, problem: ConvProblem, operand: Array, bias: Array | None = None, tiling: Tiling | None = None
    ) -> None:
        self.problem, self.operand = problem, operand
        self.dense = dense(problem)
        self.dtype: np.dtype[Any] = working_dtype(problem.dtype)
        found = tiling or best_tiling(self.dense, Machine())
        assert found is not None  # refused
        self.tiling = found
        self.layout = layout = found.layout
        self.summed = problem.group_in * problem.group_out > 1
        self.kernel = compiled(
            fourier_tiles,
            dtype=layout.dtype,
            down=layout.down,
            across=layout.across,
            signal=found.signal,
            summed=self.summed,
        )
        self.twiddles = np.concatenate([twiddles(layout.down, self.dtype), twiddles(layout.across, self.dtype)])
        self.roots = self._roots() if found.signal else np.zeros(1, self.dtype)
        self.bias = np.zeros(problem.out_channels, self.dtype)
        if bias is not None:
            self.bias[:] = bias
        self.spectra = self._spectra(operand.astype(self.dtype, copy=False))
        self.grid = _Grid(self.dense, found)
        self._plans: dict[tuple[Any, ...], tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]] = {}

    # What is prepared.

    def _roots(self) -> Array:
        """The twiddles between columns and rows of a signal, laid out like a spectrum."""
        layout = self.layout
        places = layout.high * layout.wide
        products = np.outer(frequencies(layout.down), np.arange(layout.wide)) % places
        angles = (-2 * np.pi / places) * products.reshape(-1, layout.lanes, layout.wide).transpose(0, 2, 1)
        return np.ascontiguousarray(np.stack([np.cos(angles), np.sin(angles)], axis=2), self.dtype)

    def _spectra(self, operand: Array) -> Array:
        """The conjugate spectra of the kernels, spread by their dilation."""
        p, layout, signal = self.dense, self.layout, self.tiling.signal
        # Taps that lie beyond a tile meet nothing (`transform_length`).
        lengths = (1, layout.high * layout.wide) if signal else (layout.high, layout.wide)
        reached = [min(r, -(-n // d)) for r, n, d in zip(p.kernel, lengths, p.dilation, strict=True)]
        extent = [(r - 1) * d + 1 for r, d in zip(reached, p.dilation, strict=True)]
        wide = layout.wide if signal else extent[1]
        high = -(-extent[1] // wide) if signal else extent[0]
        kernels = p.out_channels * p.group_in
        x = np.zeros((kernels, high, wide), self.dtype)
        places = x.reshape(kernels, 1, -1) if signal else x
        taps = operand.reshape(kernels, *p.kernel)[:, : reached[0], : reached[1]]
        places[:, : extent[0] : p.dilation[0], : extent[1] : p.dilation[1]] = taps
        # The real part shows the kernel, the imaginary part nothing.
        rows = np.full(2 * layout.high, OUTSIDE)
        rows[:high] = np.arange(high)
        columns = np.array([1, int(wide < layout.wide), 0, wide, 0, 1], np.int64)
        number = np.arange(kernels)
        pairs = np.zeros((kernels, len(PAIR)), np.int64)
        pairs[:, PAIR.index("x0")] = number * (high * wide)
        pairs[:, PAIR.index("rows1")] = layout.high
        pairs[:, PAIR.index("spectrum")] = number * layout.spectrum
        h = run.fresh(kernels * layout.spectrum, self.dtype)
        job = _Job(x, x, (wide, 0, 0, 0), rows, columns, pairs, x)
        self._call(job, h, (0, len(pairs)), scale=1 / (layout.high * layout.wide))
        return h

    # Running.

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        x, y = self._images(source), self._images(out)
        there = self._usable(x) and self._usable(y)
        seen, result = x, y
        if not there and _turns(self.problem, self.tiling.workspace):
            copies = run.workspace("turned", x.size, y.size, dtype=self.dtype)
            seen, result = (copy.reshape(a.shape) for copy, a in zip(copies, (x, y), strict=True))
            assign(seen, x)
        for tile in self._transform(seen, result, threads):
            self._again(x, result, tile)
        if result is not y:
            assign(y, result)

    def _images(self, a: Array) -> Array:
        """A view as (n, channels, rows, columns); a signal is one row."""
        a = channels_first(self.problem, a)
        return a[:, :, None] if self.problem.spatial == 1 else a

    def _transform(self, x: Array, y: Array, threads: int) -> list[_Tile]:
        """Compute everything; return the tiles whose pairs are not finite."""
        pairs, in_place = self._plan(x, y)
        odd = np.zeros((len(pairs), self.layout.lanes), self.dtype)
        job = _Job(x, y, self._distances(x, y), self.grid.rows, self.grid.columns, pairs, odd)

        def work(some: tuple[int, int]) -> None:
            if in_place[some[0]]:
                self._call(job, self.spectra, some)
            else:
                self._copied(job, some[0])

        run.for_each(work, _ranges(in_place, threads), threads)
        if not np.isnan(odd).any():
            return []
        return [tile for pair in np.flatnonzero(np.isnan(odd).any(axis=1)) for tile in self._tiles(int(pair))]

    def _call(self, job: _Job, spectra: Array, some: tuple[int, int], scale: float = 0.0) -> None:
        """Call the kernel for some of the pairs; with a scale, to write spectra."""
        outside = 0.0 if scale or isinstance(self.dense.boundary, str) else self.dense.boundary
        numbers = np.array([scale, outside], self.dtype)
        counts = (1, 1) if scale else (self.problem.group_in, self.problem.group_out)
        sizes = np.array([*some, int(scale > 0), *job.distances[:2], *counts, *job.distances[2:]], np.int64)
        image, strip, work = self.layout.scratch
        works = (counts[0] + 1) * work if self.summed else work
        workspaces = run.workspace("fourier", image, strip, works, dtype=self.dtype)
        arrays = [job.x, spectra, job.y, self.bias, *workspaces, self.twiddles, self.roots, job.odd, numbers]
        self.kernel(*arrays, job.rows, job.columns, job.pairs, sizes)

    def _plan(self, x: Array, y: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The table of pairs for arrays of these strides, and which of them are computed where they lie."""
        there = self._usable(x) and self._usable(y) and set(self.problem.stride) == {1}
        key = (there, x.strides, y.strides)
        if key in self._plans:
            return self._plans[key]
        p, grid, layout, signal = self.dense, self.grid, self.layout, self.tiling.signal
        # All tiles of a channel, in pairs: (pairs, part); behind the last tile there may be one that is not.
        tiles = p.batch * len(grid.starts)
        number = np.arange(-(-tiles // 2) * 2).reshape(-1, 2)
        exists, number = number < tiles, np.minimum(number, tiles - 1)
        image, tile = np.divmod(number, len(grid.starts))
        xs, ys = ([stride // self.dtype.itemsize for stride in a.strides] for a in (x, y))
        x_place, y_place = image * xs[0], image * ys[0] + grid.starts[tile] @ ys[2:]
        high, wide = np.moveaxis(grid.counts[tile], -1, 0)
        in_place = np.full(len(number), there)
        if signal:
            length = (1, layout.high * layout.wide)
            inside = ((grid.corners >= 0) & (grid.corners + length <= p.size)).all(axis=1)
            in_place &= (inside & (grid.counts[:, 1] == self.tiling.shape[1]))[tile].all(axis=1)
            x_place = x_place + grid.corners[tile] @ xs[2:]
            high, wide = np.full_like(tile, self.tiling.shape[1] // layout.wide), np.full_like(tile, layout.wide)
        fields = [x_place, *np.moveaxis(grid.tables[tile], -1, 0), y_place, high * exists, wide * exists]
        group = np.arange(p.groups)[:, None]
        pairs = np.zeros((p.groups, len(number), len(PAIR)), np.int64)
        pairs[..., : 2 * len(TILE)] = np.stack(fields, axis=-1).reshape(len(number), -1)
        for part in (0, len(TILE)):
            pairs[..., part + TILE.index("x")] += group * (p.group_in * xs[1])
            pairs[..., part + TILE.index("y")] += group * (p.group_out * ys[1])
        pairs[..., PAIR.index("spectrum")] = group * (p.group_out * p.group_in * layout.spectrum)
        pairs[..., PAIR.index("channel")] = group * p.group_out
        if len(self._plans) > 10:  # arrays of ever other memory orders
            self._plans.clear()
        found = self._plans[key] = pairs.reshape(-1, len(PAIR)), np.tile(in_place, p.groups)
        return found

    def _tiles(self, pair: int) -> list[_Tile]:
        """The tiles of a pair."""
        tiles = self.dense.batch * len(self.grid.starts)
        group, first = pair // -(-tiles // 2), pair % -(-tiles // 2) * 2
        each = len(self.grid.starts)
        return [_Tile(n // each, group, n % each) for n in range(first, min(first + 2, tiles))]

    def _usable(self, a: Array) -> bool:
        """Whether the kernel can work on an array (n, channels, rows, columns) where it lies."""
        size = self.dtype.itemsize
        if a.dtype != self.dtype or not a.flags.aligned or any(stride % size for stride in a.strides):
            return False
        return a.strides[-1] == size or a.shape[-1] == 1

    def _distances(self, x: Array, y: Array) -> tuple[int, int, int, int]:
        size, wide = self.dtype.itemsize, self.layout.wide
        rows = (wide, wide) if self.tiling.signal else (x.strides[2] // size, y.strides[2] // size)
        return *rows, x.strides[1] // size, y.strides[1] // size

    def _copied(self, job: _Job, number: int) -> None:
        """Compute a pair from copies of its footprints, and copy its results out."""
        p, layout, grid, tiles = self.dense, self.layout, self.grid, self._tiles(number)
        signal, shape = self.tiling.signal, self.tiling.shape
        lengths = (1, layout.high * layout.wide) if signal else (layout.high, layout.wide)
        shapes = (2, p.group_in, *lengths), (2, p.group_out, *shape)
        flat = run.workspace("copies", *map(math.prod, shapes), dtype=self.dtype)
        x, y = (a.reshape(s) for a, s in zip(flat, shapes, strict=True))
        x[len(tiles) :] = 0
        for tile, copy in zip(tiles, x, strict=False):
            start, count = (tuple(map(int, a[tile.number])) for a in (grid.starts, grid.counts))
            block = box(p, slice(tile.image, tile.image + 1), start, count, gapless=True)
            seen = tuple(min(n, m) for n, m in zip(block.foot_shape, lengths, strict=True))
            if seen != lengths:
                copy[...] = 0
            block = dataclasses.replace(block, foot_shape=seen)
            inputs, _ = self._channels(tile)
            fill_footprint(p, job.x[block.images, inputs], block, copy[None, :, : seen[0], : seen[1]])
        pair = job.pairs[number : number + 1].copy()
        sizes = x[0].size, y[0].size
        for part in range(2):
            fields = pair[0, part * len(TILE) :]
            fields[0], fields[1:3], fields[3] = part * sizes[0], grid.copies, part * sizes[1]
        odd = np.zeros((1, layout.lanes), self.dtype)
        copied = _Job(x, y, self._distances(x, y), job.rows, job.columns, pair, odd)
        self._call(copied, self.spectra, (0, 1))
        job.odd[number] = odd[0]
        for tile, copy in zip(tiles, y, strict=False):
            target, (rows, columns) = self._target(job.y, tile)
            assign(target, copy[:, rows, columns])

    def _channels(self, tile: _Tile) -> tuple[slice, slice]:
        """The channels of x and of y that are a tile's."""
        p, group = self.problem, tile.group
        inputs, results = (slice(group * n, (group + 1) * n) for n in (p.group_in, p.group_out))
        return inputs, results

    def _target(self, y: Array, tile: _Tile) -> tuple[Array, tuple[slice, ...]]:
        """The outputs of the problem that are a tile's, and which of the tile's outputs they are."""
        strides = (*(1,) * (2 - self.problem.spatial), *self.problem.stride)
        outputs, places = [], []
        for start, count, s in zip(self.grid.starts[tile.number], self.grid.counts[tile.number], strides, strict=True):
            first, last = -(-start // s), -(-(start + count) // s)
            outputs.append(slice(first, last))
            places.append(slice(first * s - start, count, s))
        rows, columns = outputs
        return y[tile.image, self._channels(tile)[1], rows, columns], tuple(places)

    def _again(self, x: Array, y: Array, tile: _Tile) -> None:
        """Compute a tile of a pair whose transform is not finite.

        The terms of what is not finite in x are added to the transform of all other numbers: a sum has the same
        infinities and NaN in any order. Where the transform overflows, or much of x is not finite, the tile is summed
        directly.
        """
        p, spatial = self.problem, self.problem.spatial
        target, _ = self._target(y, tile)
        if not target.size:
            return
        strides = (*(1,) * (2 - spatial), *p.stride)
        first = tuple(int(-(-start // s)) for start, s in zip(self.grid.starts[tile.number], strides, strict=True))
        image, (inputs, results) = slice(tile.image, tile.image + 1), self._channels(tile)
        block = box(p, image, first[2 - spatial :], target.shape[3 - spatial :], gapless=True)
        foot = np.empty((1, p.group_in, *block.foot_shape), self.dtype)
        seen = x if spatial == 2 else x[:, :, 0]
        fill_footprint(p, seen[image, inputs], block, foot)
        alone = dataclasses.replace(
            p,
            batch=1,
            in_channels=p.group_in,
            out_channels=p.group_out,
            groups=1,
            size=block.foot_shape,
            padding=((0, 0),) * spatial,
            boundary=0,
            layout="channels_first",
            dtype=self.dtype,
        )
        result = np.empty((1, p.group_out, *block.shape), self.dtype)
        w, bias = self.operand[results], self.bias[results]
        finite = np.isfinite(foot)
        odd, rest = np.argwhere(~finite[0].all(axis=0)), np.where(finite, foot, 0)
        few = len(odd) < _MOST_ODD * math.prod(block.shape)
        prepared = FourierPrepared(alone, w, bias) if few else None
        if prepared and not prepared._transform(prepared._images(rest), prepared._images(result), 1):
            with np.errstate(all="ignore"):
                for place in odd:
                    add_terms(alone, foot[0], tuple(place), w, result[0])
        else:
            Im2colPrepared(alone, w, bias).run(foot, result, 1)
        target[...] = result.reshape(target.shape)


def _ranges(in_place: npt.NDArray[np.bool_], threads: int) -> list[tuple[int, int]]:
    """Ranges of pairs for the threads; pairs that need copies one by one."""
    most = len(in_place) if threads == 1 else max(1, len(in_place) // (4 * threads))
    ranges, first = [], 0
    while first < len(in_place):
        last = first + 1
        while in_place[first] and last < len(in_place) and in_place[last] and last - first < most:
            last += 1
        ranges.append((first, last))
        first = last
    return ranges
