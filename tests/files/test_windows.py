"""Pictures read by window, against the whole: every kind of file, and damaged ones."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from wherever.files.images import ImageError, read_image
from wherever.files.windows import open_window

tifffile = pytest.importorskip("tifffile")


def numbers(shape, dtype):
    draw = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return draw.standard_normal(shape).astype(dtype)
    return draw.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


TIFFS = {
    "strips": ((90, 70), np.uint8, {"rowsperstrip": 7, "compression": "zlib"}),
    "one strip": ((90, 70), np.uint16, {}),
    "mapped": ((90, 70, 3), np.uint8, {"photometric": "rgb"}),
    "big endian": ((90, 70), ">u2", {"byteorder": ">"}),
    "big endian, compressed": ((90, 70), ">f4", {"byteorder": ">", "compression": "zlib", "rowsperstrip": 11}),
    "tiles": ((90, 70, 3), np.uint8, {"tile": (16, 32), "compression": "zlib", "photometric": "rgb"}),
    "tiles, float": ((90, 70), np.float32, {"tile": (32, 16)}),
    "BigTIFF": ((90, 70), np.int32, {"tile": (16, 16), "bigtiff": True}),
    "planes apart": (
        (5, 90, 70),
        np.uint16,
        {"planarconfig": "separate", "tile": (16, 16), "photometric": "minisblack"},
    ),
    "planes apart, mapped": ((5, 90, 70), np.uint16, {"planarconfig": "separate", "photometric": "minisblack"}),
    "many bands": ((90, 70, 9), np.float64, {"planarconfig": "contig", "photometric": "minisblack", "tile": (32, 32)}),
    "black is 1": ((90, 70), np.uint8, {"photometric": "miniswhite", "tile": (16, 16)}),
    "alpha": ((90, 70, 4), np.uint8, {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (16, 16)}),
    "black and white": ((90, 70), bool, {"rowsperstrip": 9}),
    "channels": ((4, 90, 70), np.uint8, {"ome": True, "metadata": {"axes": "CYX"}, "tile": (16, 16)}),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_windows_of_a_tiff_are_those_of_the_whole(kind, tmp_path):
    shape, dtype, options = TIFFS[kind]
    image = numbers(shape, np.uint8) > 128 if dtype is bool else numbers(shape, np.dtype(dtype).newbyteorder("=").type)
    own = {key: options[key] for key in ("byteorder", "bigtiff", "ome") if key in options}
    rest = {key: value for key, value in options.items() if key not in own}
    with tifffile.TiffWriter(tmp_path / "a.tif", **own) as tiff:
        tiff.write(image, **rest)
    check(tmp_path / "a.tif")


def check(path):
    whole = read_image(path)
    whole = whole if whole.ndim == 3 else whole[:, :, None]
    source = open_window(path)
    assert source.shape == whole.shape
    assert source.dtype == whole.dtype
    high, wide, _ = whole.shape
    draw = np.random.default_rng(1)
    for _ in range(12):
        a, c = int(draw.integers(0, high)), int(draw.integers(0, wide))
        b, d = int(draw.integers(a + 1, high + 1)), int(draw.integers(c + 1, wide + 1))
        assert np.array_equal(source.read((a, b), (c, d)), whole[a:b, c:d])
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.read((0, high), (0, wide)), whole)
    assert again.fingerprint() == source.fingerprint()
    two = open_window(source, [whole.shape[2] - 1])
    assert np.array_equal(two.read((0, 5), (0, 6)), whole[:5, :6, -1:])
    source.close()


def test_a_palette_becomes_colours(tmp_path):
    colours = numbers((3, 256), np.uint8).astype(np.uint16) * 257
    image = numbers((40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="palette", colormap=colours, tile=(16, 16))
    check(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".png", ".npy", ".bmp"])
def test_other_pictures(suffix, tmp_path):
    image = numbers((40, 50, 3), np.uint8)
    if suffix == ".npy":
        np.save(tmp_path / "a.npy", image)
    else:
        pillow = pytest.importorskip("PIL.Image")
        pillow.fromarray(image).save(tmp_path / f"a{suffix}")
    check(tmp_path / f"a{suffix}")


def test_levels_of_a_pyramid(tmp_path):
    image = numbers((128, 96), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as tiff:
        tiff.write(
            image, subifds=1, tile=(32, 32), metadata={"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
        )
        tiff.write(image[::2, ::2], subfiletype=1, tile=(32, 32))
    source = open_window(tmp_path / "a.tif")
    assert source.spacing == (0.5, 0.25)
    assert source.shape == (128, 96, 1)
    smaller = open_window(f"{tmp_path}/a.tif#level1")
    assert np.array_equal(smaller.read((0, 64), (0, 48))[:, :, 0], image[::2, ::2])
    with pytest.raises(ImageError, match="the file has 2 levels"):
        open_window(f"{tmp_path}/a.tif#level2")


def test_pages_are_chosen_as_for_whole_pictures(tmp_path):
    pages = numbers((3, 40, 50), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for page in pages:
            tiff.write(page, metadata=None)
    with pytest.raises(ImageError, match=r"choose one page: .*#1 to .*#3"):
        open_window(tmp_path / "a.tif")
    assert np.array_equal(open_window(f"{tmp_path}/a.tif#2").read((3, 9), (0, 50))[:, :, 0], pages[1, 3:9])


GEO = [
    (33550, "d", 3, (10.0, 10.0, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0), True),
    (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True),
]


def test_georeferences_are_kept(tmp_path):
    from wherever import tiles

    image = numbers((40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, extratags=GEO)
    place = open_window(tmp_path / "a.tif").georeference
    assert place.epsg == 32633
    assert np.array_equal(place.apply([[0, 0], [50, 40]]), [[500000, 4600000], [500500, 4599600]])
    out = tiles.map(lambda part: part, tmp_path / "a.tif", halo=0, out=tmp_path / "b.tif")
    assert_same_place(open_window(out).georeference, place)
    pytest.importorskip("zarr")
    out = tiles.map(lambda part: part, tmp_path / "a.tif", halo=0, out=tmp_path / "b.zarr")
    assert_same_place(open_window(out).georeference, place)


def assert_same_place(again, place):
    assert again.epsg == place.epsg
    assert np.allclose(again.apply([[3, 4]]), place.apply([[3, 4]]))


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_sizes_of_pixels_are_kept(suffix, tmp_path):
    from wherever import tiles

    pytest.importorskip("zarr")
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as tiff:
        sizes = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
        tiff.write(numbers((40, 50), np.uint8), tile=(16, 16), metadata=sizes)
    out = tiles.map(lambda part: part, tmp_path / "a.tif", halo=0, out=tmp_path / f"b{suffix}")
    assert np.allclose(open_window(out).spacing, (0.5, 0.25))


def test_centres_of_pixels_are_counted_as_such(tmp_path):
    keys = list(GEO[2][3])
    keys[11] = 2  # PixelIsPoint
    tifffile.imwrite(
        tmp_path / "a.tif", numbers((4, 5), np.uint8), extratags=[*GEO[:2], (34735, "H", 16, tuple(keys), True)]
    )
    place = open_window(tmp_path / "a.tif").georeference
    assert np.array_equal(place.apply([[0.5, 0.5]]), [[500000, 4600000]])


def test_no_data_values(tmp_path):
    image = numbers((20, 30), np.uint8)
    image[3:5, 6:9] = 255
    tifffile.imwrite(tmp_path / "a.tif", image, extratags=[(42113, "s", 4, "255", True)])
    source = open_window(tmp_path / "a.tif")
    assert source.nodata == 255
    values = source.values((0, 20), (0, 30))[:, :, 0]
    assert values.dtype == np.float32
    assert np.array_equal(np.isnan(values), image == 255)


@pytest.mark.parametrize("bands", [1, 3])
def test_masks_say_what_is_missing(bands, tmp_path):
    """Pages as GDAL writes them: the picture, its mask, and both at half the resolution."""
    image = numbers((64, 48, 3), np.uint8)[:, :, :bands].squeeze()
    there = numbers((64, 48), np.uint8) > 60
    colours = {"photometric": "rgb"} if bands == 3 else {}
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for step, reduced in ((1, 0), (2, 1)):
            tiff.write(image[::step, ::step], subfiletype=reduced, tile=(16, 16), metadata=None, **colours)
            tiff.write(there[::step, ::step], subfiletype=4 + reduced, photometric="mask", metadata=None)
    source = open_window(tmp_path / "a.tif")
    assert source.masked
    assert source.shape == (64, 48, bands)
    for opened in (source, pickle.loads(pickle.dumps(source)), open_window(source, [bands - 1])):
        values = opened.values((5, 60), (7, 48))
        assert values.dtype == np.float32
        assert np.array_equal(np.isnan(values).all(2), ~there[5:60, 7:48])
        assert np.array_equal(np.isnan(values).any(2), ~there[5:60, 7:48])
    assert np.array_equal(source.read((0, 64), (0, 48)), image.reshape(64, 48, bands))
    assert np.array_equal(read_image(tmp_path / "a.tif"), image)
    source.close()


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize("order", [0, 1])
def test_envi(interleave, order, tmp_path):
    image = numbers((12, 15, 7), np.uint16)
    axes = {"bsq": (2, 0, 1), "bil": (0, 2, 1), "bip": (0, 1, 2)}[interleave]
    raw = image.transpose(axes).astype("><"[1 - order] + "u2")
    (tmp_path / "a.img").write_bytes(b"12345678" + raw.tobytes())
    (tmp_path / "a.hdr").write_text(
        f"ENVI\ndescription = {{\n a = b}}\nsamples = 15\nlines = 12\nbands = 7\nheader offset = 8\ndata type = 12\n"
        f"interleave = {interleave}\nbyte order = {order}\ndata ignore value = 7\n"
        "map info = {UTM, 1, 1, 500000, 4600000, 30, 30, 33, North, WGS-84, units=Meters}\n"
    )
    for name in ("a.img", "a.hdr"):
        source = open_window(tmp_path / name)
        assert source.shape == image.shape
        assert np.array_equal(source.read((2, 9), (3, 15)), image[2:9, 3:15])
    assert source.georeference.epsg == 32633
    assert source.nodata == 7
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.read((0, 12), (0, 15)), image)
    (tmp_path / "a.img").write_bytes(raw.tobytes()[:100])
    with pytest.raises(ImageError, match=r"truncated: .* has 100 bytes"):
        open_window(tmp_path / "a.img")
    (tmp_path / "a.hdr").write_text("ENVI\nsamples = 15\n")
    with pytest.raises(ImageError, match=r"header .* is incomplete"):
        open_window(tmp_path / "a.img")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (3, 40, 50)])
def test_zarr(version, shape, tmp_path):
    zarr = pytest.importorskip("zarr")
    image = numbers(shape, np.uint16)
    array = zarr.create_array(
        store=str(tmp_path / "a.zarr"), shape=shape, chunks=(16,) * len(shape), dtype=np.uint16, zarr_format=version
    )
    array[:] = image
    source = open_window(tmp_path / "a.zarr")
    whole = np.moveaxis(image, 0, 2) if shape[0] == 3 else image.reshape(40, 50, -1)
    assert source.shape == whole.shape
    assert np.array_equal(source.read((5, 33), (7, 50)), whole[5:33, 7:50])
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read((0, 3), (0, 50)), whole[:3])


def test_ome_zarr_and_chunks_that_are_not_there(tmp_path):
    zarr = pytest.importorskip("zarr")
    image = numbers((2, 1, 40, 50), np.float32)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    for level in (0, 1):
        values = image[..., :: level + 1, :: level + 1]
        made = group.create_array(str(level), shape=values.shape, chunks=(1, 1, 16, 16), dtype="f4", fill_value=np.nan)
        made[:] = values
    axes = [{"name": "c"}, {"name": "z"}, {"name": "y", "unit": "micrometer"}, {"name": "x", "unit": "micrometer"}]
    scales = [[{"type": "scale", "scale": [1, 1, 0.5 * (n + 1), 0.25 * (n + 1)]}] for n in (0, 1)]
    levels = [{"path": str(n), "coordinateTransformations": scales[n]} for n in (0, 1)]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    source = open_window(tmp_path / "a.zarr")
    assert source.spacing == (0.25, 0.5)
    assert np.array_equal(source.read((0, 40), (0, 50)), np.moveaxis(image[:, 0], 0, 2))
    assert open_window(f"{tmp_path}/a.zarr#level1").shape == (20, 25, 2)
    with pytest.raises(ImageError, match="has 2 levels"):
        open_window(f"{tmp_path}/a.zarr#level2")
    (tmp_path / "a.zarr" / "0" / "c" / "0" / "0" / "0" / "0").unlink()
    missing = np.isnan(source.values((0, 40), (0, 50)))
    assert missing[:16, :16, 0].all()
    assert missing.sum() == 256


def test_a_truncated_tiff_is_known_at_once(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", numbers((90, 70), np.uint8), tile=(16, 16))
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[:-500])
    with pytest.raises(ImageError, match=r"a\.tif: truncated"):
        open_window(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(content[:20])
    with pytest.raises(ImageError, match=r"a\.tif: (corrupt|truncated|the TIFF file has no pages)"):
        open_window(tmp_path / "a.tif")


def test_a_damaged_tile_is_named_and_the_others_serve(tmp_path):
    image = numbers((96, 64), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        offset = tiff.pages[0].dataoffsets[3]
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 40)
    source = open_window(tmp_path / "a.tif")
    assert np.array_equal(source.read((0, 32), (0, 64))[:, :, 0], image[:32])
    with pytest.raises(ImageError, match=r"the tile at row 32, column 32 \(32 x 32 pixels\) is damaged"):
        source.read((0, 33), (0, 64))


def test_pieces_that_were_left_out_are_no_data(tmp_path):
    tags = [(42113, "s", 2, "7", True)]

    def pieces():
        for n in range(4):
            yield np.full((16, 16), n, np.uint8) if n != 2 else None

    tifffile.imwrite(
        tmp_path / "a.tif", pieces(), shape=(32, 32), dtype=np.uint8, tile=(16, 16), compression="zlib", extratags=tags
    )
    source = open_window(tmp_path / "a.tif")
    found = source.read((0, 32), (0, 32))[:, :, 0]
    assert (found[16:, :16] == 7).all()
    assert (found[16:, 16:] == 3).all()


def test_what_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ImageError, match="holds no Zarr array"):
        open_window(tmp_path / "a.zarr")
    with pytest.raises(ImageError, match="no such file"):
        open_window(tmp_path / "b.tif")
    with pytest.raises(TypeError, match="needs real numbers"):
        open_window(np.zeros((3, 3), complex))
    with pytest.raises(ValueError, match="shape"):
        open_window(np.zeros(3))
