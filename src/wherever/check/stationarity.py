"""Whether statistics of patches depend on their position in the image: a random shift test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from wherever.check.inputs import Floats, Images, as_images, pooled
from wherever.check.words import Cells, chance, listed, percent, printed
from wherever.problem import integer

_MOST_IMAGES = 2000
# What is computed of a patch, and how it is called in a sentence.
STATISTICS = {"mean": "the mean", "contrast": "the contrast", "direction": "the direction of edges"}


@dataclass(frozen=True)
class Dependence:
    """How one statistic of patches depends on their position.

    Attributes
    ----------
    name : str
        "mean", "contrast" or "direction".
    F : float
        Variance between positions over what is left within them (both as mean squares; images are blocks).
    p : float
        Share of draws with a larger F when every image is shifted at random, itself counted once.
    effect : float
        Share of the variance within images that the position explains, omega squared; 0 where it is no more than
        chance.
    map : array, shape (rows, columns, K)
        Mean of the statistic at every position, above the mean of its image, in standard deviations.
    """

    name: str
    F: float
    p: float
    effect: float
    map: Floats


@dataclass(frozen=True)
class Stationarity:
    """Whether patches have the same statistics at every position; print it.

    Attributes
    ----------
    images : str
        What was looked at.
    grid : (int, int)
        Number of positions, down and across.
    draws : int
        Random shifts drawn for the p-values.
    alpha, negligible : float
        The level of the test, and the effect below which a dependence is called small.
    dependences : tuple of Dependence
        One for each statistic.
    """

    images: str
    grid: tuple[int, int]
    draws: int
    alpha: float
    negligible: float
    dependences: tuple[Dependence, ...]

    def __getitem__(self, name: str) -> Dependence:
        for item in self.dependences:
            if item.name == name:
                return item
        raise KeyError(f"{name!r}: there is {listed(item.name for item in self.dependences)}")

    @property
    def significant(self) -> tuple[Dependence, ...]:
        """The dependences beyond chance, at the level alpha for all of them together (Holm)."""
        found = []
        ordered = sorted(self.dependences, key=lambda item: item.p)
        for rank, item in enumerate(ordered):
            if item.p > self.alpha / (len(ordered) - rank):
                break
            found.append(item.name)
        return tuple(item for item in self.dependences if item.name in found)

    @property
    def stationary(self) -> bool:
        """Whether no statistic depends on the position by more than chance and more than a negligible effect."""
        return not any(item.effect >= self.negligible for item in self.significant)

    @property
    def sentence(self) -> str:
        """What the test says, in words."""
        words = [
            f"{STATISTICS[item.name]} ({percent(item.effect)} of its variance, {chance(item.p)})"
            for item in self.significant
        ]
        least = min(item.p for item in self.dependences)
        if not words:
            return (
                f"No statistic of patches depends on their position by more than chance ({chance(least)} at the least)."
            )
        verb = "depend" if len(words) > 1 or self.significant[0].name != "mean" else "depends"
        verb = "depends" if len(words) == 1 else verb
        if self.stationary:
            return f"Hardly any dependence on position: {listed(words)} {verb} on it by more than chance, but little."
        return f"Patches differ by position: {listed(words)} {verb} on where a patch is."

    def tables(self) -> list[Cells]:
        """Give the table as text: a header, and a row for each statistic."""
        rows = [
            [item.name, f"{item.F:.2f}", chance(item.p)[2:].strip("= "), percent(item.effect)]
            for item in self.dependences
        ]
        return [(("statistic of patches", "F", "p", "explained by position"), rows)]

    def title(self) -> str:
        """Give one line that says what was looked at."""
        return f"{self.images}, {self.grid[0]} x {self.grid[1]} positions"

    def __str__(self) -> str:
        return printed(self)

    def to_dict(self) -> dict[str, Any]:
        """Give everything in plain Python types."""
        return {
            "images": self.images,
            "grid": list(self.grid),
            "draws": self.draws,
            "alpha": self.alpha,
            "negligible": self.negligible,
            "stationary": self.stationary,
            "sentence": self.sentence,
            "statistics": [
                {"name": d.name, "F": d.F, "p": d.p, "effect": d.effect, "map": d.map.tolist()}
                for d in self.dependences
            ],
        }

    def plot(self, path: str | Path | IO[bytes], *, file_format: str | None = None) -> None:
        """Draw the mean of every statistic by position; needs matplotlib."""
        from wherever.check.plots import draw

        draw(path, [self], file_format)


def stationarity(
    images: npt.ArrayLike | Sequence[npt.ArrayLike],
    *,
    grid: int = 8,
    draws: int = 499,
    alpha: float = 0.01,
    negligible: float = 0.01,
    seed: int = 0,
) -> Stationarity:
    """Test whether statistics of patches depend on their position by more than chance.

    Parameters
    ----------
    images : array (N, H, W) or (N, H, W, C), or a sequence of images (H, W) or (H, W, C)
        At least two, since one image cannot tell a position from what happens to be there. Sizes may differ; then a
        position is one relative to the image's size. Of more than three bands the first three principal components
        are used, of more than 2,000 images 2,000.
    grid : int
        Most positions down and across; a patch is an image's part for one of them, at least 2 x 2 pixels.
    draws : int
        Random shifts from which p-values are computed; the least p-value is 1 / (draws + 1), which must be small
        enough for alpha.
    alpha : float
        Level of the test for all statistics together.
    negligible : float
        Share of the variance below which a dependence, if there is one, is called small.
    seed : int

    Returns
    -------
    Stationarity

    Raises
    ------
    ValueError
        If there are fewer than two images, or one has fewer than 4 pixels in a dimension, or all are constant.

    Notes
    -----
    Of every patch are taken its mean, its contrast (the standard deviation of its pixels) and the direction of its
    edges (the means of ``gx² - gy²`` and ``2 gx gy``, g being the gradient), for each component. F is that of an
    analysis of variance with positions as treatments and images as blocks; omega squared (Hays 1963) estimates the
    share of the variance within images that positions explain. Neighbouring patches are correlated, so that the
    tabulated distribution of F does not hold. It is replaced by that of images which are shifted at random and
    independently, around the border (the toroidal shift test of spatial statistics, Lotwick and Silverman 1982):
    correlations within each image stay, and where statistics do not depend on position, shifting changes nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from wherever import check
    >>> noise = np.random.default_rng(0).standard_normal((50, 32, 32))
    >>> check.stationarity(noise).stationary
    True
    >>> noise[:, 8:24, 8:24] *= 2
    >>> print(check.stationarity(noise).sentence)
    Patches differ by position: the contrast (76.3 % of its variance, p = 0.002) depends on where a patch is.
    """
    given = as_images(images, most=_MOST_IMAGES)
    if len(given) < 2:
        raise ValueError(
            "images: one is given, at least two are needed; a single image cannot tell a position from what happens to "
            "be there"
        )
    draws, grid = integer("draws", draws, minimum=1), integer("grid", grid, minimum=2)
    if not 0 < alpha < 1 or alpha * (draws + 1) < len(STATISTICS):
        raise ValueError(
            f"draws is {draws} and alpha {alpha}: the least p-value is 1 / (draws + 1), and of {len(STATISTICS)} "
            f"statistics one must lie below alpha / {len(STATISTICS)}"
        )
    smallest = given.smallest
    if min(smallest) < 4:
        raise ValueError(f"images: the smallest is {smallest[0]} x {smallest[1]}; at least 4 x 4 pixels are needed")
    size = min(grid, smallest[0] // 2), min(grid, smallest[1] // 2)
    found = _patches(given, size)
    if all(not values.any() for values in found.values()):
        raise ValueError("images: all are constant; there are no statistics to compare")
    rng = np.random.default_rng(seed)
    shifts = rng.integers(0, size, (draws, len(given), 2))
    dependences = tuple(_dependence(name, values, shifts) for name, values in found.items())
    return Stationarity(given.described(), size, draws, alpha, negligible, dependences)


def _patches(images: Images, grid: tuple[int, int]) -> dict[str, Floats]:
    """Compute the statistics of all patches: arrays (N, rows, columns, K), each image's own mean subtracted."""
    k = images.components
    shape = (len(images), *grid)
    found = {"mean": np.empty((*shape, k)), "contrast": np.empty((*shape, k)), "direction": np.empty((*shape, 2 * k))}
    for n, image in enumerate(images):
        image = image - image.mean(axis=(0, 1))
        mean = pooled(image, grid)
        found["mean"][n] = mean
        found["contrast"][n] = np.sqrt(np.maximum(pooled(image**2, grid) - mean**2, 0))
        # Both parts of the gradient in the middle of four pixels, where none of them needs what lies outside.
        down, across = np.diff(image, axis=0), np.diff(image, axis=1)
        gy, gx = down[:, 1:] + down[:, :-1], across[1:] + across[:-1]
        found["direction"][n] = pooled(np.concatenate([gx**2 - gy**2, 2 * gx * gy], axis=2), grid)
    for name, values in found.items():
        scale = np.abs(values).max(initial=0)
        values -= values.mean(axis=(1, 2), keepdims=True)
        # What rounding leaves of equal numbers is no variation.
        values[:, :, :, np.abs(values).max(axis=(0, 1, 2)) <= 1e-10 * scale] = 0
        found[name] = values
    return found


def _dependence(name: str, values: Floats, shifts: npt.NDArray[np.int64]) -> Dependence:
    """Analyse one statistic: images are blocks, positions treatments, components are pooled."""
    scale = np.sqrt((values**2).mean(axis=(0, 1, 2)))
    values = values[..., scale > 0] / scale[scale > 0]
    n, rows, columns, k = values.shape
    whole = np.zeros((rows, columns, len(scale)))
    if k == 0:
        return Dependence(name, 0.0, 1.0, 0.0, whole)
    total, positions = float((values**2).sum()), rows * columns
    means = values.mean(axis=0)

    def ratio(mean: Floats) -> float:
        between = n * float((mean**2).sum())
        left = max(total - between, 1e-12 * total)
        return float((between / (positions - 1)) / (left / ((n - 1) * (positions - 1))))

    F = ratio(means)
    flat, image = values.reshape(n, positions, k), np.arange(n)[:, None]
    larger = 0
    for shift in shifts:
        row = (np.arange(rows) + shift[:, :1]) % rows
        column = (np.arange(columns) + shift[:, 1:]) % columns
        drawn = (row[:, :, None] * columns + column[:, None, :]).reshape(n, positions)
        larger += ratio(flat[image, drawn].mean(axis=0)) >= F
    between = n * float((means**2).sum())
    error = (total - between) / ((n - 1) * (positions - 1) * k)
    effect = (between - (positions - 1) * k * error) / (total + error)
    whole[..., scale > 0] = means
    return Dependence(name, F, (larger + 1) / (len(shifts) + 1), float(np.clip(effect, 0, 1)), whole)
