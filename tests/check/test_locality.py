"""Correlation by distance and the size of windows, on noise of which both are known."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, uniform_filter1d

from wherever import check

seeds = st.integers(0, 2**32 - 1)


def blurred(rng, sigma, count=30, size=64):
    edge = int(4 * sigma) + 1
    noise = rng.standard_normal((count, size + 2 * edge, size + 2 * edge))
    return gaussian_filter(noise, (0, sigma, sigma))[:, edge:-edge, edge:-edge]


@settings(max_examples=10)
@given(seeds, st.integers(1, 3), st.booleans())
def test_white_noise_has_locality_zero(seed, bands, whole):
    noise = np.random.default_rng(seed).standard_normal((12, 48, 48, bands))
    # How bright an image is as a whole is no local matter.
    noise = (1000 + 100 * noise + np.arange(12)[:, None, None, None]).astype(np.int64 if whole else np.float32)
    result = check.locality(noise)
    assert result.delta == 0
    assert result.length < 1
    assert abs(result.correlation[1:]).max() < 0.03
    assert "Δ = 0" in result.sentence


@settings(max_examples=10)
@given(seeds, st.floats(1.0, 3.0))
def test_gaussian_noise_has_the_predicted_correlation(seed, sigma):
    result = check.locality(blurred(np.random.default_rng(seed), sigma), distance=12)
    expected = np.exp(-(result.distances**2) / (4 * sigma**2))
    for found in (result.down, result.across, result.correlation):
        np.testing.assert_allclose(found, expected, atol=0.08)
    assert result.length == pytest.approx(2 * sigma, rel=0.12)
    assert result.explained[1] > 0.9


@given(st.floats(0.1, 0.9))
@settings(max_examples=10)
def test_the_level_is_the_one_that_was_asked_for(level):
    result = check.locality(blurred(np.random.default_rng(1), 2.0), level=level)
    assert result.length == pytest.approx(4 * math.sqrt(math.log(1 / level)), rel=0.12)


def test_directions_are_told_apart():
    noise = np.random.default_rng(0).standard_normal((20, 64, 80))
    result = check.locality(uniform_filter1d(noise, 9, axis=2)[:, :, 8:-8])
    assert result.length_down < 1
    assert result.length_across == pytest.approx(9 * (1 - 1 / math.e), rel=0.1)  # 1 - d/9
    assert "across" in result.sentence


@pytest.mark.parametrize("delta", [1, 2, 3])
def test_the_window_that_a_target_needs_is_found(delta):
    rng = np.random.default_rng(delta)
    x = rng.standard_normal((20, 40, 40))
    y = np.roll(x, delta, axis=1) - 2 * np.roll(x, -delta, axis=2) + 0.5 * rng.standard_normal(x.shape)
    result = check.locality(x, y)
    assert result.delta == delta
    assert result.explained[delta] == pytest.approx(5 / 5.25, abs=0.02)
    assert abs(result.explained[delta - 1]) < 0.03


def test_a_target_of_classes_at_the_pixel_itself():
    x = np.random.default_rng(0).standard_normal((20, 32, 32, 2))
    result = check.locality(x, x[..., 0] > x[..., 1])
    assert result.delta == 0
    assert result.explained[0] == pytest.approx(2 / math.pi, abs=0.02)  # of a sign by its number


def test_one_image_is_cut_into_blocks():
    x = blurred(np.random.default_rng(0), 2.0, count=1, size=128)[0]
    result = check.locality(x)
    assert result.length == pytest.approx(4, rel=0.2)
    assert np.isnan(result.standard_error).all()
    assert json.loads(json.dumps(result.to_dict()))["standard_error"][0] is None


def test_the_standard_error_is_that_of_other_draws():
    draws = [check.locality(blurred(np.random.default_rng(seed), 1.0, 20, 32), delta=1) for seed in range(60)]
    spread = np.std([r.correlation for r in draws], axis=0)
    said = np.mean([r.standard_error for r in draws], axis=0)
    np.testing.assert_allclose(said[1:8], spread[1:8], rtol=0.3)


def test_results_print_turn_plain_and_are_drawn():
    pytest.importorskip("matplotlib")
    slow = np.cumsum(np.random.default_rng(0).standard_normal((6, 40, 40)), axis=2)
    result = check.locality(slow, level=0.001)
    assert math.isinf(check.locality(np.tile(np.arange(40.0), (6, 40, 1)), distance=4).length)
    assert "explained of a pixel" in str(result)
    file = io.BytesIO()
    result.plot(file, file_format="png")
    assert file.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones((9, 16, 16)),), {}, "all are constant"),
        ((np.ones((9, 3, 16)),), {}, "at least 4 are needed"),
        ((np.eye(16),), {"distance": 16}, "distance is 16"),
        ((np.eye(16),), {"delta": 9}, "delta is 9; the images allow 2 at most"),
        ((np.eye(16),), {"level": 1}, "level is 1"),
        ((np.eye(16), np.ones((4, 4))), {}, r"target\[0\] has shape \(4, 4\)"),
        ((np.ones((3, 16, 16)), [1, 2, 3]), {}, "a value at every pixel"),
        ((np.ones((3, 16, 16)), np.ones((2, 16, 16))), {}, "target has 2 maps for 3 images"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        check.locality(*arguments, **options)
