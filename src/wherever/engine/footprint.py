"""Footprint: what a block reads, with its boundary, put together by one call of a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine.blocks import Block, shown
from wherever.engine.kernels.compile import address, compiled
from wherever.engine.kernels.gather import NOWHERE, gather
from wherever.problem import Array, ConvProblem


class Footprint:
    """A footprint as rows of runs of x: places side by side in both, and gaps that show what lies outside.

    Parameters
    ----------
    rows : array of int64
        Where in x the images begin (or their channels, where each is put together by itself).
    pitches : tuple of int
        Of x, in elements, in each dimension.
    numbers, pixel : int
        How many numbers lie at each place, and how far apart places are in the footprint.
    """

    def __init__(
        self,
        problem: ConvProblem,
        block: Block,
        rows: npt.NDArray[np.int64],
        pitches: tuple[int, ...],
        numbers: int,
        pixel: int,
        dtype: np.dtype[Any],
    ) -> None:
        nowhere = np.zeros(len(rows), bool)
        for dim in range(problem.spatial - 1):
            places = shown(problem, block, dim)
            rows = (rows[:, None] + places * pitches[dim]).ravel()
            nowhere = (nowhere[:, None] | (places < 0)).ravel()
        self.rows = np.where(nowhere, NOWHERE, rows)
        places = shown(problem, block, problem.spatial - 1)
        before = np.concatenate([[-2], places[:-1]])
        dense = pixel == numbers == pitches[-1]
        follows = np.where(places < 0, before == -1, dense & (places == before + 1) & (before >= 0))
        starts = np.flatnonzero(~follows)
        lengths = np.diff(starts, append=len(places))
        there = places[starts] >= 0
        counts = lengths * pixel if dense else np.full(len(starts), numbers)
        runs = np.stack([places[starts] * pitches[-1], starts * pixel, counts], 1)[there]
        gaps = np.stack([starts * pixel, lengths * pixel], 1)[~there]
        self.runs, self.gaps = np.ascontiguousarray(runs, np.int64), np.ascontiguousarray(gaps, np.int64)
        self.sizes = np.array([len(self.rows), len(self.runs), len(self.gaps), len(places) * pixel], np.int64)
        self.outside = np.array([0 if isinstance(problem.boundary, str) else problem.boundary], dtype)
        self.kernel = compiled(gather, dtype=dtype.name)
        tables = (self.outside, self.rows, self.runs, self.gaps, self.sizes)
        self.addresses = tuple(map(address, tables))

    def __call__(self, x: Array | int, foot: int) -> None:
        """Put it together, at an address, from an array or what lies at another address."""
        self.kernel(x, foot, *self.addresses)
