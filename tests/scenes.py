"""Synthetic scenes with things in known places."""

from __future__ import annotations

import numpy as np

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


def scene(places: list[tuple[int, int, int]], shape: tuple[int, int], seed: int = 0, noise: float = 0.2) -> np.ndarray:
    """Return a noisy picture with a thing of a size at each x, y, size, and bars that are not the thing."""
    random = np.random.default_rng(seed)
    image = random.normal(0, noise, shape)
    taken = list(places)
    for _ in range(8):
        y, x = random.integers(0, shape[0] - 24), random.integers(0, shape[1] - 24)
        if all(abs(x + 12 - px - s / 2) > 14 + s / 2 or abs(y + 12 - py - s / 2) > 14 + s / 2 for px, py, s in taken):
            taken.append((x, y, 24))
            image[y : y + 4, x : x + 24] += 1.5
    for x, y, size in places:
        image[y : y + size, x : x + size] += glyph(size)
    return image


def box(place: tuple[int, int, int]) -> list[float]:
    """Return the box of a thing at x, y, size."""
    x, y, size = place
    return [x, y, x + size, y + size]
