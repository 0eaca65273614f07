"""The benchmark of the operation: its cases have targets, its peers agree with ours, its report is written."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = [
    {
        "name": "dense",
        "batch": 2,
        "groups": 1,
        "in_channels": 16,
        "out_channels": 20,
        "size": [15, 17],
        "kernel": [3, 3],
    },
    {"name": "deep", "batch": 1, "groups": 18, "in_channels": 18, "out_channels": 18, "size": [9, 9], "kernel": [3, 3]},
    {"name": "signal", "batch": 1, "groups": 1, "in_channels": 4, "out_channels": 3, "size": [50], "kernel": [4]},
    {
        "name": "cube",
        "batch": 1,
        "groups": 1,
        "in_channels": 5,
        "out_channels": 4,
        "size": [6, 7, 8],
        "kernel": [3, 3, 3],
    },
]


@pytest.fixture
def problems(tmp_path):
    """A file of small problems."""
    each = {"stride": 1, "padding": 1, "dilation": 1}
    listed = [{**p, **{name: [value] * len(p["kernel"]) for name, value in each.items()}} for p in SMALL]
    path = tmp_path / "problems.json"
    path.write_text(json.dumps(listed))
    return path


def run(*arguments):
    command = [sys.executable, str(FOLDER / "conv.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_case_has_a_target_and_the_facts_of_the_networks_are_there():
    listed = json.loads((FOLDER / "problems.json").read_text())
    assert len({p["name"] for p in listed}) == len(listed) == 126
    for p in listed:
        dimensions = {len(p[name]) for name in ("size", "kernel", "stride", "padding", "dilation")}
        assert len(dimensions) == 1
        assert p["in_channels"] % p["groups"] == p["out_channels"] % p["groups"] == 0
        assert math.prod(p["kernel"]) * p["batch"] > 0
    lines = run("--list").splitlines()
    families = {line.split(" | ")[0] for line in lines}
    assert len(families) == 21
    assert len(lines) == len(set(lines)) > 300


@pytest.mark.parametrize("direction", ["forward", "transpose", "weight_gradient"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_peers_have_our_results_and_the_report_is_written(problems, tmp_path, direction, layout):
    pytest.importorskip("torch")
    report, picture = tmp_path / "report.md", tmp_path / "plot.png"
    options = ["--problems", problems, "--rounds", 1, "--batch", "listed"]
    arguments = [*options, "--layout", layout, "--direction", direction]
    if direction == "forward":
        pytest.importorskip("matplotlib")
        arguments += ["--markdown", report, "--plot", picture]
    printed = run(*arguments)
    assert "another result" not in printed
    for problem in SMALL:
        assert f"| {problem['name']} |" in printed
    if direction == "forward":
        assert "| dense 3x3x3 | 1 |" in report.read_text()
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_filters_agree_with_every_library_for_every_boundary():
    printed = run("--only", "| 5x5, ", "--rounds", 1, "--details")
    assert "another result" not in printed
    assert "scipy.fft" in printed
    for boundary in ("zeros", "edge", "reflect", "symmetric", "wrap"):
        assert f"| 5x5, {boundary} |" in printed
