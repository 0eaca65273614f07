"""The planner: which algorithm computes a problem, and why."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import numpy as np

from wherever.engine.algorithms import ALGORITHMS, Algorithm, Prepared
from wherever.engine.algorithms.separable import Separable, preferred
from wherever.engine.machine import Machine
from wherever.engine.run import get_threads
from wherever.problem import Array, ConvProblem

PRECISIONS = ("fast", "strict")

_measured: dict[tuple[ConvProblem, str, int], tuple[tuple[str, float], ...]] = {}


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
        Time every candidate on random numbers, and remember the result in this process.
    threads : int, optional
        For the measurement.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: {precision!r} is unknown; possible are {', '.join(map(repr, PRECISIONS))}")
    choice = _estimated(problem, precision)
    if not measure:
        return choice
    threads = threads or get_threads()
    key = (problem, precision, threads)
    if key not in _measured:
        willing = [c.algorithm for c in choice.candidates if c.refusal is None]
        _measured[key] = tuple((a.name, _time(a, problem, threads)) for a in willing)
    times = dict(_measured[key])
    candidates = [
        Candidate(c.algorithm, c.refusal, c.estimate, c.workspace, times.get(c.algorithm.name))
        for c in choice.candidates
    ]
    return Choice(problem, precision, _sorted(candidates))


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


def _sorted(candidates: list[Candidate]) -> tuple[Candidate, ...]:
    return tuple(sorted(candidates, key=lambda c: (c.refusal is not None, c.seconds)))


def _time(algorithm: Algorithm, problem: ConvProblem, threads: int) -> float:
    """Seconds of one run of a prepared problem: the best of a few, within about a quarter of a second."""
    random = np.random.default_rng(0)
    source = random.integers(0, 2, problem.source_shape).astype(problem.dtype)
    operand = random.integers(0, 2, problem.operand_shape).astype(problem.dtype)
    out = np.empty(problem.result_shape, problem.dtype)
    prepared = algorithm.prepare(problem, operand)
    prepared.run(source, out, threads)
    best, spent = float("inf"), 0.0
    for _ in range(20):
        start = time.perf_counter()
        prepared.run(source, out, threads)
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
        if spent > 0.25:
            break
    return best


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
