"""Cats and dogs: the CNN learns what moves from few images, the MLP does not; weights, shifts, the recipe."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from wherever.models.cats_dogs import CNN, MLP, by_shift, fit, recipe  # noqa: E402
from wherever.models.recipe import Options  # noqa: E402
from wherever.models.training import count_weights, outputs  # noqa: E402


def test_a_hundred_times_fewer_weights():
    assert count_weights(MLP()) > 100 * count_weights(CNN())
    assert CNN()(torch.zeros(2, 3, 50, 70)).shape == MLP()(torch.zeros(2, 3, 64, 64)).shape == (2, 2)


def test_bars_anywhere_are_learnt_by_the_cnn_alone(bars):
    cnn = fit(lambda: CNN((3, 8, 16, 32)), bars(300), bars(200, 1), epochs=8, rate=1e-2)
    mlp = fit(lambda: MLP(3 * 16 * 16, 200), bars(300), bars(200, 1), epochs=8, rate=1e-3)
    assert cnn.score > 0.95
    assert mlp.score < 0.75
    same, moved = by_shift(cnn.model, bars(200, 1), (0, 3))
    assert same == cnn.score
    assert moved > 0.9


def test_the_mean_over_places_does_not_see_shifts_around_the_border():
    """By 8 pixels, which three poolings divide, if the border is wrapped: nothing changes."""
    model = CNN()
    for layer in model:
        if isinstance(layer, torch.nn.Conv2d):
            layer.padding_mode = "circular"
            layer._reversed_padding_repeated_twice = [1] * 4
    x = torch.rand(3, 3, 64, 64)
    assert torch.allclose(outputs(model, x), outputs(model, x.roll((8, -16), (2, 3))), atol=1e-5)


def test_its_recipe(data):
    report = recipe(Options(data, epochs=1, sample=16))
    assert "16 photographs to train on, 16 to test" in report.title()
    assert [len(rows) for _, rows in report.tables()] == [2, 2, 2]
    assert len(report.panels) == 4
