"""Every kernel of every algorithm is written for processors that are not here: code is emitted, and nothing run."""

import json
import os
import subprocess
import sys

import pytest

# In a process of its own, which believes to be another machine: what is compiled for it is counted, and a call does
# nothing. The problems are of all families of algorithms; each that does not refuse is prepared and run.
_ELSEWHERE = """
import dataclasses, json, sys
import llvmlite.binding as llvm
import numpy as np
from wherever.engine.kernels import compile as module

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
triple, cpu = sys.argv[1:]
elsewhere = module.Target(triple, cpu)
written = {}

class Silent:
    def __call__(self, *addresses):
        pass

    on = __call__

def compiled(write, **parameters):
    kernel = write(elsewhere, **parameters)
    if kernel.name not in written:
        written[kernel.name] = elsewhere.emit(kernel)[:4] == b"\\x7fELF"
    return Silent()

module.host, module.compiled, module.unavailable = lambda: elsewhere, compiled, lambda: None

from wherever.engine.algorithms import ALGORITHMS
from wherever.problem import ConvProblem

shapes = [
    ((2, 20, 20, 12), (24, 12, 3, 3), {"padding": 1}),
    ((1, 20, 20, 12), (24, 12, 3, 3), {"stride": 2, "padding": 1}),
    ((1, 20, 20, 12), (12, 1, 3, 3), {"groups": 12, "padding": 1}),
    ((1, 40, 40, 12), (12, 1, 9, 9), {"groups": 12, "padding": 4}),
    ((1, 64, 64, 1), (1, 1, 15, 15), {"padding": 7}),
    ((1, 400, 2), (2, 2, 31), {}),
    ((1, 1000, 1), (1, 1, 101), {}),
    ((1, 1000, 1), (1, 1, 31), {}),
    ((1, 9, 9, 9, 4), (8, 4, 3, 3, 3), {"padding": 1}),
]
for shape, kernel, options in shapes:
    for layout in ("channels_last", "channels_first"):
        for direction in ("forward", "transpose", "weight_gradient"):
            for dtype in ("float32", "float64") if layout == "channels_last" else ("float32",):
                x = shape if layout == "channels_last" else (shape[0], shape[-1], *shape[1:-1])
                p = ConvProblem.from_shapes(x, kernel, layout=layout, direction=direction, dtype=dtype, **options)
                source, operand = (np.ones(s, dtype) for s in (p.source_shape, p.operand_shape))
                for algorithm in ALGORITHMS:
                    if algorithm.refuses(p) is None and algorithm.name not in ("taps", "overlap_save", "im2col"):
                        algorithm.prepare(p, operand).run(source, np.zeros(p.result_shape, dtype), 1)
print(json.dumps([elsewhere.vector_bytes, elsewhere.registers, written]))
"""

_KERNELS = {
    "depthwise",
    "direct",
    "filter_rows",
    "fourier_forward",
    "fourier_inverse",
    "fourier_product",
    "fourier_tiles",
    "fourier_weights",
    "gather",
    "karatsuba",
    "passes",
    "places",
    "transpose",
    "winograd",
    "winograd_weights",
}


@pytest.mark.parametrize(
    ("triple", "cpu", "width", "registers"),
    [
        ("aarch64-unknown-linux-gnu", "neoverse-n1", 16, 32),
        ("x86_64-unknown-linux-gnu", "x86-64", 16, 16),
    ],
)
def test_all_kernels_are_written_for_other_processors(triple, cpu, width, registers, tmp_path):
    environment = {**os.environ, "WHEREVER_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _ELSEWHERE, triple, cpu]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vector_bytes, count, written = json.loads(done.stdout)
    assert (vector_bytes, count) == (width, registers)
    assert all(written.values())
    assert written.keys() >= _KERNELS
