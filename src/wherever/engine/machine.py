"""Machine: the few rates from which the cost of an algorithm is estimated."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wherever.problem import ConvProblem

_HALVES = 0.56  # of the speed of a core that works on whole vectors: measured, multiply-adds from registers and caches


@functools.cache
def _speed() -> float:
    """How fast this core computes, beside the one whose rates are written down."""
    from wherever.engine.kernels.compile import host, unavailable  # LLVM is started when something is planned

    return _HALVES if unavailable() is None and host().halves else 1.0


def _computed(rate: float) -> float:
    """A rate of what is computed in the caches: slower on a slower core, which memory is not."""
    return field(default_factory=lambda: rate * _speed())


@dataclass(frozen=True)
class Machine:
    """Rates of one thread in float32; only their ratios decide.

    Attributes
    ----------
    product : float
        Floating-point operations a second of a large matrix product (BLAS).
    copy : float
        Elements a second written by a copy along memory.
    sweep : float
        Elements a second of one elementwise operation on arrays that stay in the cache.
    transform : float
        Floating-point operations a second of a fast Fourier transform, counted as 2.5 n log2 n for real data.
    multiply_adds : float
        Multiply-adds a second of a generated kernel on its register tile.
    transforms : float
        Elements a second that pass through one dimension of a generated transform of small tiles.
    stream : float
        Elements a second read from memory by a generated kernel.
    cache : int
        Bytes of the cache that one core has for itself.
    call : float
        Seconds that one call of a NumPy function costs before it does anything.
    """

    product: float = _computed(1.1e11)
    copy: float = 1.0e10
    sweep: float = _computed(5.5e9)
    transform: float = _computed(1.2e10)
    multiply_adds: float = _computed(1.0e11)
    transforms: float = _computed(2.5e10)
    stream: float = 6.0e9
    cache: int = 1 << 20
    call: float = 1.5e-6


def arithmetic_cost(problem: ConvProblem) -> float:
    """How much longer than in float32 an operation takes: twice the bytes, four products of a complex one."""
    dtype = working_dtype(problem.dtype)
    return dtype.itemsize / 4 * (2 if dtype.kind == "c" else 1)


def wide_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which partial sums are added up, where sums are so long that rounding errors would show."""
    wide = {"f": np.float64, "F": np.complex128, "d": np.longdouble, "D": np.clongdouble}
    return np.dtype(wide.get(dtype.char, dtype))


def longest_sum(dtype: np.dtype[Any]) -> int:
    """How many terms may be added one after the other in this type; longer sums are taken in parts.

    Of terms of one size and sign the rounding errors add up too: over 512 terms to about 3e-6 in float32, over 256 to
    5e-15 in float64, which leaves room below the accuracy promise.
    """
    return {"f": 512, "F": 512}.get(dtype.char, 256)


def most_sums(dtype: np.dtype[Any]) -> int:
    """How many sums of `longest_sum` terms may be added up in this type, before they are added to a wider one.

    Beside what each of them rounds, the accuracy promise leaves room for so many additions.
    """
    return {"f": 32, "F": 32}.get(dtype.char, 16)


@functools.lru_cache(maxsize=256)
def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which sums are taken: half precision in float32, booleans as integers, anything else as it is."""
    if dtype.name in ("float16", "bfloat16"):
        return np.dtype(np.float32)
    return np.dtype(np.int64) if dtype.kind == "b" else dtype
