"""Shared kernels, coordinates and regions compared, where the truth is one of them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve, gaussian_filter

from wherever import check
from wherever.check.pooled import dealt, held_out
from wherever.check.regression import Sums

seeds = st.integers(0, 2**32 - 1)


def noise(rng, count=30, size=40, bands=1):
    return rng.standard_normal((count, size, size, bands))


@settings(max_examples=10)
@given(seeds, st.integers(1, 2))
def test_one_kernel_is_found_where_there_is_one(seed, bands):
    rng = np.random.default_rng(seed)
    x = noise(rng, bands=bands)
    kernel = rng.standard_normal((3, 3))
    y = np.stack([convolve(image[..., -1], kernel) for image in x])
    y = y + 0.5 * y.std() * rng.standard_normal(y.shape)
    result = check.sharing(x, y, delta=1, samples=20_000)
    assert result.shared
    assert result.supported.score == pytest.approx(1 / 1.25, abs=0.02)
    assert result.fits[0].parameters == 1 + 9 * bands
    assert "one kernel for all places" in result.sentence


@settings(max_examples=10)
@given(seeds)
def test_coordinates_are_found_where_the_place_adds_something(seed):
    rng = np.random.default_rng(seed)
    x = noise(rng)[..., 0]
    y, _ = np.mgrid[-1:1:40j, -1:1:40j]
    result = check.sharing(x, np.roll(x, 1, axis=1) + 2 * y + y**2, delta=1, samples=20_000)
    assert result.supported.name == "coordinates"
    assert result.supported.score > 0.999 > result["one kernel"].score
    assert "knows where it is" in result.sentence


@pytest.mark.parametrize("g", [2, 4, 8])
def test_regions_are_found_where_each_has_its_kernel(g):
    rng = np.random.default_rng(g)
    x = noise(rng)[..., 0]
    signs = rng.permutation(np.resize([1.0, -1.0], g * g)).reshape(g, g)
    # With Δ = 1 regions divide the 38 pixels that a window fits to.
    edges = ((np.arange(40) - 0.5) * g / 38).clip(0, g - 1).astype(int)
    y = np.roll(x, 1, axis=1) * signs[edges[:, None], edges]
    result = check.sharing(x, y, delta=1)
    assert result.supported.name == f"{g} x {g} regions"
    assert result["one kernel"].score < 0.2
    assert result.supported.score > 0.999
    assert result.supported.difference > 5 * result.supported.error
    assert "kernels of their own" in result.sentence


def test_a_stationary_texture_supports_one_kernel_for_its_pixels():
    rng = np.random.default_rng(0)
    x = gaussian_filter(noise(rng, 30, 56), (0, 1, 1, 0))[:, 8:-8, 8:-8]
    assert check.sharing(x).shared
    # Smooth on the left and rough on the right: two kernels.
    half = np.where(np.arange(40)[:, None] < 20, x, 0.2 * noise(rng))
    assert check.sharing(half).supported.name.endswith("regions")


def test_one_image_with_a_map():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((128, 128))
    assert check.sharing(x, np.roll(x, 1, axis=1), delta=1).shared
    halves = np.where(np.arange(128) < 64, 1, -1) * np.roll(x, 1, axis=0)
    result = check.sharing(x, halves, delta=1)
    assert result.supported.name == "2 x 2 regions"
    assert result.supported.score > 0.95


def things(rng, count, anywhere):
    """Crosses and rings, in a quarter that says which, or anywhere."""
    y, x = np.mgrid[-4:5, -4:5]
    shapes = [(np.abs(y) <= 1) | (np.abs(x) <= 1), np.abs(np.hypot(y, x) - 3) < 1]
    images, labels = [], []
    for number in range(count):
        image = 0.3 * rng.standard_normal((32, 32))
        what = number % 2
        row, column = (
            rng.integers(0, 24, 2) if anywhere else (4 + rng.integers(0, 4), 4 + 12 * what + rng.integers(0, 4))
        )
        image[row : row + 9, column : column + 9] += shapes[what if anywhere else rng.integers(2)]
        images.append(image)
        labels.append(("cross", "ring")[what])
    return np.array(images), labels


def test_classes_of_images_by_what_is_there_or_where():
    what = check.sharing(*things(np.random.default_rng(0), 200, anywhere=True))
    assert what.measure == "accuracy"
    assert what.shared
    assert what.supported.score > 0.9
    where = check.sharing(*things(np.random.default_rng(1), 200, anywhere=False))
    assert not where.shared
    assert where["one kernel"].score < 0.65
    assert where.supported.score > 0.95


def test_numbers_of_images_and_labels_that_nothing_tells():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((150, 24, 24)) * rng.uniform(0.5, 2, (150, 1, 1))
    contrast = check.sharing(x, x.std(axis=(1, 2)))
    assert contrast.measure == "explained"
    assert contrast.shared
    assert contrast.supported.score > 0.9
    for seed in range(5):
        nothing = check.sharing(x, rng.permutation(np.arange(150) % 2), seed=seed)
        assert nothing.shared
        assert nothing.supported.score < 0.65
        assert "better than chance" in nothing.sentence


@given(st.integers(2, 5), st.integers(6, 20), st.integers(1, 12), seeds)
def test_what_is_held_out_is_predicted_from_the_others(folds, n, features, seed):
    rng = np.random.default_rng(seed)
    F, y = rng.standard_normal((n, features)), rng.standard_normal((n, 2))
    F = (F - F.mean(axis=0)) / F.std(axis=0)
    fold = rng.permutation(np.arange(n) % folds)
    guessed = held_out(F, y, fold)
    # Of some strength it is, for each fold, the fit to the others.
    scale = np.linalg.eigvalsh(F @ F.T).clip(0).mean()
    A, errors = np.hstack([np.ones((n, 1)), F]), []
    for strength in 10.0 ** np.arange(-4, 3):
        others = np.empty_like(y)
        R = np.diag([0.0] + [strength * scale] * features)
        for number in range(folds):
            keep = fold != number
            others[~keep] = A[~keep] @ np.linalg.solve(A[keep].T @ A[keep] + R, A[keep].T @ y[keep])
        errors.append(np.abs(others - guessed).max())
    assert min(errors) < 1e-3


@given(st.integers(2, 10), st.integers(20, 60), st.integers(2, 4), seeds)
def test_folds_have_as_much_of_every_class(folds, n, classes, seed):
    y = np.eye(classes)[np.random.default_rng(seed).integers(0, classes, n)]
    fold = dealt(y, folds, seed)
    counts = np.array([y[fold == number].sum(axis=0) for number in range(folds)])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp(counts.sum(axis=1)) <= 1


@given(st.integers(5, 30), st.integers(1, 6), seeds)
def test_sums_of_products_fit_as_samples_do(n, p, seed):
    rng = np.random.default_rng(seed)
    X, y = np.hstack([np.ones((n, 1)), rng.standard_normal((n, p))]), rng.standard_normal((n, 2))
    parts = Sums.of(X[:3], y[:3]) + Sums.of(X[3:], y[3:])
    weights = parts.fit(1, np.array([0.1]))[0]
    centred = X[:, 1:] - X[:, 1:].mean(axis=0)
    ridge = 0.1 * (centred**2).sum() / p * np.eye(p)
    expected = np.linalg.solve(centred.T @ centred + ridge, centred.T @ y)
    np.testing.assert_allclose(weights[1:], expected, atol=1e-9)
    assert parts.error(weights) == pytest.approx(((y - X @ weights) ** 2).sum())
    assert (parts - Sums.of(X[3:], y[3:])).error(weights) == pytest.approx(((y - X @ weights)[:3] ** 2).sum())


def test_results_print_turn_plain_and_are_drawn():
    pytest.importorskip("matplotlib")
    result = check.sharing(noise(np.random.default_rng(0), 12, 24), delta=1, regions=[2])
    assert [fit.name for fit in result.fits] == ["one kernel", "coordinates", "2 x 2 regions"]
    assert "better than chance" in result.sentence or result.shared
    assert "one kernel *" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["supported"] == "one kernel"
    file = io.BytesIO()
    result.plot(file, file_format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    with pytest.raises(KeyError, match="there is one kernel, coordinates"):
        result["3 x 3 regions"]


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (None, {"delta": 0}, "delta is 0"),
        (None, {"regions": [3, 4]}, r"regions is \(3, 4\); every number must divide"),
        (None, {"regions": [16]}, "12 images of 16 pixels can be divided into 12 x 12 regions at most"),
        (None, {"delta": 8}, "into 0 x 0 regions at most"),
        ([1] * 12, {}, "all values are 1"),
        ([1] * 11, {}, "target has 11 values for 12 images"),
        ([np.nan] * 12, {}, "must be finite"),
        (np.arange(12) % 2, {}, "10 folds need at least 20"),
        ([str(i) for i in range(12)], {"delta": 8}, "into 0 x 0 regions"),
        (np.zeros((12, 16, 15)), {}, r"target\[0\] has shape \(16, 15\)"),
        (np.full((12, 16, 16), np.inf), {}, r"target\[0\] has NaN"),
    ],
)
def test_bad_input(target, options, message):
    x = np.random.default_rng(0).standard_normal((12, 16, 16))
    with pytest.raises(ValueError, match=message):
        check.sharing(x, target, **options)
