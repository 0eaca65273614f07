"""Depthwise: every channel has a kernel of its own, and lanes are channels."""

from __future__ import annotations

from collections.abc import Iterator

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.finish import finished
from wherever.engine.kernels.vector import Int, Kernel, Mask, Vector

OUTSIDE = -(1 << 60)  # in the tables of places: nothing is there; a sum of two of them is still below half of it


def depthwise(
    target: Target,
    *,
    dtype: str,
    rows: int,
    wide: int,
    narrower: bool,
    stride: int,
    apart: int,
    down: int,
    across: int,
    activation: str | None,
    adds: bool,
) -> Kernel:
    """Write y[i, j, c] = bias[c] + sum over a, b of w[a, b, c] x[line[i, a], j * stride + (first[a] + b) * apart, c].

    A register tile has ``down`` rows i of ``across`` neighbouring places j, and each vector of x is loaded once for all
    the sums of a row that it is part of. Tables tell where lines of x lie, so that one call computes images of any
    number of dimensions, with any boundary: a line, or a place of the columns near the border, may be outside of x.

    Parameters
    ----------
    rows
        Rows of the kernel that slide over the rows of a tile: line[i, a + 1] is line[i + 1, a] within each group of so
        many a, and is loaded once for the whole tile. With 1, every row of a tile has lines of its own.
    wide
        Columns b of the kernel that are summed together: a run of taps, of which a counts all.
    narrower
        Whether there are also runs of one column less; they come last.
    stride, apart
        From one j, and one b, to the next, in places of x.
    down, across
        Rows and places of the register tile.
    activation, adds
        What is applied to the sums (see `kernels.finish`), and whether ``beside`` is added before.

    The arrays: x; filler, the channels of a place outside x; w (vectors of channels, taps in the order of the runs,
    lanes); bias; y; beside, if it is added, which lies in memory as y does.

    The tables: of each tile its first row i, and whether all its lines are inside x; of each row i where it begins in
    y, and of every a the line of x (or OUTSIDE); of each a its first column; of each place of a row that windows look
    at, how far it is from where the line begins (or OUTSIDE). Behind them looked, a workspace for all places that a
    tile looks at.

    The sizes: first tile of rows, and end; number of columns j, and the first, and end, of those whose windows are
    inside x; the channel at which the first vector begins (before the first one, where only then vectors do not cross
    lines of the cache), and the number of channels; number of runs a that are ``wide``, and of all; how many taps a
    vector of channels has; from one place of x, and y, to the next.
    """
    lanes = target.lanes(dtype)
    sizes = ["first", "last", "columns", "low", "high", "begin", "channels", "full", "runs", "taps"]
    sizes += ["x_place", "y_place"]
    arrays = ["x", "filler", "w", "bias", "y", *(["beside"] if adds else [])]
    arrays += ["tile_table", "row_table", "run_table", "column_table", "looked"]
    kernel = Kernel("depthwise", dtype, lanes, arrays, sizes)
    first, last, columns, low, high, begin, channels, full, runs, taps, x_place, y_place = map(kernel.size, sizes)
    x, y, bias = kernel.array("x", x_place, 1), kernel.array("y", y_place, 1), kernel.array("bias", 1)
    others = [kernel.array("beside", y_place, 1)] if adds else []
    w = kernel.array("w", taps, lanes, lanes, 1)
    tiles, row_table, first_column, column_table, looked = (kernel.table(name) for name in arrays[-5:])
    filler = kernel.distance(x, kernel.array("filler", 1))
    lines = down + rows - 1  # of x that a tile sees through a group of runs
    seen = sorted({j * stride + b * apart for j in range(across) for b in range(wide)})  # columns of x that a tile sees

    def look_up(i: Int, j: Int, inside: bool) -> None:
        """Find out where the places are that a tile looks at; inside x, where those of each line begin."""
        with kernel.loop(runs // rows) as group:
            start = j * stride + first_column[group * rows] * apart
            for line in range(lines):
                row = min(line, down - 1)
                begins = row_table[(i + row) * (runs + 1) + (group * rows + (line - row + 1))]
                number = group * lines + line
                if inside:
                    looked[number] = begins + start * x_place
                    continue
                for place, column in enumerate(seen):
                    there = begins + column_table[start + column]
                    looked[number * len(seen) + place] = kernel.where(there < OUTSIDE // 2, filler, there)

    def tile(i: Int, j: Int, c: Int, mask: Mask | None, inside: bool) -> None:
        """Sum the windows of a tile, which are where `look_up` found them."""
        sums = kernel.variables(down, across)
        added = bias[c - begin].load()
        for row in range(down):
            for place in range(across):
                sums[row, place] = added

        def load(number: Int | int, column: int) -> Vector:
            """The vector of x in a column of a line."""
            there = looked[number] if inside else looked[number * len(seen) + seen.index(column)]
            value: Vector = x.moved(there)[column if inside else 0, c].load(mask)
            return value

        def add(group: Int, tap: Int | int, wide: int) -> None:
            """Add what the windows see through a group of runs."""
            for line in range(lines):
                values: dict[int, Vector] = {}
                for b in range(wide):
                    for place in range(across):
                        column = place * stride + b * apart
                        if column not in values:
                            values[column] = load(group * lines + line, column)
                    for row in range(max(0, line - rows + 1), min(down, line + 1)):
                        weight = w[c - begin, tap, (line - row) * wide + b, 0].load()
                        for place in range(across):
                            value = values[place * stride + b * apart]
                            sums[row, place] = kernel.fma(weight, value, sums[row, place])

        with kernel.loop(full // rows) as group:
            add(group, group * (rows * wide), wide)
        if narrower:
            with kernel.loop(full // rows, runs // rows) as group:
                add(group, full + group * (rows * (wide - 1)), wide - 1)
        for row in range(down):
            result, *beside = (array.moved(row_table[(i + row) * (runs + 1)]) for array in (y, *others))
            for place in range(across):
                extra = [array[j + place, c].load(mask) for array in beside]
                result[j + place, c].store(finished(sums[row, place], extra, activation), mask)

    with kernel.loop(first, last) as number, kernel.loop(0, columns, across) as following:
        i, lines_inside = tiles[number * 2], tiles[number * 2 + 1]
        j = kernel.number(kernel.minimum(following, columns - across))  # the last tile overlaps the one before
        with kernel.either((lines_inside > 0) & (j >= low) & (j + across <= high)) as (within, otherwise):
            for path, inside in ((within, True), (otherwise, False)):
                with path:
                    look_up(i, j, inside)
                    with (
                        kernel.loop(begin, channels, lanes) as c,
                        kernel.either((c >= 0) & (c + lanes <= channels)) as (whole, part),
                    ):
                        with whole:
                            tile(i, j, c, None, inside)
                        with part:
                            tile(i, j, c, kernel.mask(channels - c, 0 - c), inside)
    return kernel


def depthwise_gradient(
    target: Target, *, dtype: str, tall: int, wide: int, narrower: bool, stride: int, apart: int, across: int
) -> Kernel:
    """Add to total[c, a, b], for all i and j, y[i, j, c] x[line[i, a], j * stride + (first[a] + b) * apart, c].

    Of ``across`` neighbouring places j, each vector of x is loaded once for all the products that it is part of, whose
    sums for ``tall`` runs a of ``wide`` columns stay in registers; then they are collected in the first cache, so that
    both images are read along memory. Tables and runs are those of `depthwise`.

    The arrays: x; filler, the channels of a place outside x; y; sums, a workspace of the size of the total; total
    (vectors of channels, taps in the order of the runs, lanes).

    The tables: of each row i whether all its lines are inside x, where it begins in y, and of every a the line of x
    (or OUTSIDE); of each a its first column; of each place of a row that windows look at, how far it is from where the
    line begins (or OUTSIDE). Behind them looked, a workspace for all places that a tile looks at.

    The sizes: numbers of rows i, and of rows that are collected before they are added to the total; number of columns
    j, and the first, and end, of those whose windows are inside x; the channel at which the first vector begins, and
    the number of channels; number of runs a that are ``wide``, and of all; how many taps a vector of channels has; from
    one place of x, and y, to the next.
    """
    lanes = target.lanes(dtype)
    sizes = ["rows", "down", "columns", "low", "high", "begin", "channels", "full", "runs", "taps"]
    sizes += ["x_place", "y_place"]
    arrays = ["x", "filler", "y", "sums", "total", "row_table", "run_table", "column_table", "looked"]
    kernel = Kernel("depthwise_gradient", dtype, lanes, arrays, sizes)
    rows, down, columns, low, high, begin, channels, full, runs, taps, x_place, y_place = map(kernel.size, sizes)
    x, y = kernel.array("x", x_place, 1), kernel.array("y", y_place, 1)
    sums, total = (kernel.array(name, taps, lanes, lanes, 1) for name in ("sums", "total"))
    row_table, first_column, column_table, looked = (kernel.table(name) for name in arrays[-4:])
    filler = kernel.distance(x, kernel.array("filler", 1))

    def tile(i: Int, j: Int, broad: int, inside: bool) -> None:
        """Add the products of neighbouring places and all that their windows see."""
        seen = sorted({n * stride + b * apart for n in range(broad) for b in range(wide)})
        with kernel.loop(runs) as a:
            line, start = row_table[i * (runs + 2) + (a + 2)], j * stride + first_column[a] * apart
            if inside:
                looked[a] = line + start * x_place
            else:
                for number, column in enumerate(seen):
                    there = line + column_table[start + column]
                    looked[a * len(seen) + number] = kernel.where(there < OUTSIDE // 2, filler, there)
        outputs = y.moved(row_table[i * (runs + 2) + 1])

        def products(c: Int, mask: Mask | None) -> None:
            weights = [outputs[j + n, c].load(mask) for n in range(broad)]

            def add(a: Int, tap: Int | int, tall: int, wide: int) -> None:
                """The sums of some runs."""
                found = {(k, b): kernel.splat(0) for k in range(tall) for b in range(wide)}
                for number, column in enumerate(seen):
                    met = [(n, b) for n in range(broad) for b in range(wide) if n * stride + b * apart == column]
                    for k in range(tall if met else 0):
                        there = looked[a + k] if inside else looked[(a + k) * len(seen) + number]
                        value: Vector = x.moved(there)[column if inside else 0, c].load(mask)
                        for n, b in met:
                            found[k, b] = kernel.fma(weights[n], value, found[k, b])
                for (k, b), more in found.items():
                    place = sums[c - begin, tap, k * wide + b, 0]
                    place.store(place.load() + more)

            even = full // tall * tall
            with kernel.loop(0, even, tall) as a:
                add(a, a * wide, tall, wide)
            if tall > 1:
                with kernel.loop(even, full) as a:
                    add(a, a * wide, 1, wide)
            if narrower:
                with kernel.loop(full, runs) as a:
                    add(a, full + a * (wide - 1), 1, wide - 1)

        with (
            kernel.loop(begin, channels, lanes) as c,
            kernel.either((c >= 0) & (c + lanes <= channels)) as (whole, part),
        ):
            with whole:
                products(c, None)
            with part:
                products(c, kernel.mask(channels - c, 0 - c))

    def vectors() -> Iterator[tuple[Int, Int]]:
        """All vectors of channels, and their taps."""
        with kernel.loop(begin, channels, lanes) as c, kernel.loop(taps) as tap:
            yield c - begin, tap

    with kernel.loop(0, rows, down) as start:
        for c, tap in vectors():
            sums[c, tap, 0, 0].store(kernel.splat(0))
        with kernel.loop(start, kernel.minimum(start + down, rows)) as i:
            lines_inside, even = row_table[i * (runs + 2)], columns // across * across
            with (
                kernel.loop(0, even, across) as j,
                kernel.either((lines_inside > 0) & (j >= low) & (j + across <= high)) as (within, otherwise),
            ):
                with within:
                    tile(i, j, across, True)
                with otherwise:
                    tile(i, j, across, False)
            if across > 1:
                with kernel.loop(even, columns) as j:
                    tile(i, j, 1, False)
        for c, tap in vectors():
            place = total[c, tap, 0, 0]
            place.store(place.load() + sums[c, tap, 0, 0].load())
    return kernel
