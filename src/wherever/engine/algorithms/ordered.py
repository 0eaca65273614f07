"""Ordered: sums taken one term after the other in float64, bit for bit as a plain loop of C takes them."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from wherever.engine.algorithms.blockwise import Blockwise
from wherever.engine.blocks import Block
from wherever.engine.kernels.compile import compiled
from wherever.engine.kernels.ordered import ordered
from wherever.problem import Array, ConvProblem

_PLACES = 1 << 14  # of a block, which stays in the cache


class OrderedPrepared(Blockwise):
    """One channel in, one channel out, at stride 1: the terms of weights that count, in the order of the kernel.

    Who truncates results to integers sees every bit of them: 9 times 1/9 is 1, or just below. This is no candidate of
    the planner; it serves where another program's rounding is to be met.

    Parameters
    ----------
    problem : ConvProblem
        In float64.
    operand : array (1, 1, *R)
    smallest : float
        Weights up to this size are left out, also where they would meet an infinity.
    """

    def __init__(self, problem: ConvProblem, operand: Array, smallest: float) -> None:
        self.counting = np.abs(operand.reshape(-1)) > smallest
        self.kernel = compiled(ordered, dtype="float64", across=8)
        super().__init__(problem, operand, None, places=_PLACES, parallel=True)

    def pack(self, w: Array) -> Array:
        """The weights that count."""
        return np.ascontiguousarray(w.reshape(-1)[self.counting])

    def forward_block(self, foot: Array, part: Block) -> Array:
        """Let the kernel compute the block, image after image, as one long row of places."""
        foot = np.ascontiguousarray(foot)
        pitches = [stride // foot.itemsize for stride in foot.strides[2:]]
        steps = [pitch * apart for pitch, apart in zip(pitches, part.spacing, strict=True)]
        taps = np.indices(self.problem.kernel).reshape(len(steps), -1)[:, self.counting]
        offsets = np.ascontiguousarray(np.tensordot(steps, taps, 1), np.int64)
        places = sum((n - 1) * pitch for n, pitch in zip(part.shape, pitches, strict=True)) + 1
        sums = np.empty((len(foot), places))
        sizes = np.array([len(offsets), places], np.int64)
        for image, result in zip(foot, sums, strict=True):
            self.kernel(image, self.weight, result, offsets, sizes)
        # Without the places between the ends of rows and the next rows.
        y = as_strided(sums, (len(foot), *part.shape), (sums.strides[0], *(p * sums.itemsize for p in pitches)))
        return y[:, None].copy()
