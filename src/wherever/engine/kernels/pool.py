"""Pool: the largest numbers, or the means, of windows of an image whose channels lie last."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Int, Kernel, Mask, Vector


def pool(target: Target, *, dtype: str, kind: str, wide: int, apart: int) -> Kernel:
    """Write y[i, j, c] = largest, or scaled sum, of x[line, first[j] + b * apart, c] over the lines of i, and all b.

    Lanes are channels. Tables tell which lines and columns of x a window sees, so that one kernel serves images of any
    number of dimensions, and windows of any size: clipped at a border, or as many as there are to be results.

    Parameters
    ----------
    kind : {"max", "mean"}
        The largest number, which is NaN where there is one; or the sum, times a factor of its line and one of its
        column.
    wide
        Columns that most windows see, which are written out.
    apart
        From one b to the next.

    The arrays: x; y; the factors of the lines, and of the columns.

    The tables: of each line i where it begins in y, the first of its lines of x, and their end, in the table of where
    lines of x begin; of each column j the first column of x, and how many b there are. No window is empty.

    The sizes: first line i, and end; number of columns j, and of channels; from one place of x, and y, to the next.
    """
    sizes = ["first", "last", "columns", "channels", "x_place", "y_place"]
    arrays = ["x", "y", "line_factors", "column_factors", "line_table", "begin_table", "column_table"]
    kernel = Kernel("pool", dtype, target.lanes(dtype), arrays, sizes)
    first, last, columns, channels, x_place, y_place = map(kernel.size, sizes)
    x, y = kernel.array("x", x_place, 1), kernel.array("y", y_place, 1)
    line_factors, column_factors = kernel.array("line_factors", 1), kernel.array("column_factors", 1)
    line_table, begin_table, column_table = (kernel.table(name) for name in arrays[-3:])
    means = kind == "mean"

    def met(found: Vector, value: Vector) -> Vector:
        if means:
            return found + value
        return (value <= found).select(found, (found <= found).select(value, found))  # NaN is not at most itself

    def pooled(i: Int, j: Int, c: Int, mask: Mask | None) -> None:
        """One vector of results."""
        start, count = column_table[2 * j], column_table[2 * j + 1]
        total = kernel.variables(1)
        total[0] = kernel.splat(0 if means else float("-inf"))
        with kernel.loop(line_table[3 * i + 1], line_table[3 * i + 2]) as number:
            line = x.moved(begin_table[number] + start * x_place)
            with kernel.either(count.equals(wide)) as (usual, clipped):
                with usual:
                    found = line[0, c].load(mask)
                    for b in range(1, wide):
                        found = met(found, line[b * apart, c].load(mask))
                    total[0] = met(total[0], found)
                with clipped:
                    some = kernel.variables(1)
                    some[0] = line[0, c].load(mask)
                    with kernel.loop(1, count) as more:
                        some[0] = met(some[0], line[more * apart, c].load(mask))
                    total[0] = met(total[0], some[0])
        result = total[0]
        if means:
            result = result * line_factors[i].splat() * column_factors[j].splat()
        y.moved(line_table[3 * i])[j, c].store(result, mask)

    with kernel.loop(first, last) as i, kernel.loop(columns) as j:
        for c, mask in kernel.vectors(0, channels):
            pooled(i, j, c, mask)
    return kernel
