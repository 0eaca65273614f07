"""Pictures read into arrays: PNG, JPEG, BMP, GIF, WebP, TIFF, .npy, and the pictures that scikit-image ships."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[Any]

INSTALL = 'pip install "wherever[find]"'
FORMATS = "PNG, JPEG, BMP, GIF, WebP, PPM, TIFF, .npy"
DEFAULT_MAX_PIXELS = 2**29
_SAMPLE_SUFFIXES = (".png", ".jpg", ".gif")
_PAGE = re.compile(r"(?P<path>.+)#(?P<page>\d+|bands)")
ALL_PAGES = -1  # the page number that stands for all of them
_MASK = 4  # the bit of a TIFF page's subfile type that says that it is a transparency mask
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY_MAGIC = b"\x93NUMPY"
_PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
# Pillow keeps its own limit on the number of pixels in a global variable; ours replaces it while a picture is opened.
_pillow_lock = threading.Lock()


class ImageError(ValueError):
    """A picture that cannot be read: one line that names the file, the cause and the way out."""


def read_image(source: str | Path) -> Image:
    """Read a picture as an array; the format is told by the content, not by the name.

    Parameters
    ----------
    source : str or Path
        A file; `sample:NAME` for a picture that scikit-image ships (see :func:`sample_names`); or `FILE#3` for the
        third page or frame of a file with several, counted from 1, or `FILE#bands` to take all pages of a TIFF as bands
        (unless a file has that very name).

    Returns
    -------
    ndarray, shape (H, W) or (H, W, C)
        The values as stored: uint8, uint16, float32, ... What is done to them:

        - a photograph is turned upright as its EXIF data say;
        - palette, CMYK, YCbCr and Lab pictures become RGB, black-and-white ones uint8 0 and 255;
        - transparency is laid on white, as viewers show it, so the array has no alpha band;
        - 16 bits are kept for grey PNG and for every TIFF; a 16-bit *colour* PNG comes with 8 bits (Pillow's limit);
        - a TIFF keeps all its bands, in whichever order they are stored, but for alpha bands; what the file calls
          channels are bands too; of pages, planes of depth or time one is chosen with `FILE#1`;
        - an animated GIF or WebP gives its first frame;
        - an .npy file must hold an array of shape (H, W) or (H, W, C).

    Raises
    ------
    ImageError
        If the file is missing, unreadable, empty, no picture, corrupt, truncated, or larger than the limit of 2^29
        pixels (another limit: environment variable WHEREVER_MAX_PIXELS); if its values are not real numbers (but
        complex ones, or text); or if the library that reads it is missing.
    """
    name, path, page = locate(source)
    try:
        with path.open("rb") as file:
            head = file.read(16)
            if not head:
                raise ImageError(f"{name}: the file is empty; was it copied or downloaded completely?")
            file.seek(0)
            # On damaged data the readers raise whatever their parsers happen to raise, and may warn on the way.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if head[:4] in TIFF_MAGIC:
                    image = _read_tiff(name, file, page)
                elif head.startswith(NPY_MAGIC):
                    image = _read_npy(name, path, page)
                else:
                    image = _read_with_pillow(name, file, page)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{name}: does not fit in memory; cut it into smaller pictures") from None
    except PermissionError:
        raise ImageError(f"{name}: permission denied; make the file readable (chmod +r) or copy it") from None
    except Exception as error:
        raise ImageError(
            f"{name}: corrupt or truncated ({one_line(error)}); copy, download or export it again"
        ) from error
    if image.dtype.kind not in "uif":
        raise ImageError(f"{name}: holds {image.dtype} values; a picture needs real numbers (integers or floats)")
    if image.size == 0:
        raise ImageError(f"{name}: the picture has no pixels (shape {image.shape})")
    return image


def sample_names() -> list[str]:
    """Names of the pictures that scikit-image carries inside its package, so that none has to be downloaded.

    Returns
    -------
    list of str
        Sorted; `read_image("sample:" + name)` reads each of them. Empty if scikit-image is not installed.
    """
    return sorted(_sample_files())


def _sample_files() -> dict[str, Path]:
    # find_spec does not import scikit-image, which would take a second.
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    return {path.stem: path for path in folder.glob("*") if path.suffix in _SAMPLE_SUFFIXES}


def locate(source: str | Path) -> tuple[str, Path, int | None]:
    """Find the file that a source for :func:`read_image` means, without opening it.

    Parameters
    ----------
    source : str or Path
        A file, `sample:NAME`, `FILE#3` or `FILE#bands`.

    Returns
    -------
    name : str
        The source as it was written, for messages.
    path : Path
        An existing regular file.
    page : int or None
        The page from 1, -1 for all of them as bands, None if none was asked for.

    Raises
    ------
    ImageError
        If there is no such file or sample.
    """
    name = str(source)
    if name.startswith("sample:"):
        files = _sample_files()
        if not files:
            raise ImageError(f"{name}: the sample pictures come with scikit-image: {INSTALL}")
        sample = name.removeprefix("sample:")
        if sample not in files:
            raise ImageError(f"{name}: there is no such sample; there are {', '.join(sorted(files))}")
        return name, files[sample], None
    if "\0" in name:
        raise ImageError(f"{name!r}: a file name cannot hold a zero byte")
    path, page = Path(name), None
    try:
        match = _PAGE.fullmatch(name)
        if match and not path.exists():
            path, page = Path(match["path"]), ALL_PAGES if match["page"] == "bands" else int(match["page"])
            if page == 0:
                raise ImageError(f"{name}: pages are counted from 1; write {path}#1 for the first")
        if path.is_dir():
            raise ImageError(f"{name}: is a folder; name the pictures in it, for example {path}/*.png")
        if not path.exists():
            raise ImageError(f"{name}: no such file; check the name and the folder ({Path.cwd()})")
        if not path.is_file():
            raise ImageError(f"{name}: is not a regular file; save the picture to a file first")
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}; check the name and the permissions") from None
    return name, path, page


def _limit(name: str, width: int, height: int) -> None:
    """Refuse a picture with more pixels than the limit before any memory is taken for it."""
    given = os.environ.get("WHEREVER_MAX_PIXELS", "")
    limit = int(given) if given.isdecimal() else DEFAULT_MAX_PIXELS
    if width * height > limit:
        raise ImageError(
            f"{name}: declares {width} x {height} pixels, more than the limit of {limit:,}; cut it into smaller "
            f"pictures, or set WHEREVER_MAX_PIXELS={width * height} if it is true and memory suffices"
        )


def missing_library(name: str, what: str, library: str) -> ImageError:
    """Return the error that says which package is needed."""
    return ImageError(f"{name}: reading {what} needs {library}: {INSTALL}")


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


# ---------------------------------------------------------------------------------------------------------------- .npy


def _read_npy(name: str, path: Path, page: int | None) -> Image:
    if page is not None:
        raise ImageError(f"{name}: an .npy file holds one array and has no pages; leave out what follows the #")
    # Memory mapping checks the declared shape against the size of the file before anything is allocated.
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "object" in str(error).lower():
            raise ImageError(f"{name}: holds Python objects, not numbers; save a plain array of numbers") from None
        raise
    if mapped.ndim not in (2, 3):
        raise ImageError(f"{name}: has shape {mapped.shape}; a picture has shape (H, W) or (H, W, bands)")
    _limit(name, mapped.shape[1], mapped.shape[0])
    return native(np.array(mapped))


def native(image: Image) -> Image:
    """Give the values the machine's own byte order, contiguous in memory; black-and-white becomes uint8 0 and 255."""
    if image.dtype == np.bool_:
        return np.asarray(image, dtype=np.uint8) * np.uint8(255)
    return np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("="))


# -------------------------------------------------------------------------------------------------------------- Pillow


@contextmanager
def _own_pixel_limit(module: Any) -> Iterator[None]:
    with _pillow_lock:
        before = module.MAX_IMAGE_PIXELS
        module.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            module.MAX_IMAGE_PIXELS = before


def _read_with_pillow(
    name: str, file: IO[bytes], page: int | None, formats: tuple[str, ...] = _PILLOW_FORMATS
) -> Image:
    try:
        from PIL import Image as PillowImage
        from PIL import ImageOps, UnidentifiedImageError
    except ModuleNotFoundError:
        raise missing_library(name, "pictures", "Pillow") from None
    PillowImage.init()
    available = [kind for kind in formats if kind in PillowImage.OPEN]  # Pillow may have been built without WebP
    with _own_pixel_limit(PillowImage):
        try:
            picture: Any = PillowImage.open(file, formats=available)
        except UnidentifiedImageError:
            raise ImageError(
                f"{name}: not a picture in a format known here, or damaged at its beginning; known are {FORMATS}"
            ) from None
        _limit(name, *picture.size)
        if page == ALL_PAGES:
            raise ImageError(f"{name}: only the pages of a TIFF file can be taken as bands; choose a frame with #1")
        if page is not None:
            frames = getattr(picture, "n_frames", 1)
            if page > frames:
                raise ImageError(f"{name}: the file has {frames} frame{'s' if frames > 1 else ''}")
            picture.seek(page - 1)
        picture.load()
    picture = ImageOps.exif_transpose(picture)
    if "A" in picture.getbands() or "transparency" in picture.info:
        grey = picture.mode in ("L", "LA")
        opaque = picture.convert("RGBA")
        canvas = PillowImage.new("RGBA", opaque.size, "white")
        picture = PillowImage.alpha_composite(canvas, opaque).convert("L" if grey else "RGB")
    elif picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode not in ("L", "RGB", "I", "F") and not picture.mode.startswith("I;16"):
        picture = picture.convert("RGB")
    image = np.array(picture)
    # Pillow before 11 gives 16-bit grey PNG as 32-bit integers.
    if picture.mode == "I" and image.size and image.min() >= 0 and image.max() < 2**16:
        image = image.astype(np.uint16)
    return native(image)


# ---------------------------------------------------------------------------------------------------------------- TIFF


@contextmanager
def quiet(logger_name: str) -> Iterator[None]:
    """Keep a library from logging what it thinks of a file."""
    logger = logging.getLogger(logger_name)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _read_tiff(name: str, file: IO[bytes], page: int | None) -> Image:
    try:
        import tifffile
    except ModuleNotFoundError:
        raise missing_library(name, "TIFF", "tifffile") from None
    with quiet("tifffile"), tifffile.TiffFile(file) as tiff:
        pages: list[Any] = list(tiff.pages)
        if not pages:
            raise ImageError(f"{name}: the TIFF file has no pages")
        if page is not None and page != ALL_PAGES:
            if page > len(pages):
                raise ImageError(f"{name}: the file has {len(pages)} page{'s' if len(pages) > 1 else ''}")
            chosen, axes = pages[page - 1 : page], ""
        else:
            series = tiff.series[0]
            chosen, axes = [item for item in series.pages if item is not None], series.axes
            # Reduced copies (pyramids, thumbnails) are smaller; other pages of the same size are pictures of their own.
            others = pictures(pages)
            if len(tiff.series) > 1 and sum(item.shape[:2] == others[0].shape[:2] for item in others) > len(chosen):
                raise several_pages(name, pages, "pictures of their own")
        first = chosen[0]
        _limit(name, int(first.imagewidth), int(first.imagelength))
        size = file.seek(0, io.SEEK_END)
        if any(incomplete(item, size) for item in chosen):
            raise ImageError(f"{name}: truncated (pixels are missing); copy, download or export it again")
        try:
            if not axes or (len(chosen) == 1 and len(axes) <= 3):
                return _tiff_page(first)
            return _tiff_stack(name, series, pages, as_bands=page == ALL_PAGES)
        except (KeyError, ValueError, ModuleNotFoundError) as error:
            if isinstance(error, ImageError) or not re.search("imagecodecs|compression", str(error), re.I):
                raise
            if len(chosen) > 1 or first.samplesperpixel not in (1, 3, 4):
                raise missing_codec(name, first) from None
    # Pillow decodes the common compressions that tifffile leaves to an extra package.
    file.seek(0)
    try:
        with _quiet_stderr():
            return _read_with_pillow(name, file, None if page == ALL_PAGES else page, ("TIFF",))
    except ImageError as error:  # a combination of compression and kind of pixels that Pillow does not know
        raise missing_codec(name, first) from error


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep libtiff, inside of Pillow, from printing remarks of its own about damaged files."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def is_mask(page: Any) -> bool:
    """Tell whether a page of a TIFF file says which pixels of another are there."""
    return bool(int(getattr(page, "subfiletype", 0)) & _MASK)


def pictures(pages: list[Any]) -> list[Any]:
    """Return the pages of a TIFF file that are neither reduced copies of others nor masks of them."""
    return [p for p in pages if getattr(p, "shape", None) and not getattr(p, "is_reduced", False) and not is_mask(p)]


def incomplete(page: Any, size: int) -> bool:
    """Tell whether pixels that a page declares are not in the file: tifffile would take zeros for some of them."""
    if any(start + count > size for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)):
        return True
    if len(page.dataoffsets) >= math.prod(page.chunked):  # pieces of zero bytes are allowed, GDAL leaves out empty ones
        return False
    # Without compression the pieces may have been joined to one.
    return bool(page.compression != 1 or sum(page.databytecounts) < math.prod(page.shape) * page.bitspersample / 8)


def _tiff_page(page: Any) -> Image:
    image: Image = page.asarray()
    axes: str = page.axes
    photometric = int(page.photometric)
    image = _drop_length_one(image, axes)
    if image.ndim == 3 and axes.replace("Q", "").startswith("S"):
        image = np.moveaxis(image, 0, -1)
    if photometric == 3 and page.colormap is not None:
        # A palette: 16-bit colours, which nearly always are 8-bit colours times 257.
        image = (page.colormap[:, image] >> 8).astype(np.uint8)
        image = np.moveaxis(image, 0, -1)
    elif photometric == 0 and image.dtype.kind in "bu":
        image = ~image
    return native(without_alpha(image, tuple(int(value) for value in page.extrasamples)))


def _tiff_stack(name: str, series: Any, pages: list[Any], as_bands: bool) -> Image:
    """Read a series of several pages: channels are bands; what may be depth, time or a document is refused."""
    check_stack(name, series, pages, as_bands)
    axes: str = series.axes
    lengths = dict(zip(axes, series.shape, strict=True))
    image: Image = series.asarray()
    keep = [index for index, axis in enumerate(axes) if axis in "YX" or lengths[axis] > 1]
    image = image.reshape([image.shape[index] for index in keep])
    axes = "".join(axes[index] for index in keep)
    bands = [index for index, axis in enumerate(axes) if axis not in "YX"]
    if bands:
        image = np.moveaxis(image, bands[0], -1)
    if "S" in axes:
        image = without_alpha(image, tuple(int(value) for value in series.keyframe.extrasamples))
    return native(image)


def check_stack(name: str, series: Any, pages: list[Any], as_bands: bool) -> None:
    """Raise ImageError unless a series of several pages is one picture: channels are bands; depth and time are not."""
    axes: str = series.axes
    lengths = dict(zip(axes, series.shape, strict=True))
    extra = {axis: length for axis, length in lengths.items() if axis not in "YXS" and length > 1}
    if len(extra) > 1 or not (as_bands or set(extra) <= {"C"}):
        words = {"Z": "planes of depth", "T": "points in time", "C": "channels"}
        kinds = " and ".join(f"{length} {words.get(axis, 'pages')}" for axis, length in extra.items())
        raise several_pages(name, pages, kinds)
    if extra and lengths.get("S", 1) > 1:
        raise several_pages(name, pages, "colour pictures")


def _drop_length_one(image: Image, axes: str) -> Image:
    lengths = [length for length, axis in zip(image.shape, axes, strict=True) if axis in "YX" or length > 1]
    return image.reshape(lengths)


def without_alpha(image: Image, extrasamples: tuple[int, ...]) -> Image:
    """Drop the bands that the file marks as alpha (1 and 2 in the extra samples, which are the last bands)."""
    if image.ndim != 3 or not any(kind in (1, 2) for kind in extrasamples):
        return image
    first = image.shape[2] - len(extrasamples)
    keep = [band for band in range(image.shape[2]) if band < first or extrasamples[band - first] not in (1, 2)]
    image = image[:, :, keep]
    return image[:, :, 0] if len(keep) == 1 else image


def several_pages(name: str, pages: list[Any], what: str) -> ImageError:
    """Return the error that asks to choose one of several pages."""
    path = name.removesuffix("#bands")
    size = f"{pages[0].imagewidth} x {pages[0].imagelength}"
    return ImageError(
        f"{name}: holds {what} of {size} pixels; choose one page: {path}#1 to {path}#{len(pages)}, or if they are "
        f"bands, {path}#bands"
    )


def missing_codec(name: str, page: Any) -> ImageError:
    """Return the error that says which package decodes a page."""
    kind = getattr(page.compression, "name", page.compression)
    return ImageError(f"{name}: TIFF compression {kind} needs one more package: pip install imagecodecs")
