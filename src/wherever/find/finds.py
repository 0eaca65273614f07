"""Finds: the places where a thing was found in one picture, with scores, best first."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from wherever.files import outputs, pictures
from wherever.files.georeference import Georeference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS_SHOWN = 20


class Find(NamedTuple):
    """One find: its box (x0, y0, x1, y1) in pixels, score, size relative to the examples, and angle in degrees."""

    box: tuple[float, float, float, float]
    score: float
    scale: float
    angle: float


@dataclass(frozen=True, eq=False, repr=False)
class Finds:
    """The places where a thing was found in one picture, best first.

    Iterating gives one :class:`Find` after the other; `finds[3]` is one of them; a slice, a boolean mask or an array of
    indices gives the chosen ones as Finds again (always best first).

    Parameters
    ----------
    boxes : array_like, shape (n, 4)
        x0, y0, x1, y1 in pixels; pixel (0, 0) covers the square from 0 to 1.
    scores : array_like, shape (n,)
        How sure each find is; probabilities where `calibrated`.
    scale : array_like, shape (n,), optional
        Size of each find relative to the mean size of the examples; default 1.
    angle : array_like, shape (n,), optional
        Rotation relative to the examples in degrees, counter-clockwise; default 0.
    image_size : (int, int), optional
        Width and height of the picture in pixels.
    image : str, optional
        Name of the picture.
    label : str, optional
        Name of the thing.
    calibrated : bool
        Whether the scores are probabilities that were calibrated on examples held out of the training.

    Attributes
    ----------
    boxes : ndarray of float64, shape (n, 4)
    scores, scale, angle : ndarray of float64, shape (n,)
        Read-only, sorted by falling score (equal scores keep the order in which they were given).

    Raises
    ------
    ValueError
        If the arrays do not fit each other, a number is not finite, or a box has x1 < x0 or y1 < y0.
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64] = None  # type: ignore[assignment]  # set in __post_init__
    angle: npt.NDArray[np.float64] = None  # type: ignore[assignment]
    image_size: tuple[int, int] | None = None
    image: str | None = None
    label: str | None = None
    calibrated: bool = False

    def __post_init__(self) -> None:
        boxes = np.array(self.boxes, dtype=np.float64)
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes must have shape (n, 4) with columns x0, y0, x1, y1, got {boxes.shape}")
        number = len(boxes)
        columns = {"boxes": boxes}
        for name, default in (("scores", None), ("scale", 1.0), ("angle", 0.0)):
            given = getattr(self, name)
            if given is None and default is not None:
                columns[name] = np.full(number, default)
            else:
                columns[name] = np.array(given, dtype=np.float64)
            if columns[name].shape != (number,):
                raise ValueError(f"{name} must have shape ({number},), one value a box, got {columns[name].shape}")
        for name, column in columns.items():
            if not np.isfinite(column).all():
                raise ValueError(f"{name} must be finite, got {column[~np.isfinite(column)][0]}")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            bad = int(np.argmax((boxes[:, 2:] < boxes[:, :2]).any(axis=1)))
            raise ValueError(f"boxes must be x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, got {boxes[bad].tolist()}")
        order = np.argsort(-columns["scores"], kind="stable")
        for name, column in columns.items():
            ordered = column[order]
            ordered.flags.writeable = False
            object.__setattr__(self, name, ordered)
        if self.image_size is not None:
            width, height = self.image_size
            object.__setattr__(self, "image_size", (int(width), int(height)))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Neither pickle nor deepcopy keeps the arrays read-only.
        self.__dict__.update(state)
        for name in ("boxes", "scores", "scale", "angle"):
            state[name].flags.writeable = False

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Find]:
        for index in range(len(self)):
            yield self[index]

    @overload
    def __getitem__(self, index: int) -> Find: ...
    @overload
    def __getitem__(self, index: slice | npt.NDArray[Any] | list[int] | list[bool]) -> Finds: ...
    def __getitem__(self, index: int | slice | npt.NDArray[Any] | list[int] | list[bool]) -> Find | Finds:
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            x0, y0, x1, y1 = self.boxes[index].tolist()
            return Find((x0, y0, x1, y1), float(self.scores[index]), float(self.scale[index]), float(self.angle[index]))
        chosen = _selection(index)
        return Finds(
            self.boxes[chosen],
            self.scores[chosen],
            self.scale[chosen],
            self.angle[chosen],
            image_size=self.image_size,
            image=self.image,
            label=self.label,
            calibrated=self.calibrated,
        )

    def __repr__(self) -> str:
        number = f"{len(self)} find{'' if len(self) == 1 else 's'}"
        where = f" in {self.image}" if self.image else ""
        what = f" of {self.label}" if self.label else ""
        if not len(self):
            return f"<Finds: {number}{what}{where}>"
        kind = "probability" if self.calibrated else "score"
        best = ", ".join(f"{value:g}" for value in np.round(self.boxes[0], 1))
        return f"<Finds: {number}{what}{where}, {kind} {self.scores[0]:.3f} to {self.scores[-1]:.3f}, best at ({best})>"

    def _repr_html_(self) -> str:
        """Show a table of the best finds in a notebook."""
        columns = ["", "x0", "y0", "x1", "y1", "probability" if self.calibrated else "score", "scale", "angle"]
        head = "".join(f"<th>{name}</th>" for name in columns)
        rows = []
        for number, find in enumerate(self[:_ROWS_SHOWN], start=1):
            cells = [str(number), *(f"{value:.1f}" for value in find.box)]
            cells += [f"{find.score:.3f}", f"{find.scale:.2f}", f"{find.angle:.0f}°"]
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        title = html.escape(repr(self).strip("<>").removeprefix("Finds: "))
        more = f"<p>and {len(self) - _ROWS_SHOWN} more</p>" if len(self) > _ROWS_SHOWN else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""
        return f"<div><p><b>{title}</b></p>{table}{more}</div>"

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the finds as CSV (image,label,x0,y0,x1,y1,score,scale,angle); also write them to `path` if given."""
        text = outputs.to_csv_text(
            self.boxes, self.scores, scale=self.scale, angle=self.angle, image=self.image, label=self.label
        )
        return _text_and_file(text, path)

    def to_geojson(self, path: str | Path | None = None, *, georeference: Georeference | None = None) -> str:
        """Return the finds as GeoJSON rectangles in pixels (y down), or in the coordinates of a georeference.

        The text is also written to `path` if given. `wherever.files.windows.open_window(file).georeference` is that of
        a GeoTIFF or ENVI picture.
        """
        text = outputs.to_geojson_text(
            self.boxes,
            self.scores,
            scale=self.scale,
            angle=self.angle,
            image=self.image,
            label=self.label,
            georeference=georeference,
        )
        return _text_and_file(text, path)

    def to_coco(self, path: str | Path | None = None) -> str:
        """Return the finds as a COCO data set of one picture with scores; also write them to `path` if given."""
        text = outputs.to_coco_text(
            self.boxes,
            self.scores,
            scale=self.scale,
            angle=self.angle,
            image=self.image,
            label=self.label,
            image_size=self.image_size,
        )
        return _text_and_file(text, path)

    def plot(self, image: npt.ArrayLike, examples: npt.ArrayLike | None = None, ax: Axes | None = None) -> Axes:
        """Draw the finds with their scores on the picture, the examples in another colour.

        Parameters
        ----------
        image : array_like, shape (H, W) or (H, W, C)
            The picture; more than three bands are shown as three.
        examples : array_like, shape (m, 4), optional
            The boxes that were marked, x0, y0, x1, y1.
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure when None.

        Returns
        -------
        matplotlib.axes.Axes
            The axes drawn on.

        Raises
        ------
        ModuleNotFoundError
            If matplotlib is not installed.
        """
        try:
            from matplotlib import patheffects
            from matplotlib import pyplot as plt
            from matplotlib.patches import Rectangle
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('plot needs matplotlib: pip install "wherever[find]"', name=error.name) from error
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        ax.imshow(pictures.displayable(np.asarray(image)))
        outline: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=3, foreground="black")]
        marked = np.zeros((0, 4)) if examples is None else np.asarray(examples, dtype=np.float64).reshape(-1, 4)
        for boxes, colour in ((self.boxes, pictures.FIND_COLOUR), (marked, pictures.EXAMPLE_COLOUR)):
            for x0, y0, x1, y1 in boxes.tolist():
                # imshow puts the centre of pixel (0, 0) at 0; the boxes put its corner there.
                corner = (x0 - 0.5, y0 - 0.5)
                ax.add_patch(
                    Rectangle(
                        corner, x1 - x0, y1 - y0, fill=False, edgecolor=colour, path_effects=outline, linewidth=1.5
                    )
                )
        for find in self:
            text = ax.text(
                find.box[0], find.box[1] - 1, f"{find.score:.2f}", color=pictures.FIND_COLOUR, fontsize=7, va="bottom"
            )
            text.set_path_effects(outline)
        ax.set_axis_off()
        return ax


def _selection(index: object) -> slice | npt.NDArray[Any]:
    """Check what chooses several finds; TypeError if it is something else."""
    if isinstance(index, slice):
        return index
    # An empty list is an array of floats to NumPy, which refuses it as an index.
    chosen = np.zeros(0, dtype=np.intp) if isinstance(index, list) and not index else np.asarray(index)
    if isinstance(index, tuple) or chosen.ndim != 1 or chosen.dtype.kind not in "biu":
        given = f"array of {chosen.dtype}, shape {chosen.shape}" if isinstance(index, np.ndarray) else repr(index)
        raise TypeError(
            f"finds[{given}]: an index is a whole number, a slice, a boolean mask with one value a find, or a list "
            "or array of whole numbers"
        )
    return chosen


def _text_and_file(text: str, path: str | Path | None) -> str:
    if path is not None:
        outputs.write_atomically(path, text)
    return text
