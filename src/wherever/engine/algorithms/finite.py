"""What a transform reads that is not finite: the terms of such numbers are added to the transform of all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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
        Forward or transposed, channels first, without padding: see `of_footprint`.
    x, y : array of shape ``problem.source_shape``, ``problem.result_shape``
    w : array (K, C / groups, *kernel)
    bias : array (channels of y,), optional
    transformed : function
        Computes y from an array like x; whether all of it is finite.
    """
    finite = np.isfinite(x)
    odd = np.argwhere(~finite.all(axis=1))
    reached = problem.out_channels * problem.group_in * min(problem.taps, y[0, 0].size)
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
    """The problem of a part of a problem, whose image is the footprint of the part."""
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
        Forward or transposed, without padding.
    x, y : array
        The source and the result of one image: (C, *size) and (K, *output), or the other way round.
    place : tuple of int
        In each spatial dimension.
    w : array (K, C / groups, *kernel)
    """
    numbers: Array = x[last_axes(place)]
    each = (problem.group_in, problem.group_out)
    if problem.direction == "transpose":
        w, each = w.reshape(problem.groups, each[1], each[0], *problem.kernel).swapaxes(1, 2), each[::-1]
        w = w.reshape(problem.in_channels, each[0], *problem.kernel)
        outputs, taps = _sent_to(problem, place), (slice(None),) * problem.spatial
    else:
        outputs, taps = _seen_from(problem, place)
    for channel in np.flatnonzero(~np.isfinite(numbers)).tolist():
        group, number = divmod(channel, each[0])
        some = slice(group * each[1], (group + 1) * each[1])
        y[some][last_axes(outputs)] += numbers[channel] * w[some, number][last_axes(taps)]


def _seen_from(problem: ConvProblem, place: tuple[int, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The outputs whose windows show a place of the image, and through which taps."""
    index = []
    for q, n, r, s, d in zip(place, problem.output, problem.kernel, problem.stride, problem.dilation, strict=True):
        tap = np.arange(r)
        output, left = np.divmod(q - tap * d, s)
        seen = (left == 0) & (output >= 0) & (output < n)
        index.append((output[seen], tap[seen]))
    return np.ix_(*(pair[0] for pair in index)), np.ix_(*(pair[1] for pair in index))


def _sent_to(problem: ConvProblem, place: tuple[int, ...]) -> tuple[slice, ...]:
    """The places of the image that the window of an output shows."""
    bounds = zip(place, problem.stride, problem.extent, problem.dilation, strict=True)
    return tuple(slice(q * s, q * s + e, d) for q, s, e, d in bounds)
