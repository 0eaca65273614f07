"""The kernel from the examples: in closed form, then refitted against the background it confuses with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from wherever.find.boxes import Boxes, centres, clip, inside, overlaps, sizes
from wherever.find.features import Eye, Floats, Picture
from wherever.find.sweep import LEVELS_PER_OCTAVE, Kernel, MapsOfLevel, Scorer, Template, candidates, scale_of

NORMAL_MAD = 1.4826  # standard deviation of a normal distribution, in units of its median absolute deviation
BACKGROUND_WINDOWS = 2500  # drawn from all pictures and levels together
WINDOWS_A_MAP = 100  # at least so many from each level of a picture that is looked at: maps cost more than windows
NOT_AN_EXAMPLE = 0.3  # windows whose box overlaps an example less than this (IoU) are background
ELONGATED = 1.5  # from this ratio of width and height on, the window is not square, and quarter turns are no examples
LEVEL_PENALTY = 0.3  # for each level away from the examples' size, in units of the scores, at the usual spread of sizes
USUAL_SPREAD, USUAL_SPREAD_WEIGHT = 0.75, 5  # standard deviation of sizes in levels; counts as much as so many examples
PATTERNLESS = 3  # cells; things no larger than that are known by their absolute colour, too
RIDGE = 5.0  # added to the covariance, in units of the mean variance
LOGISTIC_RIDGE = 0.1  # of the refit, in units of the mean squared feature
MINING_ROUNDS = 3
MINED_WINDOWS = 600  # a round, from all pictures together
PEAKS_A_LEVEL = 200  # of each picture they are chosen from
NEGATIVES_SHARE = 0.06  # weight of all that is marked as not the thing, relative to the rest of the background


@dataclass
class Scene:
    """A picture to learn from, what is marked in it, and its feature maps as far as they were needed.

    Boxes are examples, negatives are not the thing, and ignored regions are not looked at.
    """

    picture: Picture
    boxes: Boxes
    negatives: Boxes
    maps: dict[int, Floats] = field(default_factory=dict)
    ignored: Boxes = field(default_factory=lambda: np.zeros((0, 4)))

    def maps_at(self, level: int, eye: Eye, template: Template) -> Floats:
        """Return the feature maps at a level, computed once."""
        if level not in self.maps:
            self.maps[level] = self.picture.features(eye, template.cell * scale_of(level))
        return self.maps[level]

    def maps_of(self, scorer: Scorer) -> MapsOfLevel:
        """Return the function from levels to feature maps."""
        return lambda level: self.maps_at(level, scorer.eye, scorer.template)

    def halves(self) -> list[Scene]:
        """Return the two halves of the scene, cut across its longer side where both keep half of the boxes.

        Boxes that are cut are dropped.
        """
        wide = self.picture.width >= self.picture.height
        axis = 0 if wide else 1
        cut = round(float(np.median(centres(self.boxes)[:, axis])))
        length = (self.picture.width, self.picture.height)[axis]
        parts = []
        for low, high in ((0, cut), (cut, length)):
            shift = np.array([low, 0, low, 0] if wide else [0, low, 0, low], np.float64)
            marked = (self.boxes, self.negatives)
            kept = [b[(b[:, axis] >= low) & (b[:, axis + 2] <= high)] - shift for b in marked]
            picture = (
                self.picture.part(slice(0, None), slice(low, high)) if wide else self.picture.part(slice(low, high))
            )
            parts.append(Scene(picture, kept[0], kept[1], ignored=self.ignored - shift))
        return parts


def layout(
    examples: Boxes, cells: int, scales: tuple[float, float] | None, turning: bool
) -> tuple[Template, float, float, tuple[int, ...], tuple[float, ...]]:
    """Return template, sigma of the contrast windows in cells, weight of tone, levels and their penalties.

    The mean example is `cells` cells large (geometric mean of width and height), unless cells would be smaller than a
    pixel, with a quarter of that on each side as context. Things of so few cells that there is no pattern to know them
    by are known by their absolute colour (tone). The range of levels and how strongly they are held to the
    examples' size follow from the spread of the examples' sizes.
    """
    size = sizes(examples)
    middle = float(np.exp(np.median(np.log(size))))
    across = int(np.clip(round(middle), 1, cells))
    shape = np.median((examples[:, 2:] - examples[:, :2]) / size[:, None], axis=0)
    width, height = shape * middle
    context = 2 * round(across / 4)
    columns, rows = (max(1, round(side * across)) + context for side in shape)
    if turning or max(shape) < ELONGATED * min(shape):
        rows = columns = max(rows, columns) if turning else across + context
    template = Template(middle / across, rows, columns, float(width), float(height))
    deviation = float(np.median(np.abs(LEVELS_PER_OCTAVE * np.log2(size / middle)))) * NORMAL_MAD
    more = len(size) - 1
    spread = math.sqrt((USUAL_SPREAD_WEIGHT * USUAL_SPREAD**2 + more * deviation**2) / (USUAL_SPREAD_WEIGHT + more))
    reach = max(2, round(1.5 * spread))
    first, last = float(-reach), float(reach)
    if scales is not None:
        first, last = (LEVELS_PER_OCTAVE * math.log2(scale) for scale in scales)
    levels = tuple(range(math.ceil(first - 1e-6), math.floor(last + 1e-6) + 1)) or (round((first + last) / 2),)
    penalty = LEVEL_PENALTY * USUAL_SPREAD / spread
    tone = 1.0 if across <= PATTERNLESS else 0.0
    return template, max(across / 3, 1.0), tone, levels, tuple(penalty * abs(level) for level in levels)


def whole(boxes: Sequence[Boxes], shapes: Sequence[tuple[int, int]]) -> list[Boxes]:
    """Return the boxes of each image (height, width) that do not touch its border, where things are cut off.

    If all boxes of all images do, return all.
    """
    kept = []
    for each, (height, width) in zip(boxes, shapes, strict=True):
        margin = np.minimum(3.0, 0.1 * sizes(each))[:, None]
        inside = (each[:, :2] >= margin).all(axis=1) & (each[:, 2:] <= [width, height] - margin).all(axis=1)
        kept.append(each[inside])
    return kept if any(len(k) for k in kept) else list(boxes)


def example_windows(scene: Scene, boxes: Boxes, eye: Eye, template: Template, angles: Sequence[float]) -> Floats:
    """Return the windows of boxes, each at its own size, as if turned back by each angle: (n, angles, features)."""
    middle = np.sqrt(template.width * template.height)
    windows = [
        [
            scene.picture.window(eye, x, y, template.cell * size / middle, template.rows, template.columns, angle)
            for angle in angles
        ]
        for (x, y), size in zip(centres(boxes), sizes(boxes), strict=True)
    ]
    return np.array(windows, np.float32).reshape(len(boxes), len(angles), eye.maps * template.rows * template.columns)


def reflections(windows: Floats, shape: tuple[int, int, int]) -> Floats:
    """Return windows (n, features) with their mirror images and, of square ones, quarter turns: (4 n or 8 n, ...)."""
    x = windows.reshape(-1, *shape)
    x = np.concatenate([x, x[..., ::-1]])
    x = np.concatenate([x, x[..., ::-1, :]])
    if shape[1] == shape[2]:
        x = np.concatenate([x, x.swapaxes(-1, -2)])
    return x.reshape(len(x), windows.shape[1])


def align(windows: Floats) -> NDArray[np.intp]:
    """Return which of its angles turns each example (n, angles, features) to agree best with the others, (n,).

    Starts from the first example as it stands, and alternates between the mean of the turned examples and the best
    angle of each.
    """
    choice = np.zeros(len(windows), np.intp)
    mean = windows[0, 0]
    for _ in range(5):
        choice = np.argmax(windows @ mean, axis=1)
        choice[0] = 0
        mean = windows[np.arange(len(windows)), choice].mean(axis=0)
    return choice


def windows_at(maps: Floats, template: Template, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
    """Return the windows (n, features) at these places of padded feature maps, as the kernel sees them."""
    up, left = template.padding
    padded = np.pad(maps, ((0, 0), (up, up), (left, left)))
    every = sliding_window_view(padded, (template.rows, template.columns), axis=(1, 2))
    result: Floats = (
        every[:, rows, columns].swapaxes(0, 1).reshape(len(rows), len(maps) * template.rows * template.columns)
    )
    return result


def background_windows(
    scene: Scene, eye: Eye, template: Template, levels: Sequence[int], count: int, random: np.random.Generator
) -> Floats:
    """Return about `count` windows from all over the picture, off the examples, of all levels or (if few) of some."""
    looked_at = min(len(levels), -(-count // WINDOWS_A_MAP))
    each = max(1, count // looked_at)
    found = []
    for level in np.sort(random.choice(levels, looked_at, replace=False)).tolist():
        maps = scene.maps_at(level, eye, template)
        rows, columns = np.divmod(random.integers(0, maps[0].size, size=2 * each), maps.shape[2])
        boxes = template.boxes(template.centre(rows, columns, level), scale_of(level), np.zeros(len(rows)))
        boxes = clip(boxes, scene.picture.width, scene.picture.height)
        keep = np.flatnonzero(apart(boxes, scene.boxes) & ~inside(boxes, scene.ignored))[:each]
        found.append(windows_at(maps, template, rows[keep], columns[keep]))
    return np.concatenate(found)


def apart(boxes: Boxes, marked: Boxes) -> NDArray[np.bool_]:
    """Return which boxes overlap no marked one enough to be taken for it, (n,)."""
    if len(marked) == 0:
        return np.ones(len(boxes), bool)
    return np.asarray(overlaps(boxes, marked).max(axis=1) < NOT_AN_EXAMPLE)


def closed_form(examples: Floats, background: Floats, emphasis: NDArray[np.float64]) -> tuple[Floats, float]:
    """Return weights and bias of the regularised linear discriminant between windows (n, features).

    w = (S_background + S_examples + RIDGE * mean variance * I)^-1 (mu_examples - mu_background), Fisher's discriminant,
    scaled so that the examples' mean is sqrt(w . (mu_examples - mu_background)) and the background's mean is 0: scores
    are in units of the (regularised) standard deviation of the background, whose windows count by `emphasis`.
    """
    share = (emphasis / emphasis.sum()).astype(np.float32)
    mean = share @ background
    spread, own = (background - mean) * np.sqrt(share)[:, None], examples - examples.mean(axis=0)
    covariance = spread.T @ spread + own.T @ own / len(own)
    variance = max(float(np.trace(covariance)) / len(covariance), 1e-6)
    covariance[np.diag_indices_from(covariance)] += RIDGE * variance
    difference = examples.mean(axis=0) - mean
    weights = scipy.linalg.solve(covariance, difference, assume_a="pos")
    weights /= np.sqrt(max(float(weights @ difference), 1e-12))
    return weights.astype(np.float32), -float(weights @ mean)


def logistic(examples: Floats, background: Floats, emphasis: NDArray[np.float64]) -> tuple[Floats, float]:
    """Return weights and bias of an L2-regularised logistic regression between windows (n, features), by L-BFGS.

    Examples and background weigh the same in sum; `emphasis` (len(background),) weighs the background's windows.
    """
    mean = background.mean(axis=0)
    x = np.concatenate([examples, background]) - mean
    sign = np.where(np.arange(len(x)) < len(examples), 1.0, -1.0).astype(np.float32)
    weight = np.concatenate([np.full(len(examples), 0.5 / len(examples)), 0.5 * emphasis / emphasis.sum()])
    weight = weight.astype(np.float32)
    ridge = LOGISTIC_RIDGE * float(np.mean(np.square(x)))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w, bias = parameters[:-1].astype(np.float32), np.float32(parameters[-1])
        margin = sign * (x @ w + bias)
        slope = -weight * sign / (1 + np.exp(np.minimum(margin, 80)))
        value = float(weight @ np.logaddexp(np.float32(0), -margin)) + 0.5 * ridge * float(w @ w)
        return value, np.append(slope @ x + ridge * w, slope.sum()).astype(np.float64)

    begin = np.zeros(x.shape[1] + 1)
    best = scipy.optimize.minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 60}).x
    return best[:-1].astype(np.float32), float(best[-1] - best[:-1] @ mean)


def mined(scene: Scene, kernel: Kernel, most: int) -> Floats:
    """Return the windows, turned back upright, of the best candidates that are none of the boxes, (n, features)."""
    found = candidates(kernel, scene.picture, scene.maps_of(kernel), most=PEAKS_A_LEVEL)
    found = found[apart(found.boxes, scene.boxes) & ~inside(found.boxes, scene.ignored)]
    found = found[np.argsort(-found.scores)[:most]]
    template = kernel.template
    windows = np.empty((len(found), kernel.weights.size), np.float32)
    for level in np.unique(found.levels):
        here = np.flatnonzero((found.levels == level) & (found.angles == 0))
        maps = scene.maps_at(int(level), kernel.eye, template)
        windows[here] = windows_at(maps, template, found.rows[here], found.columns[here])
    for index in np.flatnonzero(found.angles != 0):
        level = int(found.levels[index])
        x, y = template.centre(found.rows[index], found.columns[index], level)
        windows[index] = scene.picture.window(
            kernel.eye, x, y, template.cell * scale_of(level), template.rows, template.columns, found.angles[index]
        ).ravel()
    return windows


@dataclass(frozen=True)
class Samples:
    """Everything a kernel was fitted to, so that it can be fitted again with some left out.

    Attributes
    ----------
    examples
        (n, features), upright.
    background
        (m, features), random and mined windows and what was marked as not the thing.
    emphasis
        (m,), how much each window of the background counts.
    example_scene, background_scene
        The index of the scene each comes from.
    drawn
        How many windows of the background, the first, were drawn at random.
    """

    examples: Floats
    background: Floats
    emphasis: NDArray[np.float64]
    example_scene: NDArray[np.intp]
    background_scene: NDArray[np.intp]
    drawn: int


def fit_kernel(
    scenes: Sequence[Scene], kernel: Kernel, *, reflect: bool, complete: bool, random: np.random.Generator
) -> tuple[Kernel, Samples]:
    """Fit the weights and bias of a kernel to scenes.

    Parameters
    ----------
    scenes
        Pictures with their examples and what is marked as not the thing.
    kernel
        Says everything but the weights and the bias.
    reflect
        Whether mirror images and quarter turns of the examples are examples.
    complete
        Whether every occurrence is marked, so that what is found elsewhere is wrong: such finds are mined and the
        kernel refitted to them, MINING_ROUNDS times.
    random
        Draws the background.
    """
    eye, template = kernel.eye, kernel.template
    shape = (eye.maps, template.rows, template.columns)
    usable = whole([s.boxes for s in scenes], [(s.picture.height, s.picture.width) for s in scenes])
    square = template.rows == template.columns
    angles = kernel.angles if not reflect else (0.0, 45.0) if square else (0.0,)
    turned = [example_windows(s, b, eye, template, angles) for s, b in zip(scenes, usable, strict=True)]
    every = np.concatenate(turned)
    example_scene = np.repeat(np.arange(len(scenes)), [len(t) for t in turned])
    if reflect:
        examples = reflections(every.reshape(-1, every.shape[2]), shape)
        example_scene = np.tile(np.repeat(example_scene, len(angles)), len(examples) // (len(every) * len(angles)))
    else:
        examples = every[np.arange(len(every)), align(every)]

    each = max(1, BACKGROUND_WINDOWS // len(scenes))
    parts = [background_windows(s, eye, template, kernel.levels, each, random) for s in scenes]
    if not any(len(part) for part in parts):
        raise ValueError(
            "the boxes leave nothing of the images to tell them from; mark a thing that is smaller than its image, or "
            "add an image without it"
        )
    background, background_scene = np.concatenate(parts), np.repeat(np.arange(len(scenes)), [len(p) for p in parts])
    samples = Samples(examples, background, np.ones(len(background)), example_scene, background_scene, len(background))
    refused = [example_windows(s, s.negatives, eye, template, angles) for s in scenes]
    if any(len(r) for r in refused):
        flat = [r.reshape(-1, examples.shape[1]) for r in refused]
        samples = more(samples, [reflections(f, shape) if reflect else f for f in flat], NEGATIVES_SHARE)
    weights, bias = closed_form(examples, samples.background, samples.emphasis)
    kernel = replace(kernel, weights=weights.reshape(shape), bias=bias)
    if complete:
        kernel = refit(kernel, samples, np.ones(len(scenes), bool))
        most = max(20, MINED_WINDOWS // len(scenes))
        for _ in range(MINING_ROUNDS):
            samples = more(samples, [mined(scene, kernel, most) for scene in scenes], None)
            kernel = refit(kernel, samples, np.ones(len(scenes), bool))
    return kernel, samples


def more(samples: Samples, windows: Sequence[Floats], share: float | None) -> Samples:
    """Return samples with more background, one array of windows a scene; all of them count `share` of the rest."""
    added = np.concatenate(windows)
    each = 1.0 if share is None else share * samples.emphasis.sum() / max(len(added), 1)
    return replace(
        samples,
        background=np.concatenate([samples.background, added]),
        emphasis=np.concatenate([samples.emphasis, np.full(len(added), each)]),
        background_scene=np.concatenate(
            [samples.background_scene, np.repeat(np.arange(len(windows)), [len(w) for w in windows])]
        ),
    )


def refit(kernel: Kernel, samples: Samples, used: NDArray[np.bool_]) -> Kernel:
    """Return the kernel refitted by logistic regression to the samples of the scenes that are `used`, (scenes,).

    Its scores are scaled so that the examples stand as far above the background as the closed form puts them, which
    keeps the penalties of the levels in proportion.
    """
    mine, theirs = used[samples.example_scene], used[samples.background_scene]
    examples, background = samples.examples[mine], samples.background[theirs]
    weights, bias = logistic(examples, background, samples.emphasis[theirs])
    ordinary = samples.background[: samples.drawn][theirs[: samples.drawn]]
    rise = float((examples.mean(axis=0) - ordinary.mean(axis=0)) @ weights)
    linear, _ = closed_form(examples, ordinary, np.ones(len(ordinary)))
    scale = float((examples.mean(axis=0) - ordinary.mean(axis=0)) @ linear) / max(rise, 1e-12)
    return replace(kernel, weights=(weights * scale).reshape(kernel.weights.shape), bias=bias * scale)
