"""What tiles cost: time a pixel and peak memory from 1 to 400 megapixels, and workers beside each other.

Run `python benchmarks/tiles.py [--sides 1000,2000,...] [--memory 1GiB] [--folder DIR] [--markdown FILE] [--plot FILE]`.
Every number comes from a process of its own, whose peak memory the kernel counted (as `/usr/bin/time -v` does); seconds
are those of the processor, which other work on the machine disturbs little; with workers, those of the clock. The
pictures are tiled, compressed TIFF files of 3 bands, uint8. "At once" is the same work in one tile, on a picture that
allows it. Prints Markdown.
"""

# ruff: noqa: E402  (the number of threads has to be set before NumPy is loaded)
from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

PIECE, REPEATED = 256, 8  # the picture repeats after so many tiles, none of which is like another
JOBS = ("find", "network to a map", "network, peaks only")
SIDES = (1000, 2000, 4000, 8000, 20_000)
AT_ONCE = 2000  # the side of the picture that is computed in one tile
OVER = 300 << 20  # bytes beyond the budget that are allowed: Python, libraries, the file's tables


def discs() -> tuple[np.ndarray, list[float]]:
    """A noisy picture with discs of one kind among others, and the box of the first."""
    side = PIECE * REPEATED
    draw = np.random.default_rng(0)
    values = draw.normal(120, 12, (side, side, 3)).astype(np.float32)
    y, x = np.mgrid[-12:13, -12:13]
    for number in range(900):
        cy, cx = draw.integers(14, side - 14, 2) if number else (40, 40)
        colour = (60, -40, 10) if number % 3 == 0 else (-50, 30, 40)
        values[cy - 12 : cy + 13, cx - 12 : cx + 13][np.hypot(y, x) < 9] += np.array(colour, np.float32)
    return values.clip(0, 255).astype(np.uint8), [29.0, 29.0, 51.0, 51.0]


def write(path: Path, side: int) -> None:
    """Write a picture of this side, each of its tiles compressed once."""
    image, _ = discs()
    packed = {
        (i, j): zlib.compress(np.ascontiguousarray(image[i * PIECE :, j * PIECE :][:PIECE, :PIECE]).tobytes(), 1)
        for i in range(REPEATED)
        for j in range(REPEATED)
    }
    count = -(-side // PIECE)

    def tiles() -> Iterator[bytes]:
        for i in range(count):
            for j in range(count):
                yield packed[i % REPEATED, j % REPEATED]

    tifffile.imwrite(
        path,
        tiles(),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(PIECE, PIECE),
        compression="zlib",
        photometric="rgb",
        metadata=None,
    )


def network() -> Any:
    """A small network for segmentation: two resolutions, 8 and 16 channels."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(16, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)),
    ).eval()


def job(name: str, path: Path, memory: str, workers: int) -> dict[str, float]:
    """Do one piece of work in this process; return seconds without imports."""
    import wherever
    from wherever import tiles

    wherever.set_threads(1)
    client = None
    if workers:
        from distributed import Client, LocalCluster

        client = Client(LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None))
        client.run(lambda: __import__("wherever").set_threads(1))
    detector, model = None, None
    if name == "find":
        image, box = discs()
        detector = wherever.Detector().fit(image, [box])
    else:
        import torch

        import wherever.torch.tiled  # loaded when it is needed: a second or more, once a process

        torch.set_num_threads(1)
        model = network()
    start, used = time.perf_counter(), time.process_time()
    if detector is not None:
        found = detector.find_in(path, memory=memory, client=client)
        assert len(found) > 3
    elif name == "network to a map":
        tiles.map(model, path, out=path.with_suffix(".scores.tif"), memory=memory, resume=False, client=client)
    else:
        tiles.peaks(model, path, memory=memory, radius=9, most=1000)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    if client is not None:
        client.shutdown()
        used = seconds
    return {"seconds": used}


def apart(name: str, path: Path, memory: str, workers: int = 0) -> tuple[float, float]:
    """Do one piece of work in a process of its own; return seconds and peak resident bytes."""
    command = [sys.executable, __file__, "--job", name, "--picture", str(path), "--memory", memory]
    process = subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} on {path} failed")
    return float(json.loads(text)["seconds"]), usage.ru_maxrss * 1024.0


def main() -> None:
    """Measure, and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", default=",".join(map(str, SIDES)))
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--folder")
    parser.add_argument("--markdown")
    parser.add_argument("--plot")
    parser.add_argument("--only", choices=JOBS)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--picture", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(job(given.job, Path(given.picture), given.memory, given.workers)))
        return
    from wherever.tiles.grid import as_bytes

    budget = as_bytes(given.memory)
    sides = [int(side) for side in given.sides.split(",")]
    lines = ["| work | megapixels | seconds | ns a pixel | beside at once | peak memory, MiB | of budget + 300 |"]
    lines.append("|---|---|---|---|---|---|---|")
    points: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        whole = Path(folder) / "whole.tif"
        write(whole, AT_ONCE)
        for name in [given.only] if given.only else JOBS:
            once = min(apart(name, whole, "6GiB")[0] for _ in range(3)) / AT_ONCE**2
            for side in sides:
                picture = Path(folder) / f"{side}.tif"
                if not picture.exists():
                    write(picture, side)
                seconds, peak = min(apart(name, picture, given.memory) for _ in range(1 if side > 8000 else 2))
                picture.with_suffix(".scores.tif").unlink(missing_ok=True)
                each = seconds / side**2
                points.setdefault(name, []).append((side**2 / 1e6, each * 1e9))
                lines.append(
                    f"| {name} | {side**2 / 1e6:g} | {seconds:.2f} | {each * 1e9:.1f} | {each / once:.2f} | "
                    f"{peak / 2**20:.0f} | {peak / (budget + OVER):.2f} |"
                )
                print(lines[-1], file=sys.stderr)
        if given.workers:
            picture = Path(folder) / "8000.tif"
            if not picture.exists():
                write(picture, 8000)
            one, many = (apart("find", picture, "256MiB", workers)[0] for workers in (1, given.workers))
            lines += ["", f"Dask, find on 64 megapixels: {given.workers} workers are {one / many:.2f} times one."]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.markdown:
        Path(given.markdown).write_text(text)
    if given.plot:
        draw(points, Path(given.plot))


def draw(points: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Plot the cost of a pixel over the size of the picture."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for (name, values), marker in zip(points.items(), "os^", strict=False):
        axes.plot(*zip(*values, strict=True), marker=marker, label=name)
    axes.set(xscale="log", xlabel="megapixels", ylabel="ns a pixel, one thread", title="Cost of a pixel, budget 1 GiB")
    axes.set_xticks([1, 4, 16, 64, 400], ["1", "4", "16", "64", "400"], minor=False)
    axes.minorticks_off()
    axes.set_ylim(0, 1.25 * max(cost for values in points.values() for _, cost in values))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, ncols=3, loc="upper center")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
