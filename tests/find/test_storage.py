"""Detectors in files: they come back the same, and damaged files are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scenes import box, scene

from wherever.find import Detector

PLACES = [(20, 20, 24), (60, 60, 24)]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return scene(PLACES, (100, 110))


@pytest.mark.parametrize("parameters", [{}, {"any_rotation": True}, {"scales": (0.5, 2.0), "cells": 6}])
def test_a_detector_comes_back_the_same(image, tmp_path, parameters):
    detector = Detector(**parameters).fit(image, [box(PLACES[0])])
    detector.save(tmp_path / "thing.detector")
    again = Detector.load(tmp_path / "thing.detector")
    assert_array_equal(again.score_map(image), detector.score_map(image))
    assert_array_equal(again.find(image).boxes, detector.find(image).boxes)
    assert again.get_params() == detector.get_params()
    assert (again.size_, again.threshold_, again.calibrated_) == (
        detector.size_,
        detector.threshold_,
        detector.calibrated_,
    )


def test_nothing_fitted_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="learnt nothing yet"):
        Detector().save(tmp_path / "thing.detector")
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_refused(image, tmp_path):
    path = tmp_path / "thing.detector"
    Detector().fit(image, [box(PLACES[0])]).save(path)
    content = path.read_bytes()
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, description=np.array([{"a": 1}], object))
    damaged = {
        "empty": b"",
        "text": b"not a detector",
        "truncated": content[: len(content) // 2],
        "flipped": content[:300] + bytes(255 - b for b in content[300:340]) + content[340:],
        "other": (tmp_path / "other.npz").read_bytes(),
        "pickled": pickled.read_bytes(),
    }
    for data in damaged.values():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"thing\.detector.*(not a detector file|damaged)"):
            Detector.load(path)


def test_a_file_of_a_later_version_is_refused_with_the_way_out(image, tmp_path):
    path = tmp_path / "thing.detector"
    Detector().fit(image, [box(PLACES[0])]).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    description = json.loads(bytes(arrays["description"])) | {"version": 99}
    arrays["description"] = np.frombuffer(json.dumps(description).encode(), np.uint8)
    with path.open("wb") as out:
        np.savez(out, **arrays)
    with pytest.raises(ValueError, match=r"version 99.*update"):
        Detector.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Detector.load(tmp_path / "nothing.detector")
