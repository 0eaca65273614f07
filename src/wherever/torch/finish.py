"""What follows a layer, applied to its result where it lies: an addition and an activation, in one pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from wherever.engine import run
from wherever.engine.kernels.compile import compiled, unavailable
from wherever.engine.kernels.finish import finish, finishes
from wherever.torch.graphs import apply_activation
from wherever.torch.operators import DTYPES

_PIECE = 64 << 10  # numbers that one thread takes at least


def finishing(result: Tensor, activation: str | None, adds: bool, threads: int) -> Callable[[Tensor | None], None]:
    """Return what computes activation(result + added) in place.

    Parameters
    ----------
    result : Tensor
        Dense memory, in any order of its axes.
    activation : str or None
        See `wherever.torch.graphs`.
    adds : bool
        Whether something is added: a tensor of the result's shape, that is given with every call.
    """
    dtype = DTYPES[result.dtype].name
    if not adds and activation is None:
        return lambda added: None
    if dtype not in ("float32", "float64") or not finishes(activation, dtype) or unavailable() is not None:
        return lambda added: _by_pytorch(result, activation, added)
    kernel = compiled(finish, dtype=dtype, activation=activation, adds=adds)
    strides, shape, start = result.stride(), result.shape, result.data_ptr()
    pieces = run.pieces(result.numel(), 64, min(threads, 1 + result.numel() // _PIECE))
    calls = [(piece.start * result.element_size(), np.array([len(piece)], np.int64)) for piece in pieces]

    def step(added: Tensor | None) -> None:
        begin = start
        if added is not None:
            if added.stride() != strides or added.shape != shape or added.dtype is not result.dtype:
                _by_pytorch(result, activation, added)
                return
            begin = added.data_ptr()
        run.for_each(lambda call: kernel(start + call[0], begin + call[0], call[1]), calls, threads)

    return step


def _by_pytorch(result: Tensor, activation: str | None, added: Tensor | None) -> None:
    apply_activation(activation, result if added is None else result.add_(added))
