"""Marked boxes read from CSV, JSON, COCO, GeoJSON and Pascal VOC XML."""

from __future__ import annotations

import csv
import io
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WAY_OUT = "see `wherever find --help` for what a file of boxes may hold"

# Names of the four columns of a box, in the order they are tried; True where the last two are width and height.
_BOX_COLUMNS: tuple[tuple[tuple[str, str, str, str], bool], ...] = (
    (("x0", "y0", "x1", "y1"), False),
    (("x1", "y1", "x2", "y2"), False),
    (("xmin", "ymin", "xmax", "ymax"), False),
    (("left", "top", "right", "bottom"), False),
    (("x", "y", "w", "h"), True),
    (("x", "y", "width", "height"), True),
    (("left", "top", "w", "h"), True),
    (("left", "top", "width", "height"), True),
    (("bx", "by", "width", "height"), True),  # ImageJ's table of regions
)
_IMAGE_COLUMNS = ("image", "file", "filename", "imagename", "imagefile", "picture", "path", "imageid")
_LABEL_COLUMNS = ("label", "class", "kind", "category", "name", "classname", "labelname", "categoryid")
_IGNORE_COLUMNS = ("ignore", "difficult", "iscrowd")


@dataclass(frozen=True)
class Annotation:
    """One marked box.

    Parameters
    ----------
    box : (float, float, float, float)
        x0, y0, x1, y1 in pixels; pixel (0, 0) covers the square from 0 to 1.
    label : str or None
        What is in the box.
    image : str or None
        The picture it is on, as the file names it.
    ignore : bool
        Whether a find at this place counts neither as right nor as wrong (`difficult` in Pascal VOC, `iscrowd` in COCO,
        a column `ignore`, or the label "ignore").
    """

    box: tuple[float, float, float, float]
    label: str | None
    image: str | None
    ignore: bool = False


def read_boxes(path: str | Path, *, allow_empty: bool = False) -> list[Annotation]:
    """Read marked boxes; the format is told by the content.

    Parameters
    ----------
    path : str or Path
        - CSV (comma, semicolon or tab) whose first line names the columns: x,y,w,h or x,y,width,height or x0,y0,x1,y1
          or x1,y1,x2,y2 or xmin,ymin,xmax,ymax or left,top,... in any order among other columns, and optionally image
          (file, filename), label (class, kind, name) and ignore (difficult); or without names, x,y,w,h and perhaps a
          label;
        - JSON: a list of [x, y, w, h], or of objects with the names above or `bbox` ([x, y, w, h]); or a COCO data set;
        - GeoJSON: polygons in pixel coordinates, whose bounding boxes are taken; properties `label` and `image`;
        - Pascal VOC XML, whose numbers are taken as edges in pixels as LabelImg writes them; or a folder of such files
          (also one that has them in `Annotations/`).
    allow_empty : bool
        Whether boxes without width or height are returned too; otherwise they are an error.

    Returns
    -------
    list of Annotation
        In the order of the file; files of a folder by name.

    Raises
    ------
    ValueError
        If the path does not exist, cannot be read, or holds something else than boxes; names the file and the line or
        item.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_folder(path, allow_empty)
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; check the name and the folder ({Path.cwd()})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text (byte {error.start} is not UTF-8); {WAY_OUT}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; check the name and the permissions") from None
    start = text.lstrip()[:1]
    if not start:
        raise ValueError(f"{path}: the file is empty; {WAY_OUT}")
    if start == "<":
        found = _read_voc(path, text)
    elif start in "{[":
        found = _read_json(path, text)
    else:
        found = _read_csv(path, text)
    annotations = []
    for where, annotation in found:
        annotations.append(_checked(path, where, annotation, allow_empty))
    return annotations


_Found = Iterator[tuple[str, Annotation]]


def _checked(path: Path, where: str, annotation: Annotation, allow_empty: bool) -> Annotation:
    x0, y0, x1, y1 = annotation.box
    if not all(math.isfinite(value) for value in annotation.box):
        raise ValueError(f"{path}: {where}: a box needs four finite numbers, got {annotation.box}")
    if x1 < x0 or y1 < y0 or (not allow_empty and (x1 == x0 or y1 == y0)):
        raise ValueError(
            f"{path}: {where}: the box has width {x1 - x0:g} and height {y1 - y0:g}; both must be positive: "
            "correct it or take it out of the file"
        )
    return annotation


def _read_folder(path: Path, allow_empty: bool) -> list[Annotation]:
    files = sorted(path.glob("*.xml")) or sorted((path / "Annotations").glob("*.xml"))
    if not files:
        raise ValueError(
            f"{path}: the folder holds no .xml files (Pascal VOC); name a CSV, JSON or GeoJSON file instead"
        )
    return [annotation for file in files for annotation in read_boxes(file, allow_empty=allow_empty)]


# ----------------------------------------------------------------------------------------------------------------- CSV


def _read_csv(path: Path, text: str) -> _Found:
    if "\0" in text:
        raise ValueError(f"{path}: is no text (it holds zero bytes); {WAY_OUT}")
    first = next(line for line in text.splitlines() if line.strip())
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names: list[str] | None = None
    may_be_comment = True  # until a column comes first in which "#" may begin a name
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            where = f"line {reader.line_num}"
            if not any(cells) or (cells[0].startswith("#") and (may_be_comment or len(cells) == 1)):
                continue
            if delimiter == ";":  # written where the comma separates decimals
                cells = [cell.replace(",", ".") if _is_number(cell.replace(",", ".")) else cell for cell in cells]
            if names is None:
                if all(_is_number(cell) for cell in cells[:4]):
                    names = ["x", "y", "w", "h", "label"]
                else:
                    names = cells
                    may_be_comment = _normal(names[0]) in _box_columns(path, where, names)[0]
                    continue
            if len(cells) < len(names) and not (names[-1] == "label" and len(cells) == len(names) - 1):
                raise ValueError(
                    f"{path}: {where}: {len(cells)} values where {len(names)} are expected ({','.join(names)})"
                )
            yield where, _from_mapping(path, where, dict(zip(names, cells, strict=False)))
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: not readable as CSV ({error})") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _normal(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _box_columns(path: Path, where: str, names: Sequence[str]) -> tuple[tuple[str, str, str, str], bool]:
    present = {_normal(name) for name in names}
    for columns, sized in _BOX_COLUMNS:
        if present.issuperset(columns):
            return columns, sized
    raise ValueError(
        f"{path}: {where}: no box among {', '.join(map(repr, names)) or 'nothing'}; needed are x,y,w,h or "
        "x0,y0,x1,y1 or xmin,ymin,xmax,ymax"
    )


def _from_mapping(path: Path, where: str, item: Mapping[str, Any]) -> Annotation:
    """Make an annotation of one row or object whose names are those of the columns."""
    values = {_normal(str(name)): value for name, value in item.items()}
    if "bbox" in values:
        box = _box_from_sizes(path, where, values["bbox"])
    else:
        columns, sized = _box_columns(path, where, list(item))
        numbers = [_to_float(path, where, column, values[column]) for column in columns]
        box = (numbers[0], numbers[1], numbers[2], numbers[3])
        if sized:
            box = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    image = _text(values, _IMAGE_COLUMNS)
    label = _text(values, _LABEL_COLUMNS)
    flags = [str(values[name]).strip().lower() for name in _IGNORE_COLUMNS if name in values]
    ignore = any(flag in ("1", "1.0", "true", "yes", "ignore") for flag in flags)
    return Annotation(box, label, image, ignore or (label or "").lower() in ("ignore", "difficult"))


def _text(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        value = values.get(name)
        if value is not None and str(value) != "":
            return str(value)
    return None


def _to_float(path: Path, where: str, field: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{path}: {where}: {field} must be a number, got {value!r}") from None


# ---------------------------------------------------------------------------------------------------------------- JSON


def _read_json(path: Path, text: str) -> _Found:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: line {error.lineno}, column {error.colno}: not readable as JSON ({error.msg}); "
            "is the file complete?"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}: not readable as JSON (nested too deeply)") from None
    if isinstance(content, dict):
        if "annotations" in content:
            return _read_coco(path, content)
        if content.get("type") in ("FeatureCollection", "Feature", *_GEOMETRIES):
            return _read_geojson(path, content)
        raise ValueError(f"{path}: is neither COCO (no 'annotations') nor GeoJSON (no 'FeatureCollection'); {WAY_OUT}")
    return _read_list(path, content)


def _read_list(path: Path, content: list[Any]) -> _Found:
    if len(content) == 4 and all(isinstance(value, int | float) for value in content):
        content = [content]
    for number, item in enumerate(content, start=1):
        where = f"item {number}"
        if isinstance(item, dict):
            yield where, _from_mapping(path, where, item)
        else:
            yield where, Annotation(_box_from_sizes(path, where, item), None, None)


def _box_from_sizes(path: Path, where: str, value: Any) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"{path}: {where}: a box is a list of four numbers [x, y, w, h], got {_short(value)}")
    x, y, w, h = (_to_float(path, where, name, number) for name, number in zip("xywh", value, strict=True))
    return x, y, x + w, y + h


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_coco(path: Path, content: dict[str, Any]) -> _Found:
    images = _coco_names(path, content, "images", "file_name")
    labels = _coco_names(path, content, "categories", "name")
    annotations = content["annotations"]
    if not isinstance(annotations, list):
        raise ValueError(f"{path}: 'annotations' must be a list, got {_short(annotations)}")
    for number, item in enumerate(annotations, start=1):
        where = f"annotations, item {number}"
        if not isinstance(item, dict):
            raise ValueError(f"{path}: {where}: must be an object, got {_short(item)}")
        image, label = item.get("image_id"), item.get("category_id")
        if image is not None and str(image) not in images:
            raise ValueError(f"{path}: {where}: image_id {image!r} is not among the 'images'")
        if label is not None and str(label) not in labels:
            raise ValueError(f"{path}: {where}: category_id {label!r} is not among the 'categories'")
        box = _box_from_sizes(path, where, item.get("bbox"))
        name = labels[str(label)] if label is not None else None
        ignore = bool(item.get("iscrowd")) or bool(item.get("ignore")) or name == "ignore"
        yield where, Annotation(box, name, images[str(image)] or None if image is not None else None, ignore)


def _coco_names(path: Path, content: dict[str, Any], key: str, name: str) -> dict[str, str]:
    """Return the names of the pictures or categories of a COCO data set by their identifiers, written as text."""
    names = {}
    items = content.get(key, [])
    for number, item in enumerate(items if isinstance(items, list) else [items], start=1):
        if not isinstance(item, dict) or "id" not in item or name not in item:
            raise ValueError(
                f"{path}: {key}, item {number}: must be an object with 'id' and {name!r}, got {_short(item)}"
            )
        names[str(item["id"])] = str(item[name])
    return names


# ------------------------------------------------------------------------------------------------------------- GeoJSON

_GEOMETRIES = ("Polygon", "MultiPolygon", "LineString", "MultiLineString", "MultiPoint", "Point", "GeometryCollection")


def _read_geojson(path: Path, content: dict[str, Any]) -> _Found:
    if content["type"] == "FeatureCollection":
        features = content.get("features")
        if not isinstance(features, list):
            raise ValueError(f"{path}: 'features' must be a list, got {_short(features)}")
    elif content["type"] == "Feature":
        features = [content]
    else:
        features = [{"type": "Feature", "geometry": content, "properties": {}}]
    for number, feature in enumerate(features, start=1):
        where = f"feature {number}"
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
            kind = geometry.get("type") if isinstance(geometry, dict) else geometry
            raise ValueError(f"{path}: {where}: must be a Polygon or MultiPolygon, got {_short(kind)}")
        positions = list(_positions(path, where, geometry.get("coordinates")))
        if not positions:
            raise ValueError(f"{path}: {where}: the polygon has no corners")
        horizontal, vertical = zip(*positions, strict=True)
        box = (min(horizontal), min(vertical), max(horizontal), max(vertical))
        properties = feature.get("properties")
        values = {_normal(str(name)): value for name, value in (properties or {}).items()}
        kind = values.get("classification")
        if isinstance(kind, dict):  # QuPath
            values.setdefault("label", kind.get("name"))
        label = _text(values, _LABEL_COLUMNS)
        ignore = bool(values.get("ignore")) or bool(values.get("difficult")) or (label or "").lower() == "ignore"
        yield where, Annotation(box, label, _text(values, _IMAGE_COLUMNS), ignore)


def _positions(path: Path, where: str, value: Any) -> Iterator[tuple[float, float]]:
    if not isinstance(value, list):
        raise ValueError(f"{path}: {where}: coordinates must be lists of [x, y], got {_short(value)}")
    if len(value) >= 2 and not isinstance(value[0], list):
        yield _to_float(path, where, "x", value[0]), _to_float(path, where, "y", value[1])
        return
    for part in value:
        yield from _positions(path, where, part)


# ---------------------------------------------------------------------------------------------------------- Pascal VOC


def _read_voc(path: Path, text: str) -> _Found:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ValueError(
            f"{path}: line {line}, column {column}: not readable as XML ({str(error).split(':')[0]}); "
            "is the file complete?"
        ) from None
    except ValueError as error:  # an encoding declaration that contradicts the text
        raise ValueError(f"{path}: not readable as XML ({error})") from None
    if root.tag != "annotation":
        raise ValueError(f"{path}: is no Pascal VOC file (its outermost element is <{root.tag}>, not <annotation>)")
    image = (root.findtext("filename") or "").strip() or path.stem
    for number, item in enumerate(root.iter("object"), start=1):
        where = f"object {number}"
        box = item.find("bndbox")
        if box is None:
            raise ValueError(f"{path}: {where}: has no <bndbox>")
        x0, y0, x1, y1 = (
            _to_float(path, where, name, (box.findtext(name) or "").strip())
            for name in ("xmin", "ymin", "xmax", "ymax")
        )
        label = (item.findtext("name") or "").strip() or None
        difficult = (item.findtext("difficult") or "").strip() in ("1", "true")
        yield where, Annotation((x0, y0, x1, y1), label, image, difficult or label in ("ignore", "difficult"))
