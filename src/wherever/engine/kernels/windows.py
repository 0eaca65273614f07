"""Images as planes without their means, sums over all their windows, and correlations divided by these' lengths."""

from __future__ import annotations

from collections.abc import Callable

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Array, Int, Kernel, Mask, Vector

GROUP = 4  # vectors of columns that are summed down together

# A window that begins in one block of as many places as it has, and ends in the next, is what is left of the first from
# its beginning on, and what there is of the second up to its end (van Herk; Gil and Werman). Nothing is subtracted, as
# from running sums, so that the error of a sum is relative to its own terms, whatever lies beside its window.


def normalised(target: Target, *, dtype: str) -> Kernel:
    """Write z / |x| in place of z: x is the window at each place, of all channels, each without its mean there.

    |x|^2 = sum over c of (sum of x_c^2 - (sum of x_c)^2 / n), in float64. Windows where this is no more than a given
    part of the first sum, and so may be nothing but rounding errors, give 0. Results are clipped to -1 ... 1.

    A strip of a few rows of windows is summed at a time, and of it as many columns as stay in the cache.

    Parameters
    ----------
    dtype
        Of x and z.

    The arrays: x (rows, channels, columns), readable and finite up to a multiple of `GROUP` vectors of float64 a row;
    z; numbers: 1 / n, and the part of a sum of squares that is taken for nothing; down and squares, for strip rows
    of ``pitch``, lengths, for strip * wide numbers, and rest, for one row. The sizes: first and last row and number of
    columns of z; channels; height and width of windows; rows of a strip, no more than that height; columns of one
    (``wide``: a multiple of `GROUP` vectors); ``pitch``: wide + width, so rounded up, and `GROUP` vectors; distances
    of rows of z, of rows and of channels of x.
    """
    lanes = target.lanes("float64")
    sizes = ["first", "last", "columns", "channels", "high", "across", "strip", "wide", "pitch"]
    distances = ["z_row", "x_row", "x_channel"]
    arrays = ["x", "z", "numbers", "down", "squares", "lengths", "rest"]
    kernel = Kernel("normalised", "float64", lanes, arrays, [*sizes, *distances])
    first, last, columns, channels, high, across, strip, wide, pitch = (kernel.size(name) for name in sizes)
    z_row, x_row, x_channel = (kernel.size(name) for name in distances)
    x = kernel.array("x", x_row, x_channel, 1, dtype=dtype)
    z = kernel.array("z", z_row, 1, dtype=dtype)
    down, squares = (kernel.array(name, pitch, 1) for name in ("down", "squares"))
    lengths, rest, numbers = kernel.array("lengths", wide, 1), kernel.array("rest", 1), kernel.array("numbers", 1)
    share, nothing = numbers[0].splat(), numbers[1].splat()
    zero, one = kernel.splat(0), kernel.splat(1)

    def sum_down(channel: Int, row: Int, column: Int, rows: Int | int, count: Int) -> None:
        """Sums down the columns from ``column`` on, for each of the rows: x into ``down``, x^2 added to ``squares``."""
        some = range(GROUP)
        with kernel.loop(0, count, GROUP * lanes) as j:
            total = kernel.variables(2, GROUP)

            def add(i: Int) -> None:
                """Add a row of x."""
                for k in some:
                    value = x[i, channel, column + j + k * lanes].load()
                    total[0, k] = total[0, k] + value
                    total[1, k] = kernel.fma(value, value, total[1, k])

            # What all windows of the strip have in common, then upwards what the first of them begin with.
            with kernel.loop(row + rows - 1, row + high) as i:
                add(i)
            with kernel.loop(rows) as up:
                r = rows - 1 - up
                for k in some:
                    down[r, j + k * lanes].store(total[0, k])
                    place = squares[r, j + k * lanes]
                    place.store(total[1, k] + place.load())
                add(row + kernel.maximum(r - 1, 0))
            for k in some:
                total[0, k] = total[1, k] = zero
            with kernel.loop(1, rows) as r:  # downwards what the last of them end with
                add(row + high + r - 1)
                for k in some:
                    for part, sums in enumerate((down, squares)):
                        place = sums[r, j + k * lanes]
                        place.store(place.load() + total[part, k])

    def sum_across(line: Array, count: Int, put: Callable[[Int, Vector, Mask | None], None]) -> None:
        """Sums of ``across`` neighbours of a line, from each of the first ``count`` places on, the last ones first.

        First of places a vector apart, where no lane meets another; then of as many neighbours as there are lanes.
        """
        whole, last = (kernel.number(n // lanes * lanes) for n in (across, count - 1))
        stop = last + 2 * lanes
        total = kernel.variables(1)
        with kernel.when(whole.equals(0)), kernel.loop(0, stop, lanes) as place:
            rest[place].store(zero)
        with kernel.loop(0, stop, kernel.maximum(whole, lanes)) as block:
            total[0] = zero
            with kernel.loop(0, whole, lanes) as back:
                place = block + whole - lanes - back
                total[0] = total[0] + line[place].load()
                rest[place].store(total[0])
            total[0] = zero
            with kernel.loop(0, kernel.minimum(whole, stop - block), lanes) as i:
                place = block + i
                rest[place].store(rest[place].load() + total[0])
                total[0] = total[0] + line[place + whole].load()
        steps = [1 << i for i in range(lanes.bit_length() - 1)]
        following = kernel.variables(len(steps))  # of the vector behind: sums of 1, 2, 4, ... neighbours

        def neighbours(place: Int) -> Vector:
            """The sums from the places of a vector on."""
            sums = rest[place].load()
            for number, step in enumerate(steps):
                behind, following[number] = following[number], sums
                sums = sums + sums.shuffled(behind, range(step, step + lanes))
            total[0] = sums
            with kernel.loop(whole, across) as more:
                total[0] = total[0] + line[place + more].load()
            return total[0]

        neighbours(last + lanes)
        put(last, neighbours(last), kernel.mask(count - last))
        with kernel.loop(0, last, lanes) as back:
            place = last - lanes - back
            put(place, neighbours(place), None)

    with kernel.loop(first, last, strip) as row:
        rows = kernel.minimum(strip, last - row)
        with kernel.loop(0, columns, wide) as column:
            count = kernel.number(kernel.minimum(wide, columns - column))
            with kernel.loop(rows) as r:
                with kernel.loop(0, count + across - 1, GROUP * lanes) as j:
                    for k in range(GROUP):
                        squares[r, j + k * lanes].store(zero)
                with kernel.loop(0, count, lanes) as j:
                    lengths[r, j].store(zero)
            with kernel.loop(channels) as channel:
                sum_down(channel, row, column, rows, count + across - 1)
                with kernel.loop(rows) as r:

                    def lengthen(j: Int, total: Vector, mask: Mask | None, r: Int = r) -> None:
                        place = lengths[r, j]
                        place.store(kernel.fma(total, total, place.load(mask)), mask)

                    sum_across(down[r], count, lengthen)
            with kernel.loop(rows) as r:
                begin = z[row + r].moved(column)

                def divide(j: Int, total: Vector, mask: Mask | None, r: Int = r, begin: Array = begin) -> None:
                    variance = total - lengths[r, j].load(mask) * share
                    flat = variance <= nothing * total
                    place = begin[j]
                    value = place.load(mask) / flat.select(one, variance).root()
                    value = (one <= value).select(one, (value <= -one).select(-one, value))
                    place.store(flat.select(zero, value), mask)

                sum_across(squares[r], count, divide)
    return kernel


def centred(target: Target, *, dtype: str, channels: int) -> Kernel:
    """Write y[i, c, j] = x[i, j, c] - centre[c], and of each row and channel the sum and the extremes of y.

    Parameters
    ----------
    dtype
        Of all arrays.
    channels
        Of x, where they lie side by side: they are told apart in registers.

    The arrays: x; centre; y; found, a vector of sums, one of maxima and one of minima for each row and channel. The
    sizes: rows, columns, and distances: of rows of x, of rows and of channels of y.
    """
    lanes = target.lanes(dtype)
    kernel = Kernel(
        "centred", dtype, lanes, ["x", "centre", "y", "found"], ["rows", "columns", "x_row", "y_row", "plane"]
    )
    rows, columns, x_row, y_row, plane = (kernel.size(name) for name in ("rows", "columns", "x_row", "y_row", "plane"))
    x, y = kernel.array("x", x_row, 1), kernel.array("y", y_row, plane, 1)
    centres = [kernel.array("centre", 1)[c].splat() for c in range(channels)]
    found = kernel.array("found", channels * 3 * lanes, 3 * lanes, lanes, 1)

    def apart(vectors: list[Vector], channel: int) -> Vector:
        """Of so many pixels' channels this one."""
        wanted = [i * channels + channel for i in range(lanes)]
        result = vectors[0]
        for number, vector in enumerate(vectors):
            # What is in this vector, and what was found before; of the first vector nothing is kept yet.
            order = [w % lanes + lanes if w // lanes == number else i for i, w in enumerate(wanted)]
            result = result.shuffled(vector, order)
        return result

    with kernel.loop(rows) as i:
        sums, most, least = (kernel.variables(channels) for _ in range(3))
        for j, mask in kernel.vectors(0, columns):
            places = [(x[i, j * channels + n * lanes], (columns - j) * channels - n * lanes) for n in range(channels)]
            vectors = [place.load(None if mask is None else kernel.mask(count)) for place, count in places]
            for c, centre in enumerate(centres):
                value = apart(vectors, c) - centre if channels > 1 else vectors[0] - centre
                y[i, c, j].store(value, mask)
                if mask is not None:
                    value = mask.select(value, kernel.splat(0))
                sums[c] = sums[c] + value
                most[c] = (value <= most[c]).select(most[c], value)
                least[c] = (value <= least[c]).select(value, least[c])
        for c in range(channels):
            for n, extreme in enumerate((sums, most, least)):
                found[i, c, n, 0].store(extreme[c])
    return kernel
