"""Direct summation of many groups of few channels: the outputs of several groups side by side in one vector."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Array, Int, Kernel, Mask, Vector


def grouped(
    target: Target,
    *,
    dtype: str,
    step: int,
    row: int,
    apart: int,
    run: int,
    down: int,
    across: int,
    side: int,
    group_in: int,
    group_out: int,
) -> Kernel:
    """Write y[i, k] = bias[k] + sum over taps t, a and channels c of w[k, t, a, c] x[i, offset[t] + a apart + c].

    Lanes are the output channels of ``side`` groups. What their channel c is summed from are the numbers of x at c,
    side by side for each group: one shuffle of what lies there. Places of a tile and taps of a run that look at one
    place of x share it. Tables tell where tiles and taps are, as for `direct`.

    Parameters
    ----------
    step, row, apart
        Numbers of x from one place of a tile to the next, from one row of a tile to the next, and from one tap of a run
        to the next.
    run
        Taps that are summed at each entry of the table of offsets.
    down, across
        Register tile of places.
    side, group_in, group_out
        Groups in a vector, and channels of each.

    The arrays: x; w (vector of groups, entry of offsets, channel, run, lanes); bias (vector of groups, lanes); y;
    tables offsets, x_tiles, y_tiles.
    The sizes: first and last tile, and how many of them are summed with the weights of one vector before the next;
    number of vectors of groups; three that `direct` needs; number of offsets; one that `direct` needs; how many offsets
    make a chunk; input and output channels of all groups; pitches of y.
    """
    lanes = target.lanes(dtype)
    inputs, outputs = side * group_in, side * group_out
    sizes = ["tile", "tiles", "together", "vectors", "first", "last", "blocks", "taps", "chunk", "inputs", "outputs"]
    sizes += ["y_row", "y_place"]
    kernel = Kernel("grouped", dtype, lanes, ["x", "w", "bias", "y", "offsets", "x_tiles", "y_tiles"], sizes)
    size = kernel.size
    taps = size("taps")
    x, y = kernel.array("x", 1), kernel.array("y", size("y_row"), size("y_place"), 1)
    w = kernel.array("w", taps * (group_in * run * lanes), group_in * run * lanes, run * lanes, lanes, 1)
    bias = kernel.array("bias", lanes, 1)
    offset = kernel.table("offsets")
    places = [(i, j) for i in range(down) for j in range(across)]
    # Who looks at a place of x: places of the tile, by a tap of the run.
    lookers: dict[int, list[tuple[int, int, int]]] = {}
    for i, j in places:
        for a in range(run):
            lookers.setdefault(i * row + j * step + a * apart, []).append((i, j, a))
    # Of the vectors that hold the inputs, which number each lane sums, but for the channel.
    origins = [lane // group_out * group_in if lane < outputs else 0 for lane in range(lanes)]

    def channel(seen: Array, c: int, masks: list[Mask | None]) -> Vector:
        """Channel c of every group, in the lanes of its outputs."""
        vectors: list[Vector] = [seen[n * lanes].load(mask) for n, mask in enumerate(masks)]
        return vectors[0].shuffled(vectors[-1], [(origin + c) % (lanes * len(masks)) for origin in origins])

    def tile(number: Int, v: Int, x_masks: list[Mask | None], y_mask: Mask | None) -> None:
        """All sums of a tile for one vector of groups."""
        image = x.moved(kernel.table("x_tiles")[number] + v * inputs)
        result = y.moved(kernel.table("y_tiles")[number] + v * outputs)
        with kernel.loop(0, taps, size("chunk")) as t:
            sums = kernel.variables(down, across)
            with kernel.loop(t, kernel.minimum(t + size("chunk"), taps)) as tap:
                window = image.moved(offset[tap])
                for c in range(group_in):
                    kernel.barrier()  # else all channels of all places are loaded before the first is used
                    weights = [w[v, tap, c, a, 0].load() for a in range(run)]
                    for distance in sorted(lookers):
                        value = channel(window.moved(distance), c, x_masks)
                        for i, j, a in lookers[distance]:
                            sums[i, j] = kernel.fma(value, weights[a], sums[i, j])
            with kernel.either(t.equals(0)) as (then, otherwise):
                with then:
                    for i, j in places:
                        result[i, j, 0].store(sums[i, j] + bias[v, 0].load(), y_mask)
                with otherwise:
                    for i, j in places:
                        result[i, j, 0].store(sums[i, j] + result[i, j, 0].load(y_mask), y_mask)

    vectors = -(-inputs // lanes)
    with kernel.loop(size("tile"), size("tiles"), size("together")) as start:
        stop = kernel.minimum(start + size("together"), size("tiles"))
        with kernel.loop(size("vectors")) as v:
            left = size("inputs") - v * inputs
            with kernel.either(left < vectors * lanes) as (then, otherwise):
                with then:
                    masks: list[Mask | None] = [kernel.mask(left - n * lanes) for n in range(vectors)]
                    y_mask = kernel.mask(kernel.minimum(outputs, size("outputs") - v * outputs))
                    with kernel.loop(start, stop) as number:
                        tile(number, v, masks, y_mask)
                with otherwise, kernel.loop(start, stop) as number:
                    tile(number, v, [None] * vectors, None if outputs == lanes else kernel.mask(outputs))
    return kernel
