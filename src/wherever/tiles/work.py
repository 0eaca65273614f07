"""What is computed in tiles, made of a function, a model or a detector: sizes, what a tile costs, and one tile."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wherever.files.sources import Source
from wherever.tiles.axes import Window
from wherever.tiles.graph import Box, Graph, Node, Operation, Where
from wherever.tiles.grid import Grid, fitting

Array = npt.NDArray[Any]
Prepare = Callable[[Array], Array]

# Who makes work of what, by the full name of a class: a floor above this one, imported when it is needed.
_MAKERS = {
    "torch.nn.modules.module.Module": "wherever.torch.tiled",
    "wherever.find.detector.Detector": "wherever.find.tiled",
}
_PROBED = 64  # rows and columns of the window on which a function is tried, beside its halo


class Work(Protocol):
    """A map of one source: something to compute at every place of it, or at every so-many-th.

    Attributes
    ----------
    shape : (int, int, int)
        Rows, columns and bands of the map.
    dtype : dtype
    step : (float, float)
        Pixels of the source for each place of the map, down and across.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    step: tuple[float, float]

    def grid(self, memory: int) -> Grid:
        """Cut the map into the largest tiles that fit into a budget of bytes."""
        ...

    def cut(self, tile: Sequence[int]) -> Grid:
        """Cut the map into tiles of about a size."""
        ...

    def compute(self, box: Box) -> Array:
        """Compute a box of the map, (rows, columns, bands)."""
        ...

    def fingerprint(self) -> str:
        """Return what tells this map from others."""
        ...


Reduce = Callable[[Work, Box], Any]  # what is made of a box of a map; it may travel to other processes


def compute(work: Work, box: Box) -> Array:
    """Compute a box of a map: the reduction that keeps all of it."""
    return work.compute(box)


@dataclass(frozen=True)
class Recipe:
    """How to make work: what travels to other processes.

    Attributes
    ----------
    what : function, model or detector
    source : Source
    prepare : callable(window) -> window, optional
        Applied to windows (rows, columns, bands) of the source: place by place.
    options : dict
        For whoever makes the work: halo, output, ...
    """

    what: Any
    source: Source
    prepare: Prepare | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def work(self) -> Work:
        """Make the work."""
        for kind in type(self.what).__mro__:
            module = _MAKERS.get(f"{kind.__module__}.{kind.__qualname__}")
            if module is not None:
                made: Work = importlib.import_module(module).work(self.what, self.source, self.prepare, **self.options)
                return made
        if not callable(self.what):
            raise TypeError(
                f"what: expected a function of arrays, a PyTorch model or a Detector, got {type(self.what).__name__}"
            )
        return function_work(self.what, self.source, self.prepare, **self.options)


class GraphWork:
    """A graph of local operations on windows of a source."""

    def __init__(
        self,
        graph: Graph,
        source: Source,
        *,
        bands: int,
        dtype: Any,
        load: Callable[[Array], Any],
        unload: Callable[[Any], Array],
        run: Callable[[Any, Sequence[Box]], list[Any]] | None = None,
        identity: str = "",
    ) -> None:
        self.graph, self.source = graph, source
        high, wide = graph.nodes[graph.outputs[0]].size
        self.shape, self.dtype = (high, wide, bands), np.dtype(dtype)
        self._load, self._unload, self._run, self._identity = load, unload, run or graph.run, identity
        step = graph.step()[0]
        self.step = (float(step[0]), float(step[1])) if step is not None else (1.0, 1.0)

    def grid(self, memory: int) -> Grid:
        """Cut the map into the largest tiles that fit into a budget of bytes."""
        down, across = self.step
        # Beside the computation there are the window as it was read, and converted, and the tile of the map twice.
        read = (self.source.bytes_of_pixel + 2 * self.source.shape[2] * 4) * max(1, round(down * across))
        held = read + 2 * self.shape[2] * self.dtype.itemsize
        pieces = [max(1, round(n / s)) for n, s in zip(self.source.pieces, self.step, strict=True)]
        return fitting(self.graph, memory, pieces, held)

    def cut(self, tile: Sequence[int]) -> Grid:
        """Cut the map into tiles of about a size."""
        return Grid.of(self.graph, tile)

    def compute(self, box: Box) -> Array:
        """Compute a box of the map, (rows, columns, bands)."""
        (found,) = self._run(lambda part: self._load(self.source.values(*part)), [box])
        return self._unload(found)

    def fingerprint(self) -> str:
        """Return what tells this map from others."""
        return f"{self._identity} {self.source.fingerprint()}"


def function_work(
    function: Callable[[Array], Array],
    source: Source,
    prepare: Prepare | None,
    *,
    halo: int | Sequence[int] | None = None,
) -> GraphWork:
    """Make work of a function of arrays (H, W) or (H, W, C) that gives at each place what follows from a halo."""
    if halo is None:
        raise ValueError(
            "halo: how many pixels around a place the function looks at is not known; give it, for example "
            "halo=math.ceil(4 * sigma) for scipy.ndimage's gaussian_filter (0 if it treats every place by itself)"
        )
    reach = (halo, halo) if isinstance(halo, int) else tuple(halo)
    if len(reach) != 2 or not all(isinstance(n, int) and n >= 0 for n in reach):
        raise ValueError(f"halo: {halo!r} must be a whole number from 0, or two of them (rows, columns)")
    high, wide, _ = source.shape

    def applied(window: Array) -> Array:
        window = window if prepare is None else np.asarray(prepare(window))
        given = window[:, :, 0] if window.ndim == 3 and window.shape[2] == 1 else window
        found = np.asarray(function(given))
        if found.shape[:2] != given.shape[:2] or found.ndim not in (2, 3):
            raise ValueError(
                f"what: the function made {found.shape} of {given.shape}; it must keep rows and columns (H, W) and may "
                "add or change bands"
            )
        return found if found.ndim == 3 else found[:, :, None]

    around = [min(n, _PROBED + 2 * r) for n, r in zip((high, wide), reach, strict=True)]
    tried = applied(source.values((0, around[0]), (0, around[1])))

    def compute(arrays: list[Any], where: Where) -> Array:
        (top, _), (left, _) = where.covers[0]
        (a, b), (c, d) = where.box
        return applied(arrays[0])[a - top : b - top, c - left : d - left]

    rules = tuple(Window(2 * r + 1, before=r, boundary="cut") for r in reach)
    number = source.dtype_of_values.itemsize
    graph = Graph([Node("the image", None, (), source.shape, (-3, -2), number)], (1,))
    graph.add(
        Node("the function", Operation(compute, rules), (0,), (high, wide, tried.shape[2]), (-3, -2), tried.itemsize)
    )
    return GraphWork(
        graph,
        source,
        bands=tried.shape[2],
        dtype=tried.dtype,
        load=lambda window: window,
        unload=lambda array: array,
        identity=f"{identity_of(function)} {identity_of(prepare)} {reach}",
    )


def identity_of(function: Any) -> str:
    """Return a hash of a function: its name, its code and what it was given beforehand."""
    parts: list[Any] = []
    while isinstance(function, functools.partial):
        parts.append((function.args, sorted(function.keywords.items())))
        function = function.func
    code = getattr(function, "__code__", None)
    if code is not None:
        parts += [code.co_code, repr(code.co_consts), code.co_names, function.__defaults__]
        parts += [cell.cell_contents for cell in function.__closure__ or () if _is_plain(cell)]
    elif not inspect.isroutine(function):
        parts.append(function)
    parts.append((getattr(function, "__module__", ""), getattr(function, "__qualname__", "")))
    digest = hashlib.sha256()
    for part in parts:
        try:
            digest.update(pickle.dumps(part))
        except Exception:  # what cannot be pickled is told by its description, which differs at worst in every run
            digest.update(repr(part).encode())
    return digest.hexdigest()


def _is_plain(cell: Any) -> bool:
    try:
        return isinstance(cell.cell_contents, int | float | str | bytes | tuple | np.ndarray)
    except ValueError:  # an empty cell
        return False
