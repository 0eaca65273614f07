"""The source's running example, cats and dogs: an MLP, and a CNN with a hundred times fewer weights.

The MLP is the source's: every pixel is connected with each of 1000 hidden units,

    H[i] = max(0, U[i] + Σ_k W[i, k] X[k]),    k over all pixels and colours.

The CNN is what is left of it under translation invariance and locality, with channels c to d, four times over,

    H[d, i, j] = max(0, u[d] + Σ_c Σ_ab V[d, c, a, b] X[c, i+a, j+b]),    |a|, |b| <= 1,

and whether there is a cat *anywhere* is told from the mean over all places. Two questions of the source are put in
numbers: how many images each needs, and what happens when what is in the picture moves.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

from torch import Tensor, nn

from wherever.check.words import percent
from wherever.models.augmentation import mirrored, shifted
from wherever.models.data import Labelled, cats_and_dogs
from wherever.models.recipe import Options, Report, curves, learning, main
from wherever.models.training import Trained, accuracy, count_weights, outputs, train
from wherever.torch import Conv2d

SHIFTS = (0, 1, 2, 4, 8, 12, 16)  # pixels
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the training images


class MLP(nn.Sequential):
    """Images (N, C, H, W) to scores of two classes (N, 2), without knowing which pixels are neighbours.

    Parameters
    ----------
    pixels : int
        C · H · W.
    hidden : int
        Hidden units.
    """

    def __init__(self, pixels: int = 3 * 64 * 64, hidden: int = 1000) -> None:
        super().__init__(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 2))


class CNN(nn.Sequential):
    """Images (N, C, H, W) to scores of two classes (N, 2), at any size from 8 x 8.

    Parameters
    ----------
    channels : tuple of int
        Of the image and after each convolution. Between them the resolution is halved.
    """

    def __init__(self, channels: tuple[int, ...] = (3, 16, 32, 64, 128)) -> None:
        layers: list[nn.Module] = []
        for c, d in pairwise(channels):
            if layers:
                layers.append(nn.MaxPool2d(2))
            layers += [Conv2d(c, d, 3, padding=1, bias=False), nn.BatchNorm2d(d), nn.ReLU()]
        end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(channels[-1], 2)]
        super().__init__(*layers, *end)


# With their learning rates: an MLP of so many weights needs smaller steps.
NETWORKS: tuple[tuple[str, Callable[[], nn.Module], float], ...] = (("MLP", MLP, 3e-4), ("CNN", CNN, 5e-3))


def mirroring(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror half of the images: a cat stays one."""
    return mirrored(x), y


def fit(
    build: Callable[[], nn.Module],
    data: Labelled,
    test: Labelled,
    *,
    epochs: int,
    rate: float,
    seed: int = 0,
    name: str | None = None,
) -> Trained[nn.Module]:
    """Train an MLP or a CNN as the recipe does."""
    return train(build, data, test, epochs=epochs, seed=seed, rate=rate, decay=0.05, augment=mirroring, name=name)


def by_shift(model: nn.Module, test: Labelled, shifts: tuple[int, ...] = SHIFTS) -> list[float]:
    """Measure the accuracy on images shifted by so many pixels, averaged over the eight directions."""
    scores = []
    for by in shifts:
        places = {(by * down, by * right) for down, right in product((-1, 0, 1), repeat=2) if down or right}
        found = [accuracy(outputs(model, shifted(test.x, *place)), test.y) for place in places]
        scores.append(sum(found) / len(found))
    return scores


def recipe(options: Options) -> Report:
    """Train both on all images and on fewer; test on images as they are, and shifted."""
    data, test = (part.sample(options.sample) for part in cats_and_dogs(options.data))
    counts = [max(2, round(share * len(data))) for share in SHARES]
    runs, learnt, moved = {}, {}, {}
    for name, build, rate in NETWORKS:
        scores = []
        for n in counts:
            # Fewer images are seen more often, though not as often as would make up for it.
            epochs = round(options.epochs * (len(data) / n) ** 0.5)
            some = data.sample(n)
            run = fit(build, some, test, epochs=epochs, rate=rate, seed=options.seed, name=f"{name}, {n} images")
            scores.append(run.score)
        runs[name], learnt[name], moved[name] = run, scores, by_shift(run.model, test)
    weights = {name: count_weights(run.model) for name, run in runs.items()}
    rows = [[name, f"{weights[name]:,}", percent(run.score), f"{run.seconds:.0f} s"] for name, run in runs.items()]
    ratio = weights["MLP"] / weights["CNN"]
    return Report(
        f"Cats and dogs: {len(data):,} photographs to train on, {len(test):,} to test",
        [
            (("network", "weights", "test accuracy", "training"), rows),
            (
                ("training images", *(f"{n:,}" for n in counts)),
                [[name, *map(percent, scores)] for name, scores in learnt.items()],
            ),
            (
                ("test images shifted by", *(f"{by} px" for by in SHIFTS)),
                [[name, *map(percent, scores)] for name, scores in moved.items()],
            ),
        ],
        f"The CNN has {ratio:.0f} times fewer weights. It tells {percent(runs['CNN'].score)} of the photographs right, "
        f"the MLP {percent(runs['MLP'].score)}.",
        [
            *learning(runs),
            curves(
                "fewer images",
                "training images",
                "test accuracy",
                {k: (counts, v) for k, v in learnt.items()},
                log=True,
            ),
            curves("shifted", "shift in pixels", "test accuracy", {k: (SHIFTS, v) for k, v in moved.items()}),
        ],
    )


if __name__ == "__main__":
    main(recipe, __doc__, epochs=20)
