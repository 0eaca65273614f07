"""Depthwise convolution by Fourier transforms along one dimension and sums along the other, generated."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.finite import again, of_footprint
from wherever.engine.algorithms.forward import as_forward, forward_weights, refuses_sums
from wherever.engine.algorithms.fourier import dense
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.overlap_save import transform_length
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, box, fill_footprint, last_axes, places
from wherever.engine.copies import assign, readable
from wherever.engine.kernels.codelets import frequencies
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.fourier_channels import OUTSIDE, mirrored, passes, roots
from wherever.engine.kernels.fourier_lines import fourier_lines
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

_LENGTHS = (6, 8, 10, 12, 14, 16, 18, 20, 21, 24, 28, 30, 32, 36, 40, 42, 48, 56, 60, 64, 70, 72, 80, 96, 112, 128)
_SPECTRUM_BYTES = 640 << 10  # of the lines of one part: they stay in the second cache
_PART_BYTES = 4 << 20  # of the input of a part, where it is copied
_SHARES = 4  # of the work, for each thread
_PASS = 1.7  # how much longer a pass over a line takes than one of Winograd's transforms


class FourierLines(Algorithm):
    """The convolution theorem along one dimension, and sums along the other: y[f, i] = sum over a of w[f, a] x[f, i+a].

    Beside transforms along both dimensions it needs half of them, and products of as many terms as the kernel has
    lines, each of four multiply-adds. Two lines are transformed as one of complex numbers. Numbers that are not finite
    add their terms to the transform of the others.
    """

    name = "fourier_lines"
    sums_directly = False

    def refuses(self, problem: ConvProblem) -> str | None:
        """Strides, channels that are summed, more than 2 dimensions, kernels too long for the lines."""
        refusal = refuses_sums(problem)
        if refusal is not None:
            return refusal
        forward = as_forward(problem)
        if forward.group_in != 1 or forward.group_out != 1:
            return "has one kernel for each channel, and sums no channels"
        if set(forward.stride) != {1}:
            return "a transform computes every place; stride is 1 only"
        if problem.spatial > 2:
            return f"transforms one dimension and sums another, of {problem.spatial}"
        if not isinstance(problem.boundary, str) and not np.isfinite(problem.boundary):
            return "transforms no boundary that is not finite"
        if best_tiling(dense(forward), Machine()) is None:
            return "the kernel is of one place, or spans more than its lines, in every dimension"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The cost of the best lines."""
        tiling = best_tiling(dense(as_forward(problem)), machine)
        return math.inf if tiling is None else tiling.seconds

    def least(self, problem: ConvProblem, machine: Machine) -> float:
        """As if lines overlapped nowhere, and were transformed in one pass; without sums."""
        forward = as_forward(problem)
        numbers = forward.batch * math.prod(forward.output) * forward.in_channels
        return 1.5 * _PASS * numbers / machine.transforms * working_dtype(forward.dtype).itemsize / 4

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """Transforms of the kernel's lines, as products of matrices, and its spectrum written."""
        tiling = best_tiling(dense(as_forward(problem)), machine)
        along = 1 if tiling is None else tiling.length / problem.kernel[tiling.along - 2 + problem.spatial]
        return super().preparation(problem, machine) * (1 + 3 * along)

    def workspace(self, problem: ConvProblem) -> int:
        """Spectra of the lines of one part, copies of its input and output, and the kernel's spectrum."""
        tiling = best_tiling(dense(as_forward(problem)), Machine())
        return 0 if tiling is None else tiling.workspace

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Transform the lines of the kernel."""
        if problem.direction == "transpose" and not np.isfinite(operand).all():
            # An infinite weight would meet the zeros outside, and they are not there.
            return Im2colPrepared(problem, operand, bias)
        return FourierLinesPrepared(as_forward(problem), forward_weights(problem, operand), bias)


@dataclass(frozen=True)
class Tiling:
    """Lines, and how they are worked on.

    Attributes
    ----------
    along : int
        The dimension that is transformed; the other one is summed.
    length : int
        Of the transforms.
    wide : int
        Outputs of a line.
    lines : int
        Lines of outputs of one part.
    high : int
        Lines that are summed together.
    backwards : bool
        Whether sums go over the lines of x, not over those of the kernel.
    seconds : float
    workspace : int
        Bytes.
    """

    along: int
    length: int
    wide: int
    lines: int
    high: int
    backwards: bool
    seconds: float
    workspace: int


@functools.lru_cache(maxsize=512)
def best_tiling(problem: ConvProblem, machine: Machine) -> Tiling | None:
    """The cheapest lines of a problem of two dimensions; None if there are none."""
    return min(tilings(problem, machine), key=lambda tiling: tiling.seconds, default=None)


def tilings(problem: ConvProblem, machine: Machine) -> list[Tiling]:
    """All that are considered."""
    return [
        _tiling(problem, machine, along, length, wide)
        for along in (0, 1)
        if problem.kernel[along] > 1
        for length, wide in _line_options(problem, along)
    ]


def _line_options(problem: ConvProblem, dim: int) -> list[tuple[int, int]]:
    """(length, outputs) of lines: pieces of the dimension, and the whole, which may wrap into its zero border."""
    whole, n, extent = transform_length(problem, dim, 0, problem.output[dim]), problem.output[dim], problem.extent[dim]
    found = []
    for length in _LENGTHS:
        if length >= whole:
            found.append((length, n))
            break
        if length > extent + extent // 4:
            # Tiles of nearly one size.
            tiles = -(-n // (length - extent + 1))
            found.append((length, -(-n // tiles)))
    return found


def _tiling(problem: ConvProblem, machine: Machine, along: int, length: int, wide: int) -> Tiling:
    dtype, across = working_dtype(problem.dtype), 1 - along
    lanes, size = host().lanes(dtype.name), dtype.itemsize
    n, taps, apart, extent = (
        sizes[across] for sizes in (problem.output, problem.kernel, problem.dilation, problem.extent)
    )
    pieces = -(-problem.output[along] // wide)
    if taps == 1:
        n, pieces = n * pieces, 1
    bytes_of_line = (length // 2 + 1) * 2 * lanes * size
    parts = -(-n // max(1, _SPECTRUM_BYTES // bytes_of_line - extent + 1))
    lines = -(-n // parts)
    shown = lines + extent - 1
    if problem.boundary == 0 and taps > 1:
        shown = min(shown, problem.size[across])
    high, backwards, steps = _register_tile(lines, shown, taps, apart)
    sums = 4 * (length // 2 + 1) * high * steps / machine.multiply_adds
    transforms = _PASS * length * (2 + len(passes(length))) * (-(-lines // 2) + -(-shown // 2)) / machine.transforms
    vectors = -(-problem.in_channels // lanes)
    seconds = problem.batch * parts * pieces * vectors * lanes * (sums + transforms)
    if problem.layout == "channels_first" and problem.in_channels > 1:
        seconds += 4 * problem.batch * vectors * lanes * math.prod(problem.output) / machine.copy
    workspace = (shown + lines) * bytes_of_line + vectors * (taps + 2 * (high - 1) * backwards) * bytes_of_line
    seconds = seconds * size / 4 + 10 * machine.call
    return Tiling(along, length, wide, lines, high, backwards, seconds, workspace + 2 * _PART_BYTES)


def _register_tile(lines: int, shown: int, taps: int, apart: int) -> tuple[int, bool, int]:
    """(lines summed together, whether backwards, steps of all blocks): the fewest multiply-adds, and loads."""
    choices = []
    for high in range(1, min(lines, max(1, (host().registers - 4) // 2)) + 1):
        blocks = -(-lines // high)
        options = [(blocks * min(taps, -(-(shown + high - 1) // apart)), False)]
        if apart == 1:
            options.append((blocks * min(shown, taps + high - 1), True))
        choices += [((high + 1) * steps + blocks, high, backwards, steps) for steps, backwards in options]
    _, high, backwards, steps = min(choices)
    return high, backwards, steps


@dataclass(frozen=True)
class _Call:
    """What the kernel is called with for arrays of one memory order.

    Attributes
    ----------
    tables : tuple of arrays
    fixed : tuple of int
        Addresses of what is prepared, and of the tables.
    spaces : tuple of int
        Where the parts of a thread's workspace begin, and where it ends: what is elsewhere, odd, work, z, strip.
    shares : list of arrays
        The kernel's sizes, for each share of the work.
    """

    tables: tuple[npt.NDArray[np.int64], ...]
    fixed: tuple[int, ...]
    spaces: tuple[int, ...]
    shares: list[npt.NDArray[np.int64]]


class FourierLinesPrepared:
    """The spectra of the kernel's lines, (vector of channels, f, line, part, lane)."""

    def __init__(
        self, problem: ConvProblem, operand: Array, bias: Array | None = None, tiling: Tiling | None = None
    ) -> None:
        self.given, self.problem = problem, dense(problem)
        p = self.problem
        self.dtype: np.dtype[Any] = working_dtype(p.dtype)
        found = tiling or best_tiling(p, Machine())
        assert found is not None  # refused
        self.tiling = tiling = found
        self.across = 1 - tiling.along
        self.lanes = lanes = host().lanes(self.dtype.name)
        self.roots = roots((tiling.length,), self.dtype)
        self.mirrored = mirrored((tiling.length,))
        self.in_workspace = self.mirrored * (2 * lanes)
        self.bias = np.zeros(-(-p.in_channels // lanes) * lanes, self.dtype)
        if bias is not None:
            self.bias[: p.out_channels] = bias
        self.operand = operand.astype(self.dtype, copy=False).reshape(p.w_shape)
        self.weight = self._spectra()
        self.outside = 0.0 if isinstance(p.boundary, str) else p.boundary
        self.calls: dict[tuple[Any, ...], _Call] = {}
        self.kernel = compiled(
            fourier_lines,
            dtype=self.dtype.name,
            length=tiling.length,
            wide=tiling.wide,
            high=tiling.high,
            apart=p.dilation[self.across],
            backwards=tiling.backwards,
            tail=p.in_channels % lanes > 0,
        )

    def _spectra(self) -> Array:
        """The conjugate F[w] / 2 n of each line, at one of each pair of frequencies."""
        p, tiling, lanes = self.problem, self.tiling, self.lanes
        w = self.operand[:, 0] if tiling.along == 1 else self.operand[:, 0].swapaxes(1, 2)
        f = frequencies(passes(tiling.length))[self.mirrored[:, 0]]
        angles = np.outer(np.arange(w.shape[2]) * p.dilation[tiling.along], f) % tiling.length
        waves = np.exp(2j * np.pi / tiling.length * angles) / (2 * tiling.length)
        zeros = (tiling.high - 1) * tiling.backwards
        shape = (len(self.bias) // lanes, len(f), w.shape[1] + 2 * zeros, 2, lanes)
        g = run.fresh(math.prod(shape), self.dtype)
        spectra = np.zeros((2, len(self.bias), w.shape[1], len(f)), self.dtype)
        with np.errstate(all="ignore"):  # weights that are not finite are data: results are then summed directly
            for part, wave in enumerate((waves.real, waves.imag)):
                np.matmul(w, wave.astype(self.dtype), out=spectra[part, : len(w)])
        panels = spectra.reshape(2, -1, lanes, w.shape[1], len(f)).transpose(1, 4, 3, 0, 2)
        g.reshape(shape)[:, :, zeros : zeros + w.shape[1]] = panels
        return g

    @functools.cached_property
    def parts(self) -> list[tuple[Block, tuple[slice, ...]]]:
        """Parts of the problem whose inputs and outputs are copied, and which of its outputs each of them gives.

        Those at the far end overlap others: all are of one size.
        """
        p, tiling = self.problem, self.tiling
        shape, channels = list(p.output), p.in_channels * self.dtype.itemsize
        lines = min(tiling.lines, shape[self.across])
        many = max(1, _PART_BYTES // (channels * lines * shape[tiling.along]))
        shape[self.across] = min(shape[self.across], lines * many)
        if many == 1:
            pieces = max(1, _PART_BYTES // (channels * lines * tiling.wide))
            shape[tiling.along] = min(shape[tiling.along], pieces * tiling.wide)
        starts = [range(0, n, step) for n, step in zip(p.output, shape, strict=True)]
        found = []
        for image, place in itertools.product(range(p.batch), itertools.product(*starts)):
            begin = tuple(min(start, n - m) for start, n, m in zip(place, p.output, shape, strict=True))
            part = box(p, slice(image, image + 1), begin, tuple(shape), gapless=True)
            found.append((part, tuple(slice(start - first, None) for start, first in zip(place, begin, strict=True))))
        return found

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        x, y = self._images(source), self._images(out)
        if not (readable(x, self.dtype, 1) and readable(y, self.dtype, 1)):
            run.for_each(lambda part: self._part(x, y, *part), self.parts, threads)
        elif not self._compute(x, y, None, threads):
            for part in self.parts:
                self._part(x, y, *part)

    def _images(self, a: Array) -> Array:
        """A view as (n, channels, rows, columns); a signal is one row."""
        a = channels_first(self.given, a)
        return a[:, :, None] if self.given.spatial == 1 else a

    def _part(self, x: Array, y: Array, part: Block, given: tuple[slice, ...]) -> None:
        """Compute a part from a copy of what it reads."""
        p = self.problem
        foot, result = self._buffer("foot", part.foot_shape), self._buffer("part", part.shape)
        fill_footprint(p, x[part.images], part, foot)
        if not self._compute(foot, result, part, 1):

            def transformed(numbers: Array) -> bool:
                foot[...] = numbers
                return self._compute(foot, result, part, 1)

            alone = of_footprint(p, part, self.dtype)
            again(alone, foot.copy(), result, self.operand, self.bias[: p.out_channels], transformed)
        assign(y[part.outputs][last_axes(given)], result[last_axes(given)])

    def _buffer(self, purpose: str, shape: tuple[int, ...]) -> Array:
        """Memory for (1, channels, *shape) with the channels last."""
        channels = self.problem.in_channels
        (flat,) = run.workspace(purpose, channels * math.prod(shape), dtype=self.dtype)
        return flat.reshape(1, *shape, channels).transpose(0, 3, 1, 2)

    def _compute(self, x: Array, y: Array, part: Block | None, threads: int) -> bool:
        """Compute a part from its footprint, or all from x itself; return whether all results are finite."""
        key = (x.strides, y.strides, y.shape, None if part is None else part.foot_shape, threads)
        call = self.calls.get(key)
        if call is None:
            if len(self.calls) > 100:  # arrays of ever other memory orders
                self.calls.clear()
            call = self.calls[key] = self._call(x, y, part, threads)
        arrays, lanes, numbers = (x.ctypes.data, y.ctypes.data), self.lanes, call.spaces[-1]
        finite = True

        def compute(sizes: npt.NDArray[np.int64]) -> None:
            nonlocal finite
            (memory,) = run.workspace("lines", numbers, dtype=self.dtype)
            memory[:lanes], memory[lanes : 7 * lanes] = self.outside, 0
            begin = memory.ctypes.data
            elsewhere, odd, work, z, strip = (begin + space * self.dtype.itemsize for space in call.spaces[:-1])
            self.kernel(*arrays, elsewhere, work, *call.fixed[:2], odd, z, strip, *call.fixed[2:], sizes.ctypes.data)
            if math.isnan(memory[6 * lanes : 7 * lanes].sum()):
                finite = False

        run.for_each(compute, call.shares, threads)
        return finite

    def _call(self, x: Array, y: Array, part: Block | None, threads: int) -> _Call:
        """The tables of lines, places and sums; see the kernel."""
        p, tiling, along, across = self.problem, self.tiling, self.tiling.along, self.across
        if part is None:
            part = box(p, slice(0, p.batch), (0, 0), p.output, gapless=True)
            bounds = zip(part.foot_start, part.foot_shape, p.size, strict=True)
            shown = [places(start, length, n, p.boundary) for start, length, n in bounds]
        else:
            shown = [np.arange(n) for n in part.foot_shape]
        (x_image, _, *x_steps), (y_image, _, *y_steps) = (
            [stride // self.dtype.itemsize for stride in a.strides] for a in (x, y)
        )
        # Pieces of lines: what each of them sees, and no further, and where its outputs go.
        starts = np.arange(0, part.shape[along], tiling.wide)[:, None]
        at = starts + np.arange(tiling.length)
        stop = np.minimum(starts + tiling.wide, part.shape[along])
        seen = at < np.minimum(stop + p.extent[along] - 1, len(shown[along]))
        there = shown[along][np.where(seen, at, 0)]
        x_places = np.where(seen & (there >= 0), there * x_steps[along], OUTSIDE)
        y_places = np.where(at < stop, at * y_steps[along], OUTSIDE)
        # Lines: (row, piece) of y, whose windows look at as many of x and some more. Where the kernel is one line, all
        # pieces of all rows are worked on together; otherwise those of one column. The last of them overlap others.
        rows, pieces, extent = part.shape[across], len(starts), p.extent[across]
        together = pieces if p.kernel[across] == 1 else 1
        lines = min(tiling.lines, rows * together)
        begins = range(0, rows * together, lines)
        x_tiles: list[npt.NDArray[np.int64]] = []
        y_tiles: list[npt.NDArray[np.int64]] = []
        strips, spans, x_first = [], [], 0
        numbers: list[tuple[int, ...]] = []
        for begin in begins:
            known = max(0, begin + lines - rows * together)
            row, piece = np.divmod(begin - known + np.arange(lines + extent - 1), together)
            from_x = shown[across][row]
            offset = np.where(from_x >= 0, from_x * x_steps[across], OUTSIDE)
            read = (from_x >= 0) | (self.outside != 0)
            strips.append(np.where(read, np.cumsum(read) - 1, -1))
            spans.append(self._spans(lines, np.flatnonzero(read)))
            count = int(read.sum())
            for image in range(len(x)):
                for first in range(0, pieces, together):
                    number = len(numbers)
                    behind = len(row) * (len(strips) - 1), spans[-1].size * (len(spans) - 1)
                    numbers.append((count + count % 2, lines, x_first, number * (lines + lines % 2), *behind))
                    x_tiles.append(_even(offset[read] + image * x_image, (piece[read] + first) * tiling.length))
                    to = row[:lines] * y_steps[across] + image * y_image
                    to[:known] = OUTSIDE
                    y_tiles.append(_even(to, (piece[:lines] + first) * tiling.length))
                    x_first += count + count % 2
        tables = [np.concatenate(x_tiles), x_places, np.concatenate(y_tiles), y_places, self.in_workspace]
        tables += [np.array(numbers), np.concatenate(strips), np.concatenate(spans)]
        tables = [np.ascontiguousarray(table, np.int64) for table in tables]
        # A frequency of z is an odd number of lines, and no large power of two.
        lanes, z_frequency = self.lanes, (lines + extent + 1 | 1) * 2 * self.lanes
        taps = p.kernel[across] + 2 * (tiling.high - 1) * tiling.backwards
        counts = (6 * lanes, lanes, 2 * tiling.length * lanes, len(self.mirrored) * z_frequency, 2 * lanes * len(row))
        fixed = [self.roots, self.bias, self.weight, *tables]
        return _Call(
            tuple(tables),
            tuple(a.ctypes.data for a in fixed),
            tuple(itertools.accumulate(counts, initial=0)),
            [
                np.array([*tile, *channel, len(self.mirrored), len(row), taps, z_frequency], np.int64)
                for channel, tile in _shares(p.in_channels, lanes, len(numbers), threads)
            ],
        )

    def _spans(self, lines: int, read: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """What the sums of each block of lines go over, (blocks, 2): taps, or lines of x, that meet anything."""
        taps, apart, high = self.problem.kernel[self.across], self.problem.dilation[self.across], self.tiling.high
        low, last = (int(read[0]), int(read[-1]) + 1) if len(read) else (0, 0)
        first = np.minimum(np.arange(0, lines, high), lines - high)
        if self.tiling.backwards:
            return np.stack([np.maximum(low, first), np.minimum(last, first + high - 1 + taps)], 1)
        begin = -((first + high - 1 - low) // apart)
        return np.stack([np.maximum(0, begin), np.minimum(taps, (last - 1 - first) // apart + 1)], 1)


def _even(offsets: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A table of lines; of an even number of them, the last perhaps nowhere."""
    table = np.stack([offsets, starts], 1)
    return np.concatenate([table, [[OUTSIDE, 0]]]) if len(table) % 2 else table


def _shares(channels: int, lanes: int, tiles: int, threads: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Ranges of channels and of tiles, enough for the threads."""
    if threads == 1:
        return [((0, channels), (0, tiles))]
    spans = run.pieces(channels, lanes, threads * _SHARES)
    others = run.pieces(tiles, 1, -(-threads * _SHARES // len(spans)))
    return [((a.start, a.stop), (b.start, b.stop)) for a, b in itertools.product(spans, others)]
