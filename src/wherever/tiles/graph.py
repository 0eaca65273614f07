"""Graphs of local operations: what each output sees of the input, and boxes of the output computed from that alone."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

import numpy as np

from wherever.tiles.axes import Interval, Places, Rule, Runs, Window, continued, length, locate, real, union

Box: TypeAlias = tuple[Interval, ...]  # an interval of each spatial axis
Parts: TypeAlias = tuple[Runs, ...]  # runs of each spatial axis
Read: TypeAlias = Callable[[Box], Any]

_MOST_PLACES = 1 << 22  # of a receptive field, before it is called endless


class NotTranslationInvariantError(ValueError):
    """An operation whose result at one place depends on the whole image, or on where the place is."""


class Backend(Protocol):
    """What a graph does to arrays by itself."""

    def take(self, x: Any, axis: int, index: Places) -> Any:
        """Return the places of an axis, as a new array."""
        ...

    def concatenate(self, parts: Sequence[Any], axis: int) -> Any:
        """Return arrays joined along an axis."""
        ...


class NumPyBackend:
    """NumPy arrays."""

    def take(self, x: Any, axis: int, index: Places) -> Any:
        """Return the places of an axis, as a new array."""
        return np.take(x, index, axis=axis)

    def concatenate(self, parts: Sequence[Any], axis: int) -> Any:
        """Return arrays joined along an axis."""
        return np.concatenate(parts, axis=axis)


@dataclass(frozen=True)
class Where:
    """Which part of an operation's output is computed, and what of its inputs was gathered for that.

    Attributes
    ----------
    box : Box
        The part of the output.
    covers : tuple of Box
        Of each input, the part that it was given: it may go beyond the ends of the input.
    sizes : tuple of (int, ...)
        Spatial sizes of each whole input.
    size : tuple of int
        Spatial size of the whole output.
    """

    box: Box
    covers: tuple[Box, ...]
    sizes: tuple[tuple[int, ...], ...]
    size: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """What a node computes.

    Attributes
    ----------
    compute : callable(arrays, where) -> array
        Its inputs, gathered as the rules say with what lies outside of them, to the box of its output.
    rules : tuple of Rule
        One for each spatial axis, the same for all inputs.
    fill : number
        What lies outside where a rule's boundary is "zeros".
    """

    compute: Callable[[list[Any], Where], Any]
    rules: tuple[Rule, ...]
    fill: float = 0.0


@dataclass(frozen=True)
class Node:
    """A value of a graph.

    Attributes
    ----------
    name : str
    operation : Operation or None
        None for an input of the graph.
    inputs : tuple of int
        Positions of nodes before this one.
    shape : tuple of int
        Of the whole value.
    axes : tuple of int
        Where the spatial axes lie in it, counted from the end (negative).
    itemsize : int
        Bytes of a number.
    """

    name: str
    operation: Operation | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    itemsize: int = 4

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial sizes."""
        return tuple(self.shape[axis] for axis in self.axes)

    def bytes_of(self, parts: Parts) -> int:
        """Return the bytes that a part of the value takes."""
        others = math.prod(self.shape) // max(1, math.prod(self.size))
        return others * self.itemsize * math.prod(length(runs) for runs in parts)


@dataclass(frozen=True)
class AxisField:
    """What the places of an output see of an axis of the input, far from the borders.

    Attributes
    ----------
    stride : Fraction
        Places of the input a place of the output.
    intervals : tuple of (int, int)
        What the first places of the output see, until the pattern repeats: one, except where resolutions do not
        divide each other.
    """

    stride: Fraction
    intervals: tuple[Interval, ...]

    @property
    def size(self) -> int:
        """How many places a place of the output sees, at most, from the first to the last."""
        return max(high - low for low, high in self.intervals)

    @property
    def offset(self) -> int:
        """The first place that place 0 of the output sees; negative where it looks over the border."""
        return self.intervals[0][0]

    def of(self, place: int) -> Interval:
        """Return the interval of the input that one place of the output sees."""
        period = len(self.intervals)
        low, high = self.intervals[place % period]
        shift = int(self.stride * period) * (place // period)
        return low + shift, high + shift

    @property
    def halo(self) -> tuple[int, int]:
        """Places that a box of outputs sees before and after those that correspond to it, at most."""
        before = max(math.ceil(i * self.stride) - low for i, (low, _) in enumerate(self.intervals))
        after = max(high - math.floor((i + 1) * self.stride) for i, (_, high) in enumerate(self.intervals))
        return max(before, 0), max(after, 0)


@dataclass(frozen=True)
class ReceptiveField:
    """What the places of an output see of the input: one `AxisField` for each spatial axis. Print it."""

    axes: tuple[AxisField, ...]

    def _each(self, name: str) -> tuple[Any, ...]:
        return tuple(getattr(axis, name) for axis in self.axes)

    @property
    def size(self) -> tuple[int, ...]:
        """Places that an output sees, at most, along each axis."""
        return self._each("size")

    @property
    def stride(self) -> tuple[Fraction, ...]:
        """Places of the input a place of the output, along each axis."""
        return self._each("stride")

    @property
    def offset(self) -> tuple[int, ...]:
        """The first place that output 0 sees, along each axis."""
        return self._each("offset")

    @property
    def halo(self) -> tuple[tuple[int, int], ...]:
        """Places that a tile needs before and after itself, along each axis."""
        return self._each("halo")

    def __str__(self) -> str:
        size, stride, offset = (" x ".join(map(str, part)) for part in (self.size, self.stride, self.offset))
        return f"sees {size}, stride {stride}, from {offset}"


@dataclass
class Graph:
    """Local operations on images of one size, in order, each on the results of those before.

    Attributes
    ----------
    nodes : list of Node
        The first is the input.
    outputs : tuple of int
        Positions of the nodes that are asked for.
    backend : Backend
    """

    nodes: list[Node]
    outputs: tuple[int, ...]
    backend: Backend = field(default_factory=NumPyBackend)

    def add(self, node: Node) -> int:
        """Append a node and return its position."""
        self.nodes.append(node)
        return len(self.nodes) - 1

    # ------------------------------------------------------------------------------------------------ receptive fields

    def step(self, output: int = 0) -> list[tuple[Fraction, ...] | None]:
        """Return how many places of every node go by for each place of an output; None where it needs none of them."""
        steps: list[tuple[Fraction, ...] | None] = [None] * len(self.nodes)
        last = self.outputs[output]
        steps[last] = (Fraction(1),) * len(self.nodes[last].axes)
        for position in range(last, -1, -1):
            node, step = self.nodes[position], steps[position]
            if step is None or node.operation is None:
                continue
            for given in node.inputs:
                steps[given] = tuple(s * rule.step for s, rule in zip(step, node.operation.rules, strict=True))
        return steps

    def alignment(self) -> tuple[int, ...]:
        """Return what the corners of tiles should be multiples of, so that no resolution inside is cut in between."""
        found = [[1] * len(self.nodes[0].axes)]
        for output in range(len(self.outputs)):
            found += [[s.denominator for s in step] for step in self.step(output) if step is not None]
        return tuple(math.lcm(*each) for each in zip(*found, strict=True))

    def field(self, output: int = 0) -> ReceptiveField:
        """Return what the places of an output see of the input, exactly, from the rules alone."""
        steps = self.step(output)
        if steps[0] is None:
            raise ValueError("the output does not depend on the input")
        alignment = [math.lcm(*(s[axis].denominator for s in steps if s is not None)) for axis in range(len(steps[0]))]
        axes = []
        for axis, (stride, period) in enumerate(zip(steps[0], alignment, strict=True)):
            seen = [self._seen(output, axis, place) for place in range(period)]
            while period > 1:  # the shortest pattern that repeats
                shorter = [p for p in range(1, period) if period % p == 0 and (stride * p).denominator == 1]
                for p in shorter:
                    shift = int(stride * p)
                    if all(seen[i] == tuple(e + shift for e in seen[i - p]) for i in range(p, period)):
                        seen, period = seen[:p], p
                        break
                else:
                    break
            axes.append(AxisField(stride, tuple(seen)))
        return ReceptiveField(tuple(axes))

    def _seen(self, output: int, axis: int, place: int) -> Interval:
        needed: dict[int, Places] = {self.outputs[output]: np.array([place], np.int64)}
        for position in range(self.outputs[output], 0, -1):
            places, node = needed.pop(position, None), self.nodes[position]
            if places is None or node.operation is None:
                continue
            touched = node.operation.rules[axis].touched(places)
            if len(touched) > _MOST_PLACES:
                raise ValueError(f"{node.name}: the receptive field has more than {_MOST_PLACES:,} places")
            for given in node.inputs:
                needed[given] = np.union1d(needed[given], touched) if given in needed else touched
        found = needed.get(0, np.zeros(0, np.int64))
        return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)

    # ------------------------------------------------------------------------------------------------- boxes of outputs

    def needs(self, boxes: Sequence[Box]) -> list[Parts | None]:
        """Return what is needed of every node to compute a box of each output; None where nothing is."""
        needed: list[Parts | None] = [None] * len(self.nodes)
        for output, box in zip(self.outputs, boxes, strict=True):
            self._require(needed, output, tuple((interval,) for interval in box))
        for position in range(len(self.nodes) - 1, -1, -1):
            node, parts = self.nodes[position], needed[position]
            if parts is None or node.operation is None:
                continue
            for given in node.inputs:
                size = self.nodes[given].size
                reads = tuple(
                    union(itertools.chain(*(real(rule.cover(run), n, rule.boundary) for run in runs)))
                    for rule, runs, n in zip(node.operation.rules, parts, size, strict=True)
                )
                self._require(needed, given, reads)
        return needed

    @staticmethod
    def _require(needed: list[Parts | None], position: int, parts: Parts) -> None:
        before = needed[position]
        if before is not None:
            parts = tuple(union((*a, *b)) for a, b in zip(before, parts, strict=True))
        needed[position] = parts

    def _last_uses(self, needed: list[Parts | None]) -> dict[int, list[int]]:
        """Which values are not needed any more after each node."""
        last = {given: p for p, node in enumerate(self.nodes) if needed[p] is not None for given in node.inputs}
        ends: dict[int, list[int]] = {}
        for given, position in last.items():
            if given not in self.outputs:
                ends.setdefault(position, []).append(given)
        return ends

    def memory(self, boxes: Sequence[Box]) -> int:
        """Return the bytes that computing a box of each output takes at most, as far as can be told beforehand.

        That is all values that are held at a time, what the operation at hand gathered, and once more its result,
        for what libraries set aside while they compute it.
        """
        needed = self.needs(boxes)
        ends = self._last_uses(needed)
        held = most = 0
        for position, node in enumerate(self.nodes):
            parts = needed[position]
            if parts is None:
                continue
            own = node.bytes_of(parts)
            gathered = sum(self.nodes[i].bytes_of(p) for i in node.inputs if (p := needed[i]) is not None)
            held += own
            most = max(most, held + own + gathered)
            held -= sum(self.nodes[i].bytes_of(p) for i in ends.get(position, ()) if (p := needed[i]) is not None)
        return most

    def run(self, read: Read, boxes: Sequence[Box]) -> list[Any]:
        """Compute a box of each output.

        Parameters
        ----------
        read : callable(box) -> array
            Gives a box of the input, with all its other axes.
        boxes : sequence of Box
            One for each output.
        """
        needed = self.needs(boxes)
        ends = self._last_uses(needed)
        values: dict[int, Any] = {}
        for position, node in enumerate(self.nodes):
            parts = needed[position]
            if parts is None:
                continue
            compute = read if node.operation is None else functools.partial(self._compute, node, values, needed)
            values[position] = self._assemble(node, parts, compute)
            for given in ends.get(position, ()):
                del values[given]
        found = []
        for output, box in zip(self.outputs, boxes, strict=True):
            node, parts = self.nodes[output], needed[output]
            assert parts is not None
            found.append(self._gather(node, values[output], parts, box, (Window(),) * len(box), 0.0))
        return found

    def _assemble(self, node: Node, parts: Parts, compute: Read) -> Any:
        """Compute a product of runs, each box by itself, and join them."""

        def join(axis: int, chosen: Box) -> Any:
            if axis == len(parts):
                return compute(chosen)
            pieces = [join(axis + 1, (*chosen, run)) for run in parts[axis]]
            return pieces[0] if len(pieces) == 1 else self.backend.concatenate(pieces, node.axes[axis])

        return join(0, ())

    def _compute(self, node: Node, values: dict[int, Any], needed: list[Parts | None], box: Box) -> Any:
        operation = node.operation
        assert operation is not None
        cover = tuple(rule.cover(interval) for rule, interval in zip(operation.rules, box, strict=True))
        covers, arrays = [], []
        for given in node.inputs:
            source, parts = self.nodes[given], needed[given]
            assert parts is not None
            seen = tuple(
                (max(low, 0), min(high, n)) if rule.boundary == "cut" else (low, high)
                for (low, high), n, rule in zip(cover, source.size, operation.rules, strict=True)
            )
            arrays.append(self._gather(source, values[given], parts, seen, operation.rules, operation.fill))
            covers.append(seen)
        sizes = tuple(self.nodes[given].size for given in node.inputs)
        return operation.compute(arrays, Where(box, tuple(covers), sizes, node.size))

    def _gather(self, node: Node, x: Any, parts: Parts, box: Box, rules: Sequence[Rule], fill: float) -> Any:
        """What a box, maybe beyond the ends of a value, holds, from those parts of the value that are there."""
        for (low, high), runs, n, axis, rule in zip(box, parts, node.size, node.axes, rules, strict=True):
            place: list[Any] = [slice(None)] * len(node.shape)
            start = 0
            for first, last in runs:
                if first <= low and high <= last:
                    place[axis] = slice(low - first + start, high - first + start)
                    x = x[tuple(place)]
                    break
                start += last - first
            else:
                index = locate(continued((low, high), n, rule.boundary), runs)
                x = self.backend.take(x, axis, np.maximum(index, 0))
                outside = np.flatnonzero(index < 0)
                for part in np.split(outside, np.flatnonzero(np.diff(outside) > 1) + 1):
                    if len(part):
                        place[axis] = slice(int(part[0]), int(part[-1]) + 1)
                        x[tuple(place)] = fill
        return x
