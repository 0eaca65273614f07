"""Phases: a transpose with a stride as one forward problem of stride 1 for each phase of the stride."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first, per_channel
from wherever.engine.algorithms.forward import finite
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import last_axes
from wherever.engine.copies import assign
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem


@dataclass(frozen=True)
class _AxisPhase:
    """One phase of one dimension: every so-many-th place of x, and the taps and outputs that reach it.

    The places ``start + u * stride`` receive, for t below ``count``, tap ``tap + t * step`` from output
    ``first + u - t * apart``.
    """

    start: int
    places: int
    tap: int
    step: int
    count: int
    first: int
    apart: int


def _axis_phases(p: ConvProblem, dim: int) -> list[_AxisPhase]:
    """The phases of a dimension: output i sends tap a to the place i * stride + a * dilation - before.

    So a place q receives the taps a whose a * dilation leaves the same remainder by the stride as q + before. With
    g = gcd(stride, dilation) these lie stride / g apart, if there are any, and their outputs dilation / g.
    """
    size, kernel, stride, dilation = p.size[dim], p.kernel[dim], p.stride[dim], p.dilation[dim]
    before = p.padding[dim][0]
    step, apart = stride // math.gcd(stride, dilation), dilation // math.gcd(stride, dilation)
    phases = []
    for start in range(min(stride, size)):
        places = -(-(size - start) // stride)
        tap = next((a for a in range(min(step, kernel)) if (start + before - a * dilation) % stride == 0), kernel)
        count = -(-(kernel - tap) // step)
        phases.append(_AxisPhase(start, places, tap, step, count, (start + before - tap * dilation) // stride, apart))
    return phases


@dataclass(frozen=True)
class _Phase:
    """The places of one phase, as slices of x; its taps, reversed, as an index of kernels; and its forward problem."""

    places: tuple[slice, ...]
    taps: tuple[Any, ...]
    problem: ConvProblem | None


@functools.lru_cache(maxsize=512)
def _phases(p: ConvProblem) -> tuple[_Phase, ...]:
    return tuple(_decomposed(p))


def _decomposed(p: ConvProblem) -> Iterator[_Phase]:
    for axes in itertools.product(*(_axis_phases(p, dim) for dim in range(p.spatial))):
        places = tuple(slice(axis.start, None, s) for axis, s in zip(axes, p.stride, strict=True))
        ends = [(axis.tap + (axis.count - 1) * axis.step, axis.tap - 1, -axis.step) for axis in axes]
        taps = last_axes(slice(first, None if last < 0 else last, step) for first, last, step in ends)
        problem = None
        if all(axis.count for axis in axes):
            padding = []
            for axis, n in zip(axes, p.output, strict=True):
                # Reversed, the taps begin with the last one, which looks at the earliest output.
                span = (axis.count - 1) * axis.apart
                padding.append((span - axis.first, axis.places + axis.first - n))
            problem = dataclasses.replace(
                p,
                in_channels=p.out_channels,
                out_channels=p.in_channels,
                size=p.output,
                kernel=tuple(axis.count for axis in axes),
                stride=(1,) * p.spatial,
                dilation=tuple(axis.apart if axis.count > 1 else 1 for axis in axes),
                padding=tuple(padding),
                boundary=0,
                direction="forward",
            )
        yield _Phase(places, taps, problem)


def willing(algorithms: tuple[Algorithm, ...], problem: ConvProblem) -> list[Algorithm]:
    """Those that do not refuse a problem."""
    return [algorithm for algorithm in algorithms if algorithm.refuses(problem) is None]


@functools.lru_cache(maxsize=1024)
def best_of(algorithms: tuple[Algorithm, ...], problem: ConvProblem) -> tuple[float, Algorithm]:
    """The cheapest of some algorithms for a problem, and what it costs."""
    machine = Machine()
    estimates = [(algorithm.estimate(problem, machine), algorithm) for algorithm in willing(algorithms, problem)]
    return min(estimates, key=lambda pair: pair[0])


class Phases(Algorithm):
    """A transpose with a stride, by the algorithms of the forward direction.

    Parameters
    ----------
    name : str
    algorithms : sequence of Algorithm
        That phases may be computed with.
    """

    def __init__(self, name: str, algorithms: tuple[Algorithm, ...]) -> None:
        self.name = name
        self.algorithms = algorithms
        self.sums_directly = all(algorithm.sums_directly for algorithm in algorithms)

    def refuses(self, problem: ConvProblem) -> str | None:
        """Other directions, stride 1, and images that continue beyond their border."""
        if problem.direction != "transpose":
            return "is for transposes"
        if set(problem.stride) == {1}:
            return "stride 1 has a single phase"
        if isinstance(problem.boundary, str):
            return f"has no phases of images continued by boundary={problem.boundary!r}"
        if working_dtype(problem.dtype).char not in "fdFD":
            return f"sums floating-point and complex numbers, not {problem.dtype}"
        if not problem.multiply_adds:
            return "there is nothing to sum"
        for phase in _phases(problem):
            if phase.problem is not None and not willing(self.algorithms, phase.problem):
                return "no algorithm computes one of its phases"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """All phases, and their places written between those of the others."""
        problems = [phase.problem for phase in _phases(problem) if phase.problem is not None]
        apart = 2 if problem.layout == "channels_first" else 0.5
        written = apart * math.prod(problem.x_shape) / machine.copy * working_dtype(problem.dtype).itemsize / 4
        return sum(best_of(self.algorithms, p)[0] for p in problems) + written + 5 * len(problems) * machine.call

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """A copy of all taps, and what each phase prepares of its own."""
        problems = [phase.problem for phase in _phases(problem) if phase.problem is not None]
        parts = sum(best_of(self.algorithms, p)[1].preparation(p, machine) for p in problems)
        return super().preparation(problem, machine) + parts

    def workspace(self, problem: ConvProblem) -> int:
        """That of one phase."""
        problems = [phase.problem for phase in _phases(problem) if phase.problem is not None]
        return max((best_of(self.algorithms, p)[1].workspace(p) for p in problems), default=0)

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Prepare the weights of every phase."""
        if not finite(operand):
            # An infinite weight would meet the zeros outside, and they are not there.
            return Im2colPrepared(problem, operand, bias)
        w = operand.astype(working_dtype(problem.dtype), copy=False)
        if problem.taps > 1 and w.strides[1] != w.itemsize:
            # Once in an order in which every phase finds its taps as whole matrices, the sums' channels last.
            copy = run.unwritten(w.size, w.dtype).reshape(*problem.kernel, *w.shape[:2])
            ordered = copy.transpose(-2, -1, *range(problem.spatial))
            assign(ordered, w)
            w = ordered
        # Channels of the result first.
        w = w.reshape(problem.groups, problem.group_out, problem.group_in, *problem.kernel).swapaxes(1, 2)
        prepared: list[tuple[_Phase, Prepared | None]] = []
        for phase in _phases(problem):
            part = phase.problem
            if part is None:
                prepared.append((phase, None))
                continue
            weights = w[phase.taps].reshape(part.w_shape)
            algorithm = best_of(self.algorithms, part)[1]
            prepared.append((phase, algorithm.prepare(part, weights, bias)))
        return PhasesPrepared(problem, prepared, bias)


class PhasesPrepared:
    """The phases, each prepared by itself; those without any tap are nothing but the bias."""

    def __init__(self, problem: ConvProblem, phases: list[tuple[_Phase, Prepared | None]], bias: Array | None) -> None:
        self.problem = problem
        self.phases = phases
        given = per_channel(problem, bias, working_dtype(problem.dtype))
        self.empty = 0 if given is None else given

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        last = self.problem.layout == "channels_last"
        for phase, prepared in self.phases:
            if prepared is None:
                channels_first(self.problem, out)[last_axes(phase.places)] = self.empty
            else:
                index: tuple[Any, ...] = (slice(None), *phase.places) if last else last_axes(phase.places)
                prepared.run(source, out[index], threads)
