"""What generated kernels refuse alike; transposes of stride 1 as the forward problems that they are."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from wherever.engine.kernels.compile import unavailable
from wherever.engine.machine import working_dtype
from wherever.problem import Array, ConvProblem


def refuses_sums(problem: ConvProblem, *, gradient: bool = False) -> str | None:
    """Why no generated kernel can do the problem; None if one can.

    Parameters
    ----------
    problem : ConvProblem
    gradient : bool
        Whether the kernels are for the gradient by the weights; else they are for what `as_forward` makes forward.
    """
    refusal = unavailable()
    if refusal is not None:
        return refusal
    if gradient and problem.direction != "weight_gradient":
        return "has a kernel for the gradient by the weights only"
    if not gradient and problem.direction == "weight_gradient":
        return "has no kernel for the gradient by the weights"
    if problem.direction == "transpose" and (set(problem.stride) != {1} or problem.boundary != 0):
        return "computes transposes of stride 1 with zeros outside"
    if working_dtype(problem.dtype).char not in "fd":
        return f"has kernels for float32 and float64, not {problem.dtype}"
    summed = problem if gradient else as_forward(problem)
    if not summed.multiply_adds or 0 in summed.size:
        return "there is nothing to sum"
    return None


def as_forward(problem: ConvProblem) -> ConvProblem:
    """The forward problem that a transpose of stride 1 is: from the outputs back, with the kernel reversed.

    Where the forward map looks ``before`` places to the left of the image, its transpose looks ``extent - 1 - before``
    places to the left of the outputs (to the right, if that is negative).
    """
    return problem if problem.direction == "forward" else _reversed(problem)


@functools.lru_cache(maxsize=1024)
def _reversed(problem: ConvProblem) -> ConvProblem:
    padding = []
    for n, m, e, (before, _) in zip(problem.output, problem.size, problem.extent, problem.padding, strict=True):
        left = e - 1 - before
        padding.append((left, m + e - 1 - n - left))
    return dataclasses.replace(
        problem,
        in_channels=problem.out_channels,
        out_channels=problem.in_channels,
        size=problem.output,
        padding=tuple(padding),
        direction="forward",
    )


def finite(w: Array) -> bool:
    """Whether all weights are finite: read once, at the speed of memory."""
    if w.dtype.char in "fd":
        flat = w.ravel(order="K")
        with np.errstate(all="ignore"):
            # What is finite may sum up to infinity: then each number is asked.
            if np.isfinite(np.dot(flat, flat) if np.may_share_memory(flat, w) else w.sum()):
                return True
    return bool(np.isfinite(w).all())


def forward_weights(problem: ConvProblem, operand: Array) -> Array:
    """The weights of `as_forward`: of a transpose reversed, with input and output channels exchanged."""
    if problem.direction == "forward":
        return operand
    w = operand.reshape(problem.groups, problem.group_out, problem.group_in, *problem.kernel).swapaxes(1, 2)
    return np.flip(w, tuple(range(3, w.ndim))).reshape(problem.in_channels, problem.group_out, *problem.kernel)
