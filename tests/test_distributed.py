"""Dask arrays against NumPy's, and tiles on a cluster of processes of which one is killed."""

from __future__ import annotations

import os
import signal
import time
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import box, scene

import wherever
from wherever import distributed as lazy
from wherever import tiles
from wherever.problem import BOUNDARIES

da = pytest.importorskip("dask.array")
pytest.importorskip("distributed")
tifffile = pytest.importorskip("tifffile")


def close(found, expected):
    found = np.asarray(found.compute(scheduler="synchronous"))
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert np.allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max(initial=0))))


def chunked(draw, array):
    chunks = []
    for n in array.shape:
        cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=3))) if n > 1 else []
        chunks.append(tuple(int(b - a) for a, b in pairwise([0, *cuts, n])))
    return da.from_array(array, tuple(chunks))


@given(data=st.data())
@settings(max_examples=60)
def test_conv(data):
    draw = data.draw
    spatial = draw(st.integers(1, 2))
    size = [draw(st.integers(8, 24)) for _ in range(spatial)]
    kernel = [draw(st.integers(1, 5)) for _ in range(spatial)]
    groups = draw(st.sampled_from([1, 2]))
    last = draw(st.booleans())
    numbers = np.random.default_rng(0)
    x = numbers.standard_normal((draw(st.integers(1, 3)), *size, 4) if last else (2, 4, *size), np.float32)
    x = x if draw(st.booleans()) else x[0]
    w = numbers.standard_normal((6, 4 // groups, *kernel), np.float32)
    options = {
        "stride": [draw(st.integers(1, 3)) for _ in range(spatial)],
        "padding": [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(spatial)],
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
        "boundary": draw(st.sampled_from([*BOUNDARIES, 1.5])),
        "layout": "channels_last" if last else "channels_first",
    }
    try:
        expected = wherever.conv(x, w, np.arange(6, dtype=np.float32), **options)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)[:4]):
            lazy.conv(chunked(draw, x), w, **options)
        return
    close(lazy.conv(chunked(draw, x), w, np.arange(6, dtype=np.float32), **options), expected)


@given(data=st.data())
@settings(max_examples=40)
def test_conv_transpose(data):
    draw = data.draw
    size = [draw(st.integers(3, 12)) for _ in range(2)]
    stride = [draw(st.integers(1, 3)) for _ in range(2)]
    numbers = np.random.default_rng(0)
    x = numbers.standard_normal((2, 4, *size), np.float32)
    w = numbers.standard_normal((4, 3, draw(st.integers(1, 5)), draw(st.integers(1, 5))), np.float32)
    options = {"stride": stride, "padding": draw(st.integers(0, 1)), "output_padding": [s - 1 for s in stride]}
    try:
        expected = wherever.conv_transpose(x, w, **options)
    except ValueError:
        return
    close(lazy.conv_transpose(chunked(draw, x), w, **options), expected)


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.complex128])
def test_correlate_and_convolve(mode, dtype):
    numbers = np.random.default_rng(0)
    a, v = (numbers.integers(-9, 9, shape).astype(dtype) for shape in ((40, 33), (5, 4)))
    if dtype is np.complex128:
        v = v * (1 + 2j)
    for name in ("correlate", "convolve"):
        expected = getattr(wherever, name)(a, v, mode)
        close(getattr(lazy, name)(da.from_array(a, (13, 12)), v, mode), expected)


def test_only_dask_arrays_are_taken():
    with pytest.raises(TypeError, match=r"expected a dask\.array\.Array, got ndarray"):
        lazy.conv(np.zeros((1, 4, 4)), np.zeros((1, 1, 3, 3)))
    with pytest.raises(ValueError, match="v: 1 dimensions"):
        lazy.correlate(da.zeros((4, 4)), np.zeros(3))
    with pytest.raises(ValueError, match="channels"):
        lazy.conv(da.zeros((2, 4, 4)), np.zeros((1, 1, 3, 3)))


def test_only_clients_are_taken():
    with pytest.raises(TypeError, match="client: expected"):
        tiles.map(lambda part: part, np.zeros((9, 9)), halo=0, client=3)


# ---------------------------------------------------------------------------------------------- a cluster of processes


@pytest.fixture(scope="module")
def cluster():
    from distributed import Client, LocalCluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as made,
            Client(made) as client,
        ):
            yield client


def filtering():
    """A function that travels to workers by value: this file is no module to them."""

    def slow(image):
        time.sleep(0.05)
        return wherever.ndimage.uniform_filter(image.astype(np.float32), (5, 3))

    return slow


@pytest.mark.filterwarnings("ignore")
def test_maps_on_a_cluster_one_of_whose_workers_is_killed(cluster, tmp_path):
    image, slow = np.random.default_rng(0).integers(0, 255, (400, 380), np.uint8), filtering()
    tifffile.imwrite(tmp_path / "in.tif", image, tile=(64, 64))
    here = tiles.map(slow, tmp_path / "in.tif", halo=2, tile=50, out=tmp_path / "here.tif")
    killed = []

    def kill(done, total):
        if done == total // 3 and not killed:
            killed.append(next(iter(cluster.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    out = tmp_path / "there.tif"
    there = tiles.map(slow, tmp_path / "in.tif", halo=2, tile=50, out=out, client=cluster, progress=kill)
    assert killed
    assert there.read_bytes() == here.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_detectors_and_models_on_a_cluster(cluster, tmp_path):
    places = [(20, 20, 24), (90, 30, 24), (150, 90, 24), (40, 100, 24), (100, 140, 24)]
    image = np.tile(np.clip(scene(places, (180, 200)) * 30 + 100, 0, 255).astype(np.uint8), (3, 3))
    tifffile.imwrite(tmp_path / "in.tif", image, tile=(64, 64))
    detector = wherever.Detector().fit(image[:180, :200], [box(places[0])])
    here = detector.find_in(tmp_path / "in.tif", memory="48 MiB")
    address = cluster.scheduler.address
    there = detector.find_in(tmp_path / "in.tif", memory="48 MiB", client=address)
    assert np.array_equal(here.boxes, there.boxes)
    assert np.array_equal(here.scores, there.scores)
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 5, padding=2), torch.nn.MaxPool2d(2)).eval()
    here, there = (tiles.map(model, tmp_path / "in.tif", tile=64, client=c) for c in (None, cluster))
    assert np.array_equal(here, there)


@pytest.mark.filterwarnings("ignore")
def test_reductions_on_a_cluster(cluster, tmp_path):
    image, slow = np.random.default_rng(0).integers(0, 255, (200, 180), np.uint8), filtering()
    tifffile.imwrite(tmp_path / "in.tif", image, tile=(64, 64))
    options = {"halo": 2, "tile": 64}
    here, there = (
        tiles.peaks(slow, tmp_path / "in.tif", threshold=140, radius=2, client=c, **options) for c in (None, cluster)
    )
    assert len(here) > 5
    for name in ("rows", "columns", "values"):
        assert np.array_equal(getattr(here, name), getattr(there, name))
    counts = tiles.histogram(slow, tmp_path / "in.tif", [0, 100, 120, 255], client=cluster, **options)
    assert np.array_equal(counts, tiles.histogram(slow, tmp_path / "in.tif", [0, 100, 120, 255], **options))
    best = float(here.values[0])
    assert tiles.anywhere(slow, tmp_path / "in.tif", best, client=cluster, **options)
    assert not tiles.anywhere(slow, tmp_path / "in.tif", best + 1, client=cluster, **options)


@pytest.mark.filterwarnings("ignore")
def test_errors_on_a_cluster_name_the_file(cluster, tmp_path):
    image = np.zeros((96, 64), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        offset = tiff.pages[0].dataoffsets[3]
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 20)
    with pytest.raises(ValueError, match="the tile at row 32, column 32"):
        tiles.map(filtering(), tmp_path / "a.tif", halo=1, tile=32, client=cluster)
