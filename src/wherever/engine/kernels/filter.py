"""Filter: every channel has kernels of its own, and lanes are neighbouring places."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Int, Kernel, Mask

UNROLLED = 30  # taps of kernels that are written out whole


def filter_rows(target: Target, *, dtype: str, high: int, wide: int, down: int, across: int) -> Kernel:
    """Write y[g, m, i, j] = bias[g, m] + sum over a, b of w[g, m, a, b] x[g, i + a, j + b * apart].

    Lanes are neighbouring places of a row. A register tile has ``down`` rows of ``across`` vectors: for each column of
    the kernel, a vector of x is loaded once for all the rows that it is summed into.

    Parameters
    ----------
    high, wide
        Rows and columns of the kernel.
    down, across
        Size of the register tile: rows and vectors.

    The arrays: x, w (g, m, high, wide), y, bias (g, m). The sizes: numbers of g, m, i and j, the pitches of x and y,
    and how far apart the columns of the kernel are.
    """
    lanes = target.lanes(dtype)
    sizes = ["groups", "each", "rows", "columns", "x_group", "x_row", "y_channel", "y_row", "apart"]
    kernel = Kernel("filter_rows", dtype, lanes, ["x", "w", "y", "bias"], sizes)
    groups, each, rows, columns, x_group, x_row, y_channel, y_row, apart = (kernel.size(name) for name in sizes)
    x = kernel.array("x", x_group, x_row, 1)
    y = kernel.array("y", each * y_channel, y_channel, y_row, 1)
    w = kernel.array("w", each * (high * wide), high * wide, wide, 1)
    bias = kernel.array("bias", each, 1)

    def tile(g: Int, m: Int, i: Int, j: Int, tall: int, broad: int, mask: Mask | None = None) -> None:
        image, weights, result = x[g], w[g, m], y[g, m]
        sums = kernel.variables(tall, broad)
        added = bias[g, m].splat()
        for row in range(tall):
            for v in range(broad):
                sums[row, v] = added

        def column(b: Int | int) -> None:
            """Add what one column of the kernel sees."""
            for place in range(tall + high - 1):
                seen = [image[i + place, j + b * apart + v * lanes].load(mask) for v in range(broad)]
                for row in range(max(0, place - high + 1), min(tall, place + 1)):
                    weight = weights[place - row, b].splat()
                    for v in range(broad):
                        sums[row, v] = kernel.fma(weight, seen[v], sums[row, v])

        if high * wide <= UNROLLED:
            for number in range(wide):
                column(number)
        else:
            with kernel.loop(wide) as b:
                column(b)
        for row in range(tall):
            for v in range(broad):
                result[i + row, j + v * lanes].store(sums[row, v], mask)

    def strip(g: Int, m: Int, i: Int, tall: int) -> None:
        """All columns of some rows."""
        step = across * lanes
        whole = columns // step * step
        with kernel.loop(0, whole, step) as j:
            tile(g, m, i, j, tall, across)
        with kernel.loop(whole, columns, lanes) as j:
            tile(g, m, i, j, tall, 1, kernel.mask(columns - j))

    with kernel.loop(groups) as g, kernel.loop(each) as m:
        even = rows // down * down
        with kernel.loop(0, even, down) as i:
            strip(g, m, i, down)
        with kernel.loop(even, rows) as i:
            strip(g, m, i, 1)
    return kernel
