"""The detector on real pictures: coins, blood cells, a scene of 198 bands."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import loadmat
from scipy.stats import rankdata

from wherever.find import Detector, average_precision
from wherever.find.evaluate import matches

# Four of the 24 coins of scikit-image's picture: small, large, faint, sharp.
COINS = np.array([[25, 104, 67, 145], [305, 16, 365, 72], [132, 28, 179, 74], [80, 175, 124, 217]], float)


@pytest.mark.parametrize("coin", range(4))
def test_one_coin_finds_the_coins_and_nothing_else(coin):
    data = pytest.importorskip("skimage.data")
    finds = Detector().fit(data.coins(), COINS[coin]).find(data.coins())
    assert 23 <= len(finds) <= 24
    assert matches(finds.boxes, COINS).sum() == 4


def test_one_white_cell_finds_the_others(blood):
    (image, boxes), *others = [(i, b["WBC"]) for i, b in blood if len(b["WBC"]) == 1]
    detector = Detector().fit(image, boxes)
    result = average_precision(
        [detector.find(i, threshold=0) for i, _ in others], [b for _, b in others], match="centre"
    )
    assert result.ap > 0.9


def test_complete_images_give_calibrated_red_cells(blood):
    images, boxes = [i for i, _ in blood], [b["RBC"] for _, b in blood]
    detector = Detector().fit(images[:4], boxes[:4], complete=True)
    assert detector.calibrated_
    found = [detector.find(i, threshold=0) for i in images[4:]]
    result = average_precision(found, boxes[4:])
    assert result.ap > 0.6
    expected, counted = sum(f.scores.sum() for f in found), sum(len(b) for b in boxes[4:])
    assert expected == pytest.approx(counted, rel=0.35)


@pytest.mark.parametrize(("material", "name"), [(1, "water"), (3, "road")])
def test_pixels_by_their_spectrum(data, material, name):
    scene = loadmat(data / "jasper_ridge_198_bands.mat")
    image = scene["Y"].reshape(198, 100, 100).transpose(2, 1, 0)
    abundance = scene["A"].reshape(4, 100, 100).transpose(0, 2, 1)[material]
    y, x = np.nonzero(abundance > 0.9)
    chosen = np.random.default_rng(0).choice(len(y), 5, replace=False)
    corner = np.stack([x[chosen], y[chosen]], axis=1)
    scores = Detector().fit(image, np.hstack([corner, corner + 1])).score_map(image)
    truth = abundance.ravel() > 0.5
    auc = (rankdata(scores)[truth].mean() - (truth.sum() + 1) / 2) / (~truth).sum()
    assert auc > 0.97, name
