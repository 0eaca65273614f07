"""Karatsuba: signals of channels that have kernels of their own, with fewer products than these have terms."""

from __future__ import annotations

from typing import Any

import numpy as np

from wherever.engine import blocks, run
from wherever.engine.algorithms.blockwise import channels_first
from wherever.engine.algorithms.each_channel import PIECES, EachChannel
from wherever.engine.algorithms.filter import FilterPrepared
from wherever.engine.algorithms.forward import as_forward
from wherever.engine.algorithms.protocol import Prepared
from wherever.engine.copies import readable
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.entry import address
from wherever.engine.kernels.karatsuba import BEYOND, karatsuba, leaves, padded
from wherever.engine.machine import Machine, working_dtype
from wherever.problem import Array, ConvProblem

_SEGMENT = 65  # vectors of a segment: an odd number, of about a page
_TALL = 4  # sums of a part that are taken at once
_STEPS = 2  # how often taps are divided: a third step costs as much as it saves
_TAPS = range(8, 97)  # fewer gain nothing, more are faster by a transform


class Karatsuba(EachChannel):
    """Signals: products of sums, instead of sums of products.

    Three products for four terms, and that again for each of the three: see `kernels.karatsuba`. Places beside a
    window are added and subtracted again, so that errors depend on the neighbourhood, as those of a transform.
    """

    name = "karatsuba"
    sums_directly = False

    def refuses_forward(self, problem: ConvProblem) -> str | None:
        """Images, strides, dilations, kernels of few or many taps; a number outside that is not finite."""
        if problem.spatial > 1:
            return f"filters signals, not {problem.spatial} dimensions"
        if problem.stride != (1,) or problem.dilation != (1,):
            return "divides neighbouring places at stride 1"
        if problem.taps not in _TAPS:
            return f"divides from {_TAPS.start} to {_TAPS.stop - 1} taps, not {problem.taps}"
        if not isinstance(problem.boundary, str) and not np.isfinite(problem.boundary):
            return "subtracts what lies outside, which is not finite"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """Products, what it takes to transpose and to divide, and passing through memory."""
        problem = as_forward(problem)
        dtype = working_dtype(problem.dtype)
        square = host().lanes(dtype.name) ** 2
        places = problem.batch * problem.out_channels * -(-problem.output[0] // square) * square
        products = sum(leaves(problem.taps, _STEPS)) / (1 << _STEPS)
        each = (1.55 * products + 10) / machine.multiply_adds + 2 / machine.copy
        calls = 25 * machine.call * problem.batch * problem.out_channels
        return places * each * (dtype.itemsize / 4) + calls

    def prepared(self, problem: ConvProblem, operand: Array, bias: Array | None) -> Prepared:
        """The weights of all parts."""
        return KaratsubaPrepared(problem, operand, bias)


def _divided(w: Array, steps: int = _STEPS) -> list[Array]:
    """The weights of all parts, in the order of `leaves`."""
    if not steps:
        return [w]
    even, odd = w[::2], w[1::2]
    middle = even.copy()
    middle[: len(odd)] += odd
    return [part for some in (middle, even, -odd) for part in _divided(some, steps - 1)]


class KaratsubaPrepared:
    """The weights of all parts, for each channel; and `FilterPrepared` for what is not finite, or not in place.

    A signal is cut into segments, which are the rows of `kernels.karatsuba`. Those that look over an end of the signal
    are put together for each call, in other memory; so is the last one of the result, if it is shorter.
    """

    def __init__(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> None:
        self.problem = problem
        self.dtype: np.dtype[Any] = working_dtype(problem.dtype)
        self.lanes = host().lanes(self.dtype.name)
        self.direct = FilterPrepared(problem, operand, bias)
        tall = max(_TALL, self.lanes >> _STEPS)
        self.taps = [padded(n, tall) for n in leaves(problem.taps, _STEPS)]
        with np.errstate(all="ignore"):
            self.weights = [self._parts(w) for w in operand.reshape(-1, problem.taps).astype(np.float64)]
        self.outside = np.full(1, 0 if isinstance(problem.boundary, str) else problem.boundary, self.dtype)
        self.kernel = compiled(karatsuba, dtype=self.dtype.name, wide=problem.taps, steps=_STEPS, tall=tall)
        self._cut(tall * 2**_STEPS)

    def _parts(self, w: Array) -> Array:
        """The weights of all parts, one after the other, with the zeros behind them that the kernel sums too."""
        parts = zip(_divided(w), self.taps, strict=True)
        return np.concatenate([np.pad(part, (0, taps - len(part))) for part, taps in parts]).astype(self.dtype)

    def _cut(self, block: int) -> None:
        """Cut the signal into segments, of whole squares; and tell what they see."""
        p, lanes = self.problem, self.lanes
        (n,), (size,), (before, _) = p.output, p.size, p.padding[0]
        self.each = each = min(max(_SEGMENT, 4 * p.taps // lanes | 1), -(-n // lanes**2)) * lanes
        rows, reach = -(-n // each), each + p.taps - 1
        target = np.arange(rows) * each
        seen = target - before
        over = np.flatnonzero((seen < 0) | (seen + reach > size) | (target + each > n))
        self.ends = np.full((len(over), reach), -1)
        for number, i in enumerate(over):
            length = int(min(n - target[i], each)) + p.taps - 1
            self.ends[number, :length] = blocks.places(int(seen[i]), length, size, p.boundary)
        seen[over] = BEYOND + np.arange(len(over)) * reach
        target[target + each > n] = BEYOND
        # Lanes that are left over do what the last one does.
        self.seen, self.target = (np.pad(a, (0, -rows % lanes), "edge") for a in (seen, target))
        self.length = -(-each // block) * block // 2**_STEPS + max(self.taps) - 1

    # Running.

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        p = self.problem
        x, y = channels_first(p, source), channels_first(p, out)
        if not all(a.dtype.isnative and readable(a, self.dtype, -1) for a in (x, y)):
            self.direct.run(source, out, threads)
            return
        total = len(self.target)
        step = total if threads == 1 else -(-total // (threads * PIECES * self.lanes)) * self.lanes
        pieces = [slice(first, min(first + step, total)) for first in range(0, total, step)]
        finite: list[bool] = []

        def channel(signal: Array, result: Array, k: int) -> None:
            ends = np.where(self.ends < 0, self.outside, signal[np.maximum(self.ends, 0)])
            run.for_each(lambda piece: finite.append(self._call(signal, result, ends, k, piece)), pieces, threads)

        for signals, results in zip(x, y, strict=True):
            for k, result in enumerate(results):
                channel(signals[k // p.group_out], result, k)
        if not all(finite):
            self.direct.run(source, out, threads)

    def _call(self, x: Array, y: Array, ends: Array, k: int, piece: slice) -> bool:
        """Compute some groups of segments; return whether all is finite."""
        lanes, size, each = self.lanes, self.dtype.itemsize, self.each
        counts = ((self.length + 1) * 2**_STEPS + lanes) * lanes, self.length * len(self.taps) * lanes, lanes, each
        strip, parts, doubt, last = run.workspace("karatsuba", *counts, dtype=self.dtype)
        seen, target = self.seen[piece], self.target[piece]
        source, result = address(x), address(y)
        beyond = (address(ends) - source) // size, (address(last) - result) // size
        sizes = np.array([len(seen) // lanes, each, each + self.problem.taps - 1, self.length, *beyond], np.int64)
        weights, bias = self.weights[k], self.direct.bias[k:]
        self.kernel(x, weights, y, bias, strip, parts, doubt, seen, target, sizes)
        if target[-1] >= BEYOND:
            rest = len(y) % each
            y[-rest:] = last[:rest]
        return bool(np.isfinite(doubt).all())
