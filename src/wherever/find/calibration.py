"""From scores to probabilities, and where the threshold is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from scipy.special import expit, logit

from wherever.find.evaluate import matches
from wherever.find.features import Floats
from wherever.find.sweep import Kernel, Scorer, candidates, distinct
from wherever.find.training import Samples, Scene, refit

# Where between background (0) and the examples' own score (1) the threshold lies if nothing else is known, how far it
# may move from there to a gap between the finds, and how wide that gap must be; in units of the examples' own score.
USUAL_PLACE, MAY_MOVE, GAP_WIDTH = 0.55, 0.2, 0.08
LOWEST_PLACE, HIGHEST_PLACE = 0.3, 0.9
MOST_SCENES = 4  # whose peaks are looked at for a gap: more cost time and move it little
EXAMPLE_PROBABILITY = 0.95  # of a find that scores as the examples themselves do
FOLDS, FEWEST_EXAMPLES = 5, 6
MOST_EXAMPLES = 2000  # whose own scores are looked at


def gap(scores: NDArray[np.float64], example_score: float) -> float:
    """Return a threshold between the finds and the rest, from the scores of all peaks in the marked pictures.

    Things and background are unmarked there alike; where few peaks lie is where they part. Minimises
    log(1 + density of peaks) + (distance from the usual place)^2 / 2: the low-density separation of semi-supervised
    learning (Chapelle and Zien 2005), with a prior.
    """
    place = np.linspace(LOWEST_PLACE, HIGHEST_PLACE, 121)
    density = np.exp(-0.5 * ((scores[:, None] / example_score - place) / GAP_WIDTH) ** 2).sum(axis=0)
    cost = np.log1p(density) + 0.5 * ((place - USUAL_PLACE) / MAY_MOVE) ** 2
    return float(place[np.argmin(cost)]) * example_score


def platt(scores: NDArray[np.float64], hits: NDArray[np.bool_]) -> tuple[float, float]:
    """Return slope and intercept of the logistic function of scores that predicts hits, (n,) both.

    Platt's method (1999), with his targets (hits + 1) / (hits + 2) and 1 / (misses + 2), in Lin's stable form (2007).
    """
    positive = int(hits.sum())
    target = np.where(hits, (positive + 1) / (positive + 2), 1 / (len(hits) - positive + 2))
    spread = max(float(scores.std()), 1e-9)
    x = (scores - scores.mean()) / spread

    def loss(p: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = p[0] * x + p[1]
        slope = expit(z) - target
        return float(np.sum(np.logaddexp(0, z) - target * z)), np.array([slope @ x, slope.sum()])

    a, b = scipy.optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return float(a / spread), float(b - a * scores.mean() / spread)


@dataclass(frozen=True)
class Calibration:
    """The logistic function from scores to probabilities, and whether it was fitted to held-out finds."""

    slope: float
    intercept: float
    calibrated: bool


def from_examples(scenes: Sequence[Scene], scorer: Scorer, examples: Floats) -> Calibration:
    """Return a logistic function that is 1/2 at the threshold and EXAMPLE_PROBABILITY at the examples' own score.

    Nothing is known here about what is not marked, so this orders finds and says no more. `examples` are the windows
    of the examples, (n, features).
    """
    template = scorer.template
    windows = examples.reshape(len(examples), scorer.eye.maps, template.rows, template.columns)
    own = [scorer.scores(window, ((0, 0), (0, 0)))[0].item() for window in windows[:MOST_EXAMPLES]]
    example = max(float(np.median(own)), 1e-6)
    # peaks far below the lowest threshold do not matter to it
    floor = (LOWEST_PLACE - 3 * GAP_WIDTH) * example
    found = [
        distinct(candidates(scorer, scene.picture, scene.maps_of(scorer), floor)) for scene in scenes[:MOST_SCENES]
    ]
    threshold = gap(np.concatenate([f.scores for f in found]), example)
    slope = float(logit(EXAMPLE_PROBABILITY)) / (example - threshold)
    return Calibration(slope, -slope * threshold, False)


def from_folds(scenes: Sequence[Scene], kernel: Kernel, samples: Samples) -> Calibration | None:
    """Return the logistic function fitted to finds in completely marked scenes held out of the refit, fold by fold.

    None if there are not FEWEST_EXAMPLES examples in at least two scenes.
    """
    number = np.array([len(scene.boxes) for scene in scenes])
    folds = min(FOLDS, int((number > 0).sum()))
    if folds < 2 or number.sum() < FEWEST_EXAMPLES:
        return None
    # scenes are dealt out in order of their number of examples, so that every fold leaves some to learn from
    fold = np.empty(len(scenes), np.intp)
    fold[np.argsort(-number, kind="stable")] = np.arange(len(scenes)) % folds
    scores, hits = [], []
    for index in range(folds):
        held_out = refit(kernel, samples, fold != index)
        for scene in (s for s, f in zip(scenes, fold, strict=True) if f == index):
            found = distinct(candidates(held_out, scene.picture, scene.maps_of(kernel)))
            scores.append(found.scores)
            hits.append(matches(found.boxes, scene.boxes, "centre"))
    return from_held_out(scores, hits)


def from_held_out(scores: Sequence[NDArray[np.float64]], hits: Sequence[NDArray[np.bool_]]) -> Calibration | None:
    """Return the logistic function fitted to finds in scenes held out of the training, given scene by scene.

    None if they are not both right and wrong, or better scores are not right more often.
    """
    hit = np.concatenate([np.zeros(0, bool), *hits])
    if not hit.any() or hit.all():
        return None
    score = np.concatenate(scores)
    # The many peaks of mere noise would decide the slope: only misses that score like hits, or as many as hits, count.
    misses = np.sort(score[~hit])[::-1]
    near = score >= min(score[hit].min(), misses[: hit.sum()][-1])
    slope, intercept = platt(score[near], hit[near])
    return Calibration(slope, intercept, True) if slope > 0 else None
