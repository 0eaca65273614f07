"""LeNet: shapes, and that it learns from few digits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from wherever.models.data import digits  # noqa: E402
from wherever.models.lenet import LeNet, fit, recipe  # noqa: E402
from wherever.models.recipe import Options  # noqa: E402
from wherever.models.training import count_weights  # noqa: E402


def test_shapes_and_weights():
    assert LeNet()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert count_weights(LeNet((6, 16), 120)) == 6 * 26 + 16 * (6 * 25 + 1) + 120 * 401 + 10 * 121


def test_it_learns_from_few_digits(data):
    training, test = digits(data)
    assert fit(training.sample(1000), test.sample(300), epochs=4).score > 0.85


def test_its_recipe(data):
    report = recipe(Options(data, epochs=1, sample=100))
    assert "100 handwritten digits, tested on 100" in report.title()
    assert len(report.panels) == 2
