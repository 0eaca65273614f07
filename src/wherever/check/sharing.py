"""One kernel for all places, coordinates, or kernels of their own: fits compared by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from wherever.check.inputs import Floats, Images, as_images
from wherever.check.pooled import Pooled, dealt, held_out
from wherever.check.regression import STRENGTHS, Samples, Sums, Targets, as_targets, draw
from wherever.check.words import Cells, percent, printed
from wherever.problem import integer

_MOST_IMAGES = 1000
_LEVEL = 0.05
_SAMPLES_A_REGION = 1000  # at the least, and five for each feature of a window
_MOST_NUMBERS = 30_000_000  # in all windows together


@dataclass(frozen=True)
class Fit:
    """One way to treat places, and how good it is on what was held out.

    Attributes
    ----------
    name : str
        "one kernel", "coordinates" or "g x g regions".
    kernels : int
        How many different kernels there are.
    parameters : int
    score : float
        Share of the variance explained, or of images told right, held out.
    difference, error : float
        Score above that of one kernel, and the standard error of this difference (over folds, or over images).
    """

    name: str
    kernels: int
    parameters: int
    score: float
    difference: float
    error: float


@dataclass(frozen=True)
class Sharing:
    """Whether one kernel for all places is what the data support; print it.

    Attributes
    ----------
    images, target : str
        What was looked at, and what was predicted.
    delta : int
        Windows have (2Δ+1)^2 pixels.
    measure : {"explained", "accuracy"}
        What scores are: shares of the variance, or of images whose class was told right.
    chance : float
        The score without looking: 0, or the share of the largest class.
    fits : tuple of Fit
        From the fewest assumptions broken to the most: one kernel, coordinates, regions.
    informed : bool
        Whether the best fit is better than that, by more than chance.
    supported : Fit
        The first fit that is not worse than the best one by more than chance.
    """

    images: str
    target: str
    delta: int
    measure: Literal["explained", "accuracy"]
    chance: float
    informed: bool
    fits: tuple[Fit, ...]
    supported: Fit

    def __getitem__(self, name: str) -> Fit:
        for item in self.fits:
            if item.name == name:
                return item
        raise KeyError(f"{name!r}: there is {', '.join(item.name for item in self.fits)}")

    @property
    def shared(self) -> bool:
        """Whether one kernel for all places is supported."""
        return self.supported is self.fits[0]

    @property
    def sentence(self) -> str:
        """What the comparison says, in words."""
        one, best = self.fits[0], self.supported
        verb = "tells" if self.measure == "accuracy" else "explains"
        what = "of the images right" if self.measure == "accuracy" else f"of {self.target}"
        if not self.informed:
            return "No fit is better than chance: the data say nothing about sharing."
        if self.shared:
            other = max(self.fits[1:], key=lambda fit: fit.score)
            return (
                f"The data support one kernel for all places: held out it {verb} {percent(one.score)} {what}, "
                f"the best of the others ({other.name}) {percent(other.score)}."
            )
        gained = f"{percent(best.score)} {what} against {percent(one.score)} with one kernel"
        error = f"a difference of {percent(best.difference)} ± {percent(best.error)}"
        if best.name == "coordinates":
            return f"The data support a shared kernel that knows where it is: held out {gained}, {error}."
        return f"The data support kernels of their own in {best.name}: held out {gained}, {error}."

    def tables(self) -> list[Cells]:
        """Give the table as text: a header, and a row for each fit; the supported one has a star."""
        rows = [
            [
                fit.name + (" *" if fit is self.supported else ""),
                f"{fit.kernels:,}",
                f"{fit.parameters:,}",
                percent(fit.score),
                "" if fit is self.fits[0] else f"{'+' if fit.difference >= 0 else ''}{percent(fit.difference)}",
                "" if fit is self.fits[0] else f"± {percent(fit.error)}",
            ]
            for fit in self.fits
        ]
        what = "images told right" if self.measure == "accuracy" else f"explained of {self.target}"
        return [(("fit", "kernels", "parameters", f"{what}, held out", "against one kernel", "error"), rows)]

    def title(self) -> str:
        """Give one line that says what was looked at."""
        return f"{self.images}, windows of {2 * self.delta + 1} x {2 * self.delta + 1}"

    def __str__(self) -> str:
        return printed(self)

    def to_dict(self) -> dict[str, Any]:
        """Give everything in plain Python types."""
        return {
            "images": self.images,
            "target": self.target,
            "delta": self.delta,
            "measure": self.measure,
            "chance": self.chance,
            "informed": self.informed,
            "fits": [dict(vars(fit)) for fit in self.fits],
            "supported": self.supported.name,
            "shared": self.shared,
            "sentence": self.sentence,
        }

    def plot(self, path: str | Path | IO[bytes], *, file_format: str | None = None) -> None:
        """Draw the scores of all fits; needs matplotlib."""
        from wherever.check.plots import draw as drawn

        drawn(path, [self], file_format)


def sharing(
    images: npt.ArrayLike | Sequence[npt.ArrayLike],
    target: Any = None,
    *,
    delta: int = 2,
    regions: Sequence[int] | None = None,
    samples: int | None = None,
    folds: int = 10,
    negligible: float = 0.001,
    seed: int = 0,
) -> Sharing:
    """Compare one kernel for all places with coordinates, and with kernels of their own, by cross-validation.

    Parameters
    ----------
    images : array (N, H, W) or (N, H, W, C), one image (H, W), or a sequence of images (H, W) or (H, W, C)
        Sizes may differ; then places are relative to an image's size. Of more than three bands the first three
        principal components are used, of more than 1,000 images without a target 1,000.
    target : optional
        What is to be predicted. One value for each image: numbers, or classes (texts, integers or booleans, at most 20
        different ones). Or a map for each image, of its size: numbers (H, W) or (H, W, q), or classes (H, W). Without
        it a pixel is predicted from its neighbours.
    delta : int
        Windows have (2Δ+1)^2 pixels.
    regions : sequence of int, optional
        Numbers g: the image is divided into g x g regions with kernels of their own. All must divide the largest. If
        not given: those of 2, 4 and 8 that the images are large enough for.
    samples : int, optional
        Windows that are drawn at random where pixels are predicted; if not given as many as the regions need.
    folds : int
        For cross-validation by images; where pixels are predicted, fewer images are cut into blocks.
    negligible : float
        Difference of scores that is not worth another kernel.
    seed : int

    Returns
    -------
    Sharing

    Raises
    ------
    ValueError
        If images are too small for Δ or the regions, or the target does not match them.

    Notes
    -----
    Every fit is a ridge regression in closed form, whose strength is chosen by the held-out error. Of pixels: the
    values of a window times weights; *coordinates* adds a polynomial of second degree in the place (after Liu et al.
    2018, who give a convolution its coordinates), *regions* give each region weights of its own (a locally connected
    layer, coarsely). Of images: windows are compared with 48 whitened patches, as Coates and Ng (2011) do, both
    signs rectified; what they say is summed over all places with equal weights, with weights that are such a
    polynomial, or with weights of their own in each region.

    More regions fit whatever fewer do, but from fewer examples each. What is supported is the simplest fit that is not
    worse than the best one by more than chance (Student's t of the differences, at a level of 5 % for all fits
    together), or by a negligible difference: an answer about these images, as many as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from wherever import check
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((40, 32, 32))
    >>> everywhere = np.roll(x, 1, axis=2) - x
    >>> check.sharing(x, everywhere, delta=1).shared
    True
    >>> halves = np.where(np.arange(32) < 16, x, -x)
    >>> check.sharing(x, halves, delta=1).supported.name
    '2 x 2 regions'
    """
    given = as_images(images, most=None if target is not None else _MOST_IMAGES)
    predicted = as_targets(target, given.arrays, [a.shape for a in given.arrays])
    delta, folds = integer("delta", delta, minimum=0), integer("folds", folds, minimum=2)
    if delta == 0 and predicted is None:
        raise ValueError("delta is 0; a pixel is predicted from its neighbours, so that at least 1 is needed")
    # Where images are cut into blocks for the folds, a region needs several: two down and two across.
    blocks = predicted is None or predicted.labels is None
    blocks = blocks and len(given) < folds
    smallest = min(given.smallest)
    largest = smallest // (2 * (2 * delta + 2)) if blocks else smallest - 2 * delta
    grids = [g for g in (2, 4, 8) if g <= largest] if regions is None else sorted(set(regions))
    if any(grids[-1] % integer("regions", g, minimum=2) for g in grids):
        raise ValueError(f"regions is {tuple(regions or ())}; every number must divide the largest one")
    if not grids or grids[-1] > largest:
        raise ValueError(
            f"regions: {len(given)} image{'s' if len(given) > 1 else ''} of {smallest} pixels can be divided into "
            f"{max(largest, 0)} x {max(largest, 0)} regions at most, with Δ = {delta}"
        )
    if predicted is not None and predicted.labels is not None:
        return _of_images(given, predicted, delta, grids, folds, negligible, seed)
    features = (2 * delta + 1) ** 2 * given.components
    if samples is None:
        samples = min(grids[-1] ** 2 * max(_SAMPLES_A_REGION, 5 * features), _MOST_NUMBERS // features)
    samples = integer("samples", samples, minimum=1)
    drawn = draw(given, predicted, delta, samples, folds, seed, cuts=2 * grids[-1] if blocks else 1)
    return _of_pixels(given, predicted, drawn, delta, grids, folds, negligible)


# ------------------------------------------------------------------------------------------------ values at every pixel


def _of_pixels(
    images: Images,
    target: Targets | None,
    drawn: Samples,
    delta: int,
    grids: Sequence[int],
    folds: int,
    negligible: float,
) -> Sharing:
    X = drawn.X if target is not None else drawn.X[:, images.components :]
    y, x = drawn.where.T
    place = np.stack([np.ones_like(y), y, x, y * y, y * x, x * x], axis=1)
    finest = grids[-1]
    row, column = np.minimum(((drawn.where + 1) / 2 * finest).astype(np.int64), finest - 1).T
    features = np.hstack([place, X])
    cells = [
        {
            (int(r), int(c)): Sums.of(features[here], drawn.y[here])
            for r, c in np.ndindex(finest, finest)
            if (here := (drawn.fold == fold) & (row == r) & (column == c)).any()
        }
        for fold in range(folds)
    ]
    if not all(cells):
        raise ValueError(f"folds is {folds}; the images are too small or too few for so many")
    plain = np.r_[0, place.shape[1] : features.shape[1]]
    whole = _grouped(cells, finest, 1)
    base = _errors([{at: part.part(np.array([0])) for at, part in fold.items()} for fold in whole], 1)[:, 0]
    if base.min() <= 0:
        raise ValueError("images: what is to be predicted does not vary in one of the folds; use fewer folds")
    size, q = len(plain), drawn.y.shape[1]
    ways = [("one kernel", 1, size * q, _errors(_parts(whole, plain), 1))]
    ways.append(("coordinates", 1, features.shape[1] * q, _errors(whole, place.shape[1])))
    for g in grids:
        errors = _errors(_parts(_grouped(cells, finest, g), plain), 1)
        ways.append((f"{g} x {g} regions", g * g, g * g * size * q, errors))
    # One strength for each way, that with the least error on what was held out.
    losses = [errors[:, int(errors.sum(axis=0).argmin())] / base.mean() for *_, errors in ways]
    fits = [
        Fit(
            name,
            kernels,
            parameters,
            1 - float(loss.mean()),
            float((losses[0] - loss).mean()),
            _standard_error(losses[0] - loss),
        )
        for (name, kernels, parameters, _), loss in zip(ways, losses, strict=True)
    ]
    informed, chosen = _simplest([1 - loss for loss in losses], 0.0, negligible)
    words = "a pixel" if target is None else "the target"
    return Sharing(images.described(), words, delta, "explained", 0.0, informed, tuple(fits), fits[chosen])


Regions = list[dict[tuple[int, int], Sums]]


def _grouped(cells: Regions, finest: int, g: int) -> Regions:
    """Join cells of the finest grid into g x g regions."""
    grouped: Regions = []
    for fold in cells:
        regions: dict[tuple[int, int], Sums] = {}
        for (row, column), part in fold.items():
            at = row * g // finest, column * g // finest
            regions[at] = regions[at] + part if at in regions else part
        grouped.append(regions)
    return grouped


def _parts(cells: Regions, features: npt.NDArray[np.int64]) -> Regions:
    return [{at: part.part(features) for at, part in fold.items()} for fold in cells]


def _errors(cells: Regions, free: int) -> Floats:
    """Sum the squared held-out errors for every fold and strength of the ridge: array (folds, strengths)."""
    errors = np.zeros((len(cells), len(STRENGTHS)))
    for at in sorted({at for fold in cells for at in fold}):
        there = [fold[at] for fold in cells if at in fold]
        total = sum(there[1:], there[0])
        for number, fold in enumerate(cells):
            if at in fold:
                fitted = (total - fold[at]).fit(free)
                errors[number] += [fold[at].error(weights) for weights in fitted]
    return errors


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _simplest(scores: Sequence[Floats], chance: float, negligible: float) -> tuple[bool, int]:
    """Find the first way, each with its scores in the same order, that is not worse than the best beyond chance.

    And say whether the best is better than chance at all; if not, the first way does as well as any.
    """
    best = max(scores, key=lambda values: float(values.mean()))
    # Student's t, one-sided; the best is one of several that might have been the best by chance.
    sure = -float(stdtrit(len(best) - 1, _LEVEL / (len(scores) - 1)))
    if float(best.mean()) <= chance + sure * _standard_error(best):
        return False, 0
    worse = [best - values for values in scores]
    return True, next(
        number
        for number, values in enumerate(worse)
        if float(values.mean()) <= max(sure * _standard_error(values), negligible)
    )


# ----------------------------------------------------------------------------------------------- values of whole images


def _of_images(
    images: Images, target: Targets, delta: int, grids: Sequence[int], folds: int, negligible: float, seed: int
) -> Sharing:
    y = target.labels
    if y is None:
        raise ValueError("target has no value for each image")
    if len(images) < 2 * folds:
        raise ValueError(f"images: {len(images)} with a value each; {folds} folds need at least {2 * folds}")
    pooled = Pooled.of(images, delta, grids[-1], seed)
    ways = [("one kernel", 1, pooled.whole()), ("coordinates", 1, pooled.moments())]
    ways += [(f"{g} x {g} regions", g * g, pooled.regions(g)) for g in grids]
    fold = dealt(y, folds, seed)
    right = []
    for _, _, features in ways:
        guessed = held_out(features, y, fold)
        if target.classes is None:
            right.append(1 - ((guessed - y) ** 2).sum(axis=1) / ((y - y.mean(axis=0)) ** 2).sum(axis=1).mean())
        else:
            right.append((guessed.argmax(axis=1) == y.argmax(axis=1)).astype(np.float64))
    fits = [
        Fit(
            name,
            kernels,
            (features.shape[1] + 1) * y.shape[1],
            float(scores.mean()),
            float((scores - right[0]).mean()),
            _standard_error(scores - right[0]),
        )
        for (name, kernels, features), scores in zip(ways, right, strict=True)
    ]
    measure: Literal["explained", "accuracy"] = "explained" if target.classes is None else "accuracy"
    chance = 0.0 if target.classes is None else float(y.mean(axis=0).max())
    informed, chosen = _simplest(right, chance, negligible)
    return Sharing(images.described(), "the target", delta, measure, chance, informed, tuple(fits), fits[chosen])
