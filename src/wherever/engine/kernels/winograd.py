"""Winograd: tiles and kernel transformed, multiplied point by point over all channels, and transformed back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.cook_toom import cook_toom, transformed
from wherever.engine.kernels.direct import CHUNK
from wherever.engine.kernels.vector import Int, Kernel, Vector


def winograd(
    target: Target,
    *,
    dtype: str,
    tile: Sequence[int],
    taps: Sequence[int],
    channels: int,
    x_pixel: int,
    y_pixel: int,
    v_pixel: int,
    m_pixel: int,
    rows: int,
    vectors: int,
    ahead: int,
) -> Kernel:
    """Write y[t, i, k] = bias[k] + sum over a, c of w[k, c, a] x[t, i + a, c] for tiles t of outputs i.

    Three passes over a block of tiles: V = B x for every tile and channel, M = V U for each of the n points (a matrix
    product over the channels), y = A M. Everything has its channels last, and what is read or written beyond a
    channel count up to whole vectors is padding there. Where a tile begins in x and y is told by tables, so that the
    kernel knows nothing of images, borders and batches.

    Parameters
    ----------
    tile, taps
        Outputs of a tile and places of the kernel in each dimension: F(tile, taps).
    channels
        Input channels.
    x_pixel, y_pixel
        Numbers from one place of x or y to the next in the last dimension; the other pitches are sizes.
    v_pixel, m_pixel
        Numbers from one point of V or M to the next: the channels, padded.
    rows, vectors
        Register tile of the products: tiles times vectors of output channels.
    ahead
        Cache lines of the next panel of U that each step of a product asks for.

    The arrays: x; u (point, block of output channels, channel, vectors * lanes); bias; y; v and m, workspaces;
    odd, one vector that is NaN afterwards if any output is not finite; tables x_tiles and y_tiles.
    The sizes: first and last tile, and how many are worked on together; first and last block of output channels, number
    of these blocks, number of output channels padded to whole vectors; pitches of x and of y in all dimensions but
    the last.
    """
    lanes = target.lanes(dtype)
    matrices = [cook_toom(m, r) for m, r in zip(tile, taps, strict=True)]
    points = tuple(m + r - 1 for m, r in zip(tile, taps, strict=True))
    number, block = math.prod(points), vectors * lanes
    x_names, y_names = ([f"{name}_pitch{dim}" for dim in range(len(tile) - 1)] for name in "xy")
    sizes = ["tile", "tiles", "together", "first", "last", "blocks", "filled", *x_names, *y_names]
    tables = ["x_tiles", "y_tiles"]
    kernel = Kernel("winograd", dtype, lanes, ["x", "u", "bias", "y", "v", "m", "odd", *tables], sizes)
    size = kernel.size
    x = kernel.array("x", *(size(n) for n in x_names), x_pixel, 1)
    y = kernel.array("y", *(size(n) for n in y_names), y_pixel, 1)
    u = kernel.array("u", size("blocks") * (channels * block), channels * block, block, 1)
    v = kernel.array("v", number * v_pixel, v_pixel, 1)
    m = kernel.array("m", number * m_pixel, m_pixel, 1)
    bias = kernel.array("bias", 1)
    place = dict(zip(np.ndindex(points), range(number), strict=True))

    def transform(start: Int, count: Int) -> None:
        """V = B x."""
        with kernel.loop(count) as t:
            corner = x.moved(kernel.table("x_tiles")[start + t])
            with kernel.loop(0, -(-channels // lanes) * lanes, lanes) as c:
                seen = _each(points, lambda index: corner[(*index, c)].load())
                for index, value in np.ndenumerate(transformed(kernel, [b for _, _, b in matrices], seen)):
                    v[t, place[index], c].store(value)

    def product(group: Int, point: Int, k: Int, prefetched: int) -> None:
        """The rows of a group times a block of output channels, at one point: the first chunk of channels, the rest."""
        chunk = min(CHUNK[dtype], channels)
        chunk_product(group, point, k, prefetched, 0, chunk)
        with kernel.loop(chunk, channels, chunk) as first:
            chunk_product(group, point, k, prefetched, first, kernel.minimum(first + chunk, channels))

    def chunk_product(group: Int, point: Int, k: Int, prefetched: int, first: Int | int, stop: Int | int) -> None:
        """Start, or continue, the sums of a product with some of the channels."""
        sums = kernel.variables(rows, vectors)
        with kernel.loop(first, stop) as c:
            weights = [u[point, k, c, n * lanes].load() for n in range(vectors)]
            for line in range(prefetched):
                u.moved(group * (channels * lanes))[point, k, c + channels, line * lanes].prefetch(2)
            for row in range(rows):
                value = v[group * rows + row, point, c].splat()
                for n in range(vectors):
                    sums[row, n] = kernel.fma(value, weights[n], sums[row, n])
        for row in range(rows):
            for n in range(vectors):
                total = m[group * rows + row, point, k * block + n * lanes]
                total.store(sums[row, n] if isinstance(first, int) else total.load() + sums[row, n])

    def products(groups: Int) -> None:
        """M = V U."""
        with kernel.loop(number) as point, kernel.loop(size("first"), size("last")) as k:
            some = kernel.minimum(groups, vectors // ahead)
            with kernel.loop(some) as group:
                product(group, point, k, ahead)
            with kernel.loop(some, groups) as group:
                product(group, point, k, 0)

    odd = kernel.variables(1)

    def transform_back(start: Int, count: Int) -> None:
        """Y = bias + A M."""
        with kernel.loop(count) as t:
            corner = y.moved(kernel.table("y_tiles")[start + t])
            begin, end = size("first") * block, kernel.minimum(size("last") * block, size("filled"))
            with kernel.loop(begin, end, lanes) as k:
                given = _each(points, lambda index: m[t, place[index], k].load())
                added = bias[k].load()
                for index, value in np.ndenumerate(transformed(kernel, [a for a, _, _ in matrices], given)):
                    total = value + added
                    corner[(*index, k)].store(total)
                    odd[0] = kernel.fma(total, kernel.splat(0), odd[0])

    with kernel.loop(size("tile"), size("tiles"), size("together")) as start:
        count = kernel.number(kernel.minimum(size("together"), size("tiles") - start))
        transform(start, count)
        products((count + (rows - 1)) // rows)
        transform_back(start, count)
    kernel.array("odd", 1)[0].store(odd[0])
    return kernel


def winograd_weights(target: Target, *, dtype: str, tile: Sequence[int], taps: Sequence[int], vectors: int) -> Kernel:
    """Write U = G w for every pair of input channel and vector of output channels.

    The arrays: w (tap, channel, blocks * vectors * lanes) with zeros behind the last output channel; u as `winograd`
    reads it. The sizes: number of channels, of blocks.
    """
    lanes = target.lanes(dtype)
    matrices = [g for m, r in zip(tile, taps, strict=True) for g in [cook_toom(m, r)[1]]]
    points = tuple(m + r - 1 for m, r in zip(tile, taps, strict=True))
    kernel = Kernel("winograd_weights", dtype, lanes, ["w", "u"], ["channels", "blocks"])
    channels, blocks = kernel.size("channels"), kernel.size("blocks")
    block = vectors * lanes
    w = kernel.array("w", channels * blocks * block, blocks * block, 1)
    u = kernel.array("u", blocks * channels * block, channels * block, block, 1)
    tap = dict(zip(np.ndindex(tuple(taps)), range(math.prod(taps)), strict=True))
    place = dict(zip(np.ndindex(points), range(math.prod(points)), strict=True))
    with kernel.loop(channels) as c, kernel.loop(blocks) as k, kernel.loop(0, block, lanes) as lane:
        given = _each(tuple(taps), lambda index: w[tap[index], c, k * block + lane].load())
        for index, value in np.ndenumerate(transformed(kernel, matrices, given)):
            u[place[index], k, c, lane].store(value)
    return kernel


def _each(shape: tuple[int, ...], load: Callable[[tuple[int, ...]], Vector]) -> npt.NDArray[np.object_]:
    """An array of vectors, loaded in order."""
    result = np.empty(shape, object)
    for index in np.ndindex(shape):
        result[index] = load(index)
    return result
