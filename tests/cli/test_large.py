"""`wherever find` on pictures beyond the budget, folders, patterns, georeferenced files, ENVI and Zarr."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from wherever.cli import large, main
from wherever.cli.progress import Steps
from wherever.files.windows import open_window

DISC = ["--example", "20,20,12,12"]
GEO = [
    (33550, "d", 3, (10.0, 10.0, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0), True),
    (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main(["find", *arguments]), *capsys.readouterr())

    return command


def discs(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """A noisy picture with discs on a grid, of which the first is at 20,20 (12 pixels wide), and their number."""
    y, x = np.mgrid[:height, :width]
    values = np.random.default_rng(seed).normal(60, 10, (height, width))
    places = [(26 + 71 * i, 26 + 83 * j) for i in range((height - 20) // 71) for j in range((width - 20) // 83)]
    for cy, cx in places:
        values[np.hypot(x - cx + 0.5, y - cy + 0.5) < 6] += 120
    return values.clip(0, 255).astype(np.uint8), len(places)


def rows_of(path: Path) -> list[list[float]]:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return sorted([float(row[name]) for name in ("x0", "y0", "x1", "y1")] for row in rows)


def test_what_is_beyond_the_budget_has_the_same_finds(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, number = discs(1300, 1500)
    tifffile.imwrite("a.tif", image, tile=(128, 128), compression="zlib")
    assert run("a.tif", *DISC, "--save", "disc.detector", "--out", "whole", "--scores", "none")[0] == 0
    monkeypatch.setattr(large, "is_huge", lambda source, memory: True)
    code, out, err = run(
        "a.tif", "--detector", "disc.detector", "--memory", "80MiB", "--out", "parts", "--scores", "tif", "--coco"
    )
    assert (code, err) == (0, "")
    assert f"{number} finds" in out
    assert np.allclose(rows_of(tmp_path / "parts/finds.csv"), rows_of(tmp_path / "whole/finds.csv"))
    files = ["finds.coco.json", "finds.csv", "finds.geojson", "overlay.png", "scores.tif"]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == files
    assert tifffile.imread("parts/scores.tif").shape == image.shape
    assert len(json.loads((tmp_path / "parts/finds.coco.json").read_text())["annotations"]) == number


def test_the_heat_map_of_a_large_picture_is_as_small_as_its_overlay(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from wherever.cli import searching
    from wherever.find import Detector

    monkeypatch.setattr(large, "OVERVIEW", 500)
    monkeypatch.setattr(large, "is_huge", lambda source, memory: True)
    image, _ = discs(1300, 1500)
    tifffile.imwrite("a.tif", image, tile=(128, 128), compression="zlib")
    assert run("a.tif", *DISC, "--memory", "80MiB", "--save", "disc.detector")[0] == 0
    with Image.open("finds/scores.png") as shown, Image.open("finds/overlay.png") as overlay:
        assert shown.size == overlay.size
    # Each pixel is the best of the 3 x 3 that it stands for.
    model = Detector.load("disc.detector")
    search = searching.Search(model, None, None, None, 80 << 20, None, Steps(1, quiet=True))
    heat = search.heat(open_window("a.tif"))
    assert np.allclose(
        heat, np.pad(model.score_map(image), ((0, 2), (0, 0))).reshape(434, 3, 500, 3).max((1, 3)), atol=1e-5
    )


def test_examples_on_a_picture_beyond_the_budget(run: Any) -> None:
    image, number = discs(1300, 1500)
    tifffile.imwrite("a.tif", image, tile=(128, 128))
    code, out, err = run("a.tif", *DISC, "--example", "1348,1085,12,12", "--memory", "16MiB", "--json")
    assert code == 2
    assert "memory:" in err
    code, out, err = run("a.tif", *DISC, "--memory", "40MiB", "--json", "--in", "a.tif")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["images"][0]["finds"]) == number


def test_folders_and_patterns(run: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        tifffile.imwrite(f"in/{number}.tif", discs(120, 160, number)[0])
    (tmp_path / "in/notes.txt").write_text("not a picture")
    code, out, _ = run("in", "--in", "in/0.tif", *DISC, "--json")
    assert code == 0
    assert [item["image"] for item in json.loads(out)["images"]] == ["in/0.tif", "in/1.tif", "in/2.tif"]
    assert json.loads(run("in/[12].tif", "--in", "in/0.tif", *DISC, "--json")[1])["images"][0]["image"] == "in/1.tif"
    (tmp_path / "empty").mkdir()
    code, _, err = run("empty", *DISC)
    assert code == 2
    assert "a folder without pictures" in err


def test_finds_in_the_coordinates_of_the_file(run: Any, tmp_path: Path) -> None:
    tifffile.imwrite("a.tif", discs(120, 160)[0], extratags=GEO)
    assert run("a.tif", *DISC, "--crs")[0] == 0
    content = json.loads((tmp_path / "finds/finds.geojson").read_text())
    assert content["crs"]["properties"]["name"].endswith("EPSG::32633")
    feature = content["features"][0]
    x0, y0, _, _ = feature["properties"]["pixels"]
    assert feature["geometry"]["coordinates"][0][0] == [500000 + 10 * x0, 4600000 - 10 * y0]
    tifffile.imwrite("b.tif", discs(120, 160)[0])
    code, _, err = run("b.tif", *DISC, "--crs")
    assert code == 2
    assert "--crs: b.tif is not georeferenced" in err


def test_envi_and_zarr(run: Any, tmp_path: Path) -> None:
    image, _ = discs(120, 160)
    whole = len(json.loads(run_on(run, image)[1])["images"][0]["finds"])
    (tmp_path / "a.img").write_bytes(image.tobytes())
    (tmp_path / "a.hdr").write_text("ENVI\nsamples = 160\nlines = 120\nbands = 1\ndata type = 1\ninterleave = bsq\n")
    assert len(json.loads(run("a.img", *DISC, "--json")[1])["images"][0]["finds"]) == whole
    zarr = pytest.importorskip("zarr")
    zarr.create_array(store="a.zarr", shape=image.shape, chunks=(50, 50), dtype="u1")[:] = image
    assert len(json.loads(run("a.zarr", *DISC, "--json")[1])["images"][0]["finds"]) == whole


def run_on(run: Any, image: np.ndarray) -> tuple[int, str, str]:
    tifffile.imwrite("plain.tif", image)
    found: tuple[int, str, str] = run("plain.tif", *DISC, "--json")
    return found


def test_declared_no_data_needs_no_option_but_other_gaps_do(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    image = discs(120, 160)[0].astype(np.float32)
    image[100:110, 100:110] = -9999
    tifffile.imwrite("a.tif", image, extratags=[(42113, "s", 6, "-9999", True)])
    assert run("a.tif", *DISC, "--json")[0] == 0
    big = np.tile(discs(600, 700)[0].astype(np.float32), (2, 2))
    big[50, 60] = np.nan
    tifffile.imwrite("b.tif", big, tile=(64, 64))
    monkeypatch.setattr(large, "is_huge", lambda source, memory: True)
    code, _, err = run("b.tif", *DISC, "--memory", "80MiB")
    assert code == 2
    assert "1 pixel with NaN" in err
    assert "--missing" in err
    assert run("b.tif", *DISC, "--memory", "80MiB", "--missing", "--json")[0] == 0
