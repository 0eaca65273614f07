"""Grouped: direct summation of many groups of few channels, several of them side by side in one vector."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from wherever.engine.algorithms.direct import Direct, DirectPrepared, Tile, offsets
from wherever.engine.algorithms.forward import as_forward, refuses_sums
from wherever.engine.kernels.compile import Entry, compiled, host
from wherever.engine.kernels.direct import CHUNK
from wherever.engine.kernels.grouped import grouped
from wherever.engine.machine import working_dtype
from wherever.problem import Array, ConvProblem

_LONGEST_RUN = 5  # taps that are summed at once


class Grouped(Direct):
    """Direct summation whose lanes are the outputs of several groups: where one group would leave lanes empty."""

    name = "grouped"

    def refuses(self, problem: ConvProblem) -> str | None:
        """Groups that fill a vector or have many inputs, and what `Direct` refuses."""
        refusal = refuses_sums(problem)
        if refusal is not None:
            return refusal
        if problem.in_channels == problem.out_channels == problem.groups:
            return "sums the channels of a group, and here each has one"
        if _side(as_forward(problem)) < 2:
            return "puts groups of few channels side by side, and here are none that fit into one vector"
        return None

    def tile(self, problem: ConvProblem) -> Tile:
        """The tile for all places of a problem, as if they lay in one image."""
        counts = tuple(n for n in problem.output if n > 1)
        return _best_tile(problem, counts if problem.taps > 1 else (math.prod(counts),), problem.batch)

    @property
    def prepared(self) -> type[DirectPrepared]:
        """Who computes it."""
        return GroupedPrepared


def _side(problem: ConvProblem) -> int:
    """How many groups one vector holds; their inputs fill at most two."""
    lanes = host().lanes(working_dtype(problem.dtype).name)
    return min(problem.groups, lanes // problem.group_out, 2 * lanes // problem.group_in)


def _runs(problem: ConvProblem) -> list[int]:
    """Into how many taps at once the last dimension of the kernel may be cut."""
    length = problem.kernel[-1]
    return [run for run in range(1, min(length, _LONGEST_RUN) + 1) if length % run == 0]


@functools.lru_cache(maxsize=4096)
def _best_tile(problem: ConvProblem, counts: tuple[int, ...], batch: int, run: int | None = None) -> Tile:
    """The tile, and run of taps, that costs least; in ``vectors`` of the tile the run.

    Sums, the weights of a run, and what is being shuffled must fit the registers together. Each place of x that a tile
    looks at is shuffled once for every channel.
    """
    lanes = host().lanes(working_dtype(problem.dtype).name)
    side = _side(problem)
    rows, columns = (1, 1, *counts)[-2:]
    others = batch * math.prod(counts[:-2]) * -(-problem.groups // side)
    # A shuffle of one vector in its quarters, of one vector, of two.
    quarters = problem.group_in <= 16 // working_dtype(problem.dtype).itemsize
    shuffle = (0.6 if quarters else 1.0) if side * problem.group_in <= lanes else 1.5
    tiles = []
    for length in [run] if run else _runs(problem):
        most = host().registers - length - 3
        across = -(-columns // -(-columns // most))
        down = max(1, most // columns) if across == columns else 1
        down = -(-rows // -(-rows // down))
        for height in {1, down}:
            places = height * across
            step, apart = problem.stride[-1], problem.dilation[-1]
            seen = height * len({j * step + a * apart for j in range(across) for a in range(length)})
            one = max(places * length + shuffle * seen + 0.5 * length, 8)
            number = others * -(-rows // height) * -(-columns // across)
            cost = number * (problem.taps // length * problem.group_in * one + 2 * places + 20)
            tiles.append(Tile(cost, height, across, length, lanes))
    return min(tiles, key=lambda tile: (tile.cost, tile.down * tile.across))


class GroupedPrepared(DirectPrepared):
    """Weights as (vectors of groups, runs of taps, channels, taps of a run, lanes)."""

    finishes = False

    def arrange(self, given: ConvProblem) -> None:
        """Groups side by side; a row of the kernel, or part of it, at a time."""
        p = self.problem
        self.tile = Grouped().tile(given)
        self.side, self.run_length = _side(p), self.tile.vectors
        self.width, self.blocks, self.joined = self.tile.lanes, 1, False
        self.groups, self.outputs = -(-p.groups // self.side), self.side * p.group_out
        self.taps = (*p.kernel[:-1], p.kernel[-1] // self.run_length)
        self.chunk = (max(1, CHUNK[self.dtype.name] // (self.run_length * p.group_in)), p.group_in)

    def tile_of(self, counts: tuple[int, ...], pitches: tuple[int, int]) -> Tile:
        """The register tile for places of these counts, with these pitches in bytes."""
        return _best_tile(self.problem, counts, 1, self.run_length)

    def offsets(self, spacing: tuple[int, ...], pitches: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """How far away each run of taps looks."""
        return offsets(self.taps, (*spacing[:-1], self.run_length * spacing[-1]), pitches)

    def kernel(self, tile: Tile, row: int, step: int, apart: int) -> Entry:
        """The kernel for this tile: numbers of x from row to row, from place to place, and from tap to tap."""
        return compiled(
            grouped,
            dtype=self.dtype.name,
            step=step,
            row=row,
            apart=apart if self.run_length > 1 else 0,
            run=self.run_length,
            down=tile.down,
            across=tile.across,
            side=self.side,
            group_in=self.problem.group_in,
            group_out=self.problem.group_out,
        )

    def sizes(self, taps: int) -> list[int]:
        """The sizes of the kernel behind those of tiles and blocks."""
        return [taps, self.chunk[0], self.problem.in_channels, self.problem.out_channels]

    def packed(self, operand: Array) -> Array:
        """The weights in the order in which the kernel reads them."""
        p, run = self.problem, self.run_length
        packed = np.zeros((self.groups, p.taps // run, p.group_in, run, self.tile.lanes), self.dtype)
        given = operand.astype(self.dtype, copy=False).reshape(p.out_channels, p.group_in, p.taps // run, run)
        for vector in range(self.groups):
            some = given[vector * self.outputs : (vector + 1) * self.outputs]
            packed[vector, ..., : len(some)] = some.transpose(2, 1, 3, 0)
        return packed
