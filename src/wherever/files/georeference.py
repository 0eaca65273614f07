"""Where on Earth, or how large, pixels are: read from TIFF tags, ENVI headers and OME-XML, and written to TIFF."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_SCALE, _TIEPOINT, _TRANSFORM, _KEYS, _DOUBLES, _TEXT = 33550, 33922, 34264, 34735, 34736, 34737  # GeoTIFF 1.1
_RESOLUTIONS, _UNIT, _CENTIMETRE = (282, 283), 296, 3  # TIFF 6.0
_GEOGRAPHIC, _PROJECTED, _RASTER_TYPE = 2048, 3072, 1025  # its keys
_USER_DEFINED = 32767
_POINT = 2  # the raster type whose coordinates are those of the centres of pixels
_AFFINE, _CODE, SPACING = "proj:transform", "proj:code", "micrometers_per_pixel"  # attributes of Zarr arrays
_UNITS = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


@dataclass(frozen=True)
class Georeference:
    """An affine map from pixels to coordinates, and what these coordinates are.

    Attributes
    ----------
    affine : tuple of 6 float
        (a, b, c, d, e, f): X = a x + b y + c, Y = d x + e y + f, where pixel (0, 0) covers the square from 0 to 1.
    epsg : int or None
        The coordinate reference system's number.
    tags : tuple
        The GeoTIFF tags that it was read from, (code, type, count, value), to be written as they were.
    """

    affine: tuple[float, float, float, float, float, float]
    epsg: int | None = None
    tags: tuple[tuple[int, int, int, Any], ...] = ()

    def apply(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return coordinates (..., 2) of pixel positions x, y (..., 2)."""
        x, y = np.moveaxis(np.asarray(points, np.float64), -1, 0)
        a, b, c, d, e, f = self.affine
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)

    @property
    def urn(self) -> str | None:
        """Name of the coordinate reference system, as GeoJSON files carry it."""
        return None if self.epsg is None else f"urn:ogc:def:crs:EPSG::{self.epsg}"

    def attributes(self) -> dict[str, Any]:
        """Return what a Zarr array is told, by the names of STAC's projection extension."""
        return {_AFFINE: list(self.affine)} | ({} if self.epsg is None else {_CODE: f"EPSG:{self.epsg}"})

    def tiff_tags(self, step: float = 1.0) -> list[tuple[int, int, int, Any]]:
        """Return the tags of a GeoTIFF whose pixels are `step` pixels of this one wide: (code, type, count, value)."""
        a, b, c, d, e, f = self.affine
        matrix = (a * step, b * step, 0.0, c, d * step, e * step, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        keys = [tag for tag in self.tags if tag[0] in (_KEYS, _DOUBLES, _TEXT)]
        if not keys and self.epsg is not None:
            kind, key = (2, _GEOGRAPHIC) if 4000 <= self.epsg < 5000 else (1, _PROJECTED)
            values = (1, 1, 0, 3, 1024, 0, 1, kind, _RASTER_TYPE, 0, 1, 1, key, 0, 1, self.epsg)
            keys = [(_KEYS, 3, len(values), values)]
        # The matrix is that of areas; where the file counted from the centres of pixels, this one does not.
        areas = [(code, kind, count, _as_areas(value) if code == _KEYS else value) for code, kind, count, value in keys]
        return [(_TRANSFORM, 12, 16, matrix), *areas]


def _as_areas(keys: Sequence[int]) -> tuple[int, ...]:
    values = [int(v) for v in keys]
    for at in range(4, len(values), 4):
        if values[at] == _RASTER_TYPE:
            values[at + 3] = 1
    return tuple(values)


def of_tiff(page: Any) -> Georeference | None:
    """Return the georeference of a page of a TIFF file; None if it has none."""
    tags = {
        code: page.tags[code] for code in (_SCALE, _TIEPOINT, _TRANSFORM, _KEYS, _DOUBLES, _TEXT) if code in page.tags
    }
    values = {code: tag.value for code, tag in tags.items()}
    if _TRANSFORM in values and len(values[_TRANSFORM]) == 16:
        m = [float(v) for v in values[_TRANSFORM]]
        affine = (m[0], m[1], m[3], m[4], m[5], m[7])
    elif _SCALE in values and _TIEPOINT in values and len(values[_TIEPOINT]) >= 6:
        sx, sy = (float(v) for v in values[_SCALE][:2])
        i, j, _, x, y, _ = (float(v) for v in values[_TIEPOINT][:6])
        affine = (sx, 0.0, x - i * sx, 0.0, -sy, y + j * sy)
    else:
        return None
    keys = [int(v) for v in values.get(_KEYS, ())]
    known = {keys[at]: keys[at + 3] for at in range(4, len(keys) - 3, 4) if keys[at + 1] == 0}
    epsg = next(
        (known[key] for key in (_PROJECTED, _GEOGRAPHIC) if known.get(key, _USER_DEFINED) != _USER_DEFINED), None
    )
    if known.get(_RASTER_TYPE) == _POINT:
        a, b, c, d, e, f = affine
        affine = (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2)
    kept = tuple(
        (code, int(tag.dtype), tag.count, tag.value) for code, tag in tags.items() if code in (_KEYS, _DOUBLES, _TEXT)
    )
    return Georeference(affine, epsg, kept)


def of_envi(header: dict[str, str]) -> Georeference | None:
    """Return the georeference of an ENVI header's `map info`; None if it has none."""
    parts = [part.strip() for part in header.get("map info", "").strip("{} ").split(",")]
    if len(parts) < 7:
        return None
    try:
        column, row, x, y, wide, high = (float(part) for part in parts[1:7])
    except ValueError:
        return None
    affine = (wide, 0.0, x - (column - 1) * wide, 0.0, -high, y + (row - 1) * high)
    datum = re.sub(r"[^A-Z0-9]", "", " ".join(parts).upper())
    epsg = None
    if "WGS84" in datum and parts[0].upper() == "UTM" and len(parts) > 8 and parts[7].isdecimal():
        epsg = (32700 if parts[8].upper().startswith("S") else 32600) + int(parts[7])
    elif "WGS84" in datum and parts[0].upper().startswith("GEOGRAPHIC"):
        epsg = 4326
    return Georeference(affine, epsg)


def of_attributes(attributes: dict[str, Any]) -> Georeference | None:
    """Return the georeference that a Zarr array's attributes tell; None if they tell none."""
    affine, code = attributes.get(_AFFINE), str(attributes.get(_CODE, ""))
    if not isinstance(affine, list | tuple) or len(affine) < 6 or not all(isinstance(v, int | float) for v in affine):
        return None
    a, b, c, d, e, f = (float(v) for v in affine[:6])
    number = code.removeprefix("EPSG:")
    return Georeference((a, b, c, d, e, f), int(number) if number.isdecimal() else None)


def spacing_of_tiff(page: Any) -> tuple[float, float] | None:
    """Return the size of pixels, x and y in micrometres, of a page that counts them by the centimetre.

    Pixels an inch are how large a picture is to be printed.
    """
    if _UNIT not in page.tags or int(page.tags[_UNIT].value) != _CENTIMETRE:
        return None
    try:
        x, y = (page.tags[code].value for code in _RESOLUTIONS)
        return 1e4 * x[1] / x[0], 1e4 * y[1] / y[0]
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def spacing_of_ome(xml: str | None) -> tuple[float, float] | None:
    """Return the physical size of pixels, x and y in micrometres, that OME-XML tells; None if it tells none."""
    sizes = []
    for axis in "XY":
        size = re.search(rf'PhysicalSize{axis}="([^"]+)"', xml or "")
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', xml or "")
        factor = _UNITS.get(unit[1] if unit else "µm")
        if size is None or factor is None:
            return None
        sizes.append(float(size[1]) * factor)
    return sizes[0], sizes[1]
