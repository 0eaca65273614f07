"""Traced networks as graphs of local operations: what each layer reads, and an error for what sees the whole image."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from wherever.tiles.axes import Places, Rule, Window
from wherever.tiles.graph import Graph, Node, NotTranslationInvariantError, Operation
from wherever.torch import local_layers as local
from wherever.torch.graphs import CONVOLUTIONS, NORMALISATIONS, traced
from wherever.torch.local_functions import HANDLERS
from wherever.torch.local_kinds import (
    GLOBAL_FUNCTIONS,
    GLOBAL_MODULES,
    IN_PLACE,
    OVER_AXES,
    POINTWISE,
    POINTWISE_MODULES,
    WAY_OUT,
    WAY_OUT_OF_GATES,
)
from wherever.torch.values import Image, Output, Several


class TorchBackend:
    """PyTorch's tensors."""

    def take(self, x: Tensor, axis: int, index: Places) -> Tensor:
        """Return the places of an axis, as a new tensor."""
        return x.index_select(axis, torch.from_numpy(np.ascontiguousarray(index)).to(x.device))

    def concatenate(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """Return tensors joined along an axis."""
        return torch.cat(list(parts), dim=axis)


class Network:
    """A model in evaluation mode, traced, from which graphs for images of any size are made.

    Parameters
    ----------
    model : torch.nn.Module
    pointwise : collection of functions and types of modules
        Of the model's own, that give at each place what follows from that place alone.
    """

    def __init__(self, model: nn.Module, pointwise: Sequence[Any] = ()) -> None:
        training = next((name or "the model" for name, m in model.named_modules() if m.training), None)
        if training is not None:
            raise NotTranslationInvariantError(
                f"model: {training} is in training mode, in which normalisations take statistics over the whole batch "
                "and dropout draws anew for every tile; call model.eval() first"
            )
        self.pointwise = tuple(pointwise)
        try:
            self.module = traced(model)
        except Exception as error:  # tracing runs the model's own program, which may raise anything
            first = str(error).splitlines()[0] if str(error) else ""
            raise NotTranslationInvariantError(
                f"model: it cannot be traced by torch.fx ({type(error).__name__}: {first}), so what it sees is not "
                "known; a program that asks for values of its input cannot be tiled: move that out of the model"
            ) from error
        for module in self.module.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        _follow_edits(self.module)
        self._meta = copy.deepcopy(self.module).to("meta")

    def graph(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Graph, Any]:
        """Return the graph for images of a shape (N, C, *S), and its results' structure: positions in place of tensors.

        Raises
        ------
        NotTranslationInvariantError
            Naming the first operation that sees the whole image, and what to do about it.
        ValueError
            If the model cannot take an image of this shape.
        """
        return Builder(self, tuple(shape), dtype).build()


def _follow_edits(module: fx.GraphModule) -> None:
    """Let what follows an operation that edits its argument use its result: none is edited in place any more."""
    nodes = list(module.graph.nodes)
    for node in nodes:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        edits = node.target in IN_PLACE or node.kwargs.get("inplace") is True
        if node.op == "call_method" and name.endswith("_") and not name.endswith("__"):
            edits, node.target = True, name[:-1]
        elif node.op == "call_function" and name.endswith("_") and hasattr(torch, name[:-1]):
            edits, node.target = True, getattr(torch, name[:-1])
        elif node.op == "call_function":
            node.target = IN_PLACE.get(node.target, node.target)
        if "inplace" in node.kwargs:
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
        if edits and node.args and isinstance(node.args[0], fx.Node):
            edited, before = node.args[0], set(nodes[: nodes.index(node) + 1])
            for user in [user for user in edited.users if user not in before]:
                user.replace_input_with(edited, node)
    module.graph.lint()
    module.recompile()


class Builder:
    """Goes through a traced model for images of one shape."""

    def __init__(self, network: Network, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if len(shape) < 3:
            raise ValueError(f"x: shape {shape}; it must be (N, C, *S), with at least one spatial axis")
        self.network, self.shape, self.dtype = network, shape, dtype
        self.modules: dict[Any, nn.Module] = dict(network.module.named_modules())
        self.graph = Graph([], (), TorchBackend())
        self.known: dict[fx.Node, Any] = {}
        run = fx.Interpreter(network._meta, garbage_collect_values=False)
        try:
            with torch.no_grad():
                run.run(torch.empty(shape, dtype=dtype, device="meta"))
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"model: it cannot take images of shape {shape}: {first}") from error
        names = {node.name: node for node in network.module.graph.nodes}
        self.meta: dict[fx.Node, Any] = {names[node.name]: value for node, value in run.env.items()}

    def build(self) -> tuple[Graph, Any]:
        """Return the graph and the structure of its outputs."""
        structure: Any = None
        for node in self.network.module.graph.nodes:
            if node.op == "output":
                structure = self._outputs(node.args[0])
            else:
                self.known[node] = self._value(node)
        return self.graph, structure

    def _outputs(self, results: Any) -> Any:
        positions: list[int] = []

        def place(node: fx.Node) -> Any:
            value = self.known[node]
            if isinstance(value, Several):
                raise NotTranslationInvariantError(f"{node.name}: several results as one; return them apart")
            if not isinstance(value, Image):
                return value
            if value.position not in positions:
                positions.append(value.position)
            return Output(positions.index(value.position))

        structure = fx.node.map_arg(results, place)
        if not positions:
            raise NotTranslationInvariantError("model: its result does not depend on the image")
        self.graph.outputs = tuple(positions)
        return structure

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if self.graph.nodes:
                if not node.args:
                    raise ValueError(
                        f"model: takes a further input, {node.name}; only models of one image can be tiled"
                    )
                return node.args[0]
            spatial = len(self.shape) - 2
            axes = tuple(range(-spatial, 0))
            return Image(self.graph.add(Node(node.name, None, (), self.shape, axes, self.dtype.itemsize)), axes)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.network.module)
        images = [n for n in node.all_input_nodes if isinstance(self.known[n], Image | Several)]
        if images and not _has_tensors(self.meta[node]):
            return self.meta[node]  # sizes and the like
        if not images:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.known[n])
            function: Any = node.target
            with torch.no_grad():
                if node.op == "call_module":
                    return self.modules[function](*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], function)(*args[1:], **kwargs)
                return function(*args, **kwargs)
        if node.op == "call_module":
            return self._module(node, self.modules[node.target])
        return self._function(node)

    # ---------------------------------------------------------------------------------------------------------- helpers

    def refuse(self, node: fx.Node, why: str, way_out: str | None = None) -> NotTranslationInvariantError:
        """Return the error that names an operation."""
        if node.op == "call_module":
            what = f"{node.target} ({type(self.modules[node.target]).__name__})"
        else:
            target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            what = f"{target} (at {node.name})"
        if way_out is None and why == "pools over the whole image" and self._comes_back(node):
            way_out = WAY_OUT_OF_GATES
        hint = way_out or WAY_OUT.get(why, "tile the layers before it")
        return NotTranslationInvariantError(f"{what} {why}, so an image cannot be computed in tiles: {hint}")

    def _comes_back(self, node: fx.Node) -> bool:
        """Whether what a pool gives meets an image that was not pooled."""
        after = {node}
        for later in list(node.graph.nodes):
            given = later.all_input_nodes
            if later.op == "output" or not after.intersection(given):
                continue
            if any(n not in after and n in self.known and isinstance(self.known[n], Image) for n in given):
                return True
            after.add(later)
        return False

    def size(self, node: fx.Node) -> tuple[int, ...]:
        """Spatial sizes of the image that a node is."""
        shape, image = self.meta[node].shape, self.known[node]
        return tuple(shape[axis] for axis in image.axes)

    def static(self, node: fx.Node, value: Any) -> Any:
        """Return an argument with every node in it replaced by its value; none may be an image."""

        def known(n: fx.Node) -> Any:
            if isinstance(self.known[n], Image | Several):
                raise self.refuse(node, "takes an image where a constant is expected")
            return self.known[n]

        return fx.node.map_arg(value, known)

    def arguments(self, node: fx.Node, names: Sequence[str], *defaults: Any) -> list[Any]:
        """Return the arguments after the image by their names, constants all of them."""
        given = dict(zip(names, defaults, strict=False))
        given |= dict(zip(names, node.args[1:], strict=False)) | {k: v for k, v in node.kwargs.items() if k in names}
        return [self.static(node, given.get(name)) for name in names]

    def the_image(self, node: fx.Node) -> tuple[fx.Node, Image]:
        """Return the first argument, which must be an image."""
        first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        if not isinstance(first, fx.Node) or not isinstance(self.known[first], Image):
            raise self.refuse(node, "takes an image in a place that is not known here")
        return first, self.known[first]

    def usual(self, node: fx.Node, spatial: int) -> tuple[fx.Node, Image]:
        """Return the image of a layer that expects (N, C, *S)."""
        first, image = self.the_image(node)
        if image.axes != tuple(range(-spatial, 0)) or len(self.meta[first].shape) != spatial + 2:
            raise self.refuse(node, "is applied to an image whose axes were moved, or to only some of them")
        return first, image

    def add(
        self, node: fx.Node, images: Sequence[Image], operation: Operation, axes: tuple[int, ...] | None = None
    ) -> Image:
        """Append a node to the graph."""
        axes = axes or images[0].axes
        result = self.meta[node]
        itemsize = result.dtype.itemsize
        shape = tuple(result.shape)
        positions = tuple(image.position for image in images)
        name = str(node.target) if node.op == "call_module" else node.name
        return Image(self.graph.add(Node(name, operation, positions, shape, axes, itemsize)), axes)

    # ---------------------------------------------------------------------------------------------------------- modules

    def _module(self, node: fx.Node, module: Any) -> Any:
        if isinstance(module, self.types()):
            return self.pointwise(node)
        if isinstance(module, CONVOLUTIONS):
            _, image = self.usual(node, len(module.kernel_size))
            if isinstance(module, CONVOLUTIONS[3:]):
                if len(node.args) > 1 or node.kwargs:
                    raise self.refuse(node, "is given an output_size", "give it output_padding instead")
                return self.add(node, [image], local.transposed(module))
            return self.add(node, [image], local.convolution(module))
        if isinstance(module, NORMALISATIONS):
            if module.running_mean is None:
                raise self.refuse(node, "takes statistics over the whole image", "track running statistics in training")
            self.usual(node, len(self.shape) - 2)
            return self.pointwise(node)
        if isinstance(module, nn.Linear):
            return self.last_axes(node, 1)
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            return self.last_axes(node, len(module.normalized_shape))
        if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Softmin | nn.GLU):
            return self._over(node, module.dim)
        if isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):
            spatial = int(type(module).__name__[-2])
            settings = (module.kernel_size, module.stride, module.padding, module.dilation)
            if module.return_indices:
                raise self.refuse(node, "returns the places of maxima")
            _, image = self.usual(node, spatial)
            return self.add(node, [image], local.max_pool(spatial, *settings))
        if isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d):
            spatial = int(type(module).__name__[-2])
            _, image = self.usual(node, spatial)
            divisor = getattr(module, "divisor_override", None)
            count = bool(module.count_include_pad)
            return self.add(
                node,
                [image],
                local.average_pool(spatial, module.kernel_size, module.stride, module.padding, count, divisor),
            )
        if isinstance(module, nn.Upsample):
            return self.resample(
                node, module.size, module.scale_factor, module.mode, module.align_corners, module.recompute_scale_factor
            )
        if isinstance(module, nn.PixelShuffle):
            _, image = self.usual(node, 2)
            return self.add(node, [image], local.pixel_shuffle(module.upscale_factor))
        if isinstance(module, nn.PixelUnshuffle):
            _, image = self.usual(node, 2)
            return self.add(node, [image], local.pixel_unshuffle(module.downscale_factor))
        for mode in ("zero", "constant", "reflection", "replication", "circular"):
            if type(module).__name__.lower().startswith(f"{mode}pad"):
                kind = {"zero": "constant", "reflection": "reflect", "replication": "replicate"}.get(mode, mode)
                return self.pad(node, list(module.padding), kind, getattr(module, "value", 0.0))
        why = next((why for kind, why in GLOBAL_MODULES.items() if isinstance(module, kind)), None)
        if why is not None:
            raise self.refuse(node, why)
        raise self._unknown(node)

    def types(self) -> tuple[type[nn.Module], ...]:
        """Modules that are pointwise."""
        return (*POINTWISE_MODULES, *(kind for kind in self.network.pointwise if isinstance(kind, type)))

    def _unknown(self, node: fx.Node) -> NotTranslationInvariantError:
        return self.refuse(
            node,
            "is not known to be the same at every place",
            "if it treats every place alike and by itself, name its type or function in pointwise=",
        )

    # -------------------------------------------------------------------------------------------------------- functions

    def _function(self, node: fx.Node) -> Any:
        target: Any = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        if any(target is own for own in self.network.pointwise):
            return self.pointwise(node)
        home = "torch" if isinstance(target, str) else str(getattr(target, "__module__", "") or "torch")
        if home.partition(".")[0] not in ("torch", "_operator", "math"):
            raise self._unknown(node)
        handler = HANDLERS.get(target) or (HANDLERS.get(name) if isinstance(name, str) else None)
        if handler is not None:
            return handler(self, node)
        if name in POINTWISE:
            return self.pointwise(node)
        if name in OVER_AXES:
            dims = self.arguments(node, ("dim",) if name != "norm" else ("p", "dim"))[-1]
            if name == "normalize":
                dims = self.arguments(node, ("p", "dim"), 2.0, 1)[-1]
            if name == "glu" and dims is None:
                dims = -1
            return self._over(node, dims)
        if name in GLOBAL_FUNCTIONS or name.startswith(("adaptive_", "fft_")):
            raise self.refuse(node, GLOBAL_FUNCTIONS.get(name, "pools over the whole image"))
        raise self._unknown(node)

    def operands(self, node: fx.Node) -> tuple[list[fx.Node], Callable[[list[Any]], Any]]:
        """Return the images of a node, and what it computes of them."""
        images = [n for n in node.all_input_nodes if isinstance(self.known[n], Image)]
        if len(images) < len([n for n in node.all_input_nodes if isinstance(self.known[n], Several)]) or not images:
            raise self.refuse(node, "takes several results as one")
        place = {image: i for i, image in enumerate(images)}
        function: Any = node.target
        module = self.modules[node.target] if node.op == "call_module" else None

        def compute(arrays: list[Any]) -> Any:
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda n: arrays[place[n]] if n in place else self.known[n]
            )
            if module is not None:
                return module(*args, **kwargs)
            return (
                getattr(args[0], function)(*args[1:], **kwargs)
                if isinstance(function, str)
                else function(*args, **kwargs)
            )

        return images, compute

    def pointwise(self, node: fx.Node, axes: tuple[int, ...] | None = None) -> Image:
        """Append an operation that treats every place by itself."""
        nodes, compute = self.operands(node)
        images = [self.known[n] for n in nodes]
        size = self.size(nodes[0])
        for other in nodes[1:]:
            if self.known[other].axes != images[0].axes or self.size(other) != size:
                raise self.refuse(node, f"combines images of sizes {size} and {self.size(other)}")
        for constant in node.all_input_nodes:
            value = self.known[constant]
            if isinstance(value, Tensor) and any(
                -axis <= value.ndim and value.shape[axis] != 1 for axis in images[0].axes
            ):
                raise self.refuse(
                    node, f"combines an image with a constant that differs from place to place {tuple(value.shape)}"
                )
        rules: tuple[Rule, ...] = (Window(),) * len(images[0].axes)
        operation = Operation(lambda arrays, where: compute(arrays), rules)
        result = self.meta[node]
        if not isinstance(result, Tensor):
            return Several(tuple(images), operation.compute, axes or images[0].axes)  # type: ignore[return-value]
        return self.add(node, images, operation, axes)

    def last_axes(self, node: fx.Node, count: int) -> Any:
        """Append an operation on the last axes, none of which may be spatial."""
        _, image = self.the_image(node)
        if any(axis >= -count for axis in image.axes):
            raise self.refuse(node, "mixes places")
        return self.pointwise(node)

    def _over(self, node: fx.Node, dims: Any) -> Any:
        """An operation over some axes, which may go with it."""
        first, image = self.the_image(node)
        ndim = len(self.meta[first].shape)
        if dims is None or not isinstance(dims, int | tuple | list):
            raise self.refuse(node, "pools over the whole image")
        over = {(d % ndim) - ndim for d in ([dims] if isinstance(dims, int) else dims)}
        if over & set(image.axes):
            raise self.refuse(node, "pools over the whole image")
        axes, result = image.axes, self.meta[node]
        if len((result if isinstance(result, Tensor) else result[0]).shape) < ndim:
            axes = tuple(axis + sum(d > axis for d in over) for axis in axes)
        return self.pointwise(node, axes)

    def resample(self, node: fx.Node, size: Any, scale: Any, mode: str, align: Any, recompute: Any) -> Image:
        """Append an interpolation."""
        first, image = self.usual(node, len(self.shape) - 2)
        source = self.size(first)
        result = tuple(self.meta[node].shape[axis] for axis in image.axes)
        factors = (
            [None] * len(source)
            if scale is None or recompute
            else list(scale)
            if isinstance(scale, tuple | list)
            else [scale] * len(source)
        )
        try:
            operation = local.resampling(source, result, factors, mode, bool(align), self.dtype)
        except ValueError as error:
            raise self.refuse(node, str(error)) from None
        return self.add(node, [image], operation)

    def pad(self, node: fx.Node, pads: list[int], mode: str, value: Any) -> Image:
        """Append a padding of spatial axes; pads are in PyTorch's order."""
        _, image = self.the_image(node)
        pairs = {-1 - i: (pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)}
        if any(pair != (0, 0) and axis not in image.axes for axis, pair in pairs.items()):
            raise self.refuse(node, "pads channels")
        boundary = {"constant": "zeros", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
        rules = tuple(Window(before=pairs.get(axis, (0, 0))[0], boundary=boundary) for axis in image.axes)
        return self.add(node, [image], Operation(lambda arrays, where: arrays[0], rules, float(value or 0.0)))


def _has_tensors(value: Any) -> bool:
    if isinstance(value, torch.Size):
        return False
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(_has_tensors(v) for v in value))
