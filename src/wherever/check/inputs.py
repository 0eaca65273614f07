"""Images as the checks take them: any number, sizes, types and bands; many bands brought to a few components."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MOST_COMPONENTS = 3


@dataclass
class Images:
    """A number of images (H, W, C), converted to float64 one at a time.

    Attributes
    ----------
    arrays : list of array, each (H, W, C)
        As given; sizes may differ, the number of bands may not.
    mean, mix : array, shapes (C,) and (C, K)
        Components are (image - mean) @ mix: with few bands the bands themselves.
    """

    arrays: list[npt.NDArray[Any]]
    mean: Floats = field(init=False)
    mix: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.mix = _components(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> Floats:
        values: Floats = (self.arrays[index].astype(np.float64) - self.mean) @ self.mix
        return values

    def __iter__(self) -> Iterator[Floats]:
        return (self[index] for index in range(len(self)))

    @property
    def bands(self) -> int:
        """Number of bands of the images as given."""
        return int(self.arrays[0].shape[2])

    @property
    def components(self) -> int:
        """Number of components that are used."""
        return int(self.mix.shape[1])

    @property
    def smallest(self) -> tuple[int, int]:
        """Least height and least width."""
        return min(a.shape[0] for a in self.arrays), min(a.shape[1] for a in self.arrays)

    def described(self) -> str:
        """Say how many images of which size there are."""
        sizes = {a.shape[:2] for a in self.arrays}
        h, w = next(iter(sizes))
        size = f"{h} x {w}" if len(sizes) == 1 else "several sizes"
        bands = f"{self.bands} band{'s' if self.bands > 1 else ''}"
        few = f", {self.components} components" if self.components < self.bands else ""
        return f"{len(self):,} image{'s' if len(self) > 1 else ''}, {size}, {bands}{few}"


def as_images(
    images: npt.ArrayLike | Sequence[npt.ArrayLike], *, name: str = "images", most: int | None = None
) -> Images:
    """Check images and bring each to the shape (H, W, C).

    Parameters
    ----------
    images : array (N, H, W), (N, H, W, C), one image (H, W), or a sequence of images (H, W) or (H, W, C)
        In a sequence, sizes may differ. Real numbers of any type.
    name : str
        The argument's name, for errors.
    most : int, optional
        Of more, so many are taken, spread evenly over all.

    Raises
    ------
    TypeError, ValueError
        If there is no image, an image has another shape or another number of bands than the first, is empty, does not
        hold real numbers, or holds some that are not finite.
    """
    if isinstance(images, np.ndarray) or hasattr(images, "__array__"):
        stack = np.asarray(images)
        if stack.ndim not in (2, 3, 4):
            raise ValueError(f"{name} has shape {stack.shape}; it must be (N, H, W), (N, H, W, C), or one image (H, W)")
        given: list[Any] = [stack] if stack.ndim == 2 else list(stack)
    elif isinstance(images, Sequence) and not isinstance(images, str | bytes):
        given = list(images)
    else:
        raise TypeError(f"{name} is {type(images).__name__}; it must be an array or a sequence of arrays")
    if not given:
        raise ValueError(f"{name}: none is given")
    if most is not None and len(given) > most:
        given = [given[int(i)] for i in spread(len(given), most)]
    arrays = [_as_image(name, number, image) for number, image in enumerate(given)]
    bands = arrays[0].shape[2]
    for number, array in enumerate(arrays):
        if array.shape[2] != bands:
            raise ValueError(f"{name}[{number}] has {array.shape[2]} bands, {name}[0] has {bands}; they must be equal")
    return Images(arrays)


def spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """Give the indices of at most so many of a number of things, spread evenly over all of them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def pooled(values: Floats, grid: tuple[int, int]) -> Floats:
    """Average over the cells of a grid: all of one size, since a statistic may depend on it, and spread evenly."""
    for axis, cells in enumerate(grid):
        width = values.shape[axis] // cells
        starts = np.linspace(0, values.shape[axis] - width, cells).round().astype(np.int64)
        values = np.stack([values.take(starts + i, axis=axis) for i in range(width)]).mean(axis=0)
    return values


def _as_image(name: str, number: int, image: Any) -> npt.NDArray[Any]:
    array = np.asarray(image)
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"{name}[{number}] has shape {array.shape}; it must be (H, W) or (H, W, C), with pixels")
    if array.dtype.kind not in "uifb":
        raise TypeError(f"{name}[{number}] holds {array.dtype}; it must hold real numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name}[{number}] has NaN or infinite values; fill them, or leave the image out")
    return array[:, :, None] if array.ndim == 2 else array


def _components(arrays: Sequence[npt.NDArray[Any]]) -> tuple[Floats, Floats]:
    """Find the mean and the mix of bands: the bands themselves, or the first principal components of many."""
    bands = arrays[0].shape[2]
    if bands <= MOST_COMPONENTS:
        return np.zeros(bands), np.eye(bands)
    each = max(1, math.ceil(100_000 / len(arrays)))
    pixels = np.concatenate([a.reshape(-1, bands)[spread(a.shape[0] * a.shape[1], each)] for a in arrays])
    real = pixels.astype(np.float64)
    mean = real.mean(axis=0)
    vectors = np.linalg.eigh(np.cov(real, rowvar=False))[1]
    return mean, vectors[:, ::-1][:, :MOST_COMPONENTS]
