"""Whole networks for inference: convolutions on this engine, one memory order throughout, nothing allocated twice."""

from __future__ import annotations

import copy
import functools
import math
import operator
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from wherever.engine.algorithms import Prepared
from wherever.engine.algorithms.finish import NOTHING, Finish, finishing
from wherever.engine.plan import choose
from wherever.engine.run import fresh
from wherever.problem import Array, ConvProblem
from wherever.torch.functional import forward_geometry, transposed_geometry
from wherever.torch.graphs import (
    Layer,
    add_before_permuting,
    apply_activation,
    fold_normalisations,
    fold_scales,
    layers,
    traced,
)
from wherever.torch.modules import BOUNDARIES, replace
from wherever.torch.operators import DTYPES, as_array, by_input_problem, forward_problem
from wherever.torch.pooling import pooler, pooling_of

__all__ = ["Accelerated", "Report", "accelerate"]

_Step: TypeAlias = Callable[[list[Any]], None]

PROGRAMS = 4  # shapes of inputs that an accelerated model is kept ready for
# Samples of each contender, when a layer is given to whoever is faster; and seconds that are enough for all of them.
_SAMPLES, _MOST_SAMPLES, _ENOUGH = 3, 11, 0.01
_CANDIDATES = 3  # algorithms of this engine that are timed
_UNLIKELY = 3.0  # times slower than the best, by its estimate: not timed
_COLD_MODEL, _COLD_LAYER = 12 << 20, 128 << 10  # bytes of weights from which on they are read from memory
_FEW_ROWS = 8  # fewer, and a fully connected layer is left to PyTorch
_LAST: dict[int, Any] = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Row:
    """What runs one layer, and what it gained; times in seconds, nan where nothing was measured."""

    name: str
    what: str
    runs: str
    ours: float = math.nan
    theirs: float = math.nan


@dataclass(frozen=True)
class Report:
    """What was done to a model, layer by layer; print it."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        wide = max([len(row.name) for row in self.rows] + [5])
        what = max([len(row.what) for row in self.rows] + [4])
        lines = [f"{'layer':<{wide}}  {'what':<{what}}  {'runs on':<18} {'ours':>9} {'PyTorch':>9}"]
        for row in self.rows:
            times = "".join(f" {t * 1e3:6.3g} ms" if t == t else " " * 10 for t in (row.ours, row.theirs))
            lines.append(f"{row.name:<{wide}}  {row.what:<{what}}  {row.runs:<18}{times}".rstrip())
        return "\n".join([*lines, *self.notes])


def accelerate(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> nn.Module:
    """Return a model for inference that computes what another does, faster.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode, on the CPU. Not changed; later changes of its weights have no effect on the result.
    example_input : Tensor, or tuple of Tensors
        What the model will be called with. Other shapes and types may follow: each is prepared when it is first met.

    Returns
    -------
    torch.nn.Module
        Called as the model is, without gradients. Its ``report`` says layer by layer what runs and what it gained.

    Raises
    ------
    ValueError
        If the model is in training mode.
    TypeError
        If it is no model, or the example is not made of tensors.

    Notes
    -----
    Batch normalisations are folded into convolutions; additions and activations are applied to the results of
    convolutions while these are in the cache; images keep their channels last in memory; results lie in memory that
    every call uses again. Each layer is timed beside PyTorch's own, and left to it where that is faster; so is the
    whole. A model that `torch.fx` cannot trace keeps its own program, with its layers replaced
    (`wherever.torch.replace`).

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
    >>> fast = accelerate(model, torch.zeros(1, 3, 16, 16))
    >>> fast(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 8, 14, 14])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"model: {training[0]} is in training mode, in which batch normalisation and dropout change with every "
            "call; call model.eval() first (for faster training, see wherever.torch.replace)"
        )
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    for place, tensor in enumerate(example):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"example_input: expected tensors, got {type(tensor).__name__} in place {place}")
    try:
        graph = traced(model)
    except Exception as error:  # tracing runs the model's own program, which may raise anything
        swapped = replace(copy.deepcopy(model))
        reason = f"could not be traced ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        rows = [Row(name, _words(m), "wherever") for name, m in swapped.named_modules() if hasattr(m, "_jobs")]
        report = Report(tuple(rows), (f"The model {reason}: its layers were replaced one by one.",))
        swapped.report = cast(Any, report)
        return swapped
    folded = fold_normalisations(graph)
    fold_scales(graph)
    add_before_permuting(graph)
    fast = Accelerated(graph, folded)
    fast(*example)
    return fast


class Accelerated(nn.Module):
    """A model prepared for inference: see `accelerate`.

    Attributes
    ----------
    report : Report
        Of the inputs that it was called with last.
    """

    def __init__(self, graph: fx.GraphModule, folded: dict[str, str]) -> None:
        super().__init__()
        self.graph = graph.requires_grad_(False)
        self.report = Report(())
        self._folded = folded
        self._programs: dict[Any, _Program | _Left] = {}
        self._lock = threading.Lock()

    def forward(self, *inputs: Tensor) -> Any:
        """Compute what the model computes, without gradients."""
        key = tuple((tuple(t.shape), t.dtype, t.stride()) for t in inputs), torch.get_num_threads()
        with self._lock, torch.no_grad():  # one call at a time: they use the same memory
            program = self._programs.get(key)
            if program is None:
                program = self._faster(_Program(self.graph, inputs, self._folded), inputs)
                while len(self._programs) >= PROGRAMS:
                    self._programs.pop(next(iter(self._programs)))
                self._programs[key] = program
            self.report = program.report
            return program(inputs)

    def _faster(self, program: _Program, inputs: tuple[Tensor, ...]) -> _Program | _Left:
        """A program, or PyTorch's own run of the folded model, if that is faster as a whole."""
        left = _Left(self.graph, program.report)
        ours, theirs = _whole_contest([program, left], inputs)
        return left if theirs < ours else program

    def train(self, mode: bool = True) -> Accelerated:
        """Refuse to train: its weights are folded and packed."""
        if mode:
            raise ValueError("an accelerated model cannot be trained; train the original, and accelerate it again")
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_lock"]
        state["_programs"] = {}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()


class _Program:
    """A traced model for inputs of one shape: a list of steps over one list of values, and the memory for them."""

    def __init__(self, graph: fx.GraphModule, inputs: tuple[Tensor, ...], folded: dict[str, str]) -> None:
        self._threads = torch.get_num_threads()
        self._modules = dict(graph.named_modules())
        self._nodes = list(graph.graph.nodes)
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._joined = {layer.node: layer for layer in layers(graph)}
        self._graph = graph
        self._shown: dict[tuple[int, bool], tuple[Tensor, Array]] = {}
        self._weights = sum(p.numel() * p.element_size() for p in graph.parameters())
        self._folded = folded
        self._rows: list[Row] = []
        self._samples = self._sample(_copies(inputs))
        self.memory = _Memory()
        self._steps: list[_Step] = []
        done: set[fx.Node] = set()
        for node in self._nodes:
            if node in done or node.op == "placeholder":
                continue
            layer = self._joined.get(node)
            step = self._pooling(node) if layer is None else self._layer(layer)
            if step is not None:
                done.update([] if layer is None else layer.joined)
                self._steps.append(step)
            elif node.op != "output":
                self._steps.append(self._theirs(node))
        self.report = Report(tuple(self._rows))
        del self._samples
        self._inputs = [self._place[node] for node in self._nodes if node.op == "placeholder"]
        (self._output,) = [node for node in self._nodes if node.op == "output"]

    def __call__(self, inputs: tuple[Tensor, ...]) -> Any:
        values: list[Any] = [None] * len(self._nodes)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            values[place] = tensor
        for step in self._steps:
            step(values)
        return fx.node.map_arg(self._output.args[0], lambda node: self._kept(values[self._place[node]]))

    def _kept(self, value: Any) -> Any:
        """A result in memory of its own, if it is in that of the program."""
        return value.clone() if isinstance(value, Tensor) and self.memory.holds(value) else value

    def _sample(self, inputs: tuple[Tensor, ...]) -> dict[fx.Node, Any]:
        """What every node computes from the example, by PyTorch."""
        found: dict[fx.Node, Any] = {}
        given = iter(inputs)

        class Recorder(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Any:
                found[node] = super().run_node(node)
                return found[node]

        Recorder(self._graph).run(*given)
        return found

    def _theirs(self, node: fx.Node) -> _Step:
        """A step that PyTorch computes."""
        target: Any = "reshape" if node.op == "call_method" and node.target == "view" else node.target
        place = self._place[node]
        find = self._place

        def arguments(values: list[Any]) -> tuple[Any, Any]:
            look = lambda n: values[find[n]]  # noqa: E731
            return fx.node.map_arg(node.args, look), fx.node.map_arg(node.kwargs, look)

        if node.op == "get_attr":
            constant = operator.attrgetter(target)(self._graph)

            def step(values: list[Any]) -> None:
                values[place] = constant
        elif node.op == "call_method":

            def step(values: list[Any]) -> None:
                (own, *rest), options = arguments(values)
                values[place] = getattr(own, target)(*rest, **options)
        else:
            function = self._modules[target] if node.op == "call_module" else target

            def step(values: list[Any]) -> None:
                given, options = arguments(values)
                values[place] = function(*given, **options)

        return step

    def _layer(self, layer: Layer) -> _Step | None:
        """A step on this engine; None if it does not compute this layer, or PyTorch is faster."""
        module: Any = self._modules[str(layer.node.target)]
        given, sample = layer.node.args[0], self._samples[layer.node]
        assert isinstance(given, fx.Node)
        x = self._samples[given]
        words = " + ".join(
            [
                _words(module),
                *(["batch normalisation"] if layer.node.target in self._folded else []),
                *(["addition"] if layer.added is not None else []),
                *([layer.activation] if layer.activation else []),
            ]
        )
        linear = isinstance(module, nn.Linear)
        problem = _of_rows(module, x) if linear else _problem(module, x)
        added = None if layer.added is None else self._samples[layer.added]
        if problem is None or (added is not None and added.shape != sample.shape):
            if not linear:
                self._rows.append(Row(str(layer.node.target), words, "PyTorch"))
            return None
        now, until = self._place[layer.node], self._last_use(layer.last)
        result, block = self.memory.take(sample, now, until, last=not linear)
        source, place = self._place[given], self._place[layer.last]
        other = None if layer.added is None else self._place[layer.added]
        threads, activation = self._threads, layer.activation
        view = _rows if linear else _channels_last
        out, finish = view(result), Finish(activation, other is not None)
        ours = finish.possible(problem.dtype.name)

        # A view takes as long as a tiny layer: that of a result that always lies in the same place is kept.
        nobody: tuple[Tensor | None, Array] = (None, out)
        known, shown = self._shown.get((source, linear), nobody)
        other_known, other_shown = self._shown.get((other, linear), nobody) if other is not None else nobody

        def with_algorithm(prepared: Prepared) -> _Step:
            compute = finishing(prepared, finish if ours else NOTHING)

            def step(values: list[Any]) -> None:
                x, y = values[source], None if other is None else values[other]
                beside = None if y is None or not ours else other_shown if y is other_known else view(y)
                compute(shown if x is known else view(x), out, threads, beside)
                if not ours:
                    apply_activation(activation, result if y is None else result.add_(y))
                values[place] = result

            return step

        def theirs(values: list[Any]) -> None:
            y = module(values[source])
            apply_activation(activation, y if other is None else y.add_(values[other]))

        values: list[Any] = [None] * len(self._nodes)
        values[source] = x if linear or given.op == "placeholder" else _ordered(x)
        if other is not None and added is not None:
            values[other] = added.contiguous() if linear else _ordered(added)
        weight, bias = as_array(module.weight), None if module.bias is None else as_array(module.bias)
        weight = weight[..., None] if linear else weight
        willing = [c for c in choose(problem, threads=threads).candidates if c.refusal is None][:_CANDIDATES]
        likely = [c for c in willing if c.estimate < _UNLIKELY * willing[0].estimate]
        steps = {c.algorithm.name: with_algorithm(c.algorithm.prepare(problem, weight, bias)) for c in likely}
        cold = weight.nbytes > _COLD_LAYER and self._weights > _COLD_MODEL
        step = self._faster(layer.node, words, steps, theirs, values, values[source] if cold else None)
        if step is None:
            block.until = -1
        else:
            self._shown[place, linear] = result, out
        return step

    def _pooling(self, node: fx.Node) -> _Step | None:
        """A step on this engine; None if a node is no pooling, none of ours, or PyTorch is faster."""
        given: Any = node.args[0] if node.args else None
        if not isinstance(given, fx.Node) or node.op == "output":
            return None
        x, sample = self._samples[given], self._samples[node]
        pooling = pooling_of(node, self._modules, x, sample)
        if pooling is None:
            return None
        source, place = self._place[given], self._place[node]
        result, block = self.memory.take(sample, place, self._last_use(node), last=sample.ndim == x.ndim)
        ordered = _ordered(x)
        image = _channels_last(ordered)
        out = _channels_last(result).reshape(*image.shape[:1], *(len(w.first) for w in pooling.windows), -1)
        pool = pooler(pooling, image, out, self._threads)
        known, shown = self._shown.get((source, False), (None, image))
        theirs = self._theirs(node)

        def step(values: list[Any]) -> None:
            x = values[source]
            given = shown if x is known else _channels_last(x)
            if _strides(given) != _strides(image):
                theirs(values)
                return
            pool(given)
            values[place] = result

        values: list[Any] = [None] * len(self._nodes)
        values[source] = ordered
        cold = ordered if self._weights > _COLD_MODEL else None  # PyTorch's program is no longer in the caches either
        faster = self._faster(node, pooling.words, {"pool": step}, theirs, values, cold)
        if faster is None:
            block.until = -1
        elif sample.ndim == x.ndim:
            self._shown[place, False] = result, out
        return faster

    def _faster(
        self,
        node: fx.Node,
        words: str,
        ours: dict[str, _Step],
        theirs: _Step,
        values: list[Any],
        cold: Tensor | None,
    ) -> _Step | None:
        """The fastest of our steps, or None if PyTorch's is faster; and a row of the report."""
        *times, other = _contest([*ours.values(), theirs], values, cold)
        seconds, name = min(zip(times, ours, strict=True))
        wins = seconds <= other
        self._rows.append(Row(_name(node), words, name if wins else "PyTorch", seconds, other))
        return ours[name] if wins else None

    def _last_use(self, last: fx.Node) -> float:
        """The place of the last node that may look at a node's result: what PyTorch returns may be a view of it."""
        latest, reached, seen = 0, [last], {last}
        inner = {node: other for other in self._joined.values() for node in (other.node, *other.joined)}
        while reached:
            for user in reached.pop().users:
                if user.op == "output":
                    return math.inf
                latest = max(latest, self._place[user])
                owner = inner.get(user)
                if owner is not None:
                    latest = max(latest, self._place[owner.last])
                follows = user if owner is None else owner.last
                # A layer left to PyTorch returns memory of its own; but in its place an addition may be in place.
                if follows not in seen and (owner is None or owner.added is not None):
                    seen.add(follows)
                    reached.append(follows)
        return latest


class _Left:
    """A model that is left to PyTorch as a whole."""

    def __init__(self, graph: fx.GraphModule, report: Report) -> None:
        self._graph = graph
        note = "As a whole it is faster in PyTorch, with what could be folded: none of this is used."
        self.report = changed(report, notes=(*report.notes, note))

    def __call__(self, inputs: tuple[Tensor, ...]) -> Any:
        return self._graph(*inputs)


@dataclass
class _Block:
    """Memory that results share one after the other: taken until so many nodes are done."""

    memory: Array
    until: float = -1


class _Memory:
    """Results of convolutions, in memory that every call uses again."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def take(self, like: Tensor, now: int, until: float, *, last: bool) -> tuple[Tensor, _Block]:
        """Return memory for a tensor of this shape and type, from one node to another; channels last, or in order."""
        dtype = DTYPES[like.dtype]
        count = math.prod(like.shape) * dtype.itemsize
        free = [b for b in self._blocks if b.until < now and b.memory.size >= count]
        if free:
            block = min(free, key=lambda b: b.memory.size)
        else:
            block = _Block(fresh(count, np.dtype(np.uint8)))
            self._blocks.append(block)
        block.until = until
        flat = block.memory[:count].view(dtype)
        if not last:
            return torch.from_numpy(flat.reshape(like.shape)), block
        n, c, *size = like.shape
        return torch.from_numpy(flat.reshape(n, *size, c)).movedim(-1, 1), block

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in this memory."""
        where = tensor.untyped_storage().data_ptr()
        return any(0 <= where - b.memory.ctypes.data < max(b.memory.nbytes, 1) for b in self._blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(b.memory.nbytes for b in self._blocks)


def _ordered(x: Tensor) -> Tensor:
    """The tensor as a program's own results lie: channels last."""
    last = _LAST.get(x.ndim)
    return x if last is None else x.contiguous(memory_format=last)


def _problem(module: Any, x: Tensor) -> Any:
    """The problem of a layer, with channels last; None if it is not this engine's."""
    if not isinstance(x, Tensor) or x.ndim != module.weight.ndim or x.dtype is torch.bfloat16:
        return None
    spatial = x.ndim - 2
    if module.transposed:
        geometry = transposed_geometry(
            spatial,
            x,
            module.weight,
            module.bias,
            module.stride,
            module.padding,
            module.output_padding,
            module.groups,
            module.dilation,
        )
        boundary = "zeros"
        make: Any = by_input_problem
    else:
        geometry = forward_geometry(
            spatial, x, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups
        )
        boundary = BOUNDARIES[module.padding_mode]
        make = forward_problem
    if geometry is None:
        return None
    return changed(make(x, module.weight, *geometry, boundary), layout="channels_last")


def _of_rows(module: nn.Linear, x: Tensor) -> ConvProblem | None:
    """The problem of a fully connected layer: a kernel of one place, on as many places as x has rows."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64) or x.shape[-1] != module.in_features:
        return None
    rows = x.numel() // max(1, x.shape[-1])
    if rows < _FEW_ROWS or module.weight.dtype is not x.dtype:
        return None  # reading the weights is all there is to do
    return ConvProblem.from_shapes(
        (1, rows, module.in_features),
        (module.out_features, module.in_features, 1),
        layout="channels_last",
        dtype=DTYPES[x.dtype].name,
    )


def _name(node: fx.Node) -> str:
    """What a node is called in the report: as its module is in the model."""
    return str(node.target) if node.op == "call_module" else node.name


def _channels_last(tensor: Tensor) -> Array:
    """A tensor (N, C, *S) as an image (N, *S, C)."""
    return as_array(tensor, "channels_last")


def _strides(image: Array) -> tuple[int, ...]:
    """Its strides, as far as they are used."""
    return tuple(stride for stride, count in zip(image.strides, image.shape, strict=True) if count > 1)


def _rows(tensor: Tensor) -> Array:
    """A tensor as an image of one row: (1, places, channels)."""
    array: Array = tensor.detach().numpy()
    return array.reshape(1, -1, array.shape[-1])


def _words(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return f"fully connected {module.in_features} to {module.out_features}"
    kernel = "x".join(map(str, module.kernel_size))  # type: ignore[arg-type]
    stride = set(module.stride)  # type: ignore[arg-type]
    steps = "" if stride == {1} else f" stride {'x'.join(map(str, module.stride))}"  # type: ignore[arg-type]
    return f"{kernel} {module.in_channels} to {module.out_channels}{steps}"


def _contest(steps: list[_Step], values: list[Any], cold: Tensor | None) -> list[float]:
    """The least seconds of each step, which other work disturbed least, in turns.

    In a network whose weights outgrow the caches, those of a layer come from memory at every call, and its input does
    not: ``cold`` is that input, and everything else is driven out of the caches before each sample.
    """
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(_MOST_SAMPLES + 1):
        for spent, step in zip(times, steps, strict=True):
            if cold is not None:
                _others().sum()
                cold.sum()
            start = time.perf_counter()
            step(values)
            if turn:
                spent.append(time.perf_counter() - start)
        if turn >= _SAMPLES and sum(map(sum, times)) > _ENOUGH:
            break
    return [min(spent) for spent in times]


def _copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies of the inputs, which a model may change in place: once a call, and no more often."""
    return tuple(tensor.clone() for tensor in inputs)


def _whole_contest(runs: list[Callable[[tuple[Tensor, ...]], Any]], inputs: tuple[Tensor, ...]) -> list[float]:
    """Seconds of each way to run a whole model, in turns."""
    steps: list[_Step] = [lambda values, run=run: run(_copies(inputs)) for run in runs]  # type: ignore[misc]
    return _contest(steps, [], None)


@functools.cache
def _others() -> Tensor:
    """More numbers than the caches hold."""
    return torch.ones(16 << 20)
