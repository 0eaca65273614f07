"""PyTorch's functions and methods in traced networks: how each moves, cuts, pools or mixes what has places."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.nn import functional

from wherever.tiles.axes import Rule, Window
from wherever.tiles.graph import Operation, Where
from wherever.torch import local_layers as local
from wherever.torch.values import Several

if TYPE_CHECKING:
    from wherever.torch.local_graphs import Builder


def _permute(build: Builder, node: fx.Node) -> Any:
    first, image = build.the_image(node)
    ndim = len(build.meta[first].shape)
    order = build.static(node, node.args[1:] or tuple(node.kwargs.values()))
    order = tuple(order[0]) if len(order) == 1 and isinstance(order[0], tuple | list) else tuple(order)
    if node.target in ("transpose", torch.transpose, "swapaxes", torch.swapaxes):
        a, b = (d % ndim for d in order)
        order = tuple({a: b, b: a}.get(d, d) for d in range(ndim))
    order = tuple(d % ndim for d in order)
    return build.pointwise(node, tuple(order.index(axis + ndim) - ndim for axis in image.axes))


def _cat(build: Builder, node: fx.Node) -> Any:
    images, _ = build.operands(node)
    ndim = len(build.meta[images[0]].shape)
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    stack = node.target is torch.stack
    dim = dim % (ndim + stack) - ndim - stack
    axes = build.known[images[0]].axes
    if not stack and dim in axes:
        raise build.refuse(node, "joins images side by side")
    # A new axis behind a spatial one moves that one further from the end.
    return build.pointwise(node, tuple(a - (dim > a - 1) for a in axes) if stack else axes)


def _split(build: Builder, node: fx.Node) -> Any:
    first, image = build.the_image(node)
    dim = build.arguments(node, ("sizes", "dim"), None, 0)[1]
    if node.target in ("unbind", torch.unbind):
        dim = build.arguments(node, ("dim",), 0)[0]
    ndim = len(build.meta[first].shape)
    dim = dim % ndim - ndim
    if dim in image.axes:
        raise build.refuse(node, "cuts the image")
    unbound = node.target in ("unbind", torch.unbind)
    return build.pointwise(node, tuple(a + (unbound and dim > a) for a in image.axes))


def _item(build: Builder, node: fx.Node) -> Any:
    source: Any = node.args[0]
    index = build.static(node, node.args[1])
    value = build.known[source]
    if isinstance(value, Several):
        parts = value

        def chosen(arrays: list[Any], where: Where) -> Any:
            return parts.compute(arrays, where)[index]

        return build.add(node, parts.images, Operation(chosen, (Window(),) * len(parts.axes)), parts.axes)
    ndim = len(build.meta[source].shape)
    parts_of = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts_of:
        at = parts_of.index(Ellipsis)
        parts_of[at : at + 1] = [slice(None)] * (ndim - len(parts_of) + 1)
    parts_of += [slice(None)] * (ndim - len(parts_of))
    if len(parts_of) != ndim or not all(isinstance(p, int | slice) for p in parts_of):
        raise build.refuse(node, "chooses places by an index that is not made of slices")
    rules, inner = [], list(parts_of)
    for axis, n in zip(value.axes, build.size(source), strict=True):
        part = parts_of[axis]
        if isinstance(part, int):
            raise build.refuse(node, "chooses one row or column")
        start, _, step = part.indices(n)
        rules.append(Window(stride=step, before=-start))
        inner[axis] = slice(None)
    gone = [d - ndim for d, p in enumerate(parts_of) if isinstance(p, int)]
    axes = tuple(axis + sum(d > axis for d in gone) for axis in value.axes)
    steps = tuple(rule.stride for rule in rules)

    def cut(arrays: list[Any], where: Where) -> Any:
        here = list(inner)
        for axis, step in zip(value.axes, steps, strict=True):
            here[axis] = slice(None, None, step)
        return arrays[0][tuple(here)]

    return build.add(node, [value], Operation(cut, tuple(rules)), axes)


def _reshape(build: Builder, node: fx.Node) -> Any:
    first, image = build.the_image(node)
    before, after = tuple(build.meta[first].shape), tuple(build.meta[node].shape)
    spatial = len(image.axes)
    if image.axes != tuple(range(-spatial, 0)) or after[-spatial:] != before[-spatial:] or len(after) <= spatial:
        raise build.refuse(node, "mixes places and channels")
    return build.add(
        node,
        [image],
        Operation(
            lambda arrays, where: arrays[0].reshape(*after[:-spatial], *arrays[0].shape[-spatial:]),
            (Window(),) * spatial,
        ),
    )


def _squeeze(build: Builder, node: fx.Node) -> Any:
    first, image = build.the_image(node)
    ndim = len(build.meta[first].shape)
    (dim,) = build.arguments(node, ("dim",))
    if not isinstance(dim, int):
        raise build.refuse(node, "drops axes that are not named", "give it a dim")
    if node.target in ("unsqueeze", torch.unsqueeze):
        dim = dim % (ndim + 1) - ndim - 1
        return build.pointwise(node, tuple(a - (dim > a - 1) for a in image.axes))
    dim = dim % ndim - ndim
    if dim in image.axes:
        raise build.refuse(node, "drops a spatial axis")
    gone = build.meta[first].shape[dim] == 1
    return build.pointwise(node, tuple(a + (gone and dim > a) for a in image.axes))


def _convolution(spatial: int, is_transposed: bool) -> Callable[[Builder, fx.Node], Any]:
    def handle(build: Builder, node: fx.Node) -> Any:
        _, image = build.usual(node, spatial)
        if is_transposed:
            names: tuple[str, ...] = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
            w, b, stride, padding, _, groups, dilation = build.arguments(node, names, None, None, 1, 0, 0, 1, 1)
            return build.add(node, [image], local.transposed_by(w, b, stride, padding, dilation, groups))
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        return build.add(node, [image], local.convolution_by(*build.arguments(node, names, None, None, 1, 0, 1, 1)))

    return handle


def _max_pool(spatial: int) -> Callable[[Builder, fx.Node], Any]:
    def handle(build: Builder, node: fx.Node) -> Any:
        _, image = build.usual(node, spatial)
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        kernel, stride, padding, dilation, _, _ = build.arguments(node, names, None, None, 0, 1, False, False)
        return build.add(node, [image], local.max_pool(spatial, kernel, stride, padding, dilation))

    return handle


def _average_pool(spatial: int) -> Callable[[Builder, fx.Node], Any]:
    def handle(build: Builder, node: fx.Node) -> Any:
        _, image = build.usual(node, spatial)
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        kernel, stride, padding, _, count, divisor = build.arguments(node, names, None, None, 0, False, True, None)
        return build.add(node, [image], local.average_pool(spatial, kernel, stride, padding, bool(count), divisor))

    return handle


def _interpolate(build: Builder, node: fx.Node) -> Any:
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    size, scale, mode, align, recompute, smooth = build.arguments(node, names, None, None, "nearest", None, None, False)
    if smooth:
        raise build.refuse(node, "interpolates with antialias=True, which is not known here")
    return build.resample(node, size, scale, mode, align, recompute)


def _pad_function(build: Builder, node: fx.Node) -> Any:
    pads, mode, value = build.arguments(node, ("pad", "mode", "value"), None, "constant", None)
    return build.pad(node, list(pads), mode, value)


def _shuffle(make: Callable[[int], Operation]) -> Callable[[Builder, fx.Node], Any]:
    def handle(build: Builder, node: fx.Node) -> Any:
        _, image = build.usual(node, 2)
        factor: Any
        (factor,) = build.arguments(node, ("factor",)) if not node.kwargs else tuple(node.kwargs.values())
        return build.add(node, [image], make(factor))

    return handle


def _weights_last(build: Builder, node: fx.Node) -> Any:
    count = 1 if node.target is functional.linear else len(build.arguments(node, ("normalized_shape",))[0])
    return build.last_axes(node, count)


def _batch_norm(build: Builder, node: fx.Node) -> Any:
    names = ("running_mean", "running_var", "weight", "bias", "training")
    mean, _, _, _, training = build.arguments(node, names, None, None, None, None, False)
    if training or mean is None:
        raise build.refuse(node, "takes statistics over the whole image", "use running statistics: training=False")
    build.usual(node, len(build.shape) - 2)
    images, compute = build.operands(node)
    rules: tuple[Rule, ...] = (Window(),) * (len(build.shape) - 2)
    return build.add(node, [build.known[images[0]]], Operation(lambda arrays, where: compute(arrays), rules))


HANDLERS: dict[Any, Callable[[Builder, fx.Node], Any]] = {
    operator.getitem: _item,
    functional.interpolate: _interpolate,
    functional.pad: _pad_function,
    functional.linear: _weights_last,
    functional.layer_norm: _weights_last,
    functional.batch_norm: _batch_norm,
    torch.batch_norm: _batch_norm,
    functional.pixel_shuffle: _shuffle(local.pixel_shuffle),
    functional.pixel_unshuffle: _shuffle(local.pixel_unshuffle),
}
HANDLERS |= dict.fromkeys(
    ["permute", "transpose", "swapaxes", torch.permute, torch.transpose, torch.swapaxes], _permute
)
HANDLERS |= dict.fromkeys([torch.cat, torch.concat, torch.concatenate, torch.stack], _cat)
HANDLERS |= dict.fromkeys(
    ["chunk", "split", "unbind", torch.chunk, torch.split, torch.unbind, torch.functional.split], _split
)
HANDLERS |= dict.fromkeys(["reshape", "view", torch.reshape], _reshape)
HANDLERS |= dict.fromkeys(["squeeze", "unsqueeze", torch.squeeze, torch.unsqueeze], _squeeze)
for _spatial in (1, 2, 3):
    for _name, _transposed in ((f"conv{_spatial}d", False), (f"conv_transpose{_spatial}d", True)):
        HANDLERS |= dict.fromkeys(
            [getattr(functional, _name), getattr(torch, _name)], _convolution(_spatial, _transposed)
        )
    HANDLERS |= dict.fromkeys(
        [getattr(functional, f"max_pool{_spatial}d"), getattr(torch, f"max_pool{_spatial}d")], _max_pool(_spatial)
    )
    HANDLERS[getattr(functional, f"avg_pool{_spatial}d")] = _average_pool(_spatial)
