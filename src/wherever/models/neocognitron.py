"""The neocognitron (Fukushima 1980, Fukushima and Miyake 1982): shared kernels and pooling, before gradients.

*Neocognitron: a new algorithm for pattern recognition tolerant of deformations and shifts in position*, Pattern
Recognition 15. Layers of S-cells, which look for a feature at every place with the same weights, alternate with layers
of C-cells, which blur where it was. With u the cells below, K planes k, and φ(x) = max(0, x),

    v[i,j]      = sqrt(Σ_c Σ_ab γ[a,b] u[c,i+a,j+b]²)                                   the strength of the input
    s[k,i,j]    = r φ((1 + Σ_c Σ_ab A[k,c,a,b] u[c,i+a,j+b]) / (1 + r/(1+r) B[k] v[i,j]) - 1)           S-cells
    t[k,i,j]    = Σ_ab δ[a,b] s[k,i+a,j+b]
    C[k,i,j]    = ψ((1 + t[k,i,j]) / (1 + Σ_k t[k,i,j] / K) - 1),      ψ(x) = φ(x) / (α + φ(x))          C-cells

where γ and δ fall off with distance and sum to 1. The first sum is the source's convolution.

*Learning without a teacher*, layer by layer. A pattern is shown; around every place the strongest cell of all planes is
a candidate; each plane takes its strongest candidate, at (i, j), and all of its cells learn what that one saw:

    A[k,c,a,b] += q γ[a,b] u[c,i+a,j+b],        B[k] += q v[i,j].

After that Σ A u / (B v) is the cosine between what was learnt and what is seen, weighted by γ, and for large q

    s = (1 + r) φ(cosine - r/(1+r)):

a plane is silent below the threshold r/(1+r). Planes that have learnt nothing answer weakly to everything; so they win
where all others are silent, and take up what is new.

*The later variant* (Fukushima 2003, *Neocognitron for handwritten digit recognition*, Neurocomputing 51) sees contrast
first (cells with an on- and an off-centre), is taught edges of 16 directions in its first layer, and the classes in its
last: a pattern whose strongest plane belongs to another class makes a new plane of its own, otherwise it adds to that
plane. What lies between still learns without a teacher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wherever.check.words import percent
from wherever.cli.progress import Steps
from wherever.models.augmentation import shifted, warped
from wherever.models.data import Labelled, digits
from wherever.models.recipe import Options, Panel, Report, curves, main
from wherever.models.training import accuracy, seeded
from wherever.torch.functional import conv2d

GAIN = 1e3  # q
ALPHA = 0.5
SHIFTS = (0, 1, 2, 3, 4, 6)  # pixels
BENDS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # pixels, standard deviation
FEW = 1000  # digits that the lower layers learn from
ASKED = 500  # test digits that are shifted and bent


def gaussian(size: int, sigma: float) -> Tensor:
    """Give a Gaussian (size, size) that sums to 1."""
    line = torch.exp(-((torch.arange(size) - (size - 1) / 2) ** 2) / (2 * sigma**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


class SCells:
    """Planes of S-cells: each looks for one feature at every place.

    Parameters
    ----------
    channels : int
        Planes below.
    planes : int
        Planes that there can be, K.
    size : int
        Side of what a cell sees.
    threshold : float
        Least cosine that is answered, r/(1+r).
    learning : float
        The same while it learns without a teacher: the higher, the more planes learn something of their own.
    padding : int
        Zeros around the input.

    Attributes
    ----------
    A : Tensor, (K, channels, size, size)
        Excitatory weights; 0 in planes that have learnt nothing.
    B : Tensor, (K,)
        Inhibitory weights.
    """

    def __init__(
        self, channels: int, planes: int, size: int, *, threshold: float, learning: float, padding: int = 0
    ) -> None:
        self.padding, self.size, self.threshold, self.learning = padding, size, threshold, learning
        self.gamma = gaussian(size, size / 2.5)
        self.A = torch.zeros(planes, channels, size, size)
        self.B = torch.zeros(planes)

    @property
    def learnt(self) -> Tensor:
        """Which planes have learnt something, (K,)."""
        return self.B > 0

    def strength(self, u: Tensor) -> Tensor:
        """Give v, (N, 1, h, w), of the cells below (N, C, H, W)."""
        return conv2d(u.square().sum(dim=1, keepdim=True), self.gamma[None, None], padding=self.padding).clamp(0).sqrt()

    def __call__(self, u: Tensor, threshold: float | None = None) -> Tensor:
        """Give s, (N, K, h, w), of the cells below; with another threshold, if one is given."""
        threshold = self.threshold if threshold is None else threshold
        inhibition = threshold * self.B[:, None, None] * self.strength(u)
        r = threshold / (1 - threshold)
        return r * ((1 + conv2d(u, self.A, padding=self.padding)) / (1 + inhibition) - 1).clamp(min=0)

    def learn(self, u: Tensor, plane: int, place: tuple[int, int]) -> None:
        """Let a plane learn what its cell at a place sees of the cells below, (C, H, W)."""
        seen = nn.functional.pad(u, [self.padding] * 4)[
            :, place[0] : place[0] + self.size, place[1] : place[1] + self.size
        ]
        self.A[plane] += GAIN * self.gamma * seen
        self.B[plane] += GAIN * float((self.gamma * seen.square()).sum().sqrt())

    def organise(self, patterns: Iterable[Tensor], column: int = 5) -> None:
        """Learn without a teacher from patterns (C, H, W), one by one; `column` is the side of a competition."""
        self.A[~self.learnt] = 1e-4 * self.gamma * (1 + torch.rand_like(self.A[~self.learnt])) / self.A.shape[1]
        for u in patterns:
            s, plane = self(u[None], self.learning)[0].max(dim=0)
            side = min(column, *s.shape)
            best, index = nn.functional.max_pool2d(s[None], side, stride=max(1, side // 2), return_indices=True)
            order = best.flatten().argsort()  # so that a plane's strongest candidate comes last, and stays
            at = index.flatten()[order][best.flatten()[order] > 0]
            chosen = dict(zip(plane.flatten()[at].tolist(), at.tolist(), strict=True))
            for k, place in chosen.items():
                self.learn(u, k, divmod(place, s.shape[1]))
        self.A[~self.learnt] = 0


class CCells:
    """C-cells: each answers if its feature is anywhere near; every second place is kept.

    Parameters
    ----------
    size : int
        Side of what a cell sees.
    stride : int
        Places below from one cell to the next.
    """

    def __init__(self, size: int = 5, stride: int = 2) -> None:
        self.delta, self.stride = gaussian(size, size / 4), stride

    def __call__(self, s: Tensor) -> Tensor:
        """Give C, (N, K, h, w), of S-cells (N, K, H, W)."""
        size, planes = len(self.delta), s.shape[1]
        kernel = self.delta.expand(planes, 1, size, size)
        t = conv2d(s, kernel, stride=self.stride, padding=size // 2, groups=planes)
        x = ((1 + t) / (1 + t.mean(dim=1, keepdim=True)) - 1).clamp(min=0)
        return x / (ALPHA + x)


class Neocognitron:
    """Images (N, 1, 28, 28) to scores of classes (N, 10): three layers of S-cells, two of C-cells, the best place.

    Parameters
    ----------
    taught : bool
        The later variant: contrast, edges and classes are taught. Otherwise everything but the names of the last
        layer's planes is learnt without a teacher.
    planes : tuple of int
        In the three layers of S-cells; in the last as many as there can be.
    thresholds, learning : tuple of float
        Of the three layers of S-cells.
    """

    def __init__(
        self,
        taught: bool = False,
        planes: tuple[int, int, int] = (16, 64, 1000),
        thresholds: tuple[float, float, float] = (0.55, 0.5, 0.3),
        learning: tuple[float, float, float] = (0.75, 0.66, 0.8),
    ) -> None:
        self.taught = taught
        self.first = SCells(
            2 if taught else 1, planes[0], 5, threshold=thresholds[0], learning=learning[0], padding=2
        )  # 28 x 28
        self.second = SCells(
            planes[0], planes[1], 5, threshold=thresholds[1], learning=learning[1], padding=2
        )  # 14 x 14
        self.last = SCells(planes[1], planes[2], 5, threshold=thresholds[2], learning=learning[2])  # 3 x 3, of 7 x 7
        self.pool = CCells()
        self.names = torch.full((planes[2],), -1)  # the class of each plane of the last layer

    def below(self, x: Tensor, stage: int) -> Tensor:
        """Give what the S-cells of a stage (1, 2, 3) see of images."""
        u = contrast(x) if self.taught else x
        for cells in (self.first, self.second)[: stage - 1]:
            u = torch.cat([self.pool(cells(part)) for part in u.split(100)])
        return u

    def __call__(self, x: Tensor) -> Tensor:
        """Score images: for each class the strongest cell, at any place, of all planes that bear its name."""
        return self.score(self.below(x, 3))

    def score(self, u: Tensor) -> Tensor:
        """Score what the last layer sees."""
        named = self.names >= 0
        best = torch.cat([self.last(part).amax(dim=(2, 3)) for part in u.split(100)])
        return by_class(best[:, named], self.names[named])

    def learn(self, data: Labelled, epochs: int = 2, steps: Steps | None = None) -> None:
        """Learn layer by layer, each from what the ones before it give."""
        few = data.sample(FEW).x
        if self.taught:
            for plane, edge in enumerate(edges(len(self.first.B))):
                self.first.learn(contrast(edge[None])[0], plane, (14, 14))
        else:
            self.first.organise(_shown(few, steps, "first layer"))
        self.second.organise(_shown(self.below(few, 2), steps, "second layer"))
        u = self.below(data.x, 3)
        if self.taught:
            self._teach(u, data.y, epochs, steps)
        else:
            self.last.organise(_shown(u, steps, "last layer"))
            self._name(u, data.y)

    def _teach(self, u: Tensor, y: Tensor, epochs: int, steps: Steps | None) -> None:
        """Teach the last layer the classes: a pattern adds to its plane, or makes a new one where it would be wrong."""
        middle = (1, 1)
        for _ in range(epochs):
            for number in _shown(torch.randperm(len(u)), steps, "last layer"):
                s = self.last(u[number][None])[0]
                plane, place = divmod(int(s.argmax()), s[0].numel())
                if s.max() > 0 and self.names[plane] == y[number]:
                    self.last.learn(u[number], plane, divmod(place, s.shape[2]))
                elif (free := int(self.last.learnt.sum())) < len(self.names):
                    self.last.learn(u[number], free, middle)
                    self.names[free] = y[number]

    def _name(self, u: Tensor, y: Tensor) -> None:
        """Name each plane of the last layer after the class that it answers to most."""
        best = torch.cat([self.last(part).amax(dim=(2, 3)) for part in u.split(100)])  # (N, K)
        answers = nn.functional.one_hot(y, 10).float().T @ best
        self.names = torch.where(self.last.learnt, answers.argmax(dim=0), -1)


def contrast(x: Tensor) -> Tensor:
    """Give what cells with an on-centre and with an off-centre see of images: (N, 1, H, W) to (N, 2, H, W)."""
    kernel = nn.functional.pad(gaussian(3, 0.7), [2] * 4) - gaussian(7, 2)
    out = conv2d(x, kernel[None, None], padding=3)
    return torch.cat([out, -out], dim=1).clamp(min=0)


def edges(count: int) -> Tensor:
    """Draw straight edges through the middle in so many directions: (count, 1, 28, 28)."""
    line = torch.arange(28) - 13.5
    angle = 2 * torch.pi * torch.arange(count)[:, None, None] / count
    return (0.5 + angle.cos() * line + angle.sin() * line[:, None])[:, None].clamp(0, 1)


def _shown(patterns: Tensor, steps: Steps | None, words: str) -> Iterator[Tensor]:
    """Give patterns one after the other, and tell how many have been shown."""
    if steps is not None:
        steps.next(words)
    for number, pattern in enumerate(patterns):
        if steps is not None:
            steps.part(number, len(patterns))
        yield pattern


def nearest(data: Labelled, x: Tensor) -> Tensor:
    """Score images by the cosine with the most similar digit of each class, pixel by pixel: what has no invariance."""
    known, asked = (nn.functional.normalize(images.flatten(1)) for images in (data.x, x))
    return by_class(asked @ known.T, data.y)


def by_class(answers: Tensor, names: Tensor) -> Tensor:
    """Give the largest of answers (N, M) under each of ten names, (N, 10); 0 where none is positive."""
    return torch.zeros(len(answers), 10).scatter_reduce(1, names.expand_as(answers), answers, "amax")


def bent(x: Tensor, by: float) -> Tensor:
    """Bend images at random, always in the same way."""
    with seeded(1):
        return warped(x, bend=by, smooth=3)


def recipe(options: Options) -> Report:
    """Train both variants; test on digits as they are, shifted and bent, beside the nearest training digit."""
    data, test = (part.sample(options.sample) for part in digits(options.data))
    systems: dict[str, Callable[[Tensor], Tensor]] = {"nearest digit": lambda x: nearest(data, x)}
    rows = [["nearest digit", f"{len(data):,}", percent(accuracy(nearest(data, test.x), test.y)), ""]]
    for name, taught in (("without a teacher", False), ("taught", True)):
        begun = time.perf_counter()
        with seeded(options.seed), Steps(4 + options.epochs, quiet=False) as steps:
            system = Neocognitron(taught)
            system.learn(data, options.epochs, steps)
        seconds = time.perf_counter() - begun
        counts = [int(cells.learnt.sum()) for cells in (system.first, system.second, system.last)]
        score = accuracy(system(test.x), test.y)
        rows.append([name, ", ".join(map(str, counts)), percent(score), f"{seconds:.0f} s"])
        systems[name] = system
    some = test.sample(ASKED)
    by_shift = {
        name: [_mean(accuracy(system(shifted(some.x, *d)), some.y) for d in _directions(by)) for by in SHIFTS]
        for name, system in systems.items()
    }
    by_bend = {name: [accuracy(system(bent(some.x, by)), some.y) for by in BENDS] for name, system in systems.items()}
    return Report(
        f"Neocognitron on {len(data):,} handwritten digits, tested on {len(test):,}",
        [
            (("learnt", "planes", "test accuracy", "training"), rows),
            (
                ("test digits shifted by", *(f"{by} px" for by in SHIFTS)),
                [[name, *map(percent, scores)] for name, scores in by_shift.items()],
            ),
            (
                ("bent by", *(f"{by:g} px" for by in BENDS)),
                [[name, *map(percent, scores)] for name, scores in by_bend.items()],
            ),
        ],
        f"Shifted in four directions; bent by a smooth random displacement (standard deviation); {len(some)} digits.",
        [
            curves("shifted", "shift in pixels", "test accuracy", {k: (SHIFTS, v) for k, v in by_shift.items()}),
            curves("bent", "displacement in pixels", "test accuracy", {k: (BENDS, v) for k, v in by_bend.items()}),
            answers(systems["taught"], test),
        ],
    )


def _directions(by: int) -> set[tuple[int, int]]:
    return {(by, 0), (-by, 0), (0, by), (0, -by)}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def answers(system: Callable[[Tensor], Tensor], test: Labelled) -> Panel:
    """Make a panel of digits, shifted more from row to row in its upper half, bent in its lower, with the answers."""
    digit = torch.stack([test.x[test.y == c][0] for c in test.y.unique()])
    changed = [shifted(digit, by, by) for by in (0, 2, 4)] + [bent(digit, by) for by in (1.0, 2.0, 3.0)]
    said = [system(x).argmax(dim=1).tolist() for x in changed]
    picture = torch.cat([torch.cat(list(x[:, 0]), dim=1) for x in changed]).numpy()

    def panel(axis: Any) -> None:
        axis.imshow(picture, cmap="gray_r")
        for row, numbers in enumerate(said):
            for column, number in enumerate(numbers):
                colour = "#2f7f86" if number == test.y.unique()[column] else "#c9503c"
                axis.text(28 * column + 2, 28 * row + 8, str(number), color=colour, fontsize=7)
        axis.set_xticks([])
        axis.set_yticks(
            [28 * row + 14 for row in range(6)],
            ["as it is", "shifted 2", "shifted 4", "bent 1", "bent 2", "bent 3"],
            fontsize=8,
        )
        axis.tick_params(length=0)
        axis.set_title("taught: digits and answers", fontsize=10)

    return panel


if __name__ == "__main__":
    main(recipe, __doc__, epochs=2)
