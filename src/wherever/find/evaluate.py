"""How good finds are: average precision and the precision-recall curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wherever.find.boxes import Boxes, centres, overlaps, sizes
from wherever.find.finds import Finds

IOU = 0.5
CENTRE = 0.5  # of the true object's size, the geometric mean of its width and height


@dataclass(frozen=True)
class Evaluation:
    """Finds compared with the truth.

    Attributes
    ----------
    ap
        Average precision: the area under the precision-recall curve, precision being made monotonic from the right (all
        points, as in Pascal VOC from 2010 on). NaN if there is nothing to find.
    scores
        (n,), of all finds in all images that count, falling.
    hits
        (n,), whether each is right.
    precision, recall
        (n,), of the finds with at least that score.
    objects
        The number of objects in the truth.
    """

    ap: float
    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    objects: int


def average_precision(
    finds: Sequence[Finds | tuple[ArrayLike, ArrayLike]],
    truth: Sequence[ArrayLike],
    *,
    match: Literal["iou", "centre"] = "iou",
    ignore: Sequence[ArrayLike] | None = None,
) -> Evaluation:
    """Compare finds with the true boxes.

    Parameters
    ----------
    finds
        For each image Finds, or boxes (n, 4) and scores (n,). Best with a threshold of 0, so that recall can rise.
    truth
        For each image the true boxes, (m, 4).
    match
        When a find is right: "iou", its box overlaps a true one by an intersection over union of at least 0.5;
        "centre", the centres are closer than half the true object's size. In order of falling score each find takes
        the best free object; a second find of the same object is wrong.
    ignore
        For each image boxes (k, 4) that count neither way: finds that match nothing else there are left out.

    Raises
    ------
    ValueError
        If the sequences differ in length, or `match` is neither of the two.
    """
    if match not in ("iou", "centre"):
        raise ValueError(f"match must be 'iou' or 'centre'; got {match!r}")
    if len(truth) != len(finds) or (ignore is not None and len(ignore) != len(finds)):
        lengths = f"{len(finds)} finds, {len(truth)} truth" + (f", {len(ignore)} ignore" if ignore is not None else "")
        raise ValueError(f"finds, truth and ignore must have one entry an image; got {lengths}")
    scores, hits = [], []
    objects = 0
    for index, (found, true) in enumerate(zip(finds, truth, strict=True)):
        boxes, score = (found.boxes, found.scores) if isinstance(found, Finds) else found
        marked = _boxes(true)
        order = np.argsort(-np.asarray(score, np.float64), kind="stable")
        ranked, ranked_scores = _boxes(boxes)[order], np.asarray(score, np.float64)[order]
        right = matches(ranked, marked, match)
        counts = np.ones(len(order), bool)
        if ignore is not None and len(ignored := _boxes(ignore[index])):
            counts = right | (_quality(ranked, ignored, match).max(axis=1) < 0)
        scores.append(ranked_scores[counts])
        hits.append(right[counts])
        objects += len(marked)
    every, correct = np.concatenate([np.zeros(0), *scores]), np.concatenate([np.zeros(0, bool), *hits])
    order = np.argsort(-every, kind="stable")
    every, correct = every[order], correct[order]
    true_positives = np.cumsum(correct)
    precision = true_positives / np.arange(1, len(correct) + 1)
    recall = true_positives / max(objects, 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    ap = float(np.sum(np.diff(recall, prepend=0.0) * envelope)) if objects else float("nan")
    return Evaluation(ap, every, correct, precision, recall, objects)


def matches(boxes: Boxes, truth: Boxes, match: Literal["iou", "centre"] = "iou") -> NDArray[np.bool_]:
    """Return which boxes (n, 4), given best first, are right: each takes the best true box (m, 4) still free."""
    right = np.zeros(len(boxes), bool)
    quality = _quality(boxes, truth, match)
    for index in range(len(boxes) if len(truth) else 0):
        best = int(quality[index].argmax())
        if quality[index, best] >= 0:
            right[index] = True
            quality[:, best] = -1.0
    return right


def _quality(boxes: Boxes, truth: Boxes, match: str) -> NDArray[np.float64]:
    """Return how well boxes match true ones, (n, m); negative where they do not."""
    if match == "iou":
        return overlaps(boxes, truth) - IOU
    distance = np.linalg.norm(centres(boxes)[:, None] - centres(truth)[None], axis=2)
    return np.asarray(CENTRE - distance / sizes(truth)[None])


def _boxes(boxes: ArrayLike) -> Boxes:
    return np.asarray(boxes, np.float64).reshape(-1, 4)
