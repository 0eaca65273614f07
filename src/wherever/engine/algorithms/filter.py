"""Filter: a kernel for every channel, on images whose places lie side by side; through a generated kernel."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.each_channel import PART_BYTES, PIECES, EachChannel
from wherever.engine.algorithms.forward import as_forward
from wherever.engine.algorithms.protocol import Prepared
from wherever.engine.blocks import Block, box, cut, fill_footprint
from wherever.engine.copies import assign, readable
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.filter import filter_rows
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem


class Filter(EachChannel):
    """Images of few channels, or with channels first: lanes are neighbouring places of a row."""

    name = "filter"

    def refuses_forward(self, problem: ConvProblem) -> str | None:
        """Strides, more than two dimensions, kernels of very many rows."""
        if set(problem.stride) != {1}:
            return "neighbouring places of a result are neighbours in the image at stride 1 only"
        if problem.spatial > 2:
            return f"filters signals and images, not {problem.spatial} dimensions"
        if problem.spatial == 2 and problem.kernel[0] > 63:
            return f"its kernel would hold {problem.kernel[0]} rows at once"
        if problem.spatial == 2 and problem.dilation[0] > 1 and problem.kernel[0] > 1:
            return "has no register tile for rows that lie apart"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """Multiply-adds, most of them with a load of their own; and copies, where channels lie last."""
        problem = as_forward(problem)
        size = working_dtype(problem.dtype).itemsize
        down, across = _tile(problem)
        high = problem.kernel[0] if problem.spatial == 2 else 1
        loads = (down + high - 1) / (down * high) + 1 / across  # for each multiply-add
        lanes = host().lanes(working_dtype(problem.dtype).name)
        width = problem.output[-1]
        waste = -(-width // lanes) * lanes / width
        sums = problem.multiply_adds * waste * max(1.2, loads * 1.5) / machine.multiply_adds
        pixels = problem.batch * math.prod(problem.output) * (problem.in_channels + problem.out_channels)
        copied = 3 if problem.layout == "channels_last" and problem.out_channels > 1 else 1
        return (sums + copied * pixels / machine.copy) * size / 4 + 60 * machine.call

    def prepared(self, problem: ConvProblem, operand: Array, bias: Array | None) -> Prepared:
        """Weights as they are."""
        return FilterPrepared(problem, operand, bias)


def _tile(problem: ConvProblem) -> tuple[int, int]:
    """(rows, vectors) of the register tile of `filter_rows`: sums, a row of x and a weight fit the registers."""
    registers = host().registers
    if problem.spatial == 1 or problem.kernel[0] == 1:
        return 1, min(8, registers - 4)
    return (6, 4) if registers >= 32 else (4, 2)


class FilterPrepared:
    """Weights as (K, rows, columns). Parts that look over no border are computed where they lie, others from a copy."""

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        self.problem = problem
        self.dtype: np.dtype[Any] = working_dtype(problem.dtype)
        self.bias = np.zeros(problem.out_channels, self.dtype)
        if bias is not None:
            self.bias[:] = bias
        self.weight = np.ascontiguousarray(operand, self.dtype)
        down, across = _tile(problem)
        high = problem.kernel[0] if problem.spatial == 2 else 1
        self.kernel = compiled(
            filter_rows, dtype=self.dtype.name, high=high, wide=problem.kernel[-1], down=down, across=across
        )
        self._parts: dict[tuple[bool, int], list[Block]] = {}

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        p = self.problem
        source, result = channels_first(p, source), channels_first(p, out)
        in_place = readable(source, self.dtype, -1)
        key = (in_place, threads)
        if key not in self._parts:
            self._parts[key] = list(self._cut(in_place, threads))
        run.for_each(lambda part: self._part(source, result, part), self._parts[key], threads)

    def _cut(self, in_place: bool, threads: int) -> list[Block]:
        p = self.problem
        size = self.dtype.itemsize
        places = max(1, PART_BYTES // (size * max(p.in_channels, p.out_channels)))
        total = p.batch * math.prod(p.output)
        pieces = threads * PIECES if threads > 1 else 1
        if not in_place or total <= places:
            return list(cut(p, max(1, min(places, -(-total // pieces)))))
        # Along each dimension: before the first output that sees x alone, after the last, and what lies between.
        spans = []
        for n, m, e, s, (before, _) in zip(p.size, p.output, p.extent, p.stride, p.padding, strict=True):
            low = min(m, -(-max(before, 0) // s))
            high = max(low, min(m, (n - e + before) // s + 1))
            spans.append([(a, b) for a, b in ((0, low), (low, high), (high, m)) if a < b])
        blocks = []
        for image in range(p.batch):
            for choice in itertools.product(*spans):
                start, stop = (tuple(pair[i] for pair in choice) for i in (0, 1))
                rows = stop[0] - start[0]
                step = -(-rows // min(rows, pieces))
                for first in range(start[0], stop[0], step):
                    shape = (min(step, stop[0] - first), *(b - a for a, b in choice[1:]))
                    blocks.append(box(p, slice(image, image + 1), (first, *start[1:]), shape))
        return blocks

    def _part(self, source: Array, result: Array, part: Block) -> None:
        p = self.problem
        x, target = source[part.images], result[part.outputs]
        inside = all(a >= 0 and a + n <= m for a, n, m in zip(part.foot_start, part.foot_shape, p.size, strict=True))
        if inside and readable(source, self.dtype, -1) and part.spacing == p.dilation:
            places = (slice(a, a + n) for a, n in zip(part.foot_start, part.foot_shape, strict=True))
            foot = x[(slice(None), slice(None), *places)]
        else:
            foot = self._buffer("foot", len(x), p.in_channels, part.foot_shape)
            fill_footprint(p, x, part, foot)
        if readable(target, self.dtype, -1):
            self._compute(foot, target, part)
        else:
            buffer = self._buffer("result", len(x), p.out_channels, part.shape)
            self._compute(foot, buffer, part)
            assign(target, buffer)

    def _buffer(self, purpose: str, images: int, channels: int, shape: tuple[int, ...]) -> Array:
        """Memory for (images, channels, *shape)."""
        (flat,) = run.workspace(purpose, images * channels * math.prod(shape), dtype=self.dtype)
        return flat.reshape(images, channels, *shape)

    def _compute(self, foot: Array, target: Array, part: Block) -> None:
        """One call for each image."""
        p, size = self.problem, self.dtype.itemsize
        row = 2 if p.spatial == 2 else -1
        rows = part.shape[0] if p.spatial == 2 else 1
        pitches = [s // size for s in (foot.strides[1], foot.strides[row], target.strides[1], target.strides[row])]
        sizes = np.array([p.groups, p.group_out, rows, part.shape[-1], *pitches, part.spacing[-1]], np.int64)
        for image, result in zip(foot, target, strict=True):
            self.kernel(
                image.ctypes.data, self.weight.ctypes.data, result.ctypes.data, self.bias.ctypes.data, sizes.ctypes.data
            )
