"""The convolution and its two gradients as operators of PyTorch: three that are each other's derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wherever.engine import packed
from wherever.engine.plan import choose
from wherever.problem import Array, ConvProblem, Direction

# y = conv(x, w) is bilinear. Its two adjoints, dx = by_input(dy, w) and dw = by_weight(dy, x), are bilinear too, and
# the adjoints of all three are among the three: hence gradients of any order. A transposed convolution is `by_input`.
# Nothing conjugates in an operator; the gradients of complex numbers conjugate their operands, as PyTorch does.

_GEOMETRY = "SymInt[] stride, SymInt[] before, SymInt[] after, SymInt[] dilation, SymInt groups, str boundary"
_LIBRARY = torch.library.Library("wherever", "DEF")
_LIBRARY.define(f"convolution(Tensor input, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor")
_LIBRARY.define(f"by_input(Tensor gradient, Tensor weight, Tensor? bias, SymInt[] size, {_GEOMETRY}) -> Tensor")
_LIBRARY.define(f"by_weight(Tensor gradient, Tensor input, SymInt[] kernel, bool last, {_GEOMETRY}) -> Tensor")

DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype("float32"),
    torch.float64: np.dtype("float64"),
    torch.float16: np.dtype("float16"),
    torch.bfloat16: np.dtype("float32"),  # NumPy has none; sums are taken in float32 anyhow
    torch.complex64: np.dtype("complex64"),
    torch.complex128: np.dtype("complex128"),
}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Return the order of memory that results computed from this tensor have: its own, as PyTorch's operators do."""
    last = _CHANNELS_LAST.get(tensor.ndim)
    if last is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def layout_of(tensor: Tensor) -> str:
    """Return the name of that order."""
    return "channels_first" if memory_format(tensor) is torch.contiguous_format else "channels_last"


@functools.lru_cache(maxsize=4096)
def _problem(
    direction: Direction,
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    geometry: tuple[Any, ...],
    layout: str,
    dtype: np.dtype[Any],
) -> ConvProblem:
    stride, before, after, dilation, groups, boundary = geometry
    return ConvProblem(
        batch=batch,
        in_channels=channels[0],
        out_channels=channels[1],
        groups=groups,
        size=size,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        padding=tuple(zip(before, after, strict=True)),
        boundary=0 if boundary == "zeros" else boundary,
        layout=layout,
        dtype=dtype,
        direction=direction,
    )


def _constant(geometry: Sequence[Any]) -> tuple[Any, ...]:
    return (*map(tuple, geometry[:4]), *geometry[4:])


# The problems of the three operators: what they are called with was checked before (`functional`).


def forward_problem(x: Tensor, w: Tensor, *geometry: Any) -> ConvProblem:
    """Return the problem of a convolution; geometry: stride, padding before and after, dilation, groups, boundary."""
    channels, size, kernel = (x.shape[1], w.shape[0]), x.shape[2:], w.shape[2:]
    return _problem("forward", x.shape[0], channels, size, kernel, _constant(geometry), layout_of(x), DTYPES[x.dtype])


def by_input_problem(g: Tensor, w: Tensor, size: Sequence[int], *geometry: Any) -> ConvProblem:
    """Return the problem of a gradient by the input, of these spatial sizes, or of a transposed convolution."""
    channels, kernel = (w.shape[1] * geometry[4], w.shape[0]), w.shape[2:]
    return _problem(
        "transpose", g.shape[0], channels, tuple(size), kernel, _constant(geometry), layout_of(g), DTYPES[g.dtype]
    )


def by_weight_problem(g: Tensor, x: Tensor, kernel: Sequence[int], *geometry: Any) -> ConvProblem:
    """Return the problem of a gradient by the weights, of these spatial sizes."""
    channels, size = (x.shape[1], g.shape[1]), x.shape[2:]
    return _problem(
        "weight_gradient",
        x.shape[0],
        channels,
        size,
        tuple(kernel),
        _constant(geometry),
        layout_of(x),
        DTYPES[x.dtype],
    )


def as_array(tensor: Tensor, layout: str = "channels_first") -> Array:
    """Return a view of a tensor (N, C, *S) as an array, with channels where the layout has them."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    array: Array = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array if layout == "channels_first" else np.moveaxis(array, 1, -1)


def run(
    problem: ConvProblem,
    source: Array,
    operand: Array,
    bias: Tensor | None,
    like: Tensor,
    *,
    learning: bool = False,
    last: bool = False,
) -> Tensor:
    """Compute a problem into a new tensor of the type of ``like``.

    ``learning``: the next call brings other weights, so that nothing is kept of these. ``last``: see `new_result`.
    """
    threads = torch.get_num_threads()
    choice = choose(problem, threads=threads, prepared=False)
    prepare = choice.prepare if learning else functools.partial(packed.prepared, choice)
    prepared = prepare(operand, None if bias is None else as_array(bias))
    out, result = new_result(problem, like, last=last)
    if out.size:
        prepared.run(source, out, threads)
    return result.to(like.dtype)


def _last(w: Tensor) -> bool:
    """Whether weights have their channels last; PyTorch copies gradients that have not the order of their weights."""
    return memory_format(w) is not torch.contiguous_format


def _format(last: bool, dimensions: int) -> torch.memory_format:
    return _CHANNELS_LAST.get(dimensions, torch.contiguous_format) if last else torch.contiguous_format


def new_result(problem: ConvProblem, like: Tensor, *, last: bool = False) -> tuple[Array, Tensor]:
    """Return memory for a result, as an array to compute into and as a tensor.

    ``last``: of gradients by weights that have their channels last.
    """
    dtype = torch.float32 if like.dtype is torch.bfloat16 else like.dtype
    shape = problem.result_shape
    if problem.direction == "weight_gradient" or problem.layout == "channels_first":
        result = torch.empty(shape, dtype=dtype, memory_format=_format(last, len(shape)))
        return result.numpy(), result
    result = torch.empty(shape, dtype=dtype)
    return result.numpy(), result.movedim(-1, 1)


# What they compute.


def _convolution(x: Tensor, w: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    problem = forward_problem(x, w, *geometry)
    return run(problem, as_array(x, problem.layout), as_array(w), bias, x, learning=w.requires_grad)


def _by_input(g: Tensor, w: Tensor, bias: Tensor | None, size: Sequence[int], *geometry: Any) -> Tensor:
    problem = by_input_problem(g, w, size, *geometry)
    return run(problem, as_array(g, problem.layout), as_array(w), bias, g, learning=w.requires_grad)


def _by_weight(g: Tensor, x: Tensor, kernel: Sequence[int], last: bool, *geometry: Any) -> Tensor:
    problem = by_weight_problem(g, x, kernel, *geometry)
    return run(problem, as_array(x, problem.layout), as_array(g, problem.layout), None, g, last=last)


_LIBRARY.impl("convolution", _convolution, "CPU")
_LIBRARY.impl("by_input", _by_input, "CPU")
_LIBRARY.impl("by_weight", _by_weight, "CPU")


# What their results look like, without computing them.


@torch.library.register_fake("wherever::convolution")
def _(x: Tensor, w: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    stride, before, after, dilation, _, _ = geometry
    sizes = [
        (n + b + a - d * (r - 1) - 1) // s + 1
        for n, r, s, b, a, d in zip(x.shape[2:], w.shape[2:], stride, before, after, dilation, strict=True)
    ]
    return x.new_empty((x.shape[0], w.shape[0], *sizes)).contiguous(memory_format=memory_format(x))


@torch.library.register_fake("wherever::by_input")
def _(g: Tensor, w: Tensor, bias: Tensor | None, size: Sequence[int], *geometry: Any) -> Tensor:
    shape = (g.shape[0], w.shape[1] * geometry[4], *size)
    return g.new_empty(shape).contiguous(memory_format=memory_format(g))


@torch.library.register_fake("wherever::by_weight")
def _(g: Tensor, x: Tensor, kernel: Sequence[int], last: bool, *geometry: Any) -> Tensor:
    shape = (g.shape[1], x.shape[1] // geometry[4], *kernel)
    return torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=_format(last, len(shape)))


# Their derivatives, and many at once (torch.func.vmap): further images where the weights are shared, further groups
# where they are not. Operators of a library have no gradients inside torch.func's transforms, which want a Function; so
# each is both.


class _Function(torch.autograd.Function):
    """What the three have in common: two tensors that are kept, and the geometry."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.geometry = inputs[-6:]


class _Convolution(_Function):
    @staticmethod
    def forward(  # every argument by itself: torch.compile counts them
        x: Tensor, w: Tensor, bias: Tensor | None, s: Any, before: Any, after: Any, d: Any, groups: int, boundary: str
    ) -> Tensor:
        operator = torch.ops.wherever.convolution.default
        return operator(x, w, bias, s, before, after, d, groups, boundary)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            by_input(g, w.conj(), None, list(x.shape[2:]), *ctx.geometry) if wanted[0] else None,
            by_weight(g, x.conj(), list(w.shape[2:]), _last(w), *ctx.geometry) if wanted[1] else None,
            _sum_over_places(g) if wanted[2] else None,
            *[None] * 6,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _map_products(convolution, info.batch_size, in_dims, *arguments)


class _ByInput(_Function):
    @staticmethod
    def forward(
        g: Tensor,
        w: Tensor,
        bias: Tensor | None,
        size: Any,
        s: Any,
        before: Any,
        after: Any,
        d: Any,
        groups: int,
        boundary: str,
    ) -> Tensor:
        operator = torch.ops.wherever.by_input.default
        return operator(g, w, bias, size, s, before, after, d, groups, boundary)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        g, w = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            convolution(h, w.conj(), None, *ctx.geometry) if wanted[0] else None,
            by_weight(g.conj(), h, list(w.shape[2:]), _last(w), *ctx.geometry) if wanted[1] else None,
            _sum_over_places(h) if wanted[2] else None,
            *[None] * 7,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _map_products(by_input, info.batch_size, in_dims, *arguments)


class _ByWeight(_Function):
    @staticmethod
    def forward(
        g: Tensor,
        x: Tensor,
        kernel: Any,
        last: bool,
        s: Any,
        before: Any,
        after: Any,
        d: Any,
        groups: int,
        boundary: str,
    ) -> Tensor:
        operator = torch.ops.wherever.by_weight.default
        return operator(g, x, kernel, last, s, before, after, d, groups, boundary)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            convolution(x.conj(), v, None, *ctx.geometry) if wanted[0] else None,
            by_input(g.conj(), v, None, list(x.shape[2:]), *ctx.geometry) if wanted[1] else None,
            *[None] * 8,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        g, x, kernel, last, *geometry = arguments
        count = info.batch_size
        gradients, inputs = (_as_groups(_front(t, dim, count)) for t, dim in zip((g, x), in_dims[:2], strict=True))
        result = by_weight(gradients, inputs, kernel, last, *_more_groups(geometry, count))
        return result.unflatten(0, (count, result.shape[0] // count)), 0


def _sum_over_places(g: Tensor) -> Tensor:
    return g.sum([d for d in range(g.ndim) if d != 1])


def _front(tensor: Tensor, dim: int | None, count: int) -> Tensor:
    """The tensor with the mapped axis in front; one that is not mapped is shown again for each."""
    return tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _as_groups(tensor: Tensor) -> Tensor:
    """(B, N, C, ...) as (N, B * C, ...): the channels of each stay together."""
    return tensor.movedim(0, 1).flatten(1, 2)


def _more_groups(geometry: Sequence[Any], count: int) -> tuple[Any, ...]:
    return (*geometry[:4], geometry[4] * count, geometry[5])


def _map_products(
    function: Callable[..., Tensor], count: int, in_dims: tuple[Any, ...], *arguments: Any
) -> tuple[Tensor, int]:
    """Map `convolution` or `by_input` over their tensors: what streams through, the weights, the bias."""
    source, w, bias, *rest = arguments
    sources = _front(source, in_dims[0], count)
    if in_dims[1] is None and in_dims[2] is None:
        return function(sources.flatten(0, 1), w, bias, *rest).unflatten(0, sources.shape[:2]), 0
    weights = _front(w, in_dims[1], count).flatten(0, 1)
    biases = None if bias is None else _front(bias, in_dims[2], count).flatten(0, 1)
    result = function(_as_groups(sources), weights, biases, *rest[:-6], *_more_groups(rest[-6:], count))
    return result.unflatten(1, (count, result.shape[1] // count)), 1


def _registered(name: str, function: type[_Function]) -> Callable[..., Tensor]:
    """Give an operator of the library the derivatives and the mapping of a Function; return how it is called."""
    operator: Callable[..., Tensor] = getattr(torch.ops.wherever, name).default
    qualified = f"wherever::{name}"
    torch.library.register_autograd(qualified, function.backward, setup_context=function.setup_context, lib=_LIBRARY)
    torch.library.register_vmap(qualified, function.vmap, lib=_LIBRARY)

    def call(*arguments: Any) -> Tensor:
        transformed = torch._C._are_functorch_transforms_active()
        return (function.apply if transformed else operator)(*arguments)

    return call


convolution = _registered("convolution", _Convolution)
by_input = _registered("by_input", _ByInput)
by_weight = _registered("by_weight", _ByWeight)

for _function in (_Convolution, _ByInput, _ByWeight):
    torch.compiler.allow_in_graph(_function)
