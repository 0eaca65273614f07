"""Overlap-save: tiles of the input multiplied by the kernel's spectrum, through SciPy's fast Fourier transform."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from wherever.engine.algorithms.blockwise import channels_first, per_channel, store
from wherever.engine.algorithms.finite import again, of_footprint
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, fill_footprint, gather, grid, last_axes, runs, scatter
from wherever.engine.machine import Machine, arithmetic_cost, working_dtype
from wherever.problem import Array, ConvProblem

_TILE_BYTES = 8 << 20  # of all tiles that are transformed at once
_SPECTRUM_BYTES = 64 << 20  # that the kernel's spectrum may take, or as much as 16 times the kernel
_LONGEST = 64  # tiles up to so many times as long as the kernel are considered


class OverlapSave(Algorithm):
    """The convolution theorem on tiles: y = F^-1[conj F[w] F[x]] on the part of a tile where nothing wraps around.

    In the transposed direction the same tiles are added instead (overlap-add), and for the gradient by the weights
    their spectra are summed and transformed back once. Rounding errors are relative to the largest numbers of a tile.
    To a tile with infinities or NaN their terms are added, so that such a number reaches only the outputs whose window
    covers it; a tile whose transform overflows, and a gradient by the weights, is then summed directly.
    """

    name = "overlap_save"
    sums_directly = False

    def refuses(self, problem: ConvProblem) -> str | None:
        """Kernels of one place, integers, and what only direct summation does."""
        if problem.taps == 1:
            return "a kernel of one place needs no transform"
        if working_dtype(problem.dtype).char not in "fdFD":
            return f"a transform rounds; {problem.dtype} must be summed directly"
        if not problem.multiply_adds:
            return "there is nothing to transform"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The cost of the best tiles."""
        return best_tiling(problem, machine).seconds

    def least(self, problem: ConvProblem, machine: Machine) -> float:
        """As if tiles overlapped nowhere, and transforms were as long as the kernel."""
        places = problem.batch * math.prod(problem.output)
        channels = problem.in_channels + problem.out_channels
        bits = math.log2(max(2, math.prod(min(r, n) for r, n in zip(problem.kernel, problem.output, strict=True))))
        passes = 2.5 * bits * places * channels / machine.transform
        sums = places * problem.out_channels * problem.group_in / _product_rate(problem, machine)
        return (passes + sums + 4 * places * channels / machine.copy) * arithmetic_cost(problem) + 40 * machine.call

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """Nothing more: estimates count the kernel's transform."""
        return 0.0

    def workspace(self, problem: ConvProblem) -> int:
        """Tiles, their spectra, and the kernel's spectrum."""
        return best_tiling(problem, Machine()).workspace

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Transform the kernel."""
        return OverlapSavePrepared(problem, operand, bias)


@dataclass(frozen=True)
class Tiling:
    """Tiles of outputs, the transforms that they need, and what that costs.

    Attributes
    ----------
    shape : tuple of int
        Outputs of a tile in each dimension.
    lengths : tuple of int
        Length of the transform in each dimension; where the kernel has one place, there is none and this is the
        length of the footprint.
    axes : tuple of int
        The spatial dimensions that are transformed.
    tiles : int
        Number of tiles, over all images.
    at_once : int
        How many of them are transformed together.
    seconds : float
    workspace : int
        Bytes.
    """

    shape: tuple[int, ...]
    lengths: tuple[int, ...]
    axes: tuple[int, ...]
    tiles: int
    at_once: int
    seconds: float
    workspace: int


def transform_length(problem: ConvProblem, dim: int, start: int, count: int) -> int:
    """The shortest circular transform that gives ``count`` outputs from ``start`` on exactly.

    A circular correlation of length T confuses tap t with t' where t - t' is a multiple of T. The inputs k of
    the tile that are not zero and its outputs j (both counted from the footprint's start) meet at taps
    t = k - j * stride, between k0 - (count - 1) * stride and k1 - 1; the kernel has taps 0 .. extent - 1. So T must
    exceed the largest difference between the two ranges. Where zeros lie outside the image, this is less than
    the length of the footprint: the tile wraps into its own zero border.
    """
    stride, extent = problem.stride[dim], problem.extent[dim]
    last = (count - 1) * stride
    k0, k1 = 0, last + extent
    if problem.boundary == 0:
        foot_start = start * stride - problem.padding[dim][0]
        inside = runs(foot_start, k1, problem.size[dim], 0)
        if not inside:
            return last + 1
        k0, k1 = inside[0].foot.start, inside[0].foot.stop
    return max(k1, extent - k0 + last, last + 1)


@functools.lru_cache(maxsize=512)
def best_tiling(problem: ConvProblem, machine: Machine) -> Tiling:
    """The cheapest tiles within the workspace, of all lengths that transform fast."""
    axes = tuple(dim for dim, r in enumerate(problem.kernel) if r > 1)
    options = [
        _axis_options(problem, dim) if dim in axes else _whole_axis(problem, dim) for dim in range(problem.spatial)
    ]
    # Few enough combinations in many dimensions: about a thousand.
    most = max(2, round(1000 ** (1 / max(len(axes), 1))))
    options = [choices[:: -(-len(choices) // most)] + choices[-1:] for choices in options]
    tilings = [_tiling(problem, machine, axes, choice) for choice in itertools.product(*options)]
    kernel_bytes = math.prod(problem.w_shape) * working_dtype(problem.dtype).itemsize
    limit = max(_SPECTRUM_BYTES, 16 * kernel_bytes)
    # The whole image in one tile where nothing smaller exists; else whatever the workspace allows.
    fitting = [tiling for tiling in tilings if tiling.workspace <= limit + 4 * _TILE_BYTES]
    return min(fitting or tilings, key=lambda tiling: tiling.seconds)


def _whole_axis(problem: ConvProblem, dim: int) -> list[tuple[int, int]]:
    """(outputs, length) of the axis in one piece, and in pieces."""
    n = problem.output[dim]
    pieces = {n, *(-(-n // k) for k in (4, 16, 64))}
    return [(count, (count - 1) * problem.stride[dim] + 1) for count in sorted(pieces)]


@functools.lru_cache(maxsize=4096)
def _fast_length(least: int, real: bool) -> int:
    """The first length, from ``least`` on, without large prime factors: SciPy's `next_fast_len`.

    SciPy's own would import its transforms, which takes a quarter of a second, only to plan.
    """
    odd = [1]
    for prime in (3, 5) if real else (3, 5, 7, 11):
        for product in odd:  # which grows: all powers of the prime
            if product * prime < 2 * least:
                odd.append(product * prime)
    return min(product << (-(-least // product) - 1).bit_length() for product in odd)


def _axis_options(problem: ConvProblem, dim: int) -> list[tuple[int, int]]:
    """(outputs of a tile, length of its transform): the whole axis, and tiles of fast lengths."""
    n, stride, extent = problem.output[dim], problem.stride[dim], problem.extent[dim]
    whole = transform_length(problem, dim, 0, n)
    real = working_dtype(problem.dtype).kind != "c"
    options = {(n, _fast_length(whole, real))}
    wanted = {int(extent * factor) for factor in (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 32, _LONGEST)}
    for least in wanted | {16, 32, 64, 128, 256, 512, 1024, 4096, 16384}:
        length = _fast_length(least, real)
        count = (length - extent) // stride + 1
        if length >= extent and 0 < count < n and length <= max(_LONGEST * extent, 16384):
            options.add((count, length))
    return sorted(options)


def _tiling(
    problem: ConvProblem, machine: Machine, axes: tuple[int, ...], choice: tuple[tuple[int, int], ...]
) -> Tiling:
    shape = tuple(count for count, _ in choice)
    lengths = tuple(length for _, length in choice)
    tiles = problem.batch * math.prod(-(-n // count) for n, count in zip(problem.output, shape, strict=True))
    places = math.prod(lengths)
    transformed = math.prod(lengths[dim] for dim in axes)
    size = working_dtype(problem.dtype).itemsize
    channels = problem.in_channels + problem.out_channels
    spectrum = problem.out_channels * problem.group_in * transformed
    bits = max(1.0, math.log2(transformed))
    cost = arithmetic_cost(problem)
    # Transforms of tiles and kernel; products of complex numbers, half as many frequencies as places.
    passes = 2.5 * bits * (tiles * channels * places + spectrum) / machine.transform
    multiply_adds = tiles * problem.out_channels * problem.group_in * places / 2
    moves = 4 * tiles * channels * places / machine.copy
    per_tile = size * channels * places
    at_once = max(1, min(tiles, _TILE_BYTES // max(1, per_tile)))
    calls = -(-tiles // at_once) * 20 + 4 * tiles
    # Three arrays of tiles stand beside each other: the tiles, their spectra, the product of spectra.
    workspace = 3 * at_once * per_tile + 2 * size * spectrum
    seconds = (passes + 2 * multiply_adds / _product_rate(problem, machine) + moves) * cost + calls * machine.call * 2
    return Tiling(shape, lengths, axes, tiles, at_once, seconds, workspace)


def _product_rate(problem: ConvProblem, machine: Machine) -> float:
    """Operations a second of products of spectra."""
    if _elementwise(problem):
        return machine.sweep / 4
    return machine.product / (16 if problem.group_in < 16 else 10)


def _elementwise(problem: ConvProblem) -> bool:
    """Whether spectra are multiplied channel by channel instead of by matrix products."""
    return problem.group_in * problem.group_out <= 4


class OverlapSavePrepared:
    """The kernel's spectrum, (groups, K / groups, C / groups, F) or (groups, F, K / groups, C / groups)."""

    def __init__(
        self, problem: ConvProblem, operand: Array, bias: Array | None = None, tiling: Tiling | None = None
    ) -> None:
        self.problem = problem
        self.dtype: np.dtype[Any] = working_dtype(problem.dtype)
        self.bias = per_channel(problem, bias, self.dtype)
        self.tiling = tiling = tiling or best_tiling(problem, Machine())
        self.operand = operand
        self.axes = tuple(tiling.axes)
        self.lengths = tuple(tiling.lengths[dim] for dim in self.axes)
        self.elementwise = _elementwise(problem)
        if problem.direction == "weight_gradient":
            self.y = channels_first(problem, operand)
        else:
            self.weight = self._weight_spectrum(operand)

    @functools.cached_property
    def direct(self) -> Im2colPrepared:
        """Direct summation of what a transform would spoil."""
        return Im2colPrepared(self.problem, self.operand)

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        problem, tiling = self.problem, self.tiling
        source = channels_first(problem, source)
        parts = list(grid(problem, tiling.shape, gapless=True))
        batches = [parts[i : i + tiling.at_once] for i in range(0, len(parts), tiling.at_once)]
        with np.errstate(all="ignore"):  # numbers that overflow or are not finite are data, not errors
            if problem.direction == "forward":
                self._forward(source, channels_first(problem, out), batches, threads)
            elif problem.direction == "transpose":
                self._transpose(source, channels_first(problem, out), batches, threads)
            else:
                self._weight_gradient(source, out, batches, threads)

    def _forward(self, x: Array, result: Array, batches: list[list[Block]], threads: int) -> None:
        p = self.problem
        for parts in batches:
            spectra = self._spectra(self._input_tiles(x, parts), p.group_in, threads)
            tiles = self._tiles(self._product(spectra, self.weight), p.out_channels, threads)
            for part, tile in zip(parts, tiles, strict=True):
                y = tile[(None, slice(None), *self._output_places(part))]
                if not np.isfinite(np.sum(y)):
                    y = self._again(gather(p, x, part, self.dtype), part)
                store(result[part.outputs], y, self.bias)

    def _transpose(self, y: Array, result: Array, batches: list[list[Block]], threads: int) -> None:
        p = self.problem
        sums = result if result.dtype == self.dtype else np.zeros(result.shape, self.dtype)
        sums[...] = 0
        for parts in batches:
            spectra = self._spectra(self._output_tiles(y, parts), p.group_out, threads)
            tiles = self._tiles(self._product(spectra, self.weight), p.in_channels, threads)
            for part, tile in zip(parts, tiles, strict=True):
                foot = tile[None]
                if not np.isfinite(np.sum(foot)):
                    foot = self._again(y[part.outputs].astype(self.dtype), part)
                scatter(p, sums, part, foot)
        if sums is not result or self.bias is not None:
            store(result, sums, self.bias)

    def _again(self, source: Array, part: Block) -> Array:
        """Compute one tile, whose transform is not finite, from its footprint, or from its outputs."""
        p, forward = self.problem, self.problem.direction == "forward"
        channels, group = (p.out_channels, p.group_in) if forward else (p.in_channels, p.group_out)
        # A footprint longer than its transform ends in zeros, or in what nobody looks at.
        cut = tuple(slice(0, min(n, m)) for n, m in zip(part.foot_shape, self.tiling.lengths, strict=True))
        read, written = (cut, self._output_places(part)) if forward else (self._output_places(part), cut)
        result = np.zeros((1, channels, *(part.shape if forward else part.foot_shape)), self.dtype)
        kept = result if forward else result[last_axes(cut)]
        tiles = np.zeros((1, source.shape[1], *self.tiling.lengths), self.dtype)

        def transformed(numbers: Array) -> bool:
            tiles[last_axes(read)] = numbers[last_axes(cut)] if forward else numbers
            found = self._tiles(self._product(self._spectra(tiles, group, 1), self.weight), channels, 1)
            kept[...] = found[last_axes(written)]
            return bool(np.isfinite(np.sum(kept)))

        again(of_footprint(p, part, self.dtype), source, result, self.operand.astype(self.dtype), None, transformed)
        return result

    def _weight_gradient(self, x: Array, out: Array, batches: list[list[Block]], threads: int) -> None:
        p = self.problem
        total: Array | None = None
        for parts in batches:
            xs = self._spectra(self._input_tiles(x, parts), p.group_in, threads)
            # Read backwards, as the kernel is in the forward direction.
            ys = self._spectra(self._output_tiles(self.y, parts).conj(), p.group_out, threads).conj()
            if self.elementwise:  # (tiles, groups, channels, F) each
                added = np.einsum("igcf,igkf->gkcf", xs, ys)
            else:  # (groups, F, channels, tiles) each
                added = np.matmul(ys, xs.swapaxes(2, 3))
            total = added if total is None else total + added
        assert total is not None  # refused: a problem without terms
        if not self.elementwise:
            total = np.moveaxis(total, 1, 3)
        w = self._inverse(total.reshape(p.out_channels, p.group_in, *self._frequencies()), threads)
        result = np.zeros(p.w_shape, self.dtype)
        taps, places = self._taps()
        result[taps] = w.reshape(p.out_channels, p.group_in, *self._kernel_lengths())[places]
        if np.isfinite(np.sum(result)):
            store(out, result, None)
        else:
            self.direct.run(np.moveaxis(x, 1, -1) if p.layout == "channels_last" else x, out, threads)

    def _kernel_lengths(self) -> tuple[int, ...]:
        """Lengths of the transform; 1 where there is none."""
        return tuple(n if dim in self.axes else 1 for dim, n in enumerate(self.tiling.lengths))

    def _taps(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Index of the taps that meet any input, and of their (dilated) places in the transform."""
        p = self.problem
        reached = [min(r, -(-n // d)) for r, n, d in zip(p.kernel, self._kernel_lengths(), p.dilation, strict=True)]
        taps = last_axes(slice(0, m) for m in reached)
        return taps, last_axes(slice(0, (m - 1) * d + 1, d) for m, d in zip(reached, p.dilation, strict=True))

    def _weight_spectrum(self, w: Array) -> Array:
        p = self.problem
        spread = np.zeros((p.out_channels, p.group_in, *self._kernel_lengths()), self.dtype)
        taps, places = self._taps()
        spread[places] = w[taps]
        flat = spread.reshape(p.out_channels, p.group_in, *self.lengths)
        if p.direction == "forward":
            # Correlation: the spectrum of the kernel read backwards, tap t at -t.
            spectrum = self._forward_transform(flat.conj(), 1).conj()
        else:
            spectrum = self._forward_transform(flat, 1)
        spectrum = spectrum.reshape(p.groups, p.group_out, p.group_in, math.prod(self._frequencies()))
        if p.direction == "transpose":
            spectrum = spectrum.swapaxes(1, 2)
        return spectrum if self.elementwise else np.ascontiguousarray(np.moveaxis(spectrum, 3, 1))

    def _input_tiles(self, x: Array, parts: list[Block]) -> Array:
        """Footprints in the corner of zero tiles, (tiles, C, *lengths)."""
        p, lengths = self.problem, self.tiling.lengths
        tiles = np.zeros((len(parts), p.in_channels, *lengths), self.dtype)
        for tile, part in zip(tiles, parts, strict=True):
            cut = tuple(min(n, m) for n, m in zip(part.foot_shape, lengths, strict=True))
            # A footprint longer than its transform ends in zeros.
            shortened = dataclasses.replace(part, foot_shape=cut)
            fill_footprint(p, x[part.images], shortened, tile[(None, slice(None), *(slice(0, m) for m in cut))])
        return tiles

    def _output_tiles(self, y: Array, parts: list[Block]) -> Array:
        """Outputs at the places of their windows' first taps in zero tiles, (tiles, K, *lengths)."""
        tiles = np.zeros((len(parts), self.problem.out_channels, *self.tiling.lengths), self.dtype)
        for tile, part in zip(tiles, parts, strict=True):
            tile[(slice(None), *self._output_places(part))] = y[part.outputs][0]
        return tiles

    def _output_places(self, part: Block) -> tuple[slice, ...]:
        return tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(part.shape, self.problem.stride, strict=True))

    # Tiles (tiles, channels, *lengths) and spectra: dimensions that are not transformed are taken to the tiles, so that
    # spectra are (tiles', groups, channels / groups, F) or, for products, (groups, F, channels / groups, tiles').

    def _spectra(self, tiles: Array, group: int, threads: int) -> Array:
        p = self.problem
        kept = [2 + dim for dim in range(p.spatial) if dim not in self.axes]
        order = (0, *kept, 1, *(2 + dim for dim in self.axes))
        spectra = self._forward_transform(tiles.transpose(order), threads)
        spectra = spectra.reshape(-1, p.groups, group, math.prod(self._frequencies()))
        return spectra if self.elementwise else np.ascontiguousarray(spectra.transpose(1, 3, 2, 0))

    def _product(self, spectra: Array, weight: Array) -> Array:
        """Spectra times the kernel's, summed over the channels of a group."""
        if not self.elementwise:
            product: Array = np.matmul(weight, spectra)
            return product
        result: Array = spectra[:, :, None, 0] * weight[None, :, :, 0]
        for c in range(1, spectra.shape[2]):
            result += spectra[:, :, None, c] * weight[None, :, :, c]
        return result

    def _tiles(self, spectra: Array, channels: int, threads: int) -> Array:
        p = self.problem
        if not self.elementwise:
            spectra = np.ascontiguousarray(spectra.transpose(3, 0, 2, 1))
        kept = [self.tiling.lengths[dim] for dim in range(p.spatial) if dim not in self.axes]
        spectra = spectra.reshape(-1, *kept, channels, *self._frequencies())
        tiles = self._inverse(spectra, threads)
        back = [dim for dim in range(p.spatial) if dim not in self.axes]
        order = [0, 1 + len(kept)]
        for dim in range(p.spatial):
            order.append(1 + back.index(dim) if dim in back else 2 + len(kept) + self.axes.index(dim))
        return tiles.transpose(order)

    def _frequencies(self) -> tuple[int, ...]:
        return self.lengths if self.dtype.kind == "c" else (*self.lengths[:-1], self.lengths[-1] // 2 + 1)

    def _forward_transform(self, a: Array, threads: int) -> Array:
        axes = tuple(range(-len(self.axes), 0))
        transform = getattr(_scipy_fft(), "fftn" if self.dtype.kind == "c" else "rfftn")
        spectrum: Array = transform(a, axes=axes, workers=threads)
        return spectrum

    def _inverse(self, a: Array, threads: int) -> Array:
        axes = tuple(range(-len(self.axes), 0))
        transform = getattr(_scipy_fft(), "ifftn" if self.dtype.kind == "c" else "irfftn")
        tiles: Array = transform(a, s=self.lengths, axes=axes, workers=threads)
        return tiles


def _scipy_fft() -> Any:
    """SciPy's transforms, imported when the first tile is transformed: that takes a quarter of a second."""
    import scipy.fft

    return scipy.fft
