"""Trimmed: small images under large kernels, without the taps that never meet the image."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.forward import finite
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.phases import best_of, willing
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import last_axes
from wherever.engine.copies import assign
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem


@functools.lru_cache(maxsize=1024)
def _met(p: ConvProblem) -> tuple[slice, ...] | None:
    """In each dimension the taps from the first to the last that meets the image at any output; None if none does."""
    found = []
    for n, m, r, s, d, (before, _) in zip(p.size, p.output, p.kernel, p.stride, p.dilation, p.padding, strict=True):
        seen = np.arange(r)[:, None] * d + np.array([0, (m - 1) * s]) - before  # at the first and at the last output
        # Outputs lie s apart: a tap may jump over a small image.
        first = -(-np.maximum(-seen[:, 0], 0) // s) * s + seen[:, 0]
        taps = np.flatnonzero((first < n) & (first <= seen[:, 1]))
        if not len(taps):
            return None
        found.append(slice(int(taps[0]), int(taps[-1]) + 1))
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def _smaller(p: ConvProblem) -> ConvProblem:
    """The problem of these taps: the same outputs of the same image."""
    taps = _met(p)
    assert taps is not None
    kernel = tuple(tap.stop - tap.start for tap in taps)
    padding = []
    axes = zip(p.size, p.output, kernel, taps, p.stride, p.dilation, p.padding, strict=True)
    for n, m, r, tap, s, d, (before, _) in axes:
        left = before - tap.start * d
        padding.append((left, (m - 1) * s + (r - 1) * d + 1 - n - left))
    return dataclasses.replace(p, kernel=kernel, padding=tuple(padding))


class Trimmed(Algorithm):
    """The other algorithms, on the taps that meet the image.

    The last layers of a network see images of one or two places: of a 3x3 kernel with a border of zeros one tap of nine
    meets a single place, and the others need be neither packed nor multiplied. Where their weights, or the gradients
    that they meet, are not finite, the zeros outside make NaN of them, as everywhere.

    Parameters
    ----------
    name : str
    algorithms : sequence of Algorithm
        That may compute the smaller problem.
    """

    def __init__(self, name: str, algorithms: tuple[Algorithm, ...]) -> None:
        self.name = name
        self.algorithms = algorithms
        self.sums_directly = all(algorithm.sums_directly for algorithm in algorithms)

    def refuses(self, problem: ConvProblem) -> str | None:
        """Kernels of which every tap at the ends meets the image, and images that continue beyond their border."""
        if isinstance(problem.boundary, str) or problem.boundary != 0:
            return "leaves out zeros alone, and the image continues"
        if working_dtype(problem.dtype).char not in "fd":
            return f"is for float32 and float64, not {problem.dtype}"
        if not problem.multiply_adds or 0 in problem.size:
            return "there is nothing to sum"
        taps = _met(problem)
        if taps is None:
            return "no tap meets the image"
        if all(tap == slice(0, r) for tap, r in zip(taps, problem.kernel, strict=True)):
            return "the outermost taps meet the image"
        if not willing(self.algorithms, _smaller(problem)):
            return "no algorithm computes what is left"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """What is left; and zeros for the rest of a gradient."""
        left = best_of(self.algorithms, _smaller(problem))[0]
        gradient = problem.direction == "weight_gradient"
        written = math.prod(problem.w_shape) / machine.copy * working_dtype(problem.dtype).itemsize / 4
        return left + (written if gradient else 0.0) + 5 * machine.call

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """That of what is left; of all weights it is asked whether they are finite."""
        smaller = _smaller(problem)
        prepared = best_of(self.algorithms, smaller)[1].preparation(smaller, machine)
        if problem.direction != "forward":
            return prepared
        return prepared + math.prod(problem.w_shape) / machine.stream * working_dtype(problem.dtype).itemsize / 4

    def workspace(self, problem: ConvProblem) -> int:
        """That of what is left."""
        smaller = _smaller(problem)
        return best_of(self.algorithms, smaller)[1].workspace(smaller)

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Prepare the weights of the taps that are left."""
        if problem.direction == "forward" and not finite(operand):
            return Im2colPrepared(problem, operand, bias)  # an infinite weight meets the zeros outside
        taps, smaller = _met(problem), _smaller(problem)
        assert taps is not None
        algorithm = best_of(self.algorithms, smaller)[1]
        if problem.direction == "weight_gradient":
            return _Gradient(problem, operand, taps, algorithm.prepare(smaller, operand))
        return algorithm.prepare(smaller, _taken(operand, taps), bias)


def _taken(w: Array, taps: tuple[slice, ...]) -> Array:
    """Some taps of all weights; several that lie side by side in memory are first brought apart, which is faster."""
    if not w.flags.c_contiguous or math.prod(tap.stop - tap.start for tap in taps) == 1:
        some: Array = w[last_axes(taps)]
        return some
    copy = run.unwritten(w.size, w.dtype).reshape(*w.shape[2:], *w.shape[:2])
    apart = copy.transpose(-2, -1, *range(w.ndim - 2))
    assign(apart, w)
    some = apart[last_axes(taps)]
    return some


class _Gradient:
    """The gradient by the taps that meet the image; that by the others is zero times that of the outputs."""

    def __init__(self, problem: ConvProblem, operand: Array, taps: tuple[slice, ...], prepared: Prepared) -> None:
        self.problem, self.operand, self.taps, self.prepared = problem, operand, taps, prepared

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        p, y = self.problem, channels_first(self.problem, self.operand)
        with np.errstate(all="ignore"):
            nothing = (y * 0).sum((0, *range(2, y.ndim)))  # or NaN
        out[...] = nothing.reshape(-1, *(1,) * (p.spatial + 1))
        self.prepared.run(source, out[last_axes(self.taps)], threads)
