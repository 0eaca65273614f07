"""wherever in PyTorch: its convolutions with gradients, as functions and as layers, on this engine."""

from wherever.torch import functional
from wherever.torch.accelerate import Accelerated, accelerate
from wherever.torch.modules import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    replace,
)
from wherever.torch.tiled import Tiled, tiled

__all__ = [
    "Accelerated",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Tiled",
    "accelerate",
    "functional",
    "replace",
    "tiled",
]
