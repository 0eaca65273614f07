"""Average precision against what can be counted by hand, and the area of the curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from wherever.find import Finds, average_precision

TRUTH = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]], float)
ELSEWHERE = np.array([[0, 50, 10, 60], [20, 50, 30, 60]], float)


def test_perfect_finds_have_average_precision_one():
    result = average_precision([(TRUTH, [0.9, 0.8, 0.7, 0.6])], [TRUTH])
    assert result.ap == 1.0
    assert_array_equal(result.recall, [0.25, 0.5, 0.75, 1])


def test_a_mixed_ranking_by_hand():
    # right, wrong, right, wrong: precision 1 up to recall 1/4, then 2/3 up to 1/2, then nothing
    boxes = np.concatenate([TRUTH[:1], ELSEWHERE[:1], TRUTH[1:2], ELSEWHERE[1:]])
    result = average_precision([(boxes, [0.9, 0.8, 0.7, 0.6])], [TRUTH])
    assert result.ap == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert_array_equal(result.hits, [True, False, True, False])
    assert_allclose(result.precision, [1, 1 / 2, 2 / 3, 1 / 2])
    assert result.objects == 4


def test_finds_are_ranked_over_all_images():
    results = average_precision([(ELSEWHERE[:1], [0.5]), (TRUTH[:1], [0.9])], [TRUTH[:1], TRUTH[:1]])
    assert_array_equal(results.scores, [0.9, 0.5])
    assert results.ap == 0.5


def test_a_second_find_of_the_same_thing_is_wrong():
    twice = np.repeat(TRUTH[:1], 2, axis=0)
    assert_array_equal(average_precision([(twice, [0.9, 0.8])], [TRUTH[:1]]).hits, [True, False])


def test_overlap_of_a_half_is_right_and_less_is_wrong():
    def right(width):
        return average_precision([([[0, 0, width, 10]], [1.0])], [[[0, 0, 10, 10]]]).hits[0]

    assert right(5.0)
    assert not right(4.9)
    assert right(20.0)
    assert not right(20.1)


def test_centres_closer_than_half_the_size_are_right():
    def right(shift):
        box = [[shift, 0, shift + 2, 10]]  # far too thin for the overlap
        return average_precision([(box, [1.0])], [[[0, 0, 10, 10]]], match="centre").hits[0]

    assert right(4 + 4.9)
    assert not right(4 + 5.1)


def test_ignored_regions_count_neither_way():
    boxes = np.concatenate([ELSEWHERE[:1], TRUTH[:1]])
    plain = average_precision([(boxes, [0.9, 0.8])], [TRUTH[:1]])
    ignoring = average_precision([(boxes, [0.9, 0.8])], [TRUTH[:1]], ignore=[ELSEWHERE[:1]])
    assert plain.ap == 0.5
    assert ignoring.ap == 1.0
    assert len(ignoring.hits) == 1


def test_finds_objects_are_taken():
    finds = Finds(boxes=TRUTH, scores=np.array([0.1, 0.9, 0.3, 0.4]))
    assert average_precision([finds], [TRUTH]).ap == 1.0


def test_nothing_found_and_nothing_to_find():
    nothing = (np.zeros((0, 4)), np.zeros(0))
    assert average_precision([nothing], [TRUTH]).ap == 0.0
    assert np.isnan(average_precision([(TRUTH, np.ones(4))], [np.zeros((0, 4))]).ap)
    assert np.isnan(average_precision([], []).ap)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="one entry an image"):
        average_precision([(TRUTH, np.ones(4))], [TRUTH, TRUTH])
    with pytest.raises(ValueError, match="'iou' or 'centre'"):
        average_precision([], [], match="area")  # type: ignore[arg-type]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 10))
def test_the_area_under_the_curve(hits, missed):
    # things in a row; a find is either on its thing or far below it
    number = len(hits)
    truth = np.stack([np.arange(number) * 20, np.zeros(number), np.arange(number) * 20 + 10, np.full(number, 10)], 1)
    found = truth + np.where(hits, 0, 500)[:, None] * [0, 1, 0, 1]
    unseen = np.tile([0.0, 1000, 10, 1010], (missed, 1)) + np.arange(missed)[:, None] * [20, 0, 20, 0]
    result = average_precision([(found, -np.arange(number, dtype=float))], [np.concatenate([truth, unseen])])
    # each right find adds the best precision from there on, times the step of recall
    precision = np.cumsum(hits) / np.arange(1, number + 1)
    expected = sum(precision[i:].max() for i in range(number) if hits[i]) / (number + missed)
    assert result.ap == pytest.approx(expected)
    assert (np.diff(result.recall) >= 0).all()
