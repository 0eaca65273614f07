"""TIFF files read by window: tiles or strips are decoded when they are looked at, and the latest ones kept."""

from __future__ import annotations

import collections
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.files.georeference import of_tiff, spacing_of_ome, spacing_of_tiff
from wherever.files.images import (
    ALL_PAGES,
    Image,
    ImageError,
    check_stack,
    incomplete,
    is_mask,
    missing_codec,
    missing_library,
    one_line,
    pictures,
    quiet,
    several_pages,
)
from wherever.files.sources import Interval, Source, file_state

_KEPT = 32 << 20  # bytes of decoded pieces
_NODATA = 42113  # GDAL's tag
_PALETTE, _WHITE_IS_ZERO = 3, 0  # photometric interpretations


class TiffSource(Source):
    """A TIFF file: one page, or several whose bands belong together.

    Pieces that are not in the file (which writers leave out where all is empty) are the no-data value, or 0. A piece
    that cannot be decoded is an ImageError that names it. Bands that the file marks as alpha are left out. Pixels are
    missing where a page of the same size, which the file calls a transparency mask, is 0.
    """

    def __init__(self, name: str, path: Path, page: int | None = None, level: int = 0) -> None:
        try:
            import tifffile
        except ModuleNotFoundError:
            raise missing_library(name, "TIFF", "tifffile") from None
        self.name, self._path, self._number, self._level = name, path, page, level
        self._lock = threading.Lock()
        self._decoded: collections.OrderedDict[tuple[int, int], Any] = collections.OrderedDict()
        self._held = 0
        with quiet("tifffile"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._tiff: Any = tifffile.TiffFile(path)
                self._pages = self._chosen(page, level)
            except ImageError:
                raise
            except Exception as error:  # the parser raises whatever it happens to raise on damaged files
                raise ImageError(
                    f"{name}: corrupt or truncated ({one_line(error)}); copy, download or export it again"
                ) from error
        first = self._pages[0]
        size = path.stat().st_size
        for chosen in self._pages:
            if incomplete(chosen, size):
                raise ImageError(f"{name}: truncated (pixels are missing); copy, download or export it again")
        self._palette = int(first.photometric) == _PALETTE and first.colormap is not None
        samples = 3 if self._palette else int(first.samplesperpixel)
        extra = [int(kind) for kind in first.extrasamples]
        self._samples = [
            band for band in range(samples) if band < samples - len(extra) or extra[band - samples] not in (1, 2)
        ] or [0]
        self.shape = (int(first.imagelength), int(first.imagewidth), len(self._samples) * len(self._pages))
        kind = np.dtype(np.uint8 if self._palette or first.dtype == np.bool_ else first.dtype)
        if kind.kind not in "uif" or int(first.imagedepth) > 1:
            raise ImageError(
                f"{name}: holds {kind} values or voxels; a picture needs real numbers (integers or floats)"
            )
        self.dtype = kind.newbyteorder("=")
        tile = (first.tilelength, first.tilewidth) if first.is_tiled else (first.rowsperstrip, first.imagewidth)
        self.pieces = (min(int(tile[0]), self.shape[0]), min(int(tile[1]), self.shape[1]))
        if _NODATA in first.tags:
            try:
                self.nodata = float(str(first.tags[_NODATA].value).strip().strip("\0"))
            except ValueError:
                self.nodata = None
        self._mask = self._mask_of(first)
        self.masked = self._mask is not None
        self.georeference = of_tiff(first)
        self.spacing = spacing_of_ome(self._tiff.ome_metadata) if self._tiff.is_ome else spacing_of_tiff(first)
        # Without compression, in one run and in this order, a page is an array in the file.
        self._mapped: Any = None
        if len(self._pages) == 1 and first.is_memmappable and not first.is_tiled and first.dtype != np.bool_:
            offset, shape = first.dataoffsets[0], first.shaped[1:]
            mapped = np.memmap(path, first.dtype.newbyteorder(self._tiff.byteorder), "r", offset, first.shaped)
            self._mapped = mapped[0, 0] if len(shape) == 4 and first.shaped[0] == 1 else None

    def _chosen(self, page: int | None, level: int) -> list[Any]:
        """The pages of the picture that is meant, as `read_image` chooses them."""
        pages = list(self._tiff.pages)
        if not pages:
            raise ImageError(f"{self.name}: the TIFF file has no pages")
        if page is not None and page != ALL_PAGES:
            if page > len(pages):
                raise ImageError(f"{self.name}: the file has {len(pages)} page{'s' if len(pages) > 1 else ''}")
            return [pages[page - 1].aspage()]
        series = self._tiff.series[0]
        levels = list(series.levels)
        if level >= len(levels):
            raise ImageError(f"{self.name}: the file has {len(levels)} level{'s' if len(levels) > 1 else ''}, from 0")
        chosen = [item for item in levels[level].pages if item is not None]
        others = pictures(pages)
        same = sum(item.shape[:2] == others[0].shape[:2] for item in others)
        if len(self._tiff.series) > 1 and same > len(chosen) and level == 0:
            raise several_pages(self.name, pages, "pictures of their own")
        if len(chosen) > 1 or len(series.axes) > 3:
            check_stack(self.name, series, pages, as_bands=page == ALL_PAGES)
        return [item.aspage() for item in chosen]

    def _mask_of(self, first: Any) -> TiffSource | None:
        """The mask that belongs to a page: the next one that is a mask of its size, before any other picture of it."""
        pages = list(self._tiff.pages)
        number = next((i for i, item in enumerate(pages) if item.index == first.index), None)
        if number is None or is_mask(first):
            return None
        for later, item in enumerate(pages[number + 1 :], number + 2):
            key = item.keyframe
            if (key.imagelength, key.imagewidth) == (first.imagelength, first.imagewidth):
                return TiffSource(self.name, self._path, later) if is_mask(item) else None
        return None

    def mask(self, rows: Interval, columns: Interval) -> npt.NDArray[np.bool_]:
        """Return where pixels of some rows and columns are missing, by the file's mask."""
        assert self._mask is not None
        missing: npt.NDArray[np.bool_] = self._mask.read(rows, columns)[:, :, 0] == 0
        return missing

    def read(self, rows: Interval, columns: Interval) -> Image:
        """Return the pixels of some rows and columns."""
        if self._mapped is not None:
            part = self._mapped[slice(*rows), slice(*columns)]
            return self._finished(np.asarray(part, self._mapped.dtype.newbyteorder("=")))
        parts = [self._page(number, rows, columns) for number in range(len(self._pages))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def _page(self, number: int, rows: Interval, columns: Interval) -> Image:
        page = self._pages[number]
        key = page.keyframe
        samples = int(key.samplesperpixel)
        separate = samples > 1 and int(key.planarconfig) == 2
        kind = np.uint8 if key.dtype == np.bool_ else key.dtype.newbyteorder("=")
        out = np.zeros((rows[1] - rows[0], columns[1] - columns[0], samples), kind)
        if self.nodata is not None and _fits(self.nodata, out.dtype):
            out[:] = self.nodata
        high, wide = self.pieces
        down, across = (-(-n // piece) for n, piece in zip(self.shape[:2], self.pieces, strict=True))
        for i in range(rows[0] // high, min(-(-rows[1] // high), down)):
            for j in range(columns[0] // wide, min(-(-columns[1] // wide), across)):
                for plane in range(samples if separate else 1):
                    piece = self._piece(number, (plane * down + i) * across + j)
                    if piece is None:
                        continue
                    top, left = i * high, j * wide
                    a, b = max(rows[0], top), min(rows[1], top + piece.shape[0])
                    c, d = max(columns[0], left), min(columns[1], left + piece.shape[1])
                    target = out[a - rows[0] : b - rows[0], c - columns[0] : d - columns[0]]
                    seen = piece[a - top : b - top, c - left : d - left]
                    if separate:
                        target[:, :, plane] = seen[:, :, 0]
                    else:
                        target[:] = seen
        return self._finished(out)

    def _finished(self, pixels: Image) -> Image:
        first = self._pages[0]
        if self._palette:
            return np.moveaxis((first.colormap[:, pixels[:, :, 0]] >> 8).astype(np.uint8), 0, -1)
        if first.dtype == np.bool_:
            pixels = (pixels > 0).astype(np.uint8) * np.uint8(255)
        if int(first.photometric) == _WHITE_IS_ZERO and pixels.dtype.kind == "u":
            pixels = ~pixels
        return pixels if len(self._samples) == pixels.shape[2] else pixels[:, :, self._samples]

    def _piece(self, number: int, index: int) -> Any:
        """A tile or strip (rows, columns, samples), decoded; None if it is not in the file."""
        with self._lock:
            if (number, index) in self._decoded:
                self._decoded.move_to_end((number, index))
                return self._decoded[number, index]
            page = self._pages[number]
            count = page.databytecounts[index] if index < len(page.databytecounts) else 0
            data = None
            if count:
                handle = self._tiff.filehandle
                handle.seek(page.dataoffsets[index])
                data = handle.read(count)
        if data is None:
            return None
        piece = self._decode(page, data, index)
        with self._lock:
            self._decoded[number, index] = piece
            self._held += piece.nbytes
            while self._held > _KEPT and len(self._decoded) > 1:
                self._held -= self._decoded.popitem(last=False)[1].nbytes
        return piece

    def _decode(self, page: Any, data: bytes, index: int) -> Any:
        key = page.keyframe
        options: dict[str, Any] = {"_fullsize": key.is_tiled}
        if int(key.compression) in (6, 7, 34892, 33007):  # JPEG, whose tables stand beside the pieces
            options |= {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
        try:
            with quiet("tifffile"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                piece, _, _ = key.decode(data, index, **options)
        except (KeyError, ValueError, ModuleNotFoundError) as error:
            if "imagecodecs" in str(error):
                raise missing_codec(self.name, key) from None
            raise self._damaged(index, error) from error
        except Exception as error:  # decoders raise whatever they happen to raise on damaged data
            raise self._damaged(index, error) from error
        if piece is None or piece.ndim != 4:
            raise self._damaged(index, ValueError("it holds nothing"))
        return piece[0]

    def _damaged(self, index: int, error: Exception) -> ImageError:
        high, wide = self.pieces
        across = -(-self.shape[1] // wide)
        down = -(-self.shape[0] // high)
        row, column = index // across % down, index % across
        return ImageError(
            f"{self.name}: the {'tile' if self._pages[0].is_tiled else 'strip'} at row {row * high}, column "
            f"{column * wide} ({wide} x {high} pixels) is damaged ({one_line(error)}); copy or export the file again"
        )

    def fingerprint(self) -> str:
        """Return what tells this picture, in this state, from others."""
        return f"{file_state(self._path)} {self._number} {self._level}"

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()
        if self._mask is not None:
            self._mask.close()

    def __del__(self) -> None:
        if hasattr(self, "_tiff"):
            self._tiff.close()

    def __reduce__(self) -> Any:
        return TiffSource, (self.name, self._path, self._number, self._level)


def _fits(value: float, kind: np.dtype[Any]) -> bool:
    """Whether a number is one of a type."""
    if kind.kind == "f":
        return True
    return value == np.floor(value) and np.iinfo(kind).min <= value <= np.iinfo(kind).max
