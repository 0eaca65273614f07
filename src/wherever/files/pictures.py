"""Pictures of results: any image made displayable, boxes and scores drawn on it, heat maps and score maps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever.files.images import INSTALL

# Yellow and cyan on a black edge stand out on dark and on bright pictures, and for colour-blind eyes too.
FIND_COLOUR = "#ffd60a"
EXAMPLE_COLOUR = "#00e5ff"

# Points of matplotlib's "inferno" (CC0), so that no plotting library is needed for a heat map.
_INFERNO = np.array(
    [
        (0, 0, 4),
        (31, 12, 72),
        (85, 15, 109),
        (136, 34, 106),
        (186, 54, 85),
        (227, 89, 51),
        (249, 140, 10),
        (249, 201, 50),
        (252, 255, 164),
    ],
    dtype=np.float64,
)
_SMALLEST, _LARGEST = 800, 8000  # longest side of a drawn picture in pixels
_TAGGED, _SMALLEST_TAGGED = 60, 22  # so many finds all have their score beside them; of more, those of this many pixels


def displayable(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Make a picture of any type and number of bands ready for the eye.

    Parameters
    ----------
    image : ndarray, shape (H, W) or (H, W, C)
        uint8 with one or three bands is shown as it is. Other values are stretched from their 1st to their 99th
        percentile: colour bands together, other bands each for itself. Of more than four bands, three are shown, spread
        evenly, the last one as red (bands are usually in the order of their wavelengths); of four the first three; of
        two the first as red, the second as green and blue. Values that are not finite are black.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"image must have shape (H, W) or (H, W, C) and pixels, got {image.shape}")
    bands = image[:, :, None] if image.ndim == 2 else image
    count = bands.shape[2]
    if count == 2:
        bands = bands[:, :, [0, 1, 1]]
    elif count == 4:
        bands = bands[:, :, :3]
    elif count > 4:
        bands = bands[:, :, [count - 1 - count // 6, count // 2, count // 6]]
    if bands.dtype == np.bool_:
        shown = bands.astype(np.uint8) * np.uint8(255)
    elif bands.dtype == np.uint8 and count in (1, 3, 4):
        shown = bands
    else:
        together = count in (1, 3, 4)
        parts = [bands] if together else [bands[:, :, band, None] for band in range(3)]
        shown = np.concatenate([_stretch(part) for part in parts], axis=2)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))


def _stretch(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    real = values.astype(np.float64)
    finite = np.isfinite(real)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = np.percentile(real[finite], (1, 99))
    if high <= low:
        low, high = real[finite].min(), real[finite].max()
    if high <= low:  # one colour: neither black nor white
        return np.where(finite, 128, 0).astype(np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.clip((real - low) / (high - low), 0, 1) * 255
    return np.where(finite, np.round(np.nan_to_num(scaled)), 0).astype(np.uint8)


def overlay_png(
    image: npt.NDArray[Any], boxes: npt.ArrayLike, scores: npt.ArrayLike, examples: npt.ArrayLike | None = None
) -> bytes:
    """Draw finds with their scores on a picture, the examples in another colour.

    Parameters
    ----------
    image : ndarray, shape (H, W) or (H, W, C)
        The picture. Small ones are drawn enlarged and very large ones reduced (longest side 800 to 8000 pixels).
    boxes, scores : array_like, shapes (n, 4) and (n,)
        The finds, x0, y0, x1, y1 in pixels of `image`.
    examples : array_like, shape (m, 4), optional
        The boxes that were marked.

    Returns
    -------
    bytes
        A PNG file.
    """
    from PIL import ImageDraw

    picture, zoom = _enlarged(displayable(image))
    draw = ImageDraw.Draw(picture)
    found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * zoom
    marked = np.zeros((0, 4)) if examples is None else np.asarray(examples, dtype=np.float64).reshape(-1, 4) * zoom
    line = max(2, round(max(picture.size) / 500))
    for box in found:
        _rectangle(draw, picture.size, box, FIND_COLOUR, line)
    for box in marked:  # a little larger, so that an example that was found again shows both
        _rectangle(draw, picture.size, box + np.array([-line, -line, line, line]), EXAMPLE_COLOUR, line)
    sides = np.minimum(found[:, 2] - found[:, 0], found[:, 3] - found[:, 1])
    # A tag should not hide its find, nor can it be smaller than what can be read; among many, tiny ones go without.
    largest = round(max(picture.size) / 55)
    # The best last, so that where tags overlap it is the best that can be read.
    for box, score, side in zip(found[::-1], np.asarray(scores, dtype=np.float64)[::-1], sides[::-1], strict=True):
        if len(found) <= _TAGGED or side >= _SMALLEST_TAGGED:
            size = min(max(11, round(side / 2.6)), largest)
            _tag(draw, picture.size, box, _score_text(float(score)), size, line)
    return _png(picture)


def heat_map_png(image: npt.NDArray[Any], score_map: npt.NDArray[Any]) -> bytes:
    """Show where a thing is probable: black, purple, orange to white for 0 to 1, over the darkened picture.

    Parameters
    ----------
    image : ndarray, shape (H, W) or (H, W, C)
        The picture.
    score_map : ndarray of float, shape (H, W)
        A score from 0 to 1 for each pixel; other values are clipped, NaN counts as 0.

    Returns
    -------
    bytes
        A PNG file, enlarged or reduced like that of :func:`overlay_png`.
    """
    scores = np.asarray(score_map)
    if scores.shape != image.shape[:2]:
        raise ValueError(f"score_map must have the picture's shape {image.shape[:2]}, got {scores.shape}")
    levels = np.round(np.clip(np.nan_to_num(scores, nan=0.0), 0, 1) * 255).astype(np.uint8)
    points = np.linspace(0, 255, len(_INFERNO))
    colours = np.stack([np.interp(np.arange(256), points, band) for band in _INFERNO.T], axis=1).astype(np.uint8)
    # The dimmed grey picture shows where one is; it fades where the score itself is bright.
    grey = displayable(image).mean(axis=2, dtype=np.float32) * np.float32(0.35 / 255) * (255 - levels)
    blended = np.maximum(colours[levels], grey.astype(np.uint8)[:, :, None])
    return _png(_enlarged(blended)[0])


def score_map_tif(score_map: npt.NDArray[Any]) -> bytes:
    """Write a score map (H, W) as the bytes of a float32 TIFF file of the same size in pixels."""
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"writing TIFF needs tifffile: {INSTALL}", name=error.name) from error
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.asarray(score_map, dtype=np.float32), compression="zlib", photometric="minisblack")
    return stream.getvalue()


def precision_recall_png(curves: Sequence[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]], styles: int = 1) -> bytes:
    """Plot precision against recall.

    Parameters
    ----------
    curves : sequence of (name, recall, precision)
        One line each; recall and precision are arrays of the same length with values from 0 to 1.
    styles : int
        How many curves in a row share a colour; they differ in how they are dashed.

    Returns
    -------
    bytes
        A PNG file.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"plotting needs matplotlib: {INSTALL}", name=error.name) from error
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    for number, (name, recall, precision) in enumerate(curves):
        dashes = ("-", "--", ":", "-.")[number % styles % 4]
        axes.plot(recall, precision, dashes, color=f"C{number // styles % 10}", label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def _enlarged(shown: npt.NDArray[np.uint8]) -> tuple[Any, float]:
    """Turn an (H, W, 3) array into a Pillow picture of a size good to look at; return the factor between them too."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"drawing needs Pillow: {INSTALL}", name=error.name) from error
    picture = Image.fromarray(shown)
    longest = max(picture.size)
    zoom = 1.0
    if longest < _SMALLEST:
        zoom = float(-(-_SMALLEST // longest))
    elif longest > _LARGEST:
        zoom = _LARGEST / longest
    if zoom != 1.0:
        size = (max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom)))
        # Many times enlarged pixels are shown as squares, a little enlarged ones smoothly.
        kind = Image.Resampling.NEAREST if zoom > 8 else Image.Resampling.BICUBIC
        picture = picture.resize(size, kind)
    return picture, zoom


def _rectangle(draw: Any, size: tuple[int, int], box: npt.NDArray[np.float64], colour: str, line: int) -> None:
    # What lies outside is drawn along the border. The far edge of the last pixel is its own number plus one.
    low = np.clip(np.round(box[:2]), 0, np.array(size) - 1)
    high = np.maximum(low, np.clip(np.round(box[2:]) - 1, 0, np.array(size) - 1))
    edge = max(1, line // 2)
    # Pillow draws outlines inwards.
    draw.rectangle((*(low - edge), *(high + edge)), None, "black", line + 2 * edge)
    draw.rectangle((*low, *high), None, colour, line)


def _score_text(score: float) -> str:
    """Write 0.87 as .87, and what would be rounded to 1 as .99+, so that a tag stays short and does not overstate."""
    if not 0 <= score <= 1:
        return f"{score:.2g}"
    return "1" if score == 1 else ".99" if score >= 0.995 else f"{score:.2f}"[1:]


def _tag(draw: Any, size: tuple[int, int], box: npt.NDArray[np.float64], text: str, height: int, line: int) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(height)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = max(1, height // 6)
    wide, high = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(0, round(box[0])), max(0, size[0] - wide))
    y = round(box[1]) - high + line
    if y < 0:  # no room above: inside
        y = max(0, round(box[1]))
    draw.rectangle((x, y, x + wide - 1, y + high - 1), FIND_COLOUR)
    draw.text((x + pad - left, y + pad - top), text, "black", font=font)


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
