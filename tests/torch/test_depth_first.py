"""Stages computed band by band, against the same stages one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from wherever.torch import graphs, stages  # noqa: E402
from wherever.torch.depth_first import DepthFirst  # noqa: E402
from wherever.torch.pooling import pooling_of  # noqa: E402


@st.composite
def chains(draw):
    """A few layers and poolings of an image, and the image."""
    spatial = draw(st.sampled_from([2, 2, 1, 3]))
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
    maximum = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[spatial - 1]
    mean = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[spatial - 1]
    channels = draw(st.integers(1, 9))
    x = torch.randn(draw(st.integers(1, 2)), channels, draw(st.integers(1, 40)), *[7] * (spatial - 1))
    parts: list[nn.Module] = []
    for _ in range(draw(st.integers(2, 5))):
        kind = draw(st.sampled_from(["layer", "layer", "depthwise", "maximum", "mean"]))
        if kind in ("layer", "depthwise"):
            groups = channels if kind == "depthwise" else 1
            outputs = channels if kind == "depthwise" else draw(st.integers(1, 20))
            geometry = [draw(st.integers(1, most)) for most in (5, 3, 3)]
            pad = draw(st.integers(0, 4))
            layer = convolution(channels, outputs, *geometry[:2], pad, geometry[2], groups)
            parts += [layer, *draw(st.sampled_from([[], [nn.ReLU()], [nn.SiLU()]]))]
            channels = outputs
        else:
            kernel = draw(st.integers(1, 4))
            make = maximum if kind == "maximum" else mean
            parts.append(make(kernel, draw(st.integers(1, 3)), draw(st.integers(0, kernel // 2))))
    return nn.Sequential(*parts).eval(), x


@given(chain=chains(), rows=st.integers(1, 12), threads=st.integers(1, 3), seed=st.integers(0, 3))
def test_bands_compute_what_whole_images_do(chain, rows, threads, seed):
    model, x = chain
    torch.manual_seed(seed)
    graph = graphs.traced(model)
    modules = dict(graph.named_modules())
    samples = {}
    try:
        with torch.no_grad():
            for node in graph.graph.nodes:
                given_ = samples[node.args[0]] if node.op == "call_module" else x
                samples[node] = modules[node.target](given_) if node.op == "call_module" else x
    except RuntimeError:
        return  # an image that a kernel does not fit
    joined = {layer.node: layer for layer in graphs.layers(graph)}
    within = {node for layer in joined.values() for node in layer.joined}
    found = []
    for node in graph.graph.nodes:
        if node.op != "call_module" or node in within:
            continue
        given_ = samples[node.args[0]]
        if node in joined:
            stage = stages.convolution_of(joined[node], modules[node.target], given_, "")
        else:
            pooling = pooling_of(node, modules, given_, samples[node])
            stage = None if pooling is None else stages.Pool(node, pooling)
        if stage is None:
            return
        found.append((stage, *next(iter(stage.ways(1).items()))))
    image = np.ascontiguousarray(stages.channels_last(x))
    results = []
    for stage, _, compute in found:
        n, c, *size = samples[stage.last].shape
        results.append(np.empty((n, *size, c), np.float32))
        compute(image if len(results) == 1 else results[-2], results[-1], 1, None)
    every, ways = [stage for stage, _, _ in found], [way for _, way, _ in found]
    out = np.full_like(results[-1], 7)
    try:
        bands = DepthFirst(every, ways, [y.shape for y in results[:-1]], np.float32, rows, threads)
    except ValueError:
        return
    for _ in range(2):
        bands.run(image, out, [None] * len(every))
        scale = float(np.abs(results[-1]).max(initial=0))
        np.testing.assert_allclose(out, results[-1], rtol=0, atol=1e-5 * max(scale, 1))


def test_what_lies_between_is_small():
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)), torch.randn(1, 3, 200, 50)
    graph = graphs.traced(model)
    first, second = graphs.layers(graph)
    a = stages.convolution_of(first, model[0], x, "")
    b = stages.convolution_of(second, model[1], model[0](x), "")
    ways = [next(iter(stage.ways(1))) for stage in (a, b)]
    bands = DepthFirst([a, b], ways, [(1, 200, 50, 16)], np.float32, 10, 1)
    assert bands.nbytes == 12 * 50 * 16 * 4


def test_stages_that_have_no_bands_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"))
    graph = graphs.traced(model)
    x = torch.randn(1, 3, 20, 20)
    a, b = (
        stages.convolution_of(layer, module, given_, "")
        for layer, module, given_ in zip(graphs.layers(graph), model, (x, model[0](x)), strict=True)
    )
    with pytest.raises(ValueError, match="1 cannot be computed by bands"):
        DepthFirst([a, b], ["direct", "direct"], [(1, 20, 20, 8)], np.float32, 4, 1)
