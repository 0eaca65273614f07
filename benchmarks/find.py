"""What the detector reaches: blood cells, coins, a spectral scene and Waldo, beside OpenCV's matchTemplate.

Run `python benchmarks/find.py [--quick] [--only blood,coins,spectral,waldo] [--markdown FILE]` with the environment
variable WHEREVER_DATA naming the folder of bccd.tar, jasper_ridge_198_bands.mat and waldo_12.tar. Prints Markdown.
"""

# ruff: noqa: E402  (the number of threads has to be set before NumPy is loaded)
from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import argparse
import csv
import importlib.util
import io
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

import wherever
from wherever.find import Detector, average_precision
from wherever.find.boxes import clip, suppress

KINDS = ("RBC", "WBC", "Platelets")
BUDGETS = {"1 example": 1, "5 examples": 5, "10 examples": 10, "1 complete image": "1", "10 complete images": "10"}
Boxes = NDArray[np.float64]
Found = tuple[Boxes, NDArray[np.float64]]

# The 24 coins of scikit-image's picture, from a watershed of its gradient.
COINS = np.array(
    [
        *([305, 16, 365, 72], [132, 28, 179, 74], [192, 30, 240, 73], [255, 34, 297, 72], [22, 35, 67, 74]),
        *([81, 39, 120, 74], [245, 95, 296, 144], [25, 104, 67, 145], [186, 105, 226, 144], [317, 106, 356, 145]),
        *([84, 108, 122, 145], [134, 110, 173, 145], [315, 156, 380, 218], [189, 170, 237, 217], [251, 172, 297, 217]),
        *([80, 175, 124, 217], [26, 179, 63, 217], [135, 179, 174, 217], [18, 233, 75, 288], [144, 236, 201, 288]),
        *([276, 239, 326, 289], [220, 240, 269, 288], [93, 245, 136, 287], [336, 248, 382, 289]),
    ],
    float,
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def picture(data: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def members(path: Path) -> dict[str, bytes]:
    """Return the files of a tar by name."""
    with tarfile.open(path) as tar:
        return {m.name: file.read() for m in tar.getmembers() if (file := tar.extractfile(m)) is not None}


# --- blood cells -----------------------------------------------------------------------------------------------------


class Blood:
    """The blood smears, their boxes, and the draws of examples from them."""

    def __init__(self, folder: Path) -> None:
        self.files = members(folder / "bccd.tar")
        self.names = sorted(n.removesuffix(".jpg") for n in self.files if n.endswith(".jpg"))
        self.boxes = {name: self._boxes(name) for name in self.names}

    def _boxes(self, name: str) -> dict[str, Boxes]:
        boxes: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        for thing in ElementTree.fromstring(self.files[name + ".xml"]).findall("object"):
            corners = [float(thing.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax")]
            if corners[2] - corners[0] >= 3 and corners[3] - corners[1] >= 3:  # a few slips of the annotators' mouse
                boxes[thing.findtext("name", "")].append(corners)
        return {kind: np.array(b).reshape(-1, 4) for kind, b in boxes.items()}

    def image(self, name: str) -> NDArray[np.uint8]:
        return picture(self.files[name + ".jpg"])

    def split(self, draw: int) -> tuple[list[str], list[str]]:
        """Return two thirds of the names for training and one third for the test."""
        order = np.random.default_rng(draw).permutation(len(self.names))
        count = len(order) * 2 // 3
        return [self.names[i] for i in order[:count]], [self.names[i] for i in order[count:]]

    def examples(self, kind: str, budget: int | str, draw: int) -> dict[str, Boxes]:
        """Return the boxes to learn from by image: so many boxes off the border, or so many complete images."""
        random = np.random.default_rng(17 * draw + 1 + KINDS.index(kind))
        training = self.split(draw)[0]
        off_border = {
            n: b[((b > 3) & (b < [637, 477, 637, 477])).all(axis=1)] for n in training for b in [self.boxes[n][kind]]
        }
        order = [training[i] for i in random.permutation(len(training)) if len(off_border[training[i]])]
        if isinstance(budget, str):
            return {name: self.boxes[name][kind] for name in order[: int(budget)]}
        count = int(np.searchsorted(np.cumsum([len(off_border[n]) for n in order]), budget)) + 1
        pool = [(name, box) for name in order[:count] for box in off_border[name]]
        chosen = [pool[i] for i in random.choice(len(pool), budget, replace=False)]
        return {name: np.array([b for n, b in chosen if n == name]) for name in {n: None for n, _ in chosen}}


def match_template(examples: Sequence[NDArray[Any]], image: NDArray[Any]) -> Found:
    """Find with OpenCV: normalised correlation with every example at 5 scales, peaks, suppression."""
    import cv2

    cv2.setNumThreads(1)
    boxes, scores = [], []
    for example in examples:
        for level in range(-2, 3):
            height, width = (round(n * 2 ** (level / 4)) for n in example.shape[:2])
            if not (3 <= height <= image.shape[0] and 3 <= width <= image.shape[1]):
                continue
            how = cv2.INTER_AREA if level < 0 else cv2.INTER_LINEAR
            result = cv2.matchTemplate(
                image, cv2.resize(example, (width, height), interpolation=how), cv2.TM_CCOEFF_NORMED
            )
            y, x = np.nonzero(result >= np.maximum(cv2.dilate(result, np.ones((3, 3), np.uint8)), 0.2))
            best = np.argsort(-result[y, x])[:150]
            y, x = y[best], x[best]
            boxes.append(np.stack([x, y, x + width, y + height], axis=1).astype(float))
            scores.append(result[y, x].astype(float))
    every, score = np.concatenate(boxes), np.concatenate(scores)
    best = np.argsort(-score)[:600]
    kept = best[suppress(every[best], score[best], 0.4)]
    return every[kept], score[kept]


Finder = Callable[[NDArray[Any]], Any]


def opencv(images: Sequence[NDArray[Any]], boxes: Sequence[Boxes]) -> Finder:
    examples = [
        image[round(y0) : round(y1), round(x0) : round(x1)]
        for image, each in zip(images, boxes, strict=True)
        for x0, y0, x1, y1 in each
    ]
    return lambda image: match_template(examples, image)


def closed_form(images: Sequence[NDArray[Any]], boxes: Sequence[Boxes]) -> Finder:
    detector = Detector().fit(images, boxes)
    return lambda image: detector.find(image, threshold=0)


def refitted(images: Sequence[NDArray[Any]], boxes: Sequence[Boxes]) -> Finder:
    detector = Detector().fit(images, boxes, complete=True)
    return lambda image: detector.find(image, threshold=0)


OPENCV, OPENCV_IMAGES = "OpenCV matchTemplate, 5 scales", 24
METHODS: dict[str, tuple[Callable[..., Finder], tuple[str, ...]]] = {
    OPENCV: (opencv, ("1 example", "5 examples")),
    "wherever, closed form": (closed_form, tuple(BUDGETS)),
    "wherever, complete=True": (refitted, ("1 complete image", "10 complete images")),
}


@dataclass
class Measured:
    """Average precision at IoU 0.5 and at centre distance of each draw, and seconds to train and to sweep an image."""

    iou: list[float] = field(default_factory=list)
    centre: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    sweep: list[float] = field(default_factory=list)


def timed(seconds: list[float], function: Callable[..., Any], *arguments: Any) -> Any:
    start = time.perf_counter()
    result = function(*arguments)
    seconds.append(time.perf_counter() - start)
    return result


def measure(
    cells: Blood, kind: str, budget: int | str, learn: Callable[..., Finder], draws: int, most: int
) -> Measured:
    """Train and test on every draw, on at most so many images of it."""
    measured = Measured()
    for draw in range(draws):
        examples = cells.examples(kind, budget, draw)
        find = timed(measured.training, learn, [cells.image(n) for n in examples], list(examples.values()))
        test = cells.split(draw)[1][:most]
        found = [timed(measured.sweep, find, cells.image(n)) for n in test]
        truth = [cells.boxes[n][kind] for n in test]
        measured.iou.append(average_precision(found, truth, match="iou").ap)
        measured.centre.append(average_precision(found, truth, match="centre").ap)
    return measured


def blood(folder: Path, quick: bool) -> str:
    """AP at IoU 0.5 and at centre distance for every kind and budget; times."""
    cells = Blood(folder)
    draws, most = (2, 16) if quick else (5, len(cells.names))
    with_opencv = importlib.util.find_spec("cv2") is not None
    rows = []
    for budget, number in BUDGETS.items():
        for name, (learn, budgets) in METHODS.items():
            if budget not in budgets or (name == OPENCV and not with_opencv):
                continue
            images = min(most, OPENCV_IMAGES) if name == OPENCV else most
            kinds = [measure(cells, kind, number, learn, draws, images) for kind in KINDS]
            training = np.median([seconds for m in kinds for seconds in m.training])
            sweep = np.median([seconds for m in kinds for seconds in m.sweep])
            rows.append(
                [budget, name]
                + [f"{np.mean(m.iou):.2f} ±{np.std(m.iou):.2f} / {np.mean(m.centre):.2f}" for m in kinds]
                + [f"{np.mean([m.iou for m in kinds]):.3f}", f"{training:.2f} s", f"{sweep * 1e3:.0f} ms"]
            )
            print(*rows[-1], sep=" | ", flush=True)
    return (
        f"## Blood cells\n\nAverage precision at IoU 0.5 ± its spread over {draws} draws / at centre distance below "
        "half the size; its mean over the kinds at IoU 0.5; median time to train, and to sweep an image of 640 x 480 "
        f"over 5 scales, on one thread. Of {len(cells.names)} images two thirds are drawn from, at most {most} of "
        f"the others are tested on{f' ({OPENCV_IMAGES} by matchTemplate)' if with_opencv else ''}.\n\n"
        + table(["marked", "method", *KINDS, "mean", "train", "sweep"], rows)
    )


# --- coins -----------------------------------------------------------------------------------------------------------


def coins(folder: Path | None, quick: bool) -> str:
    """Each of the 24 coins as the single example: how many coins are above the threshold, and what else is."""
    from skimage import data

    from wherever.find.evaluate import matches

    image = data.coins()
    counts = []
    for index in range(24):
        finds = Detector().fit(image, COINS[index]).find(image)
        right = int(matches(finds.boxes, COINS).sum())
        counts.append((right, len(finds) - right))
    rows = [[str(n), str(k), str(sum(c == (n, k) for c in counts))] for n, k in sorted(set(counts), reverse=True)]
    good = sum(n >= 23 and k == 0 for n, k in counts)
    return (
        "## Coins\n\nEach of the 24 coins as the only example; what is above the default threshold (IoU 0.5). "
        f"At least 23 coins and nothing else: {good} of 24 times.\n\n"
        + table(["coins found", "other finds", "examples"], rows)
    )


# --- the spectral scene ----------------------------------------------------------------------------------------------


def roc_auc(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    positive = int(truth.sum())
    return float((ranks[truth.ravel()].sum() - positive * (positive + 1) / 2) / (positive * (truth.size - positive)))


def spectral(folder: Path, quick: bool) -> str:
    """Pixels of each material from 5 marked pixels of it: ROC AUC of the score map."""
    from scipy.io import loadmat

    scene = loadmat(folder / "jasper_ridge_198_bands.mat")
    image = scene["Y"].reshape(198, 100, 100).transpose(2, 1, 0)
    abundance = scene["A"].reshape(4, 100, 100).transpose(0, 2, 1)
    rows = []
    for material, name in ((3, "road"), (1, "water"), (0, "tree"), (2, "soil")):
        for side in (1, 3):
            values = []
            for draw in range(2 if quick else 10):
                random = np.random.default_rng(draw)
                y, x = np.nonzero(abundance[material] > 0.9)
                chosen = random.choice(len(y), 5, replace=False)
                low = np.stack([x[chosen], y[chosen]], axis=1) - side // 2
                boxes = clip(np.hstack([low, low + side]).astype(float), 100, 100)
                scores = Detector().fit(image, boxes).score_map(image)
                values.append(roc_auc(scores, abundance[material] > 0.5))
            rows.append([name, f"{side} x {side}", f"{np.mean(values):.3f}", f"{np.min(values):.3f}"])
    return (
        "## A scene of 198 bands\n\n5 marked places of pure pixels (abundance above 0.9); ROC AUC of the score map "
        "against abundance above 0.5, mean and least of the draws.\n\n"
        + table(["material", "box", "ROC AUC", "least"], rows)
    )


# --- Waldo -----------------------------------------------------------------------------------------------------------


def waldo_scenes(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Boxes], dict[str, Boxes]]:
    """Return the scenes by name, the head in each, and regions of each that count neither way."""
    files = members(folder / "waldo_12.tar")
    boxes: dict[str, dict[str, list[list[float]]]] = {"head": {}, "ignore": {}}
    listing = next(content for name, content in files.items() if name.endswith("boxes.csv"))
    for row in csv.DictReader(io.StringIO(listing.decode())):
        there = boxes[row["kind"]].setdefault(row["file"], [])
        there.append([float(row[k]) for k in ("xmin", "ymin", "xmax", "ymax")])
    names = sorted(boxes["head"])
    images = {name: picture(next(c for f, c in files.items() if f.endswith("/" + name))) for name in names}
    heads, ignored = ({n: np.array(b.get(n, [])).reshape(-1, 4) for n in names} for b in boxes.values())
    return images, heads, ignored


def waldo(folder: Path, quick: bool) -> str:
    """The rank of the right place among the finds of each scene, trained on the others, two held out at a time."""
    images, heads, ignored = waldo_scenes(folder)
    names = list(images)[: 4 if quick else None]
    ranks, seconds, megapixels = [], 0.0, 0.0
    for first in range(0, len(names), 2):
        held_out = names[first : first + 2]
        training = [name for name in names if name not in held_out]
        detector = Detector(upright=True).fit([images[n] for n in training], [heads[n] for n in training])
        for name in held_out:
            start = time.perf_counter()
            finds = detector.find(images[name], top=2000)
            seconds += time.perf_counter() - start
            megapixels += images[name].shape[0] * images[name].shape[1] / 1e6
            hits = average_precision([finds], [heads[name]], match="centre", ignore=[ignored[name]]).hits
            ranks.append(int(np.argmax(hits)) + 1 if hits.any() else 2001)
    rows = [
        [
            str(sorted(ranks)),
            f"{sum(r <= 1 for r in ranks)}",
            f"{sum(r <= 20 for r in ranks)}",
            f"{seconds / megapixels:.2f} s",
        ]
    ]
    return (
        "## Where's Waldo\n\nThe closed form from the heads in the other scenes, two held out at a time; the rank of "
        f"Waldo's head among the finds of each of {len(names)} scenes (2001: not found). A linear detector is known to "
        "fail here.\n\n" + table(["ranks", "first", "in the first 20", "sweep of a megapixel"], rows)
    )


PARTS: dict[str, Callable[..., str]] = {"blood": blood, "coins": coins, "spectral": spectral, "waldo": waldo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few draws and images")
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated parts: " + ", ".join(PARTS))
    parser.add_argument("--markdown", type=Path, help="write the tables to this file, too")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    given = os.environ.get("WHEREVER_DATA")
    if given is None and chosen != ["coins"]:
        parser.error("set WHEREVER_DATA to the folder of the data; only the coins need none")
    wherever.set_threads(1)
    sections = []
    for part in chosen:
        sections.append(PARTS[part](Path(given or "."), arguments.quick))
        print("\n" + sections[-1], flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
