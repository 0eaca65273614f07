"""Where invariance is not wanted: locally connected layers and coordinate channels, beside a convolution.

The source asks why translation invariance might not be a good idea after all: where a thing has its place, what a patch
means depends on where it is. Two ways to let a layer know. A *locally connected* layer keeps locality and gives up
invariance (the source's equation before its first step; for digits LeCun 1989, for aligned faces Taigman et al. 2014):

    H[d, i, j] = u[d] + Σ_c Σ_ab V[i, j, d, c, a, b] X[c, i+a, j+b],    |a|, |b| <= Δ.

*Coordinate channels* (Liu et al. 2018, arXiv:1807.03247) keep one kernel and show it where it is: two more channels,
X[C, i, j] = i and X[C+1, i, j] = j, both from -1 to 1.

All three networks of the recipe end in a mean over all places, and continue images around their border; so the
convolution cannot know positions from its last layer, nor from zeros at a border. They see digits that somebody has
centred, the same digits moved around the border at random, and photographs (32 x 32), in which cats and dogs are mostly
in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wherever.check.words import percent
from wherever.models.augmentation import shifted
from wherever.models.cats_dogs import mirroring
from wherever.models.data import Labelled, cats_and_dogs, digits
from wherever.models.recipe import Options, Panel, Report, learning, main
from wherever.models.training import Trained, accuracy, count_weights, outputs, seeded, train
from wherever.torch import Conv2d

AROUND = ((4, 0), (-4, 0), (0, 4), (0, -4))  # pixels down, right
Layer = Callable[[int, int, int, int], nn.Module]


class LocallyConnected2d(nn.Module):
    """Images (N, C, H, W) to (N, D, h, w), a kernel of its own at every place; images continue around their border.

    Parameters
    ----------
    in_channels, out_channels : int
        C and D.
    kernel_size : int
        2 Δ + 1.
    size : tuple of int
        H and W, which must be multiples of the stride.
    stride : int
        Pixels from one place to the next: h = H / stride.

    Attributes
    ----------
    weight : Parameter, (h w, D, C · kernel_size²)
    bias : Parameter, (D,)
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, size: tuple[int, int], stride: int = 1
    ) -> None:
        super().__init__()
        if any(length % stride for length in size):
            raise ValueError(f"size: {size[0]} x {size[1]} is no multiple of the stride {stride}")
        self.kernel_size, self.stride = kernel_size, stride
        self.places = (size[0] // stride, size[1] // stride)
        taps = in_channels * kernel_size**2
        reach = 1 / math.sqrt(taps)  # as PyTorch's convolutions begin
        self.weight = nn.Parameter(torch.empty(math.prod(self.places), out_channels, taps).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-reach, reach))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the equation: at each place a matrix product of all images' patches with that place's kernels."""
        delta = self.kernel_size // 2
        padded = nn.functional.pad(x, [delta] * 4, mode="circular")
        patches = nn.functional.unfold(padded, self.kernel_size, stride=self.stride)  # (N, taps, places)
        out = torch.bmm(patches.permute(2, 0, 1), self.weight.transpose(1, 2))  # (places, N, D)
        return out.permute(1, 2, 0).unflatten(2, self.places) + self.bias[:, None, None]

    def share(self, layer: nn.Conv2d) -> None:
        """Give every place the kernel of a convolution, which this layer then equals."""
        with torch.no_grad():
            self.weight.copy_(layer.weight.flatten(1).expand_as(self.weight))
            self.bias.copy_(torch.zeros_like(self.bias) if layer.bias is None else layer.bias)

    @property
    def shared(self) -> float:
        """Share of the weights' energy (sum of squares) that one kernel for all places has: their mean; from 0 to 1."""
        V = self.weight.detach()
        return float(V.mean(dim=0).square().sum() / V.square().sum(dim=(1, 2)).mean())


class Coordinates(nn.Module):
    """Images (N, C, H, W) with two more channels, (N, C + 2, H, W): the row and the column, from -1 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Append the channels."""
        height, width = x.shape[-2:]
        i, j = torch.linspace(-1, 1, height, dtype=x.dtype), torch.linspace(-1, 1, width, dtype=x.dtype)
        grid = torch.stack([i[:, None].expand(height, width), j.expand(height, width)])
        return torch.cat([x, grid.expand(len(x), 2, height, width)], dim=1)


def convolution(c: int, d: int, kernel: int, size: int) -> nn.Module:
    """Make a convolution of stride 2 around the border."""
    return Conv2d(c, d, kernel, stride=2, padding=kernel // 2, padding_mode="circular")


def with_coordinates(c: int, d: int, kernel: int, size: int) -> nn.Module:
    """Make the same that sees coordinates."""
    return nn.Sequential(Coordinates(), convolution(c + 2, d, kernel, size))


def locally_connected(c: int, d: int, kernel: int, size: int) -> nn.Module:
    """Make the same with kernels of its own at every place."""
    return LocallyConnected2d(c, d, kernel, (size, size), stride=2)


LAYERS: dict[str, Layer] = {
    "convolution": convolution,
    "coordinate channels": with_coordinates,
    "locally connected": locally_connected,
}


def network(layer: Layer, channels: int, classes: int, size: int, width: int = 32) -> nn.Sequential:
    """Make a network of two layers of a kind and the mean over all places: (N, C, size, size) to (N, classes)."""
    return nn.Sequential(
        layer(channels, width, 5, size),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        layer(width, width, 5, size // 2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


def moved(data: Labelled, seed: int) -> Labelled:
    """Move each image around its border, as far as chance will have it."""
    height, width = data.x.shape[-2:]
    with seeded(seed):
        rows, columns = torch.randint(height, (len(data),)), torch.randint(width, (len(data),))
    i, j = (torch.arange(height) - rows[:, None]) % height, (torch.arange(width) - columns[:, None]) % width
    image = torch.arange(len(data))[:, None, None, None]
    channel = torch.arange(data.x.shape[1])[:, None, None]
    return Labelled(data.x[image, channel, i[:, None, :, None], j[:, None, None, :]], data.y, data.classes)


def shared(model: nn.Module) -> str:
    """Say how much of the energy of locally connected layers one kernel would have, layer by layer."""
    return ", ".join(percent(m.shared) for m in model.modules() if isinstance(m, LocallyConnected2d)) or "one kernel"


def compare(what: str, data: Labelled, test: Labelled, options: Options) -> dict[str, Trained[nn.Module]]:
    """Train the three networks on digits or on photographs."""
    photographs = what == "cats and dogs"
    return {
        name: train(
            lambda layer=layer: network(layer, data.x.shape[1], 2 if photographs else 10, data.x.shape[2]),  # type: ignore[misc]
            data,
            test,
            epochs=options.epochs if photographs else max(1, options.epochs // 2),
            seed=options.seed,
            rate=5e-3,
            decay=0.05,
            augment=mirroring if photographs else None,
            name=f"{what}: {name}",
        )
        for name, layer in LAYERS.items()
    }


def halved(data: Labelled) -> Labelled:
    """Halve the resolution."""
    return Labelled(nn.functional.avg_pool2d(data.x, 2), data.y, data.classes)


def recipe(options: Options) -> Report:
    """Train all three on centred digits and on moved digits, for half as many epochs, and on photographs."""
    centred = tuple(part.sample(options.sample) for part in digits(options.data))
    anywhere = tuple(moved(part, options.seed + number) for number, part in enumerate(centred, 1))
    photographs = tuple(halved(part).sample(options.sample) for part in cats_and_dogs(options.data))
    rows: list[list[str]] = []
    panels: list[Panel] = []
    for what, (data, test), elsewhere in (
        ("digits in the middle", centred, anywhere[1:]),
        ("digits anywhere", anywhere, anywhere[1:]),
        ("cats and dogs", photographs, [Labelled(shifted(photographs[1].x, *by), photographs[1].y) for by in AROUND]),
    ):
        runs = compare(what, data, test, options)
        for name, run in runs.items():
            found = [accuracy(outputs(run.model, images.x), images.y) for images in elsewhere]
            weights = f"{count_weights(run.model):,}"
            rows.append([what, name, weights, percent(run.score), percent(sum(found) / len(found)), shared(run.model)])
        panels.append(learning(runs, f"test accuracy, {what}")[1])
    header = ("trained on", "layers", "weights", "test accuracy", "test images moved", "one kernel's share")
    return Report(
        f"Positions: {len(centred[0]):,} digits and {len(photographs[0]):,} photographs to train on",
        [(header, rows)],
        "Moved: digits around the border as far as chance will have it, photographs by 4 of 32 pixels, either way.",
        panels,
    )


if __name__ == "__main__":
    main(recipe, __doc__, epochs=12)
