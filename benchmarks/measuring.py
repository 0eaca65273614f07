"""How a case is measured: every result checked against ours first, then all in turns in one process; medians."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import numpy as np
from cases import Case
from contender import Contender
from peers import algorithm_of, contenders, inference, operands_of

# Relative to the largest result, of the peers' own errors; of integers, which SciPy truncates and OpenCV rounds, 2.
_TOLERANCE = {"float32": 5e-5, "float64": 1e-11, "uint8": 2e-2}
_SAMPLE = 2e-3  # seconds that one sample takes at least, by repeating what is shorter
_PATIENCE = 8.0  # seconds that one call of a peer may take
_SLOW = 2.0  # seconds spent on a contender after which 3 samples are enough
_ENOUGH = 5.0  # seconds of a first call after which it is the only sample


@dataclass
class Row:
    """What was measured of one case.

    Attributes
    ----------
    times : dict of str to float
        Median seconds of each contender; ours is "wherever".
    left_out : dict of str to str
        Why a peer is not among them.
    wrong : bool
        Whether a peer's result differs from ours.
    """

    case: Case
    algorithm: str
    times: dict[str, float]
    left_out: dict[str, str] = field(default_factory=dict)
    wrong: bool = False

    @property
    def ours(self) -> float:
        """Our seconds."""
        return self.times["wherever"]

    @property
    def peer(self) -> str:
        """The best of the others."""
        return min((name for name in self.times if name != "wherever"), key=lambda name: self.times[name])

    @property
    def ratio(self) -> float:
        """How many times faster than the best peer we are."""
        return self.times[self.peer] / self.ours


def measure(case: Case, *, layout: str, threads: int, rounds: int, by_measuring: bool = False) -> Row | str:
    """Measure one case; a word of explanation where it cannot be."""
    numbers = operands_of(case)
    row = Row(case, algorithm_of(case, layout), {})
    running: list[Contender] = []
    once: dict[str, list[float]] = {}
    truth, scale = None, 1.0
    with inference():
        try:
            for contender in contenders(case, numbers, layout, threads, measure=by_measuring):
                predicted = case.multiply_adds / contender.rate
                if predicted > _PATIENCE:
                    row.left_out[contender.name] = f"would take {predicted:.0f} s or more"
                    continue
                start = time.perf_counter()
                result = contender.run()
                seconds = time.perf_counter() - start
                result = contender.array(result)
                if truth is None:
                    truth = np.array(result)
                    scale = float(np.abs(truth).max()) or 1.0
                elif result.shape != truth.shape or not _close(result, truth, scale, case.dtype):
                    row.left_out[contender.name] = "has another result"
                    row.wrong = True
                    continue
                if seconds < _ENOUGH or not running:
                    running.append(contender)
                else:
                    once[contender.name] = [seconds]
        except NotImplementedError as missing:
            return str(missing)
        if len(running) + len(once) < 2:
            return "no peer is here: " + ", ".join(f"{name} {why}" for name, why in row.left_out.items())
        times = _in_turns(running, rounds) | once
    row.times = {name: statistics.median(each) for name, each in times.items()}
    return row


def _close(result: np.ndarray, truth: np.ndarray, scale: float, dtype: str) -> bool:
    return bool(np.abs(np.subtract(result, truth, dtype=np.float64)).max() <= _TOLERANCE[dtype] * scale)


def _in_turns(running: list[Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call, several times, of each contender."""
    repeats = {contender.name: max(1, round(_SAMPLE / _seconds(contender, 1))) for contender in running}
    times: dict[str, list[float]] = {contender.name: [] for contender in running}
    for turn in range(rounds):
        for contender in running:
            spent = times[contender.name]
            if turn < 3 or sum(spent) * repeats[contender.name] < _SLOW:
                spent.append(_seconds(contender, repeats[contender.name]))
    return times


def _seconds(contender: Contender, repeats: int) -> float:
    run = contender.run
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
