"""Finds are sorted, checked, chosen from and written as they are."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherever.files.boxes import read_boxes
from wherever.find.finds import Find, Finds

mpl.use("Agg")

corner = st.floats(-1e4, 1e4)
size = st.floats(1e-3, 1e4)
finds_of = st.lists(
    st.tuples(corner, corner, size, size, st.floats(0, 1), st.floats(0.1, 10), st.floats(-180, 180)), max_size=8
).map(
    lambda rows: Finds(
        [(x, y, x + w, y + h) for x, y, w, h, *_ in rows],
        [row[4] for row in rows],
        [row[5] for row in rows],
        [row[6] for row in rows],
        image_size=(640, 480),
        image="a.png",
        label="cell",
    )
)


def example() -> Finds:
    return Finds([[0, 0, 2, 2], [1, 1, 5, 9], [3, 3, 4, 4]], [0.2, 0.9, 0.5], [1, 2, 3], [0, 90, 180])


def test_best_first() -> None:
    finds = example()
    assert finds.scores.tolist() == [0.9, 0.5, 0.2]
    assert finds.scale.tolist() == [2, 3, 1]
    assert finds.boxes[0].tolist() == [1, 1, 5, 9]
    assert finds[0] == Find((1, 1, 5, 9), 0.9, 2, 90)
    assert finds[-1].angle == 0
    ties = Finds([[0, 0, 1, 1], [5, 0, 6, 1]], [0.5, 0.5])
    assert ties.boxes[:, 0].tolist() == [0, 5]
    assert ties.scale.tolist() == [1, 1]
    assert ties.angle.tolist() == [0, 0]


def test_choosing() -> None:
    finds = example()
    assert len(finds) == 3
    assert [find.score for find in finds] == [0.9, 0.5, 0.2]
    assert finds[1:].scores.tolist() == [0.5, 0.2]
    assert finds[finds.scores > 0.4].scale.tolist() == [2, 3]
    assert finds[np.array([2, 0])].scores.tolist() == [0.9, 0.2]
    assert finds[[True, False, True]].scores.tolist() == [0.9, 0.2]
    assert len(finds[[]]) == 0
    assert not Finds([], [])
    named = Finds([[0, 0, 1, 1]], [1], image="a", label="b", image_size=(3, 4), calibrated=True)[:0]
    assert (named.image, named.label, named.image_size, named.calibrated) == ("a", "b", (3, 4), True)
    with pytest.raises(IndexError):
        finds[3]


def test_arrays_are_its_own_and_read_only() -> None:
    scores = np.array([0.1, 0.2])
    finds = Finds([[0, 0, 1, 1], [0, 0, 2, 2]], scores)
    scores[:] = 9
    assert finds.scores.tolist() == [0.2, 0.1]
    assert finds.boxes.dtype == finds.scores.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        finds.boxes[0, 0] = 1


@pytest.mark.parametrize(
    "index", [True, False, np.True_, None, 1.0, "a", (0, 1), [0.5], [[0, 1]], np.ones((3, 4), bool)]
)
def test_what_is_no_index_is_refused(index: object) -> None:
    with pytest.raises(TypeError, match=r"^finds\[.*an index is a whole number, a slice, a boolean mask"):
        example()[index]  # type: ignore[call-overload]


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(IndexError, match="boolean"):
        example()[np.ones(2, bool)]


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, *(lambda finds, p=p: pickle.loads(pickle.dumps(finds, p)) for p in (2, 4, 5))],
    ids=["copy", "deepcopy", "pickle 2", "pickle 4", "pickle 5"],
)
def test_copies_are_equal_and_read_only(copied: Callable[[Finds], Finds]) -> None:
    finds = Finds([[0, 0, 1, 1], [0, 0, 2, 2]], [0.1, 0.2], image="a", label="b", image_size=(3, 4), calibrated=True)
    got = copied(finds)
    assert (got.image, got.label, got.image_size, got.calibrated) == ("a", "b", (3, 4), True)
    for name in ("boxes", "scores", "scale", "angle"):
        np.testing.assert_array_equal(getattr(got, name), getattr(finds, name))
        with pytest.raises(ValueError, match="read-only"):
            getattr(got, name)[0] = 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([[0, 0, 1]], [1]), r"boxes must have shape \(n, 4\)"),
        (([[0, 0, 1, 1]], [1, 2]), r"scores must have shape \(1,\)"),
        (([[0, 0, 1, 1]], [1], [1, 2]), r"scale must have shape \(1,\)"),
        (([[0, 0, 1, 1]], [1], None, [[1]]), r"angle must have shape \(1,\)"),
        (([[0, 0, 1, 1]], [np.nan]), "scores must be finite"),
        (([[0, 0, np.inf, 1]], [1]), "boxes must be finite"),
        (([[5, 0, 4, 1]], [1]), "x0 <= x1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Finds(*arguments)  # type: ignore[arg-type]


def test_repr_says_what_is_there() -> None:
    assert repr(Finds([], [])) == "<Finds: 0 finds>"
    text = repr(Finds([[0, 0, 1, 1]], [0.25], image="a.png", label="cell", calibrated=True))
    assert text == "<Finds: 1 find of cell in a.png, probability 0.250 to 0.250, best at (0, 0, 1, 1)>"


def test_html_is_a_table_of_the_best() -> None:
    many = Finds(np.tile([0.0, 0, 1, 1], (25, 1)), np.linspace(0, 1, 25), image="<b>&.png")
    page = many._repr_html_()
    assert page.count("<tr>") == 21
    assert "and 5 more" in page
    assert "&lt;b&gt;&amp;.png" in page
    assert "<table>" not in Finds([], [])._repr_html_()


@given(finds_of)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, finds: Finds) -> None:
    folder = tmp_path_factory.mktemp("finds")
    assert finds.to_csv(folder / "a.csv") == (folder / "a.csv").read_text() == finds.to_csv()
    assert finds.to_geojson(folder / "a.geojson") == (folder / "a.geojson").read_text() == finds.to_geojson()
    assert finds.to_coco(str(folder / "a.json")) == (folder / "a.json").read_text() == finds.to_coco()
    for name in ("a.csv", "a.geojson", "a.json"):
        got = read_boxes(folder / name)
        assert [(item.image, item.label) for item in got] == [("a.png", "cell")] * len(finds)
        np.testing.assert_allclose(np.array([item.box for item in got]).reshape(-1, 4), finds.boxes, atol=1e-9)
    content = json.loads(finds.to_coco())
    assert [item["score"] for item in content["annotations"]] == finds.scores.tolist()
    assert content["images"][0]["width"] == 640


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        example().to_csv(tmp_path / "missing" / "a.csv")


def test_plot_draws_every_box() -> None:
    from matplotlib import pyplot as plt

    finds = example()
    axes = finds.plot(np.zeros((20, 30), np.uint16), examples=[[0, 0, 2, 2]])
    drawn = [(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) for patch in axes.patches]
    assert drawn[0] == (0.5, 0.5, 4, 8)
    assert len(drawn) == 4
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.50", "0.20"]
    assert example().plot(np.zeros((20, 30, 5)), ax=axes) is axes
    plt.close(axes.figure)
