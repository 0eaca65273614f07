"""Convolution of images tile by tile in Fourier space: columns, rows, product and back, two tiles at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wherever.engine.kernels.codelets import Column, Complex, Load, Store, dft, dft_pass, twiddle_count
from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import BYTES, Array, Int, Kernel, Mask, Place, Variables, transposed

TILE = ("x", "rows", "columns", "y", "high", "wide")  # what the table of tiles says of each
PAIR = (*(f"{name}{part}" for part in range(2) for name in TILE), "spectrum", "channel")
CHUNK_BYTES = 1 << 19  # of what is copied of two tiles at once
AHEAD = 4  # rows of x that are asked for before they are read
OUTSIDE = -1  # in the table of rows
SUMMED = 4  # places whose products are summed over the channels at once


@dataclass(frozen=True)
class Layout:
    """How a tile of high x wide places lies in memory while it is transformed.

    Columns are transformed in strips of ``lanes`` neighbours; their last codelet is transposed in registers, so that
    rows are transformed for ``lanes`` neighbouring frequencies of the columns at once.

    Attributes
    ----------
    dtype : str
    lanes : int
    down, across : tuple of int
        Radices of the columns and of the rows; the last radix of the columns is a multiple of the lanes, and so is the
        length of the rows.
    """

    dtype: str
    lanes: int
    down: tuple[int, ...]
    across: tuple[int, ...]

    @property
    def high(self) -> int:
        """Places of a column."""
        return math.prod(self.down)

    @property
    def wide(self) -> int:
        """Places of a row."""
        return math.prod(self.across)

    @property
    def chunk(self) -> int:
        """Columns that are copied at a time: all, if both tiles stay in the cache, or else a few cache lines a row."""
        size, strips = BYTES[self.dtype], self.wide // self.lanes
        most = max(CHUNK_BYTES // (2 * self.high), 256) // (self.lanes * size)
        return self.lanes * next(d for d in range(min(strips, max(most, 1)), 0, -1) if strips % d == 0)

    @property
    def image(self) -> int:
        """Numbers from one row to the next of the tiles' copies; rows do not fall into the same sets of a cache."""
        return self.chunk + self.lanes

    @property
    def row(self) -> int:
        """Numbers from one group of rows to the next."""
        return 2 * self.lanes * (self.wide + 2)

    @property
    def spectrum(self) -> int:
        """Numbers of a spectrum."""
        return 2 * self.high * self.wide

    @property
    def scratch(self) -> tuple[int, int, int]:
        """Numbers of the workspaces: two tiles, one strip of columns, all rows."""
        return 2 * self.high * self.image, 2 * self.lanes * self.high, self.high // self.lanes * self.row


def fourier_tiles(
    target: Target,
    *,
    dtype: str,
    down: Sequence[int],
    across: Sequence[int],
    signal: bool = False,
    summed: bool = False,
) -> Kernel:
    """Write y = bias + F^-1[H F[x]] on the part of each tile where nothing wraps around; or the spectrum H.

    Two real tiles are one complex one, x0 + i x1: H is the spectrum of a real kernel, and the results come apart again.
    The product is taken between the last codelet of the rows' forward transform and the first of their inverse.

    What a tile shows is told by tables: row i of a tile is the row of x at ``rows[i]``, its column j that at
    ``columns[j]``, so that the kernel knows nothing of images and their boundaries.

    Parameters
    ----------
    down, across
        See `Layout`.
    signal
        The tile is one row of high * wide places, cut into rows: its transform has another twiddle, ``roots``, between
        columns and rows.

    summed
        A tile has several channels, each transformed once, and several results, each the sum over the channels of
        F^-1[H F[x]], transformed back once. Spectra follow each other, of the first result's channels first.

    The arrays: x; h, spectra as the transforms leave them; y; bias; image, strip and work, workspaces
    (`Layout.scratch`; if summed, work for each channel and one more); twiddles, of the columns and then of the rows;
    roots, laid out like a spectrum; odd, a vector for each pair of tiles that is NaN afterwards if any of their
    results is not finite; numbers: what spectra are multiplied by, and what lies outside of x; tables: rows, columns,
    pairs. The sizes: first and last pair; whether to write spectra instead of y; pitches of x and y; channels and
    results of a tile, and how far apart they are in x and y.

    Tables. ``rows``: the row of x that each row of a tile shows, or OUTSIDE. ``columns``: the number of pieces that the
    columns of a tile fall into; whether some columns are in none and show what lies outside; and of each piece its
    first column, its number of columns, the column of x that it shows first and how far from there to the next: 1, 0
    or -1. ``pairs``: the numbers PAIR: where the tiles begin in x, in the tables, and in y; the rows and columns that
    are written; where the spectrum is; the place of the bias.
    """
    lanes = target.lanes(dtype)
    shape = Layout(dtype, lanes, tuple(down), tuple(across))
    high, wide = shape.high, shape.wide
    arrays = ["x", "h", "y", "bias", "image", "strip", "work", "twiddles", "roots", "odd", "numbers"]
    sizes = ["first", "last", "spectra", "x_row", "y_row", "channels", "results", "x_channel", "y_channel"]
    kernel = Kernel("fourier_tiles", dtype, lanes, [*arrays, "rows", "columns", "pairs"], sizes)
    size, rows, columns, pairs = kernel.size, *(kernel.table(name) for name in ("rows", "columns", "pairs"))
    image = kernel.array("image", high * shape.image, shape.image, 1)
    strip = Column(kernel.array("strip", 2 * lanes, lanes, 1))
    works = kernel.array("work", shape.scratch[2], shape.row, 2 * lanes, lanes, 1)
    vertical = kernel.array("twiddles", 1)
    horizontal = vertical.moved(twiddle_count(down))
    scale, outside = (kernel.array("numbers", 1)[i] for i in range(2))

    def spectrum_like(name: str, offset: Int, group: Int) -> Column:
        return Column(kernel.array(name, wide * 2 * lanes, 2 * lanes, lanes, 1).moved(offset)[group])

    def fill(tile: dict[str, Int], channel: Int | int, part: int, chunk: Int) -> None:
        """Copy some columns of what a tile shows, row by row."""
        x = kernel.array("x", size("x_row"), 1).moved(tile["x"] + channel * size("x_channel"))
        constant = outside.splat()
        told, last = tile["columns"], chunk + shape.chunk
        with kernel.loop(high) as i:
            row, copy = rows[tile["rows"] + i], image[part, i]
            soon = x[row + AHEAD].moved(columns[told + 4] + chunk)
            for line in range(0, shape.chunk, 64 // kernel.bytes):
                soon[line].prefetch(2)
            with kernel.when((row < 0) | (columns[told + 1] > 0)), kernel.loop(0, shape.chunk, lanes) as j:
                copy[j].store(constant)
            with kernel.when(row >= 0), kernel.loop(columns[told]) as number:
                start, count, first, step = (columns[told + 2 + number * 4 + k] for k in range(4))
                begin, end = kernel.maximum(start, chunk), kernel.minimum(start + count, last)
                with kernel.when(kernel.number(begin) < end):
                    shown = x[row].moved(first + (begin - start) * step)
                    piece(copy.moved(begin - chunk), kernel.number(end - begin), shown, step)

    def piece(copy: Array, count: Int, shown: Array, step: Int) -> None:
        """Copy one piece of a row."""
        whole = count // lanes * lanes
        backwards = list(reversed(range(lanes)))
        with kernel.either(step.equals(1)) as (forwards, otherwise):
            with forwards, kernel.loop(0, whole, lanes) as j:
                copy[j].store(shown[j].load())
            with otherwise, kernel.either(step < 0) as (turned, repeated):
                with turned, kernel.loop(0, whole, lanes) as j:
                    seen = shown[kernel.number(1 - lanes) - j].load()
                    copy[j].store(seen.shuffled(seen, backwards))
                with repeated, kernel.loop(0, whole, lanes) as j:
                    copy[j].store(shown[0].splat())
        with kernel.loop(whole, count) as j:
            copy[j].copy(shown[j * step])

    def columns_forward(chunk: Int, work: Array) -> None:
        """From the two tiles to the rows' workspace, a strip of neighbouring columns at a time."""
        last, before = down[-1], len(down) - 1
        with kernel.loop(0, shape.chunk, lanes) as first:

            def enter(start: Int | int, behind: int) -> Complex:
                place = image.moved(start * shape.image + first)
                return Complex(place[0, behind, 0].load(), place[1, behind, 0].load())

            for number in range(before):
                dft_pass(kernel, down, number, vertical, strip.load if number else enter, strip.store)
            load = strip.load if before else enter
            with kernel.loop(0, high, last) as place:
                values = dft([load(place, r) for r in range(last)])
                for block in range(0, last, lanes):
                    row = Column(work[place // lanes + block // lanes])
                    some = values[block : block + lanes]
                    turned = zip(transposed([v.re for v in some]), transposed([v.im for v in some]), strict=True)
                    for lane, (re, im) in enumerate(turned):
                        row.store(chunk + first, lane, Complex(re, im))

    def columns_inverse(chunk: Int, first: Int, work: Array) -> None:
        """One strip of columns back to the two tiles."""
        last, before = down[-1], len(down) - 1

        def leave(start: Int | int, behind: int, value: Complex) -> None:
            place = image.moved(start * shape.image + first)
            place[0, behind, 0].store(value.re)
            place[1, behind, 0].store(value.im)

        store = strip.store if before else leave
        with kernel.loop(0, high, last) as place:
            values = []
            for block in range(0, last, lanes):
                row = Column(work[place // lanes + block // lanes])
                some = [row.load(chunk + first, lane) for lane in range(lanes)]
                turned = zip(transposed([v.re for v in some]), transposed([v.im for v in some]), strict=True)
                values += [Complex(re, im) for re, im in turned]
            for r, value in enumerate(dft(values, inverse=True)):
                store(place, r, value)
        for number in reversed(range(before)):
            put = strip.store if number else leave
            dft_pass(kernel, down, number, vertical, strip.load, put, inverse=True)

    def ends(group: Int, row: Column) -> tuple[Load, Store]:
        """How rows are read first and written last: of a signal, multiplied by its roots."""
        roots = spectrum_like("roots", kernel.number(0), group)

        def enter(start: Int | int, behind: int) -> Complex:
            return row.load(start, behind) * roots.load(start, behind)

        def leave(start: Int | int, behind: int, value: Complex) -> None:
            row.store(start, behind, value * roots.load(start, behind).conjugate())

        return (enter, leave) if signal else (row.load, row.store)

    def rows_forward(group: Int, row: Column, passes: int) -> None:
        """The first passes of a group of rows."""
        enter, _ = ends(group, row)
        for number in range(passes):
            dft_pass(kernel, across, number, horizontal, row.load if number else enter, row.store)

    def rows_inverse(group: Int, row: Column, passes: int) -> None:
        """The last passes back, of a group of rows."""
        _, leave = ends(group, row)
        for number in reversed(range(passes)):
            dft_pass(kernel, across, number, horizontal, row.load, row.store if number else leave, inverse=True)

    def through_rows(spectrum: Int, work: Array) -> None:
        """The rows: forward, product, inverse."""
        last, before, factor = across[-1], len(across) - 1, scale.splat()
        with kernel.loop(high // lanes) as group:
            row, other = Column(work[group]), spectrum_like("h", spectrum, group)
            load, store = (row.load, row.store) if before else ends(group, row)
            rows_forward(group, row, before)
            with kernel.either(size("spectra") > 0) as (written, used):
                with written, kernel.loop(0, wide, last) as place:
                    for r, value in enumerate(dft([load(place, r) for r in range(last)])):
                        other.store(place, r, value.conjugate() * factor)
                with used:
                    with kernel.loop(0, wide, last) as place:
                        values = dft([load(place, r) for r in range(last)])
                        values = [value * other.load(place, r) for r, value in enumerate(values)]
                        for r, value in enumerate(dft(values, inverse=True)):
                            store(place, r, value)
                    rows_inverse(group, row, before)

    def keep_spectrum(spectrum: Int, work: Array) -> None:
        """What a channel's rows are now becomes a spectrum."""
        factor = scale.splat()
        with kernel.loop(high // lanes) as group, kernel.loop(wide) as place:
            value = Column(work[group]).load(place, 0)
            spectrum_like("h", spectrum, group).store(place, 0, value.conjugate() * factor)

    def sum_and_back(spectrum: Int, work: Array) -> None:
        """The rows of one result: the sum over the channels, transformed back."""
        some = math.gcd(wide, SUMMED)
        with kernel.loop(high // lanes) as group:
            row = Column(work[group])
            with kernel.loop(0, wide, some) as place:
                total = kernel.variables(some, 2)
                with kernel.loop(size("channels")) as channel:
                    own = spectrum_like("h", spectrum + channel * shape.spectrum, group)
                    for r in range(some):
                        value = Column(works[channel, group]).load(place, r) * own.load(place, r)
                        total[r, 0], total[r, 1] = total[r, 0] + value.re, total[r, 1] + value.im
                for r in range(some):
                    row.store(place, r, Complex(total[r, 0], total[r, 1]))
            rows_inverse(group, row, len(across))

    def write(tiles: list[dict[str, Int]], channel: Int, result: Int | int, work: Array, odd: Variables) -> None:
        """Columns back, and the valid part of the tiles to y."""
        added, zero = kernel.array("bias", 1)[channel + result].splat(), kernel.splat(0)

        def put(given: Place, target: Place, mask: Mask | None = None) -> None:
            total = given.load() + added
            odd[0] = kernel.fma(total, zero, odd[0])
            target.store(total, mask)

        widest = kernel.maximum(tiles[0]["wide"], tiles[1]["wide"])
        with kernel.loop(0, widest, shape.chunk) as chunk:
            with kernel.loop(0, kernel.minimum(widest - chunk, shape.chunk), lanes) as first:
                columns_inverse(chunk, first, work)
            for part, tile in enumerate(tiles):
                y = kernel.array("y", size("y_row"), 1).moved(tile["y"] + result * size("y_channel") + chunk)
                count = kernel.number(kernel.minimum(tile["wide"] - chunk, shape.chunk))
                whole = kernel.number(kernel.maximum(count, 0)) // lanes * lanes
                mask = kernel.mask(count - whole)
                with kernel.loop(tile["high"]) as i:
                    with kernel.loop(0, whole, lanes) as j:
                        put(image[part, i, j], y[i, j])
                    with kernel.when(whole < count):
                        put(image[part, i, whole], y[i, whole], mask)

    def forward(tiles: list[dict[str, Int]], channel: Int | int, work: Array) -> None:
        """What both tiles show of a channel, and the transforms of its columns."""
        with kernel.loop(0, wide, shape.chunk) as chunk:
            for part, tile in enumerate(tiles):
                fill(tile, channel, part, chunk)
            columns_forward(chunk, work)

    with kernel.loop(size("first"), size("last")) as pair:
        told = {name: pairs[pair * len(PAIR) + i] for i, name in enumerate(PAIR)}
        tiles = [{name: told[f"{name}{part}"] for name in TILE} for part in range(2)]
        odd = kernel.variables(1)
        if not summed:
            forward(tiles, 0, works[0])
            through_rows(told["spectrum"], works[0])
            with kernel.when(size("spectra").equals(0)):
                write(tiles, told["channel"], 0, works[0], odd)
        else:
            channels = size("channels")
            with kernel.loop(channels) as channel:
                forward(tiles, channel, works[channel])
                with kernel.loop(high // lanes) as group:
                    rows_forward(group, Column(works[channel, group]), len(across))
            with kernel.either(size("spectra") > 0) as (written, used):
                with written:
                    keep_spectrum(told["spectrum"], works[0])
                with used, kernel.loop(size("results")) as result:
                    sum_and_back(told["spectrum"] + result * channels * shape.spectrum, works[channels])
                    write(tiles, told["channel"], result, works[channels], odd)
        with kernel.when(size("spectra").equals(0)):
            kernel.array("odd", lanes, 1)[pair, 0].store(odd[0])
    return kernel
