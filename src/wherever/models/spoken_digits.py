"""Sound: the time-delay network (Waibel et al. 1989), and a CNN that looks at its spectrogram, on spoken digits.

*Phoneme recognition using time-delay neural networks*, IEEE Transactions on Acoustics, Speech and Signal Processing 37,
is among the first networks that share weights over places, which are moments t here. Each unit d sees all pitches c,
now and some frames later,

    H[d, t] = max(0, u[d] + Σ_c Σ_a V[d, c, a] X[c, t+a]),

and what the last layer's units, one a class, say is integrated over time. To a CNN the spectrogram is an image:

    H[d, f, t] = max(0, u[d] + Σ_c Σ_ab V[d, c, a, b] X[c, f+a, t+b]),    |a|, |b| <= 1,

so that pitch is a place as well, and a higher voice is the same word further up. Which of these invariances holds is
asked of a speaker who was not heard in training, of words that come late, and of words that are shifted in pitch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from wherever.check.words import percent
from wherever.models.augmentation import shifted, warped
from wherever.models.data import RATE, Labelled, Spoken, spoken_digits
from wherever.models.recipe import Options, Report, curves, learning, main
from wherever.models.spectrogram import log_mel
from wherever.models.training import Trained, accuracy, count_weights, outputs, train
from wherever.torch import Conv1d, Conv2d

BANDS, FRAMES = 32, 80  # of a spectrogram: 0.8 s


class TimeDelayNetwork(nn.Module):
    """Spectrograms (N, 1, bands, frames) to scores of ten digits (N, 10).

    Parameters
    ----------
    bands : int
        Pitches, which are the first layer's channels.
    hidden : int
        Units of each hidden layer. The paper has 8 and 3, for three phonemes.
    """

    def __init__(self, bands: int = BANDS, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv1d(bands, hidden, 3, padding=1, bias=False),  # 30 ms
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            Conv1d(hidden, hidden, 5, padding=4, dilation=2, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            Conv1d(hidden, 10, 9, padding=16, dilation=4),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the scores, averaged over time."""
        return self.layers(x[:, 0]).mean(dim=-1)


class SpectrogramCNN(nn.Sequential):
    """Spectrograms (N, 1, bands, frames) to scores of ten digits (N, 10), at any size from 8 x 8.

    Parameters
    ----------
    channels : tuple of int
        Of the image and after each convolution. Between them the resolution is halved.
    """

    def __init__(self, channels: tuple[int, ...] = (1, 16, 32, 64, 64)) -> None:
        layers: list[nn.Module] = []
        for c, d in pairwise(channels):
            if layers:
                layers.append(nn.MaxPool2d(2))
            layers += [Conv2d(c, d, 3, padding=1, bias=False), nn.BatchNorm2d(d), nn.ReLU()]
        end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(channels[-1], 10)]
        super().__init__(*layers, *end)


NETWORKS: dict[str, type[TimeDelayNetwork | SpectrogramCNN]] = {
    "time-delay network": TimeDelayNetwork,
    "spectrogram CNN": SpectrogramCNN,
}
LATE = (0, 5, 10, 15, 20)  # frames of 10 ms
HIGHER = (-4, -2, -1, 0, 1, 2, 4)  # bands


def spectrograms(sounds: list[Spoken]) -> Labelled:
    """Look at sounds as images, x (N, 1, bands, frames)."""
    x = torch.stack([log_mel(sound.samples, BANDS, FRAMES, RATE) for sound in sounds])
    return Labelled(x[:, None], torch.tensor([sound.digit for sound in sounds]), tuple("0123456789"))


def varied(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Vary images of words as voices do: earlier and later, higher and lower, faster and slower."""
    return warped(x, move=4, size=0.3), y


def fit(
    build: type[nn.Module], data: Labelled, test: Labelled, *, epochs: int, seed: int = 0, name: str | None = None
) -> Trained[nn.Module]:
    """Train a time-delay network or a CNN as the recipe does."""
    return train(
        build, data, test, epochs=epochs, seed=seed, batch=25, rate=3e-3, decay=0.05, augment=varied, name=name
    )


def recipe(options: Options) -> Report:
    """Leave out one speaker after the other; test on that one's words, as they are, later, and higher or lower."""
    sounds = spoken_digits(options.data)
    every = spectrograms(sounds)
    speakers = sorted({sound.speaker for sound in sounds})
    rows, first, late, higher = [], {}, {}, {}
    for name, build in NETWORKS.items():
        runs, tests = [], []
        for speaker in speakers:
            heard = torch.tensor([sound.speaker != speaker for sound in sounds])
            data, test = (every[part].sample(options.sample) for part in (heard, ~heard))
            called = f"{name} without {speaker}"
            runs.append(fit(build, data, test, epochs=options.epochs, seed=options.seed, name=called))
            tests.append(test)
        models = [run.model for run in runs]
        late[name] = [moved(models, tests, 0, by) for by in LATE]
        higher[name] = [moved(models, tests, by, 0) for by in HIGHER]
        first[f"{name}, {speakers[0]}"] = runs[0]
        scores = [run.score for run in runs]
        seconds = sum(run.seconds for run in runs) / len(runs)
        cells = map(percent, [*scores, sum(scores) / len(scores)])
        rows.append([name, f"{count_weights(models[0]):,}", *cells, f"{seconds:.0f} s"])
    means = {name: values[0] for name, values in late.items()}
    best = max(means, key=lambda name: means[name])
    return Report(
        f"Spoken digits: {len(data):,} words of {len(speakers) - 1} speakers to train on, {len(test):,} of another",
        [
            (("accuracy on the unseen speaker", "weights", *speakers, "mean", "training"), rows),
            (
                ("words that come later by", *(f"{10 * by} ms" for by in LATE)),
                [[name, *map(percent, values)] for name, values in late.items()],
            ),
            (
                ("words higher by", *(f"{by:+d} bands" for by in HIGHER)),
                [[name, *map(percent, values)] for name, values in higher.items()],
            ),
        ],
        f"Of what an unseen speaker says the {best} understands {percent(means[best])}.",
        [
            *learning(first, "accuracy on the unseen speaker"),
            curves("later", "frames of 10 ms", "accuracy", {name: (LATE, values) for name, values in late.items()}),
            curves("higher", "bands", "accuracy", {name: (HIGHER, values) for name, values in higher.items()}),
        ],
    )


def moved(models: list[nn.Module], tests: list[Labelled], higher: int, later: int) -> float:
    """Measure the mean accuracy of models, on the test of each, with images shifted by so many bands and frames."""
    scores = [
        accuracy(outputs(model, shifted(test.x, higher, later)), test.y)
        for model, test in zip(models, tests, strict=True)
    ]
    return sum(scores) / len(scores)


if __name__ == "__main__":
    main(recipe, __doc__, epochs=15)
