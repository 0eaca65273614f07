"""Gradients by the weights: products of two images, summed over places in registers and added up in memory."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Int, Kernel, Mask, Variables, Vector


def outer_products(target: Target, *, dtype: str, joined: int, rows: int, vectors: int, strands: int) -> Kernel:
    """Write total[t, r, l] = sum over places p of a[a_place[p] + a_tap[t] + r] b[b_place[p] + b_tap[t] + l].

    At every place the channels of one image meet those of the other: an outer product, whose sum over the places stays
    in a register tile of ``rows`` numbers of a (each taken for all lanes at once) times ``vectors`` vectors of b.
    Tables tell where places and taps lie, so that the kernel knows nothing of dimensions, strides and batches.

    Parameters
    ----------
    joined
        Taps that share a register tile, where there are too few rows to fill it; divides the number of taps.
    rows, vectors
        Of the register tile. Rows are taken in blocks of ``rows`` and then in blocks of one less.
    strands
        Sums of every so-many-th place that are kept apart, where a single one would wait for itself.

    The arrays: a, b, total; tables a_places, b_places, a_taps, b_taps. The sizes: number of places; how many of them
    are summed in registers before they are added to the total; numbers of taps, of blocks of ``rows``, of blocks of one
    less, of l; from one block of ``vectors`` vectors of b to the next; from one t, and one r, to the next in the total.
    """
    lanes = target.lanes(dtype)
    sizes = ["places", "chunk", "taps", "tall", "short", "width", "b_block", "total_tap", "total_row"]
    tables = ["a_places", "b_places", "a_taps", "b_taps"]
    kernel = Kernel("outer_products", dtype, lanes, ["a", "b", "total", *tables], sizes)
    places, chunk, taps, tall, short, width, b_block, total_tap, total_row = (kernel.size(name) for name in sizes)
    a, b = kernel.array("a", 1), kernel.array("b", 1)
    a_place, b_place, a_tap, b_tap = (kernel.table(name) for name in tables)
    total = kernel.array("total", total_tap, total_row, 1)
    step = vectors * lanes

    def tile(first: Int, t: Int, r: Int | int, l: Int, high: int, wide: int, mask: Mask | None) -> None:  # noqa: E741
        """Add the places of a chunk to the total of a tile."""
        last = kernel.minimum(first + chunk, places)
        sums = kernel.variables(strands, joined, high, wide)
        left = [a.moved(a_tap[t + u] + r) for u in range(joined)]
        right = b.moved(b_tap[t] + l // step * b_block + l % step)

        def add(p: Int, strand: int) -> None:
            seen = [right.moved(b_place[p])[v * lanes].load(mask) for v in range(wide)]
            for u in range(joined):
                row = left[u].moved(a_place[p])
                for k in range(high):
                    number = row[k].splat()
                    for v in range(wide):
                        sums[strand, u, k, v] = kernel.fma(number, seen[v], sums[strand, u, k, v])

        even = last - (last - first) % strands
        with kernel.loop(first, even, strands) as p:
            for strand in range(strands):
                add(p + strand, strand)
        if strands > 1:
            with kernel.loop(even, last) as p:
                add(p, 0)
        results = [
            (total[t + u, r + k, l + v * lanes], (u, k, v))
            for u in range(joined)
            for k in range(high)
            for v in range(wide)
        ]
        with kernel.either(first.equals(0)) as (then, otherwise):
            with then:
                for place, index in results:
                    place.store(_folded(sums, index, strands), mask)
            with otherwise:
                for place, index in results:
                    place.store(place.load(mask) + _folded(sums, index, strands), mask)

    def column(first: Int, l: Int, wide: int, mask: Mask | None = None) -> None:  # noqa: E741
        """All taps and rows for some vectors of b, which stay in the first cache."""
        with kernel.loop(0, taps, joined) as t:
            with kernel.loop(tall) as block:
                tile(first, t, block * rows, l, rows, wide, mask)
            if rows > 1:
                with kernel.loop(short) as block:
                    tile(first, t, tall * rows + block * (rows - 1), l, rows - 1, wide, mask)

    with kernel.loop(0, places, chunk) as first:
        whole = width // step * step
        with kernel.loop(0, whole, step) as l:  # noqa: E741
            column(first, l, vectors)
        single = width // lanes * lanes
        if vectors > 1:
            with kernel.loop(whole, single, lanes) as l:  # noqa: E741
                column(first, l, 1)
        with kernel.loop(single, width, lanes) as l:  # noqa: E741
            column(first, l, 1, kernel.mask(width - l))
    return kernel


def _folded(sums: Variables, index: tuple[int, ...], strands: int) -> Vector:
    """The sum of the strands."""
    total = sums[(0, *index)]
    for strand in range(1, strands):
        total = total + sums[(strand, *index)]
    return total
