"""Drawn results show what they should, where it is, on pictures of every kind and size."""

from __future__ import annotations

import io

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from wherever.files.pictures import (
    EXAMPLE_COLOUR,
    FIND_COLOUR,
    displayable,
    heat_map_png,
    overlay_png,
    precision_recall_png,
    score_map_tif,
)


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def where(picture: np.ndarray, colour: str) -> np.ndarray:
    return np.argwhere((picture == ImageColor.getrgb(colour)).all(axis=-1))


@settings(max_examples=80)
@given(
    image=hnp.arrays(
        st.sampled_from([np.dtype(name) for name in ("u1", "u2", "i2", "f4", "f8", "?")]),
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=9),
    )
)
def test_anything_can_be_shown(image: np.ndarray) -> None:
    shown = displayable(image)
    assert shown.dtype == np.uint8
    assert shown.shape == (*image.shape[:2], 3)
    if image.dtype == np.uint8 and image.ndim == 2:
        np.testing.assert_array_equal(shown, np.repeat(image[:, :, None], 3, axis=2))
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        np.testing.assert_array_equal(shown, image)


def test_many_bands_are_stretched_each_for_itself_and_spread_evenly() -> None:
    ramp = np.tile(np.linspace(0, 1, 201), (3, 1))
    image = ramp[:, :, None] * np.logspace(-6, 6, 30)
    shown = displayable(image.astype(np.float32))
    assert (np.ptp(shown, axis=(0, 1)) == 255).all()
    image[:, :, -3:] = np.nan
    assert np.ptp(displayable(image)[:, :, 0]) == 255  # the red band is the 25th, not one of the last
    image[:, :, 24] = np.nan
    assert (displayable(image)[:, :, 0] == 0).all()


def test_colour_is_stretched_together() -> None:
    image = np.zeros((10, 10, 3), dtype=np.uint16)
    image[:5] = (40000, 20000, 0)
    np.testing.assert_allclose(displayable(image)[0, 0], (255, 127.5, 0), atol=1)


def test_one_colour_is_grey_and_nan_is_black() -> None:
    assert (displayable(np.full((4, 4), 7.0)) == 128).all()
    assert (displayable(np.full((4, 4), np.nan)) == 0).all()
    with pytest.raises(ValueError, match="image must have shape"):
        displayable(np.zeros((2, 2, 2, 2)))


@pytest.mark.parametrize("shape", [(1000, 900), (60, 80), (20, 3000, 3), (1, 1), (5, 5, 40)])
@pytest.mark.parametrize("background", [0, 255])
def test_boxes_are_drawn_where_they_are(shape: tuple[int, ...], background: int) -> None:
    image = np.full(shape, background, dtype=np.uint8)
    height, width = shape[:2]
    box = np.array([0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height])
    picture = decoded(overlay_png(image, [box], [0.5], np.array([0, 0, width, height])))
    zoom = picture.shape[1] / width
    drawn = where(picture, FIND_COLOUR)
    line = max(2, max(picture.shape) / 500) + 1
    # The tag with the score may rise above the box; the other three sides are the box's own.
    assert drawn[:, 1].min() == pytest.approx(box[0] * zoom, abs=line)
    assert drawn[:, 1].max() == pytest.approx(box[2] * zoom, abs=line)
    assert drawn[:, 0].max() == pytest.approx(box[3] * zoom, abs=line)
    if width > 1:
        assert len(where(picture, EXAMPLE_COLOUR)) > 0
    assert len(where(decoded(overlay_png(image, np.zeros((0, 4)), [])), FIND_COLOUR)) == 0


def test_small_pictures_are_enlarged_and_large_ones_reduced() -> None:
    assert decoded(overlay_png(np.zeros((50, 100), np.uint8), [], [])).shape == (400, 800, 3)
    assert decoded(overlay_png(np.zeros((10, 9000), np.uint8), [], [])).shape == (9, 8000, 3)
    assert decoded(overlay_png(np.zeros((20, 900), np.uint8), [], [])).shape == (20, 900, 3)


def test_odd_boxes_and_scores_can_be_drawn() -> None:
    boxes = [[-50, -50, 2000, 2000], [5, 5, 5, 5], [790, 590, 900, 700], [300.2, 300.7, 300.4, 300.9]]
    decoded(overlay_png(np.zeros((600, 800), np.uint8), boxes, [1.0, 0.0, 17.5, -3], boxes))


def test_a_heat_map_is_bright_where_the_score_is_high() -> None:
    scores = np.zeros((100, 900))
    scores[:, 300:600] = 0.5
    scores[:, 600:] = 1.0
    picture = decoded(heat_map_png(np.zeros((100, 900), np.uint8), scores)).astype(int).sum(axis=2)
    assert picture[50, 100] < picture[50, 450] < picture[50, 800]
    assert picture[50, 800] > 600
    odd = np.array([[np.nan, np.inf], [-5, 7]])
    decoded(heat_map_png(np.zeros((2, 2), np.uint8), odd))
    with pytest.raises(ValueError, match="score_map must have the picture's shape"):
        heat_map_png(np.zeros((2, 3), np.uint8), odd)


def test_a_score_map_keeps_its_numbers() -> None:
    scores = np.random.default_rng(0).random((40, 30)).astype(np.float32)
    got = tifffile.imread(io.BytesIO(score_map_tif(scores)))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, scores)


def test_a_precision_recall_plot_is_a_picture() -> None:
    curve = np.linspace(0, 1, 5)
    picture = decoded(precision_recall_png([("a", curve, 1 - curve), ("b", curve, curve)], styles=2))
    assert picture.shape[0] > 400
    assert np.ptp(picture) == 255
