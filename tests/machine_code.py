"""Kernels compiled and called without any cache, for the tests of the kernel language."""

from __future__ import annotations

import numpy as np

from wherever.engine.kernels.compile import Compiled, host


def run(kernel, *arrays, sizes=()):
    """Compile a kernel, and call it on arrays and sizes."""
    code = Compiled(host().emit(kernel), kernel.name, len(arrays) + 1)
    numbers = np.array(sizes, np.int64)
    code.on(*arrays, numbers)
