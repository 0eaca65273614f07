"""The operation beside its peers: ours, PyTorch, SciPy and OpenCV interleaved in one process; medians and ratios.

    python benchmarks/conv.py [--threads N] [--rounds N] [--only TEXT] [--markdown FILE]

Every contender's result is compared with ours before anything is timed. Weights are prepared beforehand where a library
can (ours, PyTorch's own layout of weights is left to it); PyTorch is timed in both memory layouts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

parser = argparse.ArgumentParser(description="Convolutions beside their peers.")
parser.add_argument("--threads", type=int, default=1, help="threads of every library (default 1)")
parser.add_argument("--rounds", type=int, default=15, help="how often each contender runs (default 15)")
parser.add_argument("--only", default="", help="only the cases whose name contains this")
parser.add_argument("--markdown", type=Path, help="also write the table to this file")
options = parser.parse_args()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when NumPy is imported
    os.environ[variable] = str(options.threads)

import numpy as np  # noqa: E402
import scipy.ndimage  # noqa: E402
import scipy.signal  # noqa: E402

import wherever  # noqa: E402
from wherever.ops import plan  # noqa: E402

try:
    import torch
except ImportError:
    torch = None
try:
    import cv2
except ImportError:
    cv2 = None

wherever.set_threads(options.threads)
if torch is not None:
    torch.set_num_threads(options.threads)
if cv2 is not None:
    cv2.setNumThreads(options.threads)


@dataclass(frozen=True)
class Case:
    """A convolution of float32 numbers: shapes and options of `wherever.conv`."""

    family: str
    name: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    options: dict[str, object] = field(default_factory=dict)


def cases() -> Iterator[Case]:
    """Layers of known networks, image filters, signals, and the source's own layer."""
    same = {"padding": "same"}
    yield Case("layers", "3x3, 64 to 64, 56x56 (ResNet)", (1, 64, 56, 56), (64, 64, 3, 3), same)
    yield Case("layers", "3x3, 512 to 512, 14x14 (VGG)", (1, 512, 14, 14), (512, 512, 3, 3), same)
    yield Case("layers", "1x1, 256 to 64, 56x56 (ResNet)", (1, 256, 56, 56), (64, 256, 1, 1), same)
    yield Case("layers", "7x7 stride 2, 3 to 64, 224x224", (1, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3})
    yield Case("layers", "5x5, 32 to 32, 128x128", (1, 32, 128, 128), (32, 32, 5, 5), same)
    yield Case("layers", "7x7, 64 to 64, 128x128", (1, 64, 128, 128), (64, 64, 7, 7), same)
    yield Case("layers", "15x15, 64 to 64, 128x128", (1, 64, 128, 128), (64, 64, 15, 15), same)
    yield Case("layers", "31x31, 16 to 16, 256x256", (1, 16, 256, 256), (16, 16, 31, 31), same)
    yield Case("layers", "3x3x3, 32 to 32, 32x32x32 (U-Net 3-D)", (1, 32, 32, 32, 32), (32, 32, 3, 3, 3), same)
    deep = {"padding": "same", "groups": 128}
    yield Case("depthwise", "3x3, 128 channels, 56x56", (1, 128, 56, 56), (128, 1, 3, 3), deep)
    yield Case("depthwise", "7x7, 128 channels, 56x56", (1, 128, 56, 56), (128, 1, 7, 7), deep)
    yield Case("depthwise", "31x31, 128 channels, 56x56", (1, 128, 56, 56), (128, 1, 31, 31), deep)
    for r in (3, 7, 15, 31, 63, 255):
        yield Case("filters", f"{r}x{r} on 2048x2048", (1, 1, 2048, 2048), (1, 1, r, r), same)
    for r in (31, 255, 4095, 65535):
        yield Case("signals", f"{r} taps on 10^6 samples", (1, 1, 10**6), (1, 1, r), same)
    yield Case("signals", "WaveNet: 64 to 64, dilation 8", (1, 64, 16000), (64, 64, 2), {"dilation": 8})
    yield Case("the source", "1999x1999 on 1000x1000", (1, 1, 1000, 1000), (1, 1, 1999, 1999), same)


def contenders(case: Case, x: np.ndarray, w: np.ndarray) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Functions that compute the case, ours first."""
    ours = plan(case.x, case.w, **case.options).prepare(w)
    out = np.empty_like(ours(x))
    yield "wherever", lambda: ours(x, out=out)
    spatial, groups = len(case.w) - 2, case.options.get("groups", 1)
    work = np.prod(out.shape) * np.prod(case.w[1:])
    # What takes a peer many seconds is left out: with one channel PyTorch runs at 1 to 3 GFLOP/s.
    if torch is not None and work < (1e11 if case.x[1] > 1 else 5e9):
        function = getattr(torch.nn.functional, f"conv{spatial}d")
        arguments = {**case.options, "padding": case.options.get("padding", 0)}
        tx, tw = torch.from_numpy(x), torch.from_numpy(w)
        with torch.inference_mode():
            yield "torch", lambda: function(tx, tw, **arguments).numpy()
            form = {2: torch.channels_last, 3: torch.channels_last_3d}.get(spatial)
            if form is not None and case.x[1] > 1:
                lx, lw = tx.to(memory_format=form), tw.to(memory_format=form)
                yield "torch channels_last", lambda: function(lx, lw, **arguments).numpy()
    if case.w[:2] == (1, 1) and groups == 1:
        image, kernel = x[0, 0], w[0, 0]
        flipped = np.ascontiguousarray(np.flip(kernel))
        yield "scipy.signal", lambda: scipy.signal.oaconvolve(image, flipped, "same")[None, None]
        if work < 5e9:
            yield "scipy.ndimage", lambda: scipy.ndimage.correlate(image, kernel, mode="constant")[None, None]
        if cv2 is not None and work < 5e11:
            matrix, row = (image, kernel) if spatial == 2 else (image[None], kernel[None])
            border = cv2.BORDER_CONSTANT
            shape = out.shape
            yield "OpenCV", lambda: cv2.filter2D(matrix, cv2.CV_32F, row, borderType=border).reshape(shape)


def measure(case: Case) -> dict[str, float]:
    """Median seconds of each contender, run in turns."""
    random = np.random.default_rng(0)
    x, w = random.standard_normal(case.x, np.float32), random.standard_normal(case.w, np.float32)
    running = dict(contenders(case, x, w))
    truth = running["wherever"]().copy()
    scale = np.abs(truth).max()
    for name, function in list(running.items()):
        start = time.perf_counter()
        error = np.abs(function() - truth).max() / scale
        if error > 1e-4:
            print(f"{case.name}: {name} differs by {error:.2g}", file=sys.stderr)
            del running[name]
        elif time.perf_counter() - start > 20:
            del running[name]
    times: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(options.rounds):
        for name, function in running.items():
            if turn >= 3 and sum(times[name]) > 3:
                continue  # slow enough to know
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    lines = [
        "| case | algorithm | wherever, ms | best peer, ms | which | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    ratios: dict[str, list[float]] = {}
    for case in cases():
        if options.only not in case.name:
            continue
        times = measure(case)
        ours = times.pop("wherever")
        peer = min(times, key=lambda name: times[name])
        ratio = times[peer] / ours
        ratios.setdefault(case.family, []).append(ratio)
        algorithm = plan(case.x, case.w, **case.options).algorithm
        line = f"| {case.name} | {algorithm} | {ours * 1e3:.3g} | {times[peer] * 1e3:.3g} | {peer} | {ratio:.2f} |"
        lines.append(line)
        print(line, flush=True)
    means = ", ".join(f"{family} {statistics.geometric_mean(r):.2f}" for family, r in ratios.items())
    lines.append(f"\n{options.threads} thread(s), float32; geometric means: {means}.")
    print(lines[-1])
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
