"""Exact: integers multiplied through floating point, wherever every sum fits the mantissa."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from wherever.engine.algorithms.im2col import Im2col, Im2colPrepared
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.algorithms.taps import TapsPrepared
from wherever.engine.machine import Machine
from wherever.problem import Array, ConvProblem

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class ExactIntegers(Algorithm):
    """Integer convolution by matrix products in float32 or float64, chosen by a bound on what can occur.

    If every product and every partial sum is below 2^24 (2^53), each is an integer that float32 (float64) holds
    exactly, in any order of summation. The bound is taken from the numbers themselves; where it fails, sums are
    integers modulo the range of the result's type, as NumPy's own.
    """

    name = "exact_integers"
    sums_directly = True

    def refuses(self, problem: ConvProblem) -> str | None:
        """Anything but integers."""
        if problem.dtype.kind not in "iu":
            return f"only for integers, not {problem.dtype}"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """The matrix products, in the float type that the integer type suggests."""
        return Im2col().estimate(_as_float(problem, _FLOATS[problem.dtype.itemsize > 1]), machine)

    def workspace(self, problem: ConvProblem) -> int:
        """That of the matrix products."""
        return Im2col().workspace(_as_float(problem, _FLOATS[1]))

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Keep the operand; its type follows from the numbers of the other one."""
        return ExactIntegersPrepared(problem, operand, bias)


class ExactIntegersPrepared:
    """Three ways to the same integers: float32, float64, and integer sums; prepared when first needed."""

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        self.problem, self.operand, self.bias = problem, operand, bias
        self.offset = 0 if bias is None else _largest(bias)
        # Products that meet in one sum, and the largest numbers they are made of.
        if problem.direction == "weight_gradient":
            outputs = problem.batch * math.prod(problem.output)
            self.weight = outputs * _largest(operand)
        else:
            channels = problem.group_out if problem.direction == "transpose" else problem.group_in
            self.weight = channels * problem.taps * _largest(operand)
            if problem.direction == "transpose" and isinstance(problem.boundary, str):
                self.weight *= math.prod(
                    problem.output
                )  # all that is sent beyond the border may come back to one place
        self.outside = 0 if isinstance(problem.boundary, str) else abs(problem.boundary)

    @functools.cached_property
    def _integers(self) -> Prepared:
        return TapsPrepared(self.problem, self.operand, self.bias)

    @functools.cached_property
    def _float32(self) -> Prepared:
        return Im2colPrepared(_as_float(self.problem, _FLOATS[0]), self.operand, self.bias)

    @functools.cached_property
    def _float64(self) -> Prepared:
        return Im2colPrepared(_as_float(self.problem, _FLOATS[1]), self.operand, self.bias)

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        bound = max(_largest(source), self.outside) * self.weight + self.offset
        if bound < 1 << 24:
            self._float32.run(source, out, threads)
        elif bound < 1 << 53:
            self._float64.run(source, out, threads)
        else:
            self._integers.run(source, out, threads)


def _as_float(problem: ConvProblem, dtype: np.dtype[Any]) -> ConvProblem:
    return dataclasses.replace(problem, dtype=dtype)


def _largest(a: Array) -> int:
    """The largest absolute value; of small types the largest possible, without looking."""
    if a.size == 0:
        return 0
    if a.dtype.kind == "b":
        return 1
    if a.dtype.itemsize == 1:
        return int(max(np.iinfo(a.dtype).max, -np.iinfo(a.dtype).min))
    return max(abs(int(a.max())), abs(int(a.min())))
