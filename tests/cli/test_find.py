"""`wherever find` does what its help says, and every bad input is a line on stderr and nothing else."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from wherever.cli import main
from wherever.files.boxes import read_boxes

COIN = ["--example", "132,28,47,45"]


class Result:
    """What a run of the command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def command(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(list(arguments))
        return Result(code, *capsys.readouterr())

    return command


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def picture(path: Path, seed: int = 0) -> str:
    """Write a noisy picture with four bright discs, of which the first is at 20,20 (12 pixels wide)."""
    y, x = np.mgrid[:120, :160]
    values = np.random.default_rng(seed).normal(60, 10, (120, 160))
    for cx, cy in ((26, 26), (80, 40), (120, 90), (40, 95)):
        values[np.hypot(x - cx + 0.5, y - cy + 0.5) < 6] += 120
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
    return str(path)


# --------------------------------------------------------------------------------------------------------- the main job


def test_coins(run: Any, tmp_path: Path) -> None:
    result = run("find", "sample:coins", *COIN)
    assert result.code == 0
    assert result.err == ""
    assert files_in(tmp_path) == ["finds/finds.csv", "finds/finds.geojson", "finds/overlay.png", "finds/scores.png"]
    rows = list(csv.DictReader((tmp_path / "finds/finds.csv").read_text().splitlines()))
    assert len(rows) >= 20
    assert f"{len(rows)} finds" in result.out
    assert {row["image"] for row in rows} == {"sample:coins"}
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    boxes = read_boxes(tmp_path / "finds/finds.csv")
    assert [item.box for item in read_boxes(tmp_path / "finds/finds.geojson")] == [item.box for item in boxes]
    assert any(abs(item.box[0] - 132) < 5 and abs(item.box[1] - 28) < 5 for item in boxes)


def test_json_is_all_there_is_on_stdout(run: Any, tmp_path: Path) -> None:
    result = run("find", "sample:coins", *COIN, "--json")
    content = json.loads(result.out)
    assert result.code == 0
    assert files_in(tmp_path) == []
    (one,) = content["images"]
    assert (one["image"], one["width"], one["height"]) == ("sample:coins", 384, 303)
    assert 0 <= one["anywhere"] <= 1
    assert set(one["finds"][0]) == {"x0", "y0", "x1", "y1", "score", "scale", "angle"}
    # What is printed can be read as boxes.
    (tmp_path / "a.json").write_text(json.dumps(one["finds"]))
    assert len(read_boxes(tmp_path / "a.json")) == len(one["finds"])
    with_files = run("find", "sample:coins", *COIN, "--json", "--out", "there")
    assert with_files.out == result.out
    assert "there/finds.csv" in files_in(tmp_path)


def test_several_pictures(run: Any, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    names = [picture(tmp_path / "a b.png"), picture(tmp_path / "x/a b.png", 1), picture(tmp_path / "c.png", 2)]
    result = run("find", *names, "--example", "20,20,12,12", "--out", "deep/out")
    assert result.code == 0
    assert "3 pictures" in result.out
    expected = [f"deep/out/{name}/{file}" for name in ("a_b", "a_b-2", "c") for file in
                ("finds.geojson", "overlay.png", "scores.png")]  # fmt: skip
    assert [name for name in files_in(tmp_path) if name.startswith("deep")] == sorted([*expected, "deep/out/finds.csv"])
    rows = list(csv.DictReader((tmp_path / "deep/out/finds.csv").read_text().splitlines()))
    assert {row["image"] for row in rows} == set(names)


def test_a_saved_detector_finds_the_same(run: Any, tmp_path: Path) -> None:
    one, other = picture(tmp_path / "one.png"), picture(tmp_path / "other.png", 1)
    first = run("find", other, "--in", one, "--example", "20,20,12,12", "--save", "disc.detector", "--json")
    again = run("find", other, "--detector", "disc.detector", "--json")
    assert first.code == again.code == 0
    assert json.loads(again.out)["images"] == json.loads(first.out)["images"]
    assert files_in(tmp_path) == ["disc.detector", "one.png", "other.png"]
    # A result has the permissions of any new file; nothing is left behind beside it.
    assert (tmp_path / "disc.detector").stat().st_mode == (tmp_path / "one.png").stat().st_mode


def test_no_command_depends_on_how_modules_are_found(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("wherever") else real(name, *rest)
    )
    assert run("ladder", "--no-measure").code == 0


def test_examples_from_a_file(run: Any, tmp_path: Path) -> None:
    one, other = picture(tmp_path / "one.png"), picture(tmp_path / "other.png", 1)
    (tmp_path / "boxes.csv").write_text(
        "image,x,y,w,h,label\none.png,20,20,12,12,disc\nother.png,74,34,12,12,disc\none.png,0,0,9,9,nothing\n"
    )
    assert "--label disc" in run("find", one, "--examples", "boxes.csv").err
    result = run("find", one, "--examples", "boxes.csv", "--label", "disc", "--json")
    assert result.code == 0
    assert json.loads(result.out)["images"][0]["label"] == "disc"
    by_hand = run("find", one, "--example", "20,20,12,12", "--label", "disc", "--json")
    assert by_hand.out != result.out  # the other example counted too
    # Finds are examples for the next run.
    assert run("find", one, "--example", "20,20,12,12").code == 0
    assert run("find", other, "--examples", "finds/finds.csv", "--json").code == 0


def test_options_of_the_search(run: Any, tmp_path: Path) -> None:
    one = picture(tmp_path / "one.png")
    disc = ("find", one, "--example", "20,20,12,12", "--json")

    def finds(*options: str) -> list[dict[str, float]]:
        result = run(*disc, *options)
        assert result.err == ""
        return json.loads(result.out)["images"][0]["finds"]  # type: ignore[no-any-return]

    assert len(finds("--top", "2")) == 2
    assert all(item["score"] >= 0.2 for item in finds("--threshold", "0.2"))
    assert len(finds("--threshold", "0")) > len(finds("--threshold", "0.9"))
    assert {item["scale"] for item in finds("--scales", "1:1")} == {1.0}
    for options in (["--upright"], ["--any-rotation"], ["--complete"], ["--not", "100,10,12,12"], ["--bands", "1"]):
        assert len(finds(*options)) >= 1


def test_score_maps(run: Any, tmp_path: Path) -> None:
    one = picture(tmp_path / "one.png")
    assert run("find", one, "--example", "20,20,12,12", "--scores", "tif").code == 0
    scores = tifffile.imread(tmp_path / "finds/scores.tif")
    assert scores.shape == (120, 160)
    assert scores.dtype == np.float32
    assert scores[22:30, 22:30].max() > np.median(scores)
    assert run("find", one, "--example", "20,20,12,12", "--scores", "none", "--out", "b").code == 0
    assert files_in(tmp_path / "b") == ["finds.csv", "finds.geojson", "overlay.png"]


def test_nothing_found_is_exit_code_1(run: Any, tmp_path: Path) -> None:
    one = picture(tmp_path / "one.png")
    noise = np.random.default_rng(9).normal(60, 10, (120, 160)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    result = run("find", "noise.png", "--in", one, "--example", "20,20,12,12", "--threshold", "0.999999")
    assert result.code == 1
    assert "0 finds" in result.out
    assert files_in(tmp_path / "finds") == ["finds.csv", "finds.geojson", "overlay.png", "scores.png"]


def test_a_name_with_brackets_is_no_markup(run: Any, tmp_path: Path) -> None:
    name = picture(tmp_path / "[bold]a[red].png")
    assert "[bold]a[red].png" in run("find", os.path.basename(name), "--example", "20,20,12,12").out


def test_help_and_version(run: Any) -> None:
    for arguments, words in (
        (["find", "--help"], ["--example", "X,Y,W,H", "wherever find sample:coins", "Exit codes"]),
        (["--help"], ["find", "evaluate", "samples", "ladder"]),
        (["--version"], ["wherever 0."]),
        (["samples"], ["sample:coins", "384 x 303"]),
    ):
        result = run(*arguments)
        assert result.code == 0
        for word in words:
            assert word in result.out


# ------------------------------------------------------------------------------------------------------------ bad input


def refused(result: Result, *words: str) -> None:
    """Check that a run ended with exit code 2 and one line that holds the words."""
    assert result.code == 2, result.out
    assert result.out == ""
    assert result.err.startswith("wherever: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample:coins"], ["no example is marked", "--example"]),
        (["sample:coins", "--not", "1,2,3,4"], ["no example is marked"]),
        (["sample:coins", "--example", "1,2,3"], ["--example 1,2,3", "X,Y,W,H"]),
        (["sample:coins", "--example", "1,2,0,5"], ["more than 0"]),
        (["sample:coins", "--example", "500,20,30,30"], ["500,20,30,30", "outside", "384 x 303"]),
        (["sample:coins", "--example", "0,0,500,30"], ["larger than", "384 x 303"]),
        (["sample:coins", *COIN, "--not", "-90,0,20,20"], ["--not -90,0,20,20", "outside"]),
        (["sample:coins", *COIN, "--scales", "2"], ["--scales", "0.5:2"]),
        (["sample:coins", *COIN, "--bands", "0"], ["--bands"]),
        (["sample:coins", *COIN, "--bands", "2"], ["has 1 band"]),
        (["missing.png", *COIN], ["missing.png: no such file"]),
        (["sample:coins", "missing.png", *COIN], ["missing.png: no such file"]),
        (["sample:nothing", *COIN], ["no such sample"]),
        (["nowhere/*.png", *COIN], ["nothing matches"]),
        (["sample:coins", "--in", "missing.png", *COIN], ["missing.png: no such file"]),
        (["sample:ihc", "--in", "sample:coins", *COIN], ["sample:ihc", "band"]),
        (["sample:coins", "--detector", "missing.detector"], ["missing.detector"]),
        (["sample:coins", "--detector", "x", *COIN], ["--detector is already trained"]),
        (["sample:coins", "--detector", "x", "--scales", "1:2"], ["--detector", "leave out --scales"]),
        (["sample:coins", "--detector", "x", "--upright"], ["--detector", "--upright"]),
        (["sample:coins", "--examples", "missing.csv"], ["missing.csv: no such file"]),
        (["sample:coins", *COIN, "--out", "a file"], ["a file", "not a folder"]),
        (["sample:coins", *COIN, "--save", "missing/a.detector"], ["--save", "missing"]),
        (["sample:coins", *COIN, "--save", "."], ["--save", "is a folder"]),
        (["text.png", *COIN], ["text.png: not a picture"]),
        (["empty.png", *COIN], ["empty.png: the file is empty"]),
        (["cut.png", *COIN], ["cut.png: corrupt or truncated"]),
        (["huge.npy", *COIN], ["huge.npy: corrupt or truncated"]),
        (["sample:coins", "text.png", *COIN], ["text.png: not a picture"]),
        (["sample:coins", "--detector", "text.png"], ["text.png"]),
        (["sample:coins", "--detector", "cut.png"], ["cut.png"]),
        (["sample:coins", "--examples", "text.png"], ["text.png"]),
        (["nan.npy", "--example", "5,5,20,20"], ["nan.npy", "NaN"]),
        (["sample:coins", "nan.npy", *COIN], ["nan.npy", "NaN"]),
        (["one.png", "--example", "5,5,20,20"], ["one.png", "one colour"]),
        (["pixel.png", "--example", "0,0,1,1"], ["pixel.png", "one colour"]),
    ],
    ids=lambda value: " ".join(value).replace("--example 132,28,47,45", "COIN") if isinstance(value, list) else None,
)
def test_bad_input(run: Any, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "a file").write_text("kept")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    data = Path(picture(tmp_path / "cut.png")).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (65536, 65536), }\n"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + bytes([len(header), 0]) + header + bytes(100))
    np.save(tmp_path / "nan.npy", np.full((60, 60), np.nan))
    Image.new("L", (60, 60), 7).save(tmp_path / "one.png")
    Image.new("L", (1, 1), 7).save(tmp_path / "pixel.png")
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    refused(run("find", *arguments), *words)
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before
    assert not [path for path in tmp_path.rglob("*") if path.is_dir()]


def test_nan_pixels_are_an_error_unless_they_may_be_missing(run: Any, tmp_path: Path) -> None:
    with Image.open(picture(tmp_path / "one.png")) as image:
        values = np.array(image, dtype=np.float32)
    values[100:103, 100:102] = np.nan
    np.save(tmp_path / "gaps.npy", values)
    refused(run("find", "gaps.npy", "--example", "20,20,12,12"), "gaps.npy", "6 pixels with NaN", "--missing")
    result = run("find", "gaps.npy", "--example", "20,20,12,12", "--missing")
    assert result.code == 0
    assert not result.err


def test_usage_errors_are_exit_code_2(run: Any, tmp_path: Path) -> None:
    for arguments in (["find"], ["find", "sample:coins", "--frobnicate"], ["find", "a", "--top", "0"], ["nothing"]):
        result = run(*arguments)
        assert result.code == 2
        assert "Error" in result.err
        assert "Traceback" not in result.err
    assert files_in(tmp_path) == []


def test_a_bad_picture_at_the_end_leaves_the_old_results(run: Any, tmp_path: Path) -> None:
    one = picture(tmp_path / "one.png")
    (tmp_path / "bad.png").write_bytes(Path(one).read_bytes()[:300])
    (tmp_path / "disc.detector").write_text("old")
    assert run("find", one, "--example", "20,20,12,12").code == 0
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    result = run("find", one, "bad.png", "--example", "21,21,10,10", "--save", "disc.detector")
    refused(result, "bad.png: corrupt or truncated")
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before


def test_an_unwritable_folder_is_known_before_the_work(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wherever.find import detector

    def never(*_: object, **__: object) -> None:
        pytest.fail("the work began")

    monkeypatch.setattr(detector.Detector, "fit", never)
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "finds.csv").mkdir(parents=True)
    refused(run("find", "sample:coins", *COIN, "--out", "file/deep"), "not a folder")
    refused(run("find", "sample:coins", *COIN, "--out", "taken"), "taken/finds.csv", "it is a folder")
    refused(run("find", "sample:coins", *COIN, "--save", "file/a.detector"), "--save")


def test_debug_shows_where(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("find", "missing.png", *COIN, "--debug")
    assert result.code == 2
    assert "Traceback" in result.err
    from wherever.find import detector

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(detector.Detector, "fit", broken)
    refused(run("find", "sample:coins", *COIN), "unexpected ZeroDivisionError: oh", "--debug")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    one = picture(tmp_path / "one.png")
    many = [one] * 5000  # far more than can be done before the signal
    command = [sys.executable, "-m", "wherever.cli", "find", *many, "--example", "20,20,12,12", "--save", "a.detector"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if any(path.name == "overlay.png" for path in tmp_path.glob(".wherever-*/**/*")):
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert err == "wherever: interrupted; nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_an_interrupt_that_python_drops_ends_the_run_at_its_next_step(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from wherever.find import detector\n"
        "class Finalised:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT); sum(range(1000))\n"
        "fit = detector.Detector.fit\n"
        "def broken(*args, **kwargs):\n"
        "    Finalised()\n"
        "    return fit(*args, **kwargs)\n"
        "detector.Detector.fit = broken\n"
        "from wherever.cli import main; sys.exit(main(['find', 'sample:coins', '--example', '132,28,47,45']))"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert got.returncode == 130
    assert got.stderr.endswith("wherever: interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wherever.cli", "samples"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141


def test_a_terminal_that_can_write_only_ascii(tmp_path: Path) -> None:
    name = os.path.basename(picture(tmp_path / "zellä.png"))
    command = [sys.executable, "-m", "wherever.cli", "find", name, "--example", "20,20,12,12"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    for more, words in (([], ["####", "zell\\xe4.png"]), (["--json"], ["zell\\u00e4.png"])):
        got = subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert got.stderr == ""
        for word in words:
            assert word in got.stdout


@pytest.mark.parametrize("module", ["typer", "rich", "PIL", "tifffile"])
def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path, module: str) -> None:
    code = (
        "import importlib.util, sys; real = importlib.util.find_spec;"
        f"importlib.util.find_spec = lambda name, *a: None if name == {module!r} else real(name, *a);"
        f"sys.modules[{module!r}] = None;"
        "from wherever.cli import main; sys.exit(main(['find', 'sample:coins']))"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert got.returncode == 2
    assert got.stderr.count("\n") == 1
    assert 'pip install "wherever[find]"' in got.stderr
