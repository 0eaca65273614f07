"""Boxes come out of every kind of file as they went in, and errors say where a file is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherever.files.boxes import Annotation, read_boxes
from wherever.files.outputs import to_coco_text, to_csv_text, to_geojson_text


def boxes_in(text: str | bytes, folder: Path, name: str = "boxes", **options: Any) -> list[Annotation]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_boxes(path, **options)


def message(text: str | bytes, folder: Path) -> str:
    path = folder / "boxes"
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers look at the message
        boxes_in(text, folder)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


A, B = Annotation((1, 2, 11, 22), "cell", "a.png"), Annotation((0.5, 3, 4, 5.25), "cell", "a.png")


@pytest.mark.parametrize(
    "text",
    [
        "image,label,x,y,w,h\na.png,cell,1,2,10,20\na.png,cell,0.5,3,3.5,2.25\n",
        "x0,y0,x1,y1,image,label\n1,2,11,22,a.png,cell\n0.5,3,4,5.25,a.png,cell\n",
        "file,xmin,ymin,xmax,ymax,kind\na.png,1,2,11,22,cell\n\n# a remark\na.png,.5,3,4,5.25,cell\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,90,80,cell,1,2,11,22\na.png,90,80,cell,0.5,3,4,5.25\n",
        "\ufeffImage File;Class Name;X;Y;Width;Height\r\na.png;cell;1;2;10;20\r\na.png;cell;0,5;3;3,5;2,25\r\n",
        "BX\tBY\tWidth\tHeight\tLabel\tImage\n1\t2\t10\t20\tcell\ta.png\n0.5\t3\t3.5\t2.25\tcell\ta.png\n",
        'left,top,right,bottom,"label","path"\n1,2,11,22,"cell","a.png"\n0.5,3,4,5.25,cell,a.png\n',
        "x1,y1,x2,y2,name,picture\n1,2,11,22,cell,a.png\n0.5,3,4,5.25,cell,a.png",
        json.dumps([{"x": 1, "y": 2, "w": 10, "h": 20, "label": "cell", "image": "a.png"}, {"bbox": [0.5, 3, 3.5, 2.25],
                    "category": "cell", "file_name": "a.png"}]),
        json.dumps({"images": [{"id": 7, "file_name": "a.png"}], "categories": [{"id": 3, "name": "cell"}],
            "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20]}, {"image_id": 7, "category_id": 3,
             "bbox": [0.5, 3, 3.5, 2.25], "iscrowd": 0}]}),
        json.dumps({"type": "FeatureCollection", "features": [
            {"type": "Feature", "properties": {"label": "cell", "image": "a.png"}, "geometry": {
                "type": "Polygon", "coordinates": [[[1, 2], [11, 7], [5, 22], [1, 2]]]}},
            {"type": "Feature", "properties": {"classification": {"name": "cell"}, "image": "a.png"}, "geometry": {
                "type": "MultiPolygon", "coordinates": [[[[0.5, 4], [1, 3], [2, 5.25], [0.5, 4]]], [[[3, 4], [4, 4],
                [4, 5], [3, 4]]]]}}]}),
        "<annotation><filename>a.png</filename><object><name>cell</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax>"
        "<ymax>22</ymax></bndbox></object><object><name>cell</name><difficult>0</difficult><bndbox><ymin>3</ymin><xmin>0.5"
        "</xmin><xmax>4</xmax><ymax>5.25</ymax></bndbox></object></annotation>",
    ],
)  # fmt: skip
def test_every_format_gives_the_same_boxes(tmp_path: Path, text: str) -> None:
    assert boxes_in(text, tmp_path) == [A, B]


@pytest.mark.parametrize(
    "text", ["1,2,10,20\n", "1;2;10;20", "[1, 2, 10, 20]", "[[1, 2, 10, 20]]", "# note\n1,2,10,20"]
)
def test_bare_numbers_are_x_y_w_h(tmp_path: Path, text: str) -> None:
    assert boxes_in(text, tmp_path) == [Annotation((1, 2, 11, 22), None, None)]


def test_a_fifth_bare_value_is_a_label(tmp_path: Path) -> None:
    assert boxes_in("1,2,10,20,cell\n1,2,3,4\n", tmp_path)[0].label == "cell"


@pytest.mark.parametrize(
    "text",
    [
        "x,y,w,h,ignore\n1,2,3,4,1\n1,2,3,4,0\n",
        "x,y,w,h,kind\n1,2,3,4,ignore\n1,2,3,4,head\n",
        "x,y,w,h,difficult\n1,2,3,4,True\n1,2,3,4,False\n",
        json.dumps({"images": [], "categories": [], "annotations": [{"bbox": [1, 2, 3, 4], "iscrowd": 1},
                                                                    {"bbox": [1, 2, 3, 4]}]}),
        "<annotation><object><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax>"
        "</bndbox></object><object><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox></object>"
        "</annotation>",
    ],
)  # fmt: skip
def test_what_counts_neither_way(tmp_path: Path, text: str) -> None:
    assert [item.ignore for item in boxes_in(text, tmp_path)] == [True, False]


def test_a_folder_of_voc_files(tmp_path: Path) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox>"
    (tmp_path / "Annotations").mkdir()
    for name in ("b", "a"):
        text = f"<annotation><object><name>{name}</name>{box}</object></annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
    for folder in (tmp_path, tmp_path / "Annotations"):
        # Without a file name inside, the picture is called as the file is.
        assert [(item.label, item.image) for item in read_boxes(folder)] == [("a", "a"), ("b", "b")]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"no \.xml files"):
        read_boxes(tmp_path / "none")


def test_a_picture_whose_name_begins_with_a_number_sign_is_no_comment(tmp_path: Path) -> None:
    assert boxes_in("# note\nimage,x,y,w,h\n#1.png,1,2,10,20\n", tmp_path)[0].image == "#1.png"
    assert len(boxes_in("x,y,w,h,image\n# note, with a comma\n1,2,10,20,#1.png\n", tmp_path)) == 1


finite = st.floats(-1e6, 1e6)
sizes = st.floats(1e-3, 1e6)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1).filter(
    lambda text: text == text.strip() and text.lower() not in ("ignore", "difficult")
)


@given(
    boxes=st.lists(st.tuples(finite, finite, sizes, sizes), max_size=5),
    scores=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    image=texts,
    label=texts,
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    boxes: list[tuple[float, float, float, float]],
    scores: list[float],
    image: str,
    label: str,
) -> None:
    folder = tmp_path_factory.mktemp("round")
    corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    args = (corners, scores[: len(corners)])
    expected = [Annotation(box, label, image) for box in corners]
    assert boxes_in(to_csv_text(*args, image=image, label=label), folder) == expected
    assert boxes_in(to_geojson_text(*args, image=image, label=label), folder) == expected
    got = boxes_in(to_coco_text(*args, image=image, label=label), folder)
    assert [(item.label, item.image) for item in got] == [(label, image)] * len(corners)
    for item, box in zip(got, corners, strict=True):
        # COCO keeps width and height, not the far corner.
        assert item.box == pytest.approx(box, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        (" \n\n", ["empty"]),
        ("a,b,c\n1,2,3\n", ["line 1", "x,y,w,h"]),
        ("x,y,w,h\n1,2,3,4\n1,2,three,4\n", ["line 3", "w must be a number", "three"]),
        ("x,y,w,h\n1,2,3\n", ["line 2", "3 values where 4"]),
        ("x,y,w,h\n1,2,0,4\n", ["line 2", "width 0"]),
        ("x0,y0,x1,y1\n5,5,3,9\n", ["line 2", "width -2"]),
        ("x,y,w,h\n1,2,nan,4\n", ["line 2", "finite"]),
        ("x,y,w,h\n1,2,inf,4\n", ["line 2", "finite"]),
        ('x,y,w,h\n"1,2,3,4\n', ["line"]),
        (b"\x89PNG\r\n\x1a\n", ["no text"]),
        (b"abc\0def", ["no text"]),
        ('{"a": 1}', ["neither COCO"]),
        ('[{"x": 1}]', ["item 1", "no box"]),
        ("[[1, 2, 3]]", ["item 1", "four numbers"]),
        ('[[1, 2, 3, "a"]]', ["item 1", "h must be a number"]),
        ("[[1, 2, 3, true]]", ["item 1", "h must be a number"]),
        ("[[1, 2, 3, NaN]]", ["item 1", "finite"]),
        ("[1, 2, 3", ["line 1", "complete?"]),
        ("[" * 100_000, ["JSON"]),
        ('{"annotations": 3}', ["'annotations' must be a list"]),
        ('{"annotations": [3]}', ["annotations, item 1"]),
        ('{"annotations": [{"bbox": [1, 2]}]}', ["annotations, item 1", "four numbers"]),
        ('{"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}], "images": []}', ["item 1", "image_id 1"]),
        ('{"annotations": [{"category_id": 1, "bbox": [1, 2, 3, 4]}], "images": []}', ["item 1", "category_id 1"]),
        ('{"annotations": [], "images": [{"id": 1}]}', ["images, item 1", "file_name"]),
        ('{"annotations": [], "images": 5}', ["images, item 1"]),
        ('{"type": "FeatureCollection"}', ["'features' must be a list"]),
        ('{"type": "FeatureCollection", "features": [null]}', ["feature 1"]),
        ('{"type": "Point", "coordinates": [1, 2]}', ["feature 1", "Polygon", "Point"]),
        ('{"type": "Polygon", "coordinates": []}', ["feature 1", "no corners"]),
        ('{"type": "Polygon", "coordinates": [[[1, "a"]]]}', ["feature 1", "y must be a number"]),
        ('{"type": "Polygon", "coordinates": 5}', ["feature 1", "coordinates"]),
        ("<annotation><object>", ["line 1", "complete?"]),
        ("<html></html>", ["no Pascal VOC", "<html>"]),
        ("<annotation><object></object></annotation>", ["object 1", "no <bndbox>"]),
        ("<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>", ["object 1", "ymin must"]),
    ],
)  # fmt: skip
def test_bad_content_is_located(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    got = message(text, tmp_path)
    for word in words:
        assert word in got


@given(st.binary(max_size=60) | (st.text(max_size=60) | st.text('[]{}<>/",:;.xyw12\n', max_size=40)).map(str.encode))
def test_nothing_but_a_value_error_comes_of_any_content(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    try:
        got = boxes_in(content, tmp_path_factory.mktemp("any"))
    except ValueError as error:
        text = str(error)
    else:
        text = ""
        assert all(item.box[0] < item.box[2] for item in got)
    assert "\n" not in text


def test_empty_boxes_are_returned_on_demand(tmp_path: Path) -> None:
    (item,) = boxes_in("x,y,w,h\n1,2,0,4\n", tmp_path, allow_empty=True)
    assert item.box == (1, 2, 1, 6)
    with pytest.raises(ValueError, match="width -1"):
        boxes_in("x,y,w,h\n1,2,-1,4\n", tmp_path, allow_empty=True)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.csv: no such file"):
        read_boxes(tmp_path / "missing.csv")


def test_real_files(tmp_path: Path, unpack: Any) -> None:
    for name in ("bccd.tar", "waldo_12.tar"):
        unpack(name, tmp_path, lambda member: member.endswith((".xml", ".csv")))
    cells = read_boxes(next(iter(tmp_path.glob("**/*.xml"))).parent, allow_empty=True)
    assert {item.label for item in cells} == {"RBC", "WBC", "Platelets"}
    assert len({item.image for item in cells}) == 292
    heads = read_boxes(next(iter(tmp_path.glob("**/boxes.csv"))))
    assert sum(not item.ignore for item in heads) == 12
    assert {item.label for item in heads if item.ignore} == {"ignore"}
