"""Gradients by the weights of small kernels: tiles of both images transformed, multiplied, and summed over tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.cook_toom import Matrix, cook_toom, transformed
from wherever.engine.kernels.vector import Array, Int, Kernel
from wherever.engine.kernels.winograd import OUTSIDE


def winograd_gradient(
    target: Target, *, dtype: str, tile: Sequence[int], taps: Sequence[int], rows: int, vectors: int
) -> Kernel:
    """Write total[k, a, c] = sum over tiles t and their places i of y[t, i, k] x[t, i + a, c].

    Within a tile this is a correlation of x with a kernel of ``tile`` places that has ``taps`` outputs, F(taps, tile):
    A [(G y) * (B x)] (see `cook_toom`). A is the same for all tiles, so that what lies in brackets is summed over tiles
    first, a matrix product of channels at each of the n points. Three passes over some tiles at a time:
    V = B x and D = G y for every tile and channel, then for every block of channels of y and of x the sums of D V in
    registers, and A times these, added to the total. The last is taken once for all these tiles.

    Tables tell where tiles lie in x and y, as for `winograd`.

    Parameters
    ----------
    tile, taps
        Places of y in a tile, and of the kernel, in each dimension.
    rows, vectors
        Register tile of the products: channels of y (divides the lanes) times vectors of channels of x.

    The arrays: x; filler, the channels of a place outside x; y; nothing, zeros for one outside y; v, d, edge and sums,
    workspaces (edge for one tile of x or y, of all channels; sums for every point of a register tile); total; odd, one
    vector that is NaN afterwards if any total is not finite. The tables: as for `winograd`.

    The sizes: first and last tile, how many are worked on together, and how many V and D have room for; first and last
    channel of x, and of y, to transform; first and last block of rows, and number of vectors of x, to multiply; from
    one row of the total to the next; whether the total is added to; from one place of a tile to the next in x, and in
    y, in every dimension, and in edge.
    """
    lanes = target.lanes(dtype)
    dimensions = len(tile)
    matrices = [cook_toom(r, m) for m, r in zip(tile, taps, strict=True)]
    points = tuple(m + r - 1 for m, r in zip(tile, taps, strict=True))
    number, halves = math.prod(points), lanes // rows
    x_names, y_names = ([f"{name}_pitch{dim}" for dim in range(dimensions)] for name in "xy")
    sizes = ["tile", "tiles", "together", "held", "x_first", "x_last", "y_first", "y_last", "first", "last", "across"]
    sizes += ["total_row", "adding", *x_names, *y_names, "apart"]
    arrays = ["x", "filler", "y", "nothing", "v", "d", "edge", "sums", "total", "odd"]
    kernel = Kernel("winograd_gradient", dtype, lanes, [*arrays, "tile_table", "x_places", "y_places"], sizes)
    size, held = kernel.size, kernel.size("held")
    # Channels by the vector, and then what belongs to one product side by side.
    v, d = (kernel.array(name, held * (number * lanes), held * lanes, lanes, 1) for name in "vd")
    sums = kernel.array("sums", rows * vectors * lanes, vectors * lanes, lanes, 1)
    total_tap = size("across") * lanes
    total = kernel.array("total", size("total_row"), *_pitches(taps, total_tap), 1)

    def entry(t: Int, field: int) -> Int:
        """One entry of a tile in the table."""
        return kernel.table("tile_table")[t * (4 + dimensions) + field]

    def each_place(t: Int, shape: Sequence[int], image: int, table: str) -> Iterator[tuple[tuple[Int, ...], Int]]:
        """Loops over all places of a tile, with how far each is from the beginning of x or y."""
        with ExitStack() as loops:
            index, distance = [], entry(t, image)
            for dim, count in enumerate(shape):
                index.append(loops.enter_context(kernel.loop(count)))
                distance = distance + kernel.table(table)[entry(t, 4 + dim) + index[-1]]
            yield tuple(index), distance

    def transform(name: str, field: int, around: str, shape: Sequence[int], by: list[Matrix], result: Array) -> None:
        """Transform the channels of one image, for some tiles; a tile that lies in no image as a whole is copied."""
        image = kernel.array(name, *(size(pitch) for pitch in (x_names if name == "x" else y_names)), 1)
        edge = kernel.array("edge", *_pitches(shape, size("apart")), 1)
        first, last = size(f"{name}_first"), size(f"{name}_last")
        with kernel.loop(count) as t:
            begin = entry(start + t, field)
            outside = begin < OUTSIDE // 2
            with kernel.when(outside):
                for index, distance in each_place(start + t, shape, field + 2, f"{name}_places"):
                    flat = kernel.array(name, 1).moved(distance)
                    seen_at = kernel.choose(distance < OUTSIDE // 2, kernel.array(around, 1), flat)
                    for c, mask in kernel.vectors(first, last):
                        edge[(*index, c)].store(seen_at[c].load(mask), mask)
            corner = kernel.choose(outside, edge, image.moved(begin))
            places = [corner[spot] for spot in np.ndindex(*shape)]  # looked up once for all channels
            for c, mask in kernel.vectors(first, last):
                seen = np.empty(tuple(shape), object)
                for spot, place in zip(np.ndindex(*shape), places, strict=True):
                    seen[spot] = place[c].load(mask)
                for point, value in enumerate(transformed(kernel, by, seen).ravel()):
                    result[c // lanes, point, t, 0].store(value)

    odd = kernel.variables(1)

    def product(block: Int, c: Int, wide: int) -> None:
        """A block of channels of y, and some vectors of channels of x."""
        with kernel.loop(number) as point:
            tile_sums = kernel.variables(rows, wide)
            left, right = d[block // halves, point].moved(block % halves * rows), [v[c + n, point] for n in range(wide)]
            with kernel.loop(count) as t:
                seen = [right[n][t, 0].load() for n in range(wide)]
                for k in range(rows):
                    value = left[t, k].splat()
                    for n in range(wide):
                        tile_sums[k, n] = kernel.fma(value, seen[n], tile_sums[k, n])
            for k in range(rows):
                for n in range(wide):
                    sums[point, k, n, 0].store(tile_sums[k, n])
        with kernel.loop(rows) as row:
            for n in range(wide):
                given = np.empty(points, object)
                for flat, spot in enumerate(np.ndindex(points)):
                    given[spot] = sums[flat, row, n, 0].load()
                results = transformed(kernel, [a for a, _, _ in matrices], given)
                with kernel.either(size("adding").equals(0) & start.equals(size("tile"))) as (begun, otherwise):
                    for branch, more in ((begun, False), (otherwise, True)):
                        with branch:
                            for tap, value in np.ndenumerate(results):
                                place = total[(block * rows + row, *tap, (c + n) * lanes)]
                                result = place.load() + value if more else value
                                place.store(result)
                                odd[0] = kernel.fma(result, kernel.splat(0), odd[0])

    with kernel.loop(size("tile"), size("tiles"), size("together")) as start:
        count = kernel.number(kernel.minimum(size("together"), size("tiles") - start))
        transform("x", 0, "filler", points, [b for _, _, b in matrices], v)
        transform("y", 1, "nothing", tile, [g for _, g, _ in matrices], d)
        whole = size("across") // vectors * vectors
        for begin, end, wide in ((0, whole, vectors), (whole, size("across"), 1)):
            if begin is whole and vectors == 1:
                continue
            with kernel.loop(begin, end, wide) as c, kernel.loop(size("first"), size("last")) as block:
                product(block, c, wide)
    kernel.array("odd", 1)[0].store(odd[0])
    return kernel


def _pitches(shape: Sequence[int], last: int | Int) -> list[int | Int]:
    """How far apart the elements of each axis of an array of this shape are, where those of the last are ``last``."""
    return [last * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
