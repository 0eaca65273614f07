"""Windows of the background to learn from: drawn from all over, and those that the network takes for the thing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from wherever.find.boxes import Boxes, centres, inside, overlaps, sizes
from wherever.find.features import Floats, see
from wherever.find.sweep import Scorer, peaks, scale_of
from wherever.find.training import Scene

NEAR = 0.5  # of an example's size: windows whose box is centred nearer than that are not background
OVERLAPPING = 0.25  # nor those that overlap one by so much (intersection over union)
REGION = 700  # cells along an edge of the part of a level that is mined at a time
DRAWN = 12  # windows from one region drawn at random
MINED, LEAST = 40, 4  # at most and at least so many windows from one region that score best
EASY = -4.0  # what scores less is not worth more than that


class Pool:
    """The latest so many windows (C, rows, columns), in half precision."""

    def __init__(self, shape: Sequence[int], most: int) -> None:
        self._windows = torch.empty((most, *shape), dtype=torch.float16)
        self.seen = 0

    def __len__(self) -> int:
        return min(self.seen, len(self._windows))

    def add(self, windows: Floats) -> None:
        """Add windows (n, C, rows, columns), in the place of the oldest."""
        places = torch.arange(self.seen, self.seen + len(windows)) % len(self._windows)
        self._windows[places] = torch.from_numpy(np.ascontiguousarray(windows)).to(torch.float16)
        self.seen += len(windows)

    def draw(self, count: int, random: np.random.Generator) -> Tensor:
        """Return windows (count, C, rows, columns) chosen at random, as float32."""
        return self._windows[torch.from_numpy(random.integers(len(self), size=count))].float()


def is_background(boxes: Boxes, scene: Scene) -> NDArray[np.bool_]:
    """Return which boxes (n, 4) are neither at an example of a scene nor in a region to be ignored."""
    free = np.ones(len(boxes), bool)
    if len(boxes) and len(scene.boxes):
        distance = np.linalg.norm(centres(boxes)[:, None] - centres(scene.boxes)[None], axis=2)
        free &= (distance > NEAR * sizes(scene.boxes)).all(axis=1)
        free &= (overlaps(boxes, scene.boxes) < OVERLAPPING).all(axis=1)
    return free & ~inside(boxes, scene.ignored)


class Miner:
    """Finds background in scenes, for the windows of a scorer's template.

    Parameters
    ----------
    scenes
        Pictures with what is marked in them.
    scorer
        Says what windows are, and at which levels they are looked for.
    """

    def __init__(self, scenes: Sequence[Scene], scorer: Scorer) -> None:
        self.scenes, self.template, self.eye, self.levels = scenes, scorer.template, scorer.eye, scorer.levels
        area = np.array([s.picture.height * s.picture.width for s in scenes], np.float64)
        self._share = np.sqrt(area) / np.sqrt(area).sum()

    def drawn(self, count: int, random: np.random.Generator) -> Floats:
        """Return about `count` windows (n, C, rows, columns) from all over the scenes and levels."""
        side = 3 * max(self.template.rows, self.template.columns)
        found = []
        for _ in range(-(-count // DRAWN)):
            scene, level, maps, corner = self._region(side, random)
            high, wide = (n - w + 1 for n, w in zip(maps.shape[1:], self._window, strict=True))
            rows, columns = random.integers(high, size=DRAWN), random.integers(wide, size=DRAWN)
            found.append(self._windows(scene, level, maps, corner, rows, columns))
        return np.concatenate(found)

    def mined(self, scorer: Scorer, random: np.random.Generator) -> Floats:
        """Return the windows of the background in one region that a scorer likes best."""
        scene, level, maps, corner = self._region(REGION, random)
        scores, _ = scorer.scores(maps, ((0, 0), (0, 0)))
        rows, columns = peaks(scores, -np.inf, MINED)
        score = scores[rows, columns]
        keep = (score > EASY) | (score >= np.sort(score)[-LEAST:][0])
        rows, columns = rows[keep], columns[keep]
        stride = self.template.stride
        return self._windows(scene, level, maps, corner, rows * stride, columns * stride)

    @property
    def _window(self) -> tuple[int, int]:
        return self.template.rows, self.template.columns

    def _region(self, side: int, random: np.random.Generator) -> tuple[Scene, int, Floats, tuple[int, int]]:
        """A part of a level of a scene: its maps, of at least one window, and the cell in its corner."""
        scene = self.scenes[random.choice(len(self.scenes), p=self._share)]
        level = int(random.choice(self.levels))
        cell = self.template.cell * scale_of(level)
        corner, size = [], []
        for pixels, window, pad in zip(
            (scene.picture.height, scene.picture.width), self._window, self.template.padding, strict=True
        ):
            cells = max(1, int(pixels / cell)) + 2 * pad  # windows are centred on pixels up to the border
            length = min(max(side, window), max(cells, window))
            corner.append(int(random.integers(0, max(cells - length, 0) + 1)) - pad)
            size.append(length)
        top, left = corner
        halo = self.eye.halo
        around = (n + 2 * halo for n in size)
        averages = scene.picture.cells(cell, (top - halo) * cell, (left - halo) * cell, *around)
        maps = see(averages, self.eye)[:, halo : halo + size[0], halo : halo + size[1]]
        # Beyond the picture there are zeros, as in a sweep.
        for axis, (first, pixels) in enumerate(zip(corner, (scene.picture.height, scene.picture.width), strict=True)):
            index = np.arange(first, first + size[axis])
            real = ((index >= 0) & (index < pixels / cell)).astype(np.float32)
            maps = maps * (real[:, None] if axis == 0 else real)
        return scene, level, maps, (top, left)

    def _windows(
        self,
        scene: Scene,
        level: int,
        maps: Floats,
        corner: tuple[int, int],
        rows: NDArray[np.integer],
        columns: NDArray[np.integer],
    ) -> Floats:
        """Those windows at these cells of a region that are background."""
        template, cell = self.template, self.template.cell * scale_of(level)
        high, wide = self._window
        middle = np.stack(
            [columns + corner[1] + wide / 2 + template.right, rows + corner[0] + high / 2 + template.below], 1
        )
        boxes = template.boxes(middle * cell, scale_of(level), np.zeros(len(rows)))
        free = is_background(boxes, scene)
        every = sliding_window_view(maps, self._window, axis=(1, 2))
        return np.asarray(every[:, rows[free], columns[free]].swapaxes(0, 1), np.float32)
