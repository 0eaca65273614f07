"""Network in Network: 1x1 convolutions are an MLP at every pixel, the average of maps is the score; it learns."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from torch import nn  # noqa: E402

from wherever.models.data import Labelled  # noqa: E402
from wherever.models.network_in_network import (  # noqa: E402
    NetworkInNetwork,
    as_mlp,
    block,
    class_maps,
    contenders,
    recipe,
)
from wherever.models.recipe import Options  # noqa: E402
from wherever.models.training import count_weights, train  # noqa: E402


@pytest.mark.parametrize("training", [True, False])
def test_1x1_convolutions_are_an_mlp_at_every_pixel(training):
    layers = nn.Sequential(*block(5, 7, 3, 1, depth=2)[3:], nn.Conv2d(7, 4, 1)).train(training)
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    mlp = as_mlp(layers)
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    x = torch.randn(3, 7, 6, 8)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 7)
    expected = mlp(pixels).view(3, 6, 8, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(layers(x), expected, rtol=1e-4, atol=1e-5)


def test_a_larger_kernel_is_no_mlp():
    with pytest.raises(ValueError, match="is no 1x1 convolution"):
        as_mlp([nn.Conv2d(3, 4, 3)])


def test_scores_are_the_means_of_maps_at_any_size():
    model = NetworkInNetwork(3, 5, 8, stride=2).eval()
    x = torch.rand(2, 3, 40, 26)
    assert model.maps(x).shape == (2, 5, 5, 4)
    torch.testing.assert_close(model(x), model.maps(x).mean(dim=(2, 3)))


def test_contenders_have_equally_many_weights():
    for shape in ((1, 10, 32, 1, 28), (3, 2, 64, 2, 64)):
        built = [build() for build in contenders(*shape).values()]
        counts = [count_weights(model) for model in built]
        assert 0.96 * counts[-1] < min(counts) <= max(counts) == counts[-1]
        assert all(model(torch.zeros(1, shape[0], shape[4], shape[4])).shape == (1, shape[1]) for model in built)


def test_it_learns(bars):
    run = train(lambda: NetworkInNetwork(3, 2, 8), bars(300), bars(200, 1), epochs=8, rate=1e-2)
    assert run.score > 0.95


def test_its_recipe(data):
    report = recipe(Options(data, epochs=1, sample=10))
    assert [len(rows) for _, rows in report.tables()] == [3, 3]
    assert len(report.panels) == 3


def test_maps_are_drawn():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axis = figure.subplots()
    class_maps(NetworkInNetwork(), Labelled(torch.rand(6, 1, 28, 28), torch.arange(6)))(axis)
    assert axis.images[0].get_array().shape == (56, 168)
