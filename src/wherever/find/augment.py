"""Examples seen anew: turned, mirrored, larger, brighter, of other colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wherever.find.boxes import Boxes, centres, sizes
from wherever.find.features import (
    ABSOLUTE_LIMIT,
    CONTRAST_FLOOR,
    CONTRAST_LIMIT,
    Eye,
    Floats,
    Picture,
    gaussian,
)
from wherever.find.sweep import Template

Numbers = NDArray[Any]

FINER = 1.25  # patches are kept in cells so many times smaller, to be turned and scaled without much loss
BLUR = (-0.3, 1.0)  # share of a mean over 3 x 3 cells: sharper to softer, as small things are that are magnified
GAIN, CHANNEL_GAIN, OFFSET = 0.3, 0.15, 0.15  # of all channels together, of each, and added to each
NOISE = 0.1  # of local contrasts
TILT = 0.15  # radians, the standard deviation of turns of what stands upright


@dataclass(frozen=True)
class Variety:
    """How examples of a thing may look.

    Attributes
    ----------
    turned
        In any direction; else nearly as the examples.
    mirrored
        As in a mirror.
    octaves
        Most that a size may differ from what a window is made for, either way.
    shift
        Most that a place may differ from the centre of a window, in cells, either way.
    """

    turned: bool
    mirrored: bool
    octaves: float
    shift: float


class Views:
    """Boxes of pictures, ready to be drawn as windows of the template that vary as the things do."""

    def __init__(
        self, pictures: Sequence[Picture], boxes: Sequence[Boxes], template: Template, eye: Eye, variety: Variety
    ) -> None:
        self.variety, self.eye = variety, eye
        # with what is around, on which local contrast depends
        self._size = (template.rows + 2 * eye.halo, template.columns + 2 * eye.halo)
        self._middle = np.array([template.right, template.below])
        reach = (
            math.hypot(*self._size) * 2**variety.octaves + 2 * variety.shift + 2 + 2 * float(np.abs(self._middle).max())
        )
        side = math.ceil(reach * FINER)
        patches = [
            patch(picture, template, box, side) for picture, each in zip(pictures, boxes, strict=True) for box in each
        ]
        channels = len(eye.mix) + 1  # the last one is 1 in the picture
        self.patches = torch.from_numpy(np.array(patches, np.float32).reshape(len(patches), channels, side, side))

    def __len__(self) -> int:
        return len(self.patches)

    def draw(self, count: int, random: np.random.Generator) -> Tensor:
        """Return windows (count, C, rows, columns) of examples chosen at random."""
        variety = self.variety
        angle = random.uniform(0, 2 * np.pi, count) if variety.turned else random.normal(0, TILT, count)
        flip = random.choice([-1.0, 1.0], count) if variety.mirrored else np.ones(count)
        zoom = 2 ** random.uniform(-variety.octaves, variety.octaves, count)
        shift = random.uniform(-variety.shift, variety.shift, (count, 2))
        return self._seen(random.integers(len(self), size=count), angle, flip, zoom, shift)

    def plain(self) -> Tensor:
        """Return the window of each example as it is, (n, C, rows, columns)."""
        zeros, ones = np.zeros(len(self)), np.ones(len(self))
        return self._seen(np.arange(len(self)), zeros, ones, ones, np.zeros((len(self), 2)))

    def _seen(self, chosen: Numbers, angle: Numbers, flip: Numbers, zoom: Numbers, shift: Numbers) -> Tensor:
        """Windows of the chosen examples, turned, mirrored, scaled and shifted around the middle of the thing."""
        rows, columns = self._size
        cosine, sine = np.cos(angle) * zoom, np.sin(angle) * zoom
        turn = np.stack([np.stack([cosine * flip, -sine], 1), np.stack([sine * flip, cosine], 1)], 1)
        y, x = np.mgrid[:rows, :columns] - np.array([rows - 1, columns - 1]).reshape(2, 1, 1) / 2
        place = np.stack([x, y], -1)[None] + shift[:, None, None] - self._middle
        place = np.einsum("nij,nhwj->nhwi", turn, place) * (2 * FINER / self.patches.shape[-1])
        grid = torch.from_numpy(place.astype(np.float32))
        patches = self.patches[torch.from_numpy(chosen)]
        seen = functional.grid_sample(patches, grid, mode="bilinear", align_corners=False)
        halo = self.eye.halo
        inside = (seen[:, -1:] > 0.5)[..., halo : rows - halo, halo : columns - halo]
        return see_windows(seen[:, :-1], self.eye) * inside


def patch(picture: Picture, template: Template, box: Boxes, side: int) -> Floats:
    """Return averages around the centre of a box at its own size, (channels + 1, side, side) finer cells.

    The last channel is 1 where there is a picture; beyond it border pixels go on.
    """
    ((x, y),), (size,) = centres(box[None]), sizes(box[None])
    cell = template.cell * size / math.sqrt(template.width * template.height) / FINER
    top, left = y - cell * side / 2, x - cell * side / 2
    averages = picture.cells(cell, top, left, side, side)
    down, across = (start + (np.arange(side) + 0.5) * cell for start in (top, left))
    inside = ((down > 0) & (down < picture.height))[:, None] & ((across > 0) & (across < picture.width))
    return np.concatenate([averages, inside[None].astype(np.float32)])


def see_windows(averages: Tensor, eye: Eye) -> Tensor:
    """Return what `wherever.find.features.see` makes of averages (n, K, rows, columns), without their halo."""
    if not eye.sigma:
        return averages.clamp(-ABSOLUTE_LIMIT, ABSOLUTE_LIMIT)
    taps = torch.from_numpy(gaussian(eye.sigma))
    count = averages.shape[1]
    down = taps[None, None, :, None].expand(count, 1, -1, 1)
    across = taps[None, None, None, :].expand(count, 1, 1, -1)

    def smooth(maps: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(maps, down, groups=count), across, groups=count)

    inner = len(taps) // 2
    difference = averages[..., inner:-inner, inner:-inner] - smooth(averages)
    spread = smooth(difference * difference).clamp(min=0).sqrt()
    difference = difference[..., inner:-inner, inner:-inner]
    contrast = (difference / (spread + CONTRAST_FLOOR)).clamp(-CONTRAST_LIMIT, CONTRAST_LIMIT)
    if not eye.tone:
        return contrast
    absolute = averages[..., 2 * inner : -2 * inner, 2 * inner : -2 * inner]
    return torch.cat([contrast, absolute.clamp(-CONTRAST_LIMIT, CONTRAST_LIMIT) * eye.tone], 1)


def resharpened(windows: Tensor, random: np.random.Generator) -> Tensor:
    """Return windows (n, C, rows, columns), half of them sharper or softer."""
    share = random.uniform(*BLUR, len(windows)) * (random.random(len(windows)) < 0.5)
    soft = functional.avg_pool2d(functional.pad(windows, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.lerp(windows, soft, torch.from_numpy(share.astype(np.float32))[:, None, None, None])


def noisy(windows: Tensor, random: np.random.Generator) -> Tensor:
    """Return windows with noise on every value: those of local contrast have lost their gains and offsets already."""
    return windows + torch.from_numpy(random.normal(0, NOISE, windows.shape).astype(np.float32))


def redrawn(windows: Tensor, random: np.random.Generator) -> Tensor:
    """Return windows of averages sharper or softer, and of other colours."""
    return recoloured(resharpened(windows, random), random)


def recoloured(windows: Tensor, random: np.random.Generator) -> Tensor:
    """Return windows (n, C, rows, columns) with other gains and offsets of their channels."""
    shape = (len(windows), windows.shape[1], 1, 1)
    gain = 2 ** random.normal(0, GAIN / 2, (len(windows), 1, 1, 1)) * random.uniform(
        1 - CHANNEL_GAIN, 1 + CHANNEL_GAIN, shape
    )
    offset = random.normal(0, OFFSET, shape)
    return windows * torch.from_numpy(gain.astype(np.float32)) + torch.from_numpy(offset.astype(np.float32))
