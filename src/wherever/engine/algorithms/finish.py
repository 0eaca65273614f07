"""Finish: what is done to a result before anybody sees it, in the loop that stores it or in a pass of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from wherever.engine import run
from wherever.engine.algorithms.protocol import Prepared
from wherever.engine.kernels.compile import compiled, unavailable
from wherever.engine.kernels.finish import finish, finishes
from wherever.problem import Array

_PIECE = 64 << 10  # numbers that one thread takes at least


@dataclass(frozen=True)
class Finish:
    """An addition and an activation: activation(result + beside).

    Attributes
    ----------
    activation : str or None
        One of `kernels.finish.ACTIVATIONS`.
    adds : bool
        Whether something is added: an array of the result's shape, that comes with every call.
    """

    activation: str | None = None
    adds: bool = False

    def possible(self, dtype: str) -> bool:
        """Whether it can be computed in this type, on this machine."""
        return dtype in ("float32", "float64") and finishes(self.activation, dtype) and unavailable() is None

    def apply(self, y: Array, beside: Array | None, threads: int = 1) -> None:
        """Finish a result where it lies, in whatever memory order."""
        if not y.size:
            return
        y, beside = _along_memory(y, beside)
        flat = y if y.flags.c_contiguous else np.ascontiguousarray(y)
        other = flat if beside is None else np.ascontiguousarray(beside, y.dtype)
        kernel, size = compiled(finish, dtype=y.dtype.name, activation=self.activation, adds=self.adds), y.itemsize
        start, begin = flat.ctypes.data, other.ctypes.data

        def piece(some: range) -> None:
            kernel(start + some.start * size, begin + some.start * size, np.array([len(some)], np.int64))

        run.for_each(piece, run.pieces(flat.size, 64, min(threads, 1 + flat.size // _PIECE)), threads)
        if flat is not y:
            y[...] = flat


NOTHING = Finish()


def _along_memory(y: Array, beside: Array | None) -> tuple[Array, Array | None]:
    """Both with their axes in the order in which those of y lie in memory."""
    order = sorted(range(y.ndim), key=lambda axis: -abs(y.strides[axis]))
    return y.transpose(order), None if beside is None else beside.transpose(order)


def alike(a: Array | None, b: Array) -> bool:
    """Whether an array lies in memory as another does, so that both are read by the same tables."""
    if a is None:
        return True
    same = a.dtype == b.dtype and a.shape == b.shape and a.flags.aligned
    return same and all(s == t for s, t, n in zip(a.strides, b.strides, b.shape, strict=True) if n > 1)


class Finished(Protocol):
    """A prepared problem that can finish its results in the loop that stores them: one that ``finishes``."""

    finishes: bool

    def finished(self, finish: Finish) -> Finished:
        """The same, with a finish: of one without."""

    def run(self, source: Array, out: Array, threads: int, beside: Array | None = None) -> None:
        """Compute into ``out``; see `Prepared.run`. ``beside`` is added, where the finish says so."""


def finishing(prepared: Prepared, finish: Finish) -> Callable[[Array, Array, int, Array | None], None]:
    """Return what computes a prepared problem and finishes it: in one loop if that can be, else in a pass behind it."""
    if finish == NOTHING:
        return lambda source, out, threads, beside: prepared.run(source, out, threads)
    if getattr(prepared, "finishes", False):
        return cast(Finished, prepared).finished(finish).run

    def one_after_the_other(source: Array, out: Array, threads: int, beside: Array | None) -> None:
        prepared.run(source, out, threads)
        finish.apply(out, beside, threads)

    return one_after_the_other
