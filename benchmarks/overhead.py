"""What a convolution costs beside its arithmetic: imports, the first call, a tiny call, planning.

    python benchmarks/overhead.py [--repeats 7]

Fresh processes are started for imports and first calls, with a cache that holds nothing and then with what the first of
them left there. A first call is counted beyond a later one of the same convolution. Pin the process (`taskset -c 0`)
for steady numbers on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when NumPy is imported
    os.environ[_name] = "1"

import numpy as np  # noqa: E402

import wherever  # noqa: E402

# What first calls are measured on: (x, w, options), one for each family of kernels.
FIRST = {
    "layer 3x3": ((1, 56, 56, 64), (64, 64, 3, 3), {"padding": 1, "layout": "channels_last"}),
    "layer 3x3, channels first": ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "layer 3x3, stride 2": ((1, 56, 56, 64), (64, 64, 3, 3), {"padding": 1, "stride": 2, "layout": "channels_last"}),
    "depthwise 3x3": ((1, 56, 56, 64), (64, 1, 3, 3), {"padding": 1, "groups": 64, "layout": "channels_last"}),
    "layer 7x7": ((1, 56, 56, 64), (64, 64, 7, 7), {"padding": 3, "layout": "channels_last"}),
    "image 3x3": ((1, 512, 512), (1, 1, 3, 3), {"padding": 1}),
    "image 31x31": ((1, 512, 512), (1, 1, 31, 31), {"padding": 15}),
}
TINY = {
    "8x8, 3 to 4": ((1, 8, 8, 3), (4, 3, 3, 3), {"layout": "channels_last"}),
    "8x8, 3 to 4, channels first": ((1, 3, 8, 8), (4, 3, 3, 3), {}),
    "8x8, 16 to 16, padded": ((1, 8, 8, 16), (16, 16, 3, 3), {"padding": 1, "layout": "channels_last"}),
    "16x16, one channel, padded": ((1, 1, 16, 16), (1, 1, 3, 3), {"padding": 1}),
    "8x8, depthwise 16": ((1, 8, 8, 16), (16, 1, 3, 3), {"padding": 1, "groups": 16, "layout": "channels_last"}),
    "8x8, 1x1, 16 to 16": ((1, 8, 8, 16), (16, 16, 1, 1), {"layout": "channels_last"}),
    "signal of 32, 5 taps": ((1, 1, 32), (1, 1, 5), {}),
}
ONCE = {
    "7x7, 512 to 512, 3x3": ((1, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}),
    "14x14, 256 to 256, 3x3": ((1, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}),
    "7x7, 512 to 2048, 1x1": ((1, 512, 7, 7), (2048, 512, 1, 1), {}),
    "7x7, 256 to 256, 5x5": ((1, 256, 7, 7), (256, 256, 5, 5), {"padding": 2}),
    "28x28, 128 to 128, 3x3": ((1, 128, 28, 28), (128, 128, 3, 3), {"padding": 1}),
}
NEW = {
    "layer 3x3": ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "layer 1x1": ((1, 64, 56, 56), (256, 64, 1, 1), {}),
    "depthwise 9x9": ((1, 128, 56, 56), (128, 1, 9, 9), {"padding": 4, "groups": 128}),
    "volume 3x3x3": ((1, 16, 32, 32, 32), (32, 16, 3, 3, 3), {"padding": 1}),
    "image 15x15": ((1, 1, 2048, 2048), (1, 1, 15, 15), {"padding": 7}),
    "signal, 255 taps": ((1, 1, 1_000_000), (1, 1, 255), {}),
}

_FRESH = """
import json, sys, time
x_shape, w_shape, options = json.loads(sys.argv[1])
start = time.perf_counter()
import numpy as np
numpy_imported = time.perf_counter()
import wherever
front_door = time.perf_counter()
wherever.conv
imported = time.perf_counter()
x, w = np.random.rand(*x_shape).astype("f"), np.random.rand(*w_shape).astype("f")
wherever.set_threads(1)
times = []
for call in range(6):
    began = time.perf_counter()
    wherever.conv(x, w, **options)
    times.append(time.perf_counter() - began)
print(json.dumps([numpy_imported - start, front_door - numpy_imported, imported - front_door, times[0] - min(times)]))
"""


def fresh(case: tuple, cache: str) -> list[float]:
    """Seconds, in a fresh process: imports of NumPy, the front door, and conv; the first call beyond a later one."""
    command = [sys.executable, "-c", _FRESH, json.dumps(case)]
    environment = {**os.environ, "WHEREVER_CACHE_DIR": cache}
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def median(function: Callable[[], object], repeats: int) -> float:
    """Seconds of one call: the median of samples of 2 ms and more."""
    function()
    start = time.perf_counter()
    function()
    number = max(1, round(2e-3 / (time.perf_counter() - start)))
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(number):
            function()
        spent.append((time.perf_counter() - start) / number)
    return statistics.median(spent)


def peer(x: np.ndarray, w: np.ndarray, options: dict) -> Callable[[], object] | None:
    """PyTorch's function on the same numbers, as its users call it."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    rest = {name: value for name, value in options.items() if name != "layout"}
    tx, tw = torch.from_numpy(np.moveaxis(x, -1, 1) if "layout" in options else x), torch.from_numpy(w)
    function = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")

    def run() -> object:
        with torch.inference_mode():
            return function(tx, tw, **rest)

    return run


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n")
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def numbers(case: tuple) -> tuple[np.ndarray, np.ndarray, dict]:
    """Random operands of a case."""
    random = np.random.default_rng(0)
    x, w, options = case
    return random.standard_normal(x, np.float32), random.standard_normal(w, np.float32), options


def first_calls(repeats: int) -> None:
    """Imports and first calls."""
    rows, imports = [], []
    for name, case in FIRST.items():
        with tempfile.TemporaryDirectory() as cache:
            *_, cold = fresh(case, cache)
            warm = [fresh(case, cache) for _ in range(repeats)]
        imports += [run[:3] for run in warm]
        rows.append([name, f"{statistics.median(run[3] for run in warm) * 1e3:.1f}", f"{cold * 1e3:.0f}"])
    seconds = [statistics.median(each) * 1e3 for each in zip(*imports, strict=True)]
    header = ["imported", "ms"]
    names = ("NumPy", "wherever, after NumPy", "wherever.conv, after that")
    table("Imports", header, [[name, f"{ms:.1f}"] for name, ms in zip(names, seconds, strict=True)])
    table("First call beyond a later one, ms", ["", "kernels in the cache", "empty cache"], rows)


def calls(cases: dict, unit: float, repeats: int, *, changing: bool) -> None:
    """Calls with weights as they come, and prepared, beside PyTorch's function."""
    rows = []
    for name, case in cases.items():
        x, w, options = numbers(case)
        plan = wherever.plan(x.shape, w.shape, threads=1, **options)
        prepared = plan.prepare(w)
        out = prepared(x)
        functions = [
            lambda x=x, w=w, o=options: wherever.conv(x, w, **o),
            lambda x=x, w=w, o=options, out=out: wherever.conv(x, w, out=out, **o),
            lambda f=prepared, x=x: f(x),
            lambda f=prepared, x=x, out=out: f(x, out),
        ]
        if changing:
            others = [w + seed for seed in range(20)]

            def new(x=x, others=others, o=options) -> None:
                others.append(others.pop(0))
                wherever.conv(x, others[0], **o)

            functions[1] = new
        torch = peer(x, w, options)
        times = [median(function, repeats) for function in (*functions, *([torch] if torch else []))]
        algorithms = (
            f"{wherever.plan(x.shape, w.shape, threads=1, prepared=False, **options).algorithm}, {plan.algorithm}"
        )
        rows.append([name, algorithms, *(f"{seconds / unit:.3g}" for seconds in times)])
    header = ["", "algorithms", "conv(x, w)", "of new weights" if changing else "out=", "prepared", "out=", "PyTorch"]
    table(f"Calls, {'ms' if unit == 1e-3 else 'microseconds'}", header, rows)


def planning() -> None:
    """Plans of shapes that are new."""
    rows = []
    for name, (x, w, options) in NEW.items():
        spent = []
        for more in range(5):
            start = time.perf_counter()
            plan = wherever.plan((1 + more, *x[1:]), w, threads=1, **options)
            spent.append(time.perf_counter() - start)
        rows.append([name, plan.algorithm, f"{statistics.median(spent) * 1e3:.2f}"])
    table("Planning a new shape, ms", ["", "algorithm", "ms"], rows)


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="samples of each number (default 7)")
    parser.add_argument("--only", choices=["first", "tiny", "once", "planning"], help="this table and no other")
    options = parser.parse_args()
    wherever.set_threads(1)
    if options.only in (None, "first"):
        first_calls(options.repeats)
    if options.only in (None, "planning"):
        planning()
    if options.only in (None, "tiny"):
        calls(TINY, 1e-6, options.repeats, changing=False)
    if options.only in (None, "once"):
        calls(ONCE, 1e-3, options.repeats, changing=True)


if __name__ == "__main__":
    main()
