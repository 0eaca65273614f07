"""LeNet-style CNN (LeCun, Bottou, Bengio and Haffner 1998) on handwritten digits.

*Gradient-based learning applied to document recognition*, Proceedings of the IEEE 86, figure 2: convolutions share
their weights over all places, pooling halves the resolution, and what is left is told apart by fully connected layers.
Each convolution is the source's, with channels c in and d out,

    H[d, i, j] = u[d] + Σ_c Σ_ab V[d, c, a, b] X[c, i+a, j+b],    |a|, |b| <= 2.

"LeNet-style": rectified linear units and maxima where the paper has tanh and averages, more channels, all of them
connected, dropout before the last layer, and digits that are moved, turned and bent at random for training.
"""

from __future__ import annotations

from torch import Tensor, nn

from wherever.check.words import percent
from wherever.models.augmentation import warped
from wherever.models.data import Labelled, digits
from wherever.models.recipe import Options, Report, learning, main
from wherever.models.training import Trained, count_weights, train
from wherever.torch import Conv2d


class LeNet(nn.Sequential):
    """Images (N, 1, 28, 28) to scores of ten classes (N, 10).

    Parameters
    ----------
    channels : tuple of int
        Of the two convolutions.
    hidden : int
        Units of the fully connected layer.
    """

    def __init__(self, channels: tuple[int, int] = (16, 32), hidden: int = 128) -> None:
        first, second = channels
        super().__init__(
            Conv2d(1, first, 5, padding=2),  # (N, 16, 28, 28)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (N, 16, 14, 14)
            Conv2d(first, second, 5),  # (N, 32, 10, 10)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (N, 32, 5, 5)
            nn.Flatten(),
            nn.Linear(second * 25, hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, 10),
        )


def varied(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Vary digits as handwriting does, and still leave them readable."""
    return warped(x, move=2, turn=12, size=0.12, bend=0.8), y


def fit(data: Labelled, test: Labelled, *, epochs: int, seed: int = 0, name: str | None = None) -> Trained[LeNet]:
    """Train it as the recipe does."""
    return train(LeNet, data, test, epochs=epochs, seed=seed, batch=50, rate=2e-3, augment=varied, name=name)


def recipe(options: Options) -> Report:
    """Train on 8,000 digits, test on 2,000."""
    data, test = (part.sample(options.sample) for part in digits(options.data))
    run = fit(data, test, epochs=options.epochs, seed=options.seed, name="LeNet")
    wrong = round((1 - run.score) * len(test))
    row = ["LeNet", f"{count_weights(run.model):,}", percent(run.score), str(wrong), f"{run.seconds:.0f} s"]
    return Report(
        f"LeNet on {len(data):,} handwritten digits, tested on {len(test):,}",
        [(("network", "weights", "test accuracy", "wrong", "training"), [row])],
        f"Of {len(test):,} digits that it has not seen it reads {len(test) - wrong:,}.",
        learning({"LeNet": run}),
    )


if __name__ == "__main__":
    main(recipe, __doc__, epochs=20)
