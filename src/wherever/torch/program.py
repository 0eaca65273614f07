"""Programs: a traced network for inputs of one shape, as a list of steps over one list of values, and their memory."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from wherever.engine.run import fresh
from wherever.problem import Array
from wherever.torch.contests import contest
from wherever.torch.depth_first import DepthFirst
from wherever.torch.graphs import CONCATENATIONS, NORMALISATIONS, Layer, apply_activation, joined_concatenations, layers
from wherever.torch.operators import DTYPES
from wherever.torch.pooling import pooling_of
from wherever.torch.report import Report, Row
from wherever.torch.stages import Compute, Convolution, Pool, Stage, channels_last, convolution_of

__all__ = ["Memory", "Program", "layer_words"]

_Step: TypeAlias = Callable[[list[Any]], None]

_COLD_MODEL, _COLD_LAYER = 12 << 20, 128 << 10  # bytes of weights from which on they are read from memory
_WORTH_MIXING = 1.5  # times faster that a layer is in PyTorch, among this engine's and with several threads
_LARGE = 1 << 20  # bytes of a result that the second cache does not keep for the next stage
_BANDS = (1 << 19, 1 << 21, 1 << 23)  # bytes of the largest result between stages, of a band of it
_ROWS = 4  # a band has a multiple of so many
_LAST: dict[int, Any] = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass
class _Chosen:
    """A stage that this engine computes: how, by which name, and in how many seconds."""

    stage: Stage
    way: str
    compute: Compute
    seconds: float


@dataclass
class _Group:
    """Stages that are computed depth first."""

    members: list[_Chosen]
    bands: DepthFirst


class Program:
    """A traced model for inputs of one shape.

    Parameters
    ----------
    graph : fx.GraphModule
    inputs : tuple of Tensor
        An example; not changed.
    folded : dict
        Names of layers with a normalisation folded into their weights.
    """

    def __init__(self, graph: fx.GraphModule, inputs: tuple[Tensor, ...], folded: dict[str, str]) -> None:
        self._threads = torch.get_num_threads()
        self._graph = graph
        self._modules = dict(graph.named_modules())
        self._nodes = list(graph.graph.nodes)
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._joined = {layer.node: layer for layer in layers(graph)}
        self._owned = {node for layer in self._joined.values() for node in (layer.node, *layer.joined)}
        self._weights = sum(p.numel() * p.element_size() for p in graph.parameters())
        self._folded = folded
        self._samples = _sampled(graph, tuple(tensor.clone() for tensor in inputs))
        self._rows: list[Row] = []
        self._notes: list[str] = []
        self._parts = self._concatenations()
        chosen = self._choose()
        groups = self._grouped(chosen)
        self._build(chosen, groups)
        self.report = Report(tuple(self._rows), tuple(self._notes))
        del self._samples
        self._inputs = [self._place[node] for node in self._nodes if node.op == "placeholder"]
        (self._output,) = [node for node in self._nodes if node.op == "output"]

    def __call__(self, inputs: tuple[Tensor, ...]) -> Any:
        """Compute the model's result."""
        values: list[Any] = [None] * len(self._nodes)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            values[place] = tensor
        for step in self._steps:
            step(values)
        return fx.node.map_arg(self._output.args[0], lambda node: self._kept(values[self._place[node]]))

    def _kept(self, value: Any) -> Any:
        """A result in memory of its own, if it is in that of the program.

        Copied by NumPy: PyTorch's threads would look for more work while the next call needs the processors.
        """
        held = isinstance(value, Tensor) and self.memory.holds(value)
        return torch.from_numpy(value.numpy().copy(order="K")) if held else value

    # First: who computes what.

    def _choose(self) -> dict[fx.Node, _Chosen]:
        """The stages that this engine computes faster than PyTorch, by the node at which they are computed."""
        chosen: dict[fx.Node, _Chosen] = {}
        done: set[fx.Node] = set()
        for node in self._nodes:
            stage = None if node in done or node.op in ("placeholder", "output") else self._stage(node)
            found = None if stage is None else self._faster(stage)
            if found is not None:
                chosen[node] = found
                done.update(self._members(found.stage))
        return chosen

    def _stage(self, node: fx.Node) -> Stage | None:
        """What this engine can compute at a node."""
        layer = self._joined.get(node)
        given: Any = node.args[0] if node.args else None
        if not isinstance(given, fx.Node):
            return None
        if layer is None:
            pooling = pooling_of(node, self._modules, self._samples[given], self._samples[node])
            return None if pooling is None else Pool(node, pooling)
        module = self._modules[str(node.target)]
        words = self._words(layer, module)
        stage = convolution_of(layer, module, self._samples[given], words)
        added = None if layer.added is None else self._samples[layer.added]
        if stage is None or (added is not None and added.shape != self._samples[node].shape):
            if not isinstance(module, nn.Linear):
                self._rows.append(Row(str(node.target), words, "PyTorch"))
            return None
        return stage

    def _words(self, layer: Layer, module: Any) -> str:
        parts = [
            layer_words(module),
            *(["batch normalisation"] if layer.node.target in self._folded else []),
            *(["addition"] if layer.added is not None else []),
            *([layer.activation] if layer.activation else []),
        ]
        return " + ".join(parts)

    def _faster(self, stage: Stage) -> _Chosen | None:
        """The fastest way of a stage, or None if PyTorch's is faster; and a row of the report."""
        x = self._as_it_lies(stage.source, stage)
        other = None if stage.other is None else self._as_it_lies(stage.other, stage)
        out = self._place_for(stage)
        image, result = stage.view(x), stage.view(out)
        beside = None if other is None else stage.view(other)
        ways = stage.ways(self._threads)
        ours = [functools.partial(way, image, result, self._threads, beside) for way in ways.values()]
        if isinstance(stage, Convolution):
            module, activation = stage.module, stage.layer.activation
            cold = self._weights > _COLD_MODEL and stage.weight.nbytes > _COLD_LAYER

            def theirs() -> None:
                y = module(x)
                apply_activation(activation, y if other is None else y.add_(other))
        else:
            cold = self._weights > _COLD_MODEL  # PyTorch's program is no longer in the caches either
            values: list[Any] = [None] * len(self._nodes)
            values[self._place[stage.source]] = x
            theirs = functools.partial(self._theirs(stage.node), values)
        *times, peer = contest([*ours, theirs], [out, x] if cold else None)
        seconds, name = min(zip(times, ways, strict=True))
        # Where PyTorch's threads have just worked, they go on looking for more, on processors that ours wait for.
        wins = seconds <= peer * (1 if self._threads == 1 else _WORTH_MIXING)
        self._rows.append(Row(stage.name, stage.words, name if wins else "PyTorch", seconds, peer))
        return _Chosen(stage, name, ways[name], seconds) if wins else None

    def _as_it_lies(self, node: fx.Node, stage: Stage) -> Tensor:
        """A sample of what a node computes, in the memory order in which it will be there."""
        x: Tensor = self._samples[node]
        if isinstance(stage, Convolution) and stage.linear:
            return x.contiguous()
        if node in self._parts:
            whole, begin = self._parts[node]
            wide = _empty(self._samples[whole])[:, begin : begin + x.shape[1]]
            return wide.copy_(x)
        last = _LAST.get(x.ndim)
        return x if node.op == "placeholder" or last is None else x.contiguous(memory_format=last)

    def _place_for(self, stage: Stage) -> Tensor:
        """Memory for the result of a stage, as it will be."""
        like = self._samples[stage.last]
        if isinstance(stage, Convolution) and stage.linear:
            return torch.empty(like.shape, dtype=like.dtype)
        if stage.last in self._parts:
            whole, begin = self._parts[stage.last]
            return _empty(self._samples[whole])[:, begin : begin + like.shape[1]]
        return _empty(like)

    # Second: what is computed depth first.

    def _grouped(self, chosen: dict[fx.Node, _Chosen]) -> list[_Group]:
        """Stages that are faster band by band."""
        found: list[_Group] = []
        rest = list(chosen.values())
        while rest:
            chain = [rest.pop(0)]
            while rest and self._follows(chain[-1], rest[0]):
                chain.append(rest.pop(0))
            found += self._split(chain)
        return found

    def _follows(self, first: _Chosen, second: _Chosen) -> bool:
        """Whether a stage is the only one to read what another computes, and that is too large for the caches."""
        a, b = first.stage, second.stage
        alone = b.source is a.last and len(a.last.users) == 1 and b.other is not a.last
        y = self._samples[a.last]
        between = self._nodes[self._place[a.last] + 1 : self._place[b.node]]
        # All of it is computed where the last of it is: what stands between must not change what it reads.
        alone = alone and all(node in self._owned for node in between)
        able = all(stage.rows and stage.reads(range(1)) is not None for stage in (a, b))
        return alone and able and y.ndim > 2 and y.numel() * y.element_size() > _LARGE

    def _split(self, chain: list[_Chosen]) -> list[_Group]:
        """The groups of a chain: all of it, or those of its parts before and behind its smallest result."""
        if len(chain) < 2:
            return []
        found = self._bands(chain)
        if found is not None:
            return [found]
        sizes = [self._samples[each.stage.last].numel() for each in chain[:-1]]
        cut = 1 + sizes.index(min(sizes))
        return self._split(chain[:cut]) + self._split(chain[cut:])

    def _bands(self, chain: list[_Chosen]) -> _Group | None:
        """A chain computed depth first, if that is faster than one stage after the other."""
        stages = [each.stage for each in chain]
        images = [stage.view(_empty(self._samples[stage.last])) for stage in stages[:-1]]
        final = stages[-1].view(self._place_for(stages[-1]))
        first = stages[0].view(self._as_it_lies(stages[0].source, stages[0]))
        others = [None if s.other is None else s.view(self._as_it_lies(s.other, s)) for s in stages]
        largest = max(image.nbytes for image in images)
        heights = {max(1, stages[-1].rows * size // largest // _ROWS) * _ROWS for size in _BANDS}
        ways: dict[DepthFirst, Callable[[], object]] = {}
        for height in sorted(height for height in heights if height < stages[-1].rows):
            shapes = [image.shape for image in images]
            names = [each.way for each in chain]
            try:
                bands = DepthFirst(stages, names, shapes, final.dtype, height, self._threads)
            except ValueError:
                continue
            ways[bands] = functools.partial(bands.run, first, final, others)
        if not ways:
            return None

        def in_turn() -> None:
            for each, x, y, beside in zip(chain, [first, *images], [*images, final], others, strict=True):
                each.compute(x, y, self._threads, beside)

        *times, whole = contest([*ways.values(), in_turn])
        seconds, bands = min(zip(times, ways, strict=True), key=lambda pair: pair[0])
        if seconds >= whole:
            return None
        saved = (sum(image.nbytes for image in images) - bands.nbytes) / 2**20
        times_in_words = f"{seconds * 1e3:.3g} ms instead of {whole * 1e3:.3g}"
        what = f"{stages[0].name} to {stages[-1].name}: depth first, {bands.rows} rows at a time"
        self._notes.append(f"{what}: {times_in_words}, and {saved:.3g} MiB less in between.")
        return _Group(chain, bands)

    # Third: steps, and where their results lie.

    def _build(self, chosen: dict[fx.Node, _Chosen], groups: list[_Group]) -> None:
        """The steps of the program, and its memory."""
        self.memory = Memory()
        self._steps: list[_Step] = []
        self._when = dict(self._place)
        self._shown: dict[tuple[fx.Node, bool], tuple[Tensor, Array]] = {}
        self._wholes: dict[fx.Node, Tensor] = {}
        ends: dict[fx.Node, _Group] = {group.members[-1].stage.node: group for group in groups}
        inner = {each.stage.node for group in groups for each in group.members}
        done: set[fx.Node] = set()
        for each in chosen.values():
            done.update(self._members(each.stage))
        for group in groups:
            for each in group.members:
                for node in self._members(each.stage):
                    self._when[node] = self._place[group.members[-1].stage.last]
        ours = {each.stage.last for each in chosen.values()}
        joinings = {whole for part, (whole, _) in self._parts.items() if part in ours}
        for node in self._nodes:
            if node.op in ("placeholder", "output"):
                continue
            if node in ends:
                self._steps.append(self._group(ends[node]))
            elif node in inner:
                continue
            elif node in chosen:
                self._steps.append(self._single(chosen[node]))
            elif node in joinings:
                self._steps.append(self._joining(node))
            elif node not in done:
                self._steps.append(self._theirs(node))

    def _single(self, each: _Chosen) -> _Step:
        """A step of one stage."""
        stage, compute, threads = each.stage, each.compute, self._threads
        result = self._result(stage, self._place[stage.node])
        place, out = self._place[stage.last], self._show(stage, result)
        x_of, beside_of = self._viewer(stage, stage.source), self._viewer(stage, stage.other)

        def step(values: list[Any]) -> None:
            compute(x_of(values), out, threads, beside_of(values))
            values[place] = result

        return step

    def _group(self, group: _Group) -> _Step:
        """A step of stages depth first."""
        stages, bands = [each.stage for each in group.members], group.bands
        last = stages[-1]
        result = self._result(last, self._place[last.node])
        place, out = self._place[last.last], self._show(last, result)
        x_of = self._viewer(stages[0], stages[0].source)
        besides = [self._viewer(stage, stage.other) for stage in stages]

        def step(values: list[Any]) -> None:
            bands.run(x_of(values), out, [of(values) for of in besides])
            values[place] = result

        return step

    def _viewer(self, stage: Stage, node: fx.Node | None) -> Callable[[list[Any]], Any]:
        """What shows a value as an image. A view takes as long as a tiny layer: one of fixed memory is kept."""
        if node is None:
            return lambda values: None
        place, view = self._place[node], stage.view
        nobody: tuple[Any, Any] = (None, None)
        known, shown = self._shown.get((node, _is_linear(stage)), nobody)

        def look(values: list[Any]) -> Array:
            value = values[place]
            return shown if value is known else view(value)

        return look

    def _show(self, stage: Stage, result: Tensor) -> Array:
        """A result that always lies in the same place, as an image."""
        out = stage.view(result)
        self._shown[stage.last, _is_linear(stage)] = result, out
        return out

    def _result(self, stage: Stage, now: int) -> Tensor:
        """Memory for the result of a stage that is computed at some place of the program."""
        like = self._samples[stage.last]
        if stage.last not in self._parts:
            return self.memory.take(like, now, self._last_use(stage.last), last=not _is_linear(stage))
        whole, begin = self._parts[stage.last]
        return self._whole(whole, now)[:, begin : begin + like.shape[1]]

    def _whole(self, node: fx.Node, now: int) -> Tensor:
        """Memory for a concatenation, from the first of its parts to the last use of any."""
        if node not in self._wholes:
            parts = [part for part, (whole, _) in self._parts.items() if whole is node]
            until = max(self._last_use(each) for each in (node, *parts))
            self._wholes[node] = self.memory.take(self._samples[node], now, until, last=True)
        return self._wholes[node]

    def _joining(self, node: fx.Node) -> _Step:
        """A concatenation, of which some parts lie in their place already."""
        whole, place = self._whole(node, self._place[node]), self._place[node]
        parts: list[tuple[int, Tensor]] = []
        begin = 0
        for part in cast(list[fx.Node], node.args[0]):
            count = self._samples[part].shape[1]
            parts.append((self._place[part], whole[:, begin : begin + count]))
            begin += count
        there = [target.data_ptr() for _, target in parts]
        self._shown[node, False] = whole, channels_last(whole)

        def step(values: list[Any]) -> None:
            for (source, target), address in zip(parts, there, strict=True):
                if values[source].data_ptr() != address:
                    target.copy_(values[source])
            values[place] = whole

        return step

    def _theirs(self, node: fx.Node) -> _Step:
        """A step that PyTorch computes."""
        target: Any = "reshape" if node.op == "call_method" and node.target == "view" else node.target
        place, find = self._place[node], self._place

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

    def _members(self, stage: Stage) -> list[fx.Node]:
        """The nodes that a stage computes."""
        layer = self._joined.get(stage.node)
        return [stage.node, *([] if layer is None else layer.joined)]

    def _last_use(self, last: fx.Node) -> float:
        """The place of the last node that may look at a node's result: what PyTorch returns may be a view of it."""
        latest, reached, seen = 0, [last], {last}
        inner = {node: other for other in self._joined.values() for node in (other.node, *other.joined)}
        while reached:
            for user in reached.pop().users:
                if user.op == "output":
                    return math.inf
                latest = max(latest, self._when[user])
                owner = inner.get(user)
                if owner is not None:
                    latest = max(latest, self._when[owner.last])
                follows = user if owner is None else owner.last
                # A layer left to PyTorch returns memory of its own; but in its place an addition may be in place.
                if follows not in seen and (owner is None or owner.added is not None):
                    seen.add(follows)
                    reached.append(follows)
        return latest

    def _concatenations(self) -> dict[fx.Node, tuple[fx.Node, int]]:
        """Of each result that is to lie where it will be joined with others: the concatenation, and its first channel.

        Only where nobody can change either in place: whoever reads them is a layer, a pooling or a concatenation.
        """
        found: dict[fx.Node, tuple[fx.Node, int]] = {}
        ends = {layer.last for layer in self._joined.values()}
        for node, parts in joined_concatenations(self._graph):
            samples = [self._samples[part] for part in parts]
            whole = self._samples[node]
            plain = whole.ndim in (3, 4, 5) and whole.dtype in (torch.float32, torch.float64)
            if not plain or any(s.dtype is not whole.dtype for s in samples) or len(set(parts)) < len(parts):
                continue
            if not all(self._only_read(each) for each in (node, *parts)):
                continue
            begin = 0
            for part, sample in zip(parts, samples, strict=True):
                if part in ends and part not in found and sample.shape[1]:
                    found[part] = node, begin
                begin += sample.shape[1]
        return found

    def _only_read(self, node: fx.Node) -> bool:
        """Whether nobody changes what a node computes, or looks at it through a view."""
        inner = {n: layer for layer in self._joined.values() for n in layer.joined}
        for user in node.users:
            layer = inner.get(user)
            if layer is not None and layer.added is node:
                continue
            module = self._modules[str(user.target)] if user.op == "call_module" else None
            reads = user in self._joined or isinstance(module, NORMALISATIONS) or user.target in CONCATENATIONS
            if not reads and pooling_of(user, self._modules, self._samples[node], self._samples[user]) is None:
                return False
        return True


def _sampled(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[fx.Node, Any]:
    """What every node computes from an example, by PyTorch."""
    found: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            found[node] = super().run_node(node)
            return found[node]

    Recorder(graph).run(*inputs)
    return found


def _empty(like: Tensor) -> Tensor:
    """Memory for such a tensor, channels last."""
    n, c, *size = like.shape
    return torch.empty((n, *size, c), dtype=like.dtype).movedim(-1, 1)


def _is_linear(stage: Stage) -> bool:
    return isinstance(stage, Convolution) and stage.linear


def layer_words(module: Any) -> str:
    """Return what a layer is, in words."""
    if isinstance(module, nn.Linear):
        return f"fully connected {module.in_features} to {module.out_features}"
    kernel = "x".join(map(str, module.kernel_size))
    steps = "" if set(module.stride) == {1} else f" stride {'x'.join(map(str, module.stride))}"
    return f"{kernel} {module.in_channels} to {module.out_channels}{steps}"


@dataclass
class _Block:
    """Memory that results share one after the other: taken until so many nodes are done."""

    memory: Array
    until: float = -1


class Memory:
    """Results of stages, in memory that every call uses again."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def take(self, like: Tensor, now: int, until: float, *, last: bool) -> Tensor:
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
            return torch.from_numpy(flat.reshape(like.shape))
        n, c, *size = like.shape
        return torch.from_numpy(flat.reshape(n, *size, c)).movedim(-1, 1)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in this memory."""
        where = tensor.untyped_storage().data_ptr()
        return any(0 <= where - b.memory.ctypes.data < max(b.memory.nbytes, 1) for b in self._blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(b.memory.nbytes for b in self._blocks)
