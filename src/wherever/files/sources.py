"""What is read by window: sources of pixels, whatever they come from, and arrays and bands as sources."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from wherever.files.georeference import Georeference
from wherever.files.images import Image, ImageError

Interval: TypeAlias = tuple[int, int]


class Source:
    """A picture that is read by window.

    Attributes
    ----------
    name : str
        For messages.
    shape : tuple of int
        Height, width and number of bands.
    dtype : numpy.dtype
        Of what `read` returns: integers or floats, in the machine's byte order.
    pieces : tuple of int
        Height and width of the pieces that it is stored in; reading whole ones is cheapest.
    nodata : float or None
        The value that stands for missing pixels.
    masked : bool
        Whether the file says of every pixel whether it is there: see `mask`.
    georeference : Georeference or None
        Where the pixels are on Earth.
    spacing : (float, float) or None
        Size of a pixel, x and y, in micrometres.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    pieces: tuple[int, int]
    nodata: float | None = None
    masked: bool = False
    georeference: Georeference | None = None
    spacing: tuple[float, float] | None = None

    def read(self, rows: Interval, columns: Interval) -> Image:
        """Return the pixels of some rows and columns, (rows, columns, bands), as they are stored."""
        raise NotImplementedError

    def values(self, rows: Interval, columns: Interval) -> Image:
        """Return the pixels of some rows and columns, with NaN for those that are missing.

        Integers become float32 (of more than 16 bits float64) where the picture declares that pixels may be missing.
        A pixel is missing in a band where that band has the value for it, and in all bands where the mask says so.
        """
        pixels = self.read(rows, columns)
        declared = self.nodata is not None and not (pixels.dtype.kind == "f" and math.isnan(self.nodata))
        if not declared and not self.masked:
            return pixels
        missing = pixels == np.array(self.nodata).astype(pixels.dtype) if declared else np.zeros(pixels.shape, bool)
        if self.masked:
            missing |= self.mask(rows, columns)[:, :, None]
        number = self.dtype_of_values
        return np.where(missing, number.type(np.nan), pixels.astype(number))

    def mask(self, rows: Interval, columns: Interval) -> npt.NDArray[np.bool_]:
        """Return where pixels of some rows and columns are missing, (rows, columns), of a picture with a mask."""
        raise NotImplementedError

    @property
    def dtype_of_values(self) -> np.dtype[Any]:
        """The type of what `values` returns."""
        if (self.nodata is None and not self.masked) or self.dtype.kind == "f":
            return self.dtype
        return np.dtype(np.float32 if self.dtype.itemsize <= 2 else np.float64)

    @property
    def bytes_of_pixel(self) -> int:
        """Bytes of a pixel with all its bands."""
        return self.shape[2] * self.dtype.itemsize

    def fingerprint(self) -> str:
        """Return what tells this picture, in this state, from others."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; what it was opened for is over."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class ArraySource(Source):
    """An array (H, W) or (H, W, C), in memory or mapped into it."""

    def __init__(self, array: npt.ArrayLike, name: str = "the image", *, path: Path | None = None) -> None:
        held: npt.NDArray[Any] = array if isinstance(array, np.ndarray) else np.asarray(array)
        if held.ndim not in (2, 3) or 0 in held.shape:
            raise ValueError(f"{name}: shape {held.shape}; an image has shape (H, W) or (H, W, bands), and pixels")
        if held.dtype.kind not in "buif":
            raise TypeError(f"{name}: holds {held.dtype} values; an image needs real numbers (integers or floats)")
        self.name = name
        self.array = held if held.ndim == 3 else held[:, :, None]
        self._path = path
        high, wide, bands = self.array.shape
        self.shape = high, wide, bands
        self.dtype = np.dtype(np.uint8) if held.dtype == np.bool_ else held.dtype.newbyteorder("=")
        self.pieces = (1, wide)

    def read(self, rows: Interval, columns: Interval) -> Image:
        """Return the pixels of some rows and columns."""
        part = self.array[slice(*rows), slice(*columns)]
        if part.dtype == np.bool_:
            return part.astype(np.uint8) * np.uint8(255)
        return np.asarray(part, dtype=self.dtype)

    def fingerprint(self) -> str:
        """Return a hash of the pixels; of a mapped file, of what its folder says about it."""
        if self._path is not None:
            return file_state(self._path)
        digest = hashlib.sha256(f"{self.array.shape} {self.array.dtype}".encode())
        for row in range(0, self.shape[0], 256):
            digest.update(np.ascontiguousarray(self.array[row : row + 256]).tobytes())
        return digest.hexdigest()

    def __reduce__(self) -> Any:
        if self._path is not None:
            return mapped, (self.name, self._path)
        return ArraySource, (self.array, self.name)


def mapped(name: str, path: Path) -> ArraySource:
    """Return an .npy file mapped into memory as a source."""
    return ArraySource(np.load(path, mmap_mode="r", allow_pickle=False), name, path=path)


class BandsSource(Source):
    """Some bands of a picture."""

    def __init__(self, source: Source, bands: Sequence[int]) -> None:
        have = source.shape[2]
        wrong = next((band for band in bands if not 0 <= band < have), None)
        if wrong is not None:
            raise ImageError(
                f"{source.name}: has {have} band{'s' if have > 1 else ''}, but number {wrong + 1} is asked for"
            )
        self._source, self._bands = source, list(bands)
        self.name, self.dtype, self.pieces, self.nodata = source.name, source.dtype, source.pieces, source.nodata
        self.masked, self.georeference, self.spacing = source.masked, source.georeference, source.spacing
        self.shape = (*source.shape[:2], len(self._bands))

    def read(self, rows: Interval, columns: Interval) -> Image:
        """Return the pixels of some rows and columns."""
        return self._source.read(rows, columns)[:, :, self._bands]

    def mask(self, rows: Interval, columns: Interval) -> npt.NDArray[np.bool_]:
        """Return where pixels of some rows and columns are missing."""
        return self._source.mask(rows, columns)

    def fingerprint(self) -> str:
        """Return what tells this picture, in this state, from others."""
        return f"{self._source.fingerprint()} {self._bands}"

    def close(self) -> None:
        """Close the file."""
        self._source.close()


def file_state(path: Path) -> str:
    """Return name, size and time of the last change of a file: what tells whether it is still the same."""
    status = path.stat()
    return f"{path.absolute()} {status.st_size} {status.st_mtime_ns}"


def is_huge(source: Source, memory: int) -> bool:
    """Tell whether a picture with all its pixels, and as many again in float32, would go beyond a budget."""
    high, wide, bands = source.shape
    return high * wide * bands * (source.dtype.itemsize + 8) > memory
