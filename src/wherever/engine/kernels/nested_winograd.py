"""Nested Winograd: a large kernel for every channel as a grid of small ones, which share the transformed tiles of x."""

from __future__ import annotations

import numpy as np

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.cook_toom import cook_toom, times, transformed
from wherever.engine.kernels.vector import Int, Kernel, Mask, Vector

SIDE = 3  # outputs of a tile, and taps of a small kernel, in each dimension
POINTS = 2 * SIDE - 1
OUTSIDE = -(1 << 60)  # in the tables of places: nothing is there; a sum of two of them is still below half of it


def nested_winograd(target: Target, *, dtype: str, down: int, wide: int, across: int, tail: bool) -> Kernel:
    """Write y[i, j, c] = bias[c] + sum over a, b of w[a, b, c] x[i + a, j + b, c], for tiles of 3x3 outputs.

    The kernel is cut into ``down`` times ``wide`` small kernels of 3x3 taps. Since these lie as far apart as tiles,
    each transformed tile of x serves all of them: at each of the 25 points of F(3x3, 3x3), what is left is a depthwise
    convolution of tiles with small kernels, m[i, j] = sum over a, b of u[a, b] v[i + a, j + b]. Lanes are channels. A
    ring of ``down`` rows of transformed tiles is kept; each row is transformed once.

    Parameters
    ----------
    down, wide
        Small kernels below each other, and side by side.
    across
        Neighbouring tiles that are summed together in registers.
    tail
        Whether the last vector of channels may not be read whole.

    The arrays: x; filler, the channels of a place outside x; u (vector of channels, point, a, b, lanes); bias; y;
    v (slot of the ring, column, point, lanes) and m (column, point, lanes), workspaces; odd, one vector that is NaN
    afterwards if any result is not finite.

    The tables: how far each line, and each column, of x that tiles look at is from where an image begins (or OUTSIDE);
    of each row, and each column, of tiles whether all its places are inside x; the same of y, and of its whole tiles;
    slots, a workspace of ``down`` entries.

    The sizes: first and last image; first and last row of tiles of y; columns of tiles of y; first and last channel;
    from one image of x and of y to the next, and from one place of a line; columns of a slot of v.
    """
    lanes = target.lanes(dtype)
    tables = ["x_lines", "x_columns", "x_rows_inside", "x_columns_inside"]
    tables += ["y_lines", "y_columns", "y_rows_whole", "y_columns_whole", "slots"]
    arrays = ["x", "filler", "u", "bias", "y", "v", "m", "odd", *tables]
    sizes = ["image", "images", "row", "rows", "columns", "channel", "channels"]
    sizes += ["x_image", "y_image", "x_place", "y_place", "pitch"]
    kernel = Kernel("nested_winograd", dtype, lanes, arrays, sizes)
    image, images, row, rows, columns, channel, channels, x_image, y_image, x_place, y_place, pitch = map(
        kernel.size, sizes
    )
    x_lines, x_columns, x_rows_inside, x_columns_inside = map(kernel.table, tables[:4])
    y_lines, y_columns, y_rows_whole, y_columns_whole, slots = map(kernel.table, tables[4:])
    number, small = POINTS * POINTS, down * wide * lanes
    x, y, bias = kernel.array("x", x_place, 1), kernel.array("y", y_place, 1), kernel.array("bias", 1)
    u = kernel.array("u", number * small, small, wide * lanes, lanes, 1)
    v = kernel.array("v", pitch * (number * lanes), lanes, number * lanes, 1)
    m = kernel.array("m", lanes, number * lanes, 1)
    nothing = kernel.array("filler", 1)
    back, _, forth = cook_toom(SIDE, SIDE)
    odd = kernel.variables(1)

    def transform(begin: Int, r: Int, c: Int, mask: Mask | None) -> None:
        """Transform a row of tiles of x, into its slot: each column once, although neighbours share it."""
        given, slot = x.moved(begin), r % down
        filler = kernel.distance(given, nothing)
        lines = [x_lines[r * SIDE + k] for k in range(POINTS)]
        seen, shared = kernel.variables(POINTS, SIDE), kernel.variables(POINTS, POINTS - SIDE)

        def load(j: Int, first: int, count: int) -> list[list[Vector]]:
            """Some columns of a tile, transformed."""
            with kernel.either((x_rows_inside[r] > 0) & (x_columns_inside[j] > 0)) as (inside, otherwise):
                with inside:
                    start = x_columns[j * SIDE]
                    for k, n in np.ndindex(POINTS, count):
                        seen[k, n] = given.moved(lines[k] + start)[first + n, c].load(mask)
                with otherwise:
                    for n in range(count):
                        column = x_columns[j * SIDE + (first + n)]
                        for k, line in enumerate(lines):
                            there = line + column
                            place = kernel.where(there < OUTSIDE // 2, filler, there)
                            seen[k, n] = given.moved(place)[0, c].load(mask)
            return [times(kernel, forth, [seen[k, n] for k in range(POINTS)]) for n in range(count)]

        def keep(columns: list[list[Vector]]) -> None:
            for n, column in enumerate(columns):
                for k, value in enumerate(column):
                    shared[k, n] = value

        keep(load(kernel.number(0), 0, POINTS - SIDE))
        with kernel.loop(columns + (wide - 1)) as j:
            kept = [[shared[k, n] for k in range(POINTS)] for n in range(POINTS - SIDE)]
            tile = [*kept, *load(j, POINTS - SIDE, SIDE)]
            keep(tile[SIDE:])
            for k in range(POINTS):
                for n, value in enumerate(times(kernel, forth, [column[k] for column in tile])):
                    v[slot, k * POINTS + n, j, 0].store(value)

    def products(i: Int, vector: Int) -> None:
        """Sum over the small kernels, at every point."""
        with kernel.loop(down) as a:
            slots[a] = kernel.number((i + a) % down)
        with kernel.loop(number) as point, kernel.loop(0, columns, across) as following:
            j = kernel.number(kernel.minimum(following, columns - across))  # the last ones overlap those before
            sums = kernel.variables(across)
            with kernel.loop(down) as a:
                weights = [u[vector, point, a, b, 0].load() for b in range(wide)]
                for k in range(across + wide - 1):
                    value = v[slots[a], point, j + k, 0].load()
                    for b in range(max(0, k - across + 1), min(wide, k + 1)):
                        sums[k - b] = kernel.fma(weights[b], value, sums[k - b])
            for k in range(across):
                m[point, j + k, 0].store(sums[k])

    def transform_back(begin: Int, i: Int, c: Int, mask: Mask | None) -> None:
        """Transform a row of tiles back, to their places in y."""
        result, added = y.moved(begin), bias[c].load()
        lines = [y_lines[i * SIDE + k] for k in range(SIDE)]
        with kernel.loop(columns) as j:
            tile = np.empty((POINTS, POINTS), object)
            for index in np.ndindex(tile.shape):
                tile[index] = m[index[0] * POINTS + index[1], j, 0].load()
            outputs = np.empty((SIDE, SIDE), object)
            for index, value in np.ndenumerate(transformed(kernel, [back, back], tile)):
                total: Vector = value + added
                outputs[index] = total
                odd[0] = kernel.fma(total, kernel.splat(0), odd[0])
            with kernel.either((y_rows_whole[i] > 0) & (y_columns_whole[j] > 0)) as (whole, otherwise):
                with whole:
                    first = y_columns[j * SIDE]
                    for k, line in enumerate(lines):
                        for n in range(SIDE):
                            result.moved(line + first)[n, c].store(outputs[k, n], mask)
                with otherwise:
                    for n in range(SIDE):
                        column = y_columns[j * SIDE + n]
                        for k, line in enumerate(lines):
                            with kernel.when(line + column > OUTSIDE // 2):
                                result.moved(line + column)[0, c].store(outputs[k, n], mask)

    with kernel.loop(image, images) as n, kernel.loop(channel, channels, lanes) as c:
        mask = kernel.mask(channels - c) if tail else None
        with kernel.loop(row, rows + (down - 1)) as r:
            transform(kernel.number(n * x_image), r, c, mask)
            with kernel.when(r - row >= down - 1):
                i = r - (down - 1)
                products(i, c // lanes)
                transform_back(kernel.number(n * y_image), i, c, mask)
    kernel.array("odd", 1)[0].store(odd[0])
    return kernel
