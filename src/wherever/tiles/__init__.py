"""Exact tiling of anything translation invariant: images cut anywhere, computed apart and joined."""

from wherever.tiles.axes import Resample, Spread, Window
from wherever.tiles.graph import Graph, Node, NotTranslationInvariantError, Operation, ReceptiveField, Where

__all__ = [
    "Graph",
    "Node",
    "NotTranslationInvariantError",
    "Operation",
    "ReceptiveField",
    "Resample",
    "Spread",
    "Where",
    "Window",
]
