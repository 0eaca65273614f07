"""Blockwise: the three directions of a convolution, block after block, for algorithms that sum directly."""

from __future__ import annotations

import abc
import functools
import itertools
from typing import Any

import numpy as np

from wherever.engine import run
from wherever.engine.blocks import Block, cut, gather, scatter
from wherever.engine.machine import wide_dtype, working_dtype
from wherever.problem import Array, ConvProblem


class Blockwise(abc.ABC):
    """A prepared problem that is computed in blocks of output; a subclass says how one block is.

    Parameters
    ----------
    problem : ConvProblem
    operand, bias
        As for `Algorithm.prepare`.
    places : int
        About how many outputs one block has.
    parallel : bool
        Whether blocks run on threads here; False where the work of one block uses threads of its own.
    """

    def __init__(
        self, problem: ConvProblem, operand: Array, bias: Array | None, *, places: int, parallel: bool
    ) -> None:
        self.problem = problem
        self.dtype: np.dtype[Any] = working_dtype(problem.dtype)
        self.bias = per_channel(problem, bias, self.dtype)
        self.places = places
        self.parallel = parallel
        if problem.direction == "weight_gradient":
            self.operand = channels_first(problem, operand)
        else:
            self.weight = self.pack(operand.astype(self.dtype, copy=False))

    @functools.cached_property
    def parts(self) -> list[Block]:
        """The blocks."""
        return list(cut(self.problem, self.places))

    @abc.abstractmethod
    def pack(self, w: Array) -> Array:
        """The weights (K, C / groups, *R) in the order in which blocks use them."""

    @abc.abstractmethod
    def forward_block(self, foot: Array, part: Block) -> Array:
        """The outputs (n, K, *shape) of a block from its footprint (n, C, *foot_shape), of the working dtype."""

    # The other directions: an algorithm that refuses them has no blocks of them.

    def transpose_block(self, y: Array, part: Block) -> Array:
        """What the outputs (n, K, *shape) send back to the footprint (n, C, *foot_shape)."""
        raise NotImplementedError

    def weight_block(self, foot: Array, y: Array, part: Block) -> Array:
        """What a block adds to the gradient by the weights, as packed."""
        raise NotImplementedError

    def unpack(self, w: Array) -> Array:
        """The inverse of `pack`."""
        raise NotImplementedError

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        problem = self.problem
        source = channels_first(problem, source)
        parts = self.parts
        workers = threads if self.parallel else 1
        if problem.direction == "forward":
            result = channels_first(problem, out)

            def forward(part: Block) -> None:
                y = self.forward_block(gather(problem, source, part, self.dtype), part)
                store(result[part.outputs], y, self.bias)

            run.for_each(forward, parts, workers)
        elif problem.direction == "transpose":
            result = channels_first(problem, out)
            sums = result if out.dtype == self.dtype else np.zeros(result.shape, self.dtype)
            sums[...] = 0

            def transpose(images: list[Block]) -> None:
                for part in images:
                    y = source[part.outputs].astype(self.dtype, copy=False)
                    scatter(problem, sums, part, self.transpose_block(y, part))

            # Footprints overlap: one thread for the blocks of an image, in order.
            by_image = [list(g) for _, g in itertools.groupby(parts, key=lambda part: part.images.start)]
            run.for_each(transpose, by_image, workers)
            if sums is not result or self.bias is not None:
                store(result, sums, self.bias)
        else:
            # As many blocks as there may be: their sum is wide.
            total = self.pack(np.zeros(problem.w_shape, self.dtype)).astype(wide_dtype(self.dtype))

            def add(part: Block) -> None:
                y = self.operand[part.outputs].astype(self.dtype, copy=False)
                total[...] += self.weight_block(gather(problem, source, part, self.dtype), y, part)

            run.for_each(add, parts, 1)  # one sum, in one order
            store(out, self.unpack(total), None)


def channels_first(problem: ConvProblem, a: Array) -> Array:
    """A view with the channels behind the batch, whatever the layout."""
    if problem.layout == "channels_first":
        return a
    return a.transpose(0, a.ndim - 1, *range(1, a.ndim - 1))  # as np.moveaxis, at a tenth of its cost


def per_channel(problem: ConvProblem, bias: Array | None, dtype: np.dtype[Any]) -> Array | None:
    """The bias as an array that broadcasts over (N, channels, *S)."""
    return None if bias is None else bias.astype(dtype).reshape(-1, *[1] * problem.spatial)


def store(target: Array, values: Array, bias: Array | None) -> None:
    """Write ``values + bias`` to ``target``; sums of integers come back modulo the range of their type."""
    with np.errstate(all="ignore"):  # what overflows becomes infinite: data, no error
        if bias is not None:
            values = np.add(values, bias, out=values)
        if target.dtype.kind in "iu" and values.dtype.kind == "f":
            values = values.astype(np.int64)
        elif target.dtype.kind == "b":
            values = values != 0
        if values is not target:
            target[...] = values
