"""Whole networks on this engine, against PyTorch: results, fusions, reports, copies, threads, bad input."""

from __future__ import annotations

import copy
import operator
import pickle
import threading

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from wherever.torch import (  # noqa: E402
    Accelerated,
    accelerate,
    graphs,
    program,
)


class Block(nn.Module):
    """A residual block with a projection."""

    def __init__(self, c, k, act=functional.relu, inplace=False):
        super().__init__()
        self.one, self.norm = nn.Conv2d(c, k, 3, padding=1, bias=False), nn.BatchNorm2d(k)
        self.two, self.other = nn.Conv2d(k, k, 3, padding=1), nn.BatchNorm2d(k)
        self.project = nn.Conv2d(c, k, 1)
        self.act, self.inplace = act, inplace

    def forward(self, x):
        y = self.other(self.two(self.act(self.norm(self.one(x)))))
        if self.inplace:
            y += self.project(x)
            return functional.relu(y, inplace=True)
        return self.act(self.project(x) + y)


class Views(nn.Module):
    """Results that are views of what convolutions computed, used long after."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = self.a(x)
        left, right = y.chunk(2, dim=1)
        z = self.c(self.b(self.b(y)))
        z = self.c(self.b(z))
        flat = z.view(z.size(0), -1)
        return torch.cat([left, z, right], dim=1), flat.sum(dim=1), right


class Means(nn.Module):
    """Means of channels, kept and not, of what is used again, and of what was permuted."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = self.a(x)
        means = y.mean((2, 3))
        z = self.b(functional.avg_pool2d(y, 2))
        return means + z.transpose(2, 3).mean((2, 3)), z + z.mean((2, 3), keepdim=True)


class Broadcast(nn.Module):
    """Additions that are not of two images of one size."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return self.a(x) + self.b(x).mean((2, 3), keepdim=True) + 1


class Branching(nn.Module):
    """A program that depends on the data: cannot be traced."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.b(x)


class Mixing(nn.Module):
    """As in ConvNeXt: channels last, fully connected layers, a factor a channel, and the sum with what came in."""

    def __init__(self, c, turned=False, function=torch.add):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.LayerNorm(c)
        self.up, self.act, self.down = nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c, bias=turned)
        self.scale = nn.Parameter(torch.rand(c, 1, 1) if turned else torch.rand(c))
        self.turned, self.function = turned, function

    def forward(self, x):
        y = self.down(self.act(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        if self.turned:
            return self.function(self.scale * torch.permute(y, [0, 3, 1, 2]), x)
        return self.function(x, (y * self.scale).permute((0, 3, 1, 2)))


class Perceptron(nn.Module):
    """Fully connected layers on sequences, one of them in two places, with both kinds of GELU."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.factor = nn.Linear(18, 24), nn.Linear(24, 24), nn.Parameter(torch.rand(24))

    def forward(self, x):
        y = functional.gelu(self.a(x), approximate="tanh")
        z = self.factor * self.b(functional.gelu(self.b(y) + y))
        return z.flatten(1), self.b(y.transpose(1, 2)), y


class Joined(nn.Module):
    """Results that are joined with others: read before and after, joined twice, changed in place behind."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 16))
        self.raised, self.d = nn.ConvTranspose2d(8, 4, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)

    def forward(self, x):
        y = functional.relu(self.a(x))
        small = self.b(functional.max_pool2d(y, 3, 1, 1))
        z = functional.relu(self.d(torch.cat([y, self.raised(small)], dim=1)))
        twice = self.c(torch.cat((y, z), 1)) + z
        both = torch.cat([twice, y, y], dim=1).relu_()
        return self.d(torch.cat([twice, y[:, :4]], 1)) + y, both


class Growing(nn.Module):
    """As in DenseNet: every layer reads all results before it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1) for c in (3, 7, 11))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (3, 7, 11))

    def forward(self, x):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(functional.relu(norm(x)))], dim=1)
        return x


class Chain(nn.Module):
    """Layers, poolings and additions one after the other, each read by the next alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 1, 2, 2), nn.Conv2d(8, 16, 3, 2, 1)
        self.d, self.e = nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.Conv2d(16, 8, 1)
        self.f, self.project = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.a(x)
        y = functional.relu6(self.f(self.b(functional.relu(self.f(x)))) + x)
        y = self.d(functional.relu(self.c(functional.avg_pool2d(y, 2, 1))))
        y = functional.max_pool2d(y, 3, 1, 1)
        return self.f(self.e(y) + self.project(self.e(y)))


class Halved(nn.Module):
    """A U-Net of one level."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.raised = nn.ConvTranspose2d(16, 8, 2, 2)

    def forward(self, x):
        y = functional.relu(self.a(x))
        z = self.raised(self.b(functional.max_pool2d(y, 2)))
        return self.c(torch.cat([z, y], dim=1))


def nested(*layers):
    return nn.Sequential(*layers)


MODELS = {
    "plain": lambda: nested(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.Sigmoid()),
    "normalised": lambda: nested(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Dropout()),
    "residual": lambda: nested(Block(3, 16), Block(16, 16)),
    "in place": lambda: nested(Block(3, 16, inplace=True), nn.ReLU(inplace=True), Block(16, 16, inplace=True)),
    "smooth": lambda: nested(Block(3, 16, functional.silu), nn.Hardswish(), nn.Conv2d(16, 4, 1), nn.GELU()),
    "depthwise": lambda: nested(nn.Conv2d(3, 12, 3, padding=1, groups=3), nn.SiLU(), nn.Conv2d(12, 4, 1)),
    "transposed": lambda: nested(
        nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)
    ),
    "circular": lambda: nested(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.ReLU()),
    "head": lambda: nested(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 7 * 8, 10)),
    "pooled": lambda: nested(
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 1),
        nn.AvgPool2d(2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ),
    "means": Means,
    "views": Views,
    "joined": Joined,
    "growing": Growing,
    "chain": Chain,
    "halved": Halved,
    "chain of poolings": lambda: nested(
        nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3), nn.AvgPool2d(2, 1), nn.Conv2d(8, 4, 1)
    ),
    "mobile": lambda: nested(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1)
    ),
    "broadcast": Broadcast,
    "branching": Branching,
    "channels last": lambda: nested(nn.Conv2d(3, 8, 2, 2), Mixing(8), Mixing(8, turned=True)),
    "added in place": lambda: nested(nn.Conv2d(3, 8, 2, 2), Mixing(8, function=operator.iadd), nn.ReLU()),
    "sequences": Perceptron,
    "no convolution": lambda: nested(nn.Flatten(), nn.Linear(3 * 16 * 18, 5)),
    "only an activation": lambda: nested(nn.ReLU()),
    "shared": lambda: nested(*[nn.Conv2d(3, 3, 3, padding=1)] * 3),
}


def make(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return model


def close(ours, expected):
    ours, expected = (value if isinstance(value, tuple) else (value,) for value in (ours, expected))
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))


@pytest.fixture(params=["the faster", "ours", "depth first"])
def contest(request, monkeypatch):
    """Layers go to whoever is faster; or all to this engine, whatever the machine is doing; or by bands of few rows."""
    if request.param != "the faster":
        take_all(monkeypatch)
    if request.param == "depth first":
        monkeypatch.setattr(program, "_LARGE", 0)
        monkeypatch.setattr(program, "_BANDS", (1,))


def take_all(monkeypatch):
    """Whoever is asked last is the slowest: PyTorch."""
    monkeypatch.setattr(program, "contest", lambda ways, cold=None: [0.0] * (len(ways) - 1) + [1.0])


@pytest.mark.parametrize("name", MODELS)
def test_accelerated_models_compute_the_same(name, contest):
    model = make(name)
    x = torch.randn(2, 3, 16, 18)
    with torch.no_grad():
        expected = model(x.clone())
        fast = accelerate(model, x.clone())
        results = [fast(x.clone()) for _ in range(3)]
        for result in results:  # none of them is overwritten by the next call
            close(result, expected)
        close(model(x.clone()), expected)  # the original is as it was
        if name not in ("halved", "head", "no convolution", "sequences"):
            for shape in ((1, 3, 9, 30), (3, 3, 20, 12)):
                other = torch.randn(shape)
                close(fast(other.clone()), model(other.clone()))
    assert not any(p.requires_grad for r in results for p in (r if isinstance(r, tuple) else (r,)))


@pytest.mark.parametrize(("convolution", "spatial"), [(nn.Conv1d, 1), (nn.Conv3d, 3)])
def test_signals_and_volumes(convolution, spatial, contest):
    model = nested(convolution(2, 8, 3, padding=1), nn.ReLU(), convolution(8, 4, 3, dilation=2)).eval()
    x = torch.randn(2, 2, *[9] * spatial)
    with torch.no_grad():
        close(accelerate(model, x)(x), model(x))


def test_types_may_change(contest):
    model = make("residual")
    fast = accelerate(model, torch.randn(1, 3, 8, 8))
    with torch.no_grad():
        wide = torch.randn(1, 3, 8, 8, dtype=torch.float64)
        with pytest.raises(RuntimeError):
            fast(wide)
        close(fast.double()(wide), model.double()(wide))


def test_what_follows_is_joined():
    graph = graphs.traced(make("residual"))
    graphs.fold_normalisations(graph)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.modules() if m in _used(graph))
    found = graphs.layers(graph)
    assert [layer.activation for layer in found] == ["relu", None, "relu", "relu", None, "relu"]
    assert [layer.added is not None for layer in found] == [False, False, True, False, False, True]


def test_fully_connected_layers_take_in_what_follows():
    graph = graphs.traced(make("channels last"))
    graphs.fold_scales(graph)
    graphs.add_before_permuting(graph)
    found = [layer for layer in graphs.layers(graph) if "up" in layer.node.target or "down" in layer.node.target]
    assert [layer.activation for layer in found] == ["gelu", None] * 2
    assert [layer.added is not None for layer in found] == [False, True] * 2
    assert not any(node.target in (operator.mul, torch.mul) for node in graph.graph.nodes)


def _used(graph):
    named = dict(graph.named_modules())
    return [named[node.target] for node in graph.graph.nodes if node.op == "call_module"]


def test_the_report_names_every_layer():
    fast = accelerate(make("residual"), torch.randn(1, 3, 16, 16))
    text = str(fast.report)
    assert len(fast.report.rows) == 6
    assert "3x3 3 to 16 + batch normalisation + relu" in text
    assert all(row.ours > 0 and row.theirs > 0 for row in fast.report.rows)
    swapped = accelerate(make("branching"), torch.randn(1, 3, 16, 16))
    assert "could not be traced" in str(swapped.report)
    assert len(swapped.report.rows) == 2


def test_what_is_slower_as_a_whole_is_left_to_pytorch(monkeypatch):
    import importlib

    module = importlib.import_module("wherever.torch.accelerate")
    for times in ([2.0, 1.0], [1.0, 2.0]):
        monkeypatch.setattr(module, "whole_contest", lambda runs, inputs, times=times: times)
        model, x = make("residual"), torch.randn(1, 3, 16, 16)
        fast = accelerate(model, x)
        close(fast(x), model(x).detach())
        assert ("faster in PyTorch" in str(fast.report)) == (times[0] > times[1])


class Changing(nn.Module):
    """Changes its input in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.layer(x.add_(1))


def test_an_input_is_changed_as_often_as_the_model_changes_it():
    model = Changing().eval()
    x = torch.zeros(1, 3, 8, 8)
    fast = accelerate(model, torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        y = fast(x)
        assert (x == 1).all()
        close(y, model(torch.zeros(1, 3, 8, 8)))


def test_memory_is_used_again(monkeypatch):
    take_all(monkeypatch)
    model = nested(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(9)]).eval()
    fast = accelerate(model, torch.randn(1, 8, 64, 64))
    (program,) = fast._programs.values()
    assert program.memory.nbytes <= 4 * 8 * 64 * 64 * 4


def test_results_lie_where_they_are_joined(monkeypatch):
    take_all(monkeypatch)
    model, x = make("halved"), torch.randn(1, 3, 16, 18)
    copied = []
    copy_ = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other: copied.append(other.shape) or copy_(self, other))
    fast = accelerate(model, x)
    copied.clear()
    close(fast(x), model(x).detach())
    assert not copied


def test_the_report_says_what_is_computed_depth_first(monkeypatch):
    take_all(monkeypatch)
    monkeypatch.setattr(program, "_LARGE", 0)
    monkeypatch.setattr(program, "_BANDS", (1,))
    fast = accelerate(make("mobile"), torch.randn(1, 3, 16, 16))
    (note,) = fast.report.notes
    assert note.startswith("0 to 4: depth first, 4 rows at a time")


def test_bad_arguments():
    model, x = make("plain"), torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"training mode.*eval"):
        accelerate(model.train(), x)
    model.eval()[0].train()
    with pytest.raises(ValueError, match="0 is in training mode"):
        accelerate(model, x)
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got function"):
        accelerate(lambda x: x, x)
    with pytest.raises(TypeError, match="expected tensors, got list"):
        accelerate(model.eval(), [1, 2])
    fast = accelerate(model, x)
    with pytest.raises(ValueError, match="cannot be trained"):
        fast.train()
    with pytest.raises(RuntimeError, match=r"(?s)expected input.*to have 3 channels"):
        fast(torch.randn(1, 4, 16, 16))


def test_copies_work():
    model = make("residual")
    x = torch.randn(1, 3, 16, 16)
    fast = accelerate(model, x)
    with torch.no_grad():
        expected = model(x)
        close(copy.deepcopy(fast)(x), expected)
        close(pickle.loads(pickle.dumps(fast))(x), expected)
    assert isinstance(fast, Accelerated)


def test_two_threads_on_one_model():
    model = make("residual")
    inputs = [torch.randn(1, 3, size, size) for size in (12, 16, 20)]
    fast = accelerate(model, inputs[0])
    with torch.no_grad():
        truth = [model(x) for x in inputs]
    wrong = []

    def work(order):
        for _ in range(10):
            for k in order:
                if not torch.allclose(fast(inputs[k]), truth[k], rtol=1e-4, atol=1e-4):
                    wrong.append(k)

    threads = [threading.Thread(target=work, args=(order,)) for order in ((0, 1, 2), (2, 0, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
