"""Models as functions from an image to the outputs of all layers, and the part of a large image that they are given."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from wherever.check.probes import Array, Borders, borders, noises

_LARGE = 1 << 16  # pixels up to which images are looked at as a whole
_FIRST = 64  # pixels a side of the part on which it is tried how far borders are seen
_MOST_PIXELS, _LONGEST = 1 << 20, 4096  # of a part, and of a side of it
_MOST_VALUES = 1 << 27  # of all layers, for a part
_SHIFTS, _ROOM = 8, 32  # pixels by which parts are shifted at least; and what is left inside of them
_POSITIONS = 5  # along each axis, of parts of which that with most contrast is taken


class Model(Protocol):
    """Gives the outputs of all layers by name, as float64."""

    kinds: dict[str, str]

    @property
    def exact(self) -> bool: ...  # noqa: D102
    def __call__(self, x: Array) -> dict[str, Array]: ...  # noqa: D102


class Function:
    """A callable from array to array, or from tensor to tensor, as a model of one layer.

    Raises
    ------
    ValueError
        If its result on an image that it is tried on is not finite.
    """

    def __init__(self, function: Callable[[Any], Any], image: Array, *, tensors: bool) -> None:
        self._function, self._tensors = function, tensors
        self.kinds: dict[str, str] = {}
        self.exact = image.dtype.kind != "f" or image.dtype.itemsize >= 8
        if not np.isfinite(self(image)["model"]).all():
            raise ValueError("model: its result has NaN or infinite values")

    def __call__(self, x: Array) -> dict[str, Array]:
        """Call the function."""
        given: Any = sys.modules["torch"].from_numpy(np.ascontiguousarray(x)) if self._tensors else x
        result = self._function(given)
        result = result.detach().cpu().numpy() if hasattr(result, "detach") else result
        return {"model": np.asarray(result, dtype=np.float64)}


def given(model: Any, x: Any) -> tuple[list[Array], Callable[[Array], Model], bool]:
    """Check a model and images.

    Returns
    -------
    images : list of array
        One by one; a module's with the axis of the batch.
    make : callable(image) -> Model
        Makes the model of an image that it is tried on.
    batch : bool
        Whether axis 0 is that of a batch.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        if not isinstance(x, torch.Tensor):
            x = torch.as_tensor(np.asarray(x))
        if x.ndim < 3 or 0 in x.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; a module takes images (N, C, *S), with pixels")
        from wherever.check.recording import Recorder

        return [image[None].numpy() for image in x.detach().cpu()], lambda image: Recorder(model, image), True
    if not callable(model):
        raise TypeError(f"model is {type(model).__name__}; it must be a torch.nn.Module or another callable")
    tensors = torch is not None and isinstance(x, torch.Tensor)
    image = x.detach().cpu().numpy() if tensors else np.asarray(x)
    if image.ndim < 1 or image.size == 0 or image.dtype.kind not in "uifb":
        raise ValueError(f"x has shape {image.shape} and dtype {image.dtype}; it must hold real numbers")
    return [image], lambda image: Function(model, image, tensors=tensors), False


def parts(
    images: list[Array],
    make: Callable[[Array], Model],
    axes: tuple[int, ...],
    shifts: Sequence[Sequence[int]],
    *,
    batch: bool,
) -> tuple[list[Array], Model]:
    """Return what is to be looked at of images, and the model: of large images as much as its layers ask for.

    A part holds what a place of any layer sees, the shifts, and some places that see no border before and after
    them. Where the layers see too much for that, they are not counted. Of each image the part with most contrast is
    taken. Images whose size the model does not let be changed are looked at as a whole.

    Parameters
    ----------
    images, make, batch
        See `given`.
    axes : tuple of int
        The spatial axes.
    shifts : sequence of tuple of int
        Those that are asked for, if any.
    """
    whole = _sizes(images[0], axes)
    if math.prod(whole) <= _LARGE:
        return images, make(images[0])
    try:
        model = make(_part(images[0], axes, [min(_FIRST, n) for n in whole]))
        sizes = _enough(model, images[0], axes, shifts, batch=batch)
        chosen = [_part(image, axes, sizes) for image in images]
        model(chosen[0])
    except Exception:  # whatever a model raises that knows one size alone
        return images, make(images[0])
    return chosen, model


def _enough(
    model: Model, image: Array, axes: tuple[int, ...], shifts: Sequence[Sequence[int]], *, batch: bool
) -> list[int]:
    """Choose the size of a part."""
    whole, side = _sizes(image, axes), _FIRST
    while True:
        sizes = [min(side, n) for n in whole]
        base, other = noises(_part(image, axes, sizes), axes, batch=batch)
        kept = model(base)
        seen = borders(model, base, other, axes, kept)
        copies = len(base) if batch else 1
        each = sum(y.size for y in kept.values()) / copies / math.prod(sizes)
        longest = min(_LONGEST, int(min(_MOST_PIXELS, _MOST_VALUES / each) ** (1 / len(axes))))
        blind = any(seen.blind[i] and size < n for i, (size, n) in enumerate(zip(sizes, whole, strict=True)))
        if not blind or 2 * side > longest:
            return [_wanted(seen, i, [abs(move[i]) for move in shifts], n) for i, n in enumerate(whole)]
        side *= 2


def _wanted(seen: Borders, axis: int, shifts: Sequence[int], most: int) -> int:
    """Give the pixels of a part along an axis."""
    stride = seen.stride[axis]
    size = seen.widest[axis] + max(shifts or [_SHIFTS, 2 * stride]) + max(_ROOM, 2 * stride + 2)
    unit = _FIRST if _FIRST % stride == 0 else math.lcm(stride, 16)  # a size that all layers take
    return min(-(-size // unit) * unit, most)


def _sizes(image: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(image.shape[axis] for axis in axes)


def _part(image: Array, axes: tuple[int, ...], sizes: Sequence[int]) -> Array:
    """Return the part with most contrast, of some that are spread evenly over an image."""
    starts = [
        np.unique(np.linspace(0, image.shape[axis] - size, _POSITIONS).astype(np.int64)).tolist()
        for axis, size in zip(axes, sizes, strict=True)
    ]
    found = []
    for place in itertools.product(*starts):
        index = [slice(None)] * image.ndim
        for axis, start, size in zip(axes, place, sizes, strict=True):
            index[axis] = slice(start, start + size)
        found.append(image[tuple(index)])
    contrast = [float(np.std(part, dtype=np.float64)) for part in found]
    return np.ascontiguousarray(found[int(np.argmax(np.nan_to_num(contrast, nan=-1.0)))])
