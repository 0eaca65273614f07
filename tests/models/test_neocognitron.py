"""The neocognitron: its equations, what S-cells learn with and without a teacher, and that it learns digits."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from wherever.models.data import digits  # noqa: E402
from wherever.models.neocognitron import (  # noqa: E402
    ALPHA,
    CCells,
    Neocognitron,
    SCells,
    contrast,
    edges,
    nearest,
    recipe,
)
from wherever.models.recipe import Options  # noqa: E402
from wherever.models.training import accuracy, seeded  # noqa: E402


def cells(**changes):
    return SCells(**{"channels": 2, "planes": 3, "size": 3, "threshold": 0.6, "learning": 0.6, "padding": 1, **changes})


def test_the_equation_of_s_cells():
    layer = cells()
    layer.A, layer.B = torch.rand_like(layer.A), torch.rand_like(layer.B)
    u = torch.rand(1, 2, 4, 5)
    s = layer(u)
    padded = np.pad(u[0].numpy(), ((0, 0), (1, 1), (1, 1)))
    r = 0.6 / 0.4
    for k, i, j in np.ndindex(3, 4, 5):
        seen = padded[:, i : i + 3, j : j + 3]
        v = np.sqrt((layer.gamma.numpy() * seen**2).sum())
        x = (1 + (layer.A[k].numpy() * seen).sum()) / (1 + r / (1 + r) * float(layer.B[k]) * v) - 1
        assert float(s[0, k, i, j]) == pytest.approx(r * max(x, 0), abs=1e-4)


def test_the_equation_of_c_cells():
    pool = CCells(size=3, stride=2)
    s = torch.rand(2, 3, 6, 6)
    out = pool(s)
    assert out.shape == (2, 3, 3, 3)
    padded = np.pad(s.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for n, i, j in np.ndindex(2, 3, 3):
        t = (pool.delta.numpy() * padded[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]).sum(axis=(1, 2))
        x = np.maximum((1 + t) / (1 + t.mean()) - 1, 0)
        np.testing.assert_allclose(out[n, :, i, j], x / (ALPHA + x), atol=1e-5)


def test_what_was_learnt_is_answered_by_its_cosine():
    layer = cells(padding=0)
    pattern, other = torch.rand(2, 2, 3, 3)
    layer.learn(pattern, 1, (0, 0))
    a, b = ((layer.gamma.sqrt() * p).flatten() for p in (pattern, other))
    cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    s = layer(torch.stack([pattern, other]))[:, :, 0, 0]
    assert s[:, 1].tolist() == pytest.approx([1, 2.5 * max(cosine - 0.6, 0)], abs=0.02)
    assert s[:, [0, 2]].abs().max() == 0  # planes that have learnt nothing


def test_planes_take_up_what_is_new():
    lying, standing = torch.zeros(2, 1, 9, 9)
    lying[0, 4], standing[0, :, 4] = 1, 1
    layer = cells(channels=1, planes=6, learning=0.8)
    with seeded(0):
        layer.organise([lying, standing] * 4)
    assert 2 <= layer.learnt.sum() <= 6
    best = layer(torch.stack([lying, standing]))[:, :, 4, 4]
    first, second = best.argmax(dim=1).tolist()
    assert first != second
    assert best[0, first] > 0.9 > 0.5 > best[0, second]


def test_edges_are_taught_to_the_planes_of_their_direction():
    model = Neocognitron(taught=True, planes=(8, 4, 4))
    seen = contrast(edges(8))
    for plane in range(8):
        model.first.learn(seen[plane], plane, (14, 14))
    assert model.first(seen)[:, :, 14, 14].argmax(dim=1).tolist() == list(range(8))


@pytest.mark.parametrize("taught", [False, True])
def test_it_learns_digits(data, taught):
    training, test = (part.sample(n) for part, n in zip(digits(data), (300, 100), strict=True))
    with seeded(0):
        model = Neocognitron(taught, planes=(16, 32, 200))
        model.learn(training)
    assert accuracy(model(test.x), test.y) > (0.7 if taught else 0.5)
    assert set(model.names[model.last.learnt].tolist()) == set(range(10))


def test_the_nearest_digit(data):
    training, _ = digits(data)
    some = training[:50]
    assert accuracy(nearest(some, some.x), some.y) == 1


def test_its_recipe(data):
    report = recipe(Options(data, epochs=1, sample=30))
    assert [len(rows) for _, rows in report.tables()] == [3, 3, 3]
    assert len(report.panels) == 3
