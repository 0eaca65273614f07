"""Separable sums: down the columns of an image into a strip of a few rows, then along the strip."""

from __future__ import annotations

from collections.abc import Callable

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Int, Kernel, Mask, Variables, Vector, transposed

# The symmetry of a 1-D kernel w of n taps, as `passes` knows it: "even" w[a] = w[n - 1 - a] and "odd"
# w[a] = -w[n - 1 - a] (the middle one excepted) add pairs of places before they multiply; "plain" has none.
SYMMETRIES = ("even", "odd", "plain", "none")


def passes(
    target: Target,
    *,
    dtype: str,
    source: str,
    result: str,
    down: str,
    across: str,
    apart: int,
    fused: bool,
    truncated: bool,
    added: bool,
    streamed: bool,
) -> Kernel:
    """Write y[i, j] = bias + sum over b of v[b] s[i, j + b * apart], where s[i, j] = sum over a of u[a] x[i + a, j].

    A strip of s has as many rows as a vector has lanes. The rows of x that it is summed from are copied to a ring of
    rows first, each once: there they are aligned, and not a power of two apart, which would put a whole column of
    the image into one set of the cache. The strip is summed with neighbouring columns as lanes, and kept transposed,
    one vector a column, so that the second sum has neighbouring rows as lanes: no load of either crosses a cache
    line. Where the image ends, tables say which rows and columns are seen.

    Parameters
    ----------
    source, result
        Types of x and of y.
    down, across
        The symmetry of u and of v, one of `SYMMETRIES`; "none": no sum in this direction.
    fused
        Whether products are added without rounding them first. Without, every sum is rounded as SciPy's C code does
        it: the middle tap (of "plain" kernels the last one), then pairs (taps) from the outermost (first) one on.
    apart
        How far apart the taps of v are: so many channels lie side by side.
    truncated
        Whether s is truncated to integers before it is summed.
    added
        Whether the result is added to what is in y.
    streamed
        Whether y is written past the caches. Its rows must be a multiple of a vector apart, and begin ``head`` numbers
        before one.

    The arrays: x, u, v, y, bias (one number), ``strip`` (memory for (columns of s + the middle of the table) * lanes
    numbers), ``ring`` (for rows), ``doubt`` (a vector, which becomes NaN if any result is not finite); tables
    ``seen`` and ``slot`` (for each row that is summed, where it begins in x, and in the ring; for whole strips, also
    where there is less to sum), and ``outside`` (pairs: a column of s outside the image, and the column that is
    seen there). The sizes: rows and columns of y, columns of x, taps of u but one, steps (pairs, or taps but one) of u
    and v, where the image begins in the strip, pairs in ``outside``, y's pitch, and ``head``.
    """
    lanes = target.lanes(dtype)
    tall = min(lanes, 8 if target.registers >= 32 else 4)  # sums and two windows of places stay in registers
    sizes = ["rows", "columns", "width", "before", "down", "across", "left", "outside", "y_row", "head"]
    arrays = ["x", "u", "v", "y", "bias", "strip", "ring", "doubt", "seen", "slot", "outside"]
    kernel = Kernel("passes", dtype, lanes, arrays, sizes)
    rows, columns, width, earlier, down_steps, across_steps, left, pairs, y_row, head = map(kernel.size, sizes)
    x, y = kernel.array("x", 1, dtype=source), kernel.array("y", y_row, 1, dtype=result)
    strip = kernel.array("strip", lanes, 1)
    ring = kernel.array("ring", 1)
    u, v, bias = (kernel.array(name, 1) for name in ("u", "v", "bias"))
    seen, slot, outside = (kernel.table(name) for name in ("seen", "slot", "outside"))
    doubt = kernel.variables(1)

    def add(weight: Vector, value: Vector, total: Vector) -> Vector:
        return kernel.fma(weight, value, total) if fused else total + weight * value

    def sums(
        symmetry: str, steps: Int, weight: Callable[[Int], Vector], place: Callable[[Int | int], Vector], far: int
    ) -> Variables:
        """``tall`` neighbouring sums: of place(t + a * far) over the taps a, for each t.

        Windows of ``tall`` places move through the taps, ``far`` places a step: so many loads instead of one a sum.
        """
        last = steps if symmetry == "plain" else steps + steps  # the last tap
        total, low, high = kernel.variables(tall), kernel.variables(tall), kernel.variables(tall)
        middle = weight(steps)
        for t in range(tall):
            total[t] = middle * place(steps * far + t)
            low[t] = place(t)
            if symmetry != "plain":
                high[t] = place(last * far + t)

        def step(k: Int, turn: int) -> None:
            """Add pair (tap) k; the windows have been moved ``turn`` times."""
            factor = weight(k)
            for t in range(tall):
                value = low[(t + turn * far) % tall]
                if symmetry == "even":
                    value = value + high[(t - turn * far) % tall]
                elif symmetry == "odd":
                    value = value - high[(t - turn * far) % tall]
                total[t] = add(factor, value, total[t])
            for t in range(max(0, tall - far), tall):  # the places that the next step sees and this one does not
                low[(t + (turn + 1) * far) % tall] = place((k + 1) * far + t)
            if symmetry != "plain":
                for t in range(min(far, tall)):
                    high[(t - (turn + 1) * far) % tall] = place((last - 1 - k) * far + t)

        whole = steps // tall * tall
        with kernel.loop(0, whole, tall) as k:
            for turn in range(tall):
                step(k + turn, turn)
        with kernel.loop(whole, steps) as k:
            step(k, 0)
            lows, highs = [low[t] for t in range(tall)], [high[t] for t in range(tall)]
            for t in range(tall):  # turn the windows themselves
                low[t], high[t] = lows[(t + far) % tall], highs[(t - far) % tall]
        return total

    def copy_rows(i: Int) -> None:
        """Put the rows that the strip from row i on sees, and no strip before it saw, into the ring."""
        with kernel.loop(kernel.where(i.equals(0), 0, i + earlier), i + earlier + lanes) as p:
            shown, target = x.moved(seen[p]), ring.moved(slot[p])
            whole = width // (4 * lanes) * (4 * lanes)
            with kernel.loop(0, whole, 4 * lanes) as j:
                for number in range(0, 4 * lanes, lanes):
                    target[j + number].store(shown[j + number].load())
            with kernel.loop(whole, width, lanes) as j:
                target[j].store(shown[j].load(kernel.mask(width - j)))  # and zeros behind the last

    def sum_down(i: Int, j: Int, mask: Mask | None = None) -> list[Vector]:
        """``lanes`` rows of s, of one vector of columns each, from row i on."""
        if down == "none":
            return [x.moved(seen[i + t])[j].load(mask) for t in range(lanes)]
        found = []
        for first in range(0, lanes, tall):
            start = i + first

            def place(p: Int | int, start: Int = start) -> Vector:
                vector: Vector = ring.moved(slot[start + p])[j].load()
                return vector

            total = sums(down, down_steps, lambda k: u[k].splat(), place, 1)
            found += [total[t] for t in range(tall)]
        return found

    def block(i: Int, j: Int, vectors: list[Vector], inside: bool, stop: Int) -> None:
        """Put a square of results, one vector for each row, into y; at the ends, of what there is before ``stop``."""
        for row, value in enumerate(vectors):
            mask = None if inside else kernel.mask(kernel.where(i + row < rows, stop - j, 0))
            place = y[i + row, j]
            value = value + offset
            if added:
                value = value + place.load(mask)
            place.store(value, mask, streamed=streamed and inside)
            if not streamed:  # so many rows at once are more than the processor foresees
                y[i + row, j + 4 * lanes].prefetch(write=True)
            doubt[0] = kernel.fma(value, nothing, doubt[0])

    offset, nothing = bias[0].splat(), kernel.splat(0)
    begin = kernel.number(kernel.minimum(head, columns))  # of whole vectors; before is a part of one
    end = begin + (columns - begin) // lanes * lanes

    def deliver(i: Int, inside: bool, sums_at: Callable[[Int, Mask | None], list[Vector]]) -> None:
        """Put the rows from i on into y, square after square."""
        with kernel.when(begin > 0):
            none = kernel.number(0)
            block(i, none, sums_at(none, kernel.mask(begin)), False, begin)
        with kernel.loop(begin, end, lanes) as j:
            block(i, j, sums_at(j, None), inside, columns)
        with kernel.loop(end, columns, lanes) as j:
            block(i, j, sums_at(j, kernel.mask(columns - j)), False, columns)

    def strip_of_rows(i: Int, inside: bool) -> None:
        if down != "none":
            copy_rows(i)
        if across == "none":
            deliver(i, inside, lambda j, mask: sum_down(i, j, mask))
            return

        def keep(j: Int, mask: Mask | None = None) -> None:
            """Put a square of the strip where it belongs."""
            for t, vector in enumerate(transposed(sum_down(i, j, mask))):
                strip[left + j + t, 0].store(kernel.truncated(vector) if truncated else vector)

        full = width // lanes * lanes if down == "none" else width
        with kernel.loop(0, full, lanes) as j:
            keep(j)
        with kernel.loop(full, width, lanes) as j:
            keep(j, kernel.mask(width - j))
        with kernel.loop(pairs) as p:
            strip[outside[2 * p], 0].store(strip[outside[2 * p + 1], 0].load())

        def sum_across(j: Int) -> list[Vector]:
            found = []
            for first in range(0, lanes, tall):
                start = j + first

                def place(p: Int | int, start: Int = start) -> Vector:
                    vector: Vector = strip[start + p, 0].load()
                    return vector

                total = sums(across, across_steps, lambda k: v[k].splat(), place, apart)
                found += [total[t] for t in range(tall)]
            return transposed(found)

        deliver(i, inside, lambda j, mask: sum_across(j))

    high = rows // lanes * lanes
    with kernel.loop(0, high, lanes) as i:
        strip_of_rows(i, True)
    with kernel.loop(high, rows, lanes) as i:
        strip_of_rows(i, False)
    kernel.array("doubt", 1)[0].store(doubt[0])
    if streamed:
        kernel.fence()
    return kernel
