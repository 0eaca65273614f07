"""Direct summation over a register tile: some places times some vectors of output channels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.finish import finished
from wherever.engine.kernels.vector import Array, Condition, Int, Kernel, Mask, Variables

LINE_BYTES = 64  # of a line of the caches
CHUNK = {"float32": 512, "float64": 256}  # terms that are summed in registers


def direct(
    target: Target,
    *,
    dtype: str,
    step: int,
    row: int,
    down: int,
    across: int,
    vectors: int,
    lanes: int,
    ahead: int,
    fetch_x: bool,
    fetch_y: bool,
    activation: str | None,
    adds: bool,
) -> Kernel:
    """Write y[i, k] = bias[k] + sum over taps t and channels c of w[k, t, c] x[i, offset[t] + c], finished.

    Lanes are output channels: each number of x meets ``vectors`` vectors of weights, each vector of weights all the
    places of a tile. Where a tile begins in x and in y, and how far away each tap looks, is told by tables, so that
    the kernel knows nothing of images, borders, strides, dilation and dimensions: a tap is whatever run of neighbouring
    numbers is summed, be it the channels of one place or a row of a kernel with all its channels.

    Sums are taken over CHUNK terms at a time, then added up: rounding errors grow with the length of a chunk instead of
    that of the whole sum.

    Parameters
    ----------
    step, row
        Numbers of x from one place of a tile to the next, and from one row of a tile to the next.
    down, across, vectors
        Register tile: rows of places times vectors of output channels. Sums, weights, and one number of x must fit
        the registers together.
    lanes
        Numbers in a vector, which may be shorter than the machine's.
    ahead
        Cache lines of the next block's weights that each step of a sum asks for, and the next tile for those behind
        them, until all are asked for: where the cache does not hold them.
    fetch_x, fetch_y
        Whether a tile asks for the places of x that the next one reads, and for its own places of y, before it sums.
    activation, adds
        What is applied to a sum that is complete (see `kernels.finish`), and whether ``beside`` is added before.

    The arrays: x; w (group, block of output channels, tap, channel, vectors * lanes) with zeros behind the last output
    channel; bias (group, blocks * vectors * lanes); y; beside, if it is added, which lies in memory as y does; tables
    offsets, x_tiles, y_tiles.
    The sizes: first and last tile, and how many of them are summed with one block of weights before the next; number of
    groups; first and last block, and number of blocks of a group; output channels of a group; number of taps and of
    channels; how many taps and channels make a chunk; numbers of x from one group to the next; pitches of y.
    """
    width = vectors * lanes
    sizes = ["tile", "tiles", "together", "groups", "first", "last", "blocks", "outputs", "taps", "channels"]
    sizes += ["chunk_taps", "chunk_channels", "x_group", "y_row", "y_place"]
    arrays = ["x", "w", "bias", "y", *(["beside"] if adds else []), "offsets", "x_tiles", "y_tiles"]
    kernel = Kernel("direct", dtype, lanes, arrays, sizes)
    size = kernel.size
    blocks, outputs, taps, channels = (size(name) for name in ("blocks", "outputs", "taps", "channels"))
    x = kernel.array("x", row, step, 1)
    y, *others = (
        kernel.array(name, size("y_row"), size("y_place"), 1) for name in (["y", "beside"] if adds else ["y"])
    )
    w = kernel.array("w", blocks * taps * channels * width, taps * channels * width, channels * width, width, 1)
    bias = kernel.array("bias", blocks * width, 1)
    offset = kernel.table("offsets")
    places = [(i, j) for i in range(down) for j in range(across)]

    def tile(number: Int, g: Int, block: Int, asked: Int | None = None) -> None:
        """All sums of a tile with one block of weights, and from which number of a row on it asks for the next."""
        image = x.moved(kernel.table("x_tiles")[number] + g * size("x_group"))
        there = kernel.table("y_tiles")[number] + (g * outputs + block * width)
        result, beside = y.moved(there), [other.moved(there) for other in others]
        panel, added = w[g, block], bias[g].moved(block * width)
        if fetch_y:
            for (i, j), v in itertools.product(places, range(vectors)):
                result[i, j, v * lanes].prefetch(write=True)
        if fetch_x:
            following = x.moved(kernel.table("x_tiles")[kernel.minimum(number + 1, size("tiles") - 1)])
            once, lines = block.equals(size("first")), (0, channels, LINE_BYTES // kernel.bytes)
            with kernel.when(once), kernel.loop(taps) as tap, kernel.loop(*lines) as c:
                for i, j in places:
                    following.moved(offset[tap] + g * size("x_group"))[i, j, c].prefetch(2)
        with kernel.loop(0, taps, size("chunk_taps")) as t, kernel.loop(0, channels, size("chunk_channels")) as c:
            sums = kernel.variables(down, across, vectors)
            with kernel.loop(t, kernel.minimum(t + size("chunk_taps"), taps)) as tap:
                window, weights = image.moved(offset[tap]), panel[tap]
                coming = None if asked is None else weights.moved(taps * channels * width + asked)
                with kernel.loop(c, kernel.minimum(c + size("chunk_channels"), channels)) as channel:
                    given = [weights[channel, v * lanes].load() for v in range(vectors)]
                    if coming is not None:
                        for line in range(ahead):
                            coming[channel, line * lanes].prefetch(2)
                    for i, j in places:
                        value = window[i, j, channel].splat()
                        for v in range(vectors):
                            sums[i, j, v] = kernel.fma(value, given[v], sums[i, j, v])
            begun = t.equals(0) & c.equals(0)
            ended = (t + size("chunk_taps") >= taps) & (c + size("chunk_channels") >= channels)
            with kernel.either(outputs - block * width < width) as (then, otherwise):
                with then:
                    masks = [kernel.mask(outputs - block * width - v * lanes) for v in range(vectors)]
                    add(sums, result, beside, added, begun, ended, masks)
                with otherwise:
                    add(sums, result, beside, added, begun, ended, [None] * vectors)

    def add(
        sums: Variables,
        result: Array,
        beside: Sequence[Array],
        added: Array,
        begun: Condition,
        ended: Condition,
        masks: Sequence[Mask | None],
    ) -> None:
        """Put the first chunk's sums to the bias, any other's to what is there; finish those of the last."""

        def store(first: bool, last: bool) -> None:
            biases = [added[v * lanes].load() for v in range(vectors)] if first else []
            for (i, j), (v, mask) in itertools.product(places, enumerate(masks)):
                place = (i, j, v * lanes)
                total = sums[i, j, v] + (biases[v] if first else result[place].load(mask))
                if last:
                    total = finished(total, [other[place].load(mask) for other in beside], activation)
                result[place].store(total, mask)

        with kernel.either(begun) as paths:
            for path, first in zip(paths, (True, False), strict=True):
                with path:
                    if activation or adds:
                        with kernel.either(ended) as (then, otherwise):
                            with then:
                                store(first, True)
                            with otherwise:
                                store(first, False)
                    else:
                        store(first, False)

    with kernel.loop(size("tile"), size("tiles"), size("together")) as start:
        stop = kernel.minimum(start + size("together"), size("tiles"))
        with kernel.loop(size("groups")) as g, kernel.loop(size("first"), size("last")) as block:
            some: Int | int = start
            if ahead:
                some = kernel.minimum(start + -(-vectors // ahead), stop)
                with kernel.loop(start, some) as number:
                    tile(number, g, block, kernel.number((number - start) * (ahead * lanes)))
            with kernel.loop(some, stop) as number:
                tile(number, g, block)
    return kernel
