"""Pooling for whole networks: which operations of a traced model pool, and the same on this engine, channels last."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from wherever.engine import run
from wherever.engine.kernels.compile import compiled, unavailable
from wherever.engine.kernels.pool import pool
from wherever.engine.machine import longest_sum
from wherever.problem import Array
from wherever.torch.operators import DTYPES

_KNOWN = 20  # memory orders that tables are kept for
_WRITTEN_OUT = 8  # columns of a window, at most
_PIECE = 16 << 10  # numbers of results that one thread takes at least

# What pools, by what it does; and PyTorch's names of its arguments, which its modules have as attributes.
_ARGUMENTS = {
    "max": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "average": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "adaptive": ("input", "output_size"),
    "mean": ("input", "dim", "keepdim"),
}
# What it does, and on how many spatial dimensions (None: as the input has them), by module, function or method.
_KINDS: dict[Any, tuple[str, int | None]] = {torch.mean: ("mean", None), "mean": ("mean", None)}
for _spatial in (1, 2, 3):
    for _kind, _module, _function in (
        ("max", "MaxPool", "max_pool"),
        ("average", "AvgPool", "avg_pool"),
        ("adaptive", "AdaptiveAvgPool", "adaptive_avg_pool"),
    ):
        _KINDS[getattr(nn, f"{_module}{_spatial}d")] = _kind, _spatial
        _KINDS[getattr(functional, f"{_function}{_spatial}d")] = _kind, _spatial
    _KINDS[getattr(torch, f"max_pool{_spatial}d")] = "max", _spatial


@dataclass(frozen=True)
class Windows:
    """What the results along one dimension see: the first place, how many, how far apart, and the factor of a sum."""

    first: Array
    count: Array
    apart: int
    factor: Array


@dataclass(frozen=True)
class Pooling:
    """An operation that pools.

    Attributes
    ----------
    kind : {"max", "mean"}
    windows : tuple of Windows
        Of each spatial dimension.
    words : str
        What it is, to be read.
    """

    kind: str
    windows: tuple[Windows, ...]
    words: str


def pooling_of(node: fx.Node, modules: dict[Any, nn.Module], x: Any, y: Any) -> Pooling | None:
    """Return what a node of a traced model pools; None if it does something else, or something that is not ours.

    Parameters
    ----------
    node : fx.Node
    modules : dict
        Of the model, by name.
    x, y
        Its first argument and its result, of an example.
    """
    module = modules[node.target] if node.op == "call_module" else None
    kind, spatial = _KINDS.get(node.target if module is None else type(module), ("", None))
    if not kind or not (isinstance(x, Tensor) and isinstance(y, Tensor)) or not 3 <= x.ndim <= 5:
        return None
    if x.ndim - 2 != (spatial or x.ndim - 2):  # an image without a batch
        return None
    if x.dtype not in (torch.float32, torch.float64) or y.dtype is not x.dtype or unavailable() is not None:
        return None
    given = _given(node, module, _ARGUMENTS[kind])
    if given is None or not x.numel() or not y.numel():
        return None
    size, results = tuple(x.shape[2:]), tuple(y.shape[2:])
    if kind == "mean":
        if not _all_spatial(given.get("dim"), x.ndim):
            return None
        windows, words = tuple(_adaptive(n, 1) for n in size), "mean of every channel"
    elif y.ndim != x.ndim:  # without indices, which would be a tuple
        return None
    elif kind == "adaptive":
        windows = tuple(_adaptive(n, m) for n, m in zip(size, results, strict=True))
        words = f"adaptive average {'x'.join(map(str, results))}"
    else:
        if given.get("divisor_override"):
            return None
        kernel = _tuple(given["kernel_size"], len(size))
        stride = kernel if given.get("stride") in (None, (), []) else _tuple(given["stride"], len(size))
        padding, dilation = (_tuple(given.get(n, d), len(size)) for n, d in (("padding", 0), ("dilation", 1)))
        padded = given.get("count_include_pad", True)
        geometry = zip(size, results, kernel, stride, padding, dilation, strict=True)
        windows = tuple(_sliding(*each, padded=padded) for each in geometry)
        words = f"{kind} {'x'.join(map(str, kernel))} stride {'x'.join(map(str, stride))}"
    *outer, across = (int(w.count.max()) for w in windows)
    if any((w.count < 1).any() for w in windows):
        return None
    if kind != "max" and across + math.prod(outer) > longest_sum(DTYPES[x.dtype]):
        return None  # sums of a line, and of lines, are taken one after the other
    return Pooling("max" if kind == "max" else "mean", windows, words)


def _given(node: fx.Node, module: nn.Module | None, names: tuple[str, ...]) -> dict[str, Any] | None:
    """The arguments of a node beside its input, by name; None if some are others, or only known when it runs."""
    if module is not None:
        return {name: getattr(module, name) for name in names[1:] if hasattr(module, name)}
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    given.pop("input", None)
    known = all(name in names and not isinstance(value, fx.Node) for name, value in given.items())
    return given if known and len(node.args) <= len(names) else None


def _all_spatial(dim: Any, axes: int) -> bool:
    """Whether these dimensions of an image (N, C, *S) are its spatial ones."""
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    return all(isinstance(d, int) for d in dims) and sorted(d % axes for d in dims) == list(range(2, axes))


def _tuple(value: Any, spatial: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * spatial if len(values) == 1 else values


def _sliding(size: int, results: int, kernel: int, stride: int, pad: int, dilation: int, *, padded: bool) -> Windows:
    """Windows that slide; a sum is divided by the places of its window, those of the padding included or not."""
    start = np.arange(results) * stride - pad
    before = -(np.minimum(start, 0) // dilation)  # taps that lie before the first place
    after = np.minimum(kernel, -((start - size) // dilation))  # those before the end
    places = np.minimum(start + kernel, size + pad) - start if padded else after - before
    return Windows(start + before * dilation, after - before, dilation, 1 / np.maximum(places, 1))


def _adaptive(size: int, results: int) -> Windows:
    """As many windows as there are to be results."""
    number = np.arange(results)
    first, end = number * size // results, -(-(number + 1) * size // results)
    return Windows(first, end - first, 1, 1 / (end - first))


class Pooler:
    """Pools images (N, *S, C) into others.

    Parameters
    ----------
    pooling : Pooling
    """

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self._known: dict[tuple[Any, ...], Callable[[Array, Array], None]] = {}

    def __call__(self, x: Array, out: Array, threads: int, beside: Array | None = None) -> None:
        """Pool ``x`` into ``out``, whose channels lie side by side. Nothing is added."""
        if x.strides[-1] != x.itemsize and x.shape[-1] > 1:
            x = np.ascontiguousarray(x)
        key = x.shape, x.strides, out.strides, x.dtype, threads
        if key not in self._known:
            if len(self._known) > _KNOWN:
                self._known.clear()
            self._known[key] = _pooler(self.pooling, x, out, threads)
        self._known[key](x, out)


def _pooler(pooling: Pooling, x: Array, out: Array, threads: int) -> Callable[[Array, Array], None]:
    """What pools arrays that lie in memory as these do."""
    *outer, columns = pooling.windows
    item, channels = x.itemsize, x.shape[-1]
    # Results without the pooled dimensions are images of one place.
    out = out.reshape(len(x), *(len(w.first) for w in pooling.windows), channels)
    lines: list[tuple[int, int, int]] = []
    begins: list[int] = []
    factors: list[float] = []
    for index in np.ndindex(out.shape[:-2]):
        image, *places = index
        seen = [w.first[j] + np.arange(w.count[j]) * w.apart for w, j in zip(outer, places, strict=True)]
        start = len(begins)
        for where in itertools.product([image], *seen):
            begins.append(sum(int(i) * s // item for i, s in zip(where, x.strides, strict=False)))
        lines.append((sum(i * s // item for i, s in zip(index, out.strides, strict=False)), start, len(begins)))
        factors.append(math.prod(float(w.factor[j]) for w, j in zip(outer, places, strict=True)))
    usual = int(np.bincount(columns.count).argmax())
    kernel = compiled(
        pool, dtype=x.dtype.name, kind=pooling.kind, wide=min(usual, _WRITTEN_OUT), apart=int(columns.apart)
    )
    tables = [
        np.array(factors, x.dtype),
        columns.factor.astype(x.dtype),
        np.array(lines, np.int64),
        np.array(begins, np.int64),
        np.stack([columns.first, columns.count], axis=-1).astype(np.int64),
    ]
    rest = [out.shape[-2], channels, x.strides[-2] // item, out.strides[-2] // item]
    share = run.pieces(len(lines), 1, min(threads, 1 + out.size // _PIECE))
    sizes = [np.array([piece.start, piece.stop, *rest], np.int64) for piece in share]

    def pool_into(x: Array, out: Array) -> None:
        run.for_each(lambda some: kernel(x, out, *tables, some), sizes, threads)

    return pool_into
