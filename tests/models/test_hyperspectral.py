"""Hyperspectral: one network on windows and on the scene gives the same; materials are learnt from few pixels."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from wherever.models.hyperspectral import (  # noqa: E402
    NETWORKS,
    Spectral,
    draw,
    fit,
    labelled,
    predict,
    recipe,
    standardised,
    varied,
)
from wherever.models.recipe import Options  # noqa: E402
from wherever.models.training import outputs, seeded  # noqa: E402

BUILDS = pytest.mark.parametrize("build", [build for _, build, _ in NETWORKS])


def fields(bands=198, size=24, seed=0):
    """A scene of four squares, each with a spectrum of its own and noise."""
    rng = torch.Generator().manual_seed(seed)
    spectra = torch.rand(4, bands, 1, 1, generator=rng).cumsum(dim=1)
    spectra = spectra - spectra.mean(dim=1, keepdim=True)
    half = torch.arange(size) >= size // 2
    truth = 2 * half[:, None].long() + half.long()
    return spectra[truth, :, 0, 0].permute(2, 0, 1) + 2 * torch.randn(bands, size, size, generator=rng), truth


@BUILDS
def test_a_window_and_the_whole_scene_have_the_same_scores(build):
    model = build()
    scene = torch.randn(198, 12, 14)
    truth = torch.zeros(12, 14, dtype=torch.long)
    truth[5:, 7:] = 1
    chosen = torch.tensor([0, 13, 60, 167])  # two of them in corners
    window = outputs(model, labelled(scene, truth, chosen).x)
    assert window.shape == (4, 4, 1, 1)
    assert torch.equal(window.argmax(dim=1).flatten(), predict(model, scene).flatten()[chosen])
    assert labelled(scene, truth, chosen).y.flatten().tolist() == [0, 0, 0, 1]
    inside = torch.nn.functional.pad(scene, [2] * 4, mode="reflect")
    whole = outputs(model, inside[None])
    assert torch.allclose(whole[0].flatten(1)[:, chosen].T, window[:, :, 0, 0], atol=1e-4)


def test_one_by_one_sees_no_neighbour():
    model, x = Spectral(), torch.randn(1, 198, 5, 5)
    other = x.clone()
    other[..., 0, :] += 1
    other[..., 2, 3] -= 1
    assert torch.equal(outputs(model, x), outputs(model, other))


@BUILDS
def test_it_learns_from_few_pixels(build):
    scene, truth = fields()
    chosen = draw(truth, 5, seed=0)
    run = fit(build, labelled(standardised(scene), truth, chosen), epochs=30, rate=3e-3)
    assert (predict(run.model, standardised(scene)) == truth).float().mean() > 0.9


def test_pixels_are_drawn_of_every_class():
    _, truth = fields()
    chosen = draw(truth, 7, seed=1)
    assert truth.flatten()[chosen].bincount().tolist() == [7] * 4
    assert len(chosen.unique()) == 28
    assert not torch.equal(chosen, draw(truth, 7, seed=2))


def test_varied_windows_keep_their_middle():
    x = torch.randn(50, 198, 5, 5)
    y = torch.zeros(50, 1, 1)
    with seeded(0):
        out, same = varied(x, y)
    assert same is y
    middle = (out - x)[..., 2, 2]
    assert middle.abs().mean() < 0.2 < (out - x)[..., 0, 0].abs().mean()


def test_its_recipe(data):
    report = recipe(Options(data, epochs=1, sample=2))
    assert "10,000 pixels of 198 bands" in report.title()
    assert [len(rows) for _, rows in report.tables()] == [3, 3]
    assert len(report.panels) == 6
