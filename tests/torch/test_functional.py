"""PyTorch's convolutions on this engine, against PyTorch: results, gradients, transforms, compilation, errors."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

from wherever.torch import functional  # noqa: E402

theirs = nn.functional

NAMES = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
TOLERANCE = {  # of the difference of two results, each with rounding errors of its own
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
    torch.float32: 2e-5,
    torch.float64: 1e-13,
    torch.complex64: 2e-5,
    torch.complex128: 1e-13,
}


def close(ours, expected, dtype=None):
    assert ours.dtype == expected.dtype
    assert ours.shape == expected.shape
    ours, expected = ours.detach(), expected.detach()
    wide = torch.complex128 if expected.is_complex() else torch.float64
    error = (ours.to(wide) - expected.to(wide)).abs()
    largest = expected.to(wide).abs().max() if expected.numel() else 0
    assert not error.numel() or error.max() <= TOLERANCE[dtype or expected.dtype] * max(float(largest), 1.0)


@st.composite
def layers(draw):
    """A convolution or its transpose: name, tensors, options; sizes up to 12, channels up to 10."""
    spatial, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    name = f"conv{'_transpose' if transposed else ''}{spatial}d"
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    groups = draw(st.integers(1, 3))
    channels, others = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    kernel = [draw(st.integers(1, 4)) for _ in range(spatial)]
    each = st.one_of(st.integers(1, 3), st.tuples(*[st.integers(1, 3)] * spatial))
    options = {"stride": draw(each), "dilation": draw(each), "groups": groups}
    one = [options["dilation"]] * spatial if isinstance(options["dilation"], int) else options["dilation"]
    spans = [(r - 1) * d for r, d in zip(kernel, one, strict=True)]
    if transposed:
        options["padding"] = 0
        step = [options["stride"]] * spatial if isinstance(options["stride"], int) else options["stride"]
        options["output_padding"] = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(step, one, strict=True)]
        size = [draw(st.integers(1, 7)) for _ in range(spatial)]
    else:
        options["padding"] = draw(st.one_of(st.integers(0, 3), st.just("valid")))
        if options["stride"] == 1:
            options["padding"] = draw(st.sampled_from([options["padding"], "same"]))
        size = [span + draw(st.integers(1, 12)) for span in spans]
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def numbers(*shape):
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(*shape, dtype=wide, generator=generator).to(dtype)

    x = numbers(*batch, channels, *size)
    w = numbers(*((channels, others // groups) if transposed else (others, channels // groups)), *kernel)
    bias = draw(st.sampled_from([None, numbers(others)]))
    if draw(st.booleans()) and x.ndim in (4, 5) and batch:
        x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    if draw(st.booleans()):
        x = torch.cat([x, x], dim=-1)[..., : x.shape[-1]]  # a view with gaps
    return name, (x, w, bias), options


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(layers())
def test_results_and_gradients_are_pytorchs(layer):
    name, tensors, options = layer
    results = []
    # PyTorch adds up half precision in half precision; the truth about that is what it says in float64.
    half = tensors[0].dtype in (torch.float16, torch.bfloat16)
    for module in (functional, theirs):
        wide = torch.float64 if half and module is theirs else tensors[0].dtype
        given = [None if t is None else t.detach().clone().to(wide).requires_grad_() for t in tensors]
        y = getattr(module, name)(*given, **options)
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype)
        grads = torch.autograd.grad((y * weights).sum().abs(), [t for t in given if t is not None])
        results.append([y, *grads])
    for ours, expected in zip(*results, strict=True):
        close(ours, expected.to(ours.dtype))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=30)
@given(layers())
def test_gradients_of_gradients(layer):
    name, (x, w, bias), options = layer
    if x.numel() > 200 or w.numel() > 100:
        return
    wide = torch.complex128 if x.is_complex() else torch.float64
    given = [t.to(wide).requires_grad_() for t in (x, w, bias) if t is not None]
    function = getattr(functional, name)
    assert gradcheck(lambda *t: function(*t, **options), given, fast_mode=True)
    assert gradgradcheck(lambda *t: function(*t, **options), given, fast_mode=True)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_own_samples(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    (info,) = [op for op in op_db if op.name == f"nn.functional.{name}"]
    count = 0
    for dtype in (*TOLERANCE, torch.int64):
        for sample in info.sample_inputs("cpu", dtype, requires_grad=dtype.is_floating_point):
            expected = getattr(theirs, name)(sample.input, *sample.args, **sample.kwargs)
            ours = getattr(functional, name)(sample.input, *sample.args, **sample.kwargs)
            if dtype is torch.int64:
                assert torch.equal(ours, expected)
            else:
                close(ours, expected)
            count += 1
    assert count > 20


@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_own_wrong_samples(name):
    """Whatever PyTorch refuses is refused with its own error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    (info,) = [op for op in op_db if op.name == f"nn.functional.{name}"]
    if info.error_inputs_func is None:
        pytest.skip("PyTorch has none for it")
    for wrong in info.error_inputs("cpu"):
        sample = wrong.sample_input
        with pytest.raises(wrong.error_type) as theirs_said:
            getattr(theirs, name)(sample.input, *sample.args, **sample.kwargs)
        with pytest.raises(wrong.error_type) as ours_said:
            getattr(functional, name)(sample.input, *sample.args, **sample.kwargs)
        assert str(ours_said.value) == str(theirs_said.value)


@pytest.mark.parametrize(
    ("tensors", "options"),
    [
        (((1, 3, 8, 8), (4, 2, 3, 3)), {}),
        (((1, 3, 8, 8), (4, 3, 3)), {}),
        (((8, 8), (4, 3, 3, 3)), {}),
        (((1, 3, 2, 8), (4, 3, 3, 3)), {}),
        (((1, 3, 8, 8), (4, 3, 3, 3)), {"stride": 0}),
        (((1, 3, 8, 8), (4, 3, 3, 3)), {"dilation": -1}),
        (((1, 3, 8, 8), (4, 3, 3, 3)), {"padding": (1, 2, 3)}),
        (((1, 3, 8, 8), (4, 3, 3, 3)), {"padding": "full"}),
        (((1, 3, 8, 8), (4, 3, 3, 3)), {"padding": "same", "stride": 2}),
        (((1, 3, 8, 8), (4, 3, 3, 3)), {"groups": 2}),
        (((1, 3, 8, 8), (4, 3, 3, 3)), {"groups": 0}),
        (((1, 3, 8, 8), (4, 3, 3, 3), (5,)), {}),
    ],
)
def test_errors_are_pytorchs(tensors, options):
    given = [torch.zeros(shape) for shape in tensors]
    with pytest.raises((RuntimeError, TypeError, ValueError)) as expected:
        theirs.conv2d(*given, **options)
    with pytest.raises(type(expected.value)) as said:
        functional.conv2d(*given, **options)
    assert str(said.value) == str(expected.value)


def test_what_is_not_a_tensor_is_refused_as_pytorch_does():
    for wrong in ("image", None, [[1.0]]):
        with pytest.raises(TypeError):
            functional.conv2d(wrong, torch.zeros(1, 1, 1, 1))
    with pytest.raises(TypeError, match="stride"):
        functional.conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 1, 1), stride=1.5)
    with pytest.raises(RuntimeError):
        functional.conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 1, 1, dtype=torch.float64))


def test_results_have_the_memory_format_of_the_input():
    x = torch.randn(2, 3, 9, 8)
    w = torch.randn(4, 3, 3, 3)
    assert functional.conv2d(x, w).is_contiguous()
    last = functional.conv2d(x.contiguous(memory_format=torch.channels_last), w)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_autocast_is_pytorchs():
    x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(functional.conv2d(x, w), theirs.conv2d(x, w))


OPERATORS = torch.ops.wherever


@pytest.mark.parametrize("boundary", ["zeros", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("last", [False, True])
def test_operators_keep_pytorchs_rules(boundary, last):
    def numbers(*shape):
        made = torch.randn(shape, dtype=torch.float64)
        return (made.contiguous(memory_format=torch.channels_last) if last else made).requires_grad_()

    geometry = ([2, 1], [1, 2], [1, 1], [1, 2], 2, boundary)
    x, w, bias = numbers(2, 4, 7, 8), numbers(6, 2, 3, 2), torch.randn(6, dtype=torch.float64, requires_grad=True)
    y = OPERATORS.convolution(x, w, bias, *geometry).detach()
    g = (y.contiguous(memory_format=torch.channels_last) if last else y).requires_grad_()
    torch.library.opcheck(OPERATORS.convolution.default, (x, w, bias, *geometry))
    torch.library.opcheck(OPERATORS.by_input.default, (g, w, None, [7, 8], *geometry))
    for last in (False, True):
        torch.library.opcheck(OPERATORS.by_weight.default, (g, x, [3, 2], last, *geometry))


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 1, None), (2, 0, None), (1, None, 0), (0, 0, 0)])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_many_at_once(name, in_dims):
    shapes = [(2, 4, 6, 7), (4, 2, 3, 3), (4,)]
    if name == "conv_transpose2d":
        shapes[2] = (4,)
    tensors = []
    for shape, dim in zip(shapes, in_dims, strict=True):
        full = shape if dim is None else (*shape[:dim], 3, *shape[dim:])
        tensors.append(torch.randn(full, dtype=torch.float64))

    def ours(*tensors):
        return getattr(functional, name)(*tensors, stride=2, padding=1, groups=2)

    def expected(*tensors):
        return getattr(theirs, name)(*tensors, stride=2, padding=1, groups=2)

    close(torch.vmap(ours, in_dims)(*tensors), torch.vmap(expected, in_dims)(*tensors))

    def slopes(function):
        return torch.vmap(torch.func.grad(lambda *t: function(*t).square().sum(), (0, 1, 2)), in_dims)(*tensors)

    for got, truth in zip(slopes(ours), slopes(expected), strict=True):
        close(got, truth)


def test_derivatives_of_functions():
    x, w = torch.randn(1, 2, 5, 5, dtype=torch.float64), torch.randn(3, 2, 2, 2, dtype=torch.float64)

    def curvature(module):
        loss = lambda w: module.conv2d(x, w).square().sum()  # noqa: E731
        return torch.func.jacrev(torch.func.grad(loss))(w)

    close(curvature(functional), curvature(theirs))


class Layer(nn.Module):
    """One of the functions as a model."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x, w):
        return getattr(functional, self.name)(x, w, padding=1).relu()


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_export_and_trace(name):
    x, w = torch.randn(2, 4, 8, 8), torch.randn(4, 4, 3, 3)
    expected = getattr(theirs, name)(x, w, padding=1).relu()
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(Layer(name), (x, w), dynamic_shapes={"x": {0: auto, 2: auto}, "w": None})
    assert any("wherever" in str(node.target) for node in exported.graph.nodes)
    close(exported.module()(x, w), expected)
    wide = torch.randn(3, 4, 11, 8)
    close(exported.module()(wide, w), getattr(theirs, name)(wide, w, padding=1).relu())
    traced = torch.fx.symbolic_trace(Layer(name))
    assert any(node.target is getattr(functional, name) for node in traced.graph.nodes)
    close(traced(x, w), expected)


def test_compile():
    """Through the compiler's own tracing, without generating C++, which needs a compiler on the machine."""
    x, w = torch.randn(2, 4, 8, 8), torch.randn(4, 4, 3, 3)
    compiled = torch.compile(Layer("conv2d"), fullgraph=True, backend="aot_eager")
    given = [t.clone().requires_grad_() for t in (x, w)]
    compiled(*given).sum().backward()
    reference = [t.clone().requires_grad_() for t in (x, w)]
    theirs.conv2d(*reference, padding=1).relu().sum().backward()
    for ours, expected in zip(given, reference, strict=True):
        close(ours.grad, expected.grad)
