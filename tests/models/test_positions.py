"""Locally connected layers and coordinate channels: their equations, and what they alone can learn."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from wherever.models.data import Labelled  # noqa: E402
from wherever.models.positions import (  # noqa: E402
    LAYERS,
    Coordinates,
    LocallyConnected2d,
    convolution,
    moved,
    network,
    recipe,
)
from wherever.models.recipe import Options  # noqa: E402
from wherever.models.training import outputs, train  # noqa: E402


def test_the_equation_of_a_locally_connected_layer():
    layer = LocallyConnected2d(2, 3, 3, (4, 6), stride=2)
    x = torch.randn(2, 2, 4, 6)
    out = layer(x)
    assert out.shape == (2, 3, 2, 3)
    V = layer.weight.view(2, 3, 3, 2, 3, 3)  # places, D, C, taps
    for n, d, i, j in np.ndindex(2, 3, 2, 3):
        patch = x[n].roll((1 - 2 * i, 1 - 2 * j), (1, 2))[:, :3, :3]
        assert out[n, d, i, j].item() == pytest.approx(
            (V[i, j, d] * patch).sum().item() + layer.bias[d].item(), abs=1e-5
        )


def test_with_one_kernel_it_is_the_convolution():
    conv, local = convolution(3, 4, 5, 12), LAYERS["locally connected"](3, 4, 5, 12)
    assert local.shared < 0.1
    local.share(conv)
    assert local.shared == pytest.approx(1)
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(local(x), conv(x), rtol=1e-4, atol=1e-5)


def test_a_size_that_the_stride_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="7 x 8 is no multiple of the stride 2"):
        LocallyConnected2d(1, 1, 3, (7, 8), stride=2)


def test_coordinates():
    out = Coordinates()(torch.zeros(2, 1, 3, 5))
    assert out[1, 1].tolist() == [[-1] * 5, [0] * 5, [1] * 5]
    assert out[0, 2, 2].tolist() == [-1, -0.5, 0, 0.5, 1]


def test_images_are_moved_around_the_border():
    data = Labelled(torch.rand(5, 2, 4, 6), torch.arange(5))
    out = moved(data, seed=1)
    assert not torch.equal(out.x, data.x)
    for before, after in zip(data.x, out.x, strict=True):
        assert any(torch.equal(before.roll(by, (1, 2)), after) for by in np.ndindex(4, 6))


def test_the_mean_over_places_of_convolutions_alone_is_invariant():
    """By 4 pixels, which two strides divide; the others are not."""
    x = torch.rand(2, 1, 16, 16)
    for name, layer in LAYERS.items():
        model = network(layer, 1, 3, 16, width=4)
        same = torch.allclose(outputs(model, x), outputs(model, x.roll((4, 8), (2, 3))), atol=1e-5)
        assert same == (name == "convolution")


def test_where_a_bar_is_can_be_learnt_with_positions_alone(bars):
    """Whether a lying bar is above or below: a convolution sees the same bar in both."""

    def heights(n, seed):
        x = bars(2 * n, seed, channels=1)[::2].x
        first = x.eq(1).sum(dim=(1, 3)).argmax(dim=1)  # rows 0 to 8
        return Labelled(x, (first > 3).long())

    data, test = heights(300, 0), heights(200, 1)
    for name, layer in LAYERS.items():
        run = train(lambda layer=layer: network(layer, 1, 2, 16, width=8), data, test, epochs=6, rate=1e-2)
        if name == "convolution":
            assert run.score < 0.7
        else:
            assert run.score > 0.9


def test_its_recipe(data):
    report = recipe(Options(data, epochs=1, sample=10))
    ((header, rows),) = report.tables()
    assert len(rows) == 9
    assert {len(row) for row in rows} == {len(header)}
    assert len(report.panels) == 3
