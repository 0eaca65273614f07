"""What a transform reads that is not finite: the terms of such numbers are added to the transform of all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.blocks import Block, last_axes
from wherever.problem import Array, ConvProblem

# A sum has the same infinities and NaN in whatever order its terms are added. So much does it cost to add the terms of
# one place of x, in multiply-adds of direct summation: to begin with, and for each of them.
_BEGINNING, _EACH = 1e6, 10


def again(
    problem: ConvProblem,
    x: Array,
    y: Array,
    w: Array,
    bias: Array | None,
    transformed: Callable[[Array], bool],
) -> None:
    """Compute a part of a problem whose transform is not finite.

    Where the transform overflows, or much of x is not finite, it is summed directly.

    Parameters
    ----------
    problem : ConvProblem
        Forward, of stride 1 or more, channels first, without padding: see `of_footprint`.
    x, y : array (n, C, *size), (n, K, *output)
    w : array (K, C / groups, *kernel)
    bias : array (K,), optional
    transformed : function
        Computes y from an array like x; whether all of it is finite.
    """
    finite = np.isfinite(x)
    odd = np.argwhere(~finite.all(axis=1))
    reached = problem.out_channels * min(problem.taps, y[0, 0].size) * problem.group_in
    with np.errstate(all="ignore"):
        if (
            0 < len(odd) * (_BEGINNING + _EACH * reached) < problem.multiply_adds
            and np.isfinite(w).all()
            and transformed(np.where(finite, x, 0))
        ):
            for image, *place in odd.tolist():
                add_terms(problem, x[image], tuple(place), w, y[image])
        else:
            Im2colPrepared(problem, w, bias).run(x, y, 1)


def of_footprint(problem: ConvProblem, part: Block, dtype: np.dtype[np.generic]) -> ConvProblem:
    """The problem of a part of a forward problem, whose image is the footprint of the part."""
    return dataclasses.replace(
        problem,
        batch=part.images.stop - part.images.start,
        size=part.foot_shape,
        dilation=part.spacing,
        padding=((0, 0),) * problem.spatial,
        boundary=0,
        layout="channels_first",
        dtype=dtype,
    )


def add_terms(problem: ConvProblem, x: Array, place: tuple[int, ...], w: Array, y: Array) -> None:
    """Add to y the terms of the numbers that are not finite at a place of x.

    Parameters
    ----------
    problem : ConvProblem
        Forward, without padding.
    x, y : array (C, *size), (K, *output)
        Of one image.
    place : tuple of int
        In each spatial dimension.
    w : array (K, C / groups, *kernel)
        Finite.
    """
    index = []
    for q, n, r, s, d in zip(place, problem.output, problem.kernel, problem.stride, problem.dilation, strict=True):
        tap = np.arange(r)
        output, left = np.divmod(q - tap * d, s)
        seen = (left == 0) & (output >= 0) & (output < n)
        index.append((output[seen], tap[seen]))
    outputs, taps = np.ix_(*(pair[0] for pair in index)), np.ix_(*(pair[1] for pair in index))
    numbers: Array = x[last_axes(place)]
    for channel in np.flatnonzero(~np.isfinite(numbers)).tolist():
        group, number = divmod(channel, problem.group_in)
        some = slice(group * problem.group_out, (group + 1) * problem.group_out)
        y[some][last_axes(outputs)] += numbers[channel] * w[some, number][last_axes(taps)]
