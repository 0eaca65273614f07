"""The kernel swept over a picture at every scale and rotation, and the peaks of its scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, maximum_filter

from wherever.find.boxes import Boxes, clip, suppress
from wherever.find.features import Eye, Floats, Picture, interpolation
from wherever.ops import conv

LEVELS_PER_OCTAVE = 4
OVERLAP_LIMIT = 0.4  # finds that overlap more (intersection over union) are one
INSIDE_LIMIT = 0.75  # finds of which more than this share lies inside another are that
MOST_PEAKS = 20_000  # on one level; more are not looked at
MOST_PEAKS_OF = 1 << 25  # pixels; of larger images as many again for each so many

MapsOfLevel = Callable[[int], Floats]


def scale_of(level: float) -> float:
    """Return how much larger than the mean example a thing found at a level is."""
    return float(2.0 ** (level / LEVELS_PER_OCTAVE))


@dataclass(frozen=True)
class Template:
    """The window of cells that the kernel covers, and the box of the mean example in its middle.

    Attributes
    ----------
    cell
        Size of a cell in pixels at level 0.
    rows, columns
        Size of the window in cells.
    width, height
        Size of the box in pixels at level 0.
    """

    cell: float
    rows: int
    columns: int
    width: float
    height: float

    @property
    def padding(self) -> tuple[int, int]:
        """Cells of padding with which windows are centred on, or between, all cells of an image."""
        return self.rows // 2, self.columns // 2

    def centre(self, row: NDArray[np.generic], column: NDArray[np.generic], level: int) -> NDArray[np.float64]:
        """Return the centres x, y in pixels, (n, 2), of the windows at these places of a level's padded maps."""
        cell = self.cell * scale_of(level)
        up, left = self.padding
        places = np.stack([column, row], axis=-1).astype(np.float64)
        return (places - [left - self.columns / 2, up - self.rows / 2]) * cell

    def boxes(self, centre: NDArray[np.float64], scale: float, angle: NDArray[np.float64]) -> Boxes:
        """Return boxes (n, 4) of things with these centres (n, 2), scale, and angles (n,) in degrees.

        The box of a turned thing is that of the ellipse in the mean example's box, turned: a round thing keeps its box.
        """
        cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        half = np.stack(
            [
                np.hypot(self.width * cosine, self.height * sine) * (scale / 2),
                np.hypot(self.width * sine, self.height * cosine) * (scale / 2),
            ],
            axis=-1,
        )
        return np.concatenate([centre - half, centre + half], axis=-1)


@dataclass(frozen=True)
class Kernel:
    """A linear detector: the window's weights, and how it is swept.

    Attributes
    ----------
    template, eye
        What a window is, and what is seen in it.
    weights
        (maps, rows, columns).
    bias
        Added to every score.
    levels
        The levels that are searched; each is a quarter of an octave.
    penalties
        Subtracted from the scores of each level: what the examples' sizes say about the size of a find.
    angles
        The rotations that are searched, in degrees, counter-clockwise.
    """

    template: Template
    eye: Eye
    weights: Floats
    bias: float
    levels: tuple[int, ...]
    penalties: tuple[float, ...]
    angles: tuple[float, ...]

    @property
    def turned(self) -> Floats:
        """The weights turned to every angle, (angles, maps, rows, columns)."""
        return np.stack([turn(self.weights, angle) for angle in self.angles])

    def maps_of(self, picture: Picture) -> MapsOfLevel:
        """Return the function that computes the feature maps of a picture at a level."""
        return lambda level: picture.features(self.eye, self.template.cell * scale_of(level))


@dataclass(frozen=True)
class Candidates:
    """Places that may be finds: boxes (n, 4) clipped to the image, scores, levels, angles, and where they peak."""

    boxes: Boxes
    scores: NDArray[np.float64]
    levels: NDArray[np.int64]
    angles: NDArray[np.float64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def __getitem__(self, index: NDArray[np.generic] | slice) -> Candidates:
        return Candidates(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.scores)


def turn(weights: Floats, angle: float) -> Floats:
    """Return a window of weights (maps, rows, columns) turned counter-clockwise, as the picture is seen."""
    if angle % 360 == 0:
        return weights
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    # affine_transform asks where each turned cell was before: turned back, with y growing downwards
    back = np.array([[cosine, sine], [-sine, cosine]])
    middle = (np.array(weights.shape[1:]) - 1) / 2
    shift = middle - back @ middle
    return np.stack([affine_transform(w, back, shift, order=1, mode="constant") for w in weights]).astype(np.float32)


def score_levels(kernel: Kernel, maps_of: MapsOfLevel) -> list[tuple[Floats, NDArray[np.intp]]]:
    """Return for every level the best score over the angles at each place, (H, W), and the index of its angle."""
    bank = kernel.turned
    return [score_level(kernel, bank, maps_of(level), i) for i, level in enumerate(kernel.levels)]


def score_level(kernel: Kernel, bank: Floats, maps: Floats, index: int) -> tuple[Floats, NDArray[np.intp]]:
    """Return the best score over the angles at each place of one level's maps, and the index of that angle."""
    scores = conv(maps, bank, padding=kernel.template.padding)
    scores += np.float32(kernel.bias - kernel.penalties[index])
    if len(bank) == 1:
        return scores[0], np.zeros(scores.shape[1:], np.intp)
    return scores.max(axis=0), scores.argmax(axis=0)


def most_peaks(height: int, width: int) -> int:
    """Return how many peaks of one level of an image are looked at."""
    return MOST_PEAKS * max(1, -(-height * width // MOST_PEAKS_OF))


def peaks(scores: Floats, floor: float, most: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of the best `most` local maxima (of 3 x 3) of scores (H, W) of at least `floor`."""
    rows, columns = np.nonzero((scores >= maximum_filter(scores, size=3, mode="nearest")) & (scores >= floor))
    if len(rows) > most:
        best = np.argpartition(-scores[rows, columns], most)[:most]
        rows, columns = rows[best], columns[best]
    return rows, columns


def candidates(
    kernel: Kernel,
    picture: Picture,
    maps_of: MapsOfLevel,
    floor: float = -np.inf,
    most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Return the peaks of a picture's scores at every level, unsorted, many of them of the same thing."""
    bank = kernel.turned
    found = []
    most = most_peaks(picture.height, picture.width) if most is None else most
    for index, level in enumerate(kernel.levels):
        scores, angle_index = score_level(kernel, bank, maps_of(level), index)
        rows, columns = peaks(scores, floor, most)
        angles = np.asarray(kernel.angles, np.float64)[angle_index[rows, columns]]
        centre = kernel.template.centre(rows, columns, level)
        inside = np.all((centre > 0) & (centre < [picture.width, picture.height]), axis=1)
        boxes = clip(kernel.template.boxes(centre, scale_of(level), angles), picture.width, picture.height)
        value = scores[rows, columns].astype(np.float64)
        found.append(Candidates(boxes, value, np.full(len(rows), level), angles, rows, columns)[inside])
        if progress is not None:
            progress(index + 1, len(kernel.levels))
    return Candidates(*(np.concatenate([getattr(f, name) for f in found]) for name in Candidates.__dataclass_fields__))


def distinct(found: Candidates, most: int | None = None) -> Candidates:
    """Return the candidates that are not the same thing as a better one, best first."""
    return found[suppress(found.boxes, found.scores, OVERLAP_LIMIT, INSIDE_LIMIT)[:most]]


def score_map(kernel: Kernel, picture: Picture) -> Floats:
    """Return the best score over levels and angles of a thing centred at each pixel, (H, W)."""
    best = np.full((picture.height, picture.width), -np.inf, np.float32)
    for level, (scores, _) in zip(kernel.levels, score_levels(kernel, kernel.maps_of(picture)), strict=True):
        cell = kernel.template.cell * scale_of(level)
        up, left = kernel.template.padding
        down = interpolation(picture.height, scores.shape[0], cell, kernel.template.rows / 2 - up)
        across = interpolation(picture.width, scores.shape[1], cell, kernel.template.columns / 2 - left)
        np.maximum(best, down @ (across @ scores.T).T, out=best)
    return best
