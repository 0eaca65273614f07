"""Images that the tests of networks share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def bars():
    """Make n images of noise with a bar anywhere: lying (class 0) or standing (1)."""
    torch = pytest.importorskip("torch")
    from wherever.models.data import Labelled

    def make(n, seed=0, channels=3, size=16):
        rng = torch.Generator().manual_seed(seed)
        x = torch.rand(n, channels, size, size, generator=rng)
        y = torch.arange(n) % 2
        for image, label, (i, j) in zip(x, y, torch.randint(size - 7, (n, 2), generator=rng).tolist(), strict=True):
            image[:, i : i + (7 if label else 2), j : j + (2 if label else 7)] = 1
        return Labelled(x, y)

    return make
