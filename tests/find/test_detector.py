"""The detector on scenes with known things: what it finds, what changes nothing, what it says to bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scenes import box, glyph, scene
from scipy.ndimage import rotate

from wherever.find import Detector
from wherever.find.evaluate import matches

PLACES = [(20, 20, 24), (90, 30, 24), (150, 90, 24), (40, 100, 24), (100, 140, 24)]
SHAPE = (180, 200)
BOXES = np.array([box(p) for p in PLACES], float)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return scene(PLACES, SHAPE)


@pytest.fixture(scope="module")
def detector(image: np.ndarray) -> Detector:
    return Detector().fit(image, BOXES[:1])


def found_all(finds, boxes=BOXES) -> bool:
    return len(finds) == len(boxes) and bool(matches(finds.boxes, boxes).all())


def test_one_example_finds_every_other_thing_and_nothing_else(detector, image):
    assert found_all(detector.find(image))


def test_things_in_a_picture_it_has_not_seen(detector):
    places = [(10, 60, 24), (120, 20, 24), (70, 110, 24)]
    finds = detector.find(scene(places, (160, 170), seed=7))
    assert found_all(finds, np.array([box(p) for p in places], float))


def test_a_shifted_picture_has_the_same_finds_shifted(image):
    # shifts by whole cells on every level; cells of level 0 are 2.4 pixels
    detector = Detector(cells=8, scales=(1, 1)).fit(image, BOXES[:1])
    cell = detector.kernel_.template.cell
    assert cell == pytest.approx(3)
    shifted = np.roll(image, (12, 24), (0, 1))
    interior = slice(60, 120), slice(60, 130)
    before = detector.score_map(image)[interior]
    after = np.roll(detector.score_map(shifted), (-12, -24), (0, 1))[interior]
    assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64, ">f4", np.float16])
def test_the_dtype_of_the_picture_does_not_matter(image, dtype):
    grey = np.clip(np.round(image * 30 + 100), 0, 255)
    reference = Detector().fit(grey, BOXES[:1]).find(grey)
    given_dtype = grey.astype(dtype)
    finds = Detector().fit(given_dtype, BOXES[:1]).find(given_dtype)
    assert_allclose(finds.boxes, reference.boxes, atol=1e-6)
    assert_allclose(finds.scores, reference.scores, atol=1e-3)


def test_brightness_and_contrast_do_not_matter(detector, image):
    expected, finds = detector.find(image), detector.find(image * 40 - 1e4)
    assert_array_equal(finds.boxes, expected.boxes)
    assert_allclose(finds.scores, expected.scores, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
def test_any_number_of_channels(image, channels):
    random = np.random.default_rng(1)
    stack = np.stack(
        [
            image * random.choice([-1, 1]) * random.uniform(0.5, 1) + random.normal(0, 0.2, SHAPE)
            for _ in range(channels)
        ],
        axis=-1,
    )
    assert found_all(Detector().fit(stack, BOXES[:2]).find(stack))


def test_a_strided_read_only_picture(image, detector):
    wide = np.repeat(image, 2, axis=1)[:, ::2]
    wide.flags.writeable = False
    assert_array_equal(detector.find(wide).boxes, detector.find(image).boxes)


def test_things_of_other_sizes_are_found_with_their_size():
    places = [(20, 20, 24), (90, 20, 34), (150, 100, 20), (40, 110, 17)]
    image = scene(places, SHAPE, seed=2)
    finds = Detector(scales=(0.5, 2)).fit(image, [box(places[0])]).find(image)
    assert found_all(finds, np.array([box(p) for p in places], float))
    by_size = finds.scale[np.argsort(finds.boxes[:, 2] - finds.boxes[:, 0])]
    assert (np.diff(by_size) >= 0).all()
    assert by_size[-1] > 1.15


def test_scales_bound_the_search(image):
    finds = Detector(scales=(1.0, 1.5)).fit(image, BOXES[:1]).find(image, threshold=0)
    assert finds.scale.min() == 1.0
    assert finds.scale.max() <= 1.5


def test_turned_things_are_found_with_their_angle():
    upright = np.zeros((40, 40))
    upright[8:32, 12:18] = 2.0  # an L, of which no turn by less than a full one is the same
    upright[26:32, 12:30] = 2.0
    image = np.random.default_rng(0).normal(0, 0.1, (140, 200))
    angles = [0, 45, 90, 180, 270]
    centres = [(30, 30), (90, 30), (150, 30), (50, 100), (130, 100)]
    for angle, (x, y) in zip(angles, centres, strict=True):
        image[y - 20 : y + 20, x - 20 : x + 20] += rotate(upright, angle, reshape=False, order=1)
    finds = Detector(any_rotation=True).fit(image, [10, 10, 50, 50]).find(image)
    assert len(finds) == 5
    middle = (finds.boxes[:, :2] + finds.boxes[:, 2:]) / 2
    for angle, centre in zip(angles, centres, strict=True):
        nearest = np.linalg.norm(middle - centre, axis=1).argmin()
        assert abs(middle[nearest] - centre).max() < 4
        assert abs((finds.angle[nearest] - angle + 180) % 360 - 180) <= 22.5


def test_upright_things_are_not_found_mirrored():
    image = np.random.default_rng(3).normal(0, 0.1, (80, 160))
    image[20:52, 20:52] += glyph(32)
    image[20:52, 100:132] += glyph(32)[:, ::-1]
    example = [20, 20, 52, 52]
    assert len(Detector().fit(image, example).find(image)) == 2
    upright = Detector(upright=True).fit(image, example).find(image, threshold=0.0)
    best = upright[:1].boxes[0]
    assert abs(best - example).max() < 5
    mirrored = upright[np.abs(upright.boxes[:, 0] - 100) < 10]
    assert mirrored.scores.max(initial=0) < upright.scores[0] - 0.1


def test_a_long_thing_keeps_its_shape():
    image = np.random.default_rng(5).normal(0, 0.2, (120, 200))
    boxes = np.array([[20, 20, 68, 32], [110, 30, 158, 42], [60, 80, 108, 92]], float)
    for x0, y0, x1, y1 in boxes.astype(int):
        image[y0:y1, x0:x1] += 2
    detector = Detector().fit(image, boxes[0])
    assert detector.size_ == pytest.approx((48, 12))
    assert found_all(detector.find(image), boxes)


@pytest.mark.parametrize("size", [5, 7])
def test_tiny_things(size):
    places = [(10, 10, size), (50, 20, size), (30, 60, size), (70, 65, size)]
    image = np.random.default_rng(6).normal(0, 0.15, (90, 90))
    for x, y, _ in places:
        image[y : y + size, x : x + size] += 2
    boxes = np.array([box(p) for p in places], float)
    assert found_all(Detector().fit(image, boxes[:1]).find(image), boxes)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_boxes_of_a_few_pixels_classify_pixels_by_their_spectrum(side):
    random = np.random.default_rng(8)
    spectra = random.uniform(0, 1, (3, 40))
    kinds = np.repeat(np.repeat(random.integers(0, 3, (6, 6)), 8, axis=0), 8, axis=1)
    image = spectra[kinds] + random.normal(0, 0.05, (48, 48, 40))
    y, x = np.nonzero(kinds == 1)
    inside = (x % 8 == 3) & (y % 8 == 3)
    corners = np.stack([x[inside], y[inside]], axis=1)[:4]
    scores = Detector().fit(image, np.hstack([corners, corners + side])).score_map(image)
    assert np.median(scores[kinds == 1]) > np.quantile(scores[kinds != 1], 0.98)


def test_missing_pixels_do_not_matter(image):
    holes = np.random.default_rng(4).random(SHAPE) < 0.1
    missing = image.copy()
    missing[holes] = np.nan
    missing[0, 0] = np.inf
    detector = Detector().fit(missing, BOXES[:1])
    assert np.isfinite(detector.score_map(missing)).all()
    assert found_all(detector.find(missing))


def test_a_thing_at_the_border_can_be_the_example():
    places = [(0, 0, 24), (90, 30, 24), (150, 90, 24)]
    image = scene(places, SHAPE, seed=9)
    boxes = np.array([box(p) for p in places], float)
    assert found_all(Detector().fit(image, boxes[:1]).find(image), boxes)


def test_several_pictures_some_without_examples(image):
    other = scene([(60, 60, 24)], SHAPE, seed=11)
    detector = Detector().fit([image, other], [None, [box((60, 60, 24))]])
    assert found_all(detector.find(image))


def lookalikes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a picture, the boxes of its discs, and the boxes of rings that look much the same."""
    y, x = np.mgrid[:180, :240]
    image = np.random.default_rng(2).normal(0, 0.15, (180, 240))
    discs, rings = [], []
    for index, (cx, cy) in enumerate(
        [(30, 30), (90, 30), (150, 30), (210, 30), (30, 90), (90, 90), (150, 90), (210, 90)]
    ):
        radius = np.hypot(x - cx, y - cy)
        image += (radius < 12) * 1.0
        if index % 2:
            image -= (radius < 5) * 0.6
        (rings if index % 2 else discs).append([cx - 12, cy - 12, cx + 12, cy + 12])
    return image, np.array(discs, float), np.array(rings, float)


def test_negatives_push_down_what_they_mark_and_what_is_like_it():
    image, discs, rings = lookalikes()
    before = Detector().fit(image, discs[:1]).find(image, threshold=0)
    after = Detector().fit(image, discs[:1], negatives=rings[:1]).find(image, threshold=0)

    def gap(finds):
        scores = [finds.scores[matches(finds.boxes, b)].min() for b in (discs, rings[1:])]
        return scores[0] - scores[1]

    assert gap(after) > gap(before) + 0.1


def test_a_complete_picture_separates_lookalikes_and_calibrates():
    image, discs, _ = lookalikes()
    images, boxes = [image, image[::-1]], [discs, discs * [1, -1, 1, -1] + [0, 180, 0, 180]]
    boxes[1] = boxes[1][:, [0, 3, 2, 1]]
    detector = Detector().fit(images, boxes, complete=True)
    assert detector.calibrated_
    finds = detector.find(image)
    assert finds.calibrated
    assert found_all(finds, discs)


def test_one_complete_picture_calibrates_on_its_halves(image):
    places = [*PLACES, (150, 20, 24), (20, 145, 24), (150, 145, 24)]
    picture = scene(places, SHAPE, seed=12)
    boxes = np.array([box(p) for p in places], float)
    detector = Detector().fit(picture, boxes, complete=True)
    assert detector.calibrated_
    assert found_all(detector.find(picture), boxes)


def test_one_example_is_not_called_calibrated(detector, image):
    assert not detector.calibrated_
    assert not detector.find(image).calibrated


def test_anywhere_tells_pictures_with_the_thing_from_those_without(detector):
    random = np.random.default_rng(0)
    corners = random.integers(5, 90, (5, 2))
    withs = [detector.anywhere(scene([(x, y, 24)], (120, 120), seed=s)) for s, (x, y) in enumerate(corners)]
    without = [detector.anywhere(scene([], (120, 120), seed=s)) for s in range(5)]
    assert min(withs) > 0.5 > max(without)


def test_the_score_map_peaks_at_the_things(detector, image):
    scores = detector.score_map(image)
    assert scores.shape == SHAPE
    assert scores.dtype == np.float32
    assert 0 <= scores.min() <= scores.max() <= 1
    for x, y, size in PLACES:
        assert scores[y + size // 2, x + size // 2] > detector.threshold_


def test_top_and_threshold(detector, image):
    every = detector.find(image, threshold=0)
    assert len(every) > len(PLACES)
    assert_array_equal(detector.find(image, top=3).boxes, every[:3].boxes)
    assert_array_equal(detector.find(image, threshold=0.3).scores, every[every.scores >= 0.3].scores)
    assert len(detector.find(image, threshold=1.0)) == 0


def test_progress_is_reported_for_every_scale(detector, image):
    calls = []
    detector.find(image, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 5) for i in range(5)]


def test_fitting_is_reproducible(image, detector):
    assert_array_equal(Detector().fit(image, BOXES[:1]).score_map(image), detector.score_map(image))


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(3, 40), st.integers(3, 40)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    extent=st.tuples(st.floats(0.01, 0.4), st.floats(0.01, 0.4)),
    channels=st.integers(1, 4),
)
def test_any_legal_box_in_any_picture_can_be_learnt(shape, corner, extent, channels):
    height, width = shape
    picture = np.random.default_rng(0).normal(size=(height, width, channels))
    across, down = max(0.51, extent[0] * width), max(0.51, extent[1] * height)
    x0, y0 = corner[0] * (width - across), corner[1] * (height - down)
    example = [x0, y0, x0 + across, y0 + down]
    detector = Detector(scales=(1, 1)).fit(picture, example)
    assert np.isfinite(detector.score_map(picture)).all()
    finds = detector.find(picture, threshold=0)
    assert (finds.boxes >= 0).all()
    assert (finds.boxes[:, 2:] <= [width, height]).all()


def test_parameters_can_be_read_set_and_printed():
    detector = Detector(cells=6, upright=True)
    assert repr(detector) == "Detector(cells=6, upright=True)"
    assert detector.set_params(cells=12).get_params()["cells"] == 12
    assert Detector(**detector.get_params()).get_params() == detector.get_params()
    with pytest.raises(ValueError, match=r"no parameter 'cell'.*cells"):
        detector.set_params(cell=3)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "no example"),
        (np.zeros((0, 4)), "no example"),
        ([10, 10, 10, 30], "width 0"),
        ([30, 10, 10, 40], "width -20"),
        ([190, 10, 260, 40], "not inside the image of 200 x 180"),
        ([-30, 10, 20, 40], "not inside"),
        ([0, 0, 400, 400], "larger than the image"),
        ([0, 0, np.nan, 4], "not finite"),
        ([1, 2, 3], r"shape \(n, 4\)"),
    ],
)
def test_bad_boxes(image, boxes, message):
    with pytest.raises(ValueError, match=message):
        Detector().fit(image, boxes)


def test_a_box_that_fills_its_picture():
    picture = np.random.default_rng(0).normal(size=(20, 30))
    assert Detector().fit(picture, [0, 0, 30, 20]).size_ == pytest.approx((30, 20))


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (np.zeros((50, 50)), ValueError, "one colour"),
        (np.ones((1, 1)), ValueError, "one colour"),
        (np.full((50, 50, 3), np.nan), ValueError, "no finite pixel"),
        (np.zeros((50,)), ValueError, "shape"),
        (np.zeros((0, 50)), ValueError, "no pixels"),
        (np.zeros((2, 50, 50, 3)), ValueError, "shape"),
        (np.zeros((50, 50), complex), TypeError, "real numbers"),
        (np.array([["a", "b"], ["c", "d"]]), TypeError, "real numbers"),
        (np.where(np.eye(50) > 0, -3.4e38, 0), ValueError, "as large as 3.4e.38.*missing"),
        ("coins.png", TypeError, "real numbers"),
        (None, TypeError, "real numbers"),
    ],
)
def test_bad_pictures(picture, error, message):
    with pytest.raises(error, match=message):
        Detector().fit(picture, [10, 10, 20, 20])


def test_other_mistakes_are_explained(image, detector):
    colour = np.stack([image] * 3, axis=-1)
    with pytest.raises(ValueError, match=r"scales=\(30.0, 40.0\).*larger than every image"):
        Detector(scales=(30, 40)).fit(image, BOXES)
    with pytest.raises(ValueError, match="both as an example and as a negative"):
        Detector().fit(image, BOXES, negatives=BOXES[1:2])
    with pytest.raises(ValueError, match="same number of channels"):
        Detector().fit([image, colour], [BOXES, BOXES])
    with pytest.raises(ValueError, match=r"3 channel.*trained on images with 1"):
        detector.find(colour)
    with pytest.raises(ValueError, match=r"2 for 1 images|1 for 2 images"):
        Detector().fit([image, image], [BOXES])
    with pytest.raises(TypeError, match="boxes must hold numbers"):
        Detector().fit(image, [["a", "b", "c", "d"]])
    with pytest.raises(ValueError, match="learnt nothing yet"):
        Detector().find(image)
    with pytest.raises(ValueError, match="exclude each other"):
        Detector(upright=True, any_rotation=True).fit(image, BOXES)
    with pytest.raises(ValueError, match="scales"):
        Detector(scales=(2, 1)).fit(image, BOXES)
    with pytest.raises(ValueError, match="cells"):
        Detector(cells=0).fit(image, BOXES)
    with pytest.raises(ValueError, match="threshold"):
        detector.find(image, threshold=7)
    with pytest.raises(ValueError, match="top"):
        detector.find(image, top=0)


def test_a_picture_of_one_colour_has_no_finds(detector):
    assert len(detector.find(np.full((60, 60), 7))) == 0
    assert len(detector.find(np.ones((1, 1)))) == 0
