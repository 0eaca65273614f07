"""Direct summation over a register tile of some output channels times some vectors of neighbouring places."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.direct import CHUNK
from wherever.engine.kernels.vector import Int, Kernel, Mask


def places(target: Target, *, dtype: str, rows: int, vectors: int) -> Kernel:
    """Write y[g, k, i] = sum over j of w[g, k, j] x[g, offset[j] + i], for i below ``places``.

    Every convolution of stride 1 is of this form: the image is one long row of places, j numbers the pairs of input
    channel and tap, and offset[j] says how far from place i the pair looks. (What it computes at the end of each
    image row, where windows run over into the next, is not used.)

    ``rows`` output channels at a time are computed for ``vectors`` vectors of places; the weights are laid out as
    (groups, K / rows, j, rows), padded with zeros to whole blocks of rows. Sums are taken over CHUNK pairs at a time,
    then added up: the weights of a chunk stay in the first cache, and rounding errors grow with the length of a chunk
    instead of that of the whole sum.
    """
    lanes = target.lanes(dtype)
    sizes = ["groups", "blocks", "pairs", "places", "x_group"]
    kernel = Kernel("places", dtype, lanes, ["x", "w", "y", "offsets"], sizes)
    groups, blocks, pairs, count, x_group = (kernel.size(name) for name in sizes)
    x = kernel.array("x", x_group, 1)
    w = kernel.array("w", blocks * pairs * rows, pairs * rows, rows, 1)
    y = kernel.array("y", blocks * count * rows, count * rows, count, 1)
    offset = kernel.table("offsets")

    def tile(g: Int, block: Int, first: Int, i: Int, width: int, mask: Mask | None = None) -> None:
        """Add the pairs of a chunk to the outputs of a block of rows at ``width`` vectors of places from i on."""
        sums = kernel.variables(rows, width)
        image, weights = x[g], w[g, block]
        with kernel.loop(first, kernel.minimum(first + CHUNK[dtype], pairs)) as j:
            window = offset[j] + i
            seen = [image[window + v * lanes].load(mask) for v in range(width)]
            for k in range(rows):
                weight = weights[j, k].splat()
                for v in range(width):
                    sums[k, v] = kernel.fma(weight, seen[v], sums[k, v])
        outputs = [(y[g, block, k, i + v * lanes], sums[k, v]) for k in range(rows) for v in range(width)]
        with kernel.either(first.equals(0)) as (then, otherwise):
            with then:
                for place, total in outputs:
                    place.store(total, mask)
            with otherwise:
                for place, total in outputs:
                    place.store(place.load(mask) + total, mask)

    with kernel.loop(groups) as g, kernel.loop(blocks) as block, kernel.loop(0, pairs, CHUNK[dtype]) as first:
        whole = count // (vectors * lanes) * (vectors * lanes)
        with kernel.loop(0, whole, vectors * lanes) as i:
            tile(g, block, first, i, vectors)
        with kernel.loop(whole, count, lanes) as i:
            tile(g, block, first, i, 1, kernel.mask(count - i))
    return kernel
