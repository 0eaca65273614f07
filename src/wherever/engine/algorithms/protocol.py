"""The protocol of an algorithm: refuse in words, estimate, prepare, run."""

from __future__ import annotations

from typing import Protocol

from wherever.engine.machine import Machine
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
    """A way to compute convolutions."""

    @property
    def name(self) -> str:
        """One word, as it stands in a printed plan."""

    @property
    def sums_directly(self) -> bool:
        """Whether a result is the plain sum of its own terms, with no error from anywhere else."""

    def refuses(self, problem: ConvProblem) -> str | None:
        """Why this algorithm cannot do the problem, in words; None if it can."""

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """Seconds that one run on one thread will take, preparation included."""

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
