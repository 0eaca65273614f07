"""Network in Network (Lin, Chen and Yan 2013): 1x1 convolutions are an MLP at every pixel; global average pooling.

*Network in Network*, arXiv:1312.4400. A convolution is linear in each patch. There it is followed by convolutions of
one pixel (the source's Δ = 0), which mix the channels at each place and look at nothing else,

    H[d, i, j] = max(0, u[d] + Σ_c V[d, c] X[c, i, j]):

a fully connected layer over the channels, the same at every pixel; `as_mlp` makes it one. The last such layer has a
channel for each class, and its mean over all places is the class's score, so that no fully connected layer is left:

    score[k] = 1/(H W) Σ_ij X[k, i, j].

Digits and photographs compare it with plain convolutions of as many weights, with either end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from wherever.check.words import Cells, percent
from wherever.models import lenet
from wherever.models.cats_dogs import mirroring
from wherever.models.data import Labelled, cats_and_dogs, digits
from wherever.models.recipe import Options, Panel, Report, learning, main
from wherever.models.training import Trained, count_weights, train
from wherever.torch import Conv2d


class NetworkInNetwork(nn.Module):
    """Images (N, C, H, W) to scores (N, K): three blocks of a convolution and an MLP at every pixel.

    Parameters
    ----------
    channels, classes : int
        C and K.
    width : int
        Channels between.
    stride : int
        Of the first convolution, 5 x 5; the other two are 3 x 3. The resolution is halved after each of the first two.
    depth : int
        1x1 convolutions after each: 2 in the paper, 0 for a plain CNN.
    size : tuple of int, optional
        H, W, if the end is to be a fully connected layer instead of global average pooling.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        width: int = 32,
        *,
        stride: int = 1,
        depth: int = 2,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        between = [nn.MaxPool2d(2, ceil_mode=True), nn.Dropout(0.2)]
        self.blocks = nn.Sequential(
            *block(channels, width, 5, stride, depth),  # (N, width, H / stride, W / stride)
            *between,
            *block(width, width, 3, 1, depth),
            *between,
            *block(width, width, 3, 1, depth),
        )
        self.end: nn.Module
        if size is None:
            self.end = Conv2d(width, classes, 1)  # a map for each class
        else:
            height, across = (-(-length // (4 * stride)) for length in size)
            self.end = nn.Sequential(nn.Flatten(), nn.Linear(width * height * across, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Give the scores."""
        out: Tensor = self.end(self.blocks(x))
        return out if out.ndim == 2 else out.mean(dim=(2, 3))

    def maps(self, x: Tensor) -> Tensor:
        """Give the map of each class, (N, K, h, w), whose means are the scores."""
        with torch.no_grad():
            out: Tensor = self.end(self.blocks(x))
        return out


def block(c: int, d: int, size: int, stride: int, depth: int) -> list[nn.Module]:
    """Make a convolution from c to d channels and an MLP of `depth` layers at every pixel (the paper's mlpconv)."""
    layers: list[nn.Module] = []
    for number in range(1 + depth):
        first = number == 0
        kernel: Any = {"kernel_size": size, "stride": stride, "padding": size // 2} if first else {"kernel_size": 1}
        layers += [Conv2d(c if first else d, d, bias=False, **kernel), nn.BatchNorm2d(d), nn.ReLU()]
    return layers


def as_mlp(layers: Iterable[nn.Module]) -> nn.Sequential:
    """Make the MLP (M, C) -> (M, D) that layers of 1x1 convolutions are at every one of M pixels.

    Weights are copied; so are the statistics of normalisations, for which each pixel is an example.
    """
    made: list[nn.Module] = []
    for layer in layers:
        new: nn.Module = layer
        if isinstance(layer, nn.Conv2d):
            if layer.kernel_size != (1, 1) or layer.stride != (1, 1) or layer.groups != 1:
                raise ValueError(f"layers: {layer} is no 1x1 convolution of all channels; only those are an MLP")
            new = nn.Linear(layer.in_channels, layer.out_channels, bias=layer.bias is not None)
            new.load_state_dict(
                {name: value.flatten(1) if value.ndim > 1 else value for name, value in layer.state_dict().items()}
            )
        elif isinstance(layer, nn.BatchNorm2d):
            new = nn.BatchNorm1d(layer.num_features, layer.eps, layer.momentum)
            new.load_state_dict(layer.state_dict())
            new.train(layer.training)
        made.append(new)
    return nn.Sequential(*made)


def of_equal_size(build: Callable[[int], nn.Module], weights: int) -> nn.Module:
    """Make the widest network that has at most so many weights; `build` makes one of a width."""
    width = 1
    with torch.device("meta"):  # which has shapes and no numbers
        while count_weights(build(width + 1)) <= weights:
            width += 1
    return build(width)


def contenders(channels: int, classes: int, width: int, stride: int, size: int) -> dict[str, Callable[[], nn.Module]]:
    """Give builders of the network and of plain CNNs with as many weights."""

    def network(width: int, **arguments: Any) -> NetworkInNetwork:
        return NetworkInNetwork(channels, classes, width, stride=stride, **arguments)

    weights = count_weights(network(width))
    return {
        "plain CNN, fully connected end": lambda: of_equal_size(
            lambda w: network(w, depth=0, size=(size, size)), weights
        ),
        "plain CNN, average pooling": lambda: of_equal_size(lambda w: network(w, depth=0), weights),
        "Network in Network": lambda: network(width),
    }


def compare(what: str, data: Labelled, test: Labelled, options: Options) -> dict[str, Trained[nn.Module]]:
    """Train the three on digits or on photographs."""
    shape = (1, 10, 32, 1, 28) if what == "digits" else (3, 2, 64, 2, 64)
    return {
        name: train(
            build,
            data,
            test,
            epochs=max(1, options.epochs // 2) if what == "digits" else options.epochs,
            seed=options.seed,
            rate=5e-3,
            decay=0.05,
            augment=lenet.varied if what == "digits" else mirroring,
            name=f"{what}: {name}",
        )
        for name, build in contenders(*shape).items()
    }


def recipe(options: Options) -> Report:
    """Train all three on digits, for half as many epochs, and on photographs."""
    tables: list[Cells] = []
    panels: list[Panel] = []
    sentences = []
    for what, read in (("digits", digits), ("photographs", cats_and_dogs)):
        data, test = (part.sample(options.sample) for part in read(options.data))
        runs = compare(what, data, test, options)
        rows = [
            [name, f"{count_weights(run.model):,}", percent(run.score), f"{run.seconds:.0f} s"]
            for name, run in runs.items()
        ]
        tables.append(((f"{len(data):,} {what}, {len(test):,} to test", "weights", "test accuracy", "training"), rows))
        panels.append(learning(runs, f"test accuracy, {what}")[1])
        *plain, ours = (run.score for run in runs.values())
        sentences.append(f"{percent(ours)} of {what} right, the better plain CNN of its size {percent(max(plain))}")
        best = runs["Network in Network"].model
        if what == "digits" and isinstance(best, NetworkInNetwork):
            panels.append(class_maps(best, test))
    return Report("Network in Network", tables, f"It tells {'; '.join(sentences)}.", panels)


def class_maps(model: NetworkInNetwork, test: Labelled) -> Panel:
    """Make a panel of test digits, each above the map of its class: where the network sees it."""
    x, y = test.x[:6], test.y[:6]
    maps = nn.functional.interpolate(model.maps(x)[range(len(x)), y][:, None], size=x.shape[-2:])

    def panel(axis: Any) -> None:
        shown = (maps / maps.amax(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)
        axis.imshow(torch.cat([torch.cat(list(part[:, 0]), dim=1) for part in (x, shown)]).numpy(), cmap="magma")
        axis.set_title("digits, and the map of their class", fontsize=10)
        axis.set_axis_off()

    return panel


if __name__ == "__main__":
    main(recipe, __doc__, epochs=12)
