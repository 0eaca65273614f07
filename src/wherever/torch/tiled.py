"""A PyTorch model on images larger than memory: computed in tiles, with the results of the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wherever.files.sources import Source
from wherever.tiles.graph import Box, Graph, NotTranslationInvariantError, ReceptiveField
from wherever.tiles.grid import Grid, as_bytes, fitting
from wherever.tiles.work import Array, GraphWork, Prepare, identity_of
from wherever.torch.local_graphs import Network
from wherever.torch.values import Output

__all__ = ["Tiled", "tiled"]


def tiled(
    model: nn.Module,
    *,
    memory: int | float | str = "2 GiB",
    tile: int | Sequence[int] | None = None,
    pointwise: Sequence[Any] = (),
) -> Tiled:
    """Return a model that computes in tiles what another computes at once: the same numbers in bounded memory.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode, of one image (N, C, *S) with any number of spatial axes; not copied weights and all, but
        traced once (`torch.fx`). It may be a graph: skip connections, several resolutions, several results.
    memory : int or str
        What a tile may take, in bytes or as "2 GiB", beside the image and the results themselves.
    tile : int or sequence of int, optional
        Size of a tile of the (first) result in places, instead of one that follows from `memory`; rounded up to what
        the model's strides need.
    pointwise : sequence of functions and types of modules
        Of your own, that give at each place what follows from that place alone.

    Returns
    -------
    Tiled
        Called as the model is, without gradients. `tiled(model).map(file, out=...)` reads and writes files.

    Raises
    ------
    wherever.tiles.NotTranslationInvariantError
        When called, or made, naming the first operation that sees the whole image or is in training mode, and what to
        do about it.

    Notes
    -----
    Every layer is computed on just the part of its input that a tile needs, with padding only where the layer's own
    input ends: no layer sees zeros, or anything else, that it would not see in the whole image. Convolutions run on
    this engine, so that memory is bounded whatever the shapes of tiles; results agree with the model's to the accuracy
    of its type.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.MaxPool2d(2)).eval()
    >>> x = torch.randn(1, 1, 64, 64)
    >>> bool((tiled(model, tile=8)(x) - model(x)).abs().max() < 1e-6)
    True
    >>> print(tiled(model).field())
    sees 4 x 4, stride 2 x 2, from -1 x -1
    """
    return Tiled(model, memory=memory, tile=tile, pointwise=pointwise)


class Tiled(nn.Module):
    """A model computed in tiles: see `tiled`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        memory: int | float | str = "2 GiB",
        tile: int | Sequence[int] | None = None,
        pointwise: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        self.network = Network(model, pointwise)
        self.memory = as_bytes(memory)
        self.tile = tile
        self.eval()

    def graph(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Graph:
        """Return the graph of local operations for images of a shape (N, C, *S)."""
        return self.network.graph(shape, dtype or self._dtype)[0]

    @property
    def _dtype(self) -> torch.dtype:
        found = next((p.dtype for p in self.network.module.parameters() if p.is_floating_point()), torch.float32)
        return found

    @property
    def device(self) -> torch.device:
        """Where the model's weights are, and tiles are computed."""
        return next((p.device for p in self.network.module.parameters()), torch.device("cpu"))

    def field(self, shape: Sequence[int] | None = None, output: int = 0) -> ReceptiveField:
        """Return what the places of a result see of the image, far from its borders.

        Parameters
        ----------
        shape : sequence of int, optional
            (N, C, *S) of the images; matters only where resolutions depend on it.
        output : int
            Which result, if there are several.
        """
        return self.graph(shape or self._usual_shape()).field(output)

    def _usual_shape(self) -> tuple[int, ...]:
        first = next((m for m in self.network.module.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
        if first is None:
            raise ValueError("shape: the model has no convolution that tells the shape of its images; give (N, C, *S)")
        return 1, first.in_channels, *[256] * len(first.kernel_size)

    def forward(self, x: Tensor) -> Any:
        """Compute what the model computes of an image (N, C, *S), tile by tile, without gradients."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a Tensor, got {type(x).__name__}")
        graph, structure = self.network.graph(tuple(x.shape), x.dtype)
        grid = Grid.of(graph, self._tile(graph)) if self.tile is not None else fitting(graph, self.memory)
        results: list[Tensor] | None = None
        for boxes in grid:
            parts = self.compute(graph, lambda box: x[_index(box)], boxes)
            if results is None:
                shapes = [graph.nodes[p].shape for p in graph.outputs]
                results = [
                    torch.empty(s, dtype=part.dtype, device=x.device) for s, part in zip(shapes, parts, strict=True)
                ]
            for position, result, part, box in zip(graph.outputs, results, parts, boxes, strict=True):
                place: list[Any] = [slice(None)] * result.ndim
                for axis, interval in zip(graph.nodes[position].axes, box, strict=True):
                    place[axis] = slice(*interval)
                result[tuple(place)] = part
        return _filled(structure, results or [])

    def _tile(self, graph: Graph) -> tuple[int, ...]:
        spatial = len(graph.nodes[0].axes)
        tile = (self.tile,) * spatial if isinstance(self.tile, int) else tuple(self.tile or ())
        if len(tile) != spatial or not all(isinstance(n, int) and n > 0 for n in tile):
            raise ValueError(f"tile: {self.tile!r} must be a whole number above 0, or {spatial} of them")
        return tile

    def compute(self, graph: Graph, read: Any, boxes: Sequence[Box]) -> list[Tensor]:
        """Compute one tile: a box of each result of a graph."""
        device = self.device
        with torch.no_grad():
            return graph.run(lambda box: read(box).to(device), boxes)

    def map(self, source: Any, **options: Any) -> Any:
        """Apply the model to a picture of any size: `wherever.tiles.map`, with this model's memory and tiles."""
        from wherever.tiles.mapping import apply

        return apply(self, source, **{"memory": self.memory, "tile": self.tile} | options)

    def fingerprint(self) -> str:
        """Return a hash of what is computed: the traced program and all numbers in it."""
        digest = hashlib.sha256(self.network.module.code.encode())
        for name, value in sorted(self.network.module.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True) -> Tiled:
        """Refuse to train: normalisations would take statistics of tiles."""
        if mode:
            raise ValueError("a tiled model cannot be trained; train the original, and call tiled(model.eval()) again")
        return super().train(False)


def work(
    model: nn.Module, source: Source, prepare: Prepare | None, *, pointwise: Sequence[Any] = (), output: Any = None
) -> GraphWork:
    """Make work of a model for `wherever.tiles.map`: its result on windows of a source.

    Parameters
    ----------
    model : torch.nn.Module
        Of images (N, C, H, W), or one that `tiled` returned.
    source : Source
    prepare : callable(window) -> window, optional
    pointwise : sequence
        See `tiled`.
    output : int or str, optional
        Which result, where the model returns several.
    """
    own = model if isinstance(model, Tiled) else Tiled(model, pointwise=pointwise)
    dtype = own._dtype
    few = source.values((0, 1), (0, 1))
    channels = (few if prepare is None else np.asarray(prepare(few))).shape[2]

    def load(window: Array) -> Tensor:
        values = window if prepare is None else np.asarray(prepare(window))
        tensor = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]
        return tensor.to(device=own.device, dtype=dtype)

    try:
        graph, structure = own.network.graph((1, channels, *source.shape[:2]), dtype)
    except ValueError as error:
        if isinstance(error, NotTranslationInvariantError):
            raise
        raise ValueError(f"{source.name}: {source.shape[2]} bands, {error}") from error
    if output is not None and not isinstance(structure, Output):
        structure = structure[output]
    if not isinstance(structure, Output):
        raise ValueError("output: the model has several results; choose one by its name or number")
    graph.outputs = (graph.outputs[structure.number],)
    node = graph.nodes[graph.outputs[0]]
    if node.axes != (-2, -1) or len(node.shape) not in (3, 4):
        raise ValueError(f"output: a result of shape {node.shape}; it must be (N, C, H, W) or (N, H, W)")
    tried = graph.run(
        lambda box: torch.zeros(1, channels, *(b - a for a, b in box), dtype=dtype, device=own.device),
        [tuple((0, min(1, n)) for n in node.size)],
    )[0]

    def run(read: Any, boxes: Sequence[Box]) -> list[Tensor]:
        with torch.no_grad():
            return graph.run(read, boxes)

    def unload(result: Tensor) -> Array:
        result = result if result.ndim == 4 else result[:, None]
        return result[0].permute(1, 2, 0).cpu().numpy()

    return GraphWork(
        graph,
        source,
        bands=node.shape[1] if len(node.shape) == 4 else 1,
        dtype=unload(tried).dtype,
        load=load,
        unload=unload,
        run=run,
        identity=f"{own.fingerprint()} {identity_of(prepare)} {output}",
    )


def _index(box: Box) -> Any:
    """The index of a box in a tensor whose last axes are spatial."""
    return (..., *(slice(*interval) for interval in box))


def _filled(structure: Any, results: Sequence[Any]) -> Any:
    """The results in the structure in which the model returns them."""
    if isinstance(structure, Output):
        return results[structure.number]
    if isinstance(structure, dict):
        return {key: _filled(value, results) for key, value in structure.items()}
    if isinstance(structure, tuple | list):
        return type(structure)(_filled(value, results) for value in structure)
    return structure
