"""Hyperspectral CNN: kernels of 1x1, 3x3 and three dimensions over 198 bands, from a few labelled pixels.

A pixel of this scene is not three colours but a spectrum, X[c, i, j] with c from 1 to 198. The question at each is what
lies there, and a few pixels are labelled. Three networks differ in what their first layers look at:

    1x1    H[d, i, j] = max(0, u[d] + Σ_c V[d, c] X[c, i, j])                         the pixel's own spectrum
    3x3    H[d, i, j] = max(0, u[d] + Σ_c Σ_ab V[d, c, a, b] X[c, i+a, j+b])          and its neighbours', twice
    3-D    H[d, s, i, j] = max(0, u[d] + Σ_c Σ_eab V[d, c, e, a, b] X[c, s+e, i+a, j+b])    and the band is a place

The first is an MLP at every pixel (Δ = 0). The last takes what a spectrum has at one wavelength for what it has at
another, as if shifted (Chen, Jiang, Li, Jia and Ghamisi 2016, *Deep feature extraction and classification of
hyperspectral images based on convolutional neural networks*, IEEE Transactions on Geoscience and Remote Sensing 54).
All are trained on windows around the labelled pixels alone, and then applied to the whole scene at once: a convolution
does not care.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn

from wherever.check.words import percent
from wherever.models.data import MATERIALS, Labelled, hyperspectral
from wherever.models.recipe import Options, Report, curves, main, picture
from wherever.models.training import Trained, count_weights, outputs, train
from wherever.torch import Conv2d, Conv3d

REACH = 2  # pixels that a network looks at on each side of its own
COUNTS = (5, 10, 20)  # labelled pixels of each material
DRAWS = 5  # times that the labelled pixels are drawn
PURE = 0.9  # abundance
COLOURS = ("#3f8a4f", "#3f6fb5", "#b8892b", "#6b6b6b")  # of the materials on a map


class Spectral(nn.Sequential):
    """Spectra (N, bands, H, W) to scores of materials (N, K, H - 4, W - 4), each pixel by itself."""

    def __init__(self, bands: int = 198, hidden: int = 64, classes: int = 4) -> None:
        super().__init__(
            nn.ZeroPad2d(-REACH),
            Conv2d(bands, hidden, 1),
            nn.ReLU(),
            nn.Dropout(0.3),
            Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Dropout(0.3),
            Conv2d(hidden, classes, 1),
        )


class Spatial(nn.Sequential):
    """Spectra (N, bands, H, W) to scores of materials (N, K, H - 4, W - 4), looking at 5 x 5 pixels."""

    def __init__(self, bands: int = 198, hidden: int = 64, classes: int = 4) -> None:
        super().__init__(
            Conv2d(bands, hidden, 3),
            nn.ReLU(),
            nn.Dropout(0.3),
            Conv2d(hidden, hidden, 3),
            nn.ReLU(),
            nn.Dropout(0.3),
            Conv2d(hidden, classes, 1),
        )


class Volume(nn.Module):
    """Spectra (N, bands, H, W) to scores of materials (N, K, H - 4, W - 4), with kernels over bands and pixels.

    Along the bands kernels are 7 long and go on by 3, twice; what is left of the spectrum, 18 places for 198 bands, is
    channels to the last layer, which knows which wavelength is which.
    """

    def __init__(self, bands: int = 198, channels: tuple[int, int] = (8, 16), classes: int = 4) -> None:
        super().__init__()
        first, second = channels
        self.features = nn.Sequential(
            Conv3d(1, first, (7, 3, 3), stride=(3, 1, 1)),
            nn.ReLU(),
            Conv3d(first, second, (7, 3, 3), stride=(3, 1, 1)),
            nn.ReLU(),
            nn.Flatten(1, 2),
            nn.Dropout(0.3),
        )
        places = ((bands - 7) // 3 + 1 - 7) // 3 + 1
        self.classify = Conv2d(second * places, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the scores."""
        return self.classify(self.features(x[:, None]))


NETWORKS: tuple[tuple[str, Callable[[], nn.Module], float], ...] = (
    ("1x1", Spectral, 3e-3),
    ("3x3", Spatial, 2e-3),
    ("3-D", Volume, 3e-3),
)


def standardised(bands: Tensor) -> Tensor:
    """Give every band (bands, H, W) a mean of 0 and a variance of 1 over the scene, which needs no label."""
    return (bands - bands.mean(dim=(1, 2), keepdim=True)) / bands.std(dim=(1, 2), keepdim=True)


def labelled(scene: Tensor, truth: Tensor, chosen: Tensor) -> Labelled:
    """Cut windows (n, bands, 5, 5) around pixels chosen by their numbers in (H, W); the class of each is (n, 1, 1)."""
    width, size = truth.shape[1], 2 * REACH + 1
    padded = _padded(scene)
    x = torch.stack([padded[:, n // width :, n % width :][:, :size, :size] for n in chosen.tolist()])
    return Labelled(x, truth.flatten()[chosen].view(-1, 1, 1), MATERIALS)


def predict(model: nn.Module, scene: Tensor) -> Tensor:
    """Predict the class of every pixel of a scene (bands, H, W): (H, W)."""
    return outputs(model, _padded(scene)[None])[0].argmax(dim=0)


def _padded(scene: Tensor) -> Tensor:
    return nn.functional.pad(scene, [REACH] * 4, mode="reflect")


def draw(truth: Tensor, each: int, seed: int) -> Tensor:
    """Draw numbers of pixels at random, `each` of every class in `truth` (H, W)."""
    order = torch.randperm(truth.numel(), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[truth.flatten()[order] == k][:each] for k in truth.unique()])


def fit(
    build: Callable[[], nn.Module], data: Labelled, *, epochs: int, rate: float, seed: int = 0, name: str | None = None
) -> Trained[nn.Module]:
    """Train on windows around labelled pixels as the recipe does."""
    return train(build, data, epochs=epochs, seed=seed, batch=20, rate=rate, decay=0.05, augment=varied, name=name)


def varied(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror and turn windows, since nothing on the ground knows where north is; make spectra brighter and darker."""
    for axes in ((-1,), (-2,)):
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(axes), x)
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.transpose(-1, -2), x)
    return x + 0.1 * torch.randn(len(x), 1, 1, 1) + 0.05 * torch.randn_like(x), y


def recipe(options: Options) -> Report:
    """Draw 5, 10 and 20 pixels of each material, several times; train on these, test on all others."""
    bands, abundances = hyperspectral(options.data)
    scene, truth = standardised(bands), abundances.argmax(dim=0)
    pure = abundances.amax(dim=0) > PURE
    counts = [min(n, options.sample) for n in COUNTS] if options.sample else list(COUNTS)
    all_others, pure_others, maps, weights = {}, {}, {}, {}
    for name, build, rate in NETWORKS:
        scores = torch.zeros(2, len(counts), DRAWS)
        for (n, each), seed in product(enumerate(counts), range(DRAWS)):
            chosen = draw(truth, each, options.seed + seed)
            data = labelled(scene, truth, chosen)
            called = f"{name}, {each} pixels, draw {seed + 1} of {DRAWS}"
            run = fit(build, data, epochs=options.epochs, rate=rate, seed=options.seed + seed, name=called)
            predicted = predict(run.model, scene)
            right, other = predicted == truth, torch.ones_like(truth, dtype=torch.bool)
            other.view(-1)[chosen] = False
            scores[:, n, seed] = torch.stack([right[other].float().mean(), right[other & pure].float().mean()])
            if seed == 0:
                maps[name] = predicted
        all_others[name], pure_others[name] = scores
        weights[name] = count_weights(run.model)
    columns = [f"{n} a material" for n in counts]
    best = max(NETWORKS, key=lambda network: float(all_others[network[0]][-1].mean()))[0]
    return Report(
        f"Materials in {truth.numel():,} pixels of {len(bands)} bands; few are labelled ({DRAWS} draws)",
        [
            (
                ("kernels", "weights", *columns),
                [[name, f"{weights[name]:,}", *map(_spread, scores)] for name, scores in all_others.items()],
            ),
            (
                (f"pixels that are one material by {percent(PURE)}", *columns),
                [[name, *map(_spread, scores)] for name, scores in pure_others.items()],
            ),
        ],
        f"From {counts[-1]} labelled pixels of each material the network of {best} kernels tells "
        f"{percent(float(all_others[best][-1].mean()))} of all others right.",
        [
            curves(
                "few labels",
                "labelled pixels of each material",
                "accuracy on all others",
                {name: (counts, scores.mean(dim=1).tolist()) for name, scores in all_others.items()},
                log=True,
            ),
            picture("three of the bands", colours(bands)),
            picture("truth: the most abundant", truth, MATERIALS, COLOURS),
            *(picture(f"{name}, {columns[-1]}", map_, MATERIALS, COLOURS) for name, map_ in maps.items()),
        ],
    )


def colours(bands: Tensor) -> Tensor:
    """Show three bands (of red, green and blue light) as a photograph (H, W, 3)."""
    shown = bands[[30, 18, 8]].permute(1, 2, 0)
    return (shown / shown.flatten(0, 1).quantile(0.98, dim=0)).clamp(0, 1)


def _spread(scores: Tensor) -> str:
    return f"{100 * float(scores.mean()):.1f} ± {100 * float(scores.std()):.1f} %"


if __name__ == "__main__":
    main(recipe, __doc__, epochs=60)
