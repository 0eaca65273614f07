"""The benchmark of whole networks: contenders are compared, measured in turns, and shown beside their targets."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def networks(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import networks

    return networks


def test_who_has_another_result_or_fails_is_left_out_with_the_reason(networks):
    def failing():
        raise RuntimeError("no compiler")

    calls = []
    ours = networks.Contender("wherever", lambda: calls.append("ours"), lambda _: np.ones(3))
    same = networks.Contender("same", lambda: calls.append("same"), lambda _: np.full(3, 1 + 1e-6))
    other = networks.Contender("other", lambda: None, lambda _: np.full(3, 1.1))
    broken = networks.Contender("broken", failing, lambda _: np.ones(3))
    times, notes = networks.measure(iter([ours, "absent: not here", same, other, broken]), rounds=3)
    assert list(times) == ["wherever", "same"]
    assert notes[0] == "absent: not here"
    assert "other: differs" in notes[1]
    assert notes[2] == "broken: RuntimeError"
    assert calls == ["ours", "same"] * 5  # compared, warmed, and three samples, always in turns


def test_a_row_names_the_best_peer(networks):
    row = networks.line("net", {"wherever": 0.01, "a": 0.03, "b": 0.02}, 1.5)
    assert row == ["net", "10", "20", "b", "2.00", "1.5", "wherever 10, b 20, a 30"]


def test_every_network_and_step_has_a_target(networks):
    import architectures

    assert networks.TARGETS.keys() == architectures.NETWORKS.keys()
    assert {which for which, _ in networks.STEPS.values()} <= architectures.NETWORKS.keys()


@pytest.mark.parametrize("extra", [("--peers", "none"), ("--training",)])
def test_the_command_writes_a_table(tmp_path, extra):
    path = tmp_path / "table.md"
    only = "16 of 32x32" if "--training" in extra else "audio"
    command = [sys.executable, str(FOLDER / "networks.py"), "--only", only, "--rounds", "1", "--markdown", str(path)]
    done = subprocess.run([*command, *extra], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [text for text in path.read_text().splitlines() if only in text]
    assert len(rows) == 1
    assert "PyTorch" in rows[0]
