"""Boxes as arrays: overlaps, sizes, and suppression of what was found twice."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Boxes = NDArray[np.float64]


def sizes(boxes: Boxes) -> NDArray[np.float64]:
    """Return the size of each box: the geometric mean of its width and height, (n,)."""
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def centres(boxes: Boxes) -> NDArray[np.float64]:
    """Return the centres x, y of boxes, (n, 2)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def overlaps(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Return the intersection over union of every pair, (len(a), len(b))."""
    return _overlaps(a[:, None], b[None, :])[0]


def _overlaps(a: Boxes, b: Boxes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the intersection over union, and over the smaller area, of boxes (..., 4) that broadcast together."""
    wide, high = (np.minimum(a[..., k + 2], b[..., k + 2]) - np.maximum(a[..., k], b[..., k]) for k in (0, 1))
    shared = np.maximum(wide, 0.0) * np.maximum(high, 0.0)
    area_a, area_b = ((c[..., 2] - c[..., 0]) * (c[..., 3] - c[..., 1]) for c in (a, b))
    tiny = np.finfo(np.float64).tiny
    union, smaller = area_a + area_b - shared, np.minimum(area_a, area_b)
    return np.asarray(shared / np.maximum(union, tiny)), np.asarray(shared / np.maximum(smaller, tiny))


def inside(boxes: Boxes, regions: Boxes) -> NDArray[np.bool_]:
    """Return which boxes (n, 4) have their centre in one of some regions (m, 4)."""
    x, y = centres(boxes).T[:, :, None]
    x0, y0, x1, y1 = regions.T
    return np.asarray(((x > x0) & (x < x1) & (y > y0) & (y < y1)).any(axis=1))


def clip(boxes: Boxes, width: float, height: float) -> Boxes:
    """Return the parts of the boxes inside an image."""
    return np.clip(boxes, 0.0, [width, height, width, height])


def suppress(boxes: Boxes, scores: NDArray[np.float64], limit: float, inside: float = 1.0) -> NDArray[np.intp]:
    """Return the indices of the boxes that are kept, best first.

    None overlaps a better one by an intersection over union of more than `limit`, nor by an intersection of more than
    `inside` of the smaller of the two. Greedy, as usual, but a box is compared only with boxes whose centres are near
    enough to overlap it: the cost grows with the number of boxes, not with its square.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = boxes[order]
    if len(order) == 0:
        return order
    middle, sides = centres(ranked), (ranked[:, 2:] - ranked[:, :2]).max(axis=1)
    tree, reach = cKDTree(middle), (sides + sides.max()) / 2
    alive = np.ones(len(order), bool)
    for first in range(0, len(order), 500):
        best = first + np.flatnonzero(alive[first : first + 500])
        near = tree.query_ball_point(middle[best], reach[best], p=np.inf, return_sorted=False)
        better = np.repeat(best, [len(n) for n in near])
        worse = np.fromiter(itertools.chain.from_iterable(near), np.intp, len(better))
        pair = (worse > better) & alive[worse]
        better, worse = better[pair], worse[pair]
        union, smaller = _overlaps(ranked[better], ranked[worse])
        pair = (union > limit) | (smaller > inside)
        better, worse = better[pair], worse[pair]
        starts = np.searchsorted(better, [best, best + 1]).T.tolist()
        for i, (start, stop) in zip(best.tolist(), starts, strict=True):
            if start < stop and alive[i]:
                alive[worse[start:stop]] = False
    return order[alive]
