"""Stages: the operations of a traced network that this engine computes, whole or some rows of their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx, nn

from wherever.engine.algorithms import Algorithm
from wherever.engine.algorithms.finish import Finish, finishing
from wherever.engine.plan import choose
from wherever.problem import Array, ConvProblem
from wherever.torch.functional import forward_geometry, transposed_geometry
from wherever.torch.graphs import Layer, apply_activation
from wherever.torch.modules import BOUNDARIES
from wherever.torch.operators import DTYPES, as_array, by_input_problem, forward_problem
from wherever.torch.pooling import Pooler, Pooling

# Computes from an image into another, with so many threads, and adds a third: all (N, *S, C).
Compute: TypeAlias = Callable[[Array, Array, int, Array | None], None]

_CANDIDATES = 3  # algorithms that are worth timing
_UNLIKELY = 3.0  # times slower than the best, by its estimate: not timed
# Rows of a fully connected layer that only read its weights: those of so many bytes are not worth a second copy.
_FEW_ROWS, _MOST_FOR_FEW = 8, 128 << 20
_SMALL_WEIGHTS = 1 << 20  # bytes that may be packed once more for some rows


class Stage(ABC):
    """An operation of a network, and whatever is joined to it.

    Attributes
    ----------
    node, last : fx.Node
        The operation, and the last that is joined: whose value the stage computes.
    source, other : fx.Node
        What it reads, and what it adds (or None).
    name, words : str
        What it is called in the model, and what it is.
    rows : int
        How many rows its result has: places along the first spatial dimension.
    """

    node: fx.Node
    last: fx.Node
    source: fx.Node
    other: fx.Node | None
    name: str
    words: str
    rows: int

    @abstractmethod
    def view(self, tensor: Tensor) -> Array:
        """A tensor that it reads, adds or computes, as an image (N, *S, C)."""

    @abstractmethod
    def ways(self, threads: int) -> dict[str, Compute]:
        """How it may be computed, by name."""

    @abstractmethod
    def reads(self, some: range) -> range | None:
        """Which rows some rows of its result are computed from; None if they cannot be computed by themselves."""

    @abstractmethod
    def band(self, way: str, some: range) -> Compute | None:
        """What computes these rows in that way, from those rows alone; None if that way cannot."""


@dataclass(eq=False)
class Convolution(Stage):
    """A convolution or fully connected layer, with what is added to it and its activation: see `Stage`."""

    layer: Layer
    module: Any
    problem: ConvProblem
    words: str
    _bands: dict[tuple[str, ConvProblem], Compute | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.node, self.last, self.other = self.layer.node, self.layer.last, self.layer.added
        self.source = cast(fx.Node, self.layer.node.args[0])
        self.name = str(self.layer.node.target)
        self.linear = isinstance(self.module, nn.Linear)
        self.rows = self.problem.output[0]
        self.finish = Finish(self.layer.activation, self.other is not None)
        weight = as_array(self.module.weight)
        self.weight = weight[..., None] if self.linear else weight
        self.bias = None if self.module.bias is None else as_array(self.module.bias)

    def view(self, tensor: Tensor) -> Array:
        """Channels last; rows of a fully connected layer as places of one image."""
        return rows_of(tensor) if self.linear else channels_last(tensor)

    def ways(self, threads: int) -> dict[str, Compute]:
        """By the algorithms that are likely to be the fastest."""
        willing = [c for c in choose(self.problem, threads=threads).candidates if c.refusal is None][:_CANDIDATES]
        likely = [c for c in willing if c.estimate < _UNLIKELY * willing[0].estimate]
        return {c.algorithm.name: self._compute(c.algorithm, self.problem) for c in likely}

    def _compute(self, algorithm: Algorithm, problem: ConvProblem) -> Compute:
        prepared = algorithm.prepare(problem, self.weight, self.bias)
        if self.finish.possible(problem.dtype.name):
            return finishing(prepared, self.finish)
        activation = self.layer.activation

        def compute(x: Array, out: Array, threads: int, beside: Array | None) -> None:
            prepared.run(x, out, threads)
            y = torch.from_numpy(out)
            apply_activation(activation, y if beside is None else y.add_(torch.from_numpy(beside)))

        return compute

    def reads(self, some: range) -> range | None:
        """The rows that the kernel meets, as far as there are any."""
        p = self.problem
        if self.linear or p.direction != "forward" or isinstance(p.boundary, str):
            return None
        return self._seen(some)[0]

    def _seen(self, some: range) -> tuple[range, tuple[int, int]]:
        """The rows of x that some rows of the result look at, and how many more they look at before and after it."""
        p = self.problem
        first = some.start * p.stride[0] - p.padding[0][0]
        end = (some.stop - 1) * p.stride[0] - p.padding[0][0] + (p.kernel[0] - 1) * p.dilation[0] + 1
        inside = range(min(max(first, 0), p.size[0]), max(min(end, p.size[0]), 0))
        return inside, (inside.start - first, end - inside.stop)

    def band(self, way: str, some: range) -> Compute | None:
        """The same algorithm, for an image of the rows that they look at."""
        inside, outside = self._seen(some)
        if not inside or self.weight.nbytes > _SMALL_WEIGHTS:
            return None
        p = self.problem
        problem = changed(p, size=(len(inside), *p.size[1:]), padding=(outside, *p.padding[1:]))
        if (way, problem) not in self._bands:
            (algorithm,) = [c.algorithm for c in choose(p, threads=1).candidates if c.algorithm.name == way]
            able = algorithm.refuses(problem) is None
            self._bands[way, problem] = self._compute(algorithm, problem) if able else None
        return self._bands[way, problem]


@dataclass(eq=False)
class Pool(Stage):
    """An operation that pools: see `Stage`."""

    node: fx.Node
    pooling: Pooling

    def __post_init__(self) -> None:
        self.last, self.other = self.node, None
        self.source = cast(fx.Node, self.node.args[0])
        self.name = str(self.node.target) if self.node.op == "call_module" else self.node.name
        self.words = self.pooling.words
        self.rows = len(self.pooling.windows[0].first)

    def view(self, tensor: Tensor) -> Array:
        """Channels last."""
        return channels_last(tensor)

    def ways(self, threads: int) -> dict[str, Compute]:
        """The one way."""
        return {"pool": Pooler(self.pooling)}

    def reads(self, some: range) -> range | None:
        """From the first row of the first window to the last of the last."""
        rows = self.pooling.windows[0]
        last = rows.first + (rows.count - 1) * rows.apart
        return range(int(rows.first[some.start : some.stop].min()), int(last[some.start : some.stop].max()) + 1)

    def band(self, way: str, some: range) -> Compute | None:
        """The windows of these rows."""
        rows, *rest = self.pooling.windows
        seen = self.reads(some)
        assert seen is not None
        each = slice(some.start, some.stop)
        some_rows = changed(rows, first=rows.first[each] - seen.start, count=rows.count[each], factor=rows.factor[each])
        return Pooler(changed(self.pooling, windows=(some_rows, *rest)))


def convolution_of(layer: Layer, module: Any, x: Any, words: str) -> Convolution | None:
    """Return the stage of a layer, for an input like this; None if this engine does not compute it."""
    linear = isinstance(module, nn.Linear)
    problem = _of_rows(module, x) if linear else _problem(module, x)
    return None if problem is None else Convolution(layer, module, problem, words)


def _problem(module: Any, x: Tensor) -> ConvProblem | None:
    """The problem of a layer, with channels last; None if it is not this engine's."""
    if not isinstance(x, Tensor) or x.ndim != module.weight.ndim or x.dtype is torch.bfloat16:
        return None
    spatial = x.ndim - 2
    weight, bias, stride, padding = module.weight, module.bias, module.stride, module.padding
    if module.transposed:
        more, boundary = module.output_padding, "zeros"
        geometry = transposed_geometry(spatial, x, weight, bias, stride, padding, more, module.groups, module.dilation)
        make: Any = by_input_problem
    else:
        boundary = BOUNDARIES[module.padding_mode]
        geometry = forward_geometry(spatial, x, weight, bias, stride, padding, module.dilation, module.groups)
        make = forward_problem
    if geometry is None:
        return None
    return changed(make(x, weight, *geometry, boundary), layout="channels_last")


def _of_rows(module: nn.Linear, x: Tensor) -> ConvProblem | None:
    """The problem of a fully connected layer: a kernel of one place, on as many places as x has rows."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64) or x.shape[-1] != module.in_features:
        return None
    rows = x.numel() // max(1, x.shape[-1])
    if not rows or module.weight.dtype is not x.dtype:
        return None
    if rows < _FEW_ROWS and module.weight.numel() * module.weight.element_size() > _MOST_FOR_FEW:
        return None
    return ConvProblem.from_shapes(
        (1, rows, module.in_features),
        (module.out_features, module.in_features, 1),
        layout="channels_last",
        dtype=DTYPES[x.dtype].name,
    )


def channels_last(tensor: Tensor) -> Array:
    """A tensor (N, C, *S) as an image (N, *S, C)."""
    return as_array(tensor, "channels_last")


def rows_of(tensor: Tensor) -> Array:
    """A tensor as an image of one row: (1, places, channels)."""
    array: Array = tensor.detach().numpy()
    return array.reshape(1, -1, array.shape[-1])
