"""The numbers and pictures of docs/check.md that need data: `python docs/check.py --data DIR`."""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wherever import check
from wherever.check.plots import draw


def digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the digits and their labels."""
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"mnist-10k-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return images.reshape(-1, 28, 28), labels


def moved(images: np.ndarray) -> np.ndarray:
    """Move every image around its border, as far as chance will have it."""
    rng = np.random.default_rng(0)
    return np.stack([np.roll(image, rng.integers(0, 28, 2), (0, 1)) for image in images])


def trained(images: np.ndarray, labels: np.ndarray) -> nn.Sequential:
    """Train LeNet for eight rounds."""
    torch.manual_seed(0)
    features = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()]
    end = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 10)]
    model = nn.Sequential(*features, *end)
    x, y = torch.from_numpy(images[:, None] / np.float32(255)), torch.from_numpy(labels.astype(np.int64))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(8):
        for chosen in torch.randperm(len(x)).split(50):
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model


def main() -> None:
    """Print the tables and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the MNIST test set")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the pictures")
    options = parser.parse_args()
    images, labels = digits(options.data)
    few, classes = images[:2000], labels[:2000]
    results = [check.stationarity(few), check.locality(few), check.sharing(few, classes)]
    for result in (*results, check.sharing(moved(few), classes)):
        print(result, "\n")
    draw(options.out / "check-digits.png", results)
    found = check.equivariance(trained(few, classes), torch.from_numpy(images[2000:2016, None] / 255))
    print(found)
    found.plot(options.out / "check-lenet.png")


if __name__ == "__main__":
    main()
