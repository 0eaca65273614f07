"""Filter: every channel has kernels of its own, and lanes are neighbouring places."""

from __future__ import annotations

from dataclasses import dataclass

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.gather import NOWHERE
from wherever.engine.kernels.vector import BYTES, Array, Int, Kernel, Mask, Vector

UNROLLED = 30  # taps of kernels that are written out whole
STRIP_BYTES = 1 << 13  # of a row that is summed at once: long runs of memory, for the sake of its prefetchers
RING_BYTES = 1 << 18  # of all rows that are kept, about: a part of the second cache


@dataclass(frozen=True)
class Channel:
    """A channel of the result, its weights, and the vector with which its sums begin."""

    result: Array
    weights: Array
    added: Vector


@dataclass(frozen=True)
class Copy:
    """A row of x that is copied to the ring, by column of y; ``later``: a row that will be."""

    source: Array
    target: Array
    later: Array


def ring_shape(target: Target, dtype: str, high: int, reach: int, down: int) -> tuple[int, int, int]:
    """(slots, columns, pitch) of the ring of rows: see `filter_rows`. Of the pitch are slots * down + high - 1 rows."""
    lanes = target.lanes(dtype)
    slots = max(4, 2 + -(-(high - 1) // down))
    columns = min(STRIP_BYTES, RING_BYTES // (slots * down + high)) // BYTES[dtype]
    columns = (
        max(columns // lanes, 8) + 2
    ) * lanes  # a power of two of them, with a part of a vector before and behind
    return slots, columns, (-(-(columns + reach) // lanes) | 1) * lanes  # an odd number of vectors


def filter_rows(
    target: Target,
    *,
    dtype: str,
    source: str,
    result: str,
    high: int,
    wide: int,
    apart: int,
    down: int,
    across: int,
    streamed: bool,
) -> Kernel:
    """Write y[g, m, i, j] = bias[g, m] + sum over a, b of w[g, m, a, b] x[g, i + a, j + b * apart].

    Lanes are neighbouring places of a row. A register tile has ``down`` rows of ``across`` vectors: for each column of
    the kernel, a vector of x is loaded once for all the rows that it is summed into.

    Rows of x are copied to a ring before they are summed, each once: there they have their boundary, are of the type
    of the sums, and not a power of two apart, which would put all the rows of a tile into one set of the cache. The
    copy of the next ``down`` rows is woven into the sums of the ones before: it waits for memory while they are
    multiplied. The ring has ``slots`` times ``down`` rows, and behind them the high - 1 that the last of them look at
    too; these are copied to its beginning when it begins anew.

    Parameters
    ----------
    source, result
        Types of x and of y.
    high, wide, apart
        Rows and columns of the kernel, and how far apart the columns are.
    down, across
        Size of the register tile: rows and vectors.
    streamed
        Whether y is written past the caches. Its rows must be a multiple of a vector apart, and begin ``head``
        numbers before one.

    The arrays: x, w (g, m, high, wide), y, bias (g, m), outside (the number there), ring (memory, see `ring_shape`);
    tables ``rows`` (where each of the rows that are seen begins in x, or NOWHERE) and ``columns`` (which column of x
    each of the columns that are seen shows, or -1). The sizes: numbers of g, m, i and j; the pitches of x and y;
    ``head``; the first of the columns that show x itself, the end of these columns, and how far before x they begin.
    """
    lanes = target.lanes(dtype)
    reach = (wide - 1) * apart
    slots, strip, pitch = ring_shape(target, dtype, high, reach, down)
    numbers = ["groups", "each", "rows", "columns", "x_group", "y_channel", "y_row", "head", "low", "end", "before"]
    arrays = ["x", "w", "y", "bias", "outside", "ring", "seen", "shown"]
    kernel = Kernel("filter_rows", dtype, lanes, arrays, numbers)
    groups, each, rows, columns, x_group, y_channel, y_row, head, low, high_end, before = map(kernel.size, numbers)
    x = kernel.array("x", x_group, 1, dtype=source)
    y = kernel.array("y", each * y_channel, y_channel, y_row, 1, dtype=result)
    w = kernel.array("w", each * (high * wide), high * wide, wide, 1)
    bias, outside, ring = kernel.array("bias", each, 1), kernel.array("outside", 1), kernel.array("ring", pitch, 1)
    seen, shown = kernel.table("seen"), kernel.table("shown")
    step = across * lanes
    unrolled = high * wide <= UNROLLED
    held = down * across + across + high < target.registers  # a column of weights in registers

    def put(row: Array, image: Array, p: Int, left: Int, start: Int, stop: Int) -> None:
        """Copy columns of x itself to a row of the ring; of a row that shows nothing, the number outside."""
        begin = seen[p]
        with kernel.either(begin.equals(NOWHERE)) as (then, otherwise):
            with then, kernel.loop(start, stop) as q:
                row[q - left].copy(outside[0])
            with otherwise:
                there = image.moved(begin - before)
                for q, mask in kernel.vectors(kernel.minimum(start, stop), stop):
                    row[q - left].store(there[q].load(mask), mask)

    def put_border(row: Array, image: Array, p: Int, left: Int, start: Int, stop: Int) -> None:
        """Copy columns to a row of the ring that show any place of x, or the number outside."""
        begin = seen[p]
        with kernel.loop(start, stop) as q:
            column = shown[q]
            with kernel.either((column < 0) | begin.equals(NOWHERE)) as (then, otherwise):
                with then:
                    row[q - left].copy(outside[0])
                with otherwise:
                    row[q - left].copy(image.moved(begin)[column])

    def tile(
        channel: Channel, place: Array, i: Int, j: Int, tall: int, broad: int, mask: Mask | None, copies: list[Copy]
    ) -> None:
        """Sums of ``tall`` rows and ``broad`` vectors; and so much of the next rows to the ring."""
        weights = channel.weights
        sums = kernel.variables(tall, broad)
        for row in range(tall):
            for v in range(broad):
                sums[row, v] = channel.added
        moves = [(copy, v * lanes) for copy in copies for v in range(broad)]
        share = -(-len(moves) // (wide * (tall + high - 1))) if unrolled else len(moves)

        def move() -> None:
            for copy, number in [moves.pop(0) for _ in range(min(share, len(moves)))]:
                copy.target[j + number].store(copy.source[j + number].load())
                copy.later[j + number].prefetch(2)

        def column(b: Int | int) -> None:
            """Add what one column of the kernel sees."""
            factors = [weights[a, b].splat() for a in range(high)] if held else []
            for p in range(tall + high - 1):
                looked = [place[p, j + b * apart + v * lanes].load() for v in range(broad)]
                move()
                for row in range(max(0, p - high + 1), min(tall, p + 1)):
                    weight = factors[p - row] if held else weights[p - row, b].splat()
                    for v in range(broad):
                        sums[row, v] = kernel.fma(weight, looked[v], sums[row, v])

        if unrolled:
            for number in range(wide):
                column(number)
        else:
            move()
            with kernel.loop(wide) as b:
                column(b)
        for row in range(tall):
            for v in range(broad):
                channel.result[i + row, j + v * lanes].store(sums[row, v], mask, streamed=streamed and mask is None)

    def strip_of(image: Array, left: Int, stop: Int, g: Int) -> None:
        """The columns of y from ``left`` on (negative: from 0), of all rows."""
        start = kernel.where(left < 0, head, left)  # of whole vectors; those before are a vector of their own
        count = kernel.number(kernel.maximum(stop - start, 0))
        last, whole = start + count // lanes * lanes, start + count // step * step
        # Columns that are seen, in three runs: border, x itself, border. Whole vectors of x from ``even`` on, as many
        # as there are tiles, are copied while the tiles are summed.
        foot = stop + reach
        first = kernel.number(kernel.minimum(kernel.maximum(low, left), foot))
        end = kernel.number(kernel.maximum(kernel.minimum(high_end, foot), first))
        even = left + (first - left + (lanes - 1)) // lanes * lanes
        room = kernel.number(kernel.maximum(kernel.minimum(whole - start, end - even), 0))

        def sum_rows(channel: Channel, place: Array, i: Int, tall: int, copied: Int, copies: list[Copy]) -> None:
            """All columns of some rows; ``copied`` columns of the next rows to the ring."""
            with kernel.when(left < 0):
                tile(channel, place, i, kernel.number(0), tall, 1, kernel.mask(kernel.minimum(head, columns)), [])
            done = start
            if tall == down:
                with kernel.loop(start, start + copied, step) as j:
                    tile(channel, place, i, j, tall, across, None, copies)
                with kernel.loop(start + copied, whole, step) as j:
                    tile(channel, place, i, j, tall, across, None, [])
                done = whole
            with kernel.loop(done, last, lanes) as j:
                tile(channel, place, i, j, tall, 1, None, [])
            with kernel.loop(last, stop, lanes) as j:
                tile(channel, place, i, j, tall, 1, kernel.mask(stop - j), [])

        visible = rows + (high - 1)
        with kernel.loop(kernel.minimum(down + high - 1, visible)) as p:
            put_border(ring[p], image, p, left, kernel.number(kernel.maximum(left, 0)), first)
            put(ring[p], image, p, left, first, end)
            put_border(ring[p], image, p, left, end, foot)
        with kernel.loop(0, rows, down) as i:
            slot, after = (i // down) % slots, kernel.number((i // down + 1) % slots)
            now, free = ring.moved(slot * (down * pitch) - left), ring.moved((after * down + (high - 1)) * pitch)
            coming = i + (down + high - 1)  # the first of the next rows
            begins, together = [], coming + down <= visible
            for row in range(2 * down):
                begins.append(seen[kernel.minimum(coming + row, visible - 1)])
                if row < down:
                    together = together & ~begins[row].equals(NOWHERE)
            copied = kernel.where(together, room // step * step, 0)
            places = [image.moved(begin - before + even - start) for begin in begins]
            copies = [
                Copy(places[row], free[row].moved(even - start - left), places[row + down]) for row in range(down)
            ]
            with kernel.loop(each) as m:
                channel = Channel(y[g, m], w[g, m], bias[g, m].splat())
                with kernel.either(i + down <= rows) as (then, otherwise):
                    with then:
                        sum_rows(channel, now, i, down, copied, copies)
                    with otherwise, kernel.loop(i, rows) as one:
                        sum_rows(channel, now.moved((one - i) * pitch), one, 1, copied, [])
            with kernel.loop(coming, kernel.minimum(coming + down, visible)) as p:
                target_row = free[p - coming]
                put_border(target_row, image, p, left, kernel.number(kernel.maximum(left, 0)), first)
                put(target_row, image, p, left, first, kernel.number(kernel.minimum(even, end)))
                put(target_row, image, p, left, even + copied, end)
                put_border(target_row, image, p, left, end, foot)
            with kernel.when(after.equals(0)), kernel.loop(high - 1) as p, kernel.loop(0, pitch, lanes) as q:
                ring[p, q].store(ring[p + slots * down, q].load())

    beginning = kernel.where(head <= 0, 0, head - lanes)
    strips = (columns - beginning + (strip - 1)) // strip
    size = ((columns - beginning + (strips - 1)) // strips + (lanes - 1)) // lanes * lanes  # of each: nearly the same
    with kernel.loop(groups) as g, kernel.loop(beginning, columns, size) as left:
        strip_of(x[g], left, kernel.number(kernel.minimum(left + size, columns)), g)
    if streamed:
        kernel.fence()
    return kernel
