"""What `equivariance` found: errors by layer and shift, and which strides, poolings, paddings and borders break it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from wherever.check.inputs import Floats
from wherever.check.words import lines, percent

Shift: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """How far one layer is from equivariant. Errors are relative to the root mean square of its output.

    Attributes
    ----------
    name, kind : str
        Of the module, and what it is; the last of a model is "the whole".
    places : tuple of int
        Its spatial shape; () for a layer without places, which should not change at all.
    stride : tuple of Fraction, or None
        Pixels of the image from one place to the next, in all.
    window : tuple of int or None, or None
        Pixels of the image that a place sees along each axis; None where that is the whole axis.
    margins : tuple of (int, int) or None, or None
        Places along each axis, before and behind, that see a border.
    inside, border, whole : array, shape (n,)
        Error for each shift, at the places that see no border before and after it, at the others, and at all. NaN
        where there are none.
    on_stride : array of bool, shape (n,)
        Which shifts move the output by whole places. Others are compared with what lies between two places.
    map, map_between : array of the shape `places`, or None
        Error at each place, over the shifts by whole places, and over the others; NaN where nothing could be compared.
    """

    name: str
    kind: str
    places: tuple[int, ...]
    stride: tuple[Fraction, ...] | None
    window: tuple[int | None, ...] | None
    margins: tuple[tuple[int, int] | None, ...] | None
    inside: Floats
    border: Floats
    whole: Floats
    on_stride: npt.NDArray[np.bool_]
    map: Floats | None
    map_between: Floats | None

    @property
    def has_inside(self) -> bool:
        """Whether any place sees no border."""
        return self.margins is not None and all(margin is not None for margin in self.margins)

    @property
    def total_stride(self) -> int:
        """The distance between shifts that move the output by whole places, in pixels."""
        return math.lcm(*(s.numerator for s in self.stride)) if self.stride else 1

    def error(self, kind: str, *, on_stride: bool = True) -> float:
        """Give the largest error "inside", at the "border" or on the "whole": by whole places, or by others."""
        values = getattr(self, kind)[self.on_stride == on_stride]
        values = values[~np.isnan(values)]
        return float(values.max()) if len(values) else math.nan

    def period(self, shifts: tuple[Shift, ...], tolerance: float) -> int | None:
        """Find the least p for whose multiples the inside is exact, among the shifts; None if there is none."""
        steps = [math.gcd(*shift) for shift in shifts]
        known = [(step, error) for step, error in zip(steps, self.inside, strict=True) if not math.isnan(error)]
        for p in sorted({step for step, _ in known}):
            if all(error <= tolerance for step, error in known if step % p == 0):
                return p
        return None


@dataclass(frozen=True)
class Equivariance:
    """How far a model is from equivariant, layer by layer; print it, or plot it.

    Attributes
    ----------
    shifts : tuple of tuple of int
        In pixels, a number for each spatial axis.
    size : tuple of int
        Spatial shape of the images.
    boundary : str
        What moved into the image.
    tolerance : float
        Error up to which a layer counts as equivariant.
    layers : tuple of Layer
        In the order in which they are computed.
    part : tuple of int
        Spatial shape of the part of each image that was looked at.
    """

    shifts: tuple[Shift, ...]
    size: tuple[int, ...]
    boundary: str
    tolerance: float
    layers: tuple[Layer, ...]
    part: tuple[int, ...]

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"{name!r}: there is {', '.join(layer.name for layer in self.layers)}")

    @property
    def equivariant(self) -> bool:
        """Whether the last layer is equivariant for every shift, borders included."""
        return bool((self.layers[-1].whole <= self.tolerance).all())

    def breaks(self) -> list[tuple[Layer, str]]:
        """Find what breaks equivariance: each layer at which something new goes wrong, and what that is."""
        found: list[tuple[Layer, str]] = []
        stride, period, known = 1, 1, set()

        def first(what: str) -> bool:
            new = what not in known
            known.add(what)
            return new

        for layer in self.layers:
            words = []
            if layer.stride is None:
                changed = layer.error("whole")
                if first("no places"):
                    words.append(
                        "has no places and does not change"
                        if changed <= self.tolerance
                        else f"has no places; shifts change it by up to {percent(changed)}"
                    )
            elif not layer.has_inside:
                changed = layer.error("whole")
                if changed > self.tolerance and first("no inside"):
                    seen = f"sees a border from every place{{}}, and differs by up to {percent(changed)}{{}}"
                    if self.part == self.size:
                        seen = seen.format("", "; larger images would show whether it is exact inside")
                    words.append(seen.format(" of the part looked at", ""))
            else:
                between = layer.error("inside", on_stride=False)
                if layer.total_stride > stride and between > self.tolerance:
                    words.append(
                        f"places are {layer.total_stride} pixels apart; shifts by anything but multiples of "
                        f"{layer.total_stride} change the inside by up to {percent(between)}"
                    )
                stride = max(stride, layer.total_stride)
                inside, exact = layer.error("inside"), layer.period(self.shifts, self.tolerance)
                if inside > self.tolerance and exact is None and first("position"):
                    words.append(f"depends on the position: the inside differs by up to {percent(inside)}")
                elif inside > self.tolerance and exact is not None and exact > max(period, layer.total_stride):
                    words.append(f"is exact inside for multiples of {exact} alone; else differs by {percent(inside)}")
                    period = exact
                border = layer.error("border")
                if border > self.tolerance and first("border"):
                    words.append(f"its border, {_wide(layer)}, differs by up to {percent(border)}")
            found += [(layer, word) for word in words]
        return found

    @property
    def sentence(self) -> str:
        """What breaks equivariance and how far, in words; a line for each layer at which something new goes wrong."""
        last = self.layers[-1]
        if len(self.layers) == 1:
            return f"{_named(last)}: {self._verdict(last)}."
        by_layer: dict[str, tuple[Layer, list[str]]] = {}
        for layer, word in self.breaks():
            by_layer.setdefault(layer.name, (layer, []))[1].append(word)
        text = [f"{_named(layer)}: {'; '.join(words)}." for layer, words in by_layer.values()]
        text.append(f"{_named(last)}: {self._verdict(last)}.")
        return "\n".join(text)

    def _verdict(self, layer: Layer) -> str:
        """Say what holds of a layer, be it its own doing or not."""
        worst = float(np.nanmax(layer.whole))
        if worst <= self.tolerance:
            kept = "does not change" if layer.stride is None else "equivariant, borders included"
            return f"{kept}, for all {len(self.shifts)} shifts"
        if layer.stride is None:
            return f"shifts change it by up to {percent(worst)}, by {percent(float(layer.whole.mean()))} on average"
        if not layer.has_inside:
            return f"every place sees a border; differs by up to {percent(worst)}"
        exact, border = layer.period(self.shifts, self.tolerance), layer.error("border")
        if exact is None:
            first = f"nowhere exact inside, where it differs by up to {percent(float(np.nanmax(layer.inside)))}"
        else:
            which = "" if exact == 1 else f" for shifts by multiples of {exact}"
            first = f"exact inside{which}"
        if border <= self.tolerance or math.isnan(border):
            return first
        return f"{first}; its border, {_wide(layer)}, differs by up to {percent(border)}"

    HEADER: ClassVar = ("layer", "what it is", "places", "stride", "sees", "exact for", "inside", "border", "between")

    def cells(self) -> list[tuple[str, ...]]:
        """Give the table as text, a tuple in the order of `HEADER` for each layer."""
        rows: list[tuple[str, ...]] = []
        for layer in self.layers:
            if layer.stride is None or layer.window is None:
                rows.append((layer.name, layer.kind, "none", "", "all", "", _error(layer.error("whole")), "", ""))
                continue
            exact = layer.period(self.shifts, self.tolerance) if layer.has_inside else None
            which = "none" if exact is None else f"multiples of {exact}" if exact > 1 else "all"
            rows.append(
                (
                    layer.name,
                    layer.kind,
                    _by(layer.places),
                    _by(layer.stride),
                    _by("all" if window is None else window for window in layer.window),
                    which if layer.has_inside else "",
                    _error(layer.error("inside")),
                    _error(layer.error("border")),
                    _error(layer.error("inside", on_stride=False)),
                )
            )
        return rows

    def __str__(self) -> str:
        part = "" if self.part == self.size else f" (looked at: a part of {_by(self.part)})"
        title = f"images of {_by(self.size)} pixels{part}, {len(self.shifts)} shifts, boundary {self.boundary!r}"
        note = (
            "Largest errors, relative to the output's root mean square: inside and border for shifts by whole places, "
            "between for the others."
        )
        return f"{title}\n\n{lines(self.HEADER, self.cells(), left=(0, 1))}\n{note}\n\n{self.sentence}"

    def to_dict(self) -> dict[str, Any]:
        """Give everything in plain Python types; None where a number is not defined."""
        layers = []
        for layer in self.layers:
            plain: dict[str, Any] = {"name": layer.name, "kind": layer.kind, "places": list(layer.places)}
            plain["stride"] = None if layer.stride is None else [float(s) for s in layer.stride]
            plain["window"] = None if layer.window is None else list(layer.window)
            plain["margins"] = None if layer.margins is None else [m and list(m) for m in layer.margins]
            plain["exact_for_multiples_of"] = layer.period(self.shifts, self.tolerance) if layer.has_inside else None
            for name in ("inside", "border", "whole"):
                plain[name] = [None if math.isnan(value) else value for value in getattr(layer, name).tolist()]
            plain["on_stride"] = layer.on_stride.tolist()
            layers.append(plain)
        return {
            "shifts": [list(shift) for shift in self.shifts],
            "size": list(self.size),
            "part": list(self.part),
            "boundary": self.boundary,
            "tolerance": self.tolerance,
            "equivariant": self.equivariant,
            "sentence": self.sentence,
            "layers": layers,
        }

    def plot(self, path: str | Path | IO[bytes], *, file_format: str | None = None) -> None:
        """Draw the errors by layer and shift, and maps of where the layers break; needs matplotlib.

        Parameters
        ----------
        path : str, Path or binary file
            Where to write it; the ending of the name chooses the format.
        file_format : str, optional
            "png", "svg", "pdf"; needed for a file without a name.
        """
        from wherever.check.plots import draw_layers

        draw_layers(path, self, file_format)


def _named(layer: Layer) -> str:
    return f"{layer.name} ({layer.kind})" if layer.kind and layer.kind != layer.name else layer.name


def _wide(layer: Layer) -> str:
    widest = max(max(margin) for margin in layer.margins or () if margin is not None)
    return f"{widest} place{'' if widest == 1 else 's'} wide"


def _by(parts: Any) -> str:
    words = [str(part) for part in parts]
    return words[0] if len(set(words)) == 1 and len(words) > 1 and words[0] == "all" else " x ".join(words)


def _error(value: float) -> str:
    if math.isnan(value):
        return ""
    if 0 < value < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-")
    return percent(value) if value else "0"
