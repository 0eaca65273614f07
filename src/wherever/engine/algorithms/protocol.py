"""The protocol of an algorithm: refuse in words, estimate, prepare, run."""

from __future__ import annotations

import math
from typing import Protocol

from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem


class Prepared(Protocol):
    """A problem with one operand fixed: packed or transformed weights, ready to run any number of times."""

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``.

        Parameters
        ----------
        source : array of shape ``problem.source_shape``
            Any strides and byte order, any dtype that converts to the problem's.
        out : array of shape ``problem.result_shape`` and ``problem.dtype``
            Overwritten; shares no memory with ``source``.
        threads : int
            At most so many; the result does not depend on it.
        """


class Algorithm(Protocol):
    """A way to compute convolutions; what is defined here is inherited.

    Attributes
    ----------
    name : str
        One word, as it stands in a printed plan.
    sums_directly : bool
        Whether a result is the plain sum of its own terms, with no error from anywhere else.
    """

    name: str
    sums_directly: bool

    def refuses(self, problem: ConvProblem) -> str | None:
        """Why this algorithm cannot do the problem, in words; None if it can."""

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """Seconds that one run on one thread will take, with the operand prepared."""

    def least(self, problem: ConvProblem, machine: Machine) -> float:
        """Seconds below which `estimate` is for no problem, found in microseconds.

        Where estimates are dear, because many tiles are compared, the planner asks for them only if this does not
        tell already that another algorithm is faster.
        """
        return 0.0

    def preparation(self, problem: ConvProblem, machine: Machine) -> float:
        """Seconds that preparing the operand takes, as far as they grow with it: here, to copy it in another order.

        Copies that no cache holds are written to memory, and read from there again.
        """
        if problem.direction == "weight_gradient":
            return 0.0  # the other operand is as large, and part of the estimate
        size = working_dtype(problem.dtype).itemsize
        numbers = math.prod(problem.w_shape)
        beyond = min(1.0, numbers * size / (16 * machine.cache))
        return (3 + 2.5 * beyond) * numbers * size / 4 / machine.copy

    def workspace(self, problem: ConvProblem) -> int:
        """Bytes needed beside the operands and the result."""

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Fix one operand.

        Parameters
        ----------
        operand : array of shape ``problem.operand_shape``
            The weights, or for the gradient by the weights the gradient of the output.
        bias : array (channels of the result,), optional
            Added to the result of the forward and the transposed direction.
        """
