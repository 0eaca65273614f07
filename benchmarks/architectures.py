"""Whole networks, written down here so that nothing has to be downloaded: what `accelerate` is measured on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """Layers whose result is added to what they were given, or to a projection of it; then ReLU, where it is wanted."""

    def __init__(self, layers: nn.Module, shortcut: nn.Module | None = None, relu: bool = True) -> None:
        super().__init__()
        self.layers, self.shortcut, self.relu = layers, shortcut, relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x) + (x if self.shortcut is None else self.shortcut(x))
        return functional.relu(y) if self.relu else y


def normed(c: int, k: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU):
    """A convolution without bias, batch normalisation, and an activation."""
    layers = [nn.Conv2d(c, k, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(k)]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


def vgg16() -> nn.Module:
    """VGG-16 (Simonyan and Zisserman, 2014)."""
    layers: list[nn.Module] = []
    c = 3
    for count, k in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(count):
            layers += [nn.Conv2d(c, k, 3, padding=1), nn.ReLU()]
            c = k
        layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def resnet(counts: tuple[int, ...], bottleneck: bool) -> nn.Module:
    """ResNet (He et al., 2015), with the stride in the 3x3 layers."""
    layers: list[nn.Module] = [normed(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    c = 64
    for stage, count in enumerate(counts):
        width = 64 << stage
        k = 4 * width if bottleneck else width
        for block in range(count):
            stride = 2 if stage and not block else 1
            if bottleneck:
                inner = [normed(c, width, 1), normed(width, width, 3, stride), normed(width, k, 1, act=None)]
            else:
                inner = [normed(c, width, 3, stride), normed(width, k, 3, act=None)]
            shortcut = None if c == k and stride == 1 else normed(c, k, 1, stride, act=None)
            layers.append(Residual(nn.Sequential(*inner), shortcut))
            c = k
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 1000))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (Sandler et al., 2018)."""
    layers: list[nn.Module] = [normed(3, 32, 3, 2, act=nn.ReLU6)]
    c = 32
    for expand, k, count, first in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(count):
            stride, wide = (1 if block else first), c * expand
            inner = [normed(c, wide, 1, act=nn.ReLU6)] if expand > 1 else []
            inner += [normed(wide, wide, 3, stride, wide, nn.ReLU6), normed(wide, k, 1, act=None)]
            body = nn.Sequential(*inner)
            layers.append(Residual(body, relu=False) if stride == 1 and c == k else body)
            c = k
    head = [normed(c, 1280, 1, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *head)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of every pixel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 layer, and two fully connected layers at every pixel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.up, self.act, self.down = nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c)
        self.scale = nn.Parameter(torch.full((c,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(self.act(self.up(y)))).permute(0, 3, 1, 2)


def convnext_tiny() -> nn.Module:
    """ConvNeXt-T (Liu et al., 2022)."""
    layers: list[nn.Module] = []
    c = 3
    for k, count in ((96, 3), (192, 3), (384, 9), (768, 3)):
        layers += [nn.Conv2d(c, k, 4, 4), ChannelNorm(k)] if c == 3 else [ChannelNorm(c), nn.Conv2d(c, k, 2, 2)]
        layers += [ConvNeXtBlock(k) for _ in range(count)]
        c = k
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(c), nn.Linear(c, 1000))


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) with padding: ``levels`` halvings, from ``base`` channels up."""

    def __init__(self, base: int = 32, levels: int = 4, c: int = 3, k: int = 2) -> None:
        super().__init__()
        widths = [base << level for level in range(levels + 1)]
        self.down = nn.ModuleList(self.double(a, b) for a, b in zip([c, *widths], widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.raised = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(self.double(a, b) for a, b in pairs)
        self.last = nn.Conv2d(base, k, 1)

    @staticmethod
    def double(c: int, k: int) -> nn.Module:
        """Two layers of 3x3."""
        return nn.Sequential(normed(c, k, 3), normed(k, k, 3))

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for level, layers in enumerate(self.down):
            x = layers(functional.max_pool2d(x, 2) if level else x)
            seen.append(x)
        for raised, layers, beside in zip(self.raised, self.up, seen[-2::-1], strict=True):
            x = layers(torch.cat([beside, raised(x)], dim=1))
        return self.last(x)


def detector() -> nn.Module:
    """A fully convolutional detector: 3-16-32-32-32-1 channels, kernels 3, 5, 3, 5, 3."""
    layers: list[nn.Module] = []
    for c, k, kernel in ((3, 16, 3), (16, 32, 5), (32, 32, 3), (32, 32, 5), (32, 1, 3)):
        layers += [nn.Conv2d(c, k, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def audio() -> nn.Module:
    """Layers over a waveform: 1 to 64 channels, 80 taps, stride 4; then four of 3 taps, ever farther apart."""
    layers: list[nn.Module] = [nn.Conv1d(1, 64, 80, 4), nn.ReLU()]
    for dilation in (1, 2, 4, 8):
        layers += [nn.Conv1d(64, 64, 3, padding=dilation, dilation=dilation), nn.ReLU()]
    return nn.Sequential(*layers)


def volume() -> nn.Module:
    """One level of a 3-D U-Net: 32-64-64 channels, 3x3x3."""
    return nn.Sequential(nn.Conv3d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv3d(64, 64, 3, padding=1), nn.ReLU())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "VGG-16": (vgg16, (1, 3, 224, 224)),
    "ResNet-18": (lambda: resnet((2, 2, 2, 2), False), (1, 3, 224, 224)),
    "ResNet-50": (lambda: resnet((3, 4, 6, 3), True), (1, 3, 224, 224)),
    "MobileNetV2": (mobilenet_v2, (1, 3, 224, 224)),
    "ConvNeXt-T": (convnext_tiny, (1, 3, 224, 224)),
    "U-Net 256": (UNet, (1, 3, 256, 256)),
    "U-Net 512": (UNet, (1, 3, 512, 512)),
    "detector 1024": (detector, (1, 3, 1024, 1024)),
    "audio": (audio, (1, 1, 64000)),
    "3-D U-Net level": (volume, (1, 32, 64, 64, 64)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network in evaluation mode, its batch normalisations as if trained, and an input for it."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return model, torch.randn(shape)
