"""What is measured: layers of known networks, families of filters, signals and gradients, and what each is to reach."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBLEMS = Path(__file__).with_name("problems.json")


@dataclass(frozen=True)
class Case:
    """One thing to compute, with channels first.

    Attributes
    ----------
    family, part, name : str
        A row of the table of targets, a kind within it, and what this case is called.
    kind : {"conv", "training", "gaussian", "template", "threads"}
        A convolution; one whose weights come with every call; a Gaussian of width ``sigma``; the normalised correlation
        of x with a template w; a convolution whose peer is itself on one thread.
    x, w : tuple of int
        (N, C, *S) and (K, C / groups, *R).
    """

    family: str
    part: str
    name: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    kind: str = "conv"
    direction: str = "forward"
    dtype: str = "float32"
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    boundary: str = "zeros"
    sigma: float = 0.0

    def __post_init__(self) -> None:
        spatial = len(self.w) - 2
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
            object.__setattr__(self, name, tuple(getattr(self, name) or (default,) * spatial))

    @property
    def options(self) -> dict[str, Any]:
        """Geometry, as `wherever.conv` takes it."""
        names = ("stride", "padding", "dilation", "groups", "boundary")
        return {name: getattr(self, name) for name in names}

    @property
    def output(self) -> tuple[int, ...]:
        """Spatial sizes of the result of the forward direction."""
        each = zip(self.x[2:], self.w[2:], self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - (r - 1) * d - 1) // s + 1 for n, r, s, p, d in each)

    @property
    def multiply_adds(self) -> int:
        """Of direct summation."""
        return self.x[0] * math.prod(self.output) * math.prod(self.w)

    def __str__(self) -> str:
        return f"{self.family} | {self.part} | {self.name}"


# What each family is to reach over the best peer: the geometric mean, and the lowest case.
DENSE, CUBES, OTHERS = "dense 3x3", "dense 3x3x3", "1x1, strided, dilated, 1-D, first layers"
REST = "other dense layers"
FIVE, SEVEN, NINE, LARGE = "dense 5x5", "dense 7x7", "dense 9x9", "dense 11x11 to 31x31"
DEPTHWISE, WIDE_DEPTHWISE = "depthwise up to 7x7", "depthwise 9x9 to 31x31"
DOUBLE, BY_INPUT, BY_WEIGHT = "float64", "gradient by input, 3x3", "gradient by weight"
TRAINING = "gradient by input, small or strided, weights in every call"
FILTERS = ("filter 3x3 to 7x7", "filter 9x9 to 127x127", "filter 255x255 to 1023x1023")
GAUSSIAN, SIGNAL, TEMPLATE, THREADS = "Gaussian", "1-D filter", "template matching", "two threads over one"
TARGETS: dict[str, tuple[float, float]] = {
    DENSE: (2.4, 1.2),
    CUBES: (2.0, 1.0),
    OTHERS: (1.15, 0.95),
    REST: (1.0, 1.0),
    FIVE: (2.2, 1.5),
    SEVEN: (3.5, 2.5),
    NINE: (3.5, 2.5),
    LARGE: (10.0, 6.0),
    DEPTHWISE: (1.5, 1.0),
    WIDE_DEPTHWISE: (3.0, 2.0),
    DOUBLE: (3.0, 1.0),
    BY_INPUT: (2.0, 1.0),
    BY_WEIGHT: (1.1, 0.9),
    TRAINING: (1.1, 0.9),
    FILTERS[0]: (2.0, 1.5),
    FILTERS[1]: (3.5, 2.5),
    FILTERS[2]: (1.7, 1.5),
    GAUSSIAN: (4.0, 3.0),
    SIGNAL: (3.0, 2.0),
    TEMPLATE: (2.0, 1.5),
    THREADS: (1.8, 1.6),
}


def all_cases(batch: int | None = 1) -> list[Case]:
    """Every case: the layers of `PROBLEMS`, and the families. ``batch`` None takes the numbers of images listed."""
    listed = list(layers(PROBLEMS, batch))
    forward = [*listed, *dense(), *depthwise()]
    groups: list[Iterable[Case]] = [
        forward,
        float64(forward),
        gradients(forward),
        filters(),
        others(),
        threads(forward),
    ]
    unique: dict[Case, Case] = {}
    for case in (case for group in groups for case in group):
        unique.setdefault(dataclasses.replace(case, name=""), case)
    return sorted(unique.values(), key=lambda case: (list(TARGETS).index(case.family), case.part))


def in_direction(cases: Sequence[Case], direction: str) -> list[Case]:
    """All layers, in another direction, as families of their own."""
    family = {"transpose": BY_INPUT, "weight_gradient": BY_WEIGHT}[direction]
    kept = [case for case in cases if case.kind == "conv" and case.direction == "forward" and case.w[:2] != (1, 1)]
    return [dataclasses.replace(case, family=family, part=case.family, direction=direction) for case in kept]


def in_dtype(cases: Sequence[Case], dtype: str) -> list[Case]:
    """All convolutions, in another type."""
    kept = {dataclasses.replace(case, dtype=dtype): None for case in cases if case.kind in ("conv", "threads")}
    return list(kept)


def layers(problems: Path, batch: int | None) -> Iterator[Case]:
    """The layers of a file of problems. ``batch`` None takes the numbers of images listed."""
    for p in json.loads(problems.read_text(encoding="utf-8")):
        images = p["batch"] if batch is None else batch
        case = Case(
            *("", "", p["name"]),
            x=(images, p["in_channels"], *p["size"]),
            w=(p["out_channels"], p["in_channels"] // p["groups"], *p["kernel"]),
            groups=p["groups"],
            **{name: tuple(p[name]) for name in ("stride", "padding", "dilation")},
        )
        yield in_family(case)


def in_family(case: Case) -> Case:
    """The case with the family that its geometry belongs to."""
    (_, channels, *_), (out_channels, _, *kernel), largest = case.x, case.w, max(case.w[2:])
    spatial, part = len(kernel), "x".join(map(str, kernel))
    if case.groups == channels == out_channels and channels > 1:
        return dataclasses.replace(case, family=DEPTHWISE if largest <= 7 else WIDE_DEPTHWISE, part=part)
    if spatial == 3 and kernel == [3] * 3 and set(case.stride + case.dilation) == {1}:
        return dataclasses.replace(case, family=CUBES, part=part)
    kinds = {
        "first layers": channels <= 3,
        "dilated": max(case.dilation) > 1,
        "1-D": spatial == 1,
        "strided": max(case.stride) > 1,
        "1x1": largest == 1,
    }
    found = next((kind for kind, holds in kinds.items() if holds), None)
    if found is not None:
        return dataclasses.replace(case, family=OTHERS, part=found)
    families = {3: DENSE, 5: FIVE, 7: SEVEN, 9: NINE}
    family = families.get(largest, LARGE if largest > 9 else REST)
    if case.groups > 1 or min(channels, out_channels) < 16 or min(case.x[2:]) < 14 or set(kernel) != {largest}:
        family = REST
    return dataclasses.replace(case, family=family, part=part)


def _same(name: str, x: Sequence[int], w: Sequence[int], groups: int = 1, dilation: int = 1, **options: Any) -> Case:
    """A layer whose result has the size of its image."""
    padding = tuple((r - 1) * dilation // 2 for r in w[2:])
    spatial = len(w) - 2
    case = Case("", "", name, tuple(x), tuple(w), padding=padding, groups=groups, dilation=(dilation,) * spatial)
    return in_family(dataclasses.replace(case, **options))


def dense() -> Iterator[Case]:
    """Dense layers with small and large kernels, and shapes that divide nothing."""
    shapes = {
        3: [(16, 16, 256, 256), (64, 64, 128, 128), (96, 96, 40, 40), (48, 80, 33, 35), (256, 256, 20, 20)],
        5: [(16, 16, 256, 256), (32, 32, 128, 128), (64, 64, 128, 128), (40, 24, 61, 83), (256, 256, 14, 14)],
        7: [(16, 16, 256, 256), (64, 64, 128, 128), (40, 24, 61, 83), (256, 256, 28, 28)],
        9: [(16, 16, 256, 256), (64, 64, 128, 128), (128, 128, 32, 32)],
        11: [(16, 16, 256, 256), (64, 64, 128, 128), (40, 24, 61, 83)],
        15: [(16, 16, 256, 256), (64, 64, 128, 128)],
        21: [(32, 32, 96, 96)],
        31: [(16, 16, 256, 256), (64, 64, 128, 128), (24, 40, 83, 61)],
    }
    for r, several in shapes.items():
        for c, k, *size in several:
            yield _same(f"{r}x{r}, {c} to {k}, {size[0]}x{size[1]}", (1, c, *size), (k, c, r, r))
    yield _same("3x3x3, 32 to 32, 32x32x32", (1, 32, 32, 32, 32), (32, 32, 3, 3, 3))
    yield _same("3x3x3, 16 to 24, 21x35x35", (1, 16, 21, 35, 35), (24, 16, 3, 3, 3))
    yield _same("3x3, 3 to 32, 256x256", (1, 3, 256, 256), (32, 3, 3, 3))
    yield _same("3x3, 64 to 64, 56x56, dilation 2", (1, 64, 56, 56), (64, 64, 3, 3), dilation=2)
    yield _same("3x3, 256 to 256, 28x28, dilation 4", (1, 256, 28, 28), (256, 256, 3, 3), dilation=4)
    yield _same("3x3, 64 to 128, 56x56, stride 2", (1, 64, 56, 56), (128, 64, 3, 3), stride=(2, 2))
    yield _same("4x4, 64 to 64, 64x64, stride 4", (1, 64, 64, 64), (64, 64, 4, 4), stride=(4, 4), padding=(0, 0))
    yield _same("3, 64 to 64, 16000, dilation 8", (1, 64, 16000), (64, 64, 3), dilation=8)
    yield _same("9, 48 to 48, 4000", (1, 48, 4000), (48, 48, 9))
    yield _same("3x3, 128 to 128 in 32 groups, 56x56", (1, 128, 56, 56), (128, 4, 3, 3), groups=32)
    yield _same("3x3, 8 to 8, 64x64", (1, 8, 64, 64), (8, 8, 3, 3))


def depthwise() -> Iterator[Case]:
    """A kernel for every channel."""
    for r in (3, 5, 7, 9, 11, 15, 31):
        yield _same(f"{r}x{r}, 128 channels, 56x56", (1, 128, 56, 56), (128, 1, r, r), groups=128)
    for r in (3, 5, 7, 13, 31):
        yield _same(f"{r}x{r}, 384 channels, 14x14", (1, 384, 14, 14), (384, 1, r, r), groups=384)
    yield _same("3x3, 128 channels, 112x112", (1, 128, 112, 112), (128, 1, 3, 3), groups=128)
    yield _same("7x7, 96 channels, 56x56", (1, 96, 56, 56), (96, 1, 7, 7), groups=96)
    yield _same("5x5, 75 channels, 28x28", (1, 75, 28, 28), (75, 1, 5, 5), groups=75)


def float64(cases: Sequence[Case]) -> Iterator[Case]:
    """Some layers of every kind in double precision."""
    chosen: dict[str, int] = {}
    for case in cases:
        kind = f"{case.family} {case.part}"
        chosen[kind] = chosen.get(kind, 0) + 1
        if chosen[kind] in (2, 5) and case.multiply_adds < 4e9:
            yield dataclasses.replace(case, family=DOUBLE, part=case.family, dtype="float64")


def gradients(cases: Sequence[Case]) -> Iterator[Case]:
    """The other two directions of some layers."""
    for case in cases:
        if case.family == DENSE:
            yield dataclasses.replace(case, family=BY_INPUT, part="3x3", direction="transpose")
    some = [case for case in cases if case.family in (DENSE, CUBES, OTHERS, FIVE, SEVEN, DEPTHWISE)]
    for case in some[::3]:
        if case.multiply_adds < 4e9:
            yield dataclasses.replace(case, family=BY_WEIGHT, part=case.family, direction="weight_gradient")
    small = [case for case in cases if case.family in (DENSE, OTHERS) and max(case.dilation) == 1 and case.x[1] > 3]
    for case in [case for case in small if max(case.stride) > 1 or max(case.x[2:]) <= 14][::2]:
        yield dataclasses.replace(case, family=TRAINING, part=case.part, kind="training", direction="transpose")


def filters() -> Iterator[Case]:
    """One kernel over an image of one channel, for every boundary."""
    image, everywhere = (1, 1, 2048, 2048), ("zeros", "edge", "reflect", "symmetric", "wrap")
    for r in (3, 5, 7, 9, 11, 15, 31, 63, 127, 255, 511, 1023):
        family = FILTERS[(r > 7) + (r > 127)]
        for boundary in everywhere if r in (3, 5, 7, 15, 31, 127, 255) else ("zeros", "reflect"):
            name, kernel = f"{r}x{r}, {boundary}", (1, 1, r, r)
            yield Case(family, f"{r}x{r}", name, image, kernel, padding=(r // 2,) * 2, boundary=boundary)


def others() -> Iterator[Case]:
    """Gaussians, signals, template matching, and the source's own layer."""
    for sigma in (1.0, 3.0, 10.0):
        r = 2 * round(4 * sigma) + 1  # SciPy's
        name = f"sigma {sigma:g} on 2048x2048"
        yield Case(
            GAUSSIAN,
            "sigma 1" if sigma == 1 else "sigma 3 and 10",
            name,
            (1, 1, 2048, 2048),
            (1, 1, r, r),
            kind="gaussian",
            sigma=sigma,
            boundary="reflect",
        )
    for dtype, channels in (("uint8", 1), ("float32", 3)):
        for sigma in (1.0, 3.0):
            r, name = 2 * round(4 * sigma) + 1, f"sigma {sigma:g} on 2048x2048x{channels}, {dtype}"
            x = (1, channels, 2048, 2048)
            yield Case(
                *(GAUSSIAN, "8 bits" if dtype == "uint8" else "colours", name, x, (1, 1, r, r)),
                kind="gaussian",
                sigma=sigma,
                boundary="reflect",
                dtype=dtype,
            )
    for r in (31, 255, 4095, 65535):
        yield Case(SIGNAL, "", f"{r} taps on 10^6 samples", (1, 1, 10**6), (1, 1, r), padding=(r // 2,))
    for r, c, n in (
        (64, 3, 2048),
        (16, 3, 2048),
        (128, 3, 2048),
        (32, 1, 2048),
        (64, 3, 512),
        (32, 1, 512),
        (128, 1, 512),
    ):
        name = f"{r}x{r}x{c} on {n}x{n}x{c}"
        yield Case(TEMPLATE, "", name, (1, c, n, n), (1, c, r, r), kind="template")
    name = "1999x1999 on 1000x1000"
    yield Case(FILTERS[2], "larger than the image", name, (1, 1, 1000, 1000), (1, 1, 1999, 1999), padding=(999, 999))


def threads(cases: Sequence[Case]) -> Iterator[Case]:
    """Layers of at least 1 GFLOP, some of each kind, whose peer is one thread."""
    chosen: dict[str, int] = {}
    for case in cases:
        if 5e8 <= case.multiply_adds < 5e9:
            kind = f"{case.family} {case.part}"
            chosen[kind] = chosen.get(kind, 0) + 1
            if chosen[kind] <= 3:
                yield dataclasses.replace(case, family=THREADS, part=case.family, kind="threads")
