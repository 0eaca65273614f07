"""The detector tile by tile, against the whole: positions, scores, maps, and what is larger than memory."""

from __future__ import annotations

import numpy as np
import pytest
from scenes import box, scene

from wherever import tiles
from wherever.files.sources import ArraySource
from wherever.find import Detector, features, sweep
from wherever.find.sweep import distinct
from wherever.find.tiled import Sweep, all_candidates, grid

PLACES = [(20, 20, 24), (90, 30, 24), (150, 90, 24), (40, 100, 24), (100, 140, 24)]
BOXES = np.array([box(p) for p in PLACES], float)


@pytest.fixture(scope="module")
def image():
    part = np.clip(scene(PLACES, (180, 200)) * 30 + 100, 0, 255)
    rows = [np.concatenate([np.roll(part, (7 * i, 5 * j), (0, 1)) for j in range(3)], 1) for i in range(3)]
    return np.concatenate(rows).astype(np.uint8)


@pytest.fixture(scope="module", params=[{}, {"any_rotation": True}, {"scales": (0.4, 2.5)}], ids=str)
def detector(request, image):
    return Detector(**request.param).fit(image[:180, :200], BOXES[:1])


def in_tiles(detector, image, tile):
    sweep = detector.sweep(ArraySource(image))
    found = all_candidates(sweep, grid(image.shape[:2], tile), detector._limits(None, None)[1])
    return detector._finds(distinct(found), image.shape[1::-1])


def same(found, expected):
    assert len(found) == len(expected)
    order = [np.lexsort(finds.boxes.T) for finds in (found, expected)]
    assert np.allclose(found.boxes[order[0]], expected.boxes[order[1]])
    assert np.allclose(found.scores[order[0]], expected.scores[order[1]], atol=1e-5)
    assert np.allclose(found.angle[order[0]], expected.angle[order[1]])


@pytest.mark.parametrize("tile", [(64, 64), (170, 230), (31, 600), (1000, 1000)])
def test_finds_are_those_of_the_whole(detector, image, tile):
    same(in_tiles(detector, image, tile), detector.find(image))


@pytest.mark.parametrize("tile", [90, 250])
def test_score_maps_are_those_of_the_whole(detector, image, tile):
    assert np.allclose(tiles.map(detector, image, tile=tile), detector.score_map(image), atol=1e-5)


def test_colours_and_missing_pixels(image):
    colour = np.stack([image, image // 2 + 20, 255 - image], axis=2).astype(np.float32)
    colour[60:90, 100:140] = np.nan
    detector = Detector().fit(colour, BOXES[1:3])
    same(in_tiles(detector, colour, (100, 77)), detector.find(colour))


def test_files_within_a_budget(image, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    wide = np.tile(image, (2, 2))
    tifffile.imwrite(tmp_path / "a.tif", wide, tile=(64, 64), compression="zlib")
    detector = Detector().fit(image[:180, :200], BOXES[:1])
    sweep = detector.sweep(tiles.open_window(tmp_path / "a.tif"))
    assert len(sweep.grid(48 << 20)) > 1
    told = []
    found = detector.find_in(tmp_path / "a.tif", memory="48 MiB", progress=lambda *done: told.append(done))
    same(found, detector.find(wide))
    assert told[-1] == (len(told), len(told))
    few = detector.find_in(tmp_path / "a.tif", memory="48 MiB", top=3)
    # the copies of one thing score the same but for rounding: which of them are among the best three is not said
    assert np.allclose(few.scores, detector.find(wide, top=3).scores, atol=1e-5)
    with pytest.raises(ValueError, match=r"memory: .* not enough to look at one place"):
        detector.find_in(tmp_path / "a.tif", memory="1 MiB")
    with pytest.raises(ValueError, match="1 channel"):
        Detector().fit(np.stack([image] * 2, 2), BOXES[:1]).find_in(tmp_path / "a.tif")


def test_declared_no_data_is_missing(image, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    holes = image.astype(np.int16)
    holes[60:90, 100:140] = -1
    tifffile.imwrite(tmp_path / "a.tif", holes, extratags=[(42113, "s", 3, "-1", True)])
    known = np.where(holes < 0, np.nan, holes).astype(np.float32)
    detector = Detector().fit(image[:180, :200], BOXES[:1])
    same(detector.find_in(tmp_path / "a.tif"), detector.find(known))


def test_statistics_of_large_pictures_come_from_few_rows(image, monkeypatch):
    monkeypatch.setattr(features, "LARGE", 10_000)
    down, across = features.sampling(40_000, 40_000)
    assert 40_000 // down <= 17
    assert 15_000 < -(-40_000 // down) * -(-40_000 // across) < 50_000
    assert features.sampling(90, 100) == (1, 1)
    for pixels in (image[:, :, None], np.full((300, 300, 1), 7)):
        centre, spread = features.channel_statistics(pixels)
        kernel = Detector().fit(image[:180, :200], BOXES[:1]).kernel_
        got = Sweep.of(kernel, ArraySource(pixels)).statistics
        if len(np.unique(pixels)) > 1:
            assert np.array_equal(got[0], centre)
            assert got[1] == spread


def test_more_peaks_are_looked_at_in_larger_pictures():
    assert sweep.most_peaks(1000, 1000) == sweep.MOST_PEAKS
    assert sweep.most_peaks(40_000, 40_000) == 48 * sweep.MOST_PEAKS
