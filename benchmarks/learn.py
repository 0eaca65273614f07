"""Detectors that are trained, beside the closed form, OpenCV's matchTemplate and a CenterNet-style network in PyTorch.

Run `python benchmarks/learn.py [--only blood,waldo,examples,time] [--methods ...] [--budget SECONDS] [--draws N]
[--folds 0,1,...] [--plot FILE] [--markdown FILE]` with the environment variable WHEREVER_DATA naming the folder of
bccd.tar and waldo_12.tar. Prints Markdown. One thread; budgets and training times are seconds of the processor, so that
what else the machine does changes nothing.
"""

# ruff: noqa: E402  (the number of threads has to be set before NumPy is loaded)
from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from find import KINDS, Blood, Boxes, Finder, opencv, table, waldo_scenes
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

import wherever
from wherever.find import Detector, average_precision
from wherever.find.boxes import suppress

Image = NDArray[Any]


# --- a plain network in PyTorch --------------------------------------------------------------------------------------


class CenterNet(nn.Module):
    """Objects as points (Zhou, Wang, Krähenbühl 2019), small: stride 4, a heat map, log sizes and offsets."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(
            *stage(channels, 16, 2), *stage(16, 32), *stage(32, 48, 2), *stage(48, 64), *stage(64, 64, 1, 2),
            *stage(64, 64, 1, 4), *stage(64, 64, 1, 8), *stage(64, 64),
        )  # fmt: skip
        self.heat, self.shape = nn.Conv2d(64, 1, 1), nn.Conv2d(64, 4, 1)
        nn.init.constant_(self.heat.bias, -4.0)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (N, 1, H/4, W/4), and log width, log height (in pixels / 32) and offsets (N, 4, ...)."""
        found = self.body(x)
        return self.heat(found), self.shape(found)


STRIDE, CROP = 4, 256


def targets(boxes: Boxes, size: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return heat map, shapes and weights of the shapes of boxes in a square of `size` pixels."""
    side = size // STRIDE
    heat, shapes, weights = np.zeros((side, side)), np.zeros((4, side, side)), np.zeros((side, side))
    y, x = np.mgrid[:side, :side]
    for x0, y0, x1, y1 in boxes:
        cx, cy = (x0 + x1) / 2 / STRIDE, (y0 + y1) / 2 / STRIDE
        column, row = int(cx), int(cy)
        if not (0 <= column < side and 0 <= row < side):
            continue
        sigma = max(math.sqrt((x1 - x0) * (y1 - y0)) / STRIDE / 6, 0.7)
        heat = np.maximum(heat, np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma**2)))
        shapes[:, row, column] = math.log((x1 - x0) / 32), math.log((y1 - y0) / 32), cx - column, cy - row
        weights[row, column] = 1
    return heat, shapes, weights


def normalised(image: Image) -> NDArray[np.float32]:
    values = image.astype(np.float32)
    return np.asarray((values - values.mean((0, 1))) / (values.std() + 1e-6), np.float32)


def sample(images: Sequence[Image], boxes: Sequence[Boxes], random: np.random.Generator) -> tuple[Any, ...]:
    """Return a crop with its targets: half of them around an object; mirrored, turned, of other colours."""
    index = random.integers(len(images))
    image, each = images[index], boxes[index]
    height, width = image.shape[:2]
    if len(each) and random.random() < 0.5:
        x0, y0, x1, y1 = each[random.integers(len(each))]
        left, top = (x0 + x1) / 2 - random.uniform(0.1, 0.9) * CROP, (y0 + y1) / 2 - random.uniform(0.1, 0.9) * CROP
    else:
        left, top = random.uniform(0, max(width - CROP, 1)), random.uniform(0, max(height - CROP, 1))
    left, top = int(np.clip(left, 0, max(width - CROP, 0))), int(np.clip(top, 0, max(height - CROP, 0)))
    part = np.zeros((CROP, CROP, image.shape[2]), np.float32)
    cut = image[top : top + CROP, left : left + CROP]
    part[: cut.shape[0], : cut.shape[1]] = cut
    moved = each - [left, top, left, top]
    if random.random() < 0.5:
        part, moved = part[:, ::-1], np.stack([CROP - moved[:, 2], moved[:, 1], CROP - moved[:, 0], moved[:, 3]], 1)
    part = part * random.uniform(0.8, 1.25) * random.uniform(0.9, 1.1, 3) + random.normal(0, 0.1, 3)
    return part.transpose(2, 0, 1).astype(np.float32), *targets(moved, CROP)


def center_net(images: Sequence[Image], boxes: Sequence[Boxes], budget: float, ignore: Any = None) -> Finder:
    """Train the plain network for so many seconds: focal loss of the heat map, L1 of the shapes, as in the paper."""
    torch.manual_seed(0)
    random, net = np.random.default_rng(0), CenterNet(images[0].shape[2])
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    prepared, begun = [normalised(image) for image in images], time.process_time()
    while (done := (time.process_time() - begun) / budget) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * done)) + 1e-5
        batch = zip(*(sample(prepared, boxes, random) for _ in range(4)), strict=True)
        x, heat, shapes, weights = (torch.from_numpy(np.stack(part).astype(np.float32)) for part in batch)
        logits, found = net(x)
        log_p, log_q = functional.logsigmoid(logits[:, 0]), functional.logsigmoid(-logits[:, 0])
        p, centre = logits[:, 0].sigmoid(), weights > 0
        focal = torch.where(centre, (1 - p) ** 2 * log_p, (1 - heat) ** 4 * p**2 * log_q)
        count = max(float(weights.sum()), 1.0)
        loss = (-focal.sum() + ((found - shapes).abs().sum(1) * weights).sum()) / count
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()

    def find(image: Image) -> tuple[Boxes, NDArray[Any]]:
        values = normalised(image).transpose(2, 0, 1)
        pads = [(0, 0), *((0, -n % STRIDE) for n in values.shape[1:])]
        with torch.no_grad():
            logits, found = net(torch.from_numpy(np.pad(values, pads))[None])
        score = logits[0, 0]
        peak = (score == functional.max_pool2d(score[None, None], 3, 1, 1)[0, 0]).numpy()
        y, x = np.nonzero(peak)
        best = np.argsort(-score.numpy()[y, x])[:1000]
        y, x = y[best], x[best]
        shape = found[0].numpy()[:, y, x]
        size = 32 * np.exp(np.clip(shape[:2], -3, 3)).T
        middle = np.stack([x + shape[2], y + shape[3]], 1) * STRIDE
        every, scores = np.hstack([middle - size / 2, middle + size / 2]), score.numpy()[y, x].astype(float)
        kept = suppress(every, scores, 0.4)
        return every[kept], scores[kept]

    return find


# --- ours ------------------------------------------------------------------------------------------------------------


def detector(
    images: Sequence[Image], boxes: Sequence[Boxes], budget: float, ignore: Any = None, *, kind: str
) -> Finder:
    options = {"complete": True, "ignore": ignore, "clock": time.process_time}
    made = Detector(kind=kind, budget=budget).fit(images, boxes, **options)  # type: ignore[arg-type]
    return lambda image: made.find(image, top=2000)


def template(images: Sequence[Image], boxes: Sequence[Boxes], budget: float, ignore: Any = None) -> Finder:
    """Compare with at most 10 of the examples: more take minutes."""
    left, kept = 10, []
    for each in boxes:
        kept.append(each[:left])
        left -= len(kept[-1])
    return opencv(images, kept)


Learn = Callable[..., Finder]
METHODS: dict[str, Learn] = {
    "matchTemplate": template,
    "closed": partial(detector, kind="closed"),
    "centernet": center_net,
    "head": partial(detector, kind="head"),
    "learned": partial(detector, kind="learned"),
    "auto": partial(detector, kind="auto"),
}
NAMES = {
    "matchTemplate": "OpenCV matchTemplate, 5 scales",
    "closed": "closed form",
    "centernet": "CenterNet-style, PyTorch",
    "head": "closed form + head",
    "learned": "network",
    "auto": "auto",
}


def seconds_of(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    begun = time.process_time()
    return function(*arguments), time.process_time() - begun


def blood_scores(cells: Blood, method: str, number: int, budget: float, draws: int, most: int) -> Iterator[Any]:
    """Yield kind, average precision, and seconds of training and of a picture, of each kind and draw."""
    for kind in KINDS:
        for draw in range(draws):
            examples = cells.examples(kind, str(number), draw)
            find, training = seconds_of(
                METHODS[method], [cells.image(n) for n in examples], list(examples.values()), budget
            )
            names = cells.split(draw)[1][:most]
            found, sweep = seconds_of(lambda f=find, n=names: [f(cells.image(name)) for name in n])
            result = average_precision(found, [cells.boxes[n][kind] for n in names])
            yield kind, result.ap, training, sweep / len(names)


def blood(folder: Path, given: argparse.Namespace) -> str:
    """AP on blood cells from 1 and 10 complete pictures."""
    cells, rows = Blood(folder), []
    for number in (1, 10):
        for method in given.methods:
            scores = list(blood_scores(cells, method, number, given.budget, given.draws, given.pictures))
            each = [np.mean([s[1] for s in scores if s[0] == kind]) for kind in KINDS]
            training, sweep = (np.mean([s[i] for s in scores]) for i in (2, 3))
            times = [f"{training:.1f} s", f"{sweep * 1e3:.0f} ms"]
            rows.append([str(number), NAMES[method], *(f"{ap:.2f}" for ap in each), f"{np.mean(each):.3f}", *times])
            print(*rows[-1], sep=" | ", flush=True)
    return (
        f"## Blood cells\n\nAverage precision at IoU 0.5, {given.draws} draws, {given.pictures} other pictures; "
        f"networks within {given.budget:g} s.\n\n"
        + table(["complete pictures", "method", *KINDS, "mean", "training", "a picture"], rows)
    )


def waldo(folder: Path, given: argparse.Namespace) -> str:
    """The rank of Waldo among the finds of scenes held out, two at a time."""
    images, marked, ignored = waldo_scenes(folder)
    names = list(images)
    rows = []
    for method in given.methods:
        ranks, swept, pixels, trained = [], 0.0, 0, 0.0
        for fold in given.folds:
            held_out = names[2 * fold : 2 * fold + 2]
            known = [name for name in names if name not in held_out]
            find, training = seconds_of(
                METHODS[method],
                [images[n] for n in known],
                [marked[n] for n in known],
                given.budget,
                [ignored[n] for n in known],
            )
            trained += training / len(given.folds)
            for name in held_out:
                found, seconds = seconds_of(find, images[name])
                swept, pixels = swept + seconds, pixels + images[name].shape[0] * images[name].shape[1]
                hits = average_precision([found], [marked[name]], match="centre", ignore=[ignored[name]]).hits
                ranks.append(int(np.argmax(hits)) + 1 if hits.any() else 2001)
            print(method, "fold", fold, "ranks", ranks, flush=True)
        shares = [f"{np.mean([r <= most for r in ranks]):.2f}" for most in (1, 5, 20)]
        middle = f"{np.median(ranks):g}"
        times = [f"{trained:.0f} s", f"{swept / pixels * 1e6:.2f} s"]
        rows.append([NAMES[method], *shares, middle, str(sorted(ranks)).strip("[]"), *times])
        print(*rows[-1], sep=" | ", flush=True)
    header = ["method", "first", "in first 5", "in first 20", "median rank", "ranks", "training", "a megapixel"]
    return (
        f"## Where's Waldo\n\nTrained on the other scenes, two held out at a time, {2 * len(given.folds)} scenes; "
        f"networks within {given.budget:g} s.\n\n" + table(header, rows)
    )


def curves(folder: Path, given: argparse.Namespace, what: str) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """Mean AP on blood cells against the number of complete pictures, or against the time of training."""
    cells = Blood(folder)
    steps = (1, 2, 5, 10) if what == "examples" else (2.0, 5.0, 15.0, 45.0)
    lines: dict[str, list[tuple[float, float]]] = {}
    for method in given.methods:
        for step in steps:
            number, budget = (step, given.budget) if what == "examples" else (10, step)
            scores = list(blood_scores(cells, method, int(number), budget, given.draws, given.pictures))
            lines.setdefault(NAMES[method], []).append((step, float(np.mean([s[1] for s in scores]))))
            print(what, method, *lines[NAMES[method]][-1], flush=True)
    title = "complete pictures" if what == "examples" else "seconds of training, 10 pictures"
    rows = [[name, *(f"{ap:.3f}" for _, ap in line)] for name, line in lines.items()]
    return f"## Mean AP against {title}\n\n" + table(["method", *map(str, steps)], rows), lines


def plot(path: Path, drawn: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(drawn), figsize=(4.5 * len(drawn), 3.5), layout="constrained", squeeze=False)
    for axis, (what, lines) in zip(axes[0], drawn.items(), strict=True):
        for name, line in lines.items():
            axis.plot(*zip(*line, strict=True), marker="o", label=name)
        axis.set_xscale("log")
        axis.set_xlabel("complete pictures" if what == "examples" else "seconds of training (10 pictures)")
        axis.set_ylabel("mean average precision, blood cells")
        steps = [step for step, _ in next(iter(lines.values()))]
        axis.set_xticks(steps, [f"{step:g}" for step in steps])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="blood,waldo", help="comma-separated: blood, waldo, examples, time")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated: " + ", ".join(METHODS))
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of training")
    parser.add_argument("--draws", type=int, default=2, help="of examples, blood cells")
    parser.add_argument("--pictures", type=int, default=97, help="to test on, blood cells")
    parser.add_argument(
        "--folds",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[0, 1, 2, 3, 4, 5],
        help="of two scenes each, Waldo: 0,1,2,...",
    )
    parser.add_argument("--plot", type=Path, help="draw the curves to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file, too")
    given = parser.parse_args()
    given.methods = given.methods.split(",")
    data = os.environ.get("WHEREVER_DATA")
    if data is None:
        parser.error("set WHEREVER_DATA to the folder of the data")
    torch.set_num_threads(1)
    wherever.set_threads(1)
    sections, drawn = [], {}
    for part in given.only.split(","):
        if part in ("examples", "time"):
            text, drawn[part] = curves(Path(data), given, part)
        else:
            text = {"blood": blood, "waldo": waldo}[part](Path(data), given)
        sections.append(text)
        print("\n" + text, flush=True)
    if given.plot and drawn:
        plot(given.plot, drawn)
    if given.markdown:
        given.markdown.write_text("\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
