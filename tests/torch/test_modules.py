"""Layers on this engine, against PyTorch's: results, state, weights that change, copies, threads."""

from __future__ import annotations

import copy
import io
import re
import threading

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import wherever.torch as ours  # noqa: E402

NAMES = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


def close(got, expected):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert float((got - expected).detach().abs().max()) <= 1e-5 * max(1.0, float(expected.detach().abs().max()))


def pair(name, *arguments, **options):
    """PyTorch's layer and ours, with the same state."""
    torch.manual_seed(0)
    expected = getattr(nn, name)(*arguments, **options)
    layer = getattr(ours, name)(*arguments, **options)
    layer.load_state_dict(expected.state_dict())
    return expected, layer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("grad", [False, True])
def test_layers_compute_what_pytorchs_do(name, batch, grad):
    expected, layer = pair(name, 4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(*batch, 4, *[7] * int(name[-2]))
    with torch.set_grad_enabled(grad):
        for _ in range(2):  # the second time with packed weights
            close(layer(x), expected(x))
    assert isinstance(layer, getattr(nn, name))
    assert repr(layer) == repr(expected)
    assert list(layer.state_dict()) == list(expected.state_dict())


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, (1, 2), "same"])
@pytest.mark.parametrize("size", [(9, 8), (3, 4), (2, 2)])
def test_every_padding_mode(mode, padding, size):
    expected, layer = pair("Conv2d", 4, 6, 3, padding=padding, padding_mode=mode)
    x = torch.randn(2, 4, *size, requires_grad=True)
    try:
        y = expected(x)
    except RuntimeError as error:
        refusal = str(error)
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=re.escape(refusal)):
                layer(x)
        return
    with torch.no_grad():
        close(layer(x), y)
    results = [torch.autograd.grad(m(x).square().sum(), [x, *m.parameters()]) for m in (layer, expected)]
    for got, truth in zip(*results, strict=True):
        assert torch.allclose(got, truth, rtol=1e-4, atol=1e-4)


def test_the_size_of_a_transposed_result_can_be_chosen():
    expected, layer = pair("ConvTranspose2d", 4, 6, 3, stride=2, padding=1)
    x = torch.randn(1, 4, 5, 5)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            close(layer(x, output_size=[10, 9]), expected(x, output_size=[10, 9]))
            with pytest.raises(ValueError, match="output size"):
                layer(x, output_size=[20, 20])


EDITS = {
    "in place": lambda layer: layer.weight.mul_(2),
    "through data": lambda layer: layer.weight.data.mul_(2),
    "new data": lambda layer: setattr(layer.weight, "data", torch.randn_like(layer.weight)),
    "through an array": lambda layer: layer.weight.numpy().__setitem__(slice(None), 1),
    "bias through data": lambda layer: layer.bias.data.add_(1),
    "exchanged rows": lambda layer: layer.weight.data.copy_(layer.weight.data.flip(0)),
    "exchanged taps": lambda layer: layer.weight.data.copy_(layer.weight.data.flip(-1)),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn_like(layer.weight))),
    "no bias": lambda layer: setattr(layer, "bias", None),
    "a state": lambda layer: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}),
    "an initialisation": lambda layer: nn.init.normal_(layer.weight),
    "one number": lambda layer: layer.weight.data[0, 0, 0, 0].add_(0.5),
}


@pytest.mark.parametrize("edit", EDITS, ids=str)
@pytest.mark.parametrize("channels", [4, 40])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_packed_weights_are_never_stale(edit, channels, context):
    layer = ours.Conv2d(channels, channels, 3)
    x = torch.randn(2, channels, 9, 11)
    with context():
        for _ in range(2):
            before = layer(x)
            EDITS[edit](layer)
            after = layer(x)
            close(after, nn.functional.conv2d(x, layer.weight, layer.bias))
        if edit not in ("no bias", "through an array"):
            assert not torch.equal(before, after)


def test_a_step_of_an_optimiser_is_seen():
    expected, layer = pair("Conv2d", 3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    for model in (layer, expected):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            with torch.no_grad():
                model(x)
            optimiser.zero_grad()
            model(x).square().mean().backward()
            optimiser.step()
    with torch.no_grad():
        close(layer(x), expected(x))


def test_other_sizes_and_types_at_run_time():
    expected, layer = pair("Conv2d", 3, 4, 3)
    with torch.no_grad():
        for size in [*range(4, 20), 4, 5]:
            x = torch.randn(1, 3, size, 7)
            close(layer(x), expected(x))
        close(layer.double()(x.double()), expected.double()(x.double()))
        with pytest.raises(RuntimeError):
            layer(x)


def test_errors_are_pytorchs():
    expected, layer = pair("Conv2d", 3, 4, 3)
    for wrong in (torch.zeros(1, 4, 8, 8), torch.zeros(8, 8), torch.zeros(1, 3, 2, 2), "image", None):
        with pytest.raises((RuntimeError, TypeError)) as error:
            expected(wrong)
        for context in (torch.no_grad, torch.enable_grad):
            with context(), pytest.raises(type(error.value)) as said:
                layer(wrong)
            assert str(said.value) == str(error.value)


def test_copies_and_files():
    expected, layer = pair("Conv2d", 3, 4, 3)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        layer(x)
        twin = copy.deepcopy(layer)
        twin.weight.mul_(2)
        close(twin(x), nn.functional.conv2d(x, twin.weight, twin.bias))
        close(layer(x), expected(x))
        file = io.BytesIO()
        torch.save(layer, file)
        size = len(file.getvalue())
        file.seek(0)
        close(torch.load(file, weights_only=False)(x), expected(x))
        file = io.BytesIO()
        torch.save(expected, file)
        assert size < 2 * len(file.getvalue())  # what is packed is not saved


def test_replacing_the_layers_of_a_model():
    shared = nn.Conv2d(8, 8, 3, padding=1)

    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.ReLU(), shared, Own(8, 8, 3), nn.ConvTranspose2d(8, 2, 2, 2))
    x = torch.randn(1, 3, 12, 12)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    expected, parameters = model(x), list(model.parameters())
    calls.clear()
    assert ours.replace(model) is model
    assert [type(m) for m in model] == [ours.Conv2d, ours.Conv2d, nn.ReLU, ours.Conv2d, Own, ours.ConvTranspose2d]
    assert model[1] is model[3]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            close(model(x), expected)
    assert len(calls) == 2
    assert type(ours.replace(nn.Conv1d(2, 3, 3))) is ours.Conv1d


def test_two_threads_on_one_layer():
    expected, layer = pair("Conv2d", 8, 8, 3)
    inputs = [torch.randn(1, 8, size, size) for size in range(6, 20)]
    with torch.no_grad():
        truth = [expected(x) for x in inputs]
    wrong = []

    def work(order):
        with torch.no_grad():
            for _ in range(20):
                for k in order:
                    if not torch.allclose(layer(inputs[k]), truth[k], rtol=1e-4, atol=1e-5):
                        wrong.append(k)

    threads = [threading.Thread(target=work, args=(range(k, len(inputs), 2),)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_torchscript_and_export():
    expected, layer = pair("Conv2d", 3, 4, 3)
    x = torch.randn(1, 3, 8, 8)
    exported = torch.export.export(layer, (x,))
    close(exported.module()(x), expected(x))
    assert any("wherever" in str(node.target) for node in exported.graph.nodes)
