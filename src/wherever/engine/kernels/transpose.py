"""Matrices copied with rows and columns exchanged, a square of vectors at a time."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Int, Kernel, Mask, transposed

SQUARES = 4  # below each other, that are exchanged before the next columns


def transpose(target: Target, *, dtype: str) -> Kernel:
    """Write y[n, j, i] = x[n, i, j] for n below ``count``, i below ``rows``, j below ``columns``.

    Neighbours in j lie side by side in x, neighbours in i in y; all other pitches are sizes.
    """
    lanes = target.lanes(dtype)
    sizes = ["count", "rows", "columns", "x_next", "x_row", "y_next", "y_column"]
    kernel = Kernel("transpose", dtype, lanes, ["x", "y"], sizes)
    count, rows, columns = (kernel.size(name) for name in sizes[:3])
    x = kernel.array("x", kernel.size("x_next"), kernel.size("x_row"), 1)
    y = kernel.array("y", kernel.size("y_next"), kernel.size("y_column"), 1)

    def square(n: Int, i: Int, j: Int, inside: bool) -> None:
        """Exchange one square; at the ends, of the rows and columns that there are."""
        across: Mask | None = None if inside else kernel.mask(columns - j)
        last = rows - 1
        seen = [x[n, i + k if inside else kernel.minimum(i + k, last), j].load(across) for k in range(lanes)]
        there = None if inside else kernel.mask(rows - i)
        for k, vector in enumerate(transposed(seen)):
            if inside:
                y[n, j + k, i].store(vector)
            else:  # a store of no lanes at all would be slow
                with kernel.when(j + k < columns):
                    y[n, j + k, i].store(vector, there)

    high, wide = rows // lanes * lanes, columns // lanes * lanes
    with kernel.loop(count) as n:
        # Along the rows of what lies further apart: x is read in few long rows, y written in few long columns.
        along_x = kernel.size("x_row") > kernel.size("y_column")
        step = kernel.where(along_x, lanes, SQUARES * lanes)
        with kernel.loop(0, high, step) as first:
            stop = kernel.minimum(first + step, high)
            with kernel.loop(0, wide, lanes) as j, kernel.loop(first, stop, lanes) as i:
                square(n, i, j, True)
            with kernel.loop(wide, columns, lanes) as j, kernel.loop(first, stop, lanes) as i:
                square(n, i, j, False)
        with kernel.loop(high, rows, lanes) as i, kernel.loop(0, columns, lanes) as j:
            square(n, i, j, False)
    return kernel
