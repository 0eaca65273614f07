"""Cell averages, normalisation, the channel mix and local contrast against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.ndimage import gaussian_filter

from wherever.find.features import (
    Eye,
    Picture,
    averaging,
    channel_statistics,
    interpolation,
    learn_mix,
    local_contrast,
    smooth,
)

IDENTITY = np.eye(3, dtype=np.float32)


def test_whole_cells_are_plain_means_of_the_normalised_pixels():
    image = np.random.default_rng(0).integers(0, 255, (24, 30, 3), dtype=np.uint8)
    centre, spread = channel_statistics(image)
    blocks = ((image - centre) / spread).reshape(4, 6, 5, 6, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert_allclose(Picture(image, IDENTITY).cells(6.0, 0.0, 0.0, 4, 5), blocks, atol=1e-5)


@given(size=st.integers(1, 60), cell=st.floats(0.1, 20), start=st.floats(-30, 70), count=st.integers(1, 30))
def test_averages_of_a_constant_are_constant(size, cell, start, count):
    assert_allclose(averaging(size, cell, start, count) @ np.ones(size, np.float32), 1, rtol=1e-5)


@given(size=st.integers(4, 60), cell=st.floats(1, 20))
def test_cells_that_tile_the_image_keep_its_mean(size, cell):
    count = max(1, int(size // cell))
    values = np.random.default_rng(size).random(size).astype(np.float32)
    cell = min(cell, size / count)
    covered = count * cell
    integral = np.concatenate([[0], np.cumsum(values)])
    expected = np.interp(covered, np.arange(size + 1), integral) / covered
    assert (averaging(size, cell, 0, count) @ values).mean() == pytest.approx(expected, rel=1e-4)


def test_cells_smaller_than_a_pixel_interpolate():
    values = np.array([0, 4, 4], np.float32)
    assert_allclose(averaging(3, 0.5, 0, 6) @ values, [0, 1, 3, 4, 4, 4])


def test_interpolation_hits_its_samples_and_is_linear_between():
    samples = np.array([0, 10, 20], np.float32)
    assert_allclose(interpolation(6, 3, 2.0, 0.5) @ samples, [0, 2.5, 7.5, 12.5, 17.5, 20])


def test_missing_pixels_leave_the_averages_of_the_others():
    image = np.random.default_rng(1).normal(size=(12, 12, 1))
    holes = np.random.default_rng(2).random((12, 12)) < 0.3
    missing = image.copy()
    missing[holes] = np.nan
    centre, spread = channel_statistics(missing)
    normal = np.where(holes, np.nan, (image[..., 0] - centre) / spread)
    expected = np.nanmean(normal.reshape(3, 4, 3, 4), axis=(1, 3))
    assert_allclose(Picture(missing, np.ones((1, 1), np.float32)).cells(4.0, 0, 0, 3, 3)[0], expected, atol=1e-5)


def test_mixing_before_and_after_averaging_is_the_same():
    image = np.random.default_rng(3).integers(0, 1000, (20, 20, 3), dtype=np.uint16)
    mix = np.random.default_rng(4).normal(size=(2, 3)).astype(np.float32)  # fewer maps than channels: mixed before
    before = Picture(image, mix).cells(3.3, 0, 0, 6, 6)
    after = np.tensordot(mix, Picture(image, IDENTITY).cells(3.3, 0, 0, 6, 6), axes=1)
    assert_allclose(before, after, atol=1e-4)


def test_a_turned_window_is_the_window_of_the_turned_picture():
    image = gaussian_filter(np.random.default_rng(5).normal(size=(121, 121)), 4)[:, :, None]
    eye = Eye(np.ones((1, 1), np.float32), 2.0, 0.0)
    turned = Picture(np.rot90(image), eye.mix).window(eye, 60.5, 60.5, 3.0, 8, 8, 90.0)
    upright = Picture(image, eye.mix).window(eye, 60.5, 60.5, 3.0, 8, 8, 0.0)
    assert_allclose(turned, upright, atol=0.1)  # four samples a cell instead of all


def test_hot_pixels_do_not_flatten_the_rest_and_sparse_dots_count():
    image = np.random.default_rng(6).normal(0, 1, (100, 100, 1))
    image[0, 0] = 1e9
    assert channel_statistics(image)[1] == pytest.approx(1, rel=0.1)
    dots = np.zeros((100, 100, 1))
    dots[50, 50] = 1
    assert channel_statistics(dots)[1] == pytest.approx(0.01, rel=0.01)
    assert channel_statistics(np.full((5, 5, 2), 7))[1] == 1.0


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 198])
def test_the_mix_is_orthonormal_and_keeps_what_varies(channels):
    random = np.random.default_rng(7)
    image = random.normal(size=(40, 40, 3)) @ random.normal(size=(3, channels))
    mix = learn_mix([image], 5)
    assert len(mix) <= min(5, channels)
    assert_allclose(mix @ mix.T, np.eye(len(mix)), atol=1e-5)
    centred = (image - image.mean(axis=(0, 1))).reshape(-1, channels)
    # three directions and the mean of the channels: nothing else varies
    kept = centred @ mix.T @ mix
    assert_allclose(kept, centred, atol=1e-3 * np.abs(centred).max())


def test_smoothing_is_the_gaussian_filter_of_scipy():
    maps = np.random.default_rng(8).normal(size=(2, 20, 30)).astype(np.float32)
    expected = gaussian_filter(maps.astype(np.float64), (0, 2, 2), mode="nearest", radius=(0, 6, 6))
    assert_allclose(smooth(maps, 2.0), expected, atol=1e-5)


def test_local_contrast_does_not_see_slow_light_or_gain():
    pattern = np.random.default_rng(9).normal(size=(1, 60, 60)).astype(np.float32)
    light = np.linspace(0, 3, 60, dtype=np.float32)
    reference = local_contrast(pattern, 2.0)[:, 10:-10, 10:-10]
    assert_allclose(local_contrast(pattern * 5, 2.0)[:, 10:-10, 10:-10], reference, atol=0.2)
    assert_allclose(local_contrast(pattern + light, 2.0)[:, 10:-10, 10:-10], reference, atol=0.05)
    assert np.abs(reference).max() <= 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_a_large_offset_costs_no_precision(dtype):
    pattern = np.random.default_rng(10).integers(0, 8, (24, 24, 1))
    reference = Picture(pattern.astype(np.uint8), np.ones((1, 1), np.float32)).cells(5.0, 0, 0, 4, 4)
    shifted = Picture((pattern + 1_000_000).astype(dtype), np.ones((1, 1), np.float32)).cells(5.0, 0, 0, 4, 4)
    assert_allclose(shifted, reference, atol=1e-5)
