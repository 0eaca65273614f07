"""Finds written as CSV, GeoJSON and COCO text; files and folders that are either complete or not there."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.files.georeference import Georeference

CSV_COLUMNS = ("image", "label", "x0", "y0", "x1", "y1", "score", "scale", "angle")


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write a file so that at every moment either the old content or the whole new content is there.

    The data go to a temporary file in the same folder, are flushed to the disk, and take the place of `path` at once.

    Parameters
    ----------
    path : str or Path
        The file to write. Its folder must exist.
    data : bytes or str
        The content; text is written as UTF-8 without changing its line ends.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written; `path` is then as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a new file beside `path` to write to, which takes the place of `path` at the end if nothing goes wrong.

    Entering shows that the folder can be written; long work may follow before the file is filled. What was written is
    flushed to the disk before it takes the place of `path`. If anything is raised, `path` is as it was.

    Parameters
    ----------
    path : str or Path
        The file to replace. Its folder must exist.

    Yields
    ------
    Path
        An empty file in the same folder.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written, or `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give a file name")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    # Unlike those of tempfile, this file has from the beginning the permissions of any new file, as a result should;
    # to ask for the umask would mean to change it for a moment, for every thread of the process.
    temporary.open("xb").close()
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class OutputFolder:
    """A folder of results that appears, or is brought up to date, only when everything that belongs in it is there.

    Use it as a context manager around the long work: on entering, it makes sure that the folder can be written (by
    writing); files go to a hidden folder beside their destination; leaving without an error moves them into place, and
    leaving with one (Ctrl-C too) removes them, so that whatever was in the folder before is untouched. Files of the
    folder that are not written again stay.

    Parameters
    ----------
    path : str or Path
        The folder; it and its parents are made only if something is written.

    Raises
    ------
    OSError
        On entering, if the folder cannot be written or is no folder; on leaving, if a file cannot be moved into place.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._written: list[Path] = []
        self._staging: Path | None = None

    def __enter__(self) -> OutputFolder:
        nearest = self.path.absolute()
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise NotADirectoryError(
                f"cannot write to {self.path}: {nearest} is a file, not a folder; choose another folder"
            )
        try:
            # The same file system as the destination, so that moving a file into place is one step.
            self._staging = Path(tempfile.mkdtemp(prefix=".wherever-", dir=nearest))
        except OSError as error:
            raise OSError(
                f"cannot write to {self.path}: {error.strerror or error} ({nearest}); choose another folder"
            ) from error
        return self

    @property
    def names(self) -> list[str]:
        """Names of the files that were written, in the order of writing."""
        return [relative.as_posix() for relative in self._written]

    def check(self, name: str) -> None:
        """Raise IsADirectoryError if the file `name` cannot be written because there is a folder of that name."""
        if (self.path / name).is_dir():
            raise IsADirectoryError(f"cannot write {self.path / name}: it is a folder; choose another output folder")

    def write(self, name: str, data: bytes | str) -> None:
        """Put a file `name` (it may name folders in the folder: "a/b.png") among those to be moved into place."""
        if self._staging is None:
            raise RuntimeError("an OutputFolder must be entered (with ...) before it is written to")
        self.check(name)
        relative = Path(name)
        (self._staging / relative).parent.mkdir(parents=True, exist_ok=True)
        (self._staging / relative).write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        if relative not in self._written:
            self._written.append(relative)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._staging is None:
            return
        try:
            if kind is None:
                for relative in self._written:
                    (self.path / relative).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(self._staging / relative, self.path / relative)
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None


def to_csv_text(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    scale: npt.ArrayLike | None = None,
    angle: npt.ArrayLike | None = None,
    image: str | None = None,
    label: str | None = None,
    header: bool = True,
) -> str:
    """Write finds as CSV (RFC 4180 apart from the line end, which is a plain newline).

    Parameters
    ----------
    boxes : array_like, shape (n, 4)
        x0, y0, x1, y1 in pixels.
    scores, scale, angle : array_like, shape (n,)
        Score; size relative to the examples' mean size (default 1); degrees counter-clockwise (default 0).
    image, label : str, optional
        The picture's and the thing's name, repeated in every row; empty when None.
    header : bool
        Whether the first line names the columns: image,label,x0,y0,x1,y1,score,scale,angle.

    Returns
    -------
    str
        One line a find, in the order given. Numbers are written so that reading them gives the same float64.
    """
    table = _columns(boxes, scores, scale, angle)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if header:
        writer.writerow(CSV_COLUMNS)
    for row in table.tolist():
        writer.writerow([image or "", label or "", *(_number(value) for value in row)])
    return stream.getvalue()


def to_geojson_text(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    scale: npt.ArrayLike | None = None,
    angle: npt.ArrayLike | None = None,
    image: str | None = None,
    label: str | None = None,
    georeference: Georeference | None = None,
) -> str:
    """Write finds as a GeoJSON FeatureCollection (RFC 7946) of closed rectangles, best first.

    The coordinates are pixels of the picture, x to the right and y down from its upper left corner, as QuPath and most
    annotation programs expect; they are not longitudes and latitudes.

    Parameters
    ----------
    boxes, scores, scale, angle, image, label
        As in :func:`to_csv_text`; the last five become properties of each feature.
    georeference : Georeference, optional
        Where the picture is on Earth: coordinates are then those of its coordinate reference system, which is named
        as GeoJSON did before RFC 7946 (QGIS and GDAL read it), and the box in pixels becomes a property.

    Returns
    -------
    str
        JSON text that ends with a newline.
    """
    features = []
    for x0, y0, x1, y1, score, size, turn in _columns(boxes, scores, scale, angle).tolist():
        properties: dict[str, Any] = {"score": score, "scale": size, "angle": turn}
        if label is not None:
            properties["label"] = label
        if image is not None:
            properties["image"] = image
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        if georeference is not None:
            properties["pixels"] = [x0, y0, x1, y1]
            ring = georeference.apply(ring).tolist()
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    # One feature a line: the file can be read and compared by people too.
    lines = ",\n".join(json.dumps(feature, ensure_ascii=False) for feature in features)
    system = ""
    if georeference is not None and georeference.urn is not None:
        crs = {"type": "name", "properties": {"name": georeference.urn}}
        system = f'"crs": {json.dumps(crs)}, '
    return '{"type": "FeatureCollection", ' + system + '"features": [\n' + lines + "\n]}\n"


def to_coco_text(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    scale: npt.ArrayLike | None = None,
    angle: npt.ArrayLike | None = None,
    image: str | None = None,
    label: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> str:
    """Write finds as a COCO data set of one picture, with a `score` on every annotation.

    Parameters
    ----------
    boxes, scores, scale, angle, image, label
        As in :func:`to_csv_text`. Without a label the category is called "thing".
    image_size : (int, int), optional
        Width and height in pixels; left out when None.

    Returns
    -------
    str
        JSON text that ends with a newline.
    """
    picture: dict[str, Any] = {"id": 1, "file_name": image or ""}
    if image_size is not None:
        picture["width"], picture["height"] = int(image_size[0]), int(image_size[1])
    annotations = []
    for number, row in enumerate(_columns(boxes, scores, scale, angle).tolist(), start=1):
        x0, y0, x1, y1, score, size, turn = row
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "score": score,
                "scale": size,
                "angle": turn,
            }
        )
    categories = [{"id": 1, "name": label or "thing"}]
    content = {"images": [picture], "categories": categories, "annotations": annotations}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _columns(
    boxes: npt.ArrayLike, scores: npt.ArrayLike, scale: npt.ArrayLike | None, angle: npt.ArrayLike | None
) -> npt.NDArray[np.float64]:
    """Put the columns of a table of finds side by side: float64 (n, 7)."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    number = len(corners)
    columns: list[npt.NDArray[np.float64]] = [corners]
    for name, values, default in (("scores", scores, 0.0), ("scale", scale, 1.0), ("angle", angle, 0.0)):
        column = np.full(number, default) if values is None else np.asarray(values, dtype=np.float64)
        if column.shape != (number,):
            raise ValueError(f"{name} must have one value for each of the {number} boxes, got shape {column.shape}")
        columns.append(column[:, None])
    return np.concatenate(columns, axis=1)


def _number(value: float) -> str:
    """Write a float so that reading it gives it back, without a needless '.0'."""
    return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
