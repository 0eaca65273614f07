"""Places: direct summation by a generated kernel whose lanes are neighbouring places, on channels-first blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from wherever.engine import run
from wherever.engine.algorithms.blockwise import Blockwise
from wherever.engine.algorithms.forward import as_forward, forward_weights, refuses_sums
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import Block, footprint, last_axes, traffic
from wherever.engine.copies import assign
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.places import places
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

# Of a block's input, and of its result: the input is read once for every few output channels, from the cache if it can.
_BLOCK_BYTES = 1 << 19

_TURNED = 10  # times a copy along memory: to bring channels first that lie last


class Places(Algorithm):
    """Direct summation at the speed of the machine's multiply-add units."""

    name = "places"
    sums_directly = True

    def refuses(self, problem: ConvProblem) -> str | None:
        """The gradient by the weights, most transposes, and what is not a real floating-point number."""
        return refuses_sums(problem)

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The multiply-adds of whole tiles, and the copies to and from channels-first blocks."""
        problem = as_forward(problem)
        dtype = working_dtype(problem.dtype)
        rows, vectors = tile(problem)
        padded = -(-problem.group_out // rows) * rows / max(problem.group_out, 1)
        # Each vector of places is loaded once for all rows (from two cache lines), each weight once for all vectors.
        load = max(1.0, (2 * vectors + rows) / (rows * vectors))
        # What is left of the places behind the last whole tile is summed a vector at a time, the last one in part.
        lanes, row = host().lanes(dtype.name), math.prod(problem.output) * _waste(problem)
        padded *= -(-row // lanes) * lanes / row
        sums = problem.multiply_adds * _waste(problem) * padded * load * dtype.itemsize / 4 / machine.multiply_adds
        run = problem.output[-1] if problem.layout == "channels_first" else problem.in_channels
        blocks, _, inputs = traffic(problem, _places(problem))
        outputs = problem.batch * math.prod(problem.output) * problem.out_channels
        phases = math.prod(problem.stride)  # each copied by itself, every so many places of a row
        moved = (inputs * min(phases, 4) + outputs) / (machine.copy * max(run, 1) / (run + 12)) * dtype.itemsize / 4
        if problem.layout == "channels_last" and problem.in_channels > 1:
            moved += _TURNED * inputs / machine.copy * dtype.itemsize / 4
        return sums + moved + blocks * (20 + 2 * phases) * machine.call

    def workspace(self, problem: ConvProblem) -> int:
        """Input and result of one block."""
        problem = as_forward(problem)
        places = min(_places(problem), math.prod(problem.output)) * _waste(problem)
        _, inputs, _ = traffic(problem, _places(problem))
        return int((2 * inputs + places * problem.out_channels) * working_dtype(problem.dtype).itemsize)

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Pack the weights by blocks of output channels."""
        if problem.direction == "transpose" and not np.isfinite(operand).all():
            # An infinite weight would meet the zeros outside, and they are not there.
            return Im2colPrepared(problem, operand, bias)
        return PlacesPrepared(as_forward(problem), forward_weights(problem, operand), bias)


def tile(problem: ConvProblem) -> tuple[int, int]:
    """(output channels, vectors of places) of the register tile that wastes least.

    Sums, one vector of each place and a weight must fit the registers together: rows * vectors + vectors + 1.
    """
    registers = host().registers
    choices = [(rows, min(8, (registers - 2) // (rows + 1))) for rows in (1, 2, 3, 4, 6, 8)]

    def cost(choice: tuple[int, int]) -> float:
        rows, vectors = choice
        padded = -(-max(problem.group_out, 1) // rows) * rows
        return padded * (1 + 0.9 / rows + 0.6 / vectors)

    return min(choices, key=cost)


def _places(problem: ConvProblem) -> int:
    channels = max(1, problem.in_channels * math.prod(problem.stride), problem.out_channels)
    return max(64, int(_BLOCK_BYTES / (working_dtype(problem.dtype).itemsize * channels * _waste(problem))))


def _waste(problem: ConvProblem) -> float:
    """How many places are computed for each that is wanted: those between the ends of rows and the next rows."""
    shape = tuple(max(n, 1) for n in problem.output)
    widths = [f / s for f, s in zip(footprint(problem, shape), problem.stride, strict=True)]
    return math.prod(max(w / n, 1) for w, n in zip(widths[1:], shape[1:], strict=True))


@dataclass(frozen=True)
class _Shape:
    """What the kernel is called with for blocks of one shape: where each pair of channel and tap looks."""

    pitches: tuple[int, ...]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    places: int


class PlacesPrepared(Blockwise):
    """Weights as (groups, blocks of rows, pairs of channel and tap, rows)."""

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        self.rows, vectors = tile(problem)
        self.blocks = -(-problem.group_out // self.rows)
        dtype = working_dtype(problem.dtype).name
        self.kernel = compiled(places, dtype=dtype, rows=self.rows, vectors=vectors)
        self.shapes: dict[tuple[Any, ...], _Shape] = {}
        super().__init__(problem, operand, bias, places=_places(problem), parallel=True)

    def pack(self, w: Array) -> Array:
        """(K, C / groups, *R) to (groups, blocks, pairs, rows), with zeros behind the last channel."""
        p = self.problem
        memory = run.unwritten(p.groups * self.blocks * self.rows * p.group_in * p.taps, self.dtype)
        packed: Array = memory.reshape(p.groups, self.blocks, p.group_in * p.taps, self.rows)
        packed[:, -1, :, p.group_out - (self.blocks - 1) * self.rows :] = 0
        given = w.reshape(p.groups, p.group_out, p.group_in * p.taps)
        for group, block in np.ndindex(p.groups, self.blocks):
            some = given[group, block * self.rows : (block + 1) * self.rows]
            assign(packed[group, block, :, : len(some)], some.T)
        return packed

    def forward_block(self, foot: Array, part: Block) -> Array:
        """Let the kernel compute the block, image after image."""
        p = self.problem
        planes = self._planes(foot, part)
        key = (planes.shape, planes.strides, part.shape)
        shape = self.shapes.get(key)
        if shape is None:
            if len(self.shapes) > 100:  # of ever other memory orders of x
                self.shapes.clear()
            shape = self.shapes[key] = self._shape(planes, part)
        sums = np.empty((len(foot), p.groups, self.blocks * self.rows, shape.places), self.dtype)
        for image, result in zip(planes, sums, strict=True):
            self.kernel(
                image.ctypes.data,
                self.weight.ctypes.data,
                result.ctypes.data,
                shape.offsets.ctypes.data,
                shape.sizes.ctypes.data,
            )
        # Without the places between rows, and without the channels of zeros.
        size = self.dtype.itemsize
        steps = (*sums.strides[:3], *(pitch * size for pitch in shape.pitches))
        y = as_strided(sums, (len(foot), p.groups, p.group_out, *part.shape), steps)
        return y.reshape(len(foot), p.out_channels, *part.shape)

    def _planes(self, foot: Array, part: Block) -> Array:
        """The footprint as (n, C, *phases, *places): with a stride, each phase of it is a plane of its own."""
        p = self.problem
        if set(p.stride) == {1}:
            dense = foot[0, 0].flags.c_contiguous and foot.flags.aligned and foot.strides[1] % foot.itemsize == 0
            return foot if dense else np.ascontiguousarray(foot)
        places = tuple(-(-n // s) for n, s in zip(part.foot_shape, p.stride, strict=True))
        planes = np.zeros((len(foot), p.in_channels, *p.stride, *places), self.dtype)
        for phase in np.ndindex(p.stride):
            shown = foot[last_axes(slice(f, None, s) for f, s in zip(phase, p.stride, strict=True))]
            planes[last_axes((*phase, *(slice(0, n) for n in shown.shape[2:])))] = shown
        return planes

    def _shape(self, planes: Array, part: Block) -> _Shape:
        p, size = self.problem, self.dtype.itemsize
        steps = [stride // size for stride in planes.strides]
        pitches = tuple(steps[-p.spatial :])
        offsets = np.zeros((p.group_in, *p.kernel), np.int64)
        offsets += (np.arange(p.group_in) * steps[1]).reshape(-1, *[1] * p.spatial)
        strided = planes.ndim > 2 + p.spatial
        for dim, (r, s, d) in enumerate(zip(p.kernel, p.stride, part.spacing, strict=True)):
            tap = np.arange(r) * d
            look = tap // s * pitches[dim] + (tap % s * steps[2 + dim] if strided else 0)
            offsets += look.reshape(-1, *[1] * (p.spatial - 1 - dim))
        places = sum((n - 1) * pitch for n, pitch in zip(part.shape, pitches, strict=True)) + 1
        sizes = [p.groups, self.blocks, p.group_in * p.taps, places, p.group_in * steps[1]]
        return _Shape(pitches, offsets.ravel(), np.array(sizes, np.int64), places)
