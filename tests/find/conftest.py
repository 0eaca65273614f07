"""Synthetic scenes with things in known places, and the real data where there are some."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GLYPH = np.array(
    [
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [1, 0, 0, 2, 0, 0, 1, 0],
        [1, 1, 0, 2, 2, 2, 2, 2],
        [0, 1, 1, 2, 0, 1, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
    ],
    float,
)


def glyph(size: int) -> np.ndarray:
    """Return the thing to find, (size, size), values 0 to 2, drawn with the nearest of 8 x 8 points."""
    index = np.arange(size) * 8 // size
    return GLYPH[np.ix_(index, index)]


def scene(places: list[tuple[int, int, int]], shape: tuple[int, int], seed: int = 0, noise: float = 0.3) -> np.ndarray:
    """Return a noisy picture with a thing of a size at each x, y, size, and rectangles that are not the thing."""
    random = np.random.default_rng(seed)
    image = random.normal(0, noise, shape)
    for _ in range(8):
        y, x = random.integers(0, shape[0] - 24), random.integers(0, shape[1] - 24)
        if all(abs(x + 8 - px - s / 2) > 20 + s / 2 or abs(y + 8 - py - s / 2) > 20 + s / 2 for px, py, s in places):
            image[y : y + 16, x : x + 16] += 1.5
    for x, y, size in places:
        image[y : y + size, x : x + size] += glyph(size)
    return image


def box(place: tuple[int, int, int]) -> list[float]:
    """Return the box of a thing at x, y, size."""
    x, y, size = place
    return [x, y, x + size, y + size]


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real data, or skip."""
    folder = os.environ.get("WHEREVER_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("WHEREVER_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def blood(data: Path) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Return the first 14 blood smears with their boxes by kind."""
    from xml.etree import ElementTree

    from PIL import Image

    cells: list[tuple[np.ndarray, dict[str, Any]]] = []
    with tarfile.open(data / "bccd.tar") as tar:
        names = sorted(n for n in tar.getnames() if n.endswith(".jpg"))[:14]
        for name in names:
            picture = tar.extractfile(name)
            truth = tar.extractfile(name.removesuffix(".jpg") + ".xml")
            assert picture is not None
            assert truth is not None
            boxes: dict[str, Any] = {"RBC": [], "WBC": [], "Platelets": []}
            for thing in ElementTree.parse(truth).findall("object"):
                corners = [float(thing.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax")]
                if corners[2] - corners[0] >= 3 and corners[3] - corners[1] >= 3:
                    boxes[thing.findtext("name", "")].append(corners)
            image = np.asarray(Image.open(io.BytesIO(picture.read())).convert("RGB"))
            cells.append((image, {kind: np.array(b).reshape(-1, 4) for kind, b in boxes.items()}))
    return cells
