"""The planner: which algorithm computes a problem, and why."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import statistics
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wherever.engine import cache
from wherever.engine.algorithms import ALGORITHMS, Algorithm, Prepared
from wherever.engine.algorithms.separable import Separable, preferred
from wherever.engine.kernels.compile import host, unavailable
from wherever.engine.machine import Machine
from wherever.engine.run import get_threads
from wherever.problem import Array, ConvProblem, one_of

PRECISIONS = ("fast", "strict")

_SECONDS = 0.2  # that one candidate is timed for, at most
_SLOWER = 8.0  # a candidate that is so many times slower than the best is not timed again
_SMALL_OPERAND = 1 << 16  # bytes up to which preparing never counts: see `packed`
_PATIENCE = 3.0  # estimated seconds beyond which a candidate is not tried, unless it is the best estimate


@dataclass(frozen=True)
class Candidate:
    """What the planner knows of one algorithm for one problem.

    Attributes
    ----------
    algorithm : Algorithm
    refusal : str or None
        Why it cannot, in words.
    estimate : float
        Seconds; preparing included, where that is done for every run.
    measured : float or None
        The same, where it was timed.
    """

    algorithm: Algorithm
    refusal: str | None
    estimate: float = float("inf")
    measured: float | None = None

    @property
    def seconds(self) -> float:
        """The measured time, or the estimate where nothing was measured."""
        return self.estimate if self.measured is None else self.measured


@dataclass(frozen=True)
class Measured:
    """Seconds of a run, and of preparing, of the candidates that were timed, on so many threads; and when."""

    when: str
    threads: int
    times: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        return f"measured {self.when} on {self.threads} thread{'s' if self.threads > 1 else ''}"


class Choice:
    """The algorithm for a problem; printed, it explains itself by what it knows of all the others.

    Attributes
    ----------
    problem : ConvProblem
    precision : str
    prepared : bool
        Whether an operand is prepared once for many runs; or for each of them, so that preparing it counts.
    measured : Measured or None
    best : Candidate
        The cheapest that does not refuse.
    """

    def __init__(self, problem: ConvProblem, precision: str, prepared: bool, measured: Measured | None = None) -> None:
        self.problem, self.precision, self.prepared, self.measured = problem, precision, prepared, measured
        operand_bytes = math.prod(problem.operand_shape) * problem.dtype.itemsize
        self._counts_preparing = not prepared and operand_bytes > _SMALL_OPERAND
        self.best = self._cheapest()

    @property
    def algorithm(self) -> Algorithm:
        """The cheapest algorithm that does not refuse."""
        return self.best.algorithm

    @functools.cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """All algorithms, best first: by measured times, where there are any, by estimates; those that refuse last."""
        timed = self.measured is not None

        def place(c: Candidate) -> tuple[bool, bool, float]:
            return c.refusal is not None, timed and c.measured is None, c.seconds

        return tuple(sorted((self._candidate(algorithm) for algorithm in ALGORITHMS), key=place))

    def of_weights(self, operand: Array) -> Algorithm:
        """The chosen algorithm; or passes down and across, where only the weights show that they are faster."""
        if self.precision == "fast" and preferred(self.problem, operand, self.best.seconds):
            return Separable()
        return self.algorithm

    def prepare(self, operand: Array, bias: Array | None = None) -> Prepared:
        """Prepare the algorithm for these weights."""
        return self.of_weights(operand).prepare(self.problem, operand, bias)

    def _cheapest(self) -> Candidate:
        """The first of the candidates, without asking those for their estimates that cannot be it."""
        if self.measured is not None:
            timed = (self._candidate(algorithm) for algorithm in ALGORITHMS if algorithm.name in self.measured.times)
            return min(timed, key=lambda candidate: candidate.seconds)
        machine, best, first = Machine(), None, 0
        least = sorted((algorithm.least(self.problem, machine), place) for place, algorithm in enumerate(ALGORITHMS))
        for bound, place in least:
            if best is not None and bound > best.seconds:
                break
            candidate = self._candidate(ALGORITHMS[place])
            if candidate.refusal is None and (best is None or (candidate.seconds, place) < (best.seconds, first)):
                best, first = candidate, place
        assert best is not None, "the last resort, `taps`, refuses nothing"
        return best

    def _candidate(self, algorithm: Algorithm) -> Candidate:
        problem, machine = self.problem, Machine()
        if self.precision == "strict" and not algorithm.sums_directly:
            words = "a transform's error at a place depends on its neighbourhood; precision is 'strict'"
            return Candidate(algorithm, algorithm.refuses(problem) or words)
        refusal = algorithm.refuses(problem)
        if refusal is not None:
            return Candidate(algorithm, refusal)
        seconds = algorithm.estimate(problem, machine)
        if self._counts_preparing:
            seconds += algorithm.preparation(problem, machine)
        if self.measured is None or algorithm.name not in self.measured.times:
            return Candidate(algorithm, None, seconds)
        run, preparing = self.measured.times[algorithm.name]
        return Candidate(algorithm, None, seconds, run + preparing * self._counts_preparing)

    def __str__(self) -> str:
        lines = [
            str(self.problem),
            f"{self.problem.multiply_adds:.4g} multiply-adds by direct summation; precision {self.precision!r}; "
            + ("weights prepared once" if self.prepared else "weights prepared for every call"),
            f"{'':2}{'algorithm':<18}{'estimate':>12}{'measured':>12}{'workspace':>12}",
        ]
        best = self.candidates[0]
        for candidate in self.candidates:
            mark = "*" if candidate is best else ""
            if candidate.refusal is not None:
                lines.append(f"{mark:<2}{candidate.algorithm.name:<18}  refused: {candidate.refusal}")
                continue
            measured = "" if candidate.measured is None else _milliseconds(candidate.measured)
            slower = candidate.seconds / best.seconds if best.seconds else math.inf  # nothing to compute takes no time
            verdict = "chosen" if candidate is best else f"{slower:.3g} times slower"
            workspace = candidate.algorithm.workspace(self.problem) / 2**20
            lines.append(
                f"{mark:<2}{candidate.algorithm.name:<18}{_milliseconds(candidate.estimate):>12}{measured:>12}"
                f"{workspace:>8.1f} MiB  {verdict}"
            )
        if self.measured is not None:
            lines.append(str(self.measured))
        return "\n".join(lines)


def choose(
    problem: ConvProblem,
    *,
    precision: str = "fast",
    measure: bool = False,
    threads: int | None = None,
    prepared: bool = True,
) -> Choice:
    """Choose the algorithm for a problem.

    Parameters
    ----------
    problem : ConvProblem
    precision : {"fast", "strict"}
        "strict" leaves out algorithms whose error can exceed that of direct summation at any single place.
    measure : bool
        Time the candidates on random numbers and remember the times for this processor, on disk too: later plans of
        the same problem, precision and threads use them, measured or not. What is remembered is not timed again.
    threads : int, optional
        That the plan is for; by default what `set_threads` says.
    prepared : bool
        Whether one preparation serves many runs; False: it counts.
    """
    precision = one_of("precision", precision, PRECISIONS)
    threads = threads or get_threads()
    choice = _chosen(problem, precision, threads, prepared)
    if not measure or choice.measured is not None:
        return choice
    measured = Measured(time.strftime("%Y-%m-%d %H:%M:%S"), threads, _times(choice, threads))
    _remember(problem, precision, measured)
    _here[problem, precision, threads] = measured
    _chosen.cache_clear()
    return _chosen(problem, precision, threads, prepared)


_here: dict[tuple[ConvProblem, str, int], Measured] = {}  # by this process, whether or not a disk remembers it


@functools.lru_cache(maxsize=4096)
def _chosen(problem: ConvProblem, precision: str, threads: int, prepared: bool) -> Choice:
    """The choice by measurements, if there are any, or else by estimates."""
    measured = _here.get((problem, precision, threads)) or _recall(problem, precision, threads)
    if measured is None:
        return _estimated(problem, precision, prepared)
    return Choice(problem, precision, prepared, measured)


@functools.lru_cache(maxsize=4096)
def _estimated(problem: ConvProblem, precision: str, prepared: bool) -> Choice:
    """The choice by estimates: the same for every number of threads."""
    return Choice(problem, precision, prepared)


# What is remembered of a measurement: a file for each problem, precision, number of threads, processor and version of
# this package. It holds names and numbers only; whatever it holds can at worst choose a slower algorithm.


def _remember(problem: ConvProblem, precision: str, measured: Measured) -> None:
    content = {"when": measured.when, "times": measured.times}
    cache.write("choices", _key(problem, precision, measured.threads), json.dumps(content).encode())


def _recall(problem: ConvProblem, precision: str, threads: int) -> Measured | None:
    if not os.path.isdir(cache.cache_directory("choices")):
        return None
    content = cache.read("choices", _key(problem, precision, threads))
    if content is None:
        return None
    try:
        kept: Any = json.loads(content)
        times = {str(name): (float(run), float(preparing)) for name, (run, preparing) in kept["times"].items()}
        when = str(kept["when"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    willing = [a for a in ALGORITHMS if a.name in times and a.refuses(problem) is None]
    if len(willing) < max(len(times), 1) or (precision == "strict" and not all(a.sums_directly for a in willing)):
        return None
    return Measured(when, threads, times)


def _key(problem: ConvProblem, precision: str, threads: int) -> str:
    described = [repr(astuple(problem)), precision, threads, *_circumstances()]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


@functools.cache
def _circumstances() -> list[Any]:
    """The processor, and the state of every file that computes: a changed program is measured again."""
    files = []
    for folder in (here := Path(__file__).parent, here / "algorithms", here / "kernels"):
        with os.scandir(folder) as entries:
            stats = sorted((entry.name, entry.stat()) for entry in entries if entry.name.endswith(".py"))
        files += [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    target = None if unavailable() else host()
    return [np.__version__, files, *(() if target is None else (target.cpu, target.features))]


def _times(choice: Choice, threads: int) -> dict[str, tuple[float, float]]:
    """Seconds of one run, and of preparing, of each candidate: medians of several, within a fraction of a second."""
    problem = choice.problem
    willing = [c for c in choice.candidates if c.refusal is None]
    willing = [c for c in willing if c is willing[0] or c.estimate < _PATIENCE]
    random = np.random.default_rng(0)
    source = random.integers(0, 2, problem.source_shape).astype(problem.dtype)
    operand = random.integers(0, 2, problem.operand_shape).astype(problem.dtype)
    out = np.empty(problem.result_shape, problem.dtype)
    if not out.size:
        return {willing[0].algorithm.name: (0.0, 0.0)}

    def timed(prepared: Prepared, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            prepared.run(source, out, threads)
        return (time.perf_counter() - start) / repeats

    def preparing(algorithm: Algorithm, most: float) -> float:
        """The least of up to three times, which other work disturbed least."""
        spent: list[float] = []
        while not spent or (len(spent) < 3 and sum(spent) < most):
            start = time.perf_counter()
            algorithm.prepare(problem, operand)
            spent.append(time.perf_counter() - start)
        return min(spent)

    prepared = {c.algorithm.name: c.algorithm.prepare(problem, operand) for c in willing}
    preparations = {c.algorithm.name: preparing(c.algorithm, _SECONDS) for c in willing}
    for each in prepared.values():
        timed(each, 1)
    times = {name: [timed(each, 1)] for name, each in prepared.items()}
    fastest = min(first for (first,) in times.values())
    repeats = {name: max(1, round(5e-4 / max(first, 1e-7))) for name, (first,) in times.items()}
    contest = {name: each for name, each in prepared.items() if times[name][0] < _SLOWER * fastest}
    for name in contest:
        times[name].clear()
    for turn in range(15):
        for name, each in contest.items():
            spent = times[name]
            if turn < 1 or sum(spent) * repeats[name] < _SECONDS:
                spent.append(timed(each, repeats[name]))
    return {name: (statistics.median(spent), preparations[name]) for name, spent in times.items()}


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
