"""im2col: the windows of a block as columns of a matrix, multiplied by the weights through BLAS."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from wherever.engine.algorithms.blockwise import Blockwise
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, last_axes, traffic
from wherever.engine.machine import Machine, arithmetic_cost, longest_sum, wide_dtype, working_dtype
from wherever.problem import Array, ConvProblem

_COLUMN_BYTES = 4 << 20  # of the matrix of one block: it should stay in the cache until it has been multiplied


class Im2col(Algorithm):
    """Direct summation as a matrix product: (K, C R) times (C R, places)."""

    name = "im2col"
    sums_directly = True

    def refuses(self, problem: ConvProblem) -> str | None:
        """Integers and extended precision: BLAS has no product for them."""
        if working_dtype(problem.dtype).char not in "fdFD":
            return f"BLAS multiplies float32, float64 and their complex forms, not {problem.dtype}"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The product, at the rate that its smaller side allows, and the copy of the columns."""
        cost = arithmetic_cost(problem)
        places = problem.batch * math.prod(problem.output)
        columns = places * problem.in_channels * problem.taps
        blocks, _, inputs = traffic(problem, _places(problem))
        # A product with few rows reads each column once for little work; a copy in short runs does not stream.
        product = machine.product * max(problem.group_out, 1) / (problem.group_out + 5)
        run = max(1, problem.group_in if problem.layout == "channels_last" else problem.output[-1])
        copied = 0 if _is_matrix(problem) else (columns + inputs) / (machine.copy * run / (run + 12))
        if problem.layout == "channels_last":  # the result is turned
            copied += places * (problem.out_channels + 12) / machine.copy
        calls = blocks * (16 + problem.groups / 8)
        # The gradient by the weights is added up in a wider type, block by block, and copied.
        added = (blocks + 3) * math.prod(problem.w_shape) if problem.direction == "weight_gradient" else 0
        return (2 * problem.multiply_adds / product + copied + added / machine.sweep) * cost + calls * machine.call

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """A copy, where channels lie last in memory; else the weights are the matrix."""
        turned = problem.layout == "channels_last" and problem.taps > 1
        return super().preparation(problem, machine) / 2 if turned else 0.0

    def workspace(self, problem: ConvProblem) -> int:
        """The columns and the result of one block."""
        size = working_dtype(problem.dtype).itemsize
        columns = 0 if _is_matrix(problem) else problem.in_channels * problem.taps
        places = min(_places(problem), problem.batch * math.prod(problem.output))
        return size * (places * (columns + problem.out_channels) + traffic(problem, _places(problem))[1])

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Pack the weights as one matrix a group."""
        return Im2colPrepared(problem, operand, bias)


def _places(problem: ConvProblem) -> int:
    size = working_dtype(problem.dtype).itemsize
    return max(1, _COLUMN_BYTES // max(1, size * max(problem.in_channels * problem.taps, problem.out_channels)))


def _is_matrix(problem: ConvProblem) -> bool:
    """Whether the windows are the input itself: a kernel of one place, nothing skipped or padded."""
    return problem.taps == 1 and problem.size == problem.output


class Im2colPrepared(Blockwise):
    """Weights as matrices (groups, K, Q); Q runs over (C, R), or (R, C) where channels lie last in memory."""

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        # BLAS brings threads of its own to every product.
        super().__init__(problem, operand, bias, places=_places(problem), parallel=False)

    def pack(self, w: Array) -> Array:
        """(K, C / groups, *R) to (groups, K / groups, Q)."""
        p = self.problem
        w = w.reshape(p.groups, p.group_out, p.group_in, p.taps)
        if p.layout == "channels_last":
            w = w.swapaxes(2, 3)
        return np.ascontiguousarray(w).reshape(p.groups, p.group_out, p.group_in * p.taps)

    def unpack(self, w: Array) -> Array:
        """(groups, K / groups, Q) to (K, C / groups, *R)."""
        p = self.problem
        if p.layout == "channels_last":
            w = w.reshape(p.groups, p.group_out, p.taps, p.group_in).swapaxes(2, 3)
        return w.reshape(p.w_shape)

    def forward_block(self, foot: Array, part: Block) -> Array:
        """W times the columns."""
        y = _long_product(self.weight, self._columns(foot, part))
        return y.reshape(len(foot), self.problem.out_channels, *part.shape)

    def transpose_block(self, y: Array, part: Block) -> Array:
        """The transpose of W times the outputs; each column goes back to its window."""
        p = self.problem
        images = len(y)
        columns = _long_product(self.weight.swapaxes(1, 2), self._matrix(y))
        if p.layout == "channels_last":
            windows = np.moveaxis(columns.reshape(images, p.groups, p.taps, p.group_in, *part.shape), 2, 3)
        else:
            windows = columns.reshape(images, p.groups, p.group_in, p.taps, *part.shape)
        kind = self.dtype if p.taps <= longest_sum(self.dtype) else wide_dtype(self.dtype)
        foot = np.zeros((images, p.groups, p.group_in, *part.foot_shape), kind)
        for number, tap in enumerate(np.ndindex(p.kernel)):
            foot[tap_places(p, part, tap)] += windows[:, :, :, number]
        return foot.reshape(images, p.in_channels, *part.foot_shape)

    def weight_block(self, foot: Array, y: Array, part: Block) -> Array:
        """The outputs times the transposed columns, summed over the images."""
        products = _long_product(self._matrix(y), self._columns(foot, part).swapaxes(2, 3))
        total: Array = np.add.reduce(products, axis=0)
        return total

    def _matrix(self, y: Array) -> Array:
        """Outputs (n, K, *shape) as (n, groups, K / groups, places)."""
        return y.reshape(len(y), self.problem.groups, self.problem.group_out, math.prod(y.shape[2:]))

    def _columns(self, foot: Array, part: Block) -> Array:
        """The windows of a footprint as (n, groups, Q, places), copied along memory."""
        p = self.problem
        images, _, *strides = foot.strides
        windows = as_strided(
            foot,
            (len(foot), p.in_channels, *p.kernel, *part.shape),
            (
                images,
                foot.strides[1],
                *(t * d for t, d in zip(strides[-p.spatial :], part.spacing, strict=True)),
                *(t * s for t, s in zip(strides[-p.spatial :], p.stride, strict=True)),
            ),
            writeable=False,
        )
        places, q = math.prod(part.shape), p.group_in * p.taps
        if p.layout == "channels_first":
            return windows.reshape(len(foot), p.groups, q, places)
        # (n, places, groups, R, C) in memory, seen as (n, groups, Q, places).
        d = p.spatial
        windows = windows.reshape(len(foot), p.groups, p.group_in, *p.kernel, *part.shape)
        order = (0, *range(3 + d, 3 + 2 * d), 1, *range(3, 3 + d), 2)
        return windows.transpose(order).reshape(len(foot), places, p.groups, q).transpose(0, 2, 3, 1)


def _long_product(a: Array, b: Array) -> Array:
    """A matrix product whose sums, where they are long, are taken in parts and added up in a wider type.

    Some kernels of BLAS add numbers one after the other, and the error grows with their number.
    """
    length, most = a.shape[-1], longest_sum(a.dtype)
    if length <= most:
        product: Array = np.matmul(a, b)
        return product
    total = np.zeros((*b.shape[:-2], a.shape[-2], b.shape[-1]), wide_dtype(np.result_type(a, b)))
    for start in range(0, length, most):
        total += np.matmul(a[..., start : start + most], b[..., start : start + most, :])
    return total.astype(np.result_type(a, b), copy=False)


def tap_places(problem: ConvProblem, part: Block, tap: tuple[int, ...]) -> tuple[Any, ...]:
    """The index of the places of a footprint that one tap of the kernel reads, for all outputs of the block."""
    return last_axes(
        slice(t * d, t * d + (n - 1) * s + 1, s)
        for t, d, n, s in zip(tap, part.spacing, part.shape, problem.stride, strict=True)
    )
