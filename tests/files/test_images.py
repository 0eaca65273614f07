"""Pictures of every format are read as they are, and nothing but a one-line ImageError comes of a bad file."""

from __future__ import annotations

import importlib
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from wherever.files.images import ImageError, read_image, sample_names

GREY = np.arange(12 * 17, dtype=np.uint8).reshape(12, 17)
RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3)).astype(np.uint8)


def encoded(array: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    PillowImage.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def tiff_bytes(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def read(data: bytes, folder: Path, name: str = "picture") -> np.ndarray:
    path = folder / name
    path.write_bytes(data)
    return read_image(path)


def message(source: str | Path) -> str:
    """Read what cannot be read, and return the message, which must be one line that names the source."""
    with pytest.raises(ImageError) as caught:
        read_image(source)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(source))
    return text


# ----------------------------------------------------------------------------------------------------------- good files


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "WEBP"])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_formats_give_the_pixels(tmp_path: Path, kind: str, array: np.ndarray) -> None:
    got = read(encoded(array, kind, **({"lossless": True} if kind == "WEBP" else {})), tmp_path)
    expected = np.repeat(array[:, :, None], 3, axis=2) if kind == "WEBP" and array.ndim == 2 else array
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.uint8


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    assert np.abs(read(encoded(smooth, "JPEG", quality=95), tmp_path).astype(int) - smooth).max() <= 4


def test_sixteen_bit_png_is_kept(tmp_path: Path) -> None:
    deep = (np.arange(12 * 17, dtype=np.uint16) * 300).reshape(12, 17)
    got = read(encoded(deep, "PNG"), tmp_path)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, deep)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(encoded(RGB, "PNG"), tmp_path, "a.tif"), RGB)
    np.testing.assert_array_equal(read(tiff_bytes(RGB), tmp_path, "a.jpg"), RGB)
    np.testing.assert_array_equal(read(npy_bytes(RGB), tmp_path, "a.png"), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    # What the orientation tag says was done to the upright picture (TIFF 6.0, tag 274: where row 0 and column 0 are).
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = PillowImage.Exif()
    exif[274] = orientation
    data = encoded(np.ascontiguousarray(stored[orientation](RGB)), "PNG", exif=exif)
    np.testing.assert_array_equal(read(data, tmp_path), RGB)


def test_a_palette_becomes_colours(tmp_path: Path) -> None:
    picture = PillowImage.fromarray(GREY % 3)
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for kind in ("PNG", "GIF", "BMP"):
        stream = io.BytesIO()
        picture.save(stream, kind)
        expected = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], dtype=np.uint8)[GREY % 3]
        np.testing.assert_array_equal(read(stream.getvalue(), tmp_path), expected)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    alpha = np.full((12, 17), 255, dtype=np.uint8)
    np.testing.assert_array_equal(read(encoded(np.dstack([RGB, alpha]), "PNG"), tmp_path), RGB)
    alpha[:, 5:] = 0
    got = read(encoded(np.dstack([RGB, alpha]), "PNG"), tmp_path)
    np.testing.assert_array_equal(got[:, :5], RGB[:, :5])
    assert (got[:, 5:] == 255).all()
    got = read(encoded(np.dstack([GREY, alpha]), "PNG"), tmp_path)
    np.testing.assert_array_equal(got, np.where(alpha > 0, GREY, 255))


def test_black_and_white_is_0_and_255(tmp_path: Path) -> None:
    pattern = GREY % 3 == 0
    for data in (encoded(pattern, "PNG"), tiff_bytes(pattern, photometric="minisblack"), npy_bytes(pattern)):
        got = read(data, tmp_path)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, np.where(pattern, 255, 0))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    stream = io.BytesIO()
    PillowImage.new("CMYK", (8, 6), (0, 255, 255, 0)).save(stream, "JPEG", quality=95)
    got = read(stream.getvalue(), tmp_path)
    assert got.shape == (6, 8, 3)
    assert np.abs(got.astype(int) - [255, 0, 0]).max() < 12


def test_frames_of_an_animation(tmp_path: Path) -> None:
    frames = [PillowImage.new("L", (5, 4), value) for value in (10, 200, 90)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert read_image(path).max() == 10
    assert read_image(f"{path}#2").min() == 200
    assert "3 frames" in message(f"{path}#4")
    assert "counted from 1" in message(f"{path}#0")


def test_a_file_whose_name_looks_like_a_page(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(GREY, "PNG"))
    (tmp_path / "a.png#2").write_bytes(encoded(RGB, "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png#2"), RGB)


bands_of = st.integers(1, 7)
numbers = st.sampled_from(["u1", "i1", "u2", ">u2", "i4", "f4", ">f4", "f8"])


@settings(max_examples=60)
@given(
    dtype=numbers,
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    bands=bands_of,
    planar=st.booleans(),
    tiled=st.booleans(),
    compressed=st.booleans(),
    bigtiff=st.booleans(),
    data=st.data(),
)
def test_tiff_gives_every_band(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: tuple[int, int],
    bands: int,
    planar: bool,
    tiled: bool,
    compressed: bool,
    bigtiff: bool,
    data: st.DataObject,
) -> None:
    kind = np.dtype(dtype)
    array = data.draw(hnp.arrays(kind.newbyteorder("="), (*shape, bands))).astype(kind)
    options: dict[str, Any] = {"photometric": "minisblack", "bigtiff": bigtiff, "byteorder": kind.byteorder.strip("=|")}
    if bands > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    if tiled:
        options["tile"] = (16, 16)
    if compressed:
        options["compression"] = "zlib"
    options["byteorder"] = options["byteorder"] or None
    stored = array[:, :, 0] if bands == 1 else np.moveaxis(array, -1, 0) if planar else array
    got = read(tiff_bytes(np.ascontiguousarray(stored), **options), tmp_path_factory.mktemp("tiff"))
    assert got.dtype == kind.newbyteorder("=")
    np.testing.assert_array_equal(got, array[:, :, 0] if bands == 1 else array)


@settings(max_examples=30)
@given(array=hnp.arrays(numbers.map(np.dtype), hnp.array_shapes(min_dims=2, max_dims=3, max_side=9)))
def test_npy_gives_the_array(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    got = read(npy_bytes(array), tmp_path_factory.mktemp("npy"))
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "jpeg", "tiff_adobe_deflate", "group4"])
def test_common_tiff_compressions_need_nothing_more(tmp_path: Path, compression: str) -> None:
    array = GREY % 2 == 0 if compression == "group4" else np.full((16, 16, 3), 77, dtype=np.uint8)
    expected = np.where(array, 255, 0) if compression == "group4" else array
    np.testing.assert_allclose(read(encoded(array, "TIFF", compression=compression), tmp_path), expected, atol=1)


def test_other_tiff_compressions_name_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As it is where the package is not installed, wherever this runs.
    module = sys.modules["tifffile.tifffile"]
    monkeypatch.setattr(module, "imagecodecs", importlib.import_module("tifffile._imagecodecs"))
    monkeypatch.setattr(module.TIFF.DECOMPRESSORS, "_codecs", {1: lambda data, **_: data})
    path = tmp_path / "a.tif"
    data = bytearray(tiff_bytes(np.zeros((8, 8, 5), np.uint16), photometric="minisblack", planarconfig="contig"))
    entry = data.index(struct.pack("<HHI", 259, 3, 1))
    data[entry + 8 : entry + 10] = struct.pack("<H", 34712)  # JPEG 2000
    path.write_bytes(data)
    assert "pip install imagecodecs" in message(path)


def test_tiff_photometrics(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(tiff_bytes(GREY, photometric="miniswhite"), tmp_path), 255 - GREY)
    colours = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    got = read(tiff_bytes(GREY, photometric="palette", colormap=colours), tmp_path)
    np.testing.assert_array_equal(got, np.moveaxis(colours[:, GREY] // 257, 0, -1))
    four = np.dstack([RGB, GREY])
    np.testing.assert_array_equal(read(tiff_bytes(four, photometric="rgb", extrasamples=["unassalpha"]), tmp_path), RGB)
    infrared = tiff_bytes(four, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read(infrared, tmp_path), four)


def test_channels_are_bands_but_depth_time_and_pages_are_chosen(tmp_path: Path) -> None:
    stack = np.moveaxis(RGB, -1, 0)
    path = tmp_path / "a.tif"
    for axes, shaped in (("CYX", stack), ("TZCYX", stack[None, None])):
        tifffile.imwrite(path, shaped, imagej=axes != "CYX", ome=axes == "CYX", metadata={"axes": axes})
        np.testing.assert_array_equal(read_image(path), RGB)
    for axes, words in (("ZYX", "3 planes of depth"), ("TYX", "3 points in time")):
        tifffile.imwrite(path, stack, ome=True, metadata={"axes": axes})
        assert words in message(path)
    tifffile.imwrite(path, stack, photometric="minisblack")
    assert "3 pages of 17 x 12 pixels" in message(path)
    np.testing.assert_array_equal(read_image(f"{path}#2"), RGB[:, :, 1])
    np.testing.assert_array_equal(read_image(f"{path}#bands"), RGB)
    assert "3 pages" in message(f"{path}#4")
    tifffile.imwrite(path, np.stack([RGB, RGB]), photometric="rgb")
    assert f"{path}#1" in message(path)
    np.testing.assert_array_equal(read_image(f"{path}#2"), RGB)


def test_pages_of_different_size_are_chosen_and_reduced_copies_are_not_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(RGB, subifds=1, photometric="rgb")
        tiff.write(RGB[::2, ::2].copy(), subfiletype=1, photometric="rgb")
    np.testing.assert_array_equal(read_image(path), RGB)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(RGB, photometric="rgb", metadata=None)
        tiff.write(GREY, metadata=None)
    assert "#1" in message(path)
    np.testing.assert_array_equal(read_image(f"{path}#2"), GREY)


# ------------------------------------------------------------------------------------------------------------ bad files


def png_declaring(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunks + encoded(GREY, "PNG")[33:]


def test_declared_sizes_are_refused_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big"
    bmp = bytearray(encoded(GREY, "BMP"))
    bmp[18:26] = struct.pack("<ii", 2**16, 2**16)
    tiff = bytearray(tiff_bytes(GREY))
    for tag in (256, 257):
        entry = tiff.index(struct.pack("<HHI", tag, 4, 1))
        tiff[entry + 8 : entry + 12] = struct.pack("<I", 2**16)
    for data in (png_declaring(2**16, 2**15), png_declaring(2**31 - 1, 2**31 - 1), bmp, tiff):
        path.write_bytes(data)
        text = message(path)
        assert "WHEREVER_MAX_PIXELS" in text
        assert "pixels" in text
    path.write_bytes(encoded(GREY, "PNG"))
    monkeypatch.setenv("WHEREVER_MAX_PIXELS", "100")
    assert "17 x 12" in message(path)
    monkeypatch.setenv("WHEREVER_MAX_PIXELS", "204")
    np.testing.assert_array_equal(read_image(path), GREY)


def test_an_npy_file_that_declares_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (65536, 65536), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(100))
    assert "corrupt or truncated" in message(path)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros(5), "shape"),
        (np.zeros((2, 2, 2, 2)), "shape"),
        (np.zeros((0, 5)), "no pixels"),
        (np.zeros((3, 3), complex), "real numbers"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.array([[None]]), "objects"),
    ],
    ids=["1-D", "4-D", "empty", "complex", "text", "objects"],
)
def test_arrays_that_are_no_pictures(tmp_path: Path, array: np.ndarray, word: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, array, allow_pickle=True)
    assert word in message(path)


@pytest.mark.parametrize("kind", ["c8", "c16"])
def test_a_complex_tiff_is_no_picture(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    for options in ({}, {"compression": "zlib"}):
        path.write_bytes(tiff_bytes(np.ones((5, 6), kind), photometric="minisblack", **options))
        assert f"holds {np.dtype(kind)} values; a picture needs real numbers" in message(path)
    path.write_bytes(tiff_bytes(np.ones((3, 5, 6), kind), photometric="minisblack"))
    for source in (f"{path}#2", f"{path}#bands"):
        assert "real numbers" in message(source)


def test_no_picture_at_all(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "missing.png")
    assert "folder" in message(tmp_path)
    assert "no such file" in message(f"{tmp_path}/missing.png#2")
    assert "coins" in message("sample:nothing")
    (tmp_path / "empty.png").touch()
    assert "empty" in message(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("not a picture at all")
    assert "PNG" in message(tmp_path / "text.png")
    (tmp_path / "file").touch()
    assert "Not a directory" in message(tmp_path / "file" / "a.png") or "no such file" in message(
        tmp_path / "file/a.png"
    )
    assert "long" in message("a" * 5000)
    with pytest.raises(ImageError, match="zero byte"):
        read_image("a\0b.png")


def test_missing_strips_are_not_taken_for_black(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    data = bytearray(tiff_bytes(RGB, photometric="rgb", compression="zlib", rowsperstrip=3))
    entry = data.index(struct.pack("<HHI", 257, 4, 1))
    data[entry + 8 : entry + 12] = struct.pack("<I", 1200)  # 100 times the rows
    path.write_bytes(data)
    assert "truncated" in message(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "regular file" in message(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(GREY, "PNG"))
    path.chmod(0)
    assert "permission denied" in message(path)


FILES = {
    "png": encoded(RGB, "PNG"),
    "jpeg": encoded(np.repeat(np.repeat(RGB, 5, 0), 5, 1), "JPEG"),
    "gif": encoded(GREY, "GIF"),
    "bmp": encoded(RGB, "BMP"),
    "webp": encoded(RGB, "WEBP"),
    "tiff": tiff_bytes(RGB, photometric="rgb"),
    "zlib tiff": tiff_bytes(RGB, photometric="rgb", compression="zlib", rowsperstrip=3),
    "lzw tiff": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "planes": tiff_bytes(np.moveaxis(RGB, -1, 0), photometric="minisblack", planarconfig="separate"),
    "npy": npy_bytes(RGB),
}


def read_or_message(data: bytes, folder: Path) -> np.ndarray | str:
    """Return the picture or the text of the ImageError; any other error ends the test."""
    try:
        return read(data, folder)
    except ImageError as error:
        return str(error)


@settings(max_examples=150)
@given(kind=st.sampled_from(sorted(FILES)), share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_an_image_error_or_whole(
    tmp_path_factory: pytest.TempPathFactory, kind: str, share: float
) -> None:
    data = FILES[kind]
    folder = tmp_path_factory.mktemp("cut")
    whole = read(data, folder)
    got = read_or_message(data[: int(share * len(data))], folder)
    if isinstance(got, str):
        assert "\n" not in got
    else:  # only what follows the pixels was cut off
        np.testing.assert_array_equal(got, whole)


@settings(max_examples=200)
@given(
    kind=st.sampled_from(sorted(FILES)),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    early=st.booleans(),
)
def test_a_damaged_file_is_an_image_error_or_some_picture(
    tmp_path_factory: pytest.TempPathFactory, kind: str, places: list[tuple[float, int]], early: bool
) -> None:
    data = bytearray(FILES[kind])
    length = min(len(data), 200) if early else len(data)
    for place, value in places:
        data[int(place * length)] = value
    got = read_or_message(bytes(data), tmp_path_factory.mktemp("damaged"))
    if isinstance(got, str):
        assert "\n" not in got
    else:
        assert got.ndim in (2, 3)
        assert got.size > 0


# ------------------------------------------------------------------------------------------------ samples and libraries


def test_samples_are_those_in_the_package() -> None:
    names = sample_names()
    assert {"coins", "hubble_deep_field", "page", "camera", "astronaut", "cell", "ihc", "retina", "text"} <= set(names)
    assert names == sorted(names)
    for name in names:
        assert read_image(f"sample:{name}").ndim in (2, 3)
    assert read_image("sample:coins").shape == (303, 384)


def test_a_sample_needs_neither_scikit_image_nor_a_download() -> None:
    code = (
        "import sys; from wherever.files.images import read_image; assert 'PIL' not in sys.modules;"
        "read_image('sample:coins'); assert not {'skimage', 'pooch', 'tifffile', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("module", "data"), [("PIL", FILES["png"]), ("tifffile", FILES["tiff"])])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, data: bytes) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "a"
    path.write_bytes(data)
    assert 'pip install "wherever[find]"' in message(path)
