"""Weights as the latest calls prepared them, found again by their bytes: for calls that bring their weights along."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

import numpy as np

from wherever.engine.algorithms import Prepared
from wherever.engine.plan import Choice
from wherever.problem import Array

# Packing the weights of a tiny convolution, and laying out its tables, takes ten times as long as the convolution. So
# what was prepared is kept, and used again where a call brings the same numbers. Arrays change: therefore each call
# compares every byte, which is many times faster than packing them, and no result depends on what is kept.

_LARGEST = 12 << 20  # bytes of an operand that is kept
_MOST = 48 << 20  # bytes of all of them, and of what they were prepared to
_ALIKE = 8  # operands of one problem
_PROBLEMS = 512  # each has plans, tables and objects, which may be many times as large as small weights
_AT_ONCE = 1 << 14  # bytes that are compared in one go
_FIRST = 1 << 9  # of more, so many words are compared first: other weights differ there


@dataclass(frozen=True, eq=False)
class _Kept:
    """An operand and a bias, byte for byte, and what they were prepared to."""

    numbers: bytes
    dtype: np.dtype[np.generic]
    bias: Array | None
    prepared: Prepared
    size: int

    def is_of(self, operand: Array, bias: Array | None) -> bool:
        """Whether it was prepared from these numbers."""
        if operand.dtype is not self.dtype and operand.dtype != self.dtype:
            return False
        if bias is not self.bias and not (bias is not None and self.bias is not None and _same(bias, self.bias)):
            return False
        if operand.nbytes <= _AT_ONCE:
            return operand.tobytes() == self.numbers
        octets = np.uint8 if operand.nbytes % 8 else np.uint64
        given = np.ascontiguousarray(operand).reshape(-1).view(octets)
        kept = np.frombuffer(self.numbers, octets)
        return np.array_equal(given[:_FIRST], kept[:_FIRST]) and np.array_equal(given, kept)


_kept: dict[Choice, tuple[_Kept, ...]] = {}
_lock = threading.Lock()


def prepared(choice: Choice, operand: Array, bias: Array | None = None) -> Prepared:
    """Prepare an operand for one run; or find what an earlier call prepared from the same numbers."""
    if operand.nbytes > _LARGEST or choice.problem.direction == "weight_gradient":
        return choice.prepare(operand, bias)
    for kept in _kept.get(choice, ()):
        if kept.is_of(operand, bias):
            return kept.prepared
    numbers = operand.tobytes()  # of its own: what is prepared may be a view of it
    own = np.frombuffer(numbers, operand.dtype).reshape(operand.shape)
    bias = None if bias is None else bias.copy()
    result = choice.prepare(own, bias)
    size = len(numbers) + sum(a.nbytes for a in vars(result).values() if isinstance(a, np.ndarray))
    if size <= _MOST:
        _keep(choice, _Kept(numbers, operand.dtype, bias, result, size))
    return result


def _keep(choice: Choice, new: _Kept) -> None:
    """The latest comes first; what was kept first makes room."""
    with _lock:
        _kept[choice] = (new, *_kept.pop(choice, ())[: _ALIKE - 1])
        while len(_kept) > _PROBLEMS or sum(kept.size for each in _kept.values() for kept in each) > _MOST:
            oldest = next(iter(_kept))
            *rest, _ = _kept.pop(oldest)
            if rest:
                _kept[oldest] = tuple(rest)


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _new_lock() -> None:
    """A forked child may have been forked while another thread held the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
