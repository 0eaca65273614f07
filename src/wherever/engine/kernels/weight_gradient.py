"""Gradients by the weights: products of two images, summed over places in registers and added up in memory."""

from __future__ import annotations

from collections.abc import Callable

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


def channel_products(
    target: Target, *, dtype: str, high: int, wide: int, stride: int, apart: int, across: int, pixel: int
) -> Kernel:
    """Add to total[c, a, b], for all i and j, x[x_row[i, a] + j * stride + b * apart - before, c] y[y_row[i] + j, c].

    Lanes are channels, each of which meets itself alone. Of ``across`` neighbouring places j, each vector of x is
    loaded once for all the products that it is part of; their sums for ``high`` rows a and ``wide`` columns b of the
    kernel are collected in the first cache, so that both images are read along memory.

    Rows of x that lie outside the image are negative in their table, and columns outside are found by their number:
    both are read from a line of what lies outside, at ``outside``.

    Parameters
    ----------
    stride, apart
        From one j, and one b, to the next, in places of x.
    pixel
        From one place to the next of x and y: the number of all channels.

    The arrays: x, y, sums (a workspace of the size of the total), total (vectors of channels, a, b, lanes), and the
    tables of rows. The sizes: numbers of rows i, columns j, channels, rows a, and columns of x; columns before the
    first of x; first column j, and end of those, whose taps are all inside; where the line outside lies; rows that are
    collected before they are added to the total.
    """
    lanes = target.lanes(dtype)
    sizes = ["rows", "columns", "channels", "taps", "x_columns", "before", "first", "last", "outside", "down"]
    kernel = Kernel("channel_products", dtype, lanes, ["x", "y", "sums", "total", "x_rows", "y_rows"], sizes)
    rows, columns, channels, taps, x_columns, before, first, last, outside, down = map(kernel.size, sizes)
    x, y = kernel.array("x", pixel, 1), kernel.array("y", pixel, 1)
    # A vector of channels has the sums of all taps side by side.
    sums, total = (kernel.array(name, taps * wide, wide * lanes, lanes, 1) for name in ("sums", "total"))
    x_row, y_row = kernel.table("x_rows"), kernel.table("y_rows")
    full = channels // lanes * lanes

    def each_vector(write: Callable[[Int, Mask | None], None]) -> None:
        """Whole vectors of channels, and what is left."""
        with kernel.loop(0, full, lanes) as c:
            write(c, None)
        with kernel.loop(full, channels, lanes) as c:
            write(c, kernel.mask(channels - c))

    def line(i: Int, a: Int, tall: int) -> None:
        """One row of outputs, and ``tall`` rows of the kernel."""
        outputs = y.moved(y_row[i])
        given = [x_row[i * taps + (a + k)] for k in range(tall)]
        starts = [kernel.where(start < 0, outside, start) for start in given]

        def places(j: Int, broad: int) -> None:
            """Neighbouring places whose taps are all inside."""
            pairs = [(n * stride + b * apart, n, b) for n in range(broad) for b in range(wide)]
            images = [x.moved(start)[j * stride - before] for start in starts]
            values = outputs.moved(j * pixel)

            def products(c: Int, mask: Mask | None) -> None:
                weights = [values[n, c].load(mask) for n in range(broad)]
                for k in range(tall):
                    found = [kernel.splat(0)] * wide
                    for position in sorted({p for p, _, _ in pairs}):
                        seen = images[k].moved(c)[position * pixel].load(mask)
                        for n, b in ((n, b) for p, n, b in pairs if p == position):
                            found[b] = kernel.fma(weights[n], seen, found[b])
                    for b in range(wide):
                        place = sums[c, a + k, b, 0]
                        place.store(place.load() + found[b])

            each_vector(products)

        def border(j: Int) -> None:
            """A place of which some columns are outside."""
            images = []
            for b in range(wide):
                column = j * stride - before + b * apart
                inside = (column >= 0) & (column < x_columns)
                images.append([x.moved(kernel.where(inside, start + column * pixel, outside)) for start in starts])

            def products(c: Int, mask: Mask | None) -> None:
                weight = outputs[j, c].load(mask)
                for b in range(wide):
                    for k in range(tall):
                        place = sums[c, a + k, b, 0]
                        place.store(kernel.fma(weight, images[b][k][0, c].load(mask), place.load()))

            each_vector(products)

        with kernel.loop(0, first) as j:
            border(j)
        even = last - (last - first) % across
        with kernel.loop(first, even, across) as j:
            places(j, across)
        if across > 1:
            with kernel.loop(even, last) as j:
                places(j, 1)
        with kernel.loop(last, columns) as j:
            border(j)

    with kernel.loop(0, rows, down) as start:
        with kernel.loop(0, channels, lanes) as c, kernel.loop(taps) as a:
            for b in range(wide):
                sums[c, a, b, 0].store(kernel.splat(0))
        with kernel.loop(start, kernel.minimum(start + down, rows)) as i:
            even = taps // high * high
            with kernel.loop(0, even, high) as a:
                line(i, a, high)
            if high > 1:
                with kernel.loop(even, taps) as a:
                    line(i, a, 1)
        with kernel.loop(0, channels, lanes) as c, kernel.loop(taps) as a:
            for b in range(wide):
                place = total[c, a, b, 0]
                place.store(place.load() + sums[c, a, b, 0].load())
    return kernel
