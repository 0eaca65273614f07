"""What is written on the command line is understood, or refused with a way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherever.cli.common import (
    Marked,
    choose_label,
    explain,
    find_picture,
    load_image,
    match_picture,
    parse_bands,
    parse_box,
    parse_scales,
)
from wherever.files.boxes import Annotation


@given(st.tuples(st.integers(-500, 500), st.integers(-500, 500), st.integers(1, 900), st.integers(1, 900)))
def test_a_box(box: tuple[int, int, int, int]) -> None:
    x, y, w, h = box
    assert parse_box("--example", f"{x},{y},{w},{h}") == (x, y, x + w, y + h)
    assert parse_box("--example", f"{x}.5, {y}, {w}, {h}") == (float(f"{x}.5"), y, float(f"{x}.5") + w, y + h)


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1 2 3 4", "1,2,0,4", "1,2,3,-4", "nan,1,2,3", "1,2,inf,3"]
)
def test_what_is_no_box(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--not "):
        parse_box("--not", text)


def test_scales() -> None:
    assert parse_scales(None) is None
    assert parse_scales("0.5:2") == (0.5, 2)
    assert parse_scales("1:1") == (1, 1)
    for text in ("", "1", "2:1", "0:1", "a:b", "1:2:3", "1:inf", "nan:1"):
        with pytest.raises(ValueError, match=r"0\.5:2"):
            parse_scales(text)


def test_bands() -> None:
    assert parse_bands(None) is None
    assert parse_bands("1-3,5") == [0, 1, 2, 4]
    assert parse_bands("7") == [6]
    for text in ("", "0", "3-1", "a", "1-", "-3", "1,,2", "1-999999999"):
        with pytest.raises(ValueError, match="--bands"):
            parse_bands(text)


def test_bands_of_a_picture(tmp_path: Path) -> None:
    image = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    np.save(tmp_path / "a.npy", image)
    np.testing.assert_array_equal(load_image(str(tmp_path / "a.npy"), [4, 0]), image[:, :, [4, 0]])
    with pytest.raises(ValueError, match=r"has 5 bands, but --bands asks for number 6"):
        load_image(str(tmp_path / "a.npy"), [5])
    np.save(tmp_path / "a.npy", image[:, :, 0])
    assert load_image(str(tmp_path / "a.npy"), [0]).shape == (2, 3, 1)


def test_boxes_must_be_in_the_picture() -> None:
    image = np.zeros((30, 40))
    Marked("a.png", [(-3, -3, 5, 5), (0, 0, 40, 30)]).check(image, "boxes", "--example")
    with pytest.raises(ValueError, match=r"--example 40,0,2,2 lies outside of a\.png \(40 x 30 pixels\)"):
        Marked("a.png", [(40, 0, 42, 2)]).check(image, "boxes", "--example")
    with pytest.raises(ValueError, match=r"is larger than a\.png"):
        Marked("a.png", [(0, 0, 41, 2)]).check(image, "boxes", "--example")


def test_one_label_is_chosen() -> None:
    boxes = [Annotation((0, 0, 1, 1), name, None) for name in ("a", "b", "a")]
    boxes.append(Annotation((0, 0, 1, 1), "c", None, ignore=True))
    assert [item.label for item in choose_label("f", boxes, "a")] == ["a", "a", "c"]
    assert len(choose_label("f", boxes[:1], None)) == 1
    with pytest.raises(ValueError, match=r"f: holds several kinds of thing \(a, b\); choose one with --label a"):
        choose_label("f", boxes, None)
    with pytest.raises(ValueError, match="nothing is labelled 'z'; there is a, b"):
        choose_label("f", boxes, "z")


def test_pictures_are_told_by_path_then_name_then_stem() -> None:
    assert match_picture("x/a.png", ["y/a.png", "x/a.png"]) == "x/a.png"
    assert match_picture("C:\\data\\a.png", ["y/a.png", "b.png"]) == "y/a.png"
    assert match_picture("a.jpg", ["y/a.png", "b.png"]) == "y/a.png"
    assert match_picture("coins", ["sample:coins"]) == "sample:coins"
    assert match_picture("c.png", ["a.png"]) is None
    with pytest.raises(ValueError, match="several pictures have that name"):
        match_picture("a.png", ["x/a.png", "y/a.png"])


def test_pictures_are_looked_for_beside_the_boxes(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages" / "a.jpg").touch()
    (tmp_path / "b.png").touch()
    assert find_picture("a.jpg", [], tmp_path / "Annotations") == str(tmp_path / "JPEGImages" / "a.jpg")
    assert find_picture("/elsewhere/a.jpg", [], tmp_path / "Annotations" / "a.xml") == str(
        tmp_path / "Annotations" / ".." / "JPEGImages" / "a.jpg"
    ).replace("/Annotations/..", "")
    assert find_picture("b.png", [], tmp_path / "boxes.csv") == str(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"names the picture c\.png, which is not there; add it with --in"):
        find_picture("c.png", [], tmp_path / "boxes.csv")


def test_errors_are_explained_in_one_line() -> None:
    assert explain(ValueError("a\nb")) == "a b"
    assert explain(MemoryError()) == "out of memory; use smaller pictures or fewer bands"
    text = explain(MemoryError("Unable to allocate 3 GiB\nfor an array"))
    assert text == "out of memory: Unable to allocate 3 GiB for an array; use smaller pictures or fewer bands"
    assert explain(PermissionError(13, "Permission denied", "x.csv")).startswith("x.csv: Permission denied; ")
    assert "--debug" in explain(ZeroDivisionError("division by zero"))
    assert "--debug" in explain(ValueError())
