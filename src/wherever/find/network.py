"""Small fully convolutional networks as detectors: arrays of weights, swept through `wherever.torch` in equal tiles."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wherever.find.features import Eye, Floats
from wherever.find.sweep import Padding, Template

if TYPE_CHECKING:
    from torch import nn

TILES = (16, 64, 128)  # windows along an edge of a tile: few sizes, because each is prepared for
PATIENCE = 4.0  # seconds that tiles of one size may take before a program is prepared for them, which takes as long
WORKSPACE = 96 << 20  # bytes that the largest tile takes with all that is computed of it


@dataclass(frozen=True)
class Layer:
    """A convolution without padding, and a ReLU after it unless it is the last one.

    Attributes
    ----------
    weights, bias
        (K, C, R, S) and (K,).
    stride
        Steps down and across.
    """

    weights: Floats
    bias: Floats
    stride: int = 1


@dataclass(frozen=True)
class Member:
    """A network of layers, and by how much its score is multiplied before those of all members are added."""

    layers: tuple[Layer, ...]
    share: float = 1.0

    @property
    def field(self) -> tuple[int, int]:
        """Rows and columns that one place of the result sees."""
        rows = columns = 1
        for layer in reversed(self.layers):
            high, wide = layer.weights.shape[2:]
            rows, columns = (rows - 1) * layer.stride + high, (columns - 1) * layer.stride + wide
        return rows, columns

    @property
    def stride(self) -> int:
        """The product of the strides."""
        return math.prod(layer.stride for layer in self.layers)


@dataclass(frozen=True)
class Network:
    """The weighted sum of networks that see the same windows; see `wherever.find.sweep.Scorer`.

    Attributes
    ----------
    members
        Their fields are the template's window, their strides its stride.
    """

    template: Template
    eye: Eye
    members: tuple[Member, ...]
    levels: tuple[int, ...]
    penalties: tuple[float, ...]
    angles: tuple[float, ...] = (0.0,)
    memory = WORKSPACE

    def scores(self, maps: Floats, padding: Padding, penalty: float = 0.0) -> tuple[Floats, NDArray[np.intp]]:
        """Return the score of each window of padded maps, less a penalty, and zeros, as there is one angle."""
        scores = self._runner(np.pad(maps, ((0, 0), *padding))) - np.float32(penalty)
        return scores, np.zeros(scores.shape, np.intp)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the numbers that were learnt, by name."""
        found = {}
        for number, member in enumerate(self.members):
            found[f"{number}.share"] = np.array([member.share], np.float32)
            for place, layer in enumerate(member.layers):
                found[f"{number}.{place}.weights"] = layer.weights
                found[f"{number}.{place}.bias"] = layer.bias
        return found

    @property
    def strides(self) -> list[list[int]]:
        """The strides of the layers of every member."""
        return [[layer.stride for layer in member.layers] for member in self.members]

    def holding(self, arrays: dict[str, Any], strides: Sequence[Sequence[int]]) -> Network:
        """Return the network with members made of what `arrays` and `strides` returned; ValueError if they misfit."""
        members = []
        for number, steps in enumerate(strides):
            layers = [
                Layer(
                    np.asarray(arrays[f"{number}.{place}.weights"], np.float32),
                    np.asarray(arrays[f"{number}.{place}.bias"], np.float32),
                    int(step),
                )
                for place, step in enumerate(steps)
            ]
            member = Member(tuple(layers), float(np.asarray(arrays[f"{number}.share"])[0]))
            window = (self.template.rows, self.template.columns)
            channels = [self.eye.maps, *(len(layer.weights) for layer in layers)]
            shapes = [(layer.weights.shape[1], len(layer.bias)) for layer in layers]
            fits = bool(layers) and channels[-1] == 1 and shapes == list(pairwise(channels))
            if not fits or (member.field, member.stride) != (window, self.template.stride):
                raise ValueError(f"the layers of network {number} do not fit each other, or its window")
            members.append(member)
        return replace(self, members=tuple(members))

    @cached_property
    def _runner(self) -> _Runner:
        return _Runner(self)

    def __getstate__(self) -> dict[str, Any]:
        # What is prepared for this process stays here.
        return {name: value for name, value in self.__dict__.items() if name != "_runner"}


class _Runner:
    """Runs a network on maps of any size: in tiles of few sizes, each accelerated once that pays."""

    def __init__(self, network: Network) -> None:
        needs_torch()
        import wherever.torch

        self._window = (network.template.rows, network.template.columns)
        self._stride = network.template.stride
        self._module = wherever.torch.replace(as_module(network.members).eval())
        self._fast: dict[int, Any] = {}
        self._spent = dict.fromkeys(TILES, 0.0)

    def __call__(self, maps: Floats) -> Floats:
        """Return the score of every window of maps (C, H, W)."""
        import torch

        high, wide = ((n - w) // self._stride + 1 for n, w in zip(maps.shape[1:], self._window, strict=True))
        result = np.empty((high, wide), np.float32)
        if result.size == 0:
            return result
        tile = min(TILES, key=lambda n: -(-high // n) * -(-wide // n) * (n + 2 + self._window[0] // self._stride) ** 2)
        size = [w + (tile - 1) * self._stride for w in self._window]
        for top in range(0, high, tile):
            for left in range(0, wide, tile):
                y, x = top * self._stride, left * self._stride
                part = maps[:, y : y + size[0], x : x + size[1]]
                missing = [(0, n - have) for n, have in zip(size, part.shape[1:], strict=True)]
                given = torch.from_numpy(np.ascontiguousarray(np.pad(part, ((0, 0), *missing))))[None]
                found = self._run(given, tile)[: high - top, : wide - left]
                result[top : top + tile, left : left + tile] = found
        return result

    def _run(self, given: Any, tile: int) -> Floats:
        import torch

        begun = time.perf_counter()
        with torch.no_grad():
            found: Floats = self._fast.get(tile, self._module)(given)[0, 0].numpy()
        if tile not in self._fast:
            self._spent[tile] += time.perf_counter() - begun
            if self._spent[tile] > PATIENCE:
                import wherever.torch

                self._fast[tile] = wherever.torch.accelerate(self._module, given)
        return found


def needs_torch() -> None:
    """Raise ModuleNotFoundError, with the way out, if PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'a detector with a network needs PyTorch: pip install "wherever[torch]"; kind="closed" does not',
            name="torch",
        ) from error


def as_module(members: Sequence[Member]) -> nn.Module:
    """Return the weighted sum of networks as a PyTorch module, (N, C, H, W) to (N, 1, H', W')."""
    import torch
    from torch import nn

    def convolution(layer: Layer, factor: float) -> nn.Module:
        count, channels, *kernel = layer.weights.shape
        made = nn.Conv2d(channels, count, (kernel[0], kernel[1]), layer.stride)
        with torch.no_grad():
            made.weight.copy_(torch.from_numpy(layer.weights * np.float32(factor)))
            made.bias.copy_(torch.from_numpy(layer.bias * np.float32(factor)))  # type: ignore[union-attr]
        return made

    class Sum(nn.Module):
        """Networks side by side."""

        def __init__(self) -> None:
            super().__init__()
            parts = []
            for member in members:
                layers: list[nn.Module] = []
                for layer in member.layers[:-1]:
                    layers += [convolution(layer, 1.0), nn.ReLU()]
                parts.append(nn.Sequential(*layers, convolution(member.layers[-1], member.share)))
            self.parts = nn.ModuleList(parts)

        def forward(self, x: Any) -> Any:
            result = self.parts[0](x)
            for part in self.parts[1:]:
                result = result + part(x)
            return result

    return Sum()
