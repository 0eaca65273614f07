"""What a window should show and how much things vary, chosen by what tells held-out examples from the background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from wherever.find.augment import Variety, Views
from wherever.find.features import Floats
from wherever.find.mining import Miner
from wherever.find.sweep import Scorer, Template
from wherever.find.training import Scene, closed_form

OFFSETS = (-0.5, -0.25, 0.25, 0.5)  # of the thing's size, between the centres of window and thing
TURNS = ((True, True), (False, True), (False, False))  # whether things are turned, and mirrored
FEWEST, FOLDS = 3, 6  # examples; parts into which they are dealt
DRAWS, BACKGROUND = 12, 1200  # windows of each example, and of the background
COARSER = 4  # cells of a window that are averaged, down and across
CERTAIN = 2.0  # standard errors by which a mean must be better
OCTAVES, SHIFT = (
    0.22,
    1.6,
)  # how much sizes and places (in cells) vary where a stride of 4 cells and of 1/4 octave is made


def usual_variety(upright: bool) -> Variety:
    """Return how much a thing varies if nothing else is known."""
    return Variety(not upright, not upright, OCTAVES, SHIFT)


def confusion(scenes: Sequence[Scene], scorer: Scorer, template: Template, variety: Variety, background: Floats,
              seed: int) -> NDArray[np.float64]:  # fmt: skip
    """Return the mean log share of background that scores above each example held out of a linear discriminant, (n,).

    Half of the background is learnt from; the other half is what the examples are compared with.
    """
    random = np.random.default_rng(seed)
    number = sum(len(s.boxes) for s in scenes)
    each = [
        Views([s.picture], [s.boxes[k : k + 1]], template, scorer.eye, variety)
        for s in scenes
        for k in range(len(s.boxes))
    ]
    still = replace(variety, turned=False, mirrored=False)
    learnt = [coarse(view.draw(DRAWS, random)) for view in each]
    for view in each:
        view.variety = still
    asked = [coarse(view.draw(DRAWS, random)) for view in each]
    fold = random.permutation(number) % min(FOLDS, number)
    half = len(background) // 2
    result = np.empty(number)
    for index in range(fold.max() + 1):
        known = np.concatenate([w for w, f in zip(learnt, fold, strict=True) if f != index])
        weights, _ = closed_form(known, background[:half], np.ones(half))
        other = background[half:] @ weights
        for place in np.flatnonzero(fold == index):
            above = (other[None] > (asked[place] @ weights)[:, None]).sum(axis=1)
            result[place] = np.log((above + 1) / (len(other) + 1)).mean()
    return result


def coarse(windows: torch.Tensor) -> Floats:
    """Return windows (n, C, rows, columns) averaged over squares of cells, as rows of features."""
    found: Floats = functional.avg_pool2d(windows, COARSER).flatten(1).numpy()
    return found


def look_around(
    scenes: Sequence[Scene], scorer: Scorer, upright: bool, random: np.random.Generator
) -> tuple[Template, Variety]:
    """Return the template, moved to where the surroundings tell most about the thing, and how the thing varies.

    Things that are turned in any direction stay in the middle of their windows, mirrored ones midway between left and
    right. One is chosen after the other: examples are few, and the best of many choices is the luckiest. With fewer
    than 3 examples nothing is tried.
    """
    template, usual = scorer.template, usual_variety(upright)
    number = sum(len(s.boxes) for s in scenes)
    if number < FEWEST:
        return template, usual
    background = coarse(torch.from_numpy(Miner(scenes, scorer).drawn(BACKGROUND, random)))
    if len(background) < BACKGROUND // 2:
        return template, usual
    seed = int(random.integers(1 << 31))
    size = (template.width * template.height) ** 0.5 / template.cell
    varieties = [usual] if upright else [replace(usual, turned=t, mirrored=m) for t, m in TURNS]

    def better(
        choice: tuple[Template, Variety], others: Sequence[tuple[Template, Variety]]
    ) -> tuple[Template, Variety]:
        """The best of the others, if it is better than a choice by more than chance would have it; else the choice."""
        kept = confusion(scenes, scorer, *choice, background, seed)
        tried = [confusion(scenes, scorer, *other, background, seed) for other in others]
        gains = [(kept - t).mean() - CERTAIN * (kept - t).std() / math.sqrt(number) for t in tried]
        return others[int(np.argmax(gains))] if gains and max(gains) > 0 else choice

    template, variety = better((template, varieties[0]), [(template, v) for v in varieties[1:]])
    for axis, fixed in (("below", variety.turned), ("right", variety.turned or variety.mirrored)):
        if not fixed:
            moved = [(replace(template, **{axis: o * size}), variety) for o in OFFSETS]
            template, _ = better((template, variety), moved)
    return template, variety
