"""`wherever ladder`: what it prints, writes and refuses."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from wherever.cli import main
from wherever.cli.ladder import parse_channels, parse_sizes


def run(capsys, *arguments):
    code = main(["ladder", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_numbers_of_the_source_without_options(capsys):
    code, out, err = run(capsys, "--no-measure")
    assert code == 0
    for text in ("10^9", "10^12", "3,996,001", "source 4·10^6", "441", "source 400", "21,168", "4 TB", "W[i,j,k,l]"):
        assert text in out
    assert err == ""


def test_json_is_exact_and_alone_on_stdout(capsys):
    code, out, err = run(
        capsys, "--image", "20x30", "--hidden", "10x15", "--delta", "2x3", "--channels", "2:5", "--json"
    )
    assert code == 0
    content = json.loads(out)
    assert (content["image"], content["hidden"]) == ([20, 30], [10, 15])
    assert (content["delta"], content["channels"]) == ([2, 3], [2, 5])
    weights = [row["count"]["weights"] for row in content["rows"]]
    assert weights == [600_000, 600 * 150, 29 * 44, 5 * 7, 5 * 7 * 2 * 5]
    assert all(row["seconds"] > 0 for row in content["rows"])
    assert "running: translation invariant" in err


@pytest.mark.parametrize(("image", "formula"), [("16000", "V[a]"), ("6x5x4", "V[a1,a2,a3]"), ("6×5", "V[a,b]")])
def test_any_number_of_dimensions(capsys, image, formula):
    code, out, _ = run(capsys, "--image", image, "--delta", "1", "--no-measure")
    assert code == 0
    assert formula in out


def test_the_plot_is_written(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "ladder.png"
    code, out, _ = run(capsys, "--no-measure", "--plot", str(path))
    assert code == 0
    assert "10^12" in out
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["ladder.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "1000by1000"], "--image 1000by1000: write whole numbers with x between them"),
        (["--image", "10x"], "--image 10x: write whole numbers"),
        (["--image", "0x5"], "--image 0x5: every number must be at least 1"),
        (["--image", "-4"], "--image -4: every number must be at least 1"),
        (["--image", "--4"], "--image --4: write whole numbers"),
        (["--delta", "-1"], "--delta -1: every number must be at least 0"),
        (["--delta", "2x-1"], "--delta 2x-1: every number must be at least 0"),
        (["--delta", "2-1"], "--delta 2-1: write whole numbers"),
        (["--image", "٣x٣"], "write whole numbers"),
        (["--image", "8x8", "--hidden", "8"], "--hidden 8: needs as many dimensions as --image 8x8"),
        (["--image", "8x8", "--delta", "1x1x1"], "--delta 1x1x1: give one number, or one for each dimension"),
        (["--delta", "1.5"], "--delta 1.5: write whole numbers"),
        (["--channels", "3"], "--channels 3: write IN:OUT"),
        (["--channels", "0:3"], "--channels 0:3: write IN:OUT"),
        (["--plot", "ladder.docx"], "--plot ladder.docx: the name must end in one of"),
        (["--plot", "nowhere/ladder.png"], "the folder nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_values_of_options():
    assert parse_sizes("--image", "12 x 7") == (12, 7)
    assert parse_sizes("--delta", "0", least=0) == (0,)
    assert parse_channels("3:16") == (3, 16)
