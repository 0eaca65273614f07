"""What is given to the detector, checked: images, boxes and options, with messages that say the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wherever.find.boxes import Boxes, overlaps
from wherever.find.features import as_image

SMALLEST_BOX = 0.5  # pixels; boxes of one pixel are fine
KINDS = ("closed", "head", "learned", "auto")
SAME_BOX = 0.9  # intersection over union


def as_boxes(boxes: ArrayLike | None, width: int, height: int, name: str) -> Boxes:
    """Return boxes as an array (n, 4) of floats, clipped to an image of this size.

    Boxes may reach outside by a pixel, as annotation tools write them.

    Raises
    ------
    TypeError
        If they are not numbers.
    ValueError
        If they do not have shape (n, 4), or one of them is not finite, is empty or reversed, or lies (partly) outside.
    """
    try:
        array = np.asarray([] if boxes is None else boxes)
        numbers = array.astype(np.float64) if array.dtype.kind in "buifO" or array.size == 0 else None
    except (TypeError, ValueError):
        numbers = None
    if numbers is None:
        raise TypeError(f"{name} must hold numbers x0, y0, x1, y1, one row a box; got {boxes!r:.80}")
    if numbers.size == 0:
        return np.zeros((0, 4))
    if numbers.ndim == 1 and numbers.shape == (4,):
        numbers = numbers[None]
    if numbers.ndim != 2 or numbers.shape[1] != 4:
        raise ValueError(f"{name} must have shape (n, 4), columns x0, y0, x1, y1; got {numbers.shape}")
    for box in numbers:
        x0, y0, x1, y1 = box
        text = f"{name}: the box x0={x0:g}, y0={y0:g}, x1={x1:g}, y1={y1:g}"
        if not np.isfinite(box).all():
            raise ValueError(f"{text} is not finite")
        if x1 - x0 < SMALLEST_BOX or y1 - y0 < SMALLEST_BOX:
            raise ValueError(
                f"{text} has width {x1 - x0:g} and height {y1 - y0:g}; both must be at least {SMALLEST_BOX} pixels "
                "(columns are x0, y0, x1, y1, not x, y, width, height)"
            )
        if x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1:
            larger = x1 - x0 > width + 1 or y1 - y0 > height + 1
            raise ValueError(
                f"{text} is {'larger than' if larger else 'not inside'} the image of {width} x {height} pixels; "
                "mark a thing that lies in it, in pixels from its top left corner"
            )
    return np.clip(numbers, 0.0, [width, height, width, height])


def as_training(
    images: ArrayLike | Sequence[ArrayLike],
    boxes: ArrayLike | Sequence[ArrayLike | None],
    negatives: ArrayLike | Sequence[ArrayLike | None] | None,
    ignore: ArrayLike | Sequence[ArrayLike | None] | None = None,
) -> tuple[list[NDArray[Any]], list[Boxes], list[Boxes], list[Boxes]]:
    """Return images (H, W, C), and boxes, negatives and regions to ignore of each, (n, 4).

    Given are one image, or a sequence of images.
    """
    several = isinstance(images, (list, tuple)) and any(np.ndim(image) >= 2 for image in images)
    if several:
        pictures = [as_image(image, f"images[{n}]") for n, image in enumerate(cast("Sequence[ArrayLike]", images))]
    else:
        pictures = [as_image(cast("ArrayLike", images), "images")]
    for number, picture in enumerate(pictures):
        finite = picture if picture.dtype.kind != "f" else picture[np.isfinite(picture).all(axis=2)][None]
        if finite.size and (finite == finite[:1, :1]).all():
            raise ValueError(
                f"{f'images[{number}]' if several else 'the image'} is of one colour throughout; "
                "there is nothing to learn from"
            )
    channels = [picture.shape[2] for picture in pictures]
    if len(set(channels)) > 1:
        raise ValueError(
            f"all images must have the same number of channels; got {channels}; choose bands, or convert some of them"
        )
    checked = []
    for given, name in ((boxes, "boxes"), (negatives, "negatives"), (ignore, "ignore")):
        if given is None:
            each: Sequence[ArrayLike | None] = [None] * len(pictures)
        elif several:
            each = list(cast("Sequence[ArrayLike | None]", given))
        else:
            each = [cast("ArrayLike", given)]
        if several and len(each) != len(pictures):
            raise ValueError(f"{name} must be one array (n, 4) an image; got {len(each)} for {len(pictures)} images")
        checked.append(
            [
                as_boxes(b, p.shape[1], p.shape[0], f"{name}[{n}]" if several else name)
                for n, (b, p) in enumerate(zip(each, pictures, strict=True))
            ]
        )
    if not any(len(b) for b in checked[0]):
        raise ValueError("there is no example: boxes must hold at least one box, x0, y0, x1, y1 in pixels")
    for number, (examples, others) in enumerate(zip(*checked[:2], strict=True)):
        if len(examples) and len(others) and (same := overlaps(examples, others) > SAME_BOX).any():
            x0, y0, x1, y1 = examples[np.flatnonzero(same.any(axis=1))[0]]
            where = f"boxes[{number}]" if several else "boxes"
            raise ValueError(
                f"{where}: the box x0={x0:g}, y0={y0:g}, x1={x1:g}, y1={y1:g} is marked both as an example and as a "
                "negative; keep one of them"
            )
    return pictures, checked[0], checked[1], checked[2]


def as_kind(kind: str) -> str:
    """Return the kind of detector, checked."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}; got {kind!r}")
    return kind


def as_budget(budget: float) -> float:
    """Return the seconds that training may take, checked."""
    seconds = float(budget) if isinstance(budget, (int, float, np.number)) and not isinstance(budget, bool) else -1.0
    if not 0 < seconds < np.inf:
        raise ValueError(f"budget must be a number of seconds above 0; got {budget!r}")
    return seconds


def as_count(value: int, name: str) -> int:
    """Return a parameter that must be a whole number of at least 1, checked."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
    return int(value)


def as_scales(scales: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the range of scales, checked."""
    if scales is None:
        return None
    try:
        low, high = (float(s) for s in scales)
    except (TypeError, ValueError) as error:
        raise TypeError(f"scales must be two numbers, smallest and largest, or None; got {scales!r}") from error
    if not (0 < low <= high < np.inf):
        raise ValueError(f"scales must be 0 < smallest <= largest; got {scales!r}")
    return low, high
