"""Images changed at random, so that few stand for many: moved, turned, sized, bent and mirrored.

Random numbers are PyTorch's, so a seed repeats them. All functions take images (N, C, H, W) and give new ones of that
shape; what comes in from outside repeats the border.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Shift all images by whole pixels: ``out[i, j] = x[i - down, j - right]``."""
    height, width = x.shape[-2:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    return x[..., rows[:, None], columns]


def mirrored(x: Tensor) -> Tensor:
    """Mirror half of the images, left for right."""
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)


def warped(
    x: Tensor, *, move: float = 0, turn: float = 0, size: float = 0, bend: float = 0, smooth: float = 4
) -> Tensor:
    """Change each image by a random affine map and an elastic one, interpolating once.

    ``out(p) = x(A p + t + d(p))`` with A a turn and a change of size, t a shift, and d a smooth field.

    Parameters
    ----------
    x : Tensor, (N, C, H, W)
    move : float
        Largest shift, in pixels, along each axis.
    turn : float
        Largest angle, in degrees.
    size : float
        Largest change of size: 0.1 is from 0.9 to 1.1 times, of each axis by itself.
    bend : float
        Standard deviation of the elastic displacement, in pixels (Simard, Steinkraus and Platt 2003).
    smooth : float
        Standard deviation of the Gaussian that the displacement is smoothed with, in pixels.
    """
    n, _, height, width = x.shape
    extent = torch.tensor([width, height]) / 2  # grid_sample counts from -1 to 1, across first
    angle = (2 * torch.rand(n) - 1) * turn * torch.pi / 180
    turning = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(n, 2, 2)
    sizing = 1 + size * (2 * torch.rand(n, 1, 2) - 1)
    shift = move * (2 * torch.rand(n, 2, 1) - 1)
    # In pixels from the centre, then in grid_sample's units, which differ where images are not square.
    affine = torch.cat([turning * sizing * extent, shift], dim=2) / extent[:, None]
    grid = nn.functional.affine_grid(affine, [n, 1, height, width], align_corners=False)
    if bend:
        grid = grid + bend * _field(n, height, width, smooth) / extent
    return nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _field(n: int, height: int, width: int, smooth: float) -> Tensor:
    """Draw smooth fields (N, H, W, 2) of standard deviation 1: white noise under a Gaussian."""
    reach = int(3 * smooth)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * smooth**2))
    kernel = kernel / kernel.square().sum().sqrt()  # each pass keeps the variance of noise
    noise = torch.randn(2 * n, 1, height + 2 * reach, width + 2 * reach)
    noise = nn.functional.conv2d(nn.functional.conv2d(noise, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return noise.view(n, 2, height, width).permute(0, 2, 3, 1)
