"""The table of the ladder: what every rung holds, needs and does, and how long it takes here."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import numpy.typing as npt

from wherever.ladder.counts import Count, Shape, Sizes, checked_channels, checked_delta, checked_shape
from wherever.ladder.layers import Convolution, FullyConnected, Local, TranslationInvariant, all_offsets
from wherever.ladder.memory import available_memory
from wherever.ladder.words import by, in_bytes, in_seconds, indices, rounded, whole
from wherever.problem import Array, integer


@dataclass(frozen=True)
class Row:
    """One rung in the table.

    Attributes
    ----------
    name : str
    formula : str
        The weights as the source writes them.
    count : Count
    source : int or None
        The number of weights that the source gives for this rung, rounded as there; None where it gives none.
    bytes, bytes_to_run : int
        Of the parameters; of these with the image and the hidden representation.
    fits : bool or None
        Whether bytes_to_run are free on this machine; None if that is not known.
    seconds : float or None
        Best of a few runs of the layer on the picture, everything included; None if not measured.
    note : str
        Why a rung that fits was not measured; empty else.
    """

    name: str
    formula: str
    count: Count
    source: int | None
    bytes: int
    bytes_to_run: int
    fits: bool | None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """The ladder in numbers for one image and one hidden representation; print it, or take it as dict, JSON or plot.

    Attributes
    ----------
    image, hidden, delta : tuple of int
    channels : tuple of int
        How many in, how many out, in the last row.
    dtype : str
    available : int or None
        Bytes of memory free when the table was made.
    picture : str
        What the times were measured on.
    rows : tuple of Row
        From the source's cats and dogs (1000 hidden units) down to the convolution.
    """

    image: Shape
    hidden: Shape
    delta: Shape
    channels: tuple[int, int]
    dtype: str
    available: int | None
    picture: str
    rows: tuple[Row, ...]

    HEADER: ClassVar = (
        "rung",
        "of the form",
        "how many",
        "the source",
        "biases",
        "memory",
        "multiply-adds",
        "upper number",
        "here",
        "time",
    )

    LEFT: ClassVar = (0, 1, 8)  # columns of words, set to the left; numbers to the right

    def cells(self) -> list[tuple[str, ...]]:
        """Give the table as text, a tuple in the order of `HEADER` for each row."""
        return [
            (
                row.name,
                row.formula,
                whole(row.count.weights),
                "-" if row.source is None else whole(row.source),
                whole(row.count.biases),
                in_bytes(row.bytes),
                rounded(row.count.multiply_adds),
                rounded(row.count.multiply_adds_upper),
                {True: "fits", False: f"needs {in_bytes(row.bytes_to_run)}", None: "unknown"}[row.fits],
                row.note or "-" if row.seconds is None else in_seconds(row.seconds),
            )
            for row in self.rows
        ]

    def title(self) -> str:
        """Give one line that says what the table is about."""
        c, d = self.channels
        return f"image {by(self.image)}, hidden {by(self.hidden)}, Δ = {by(self.delta)}, channels {c}:{d}, {self.dtype}"

    def caption(self) -> str:
        """Give the lines below the table: the memory, the picture, what the columns mean."""
        free = "not known" if self.available is None else in_bytes(self.available)
        measured = f" Times: the best of a few runs on {self.picture}." if self.picture else ""
        return (
            f"Free memory here: {free}.{measured}\n"
            "Multiply-adds: the terms of one image whose pixel lies inside it; upper number: all terms of the sums."
        )

    def __str__(self) -> str:
        lines = [self.HEADER, *self.cells()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.HEADER))]
        text = [
            "  ".join(
                cell.ljust(width) if column in self.LEFT else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, text))
        return "\n".join([self.title(), "", text[0], rule, *text[1:], rule, self.caption()])

    def to_dict(self) -> dict[str, Any]:
        """Give everything in plain Python types."""
        content = asdict(self)
        for row, plain in zip(self.rows, content["rows"], strict=True):
            plain["count"]["parameters"] = row.count.parameters
        return content

    def to_json(self) -> str:
        """Give everything as JSON; numbers are exact."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def plot(self, path: str | Path | IO[bytes], *, file_format: str | None = None) -> None:
        """Draw weights and memory of every rung, on a logarithmic scale, with what fits here; needs matplotlib.

        Parameters
        ----------
        path : str, Path or binary file
            Where to write it; the ending of the name chooses the format.
        file_format : str, optional
            "png", "svg", "pdf"; needed for a file without a name.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        fits, too_large, ink, grey = "#2f7f86", "#c9503c", "#222222", "#6b6b6b"
        itemsize = np.dtype(self.dtype).itemsize
        figure = Figure(figsize=(10.5, 1.9 + 0.78 * len(self.rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_xscale("log")
        # Room for the words behind the longest bar: they are about a third as wide as the axis.
        axes.set_xlim(0.5, max(row.count.weights for row in self.rows) ** 1.5)
        if self.available is not None:
            axes.axvline(self.available / itemsize, color=grey, linewidth=1, linestyle=(0, (5, 3)), zorder=0)
            where = (self.available / itemsize, len(self.rows) - 0.42)
            axes.annotate(f" {in_bytes(self.available)} free here", where, va="bottom", fontsize=9, color=grey)
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # hides the line where words cross it
        for y, row in enumerate(self.rows):
            axes.barh(y, row.count.weights, height=0.56, color=too_large if row.fits is False else fits, zorder=2)
            says = _typeset(whole(row.count.weights))
            if row.source is not None and row.source != row.count.weights:
                says += f"  (the source: {_typeset(whole(row.source))})"
            state = {True: "fits", False: "does not fit", None: "memory unknown"}[row.fits]
            measured = "" if row.seconds is None else f", runs in {in_seconds(row.seconds)}"
            words: dict[str, Any] = {
                "xy": (row.count.weights, y),
                "textcoords": "offset points",
                "bbox": paper,
                "zorder": 3,
            }
            axes.annotate(says, xytext=(7, 2), va="bottom", fontsize=10, color=ink, **words)
            more = f"{in_bytes(row.bytes)}, {state}{measured}"
            axes.annotate(more, xytext=(7, -2), va="top", fontsize=9, color=grey, **words)
        axes.set_ylim(len(self.rows) - 0.4, -0.6)
        axes.set_yticks(range(len(self.rows)), [f"{row.name}\n{row.formula}" for row in self.rows])
        axes.tick_params(axis="y", length=0)
        axes.spines[["left", "right"]].set_visible(False)
        axes.set_xlabel("weights")

        def to_bytes(weights: Any) -> Any:
            return weights * itemsize

        def to_weights(size: Any) -> Any:
            return size / itemsize

        axes.secondary_xaxis("top", functions=(to_bytes, to_weights)).set_xlabel(f"bytes ({self.dtype})")
        figure.suptitle(self.title(), fontsize=11)
        figure.savefig(path, dpi=150, format=file_format)


def _typeset(number: str) -> str:
    """Turn 10^12 into what matplotlib sets with a raised exponent."""
    return re.sub(r"\^(\d+)", r"$^{\1}$", number)


def table(
    image: Sizes = (1000, 1000),
    hidden: Sizes | None = None,
    delta: Sizes = 10,
    channels: Iterable[int] = (3, 16),
    *,
    units: int = 1000,
    measure: bool = True,
    image_data: npt.ArrayLike | None = None,
    dtype: npt.DTypeLike = "float32",
    progress: Callable[[str], None] | None = None,
) -> Table:
    """Make the table of the ladder: what every rung holds, needs and does, and how long it takes here.

    Parameters
    ----------
    image : int or sequence of int
        Spatial shape of the image, in any number of dimensions.
    hidden : int or sequence of int, optional
        Spatial shape of the hidden representation, with as many dimensions; that of the image if not given.
    delta : int or one int for each dimension
    channels : (int, int)
        Channels in and out, for the last rung. The others have none.
    units : int
        Hidden units in the first row, the source's network for cats and dogs.
    measure : bool
        Whether to run the rungs that fit into the free memory.
    image_data : array, shape (*image) or (*image, c), optional
        The picture to run on. Otherwise scikit-image's retina, cut or resized, for two dimensions where scikit-image
        is installed; noise for other dimensions.
    dtype : floating dtype of weights and image
    progress : callable, optional
        Told in a few words before each measurement.

    Returns
    -------
    Table

    Raises
    ------
    ValueError
        If shapes, delta or channels are not positive (delta: not negative) integers of matching length.
    """
    inputs = checked_shape("image", image)
    hiddens = inputs if hidden is None else checked_shape("hidden", hidden)
    if len(hiddens) != len(inputs):
        raise ValueError(
            f"hidden is {by(hiddens)} and image {by(inputs)}; they need equally many dimensions, since a kernel's "
            "offsets lead from one to the other (for hidden units without a place, use units)"
        )
    reach, pair = checked_delta(delta, len(inputs)), checked_channels(channels)
    units = integer("units", units, minimum=1)
    kind = np.dtype(dtype)
    if kind.kind != "f":
        raise ValueError(f"dtype is {kind}; it must be a floating dtype")
    given = None if image_data is None else _given_picture(inputs, image_data)
    free = available_memory()
    pixels, picture = None, ""
    rows = []
    for rung in _rungs(inputs, hiddens, reach, pair, units, kind):
        needed, room = rung.count.bytes_to_run(kind), rung.working_bytes(kind)
        fits = None if free is None else needed <= free
        seconds, note = None, ""
        if measure and free is not None and needed <= free < room:
            note = f"needs {in_bytes(room)} to work in"
        elif measure and fits is not False:
            if progress is not None:
                progress(rung.name)
            if pixels is None:
                pixels, picture = (given, "the given image") if given is not None else _picture(inputs)
            seconds = _best_time(partial(rung.build(), _with_channels(pixels, rung.channels, kind)))
        row = Row(rung.name, rung.formula, rung.count, rung.source, rung.count.bytes(kind), needed, fits, seconds, note)
        rows.append(row)
    return Table(inputs, hiddens, reach, pair, kind.name, free, picture, tuple(rows))


@dataclass(frozen=True)
class _Rung:
    """What the table must know of a rung before there is a layer; `build` makes one and gives the function to time."""

    name: str
    formula: str
    count: Count
    source: int | None
    build: Callable[[], Callable[[Array], Array]]
    channels: int | None = None  # of the image it runs on; None for an image without an axis for channels
    transforms: bool = True

    def working_bytes(self, dtype: npt.DTypeLike) -> int:
        """Bytes that should be free before it is run for the table.

        A kernel as large as the image is applied through the spectra of both, padded to twice or three times their
        length and complex; eight times what is transformed is room for that. A matrix is only read, but a machine
        should not be filled to the brim for a table.
        """
        pixels = (self.count.input_values + self.count.hidden_values) * np.dtype(dtype).itemsize
        return 8 * pixels + (8 if self.transforms else 2) * self.count.bytes(dtype)


def _rungs(
    inputs: Shape, hiddens: Shape, reach: Shape, channels: tuple[int, int], units: int, dtype: np.dtype[Any]
) -> list[_Rung]:
    """List the rungs from the top; nothing is allocated before one is built."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> Array:
        # Not a constant: a planner that looks for separable kernels must not find one.
        return (rng.standard_normal(shape) / math.prod(shape)).astype(dtype)

    def mean(*shape: int) -> FullyConnected:
        # Constant, since a billion random numbers would add nothing: every hidden unit is the mean of the image.
        return FullyConnected(np.full(shape + inputs, 1 / math.prod(inputs), dtype), np.zeros(shape, dtype))

    def across() -> Callable[[Array], Array]:
        V = random(*all_offsets(hiddens, inputs))
        return partial(TranslationInvariant(V, centre=[h - 1 for h in hiddens]), hidden_shape=hiddens)

    kernel = [2 * r + 1 for r in reach]
    i, k, a = (indices(letters, len(inputs)) for letters in ("ij", "kl", "ab"))
    return [
        _Rung(
            f"cats and dogs, {units} hidden units",
            f"W[i,{k}]",
            FullyConnected.describe(inputs, units),
            math.prod(inputs) * units,
            lambda: mean(units),
            transforms=False,
        ),
        _Rung(
            "fully connected",
            f"W[{i},{k}]",
            FullyConnected.describe(inputs, hiddens),
            math.prod(inputs) * math.prod(hiddens),
            lambda: mean(*hiddens),
            transforms=False,
        ),
        _Rung(
            "translation invariant",
            f"V[{a}]",
            TranslationInvariant.describe(inputs, hiddens),
            math.prod(n + h for n, h in zip(inputs, hiddens, strict=True)),  # 2000^2: its 4·10^6
            across,
        ),
        _Rung(
            "local",
            f"V[{a}], near",
            Local.describe(inputs, hiddens, delta=reach),
            math.prod(2 * r for r in reach),  # its 4Δ^2
            lambda: partial(Local(random(*kernel)), hidden_shape=hiddens),
        ),
        _Rung(
            "convolution",
            f"V[{a},c,d], near",
            Convolution.describe(inputs, hiddens, delta=reach, channels=channels),
            None,
            lambda: partial(Convolution(random(*kernel, *channels)), hidden_shape=hiddens),
            channels[0],
        ),
    ]


def _best_time(run: Callable[[], Any], budget: float = 1.0) -> float:
    """Give the least seconds of up to ten runs, as many as fit the budget, after one that may plan and compile."""
    run()
    times: list[float] = []
    while not times or (len(times) < 10 and sum(times) + min(times) < budget):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def _given_picture(shape: Shape, data: npt.ArrayLike) -> Array:
    """Check a picture to measure on and give it an axis for channels."""
    given = np.asarray(data)
    if (
        given.shape[: len(shape)] != shape
        or given.ndim > len(shape) + 1
        or given.size == 0
        or given.dtype.kind not in "uifb"
    ):
        raise ValueError(
            f"image_data has shape {given.shape} and dtype {given.dtype}; it must be real numbers of shape {shape}, "
            "with one more axis at most, for channels"
        )
    return given.reshape(*shape, -1)


def _picture(shape: Shape) -> tuple[Array, str]:
    """Find a picture (*shape, 3) to measure on, and say what it is."""
    if len(shape) != 2:
        return _noise(shape)
    try:
        from skimage import data, transform

        bundled: Any = data  # scikit-image has no types
        resize: Any = transform.resize
        picture: Array = bundled.retina()
    except (ImportError, OSError):  # not installed, or a build without pictures, which could only download them
        return _noise(shape)
    given = picture.shape[:2]
    name = f"scikit-image's picture of a retina, {by(given)}"
    if given[0] < shape[0] or given[1] < shape[1]:
        return resize(picture, shape, order=1), f"{name}, resized to {by(shape)}"
    top, left = (given[0] - shape[0]) // 2, (given[1] - shape[1]) // 2
    return picture[top : top + shape[0], left : left + shape[1]], f"{name}, its middle {by(shape)}"


def _noise(shape: Shape) -> tuple[Array, str]:
    return np.random.default_rng(1).random((*shape, 3), dtype=np.float32), "noise"


def _with_channels(pixels: Array, channels: int | None, dtype: np.dtype[Any]) -> Array:
    """Give the picture without channels (their mean), or with as many as asked for, repeated in turn."""
    if channels is None:
        grey: Array = pixels.mean(axis=-1, dtype=np.float64)
        return grey.astype(dtype)
    return np.ascontiguousarray(pixels[..., np.arange(channels) % pixels.shape[-1]], dtype)
