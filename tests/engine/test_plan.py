"""Measured plans: remembered for their problem, threads and precision alone; a bad file is no file and no error."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from strategies import problems

from wherever.engine import cache
from wherever.engine import plan as module
from wherever.engine.algorithms import ALGORITHMS
from wherever.engine.machine import Machine
from wherever.engine.plan import Choice, choose
from wherever.problem import ConvProblem

PROBLEM = ConvProblem.from_shapes((1, 3, 12, 12), (4, 3, 3, 3), padding="same")


def forget():
    """As in a new process."""
    module._here.clear()
    module._chosen.cache_clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache directory, and nothing remembered."""
    monkeypatch.setenv("WHEREVER_CACHE_DIR", str(tmp_path))
    forget()
    yield tmp_path / "choices"
    forget()


@pytest.fixture
def timings(monkeypatch):
    """How often candidates were timed; by these times the slowest estimate is the fastest."""
    done = []

    def times(choice, threads):
        done.append(threads)
        willing = [c.algorithm.name for c in choice.candidates if c.refusal is None]
        return {name: (1e-3 / (1 + place), 1e-6) for place, name in enumerate(willing)}

    monkeypatch.setattr(module, "_times", times)
    return done


def test_what_was_measured_is_remembered(folder, timings):
    estimated = choose(PROBLEM, threads=1)
    assert estimated.measured is None
    measured = choose(PROBLEM, threads=1, measure=True)
    assert measured.algorithm is not estimated.algorithm
    assert "measured 20" in str(measured)
    assert str(choose(PROBLEM, threads=1)) == str(measured)  # later in this process
    forget()
    assert str(choose(PROBLEM, threads=1)) == str(measured)  # in the next one
    assert str(choose(PROBLEM, threads=1, measure=True)) == str(measured)
    assert timings == [1]
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_measurement_is_of_one_problem_precision_and_number_of_threads(folder, timings):
    choose(PROBLEM, threads=2, measure=True)
    assert choose(PROBLEM, threads=1).measured is None
    assert choose(PROBLEM, threads=2, precision="strict").measured is None
    other = ConvProblem.from_shapes((1, 3, 12, 13), (4, 3, 3, 3), padding="same")
    assert choose(other, threads=2).measured is None
    assert str(choose(PROBLEM, threads=2)).endswith("2 threads")


@pytest.mark.parametrize(
    "content",
    [
        b"no JSON",
        b"[]",
        b'{"when": "now", "times": {"a peer": [0.1, 0.1]}}',
        b'{"when": "now", "times": {"direct": [0.1]}}',
        b'{"when": "now", "times": {"direct": 0.1}}',
        b'{"when": "now", "times": {}}',
        b'{"when": "now", "times": {"direct": "fast"}}',
        b'{"when": "now", "times": []}',
        b'{"times": {"direct": [1, 1]}}',
    ],
)
def test_nonsense_in_a_whole_file_is_no_choice(folder, timings, content):
    choose(PROBLEM, threads=1, measure=True)
    (path,) = folder.iterdir()
    cache.write("choices", path.name, content)
    forget()
    assert choose(PROBLEM, threads=1).measured is None
    assert choose(PROBLEM, threads=1, measure=True).measured is not None
    assert timings == [1, 1]


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:40], lambda c: c[:-1] + b"?", lambda c: b"x" + c])
def test_a_damaged_file_is_measured_again(folder, timings, damage):
    choose(PROBLEM, threads=1, measure=True)
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    forget()
    assert choose(PROBLEM, threads=1).measured is None
    choose(PROBLEM, threads=1, measure=True)
    forget()
    assert choose(PROBLEM, threads=1).measured is not None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions as on Unix")
def test_what_others_may_write_is_not_believed(folder, timings):
    choose(PROBLEM, threads=1, measure=True)
    (path,) = folder.iterdir()
    path.chmod(0o666)
    forget()
    assert choose(PROBLEM, threads=1).measured is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, timings):
    obstacle = tmp_path / "file"
    obstacle.write_text("not a directory")
    monkeypatch.setenv("WHEREVER_CACHE_DIR", str(obstacle))
    forget()
    assert choose(PROBLEM, threads=1, measure=True).measured is not None
    assert choose(PROBLEM, threads=1).measured is not None  # by this process alone
    assert timings == [1]
    forget()


@pytest.mark.parametrize("direction", ["forward", "transpose", "weight_gradient"])
def test_candidates_are_really_timed(folder, direction):
    problem = ConvProblem.from_shapes((1, 2, 9, 8), (4, 2, 3, 3), stride=2, padding=1, direction=direction)
    choice = choose(problem, threads=1, measure=True)
    timed = [c for c in choice.candidates if c.measured is not None]
    assert timed == [c for c in choice.candidates if c.refusal is None]
    assert all(0 < c.measured < 10 for c in timed)
    assert choice.candidates[0].measured == min(c.measured for c in timed)
    empty = ConvProblem.from_shapes((0, 2, 9, 8), (4, 2, 3, 3), direction=direction)
    assert choose(empty, threads=1, measure=True).algorithm.refuses(empty) is None


def test_another_process_chooses_what_was_measured(tmp_path):
    code = (
        "import sys; from wherever.ops import plan\n"
        "p = plan((1, 2, 30, 30), (3, 2, 3, 3), threads=1, measure=sys.argv[1] == 'measure'); print(p)"
    )
    environment = {**os.environ, "WHEREVER_CACHE_DIR": str(tmp_path)}

    def printed(word):
        command = [sys.executable, "-c", code, word]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert printed("measure") == printed("recall")


def test_the_same_problem_is_planned_the_same_way_before_and_after_others():
    before = str(choose(PROBLEM, threads=1))
    for n in range(5):
        choose(ConvProblem.from_shapes((1, 3, 20 + n, 20), (4, 3, 3, 3)), threads=1)
    module._chosen.cache_clear()
    module._estimated.cache_clear()
    assert str(choose(PROBLEM, threads=1)) == before
    assert np.isfinite(choose(PROBLEM).candidates[0].seconds)


@given(problem=problems())
def test_no_algorithm_is_left_out_that_is_the_cheapest(problem):
    """Bounds lie below estimates, so that the first candidate is the cheapest of all that were never asked, too."""
    for prepared in (True, False):
        choice = Choice(problem, "fast", prepared)
        assert choice.best == choice.candidates[0]
    for algorithm in ALGORITHMS:
        least = algorithm.least(problem, Machine())
        if algorithm.refuses(problem) is None:
            assert least <= algorithm.estimate(problem, Machine())
            assert algorithm.preparation(problem, Machine()) >= 0


LARGE = {
    "layer": ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "large kernel": ((1, 1, 2048, 2048), (1, 1, 15, 15), {"padding": "same"}),
    "large kernels": ((4, 64, 56, 56), (64, 64, 7, 7), {"padding": 3}),
    "depthwise": ((1, 128, 56, 56), (128, 1, 9, 9), {"padding": 4, "groups": 128}),
    "volume": ((1, 16, 32, 32, 32), (32, 16, 3, 3, 3), {"padding": 1}),
    "several kernels": ((1, 2, 512, 512), (8, 1, 15, 15), {"padding": 7, "groups": 2}),
    "signal": ((1, 1, 10**6), (1, 1, 4095), {}),
    "layer of a signal": ((1, 64, 4000), (64, 64, 63), {}),
    "the source's own": ((1, 1, 1000, 1000), (1, 1, 1999, 1999), {"padding": "same"}),
}


@pytest.mark.parametrize("direction", ["forward", "transpose", "weight_gradient"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LARGE)
def test_bounds_of_estimates_hold_where_they_matter(name, dtype, direction):
    x, w, options = LARGE[name]
    for layout in ("channels_first", "channels_last"):
        shape = x if layout == "channels_first" else (x[0], *x[2:], x[1])
        problem = ConvProblem.from_shapes(shape, w, dtype=dtype, layout=layout, direction=direction, **options)
        for algorithm in ALGORITHMS:
            least = algorithm.least(problem, Machine())
            assert algorithm.refuses(problem) is not None or least <= algorithm.estimate(problem, Machine())
