"""Pictures on the command line that are read by window: large ones, those with no-data, and folders of pictures."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wherever.cli.common import Marked, count_missing, load_image, plural
from wherever.files.images import Image
from wherever.files.sources import BandsSource, Interval, Source, is_huge
from wherever.files.windows import is_zarr, windowed

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".npy", ".hdr", ".zarr")
OVERVIEW = 2000  # longest side of the picture that finds of a large one are drawn on
_AROUND, _LEAST = 12, 1024  # what is learnt from around an example: so many times its size, or so many pixels


def expand(images: Sequence[str]) -> list[str]:
    """Replace folders by the pictures in them, and patterns that no shell has replaced by what they match."""
    found: list[str] = []
    for name in images:
        path = Path(name)
        if path.is_dir() and not is_zarr(path) and path.suffix.lower() != ".zarr":
            inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"{name}: a folder without pictures (files that end in {', '.join(SUFFIXES)})")
            found += inside
        elif any(sign in name for sign in "*?[") and not path.exists():
            matching = sorted(glob.glob(name, recursive=True))
            if not matching:
                raise ValueError(f"{name}: nothing matches this pattern in {Path.cwd()}")
            found += matching
        else:
            found.append(name)
    return list(dict.fromkeys(found))


class Finite(BandsSource):
    """A picture of which no pixel may be NaN or infinite but those that it declares to be missing."""

    def read(self, rows: Interval, columns: Interval) -> Image:
        """Return the pixels of some rows and columns."""
        part = super().read(rows, columns)
        holes = count_missing(part) if self.nodata is None or not np.isnan(self.nodata) else 0
        if holes:
            raise ValueError(
                f"{self.name}: {plural(holes, 'pixel')} with NaN or infinite values in rows {rows[0]} to {rows[1]}; "
                "find with --missing works around them, or fill them first"
            )
        return part


def opened(name: str, bands: list[int] | None, *, missing: bool) -> Source | None:
    """Open a file to be read by window; None if it is a picture that is read as a whole."""
    source = windowed(name)
    if source is None:
        return None
    chosen = list(range(source.shape[2])) if bands is None else bands
    return BandsSource(source, chosen) if missing else Finite(source, chosen)


def read(name: str, bands: list[int] | None, memory: int, *, missing: bool) -> Image | Source:
    """Return a picture: its pixels, with NaN for those that it declares to be missing, or a source if it is large."""
    source = opened(name, bands, missing=missing)
    if source is None:
        return load_image(name, bands, missing=missing)
    if is_huge(source, memory):
        return source
    kind = type(source._source).__name__ if isinstance(source, BandsSource) else ""
    if source.nodata is None and not source.masked and kind not in ("EnviSource", "ZarrSource"):
        source.close()
        return load_image(name, bands, missing=missing)  # knows compressions that windows do not
    high, wide, count = source.shape
    image = source.values((0, high), (0, wide))
    source.close()
    return image[:, :, 0] if count == 1 else image


def standing_for(source: Source) -> Image:
    """Return an array of a source's shape that takes no memory, where only the shape is looked at."""
    standing: Image = np.broadcast_to(np.uint8(0), source.shape)
    return standing


def around_examples(source: Source, item: Marked) -> list[tuple[Image, Marked]]:
    """Return windows of a large picture around its examples and negatives, each with the boxes that lie in it."""
    high, wide, _ = source.shape
    windows: list[tuple[int, int, int, int]] = []
    for x0, y0, x1, y1 in [*item.boxes, *item.negatives]:
        if any(a <= x0 and b <= y0 and x1 <= c and y1 <= d for a, b, c, d in windows):
            continue
        reach = max(_LEAST, _AROUND * max(x1 - x0, y1 - y0)) / 2
        left, top = (
            int(max(0, min(m - reach, n - 2 * reach))) for m, n in (((x0 + x1) / 2, wide), ((y0 + y1) / 2, high))
        )
        windows.append((left, top, int(min(left + 2 * reach + 1, wide)), int(min(top + 2 * reach + 1, high))))
    taken: set[tuple[str, int]] = set()
    found = []
    for left, top, right, bottom in windows:
        part = Marked(item.source)
        for which in ("boxes", "negatives", "ignored"):
            for number, (x0, y0, x1, y1) in enumerate(getattr(item, which)):
                inside = left - 1 <= x0 and top - 1 <= y0 and x1 <= right + 1 and y1 <= bottom + 1
                if inside and (which, number) not in taken:
                    taken.add((which, number))
                    getattr(part, which).append((x0 - left, y0 - top, x1 - left, y1 - top))
        if part.boxes or part.negatives:
            image = source.values((top, bottom), (left, right))
            found.append((image[:, :, 0] if image.shape[2] == 1 else image, part))
    return found


def overview_step(source: Source) -> int:
    """Return how many pixels along an axis each pixel of an overview stands for."""
    return max(1, -(-max(source.shape[:2]) // OVERVIEW))


def overview(source: Source) -> Image:
    """Return every so-many-th pixel of a large picture."""
    high, wide, _ = source.shape
    step = overview_step(source)
    rows = max(source.pieces[0], 1)
    parts = []
    for top in range(0, high, rows):
        first = -(-top // step) * step
        if first < min(top + rows, high):
            parts.append(source.values((first, min(top + rows, high)), (0, wide))[::step, ::step])
    image = np.concatenate(parts)
    return image[:, :, 0] if image.shape[2] == 1 else image
