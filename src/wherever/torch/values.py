"""What stands for values of a traced network while its graph of local operations is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from wherever.tiles.graph import Where


class Image(NamedTuple):
    """A value that has places: a node of the graph, and where its spatial axes are, counted from the end."""

    position: int
    axes: tuple[int, ...]


class Several(NamedTuple):
    """A value of several parts, each computed from the same images."""

    images: tuple[Image, ...]
    compute: Callable[[list[Any], Where], Any]
    axes: tuple[int, ...]


class Output(NamedTuple):
    """Stands in the structure of results for one of the outputs."""

    number: int
