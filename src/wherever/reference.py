"""The source's equation, written as it stands: slow, plain, and the oracle of every test."""

from __future__ import annotations

import numpy as np

from wherever.problem import Array, ConvProblem

# The convolutional layer with channels: H[i, d] = u[d] + sum over a, c of V[a, c, d] X[i + a, c], here with a batch n,
# the names of the frameworks (x, w, y; output channel k), stride, dilation, groups, and something beyond the border.
# Sums are taken in the widest type of the kind, so that the oracle's own rounding does not count.


def conv(problem: ConvProblem, x: Array, w: Array, bias: Array | None = None) -> Array:
    """y[n, k, i] = bias[k] + sum over a, c of w[k, c, a] x[n, c, i * stride + a * dilation - before]."""
    x, w = _wide(_channels_first(problem, x)), _wide(w)
    padded = _padded(problem, x)
    y = np.zeros((problem.batch, problem.out_channels, *problem.output), np.result_type(x, w))
    for k in range(problem.out_channels):
        for c in range(problem.group_in):
            channel = k // problem.group_out * problem.group_in + c
            for a in np.ndindex(problem.kernel):
                y[:, k] += w[k, c][a] * padded[:, channel][_places(problem, a)]
    if bias is not None:
        y = y + _wide(bias).reshape(-1, *[1] * problem.spatial)
    return _laid_out(problem, y)


def transpose(problem: ConvProblem, y: Array, w: Array) -> Array:
    """The adjoint of the equation in x: every term of `conv` sent back to the pixel that it was read from."""
    y, w = _wide(_channels_first(problem, y)), _wide(w)
    # Where each place of the padded x comes from: its number in x, or one beyond the last for what is not in x.
    pixels = int(np.prod(problem.size))
    numbers = np.arange(pixels).reshape(1, 1, *problem.size)
    origin = _padded(problem, numbers, outside=pixels)[0, 0]
    flat = np.zeros((problem.batch, problem.in_channels, pixels + 1), np.result_type(y, w))
    for k in range(problem.out_channels):
        for c in range(problem.group_in):
            channel = k // problem.group_out * problem.group_in + c
            for a in np.ndindex(problem.kernel):
                for image, sent in zip(flat[:, channel], w[k, c][a] * y[:, k], strict=True):
                    np.add.at(image, origin[_places(problem, a)[1:]], sent)
    return _laid_out(problem, flat[..., :pixels].reshape(problem.batch, problem.in_channels, *problem.size))


def weight_gradient(problem: ConvProblem, x: Array, y: Array) -> Array:
    """The adjoint of the equation in w: every term of `conv` sent back to the weight that it was multiplied by."""
    x, y = _wide(_channels_first(problem, x)), _wide(_channels_first(problem, y))
    padded = _padded(problem, x)
    w = np.zeros(problem.w_shape, np.result_type(x, y))
    for k in range(problem.out_channels):
        for c in range(problem.group_in):
            channel = k // problem.group_out * problem.group_in + c
            for a in np.ndindex(problem.kernel):
                w[k, c][a] = np.sum(padded[:, channel][_places(problem, a)] * y[:, k])
    return w


def _places(problem: ConvProblem, a: tuple[int, ...]) -> tuple[slice, ...]:
    """The padded pixels i * stride + a * dilation of every image, for all outputs i."""
    return (
        slice(None),
        *(
            slice(t * d, t * d + (n - 1) * s + 1 if n else t * d, s)
            for t, d, n, s in zip(a, problem.dilation, problem.output, problem.stride, strict=True)
        ),
    )


def _padded(problem: ConvProblem, x: Array, outside: complex | None = None) -> Array:
    """X (N, C, *S) with its boundary around it; ``outside`` replaces the number of a constant boundary."""
    kept = tuple(slice(0, n + min(after, 0)) for n, (_, after) in zip(problem.size, problem.padding, strict=True))
    widths = [(0, 0), (0, 0), *((before, max(after, 0)) for before, after in problem.padding)]
    x = x[(slice(None), slice(None), *kept)]
    # Padding that reaches further than negative padding cuts away does not occur: transposes alone have the latter.
    if isinstance(problem.boundary, str):
        return np.pad(x, widths, mode=problem.boundary)  # type: ignore[call-overload, no-any-return]
    value = problem.boundary if outside is None else outside
    if isinstance(value, complex):
        x = x.astype(np.result_type(x, np.complex128))
    elif isinstance(value, float) and x.dtype.kind == "O":
        value = int(value)
    return np.pad(x, widths, constant_values=np.array(value, x.dtype if x.dtype.kind == "O" else None))


def _wide(a: Array) -> Array:
    """The widest type of the same kind: Python integers, long double, complex long double."""
    if a.dtype.kind in "biu":
        return a.astype(object) if a.dtype.kind != "b" else a.astype(np.int64).astype(object)
    return a.astype(np.clongdouble if a.dtype.kind == "c" else np.longdouble)


def _channels_first(problem: ConvProblem, a: Array) -> Array:
    return np.moveaxis(a, -1, 1) if problem.layout == "channels_last" else a


def _laid_out(problem: ConvProblem, a: Array) -> Array:
    return np.moveaxis(a, 1, -1) if problem.layout == "channels_last" else a
