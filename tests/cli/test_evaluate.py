"""`wherever evaluate` measures what it says, in every way of being told what is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wherever.cli import main

PLACES = [(26, 26), (80, 40), (120, 90), (40, 95)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in a folder with four pictures of discs; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    y, x = np.mgrid[:120, :160]
    rows = ["image,x0,y0,x1,y1,label,ignore"]
    for number in range(4):
        values = np.random.default_rng(number).normal(60, 10, (120, 160))
        for place, (cx, cy) in enumerate(PLACES):
            cx += 3 * number
            values[np.hypot(x - cx + 0.5, y - cy + 0.5) < 6] += 120
            rows.append(f"{number}.png,{cx - 6},{cy - 6},{cx + 6},{cy + 6},disc,{int(place == 3)}")
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "truth.csv").write_text("\n".join(rows))

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["evaluate", *arguments])
        return code, *capsys.readouterr()

    return command


def test_cross_validation(run: Any, tmp_path: Path) -> None:
    code, out, err = run("--truth", "truth.csv", "--folds", "2")
    assert (code, err) == (0, "")
    assert "2-fold cross-validation, 4 pictures" in out
    content = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    (row,) = content["labels"]
    assert (row["label"], row["truth"], row["ignored"]) == ("disc", 12, 4)
    assert row["ap_iou"] > 0.9
    assert row["ap_centre"] > 0.9
    assert content["mean"]["ap_iou"] == row["ap_iou"]
    assert row["curve_iou"]["recall"][-1] <= 1
    with Image.open(tmp_path / "evaluation/precision-recall.png") as plot:
        assert plot.width > 400
    code, out, err = run("--truth", "truth.csv", "--folds", "2", "--train", "1", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["labels"][0]["truth"] == 12


def test_a_detector_and_examples(run: Any, tmp_path: Path) -> None:
    assert main(["find", "0.png", "--example", "20,20,12,12", "--save", "disc.detector", "--json"]) == 0
    code, out, _ = run("1.png", "2.png", "--truth", "truth.csv", "--detector", "disc.detector", "--json")
    assert code == 0
    content = json.loads(out)
    assert (content["pictures"], content["labels"][0]["truth"]) == (2, 6)
    (tmp_path / "examples.csv").write_text("image,x,y,w,h\n0.png,20,20,12,12\n")
    code, out, _ = run("--truth", "truth.csv", "--examples", "examples.csv", "--json")
    assert code == 0
    # The picture with the example is not evaluated.
    assert json.loads(out)["labels"][0]["truth"] == 9
    assert not (tmp_path / "evaluation").exists()


def test_several_kinds_in_turn(run: Any, tmp_path: Path) -> None:
    text = (tmp_path / "truth.csv").read_text()
    more = [line.replace("disc", "other") for line in text.splitlines()[1:]]
    (tmp_path / "two.csv").write_text("\n".join([text, *more, "0.png,5,5,5,9,disc,0"]))
    code, out, err = run("--truth", "two.csv", "--folds", "2", "--json")
    assert code == 0
    assert err == "wherever: two.csv: 1 box without width or height left out\n"
    content = json.loads(out)
    assert [row["label"] for row in content["labels"]] == ["disc", "other"]
    code, out, _ = run("--truth", "two.csv", "--folds", "2", "--label", "other", "--json")
    assert [row["label"] for row in json.loads(out)["labels"]] == ["other"]


def test_pictures_that_the_truth_does_not_name_hold_nothing(run: Any, tmp_path: Path) -> None:
    assert main(["find", "0.png", "--example", "20,20,12,12", "--save", "disc.detector", "--json"]) == 0
    lines = (tmp_path / "truth.csv").read_text().splitlines()
    (tmp_path / "less.csv").write_text("\n".join(line for line in lines if not line.startswith("2.png")))
    both = ("1.png", "2.png", "--detector", "disc.detector", "--json", "--truth")
    full, less = (json.loads(run(*both, truth)[1])["labels"][0] for truth in ("truth.csv", "less.csv"))
    assert (full["truth"], less["truth"]) == (6, 3)
    assert less["ap_centre"] < full["ap_centre"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--folds", "2"], ["--truth is missing"]),
        (["--truth", "truth.csv"], ["choose one of --detector FILE, --examples FILE and --folds K"]),
        (["--truth", "truth.csv", "--folds", "2", "--detector", "x"], ["choose one", "--detector and --folds"]),
        (["--truth", "missing.csv", "--folds", "2"], ["missing.csv: no such file"]),
        (["--truth", "truth.csv", "--folds", "5"], ["--folds 5 needs at least 5 pictures, there are 4"]),
        (["--truth", "truth.csv", "--folds", "2", "--label", "cat"], ["nothing is labelled 'cat'"]),
        (["--truth", "truth.csv", "--detector", "missing"], ["missing"]),
        (["--truth", "truth.csv", "--detector", "0.png"], ["0.png"]),
        (["missing.png", "--truth", "truth.csv", "--folds", "2"], ["marks nothing on the pictures"]),
        (["0.png", "missing.png", "--truth", "truth.csv", "--folds", "2"], ["missing.png: no such file"]),
        (["--truth", "elsewhere.csv", "--folds", "2"], ["names the picture nowhere.png"]),
        (["--truth", "unnamed.csv", "--folds", "2"], ["does not say on which picture"]),
        (["--truth", "truth.csv", "--examples", "all.csv"], ["on every picture"]),
        (["--truth", "truth.csv", "--folds", "2", "--out", "truth.csv"], ["not a folder"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input(run: Any, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "elsewhere.csv").write_text("image,x,y,w,h\nnowhere.png,1,2,3,4\n")
    (tmp_path / "unnamed.csv").write_text("x,y,w,h\n1,2,3,4\n")
    (tmp_path / "all.csv").write_text("image,x,y,w,h\n" + "".join(f"{n}.png,20,20,12,12\n" for n in range(4)))
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("wherever: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert sorted(tmp_path.rglob("*")) == before


def test_white_blood_cells_in_real_photographs(run: Any, tmp_path: Path, unpack: Any) -> None:
    unpack("bccd.tar", tmp_path / "cells", lambda member: "BloodImage_0000" in member)
    folder = next(iter(tmp_path.glob("cells/**/*.xml"))).parent
    assert len(list(folder.glob("*.jpg"))) == len(list(folder.glob("*.xml"))) == 9
    code, out, err = run("--truth", str(folder), "--folds", "3", "--label", "WBC", "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["labels"]
    assert row["truth"] == 9
    assert row["ap_iou"] > 0.85
