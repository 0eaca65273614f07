"""Direct summation whose lanes are places of a result with its channels first, from panels packed in the cache."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Array, Int, Kernel, Mask, Vector

SPREAD = 4  # largest stride of which vectors are put together by shuffles; others number by number


def panels(target: Target, *, dtype: str, rows: int, vectors: int, stride: int) -> Kernel:
    """Write y[n, g, k, i] = bias[g, k] + sum over j of w[g, k, j] x[n, g, offset[j] + place[i]].

    j numbers the pairs of input channel and tap, i the places of the result. A matrix product: ``rows`` output
    channels times ``vectors`` vectors of places in registers. What some columns i and a chunk of j see is first copied
    side by side into a panel, which stays in the cache for all output channels, so that neither strides, nor borders
    between rows, nor the memory order of planes cost more than this copy.

    Parameters
    ----------
    rows, vectors
        Register tile. Sums, a vector for each column and one weight must fit the registers together.
    stride
        Numbers of x between neighbouring places, up to SPREAD; 0: any, as a size tells.

    The arrays: x; w (group, block of rows, j, rows) with zeros behind the last output channel; bias (group, blocks *
    rows); y; panel, a workspace. The tables: offsets; tiles, of each the first column, and the first segment (and, one
    entry further, the end of the last): first tiles of ``vectors`` vectors, then of one; segments, of each the column
    within its tile, where its first place is in x, and how many places follow it at the stride.

    The sizes: images; pitches of the images of x and y; groups, and their pitch in x; first and last block, and number
    of blocks; output channels of a group, and their pitch in y; number of j, and how many make a chunk; columns; first
    and last wide tile, and how many of them are packed together; first and last narrow tile; the stride.
    """
    lanes = target.lanes(dtype)
    sizes = ["images", "x_image", "y_image", "groups", "x_group", "first", "last", "blocks", "outputs", "y_channel"]
    sizes += ["terms", "chunk", "columns", "wide", "wide_stop", "together", "narrow", "narrow_stop", "stride"]
    arrays = ["x", "w", "bias", "y", "panel", "offsets", "tiles", "segments"]
    kernel = Kernel("panels", dtype, lanes, arrays, sizes)
    size = kernel.size
    blocks, outputs, terms = size("blocks"), size("outputs"), size("terms")
    x = kernel.array("x", size("x_image"), size("x_group"), 1)
    y = kernel.array("y", size("y_image"), outputs * size("y_channel"), size("y_channel"), 1)
    w = kernel.array("w", blocks * terms * rows, terms * rows, rows, 1)
    bias = kernel.array("bias", blocks * rows, 1)
    memory = kernel.array("panel", 1)
    ahead = vectors * lanes  # places
    offset, tiles, segments = (kernel.table(name) for name in arrays[-3:])

    def panel(chunk: Int, before: Int | int, width: int) -> Array:
        """The panel of a tile of so many vectors, behind so many vectors of other tiles."""
        begin = memory.moved(chunk * lanes * before)
        return Array(kernel, begin.pointer, begin.offset, (width * lanes, 1))

    def pack(image: Array, number: Int, first: Int, chunk: Int, into: Array) -> None:
        """Copy what a tile sees through a chunk of pairs."""
        with kernel.loop(tiles[2 * number + 1], tiles[2 * number + 3]) as s:
            column, begin, length = (segments[3 * s + k] for k in range(3))
            if not stride:
                with kernel.loop(chunk) as j:
                    seen = image.moved(offset[first + j] + begin)
                    with kernel.loop(length) as i:
                        into[j, column + i].copy(seen[i * size("stride")])
                return
            whole = kernel.number(length // lanes * lanes)
            # Whole vectors: pair after pair, so that each row of x is read as one run, which goes on in the next tile.
            with kernel.when(whole > 0):
                masks = spread_masks(lanes)
                with kernel.loop(chunk) as j:
                    seen = image.moved(offset[first + j] + begin)
                    with kernel.loop(0, whole, lanes) as i:
                        for line in range(stride):
                            seen[(i + ahead) * stride + line * lanes].prefetch()
                        into[j, column + i].store(spread(seen.moved(i * stride), masks, None))
            with kernel.when(whole < length):
                left = length - whole
                masks, mask = spread_masks(left), kernel.mask(left)
                with kernel.loop(chunk) as j:
                    seen = image.moved(offset[first + j] + begin + whole * stride)
                    into[j, column + whole].store(spread(seen, masks, mask), mask)

    def spread_masks(count: Int | int) -> list[Mask]:
        """Of the vectors in which so many places lie: behind the last of them nothing may be touched."""
        return [kernel.mask((count - 1) * stride + (1 - v * lanes)) for v in range(stride)] if stride > 1 else []

    def spread(seen: Array, masks: list[Mask], mask: Mask | None) -> Vector:
        """A vector of places at the stride."""
        if stride == 1:
            vector: Vector = seen[0].load(mask)
            return vector
        return every(stride, [seen[v * lanes].load(m) for v, m in enumerate(masks)])

    def tile(image: Int, g: Int, block: Int, first: Int, chunk: Int, number: Int, seen: Array, width: int) -> None:
        """The sums of a block of output channels and a tile of columns over a chunk of pairs."""
        column, weights, added, result = tiles[2 * number], w[g, block], bias[g].moved(block * rows), y[image, g]
        sums = kernel.variables(rows, width)
        for k in range(rows):  # lines of y are asked for while the sums are taken
            for v in range(width):
                result[block * rows + k, column + v * lanes].prefetch(write=True)
        with kernel.loop(chunk) as j:
            given = [seen[j, v * lanes].load() for v in range(width)]
            for k in range(rows):
                weight = weights[first + j, k].splat()
                for v in range(width):
                    sums[k, v] = kernel.fma(weight, given[v], sums[k, v])
        mask = kernel.mask(size("columns") - column) if width == 1 else None

        def store(k: int, *, begun: bool) -> None:
            for v in range(width):
                place = result[block * rows + k, column + v * lanes]
                before = added[k].splat() if begun else place.load(mask)
                place.store(sums[k, v] + before, mask)

        with kernel.either(first.equals(0)) as (then, otherwise):
            for begun, body in ((True, then), (False, otherwise)):
                with body, kernel.either(block * rows + rows <= outputs) as (whole, ragged):
                    with whole:
                        for k in range(rows):
                            store(k, begun=begun)
                    with ragged:
                        for k in range(rows):
                            with kernel.when(block * rows + k < outputs):
                                store(k, begun=begun)

    def band(image: Int, g: Int, wide: tuple[Int, Int], narrow: tuple[Int, Int]) -> None:
        """All output channels of some tiles."""
        kinds = [(*wide, vectors, kernel.number(0)), (*narrow, 1, wide[1] - wide[0])]
        with kernel.loop(0, terms, size("chunk")) as first:
            chunk = kernel.number(kernel.minimum(size("chunk"), terms - first))
            for start, stop, width, before in kinds:
                with kernel.loop(start, stop) as number:
                    packed = panel(chunk, before * vectors + (number - start) * width, width)
                    pack(x[image, g], number, first, chunk, packed)
            with kernel.loop(size("first"), size("last")) as block:
                for start, stop, width, before in kinds:
                    with kernel.loop(start, stop) as number:
                        packed = panel(chunk, before * vectors + (number - start) * width, width)
                        tile(image, g, block, first, chunk, number, packed, width)

    wide_stop, narrow, nothing = size("wide_stop"), size("narrow"), kernel.number(0)
    with kernel.loop(size("images")) as image, kernel.loop(size("groups")) as g:
        # The narrow tiles go with the last of the wide ones; or alone.
        with kernel.loop(size("wide"), wide_stop, size("together")) as start:
            stop = kernel.number(kernel.minimum(start + size("together"), wide_stop))
            narrow_stop = kernel.where(stop.equals(wide_stop), size("narrow_stop"), narrow)
            band(image, g, (start, stop), (narrow, narrow_stop))
        with kernel.when(wide_stop.equals(size("wide"))):
            band(image, g, (nothing, nothing), (narrow, size("narrow_stop")))
    return kernel


def every(step: int, vectors: list[Vector]) -> Vector:
    """Every so-many-th number of as many vectors that follow each other in memory."""
    lanes = vectors[0].kernel.lanes
    found = vectors[0]
    for number, vector in enumerate(vectors[1:], start=1):
        taken = []
        for lane in range(lanes):
            source, place = divmod(lane * step, lanes)
            first = place if number == 1 and source == 0 else lane
            taken.append(lanes + place if source == number else first)
        found = found.shuffled(vector, taken)
    return found
