"""Template matching: against scikit-image for one channel, against the formula for any, and what has no contrast."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import disguised, numbers

from wherever import set_threads
from wherever.find import match_template, template


def brute(image, template, mode="valid"):
    """The formula, window by window."""
    x, w = (a.reshape(*a.shape[:2], -1).astype(np.float64) for a in (image, template))
    if mode == "same":
        pads = [(n // 2, (n - 1) // 2) for n in w.shape[:2]]
        x = np.pad(x - x.mean(axis=(0, 1)), [*pads, (0, 0)])
    w = w - w.mean(axis=(0, 1))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], axis=(0, 1))
    windows = windows - windows.mean(axis=(3, 4), keepdims=True)
    top = np.einsum("ijcab,abc->ij", windows, w)
    length = np.sqrt(np.sum(windows**2, axis=(2, 3, 4)) * np.sum(w**2))
    return np.where(length > 1e-12 * np.abs(x).max(), top / np.where(length, length, 1), 0)


@given(
    shape=st.tuples(st.integers(2, 30), st.integers(2, 30), st.integers(1, 5)),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int16", "int64", "float16"]),
    mode=st.sampled_from(["valid", "same"]),
    seed=st.integers(0, 1000),
)
def test_it_is_the_formula(shape, part, dtype, mode, seed):
    image = numbers(shape, dtype, seed)
    high, wide = (max(1, round(n * p)) for n, p in zip(shape, part, strict=False))
    template = numbers((high, wide, shape[2]), dtype, seed + 1)
    result = match_template(disguised(image, seed), disguised(template, seed), mode=mode)
    truth = brute(image, template, mode)
    assert result.shape == truth.shape
    wide_type = dtype in ("float64", "int64")
    assert result.dtype == (np.float64 if wide_type else np.float32)
    np.testing.assert_allclose(result, truth, atol=1e-9 if wide_type else 2e-4)


@pytest.mark.parametrize("shape", [(7, 9), (1, 5), (120, 100)])
@pytest.mark.parametrize("same", [False, True])
def test_one_channel_is_scikit_images(shape, same):
    feature = pytest.importorskip("skimage.feature")
    image, template = numbers((150, 170), "float64"), numbers(shape, "float64", 1)
    image -= image.mean()  # scikit-image continues by zeros
    truth = feature.match_template(image, template, pad_input=same)
    np.testing.assert_allclose(match_template(image, template, mode="same" if same else "valid"), truth, atol=1e-9)


def test_a_piece_of_the_image_is_found_whatever_its_brightness_and_contrast():
    image = numbers((60, 70, 3), "float32") + np.array([1e3, -50, 0], np.float32)
    scores = match_template(image, 3 * image[20:31, 40:47] + np.array([5, 6, 7], np.float32))
    assert np.unravel_index(scores.argmax(), scores.shape) == (20, 40)
    assert scores.max() == pytest.approx(1, abs=1e-3)


def test_windows_and_templates_of_one_colour_match_nothing():
    image = np.full((30, 30), 100.3, np.float32)
    image[:, 20:] = numbers((30, 10), "float32")
    scores = match_template(image, numbers((5, 5), "float32"))
    assert (scores[:, :16] == 0).all()
    assert (scores[:, 17:] != 0).all()
    assert (match_template(image, np.full((4, 4), 1 / 3)) == 0).all()
    assert (match_template(np.zeros((9, 9)), np.eye(3)) == 0).all()


def test_pixels_that_are_not_finite_spoil_their_windows_only():
    image = numbers((20, 20, 2), "float32")
    clean = match_template(image, image[3:6, 4:8])
    image[10, 10, 1] = np.nan
    scores = match_template(image, image[3:6, 4:8])
    assert np.argwhere(np.isnan(scores)).tolist() == [[i, j] for i in (8, 9, 10) for j in (7, 8, 9, 10)]
    np.testing.assert_allclose(scores[:7], clean[:7], atol=1e-5)


@pytest.mark.parametrize(
    ("image", "template", "mode", "error"),
    [
        (np.ones((3, 3)), np.ones((4, 3)), "valid", "template: shape"),
        (np.ones((3, 3)), np.ones((0, 3)), "valid", "template: shape"),
        (np.ones((3, 3, 2)), np.ones((2, 2)), "valid", "template: 1 channels"),
        (np.ones(3), np.ones((2, 2)), "valid", "image: shape"),
        (np.ones((3, 3)), np.full((2, 2), np.nan), "valid", "template: some"),
        (np.ones((3, 3)), np.ones((2, 2)), "full", "mode: 'full'"),
        (np.ones((3, 3)) * 1j, np.ones((2, 2)), "valid", "image: expected real"),
    ],
)
def test_errors_say_what_is_wrong(image, template, mode, error):
    with pytest.raises((ValueError, TypeError), match=error):
        match_template(image, template, mode=mode)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [(1, 1), (2, 90), (40, 3), (33, 65)])
def test_windows_across_strips_and_tiles(size, dtype, monkeypatch):
    monkeypatch.setattr(template, "_TILE", 64)
    image = numbers((100, 203, 2), dtype)
    part = numbers((*size, 2), dtype, 1)
    result = match_template(image, part)
    np.testing.assert_allclose(result, brute(image, part), atol=1e-9 if dtype == "float64" else 2e-5)


def test_what_is_bright_leaves_no_error_beside_it():
    """The last digits of running sums would; a window of faint contrast matches as well as any other."""
    bright, faint = np.sign(numbers((90, 75), "int64")) * 10**9, numbers((90, 65), "int64", 1) // 300
    image = np.concatenate([bright, -bright, np.zeros((90, 20), np.int64), faint, -faint], axis=1)
    part = image[30:60, 200:230]
    scores = match_template(image, part)
    assert scores[30, 200] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(scores[:, 170:], brute(image[:, 170:], part), atol=1e-4)


def test_scales_that_do_not_fit_squares():
    image = numbers((40, 50), "float32")
    part = image[5:17, 7:20]
    truth = match_template(image, part)
    for scale in (1e-30, 1e30):
        found = match_template(image * np.float32(scale), part)
        np.testing.assert_allclose(found, truth, atol=1e-5)


def test_without_generated_kernels(monkeypatch):
    image, part = numbers((50, 60, 3), "float32"), numbers((7, 9, 3), "float32", 1)
    truth = match_template(image, part, mode="same")
    monkeypatch.setattr(template, "unavailable", lambda: "no LLVM here")
    np.testing.assert_allclose(match_template(image, part, mode="same"), truth, atol=1e-6)


def test_many_at_once():
    """Several calls, each on several threads: none of them may look at the memory of another."""
    random = np.random.default_rng(0)
    images = [random.random((40 + 3 * n, 50 + 7 * n)) for n in range(12)]
    truth = [match_template(image, image[5:14, 6:17]) for image in images]
    wrong = []

    def work(order):
        for _ in range(5):
            for n in order:
                if not np.array_equal(match_template(images[n], images[n][5:14, 6:17]), truth[n]):
                    wrong.append(n)

    set_threads(3)
    try:
        threads = [threading.Thread(target=work, args=(range(k, 12),)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        set_threads(None)
    assert not wrong
