"""The matrices of Cook, Toom and Winograd: m outputs of a kernel of r taps by m + r - 1 multiplications, exactly."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from wherever.engine.kernels.vector import Kernel, Vector

Matrix: TypeAlias = tuple[tuple[Fraction, ...], ...]

# The finite points for so many multiplications (infinity is always the last point). Measured: these are 3 to 5 times as
# accurate as the usual 0, ±1, ±2; pairs of opposite sign let even and odd parts be shared.
_POINTS = {
    1: (),
    2: ("0",),
    3: ("0", "1"),
    4: ("0", "1", "-1"),
    5: ("0", "3/4", "-3/4", "3/2"),
    6: ("0", "3/4", "-3/4", "3/2", "-3/2"),
    7: ("0", "1/2", "-1/2", "1", "-1", "5/2"),
    8: ("0", "1/2", "-1/2", "1", "-1", "2", "-2"),
}
MOST_POINTS = max(_POINTS)


@functools.cache
def cook_toom(outputs: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return the matrices (A, G, B) of F(outputs, taps): y = A [(G w) * (B x)], products taken place by place.

    Parameters
    ----------
    outputs, taps : int
        y[i] = sum over a of w[a] x[i + a] for ``outputs`` places i; x has n = outputs + taps - 1 places, and so many
        products are taken.

    Returns
    -------
    A (outputs, n), G (n, taps), B (n, n)
        Of exact fractions.

    Notes
    -----
    The product of two polynomials is known from its values at n points (Toom 1963, Cook 1966); the algorithm for
    correlations is the transpose of that (Winograd 1980). With the values' matrix V_k[j, e] = p_j^e (at infinity:
    the leading coefficient), products of polynomials of `outputs` and `taps` coefficients are
    V_n^-1 [(V_outputs y) * (V_taps w)], so that its transpose in y is A = V_outputs^T, G = V_taps, B = V_n^-T.
    Row j of B may be multiplied and row j of G divided by any number: by prod over i of (p_j - p_i), so that the
    numbers of B stay small.
    """
    n = outputs + taps - 1
    if n not in _POINTS:
        raise ValueError(f"F({outputs}, {taps}) needs {n} points; at most {MOST_POINTS} are of use in floating point")
    points = [Fraction(p) for p in _POINTS[n]]

    def values(coefficients: int) -> list[list[Fraction]]:
        finite = [[p**e for e in range(coefficients)] for p in points]
        return [*finite, [Fraction(e == coefficients - 1) for e in range(coefficients)]]

    b = [list(row) for row in zip(*_inverse(values(n)), strict=True)]
    g, a = values(taps), [list(row) for row in zip(*values(outputs), strict=True)]
    for j, p in enumerate(points):
        scale = Fraction(1)
        for other in points[:j] + points[j + 1 :]:
            scale *= p - other
        b[j] = [v * scale for v in b[j]]
        g[j] = [v / scale for v in g[j]]
    return _frozen(a), _frozen(g), _frozen(b)


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """The inverse, by Gauss and Jordan's elimination."""
    n = len(matrix)
    rows = [row + [Fraction(i == j) for j in range(n)] for i, row in enumerate(matrix)]
    for i in range(n):
        pivot = next(k for k in range(i, n) if rows[k][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for k in range(n):
            if k != i and rows[k][i]:
                rows[k] = [v - rows[k][i] * w for v, w in zip(rows[k], rows[i], strict=True)]
    return [row[n:] for row in rows]


def _frozen(matrix: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in matrix)


# The matrices applied to vectors of a kernel that is being written.


def transformed(kernel: Kernel, matrices: list[Matrix], values: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Return an array of vectors with each axis multiplied by its matrix."""
    for axis, matrix in enumerate(matrices):
        fibres = np.moveaxis(values, axis, 0)
        result = np.empty((len(matrix), *fibres.shape[1:]), object)
        for place in np.ndindex(fibres.shape[1:]):
            result[(slice(None), *place)] = times(kernel, matrix, list(fibres[(slice(None), *place)]))
        values = np.moveaxis(result, 0, axis)
    return values


def times(kernel: Kernel, matrix: Matrix, x: list[Vector]) -> list[Vector]:
    """Return the product of a matrix with a list of vectors, sharing what pairs of opposite points have in common.

    The rows of p and -p agree in even columns and differ in sign in odd ones (or the other way round): their sum and
    difference of an even and an odd part. The columns of A of such points, likewise, agree in even rows.
    """
    if len(matrix) < len(x):
        return _by_columns(kernel, matrix, x)
    result: list[Vector | None] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if result[i] is not None:
            continue
        even, odd = row[::2], row[1::2]
        if any(odd) and any(even):
            for sign in (1, -1):
                twin = tuple(sign * v if e % 2 == 0 else -sign * v for e, v in enumerate(row))
                if twin in matrix[i + 1 :]:
                    e, o = _sum(kernel, even, x[::2]), _sum(kernel, odd, x[1::2])
                    result[i] = e + o
                    result[matrix.index(twin, i + 1)] = e - o if sign > 0 else o - e
                    break
        if result[i] is None:
            result[i] = _sum(kernel, row, x)
    return [v for v in result if v is not None]


def _by_columns(kernel: Kernel, matrix: Matrix, x: list[Vector]) -> list[Vector]:
    columns = list(zip(*matrix, strict=True))
    terms: list[list[tuple[Fraction, Vector]]] = [[] for _ in matrix]
    done: set[int] = set()
    for j, column in enumerate(columns):
        if j in done:
            continue
        twin = tuple(v if i % 2 == 0 else -v for i, v in enumerate(column))
        other = next((k for k in range(j + 1, len(columns)) if columns[k] == twin and twin != column), None)
        if other is None:
            parts: Iterable[Vector] = itertools.repeat(x[j])
        else:
            done.add(other)
            parts = itertools.cycle([x[j] + x[other], x[j] - x[other]])
        for term, weight, part in zip(terms, column, parts, strict=False):
            if weight:
                term.append((weight, part))
    return [_sum(kernel, [w for w, _ in term], [v for _, v in term]) for term in terms]


def _sum(kernel: Kernel, weights: tuple[Fraction, ...] | list[Fraction], x: list[Vector]) -> Vector:
    """The sum of weighted vectors; those of weight 1 first, so that nothing is multiplied by 1."""
    pairs = sorted(((w, v) for w, v in zip(weights, x, strict=True) if w), key=lambda pair: abs(pair[0]) != 1)
    if not pairs:
        return kernel.splat(0)
    (weight, total), *rest = pairs
    if weight != 1:
        total = -total if weight == -1 else total * float(weight)
    for weight, vector in rest:
        if abs(weight) == 1:
            total = total + vector if weight > 0 else total - vector
        else:
            total = kernel.fma(kernel.splat(float(weight)), vector, total)
    return total
