"""Kernels compiled and called without any cache, for the tests of the kernel language."""

from __future__ import annotations

import numpy as np

from wherever.engine.kernels.compile import callable_from_python, host, link


def run(kernel, *arrays, sizes=()):
    """Compile a kernel, and call it on arrays and sizes."""
    library = link(host().emit(kernel), kernel.name)
    code = callable_from_python(kernel.name, library, kernel.arguments)
    numbers = np.array(sizes, np.int64)
    code(*arrays, numbers)
