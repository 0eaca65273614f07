"""Direct summation where every channel has its own kernel: windows of places, or of vectors of channels."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Int, Kernel, Mask

UNROLLED = 30  # taps of kernels that are written out whole


def rows_of_places(target: Target, *, dtype: str, high: int, wide: int, down: int, across: int) -> Kernel:
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
    kernel = Kernel("rows_of_places", dtype, lanes, ["x", "w", "y", "bias"], sizes)
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


def vectors_of_channels(target: Target, *, dtype: str, wide: int, stride: int, apart: int, across: int) -> Kernel:
    """Write y[i, j, c] = bias[c] + sum over a, b of w[a, b, c] x[i * x_row + offset[a] + (j * stride + b * apart), c].

    Lanes are channels, each of which has a kernel of its own. ``across`` neighbouring places j are summed at once: each
    vector of x is loaded once for all the sums that it is part of, in each row a of the kernel.

    Parameters
    ----------
    wide
        Columns b of the kernel.
    stride, apart
        From one j, and one b, to the next, in places of x.
    across
        Places of the register tile.

    The arrays: x, w, y, bias, and the table of offsets. The sizes: numbers of i, j, c and a, and pitches: of w from one
    tap to the next, of x and y.
    """
    lanes = target.lanes(dtype)
    sizes = ["rows", "columns", "channels", "taps", "w_tap", "x_row", "x_pixel", "y_row", "y_pixel"]
    kernel = Kernel("vectors_of_channels", dtype, lanes, ["x", "w", "y", "bias", "offsets"], sizes)
    rows, columns, channels, taps, w_tap, x_row, x_pixel, y_row, y_pixel = (kernel.size(name) for name in sizes)
    x, y = kernel.array("x", x_row, x_pixel, 1), kernel.array("y", y_row, y_pixel, 1)
    w, bias, offset = kernel.array("w", w_tap * wide, w_tap, 1), kernel.array("bias", 1), kernel.table("offsets")

    def tile(i: Int, j: Int, c: Int, broad: int, mask: Mask | None) -> None:
        sums = kernel.variables(broad)
        added = bias[c].load(mask)
        for place in range(broad):
            sums[place] = added
        with kernel.loop(taps) as a:
            window = x.moved(offset[a])
            weights = [w[a, b, c].load(mask) for b in range(wide)]
            pairs = [(place * stride + b * apart, place, b) for place in range(broad) for b in range(wide)]
            for position in sorted({p for p, _, _ in pairs}):
                seen = window[i, j * stride + position, c].load(mask)
                for place, b in ((place, b) for p, place, b in pairs if p == position):
                    sums[place] = kernel.fma(weights[b], seen, sums[place])
        for place in range(broad):
            y[i, j + place, c].store(sums[place], mask)

    def row(i: Int, c: Int, mask: Mask | None) -> None:
        whole = columns // across * across
        with kernel.loop(0, whole, across) as j:
            tile(i, j, c, across, mask)
        with kernel.loop(whole, columns) as j:
            tile(i, j, c, 1, mask)

    full = channels // lanes * lanes
    with kernel.loop(rows) as i:
        with kernel.loop(0, full, lanes) as c:
            row(i, c, None)
        with kernel.loop(full, channels, lanes) as c:
            row(i, c, kernel.mask(channels - c))
    return kernel
