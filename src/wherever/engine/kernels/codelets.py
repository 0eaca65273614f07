"""Fourier transforms as straight-line code: complex vectors, codelets of small lengths, and passes that join them."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from wherever.engine.kernels.vector import Array, Int, Kernel, Vector

# A transform of n = r_1 r_2 ... r_k places is k passes over them, each a codelet of r_i places and a multiplication by
# roots of unity ("twiddles"). Forward passes decimate in frequency and inverse ones in time: frequency f is found at
# `position(f)` between the two, and nothing is ever reordered. Lanes are independent transforms side by side.

LARGEST = 16  # codelet that is written


@dataclass(frozen=True)
class Complex:
    """Complex numbers, one a lane."""

    re: Vector
    im: Vector

    def __add__(self, other: Complex) -> Complex:
        return Complex(self.re + other.re, self.im + other.im)

    def __sub__(self, other: Complex) -> Complex:
        return Complex(self.re - other.re, self.im - other.im)

    def __mul__(self, other: Complex | Vector | float) -> Complex:
        if not isinstance(other, Complex):
            return Complex(self.re * other, self.im * other)
        fma = self.re.kernel.fma
        return Complex(
            fma(self.re, other.re, -(self.im * other.im)),
            fma(self.re, other.im, self.im * other.re),
        )

    def conjugate(self) -> Complex:
        """With the imaginary parts turned round."""
        return Complex(self.re, -self.im)

    def swapped(self) -> Complex:
        """Real and imaginary parts exchanged; between two exchanges a forward transform is an inverse one."""
        return Complex(self.im, self.re)

    def plus(self, other: Complex, factor: float) -> Complex:
        """Self + factor * other, for a real factor."""
        kernel = self.re.kernel
        real = kernel.splat(factor)
        return Complex(kernel.fma(other.re, real, self.re), kernel.fma(other.im, real, self.im))

    def turned(self, part: int, whole: int) -> Complex:
        """Times exp(-2 pi i part / whole): a turn by a part of the whole circle, clockwise."""
        part %= whole
        if 8 * part % whole:
            angle, splat = 2 * math.pi * part / whole, self.re.kernel.splat
            return self * Complex(splat(math.cos(angle)), splat(-math.sin(angle)))
        eighths = 8 * part // whole
        if eighths % 2:
            total, difference, root = self.re + self.im, self.im - self.re, math.sqrt(0.5)
            re, im = (total, difference) if eighths % 4 == 1 else (difference, total)
            return Complex(re * (root if eighths in (1, 3) else -root), im * (root if eighths in (1, 7) else -root))
        quarters: list[Callable[[], Complex]] = [
            lambda: self,
            lambda: Complex(self.im, -self.re),
            lambda: Complex(-self.re, -self.im),
            lambda: Complex(-self.im, self.re),
        ]
        return quarters[eighths // 2]()


def dft(values: Sequence[Complex], *, inverse: bool = False) -> list[Complex]:
    """Write X[f] = sum over i of values[i] exp(-2 pi i f / n); with ``inverse`` the other sign (and no division by n).

    Coprime factors of n are separate dimensions of a smaller transform (Good and Thomas), powers of a prime are
    divided by Cooley and Tukey's step, and of an odd prime the pairs i, n - i share real coefficients.
    """
    if inverse:
        return [value.swapped() for value in dft([value.swapped() for value in values])]
    n = len(values)
    if n <= 4:
        return _SMALLEST[n](*values)
    prime = next(p for p in range(2, n + 1) if n % p == 0)
    if prime == n:
        return _odd_prime(values)
    power = prime
    while n // power % prime == 0:
        power *= prime
    if power < n:
        rest = n // power
        rows = [dft([values[(i * rest + j * power) % n] for i in range(power)]) for j in range(rest)]
        columns = [dft([row[f] for row in rows]) for f in range(power)]
        return [columns[f % power][f % rest] for f in range(n)]
    first = prime * prime if n == prime**4 else prime
    rest = n // first
    parts = [dft(values[i::first]) for i in range(first)]
    result: list[Any] = [None] * n
    for f in range(rest):
        turned = [part[f].turned(i * f, n) for i, part in enumerate(parts)]
        result[f::rest] = dft(turned)
    return result


def _two(a: Complex, b: Complex) -> list[Complex]:
    return [a + b, a - b]


def _four(a: Complex, b: Complex, c: Complex, d: Complex) -> list[Complex]:
    even, odd = a + c, b + d
    other, turned = a - c, (b - d).turned(1, 4)
    return [even + odd, other + turned, even - odd, other - turned]


def _odd_prime(values: Sequence[Complex]) -> list[Complex]:
    n, half = len(values), len(values) // 2
    first = values[0]
    sums = [values[i] + values[n - i] for i in range(1, half + 1)]
    differences = [values[i] - values[n - i] for i in range(1, half + 1)]
    result = [functools.reduce(Complex.__add__, sums, first)] * n
    for f in range(1, half + 1):
        even, odd = first, differences[0] * math.sin(2 * math.pi * f / n)
        for i, (total, difference) in enumerate(zip(sums, differences, strict=True), start=1):
            angle = 2 * math.pi * (i * f % n) / n
            even = even.plus(total, math.cos(angle))
            if i > 1:
                odd = odd.plus(difference, math.sin(angle))
        turned = odd.turned(1, 4)
        result[f], result[n - f] = even + turned, even - turned
    return result


_SMALLEST: dict[int, Callable[..., list[Complex]]] = {
    1: lambda a: [a],
    2: _two,
    3: lambda *values: _odd_prime(values),
    4: _four,
}


# Transforms of many places: lists of radices, in the order of the forward passes.


@functools.cache
def radices(length: int, largest: int = LARGEST, last: int | None = None) -> tuple[int, ...] | None:
    """The radices of a transform: as few as possible, then as even as possible; None if there are none.

    Parameters
    ----------
    length : int
    largest : int
        Radix that is allowed: a codelet of so many places needs twice as many registers, or memory.
    last : int, optional
        The last radix of the forward passes, whatever ``largest`` says.
    """
    if last is not None:
        if length % last:
            return None
        before = radices(length // last, largest)
        return None if before is None else (*before, last)
    if length <= 1:
        return ()
    rest = length
    for radix in range(2, largest + 1):
        while rest % radix == 0:
            rest //= radix
    if rest > 1:
        return None  # found at once, where trying every radix would take long
    options = []
    for radix in range(2, min(largest, length) + 1):
        others = radices(length // radix, largest) if length % radix == 0 else None
        if others is not None:
            options.append(tuple(sorted((radix, *others))))
    return min(options, key=lambda option: (len(option), max(option), option), default=None)


def position(frequency: int, radices: Sequence[int]) -> int:
    """Where the forward passes leave a frequency."""
    if not radices:
        return 0
    first, rest = radices[0], math.prod(radices[1:])
    return frequency % first * rest + position(frequency // first, radices[1:])


def frequencies(radices: Sequence[int]) -> npt.NDArray[np.int64]:
    """The frequency at each position, (length,)."""
    result = np.empty(math.prod(radices), np.int64)
    for f in range(len(result)):
        result[position(f, radices)] = f
    return result


def twiddles(radices: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The table for `dft_pass`: of each pass but the last, roots of unity (places between, radix - 1, re and im)."""
    parts, block = [np.zeros(0)], math.prod(radices)
    for radix in radices[:-1]:
        step = block // radix
        angles = -2 * np.pi * np.outer(np.arange(step), np.arange(1, radix)) / block
        parts.append(np.stack([np.cos(angles), np.sin(angles)], axis=-1).ravel())
        block = step
    return np.concatenate(parts).astype(dtype)


def twiddle_count(radices: Sequence[int], passes: int | None = None) -> int:
    """Numbers in the table of `twiddles`, of the first passes or of all."""
    return sum(2 * (radix - 1) * math.prod(radices[i + 1 :]) for i, radix in enumerate(radices[:-1][:passes]))


# A place is given in two parts: where the codelet starts, and how far behind (known when the kernel is written).
Load: TypeAlias = Callable[["Int | int", int], Complex]
Store: TypeAlias = Callable[["Int | int", int, Complex], None]


@dataclass(frozen=True)
class Column:
    """Places in memory, each two vectors: array[place, 0, :] are the real parts, array[place, 1, :] the imaginary ones.

    Attributes
    ----------
    array : Array
        With axes (place, part, lane).
    """

    array: Array

    def load(self, start: Int | int, behind: int) -> Complex:
        """The numbers at a place."""
        place = self._from(start)[behind]
        return Complex(place[0, 0].load(), place[1, 0].load())

    def store(self, start: Int | int, behind: int, value: Complex) -> None:
        """Put numbers at a place."""
        place = self._from(start)[behind]
        place[0, 0].store(value.re)
        place[1, 0].store(value.im)

    def _from(self, start: Int | int) -> Array:
        return self.array.moved(start * self.array.strides[0])


def dft_pass(
    kernel: Kernel,
    radices: Sequence[int],
    number: int,
    table: Array,
    load: Load,
    store: Store,
    *,
    inverse: bool = False,
) -> None:
    """Write one pass of a transform over all its places.

    A forward transform is the passes 0, 1, ... in this order, an inverse one the passes ..., 1, 0.

    Parameters
    ----------
    radices
        Of the transform.
    number
        Of the pass: it goes by codelets of ``radices[number]`` places.
    table
        The array that `twiddles` made, with one axis.
    load, store
        Take and put the numbers of one place, as `Column` has them or otherwise. A place is read before anything is
        put there, and a codelet puts its numbers at the places that it read.
    inverse
        An inverse transform (without the division by its length) undoes a forward one pass by pass.
    """
    radix, block = radices[number], math.prod(radices[number:])
    step = block // radix
    factors = table.moved(twiddle_count(radices, number))
    with _count(kernel, math.prod(radices), block) as first, _count(kernel, step, 1) as j:
        start = first + j
        values = [load(start, r * step) for r in range(radix)]
        if not inverse:
            values = dft(values)
        if step > 1:
            roots = factors.moved(j * (2 * (radix - 1)))
            for r in range(1, radix):
                root = Complex(roots[2 * r - 2].splat(), roots[2 * r - 1].splat())
                values[r] *= root.conjugate() if inverse else root
        if inverse:
            values = dft(values, inverse=True)
        for r, value in enumerate(values):
            store(start, r * step, value)


def _count(kernel: Kernel, stop: int, step: int) -> AbstractContextManager[Any]:
    """A loop from 0 on; the number 0 where that is all."""
    return contextlib.nullcontext(0) if stop <= step else kernel.loop(0, stop, step)
