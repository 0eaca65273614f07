"""What is done to the results of a layer before anybody else sees them: something added, and an activation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Kernel, Vector

# Coefficients of z P(z^2) / Q(z^2), which is erf(z) between -4 and 4 to 2.2e-8: fitted by least squares with Lawson's
# weights, which make the largest error small.
_ERF_ABOVE = (
    1.128378987312317,
    0.19624324142932892,
    0.053466469049453735,
    0.0040033054538071156,
    0.00028801822918467224,
    1.974689439521171e-06,
)
_ERF_BELOW = (
    1.0,
    0.5072472095489502,
    0.11647381633520126,
    0.015443786978721619,
    0.0012162461644038558,
    3.7478148442460224e-05,
)
_EXPONENTS = {"float32": 87.0, "float64": 708.0}  # e to more overflows


def _relu(x: Vector) -> Vector:
    return (x <= 0.0).select(x.kernel.splat(0), x)


def _relu6(x: Vector) -> Vector:
    return x.limited(0, 6)


def _hardswish(x: Vector) -> Vector:
    return x * (x + 3.0).limited(0, 6) * (1 / 6)


def _sigmoid(x: Vector) -> Vector:
    bound = _EXPONENTS[x.kernel.dtype]
    return x.kernel.splat(1) / ((-x).limited(-bound, bound).exponential() + 1.0)


def _silu(x: Vector) -> Vector:
    return x * _sigmoid(x)


def _gelu(x: Vector) -> Vector:
    z = (x * math.sqrt(0.5)).limited(-4, 4)
    square = z * z
    above, below = _polynomial(square, _ERF_ABOVE), _polynomial(square, _ERF_BELOW)
    half = x * 0.5
    # Below -5.5 it is less than 1.1e-7, where what is left of 1 - erf would be rounding errors times x.
    return (x <= -5.5).select(x.kernel.splat(0), x.kernel.fma(half, z * above / below, half))


def _gelu_tanh(x: Vector) -> Vector:
    inner = x.kernel.fma(x * x * x, x.kernel.splat(0.044715), x)
    return x * _sigmoid(inner * (2 * math.sqrt(2 / math.pi)))


def _polynomial(x: Vector, coefficients: tuple[float, ...]) -> Vector:
    result = x.kernel.splat(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = x.kernel.fma(result, x, x.kernel.splat(coefficient))
    return result


ACTIVATIONS: dict[str, Callable[[Vector], Vector]] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardswish": _hardswish,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}


def finishes(activation: str | None, dtype: str) -> bool:
    """Whether an activation can be computed in this type, as exactly as its sums are."""
    return activation is None or (activation in ACTIVATIONS and (dtype == "float32" or activation != "gelu"))


def finished(value: Vector, beside: Sequence[Vector], activation: str | None) -> Vector:
    """A vector of results, with what is added and the activation."""
    for other in beside:
        value = value + other
    return ACTIVATIONS[activation](value) if activation else value


def finish(target: Target, *, dtype: str, activation: str | None, adds: bool) -> Kernel:
    """Write y[i] = activation(y[i] + added[i]), or without ``added``.

    The size: how many numbers.
    """
    kernel = Kernel("finish", dtype, target.lanes(dtype), ["y", "added"], ["count"])
    y, added = kernel.array("y", 1), kernel.array("added", 1)
    for i, mask in kernel.vectors(0, kernel.size("count")):
        beside = [added[i].load(mask)] if adds else []
        y[i].store(finished(y[i].load(mask), beside, activation), mask)
    return kernel
