"""How a fully connected network that sees things anywhere becomes a convolution: `python docs/growth.py --data DIR`.

A linear layer and an MLP are trained to restore noisy digits of 14 x 14 pixels in frames of 24 x 24: one always in the
middle, one anywhere in the frame, or a frame cut out of a page with digits all over. Nothing tells them what a shift
is. `wherever.ladder.shares` says how much of the map from image to image is translation invariant and local, step by
step; of the MLP, whose hidden units have no place, that map is the mean Jacobian.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from wherever.ladder import Shares, shares

FRAME, NOISE, BATCH = 24, 0.5, 256
STEPS = (0, 10, 20, 50, 100, 200, 500, 1000, 2000)
COLOURS = {"on a page": "#2f7f86", "in the frame": "#b8892b", "in the middle": "#c9503c"}


def digits(folder: Path) -> Tensor:
    """Read the digits, brought to 14 x 14 pixels by averaging, values from 0 to 1."""
    data = gzip.decompress((folder / "mnist-10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(data, np.uint8, offset=16).reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) / 255
    return torch.from_numpy(images.astype(np.float32))


def framed(images: Tensor, where: str, count: int, rng: torch.Generator) -> Tensor:
    """Draw frames (count, FRAME²) with digits in them."""
    size = images.shape[-1]
    several, lowest, highest = {
        "in the middle": (1, (FRAME - size) // 2, (FRAME - size) // 2),
        "in the frame": (1, 0, FRAME - size),
        "on a page": (4, 1 - size, FRAME - 1),  # so that about one is seen, whole or in part
    }[where]
    wide = FRAME + 2 * size
    frames = torch.zeros(count, wide, wide)
    for _ in range(several):
        chosen = images[torch.randint(len(images), (count,), generator=rng)]
        at = size + torch.randint(lowest, highest + 1, (count, 2), generator=rng)
        rows, columns = (at[:, axis, None] + torch.arange(size) for axis in (0, 1))
        index = (torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
        frames[index] = torch.maximum(frames[index], chosen)
    return frames[:, size : size + FRAME, size : size + FRAME].reshape(count, -1)


def jacobian(model: nn.Sequential, x: Tensor) -> Tensor:
    """Average the derivative of outputs by inputs over images: the weights of a linear layer are it themselves."""
    with torch.no_grad():
        if len(model) == 1:
            return model[0].weight.detach()
        active = (model[0](x) > 0).float().mean(dim=0)
        return (model[2].weight * active) @ model[0].weight


def grow(images: Tensor, hidden: int, where: str) -> list[tuple[int, float, Shares, np.ndarray]]:
    """Train, and look at the weights at each of `STEPS`: step, error, shares, the map from image to image."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    n = FRAME**2
    layers = [nn.Linear(n, n)] if hidden == 0 else [nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, n)]
    model = nn.Sequential(*layers)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS[-1])
    clean = framed(images[-1000:], where, 512, rng)
    test = clean + NOISE * torch.randn(clean.shape, generator=rng)
    found = []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            with torch.no_grad():
                error = float(((model(test) - clean) ** 2).mean() / clean.var())
            W = jacobian(model, test).numpy().copy()
            found.append((step, error, shares(W, (FRAME, FRAME)), W))
        target = framed(images[:-1000], where, BATCH, rng)
        loss = ((model(target + NOISE * torch.randn(target.shape, generator=rng)) - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return found


def plot(path: Path, runs: dict[tuple[str, str], list[Any]]) -> None:
    """Draw the shares by step, and the weights of one pixel of the restored image as they grow."""
    figure = Figure(figsize=(10.5, 9.4), layout="constrained")
    FigureCanvasAgg(figure)
    top, below = figure.subfigures(2, 1, height_ratios=[3.4, 6])
    axes = top.subplots(1, 2, sharey=True)
    for axis, kind in zip(axes, ("linear layer", "MLP"), strict=True):
        for where, colour in COLOURS.items():
            run = runs[kind, where]
            steps = [max(step, 5) for step, *_ in run]
            axis.plot(steps, [s.invariant for _, _, s, _ in run], "o-", color=colour, markersize=4)
            axis.plot(steps, [s.local[3] for _, _, s, _ in run], "--", color=colour)
            at = (steps[-1], run[-1][2].invariant)
            axis.annotate(where, at, (0, 7), textcoords="offset points", ha="right", color=colour, fontsize=10)
        axis.axhline(run[0][2].chance_invariant, color="#6b6b6b", linewidth=0.8, linestyle=(0, (1, 2)))
        axis.set_xscale("log")
        axis.set_xticks([5, *STEPS[1:]], ["0", *map(str, STEPS[1:])], fontsize=8)
        axis.minorticks_off()
        axis.set_ylim(0, 1.08)
        axis.set_title(kind, fontsize=11)
        axis.set_xlabel("training steps")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of the weights' energy")
    axes[0].plot([], [], "o-", color="#222222", markersize=4, label="translation invariant")
    axes[0].plot([], [], "--", color="#222222", label="and within Δ = 3")
    axes[0].plot([], [], color="#6b6b6b", linewidth=0.8, linestyle=(0, (1, 2)), label="of weights without structure")
    axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    shown = [0, 20, 50, 100, 200, STEPS[-1]]
    grid = below.subplots(len(COLOURS), len(shown))
    pixel = (9, 14)
    for row, where in zip(grid, COLOURS, strict=True):
        run = {step: W for step, _, _, W in runs["linear layer", where]}
        for axis, step in zip(row, shown, strict=True):
            weights = run[step].reshape(FRAME, FRAME, FRAME, FRAME)[pixel]
            limit = np.abs(weights).max()
            axis.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.plot(pixel[1], pixel[0], "s", markersize=7, markerfacecolor="none", color="black", markeredgewidth=0.7)
            axis.set_xticks([])
            axis.set_yticks([])
            if where == next(iter(COLOURS)):
                axis.set_title(f"step {step}", fontsize=9)
        row[0].set_ylabel(where, fontsize=10)
    below.suptitle("what one pixel of the linear layer (the square) takes from the image", fontsize=10)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run all trainings, print the table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist-10k-images-idx3-ubyte.gz")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/growth.png"))
    options = parser.parse_args()
    images = digits(options.data)
    runs = {}
    print("network       digits         step  error  invariant  within 3  both  (by chance)")
    for kind, hidden in (("linear layer", 0), ("MLP", 1024)):
        for where in COLOURS:
            runs[kind, where] = grow(images, hidden, where)
            for step, error, s, _ in runs[kind, where]:
                print(
                    f"{kind:12}  {where:13}  {step:4}  {error:5.3f}  {s.invariant:9.1%}  {s.near[3]:8.1%}  "
                    f"{s.local[3]:4.0%}  {s.chance_invariant:.1%}, {s.chance_near[3]:.1%}, {s.chance_local[3]:.2%}",
                    flush=True,
                )
    plot(options.plot, runs)


if __name__ == "__main__":
    main()
