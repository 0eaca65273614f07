"""Which kind of detector is best for what is marked: each is tried on parts of the pictures that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherever.find.boxes import Boxes, centres, inside
from wherever.find.calibration import from_held_out
from wherever.find.evaluate import average_precision, matches
from wherever.find.features import Picture
from wherever.find.fitting import Task, Training, closed, head, learned
from wherever.find.storage import Learnt
from wherever.find.sweep import Kernel, Scorer, candidates, distinct, maps_of

Method = Callable[[Task, Training], Learnt]

METHODS: dict[str, Method] = {"closed": closed, "head": head, "learned": learned}
FOLDS = 2
TRIED = 0.4  # share of the budget that is spent on comparing
SHARES = {"closed": 0.0, "head": 0.3, "learned": 0.7}  # of that, to each kind
SLOWEST = 15.0  # seconds: a network that may be tried for less is not tried
FINDS = 300  # of each picture, by which kinds are compared
BETTER = 0.01  # average precision by which a slower kind must be better


@dataclass
class Trial:
    """What a kind of detector found in pictures that it was not trained on."""

    average_precision: float
    scores: list[NDArray[np.float64]]
    hits: list[NDArray[np.bool_]]


def kind_of(scorer: Scorer) -> str:
    """Return which kind of detector a scorer is: heads see local contrast, networks pictures as they are."""
    return "closed" if isinstance(scorer, Kernel) else "head" if scorer.eye.sigma else "learned"


def choose(task: Task, training: Training) -> Learnt:
    """Return the kind that finds best in parts of the pictures held out of its training, fitted to all of them.

    The closed form alone where not everything is marked, or in one part only: then nothing can be compared.
    """
    tasks = folds(task) if task.complete else []
    if not tasks:
        return closed(task)
    try:
        best, kept = compare(tasks, training)
    except KeyboardInterrupt:  # the closed form takes a moment
        training.interrupted = True
        return closed(task)
    rest = replace(training, budget=training.budget * (1 - TRIED))
    learnt = METHODS[best](task, rest)
    training.interrupted = rest.interrupted
    calibration = from_held_out(kept.scores, kept.hits) if best != "closed" else None
    return learnt if calibration is None else replace(learnt, calibration=calibration)


def compare(tasks: Sequence[tuple[Task, Task]], training: Training) -> tuple[str, Trial]:
    """Return the kind that finds best in the second of each pair of tasks, and what it found."""
    best, kept = "closed", trial(tasks, METHODS["closed"], training)
    for name in ("head", "learned"):
        share = TRIED * SHARES[name] / len(tasks)
        if name == "learned" and training.budget * share < SLOWEST:
            continue
        tried = trial(tasks, METHODS[name], training.part(share))
        if tried.average_precision > kept.average_precision + BETTER:
            best, kept = name, tried
    return best, kept


def trial(tasks: Sequence[tuple[Task, Task]], method: Method, training: Training) -> Trial:
    """Fit to the first of each pair of tasks, and find in the pictures of the second."""
    found, truth, scores, hits = [], [], [], []
    for known, unknown in tasks:
        scorer = method(known, training).scorer
        if training.interrupted:
            raise KeyboardInterrupt
        for image, boxes, ignored in zip(unknown.pictures, unknown.boxes, unknown.ignored, strict=True):
            picture = Picture(image, scorer.eye.mix)
            here = distinct(candidates(scorer, picture, maps_of(scorer, picture)), FINDS)
            here = here[~inside(here.boxes, ignored)]
            found.append((here.boxes, here.scores))
            truth.append(boxes)
            scores.append(here.scores)
            hits.append(matches(here.boxes, boxes, "centre"))
    return Trial(average_precision(found, truth).ap, scores, hits)


def folds(task: Task) -> list[tuple[Task, Task]]:
    """Return pairs of tasks, to learn from and to be tested on, that divide the pictures; none if that cannot be.

    One picture is cut in two across its longer side.
    """
    task = halved(task) if len(task.pictures) == 1 else task
    number = np.array([len(boxes) for boxes in task.boxes])
    fold = np.empty(len(number), np.intp)
    fold[np.argsort(-number, kind="stable")] = np.arange(len(number)) % FOLDS
    if any(number[fold == index].sum() == 0 for index in range(FOLDS)):
        return []
    return [
        (task.only(np.flatnonzero(fold != index).tolist()), task.only(np.flatnonzero(fold == index).tolist()))
        for index in range(FOLDS)
    ]


def halved(task: Task) -> Task:
    """Return the task of the two halves of its one picture; boxes that are cut are to be ignored."""
    (image,), (boxes,) = task.pictures, task.boxes
    axis = 0 if image.shape[1] >= image.shape[0] else 1
    length = image.shape[1 - axis]
    cut = round(float(np.median(centres(boxes)[:, axis])))
    if not 0 < cut < length:
        cut = length // 2
    parts: list[tuple[NDArray[Any], Boxes, Boxes, Boxes]] = []
    for low, high in ((0, cut), (cut, length)):
        shift = np.array([low, 0, low, 0] if axis == 0 else [0, low, 0, low], np.float64)
        part = image[:, low:high] if axis == 0 else image[low:high]
        corner = np.array([part.shape[1], part.shape[0]] * 2, np.float64)
        whole = (boxes[:, axis] >= low) & (boxes[:, axis + 2] <= high)
        cut_off = ~whole & (boxes[:, axis + 2] > low) & (boxes[:, axis] < high)
        refused = task.negatives[0]
        refused = refused[(refused[:, axis] >= low) & (refused[:, axis + 2] <= high)]
        ignored = np.concatenate([task.ignored[0], boxes[cut_off]])
        parts.append((part, boxes[whole] - shift, refused - shift, np.clip(ignored - shift, 0, corner)))
    pictures, marked, negatives, ignored_ = zip(*parts, strict=True)
    return replace(task, pictures=pictures, boxes=marked, negatives=negatives, ignored=ignored_)
