"""Memory that algorithms need beside operands and result, as the system counts it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_MEASURE = """
import gc, json, sys
import numpy as np
from wherever.engine import run
from wherever.engine.algorithms import ALGORITHMS
from wherever.engine.machine import Machine
from wherever.problem import ConvProblem

def resident(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(what))

x, w, options = json.loads(sys.argv[1])
p = ConvProblem.from_shapes(tuple(x), tuple(w), **options)
source, operand = np.ones(p.source_shape, p.dtype), np.ones(p.operand_shape, p.dtype)
out, found = np.ones(p.result_shape, p.dtype), {}
serve = {a: a.estimate(p, Machine()) for a in ALGORITHMS if a.refuses(p) is None}
for algorithm in serve:
    if serve[algorithm] > 4 * min(serve.values()):  # slow, and never chosen
        continue
    prepared = algorithm.prepare(p, operand)
    prepared.run(source, out, 1)  # what is compiled is not counted, nor tables that are kept
    run._arena.memory.clear()
    run._left.clear()
    gc.collect()
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = resident("VmRSS")
    prepared.run(source, out, 1)
    found[algorithm.name] = resident("VmHWM") - before, algorithm.workspace(p)
print(json.dumps([source.nbytes + out.nbytes, found]))
"""

_CASES: dict[str, Any] = {
    "layer": ((1, 1400, 1400, 16), (4, 16, 3, 3), {"padding": 1, "layout": "channels_last"}),
    "layer, channels first": ((1, 16, 1400, 1400), (4, 16, 3, 3), {"padding": 1}),
    "images": ((8, 1, 2048, 2048), (1, 1, 15, 15), {"padding": 7, "boundary": "reflect"}),
    "depthwise": ((1, 1400, 1400, 16), (16, 1, 5, 5), {"padding": 2, "groups": 16, "layout": "channels_last"}),
    "signals": ((1, 8, 4_000_000), (8, 1, 31), {"groups": 8, "padding": 15}),
    "transpose": (
        (1, 2400, 2400, 4),
        (16, 4, 2, 2),
        {"stride": 2, "direction": "transpose", "layout": "channels_last"},
    ),
    "weights": ((1, 16, 1400, 1400), (4, 16, 3, 3), {"padding": 1, "direction": "weight_gradient"}),
}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not tell peaks of memory")
@pytest.mark.parametrize("case", _CASES)
def test_memory_beside_operands_and_result(case, tmp_path):
    """64 MiB at most, or what the plan says; a copy of an image would be more."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _MEASURE, json.dumps(_CASES[case])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(tmp_path), check=False)
    assert done.returncode == 0, done.stderr
    operands, found = json.loads(done.stdout)
    assert operands > 1.5 * (64 << 20)
    assert found
    # What the system counts has pages of the code, of tables and of small arrays in it.
    above = {name: sizes for name, sizes in found.items() if sizes[0] > max(64 << 20, sizes[1]) + (4 << 20)}
    assert not above
