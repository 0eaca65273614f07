"""Winograd: tiles and kernel transformed, multiplied point by point over all channels, and transformed back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.cook_toom import Matrix, cook_toom, transformed
from wherever.engine.kernels.direct import LINE_BYTES
from wherever.engine.kernels.finish import finished
from wherever.engine.kernels.vector import Array, Int, Kernel, Mask

# Terms that are summed in registers, before they are added to others: so many that this costs nothing, and so few that
# their rounding errors stay below those of the transforms.
CHUNK = 128
OUTSIDE = -(1 << 60)  # in the tables of places: nothing is there; sums of a few of them are still below half of it


# The phases of a stride: of each, in every dimension, its number and whether it is short, of one tap less than others.
Phases: TypeAlias = tuple[tuple[tuple[int, bool], ...], ...]


def active(phases: Phases, points: Sequence[int], index: Sequence[int]) -> list[int]:
    """The phases that have a product at a point: a short one has none at infinity, which is the last point."""
    return [
        number
        for number, phase in enumerate(phases)
        if not any(short and i == n - 1 for (_, short), i, n in zip(phase, index, points, strict=True))
    ]


def tile_pitch(points: int, pixel: int, size: int) -> int:
    """Numbers from one tile of V or M to the next: no multiple of 8 cache lines, lest many tiles share a few sets."""
    line = LINE_BYTES // size
    lines = -(-points * pixel // line)
    return (lines + (lines % 8 == 0)) * line


def _short(phase: tuple[tuple[int, bool], ...], matrices: Sequence[Matrix]) -> list[Matrix]:
    """The matrices of a phase: of a short one without the point at infinity, and without what only that one reads."""
    return [
        tuple(row[:-1] for row in matrix[:-1]) if short else matrix
        for (_, short), matrix in zip(phase, matrices, strict=True)
    ]


def winograd(
    target: Target,
    *,
    dtype: str,
    tile: Sequence[int],
    taps: Sequence[int],
    channels: int,
    outputs: int,
    x_pixel: int,
    y_pixel: int,
    v_pixel: int,
    m_pixel: int,
    phases: Phases,
    sparse: bool,
    rows: int,
    vectors: int,
    ahead: int,
    activation: str | None,
    adds: bool,
) -> Kernel:
    """Write y[t, i, k] = bias[k] + sum over a, c of w[k, c, a] x[t, i + a, c] for tiles t of outputs i.

    Three passes over a block of tiles: V = B x for every tile and channel, M = V U for each of the n points (a matrix
    product over the channels), y = A M. Everything has its channels last. Tables tell where a tile lies in x and y, so
    that the kernel knows nothing of images, borders and batches: a tile inside x is read where it lies; of any other
    each place is looked up, in x or outside of it, and copied.

    Parameters
    ----------
    tile, taps
        Outputs of a tile and places of the kernel in each dimension: F(tile, taps).
    phases
        Of a stride s: places of x whose number is q modulo s meet only the taps q, q + s, ... They are a problem
        without stride, and the products of all phases are added point by point, as those of more channels. One phase
        where there is no stride.
    channels, outputs
        Input and output channels.
    x_pixel, y_pixel
        Numbers from one place of x or y to the next in the last dimension.
    v_pixel, m_pixel
        Numbers from one point of V or M to the next: the channels, padded to whole vectors.
    sparse
        Whether the places of a tile are further apart than that in the last dimension: then this pitch is a size, too.
    rows, vectors
        Register tile of the products: tiles times vectors of output channels.
    ahead
        Cache lines of the next panel of U that each step of a product asks for.
    activation, adds
        What is applied to the outputs (see `kernels.finish`), and whether ``beside`` is added before.

    The arrays: x; filler, the channels of a place outside x; u (point, block of output channels, channel,
    vectors * lanes); bias; y; beside, if it is added, which lies in memory as y does; v, m and edge, workspaces (edge
    for one tile of x, or one of y and one of beside); odd, one vector that is NaN afterwards if any output is not
    finite before the activation.

    The tables: of each tile where every phase of it begins in x, and where it begins in y (OUTSIDE, where it is not
    wholly inside), where its image begins in x and in y, and in each dimension its first entry in the next two tables;
    these tell how far every place along a dimension is from the image's beginning, in x (one phase after the other) and
    in y; terms, how many products are added at each point.

    The sizes: first and last tile, and how many are worked on together; whether these have to be transformed, or V is
    what an earlier call left; first and last block of output channels, number of these blocks; how far apart the places
    of a tile are in each dimension, in x and in y; entries of one phase in each dimension.
    """
    lanes = target.lanes(dtype)
    dimensions = len(tile)
    matrices = [cook_toom(m, r) for m, r in zip(tile, taps, strict=True)]
    points = tuple(m + r - 1 for m, r in zip(tile, taps, strict=True))
    number, block, terms = math.prod(points), vectors * lanes, len(phases) * channels
    x_names, y_names = ([f"{name}_pitch{dim}" for dim in range(dimensions)] for name in "xy")
    lengths = [f"length{dim}" for dim in range(dimensions)]
    sizes = ["tile", "tiles", "together", "transforming", "first", "last", "blocks", *x_names, *y_names, *lengths]
    arrays = ["x", "filler", "u", "bias", "y", *(["beside"] if adds else []), "v", "m", "edge", "odd"]
    arrays += ["tile_table", "x_places", "y_places", "terms"]
    kernel = Kernel("winograd", dtype, lanes, arrays, sizes)
    size = kernel.size
    x_pitches, y_pitches = [size(n) for n in x_names[:-1]], [size(n) for n in y_names[:-1]]
    x = kernel.array("x", *x_pitches, size(x_names[-1]) if sparse else x_pixel, 1)
    y, *others = (
        kernel.array(name, *y_pitches, size(y_names[-1]) if sparse else y_pixel, 1)
        for name in (["y", "beside"] if adds else ["y"])
    )
    u = kernel.array("u", size("blocks") * (terms * block), terms * block, block, 1)
    # V and M, with points by their number and by their place in a tile.
    v_pitch, m_pitch = (tile_pitch(number, pixel, kernel.bytes) for pixel in (v_pixel, m_pixel))
    v, v_tile = (kernel.array("v", v_pitch, *pitches, 1) for pitches in ([v_pixel], _pitches(points, v_pixel)))
    m, m_tile = (kernel.array("m", m_pitch, *pitches, 1) for pitches in ([m_pixel], _pitches(points, m_pixel)))
    bias, filler = kernel.array("bias", 1), kernel.array("filler", 1)
    edge_of_x = kernel.array("edge", *_pitches(points, x_pixel), 1)
    edge_of_y = kernel.array("edge", *_pitches(tile, y_pixel), 1)
    edge_of_others = edge_of_y.moved(math.prod(tile) * y_pixel)

    y_corner = len(phases)  # the field behind those of the phases

    def entry(t: Int, field: int) -> Int:
        """One entry of a tile in the table."""
        return kernel.table("tile_table")[t * (y_corner + 3 + dimensions) + field]

    def each_place(
        t: Int, shape: Sequence[int], image: int, table: str, skipped: Sequence[Int | int]
    ) -> Iterator[tuple[tuple[Int, ...], Int]]:
        """Loops over all places of a tile, with how far each is from the beginning of x or y."""
        with ExitStack() as loops:
            index, total = [], entry(t, image)
            for dim, count in enumerate(shape):
                index.append(loops.enter_context(kernel.loop(count)))
                total = total + kernel.table(table)[entry(t, y_corner + 3 + dim) + skipped[dim] + index[-1]]
            yield tuple(index), total

    def transform(start: Int, count: Int) -> None:
        """V = B x, of every phase behind the phases before it."""
        with kernel.loop(count) as t:
            for phase in range(len(phases)):
                transform_phase(start, t, phase)

    def transform_phase(start: Int, t: Int, phase: int) -> None:
        shape = [n - short for n, (_, short) in zip(points, phases[phase], strict=True)]
        skipped = [size(name) * q for name, (q, _) in zip(lengths, phases[phase], strict=True)]
        begin = entry(start + t, phase)
        outside = begin < OUTSIDE // 2
        with kernel.when(outside):
            for index, total in each_place(start + t, shape, y_corner + 1, "x_places", skipped):
                seen_at = kernel.choose(total < OUTSIDE // 2, filler, kernel.array("x", 1).moved(total))
                for c, mask in kernel.vectors(0, channels):
                    edge_of_x[(*index, c)].store(seen_at[c].load(mask), mask)
        corner = kernel.choose(outside, edge_of_x, x.moved(begin))
        backward = _short(phases[phase], [b for _, _, b in matrices])
        for c, mask in kernel.vectors(0, channels):
            seen = _each(tuple(shape), corner, c, mask=mask)
            for place, value in np.ndenumerate(transformed(kernel, backward, seen)):
                before = active(phases, points, place).index(phase) * channels
                v_tile[(t, *place, c + before)].store(value)

    def chunk_product(group: Int, point: Int, k: Int, prefetched: int, first: Int | int, stop: Int | int) -> None:
        """Start, or continue, the sums of a product with some of the channels."""
        sums = kernel.variables(rows, vectors)
        with kernel.loop(first, stop) as c:
            weights = [u[point, k, c, n * lanes].load() for n in range(vectors)]
            for line in range(prefetched):
                u.moved((group * terms + c) * (prefetched * lanes))[point, k, terms, line * lanes].prefetch(2)
            for row in range(rows):
                value = v[group * rows + row, point, c].splat()
                for n in range(vectors):
                    sums[row, n] = kernel.fma(value, weights[n], sums[row, n])
        for row in range(rows):
            for n in range(vectors):
                total = m[group * rows + row, point, k * block + n * lanes]
                total.store(sums[row, n] if isinstance(first, int) else total.load() + sums[row, n])

    def products(groups: Int) -> None:
        """M = V U: a chunk of terms at a time for all groups, so that its weights stay in the first cache."""
        chunk = min(CHUNK, terms)
        some = kernel.minimum(groups, -(-vectors // ahead))

        def chunk_products(point: Int, k: Int, first: Int | int, stop: Int | int) -> None:
            with kernel.loop(some) as group:
                chunk_product(group, point, k, ahead, first, stop)
            with kernel.loop(some, groups) as group:
                chunk_product(group, point, k, 0, first, stop)

        with kernel.loop(number) as point, kernel.loop(size("first"), size("last")) as k:
            summed = channels if len(phases) == 1 else kernel.table("terms")[point]
            chunk_products(point, k, 0, kernel.minimum(chunk, summed))
            with kernel.loop(chunk, summed, chunk) as first:
                chunk_products(point, k, first, kernel.minimum(first + chunk, summed))

    odd = kernel.variables(1)

    def transform_back(start: Int, count: Int) -> None:
        """Y = bias + A M."""
        begin, end = size("first") * block, kernel.number(kernel.minimum(size("last") * block, outputs))
        with kernel.loop(count) as t:
            corner = entry(start + t, y_corner)
            outside = corner < OUTSIDE // 2
            result = kernel.choose(outside, edge_of_y, y.moved(corner))
            beside = [kernel.choose(outside, edge_of_others, other.moved(corner)) for other in others]
            if adds:
                with kernel.when(outside):
                    for index, distance in each_place(start + t, tile, y_corner + 2, "y_places", [0] * dimensions):
                        with kernel.when(distance > OUTSIDE // 2):
                            for k, mask in kernel.vectors(begin, end, ragged=outputs % lanes > 0):
                                there = kernel.array("beside", 1).moved(distance)[k]
                                edge_of_others[(*index, k)].store(there.load(mask), mask)
            for k, mask in kernel.vectors(begin, end, ragged=outputs % lanes > 0):
                given = _each(points, m_tile[t], k)
                added = bias[k].load()
                for index, value in np.ndenumerate(transformed(kernel, [a for a, _, _ in matrices], given)):
                    total = value + added
                    odd[0] = kernel.fma(total, kernel.splat(0), odd[0])
                    extra = [other[(*index, k)].load(mask) for other in beside]
                    result[(*index, k)].store(finished(total, extra, activation), mask)
            with kernel.when(outside):
                for index, distance in each_place(start + t, tile, y_corner + 2, "y_places", [0] * dimensions):
                    with kernel.when(distance > OUTSIDE // 2):
                        for k, mask in kernel.vectors(begin, end, ragged=outputs % lanes > 0):
                            y_place = kernel.array("y", 1).moved(distance)[k]
                            y_place.store(edge_of_y[(*index, k)].load(mask), mask)

    with kernel.loop(size("tile"), size("tiles"), size("together")) as start:
        count = kernel.number(kernel.minimum(size("together"), size("tiles") - start))
        with kernel.when(size("transforming") > 0):
            transform(start, count)
        products((count + (rows - 1)) // rows)
        transform_back(start, count)
    kernel.array("odd", 1)[0].store(odd[0])
    return kernel


def winograd_weights(
    target: Target, *, dtype: str, tile: Sequence[int], taps: Sequence[int], phases: Phases, phase: int, vectors: int
) -> Kernel:
    """Write U = G w of one phase, for every pair of input channel and vector of output channels.

    The arrays: w, with its output channels side by side, whole blocks of them; u as `winograd` reads it. The sizes:
    number of channels, of blocks; numbers of w from one channel to the next, and from one tap in each dimension.
    """
    lanes = target.lanes(dtype)
    matrices = _short(phases[phase], [cook_toom(m, r)[1] for m, r in zip(tile, taps, strict=True)])
    points = tuple(m + r - 1 for m, r in zip(tile, taps, strict=True))
    pitches = [f"tap{dim}" for dim in range(len(tile))]
    kernel = Kernel("winograd_weights", dtype, lanes, ["w", "u"], ["channels", "blocks", "channel", *pitches])
    channels, blocks = kernel.size("channels"), kernel.size("blocks")
    block, terms = vectors * lanes, channels * len(phases)
    taps = [r - short for r, (_, short) in zip(taps, phases[phase], strict=True)]
    w = kernel.array("w", *(kernel.size(pitch) for pitch in pitches), kernel.size("channel"), 1)
    u = kernel.array("u", *_pitches(points, blocks * terms * block), terms * block, block, 1)
    with kernel.loop(channels) as c, kernel.loop(blocks) as k, kernel.loop(0, block, lanes) as lane:
        given = _each(tuple(taps), w, c, k * block + lane)
        for index, value in np.ndenumerate(transformed(kernel, matrices, given)):
            before = channels * active(phases, points, index).index(phase)
            u[(*index, k, c + before, lane)].store(value)
    return kernel


def _each(shape: tuple[int, ...], array: Array, *rest: int | Int, mask: Mask | None = None) -> npt.NDArray[np.object_]:
    """The vectors of an array at every index of this shape, followed by the rest of the index, loaded in order."""
    result = np.empty(shape, object)
    for index in np.ndindex(shape):
        result[index] = array[(*index, *rest)].load(mask)
    return result


def _pitches(shape: Sequence[int], last: int | Int) -> list[int | Int]:
    """How far apart the elements of each axis of an array of this shape are, where those of the last are ``last``."""
    return [last * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
