"""What algorithms share that sum each channel by itself: what they refuse, and how transposes are prepared."""

from __future__ import annotations

import abc
import math

import numpy as np

from wherever.engine.algorithms.forward import as_forward, forward_weights, refuses_sums
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.machine import longest_sum, working_dtype
from wherever.problem import Array, ConvProblem

PART_BYTES = 2 << 20  # of the input of one part, where it is copied
PIECES = 4  # for each thread


class EachChannel(Algorithm):
    """What `filter` and `depthwise` share: which problems they take, and the weights of transposes."""

    name: str
    sums_directly = True

    def refuses(self, problem: ConvProblem) -> str | None:
        """Problems whose channels are summed, and what is not a real floating-point number."""
        refusal = refuses_sums(problem)
        if refusal is not None:
            return refusal
        forward = as_forward(problem)
        if forward.group_in != 1:
            return f"sums one channel by itself, not {forward.group_in} together"
        if problem.taps > longest_sum(working_dtype(problem.dtype)):
            return f"sums {problem.taps} terms in one go, which rounds too much"
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
        return 2 * PART_BYTES + min(result, PART_BYTES * 2 * max(1, problem.group_out))

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Lay the weights out for the kernel."""
        if problem.direction == "transpose" and not np.isfinite(operand).all():
            # An infinite weight would meet the zeros outside, and they are not there.
            return Im2colPrepared(problem, operand, bias)
        return self.prepared(as_forward(problem), forward_weights(problem, operand), bias)
