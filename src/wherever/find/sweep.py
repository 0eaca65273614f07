"""A kernel or network swept over a picture at every scale and rotation, and the peaks of its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

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
    """The window of cells that is looked at, and the box of the mean example in it.

    Attributes
    ----------
    cell
        Size of a cell in pixels at level 0.
    rows, columns
        Size of the window in cells.
    width, height
        Size of the box in pixels at level 0.
    stride
        Cells from one window to the next.
    right, below
        How far the centre of the box lies from the centre of the window, in cells.
    """

    cell: float
    rows: int
    columns: int
    width: float
    height: float
    stride: int = 1
    right: float = 0.0
    below: float = 0.0

    @property
    def padding(self) -> tuple[int, int]:
        """Cells of padding with which windows are centred on, or between, all cells of an image."""
        return self.rows // 2, self.columns // 2

    def centre(self, row: NDArray[np.generic], column: NDArray[np.generic], level: int) -> NDArray[np.float64]:
        """Return the centres x, y in pixels, (n, 2), of the boxes of the windows at these places of a level."""
        places = np.stack([column, row], axis=-1).astype(np.float64)
        first = np.array([self.first(1), self.first(0)])
        return np.asarray((places + first) * self.pitch(level))

    def pitch(self, level: float) -> float:
        """Return how many pixels lie from one window of a level to the next."""
        return self.cell * scale_of(level) * self.stride

    def first(self, axis: int) -> float:
        """Return where the centre of the box of the first window lies along an axis, in steps between windows."""
        size, offset = ((self.rows, self.below), (self.columns, self.right))[axis]
        return (size / 2 - self.padding[axis] + offset) / self.stride

    def places(self, cells: int, axis: int) -> int:
        """Return how many windows there are along an axis of so many cells."""
        return (cells + 2 * self.padding[axis] - (self.rows, self.columns)[axis]) // self.stride + 1

    def covered(self, low: int, high: int, axis: int) -> tuple[int, int]:
        """Return the cells, from the first to one after the last, that windows from `low` to `high` - 1 cover."""
        before = self.padding[axis]
        return low * self.stride - before, (high - 1) * self.stride - before + (self.rows, self.columns)[axis]

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


Padding = Sequence[tuple[int, int]]


class Scorer(Protocol):
    """What scores the windows of a picture: a linear kernel, or a network.

    Attributes
    ----------
    template, eye
        What a window is, and what is seen in it.
    levels
        The levels that are searched; each is a quarter of an octave.
    penalties
        Subtracted from the scores of each level: what the examples' sizes say about the size of a find.
    angles
        The rotations that are searched, in degrees, counter-clockwise.
    memory
        Bytes that it needs whatever the size of a picture.
    """

    @property
    def template(self) -> Template:
        """See above."""
        ...

    @property
    def eye(self) -> Eye:
        """See above."""
        ...

    @property
    def levels(self) -> tuple[int, ...]:
        """See above."""
        ...

    @property
    def penalties(self) -> tuple[float, ...]:
        """See above."""
        ...

    @property
    def angles(self) -> tuple[float, ...]:
        """See above."""
        ...

    @property
    def memory(self) -> int:
        """See above."""
        ...

    def scores(self, maps: Floats, padding: Padding, penalty: float = 0.0) -> tuple[Floats, NDArray[np.intp]]:
        """Return the best score over the angles of each window of padded maps, and the index of that angle.

        The penalty is subtracted from every score.
        """
        ...

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the numbers that were learnt, by name."""
        ...


@dataclass(frozen=True)
class Kernel:
    """A linear detector: the window's weights, and how it is swept; see `Scorer`.

    Attributes
    ----------
    weights
        (maps, rows, columns).
    bias
        Added to every score.
    """

    template: Template
    eye: Eye
    weights: Floats
    bias: float
    levels: tuple[int, ...]
    penalties: tuple[float, ...]
    angles: tuple[float, ...]
    memory = 0

    @cached_property
    def turned(self) -> Floats:
        """The weights turned to every angle, (angles, maps, rows, columns)."""
        return np.stack([turn(self.weights, angle) for angle in self.angles])

    def scores(self, maps: Floats, padding: Padding, penalty: float = 0.0) -> tuple[Floats, NDArray[np.intp]]:
        """Return the best score over the angles of each window of padded maps, and the index of that angle."""
        scores = conv(maps, self.turned, padding=padding)
        scores += np.float32(self.bias - penalty)
        if len(self.angles) == 1:
            return scores[0], np.zeros(scores.shape[1:], np.intp)
        return scores.max(axis=0), scores.argmax(axis=0)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the numbers that were learnt, by name."""
        return {"weights": self.weights, "bias": np.array([self.bias], np.float32)}


def maps_of(scorer: Scorer, picture: Picture) -> MapsOfLevel:
    """Return the function that computes the feature maps of a picture at a level."""
    return lambda level: picture.features(scorer.eye, scorer.template.cell * scale_of(level))


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


def score_level(scorer: Scorer, maps: Floats, index: int) -> tuple[Floats, NDArray[np.intp]]:
    """Return the best score over the angles at each place of one level's maps, and the index of that angle."""
    up, left = scorer.template.padding
    return scorer.scores(maps, ((up, up), (left, left)), scorer.penalties[index])


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
    scorer: Scorer,
    picture: Picture,
    maps: MapsOfLevel,
    floor: float = -np.inf,
    most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Return the peaks of a picture's scores at every level, unsorted, many of them of the same thing."""
    found = []
    most = most_peaks(picture.height, picture.width) if most is None else most
    for index, level in enumerate(scorer.levels):
        scores, angle_index = score_level(scorer, maps(level), index)
        rows, columns = peaks(scores, floor, most)
        angles = np.asarray(scorer.angles, np.float64)[angle_index[rows, columns]]
        centre = scorer.template.centre(rows, columns, level)
        inside = np.all((centre > 0) & (centre < [picture.width, picture.height]), axis=1)
        boxes = clip(scorer.template.boxes(centre, scale_of(level), angles), picture.width, picture.height)
        value = scores[rows, columns].astype(np.float64)
        found.append(Candidates(boxes, value, np.full(len(rows), level), angles, rows, columns)[inside])
        if progress is not None:
            progress(index + 1, len(scorer.levels))
    return Candidates(*(np.concatenate([getattr(f, name) for f in found]) for name in Candidates.__dataclass_fields__))


def distinct(found: Candidates, most: int | None = None) -> Candidates:
    """Return the candidates that are not the same thing as a better one, best first."""
    return found[suppress(found.boxes, found.scores, OVERLAP_LIMIT, INSIDE_LIMIT)[:most]]


def score_map(scorer: Scorer, picture: Picture) -> Floats:
    """Return the best score over levels and angles of a thing centred at each pixel, (H, W)."""
    best = np.full((picture.height, picture.width), -np.inf, np.float32)
    maps, template = maps_of(scorer, picture), scorer.template
    for index, level in enumerate(scorer.levels):
        scores, _ = score_level(scorer, maps(level), index)
        pitch = template.pitch(level)
        down = interpolation(picture.height, scores.shape[0], pitch, template.first(0))
        across = interpolation(picture.width, scores.shape[1], pitch, template.first(1))
        np.maximum(best, down @ (across @ scores.T).T, out=best)
    return best
