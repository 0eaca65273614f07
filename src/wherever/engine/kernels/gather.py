"""Rows of memory put together from runs of other rows, with a number where there is nothing to show."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Array, Int, Kernel

NOWHERE = -(1 << 62)  # in the table of rows: a row that shows nothing


def gather(target: Target, *, dtype: str) -> Kernel:
    """Write rows y[r], one after the other: what some runs of numbers of x, from rows[r] on, show, and gaps.

    The arrays: x; y; outside, the one number that fills gaps, and rows that are NOWHERE; tables rows (where each
    begins in x), runs (three numbers each: where it begins in a row of x, where in a row of y, and how long it is) and
    gaps (two numbers each: where it begins in a row of y, and how long it is).
    The sizes: number of rows, of runs and of gaps, numbers in a row of y.
    """
    lanes = target.lanes(dtype)
    kernel = Kernel(
        "gather", dtype, lanes, ["x", "y", "outside", "rows", "runs", "gaps"], ["rows", "runs", "gaps", "length"]
    )
    rows, run_table, gap_table = (kernel.table(name) for name in ("rows", "runs", "gaps"))
    length = kernel.size("length")
    x, y = kernel.array("x", 1), kernel.array("y", length, 1)
    nothing = kernel.array("outside", 1)[0].splat()

    def fill(row: Array, start: Int | int, count: Int) -> None:
        whole = count // lanes * lanes
        with kernel.loop(0, whole, lanes) as i:
            row[start + i].store(nothing)
        with kernel.loop(whole, count, lanes) as i:
            row[start + i].store(nothing, kernel.mask(count - i))

    with kernel.loop(kernel.size("rows")) as r:
        begin, row = rows[r], y[r]
        with kernel.either(begin.equals(NOWHERE)) as (then, otherwise):
            with then:
                fill(row, 0, length)
            with otherwise:
                with kernel.loop(kernel.size("gaps")) as n:
                    fill(row, gap_table[2 * n], gap_table[2 * n + 1])
                with kernel.loop(kernel.size("runs")) as n:
                    shown, place, count = (run_table[3 * n + k] for k in range(3))
                    seen, put = x.moved(begin + shown), row.moved(place)
                    whole = count // lanes * lanes
                    with kernel.loop(0, whole, lanes) as i:
                        put[i].store(seen[i].load())
                    with kernel.loop(whole, count, lanes) as i:
                        mask = kernel.mask(count - i)
                        put[i].store(seen[i].load(mask), mask)
    return kernel
