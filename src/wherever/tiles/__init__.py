"""Exact tiling of anything translation invariant: images cut anywhere, computed apart and joined."""

from wherever.files.maps import salvage
from wherever.files.sources import Source
from wherever.files.windows import open_window
from wherever.tiles.axes import Resample, Spread, Window
from wherever.tiles.graph import Graph, Node, NotTranslationInvariantError, Operation, ReceptiveField, Where
from wherever.tiles.mapping import Peaks, anywhere, each, histogram, map, peaks  # noqa: A004  # as people call it

__all__ = [
    "Graph",
    "Node",
    "NotTranslationInvariantError",
    "Operation",
    "Peaks",
    "ReceptiveField",
    "Resample",
    "Source",
    "Spread",
    "Where",
    "Window",
    "anywhere",
    "each",
    "histogram",
    "map",
    "open_window",
    "peaks",
    "salvage",
]
