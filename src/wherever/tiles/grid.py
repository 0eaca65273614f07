"""Tiles of an output: how large they may be for a budget of memory, and where an image is cut into them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from wherever.tiles.graph import Box, Graph

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
SHARE = (
    0.75  # of the budget that a tile may take by what is known beforehand: libraries take more than they are asked for
)


def as_bytes(memory: int | float | str) -> int:
    """Return a budget of memory in bytes: a number, or text such as "2 GiB", "500 MB"."""
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([\d.]+)\s*([a-zA-Z]*)\s*", memory)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None or match[1].count(".") > 1 or match[1] == ".":
            raise ValueError(f"memory: {memory!r} is no amount of memory; write it as '2 GiB', '500 MB' or in bytes")
        memory = float(match[1]) * unit
    if isinstance(memory, bool) or not isinstance(memory, int | float):
        raise TypeError(f"memory: expected bytes or text such as '2 GiB', got {memory!r}")
    if not 0 < memory < math.inf:
        raise ValueError(f"memory: {memory!r} must be more than 0")
    return int(memory)


@dataclass(frozen=True)
class Grid:
    """An output cut into boxes, and with it all other outputs.

    Attributes
    ----------
    tile : tuple of int
        Size of the tiles of the first output; the last ones may be smaller.
    cuts : tuple of tuple of tuple of int
        For each spatial axis and output, where it is cut, from 0 to its size.
    """

    tile: tuple[int, ...]
    cuts: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def of(cls, graph: Graph, tile: Sequence[int]) -> Grid:
        """Cut the outputs of a graph into tiles of about a size, rounded up to the graph's alignment."""
        steps = [graph.step(output)[0] for output in range(len(graph.outputs))]
        sizes = [graph.nodes[position].size for position in graph.outputs]
        rounded, cuts = [], []
        for axis, align in enumerate(alignment(graph)):
            align = align if align <= max(sizes[0][axis], 1) else 1
            length = max(1, min(-(-tile[axis] // align) * align, max(sizes[0][axis], 1)))
            ratios = [_ratio(steps[0], step, axis) for step in steps]
            each = [[0] for _ in sizes]
            for cut in range(length, sizes[0][axis], length):
                placed = [math.floor(cut * ratio) for ratio in ratios]
                if all(before[-1] < c < n[axis] for before, c, n in zip(each, placed, sizes, strict=True)):
                    for before, c in zip(each, placed, strict=True):
                        before.append(c)
            for before, n in zip(each, sizes, strict=True):
                before.append(n[axis])
            rounded.append(length)
            cuts.append(tuple(tuple(c) for c in each))
        return cls(tuple(rounded), tuple(cuts))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of tiles along each axis."""
        return tuple(len(each[0]) - 1 for each in self.cuts)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[tuple[Box, ...]]:
        """Go through the tiles, row by row: for each, the box of every output."""
        for place in itertools.product(*(range(n) for n in self.shape)):
            yield self.boxes(place)

    def boxes(self, place: Sequence[int]) -> tuple[Box, ...]:
        """Return the box of every output of the tile in a row and column (and so on)."""
        outputs = range(len(self.cuts[0]))
        return tuple(
            tuple((each[o][i], each[o][i + 1]) for each, i in zip(self.cuts, place, strict=True)) for o in outputs
        )


def _ratio(first: Sequence[Fraction] | None, step: Sequence[Fraction] | None, axis: int) -> Fraction:
    return first[axis] / step[axis] if first is not None and step is not None else Fraction(1)


def alignment(graph: Graph) -> tuple[int, ...]:
    """Return what corners of tiles of the first output are multiples of, so that every output is cut at a place."""
    steps = [graph.step(output)[0] for output in range(len(graph.outputs))]
    own = graph.alignment()
    return tuple(
        math.lcm(n, *(_ratio(steps[0], step, axis).denominator for step in steps)) for axis, n in enumerate(own)
    )


def fitting(graph: Graph, memory: int, pieces: Sequence[int] | None = None, held: int = 0) -> Grid:
    """Return the grid of the largest tiles whose computation fits into a budget.

    Parameters
    ----------
    graph : Graph
    memory : int
        Bytes.
    pieces : sequence of int, optional
        Sizes of the pieces that a file is made of: tiles become multiples of them where they are larger anyway, and
        as wide as the image where pieces are strips.
    held : int
        Bytes for each place of a tile of the first output, beside the computation.

    Raises
    ------
    ValueError
        If not even the smallest tile fits.
    """
    budget = int(memory * SHARE)
    size = graph.nodes[graph.outputs[0]].size
    align = [a if a <= max(n, 1) else 1 for a, n in zip(alignment(graph), size, strict=True)]
    strips = pieces is not None and pieces[-1] >= graph.nodes[0].size[-1] and pieces[0] < graph.nodes[0].size[0]

    def cost(tile: Sequence[int]) -> int:
        grid = Grid.of(graph, tile)
        middle = grid.boxes([1 if n > 2 else 0 for n in grid.shape])  # a full one, with a halo on all sides
        return graph.memory(middle) + held * math.prod(high - low for low, high in middle[0])

    smallest = tuple(align)
    if cost(smallest) > budget:
        need = cost(smallest) / SHARE
        raise ValueError(
            f"memory: {memory / 2**20:,.0f} MiB are not enough for the smallest tile, {' x '.join(map(str, smallest))} "
            f"outputs with all that they see; it takes {need / 2**20:,.0f} MiB"
        )
    if cost(size) <= budget:
        return Grid.of(graph, size)

    def sized(scale: int) -> tuple[int, ...]:
        """Tiles of a scale: squares, or strips as wide as the image."""
        wanted = [min(n, scale * a) for n, a in zip(size, (max(align),) * len(size), strict=True)]
        if strips:
            wanted[-1] = size[-1]
        return tuple(wanted)

    if strips and cost(sized(1)) > budget:
        strips = False
    low, high = 1, max(1, -(-max(size) // max(align)))
    while low < high:  # the largest that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(sized(middle)) <= budget else (low, middle - 1)
    tile = list(sized(low))
    for axis, n in enumerate(size):
        if tile[axis] >= n:
            continue
        unit = math.lcm(align[axis], pieces[axis]) if pieces is not None else align[axis]
        if tile[axis] >= 2 * unit:
            tile[axis] -= tile[axis] % unit
        else:
            unit = align[axis]
        even = -(-n // -(-n // tile[axis]))  # nearly equal tiles, instead of full ones and a sliver
        tile[axis] = min(tile[axis], -(-even // unit) * unit)
    grid = Grid.of(graph, tile)
    return grid if cost(grid.tile) <= budget else Grid.of(graph, sized(low))
