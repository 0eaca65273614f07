"""The detector on pictures of any size: each tile is read once and swept at every level, as the whole would be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wherever.files.sources import Source
from wherever.find.boxes import clip
from wherever.find.features import (
    LARGEST_VALUE,
    Floats,
    Picture,
    channel_statistics,
    interpolation,
    neighbours,
    sampling,
    see,
)
from wherever.find.sweep import Candidates, Scorer, most_peaks, peaks, scale_of
from wherever.tiles.axes import Interval
from wherever.tiles.graph import Box
from wherever.tiles.grid import SHARE, Grid

if TYPE_CHECKING:
    from wherever.find.detector import Detector

_DENSER = 8  # times down and across, where a sample of pixels is of one colour
_FIXED = 32 << 20  # bytes that a sweep needs whatever the size of a tile

Span = tuple[int, int]


@dataclass(frozen=True)
class Sweep:
    """A scorer, a source, and what has to be known of the whole source beforehand.

    Attributes
    ----------
    scorer : Scorer
    source : Source
    statistics : (array (C,), float)
        The median of each channel, and the spread: what `channel_statistics` says of the whole.
    """

    scorer: Scorer
    source: Source
    statistics: tuple[NDArray[np.float64], float]

    @classmethod
    def of(cls, scorer: Scorer, source: Source) -> Sweep:
        """Take the statistics of a source."""
        high, wide, _ = source.shape
        down, across = sampling(high, wide)
        found = _statistics(source, down, across)
        if found is None:  # of one colour there; look closer
            found = _statistics(source, max(1, down // _DENSER), max(1, across // _DENSER))
        if found is None:
            found = np.zeros(source.shape[2]), 1.0
        return cls(scorer, source, found)

    # ------------------------------------------------------------------------------------------------------ geometry

    def cell(self, index: int) -> float:
        """Pixels of a cell of a level."""
        return self.scorer.template.cell * scale_of(self.scorer.levels[index])

    def cells(self, index: int) -> Span:
        """Rows and columns of cells of a level of the whole picture."""
        high, wide, _ = self.source.shape
        cell = self.cell(index)
        return max(math.ceil(high / cell - 1e-6), 1), max(math.ceil(wide / cell - 1e-6), 1)

    def places(self, index: int) -> Span:
        """Rows and columns of windows of a level."""
        rows, columns = (self.scorer.template.places(n, axis) for axis, n in enumerate(self.cells(index)))
        return rows, columns

    def looked_at(self, index: int, windows: Box) -> Box:
        """The cells that windows of a level depend on, with the neighbourhoods of their contrast."""
        halo, found = self.scorer.eye.halo, []
        for axis, ((low, high), n) in enumerate(zip(windows, self.cells(index), strict=True)):
            first, last = self.scorer.template.covered(low, high, axis)
            found.append((max(first - halo, 0), min(last + halo, n)))
        return tuple(found)

    def pixels(self, index: int, cells: Box) -> Box:
        """The pixels that cells of a level cover, and one more on each side."""
        cell, found = self.cell(index), []
        for (low, high), n in zip(cells, self.source.shape, strict=False):
            reach = max(cell, 1.0)
            first = math.floor((low + 0.5) * cell - reach / 2) - 2
            last = math.ceil((high - 0.5) * cell + reach / 2) + 2
            a = min(max(first, 0), n - 1)
            found.append((a, min(max(last, a + 1), n)))
        return tuple(found)

    def memory(self, box: Box) -> int:
        """Bytes that a tile of this many pixels takes at most, as far as can be told beforehand."""
        scorer, (_, _, bands) = self.scorer, self.source.shape
        pixels, most = 0, 0.0
        for index in range(len(scorer.levels)):
            windows = self.windows_of(index, box, 1)
            cells = self.looked_at(index, windows)
            (a, b), (c, d) = self.pixels(index, cells)
            pixels = max(pixels, (b - a) * (d - c))
            number = math.prod(high - low for low, high in cells)
            # Averages along one axis; maps, and what their contrast takes; scores of every angle, and their maxima.
            along = (cells[0][1] - cells[0][0]) * (d - c) * max(bands, len(scorer.eye.mix)) * 8
            most = max(most, number * 4 * (10 * scorer.eye.maps + bands + 3 * len(scorer.angles) + 6) + along)
        mixed = bands > len(scorer.eye.mix)
        each = 2 * self.source.bytes_of_pixel + (8 if self.source.dtype.itemsize > 2 else 4) * bands
        each += (4 * len(scorer.eye.mix) * 3 if mixed else 4 * bands) + (2 * bands + 5 if self._may_miss else 0)
        return int(pixels * each + most) + _FIXED + scorer.memory

    @property
    def _may_miss(self) -> bool:
        return self.source.dtype_of_values.kind == "f"

    def grid(self, memory: int) -> Grid:
        """Cut the picture into the largest tiles that fit into a budget of bytes."""
        high, wide, _ = self.source.shape
        budget = int(memory * SHARE)
        pieces = self.source.pieces
        strips = pieces[1] >= wide and pieces[0] < high

        def box(edge: int) -> Box:
            size = (edge, wide) if strips and self.memory(((0, edge), (0, wide))) <= budget else (edge, edge)
            start = [max(0, (n - s) // 2) for n, s in zip((high, wide), size, strict=True)]
            return tuple((a, min(a + s, n)) for a, s, n in zip(start, size, (high, wide), strict=True))

        low, most = 16, max(high, wide)
        if self.memory(box(low)) > budget:
            raise ValueError(
                f"memory: {memory / 2**20:,.0f} MiB are not enough to look at one place of {self.source.name} at the "
                f"largest scale; it takes {self.memory(box(low)) / SHARE / 2**20:,.0f} MiB"
            )
        while low < most:
            middle = (low + most + 1) // 2
            low, most = (middle, most) if self.memory(box(middle)) <= budget else (low, middle - 1)
        tile = [b - a for a, b in box(low)]
        for axis, n in enumerate((high, wide)):
            if tile[axis] < n:
                unit = pieces[axis] if tile[axis] >= 2 * pieces[axis] else 1
                tile[axis] = max(tile[axis] // unit * unit, 1)
        return grid((high, wide), tile)

    def windows_of(self, index: int, box: Box, ring: int = 0) -> Box:
        """The windows of a level whose centres lie in a box of pixels, and a ring around them, as far as there are any.

        Boxes that cut a picture cut the windows of every level into parts, each in one of them.
        """
        template, found = self.scorer.template, []
        pitch = template.pitch(self.scorer.levels[index])
        for axis, ((low, high), n, count) in enumerate(
            zip(box, self.source.shape[:2], self.places(index), strict=True)
        ):
            first = 0 if low == 0 else math.ceil(low / pitch - template.first(axis) - 1e-9)
            last = count if high == n else math.ceil(high / pitch - template.first(axis) - 1e-9)
            first, last = min(max(first, 0), count), min(max(last, 0), count)
            found.append((max(first - ring, 0), min(last + ring, count)) if first < last else (first, first))
        return tuple(found)

    # ----------------------------------------------------------------------------------------------------- computing

    def picture(self, pixels: Box) -> Picture:
        """Read some pixels as a picture with the statistics of the whole."""
        window = self.source.values(*pixels)
        if window.dtype.kind == "f" and window.dtype.itemsize >= 4:
            largest = float(np.abs(window).max(where=np.isfinite(window), initial=0))
            if largest > LARGEST_VALUE:
                raise ValueError(
                    f"{self.source.name}: has values as large as {largest:.3g}, more than {LARGEST_VALUE:g}; if they "
                    "stand for missing pixels, declare them as no-data, else scale the image"
                )
        return Picture(window, self.scorer.eye.mix, self.statistics)

    def scores(self, index: int, windows: Box, picture: Picture, pixels: Box) -> tuple[Floats, Any]:
        """Return the best score over the angles of some windows of a level, and the index of its angle."""
        scorer, cell = self.scorer, self.cell(index)
        cells = self.looked_at(index, windows)
        (top, bottom), (left, right) = cells
        (y, _), (x, _) = pixels
        averages = picture.cells(cell, top * cell - y, left * cell - x, bottom - top, right - left)
        maps = see(averages, scorer.eye)
        # Only cells with their whole neighbourhood are right; where the picture ends, it is whole.
        pads, keep = [], []
        for axis, ((low, high), (a, _), n) in enumerate(zip(windows, cells, self.cells(index), strict=True)):
            first, last = scorer.template.covered(low, high, axis)
            pads.append((max(-first, 0), max(last - n, 0)))
            keep.append(slice(max(first, 0) - a, min(last, n) - a))
        return scorer.scores(maps[:, keep[0], keep[1]], pads, scorer.penalties[index])

    def candidates(self, box: Box, floor: float, most: int) -> Candidates:
        """Return the peaks of every level whose centres lie in a box of pixels."""
        scorer = self.scorer
        high, wide, _ = self.source.shape
        levels = [(index, self.windows_of(index, box)) for index in range(len(scorer.levels))]
        levels = [(index, inner) for index, inner in levels if all(a < b for a, b in inner)]
        found = []
        if levels:
            rings = {index: self.windows_of(index, box, 1) for index, _ in levels}
            seen = [self.pixels(index, self.looked_at(index, ring)) for index, ring in rings.items()]
            pixels = tuple((min(s[axis][0] for s in seen), max(s[axis][1] for s in seen)) for axis in (0, 1))
            picture = self.picture(pixels)
        for index, inner in levels:
            ring, level = rings[index], scorer.levels[index]
            scores, which = self.scores(index, ring, picture, pixels)
            rows, columns = peaks(scores, floor, scores.size)
            keep = np.ones(len(rows), bool)
            for place, (a, b), (start, _) in zip((rows, columns), inner, ring, strict=True):
                keep &= (place + start >= a) & (place + start < b)
            rows, columns = rows[keep], columns[keep]
            value, angles = scores[rows, columns].astype(np.float64), np.asarray(scorer.angles)[which[rows, columns]]
            rows, columns = rows + ring[0][0], columns + ring[1][0]
            centre = scorer.template.centre(rows, columns, level)
            boxes = clip(scorer.template.boxes(centre, scale_of(level), angles), wide, high)
            inside = np.all((centre > 0) & (centre < [wide, high]), axis=1)
            found.append(best(Candidates(boxes, value, np.full(len(rows), level), angles, rows, columns), most, inside))
        return joined(found)

    def score_map(self, box: Box) -> Floats:
        """Return the best score over levels and angles of a thing centred at each pixel of a box."""
        scorer, template = self.scorer, self.scorer.template
        (y0, y1), (x0, x1) = box
        windows, seen = [], []
        for index in range(len(scorer.levels)):
            ends: list[Interval] = []
            for axis, ((low, high), count) in enumerate(zip(box, self.places(index), strict=True)):
                _, before = neighbours(low, high, count, template.pitch(scorer.levels[index]), template.first(axis))
                ends.append((int(before.min()), min(int(before.max()) + 2, count)))
            windows.append(tuple(ends))
            seen.append(self.pixels(index, self.looked_at(index, windows[-1])))
        pixels = tuple((min(s[axis][0] for s in seen), max(s[axis][1] for s in seen)) for axis in (0, 1))
        picture = self.picture(pixels)
        result = np.full((y1 - y0, x1 - x0), -np.inf, np.float32)
        for index, held in enumerate(windows):
            scores, _ = self.scores(index, held, picture, pixels)
            rows, columns = self.places(index)
            pitch = template.pitch(scorer.levels[index])
            down = interpolation(y1 - y0, rows, pitch, template.first(0), y0, held[0])
            across = interpolation(x1 - x0, columns, pitch, template.first(1), x0, held[1])
            np.maximum(result, down @ (across @ scores.T).T, out=result)
        return result


def _statistics(source: Source, down: int, across: int) -> tuple[NDArray[np.float64], float] | None:
    """The statistics of every so-many-th pixel; None if they are of one colour, or none is finite."""
    high, wide, _ = source.shape
    rows = [source.values((row, row + 1), (0, wide))[:, ::across] for row in range(0, high, down)]
    sample = np.concatenate(rows)
    if sample.dtype.kind == "f":
        whole = np.isfinite(sample).all(axis=2)
        if not whole.any():
            return None
        seen = sample[whole]
    else:
        seen = sample.reshape(-1, sample.shape[2])
    if (seen == seen[:1]).all():
        return None
    return channel_statistics(seen[None])


def grid(size: Span, tile: Sequence[int]) -> Grid:
    """Cut a picture into tiles."""
    cuts = tuple(((*range(0, n, t), n),) for n, t in zip(size, tile, strict=True))
    return Grid(tuple(tile), cuts)


def joined(found: Sequence[Candidates]) -> Candidates:
    """Return candidates one after the other."""
    names = Candidates.__dataclass_fields__
    if not found:
        none = np.zeros(0, np.int64)
        return Candidates(np.zeros((0, 4)), np.zeros(0), none, np.zeros(0), none, none)
    return Candidates(*(np.concatenate([getattr(f, name) for f in found]) for name in names))


def best(found: Candidates, most: int, keep: NDArray[np.bool_] | None = None) -> Candidates:
    """Return the best candidates, at most so many."""
    if keep is not None:
        found = found[keep]
    return found if len(found) <= most else found[np.argpartition(-found.scores, most)[:most]]


def all_candidates(
    sweep: Sweep, cut: Grid, floor: float, progress: Callable[[int, int], None] | None = None, client: Any = None
) -> Candidates:
    """Return the peaks of a whole source at every level, in the order in which a sweep of the whole gives them."""
    high, wide, _ = sweep.source.shape
    most = most_peaks(high, wide)
    kept: list[list[Candidates]] = [[] for _ in sweep.scorer.levels]
    for done, found in enumerate(_each(sweep, cut, floor, most, client), 1):
        for level, parts in zip(sweep.scorer.levels, kept, strict=True):
            parts.append(found[found.levels == level])
            if sum(len(part) for part in parts) > 4 * most:
                parts[:] = [best(joined(parts), most)]
        if progress is not None:
            progress(done, len(cut))
    levels = [best(joined(parts), most) for parts in kept]
    return joined([level[np.lexsort((level.columns, level.rows))] for level in levels])


def _each(sweep: Sweep, cut: Grid, floor: float, most: int, client: Any) -> Iterator[Candidates]:
    boxes = [box for (box,) in cut]
    if client is None:
        yield from (sweep.candidates(box, floor, most) for box in boxes)
        return
    from wherever.distributed import each_there

    for _, found in each_there(client, functools.partial(sweep.candidates, floor=floor, most=most), boxes):
        yield found


# ------------------------------------------------------------------------------------------------------------- as a map


class ScoreWork:
    """The score map of a detector, as work for `wherever.tiles.map`."""

    step = (1.0, 1.0)
    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, detector: Detector, source: Source) -> None:
        self.detector = detector
        self.sweep = detector.sweep(source)
        self.shape = (*source.shape[:2], 1)

    def grid(self, memory: int) -> Grid:
        """Cut the map into the largest tiles that fit into a budget of bytes."""
        # Beside the sweep there are the map of one level, the best, and probabilities in float64.
        pixels = self.sweep.source.bytes_of_pixel + 4 * self.shape[2] + 12
        fixed = _FIXED / SHARE
        return self.sweep.grid(int(fixed + (memory - fixed) * pixels / (pixels + 28)))

    def cut(self, tile: Sequence[int]) -> Grid:
        """Cut the map into tiles."""
        return grid(self.shape[:2], tile)

    def compute(self, box: Box) -> NDArray[Any]:
        """Compute a box of the map, (rows, columns, 1)."""
        found = self.detector._probability(self.sweep.score_map(box))
        return found.astype(np.float32)[:, :, None]

    def fingerprint(self) -> str:
        """Return what tells this map from others."""
        return f"{self.detector.fingerprint()} {self.sweep.source.fingerprint()}"


def work(detector: Detector, source: Source, prepare: Any = None) -> ScoreWork:
    """Make work of a detector: its score map."""
    if prepare is not None:
        raise ValueError("prepare: a detector normalises pictures itself; leave it out")
    return ScoreWork(detector, source)
