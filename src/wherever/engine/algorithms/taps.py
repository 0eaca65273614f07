"""Taps: the input shifted, scaled and added, once for each weight; for few channels and for every number type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wherever.engine.algorithms.blockwise import Blockwise
from wherever.engine.algorithms.im2col import tap_places
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, traffic
from wherever.engine.machine import Machine, arithmetic_cost, longest_sum, wide_dtype, working_dtype
from wherever.problem import Array, ConvProblem

_BLOCK_ELEMENTS = 1 << 15  # of the result of one block: with a scratch array of its size it stays in the cache


class Taps(Algorithm):
    """Direct summation by whole shifted arrays."""

    name = "taps"
    sums_directly = True

    def refuses(self, problem: ConvProblem) -> str | None:
        """Nothing: this is the algorithm for whatever the others refuse."""
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """A multiplication and an addition of whole arrays for each weight."""
        cost = arithmetic_cost(problem)
        per_call = problem.groups * min(_places(problem), problem.batch * math.prod(problem.output))
        calls = 2 * problem.multiply_adds / max(per_call, 1)
        gathered = traffic(problem, _places(problem))[2] / machine.copy
        return (2 * problem.multiply_adds / machine.sweep + gathered) * cost + calls * machine.call

    def workspace(self, problem: ConvProblem) -> int:
        """Footprint, result and scratch array of one block."""
        inputs = traffic(problem, _places(problem))[1]
        return (2 * inputs + 3 * _BLOCK_ELEMENTS) * working_dtype(problem.dtype).itemsize

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Order the weights by tap."""
        return TapsPrepared(problem, operand, bias)


def _places(problem: ConvProblem) -> int:
    return max(1, _BLOCK_ELEMENTS // max(1, problem.in_channels, problem.out_channels))


class TapsPrepared(Blockwise):
    """Weights as (R, C / groups, K / groups, groups): one number for each (tap, c, k) of each group."""

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        super().__init__(problem, operand, bias, places=_places(problem), parallel=True)

    def pack(self, w: Array) -> Array:
        """(K, C / groups, *R) to (R, C / groups, K / groups, groups)."""
        p = self.problem
        return np.ascontiguousarray(w.reshape(p.groups, p.group_out, p.group_in, p.taps).transpose(3, 2, 1, 0))

    def unpack(self, w: Array) -> Array:
        """(R, C / groups, K / groups, groups) to (K, C / groups, *R)."""
        return w.transpose(3, 2, 1, 0).reshape(self.problem.w_shape)

    def forward_block(self, foot: Array, part: Block) -> Array:
        """Add w[k, c, a] x[c, i + a] to y[k, i] for each (k, c, a)."""
        p = self.problem
        x = self._grouped(np.ascontiguousarray(foot), p.group_in)
        y = np.zeros((len(foot), p.groups, p.group_out, *part.shape), self._sum_dtype(p.taps * p.group_in))
        scratch = np.empty((len(foot), p.groups, *part.shape), self.dtype)
        for number, tap in enumerate(np.ndindex(p.kernel)):
            shifted = x[tap_places(p, part, tap)]
            for c in range(p.group_in):
                for k in range(p.group_out):
                    y[:, :, k] += np.multiply(shifted[:, :, c], self._scalar(number, c, k), out=scratch)
        return y.reshape(len(foot), p.out_channels, *part.shape)

    def transpose_block(self, y: Array, part: Block) -> Array:
        """Add w[k, c, a] y[k, i] to x[c, i + a] for each (k, c, a)."""
        p = self.problem
        y = self._grouped(np.ascontiguousarray(y), p.group_out)
        foot = np.zeros((len(y), p.groups, p.group_in, *part.foot_shape), self._sum_dtype(p.taps * p.group_out))
        scratch = np.empty((len(y), p.groups, *part.shape), self.dtype)
        for number, tap in enumerate(np.ndindex(p.kernel)):
            shifted = foot[tap_places(p, part, tap)]
            for c in range(p.group_in):
                for k in range(p.group_out):
                    shifted[:, :, c] += np.multiply(y[:, :, k], self._scalar(number, c, k), out=scratch)
        return foot.reshape(len(y), p.in_channels, *part.foot_shape)

    def weight_block(self, foot: Array, y: Array, part: Block) -> Array:
        """The sum of y[k, i] x[c, i + a] for each (k, c, a)."""
        p = self.problem
        x, y = self._grouped(foot, p.group_in), self._grouped(y, p.group_out)
        w = np.empty((p.taps, p.group_in, p.group_out, p.groups), self.dtype)
        summed = (0, *range(2, 2 + p.spatial))
        for number, tap in enumerate(np.ndindex(p.kernel)):
            shifted = x[tap_places(p, part, tap)]
            for c in range(p.group_in):
                for k in range(p.group_out):
                    w[number, c, k] = np.sum(shifted[:, :, c] * y[:, :, k], axis=summed)
        return w

    def _sum_dtype(self, terms: int) -> np.dtype[Any]:
        """The type of sums of so many terms, added one after the other."""
        return self.dtype if terms <= longest_sum(self.dtype) else wide_dtype(self.dtype)

    def _grouped(self, a: Array, channels: int) -> Array:
        grouped: Array = a.reshape(len(a), self.problem.groups, channels, *a.shape[2:])
        return grouped

    def _scalar(self, tap: int, c: int, k: int) -> Array:
        """One weight of each group, to broadcast over (n, groups, *shape)."""
        scalar: Array = self.weight[tap, c, k].reshape(-1, *[1] * self.problem.spatial)
        return scalar
