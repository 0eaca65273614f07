"""Anything translation invariant applied to pictures of any size, tile by tile: into arrays, into files, or reduced."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from wherever.files.georeference import Georeference
from wherever.files.maps import SUFFIXES, MapFile
from wherever.files.sources import Source
from wherever.files.windows import open_window
from wherever.tiles.graph import Box
from wherever.tiles.grid import Grid, as_bytes
from wherever.tiles.work import Prepare, Recipe, Reduce, Work, compute

Array = npt.NDArray[Any]
Progress = bool | Callable[[int, int], None]

_STRIP = 256  # rows that are compared at a time


def apply(
    what: Any,
    source: str | Path | npt.ArrayLike | Source,
    *,
    out: str | Path | Array | None = None,
    memory: int | float | str = "2 GiB",
    tile: int | Sequence[int] | None = None,
    prepare: Prepare | None = None,
    bands: Sequence[int] | None = None,
    resume: bool = True,
    progress: Progress = False,
    client: Any = None,
    **options: Any,
) -> Array | Path:
    """Apply a function, a model or a detector to a picture of any size: the numbers of the whole, in bounded memory.

    Also called ``wherever.tiles.map``.

    Parameters
    ----------
    what : callable, torch.nn.Module or wherever.Detector
        A function of arrays (H, W) or (H, W, C) that keeps rows and columns, with `halo`; a PyTorch model of images
        (N, C, H, W) in evaluation mode, whose halo follows from its layers; a detector, whose score map is computed.
    source : str, Path, array_like (H, W) or (H, W, C), or Source
        What `wherever.files.windows.open_window` opens: TIFF, ENVI, Zarr, .npy, pictures.
    out : str, Path or array, optional
        Where the map goes: a file .tif, .zarr or .npy, or an array (H, W, bands), maybe mapped into memory. By
        default a new array.
    memory : int or str
        What a tile may take, in bytes or as "2 GiB".
    tile : int or (int, int), optional
        Size of a tile of the map, instead of one that follows from `memory`.
    prepare : callable(window) -> window, optional
        Applied to windows (rows, columns, bands) before a function or model sees them, place by place, for example to
        scale values. A model is given float32 (or the type of its weights) in any case.
    bands : sequence of int, optional
        Use only these bands of the source, counted from 0.
    resume : bool
        Go on from what an interrupted run with the same `out` left in `OUT.parts`, if everything else is the same.
    progress : bool or callable(done, total)
        Show a bar on stderr, or be told.
    client : distributed.Client or str, optional
        Compute tiles on a Dask cluster, which reads the source itself; an address will do.
    halo : int or (int, int)
        Of a function: how many pixels around a place it looks at. At the image's own border a function sees an image
        that ends there, as it would in the whole.
    pointwise, output : optional
        Of a model: see `wherever.torch.tiled`; which of several results is meant.

    Returns
    -------
    array or Path
        (H, W), or (H, W, bands) of more than one; or the file that was written.

    Raises
    ------
    ValueError, TypeError, OSError
        Naming the argument or the file, what was given, and what is possible. What was computed before a file
        could not be read or written is kept for the next run, and `wherever.tiles.salvage` makes a file of it.

    Notes
    -----
    Missing pixels (the no-data value of a file) are NaN to functions and models: places that see one are NaN, unless
    `prepare` fills them. A detector takes them as missing.

    Examples
    --------
    >>> import numpy as np
    >>> from wherever import ndimage
    >>> image = np.random.default_rng(0).random((300, 200), np.float32)
    >>> smooth = map(lambda part: ndimage.uniform_filter(part, 5), image, halo=2, tile=64)
    >>> bool(np.allclose(smooth, ndimage.uniform_filter(image, 5), atol=1e-6))
    True
    """
    if isinstance(out, str | Path) and isinstance(source, str | Path) and Path(source).resolve() == Path(out).resolve():
        raise ValueError(f"out: {out} is the source itself; choose another name")
    with opened(source, bands) as opening:
        recipe = Recipe(what, opening, prepare, options)
        work = recipe.work()
        grid = grid_of(work, tile, memory)
        if isinstance(out, str | Path):
            return _into_file(recipe, work, grid, Path(out), resume, progress, client)
        target = np.empty(work.shape, work.dtype) if out is None else _checked(out, work)
        for _, ((rows, columns),), values in computed(recipe, work, grid, progress, client):
            target[slice(*rows), slice(*columns)] = values
    if out is not None:
        return out
    return target if work.shape[2] > 1 else target[:, :, 0]


map = apply  # noqa: A001  # the name that it has in wherever.tiles


@contextlib.contextmanager
def opened(source: str | Path | npt.ArrayLike | Source, bands: Sequence[int] | None = None) -> Iterator[Source]:
    """Open a picture, and close it if it was opened here."""
    found = open_window(source, bands)
    try:
        yield found
    finally:
        if not isinstance(source, Source):
            found.close()


def grid_of(work: Work, tile: int | Sequence[int] | None, memory: int | float | str) -> Grid:
    """Return the tiles of some work: of a size, or as large as a budget allows."""
    if tile is None:
        return work.grid(as_bytes(memory))
    size = (tile, tile) if isinstance(tile, int) else tuple(tile)
    if len(size) != 2 or not all(isinstance(n, int | np.integer) and n > 0 for n in size):
        raise ValueError(f"tile: {tile!r} must be a whole number above 0, or two of them (rows, columns)")
    return work.cut(size)


def computed(
    recipe: Recipe,
    work: Work,
    grid: Grid,
    progress: Progress = False,
    client: Any = None,
    skip: frozenset[int] = frozenset(),
    reduce: Reduce | None = None,
) -> Iterator[tuple[int, tuple[Box, ...], Array]]:
    """Compute the tiles of a grid, in any order: their numbers, boxes and values (rows, columns, bands).

    With `reduce`, what it makes of the work and the box of a tile stands for the values.
    """
    todo = [(number, boxes) for number, boxes in enumerate(grid) if number not in skip]
    if client is not None:
        from wherever.distributed import computed_there

        source: Iterator[tuple[int, tuple[Box, ...], Array]] = computed_there(client, recipe, todo, reduce)
    else:
        one = reduce or compute
        source = ((number, boxes, one(work, boxes[0])) for number, boxes in todo)
    with telling(progress, len(grid)) as tell:
        tell(len(grid) - len(todo), len(grid))
        for done, item in enumerate(source, len(grid) - len(todo) + 1):
            yield item
            tell(done, len(grid))


@contextlib.contextmanager
def telling(progress: Progress, total: int) -> Iterator[Callable[[int, int], None]]:
    """Give a function to be told of progress: a bar on stderr, the caller's own, or one that does nothing."""
    if callable(progress):
        yield progress
    elif not progress or total < 2:
        yield lambda done, total: None
    else:
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("tiles", total=total)
            yield lambda done, total: bar.update(task, completed=done)


def _checked(out: Any, work: Work) -> Array:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a file name ({', '.join(SUFFIXES)}) or an array, got {type(out).__name__}")
    if out.shape not in (work.shape, work.shape[:2] if work.shape[2] == 1 else work.shape):
        raise ValueError(f"out: shape {out.shape}, but the map has shape {work.shape}")
    return out if out.ndim == 3 else out[:, :, None]


def _into_file(
    recipe: Recipe, work: Work, grid: Grid, out: Path, resume: bool, progress: Progress, client: Any
) -> Path:
    source = recipe.source
    place = _placed(source.georeference, work.step)
    spacing = source.spacing and (source.spacing[0] * work.step[1], source.spacing[1] * work.step[0])
    key = f"{work.fingerprint()} {grid.cuts}"
    target = MapFile(out, work.shape, work.dtype, key, resume=resume, georeference=place, spacing=spacing)
    try:
        for number, ((rows, columns),), values in computed(recipe, work, grid, progress, client, target.done):
            target.put(number, rows, columns, values)
    except BaseException:
        target.close()
        raise
    return target.finish()


def _placed(place: Georeference | None, step: tuple[float, float]) -> Georeference | None:
    if place is None or step == (1.0, 1.0):
        return place
    a, b, c, d, e, f = place.affine
    down, across = step
    return Georeference((a * across, b * down, c, d * across, e * down, f), place.epsg, place.tags)


# ---------------------------------------------------------------------------------------- what is known after one look


def each(
    what: Any,
    source: str | Path | npt.ArrayLike | Source,
    *,
    memory: int | float | str = "2 GiB",
    tile: int | Sequence[int] | None = None,
    prepare: Prepare | None = None,
    bands: Sequence[int] | None = None,
    progress: Progress = False,
    client: Any = None,
    **options: Any,
) -> Iterator[tuple[Box, Array]]:
    """Go through a map tile by tile, without keeping it: for reductions of any kind.

    Parameters are those of `map`.

    Yields
    ------
    box : ((int, int), (int, int))
        First and last (exclusive) row and column.
    values : array (rows, columns, bands)
    """
    parts: dict[str, Any] = {"memory": memory, "tile": tile, "prepare": prepare, "bands": bands}
    yield from _reduced(what, source, None, progress=progress, client=client, **parts, **options)


def _reduced(
    what: Any,
    source: str | Path | npt.ArrayLike | Source,
    reduce: Reduce | None,
    *,
    memory: int | float | str = "2 GiB",
    tile: int | Sequence[int] | None = None,
    prepare: Prepare | None = None,
    bands: Sequence[int] | None = None,
    progress: Progress = False,
    client: Any = None,
    **options: Any,
) -> Iterator[tuple[Box, Any]]:
    """Go through a map tile by tile: boxes, and what a reduction makes of them where they are computed."""
    with opened(source, bands) as opening:
        recipe = Recipe(what, opening, prepare, options)
        work = recipe.work()
        for _, boxes, values in computed(recipe, work, grid_of(work, tile, memory), progress, client, reduce=reduce):
            yield boxes[0], values


@dataclass(frozen=True)
class Peaks:
    """Local maxima of a map, best first: rows and columns (n,) of places, and values (n,)."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    values: Array

    def __len__(self) -> int:
        return len(self.values)


def peaks(
    what: Any,
    source: str | Path | npt.ArrayLike | Source,
    *,
    threshold: float = -math.inf,
    radius: int = 1,
    most: int | None = None,
    band: int = 0,
    **options: Any,
) -> Peaks:
    """Return the places where a map is at least `threshold`, and nowhere larger within `radius` rows and columns.

    The map itself is not kept. Where neighbouring places are equal, all of them are peaks. Other parameters are
    those of `each`.

    Parameters
    ----------
    threshold : float
    radius : int
    most : int, optional
        The best so many only.
    band : int
        Which band of the map.
    """
    if not isinstance(radius, int) or radius < 1:
        raise ValueError(f"radius: {radius!r} must be a whole number from 1")
    found: list[Array] = []
    for _, table in _reduced(what, source, _PeaksOf(radius, threshold, band), **options):
        found.append(table)
        if most is not None and sum(len(f) for f in found) > 4 * most + 1000:
            found = [_best(found, most)]
    kept = _best(found, most)
    return Peaks(kept["row"].astype(np.int64), kept["column"].astype(np.int64), np.array(kept["value"]))


def _best(found: Sequence[Array], most: int | None) -> Array:
    table = np.concatenate(found)
    # In the order of the image where values are equal, however it was cut.
    order = np.lexsort((table["column"], table["row"], -table["value"].astype(np.float64)))
    kept: Array = table[order[:most]]
    return kept


def histogram(
    what: Any,
    source: str | Path | npt.ArrayLike | Source,
    bins: npt.ArrayLike,
    *,
    band: int = 0,
    **options: Any,
) -> npt.NDArray[np.int64]:
    """Return how many places of a map fall between edges of bins (n + 1,), as `numpy.histogram` counts; (n,).

    The map itself is not kept. Other parameters are those of `each`.
    """
    edges = np.asarray(bins, np.float64)
    if edges.ndim != 1 or len(edges) < 2 or (np.diff(edges) <= 0).any():
        raise ValueError(f"bins: {bins!r} must be at least two numbers, rising")
    counts = np.zeros(len(edges) - 1, np.int64)
    for _, part in _reduced(what, source, _Counts(edges, band), **options):
        counts += part
    return counts


def anywhere(
    what: Any,
    source: str | Path | npt.ArrayLike | Source,
    threshold: float,
    *,
    band: int = 0,
    **options: Any,
) -> bool:
    """Tell whether a map reaches a threshold at any place; ends at the first tile in which it does.

    The map itself is not kept. Other parameters are those of `each`.
    """
    return any(reached for _, reached in _reduced(what, source, _Reaches(threshold, band), **options))


# ------------------------------------------------------------------- what is made of a tile, where it was computed


@dataclass(frozen=True)
class _PeaksOf:
    """The peaks of a tile: a table of rows, columns and values."""

    radius: int
    threshold: float
    band: int

    def __call__(self, work: Work, box: Box) -> Array:
        wider = tuple(
            (max(0, low - self.radius), min(n, high + self.radius))
            for (low, high), n in zip(box, work.shape[:2], strict=True)
        )
        values = band_of(work, wider, self.band)
        (top, _), (left, _) = wider
        (a, b), (c, d) = box
        # A strip of rows after the other, with the rows around it, since several copies of it are compared.
        return np.concatenate(
            [
                self._strip(values, (low - top, min(low + _STRIP, b) - top), (c - left, d - left), (top, left))
                for low in range(a, b, _STRIP)
            ]
        )

    def _strip(self, values: Array, rows: tuple[int, int], columns: tuple[int, int], corner: tuple[int, int]) -> Array:
        before = min(self.radius, rows[0])
        part = values[rows[0] - before : rows[1] + self.radius]
        # NaN is no peak, nor does it hide one.
        known = np.where(np.isnan(part), -np.inf, part) if part.dtype.kind == "f" else part
        high = (known >= maximum_filter(known, 2 * self.radius + 1, mode="nearest")) & (known >= self.threshold)
        if part.dtype.kind == "f":
            high &= ~np.isnan(part)
        i, j = np.nonzero(high[before : before + rows[1] - rows[0], slice(*columns)])
        i, j = i + rows[0], j + columns[0]
        best = values[i, j]
        table = np.empty(len(i), [("row", np.int64), ("column", np.int64), ("value", best.dtype)])
        table["row"], table["column"], table["value"] = i + corner[0], j + corner[1], best
        return table


@dataclass(frozen=True)
class _Counts:
    """How many values of a tile fall between edges."""

    edges: npt.NDArray[np.float64]
    band: int

    def __call__(self, work: Work, box: Box) -> Array:
        seen = band_of(work, box, self.band)
        return np.histogram(seen[~np.isnan(seen)] if seen.dtype.kind == "f" else seen, self.edges)[0]


@dataclass(frozen=True)
class _Reaches:
    """Whether a tile reaches a threshold."""

    threshold: float
    band: int

    def __call__(self, work: Work, box: Box) -> bool:
        return bool((band_of(work, box, self.band) >= self.threshold).any())


def band_of(work: Work, box: Box, band: int) -> Array:
    """Compute one band of a box of a map, (rows, columns)."""
    if not 0 <= band < work.shape[2]:
        raise ValueError(f"band: {band} is not one of the map's {work.shape[2]}, counted from 0")
    return work.compute(box)[:, :, band]
