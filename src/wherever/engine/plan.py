"""The planner: which algorithm computes a problem, and why."""

from __future__ import annotations

import functools
import hashlib
import json
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
from wherever.problem import Array, ConvProblem

PRECISIONS = ("fast", "strict")

_SECONDS = 0.2  # that one candidate is timed for, at most
_SLOWER = 8.0  # a candidate that is so many times slower than the best is not timed again
_PATIENCE = 3.0  # estimated seconds beyond which a candidate is not tried, unless it is the best estimate


@dataclass(frozen=True)
class Candidate:
    """What the planner knows of one algorithm for one problem."""

    algorithm: Algorithm
    refusal: str | None
    estimate: float = float("inf")
    workspace: int = 0
    measured: float | None = None

    @property
    def seconds(self) -> float:
        """The measured time, or the estimate where nothing was measured."""
        return self.estimate if self.measured is None else self.measured


@dataclass(frozen=True)
class Choice:
    """The candidates for a problem, best first; printed, they explain the choice."""

    problem: ConvProblem
    precision: str
    candidates: tuple[Candidate, ...]
    measured: str | None = None  # when and how

    @property
    def algorithm(self) -> Algorithm:
        """The cheapest algorithm that does not refuse."""
        return self.candidates[0].algorithm

    def prepare(self, operand: Array, bias: Array | None = None) -> Prepared:
        """Prepare the chosen algorithm; or passes down and across, where only the weights show that they are faster."""
        if self.precision == "fast" and preferred(self.problem, operand, self.candidates[0].seconds):
            return Separable().prepare(self.problem, operand, bias)
        return self.algorithm.prepare(self.problem, operand, bias)

    def __str__(self) -> str:
        lines = [
            str(self.problem),
            f"{self.problem.multiply_adds:.4g} multiply-adds by direct summation; precision {self.precision!r}",
            f"{'':2}{'algorithm':<16}{'estimate':>12}{'measured':>12}{'workspace':>12}",
        ]
        best = self.candidates[0]
        for candidate in self.candidates:
            mark = "*" if candidate is best else ""
            if candidate.refusal is not None:
                lines.append(f"{mark:<2}{candidate.algorithm.name:<16}  refused: {candidate.refusal}")
                continue
            measured = "" if candidate.measured is None else _milliseconds(candidate.measured)
            verdict = "chosen" if candidate is best else f"{candidate.seconds / best.seconds:.3g} times slower"
            lines.append(
                f"{mark:<2}{candidate.algorithm.name:<16}{_milliseconds(candidate.estimate):>12}{measured:>12}"
                f"{candidate.workspace / 2**20:>8.1f} MiB  {verdict}"
            )
        if self.measured is not None:
            lines.append(self.measured)
        return "\n".join(lines)


def choose(
    problem: ConvProblem, *, precision: str = "fast", measure: bool = False, threads: int | None = None
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
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: {precision!r} is unknown; possible are {', '.join(map(repr, PRECISIONS))}")
    threads = threads or get_threads()
    choice = _chosen(problem, precision, threads)
    if not measure or choice.measured is not None:
        return choice
    times = _times(choice, threads)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    _remember(problem, precision, threads, when, times)
    measured = _with_times(choice, threads, when, times)
    _here[problem, precision, threads] = measured
    _chosen.cache_clear()
    return measured


_here: dict[tuple[ConvProblem, str, int], Choice] = {}  # measured by this process, whether or not a disk remembers it


@functools.lru_cache(maxsize=4096)
def _chosen(problem: ConvProblem, precision: str, threads: int) -> Choice:
    """The choice by measurements, if there are any, or else by estimates."""
    found = _here.get((problem, precision, threads))
    if found is not None:
        return found
    choice = _estimated(problem, precision)
    remembered = _recall(problem, precision, threads)
    return choice if remembered is None else _with_times(choice, threads, *remembered)


@functools.lru_cache(maxsize=4096)
def _estimated(problem: ConvProblem, precision: str) -> Choice:
    machine = Machine()
    candidates = []
    for algorithm in ALGORITHMS:
        refusal = algorithm.refuses(problem)
        if refusal is None and precision == "strict" and not algorithm.sums_directly:
            refusal = "a transform's error at a place depends on its neighbourhood; precision is 'strict'"
        if refusal is None:
            estimate, workspace = algorithm.estimate(problem, machine), algorithm.workspace(problem)
            candidates.append(Candidate(algorithm, None, estimate, workspace))
        else:
            candidates.append(Candidate(algorithm, refusal))
    return Choice(problem, precision, _sorted(candidates))


def _with_times(choice: Choice, threads: int, when: str, times: dict[str, float]) -> Choice:
    """The choice by measured times; candidates that were not timed come after those that were."""
    candidates = [
        Candidate(c.algorithm, c.refusal, c.estimate, c.workspace, times.get(c.algorithm.name))
        for c in choice.candidates
    ]
    measured = f"measured {when} on {threads} thread{'s' if threads > 1 else ''}"
    return Choice(choice.problem, choice.precision, _sorted(candidates), measured)


# What is remembered of a measurement: a file for each problem, precision, number of threads, processor and version of
# this package. It holds names and numbers only; whatever it holds can at worst choose a slower algorithm.


def _remember(problem: ConvProblem, precision: str, threads: int, when: str, times: dict[str, float]) -> None:
    cache.write("choices", _key(problem, precision, threads), json.dumps({"when": when, "times": times}).encode())


def _recall(problem: ConvProblem, precision: str, threads: int) -> tuple[str, dict[str, float]] | None:
    content = cache.read("choices", _key(problem, precision, threads))
    if content is None:
        return None
    try:
        kept: Any = json.loads(content)
        times = {str(name): float(seconds) for name, seconds in kept["times"].items()}
        when = str(kept["when"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    willing = {c.algorithm.name for c in _estimated(problem, precision).candidates if c.refusal is None}
    return (when, times) if times and times.keys() <= willing else None


def _key(problem: ConvProblem, precision: str, threads: int) -> str:
    described = [repr(astuple(problem)), precision, threads, *_circumstances()]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


@functools.cache
def _circumstances() -> list[Any]:
    """The processor, and the state of every file that computes: a changed program is measured again."""
    stats = ((path, path.stat()) for path in sorted(Path(__file__).parent.rglob("*.py")))
    files = [(path.name, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    target = None if unavailable() else host()
    return [np.__version__, files, *(() if target is None else (target.cpu, target.features))]


def _sorted(candidates: list[Candidate]) -> tuple[Candidate, ...]:
    timed = any(c.measured is not None for c in candidates)
    return tuple(sorted(candidates, key=lambda c: (c.refusal is not None, timed and c.measured is None, c.seconds)))


def _times(choice: Choice, threads: int) -> dict[str, float]:
    """Seconds of one prepared run of each candidate, in turns: the median of several, within a fraction of a second."""
    problem = choice.problem
    willing = [c for c in choice.candidates if c.refusal is None]
    willing = [c for c in willing if c is willing[0] or c.estimate < _PATIENCE]
    random = np.random.default_rng(0)
    source = random.integers(0, 2, problem.source_shape).astype(problem.dtype)
    operand = random.integers(0, 2, problem.operand_shape).astype(problem.dtype)
    out = np.empty(problem.result_shape, problem.dtype)
    if not out.size:
        return {willing[0].algorithm.name: 0.0}

    def timed(prepared: Prepared, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            prepared.run(source, out, threads)
        return (time.perf_counter() - start) / repeats

    prepared = {c.algorithm.name: c.algorithm.prepare(problem, operand) for c in willing}
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
    return {name: statistics.median(spent) for name, spent in times.items()}


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
