"""How far the eye must reach: correlation by distance, and the best linear prediction from windows of every size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from wherever.check.inputs import Floats, Images, as_images
from wherever.check.regression import Sums, as_targets, draw
from wherever.check.words import Cells, percent, printed
from wherever.problem import integer

_MOST_IMAGES = 1000
_MOST_FEATURES = 1200
_STRENGTHS = np.array([1e-6])


@dataclass(frozen=True)
class Locality:
    """How correlation falls with distance, and how large a window is worth looking at; print it.

    Attributes
    ----------
    images : str
        What was looked at.
    distances : array, shape (n,)
        0, 1, 2, ... pixels.
    correlation, standard_error : array, shape (n,)
        Of two pixels at a distance, over all directions and bands, and its standard error over images (NaN if there
        is one image only).
    down, across : array, shape (n,)
        The same down the columns and across the rows alone.
    level : float
    length, length_down, length_across : float
        The distance in pixels, between two whole ones, at which correlation first falls below the level; infinite
        where it does not within the distances.
    deltas : array, shape (m,), int
        0, 1, 2, ...: windows of (2Δ+1)^2 pixels.
    explained, explained_error : array, shape (m,)
        Share of the variance that the best linear prediction from such a window explains on images, or parts of the
        image, held out; and its standard error over the folds.
    gain : float
        The share that a larger window must add to be worth it.
    delta : int
        The smallest Δ to which no larger one adds `gain`, or more than the standard error of the difference.
    target : str
        What was predicted.
    """

    images: str
    distances: npt.NDArray[np.int64]
    correlation: Floats
    standard_error: Floats
    down: Floats
    across: Floats
    level: float
    length: float
    length_down: float
    length_across: float
    deltas: npt.NDArray[np.int64]
    explained: Floats
    explained_error: Floats
    gain: float
    delta: int
    target: str

    @property
    def sentence(self) -> str:
        """What the numbers say, in words."""
        if math.isinf(self.length):
            first = f"Correlation does not fall below {self.level:.2g} within {self.distances[-1]} pixels"
        else:
            first = f"Correlation falls below {self.level:.2g} at {self.length:.1f} pixels"
            if not math.isclose(self.length_down, self.length_across, rel_tol=0.15):
                first += f" ({self.length_down:.1f} down, {self.length_across:.1f} across)"
        best, here = float(self.explained.max()), float(self.explained[self.delta])
        side = 2 * self.delta + 1
        if best < self.gain:
            return f"{first}. No window says anything about {self.target}: there is nothing to be local about, Δ = 0."
        if self.delta == self.deltas[-1]:
            return (
                f"{first}. A window of {side} x {side} (Δ = {self.delta}), the largest tried, explains {percent(here)} "
                f"of {self.target}; a larger one may explain more."
            )
        return (
            f"{first}. A window of {side} x {side} (Δ = {self.delta}) explains {percent(here)} of {self.target}; "
            f"the larger ones up to Δ = {self.deltas[-1]} add {percent(max(best - here, 0))} at most."
        )

    def tables(self) -> list[Cells]:
        """Give two tables as text, by distance and by Δ: a header and rows each."""
        shown = [d for d in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if d < len(self.distances)]
        rows = [
            [
                str(d),
                f"{self.correlation[d]:.3f}",
                f"{self.down[d]:.3f}",
                f"{self.across[d]:.3f}",
                "" if math.isnan(self.standard_error[d]) else f"± {self.standard_error[d]:.3f}",
            ]
            for d in shown
        ]
        first = (("distance", "correlation", "down", "across", "error"), rows)
        windows = [
            [f"{d}", f"{2 * d + 1} x {2 * d + 1}", percent(value), f"± {percent(error)}"]
            for d, value, error in zip(self.deltas, self.explained, self.explained_error, strict=True)
        ]
        second = (("Δ", "window", f"explained of {self.target}", "error"), windows)
        return [first, second]

    def title(self) -> str:
        """Give one line that says what was looked at."""
        return self.images

    def __str__(self) -> str:
        return printed(self)

    def to_dict(self) -> dict[str, Any]:
        """Give everything in plain Python types; None where a number is not finite."""
        plain: dict[str, Any] = {"images": self.images, "target": self.target, "sentence": self.sentence}
        for name in ("level", "length", "length_down", "length_across", "gain", "delta"):
            plain[name] = _plain(getattr(self, name))
        for name in ("distances", "correlation", "standard_error", "down", "across"):
            plain[name] = [_plain(value) for value in getattr(self, name).tolist()]
        for name in ("deltas", "explained", "explained_error"):
            plain[name] = getattr(self, name).tolist()
        return plain

    def plot(self, path: str | Path | IO[bytes], *, file_format: str | None = None) -> None:
        """Draw correlation by distance, and what windows of every size explain; needs matplotlib."""
        from wherever.check.plots import draw as drawn

        drawn(path, [self], file_format)


def locality(
    images: npt.ArrayLike | Sequence[npt.ArrayLike],
    target: Any = None,
    *,
    level: float = 1 / math.e,
    distance: int | None = None,
    delta: int | None = None,
    gain: float = 0.01,
    samples: int = 20_000,
    folds: int = 5,
    seed: int = 0,
) -> Locality:
    """Measure how correlation falls with distance, and how large Δ should be.

    Parameters
    ----------
    images : array (N, H, W) or (N, H, W, C), one image (H, W), or a sequence of images (H, W) or (H, W, C)
        Sizes may differ. Of more than three bands the first three principal components are used, of more than 1,000
        images without a target 1,000.
    target : array (N, H, W) or (N, H, W, q), or a sequence of maps, optional
        What is to be predicted at every pixel: numbers, or classes (integers or booleans of at most 20 values). Without
        it a pixel is predicted from its neighbours.
    level : float
        Correlation below which pixels count as unrelated.
    distance : int, optional
        Largest distance in pixels; half of the smallest image if not given, at most 64.
    delta : int, optional
        Largest Δ to try; if not given 7, or what the smallest image allows.
    gain : float
        Share of the variance that a larger window must add to be worth it.
    samples : int
        Windows that are drawn, at random places.
    folds : int
        For cross-validation by images; fewer images are cut into blocks.
    seed : int

    Returns
    -------
    Locality

    Raises
    ------
    ValueError
        If images are too small for the distance or Δ, all are constant, or the target does not match them.

    Notes
    -----
    Correlations are sums of products over all pairs of pixels at an offset, divided by the number of pairs and by the
    variance, with the mean of each image subtracted; over all directions, rings one pixel wide. Subtracting means
    makes small images look a little less correlated than they are (by the variance of their means).
    Of noise blurred by a Gaussian of standard deviation s the correlation is exp(-d² / 4s²).

    Examples
    --------
    >>> import numpy as np
    >>> from wherever import check
    >>> noise = np.random.default_rng(0).standard_normal((20, 64, 64))
    >>> check.locality(noise).delta
    0
    >>> smooth = noise + 2 * np.roll(noise, 1, axis=2)
    >>> round(float(check.locality(smooth).across[1]), 1)      # 2 / (1 + 4)
    0.4
    """
    given = as_images(images, most=_MOST_IMAGES if target is None else None)
    smallest = min(given.smallest)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1")
    if smallest < 4:
        raise ValueError(f"images: the smallest has {smallest} pixels in a dimension; at least 4 are needed")
    farthest = min(smallest // 2, 64) if distance is None else integer("distance", distance, minimum=1)
    if farthest >= smallest:
        raise ValueError(f"distance is {farthest}; the smallest image has {smallest} pixels in a dimension")
    folds = integer("folds", folds, minimum=2)
    block = smallest if len(given) >= folds else smallest // math.ceil(math.sqrt(folds / len(given)))
    fits = (block - 1) // 2
    if delta is None:
        reach = min(7, max(1, (block - 1) // 4), int(math.sqrt(_MOST_FEATURES / given.components) - 1) // 2)
    else:
        reach = integer("delta", delta, minimum=1)
    if reach > fits or fits < 1:
        raise ValueError(
            f"delta is {reach}; the images allow {fits} at most (blocks of {block} pixels in {folds} folds)"
        )
    predicted = _targets(target, given)
    correlation, standard_error, down, across = _correlations(given, farthest)
    length, length_down, length_across = (_length(values, level) for values in (correlation, down, across))
    drawn = draw(given, predicted, reach, samples, folds, seed)
    explained = _explained(drawn, given.components, reach, folds, own=predicted is None)
    mean, error = explained.mean(axis=0), explained.std(axis=0, ddof=1) / math.sqrt(folds)
    return Locality(
        given.described(),
        np.arange(farthest + 1),
        correlation,
        standard_error,
        down,
        across,
        level,
        length,
        length_down,
        length_across,
        np.arange(reach + 1),
        mean,
        error,
        gain,
        _worthwhile(explained, gain),
        "a pixel" if predicted is None else "the target",
    )


def _targets(target: Any, given: Images) -> Any:
    """Check the target; labels of whole images say nothing of a place."""
    predicted = as_targets(target, given.arrays, [a.shape for a in given.arrays])
    if predicted is not None and predicted.labels is not None:
        raise ValueError("target has one value for each image; locality needs a map, a value at every pixel")
    return predicted


def _correlations(images: Images, farthest: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Correlate pixels by distance: over all directions, the error of that, down, across."""
    reach = np.arange(-farthest, farthest + 1)
    away = np.hypot(reach[:, None], reach).ravel()
    ring = np.round(away).astype(np.int64)
    use = ring <= farthest
    ring, beside = ring[use], (away - ring)[use]

    def moments(values: Floats, power: int) -> Floats:
        found: Floats = np.bincount(ring, values.ravel()[use] * beside**power, farthest + 1).astype(np.float64)
        return found

    sums: list[list[Floats]] = []
    counts: list[list[Floats]] = []
    for image in images:
        image = image - image.mean(axis=(0, 1))
        size = [fft.next_fast_len(n + farthest, real=True) for n in image.shape[:2]]
        spectrum = fft.rfft2(image, size, axes=(0, 1))
        products = fft.irfft2((np.abs(spectrum) ** 2).sum(axis=2), size)[np.ix_(reach, reach)]
        pairs = np.outer(*(n - np.abs(reach) for n in image.shape[:2])).astype(np.float64)
        for kept, values in ((sums, products), (counts, pairs)):
            kept.append(
                [moments(values, 0), moments(values, 1), values[farthest:, farthest], values[farthest, farthest:]]
            )
    total, often = np.array(sums), np.array(counts)
    variances = total[:, 0, 0] / often[:, 0, 0]
    variance = float(total[:, 0, 0].sum() / often[:, 0, 0].sum())
    if not variance > 0:
        raise ValueError("images: all are constant; there is nothing to correlate")
    # In a ring correlation is taken as a straight line of the distance, weighed by pairs, at the whole distance.
    pairs = often.sum(axis=0)
    squares = sum(moments(np.outer(*(n - np.abs(reach) for n in a.shape[:2])), 2) for a in images.arrays)
    spread = pairs[0] * squares - pairs[1] ** 2
    flat = spread <= 1e-9 * pairs[0] ** 2
    first = np.where(flat, 1 / pairs[0], squares / np.where(flat, 1, spread))
    second = np.where(flat, 0, -pairs[1] / np.where(flat, 1, spread))
    line = total[:, 0] * first + total[:, 1] * second
    found = line.sum(axis=0) / variance
    # The error of a ratio of sums over images (linearised).
    left = line - found * (often[:, 0] * first + often[:, 1] * second) * variances[:, None]
    n = len(left)
    error = np.sqrt((left**2).sum(axis=0) * n / (n - 1)) / variance if n > 1 else np.full(farthest + 1, np.nan)
    down, across = (total[:, axis].sum(axis=0) / pairs[axis] / variance for axis in (2, 3))
    return found, error, down, across


def _length(correlation: Floats, level: float) -> float:
    """Find the distance at which correlation first falls below a level, between two whole ones."""
    below = np.flatnonzero(correlation < level)
    if not len(below):
        return math.inf
    d = int(below[0])
    return d - 1 + float((correlation[d - 1] - level) / (correlation[d - 1] - correlation[d]))


def _explained(samples: Any, components: int, delta: int, folds: int, *, own: bool) -> Floats:
    """Share of the held-out variance that windows of every Δ explain: array (folds, Δ+1)."""
    X = np.hstack([np.ones((len(samples.X), 1)), samples.X])
    sums = [Sums.of(X[samples.fold == fold], samples.y[samples.fold == fold]) for fold in range(folds)]
    if any(part.n == 0 for part in sums):
        raise ValueError(f"folds is {folds}; the images are too small or too few for so many")
    total = sum(sums[1:], sums[0])
    constant = np.array([0])
    base = [part.part(constant).error((total - part).part(constant).fit(1, _STRENGTHS)[0]) for part in sums]
    if min(base) <= 0:
        raise ValueError("images: what is to be predicted does not vary in one of the folds; use fewer folds")
    found = np.zeros((folds, delta + 1))
    for reach in range(delta + 1):
        features = np.arange(1 + components if own else 1, 1 + (2 * reach + 1) ** 2 * components)
        features = np.concatenate([constant, features])
        for fold, part in enumerate(sums):
            weights = (total - part).part(features).fit(1, _STRENGTHS)[0]
            found[fold, reach] = 1 - part.part(features).error(weights) / base[fold]
    return found


def _worthwhile(explained: Floats, gain: float) -> int:
    """Find the smallest Δ to which no larger one adds more than `gain` and than the standard error of what it adds."""
    folds, count = explained.shape
    for reach in range(count):
        added = explained[:, reach + 1 :] - explained[:, reach : reach + 1]
        error = added.std(axis=0, ddof=1) / math.sqrt(folds)
        if (added.mean(axis=0) <= np.maximum(gain, error)).all():
            return reach
    return int(count - 1)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
