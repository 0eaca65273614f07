"""ENVI pictures read by window: a raw file of any order of bands that a text header describes, mapped into memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from wherever.files.georeference import of_envi
from wherever.files.images import Image, ImageError, one_line
from wherever.files.sources import Interval, Source, file_state

_TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
_SUFFIXES = ("", ".img", ".dat", ".raw", ".bsq", ".bil", ".bip", ".bin")


def envi_header(file: Path, head: bytes) -> tuple[Path, Path] | None:
    """The header and the raw file of an ENVI picture, of which one is given; None if it is none."""
    if head.startswith(b"ENVI"):
        for suffix in _SUFFIXES:
            raw = file.with_suffix(suffix)
            if raw != file and raw.is_file():
                return file, raw
        raise ImageError(
            f"{file}: the raw file of this ENVI header is not beside it ({file.with_suffix('')}, .img, ...)"
        )
    for header in (file.with_suffix(".hdr"), file.with_name(file.name + ".hdr")):
        if header != file and header.is_file():
            with header.open("rb") as opened:
                if opened.read(4) == b"ENVI":
                    return header, file
    return None


class EnviSource(Source):
    """An ENVI picture: a raw file that a text header describes, mapped into memory."""

    def __init__(self, name: str, header: Path, raw: Path) -> None:
        self.name, self._header, self._raw = name, header, raw
        text = header.read_text("utf-8", errors="replace")
        fields = {
            key.strip().lower(): value.strip()
            for key, value in re.findall(r"^\s*([^=\n;]+?)\s*=\s*(\{[^}]*\}|[^\n]*)", text, re.M)
        }
        try:
            wide, high, bands = (int(fields[key]) for key in ("samples", "lines", "bands"))
            kind = int(fields["data type"])
            order = "<>"[int(fields.get("byte order", "0"))]
            offset = int(fields.get("header offset", "0"))
            interleave = fields.get("interleave", "bsq").lower()
        except (KeyError, ValueError, IndexError) as error:
            raise ImageError(f"{name}: the header {header} is incomplete or wrong ({one_line(error)})") from None
        if kind not in _TYPES:
            raise ImageError(f"{name}: holds values of ENVI type {kind}; a picture needs integers or floats")
        dtype = np.dtype(order + _TYPES[kind])
        orders = {"bsq": ((bands, high, wide), (1, 2, 0)), "bil": ((high, bands, wide), (0, 2, 1))}
        orders["bip"] = ((high, wide, bands), (0, 1, 2))
        if interleave not in orders:
            raise ImageError(f"{name}: interleave {interleave!r} is unknown; it is one of bsq, bil and bip")
        needed = offset + high * wide * bands * dtype.itemsize
        if min(wide, high, bands) < 1 or raw.stat().st_size < needed:
            raise ImageError(
                f"{name}: truncated: {raw} has {raw.stat().st_size:,} bytes, but {header} declares {needed:,}"
            )
        shape, axes = orders[interleave]
        self._mapped = np.memmap(raw, dtype, "r", offset, shape).transpose(axes)
        self.shape, self.dtype = (high, wide, bands), dtype.newbyteorder("=")
        self.pieces = (1, wide)
        ignored = fields.get("data ignore value")
        self.nodata = None if ignored is None else float(ignored)
        self.georeference = of_envi(fields)

    def read(self, rows: Interval, columns: Interval) -> Image:
        """Return the pixels of some rows and columns."""
        return np.ascontiguousarray(self._mapped[slice(*rows), slice(*columns)], dtype=self.dtype)

    def fingerprint(self) -> str:
        """Return what tells this picture, in this state, from others."""
        return f"{file_state(self._header)} {file_state(self._raw)}"

    def __reduce__(self) -> Any:
        return EnviSource, (self.name, self._header, self._raw)
