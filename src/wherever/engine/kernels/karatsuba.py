"""Karatsuba: sums along rows with fewer products than they have terms; lanes are rows."""

from __future__ import annotations

from collections.abc import Sequence

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Array, Int, Kernel, Table, Vector, transposed

# y[j] = sum over b of w[b] s[j + b], by even and odd places, is a product of two polynomials of degree 1 whose
# coefficients are sequences themselves, transposed: with O the odd places, D the even ones less the odd ones, and E the
# odd ones less the even ones that follow,
#
#   middle = (w_even + w_odd) * O,    y_even = middle + w_even * D,    y_odd = middle - w_odd * E
#
# are three sums of half the taps at half the places, instead of four. Each of them can be divided again: after k steps
# (3/4)^k of the multiplications are left, and a few additions (Karatsuba and Ofman 1962; Winograd's F(2, 2), nested).

UNROLLED = 8  # taps of a part that are written out
AHEAD = 4  # vectors of a result that are asked for before they are written
BEYOND = 1 << 60  # in a table of rows, and more: of other memory


def leaves(wide: int, steps: int) -> list[int]:
    """Taps of the 3^steps parts into which ``wide`` taps are divided, in the order O, D, E."""
    if not steps:
        return [wide]
    more, fewer = -(-wide // 2), wide // 2
    return [*leaves(more, steps - 1), *leaves(more, steps - 1), *leaves(fewer, steps - 1)]


def padded(taps: int, tall: int) -> int:
    """Taps of a part as they are summed: with zeros, where they are looped over ``tall`` at a time."""
    return taps if taps <= UNROLLED else -(-taps // tall) * tall


def divided(values: Sequence[Vector], steps: int) -> list[Vector]:
    """One number of each of the 3^steps parts, from 2^(steps + 1) - 1 neighbouring places."""
    if not steps:
        return [values[0]]
    half = range(len(values) // 2)
    odd = [values[2 * m + 1] for m in half]
    before = [values[2 * m] - values[2 * m + 1] for m in half]
    behind = [values[2 * m + 1] - values[2 * m + 2] for m in half]
    return [value for part in (odd, before, behind) for value in divided(part, steps - 1)]


def karatsuba(target: Target, *, dtype: str, wide: int, steps: int, tall: int) -> Kernel:
    """Write y[i, j] = bias + sum over b of w[b] x[i, j + b], for rows i and columns j.

    Lanes are rows, of which a group has as many: tables say where each begins, in x and in y. What a group shows is
    transposed first, one vector a column, so that no load crosses a cache line, and a window of ``tall`` places moves
    through the taps with one load for as many sums. Then it is divided into 3^steps parts.

    Parameters
    ----------
    wide
        Taps.
    steps
        How often the sums are divided.
    tall
        Sums of one part that are taken at once. ``tall`` * 2^steps is a multiple of a vector.

    The arrays: x, w (the weights of each part), y, bias (one number), ``strip`` (memory for 2^steps * (``length`` + 1)
    columns that are seen and a vector of them, transposed), ``parts`` (for 3^steps * ``length`` vectors), ``doubt`` (a
    vector, which becomes NaN if any result is not finite); tables ``seen`` and ``target`` (where the rows of each
    group begin in x, and in y; from BEYOND on: so many numbers behind ``beyond_x`` or ``beyond_y``). The sizes: groups,
    columns of y (whole vectors), columns of x that are seen, the length of a part, ``beyond_x`` and ``beyond_y``.
    """
    lanes = target.lanes(dtype)
    sizes = ["groups", "columns", "width", "length", "beyond_x", "beyond_y"]
    arrays = ["x", "w", "y", "bias", "strip", "parts", "doubt", "seen", "target"]
    kernel = Kernel("karatsuba", dtype, lanes, arrays, sizes)
    groups, columns, width, length, beyond_x, beyond_y = map(kernel.size, sizes)
    x, y, w = (kernel.array(name, 1) for name in ("x", "y", "w"))
    strip, parts = kernel.array("strip", lanes, 1), kernel.array("parts", length * lanes, lanes, 1)
    seen, into = kernel.table("seen"), kernel.table("target")
    offset, nothing = kernel.array("bias", 1)[0].splat(), kernel.splat(0)
    doubt = kernel.variables(1)
    taps = [padded(n, tall) for n in leaves(wide, steps)]
    before = [sum(taps[:part]) for part in range(len(taps))]
    apart = 2**steps  # columns between neighbours in a part
    block = tall * apart

    def rows(array: Array, table: Table, beyond: Int, group: Int) -> list[Array]:
        """The rows of a group."""
        begins = [table[group * lanes + lane] for lane in range(lanes)]
        return [array.moved(kernel.where(begin < BEYOND, begin, begin - BEYOND + beyond)) for begin in begins]

    def fill(shown: list[Array]) -> None:
        """Transpose what a group shows, and divide it."""
        for j, mask in kernel.vectors(0, width):
            for column, vector in enumerate(transposed([row[j].load(mask) for row in shown])):
                strip[j + column, 0].store(vector)
        with kernel.loop(length) as i:
            values = [strip[i * apart + place, 0].load() for place in range(2 * apart - 1)]
            for part, value in enumerate(divided(values, steps)):
                parts[part, i, 0].store(value)

    def summed(part: int, i: Int, start: list[Vector] | None) -> list[Vector]:
        """``tall`` neighbouring sums of one part, added to what there is."""
        total, window = kernel.variables(tall), kernel.variables(tall)
        source, weights, count = parts[part], w.moved(before[part]), taps[part]
        for t in range(tall):
            if start is not None:
                total[t] = start[t]
            if t < tall - 1 and count:
                window[t] = source[i + t, 0].load()

        def step(k: Int | int, turn: int) -> None:
            window[(turn + tall - 1) % tall] = source[i + k + (tall - 1), 0].load()
            weight = weights[k].splat()
            for t in range(tall):
                total[t] = kernel.fma(weight, window[(turn + t) % tall], total[t])

        if count <= UNROLLED:
            for k in range(count):
                step(k, k)
        else:
            with kernel.loop(0, count, tall) as first:
                for turn in range(tall):
                    step(first + turn, turn)
        return [total[t] for t in range(tall)]

    def sums(times: int, part: int, i: Int, start: list[Vector] | None) -> list[Vector]:
        """Sums of a part that is divided so many times more."""
        if not times:
            return summed(part, i, start)
        third = 3 ** (times - 1)
        middle = sums(times - 1, part, i, None)
        even, odd = middle, middle
        if start is not None:
            even = [a + b for a, b in zip(middle, start[0::2], strict=True)]
            odd = [a + b for a, b in zip(middle, start[1::2], strict=True)]
        even = sums(times - 1, part + third, i, even)
        odd = sums(times - 1, part + 2 * third, i, odd)
        return [value for pair in zip(even, odd, strict=True) for value in pair]

    def deliver(rows: list[Array], j: Int, found: list[Vector]) -> None:
        """Put a square of results, one vector for each row, into y."""
        for row, vector in zip(rows, transposed(found), strict=True):
            value = vector + offset
            doubt[0] = kernel.fma(value, nothing, doubt[0])
            row[j].store(value)
            row[j + AHEAD * lanes].prefetch(write=True)  # so many rows at once are more than the processor foresees

    # What is seen behind the last column reaches no result, if it is finite.
    with kernel.loop(width, (length + 1) * apart) as place:
        strip[place, 0].store(nothing)
    with kernel.loop(groups) as group:
        fill(rows(x, seen, beyond_x, group))
        following = rows(x, seen, beyond_x, kernel.number(kernel.minimum(group + 1, groups - 1)))
        results = rows(y, into, beyond_y, group)
        with kernel.loop(0, columns, block) as j:
            for row in following:  # while there is something to multiply
                for first in range(0, block, lanes):
                    row[j + first].prefetch(2)
            found = sums(steps, 0, j // apart, None)
            for first in range(0, block, lanes):
                with kernel.when(j + first < columns):
                    deliver(results, j + first, found[first : first + lanes])
    kernel.array("doubt", 1)[0].store(doubt[0])
    return kernel
