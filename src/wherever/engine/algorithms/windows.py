"""Filter and depthwise: direct summation where every channel has kernels of its own, through generated kernels."""

from __future__ import annotations

import abc
import itertools
import math
from typing import Any

import numpy as np

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.forward import as_forward, forward_weights, refuses_direction
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.protocol import Prepared
from wherever.engine.blocks import Block, box, cut, fill_footprint
from wherever.engine.copies import assign
from wherever.engine.kernels.compile import compiled, host, unavailable
from wherever.engine.kernels.windows import rows_of_places
from wherever.engine.machine import Machine, longest_sum, working_dtype
from wherever.problem import Array, ConvProblem

_PART_BYTES = 2 << 20  # of the input of one part, where it is copied
_PIECES = 4  # for each thread


class Windows(abc.ABC):
    """What the two algorithms share."""

    name: str
    sums_directly = True

    def refuses(self, problem: ConvProblem) -> str | None:
        """Problems whose channels are summed, and what is not a real floating-point number."""
        refusal = unavailable() or refuses_direction(problem)
        if refusal is not None:
            return refusal
        forward = as_forward(problem)
        if forward.group_in != 1:
            return f"sums one channel by itself, not {forward.group_in} together"
        if working_dtype(problem.dtype).char not in "fd":
            return f"has kernels for float32 and float64, not {problem.dtype}"
        if problem.taps > longest_sum(working_dtype(problem.dtype)):
            return f"sums {problem.taps} terms in one go, which rounds too much"
        if not forward.multiply_adds:
            return "there is nothing to sum"
        return self.refuses_forward(forward)

    @abc.abstractmethod
    def refuses_forward(self, problem: ConvProblem) -> str | None:
        """What this one cannot do."""

    @abc.abstractmethod
    def prepared(self, problem: ConvProblem, operand: Array, bias: Array | None) -> Prepared:
        """A forward problem, prepared."""

    def workspace(self, problem: ConvProblem) -> int:
        """Input and result of one part, where they are copied."""
        problem = as_forward(problem)
        result = math.prod(problem.output) * problem.out_channels * working_dtype(problem.dtype).itemsize
        return 2 * _PART_BYTES + min(result, _PART_BYTES * 2 * max(1, problem.group_out))

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Lay the weights out for the kernel."""
        if problem.direction == "transpose" and not np.isfinite(operand).all():
            # An infinite weight would meet the zeros outside, and they are not there.
            return Im2colPrepared(problem, operand, bias)
        return self.prepared(as_forward(problem), forward_weights(problem, operand), bias)


class Filter(Windows):
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
    """(rows, vectors) of the register tile of `rows_of_places`: sums, a row of x and a weight fit the registers."""
    registers = host().registers
    if problem.spatial == 1 or problem.kernel[0] == 1:
        return 1, min(8, registers - 4)
    return (6, 4) if registers >= 32 else (4, 2)


class _WindowsPrepared(abc.ABC):
    """Parts of the problem: those that look over no border are computed where they lie, the others from a copy."""

    last: bool  # whether the channels must lie last in memory, or else the last dimension

    def __init__(self, problem: ConvProblem, bias: Array | None) -> None:
        self.problem = problem
        self.dtype: np.dtype[Any] = working_dtype(problem.dtype)
        lanes = host().lanes(self.dtype.name)
        self.bias = np.zeros(problem.out_channels + lanes, self.dtype)
        if bias is not None:
            self.bias[: problem.out_channels] = bias
        self._parts: dict[tuple[bool, int], list[Block]] = {}

    @abc.abstractmethod
    def compute(self, foot: Array, target: Array, part: Block) -> None:
        """Compute a part from its footprint (n, C, *foot_shape) into (n, K, *shape)."""

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        p = self.problem
        source, result = channels_first(p, source), channels_first(p, out)
        in_place = self._usable(source)
        key = (in_place, threads)
        if key not in self._parts:
            self._parts[key] = list(self._cut(in_place, threads))
        run.for_each(lambda part: self._part(source, result, part), self._parts[key], threads)

    def _cut(self, in_place: bool, threads: int) -> list[Block]:
        p = self.problem
        size = self.dtype.itemsize
        places = max(1, _PART_BYTES // (size * max(p.in_channels, p.out_channels)))
        total = p.batch * math.prod(p.output)
        pieces = threads * _PIECES if threads > 1 else 1
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
        if inside and self._usable(source) and part.spacing == p.dilation:
            places = (slice(a, a + n) for a, n in zip(part.foot_start, part.foot_shape, strict=True))
            foot = x[(slice(None), slice(None), *places)]
        else:
            foot = self._buffer("foot", len(x), p.in_channels, part.foot_shape)
            fill_footprint(p, x, part, foot)
        if self._usable(target):
            self.compute(foot, target, part)
        else:
            buffer = self._buffer("result", len(x), p.out_channels, part.shape)
            self.compute(foot, buffer, part)
            assign(target, buffer)

    def _usable(self, a: Array) -> bool:
        """Whether the kernel can work on an array (n, channels, *places) where it lies."""
        size, axis = self.dtype.itemsize, 1 if self.last else -1
        if a.dtype != self.dtype or not a.flags.aligned or any(stride % size for stride in a.strides):
            return False
        return a.strides[axis] == size or a.shape[axis] == 1

    def _buffer(self, purpose: str, images: int, channels: int, shape: tuple[int, ...]) -> Array:
        """Memory for (n, channels, *shape) in the order that the kernel wants."""
        (flat,) = run.workspace(purpose, images * channels * math.prod(shape), dtype=self.dtype)
        if self.last:
            return np.moveaxis(flat.reshape(images, *shape, channels), -1, 1)
        return flat.reshape(images, channels, *shape)


class FilterPrepared(_WindowsPrepared):
    """Weights as (K, rows, columns)."""

    last = False

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        super().__init__(problem, bias)
        self.weight = np.ascontiguousarray(operand, self.dtype)
        down, across = _tile(problem)
        self.high = problem.kernel[0] if problem.spatial == 2 else 1
        self.kernel = compiled(
            rows_of_places, dtype=self.dtype.name, high=self.high, wide=problem.kernel[-1], down=down, across=across
        )

    def compute(self, foot: Array, target: Array, part: Block) -> None:
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
