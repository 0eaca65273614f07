"""Pooling on this engine, against PyTorch's: every kind, dimension, border, type, NaN; what is left to PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from wherever.torch import graphs  # noqa: E402
from wherever.torch.operators import as_array  # noqa: E402
from wherever.torch.pooling import Pooler, pooling_of  # noqa: E402


def pooling(model, x):
    """What the only operation of a model pools, and its result by PyTorch."""
    graph = graphs.traced(model.eval())
    (node,) = [n for n in graph.graph.nodes if n.op in ("call_module", "call_function", "call_method")]
    with torch.no_grad():
        y = model(x)
    return pooling_of(node, dict(graph.named_modules()), x, y), y


class Function(nn.Module):
    """One function of the input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@st.composite
def cases(draw):
    """A pooling module, and an image that it can pool."""
    spatial = draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(spatial))

    channels, dtype = draw(st.sampled_from([1, 3, 16, 21, 33])), draw(st.sampled_from([torch.float32, torch.float64]))
    size = each(1, 12)
    kind = draw(st.sampled_from(["MaxPool", "AvgPool", "AdaptiveAvgPool"]))
    make = getattr(nn, f"{kind}{spatial}d")
    if kind == "AdaptiveAvgPool":
        module = make(each(1, 7))
    else:
        kernel = each(1, 4)
        padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
        rest = {"dilation": each(1, 2)} if kind == "MaxPool" else {"count_include_pad": draw(st.booleans())}
        module = make(kernel, each(1, 3), padding, ceil_mode=draw(st.booleans()), **rest)
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn((draw(st.integers(1, 3)), channels, *size), generator=random, dtype=dtype)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, x.numel() - 1))
        x.view(-1)[place] = draw(st.sampled_from([float("nan"), float("inf"), float("-inf")]))
    return module, x


@given(cases(), st.integers(1, 3))
def test_the_same_as_pytorch(case, threads):
    module, x = case
    try:
        found, y = pooling(module, x)
    except RuntimeError:  # PyTorch's own: the kernel is larger than the image
        return
    if found is None:  # a window that sees nothing
        assert isinstance(module, nn.MaxPool3d | nn.MaxPool2d | nn.MaxPool1d)
        assert bool((y == float("-inf")).any())
        return
    image = np.ascontiguousarray(as_array(x, "channels_last"))
    expected = as_array(y, "channels_last")
    out = np.full(expected.shape, 7, image.dtype)
    Pooler(found)(image, out, threads)
    if found.kind == "max":
        np.testing.assert_array_equal(out, expected)
    else:
        np.testing.assert_allclose(out, expected, rtol=1e-5 if x.dtype is torch.float32 else 1e-12, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.max_pool2d(x, 3, 2, 1),
        lambda x: functional.max_pool2d(x, kernel_size=2),
        lambda x: torch.max_pool2d(x, (2, 3), ceil_mode=True),
        lambda x: functional.avg_pool2d(x, 3, padding=1, count_include_pad=False),
        lambda x: functional.adaptive_avg_pool2d(x, (3, None)),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(dim=[-1, -2], keepdim=True),
        lambda x: torch.mean(x, (3, 2)),
    ],
)
def test_functions(function):
    found, y = pooling(Function(function), x := torch.randn(2, 5, 11, 9))
    image = np.ascontiguousarray(as_array(x, "channels_last"))
    out = np.empty((2, *(len(w.first) for w in found.windows), 5), np.float32)
    Pooler(found)(image, out, 1)
    np.testing.assert_allclose(out, as_array(y.reshape(2, 5, *out.shape[1:3]), "channels_last"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.MaxPool2d(2), torch.zeros(3, 8, 8)),  # no batch: the first dimension holds channels
        (nn.MaxPool2d(2, return_indices=True), torch.zeros(1, 3, 8, 8)),
        (nn.AvgPool2d(2, divisor_override=3), torch.zeros(1, 3, 8, 8)),
        (nn.MaxPool2d(2), torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)),
        (nn.AvgPool2d(2), torch.zeros(0, 3, 8, 8)),
        (nn.AdaptiveAvgPool2d(1), torch.zeros(1, 3, 64, 512)),  # more terms than are summed one after the other
        (Function(lambda x: x.mean()), torch.zeros(1, 3, 8, 8)),
        (Function(lambda x: x.mean((1, 2))), torch.zeros(1, 3, 8, 8)),
        (Function(lambda x: x.mean((2, 3), dtype=torch.float64)), torch.zeros(1, 3, 8, 8)),
        (Function(torch.relu), torch.zeros(1, 3, 8, 8)),
    ],
)
def test_what_is_left_to_pytorch(module, x):
    assert pooling(module, x)[0] is None
