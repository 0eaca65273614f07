"""The checks on digits that were centred, digits that were not, photographs of cats and dogs, a scene of many bands."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from scipy.io import loadmat

from wherever import check


def idx(path, offset):
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset)


@pytest.fixture(scope="module")
def digits(data):
    images = idx(data / "mnist-10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    return images[:600], idx(data / "mnist-10k-labels-idx1-ubyte.gz", 8)[:600]


def moved(images):
    """Every image moved around its border, as far as chance will have it."""
    rng = np.random.default_rng(0)
    return np.stack([np.roll(image, rng.integers(0, 28, 2), (0, 1)) for image in images])


@pytest.fixture(scope="module")
def photographs(unpack, tmp_path_factory):
    reading = pytest.importorskip("wherever.files.images")
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("photographs")
    unpack("cats_dogs_64.tar", folder, lambda name: "test/" in name and name.endswith(".jpg"))
    paths = sorted(folder.rglob("*.jpg"))
    return [reading.read_image(path) for path in paths], [path.parent.name for path in paths]


def test_centred_digits_are_not_stationary(digits):
    result = check.stationarity(digits[0])
    assert [item.name for item in result.significant] == ["mean", "contrast", "direction"]
    assert result["mean"].effect > 0.3
    assert check.stationarity(moved(digits[0])).stationary


def test_digits_that_were_centred_support_regions_and_digits_anywhere_do_not(digits):
    images, labels = digits
    centred = check.sharing(images, labels)
    assert not centred.shared
    assert centred["one kernel"].score < 0.8 < 0.9 < centred.supported.score
    anywhere = check.sharing(moved(images), labels)
    assert anywhere.shared
    assert anywhere["8 x 8 regions"].score < anywhere["one kernel"].score


def test_photographs_are_nearly_stationary_and_their_pixels_share_a_kernel(photographs):
    images, labels = photographs
    result = check.stationarity(images)
    assert max(item.effect for item in result.dependences) < 0.05
    assert check.sharing(images).shared
    told = check.sharing(images, labels)
    assert told.supported.score > 0.6


def test_photographs_are_correlated_over_several_pixels_and_predicted_from_few(photographs):
    result = check.locality(photographs[0][:200])
    assert 6 < result.length < 14
    assert result.delta in (1, 2)
    assert result.explained[1] > 0.9


def test_a_scene_of_many_bands_with_a_map_of_materials(data):
    scene = loadmat(data / "jasper_ridge_198_bands.mat")
    image = scene["Y"].reshape(198, 100, 100).transpose(2, 1, 0)
    water = scene["A"].reshape(4, 100, 100).transpose(0, 2, 1)[1]
    result = check.locality([image], [water])
    assert "198 bands, 3 components" in result.images
    assert result.delta <= 2
    assert result.explained[0] > 0.8
