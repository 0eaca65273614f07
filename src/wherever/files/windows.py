"""Pictures opened to be read by window, whatever their size: TIFF, ENVI, Zarr, .npy, and what Pillow reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy.typing as npt

from wherever.files.envi import EnviSource, envi_header
from wherever.files.images import NPY_MAGIC, TIFF_MAGIC, ImageError, locate, one_line, read_image
from wherever.files.sources import ArraySource, BandsSource, Source, mapped
from wherever.files.tiffs import TiffSource
from wherever.files.zarrs import ZarrSource

_LEVEL = re.compile(r"(?P<path>.+)#level(?P<level>\d+)")


def open_window(source: str | Path | npt.ArrayLike | Source, bands: Sequence[int] | None = None) -> Source:
    """Open a picture to be read by window.

    Parameters
    ----------
    source : str, Path, array_like (H, W) or (H, W, C), or Source
        A file: TIFF (BigTIFF, tiled, pyramidal, OME, GeoTIFF), ENVI (the header or the raw file beside it), a Zarr
        array or OME-Zarr group, .npy, or whatever `wherever.files.images.read_image` reads, which is read as a
        whole; `FILE#3` and `FILE#bands` as there; `FILE#level1` is the second resolution of a pyramid.
    bands : sequence of int, optional
        Use only these, counted from 0.

    Returns
    -------
    Source

    Raises
    ------
    ImageError
        If the file is missing, damaged or of an unknown kind, or if the library that reads it is missing.
    """
    if isinstance(source, Source):
        opened = source
    elif isinstance(source, str | Path):
        opened = windowed(str(source)) or ArraySource(read_image(source), str(source))
    else:
        opened = ArraySource(source)
    return opened if bands is None else BandsSource(opened, bands)


def windowed(name: str) -> Source | None:
    """Open a file whose windows can be read; None if it is a picture that is read as a whole."""
    match = _LEVEL.fullmatch(name)
    plain, level = (match["path"], int(match["level"])) if match and not Path(name).exists() else (name, 0)
    path = Path(plain)
    if path.is_dir() and is_zarr(path):
        return ZarrSource(name, path, level)
    if path.suffix == ".zarr" and path.is_dir():
        raise ImageError(f"{name}: holds no Zarr array or group; was it copied completely?")
    _, file, page = locate(plain)
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
        if head[:4] in TIFF_MAGIC:
            return TiffSource(name, file, page, level)
        if level:
            raise ImageError(f"{name}: only TIFF and OME-Zarr have levels; leave out what follows the #")
        if head.startswith(NPY_MAGIC) and page is None:
            return mapped(name, file)
        header = envi_header(file, head)
        if header is not None:
            return EnviSource(name, *header)
    except ImageError:
        raise
    except PermissionError:
        raise ImageError(f"{name}: permission denied; make the file readable (chmod +r) or copy it") from None
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise ImageError(f"{name}: corrupt or truncated ({one_line(error)}); copy or export it again") from error
    return None


def is_zarr(path: Path) -> bool:
    """Tell whether a folder holds a Zarr array or group."""
    return any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))
