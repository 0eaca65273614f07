"""Ridge regression on windows, cross-validated from sums of products: what a place's neighbourhood says of a value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.check.inputs import Floats, Images, as_images

# Strengths of the ridge, relative to the mean variance of a feature.
STRENGTHS: Floats = np.logspace(-8, 1, 10)
_MOST_CLASSES = 20


@dataclass
class Sums:
    """Sums of products over samples: of features, of features with values, of squared values. They add and subtract."""

    n: float
    xx: Floats
    xy: Floats
    yy: float

    @classmethod
    def of(cls, X: Floats, y: Floats) -> Sums:
        """Sum over samples X (n, p) and y (n, q)."""
        return cls(len(X), X.T @ X, X.T @ y, float((y**2).sum()))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.n + other.n, self.xx + other.xx, self.xy + other.xy, self.yy + other.yy)

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.n - other.n, self.xx - other.xx, self.xy - other.xy, self.yy - other.yy)

    def part(self, features: npt.NDArray[np.int64]) -> Sums:
        """Keep some of the features."""
        return Sums(self.n, self.xx[np.ix_(features, features)], self.xy[features], self.yy)

    def error(self, weights: Floats) -> float:
        """Sum of the squared errors of predictions with weights (p, q)."""
        return self.yy - 2 * float((weights * self.xy).sum()) + float((weights * (self.xx @ weights)).sum())

    def fit(self, free: int, strengths: Floats = STRENGTHS) -> list[Floats]:
        """Fit ridge regressions of all strengths, with the first `free` features not shrunk: weights (p, q) each."""
        p = len(self.xx)
        if self.n <= 0:
            return [np.zeros_like(self.xy) for _ in strengths]
        z = slice(0, free)
        solved = np.linalg.pinv(self.xx[z, z]) @ np.hstack([self.xx[z, free:], self.xy[z]])
        cross, bias = solved[:, : p - free], solved[:, p - free :]
        inner = self.xx[free:, free:] - self.xx[free:, z] @ cross
        values, vectors = np.linalg.eigh((inner + inner.T) / 2)
        aim = vectors.T @ (self.xy[free:] - self.xx[free:, z] @ bias)
        scale = max(float(values.sum()), 0.0) / max(p - free, 1) or 1.0
        found = []
        for strength in strengths:
            weights = vectors @ (aim / (np.maximum(values, 0) + strength * scale)[:, None])
            found.append(np.vstack([bias - cross @ weights, weights]))
        return found


@dataclass
class Samples:
    """Windows at random places, with what is to be predicted there.

    Attributes
    ----------
    X : array, shape (n, offsets · K)
        The window's components, the offsets in rings from the centre outwards, so that a smaller window is a prefix.
    y : array, shape (n, q)
    where : array, shape (n, 2)
        The place, from -1 to 1 down and across the pixels that a window fits to.
    fold : array of int, shape (n,)
    """

    X: Floats
    y: Floats
    where: Floats
    fold: npt.NDArray[np.int64]


def rings(delta: int) -> npt.NDArray[np.int64]:
    """Give the offsets of a window, shape ((2Δ+1)^2, 2), in rings around the centre."""
    reach = np.arange(-delta, delta + 1)
    offsets = np.stack(np.meshgrid(reach, reach, indexing="ij"), axis=-1).reshape(-1, 2)
    return offsets[np.argsort(np.abs(offsets).max(axis=1), kind="stable")]


def draw(
    images: Images, targets: Targets | None, delta: int, samples: int, folds: int, seed: int, *, cuts: int = 1
) -> Samples:
    """Draw places at random and cut windows there.

    Images are divided among the folds; fewer images than folds are cut into blocks before, `cuts` down and across at
    the least, which windows do not leave. Without targets the centre is what is to be predicted, and each image's mean
    is subtracted: how bright an image is as a whole is no local matter.
    """
    rng = np.random.default_rng(seed)
    if len(images) < folds:
        cuts = max(cuts, math.ceil(math.sqrt(folds / len(images))))
    blocks = len(images) * cuts**2
    order = rng.permutation(blocks)
    each = max(1, math.ceil(samples / blocks))
    offsets = rings(delta)
    parts: dict[str, list[Any]] = {"X": [], "y": [], "where": [], "fold": []}
    for n, image in enumerate(images):
        value = targets.maps[n] if targets is not None else None
        if value is None:
            image = image - image.mean(axis=(0, 1))
        height, width = image.shape[:2]
        for block in range(cuts**2):
            rows = _span(height, block // cuts, cuts, delta)
            columns = _span(width, block % cuts, cuts, delta)
            places = len(rows) * len(columns)
            if not places:
                continue
            chosen = rng.choice(places, min(each, places), replace=False)
            y, x = rows[chosen // len(columns)], columns[chosen % len(columns)]
            windows = image[y[:, None] + offsets[:, 0], x[:, None] + offsets[:, 1]]
            parts["X"].append(windows.reshape(len(chosen), -1))
            parts["y"].append(windows[:, 0] if value is None else value[y, x])
            parts["where"].append(np.stack([_scaled(y, height, delta), _scaled(x, width, delta)], axis=1))
            parts["fold"].append(np.full(len(chosen), order[n * cuts**2 + block] % folds))
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return Samples(**joined)


def _span(size: int, block: int, cuts: int, delta: int) -> npt.NDArray[np.int64]:
    """Give the places of a block, one of `cuts` along an axis, at which a window does not leave it."""
    return np.arange(size * block // cuts + delta, size * (block + 1) // cuts - delta)


def _scaled(place: npt.NDArray[np.int64], size: int, delta: int) -> Floats:
    scaled: Floats = (2 * (place - delta) + 1) / (size - 2 * delta) - 1
    return scaled


@dataclass
class Targets:
    """What is to be predicted: a value at every pixel, or one for each image; classes as a column each."""

    maps: list[Floats]
    labels: Floats | None
    classes: tuple[str, ...] | None

    def __iter__(self) -> Iterator[Floats]:
        return iter(self.maps)


def as_targets(target: Any, images: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> Targets | None:
    """Check a target against the images: (N,) labels or numbers, or maps of the images' sizes; None is none.

    Integers, booleans and texts of at most twenty different values are classes, everything else numbers.
    """
    if target is None:
        return None
    values = target if isinstance(target, list | tuple) else np.asarray(target)
    flat = len(values) == len(images) and all(np.ndim(value) == 0 for value in values)
    if flat:
        labels = np.asarray(values)
        names = _classes([labels])
        if names is not None:
            return Targets([], _columns(labels, names), tuple(map(str, names)))
        _numbers("target", labels)
        return Targets([], labels.astype(np.float64)[:, None], None)
    if np.ndim(values[0]) == 0:
        raise ValueError(f"target has {len(values)} values for {len(images)} images; give one for each, or a map each")
    maps = [values] if isinstance(values, np.ndarray) and values.ndim == 2 and len(images) == 1 else list(values)
    if len(maps) != len(images):
        raise ValueError(f"target has {len(maps)} maps for {len(images)} images; give one for each")
    arrays = [np.asarray(item) for item in maps]
    for number, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        if array.shape[:2] != shape[:2] or array.ndim not in (2, 3):
            raise ValueError(f"target[{number}] has shape {array.shape}; its image has {shape[:2]} pixels")
    names = _classes(arrays) if all(array.ndim == 2 for array in arrays) else None
    if names is not None:
        return Targets([_columns(array, names) for array in arrays], None, tuple(map(str, names)))
    checked = as_images(arrays, name="target")
    return Targets([array.astype(np.float64) for array in checked.arrays], None, None)


def _classes(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    if any(array.dtype.kind not in "biuUS" for array in arrays):
        return None
    names: npt.NDArray[Any] = np.unique(np.concatenate([np.unique(array) for array in arrays]))
    if len(names) < 2:
        raise ValueError(f"target: all values are {names[0]}; there is nothing to tell apart")
    if len(names) > _MOST_CLASSES and arrays[0].dtype.kind in "US":
        raise ValueError(f"target: {len(names)} different texts; at most {_MOST_CLASSES} classes are compared")
    return names if len(names) <= _MOST_CLASSES else None


def _columns(values: npt.NDArray[Any], names: npt.NDArray[Any]) -> Floats:
    columns: Floats = (values[..., None] == names).astype(np.float64)
    return columns


def _numbers(name: str, values: npt.NDArray[Any]) -> None:
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise ValueError(f"{name}: must be finite real numbers, or texts; its dtype is {values.dtype}")
    if values.min() == values.max():
        raise ValueError(f"{name}: all values are {values.flat[0]}; there is nothing to predict")
