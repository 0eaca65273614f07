"""From marked pictures to all that a detector knows: by the closed form, or by training a network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wherever.find.boxes import Boxes, sizes
from wherever.find.calibration import Calibration, from_examples, from_folds, from_held_out
from wherever.find.features import Eye, Floats, Picture, learn_mix
from wherever.find.network import Network
from wherever.find.storage import Learnt
from wherever.find.sweep import LEVELS_PER_OCTAVE, Kernel, Scorer, Template, scale_of
from wherever.find.training import USUAL_SPREAD, USUAL_SPREAD_WEIGHT, Scene, fit_kernel, layout, whole

if TYPE_CHECKING:
    from wherever.find.learning import Report

Clock = Callable[[], float]

ROTATIONS = 16
MOST_LEVELS = 10  # of a network, either way
HEAD_OCTAVES, HEAD_SHIFT = 0.15, 0.6  # how much sizes and places (in cells) vary for a head
ACROSS, FIELD, STRIDE = 18, 37, 4  # cells of a network: across the mean example, along its window, between windows


@dataclass(frozen=True)
class Task:
    """What there is to learn from, checked, and how.

    Attributes
    ----------
    pictures
        (H, W, C) each.
    boxes, negatives, ignored
        (n, 4) for each picture.
    complete
        Whether every occurrence is marked.
    scales, cells, components, upright, any_rotation, random_state
        The detector's parameters of these names.
    """

    pictures: Sequence[NDArray[Any]]
    boxes: Sequence[Boxes]
    negatives: Sequence[Boxes]
    ignored: Sequence[Boxes]
    complete: bool
    scales: tuple[float, float] | None
    cells: int
    components: int
    upright: bool
    any_rotation: bool
    random_state: int

    @cached_property
    def mix(self) -> Floats:
        """The mix of channels, learnt from the pictures."""
        return learn_mix(self.pictures, self.components)

    @cached_property
    def scenes(self) -> list[Scene]:
        """The pictures, normalised, and what is marked in them."""
        parts = zip(self.pictures, self.boxes, self.negatives, self.ignored, strict=True)
        return [Scene(Picture(p, self.mix), b, n, ignored=i) for p, b, n, i in parts]

    def start(self, cells: int) -> Kernel:
        """Return how pictures are looked at, without weights: template, eye, levels, and what these cost.

        Raises
        ------
        ValueError
            If what is looked for is larger than every picture.
        """
        usable = np.concatenate(whole(self.boxes, [(p.shape[0], p.shape[1]) for p in self.pictures]))
        template, sigma, tone, levels, penalties = layout(usable, cells, self.scales, self.any_rotation)
        smallest = np.array([template.width, template.height]) * scale_of(levels[0])
        if self.scales is not None and all((smallest > [p.shape[1] + 1, p.shape[0] + 1]).any() for p in self.pictures):
            raise ValueError(
                f"scales={self.scales}: the smallest thing to look for, {smallest[0]:.0f} x {smallest[1]:.0f} pixels, "
                "is larger than every image; scales are relative to the examples"
            )
        eye = Eye(self.mix, sigma, tone)
        angles = tuple(float(a) for a in np.arange(ROTATIONS) * (360 / ROTATIONS)) if self.any_rotation else (0.0,)
        weights = np.zeros((eye.maps, template.rows, template.columns), np.float32)
        return Kernel(template, eye, weights, 0.0, levels, penalties, angles)

    def only(self, which: Sequence[int]) -> Task:
        """Return the task of some of the pictures."""
        boxes, negatives, ignored = ([each[i] for i in which] for each in (self.boxes, self.negatives, self.ignored))
        return replace(
            self, pictures=[self.pictures[i] for i in which], boxes=boxes, negatives=negatives, ignored=ignored
        )

    def learnt(self, scorer: Scorer, calibration: Calibration) -> Learnt:
        """Return what was learnt, with the usual threshold."""
        return Learnt(scorer, calibration, self.pictures[0].shape[2], 0.5)


def closed(task: Task, training: Training | None = None) -> Learnt:
    """Learn a linear kernel in closed form, whatever the budget; see `wherever.find.training`."""
    scenes = task.scenes
    learn = partial(
        fit_kernel,
        kernel=task.start(task.cells),
        reflect=not (task.upright or task.any_rotation),
        complete=task.complete,
        random=np.random.default_rng(task.random_state),
    )
    kernel, samples = learn(scenes)
    calibration = None
    if task.complete and len(scenes) > 1:
        calibration = from_folds(scenes, kernel, samples)
    elif task.complete and all(len(half.boxes) for half in scenes[0].halves()):
        halves = scenes[0].halves()
        calibration = from_folds(halves, *learn(halves))
    return task.learnt(kernel, calibration or from_examples(scenes, kernel, samples.examples))


def levels_of(task: Task, template: Template) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the levels of all examples, and what they cost: half of the log density of a Gaussian of their levels.

    Its variance has a prior, that of the closed form, which counts as much as some examples.
    """
    level = LEVELS_PER_OCTAVE * np.log2(sizes(np.concatenate(task.boxes)) / math.sqrt(template.width * template.height))
    first, last = min(-2, math.floor(level.min() - 0.5)), max(2, math.ceil(level.max() + 0.5))
    levels = tuple(range(max(first, -MOST_LEVELS), min(last, MOST_LEVELS) + 1))
    weight = USUAL_SPREAD_WEIGHT + len(level) - 1
    variance = (USUAL_SPREAD_WEIGHT * USUAL_SPREAD**2 + np.square(level).sum()) / weight
    return levels, tuple(0.25 * n * n / float(variance) for n in levels)


@dataclass
class Training:
    """How long a network may be trained, and who is told.

    Attributes
    ----------
    budget
        Seconds of the clock.
    report
        Called with a `wherever.find.learning.Round` now and then.
    clock
        Tells seconds.
    previous
        What is trained further.
    interrupted
        Set when Ctrl-C ended it.
    """

    budget: float
    report: Report | None = None
    clock: Clock = time.monotonic
    previous: Scorer | None = None
    interrupted: bool = False

    def part(self, share: float) -> Training:
        """Return a share of it, of which nobody is told."""
        return Training(self.budget * share, None, self.clock)


def learned(task: Task, training: Training) -> Learnt:
    """Train a network on pictures as they are; see `wherever.find.learning`."""
    from wherever.find.context import look_around, usual_variety
    from wherever.find.learning import example_windows, fit_network

    scenes, random = task.scenes, np.random.default_rng(task.random_state)
    previous = training.previous
    if isinstance(previous, Network):
        start, variety = previous, usual_variety(task.upright)
    else:
        kernel = task.start(ACROSS)
        template = replace(kernel.template, rows=FIELD, columns=FIELD, stride=STRIDE)
        levels, penalties = (kernel.levels, kernel.penalties) if task.scales is not None else levels_of(task, template)
        start = Network(template, Eye(task.mix, 0.0, 0.0), (), levels, penalties)
        template, variety = look_around(scenes, start, task.upright, random)
        start = replace(start, template=template)
    network, held, training.interrupted = fit_network(
        scenes,
        start,
        variety=variety,
        complete=task.complete,
        budget=training.budget,
        random=random,
        report=training.report,
        clock=training.clock,
    )
    calibration = from_held_out(held.scores, held.hits)
    if calibration is None:
        calibration = from_examples(scenes, network, example_windows(scenes, network))
    return task.learnt(network, calibration)


def head(task: Task, training: Training) -> Learnt:
    """Fit a linear kernel, and train a network on the windows that it sees; their sum is the detector."""
    from wherever.find.context import usual_variety
    from wherever.find.learning import HEAD, example_windows, fit_network, with_head

    kernel, _ = fit_kernel(
        task.scenes,
        task.start(task.cells),
        reflect=not task.upright,
        complete=False,
        random=np.random.default_rng(task.random_state),
    )
    previous = training.previous
    members = previous.members[1:] if isinstance(previous, Network) else ()
    start = Network(kernel.template, kernel.eye, members, kernel.levels, kernel.penalties)
    trained, _, training.interrupted = fit_network(
        task.scenes,
        start,
        recipe=HEAD,
        variety=replace(usual_variety(task.upright), octaves=HEAD_OCTAVES, shift=HEAD_SHIFT),
        complete=task.complete,
        budget=training.budget,
        random=np.random.default_rng(task.random_state),
        report=training.report,
        clock=training.clock,
    )
    network = with_head(kernel, trained, task.scenes)
    return task.learnt(network, from_examples(task.scenes, network, example_windows(task.scenes, network)))
