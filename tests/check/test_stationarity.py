"""Statistics of patches by position, on textures and things of which it is known."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from wherever import check

seeds = st.integers(0, 2**32 - 1)


def texture(rng, count=30, size=(40, 40), sigma=2.0, bands=1):
    """Noise, blurred, and cut out of something larger, so that nothing happens at its borders."""
    edge = int(4 * sigma) + 1
    noise = rng.standard_normal((count, size[0] + 2 * edge, size[1] + 2 * edge, bands))
    return gaussian_filter(noise, (0, sigma, sigma, 0))[:, edge:-edge, edge:-edge]


def blobs(rng, count=30, size=32, centred=True):
    """A bright disc of random size in every image, in its middle or anywhere."""
    y, x = np.mgrid[:size, :size]
    images = []
    for _ in range(count):
        radius = rng.uniform(4, 7)
        middle = rng.normal((size - 1) / 2, 1, 2) if centred else rng.uniform(radius, size - radius, 2)
        disc = np.hypot(y - middle[0], x - middle[1]) < radius
        images.append(disc + 0.2 * rng.standard_normal((size, size)))
    return np.array(images)


def test_false_alarms_are_as_rare_as_said():
    wrong, values = 0, []
    for seed in range(60):
        result = check.stationarity(texture(np.random.default_rng(seed)), draws=99, alpha=0.05)
        wrong += bool(result.significant)
        values += [item.p for item in result.dependences]
    # 60 · 0.05 = 3 are expected; more than 9 have a probability below 0.001.
    assert wrong <= 9
    assert 0.3 < np.mean(values) < 0.7  # p-values are uniform


@pytest.mark.parametrize(("size", "bands"), [((20, 31), 1), ((64, 16), 2), ((9, 9), 3), ((33, 32), 5)])
def test_a_stationary_texture_is_called_stationary(size, bands):
    results = [
        check.stationarity(texture(np.random.default_rng(seed), size=size, sigma=1.0, bands=bands), draws=299)
        for seed in range(20)
    ]
    assert sum(result.stationary for result in results) >= 18
    assert max(item.effect for result in results for item in result.dependences) < 0.05
    assert "more than chance" in next(result.sentence for result in results if result.stationary)


@settings(max_examples=15)
@given(seeds)
def test_centred_things_are_not_stationary_and_things_anywhere_hardly(seed):
    rng = np.random.default_rng(seed)
    centred, anywhere = (check.stationarity(blobs(rng, 60, centred=c), draws=299) for c in (True, False))
    assert not centred.stationary
    assert centred["mean"].effect > 0.5
    assert centred["mean"].map[4, 4, 0] > 0.5 > 0 > centred["mean"].map[0, 0, 0]
    assert centred["mean"].effect > 4 * anywhere["mean"].effect
    assert centred.sentence.startswith("Patches differ by position: the mean")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda x: x + np.linspace(-2, 2, 32), "mean"),
        (lambda x: x * np.linspace(0.5, 1.5, 32)[:, None], "contrast"),
        (
            lambda x: np.concatenate(
                [x[:, :, :16], np.rot90(x[:, :, :16], axes=(1, 2))[:, :16].repeat(2, 1)[:, :32]], 2
            ),
            "direction",
        ),
    ],
)
def test_what_depends_on_the_position_is_told(change, name):
    rng = np.random.default_rng(0)
    lines = gaussian_filter(rng.standard_normal((60, 32, 40)), (0, 0, 4))[:, :, 4:36]
    noise = lines / lines.std() if name == "direction" else rng.standard_normal((60, 32, 32))
    result = check.stationarity(change(noise))
    assert name in [item.name for item in result.significant]
    assert max(result.dependences, key=lambda item: item.effect).name == name


def test_images_of_different_sizes_types_and_brightness():
    rng = np.random.default_rng(0)
    images = [
        (rng.standard_normal(size) * 20 + rng.uniform(60, 190)).clip(0, 255).astype(np.uint8)
        for size in [(30, 40), (50, 33), (64, 64)] * 10
    ]
    result = check.stationarity(images)
    assert result.stationary
    assert "several sizes" in result.images


def test_many_bands_and_constant_ones():
    x = np.random.default_rng(0).standard_normal((20, 16, 16, 7))
    x[..., 1] = 3
    result = check.stationarity(x)
    assert "7 bands, 3 components" in result.images
    flat = np.zeros((20, 16, 16, 2))
    flat[..., 0] = x[..., 0]
    assert check.stationarity(flat)["mean"].map[..., 1].max() == 0


def test_the_effect_is_the_share_that_positions_explain():
    rng = np.random.default_rng(0)
    pattern = rng.standard_normal((8, 8))
    # Every patch of 4 x 4 is one value: the pattern, and independent noise of three times its variance.
    values = pattern + np.sqrt(3) * pattern.std() * rng.standard_normal((200, 8, 8))
    result = check.stationarity(values.repeat(4, axis=1).repeat(4, axis=2))
    assert result["mean"].effect == pytest.approx(0.25, abs=0.03)
    assert result["mean"].p == 1 / 500


def test_results_print_turn_plain_and_are_drawn():
    pytest.importorskip("matplotlib")
    result = check.stationarity(blobs(np.random.default_rng(0)), draws=19, alpha=0.2)
    assert "explained by position" in str(result)
    plain = result.to_dict()
    assert plain["stationary"] is False
    assert [item["name"] for item in plain["statistics"]] == ["mean", "contrast", "direction"]
    file = io.BytesIO()
    result.plot(file, file_format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    with pytest.raises(KeyError, match="there is mean, contrast and direction"):
        result["colour"]


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.ones((8, 8)), ValueError, "at least two are needed"),
        (np.ones((5, 8, 8)), ValueError, "all are constant"),
        (np.ones((5, 3, 8)), ValueError, "at least 4 x 4 pixels"),
        (np.ones((2, 3, 4, 5, 6)), ValueError, r"images has shape \(2, 3, 4, 5, 6\)"),
        ([], ValueError, "none is given"),
        ("abc", TypeError, "images is str"),
        ([np.ones((8, 8)), np.ones((8, 8, 3))], ValueError, r"images\[1\] has 3 bands, images\[0\] has 1"),
        ([np.ones((8, 8)), np.full((8, 8), np.nan)], ValueError, r"images\[1\] has NaN"),
        ([np.ones((8, 8)), np.ones((8, 0))], ValueError, r"images\[1\] has shape \(8, 0\)"),
        (np.ones((3, 8, 8), complex), TypeError, r"images\[0\] holds complex128"),
    ],
)
def test_bad_input(images, error, message):
    with pytest.raises(error, match=message):
        check.stationarity(images)


def test_too_few_draws_for_the_level():
    with pytest.raises(ValueError, match=r"draws is 99 and alpha 0.01: the least p-value is 1 / \(draws \+ 1\)"):
        check.stationarity(np.random.default_rng(0).random((5, 8, 8)), draws=99)
