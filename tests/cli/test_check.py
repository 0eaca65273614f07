"""`wherever check`: what it prints, writes and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from PIL import Image

from wherever.cli import main


def run(capsys, *arguments):
    code = main(["check", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def pictures(tmp_path):
    """Smooth and rough pictures, in a folder each."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(24):
        noise = rng.standard_normal((40, 44))
        rough = number % 2
        values = noise if rough else 3 * gaussian_filter(noise, 1)
        path = tmp_path / ("smooth", "rough")[rough] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((128 + 40 * values).clip(0, 255).astype(np.uint8)).save(path)
        paths.append(path)
    return paths


def test_tables_and_sentences(capsys, pictures):
    code, out, err = run(capsys, *pictures)
    assert (code, err) == (0, "")
    for text in (
        "Do patches look the same wherever they are?",
        "How far must one look?",
        "One kernel for all places?",
        "24 images, 40 x 44, 1 band",
        "explained by position",
        "correlation",
        "one kernel *",
        "The data support one kernel for all places",
    ):
        assert text in " ".join(out.split())


def test_json_is_alone_on_stdout(capsys, pictures):
    code, out, err = run(capsys, *pictures, "--label", "folder", "--json", "--most", "22")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert content["images"] == 24
    assert len(content["looked_at"]) == 22
    assert content["stationarity"]["stationary"] is True
    assert content["sharing"]["measure"] == "accuracy"
    assert content["sharing"]["fits"][0]["score"] > 0.9
    assert content["sharing"]["shared"] is True
    assert content["locality"]["correlation"][0] == pytest.approx(1)


def test_labels_from_a_file(capsys, pictures, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("Image,Label\n" + "".join(f"{p.name},{p.parent.name}\n" for p in pictures))
    code, out, _ = run(capsys, *pictures, "--label", labels, "--json")
    assert code == 0
    assert json.loads(out)["sharing"]["fits"][0]["score"] > 0.9
    labels.write_text("image,label\n0.png,smooth\n")
    code, out, err = run(capsys, *pictures, "--label", labels)
    assert (code, out) == (2, "")
    assert f"says nothing of 23 pictures, the first is {pictures[1]}" in err


def test_the_plot_is_written(capsys, pictures, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "check.png"
    code, out, _ = run(capsys, *pictures, "--plot", path)
    assert code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "One kernel" in out


def test_one_picture_says_what_it_cannot_tell(capsys, tmp_path):
    path = tmp_path / "one.npy"
    np.save(path, np.random.default_rng(0).standard_normal((40, 40, 5)))
    code, out, err = run(capsys, path)
    assert code == 0
    assert "stationarity needs several" in err
    assert "How far must one look?" in out
    np.save(path, np.random.default_rng(0).standard_normal((14, 14)))
    code, out, err = run(capsys, path, "--json")
    assert code == 0
    assert "sharing is left out: regions" in err
    assert json.loads(out)["sharing"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "nowhere.png"),
        (["a.png", "--label", "classes.csv"], "--label classes.csv: no such file"),
        (["a.png", "--label", "empty.csv"], "needs the columns image and label; it has nothing"),
        (["a.png", "--label", "folder"], "there is nothing to tell apart"),
        (["a.png", "colour.png"], "colour.png: has 3 bands, a.png has 1"),
        (["a.png", "holes.npy"], "holes.npy: 1 pixel with NaN or infinite values"),
        (["a.png", "--bands", "4"], "--bands asks for number 4"),
        (["a.png", "--plot", "a.docx"], "--plot a.docx: the name must end in one of"),
        (["tiny.npy", "tiny.npy"], "at least 4 x 4 pixels"),
        (["flat.npy", "flat.npy"], "all are constant"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    Image.fromarray(noise[..., 0]).save("a.png")
    Image.fromarray(noise).save("colour.png")
    holes = noise[..., 0].astype(np.float32)
    holes[3, 4] = np.nan
    np.save("holes.npy", holes)
    np.save("tiny.npy", holes[:3, :8])
    np.save("flat.npy", np.ones((20, 20)))
    (tmp_path / "empty.csv").write_text("")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
