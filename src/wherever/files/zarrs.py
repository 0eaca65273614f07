"""Zarr arrays, version 2 and 3, and OME-Zarr pyramids read by window."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from wherever.files.georeference import SPACING, of_attributes
from wherever.files.images import Image, ImageError, one_line
from wherever.files.sources import Interval, Source, file_state


class ZarrSource(Source):
    """A Zarr array (Y, X), (Y, X, bands) or (bands, Y, X), or a level of an OME-Zarr picture.

    Chunks that are not there hold the array's fill value: so the format says, and writers leave out empty ones. Where
    the fill value is NaN, they are missing pixels.
    """

    def __init__(self, name: str, path: Path, level: int = 0) -> None:
        try:
            import zarr
        except ModuleNotFoundError:
            raise ImageError(f'{name}: reading Zarr needs zarr: pip install "wherever[zarr]"') from None
        self.name, self._path, self._level = name, path, level
        try:
            opened: Any = zarr.open(str(path), mode="r")
        except Exception as error:  # whatever the parser happens to raise on damaged metadata
            raise ImageError(f"{name}: corrupt or no Zarr array ({one_line(error)}); copy it again") from error
        axes = None
        if not hasattr(opened, "shape"):
            attributes = dict(opened.attrs)
            scales = attributes.get("ome", attributes).get("multiscales")
            if not scales:
                raise ImageError(
                    f"{name}: is a group without OME-Zarr levels; name the array in it, for example {path}/0"
                )
            levels = scales[0]["datasets"]
            if level >= len(levels):
                raise ImageError(f"{name}: has {len(levels)} levels, from 0")
            axes = [axis["name"] if isinstance(axis, dict) else axis for axis in scales[0].get("axes", [])] or None
            steps = levels[level].get("coordinateTransformations", [])
            units = [axis.get("unit") if isinstance(axis, dict) else None for axis in scales[0].get("axes", [])]
            scale = next((step["scale"] for step in steps if step.get("type") == "scale"), None)
            if (
                scale
                and axes
                and all(unit == "micrometer" for axis, unit in zip(axes, units, strict=True) if axis in "xy")
            ):
                self.spacing = float(scale[axes.index("x")]), float(scale[axes.index("y")])
            opened = opened[levels[level]["path"]]
        elif level:
            raise ImageError(f"{name}: is one array, which has no levels; leave out what follows the #")
        attributes = dict(opened.attrs)
        self.georeference = of_attributes(attributes)
        sizes_known = attributes.get(SPACING)
        if isinstance(sizes_known, list) and len(sizes_known) == 2:
            self.spacing = float(sizes_known[0]), float(sizes_known[1])
        self._array = opened
        self._axes = self._order(tuple(opened.shape), axes)
        sizes = [opened.shape[axis] for axis in self._axes]
        self.shape = (sizes[0], sizes[1], sizes[2] if len(sizes) > 2 else 1)
        kind = np.dtype(opened.dtype)
        if kind.kind not in "buif" or 0 in self.shape:
            raise ImageError(
                f"{name}: holds {kind} values, shape {opened.shape}; a picture needs real numbers and pixels"
            )
        self.dtype = np.dtype(np.uint8) if kind == np.bool_ else kind.newbyteorder("=")
        self.pieces = (int(opened.chunks[self._axes[0]]), int(opened.chunks[self._axes[1]]))

    def _order(self, shape: tuple[int, ...], axes: list[str] | None) -> tuple[int, ...]:
        """Which axes of the array are rows, columns and bands; all others have length 1."""
        if axes is not None and len(axes) == len(shape):
            y, x = axes.index("y"), axes.index("x")
            others = [axis for axis in range(len(shape)) if axis not in (y, x) and shape[axis] > 1]
            if [axis for axis in others if axes[axis] != "c"]:
                wrong = ", ".join(f"{axes[axis]}={shape[axis]}" for axis in others if axes[axis] != "c")
                raise ImageError(f"{self.name}: has planes or points in time ({wrong}); choose one of them first")
            return (y, x, *others)
        long = [axis for axis, n in enumerate(shape) if n > 1 or len(shape) <= 3]
        if len(long) == 2:
            return long[0], long[1]
        if len(long) != 3:
            raise ImageError(
                f"{self.name}: has shape {shape}; a picture has shape (H, W), (H, W, bands) or (bands, H, W)"
            )
        # Bands are fewer than rows and columns, and first or last.
        first = shape[long[0]] < shape[long[2]]
        return (long[1], long[2], long[0]) if first else (long[0], long[1], long[2])

    def read(self, rows: Interval, columns: Interval) -> Image:
        """Return the pixels of some rows and columns."""
        place: list[Any] = [0] * len(self._array.shape)
        place[self._axes[0]], place[self._axes[1]] = slice(*rows), slice(*columns)
        if len(self._axes) > 2:
            place[self._axes[2]] = slice(None)
        try:
            part = np.asarray(self._array[tuple(place)])
        except Exception as error:  # decoders raise whatever they happen to raise on damaged data
            raise ImageError(
                f"{self.name}: a chunk in rows {rows[0]} to {rows[1]}, columns {columns[0]} to {columns[1]} is damaged "
                f"({one_line(error)}); copy the array again"
            ) from error
        kept = sorted(self._axes)
        part = part.transpose([kept.index(axis) for axis in self._axes])
        if part.dtype == np.bool_:
            part = part.astype(np.uint8) * np.uint8(255)
        return np.ascontiguousarray(part.reshape(*part.shape[:2], -1), dtype=self.dtype)

    def fingerprint(self) -> str:
        """Return what tells this picture from others: its metadata; changes inside of chunks are not seen."""
        found = [
            file for name in ("zarr.json", ".zarray", ".zgroup", ".zattrs") if (file := self._path / name).exists()
        ]
        return json.dumps([self._level, [file_state(file) for file in found], math.prod(self.shape)])

    def __reduce__(self) -> Any:
        return ZarrSource, (self.name, self._path, self._level)
