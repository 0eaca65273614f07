"""Where windows are moved to, and how much things vary: chosen from scenes in which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from wherever.find.context import look_around
from wherever.find.features import Eye, Picture
from wherever.find.network import Network
from wherever.find.sweep import Template
from wherever.find.training import Scene

NONE = np.zeros((0, 4))
TEMPLATE = Template(1.0, 37, 37, 18.0, 18.0, stride=4)
SCORER = Network(TEMPLATE, Eye(np.ones((1, 1), np.float32), 0.0, 0.0), (), (0,), (0.0,))


def scenes_with(told_by: int) -> list[Scene]:
    """Return scenes of discs like any other, but for a bar `told_by` pixels below their centre."""
    random, found = np.random.default_rng(0), []
    y, x = np.mgrid[:18, :18] - 8.5
    disc = (np.hypot(x, y) < 8).astype(float)
    for _ in range(6):
        image, boxes = random.normal(0, 0.1, (240, 240)), []
        for number, place in enumerate(random.permutation(16)[:12]):
            top, left = 10 + 56 * (place // 4) + random.integers(10), 12 + 56 * (place % 4) + random.integers(20)
            image[top : top + 18, left : left + 18] += disc
            if number < 2:
                middle = top + 9 + told_by
                image[middle - 2 : middle + 2, left : left + 18] += 2.0
                boxes.append([left, top, left + 18, top + 18])
        found.append(Scene(Picture(image[:, :, None], np.ones((1, 1), np.float32)), np.array(boxes, float), NONE))
    return found


def test_the_window_is_moved_to_what_tells_the_thing():
    template, variety = look_around(scenes_with(told_by=24), SCORER, True, np.random.default_rng(0))
    assert template.below < 0  # the thing lies above the middle of the window
    assert not variety.mirrored


def test_too_few_examples_change_nothing():
    (scene, *_) = scenes_with(told_by=24)
    template, variety = look_around([scene], SCORER, False, np.random.default_rng(0))
    assert template == TEMPLATE
    assert variety.turned
    assert variety.mirrored


def test_what_always_stands_upright_is_not_turned():
    """With a bar close below, the thing is told by its direction."""
    _, variety = look_around(scenes_with(told_by=12), SCORER, False, np.random.default_rng(0))
    assert not variety.turned
