"""Transposes of stride 1 as the forward problems that they are, for algorithms that know only that direction."""

from __future__ import annotations

import dataclasses

import numpy as np

from wherever.engine.kernels.compile import unavailable
from wherever.engine.machine import working_dtype
from wherever.problem import Array, ConvProblem


def refuses_direction(problem: ConvProblem) -> str | None:
    """Why the problem is not a forward one in other words; None if it is."""
    if problem.direction == "weight_gradient":
        return "has no kernel for the gradient by the weights"
    if problem.direction == "transpose" and (set(problem.stride) != {1} or problem.boundary != 0):
        return "computes transposes of stride 1 with zeros outside"
    return None


def refuses_sums(problem: ConvProblem) -> str | None:
    """Why kernels of direct summation cannot do the problem; None if they can."""
    refusal = unavailable() or refuses_direction(problem)
    if refusal is not None:
        return refusal
    if working_dtype(problem.dtype).char not in "fd":
        return f"has kernels for float32 and float64, not {problem.dtype}"
    if not as_forward(problem).multiply_adds:
        return "there is nothing to sum"
    return None


def as_forward(problem: ConvProblem) -> ConvProblem:
    """The forward problem that a transpose of stride 1 is: from the outputs back, with the kernel reversed.

    Where the forward map looks ``before`` places to the left of the image, its transpose looks ``extent - 1 - before``
    places to the left of the outputs (to the right, if that is negative).
    """
    if problem.direction == "forward":
        return problem
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


def forward_weights(problem: ConvProblem, operand: Array) -> Array:
    """The weights of `as_forward`: of a transpose reversed, with input and output channels exchanged."""
    if problem.direction == "forward":
        return operand
    w = operand.reshape(problem.groups, problem.group_out, problem.group_in, *problem.kernel).swapaxes(1, 2)
    return np.flip(w, tuple(range(3, w.ndim))).reshape(problem.in_channels, problem.group_out, *problem.kernel)
