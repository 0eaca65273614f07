"""Fully convolutional network (Long, Shelhamer and Darrell 2015): what is at every pixel, in images of any size.

*Fully convolutional networks for semantic segmentation*, CVPR. A network that classifies patches is one that classifies
every patch at once, if its fully connected layers are convolutions; only its answers lie 32 pixels apart. So the coarse
scores S32 are enlarged, and those of earlier, finer layers are added on the way (figure 3 of the paper),

    S16 <- S16 + up(S32),    S8 <- S8 + up(S16),    scores = up8(S8),    up(S)[2i + a] = Σ_j V[2i + a - 2j] S[j]

where up is a transposed convolution that begins as bilinear interpolation and is learnt (up8 is not learnt), and the
scores of a finer layer begin as zeros. As in the paper FCN-32s is trained first, then FCN-16s from it, then FCN-8s;
classes are not weighted. Other than in the paper: the layers before are small, begin from random weights, and have
batch normalisation.

The data are photographs of blood with boxes around cells; a pixel's class is the box it lies in.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from wherever.check.words import percent
from wherever.models.data import BLOOD_CELLS, Cell, Labelled, blood
from wherever.models.recipe import Options, Panel, Report, curves, main, picture
from wherever.models.training import Trained, count_weights, train
from wherever.torch import Conv2d, ConvTranspose2d

CLASSES = ("background", *BLOOD_CELLS)
CROP = 256  # pixels of the squares that are trained on
COARSEST = 32  # pixels between the answers of the last layer


class FCN(nn.Module):
    """Images (N, 3, H, W) of any size to scores of classes at every pixel (N, K, H, W).

    Parameters
    ----------
    classes : int
    channels : tuple of int
        Of the image, and at resolutions of 1/2, 1/4, 1/8, 1/16 and 1/32.
    skips : int
        How many finer layers take part: 0 is FCN-32s, 1 FCN-16s, 2 FCN-8s.
    """

    def __init__(
        self,
        classes: int = len(CLASSES),
        channels: tuple[int, int, int, int, int, int] = (3, 16, 32, 64, 96, 128),
        skips: int = 2,
    ) -> None:
        super().__init__()
        self.skips = skips
        stages = [_convolution(*channels[:2], 5, stride=2)]
        for c, d in pairwise(channels[1:]):
            # A last row or column that has no partner is pooled alone, so that coarse places cover the whole image.
            stages.append(nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), _convolution(c, d), _convolution(d, d)))
        self.stages = nn.ModuleList(stages)
        self.scores = nn.ModuleList(Conv2d(c, classes, 1) for c in channels[:2:-1])  # at 1/32, 1/16, 1/8
        self.enlarge = nn.ModuleList(_bilinear(classes, 2) for _ in range(2))
        for score in self.scores[1:]:
            for weights in score.parameters():
                nn.init.zeros_(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the scores."""
        size = x.shape[2:]
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        found = self.scores[0](maps[-1])
        for skip in range(self.skips):
            finer = maps[-2 - skip]
            found = self.scores[1 + skip](finer) + _cut(self.enlarge[skip](found), finer.shape[2:])
        factor = COARSEST >> self.skips
        whole = nn.functional.interpolate(found, scale_factor=factor, mode="bilinear", align_corners=False)
        return _cut(whole, size)


def _convolution(c: int, d: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        Conv2d(c, d, size, stride=stride, padding=size // 2, bias=False), nn.BatchNorm2d(d), nn.ReLU(inplace=True)
    )


def _bilinear(channels: int, factor: int) -> ConvTranspose2d:
    """Make a layer that enlarges each channel by itself; it begins as bilinear interpolation."""
    enlarge = ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, groups=channels, bias=False
    )
    tent = 1 - ((torch.arange(2 * factor) + 0.5) / factor - 1).abs()
    with torch.no_grad():
        enlarge.weight.copy_(tent[:, None] * tent)
    return enlarge


def _cut(x: Tensor, size: torch.Size) -> Tensor:
    return x[..., : size[0], : size[1]]


# ---------------------------------------------------------------------------------------------------------------- data


def mask(boxes: list[Cell], height: int, width: int) -> Tensor:
    """Write the class of the smallest box around every pixel, 0 for none, as uint8 (height, width)."""
    out = torch.zeros(height, width, dtype=torch.uint8)
    for name, (x0, y0, x1, y1) in sorted(boxes, key=lambda cell: -_area(cell)):
        out[round(y0) : round(y1), round(x0) : round(x1)] = CLASSES.index(name)
    return out


def _area(cell: Cell) -> float:
    x0, y0, x1, y1 = cell[1]
    return (x1 - x0) * (y1 - y0)


def photographs(folder: Path) -> tuple[Labelled, Labelled]:
    """Read photographs of blood, x (N, 3, 480, 640) uint8 and y (N, 480, 640) uint8; every fifth is to test."""
    pictures = blood(folder)
    x = torch.stack([image for image, _ in pictures])
    y = torch.stack([mask(boxes, *image.shape[1:]) for image, boxes in pictures])
    tested = torch.arange(len(x)) % 5 == 4
    return Labelled(x[~tested], y[~tested], CLASSES), Labelled(x[tested], y[tested], CLASSES)


def floats(x: Tensor) -> Tensor:
    """Give pixels (uint8) as numbers around 0."""
    return x / 255 - 0.5


def cropped(x: Tensor, y: Tensor, size: int = CROP) -> tuple[Tensor, Tensor]:
    """Cut a square out of every image at random, and mirror and turn all alike."""
    height, width = x.shape[2:]
    down = torch.randint(max(height - size, 0) + 1, (len(x),)).tolist()
    right = torch.randint(max(width - size, 0) + 1, (len(x),)).tolist()
    spans = [(slice(i, i + size), slice(j, j + size)) for i, j in zip(down, right, strict=True)]
    x = torch.stack([image[:, rows, columns] for image, (rows, columns) in zip(x, spans, strict=True)])
    y = torch.stack([image[rows, columns] for image, (rows, columns) in zip(y, spans, strict=True)])
    way = int(torch.randint(8, ()))  # four turns, each of them mirrored or not
    if way >= 4:
        x, y = x.flip(-1), y.flip(-1)
    return floats(x.rot90(way % 4, (-2, -1))), y.rot90(way % 4, (-2, -1)).long()


# ------------------------------------------------------------------------------------------------------------ training


def fit(
    data: Labelled, *, epochs: int, seed: int = 0, start: FCN | None = None, name: str | None = None
) -> Trained[FCN]:
    """Train FCN-32s, or the next finer one from another, as the recipe does."""

    def build() -> FCN:
        if start is None:
            return FCN(skips=0)
        finer = copy.deepcopy(start)
        finer.skips += 1
        return finer

    return train(
        build, data, epochs=epochs, seed=seed, batch=4, rate=4e-3 if start is None else 2e-3, decay=0.01,
        augment=cropped, name=name,
    )  # fmt: skip


def predict(model: FCN, x: Tensor) -> Tensor:
    """Predict the class of every pixel of whole images (N, 3, H, W) uint8, one by one: (N, H, W)."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(floats(image[None])).argmax(dim=1).byte() for image in x])


def confusion(predicted: Tensor, truth: Tensor, classes: int = len(CLASSES)) -> Tensor:
    """Count pixels by their class (rows) and the predicted one (columns)."""
    both = truth.long().flatten() * classes + predicted.flatten()
    return both.bincount(minlength=classes**2).view(classes, classes)


def iou(counts: Tensor) -> Tensor:
    """Intersection over union of each class, n_ii / (Σ_j n_ij + Σ_j n_ji - n_ii), from a confusion matrix."""
    right = counts.diag()
    return right / (counts.sum(0) + counts.sum(1) - right)


def recipe(options: Options) -> Report:
    """Train FCN-32s, -16s and -8s on squares of 256 pixels; test on whole photographs of 640 x 480."""
    data, test = (part.sample(options.sample) for part in photographs(options.data))
    rows, losses, shares = [], {}, []
    model: FCN | None = None
    for skips, share in enumerate((1, 0.5, 0.5)):
        name = f"FCN-{COARSEST >> skips}s"
        epochs = max(1, round(share * options.epochs))
        run = fit(data, epochs=epochs, seed=options.seed, start=model, name=name)
        model = run.model
        predicted = predict(model, test.x)
        counts = confusion(predicted, test.y)
        shares.append(iou(counts))
        right = float(counts.diag().sum() / counts.sum())
        cells = [percent(float(value)) for value in (*shares[-1], shares[-1].mean())]
        rows.append([name, *cells, percent(right), f"{run.seconds:.0f} s"])
        losses[name] = ([e.number for e in run.epochs], [e.loss for e in run.epochs])
    assert model is not None
    strides = [COARSEST >> skips for skips in range(len(shares))]
    by_class = {name: (strides, [float(share[k]) for share in shares]) for k, name in enumerate(CLASSES)}
    return Report(
        f"Fully convolutional networks on {len(data)} photographs of blood, tested on {len(test)}",
        [(("IoU", *CLASSES, "mean", "pixels right", "training"), rows)],
        f"Trained on squares of {CROP} pixels, the network of {count_weights(model):,} weights predicts whole "
        f"photographs of {test.x.shape[3]} x {test.x.shape[2]}: mean IoU {percent(float(shares[-1].mean()))}.",
        [
            *_pictures(test, predicted),
            curves("training", "epoch", "loss", losses, markers=False),
            curves("finer layers take part", "pixels between their places", "IoU", by_class, log=True),
        ],
    )


def _pictures(test: Labelled, predicted: Tensor) -> list[Panel]:
    """Show the photograph with most classes, and of these the one of which most is marked."""
    shown = max(range(len(test)), key=lambda n: (len(test.y[n].unique()), int((test.y[n] > 0).sum())))
    return [
        picture("a photograph it has not seen", test.x[shown].permute(1, 2, 0)),
        picture("truth: boxes", test.y[shown], CLASSES),
        picture("prediction", predicted[shown], CLASSES),
    ]


if __name__ == "__main__":
    main(recipe, __doc__, epochs=16)
