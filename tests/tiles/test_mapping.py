"""Maps tile by tile, against the whole: arrays, files, runs that are killed, and reductions."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage as scipy_ndimage

from wherever import ndimage, tiles

tifffile = pytest.importorskip("tifffile")


def smooth(image):
    return scipy_ndimage.uniform_filter(image.astype(np.float32), (5, 3, 1)[: image.ndim], mode="reflect")


@pytest.fixture
def picture(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (300, 280, 3), np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", image, tile=(64, 64), compression="zlib", photometric="rgb")
    return tmp_path / "in.tif", image


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    tile=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    bands=st.integers(0, 3),
    mode=st.sampled_from(["reflect", "nearest", "mirror", "constant"]),
)
def test_any_tiles_give_the_numbers_of_the_whole(size, tile, bands, mode):
    image = np.random.default_rng(1).random((*size, bands) if bands else size)

    def rough(part):
        return scipy_ndimage.maximum_filter(part, (5, 7, 1)[: part.ndim], mode=mode)

    found = tiles.map(rough, image, halo=(2, 3), tile=tile)
    expected = rough(image[:, :, 0] if bands == 1 else image)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".zarr"])
def test_files_hold_the_numbers_of_the_whole(picture, suffix):
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    path, image = picture
    out = tiles.map(smooth, path, halo=2, tile=(70, 50), out=path.with_name(f"map{suffix}"))
    source = tiles.open_window(out)
    assert source.shape == image.shape
    assert np.array_equal(source.read((0, 300), (0, 280)), smooth(image))
    assert not path.with_name(f"map{suffix}.parts").exists()


def test_files_are_tiled_and_compressed(picture):
    path, _ = picture
    out = tiles.map(lambda part: part[..., 0].astype(np.uint16), path, halo=0, out=path.with_name("map.tif"))
    with tifffile.TiffFile(out) as tiff:
        page = tiff.pages[0]
        assert page.is_tiled
        assert page.compression.name == "ADOBE_DEFLATE"
        assert page.shape == (300, 280)
        assert page.dtype == np.uint16


def test_an_array_may_be_given(picture):
    path, image = picture
    out = np.full(image.shape, -1, np.float32)
    assert tiles.map(smooth, path, halo=2, tile=99, out=out) is out
    assert np.array_equal(out, smooth(image))
    with pytest.raises(ValueError, match="out: shape"):
        tiles.map(smooth, path, halo=2, out=np.zeros((3, 3)))


KILLED = """
    import sys, time
    import numpy as np
    from scipy import ndimage
    from wherever import tiles
    def smooth(image):
        time.sleep(float(sys.argv[3]))
        return ndimage.uniform_filter(image.astype(np.float32), (5, 3, 1), mode="reflect")
    tiles.map(smooth, sys.argv[1], halo=2, tile=60, out=sys.argv[2])
    """


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(picture):
    path, image = picture
    whole, broken = path.with_name("whole.tif"), path.with_name("broken.tif")

    def start(out, pause):
        return subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), path, out, str(pause)])

    assert start(whole, 0).wait() == 0
    process = start(broken, 0.1)
    journal = path.with_name("broken.tif.parts") / "journal"
    for _ in range(600):
        if journal.exists() and journal.read_text().count("\n") > 6:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_text().count("\n") - 1
    assert 5 < kept < 25
    with journal.open("a") as file:  # the last line may have been written in part
        file.write('{"part": 24, "blo')
    again = start(broken, 0)
    assert again.wait() == 0
    assert broken.read_bytes() == whole.read_bytes()
    assert np.array_equal(tifffile.imread(whole), smooth(image))


def failing(part, after=[]):  # noqa: B006  # counts calls
    after.append(1)
    if len(after) == 4:
        raise RuntimeError("stop")
    return part


def test_what_was_computed_is_kept_and_can_be_had(picture):
    path, image = picture
    out = path.with_name("map.tif")
    with pytest.raises(RuntimeError, match="stop"):
        tiles.map(failing, path, halo=0, tile=150, out=out)
    assert not out.exists()
    tiles.salvage(out)
    found = tifffile.imread(out)
    assert np.array_equal(found[:150], image[:150])
    assert not found[150:].any()
    assert tiles.map(failing, path, halo=0, tile=150, out=out) == out
    assert np.array_equal(tifffile.imread(out), image)
    with pytest.raises(FileNotFoundError, match="no parts"):
        tiles.salvage(out)


def test_another_run_does_not_use_the_parts(picture):
    path, image = picture
    out = path.with_name("map.npy")
    tiles.map(smooth, path, halo=2, tile=60, out=out)
    calls = []

    def count(part):
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("stop")
        return part

    for tile in (60, 50):  # other tiles, other parts
        calls.clear()
        with pytest.raises(RuntimeError, match="stop"):
            tiles.map(count, path, halo=0, tile=tile, out=out)
    tiles.map(count, path, halo=0, tile=60, out=out)
    assert np.array_equal(np.load(out), image)


def test_a_full_disk_keeps_what_is_there(picture, monkeypatch):
    path, image = picture
    out = path.with_name("map.npy")
    real, calls = os.fsync, []

    def full(handle):
        calls.append(1)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device; 4 parts are kept in .*map.npy.parts.*run again"):
        tiles.map(smooth, path, halo=2, tile=60, out=out)
    monkeypatch.undo()
    tiles.map(smooth, path, halo=2, tile=60, out=out)
    assert np.array_equal(np.load(out), smooth(image))


def test_a_folder_that_cannot_be_written_is_known_at_once(picture, monkeypatch):
    path, _ = picture
    if os.geteuid() == 0:  # who writes anywhere: what the system says to others

        def refuse(folder, *args, **kwargs):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

        monkeypatch.setattr(Path, "mkdir", refuse)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(OSError, match=r"cannot write .*map.tif: Permission denied .*; choose another place"):
            tiles.map(smooth, path, halo=2, out=path.with_name("map.tif"))
    finally:
        path.parent.chmod(0o700)


def test_two_runs_do_not_write_the_same_map(picture):
    path, image = picture
    out = path.with_name("map.npy")

    def others(done, total):
        with pytest.raises(OSError, match=r"cannot write .*map.npy: another run is writing it"):
            tiles.map(smooth, path, halo=2, out=out)
        with pytest.raises(OSError, match="another run"):
            tiles.salvage(out)

    tiles.map(lambda part: part, path, halo=0, tile=150, out=out, progress=others)
    assert np.array_equal(np.load(out), image)
    with pytest.raises(ValueError, match=r"out: .*in.tif is the source itself"):
        tiles.map(smooth, path, halo=2, out=path)


def test_a_file_in_place_of_a_folder_is_known_at_once(picture):
    path, _ = picture
    with pytest.raises(OSError, match=r"cannot write .*map.tif: Not a directory"):
        tiles.map(smooth, path, halo=2, out=path / "map.tif")
    assert tifffile.imread(path).shape == (300, 280, 3)


def test_a_missing_folder_is_known_at_once(picture):
    path, _ = picture
    with pytest.raises(OSError, match=r"cannot write .*No such file or directory"):
        tiles.map(smooth, path, halo=2, out=path.parent / "nowhere" / "map.tif")


def test_missing_pixels_are_nan(tmp_path):
    image = np.arange(200, dtype=np.int16).reshape(10, 20)
    image[3, 4] = -9999
    tifffile.imwrite(tmp_path / "in.tif", image, extratags=[(42113, "s", 6, "-9999", True)])
    found = tiles.map(lambda part: ndimage.uniform_filter(part, 3), tmp_path / "in.tif", halo=1, tile=4)
    seen = np.zeros((10, 20), bool)
    seen[2:5, 3:6] = True
    assert np.array_equal(np.isnan(found), seen)
    filled = tiles.map(lambda part: part, tmp_path / "in.tif", halo=0, prepare=lambda part: np.nan_to_num(part, nan=7))
    assert filled[3, 4] == 7


@pytest.mark.parametrize("tile", [7, 40, 400])
def test_peaks_are_those_of_the_whole(tile):
    image = np.random.default_rng(2).integers(0, 50, (90, 75)).astype(np.float32)
    image[10:13, 20:23] = np.nan
    found = tiles.peaks(lambda part: part, image, halo=0, threshold=30, radius=2, tile=tile)
    known = np.where(np.isnan(image), -np.inf, image)
    high = (known >= scipy_ndimage.maximum_filter(known, 5)) & (known >= 30)
    places = set(zip(*np.nonzero(high), strict=True))
    assert set(zip(found.rows.tolist(), found.columns.tolist(), strict=True)) == places
    assert (np.diff(found.values) <= 0).all()
    few = tiles.peaks(lambda part: part, image, halo=0, threshold=30, radius=2, tile=tile, most=7)
    assert np.array_equal(few.rows, found.rows[:7])


def test_peaks_of_many_rows_are_those_of_the_whole():
    image = np.random.default_rng(3).integers(0, 1000, (700, 30)).astype(np.int16)
    found = tiles.peaks(lambda part: part, image, halo=0, threshold=900, radius=4)
    high = (image >= scipy_ndimage.maximum_filter(image, 9)) & (image >= 900)
    assert set(zip(found.rows.tolist(), found.columns.tolist(), strict=True)) == set(
        zip(*np.nonzero(high), strict=True)
    )
    assert np.array_equal(found.values, image[found.rows, found.columns])
    with pytest.raises(ValueError, match="band: 1 is not one of the map's 1"):
        tiles.peaks(lambda part: part, image, halo=0, band=1)
    with pytest.raises(ValueError, match="radius: 0"):
        tiles.peaks(lambda part: part, image, halo=0, radius=0)


def test_reductions_are_those_of_the_whole(picture):
    path, image = picture
    values = smooth(image)[:, :, 0]
    edges = [0, 90, 120, 255]
    counts = tiles.histogram(smooth, path, edges, halo=2, tile=77)
    assert np.array_equal(counts, np.histogram(values, edges)[0])
    assert tiles.anywhere(smooth, path, float(values.max()), halo=2, tile=77)
    assert not tiles.anywhere(smooth, path, float(values.max()) + 1, halo=2, tile=77)
    total = sum(part.sum(dtype=np.float64) for _, part in tiles.each(smooth, path, halo=2, tile=77))
    assert np.isclose(total, smooth(image).sum(dtype=np.float64))


def test_progress_is_told(picture):
    path, _ = picture
    told = []
    tiles.map(smooth, path, halo=2, tile=150, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 4) for n in range(5)]
    tiles.map(smooth, path, halo=2, tile=150, progress=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "halo: how many pixels"),
        ({"halo": -1}, "halo: -1"),
        ({"halo": 1, "memory": "much"}, "memory: 'much'"),
        ({"halo": 1, "memory": 0}, "memory: 0"),
        ({"halo": 1, "memory": 100}, "not enough for the smallest tile"),
        ({"halo": 1, "tile": 0}, "tile: 0"),
        ({"halo": 1, "out": "map.jpg"}, "out: map.jpg must end in"),
        ({"halo": 1, "bands": [3]}, "has 3 bands, but number 4"),
    ],
)
def test_wrong_arguments_are_named(picture, options, words):
    with pytest.raises(ValueError, match=words):
        tiles.map(smooth, picture[0], **options)


def test_wrong_things_to_map_are_named(picture):
    with pytest.raises(TypeError, match="what: expected a function"):
        tiles.map(3, picture[0])
    with pytest.raises(ValueError, match="it must keep rows and columns"):
        tiles.map(lambda part: part[1:], picture[0], halo=1)


def test_memory_text():
    from wherever.tiles.grid import as_bytes

    assert as_bytes("2 GiB") == 2 << 30
    assert as_bytes("1.5MB") == 1_500_000
    assert as_bytes(77) == 77
    with pytest.raises(TypeError, match="memory: expected"):
        as_bytes([1])


def test_models_are_applied_to_files(picture):
    torch = pytest.importorskip("torch")
    path, image = picture
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 5, padding=2), torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 2, 3, padding=1)
    ).eval()
    x = torch.from_numpy(np.moveaxis(image, 2, 0)[None] / np.float32(255))
    with torch.no_grad():
        y = model(x)[0].permute(1, 2, 0).numpy()
    scaled = tiles.map(model, path, tile=32, prepare=lambda part: part / 255)
    assert np.allclose(scaled, y, atol=1e-5)
    out = tiles.map(model, path, memory="3 MB", prepare=lambda part: part / 255, out=path.with_name("map.tif"))
    assert np.array_equal(tifffile.imread(out).shape, (150, 140, 2))
    assert np.allclose(tifffile.imread(out), y, atol=1e-5)
    with pytest.raises(ValueError, match=r"1 bands?, model: it cannot take images"):
        tiles.map(model, path, bands=[0])


def test_a_path_or_text_or_source_will_do(picture):
    path, image = picture
    with tiles.open_window(path) as source:
        for given_ in (path, str(path), source):
            assert isinstance(given_, str | Path | tiles.Source)
            assert np.array_equal(tiles.map(lambda part: part, given_, halo=0), image)
