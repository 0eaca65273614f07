"""What the detector sees: normalised and mixed channels, averaged over cells, in units of the local contrast."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from wherever.ops import plan

Floats = NDArray[np.float32]
LARGEST_VALUE = 1e30  # of a pixel: float32, in which pictures are averaged, ends at 3e38

CONTRAST_FLOOR = 0.05  # local contrast below this share of the image's spread counts as noise
CONTRAST_LIMIT = 3.0  # what stands out more than this many local standard deviations stands out no further
ABSOLUTE_LIMIT = 6.0  # of averages as they are, in units of the image's spread
STATISTICS_PIXELS = 20_000  # medians and spreads are taken over about so many pixels, evenly spaced
LARGE, SAMPLED_ROWS = 1 << 24, 16  # from so many pixels on, in so many rows


def as_image(image: ArrayLike, name: str = "image") -> NDArray[Any]:
    """Return an image as an array (H, W, C) of real numbers.

    Parameters
    ----------
    image
        (H, W) or (H, W, C), any boolean, integer or real floating dtype. NaN and infinite pixels are missing values.
    name
        How error messages call it.

    Raises
    ------
    TypeError
        If the elements are not real numbers.
    ValueError
        If it does not have two or three dimensions, or has no pixels or no channels; if a finite value is above 1e30.
    """
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise TypeError(
            f"{name} must be an array of numbers, (H, W) or (H, W, C); got {type(image).__name__}"
        ) from error
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} must hold real numbers; got dtype {array.dtype}")
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must have shape (H, W) or (H, W, C); got {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} has no pixels; its shape is {array.shape}")
    if array.dtype.kind == "f" and array.dtype.itemsize >= 4:
        largest = float(np.abs(array).max(where=np.isfinite(array), initial=0))
        if largest > LARGEST_VALUE:
            raise ValueError(
                f"{name} has values as large as {largest:.3g}, more than {LARGEST_VALUE:g}; if they stand for missing "
                "pixels, replace them by NaN, else scale the image"
            )
    return array if array.ndim == 3 else array[:, :, None]


def sampling(height: int, width: int) -> tuple[int, int]:
    """Return steps down and across by which about 20,000 pixels are chosen: of large images in few rows.

    Few rows, because files hold rows together: to read pixels all over a large file is to read all of it.
    """
    step = max(1, math.isqrt(max(1, height * width // STATISTICS_PIXELS)))
    if height * width <= LARGE:
        return step, step
    down = max(1, height // SAMPLED_ROWS)
    return down, max(1, width * -(-height // down) // STATISTICS_PIXELS)


def channel_statistics(image: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Return the median of each channel (C,) and one spread for all: the mean of their standard deviations.

    Missing pixels do not count. The spread is taken between the 0.1 and 99.9 percentiles, so that a few hot pixels do
    not flatten everything else, unless nothing varies there (a few dots on an even ground). A constant image has
    spread 1. One spread for all channels keeps their proportions: a channel of noise is not blown up.
    """
    down, across = sampling(*image.shape[:2])
    for sample in (image[::down, ::across], image):
        pixels = np.ascontiguousarray(sample.reshape(-1, image.shape[2]).T, np.float64)
        if image.dtype.kind == "f" and not (whole := np.isfinite(pixels).all(axis=0)).all():
            pixels = pixels[:, whole]
        if pixels.size == 0:
            continue
        low, centre, high = np.percentile(pixels, [0.1, 50, 99.9], axis=1)
        for values in (np.clip(pixels, low[:, None], high[:, None]), pixels):
            spread = float(values.std(axis=1).mean())
            if spread > 1e-9 * (1.0 + float(np.abs(centre).max())):
                return centre, spread
    if pixels.size == 0:
        raise ValueError("the image has no finite pixel; every one is NaN or infinite in some channel")
    return centre, 1.0


def averaging(size: int, cell: float, start: float, count: int) -> scipy.sparse.csr_array:
    """Return the matrix (count, size) that averages `size` pixels over `count` cells, `cell` pixels each, from `start`.

    A cell covers its pixels by area. A cell smaller than a pixel averages over the width of a pixel around its centre,
    which is linear interpolation. Outside the image its border pixels go on.
    """
    centre = start + (np.arange(count) + 0.5) * cell
    width = max(cell, 1.0)
    low, high = centre - width / 2, centre + width / 2
    pixel = np.floor(low).astype(np.int64)[:, None] + np.arange(math.ceil(width) + 1)
    weight = np.minimum(high[:, None], pixel + 1) - np.maximum(low[:, None], pixel)
    values = (np.maximum(weight, 0.0) / width).astype(np.float32).ravel()
    columns = np.clip(pixel, 0, size - 1).ravel()
    rows = np.arange(0, values.size + 1, pixel.shape[1])
    return scipy.sparse.csr_array((values, columns, rows), shape=(count, size))


def _averages(planes: Floats, cell: float, top: float, left: float, rows: int, columns: int) -> Floats:
    """Average (H, W, C) over rows x columns square cells whose corner is at (left, top): (C, rows, columns)."""
    height, width, channels = planes.shape
    # only the pixels the cells cover; at least the border pixel that goes on outside
    y0, y1 = _covered(top, top + rows * cell, height)
    x0, x1 = _covered(left, left + columns * cell, width)
    if x1 - x0 > 0.7 * width:
        x0, x1 = 0, width  # whole rows are not copied
    part = np.ascontiguousarray(planes[y0:y1, x0:x1])
    down = averaging(y1 - y0, cell, top - y0, rows) @ part.reshape(y1 - y0, -1)
    turned = np.ascontiguousarray(down.reshape(rows, x1 - x0, channels).transpose(1, 0, 2))
    across = averaging(x1 - x0, cell, left - x0, columns) @ turned.reshape(x1 - x0, -1)
    result: Floats = np.ascontiguousarray(across.reshape(columns, rows, channels).transpose(2, 1, 0))
    return result


def _covered(low: float, high: float, size: int) -> tuple[int, int]:
    first = min(max(math.floor(low) - 1, 0), size - 1)
    return first, max(min(math.ceil(high) + 1, size), first + 1)


def gaussian(sigma: float) -> Floats:
    """Return the samples of a normalised Gaussian out to three sigma, an odd number of them."""
    reach = max(1, math.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.asarray(taps / taps.sum(), np.float32)


def smooth(maps: Floats, sigma: float) -> Floats:
    """Smooth maps (C, H, W) with a Gaussian of `sigma` cells; beyond the border the border values go on."""
    result: Floats = _smoothing(maps.shape, sigma)(maps[:, None])[:, 0]
    return result


@functools.lru_cache(maxsize=64)
def _smoothing(shape: tuple[int, ...], sigma: float) -> Callable[[Floats], Floats]:
    """The convolution of maps of this shape with a Gaussian, prepared: a sweep needs it again for every picture."""
    taps = gaussian(sigma)
    window = np.outer(taps, taps)[None, None]
    planned = plan((shape[0], 1, *shape[1:]), window.shape, padding=len(taps) // 2, boundary="edge")
    return planned.prepare(window)


def local_contrast(maps: Floats, sigma: float) -> Floats:
    """Return (maps - their local mean) / (local standard deviation + floor), clipped; windows are Gaussians."""
    difference = maps - smooth(maps, sigma)
    # Where nothing varies, rounding may leave a little less than nothing.
    spread = np.sqrt(np.maximum(smooth(difference * difference, sigma), 0))
    result: Floats = np.clip(difference / (spread + np.float32(CONTRAST_FLOOR)), -CONTRAST_LIMIT, CONTRAST_LIMIT)
    return result


@dataclass(frozen=True)
class Eye:
    """How pictures are looked at: the channel mix, the size of the contrast window, the weight of absolute values.

    Attributes
    ----------
    mix
        (K, C), K maps of features from C normalised channels.
    sigma
        Standard deviation of the windows of the local contrast, in cells; 0: averages as they are.
    tone
        Weight of the absolute (not locally normalised) averages, appended as K further maps; 0 leaves them out.
    """

    mix: Floats
    sigma: float
    tone: float

    @property
    def maps(self) -> int:
        """The number of feature maps."""
        return len(self.mix) * (2 if self.tone else 1)

    @property
    def halo(self) -> int:
        """How many cells around a window its features depend on."""
        return 2 * (len(gaussian(self.sigma)) // 2) if self.sigma else 0


def learn_mix(images: Sequence[NDArray[Any]], most: int) -> Floats:
    """Return the channel mix (K, C), K <= `most`, learnt from the colours of images (H, W, C).

    First the mean of the channels, as a unit vector; then the principal components of what is left, turned in pairs by
    45 degrees, so that the stronger component of a pair is seen twice, with either sign of the weaker one. On colour
    photographs this is an opponent colour space (intensity and two differences), turned to fit the scene.
    """
    channels = images[0].shape[2]
    grey = np.full((1, channels), channels**-0.5)
    covariance = np.zeros((channels, channels))
    for image in images:
        step = max(1, math.isqrt(max(1, image.shape[0] * image.shape[1] // STATISTICS_PIXELS)))
        centre, spread = channel_statistics(image)
        pixels = (image[::step, ::step].reshape(-1, channels) - centre) / spread
        pixels = pixels[np.isfinite(pixels).all(axis=1)]
        pixels = pixels - pixels.mean(axis=0) if len(pixels) else np.zeros((1, channels))
        covariance += pixels.T @ pixels / len(pixels)
    colour = np.eye(channels) - grey.T @ grey
    variance, vectors = np.linalg.eigh(colour @ covariance @ colour)
    count = min(most, channels, 1 + int((variance > 1e-6 * max(np.trace(covariance), 1e-12)).sum())) - 1
    components = vectors.T[::-1][:count]
    components *= np.where(components[np.arange(count), np.abs(components).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
    for first in range(0, count - 1, 2):
        a, b = components[first : first + 2].copy()
        components[first], components[first + 1] = (a + b) * math.sqrt(0.5), (a - b) * math.sqrt(0.5)
    return np.concatenate([grey, components]).astype(np.float32)


class Picture:
    """One image, normalised, ready to be averaged over cells of any size.

    Normalisation (subtract each channel's median, divide by the common spread) and mix are linear, so they are applied
    before or after the averaging, whichever is less work.
    """

    def __init__(
        self, image: NDArray[Any], mix: Floats, statistics: tuple[NDArray[np.float64], float] | None = None
    ) -> None:
        centre, spread = channel_statistics(image) if statistics is None else statistics
        self.height, self.width = image.shape[:2]
        # 8 and 16 bits fit float32 as they are; anything else first loses its offset, which may be large
        small = image.dtype.kind in "bui" and image.dtype.itemsize <= 2
        values = image.astype(np.float32) if small else (image - centre).astype(np.float32)
        offset = centre if small else np.zeros_like(centre)
        whole = np.asarray(np.isfinite(values).all(axis=2)) if image.dtype.kind == "f" else np.ones((1, 1), bool)
        self._whole = None if whole.all() else whole[:, :, None].astype(np.float32)
        if self._whole is not None:
            values = np.where(whole[:, :, None], values, np.float32(0))
        self._matrix = (mix / spread).astype(np.float32)
        self._offset = (self._matrix @ offset).astype(np.float32)
        self._mixed = image.shape[2] > len(mix)
        self._planes = values @ self._matrix.T - self._offset if self._mixed else values

    def part(self, rows: slice, columns: slice = slice(None)) -> Picture:
        """Return a part of the picture, with the normalisation of the whole."""
        part = copy.copy(self)
        part._planes = self._planes[rows, columns]
        part._whole = None if self._whole is None else self._whole[rows, columns]
        part.height, part.width = part._planes.shape[:2]
        return part

    def cells(self, cell: float, top: float, left: float, rows: int, columns: int) -> Floats:
        """Return averages (K, rows, columns) over square cells of `cell` pixels whose corner is at (left, top).

        Missing pixels do not count; a cell with nothing else is 0, the median.
        """
        averages = _averages(self._planes, cell, top, left, rows, columns)
        if self._whole is not None:
            share = _averages(self._whole, cell, top, left, rows, columns)
            averages /= np.maximum(share, np.float32(1e-6))
        if self._mixed:
            return averages
        mixed: Floats = np.tensordot(self._matrix, averages, axes=1) - self._offset[:, None, None]
        return mixed

    def window(self, eye: Eye, x: float, y: float, cell: float, rows: int, columns: int, angle: float) -> Floats:
        """Return the features (maps, rows, columns) of a window of cells around (x, y), as if turned back by `angle`.

        The angle is in degrees, counter-clockwise as the picture is seen. Cells outside the image are zero, as they are
        to the kernel when it is swept.
        """
        halo = eye.halo
        high, wide = rows + 2 * halo, columns + 2 * halo
        v, u = np.mgrid[:high, :wide] + 0.5 - np.array([high, wide]).reshape(2, 1, 1) / 2
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        right, below = x + cell * (u * cosine + v * sine), y + cell * (v * cosine - u * sine)
        if angle % 360 == 0:
            averages = self.cells(cell, y - cell * high / 2, x - cell * wide / 2, high, wide)
        else:
            # four samples a cell from cells half as large, upright, that surround the turned window
            side = 2 * math.ceil(math.hypot(high, wide) / 2 + 1)
            fine = self.cells(cell / 2, y - cell * side / 2, x - cell * side / 2, 2 * side, 2 * side)
            averages = np.zeros((len(fine), high, wide), np.float32)
            for du, dv in ((-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25)):
                columns_at = ((u + du) * cosine + (v + dv) * sine) * 2 + side - 0.5
                rows_at = ((v + dv) * cosine - (u + du) * sine) * 2 + side - 0.5
                for average, plane in zip(averages, fine, strict=True):
                    average += 0.25 * map_coordinates(plane, [rows_at, columns_at], order=1, mode="nearest")
        inside = (right > 0) & (right < self.width) & (below > 0) & (below < self.height)
        seen = see(averages, eye) * inside
        window: Floats = seen[:, halo : halo + rows, halo : halo + columns]
        return window

    def features(self, eye: Eye, cell: float) -> Floats:
        """Return the feature maps (maps, rows, columns) of the whole image, in cells of `cell` pixels."""
        rows, columns = math.ceil(self.height / cell - 1e-6), math.ceil(self.width / cell - 1e-6)
        return see(self.cells(cell, 0.0, 0.0, max(rows, 1), max(columns, 1)), eye)


def see(averages: Floats, eye: Eye) -> Floats:
    """Return the features of cell averages (K, rows, columns): local contrast, and absolute values if `eye` wants."""
    if not eye.sigma:
        return np.clip(averages, -ABSOLUTE_LIMIT, ABSOLUTE_LIMIT)
    contrast = local_contrast(averages, eye.sigma)
    if not eye.tone:
        return contrast
    absolute = np.clip(averages, -CONTRAST_LIMIT, CONTRAST_LIMIT) * np.float32(eye.tone)
    return np.concatenate([contrast, absolute])


def interpolation(
    size: int, count: int, cell: float, first: float, begin: int = 0, held: tuple[int, int] | None = None
) -> scipy.sparse.csr_array:
    """Return the matrix (size, count) that interpolates linearly from samples to pixel centres.

    Sample i lies at (first + i) * cell pixels. Before the first and after the last sample their values go on. The
    matrix may be a part: of `size` pixels from `begin`, and of the samples `held` (first, and one after the last).
    """
    place, before = neighbours(begin, begin + size, count, cell, first)
    low, high = held or (0, count)
    share = (place - before).astype(np.float32)
    columns = np.stack([before, np.minimum(before + 1, count - 1)], axis=1).ravel() - low
    values = np.stack([1 - share, share], axis=1).ravel()
    return scipy.sparse.csr_array((values, columns, np.arange(0, 2 * size + 1, 2)), shape=(size, high - low))


def neighbours(
    begin: int, end: int, count: int, cell: float, first: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return where pixels from `begin` to `end` lie among samples, and the sample before each: see `interpolation`."""
    place = np.clip((np.arange(begin, end) + 0.5) / cell - first, 0.0, count - 1.0)
    return place, np.minimum(place.astype(np.int64), max(count - 2, 0))
