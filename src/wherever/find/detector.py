"""The detector: shown a few examples of a thing, it finds every other one, wherever it is."""

from __future__ import annotations

import hashlib
import inspect
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from wherever.files.sources import Source
from wherever.find.choosing import METHODS, choose, kind_of
from wherever.find.features import Picture, as_image
from wherever.find.finds import Finds
from wherever.find.fitting import Task, Training
from wherever.find.inputs import as_budget, as_count, as_kind, as_scales, as_training
from wherever.find.network import Network, needs_torch
from wherever.find.storage import Learnt, load_file, save_file
from wherever.find.sweep import Candidates, candidates, distinct, maps_of, scale_of, score_map
from wherever.tiles.grid import as_bytes

if TYPE_CHECKING:
    from wherever.find.learning import Report
    from wherever.find.tiled import Sweep


class Detector:
    """Finds a thing wherever it is, from a few examples.

    A linear kernel over cells of locally normalised colour is learnt from the examples in closed form and swept over
    pictures at every scale. It takes tens of milliseconds to train and to apply. What has no such template (a face
    among a thousand) a small convolutional network may find, which takes minutes to train.

    Parameters
    ----------
    kind : {"closed", "head", "learned", "auto"}
        The linear kernel; the linear kernel and a small network on what it sees, added; a network on the pictures; or
        the one of them that finds best in parts of the pictures held out of its training, which are compared within
        the budget. All but the first need PyTorch (`pip install "wherever[torch]"`).
    budget : float
        Seconds that training may take, beside the closed form.
    cells : int
        Size of the mean example in cells, unless a cell would be smaller than a pixel. More cells see finer detail
        and cost more.
    components : int
        Most maps that the channels of the images are mixed to; fewer where there are fewer channels.
    scales : (float, float), optional
        Smallest and largest size of a find relative to the mean example. By default learnt from the examples.
    upright : bool
        The thing is never turned or mirrored (letters). By default mirror images and quarter turns of the examples
        are examples, too.
    any_rotation : bool
        Search all rotations, in steps of 22.5 degrees, and report the angle of each find. For things that have a
        direction; the sweep takes longer.
    random_state : int
        Seed of all that is drawn at random. A network also depends on how many steps are made in its time.

    Attributes
    ----------
    size_ : (float, float)
        Width and height in pixels of the mean example.
    threshold_ : float
        The score, a probability, from which on :meth:`find` counts a place as a find.
    calibrated_ : bool
        Whether scores are probabilities calibrated on pictures (or parts of the picture) held out of the training.
        Without it they are only ordered, and 1/2 is a sensible threshold.
    channels_ : int
        Number of channels of the images.
    kind_ : {"closed", "head", "learned"}
        What the detector is: which kind "auto" has chosen.
    interrupted_ : bool
        Whether Ctrl-C ended the training of a network; it is the best that there was.

    Examples
    --------
    >>> import numpy as np
    >>> from wherever.find import Detector
    >>> image = np.zeros((100, 120))
    >>> for y, x in (20, 20), (60, 50), (30, 90):
    ...     image[y:y + 10, x:x + 10] = 1
    >>> len(Detector().fit(image, [[20, 20, 30, 30]]).find(image))
    3
    """

    def __init__(
        self,
        *,
        kind: Literal["closed", "head", "learned", "auto"] = "closed",
        budget: float = 120.0,
        cells: int = 10,
        components: int = 5,
        scales: tuple[float, float] | None = None,
        upright: bool = False,
        any_rotation: bool = False,
        random_state: int = 0,
    ) -> None:
        self.kind = kind
        self.budget = budget
        self.cells = cells
        self.components = components
        self.scales = scales
        self.upright = upright
        self.any_rotation = any_rotation
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name."""
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **parameters: Any) -> Detector:
        """Set parameters by name; the detector has to be fitted again for them to have an effect."""
        for name, value in parameters.items():
            if name not in _PARAMETERS:
                raise ValueError(f"Detector has no parameter {name!r}; it has {', '.join(_PARAMETERS)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name]]
        return f"Detector({', '.join(changed)})"

    def fit(
        self,
        images: ArrayLike | Sequence[ArrayLike],
        boxes: ArrayLike | Sequence[ArrayLike | None],
        *,
        complete: bool = False,
        negatives: ArrayLike | Sequence[ArrayLike | None] | None = None,
        ignore: ArrayLike | Sequence[ArrayLike | None] | None = None,
        label: str | None = None,
        resume: bool = False,
        progress: Report | None = None,
        clock: Callable[[], float] | None = None,
    ) -> Detector:
        """Learn from examples.

        Parameters
        ----------
        images
            One image (H, W) or (H, W, C), any real dtype, or a list of them with the same number of channels. NaN and
            infinite pixels are missing: they count neither in averages nor in statistics.
        boxes
            The examples: x0, y0, x1, y1 in pixels, (n, 4), for one image; a list of such, one an image, for several.
        complete
            Every occurrence in these images is marked. What the first kernel finds elsewhere is then known to be wrong,
            the kernel is refitted against it, and scores are calibrated. A network gains most by it.
        negatives
            Like `boxes`: places that are not the thing, however alike.
        ignore
            Like `boxes`: regions that are neither examples nor background.
        label
            The name of the thing, which finds then have.
        resume
            Train the network that the detector has further, for another budget.
        progress
            Called by the training of a network with a `wherever.find.learning.Round` now and then.
        clock
            Tells the seconds that the budget is counted in; by default those of a wall clock.

        Raises
        ------
        TypeError, ValueError
            If an image is not numbers or has a wrong shape; if images differ in their number of channels; if a box is
            empty, outside its image, or larger, or is a negative, too; if `scales` are too large for all images; if
            there is no example; if an image is of one colour throughout.
        """
        scales, cells = as_scales(self.scales), as_count(self.cells, "cells")
        components = as_count(self.components, "components")
        kind, budget = as_kind(self.kind), as_budget(self.budget)
        if self.upright and self.any_rotation:
            raise ValueError("upright and any_rotation exclude each other; choose one")
        if kind != "closed":
            needs_torch()
            if self.any_rotation:
                raise ValueError("any_rotation: a network says nothing about angles; it finds turned things as it is")
        previous = self.learnt_.scorer if resume and hasattr(self, "learnt_") else None
        if resume and not isinstance(previous, Network):
            raise ValueError("resume: there is no network to train further; fit one with kind='learned', or load it")
        task = Task(
            *as_training(images, boxes, negatives, ignore),
            complete=complete,
            scales=scales,
            cells=cells,
            components=components,
            upright=self.upright,
            any_rotation=self.any_rotation,
            random_state=self.random_state,
        )
        training = Training(budget, progress, clock or time.monotonic, previous)
        if previous is not None:
            self._check_channels(task.pictures[0].shape[2])
            kind = kind_of(previous)
        learnt = choose(task, training) if kind == "auto" else METHODS[kind](task, training)
        if label is None and resume:
            label = self.learnt_.label
        self._knowing(replace(learnt, label=label))
        self.interrupted_ = training.interrupted
        return self

    def score_map(self, image: ArrayLike) -> NDArray[np.float32]:
        """Return the score, a probability, of a thing centred at each pixel, (H, W), the best over scales."""
        picture = self._picture(image)
        return self._probability(score_map(self.kernel_, picture)).astype(np.float32)

    def find(
        self,
        image: ArrayLike,
        *,
        threshold: float | None = None,
        top: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Finds:
        """Return the places in an image where the thing is.

        Parameters
        ----------
        image
            (H, W) or (H, W, C), any real dtype, with as many channels as the training images.
        threshold
            The least score, from 0 to 1. By default `threshold_`, or 0 where `top` is given.
        top
            The most finds that are returned.
        progress
            Called with the number of scales done and of all scales.
        """
        threshold, floor, top = self._limits(threshold, top)
        picture = self._picture(image)
        found = candidates(self.kernel_, picture, maps_of(self.kernel_, picture), floor, progress=progress)
        return self._finds(distinct(found, top), (picture.width, picture.height))

    def find_in(
        self,
        source: str | os.PathLike[str] | Source,
        *,
        threshold: float | None = None,
        top: int | None = None,
        memory: int | float | str = "2 GiB",
        progress: Callable[[int, int], None] | None = None,
        client: Any = None,
    ) -> Finds:
        """Return the places in a picture of any size where the thing is: what :meth:`find` returns, in bounded memory.

        Parameters
        ----------
        source
            What `wherever.files.windows.open_window` opens: a TIFF file, ENVI, Zarr, .npy, ... Pixels with the file's
            no-data value in any band are missing.
        threshold, top
            As in :meth:`find`.
        memory
            What a tile may take, in bytes or as "2 GiB".
        progress
            Called with the number of tiles done and of all tiles.
        client
            A `distributed.Client`, or the address of a scheduler: tiles are read and searched by its workers.

        Notes
        -----
        Positions are those of :meth:`find`; scores agree to the accuracy of float32.
        """
        from wherever.files.windows import open_window
        from wherever.find.tiled import all_candidates

        threshold, floor, top = self._limits(threshold, top)
        opened = open_window(source if isinstance(source, Source) else os.fspath(source))
        try:
            cut = self.sweep(opened, statistics=False).grid(as_bytes(memory))
            if len(cut) == 1 and client is None:  # read once, and searched as a whole
                image = opened.values((0, opened.shape[0]), (0, opened.shape[1]))
                return self.find(image, threshold=threshold, top=top, progress=progress)
            sweep = self.sweep(opened)
            found = distinct(all_candidates(sweep, cut, floor, progress, client), top)
        finally:
            if not isinstance(source, Source):
                opened.close()
        return self._finds(found, (opened.shape[1], opened.shape[0]))

    def sweep(self, source: Source, *, statistics: bool = True) -> Sweep:
        """Return the sweep of a source by this detector's kernel: what `wherever.find.tiled` works on.

        Statistics of the source are needed to compute anything, but not to plan it.
        """
        from wherever.find.tiled import Sweep

        self._check_channels(source.shape[2])
        if not statistics:
            return Sweep(self.kernel_, source, (np.zeros(source.shape[2]), 1.0))
        return Sweep.of(self.kernel_, source)

    def fingerprint(self) -> str:
        """Return a hash of all that the detector has learnt."""
        scorer = self._fitted().kernel_
        digest = hashlib.sha256(scorer.eye.mix.tobytes())
        for name, array in sorted(scorer.arrays().items()):
            digest.update(name.encode() + array.tobytes())
        rest = (scorer.template, scorer.eye.sigma, scorer.eye.tone, scorer.levels, scorer.penalties, scorer.angles)
        digest.update(repr((rest, self.learnt_.calibration)).encode())
        return digest.hexdigest()

    def anywhere(self, image: ArrayLike) -> float:
        """Return the probability that there is at least one in the image: that of the best find.

        Finds of one picture err together (a stain, an unusual light), so their probabilities do not multiply as those
        of independent events would: on pictures held out of the training, 1 - prod(1 - p) over all finds was the worse
        prediction where both answers occur (log loss 0.47 against 0.38). Calibrated where `calibrated_`.
        """
        picture = self._picture(image)
        found = candidates(self.kernel_, picture, maps_of(self.kernel_, picture))
        return float(self._probability(found.scores).max(initial=0.0))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted detector to one file (npz, no pickle), which :meth:`load` reads."""
        save_file(path, self.get_params(), replace(self._fitted().learnt_, threshold=self.threshold_))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Detector:
        """Read a detector that :meth:`save` wrote; ValueError if the file is something else, or damaged."""
        parameters, learnt = load_file(path)
        try:
            detector = cls(**parameters)
        except TypeError as error:
            raise ValueError(f"{os.fspath(path)} is not a detector file, or it is damaged: {error}") from error
        return detector._knowing(learnt)

    def _knowing(self, learnt: Learnt) -> Detector:
        """The detector itself, fitted."""
        self.learnt_, self.interrupted_, self.kind_ = learnt, False, kind_of(learnt.scorer)
        self.kernel_, self.channels_, self.threshold_ = learnt.scorer, learnt.channels, learnt.threshold
        self.calibrated_ = learnt.calibration.calibrated
        self.size_ = (learnt.scorer.template.width, learnt.scorer.template.height)
        return self

    def _fitted(self) -> Detector:
        if not hasattr(self, "kernel_"):
            raise ValueError("this Detector has learnt nothing yet; call fit(images, boxes), or Detector.load(path)")
        return self

    def _limits(self, threshold: float | None, top: int | None) -> tuple[float, float, int | None]:
        """The least probability and the least score of finds, and the most of them, checked."""
        if threshold is None:
            threshold = self._fitted().threshold_ if top is None else 0.0
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be a probability, 0 to 1; got {threshold!r}")
        floor = -np.inf if threshold == 0 else self._score(threshold)
        return threshold, floor, None if top is None else as_count(top, "top")

    def _finds(self, found: Candidates, size: tuple[int, int]) -> Finds:
        return Finds(
            boxes=found.boxes,
            scores=self._probability(found.scores),
            scale=np.array([scale_of(level) for level in found.levels]),
            angle=found.angles,
            image_size=size,
            label=self.learnt_.label,
            calibrated=self.calibrated_,
        )

    def _check_channels(self, channels: int) -> None:
        if channels != self._fitted().channels_:
            raise ValueError(
                f"image has {channels} channel(s); the detector was trained on images with {self.channels_}; "
                "choose the same bands, or convert the image"
            )

    def _picture(self, image: ArrayLike) -> Picture:
        array = as_image(image)
        self._check_channels(array.shape[2])
        return Picture(array, self.kernel_.eye.mix)

    def _probability(self, score: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(expit(self.learnt_.calibration.slope * score + self.learnt_.calibration.intercept))

    def _score(self, probability: float) -> float:
        calibration = self.learnt_.calibration
        return float((logit(probability) - calibration.intercept) / calibration.slope)


_PARAMETERS = tuple(inspect.signature(Detector).parameters)
