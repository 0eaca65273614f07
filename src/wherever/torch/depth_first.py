"""Depth first: stages of a network on a band of rows, then on the next; what lies between stays in the caches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.problem import Array
from wherever.torch.stages import Compute, Stage

__all__ = ["DepthFirst"]


class DepthFirst:
    """Stages, each of which reads what the one before it computes, band by band.

    A band of the last result needs some rows of every result before; each is computed once: of what the band before has
    left, the rows that are needed again are kept. Threads take bands that follow each other, and compute the rows that
    two of them need twice.

    Parameters
    ----------
    stages : sequence of Stage
    ways : sequence of str
        How each is computed.
    shapes : sequence of tuple of int
        Of each result but the last, (N, *S, C).
    dtype : dtype
    rows : int
        Of the last result, in a band.
    threads : int

    Attributes
    ----------
    nbytes : int
        Bytes of what is held of the results in between.

    Raises
    ------
    ValueError
        If a stage cannot be computed by bands.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        ways: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        dtype: npt.DTypeLike,
        rows: int,
        threads: int,
    ) -> None:
        self.rows, self.threads, self.nbytes = rows, threads, 0
        bands = -(-stages[-1].rows // rows)
        pieces = min(threads, bands)
        cuts = [min(stages[-1].rows, bands * i // pieces * rows) for i in range(pieces + 1)]
        self._parts = [
            self._part(stages, ways, shapes, np.dtype(dtype), _bands(start, end, rows))
            for start, end in itertools.pairwise(cuts)
        ]

    def _part(
        self,
        stages: Sequence[Stage],
        ways: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        dtype: np.dtype[Any],
        bands: list[range],
    ) -> list[_Step]:
        """What one thread does."""
        needed = [_needed(stages, band) for band in bands]
        held = [
            run.fresh(n * max(len(each[i]) for each in needed) * math.prod(rest), dtype).reshape(n, -1, *rest)
            for i, (n, _, *rest) in enumerate(shapes)
        ]
        self.nbytes += sum(memory.nbytes for memory in held)
        steps: list[_Step] = []
        before = [range(some.start, some.start) for some in needed[0]]  # what each result has been computed up to
        for some in needed:
            made: range | None = None
            for i, stage in enumerate(stages):
                last = i == len(stages) - 1
                kept = range(some[i].start, max(before[i].stop, some[i].start))
                new = range(kept.stop, max(some[i].stop, kept.stop))
                if not last and kept and kept.start > before[i].start:
                    far = kept.start - before[i].start
                    steps.append(_moved(held[i][:, far : far + len(kept)], held[i][:, : len(kept)]))
                made = range(some[i].start, new.stop)
                if new:
                    seen = stage.reads(new)
                    compute = None if seen is None else stage.band(ways[i], new)
                    if seen is None or compute is None:
                        raise ValueError(f"{stage.name} cannot be computed by bands")
                    source = _slice(seen, some[i - 1].start) if i else slice(seen.start, seen.stop)
                    x = held[i - 1][:, source] if i else source
                    y = slice(new.start, new.stop) if last else held[i][:, _slice(new, some[i].start)]
                    steps.append(
                        _computed(compute, x, y, None if stage.other is None else (i, slice(new.start, new.stop)))
                    )
                before[i] = made
        return steps

    def run(self, x: Array, out: Array, others: Sequence[Array | None]) -> None:
        """Compute the last result from the first input, and what each stage adds."""
        run.for_each(lambda steps: [step(x, out, others) for step in steps], self._parts, self.threads)


_Step = Callable[[Array, Array, Sequence[Array | None]], None]


def _needed(stages: Sequence[Stage], band: range) -> list[range]:
    """The rows of every result that some of the last are computed from."""
    found = [band]
    for stage in reversed(stages[1:]):
        seen = stage.reads(found[0])
        if not seen:
            raise ValueError(f"{stage.name} cannot be computed by bands")
        found.insert(0, seen)
    return found


def _bands(start: int, end: int, rows: int) -> list[range]:
    return [range(a, min(a + rows, end)) for a in range(start, end, rows)]


def _slice(some: range, start: int) -> slice:
    return slice(some.start - start, some.stop - start)


def _moved(source: Array, target: Array) -> _Step:
    def step(x: Array, out: Array, others: Sequence[Array | None]) -> None:
        target[...] = source  # they may overlap: NumPy sees to it

    return step


def _computed(compute: Compute, x: Any, y: Any, other: tuple[int, slice] | None) -> _Step:
    """One stage of one band: of the input and the last result only rows are known, of what lies between the memory."""

    def step(given: Array, out: Array, others: Sequence[Array | None]) -> None:
        source = given[:, x] if isinstance(x, slice) else x
        target = out[:, y] if isinstance(y, slice) else y
        beside = None if other is None else others[other[0]]
        compute(source, target, 1, None if beside is None or other is None else beside[:, other[1]])

    return step
