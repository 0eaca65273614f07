"""Nested Winograd: large kernels of channels by themselves as grids of 3x3 kernels, on tiles that these share."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.depthwise import DepthwisePrepared
from wherever.engine.algorithms.each_channel import PART_BYTES, PIECES, EachChannel
from wherever.engine.algorithms.forward import as_forward
from wherever.engine.algorithms.protocol import Prepared
from wherever.engine.blocks import places
from wherever.engine.copies import assign, readable
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.cook_toom import cook_toom
from wherever.engine.kernels.entry import address
from wherever.engine.kernels.nested_winograd import OUTSIDE, POINTS, SIDE, nested_winograd
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

# Of the work on one vector of channels, in multiply-adds: to transform a tile, and back; and how much longer than its
# multiply-adds a product takes.
_FORTH, _BACK, _PRODUCTS = 130, 95, 0.95


class NestedWinograd(EachChannel):
    """A kernel of 3A x 3B taps as A x B kernels of 3x3, each by Winograd's F(3x3, 3x3).

    Small kernels lie as far apart as tiles, so that a transformed tile of x serves all of them, and their products are
    added before they are transformed back: 25 A B multiplications for 9 outputs, instead of 81 A B.
    """

    name = "nested_winograd"
    sums_directly = False

    def refuses_forward(self, problem: ConvProblem) -> str | None:
        """Strides, dilation, small kernels, other than images, several kernels for a channel."""
        if problem.group_out != 1:
            return "has one kernel for each channel"
        if problem.spatial != 2:
            return f"has tiles of 2 dimensions, not {problem.spatial}"
        if set(problem.stride) != {1} or set(problem.dilation) != {1}:
            return "tiles share their transforms where stride and dilation are 1"
        if min(problem.kernel) <= SIDE:
            return f"a kernel of {'x'.join(map(str, problem.kernel))} is no grid of smaller ones"
        if not isinstance(problem.boundary, str) and not np.isfinite(problem.boundary):
            return "transforms no boundary that is not finite"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """Transforms of all tiles, products at all points, and copies, where channels lie first."""
        p = as_forward(problem)
        dtype = working_dtype(p.dtype)
        lanes = host().lanes(dtype.name)
        tiles, small = _counts(p.output), _counts(p.kernel)
        seen = math.prod(n + k - 1 for n, k in zip(tiles, small, strict=True))
        products = _PRODUCTS * POINTS**2 * math.prod(small)
        steps = seen * _FORTH + math.prod(tiles) * (products + _BACK)
        vectors = -(-p.in_channels // lanes)
        seconds = p.batch * vectors * lanes * steps / machine.multiply_adds
        if p.layout == "channels_first" and p.in_channels > 1:
            seconds += 2 * p.batch * p.in_channels * (math.prod(p.size) + math.prod(p.output)) / machine.copy
        return seconds * dtype.itemsize / 4 + 5 * machine.call

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """Transforms of all small kernels, as products of matrices."""
        return super().preparation(problem, machine) * 2 * POINTS**2 / SIDE**2

    def prepared(self, problem: ConvProblem, operand: Array, bias: Array | None) -> Prepared:
        """Small kernels, transformed."""
        return NestedWinogradPrepared(problem, operand, bias)


def _counts(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """How many tiles, or small kernels, there are in each dimension."""
    return tuple(-(-n // SIDE) for n in sizes)


class NestedWinogradPrepared:
    """Transformed kernels as (vectors of channels, points, rows and columns of small kernels, lanes)."""

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        self.problem = p = problem
        self.dtype: np.dtype[Any] = working_dtype(p.dtype)
        self.operand, self.given_bias = operand, bias
        self.lanes = lanes = host().lanes(self.dtype.name)
        self.filled = filled = -(-p.in_channels // lanes) * lanes
        self.bias = np.zeros(filled, self.dtype)
        if bias is not None:
            self.bias[: p.in_channels] = bias
        self.filler = np.full(filled, 0 if isinstance(p.boundary, str) else p.boundary, self.dtype)
        self.tiles, self.small = _counts(p.output), _counts(p.kernel)
        self.weight = self._transformed()
        columns, most = self.tiles[1], max(1, host().registers - self.small[1] - 2)
        across = -(-columns // -(-columns // most)) if columns else 1
        self.pitch = columns + self.small[1] - 1  # tiles of x in a row
        self.kernel = compiled(
            nested_winograd,
            dtype=self.dtype.name,
            down=self.small[0],
            wide=self.small[1],
            across=across,
            tail=p.in_channels % lanes > 0,
        )
        self._works: dict[tuple[Any, ...], _Work] = {}

    def _transformed(self) -> Array:
        p, (down, wide) = self.problem, self.small
        w = np.zeros((self.filled, SIDE * down, SIDE * wide))
        w[: p.in_channels, : p.kernel[0], : p.kernel[1]] = self.operand.reshape(-1, *p.kernel)
        matrix = np.array(cook_toom(SIDE, SIDE)[1], float)
        blocks = w.reshape(-1, down, SIDE, wide, SIDE).transpose(0, 1, 3, 2, 4).reshape(-1, SIDE**2)
        with np.errstate(all="ignore"):  # weights that are not finite are data: results are then summed directly
            u = (blocks @ np.kron(matrix, matrix).T).astype(self.dtype)
        u = u.reshape(-1, self.lanes, down, wide, POINTS**2)
        return np.ascontiguousarray(u.transpose(0, 4, 2, 3, 1))

    @functools.cached_property
    def direct(self) -> DepthwisePrepared:
        """Direct summation of what a transform would spoil."""
        return DepthwisePrepared(self.problem, self.operand, self.given_bias)

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        if not out.size:
            return
        x, y = channels_first(self.problem, source), channels_first(self.problem, out)
        if readable(x, self.dtype, 1) and readable(y, self.dtype, 1):
            finite = self._computed(x, y, 0, threads)
        else:
            found: list[bool] = []
            run.for_each(lambda some: found.append(self._turned(x, y, *some)), list(self._pieces()), threads)
            finite = all(found)
        if not finite:
            self.direct.run(source, out, threads)

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """Images, and whole vectors of channels, that are copied to lie last."""
        p = self.problem
        one = (math.prod(p.size) + math.prod(p.output)) * self.dtype.itemsize
        most = max(self.lanes, PART_BYTES // one // self.lanes * self.lanes)
        for image, channel in itertools.product(range(p.batch), range(0, p.in_channels, most)):
            yield slice(image, image + 1), slice(channel, min(channel + most, p.in_channels))

    def _turned(self, x: Array, y: Array, images: slice, channels: slice) -> bool:
        """Compute some channels of some images from copies whose channels lie last."""
        p, count = self.problem, channels.stop - channels.start
        sizes = [math.prod(shape) * count for shape in (p.size, p.output)]
        foot, result = (
            np.moveaxis(flat.reshape(1, *shape, count), -1, 1)
            for flat, shape in zip(run.workspace("turned", *sizes, dtype=self.dtype), (p.size, p.output), strict=True)
        )
        assign(foot, x[images, channels])
        finite = self._computed(foot, result, channels.start, 1)
        assign(y[images, channels], result)
        return finite

    def _computed(self, x: Array, y: Array, channel: int, threads: int) -> bool:
        """Compute images whose channels lie last, from a channel on; return whether all results are finite."""
        key = (x.shape, x.strides, y.strides, threads)
        work = self._works.get(key)
        if work is None:
            if len(self._works) > 20:  # of ever other memory orders
                self._works.clear()
            work = self._works[key] = _Work(self, x, y, threads)
        finite: list[bool] = []
        run.for_each(lambda sizes: finite.append(self._share(x, y, channel, work, sizes)), work.shares, threads)
        return all(finite)

    def _share(self, x: Array, y: Array, channel: int, work: _Work, sizes: npt.NDArray[np.int64]) -> bool:
        """One call of the kernel."""
        places, size = POINTS**2 * self.pitch * self.lanes, self.dtype.itemsize
        v, m, odd = run.workspace("nested", self.small[0] * places, places, self.lanes, dtype=self.dtype)
        u = address(self.weight) + channel * POINTS**2 * math.prod(self.small) * size
        filler, bias = (address(a) + channel * size for a in (self.filler, self.bias))
        slots = np.empty(self.small[0], np.int64)
        self.kernel(x, filler, u, bias, y, v, m, odd, *work.tables, slots, sizes)
        return bool(odd.dot(odd) == 0)  # zeros, or NaN


class _Work:
    """The tables for arrays (N, C, *S) of one memory order, and the sizes of each call, for so many threads."""

    def __init__(self, prepared: NestedWinogradPrepared, x: Array, y: Array, threads: int) -> None:
        size, (rows, columns) = prepared.dtype.itemsize, prepared.tiles
        x_image, _, *x_steps = (stride // size for stride in x.strides)
        y_image, _, *y_steps = (stride // size for stride in y.strides)
        tables: list[npt.NDArray[Any]] = []
        for steps, seen in ((x_steps, True), (y_steps, False)):
            found = [_along(prepared, dim, step, seen=seen) for dim, step in enumerate(steps)]
            tables += [distances for distances, _ in found] + [inside for _, inside in found]
        self.tables = [np.ascontiguousarray(table, np.int64) for table in tables]
        count = threads * PIECES if threads > 1 else 1
        channels = run.pieces(x.shape[1], prepared.lanes, count)
        images = run.pieces(len(x), 1, -(-count // len(channels)))
        some = run.pieces(rows, 1, -(-count // (len(channels) * len(images))))
        self.shares = [
            np.array(
                [
                    *(n.start, n.stop, r.start, r.stop, columns, c.start, c.stop),
                    *(x_image, y_image, x_steps[1], y_steps[1], prepared.pitch),
                ],
                np.int64,
            )
            for n, c, r in itertools.product(images, channels, some)
        ]


def _along(
    prepared: NestedWinogradPrepared, dim: int, step: int, *, seen: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """How far the places of a dimension lie from the first, of x (``seen``) or y; and which tiles are wholly there."""
    p, tiles, small = prepared.problem, prepared.tiles[dim], prepared.small[dim]
    wide = POINTS if seen else SIDE
    if seen:
        tiles += small - 1
        shown = places(-p.padding[dim][0], p.output[dim] + p.kernel[dim] - 1, p.size[dim], p.boundary)
    else:
        shown = np.arange(p.output[dim])
    there = np.full(tiles * SIDE + wide - SIDE, -1)
    there[: len(shown)] = shown
    tile = there[np.arange(tiles)[:, None] * SIDE + np.arange(wide)]
    whole: npt.NDArray[np.bool_] = (tile >= 0).all(axis=1) & (np.diff(tile, axis=1) == 1).all(axis=1)
    return np.where(there < 0, OUTSIDE, there * step), whole
