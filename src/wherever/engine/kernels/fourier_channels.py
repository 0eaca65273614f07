"""Convolution by Fourier transforms of small tiles, with channels as lanes: nothing is ever shuffled or reordered."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from wherever.engine.kernels.codelets import (
    Column,
    Complex,
    Load,
    Store,
    dft_pass,
    frequencies,
    position,
    radices,
    twiddle_count,
    twiddles,
)
from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.direct import CHUNK
from wherever.engine.kernels.vector import Array, Condition, Int, Kernel, Mask, Place

# Two tiles of an image are transformed as one of complex numbers, the one as real and the other as imaginary parts:
# the kernel is real, so that they come apart by themselves in the end. Tables, one for each dimension, tell where the
# places of a tile lie, so that the kernels know nothing of images, borders, boundaries and batches.

T = TypeVar("T")
Where: TypeAlias = Callable[[tuple["Int | int", ...]], T]  # something for a line of places, by its index

OUTSIDE = -(1 << 60)  # in a table: a place that is nowhere; what is read there is zero, what is written there is lost
_NOWHERE = OUTSIDE // 4  # a sum of offsets below this has such a place in it; none but those come near


def axes(lengths: Sequence[int]) -> tuple[int, ...]:
    """The dimensions that are transformed."""
    return tuple(dim for dim, n in enumerate(lengths) if n > 1)


@functools.cache
def passes(length: int) -> tuple[int, ...]:
    """The radices of a transform of this length: codelets of at most 8 places, which 32 registers nearly hold."""
    found = radices(length, 8) or radices(length)
    if found is None:
        raise ValueError(f"there is no transform of {length} places")
    return found


def roots(lengths: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """The twiddles of all dimensions, one behind the other."""
    return np.concatenate([np.zeros(0, dtype), *(twiddles(passes(n), dtype) for n in lengths)])


def tile_numbers(lengths: Sequence[int], lanes: int) -> int:
    """Numbers of the workspace of one tile."""
    return tile_pitches(lengths, lanes)[0] * lengths[0]


def tile_pitches(lengths: Sequence[int], lanes: int) -> tuple[int, ...]:
    """From one place to the next in each dimension.

    Rows are a little further apart than they are long, so that the places of a column do not all fall into the same
    sets of a cache.
    """
    pitches = [2 * lanes]
    for n in reversed(lengths[1:]):
        pitches.insert(0, pitches[0] * n + 2 * lanes)
    return tuple(pitches)


def mirrored(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Positions of frequencies f and -f, each pair once (where f = -f, twice the same), (pairs, 2).

    Positions are counted through all dimensions, as forward passes leave the frequencies in each of them.
    """
    shape = tuple(lengths)
    opposite = [np.array([position(-f % n, passes(n)) for f in frequencies(passes(n)).tolist()]) for n in shape]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    others = numbers[np.ix_(*opposite)].ravel()
    pairs = np.stack([numbers.ravel(), others], 1)
    return np.ascontiguousarray(pairs[pairs[:, 0] <= pairs[:, 1]])


class Tile:
    """A workspace that holds one tile of complex numbers for each lane, and the passes over it."""

    def __init__(
        self,
        kernel: Kernel,
        lengths: Sequence[int],
        shape: Sequence[int] | None = None,
        following: Int | int = 0,
    ) -> None:
        self.following = following  # from one line of a spectrum that lies elsewhere to the next
        self.kernel, self.lengths = kernel, tuple(lengths)
        self.shape = tuple(shape or lengths)  # of the places that are wanted in the end
        self.axes = axes(lengths)
        self.work = kernel.array("work", *tile_pitches(lengths, kernel.lanes), kernel.lanes, 1)
        self.radices = [passes(n) for n in lengths]
        table, start, self.roots = kernel.array("roots", 1), 0, []
        for found in self.radices:
            self.roots.append(table.moved(start))
            start += twiddle_count(found)

    @contextlib.contextmanager
    def fibres(self, axis: int, counts: Sequence[int]) -> Iterator[tuple[Column, tuple[Int | int, ...]]]:
        """Each line of places along an axis, and its index (0 along the axis); so many in the other dimensions."""
        with contextlib.ExitStack() as stack:
            index = tuple(
                0 if dim == axis or n == 1 else stack.enter_context(self.kernel.loop(n)) for dim, n in enumerate(counts)
            )
            line = self.work[index[:axis]]
            for dim in range(axis + 1, len(self.lengths)):
                line = line.moved(index[dim] * self.work.strides[dim])
            yield (
                Column(Array(line.kernel, line.pointer, line.offset, (self.work.strides[axis], *line.strides[-2:]))),
                index,
            )

    def run(
        self,
        axis: int,
        numbers: Sequence[int],
        column: Column,
        *,
        load: Load | None = None,
        store: Store | None = None,
        inverse: bool = False,
    ) -> None:
        """Some passes over a line, in their order; the first may take, the last may put its numbers elsewhere."""
        for number in numbers:
            dft_pass(
                self.kernel,
                self.radices[axis],
                number,
                self.roots[axis],
                load if load and number == numbers[0] else column.load,
                store if store and number == numbers[-1] else column.store,
                inverse=inverse,
            )

    def forward(self, tiles: Tiles, spectrum: Where[Column] | None = None) -> None:
        """Transform two tiles along all axes, the last of them first; the spectrum may be put elsewhere."""
        for axis in reversed(self.axes):
            numbers = range(len(self.radices[axis]))
            with self.fibres(axis, self.lengths) as (column, index):
                final = None
                if spectrum and axis == self.axes[0]:
                    final = self._elsewhere(spectrum(index), axis).store
                if axis != self.axes[-1]:
                    self.run(axis, numbers, column, store=final)
                    continue
                line = tiles.line(axis, index)
                if final:
                    self.run(axis, numbers, column, load=line.load, store=final)
                    continue
                with self.kernel.either(line.absent) as (then, otherwise):
                    with then, self.kernel.loop(self.lengths[axis]) as place:
                        zero = self.kernel.splat(0)
                        column.store(place, 0, Complex(zero, zero))
                    with otherwise:
                        self.run(axis, numbers, column, load=line.load)

    def inverse(self, store: Where[Store], spectrum: Where[Column] | None = None) -> None:
        """Transform back along all axes; the spectrum may lie elsewhere."""
        counts = list(self.lengths)
        for axis in self.axes:
            numbers = range(len(self.radices[axis]))[::-1]
            with self.fibres(axis, counts) as (column, index):
                given = self._elsewhere(spectrum(index), axis).load if spectrum and axis == self.axes[0] else None
                final = store(index) if axis == self.axes[-1] else None
                self.run(axis, numbers, column, load=given, store=final, inverse=True)
            counts[axis] = self.shape[axis]

    def _elsewhere(self, line: Column, axis: int) -> Column:
        """A line of a spectrum, after asking for the next one: its places lie far apart, on a cache line each."""
        following = line.array.moved(self.following)
        with self.kernel.loop(self.lengths[axis]) as place:
            for part in range(2):
                following[place, part, 0].prefetch()
        return line


class Tiles:
    """Two tiles of an array with its channels last, seen as one of complex numbers.

    The tables: for each tile where its image begins, and where in the table of each dimension its places begin; of each
    dimension how far away places are. ``elsewhere``, two vectors, is read (zeros) and written where there is none.

    Parameters
    ----------
    tiles
        Numbers of the two tiles.
    vector
        The vector of channels: the first channel, and the lanes that are there.
    """

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        dimensions: int,
        tiles: Sequence[Int | int],
        vector: tuple[Int, Mask | None],
    ) -> None:
        self.kernel = kernel
        self.array = kernel.array(name, 1)
        self.channel, self.mask = vector
        self.zeros = kernel.array("elsewhere", 1)
        self.lost = self.zeros.moved(kernel.lanes)
        self.tables = [kernel.table(f"{name}_places{dim}") for dim in range(dimensions)]
        table, width = kernel.table(f"{name}_tiles"), dimensions + 1
        self.bases = [table[tile * width] for tile in tiles]
        self.starts = [[table[tile * width + (1 + dim)] for dim in range(dimensions)] for tile in tiles]

    def line(self, axis: int, index: tuple[Int | int, ...]) -> Line:
        """The places along an axis, with this index in the other dimensions."""
        offsets = []
        for base, starts in zip(self.bases, self.starts, strict=True):
            for dim, table in enumerate(self.tables):
                if dim != axis:
                    base = base + table[starts[dim] + index[dim]]
            offsets.append(base)
        return Line(self, axis, offsets)


class Line:
    """The places of two tiles along one dimension."""

    def __init__(self, tiles: Tiles, axis: int, offsets: list[Int]) -> None:
        self.tiles, self.offsets = tiles, offsets
        self.table = tiles.tables[axis]
        self.starts = [starts[axis] for starts in tiles.starts]

    @property
    def absent(self) -> Condition:
        """Whether none of the places is in the array."""
        first, *others = (offset < _NOWHERE for offset in self.offsets)
        return functools.reduce(Condition.__and__, others, first)

    def _places(self, start: Int | int, behind: int, elsewhere: Array) -> list[Place]:
        """A place of the real, and of the imaginary parts."""
        ends = zip(self.offsets, self.starts, strict=True)
        offsets = [offset + self.table[first + start + behind] for offset, first in ends]
        array, channel = self.tiles.array, self.tiles.channel
        return [
            self.tiles.kernel.choose(offset < _NOWHERE, elsewhere, array.moved(offset + channel))[0]
            for offset in offsets
        ]

    def load(self, start: Int | int, behind: int) -> Complex:
        """The numbers of both tiles at a place."""
        re, im = (place.load(self.tiles.mask) for place in self._places(start, behind, self.tiles.zeros))
        return Complex(re, im)

    def store(self, start: Int | int, behind: int, value: Complex) -> None:
        """Put numbers at a place of both tiles."""
        for place, vector in zip(self._places(start, behind, self.tiles.lost), (value.re, value.im), strict=True):
            place.store(vector, self.tiles.mask)


class Results:
    """Where tiles of the result go: with the bias, as far as they are wanted, and checked."""

    def __init__(self, kernel: Kernel, shape: Sequence[int]) -> None:
        self.kernel, self.shape = kernel, shape
        self.bias = kernel.array("bias", 1)
        self.odd = kernel.variables(1)

    def of(self, tiles: Tiles, axis: int) -> Where[Store]:
        """For `Tile.inverse`."""
        added = self.bias[tiles.channel].load(tiles.mask)

        def along(index: tuple[Int | int, ...]) -> Store:
            line = tiles.line(axis, index)

            def store(start: Int | int, behind: int, value: Complex) -> None:
                if behind >= self.shape[axis]:
                    return
                total = Complex(value.re + added, value.im + added)
                zero = self.kernel.splat(0)
                self.odd[0] = self.kernel.fma(total.re, zero, self.kernel.fma(total.im, zero, self.odd[0]))
                line.store(start, behind, total)

            return store

        return along

    def close(self) -> None:
        """Tell whether all were finite."""
        self.kernel.array("odd", 1)[0].store(self.odd[0])


def names(name: str, dimensions: int) -> list[str]:
    """Names of the tables of `Tiles`."""
    return [f"{name}_tiles", *(f"{name}_places{dim}" for dim in range(dimensions))]


def fourier_forward(target: Target, *, dtype: str, lengths: Sequence[int], tail: bool) -> Kernel:
    """Write the spectra of pairs of tiles: z[f, pair, re and im, channel].

    ``tail``: whether the last vector of channels may not be read whole.

    The arrays: x, elsewhere, work, roots, z, the tables of x. The sizes: first and last pair of
    tiles, first and last channel; how far apart are frequencies, pairs, and parts (re and im) of z.
    """
    lanes = target.lanes(dtype)
    arrays = ["x", "elsewhere", "work", "roots", "z", *names("x", len(lengths))]
    sizes = ["pair", "pairs", "channel", "channels", "frequency", "next_pair", "part"]
    kernel = Kernel("fourier_forward", dtype, lanes, arrays, sizes)
    size = kernel.size
    z = kernel.array("z", size("frequency"), size("next_pair"), size("part"), 1)
    tile = Tile(kernel, lengths, following=size("frequency"))
    with kernel.loop(size("pair"), size("pairs")) as pair, kernel.loop(size("channel"), size("channels"), lanes) as c:
        mask = kernel.mask(size("channels") - c) if tail else None
        spectrum = z.moved(pair * size("next_pair") + c)
        tiles = Tiles(kernel, "x", len(lengths), (pair * 2, pair * 2 + 1), (c, mask))
        tile.forward(tiles, lambda index: _spectrum(tile, spectrum, index))
    return kernel


def _spectrum(tile: Tile, spectrum: Array, index: tuple[Int | int, ...]) -> Column:
    """The line of a spectrum (frequency, ..., part, lane) along the first axis that is transformed."""
    axis = tile.axes[0]
    behind, moved = 1, spectrum
    for dim in reversed(range(len(index))):
        if dim == axis:
            pitch = behind
        moved = moved.moved(index[dim] * behind * spectrum.strides[0])
        behind *= tile.lengths[dim]
    return Column(
        Array(moved.kernel, moved.pointer, moved.offset, (spectrum.strides[0] * pitch, *spectrum.strides[-2:]))
    )


def fourier_inverse(target: Target, *, dtype: str, lengths: Sequence[int], shape: Sequence[int], tail: bool) -> Kernel:
    """Write the first ``shape`` places of pairs of tiles, and the bias, from their spectra z[f, pair, part, channel].

    The arrays: z, y, elsewhere, work, roots, bias, odd (one vector that is NaN
    afterwards if any result is not finite), the tables of y. The sizes: as `fourier_forward`.
    """
    lanes = target.lanes(dtype)
    arrays = ["z", "y", "elsewhere", "work", "roots", "bias", "odd", *names("y", len(lengths))]
    sizes = ["pair", "pairs", "channel", "channels", "frequency", "next_pair", "part"]
    kernel = Kernel("fourier_inverse", dtype, lanes, arrays, sizes)
    size = kernel.size
    z = kernel.array("z", size("frequency"), size("next_pair"), size("part"), 1)
    tile, results = Tile(kernel, lengths, shape, size("frequency")), Results(kernel, shape)
    with kernel.loop(size("pair"), size("pairs")) as pair, kernel.loop(size("channel"), size("channels"), lanes) as c:
        mask = kernel.mask(size("channels") - c) if tail else None
        spectrum = z.moved(pair * size("next_pair") + c)
        tiles = Tiles(kernel, "y", len(lengths), (pair * 2, pair * 2 + 1), (c, mask))
        tile.inverse(results.of(tiles, tile.axes[-1]), lambda index: _spectrum(tile, spectrum, index))
    results.close()
    return kernel


def fourier_product(target: Target, *, dtype: str, z_pixel: int, y_pixel: int, rows: int, vectors: int) -> Kernel:
    """Write y[f] = z[f] g[f] and y[-f] = z[-f] conj g[f]: at each frequency the product of two complex matrices.

    A register tile is ``rows`` pairs of tiles times ``vectors`` vectors of output channels. The spectrum of a real
    kernel at -f is the conjugate of that at f: of the two only one is kept, and read once for both.

    Parameters
    ----------
    z_pixel, y_pixel
        Numbers from one part (re and im) of z or y to the next: the channels, padded.

    The arrays: z (f, pair, part, channel), g (f of the table, block of output channels, channel, part, vectors *
    lanes), y like z, the table of pairs of frequencies. The sizes: first and last of these pairs; groups of rows;
    channels and blocks; how far apart are frequencies of g, of z and of y.
    """
    lanes = target.lanes(dtype)
    sizes = ["first", "last", "groups", "channels", "blocks", "g_frequency", "z_frequency", "y_frequency"]
    kernel = Kernel("fourier_product", dtype, lanes, ["z", "g", "y", "mirrored"], sizes)
    first, last, groups, channels, blocks, g_frequency, z_frequency, y_frequency = (kernel.size(name) for name in sizes)
    width = vectors * lanes
    z = kernel.array("z", z_frequency, 2 * z_pixel, z_pixel, 1)
    y = kernel.array("y", y_frequency, 2 * y_pixel, y_pixel, 1)
    panel = channels * (2 * width)
    g = kernel.array("g", g_frequency, panel, 2 * width, width, 1)
    mirror = kernel.table("mirrored")

    def product(tiles: Array, weights: Array, results: Array, sign: int, ahead: int | None) -> None:
        chunk = kernel.minimum(channels, CHUNK[dtype])
        chunk_product(tiles, weights, results, sign, ahead, 0, chunk)
        with kernel.loop(chunk, channels, CHUNK[dtype]) as start:
            stop = kernel.minimum(start + CHUNK[dtype], channels)
            chunk_product(tiles, weights, results, sign, ahead, start, stop)

    def chunk_product(
        tiles: Array, weights: Array, results: Array, sign: int, ahead: int | None, start: Int | int, stop: Int | int
    ) -> None:
        """Start, or continue, the sums of a product with some of the channels."""
        re, im = kernel.variables(rows, vectors), kernel.variables(rows, vectors)
        with kernel.loop(start, stop) as c:
            factors = [Complex(*(weights[c, part, n * lanes].load() for part in range(2))) for n in range(vectors)]
            if ahead is not None:
                for n in range(vectors):
                    weights.moved(panel)[c, ahead, n * lanes].prefetch(2)
            for row in range(rows):
                a, b = (tiles[row, part, c].splat() for part in range(2))
                turned = b if sign < 0 else -b
                back = -a if sign < 0 else a
                for n, factor in enumerate(factors):
                    re[row, n] = kernel.fma(turned, factor.im, kernel.fma(a, factor.re, re[row, n]))
                    im[row, n] = kernel.fma(back, factor.im, kernel.fma(b, factor.re, im[row, n]))
        for row in range(rows):
            for n in range(vectors):
                for part, sums in enumerate((re, im)):
                    place = results[row, part, n * lanes]
                    place.store(sums[row, n] if isinstance(start, int) else place.load() + sums[row, n])

    with kernel.loop(first, last) as f, kernel.loop(blocks) as k:
        weights = g[f, k]
        for part, sign in enumerate((1, -1)):
            place = mirror[f * 2 + part]
            tiles, results = z[place], y[place].moved(k * width)
            # Half of the next block of g is asked for while f is computed, half while -f is.
            product(tiles, weights, results, sign, part)
            with kernel.loop(1, groups) as group:
                row = group * (2 * rows)
                product(tiles.moved(row * z_pixel), weights, results.moved(row * y_pixel), sign, None)
    return kernel


def fourier_weights(target: Target, *, dtype: str, lengths: Sequence[int], vectors: int) -> Kernel:
    """Write conj F[w] / n at one of each pair of frequencies f, -f.

    Two kernels are transformed as one of complex numbers z: the first has the spectrum (z[f] + conj z[-f]) / 2, the
    second (z[f] - conj z[-f]) / 2i.

    The arrays: w (with lanes last), elsewhere, work, roots, g, the tables of w, the table of goals of all kernels, the
    table of frequencies: places of f and -f in the workspace, and of f in g. The sizes: numbers of pairs of kernels, of
    blocks of ``vectors`` vectors, of pairs of frequencies; how far apart are blocks of g.
    """
    lanes = target.lanes(dtype)
    arrays = ["w", "elsewhere", "work", "roots", "g", *names("w", len(lengths)), "goals", "frequencies"]
    sizes = ["pairs", "blocks", "mirrors", "next_block"]
    kernel = Kernel("fourier_weights", dtype, lanes, arrays, sizes)
    pairs, blocks, mirrors, next_block = (kernel.size(name) for name in sizes)
    width = vectors * lanes
    goals, frequency = kernel.table("goals"), kernel.table("frequencies")
    tile, work, g = Tile(kernel, lengths), Column(kernel.array("work", 1, lanes, 1)), kernel.array("g", 1, width, 1)
    scale = 0.5 / math.prod(lengths)
    with kernel.loop(pairs) as pair, kernel.loop(blocks) as k, kernel.loop(0, width, lanes) as lane:
        channel = (k * width + lane, None)
        tile.forward(Tiles(kernel, "w", len(lengths), (pair * 2, pair * 2 + 1), channel))
        targets = [Column(g.moved(goals[pair * 2 + i] + k * next_block + lane)) for i in range(2)]
        following = kernel.where(lane + lanes < width, lanes, next_block - lane)
        with kernel.loop(mirrors) as number:
            here, there, place = (frequency[number * 3 + i] for i in range(3))
            a, b = work.load(here, 0), work.load(there, 0)
            # conj ((a + conj b) / 2), and conj ((a - conj b) / 2i), divided by n.
            first = Complex(a.re + b.re, b.im - a.im) * scale
            second = Complex(a.im + b.im, a.re - b.re) * scale
            # The first overwrites a second that is not there, whose goal is the same.
            targets[1].store(place, 0, second)
            targets[0].store(place, 0, first)
            # Frequencies lie far apart: the lines of the next vector are on their way while it is transformed.
            for goal in targets:
                for part in range(2):
                    goal.array.moved(place + following)[0, part, 0].prefetch(2)
    return kernel
