"""Pictures searched as the options say: finds, the score that there is one anywhere, and score maps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wherever.cli.large import overview_step
from wherever.cli.progress import Steps
from wherever.files.georeference import Georeference
from wherever.files.images import Image
from wherever.files.sources import Source
from wherever.files.windows import windowed

if TYPE_CHECKING:
    from wherever.find.detector import Detector
    from wherever.find.finds import Finds


@dataclass(frozen=True)
class Search:
    """A detector, and how pictures are searched by it.

    Attributes
    ----------
    model : Detector
    label : str or None
    threshold, top
        As `Detector.find` takes them.
    memory : int
        Bytes that a tile of a large picture may take.
    scheduler : str or None
        Address of a Dask cluster that large pictures are searched on.
    steps : Steps
        Told of progress.
    """

    model: Detector
    label: str | None
    threshold: float | None
    top: int | None
    memory: int
    scheduler: str | None
    steps: Steps

    def finds(self, image: Image | Source, name: str) -> Finds:
        """Return what is found in a picture."""
        if isinstance(image, Source):
            found = self._in_tiles(image, self.top)
        else:
            found = self.model.find(image, threshold=self.threshold, top=self.top, progress=self.steps.part)
        size = (image.shape[1], image.shape[0])
        return dataclasses.replace(found, image=name, label=self.label or found.label, image_size=size)

    def anywhere(self, image: Image | Source, found: Finds) -> float:
        """Return the score that there is one anywhere: that of the best find, whatever is asked for."""
        if len(found):
            return float(found.scores[0])
        if not isinstance(image, Source):
            return self.model.anywhere(image)
        best = self._in_tiles(image, 1, all_scores=True)
        return float(best.scores[0]) if len(best) else 0.0

    def _in_tiles(self, image: Source, top: int | None, *, all_scores: bool = False) -> Finds:
        threshold = None if all_scores else self.threshold
        return self.model.find_in(
            image, threshold=threshold, top=top, memory=self.memory, progress=self.steps.part, client=self.scheduler
        )

    def write_score_map(self, image: Source, path: Path) -> None:
        """Write the score map of a large picture; what an interrupted run left of it is used."""
        from wherever.tiles import map as in_tiles

        path.parent.mkdir(parents=True, exist_ok=True)
        in_tiles(self.model, image, out=path, memory=self.memory, progress=self.steps.part, client=self.scheduler)

    def heat(self, image: Image | Source) -> Image:
        """Return the score at every pixel; of a large picture the best around each pixel of its overview."""
        if not isinstance(image, Source):
            return self.model.score_map(image)
        from wherever.tiles import each

        step = overview_step(image)
        high, wide, _ = image.shape
        heat = np.zeros((-(-high // step), -(-wide // step)), np.float32)
        parts = each(self.model, image, memory=self.memory, progress=self.steps.part, client=self.scheduler)
        for box, values in parts:
            # Tiles need not begin at a pixel of the overview.
            best = values[:, :, 0]
            for axis, (low, high) in enumerate(box):
                starts = [0, *range(-(-(low + 1) // step) * step - low, high - low, step)]
                best = np.maximum.reduceat(best, starts, axis=axis)
            (top, _), (left, _) = box
            place = heat[top // step :, left // step :][: best.shape[0], : best.shape[1]]
            np.maximum(place, best, out=place)
        return heat


def georeference(source: str) -> Georeference:
    """Return where a picture is on Earth; ValueError if that is not known."""
    opened = windowed(source)
    place = None if opened is None else opened.georeference
    if place is None:
        raise ValueError(f"--crs: {source} is not georeferenced; leave out --crs to have pixels")
    return place
