"""Overlaps and suppression of boxes against their plain definitions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from wherever.find.boxes import clip, overlaps, sizes, suppress


def random_boxes(seed: int, count: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    low = random.integers(0, 30, (count, 2))
    return np.hstack([low, low + random.integers(1, 20, (count, 2))]).astype(float)


def shared(a: np.ndarray, b: np.ndarray) -> float:
    """Return the common area by counting unit squares."""
    squares = [{(x, y) for x in range(int(c[0]), int(c[2])) for y in range(int(c[1]), int(c[3]))} for c in (a, b)]
    return len(squares[0] & squares[1])


@given(seed=st.integers(0, 1000))
def test_overlaps_are_counted_squares(seed):
    a, b = random_boxes(seed, 3), random_boxes(seed + 1, 4)
    common = np.array([[shared(p, q) for q in b] for p in a])
    union = (sizes(a) ** 2)[:, None] + (sizes(b) ** 2)[None] - common
    assert_allclose(overlaps(a, b), common / union)


@given(  # limits that no ratio of these areas equals
    seed=st.integers(0, 1000),
    count=st.integers(0, 60),
    limit=st.sampled_from([0.01237, 0.33371, 0.61239]),
    inside=st.sampled_from([0.21237, 0.74391, 1.0]),
)
def test_suppression_is_the_greedy_choice(seed, count, limit, inside):
    boxes = random_boxes(seed, count)
    scores = np.random.default_rng(seed).integers(0, 10, count).astype(float)
    areas = sizes(boxes) ** 2
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(
            overlaps(boxes[i : i + 1], boxes[j : j + 1])[0, 0] <= limit
            and shared(boxes[i], boxes[j]) <= inside * min(areas[i], areas[j]) + 1e-9
            for j in kept
        ):
            kept.append(i)
    assert_array_equal(suppress(boxes, scores, limit, inside), np.array(kept, int))


def test_clipping_keeps_the_part_inside():
    assert_array_equal(clip(np.array([[-5.0, 2, 30, 50]]), 20, 10), [[0, 2, 20, 10]])
