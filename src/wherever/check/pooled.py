"""What patches say of whole images: similarity to a number of patches, pooled, and ridge regression on that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wherever.check.inputs import Floats, Images, pooled
from wherever.ops import conv

_PATCHES = 48  # that windows are compared with
_DRAWN = 20_000
_STRENGTHS = 10.0 ** np.arange(-4, 3)


@dataclass
class Pooled:
    """How similar windows are to each of a number of patches, averaged over the cells of a grid.

    Attributes
    ----------
    cells : array, shape (N, g, g, F)
    """

    cells: Floats

    @classmethod
    def of(cls, images: Images, delta: int, grid: int, seed: int) -> Pooled:
        """Compare the windows of images with whitened patches drawn from them, both signs rectified.

        After Coates and Ng, "The importance of encoding versus training with sparse coding and vector quantization"
        (2011): patches drawn at random, whitened (ZCA) and of unit length, and responses above a threshold.
        """
        rng = np.random.default_rng(seed)
        side, k = 2 * delta + 1, images.components
        each = -(-_DRAWN // len(images))
        drawn = []
        for image in images:
            y = rng.integers(0, image.shape[0] - side + 1, each)[:, None] + np.arange(side)
            x = rng.integers(0, image.shape[1] - side + 1, each)[:, None] + np.arange(side)
            drawn.append(image[y[:, :, None], x[:, None, :]].reshape(each, -1))
        patches = np.concatenate(drawn)
        mean = patches.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False).reshape(mean.size, -1))
        floor = 0.01 * max(float(values.mean()), 1e-30)
        whiten = (vectors / np.sqrt(np.maximum(values, 0) + floor)) @ vectors.T
        varied = np.flatnonzero(((patches - mean) ** 2).sum(axis=1) > 0)
        if not len(varied):
            raise ValueError("images: all are constant; there is nothing to compare")
        chosen = (patches[rng.choice(varied, min(_PATCHES, len(varied)), replace=False)] - mean) @ whiten
        chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
        weights = chosen @ whiten
        kernel = weights.reshape(-1, side, side, k).transpose(0, 3, 1, 2).astype(np.float32)
        bias = -(weights @ mean)
        threshold = 0.25 * ((patches - mean) @ weights.T).std(axis=0)
        cells = np.empty((len(images), grid, grid, 2 * len(weights)))
        for n, image in enumerate(images):
            x = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
            response = conv(x, kernel).transpose(1, 2, 0) + bias
            signs = np.concatenate([response - threshold, -response - threshold], axis=2)
            cells[n] = pooled(np.maximum(signs, 0), (grid, grid))
        return cls(cells)

    def whole(self) -> Floats:
        """Average over the whole image: one weight for each patch, wherever it is. Array (N, F)."""
        mean: Floats = self.cells.mean(axis=(1, 2))
        return mean

    def moments(self) -> Floats:
        """Average times 1, y, x, y², yx, x²: weights that are a polynomial in the place. Array (N, 6 F)."""
        n, grid = self.cells.shape[:2]
        at = np.linspace(-1, 1, grid)
        y, x = np.meshgrid(at, at, indexing="ij")
        powers = np.stack([np.ones_like(y), y, x, y * y, y * x, x * x])
        sums: Floats = np.tensordot(self.cells, powers, axes=([1, 2], [1, 2])).reshape(n, -1)
        return sums / float(grid**2)

    def regions(self, g: int) -> Floats:
        """Average over g x g regions: weights of their own in each. Array (N, g·g·F)."""
        n, grid, _, f = self.cells.shape
        mean: Floats = self.cells.reshape(n, g, grid // g, g, grid // g, f).mean(axis=(2, 4))
        return mean.reshape(n, -1)


def dealt(y: Floats, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Deal images to folds at random, each with as much of every class (or of every size of a number) as the others.

    Leaving out one image at a time would not do for classes: what is left holds less of its class than of the others.
    """
    rng = np.random.default_rng(seed)
    rank = y[:, 0] if y.shape[1] == 1 else y.argmax(axis=1)
    fold = np.empty(len(y), np.int64)
    fold[np.lexsort((rng.random(len(y)), rank))] = np.arange(len(y)) % folds
    return fold


def held_out(features: Floats, y: Floats, fold: npt.NDArray[np.int64]) -> Floats:
    """Predict the images of each fold from all others by ridge regression, with the strength that does it best.

    Parameters
    ----------
    features : array, shape (N, F)
        Each is brought to mean 0 and variance 1.
    y : array, shape (N, q)
    fold : array of int, shape (N,)

    Returns
    -------
    array, shape (N, q)
        In closed form from the fit to all of them: with its residuals r and the block H of its hat matrix that belongs
        to the images of a fold, those of the fit to the others are (1 - H)^-1 r.
    """
    n = len(features)
    scale = features.std(axis=0)
    used = scale > 1e-9 * max(float(scale.max(initial=0)), 1e-300)
    F = (features[:, used] - features[:, used].mean(axis=0)) / scale[used]
    values, vectors = np.linalg.eigh(F @ F.T)
    values = np.maximum(values, 0)
    centred = y - y.mean(axis=0)
    aim = vectors.T @ centred
    found = []
    for strength in _STRENGTHS:
        shrunk = values / (values + strength * max(float(values.mean()), 1e-300))
        left = centred - vectors @ (shrunk[:, None] * aim)
        guessed = np.empty_like(y)
        for number in np.unique(fold):
            own = fold == number
            hat = 1 / n + (vectors[own] * shrunk) @ vectors[own].T
            guessed[own] = y[own] - np.linalg.solve((1 + 1e-9) * np.eye(len(hat)) - hat, left[own])
        found.append(guessed)
    return min(found, key=lambda guessed: float(((guessed - y) ** 2).sum()))
