"""Who is faster: ways to compute the same, timed in turns as they will run in a network."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from wherever.engine.run import workspaces
from wherever.problem import Array

# Samples of each contender; and seconds that are enough for all of them.
_SAMPLES, _MOST_SAMPLES, _ENOUGH = 3, 11, 0.01
_SPINNING = 0.012  # seconds for which PyTorch's threads look for more work, on processors that others wait for


def contest(ways: Sequence[Callable[[], object]], warm: Sequence[Tensor] | None = None) -> list[float]:
    """Return the least seconds of each way, which other work disturbed least, in turns; PyTorch's is the last.

    In a network whose weights outgrow the caches, those of a layer come from memory at every call; its input does not,
    nor what all layers write to, their results and workspaces: everything but the tensors that are ``warm``, and the
    workspaces, is driven out of the caches before each sample.
    """
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(_MOST_SAMPLES + 1):
        if torch.get_num_threads() > 1:
            time.sleep(_SPINNING)
        for spent, way in zip(times, ways, strict=True):
            if warm is not None:
                with np.errstate(all="ignore"):  # of memory that nothing was written to
                    for array in (_others(), *workspaces(), *(tensor.numpy() for tensor in warm)):
                        array.sum()
            start = time.perf_counter()
            way()
            if turn:
                spent.append(time.perf_counter() - start)
        if turn >= _SAMPLES and sum(map(sum, times)) > _ENOUGH:
            break
    return [min(spent) for spent in times]


@functools.cache
def _others() -> Array:
    """More numbers than the caches hold."""
    return np.ones(16 << 20, np.float32)


def give_back() -> None:
    """Return the memory of contests to the system, of which the C library keeps what is freed where it can be told."""
    _others.cache_clear()
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
        if trim is not None:
            trim(0)
