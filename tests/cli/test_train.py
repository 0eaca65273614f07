"""`wherever train`: from pictures and boxes to a detector in a file, which `wherever find` uses; and what cannot be."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image
from scenes import box, scene

from wherever.cli import main
from wherever.cli.train import parse_time

PLACES = [(20, 20, 24), (120, 40, 24), (60, 110, 24), (170, 130, 24)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three pictures and a table of what is in them."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(3):
        image = np.clip(scene(PLACES, (180, 220), number) * 60 + 80, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        rows += [(f"{number}.png", "glyph", *box(place)) for place in PLACES if number < 2]
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("image", "label", "x0", "y0", "x1", "y1"), *rows])
    return tmp_path


def test_it_trains_saves_and_goes_on(folder, capsys):
    pytest.importorskip("torch")
    command = ["train", "0.png", "1.png", "--truth", "boxes.csv", "--save", "a.detector", "--budget", "2s"]
    assert main([*command, "--kind", "head"]) == 0
    assert "the closed form and a network" in capsys.readouterr().out
    assert main(["find", "2.png", "--detector", "a.detector", "--top", "4"]) == 0
    found = list(csv.DictReader((folder / "finds" / "finds.csv").read_text().splitlines()))
    assert len(found) == 4
    assert main([*command[:-1], "0.5s", "--resume"]) == 0
    assert main(["evaluate", "0.png", "1.png", "--truth", "boxes.csv", "--detector", "a.detector", "--json"]) == 0


def test_the_name_of_the_thing_is_kept(folder):
    assert main(["train", "--truth", "boxes.csv", "--save", "a.detector", "--kind", "closed", "--label", "glyph"]) == 0
    assert main(["find", "2.png", "--detector", "a.detector"]) == 0
    found = list(csv.DictReader((folder / "finds" / "finds.csv").read_text().splitlines()))
    assert {row["label"] for row in found} == {"glyph"}


def test_regions_to_ignore_and_what_is_not_meant(folder):
    (folder / "not.csv").write_text("image,x0,y0,x1,y1\n0.png,150,5,175,30\n")
    (folder / "ignore.csv").write_text("image,x0,y0,x1,y1\n1.png,0,0,100,100\n2.png,0,0,10,10\n")
    command = ["train", "0.png", "1.png", "--truth", "boxes.csv", "--save", "a.detector", "--kind", "closed"]
    assert main([*command, "--not", "not.csv", "--ignore", "ignore.csv"]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--save", "a.detector"], "--truth is missing"),
        (["--truth", "boxes.csv"], "--save is missing"),
        (["--truth", "boxes.csv", "--save", "a.detector", "--budget", "soon"], "--budget soon: write a time"),
        (["--truth", "boxes.csv", "--save", "none.detector", "--resume"], "none.detector"),
        (["--truth", "boxes.csv", "--save", "a.detector", "--label", "coin"], "nothing is labelled 'coin'"),
        (["--truth", "boxes.csv", "--save", ".", "--kind", "closed"], "is a folder"),
    ],
)
def test_what_cannot_be_is_said(folder, capsys, more, message):
    assert main(["train", *more]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "a.detector").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("2min", 120), ("1.5 h", 5400)])
def test_times(text, seconds):
    assert parse_time(text) == seconds
