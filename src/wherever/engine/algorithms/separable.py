"""Separable: a kernel that is a sum of a few products of 1-D kernels, as passes down and across the image."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.engine import run
from wherever.engine.algorithms.blockwise import channels_first, store
from wherever.engine.algorithms.filter import STREAMED_BYTES
from wherever.engine.algorithms.forward import as_forward, forward_weights, refuses_sums
from wherever.engine.algorithms.im2col import Im2colPrepared
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.blocks import box, gather, runs
from wherever.engine.kernels.compile import compiled, host
from wherever.engine.kernels.separable import passes
from wherever.engine.kernels.vector import STORED
from wherever.engine.machine import Machine, longest_sum, working_dtype
from wherever.problem import Array, Boundary, ConvProblem

Term = tuple[Array, Array]  # a kernel of one column and one of one row, whose product is a 2-D kernel

_NAMES = {np.dtype(name): name for name in STORED}  # asking a type for its name takes microseconds
_PART_BYTES = 1 << 19  # of the rows of one part, where they are copied
_REPAIR_ELEMENTS = 1 << 18  # of the columns of windows that are summed directly at once
# What leaving out the smaller terms may cost: a quarter of the accuracy promise.
_NEGLIGIBLE = {"f": 2e-6, "d": 2.5e-15}


class Separable(Algorithm):
    """Passes down and across, for kernels W that are a sum of a few products u v^T; planned when W is known.

    Of any kernel there is such a sum, with as many terms as W's singular value decomposition has values that matter
    (see `terms`). One or a few terms are faster than direct summation; `preferred` says when.
    """

    name = "separable"
    sums_directly = False

    def refuses(self, problem: ConvProblem) -> str | None:
        """What is not images of channels that have kernels of their own, at stride and dilation 1."""
        refusal = refuses_sums(problem)
        if refusal is not None:
            return refusal
        forward = as_forward(problem)
        if forward.spatial != 2:
            return f"separates 2 dimensions, not {problem.spatial}"
        if forward.group_in != 1:
            return f"filters one channel by itself, not {forward.group_in} together"
        if set(forward.stride) != {1} or set(forward.dilation) != {1}:
            return "sums neighbouring places at stride 1"
        if problem.layout == "channels_last" and max(forward.in_channels, forward.out_channels) > 1:
            return "filters one channel after the other, which must lie first"
        if max(problem.kernel) > longest_sum(working_dtype(problem.dtype)):
            return f"sums {max(problem.kernel)} terms in one go, which rounds too much"
        return None

    def estimate(self, problem: ConvProblem, machine: Machine) -> float:
        """As many terms as a kernel without structure has."""
        return cost(problem, machine, min(problem.kernel) * problem.out_channels)

    def workspace(self, problem: ConvProblem) -> int:
        """Rows of one part, where they are copied, and its strip."""
        problem = as_forward(problem)
        size = working_dtype(problem.dtype).itemsize
        wide = size * (max(problem.size[1], problem.output[1]) + problem.kernel[1] + 64)
        rows = 128 + problem.kernel[0]
        return 2 * _PART_BYTES + 3 * rows * wide

    def prepare(self, problem: ConvProblem, operand: Array, bias: Array | None = None) -> Prepared:
        """Decompose the kernels."""
        if not np.isfinite(operand).all():
            return Im2colPrepared(problem, operand, bias)
        forward, weights = as_forward(problem), forward_weights(problem, operand)
        tolerance = _NEGLIGIBLE[working_dtype(problem.dtype).char]
        return SeparablePrepared(forward, weights, [terms(w, tolerance) for w in weights[:, 0]], bias)


def cost(problem: ConvProblem, machine: Machine, count: int) -> float:
    """Seconds that so many terms take, over all channels."""
    problem = as_forward(problem)
    places = problem.batch * math.prod(problem.output)
    each = sum(problem.kernel) / machine.multiply_adds + 3 / machine.copy
    return places * each * count * working_dtype(problem.dtype).itemsize / 4 + 60 * machine.call


def preferred(problem: ConvProblem, operand: Array, seconds: float) -> bool:
    """Whether these weights are worth separating, where another algorithm takes so many seconds.

    Looking costs a few operations for each weight and term: subtract the cross through the largest element, which
    leaves nothing of a kernel of rank 1, as often as the terms would pay.
    """
    if seconds < 1e-4 or Separable().refuses(problem) is not None:
        return False
    channels = as_forward(problem).out_channels
    most = int(0.85 * seconds / cost(problem, Machine(), channels))
    if not most or not np.isfinite(operand).all():
        return False
    tolerance = _NEGLIGIBLE[working_dtype(problem.dtype).char]
    for w in forward_weights(problem, operand)[:, 0]:
        rest = w.astype(np.float64)
        bound = np.linalg.norm(rest) * tolerance / math.sqrt(rest.size) / 2
        for _ in range(most):
            i, j = np.unravel_index(np.abs(rest).argmax(), rest.shape)
            if rest[i, j] == 0:
                break
            rest = rest - np.outer(rest[:, j], rest[i] / rest[i, j])
        if not np.linalg.norm(rest) <= bound:
            return False
    return True


def terms(kernel: Array, tolerance: float) -> list[Term]:
    r"""Return pairs (u, v) of 1-D kernels, as few as possible, whose products add up to a 2-D kernel.

    With the singular value decomposition :math:`W = \sum_k s_k u_k v_k^T`, leaving out the terms from m on changes a
    result by at most :math:`\|E\|_F \|x\|_2` (Cauchy and Schwarz), where :math:`\|E\|_F^2 = \sum_{k \ge m} s_k^2`
    and x is what the window holds: at most :math:`\sqrt{taps}` times its largest number. On data of one scale results
    are as large as :math:`\|W\|_F` times that scale. So :math:`\|E\|_F \sqrt{taps} \le tolerance \|W\|_F` keeps
    the error relative to the largest result below the tolerance.

    Parameters
    ----------
    kernel : array (high, wide)
        Of finite numbers.
    tolerance : float

    Returns
    -------
    list of (u, v)
        In float64. At least one pair.
    """
    left, values, right = np.linalg.svd(kernel.astype(np.float64))
    rest = np.sqrt(np.cumsum(values[::-1] ** 2))[::-1]  # of the singular values from each one on
    needed = max(1, int(np.sum(rest > tolerance * rest[0] / math.sqrt(kernel.size))))
    return [(_symmetrised(left[:, k] * values[k]), _symmetrised(right[k])) for k in range(needed)]


def _symmetrised(w: Array) -> Array:
    """A kernel that is even or odd but for rounding, made so: pairs of places can then be added first."""
    for part in ((w + w[::-1]) / 2, (w - w[::-1]) / 2):
        if np.abs(w - part).max() <= 4 * np.finfo(w.dtype).eps * np.abs(w).max():
            return part
    return w


def symmetry(w: Array) -> str:
    """The symmetry of a 1-D kernel, as `passes` knows it."""
    half = len(w) // 2
    if half and len(w) % 2:
        if np.array_equal(w[:half], w[: -half - 1 : -1]):
            return "even"
        if np.array_equal(w[:half], -w[: -half - 1 : -1]):
            return "odd"
    return "plain"


class SeparablePrepared:
    """The terms of each output channel."""

    def __init__(
        self, problem: ConvProblem, weights: Array, channels: list[list[Term]], bias: Array | None = None
    ) -> None:
        self.problem, self.weights = problem, weights
        self.bias = np.zeros(problem.out_channels) if bias is None else bias
        self.dtype: np.dtype[Any] = working_dtype(problem.dtype)
        (up, down), (left, right) = problem.padding
        height, width = problem.size
        self.passes = [
            Passes(
                self.dtype,
                [
                    (Axis(height, u, up, down, problem.boundary), Axis(width, v, left, right, problem.boundary))
                    for u, v in found
                ],
            )
            for found in channels
        ]

    def run(self, source: Array, out: Array, threads: int) -> None:
        """Compute into ``out``; see `Prepared.run`."""
        p = self.problem
        source, result = channels_first(p, source), channels_first(p, out)
        for n in range(p.batch):
            for k, sums in enumerate(self.passes):
                image = source[n, k // p.group_out]
                if not sums.run(image, result[n, k], threads, float(self.bias[k])):
                    # NaN went where it belongs; of infinities, factors know no more where the kernel was zero.
                    seen = sums.rows.shown(0, p.output[0] + p.kernel[0] - 1)
                    infinite = np.append(np.isinf(image).any(axis=1), not np.isfinite(sums.number))[seen]
                    doubtful = np.isinf(result[n, k]).any(axis=1)
                    doubtful |= np.convolve(infinite, np.ones(p.kernel[0], int), "valid") > 0
                    self._repair(source, result, n, k, np.flatnonzero(doubtful))

    def _repair(self, source: Array, result: Array, n: int, k: int, rows: Iterable[int]) -> None:
        """Sum some rows of a channel directly."""
        p = self.problem
        bias = None if not self.bias.any() else self.bias.astype(self.dtype).reshape(-1, 1, 1)
        direct = Im2colPrepared(p, self.weights)
        step = max(1, _REPAIR_ELEMENTS // (p.taps * p.out_channels))
        with np.errstate(all="ignore"):
            for i in rows:
                for j in range(0, p.output[1], step):
                    part = box(p, slice(n, n + 1), (i, j), (1, min(step, p.output[1] - j)))
                    y = direct.forward_block(gather(p, source, part, self.dtype), part)
                    if bias is not None:
                        y = y + bias
                    result[part.outputs][:, k] = y[:, k]


class Axis:
    """One of the two directions: a 1-D kernel, or none, and how the image continues beyond its ends.

    Parameters
    ----------
    size : int
        Places of the image.
    kernel : array (n,) or None
    before, after : int
        Places added before and after; negative: places never looked at.
    boundary : str or number
        What lies there, as for `ConvProblem`.
    kind : str, optional
        The symmetry of the kernel, if it is known.
    """

    def __init__(
        self,
        size: int,
        kernel: Array | None = None,
        before: int = 0,
        after: int = 0,
        boundary: Boundary = "edge",
        kind: str | None = None,
    ) -> None:
        self.size, self.kernel = size, kernel
        self.taps = 1 if kernel is None else len(kernel)
        self.kind = "none" if kernel is None else kind or symmetry(kernel)
        self.steps = self.taps - 1 if self.kind == "plain" else self.taps // 2
        self.output = size + before + after - self.taps + 1
        self.before, self.boundary = before, boundary

    @property
    def told(self) -> tuple[Any, ...]:
        """All of this as what can be a key; and 0 apart from -0."""
        after = self.output + self.taps - 1 - self.size - self.before
        kernel = None if self.kernel is None else (self.kernel.dtype.char, self.kernel.tobytes())
        outside = self.boundary if isinstance(self.boundary, str) else (self.boundary, repr(self.boundary))
        return self.size, kernel, self.before, after, outside, self.kind

    @staticmethod
    def of(told: tuple[Any, ...]) -> Axis:
        """The axis of which this was told."""
        size, kernel, before, after, outside, kind = told
        w = None if kernel is None else np.frombuffer(kernel[1], kernel[0])
        return Axis(size, w, before, after, outside if isinstance(outside, str) else outside[0], kind)

    def shown(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """The places of the image that are seen at so many places, counted with those before it; -1: the number."""
        found = np.full(length, -1, np.int64)
        for part in runs(start - self.before, length, self.size, self.boundary):
            found[part.foot] = np.arange(*part.x.indices(self.size))
        return found


def passes_along(dtype: np.dtype[Any], pair: tuple[Axis, Axis], **options: Any) -> Passes:
    """`Passes` of one term, with these options; those that were asked for before are found again."""
    return _passes_along(dtype, tuple(axis.told for axis in pair), tuple(options.items()))


@functools.lru_cache(maxsize=64)
def _passes_along(
    dtype: np.dtype[Any], pair: tuple[tuple[Any, ...], ...], options: tuple[tuple[str, Any], ...]
) -> Passes:
    down, across = (Axis.of(told) for told in pair)
    return Passes(dtype, [(down, across)], **dict(options))


class Passes:
    """Sums over images (H, W): for each term down with one kernel, then across with another, added up.

    Parameters
    ----------
    dtype : dtype
        float32 or float64: of the sums.
    pairs : sequence of (Axis, Axis)
        Rows and columns of each term. They differ in their kernels only; a number outside is the same for both.
    fused : bool
        See `passes`.
    summed_outside : bool
        Whether the number outside is summed down as the image is; otherwise it lies beside what was summed, as where
        each direction is filtered by itself.
    divisor : float
        Of the results.
    unit : int
        Channels that lie side by side in each row, filtered with one kernel: images are (H, W * unit), axes count W.
    truncated : bool
        Whether sums down are truncated to integers, which an int32 must hold, before they are summed across. Results
        of integers are then truncated too, modulo the range of their type, and written where they lie.
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        pairs: Sequence[tuple[Axis, Axis]],
        *,
        fused: bool = True,
        summed_outside: bool = True,
        divisor: float = 1,
        unit: int = 1,
        truncated: bool = False,
    ) -> None:
        self.divisor, self.unit, self.truncated = divisor, unit, truncated
        self.dtype, self.fused, self.lanes = dtype, fused, host().lanes(_NAMES[dtype])
        self.pairs = list(pairs)
        self.rows, self.columns = rows, columns = self.pairs[0]
        numbers = [axis.boundary for axis in (rows, columns) if not isinstance(axis.boundary, str)]
        self.number = dtype.type(numbers[0] if numbers else 0)
        self.kernels = [
            [np.zeros(1, dtype) if axis.kernel is None else np.ascontiguousarray(axis.kernel, dtype) for axis in pair]
            for pair in self.pairs
        ]
        summed = summed_outside and rows.kernel is not None
        self.beside = [self.number * (u.sum(dtype=np.float64) if summed else 1) for u, _ in self.kernels]
        self._lay_out_strip()
        self._shown: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def _lay_out_strip(self) -> None:
        """Columns of a strip: before the image, the image itself, behind it as far as the sums look, the number."""
        columns, lanes, unit = self.columns, self.lanes, self.unit
        skipped = max(0, -columns.before)  # columns of the image that are never looked at
        self.skipped, self.width = skipped * unit, (columns.size - skipped) * unit
        self.left = left = max(0, columns.before) * unit
        read = columns.output * unit + lanes - 1 + (columns.taps - 1) * unit
        self.middle = max(read, left + -(-self.width // lanes) * lanes)
        shown = columns.shown(0, columns.output + columns.taps - 1)
        shown = np.where(shown < 0, -1, (shown - skipped) * unit)[:, None] + np.arange(unit)
        shown[shown[:, 0] < 0] = -1
        shown = shown.reshape(-1)
        places = np.r_[:left, left + self.width : max(read, left + self.width)]
        wanted = places < len(shown)  # behind that only whole vectors reach, whose ends are not used
        seen = shown[places[wanted]]
        source = np.full(len(places), left)
        source[wanted] = np.where(seen < 0, self.middle, seen + left)
        self.outside = np.ascontiguousarray(np.stack([places, source], axis=1), np.int64)

    def run(self, image: Array, result: Array, threads: int, bias: float = 0.0) -> bool:
        """Sum ``image`` (H, W) into ``result`` (h, w), both of any type; return whether the result is finite."""
        rows, lanes = self.rows.output, self.lanes
        step = -(-rows // (4 * threads)) if threads > 1 else rows
        if not (self._readable(image) and self._writable(result)):
            wide = max(self.columns.size, self.columns.output, 1) * self.unit * self.dtype.itemsize
            step = min(step, max(_PART_BYTES // wide, self.rows.taps))
        step = -(-max(step, 4 * lanes) // lanes) * lanes
        parts = [(first, min(first + step, rows)) for first in range(0, rows, step)]
        finite: list[bool] = []
        run.for_each(lambda part: finite.append(self._part(image, result, part, bias)), parts, threads)
        return all(finite)

    def _part(self, image: Array, result: Array, bounds: tuple[int, int], bias: float) -> bool:
        """Compute rows of the result from the first to before the last; return whether all is finite."""
        first, last = bounds
        rows, columns, dtype, lanes = self.rows, self.columns, self.dtype, self.lanes
        kept = lanes + rows.taps - 1  # rows of the ring
        pitch = -(-self.width // lanes) | 1  # an odd number of vectors
        strip, ring, doubt, added = run.workspace(
            "strip", (self.middle + 1) * lanes, kept * pitch * lanes, lanes, 1, dtype=dtype
        )
        shown = self._shown.get(bounds)
        if shown is None:
            if len(self._shown) > 100:
                self._shown.clear()
            shown = self._shown[bounds] = rows.shown(first, last - first + rows.taps - 1)
        source, places = self._rows(image, shown)
        size = source.itemsize
        (number,) = run.workspace("number", max(columns.size, 1) * self.unit, dtype=source.dtype)
        number[:] = self.number
        beyond = (number.ctypes.data - source.ctypes.data) // size
        seen = np.where(places < 0, beyond, places * (source.strides[0] // size) + self.skipped)
        seen = np.concatenate([seen, np.full(lanes, seen[-1])])
        slot = np.arange(len(seen)) % kept * (pitch * lanes)
        target = result[first:last]
        if self._writable(target):
            buffer = target
        else:
            (flat,) = run.workspace("result", target.size, dtype=dtype)
            buffer = flat.reshape(target.shape)
        finite = True
        vector = lanes * buffer.itemsize
        even = columns.kernel is not None and buffer.strides[0] % vector == 0
        head = -buffer.ctypes.data // buffer.itemsize % lanes if even else 0
        streamed = even and len(self.pairs) == 1 and result.nbytes >= STREAMED_BYTES
        for count, ((down, across), (u, v), beside) in enumerate(
            zip(self.pairs, self.kernels, self.beside, strict=True)
        ):
            kernel = compiled(
                passes,
                dtype=_NAMES[dtype],
                source=_NAMES[source.dtype],
                result=_NAMES[buffer.dtype],
                down=down.kind,
                across=across.kind,
                apart=self.unit,
                fused=self.fused,
                truncated=self.truncated,
                added=count > 0,
                streamed=streamed,
            )
            strip[self.middle * lanes :] = beside
            added[0] = 0 if count else bias
            geometry = [last - first, columns.output * self.unit, self.width, rows.taps - 1, down.steps, across.steps]
            more = [self.left, len(self.outside), buffer.strides[0] // buffer.itemsize, head]
            sizes = np.array([*geometry, *more], np.int64)
            arrays = (source, u, v, buffer, added, strip, ring, doubt, seen, slot, self.outside, sizes)
            kernel(*arrays)
            finite = finite and bool(np.isfinite(doubt).all())
        if buffer is not target:
            if self.divisor != 1:
                buffer /= self.divisor
            store(target, buffer, None)
        return finite

    def _rows(self, image: Array, shown: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.int64]]:
        """The image, or the rows of it that are seen, as the kernel can read them; and which rows these are."""
        if self._readable(image):
            return image, shown
        (flat,) = run.workspace("rows", max(len(shown), 1) * image.shape[1], dtype=self.dtype)
        copied = flat.reshape(-1, image.shape[1])
        there = np.flatnonzero(shown >= 0)
        if len(there) and (np.diff(shown[there]) == 1).all():
            copied[there[0] : there[-1] + 1] = image[shown[there[0]] : shown[there[-1]] + 1]
        elif len(there):
            copied[there] = image[shown[there]]
        return copied, np.where(shown < 0, -1, np.arange(len(shown)))

    def _readable(self, image: Array) -> bool:
        """Whether the kernel can read an image where it lies: of another type, if that holds the number outside."""
        if not _usable(image):
            return False
        return image.dtype == self.dtype or (not self.number and np.can_cast(image.dtype, self.dtype, "safe"))

    def _writable(self, result: Array) -> bool:
        """Whether the kernel can write a result where it lies."""
        if self.divisor != 1 or not _usable(result):
            return False
        return result.dtype == self.dtype or (self.truncated and result.dtype.kind in "iu")


def _usable(a: Array) -> bool:
    """Whether a kernel can work on an array (rows, columns) where it lies."""
    if a.dtype not in _NAMES or not a.flags.aligned or a.strides[0] % a.itemsize:
        return False
    return a.strides[1] == a.itemsize or a.shape[1] == 1
