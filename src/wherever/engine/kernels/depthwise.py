"""Depthwise: every channel has a kernel of its own, and lanes are channels."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Int, Kernel, Mask

OUTSIDE = -(1 << 60)  # in the tables of places: nothing is there; a sum of two of them is still below half of it


def depthwise(target: Target, *, dtype: str, wide: int, stride: int, apart: int, across: int) -> Kernel:
    """Write y[i, j, c] = bias[c] + sum over a, b of w[a, b, c] x[row[i, a], j * stride + (first[a] + b) * apart, c].

    ``across`` neighbouring places j are summed at once: each vector of x is loaded once for all the sums that it is
    part of, in each row a of the kernel. Tables tell where rows lie, so that one call computes images of any number of
    dimensions, with any boundary: a row, or a place of the columns near the border, may be outside of x.

    Parameters
    ----------
    wide
        Columns b of the kernel that are summed together.
    stride, apart
        From one j, and one b, to the next, in places of x.
    across
        Places of the register tile.

    The arrays: x; filler, the channels of a place outside x; w (a, b, c); bias; y.

    The tables: of each row i where it begins in y, and for every a in x (or OUTSIDE); of each a its first column; of
    each place of a row that windows look at, how far it is from where the row of x begins (or OUTSIDE). Behind them
    looked, a workspace for all places that a tile looks at.

    The sizes: first and last row i; number of columns j, and the first and last of them whose windows are inside x;
    numbers of channels and of rows a; pitches of w from one tap to the next, of x and y from one place to the next.
    """
    lanes = target.lanes(dtype)
    sizes = ["first", "last", "columns", "low", "high", "channels", "taps", "w_tap", "x_pixel", "y_pixel"]
    arrays = ["x", "filler", "w", "bias", "y", "row_table", "tap_table", "column_table", "looked"]
    kernel = Kernel("depthwise", dtype, lanes, arrays, sizes)
    first, last, columns, low, high, channels, taps, w_tap, x_pixel, y_pixel = map(kernel.size, sizes)
    x, filler, bias = kernel.array("x", x_pixel, 1), kernel.array("filler", 0, 1), kernel.array("bias", 1)
    w, y = kernel.array("w", w_tap * wide, w_tap, 1), kernel.array("y", y_pixel, 1)
    row_table, first_column, column_table, looked = (kernel.table(name) for name in arrays[-4:])
    origin = kernel.array("x", 1)
    beyond = kernel.distance(origin, filler)

    places = sorted({place * stride + b * apart for place in range(across) for b in range(wide)})

    def tile(i: Int, j: Int, c: Int, broad: int, mask: Mask | None, inside: bool) -> None:
        """Sum the windows of neighbouring places; those that are not inside x are where `look_up` found them."""
        sums = kernel.variables(broad)
        added = bias[c].load(mask)
        for place in range(broad):
            sums[place] = added
        pairs = [(place * stride + b * apart, place, b) for place in range(broad) for b in range(wide)]
        with kernel.loop(taps) as a:
            row = row_table[i * (taps + 1) + (a + 1)]
            window = kernel.choose(row < OUTSIDE // 2, filler, x.moved(row))
            start = j * stride + first_column[a] * apart
            weights = [w[a, b, c].load(mask) for b in range(wide)]
            for number, position in enumerate(places):
                there = [(place, b) for p, place, b in pairs if p == position]
                if not there:
                    continue
                at = window[start + position, c] if inside else origin.moved(looked[a * len(places) + number])[c]
                seen = at.load(mask)
                for place, b in there:
                    sums[place] = kernel.fma(weights[b], seen, sums[place])
        result = y.moved(row_table[i * (taps + 1)])
        for place in range(broad):
            result[j + place, c].store(sums[place], mask)

    def look_up(i: Int, j: Int) -> None:
        """Find out where the places are that the windows of a tile look at."""
        with kernel.loop(taps) as a:
            row = row_table[i * (taps + 1) + (a + 1)]
            start = j * stride + first_column[a] * apart
            for number, position in enumerate(places):
                at = row + column_table[start + position]
                looked[a * len(places) + number] = kernel.where(at < OUTSIDE // 2, beyond, at)

    def tiles(i: Int, broad: int) -> None:
        """All columns of a row; the last tile overlaps the one before."""
        with kernel.loop(0, columns, broad) as following:
            j = kernel.number(kernel.minimum(following, columns - broad))
            with kernel.either((j >= low) & (j + broad <= high)) as (inside, not_inside):
                with inside:
                    for c, mask in kernel.vectors(0, channels):
                        tile(i, j, c, broad, mask, True)
                with not_inside:
                    look_up(i, j)
                    for c, mask in kernel.vectors(0, channels):
                        tile(i, j, c, broad, mask, False)

    with kernel.loop(first, last) as i, kernel.either(columns >= across) as (wide_enough, narrow):
        with wide_enough:
            tiles(i, across)
        with narrow:
            tiles(i, 1)
    return kernel
