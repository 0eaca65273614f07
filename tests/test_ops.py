"""conv, conv_transpose, correlate, convolve, their gradients and plan: against the reference, SciPy and PyTorch."""

import dataclasses
import pickle
import subprocess
import sys
import tracemalloc
import warnings

import ml_dtypes
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, assert_close, bits, disguised, expected, numbers, problems

import wherever
from wherever import ops, reference
from wherever.problem import ConvProblem


def arguments(problem):
    return {
        "stride": problem.stride,
        "padding": problem.padding,
        "dilation": problem.dilation,
        "groups": problem.groups,
        "boundary": problem.boundary,
        "layout": problem.layout,
    }


@given(problem=problems(directions=("forward",)), seed=st.integers(0, 1000))
def test_conv_is_the_reference(problem, seed):
    x, w = numbers(problem.x_shape, problem.dtype, seed), numbers(problem.w_shape, problem.dtype, seed + 1)
    bias = numbers((problem.out_channels,), problem.dtype, seed + 2)
    truth = reference.conv(problem, x, w, bias)
    kept = x.copy(), w.copy(), bias.copy()
    y = ops.conv(disguised(x, seed), disguised(w, seed + 1), disguised(bias, seed + 2), **arguments(problem))
    assert y.dtype == problem.dtype
    assert_close(y, truth, problem.dtype)
    if problem.batch == 1:  # without a batch
        assert_close(ops.conv(x[0], w, bias, **arguments(problem)), truth[0], problem.dtype)
    for once in (False, True):
        plan = ops.plan(problem.x_shape, problem.w_shape, dtype=problem.dtype, prepared=once, **arguments(problem))
        prepared = plan.prepare(w, bias)
        out = np.empty_like(y)
        assert prepared(x, out=out) is out
        assert_close(out, truth, problem.dtype)
        assert once or bits(out) == bits(y)
    for before, after in zip(kept, (x, w, bias), strict=True):
        np.testing.assert_array_equal(before, after)


@given(problem=problems(directions=("forward",), dtypes=FLOATS), seed=st.integers(0, 1000))
def test_gradients_are_adjoints(problem, seed):
    """<conv(x, w), g> = <x, input gradient> = <w, weight gradient>, with a boundary of zeros for the first."""
    x, w = numbers(problem.x_shape, problem.dtype, seed), numbers(problem.w_shape, problem.dtype, seed + 1)
    g = numbers(problem.y_shape, problem.dtype, seed + 2)
    by_x = ops.conv_input_gradient(g, w, x.shape, **arguments(problem))
    by_w = ops.conv_weight_gradient(g, x, w.shape, **arguments(problem))
    outside = ops.conv(np.zeros_like(x), w, **arguments(problem))
    y = ops.conv(x, w, **arguments(problem))
    size = float(np.abs(g).sum() * np.abs(y).max(initial=1) + 1)
    bound = 1e-5 if problem.dtype.itemsize // (1 + (problem.dtype.kind == "c")) == 4 else 1e-12
    assert abs(np.vdot(g, y - outside) - np.vdot(by_x, x)) <= bound * size
    assert abs(np.vdot(g, y) - np.vdot(by_w, w)) <= bound * size


@given(problem=problems(directions=("transpose", "weight_gradient")), seed=st.integers(0, 1000))
def test_gradients_are_the_reference(problem, seed):
    source, operand = (
        numbers(problem.source_shape, problem.dtype, seed),
        numbers(problem.operand_shape, problem.dtype, seed + 1),
    )
    if problem.direction == "transpose":
        result = ops.conv_input_gradient(source, operand, problem.x_shape, **arguments(problem))
        truth = expected(problem, source, operand.conj())
    else:
        result = ops.conv_weight_gradient(operand, source, problem.w_shape, **arguments(problem))
        truth = expected(problem, source.conj(), operand)
    assert result.dtype == problem.dtype
    assert_close(result, truth, problem.dtype)


torch = pytest.importorskip("torch")


def draw_torch(seed):
    """Random arguments that PyTorch knows too."""
    random = np.random.default_rng(seed)
    spatial = int(random.integers(1, 4))
    groups = int(random.choice([1, 2, 3]))
    size = random.integers(5, 9, spatial)
    return {
        "spatial": spatial,
        "x": random.standard_normal((2, 2 * groups, *size)),
        "kernel": tuple(int(n) for n in random.integers(1, 4, spatial)),
        "stride": tuple(int(n) for n in random.integers(1, 4, spatial)),
        "padding": tuple(int(n) for n in random.integers(1, 3, spatial)),
        "dilation": tuple(int(n) for n in random.integers(1, 3, spatial)),
        "groups": groups,
        "random": random,
    }


@pytest.mark.parametrize("seed", range(30))
def test_conv_and_gradients_are_pytorch(seed):
    d = draw_torch(seed)
    options = {k: d[k] for k in ("stride", "padding", "dilation", "groups")}
    w = d["random"].standard_normal((3 * d["groups"], 2, *d["kernel"]))
    bias = d["random"].standard_normal(len(w))
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (d["x"], w, bias))
    ty = getattr(torch.nn.functional, f"conv{d['spatial']}d")(tx, tw, tb, **options)
    y = ops.conv(d["x"], w, bias, **options)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-11, atol=1e-11)
    g = d["random"].standard_normal(y.shape)
    ty.backward(torch.tensor(g))
    np.testing.assert_allclose(ops.conv_input_gradient(g, w, d["x"].shape, **options), tx.grad, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(ops.conv_weight_gradient(g, d["x"], w.shape, **options), tw.grad, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(ops.conv_bias_gradient(g, spatial=d["spatial"]), tb.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("seed", range(30))
def test_conv_transpose_and_gradients_are_pytorch(seed, layout):
    d = draw_torch(seed)
    options = {k: d[k] for k in ("stride", "padding", "dilation", "groups")}
    limits = np.maximum(d["stride"], d["dilation"])
    options["output_padding"] = tuple(int(d["random"].integers(0, n)) for n in limits)
    w = d["random"].standard_normal((2 * d["groups"], 3, *d["kernel"]))
    bias = d["random"].standard_normal(3 * d["groups"])
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (d["x"], w, bias))
    ty = getattr(torch.nn.functional, f"conv_transpose{d['spatial']}d")(tx, tw, tb, **options)
    g = d["random"].standard_normal(tuple(ty.shape))
    ty.backward(torch.tensor(g))

    def laid(a):
        return np.moveaxis(a, 1, -1) if layout == "channels_last" else a

    x = laid(d["x"])
    y = ops.conv_transpose(x, w, bias, layout=layout, **options)
    np.testing.assert_allclose(y, laid(ty.detach().numpy()), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(
        ops.conv_transpose(x[0], w, bias, layout=layout, **options), y[0], rtol=1e-11, atol=1e-11
    )
    by_x = ops.conv_transpose_input_gradient(laid(g), w, x.shape, layout=layout, **options)
    by_w = ops.conv_transpose_weight_gradient(laid(g), x, w.shape, layout=layout, **options)
    np.testing.assert_allclose(by_x, laid(tx.grad.numpy()), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(by_w, tw.grad.numpy(), rtol=1e-10, atol=1e-10)


def test_gradients_of_complex_numbers_are_pytorch():
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.standard_normal(shape) + 1j * random.standard_normal(shape)

    x, w = draw(2, 3, 20), draw(4, 3, 5)
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    ty = torch.nn.functional.conv1d(tx, tw, stride=2, padding=1)
    y = ops.conv(x, w, stride=2, padding=1)
    np.testing.assert_allclose(y, ty.detach().numpy())
    g = draw(*y.shape)
    ty.backward(torch.tensor(g))
    np.testing.assert_allclose(ops.conv_input_gradient(g, w, x.shape, stride=2, padding=1), tx.grad)
    np.testing.assert_allclose(ops.conv_weight_gradient(g, x, w.shape, stride=2, padding=1), tw.grad)


@pytest.mark.parametrize("seed", range(40))
def test_correlate_and_convolve_are_scipy(seed):
    random = np.random.default_rng(seed)
    dims = int(random.integers(1, 4))
    dtype = random.choice([*FLOATS, "int32", "uint8"])
    a = numbers(tuple(random.integers(1, 12, dims)), dtype, seed)
    v = numbers(tuple(random.integers(1, 7, dims)), dtype, seed + 1)
    for mode in ("full", "same", "valid"):
        for name in ("correlate", "convolve"):
            try:
                truth = getattr(scipy.signal, name)(a, v, mode, method="direct")
            except ValueError:
                with pytest.raises(ValueError, match="at least as large"):
                    getattr(ops, name)(a, v, mode)
                continue
            result = getattr(ops, name)(a, v, mode)
            assert result.dtype == truth.dtype
            assert_close(result, truth, dtype)


def test_correlate_and_convolve_are_numpy():
    a, v = numbers((30,), "complex128"), numbers((8,), "complex128", 1)
    for mode in ("full", "same", "valid"):
        np.testing.assert_allclose(ops.correlate(a, v, mode), np.correlate(a, v, mode))
        np.testing.assert_allclose(ops.convolve(a, v, mode), np.convolve(a, v, mode))


@pytest.mark.parametrize(
    ("boundary", "mode"),
    [
        ("edge", "nearest"),
        ("reflect", "mirror"),
        ("symmetric", "reflect"),
        ("wrap", "grid-wrap"),
        ("zeros", "constant"),
    ],
)
def test_boundaries_are_scipy_ndimage(boundary, mode):
    a, v = numbers((9, 7), "float64"), numbers((5, 3), "float64", 1)
    np.testing.assert_allclose(ops.correlate(a, v, "same", boundary), scipy.ndimage.correlate(a, v, mode=mode))
    np.testing.assert_allclose(ops.convolve(a, v, "same", boundary), scipy.ndimage.convolve(a, v, mode=mode))


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("shapes", [((9, 7), (4, 3)), ((4, 3), (9, 7))])
@pytest.mark.parametrize("name", ["correlate", "convolve"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_gradients_of_plain_arrays(name, shapes, mode, dtype):
    a, v = numbers(shapes[0], dtype), numbers(shapes[1], dtype, 1)
    function, gradients = getattr(ops, name), getattr(ops, f"{name}_gradients")
    y = function(a, v, mode, "edge")
    g = numbers(y.shape, dtype, 2)
    by_a, by_v = gradients(g, a, v, mode, "edge")

    def loss(a, v):  # whose gradient by y is g
        return np.vdot(g, function(a, v, mode, "edge")).real

    for array, gradient in ((a, by_a), (v, by_v)):
        assert gradient.shape == array.shape
        step = numbers(array.shape, dtype, 3)
        ahead = loss(a + step, v) if array is a else loss(a, v + step)
        np.testing.assert_allclose(ahead - loss(a, v), np.vdot(gradient, step).real, rtol=1e-9)


# Types and outputs.


@pytest.mark.parametrize(
    ("x", "w", "result"),
    [
        ("uint8", "int8", "int16"),
        ("uint8", "uint8", "uint8"),
        ("int16", "float32", "float32"),
        ("int32", "float32", "float64"),
        ("float16", "float32", "float32"),
        ("float16", "float16", "float16"),
        ("float32", "complex64", "complex64"),
        ("bool", "uint8", "uint8"),
        ("int64", "uint64", "float64"),
        ("longdouble", "float32", "longdouble"),
        (">f4", "<i2", "float32"),
    ],
)
def test_types_are_promoted_as_by_numpy(x, w, result):
    y = ops.conv(numbers((2, 9), x), numbers((3, 2, 3), w))
    assert y.dtype == np.dtype(result)
    assert y.dtype.isnative


def test_bfloat16_is_summed_in_single_precision():
    x = numbers((2, 50), "float32").astype(ml_dtypes.bfloat16)
    w = numbers((3, 2, 7), "float32").astype(ml_dtypes.bfloat16)
    y = ops.conv(x, w)
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y, ops.conv(x.astype(np.float32), w.astype(np.float32)).astype(ml_dtypes.bfloat16))
    assert ops.conv_bias_gradient(y, spatial=1).dtype == y.dtype


def test_out_of_a_wider_type_does_not_wrap():
    x, w = np.full((1, 5), 200, np.uint8), np.ones((1, 1, 3), np.uint8)
    np.testing.assert_array_equal(ops.conv(x, w), [[88, 88, 88]])
    out = np.empty((1, 3), np.int32)
    assert ops.conv(x, w, out=out) is out
    np.testing.assert_array_equal(out, [[600, 600, 600]])


def test_out_may_be_the_input_strided_or_of_another_kind():
    x, w = numbers((1, 8, 8), "float64"), numbers((1, 1, 3, 3), "float64", 1)
    truth = ops.conv(x, w, padding=1)
    np.testing.assert_array_equal(ops.conv(x.copy(), w, padding=1, out=(inplace := x.copy())), truth)
    np.testing.assert_array_equal(inplace, truth)
    overlapping = x.copy()
    np.testing.assert_array_equal(ops.conv(overlapping, w, padding=1, out=overlapping), truth)
    wide = np.zeros((3, 16, 24))
    ops.conv(x, w, padding=1, out=wide[1:2, ::2, ::3])
    np.testing.assert_array_equal(wide[1:2, ::2, ::3], truth)
    single = np.empty(truth.shape, ">f4")
    np.testing.assert_allclose(ops.conv(x, w, padding=1, out=single), truth, rtol=1e-6)


def test_lists_and_scalars_are_arrays():
    np.testing.assert_array_equal(ops.conv([[1, 2, 3]], [[[1, 1]]]), [[3, 5]])
    assert ops.correlate([1.5], [2]).tolist() == [3.0]


def test_an_empty_sum_is_the_bias():
    y = ops.conv(np.zeros((2, 0, 5)), np.zeros((3, 0, 2)), [1.0, 2, 3])
    np.testing.assert_array_equal(y, np.broadcast_to(np.array([1.0, 2, 3])[:, None], (2, 3, 4)))


@pytest.mark.parametrize(
    ("strides", "shared"),
    [
        ((8, 16), False),
        ((16, 8), True),
        ((32, 8), False),
        ((8, 8), True),
        ((0, 8), True),
        ((-32, 8), False),
        ((12, 4), True),
    ],
)
def test_elements_of_out_may_interleave_but_not_share_memory(strides, shared):
    memory = np.zeros(20)
    out = np.lib.stride_tricks.as_strided(memory[8:], (2, 4), strides)
    x, w = np.arange(6.0)[None], np.ones((2, 1, 3))
    if shared:
        with pytest.raises(ValueError, match="out: several of its elements"):
            ops.conv(x, w, out=out)
        assert not memory.any()
    else:
        np.testing.assert_array_equal(ops.conv(x, w, out=out), ops.conv(x, w))


def test_numbers_outside_booleans_are_booleans_if_they_can_be():
    x, w = np.ones((1, 5), bool), np.ones((1, 1, 3), bool)
    for boundary, dtype in ((0, bool), (1, bool), (7, np.int64), (0.5, np.float64)):
        assert ops.conv(x, w, padding=1, boundary=boundary).dtype == dtype
    np.testing.assert_array_equal(ops.conv(x, w, padding=1, boundary=7), [[9, 3, 3, 3, 9]])


def test_no_warning_where_a_narrower_out_overflows():
    out = np.zeros((1, 3), np.float16)
    ops.conv(np.full((1, 5), 3e4, np.float32), np.ones((1, 1, 3), np.float32), out=out)
    assert np.isinf(out).all()


def test_no_warning_where_numbers_overflow():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = ops.conv(np.full((1, 40), 60000, np.float16), np.ones((1, 1, 3), np.float16))
    assert np.isinf(y).all()


# Bad arguments: which one, what was given, what is possible.

X, W = np.zeros((2, 3, 8, 8)), np.zeros((4, 3, 3, 3))


def one_place(shape):
    """An array all of whose rows are one and the same, and may be written."""
    return np.lib.stride_tricks.as_strided(np.zeros(shape[-1]), shape, (0,) * (len(shape) - 1) + (8,))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.conv(X, np.zeros((4, 2, 3, 3))), ValueError, r"w: .*2 x groups=1.*x has 3"),
        (lambda: ops.conv(X, np.zeros((4, 3))), ValueError, "at least 3"),
        (lambda: ops.conv(X[0, 0], W), ValueError, r"x: shape \(8, 8\).*must have 3 .* or 4"),
        (lambda: ops.conv(X, np.zeros((4, 3, 0, 3))), ValueError, "at least 1"),
        (lambda: ops.conv(X, np.zeros((4, 3, 9, 3))), ValueError, "spans 9 places in spatial dimension 0.* has 8"),
        (lambda: ops.conv(X, W, stride=0), ValueError, "stride: 0 .* at least 1"),
        (lambda: ops.conv(X, W, stride=1.5), TypeError, "stride: expected an integer, got 1.5"),
        (lambda: ops.conv(X, W, stride=(1, 2, 3)), ValueError, "stride: .*3 entries.*2"),
        (lambda: ops.conv(X, W, dilation=(1, 0)), ValueError, "dilation: 0"),
        (lambda: ops.conv(X, W, padding=-1), ValueError, "padding: -1"),
        (lambda: ops.conv(X, W, padding="some"), ValueError, "padding: 'some'.*'valid', 'same', 'full'"),
        (lambda: ops.conv(X, W, padding=[(1, 2, 3), 1]), ValueError, r"padding: \(1, 2, 3\) is not a .* pair"),
        (lambda: ops.conv(X, W, padding=[1, 1, 1]), ValueError, "padding: .*3 entries"),
        (lambda: ops.conv(X, W, groups=2), ValueError, "w: .*3 x groups=2 = 6"),
        (lambda: ops.conv(X, np.zeros((4, 1, 3, 3)), groups=3), ValueError, "groups: 3 does not divide the 4"),
        (lambda: ops.conv(X, W, boundary="mirror"), ValueError, "boundary: 'mirror'.*'reflect'"),
        (lambda: ops.conv(X, W, boundary=None), TypeError, "boundary: None"),
        (lambda: ops.conv(np.ma.masked_equal(X, 0), W), TypeError, "x: .*masked"),
        (lambda: ops.plan((3, 8, 8), W.shape, boundary=1j), TypeError, "boundary: 1j does not fit into float32"),
        (lambda: ops.plan((3, 8, 8), W.shape, dtype="u1", boundary=300), ValueError, "boundary: 300"),
        (lambda: ops.conv_bias_gradient(X, spatial=2, layout="NCHW"), ValueError, "layout: 'NCHW'"),
        (lambda: ops.conv(X, W, layout="NHWC"), ValueError, "layout: 'NHWC'.*'channels_last'"),
        (lambda: ops.conv(X, W, [1, 2]), ValueError, r"bias: shape \(2,\).*\(4,\)"),
        (lambda: ops.conv(X.astype(object), W), TypeError, "x: cannot convolve object"),
        (lambda: ops.conv("text", W), TypeError, "x: cannot convolve"),
        (lambda: ops.conv([[1], [1, 2]], W), ValueError, "x: not an array"),
        (lambda: ops.conv(X, W, out=np.zeros((2, 4, 5, 5))), ValueError, r"out: shape .*\(2, 4, 6, 6\)"),
        (lambda: ops.conv(X, W, out=np.zeros((2, 4, 6, 6), int)), TypeError, "out: int64 cannot hold"),
        (lambda: ops.conv(X, W, out=[0]), TypeError, "out: expected an array"),
        (lambda: ops.conv(X, W, out=np.broadcast_to(0.0, (2, 4, 6, 6))), ValueError, "out: .*read-only"),
        (lambda: ops.conv(X.astype(np.uint8), W.astype(np.uint8), boundary=300), ValueError, "boundary: 300"),
        (lambda: ops.conv(np.zeros((1, 0)), np.zeros((1, 1, 2)), padding=1, boundary="edge"), ValueError, "x is empty"),
        (lambda: ops.conv_transpose(X, W), ValueError, "w: .*4 input channels, but x has 3"),
        (lambda: ops.conv_transpose(X, np.zeros((3, 4, 3, 3)), output_padding=1), ValueError, "output_padding: 1"),
        (lambda: ops.conv_transpose(X, np.zeros((3, 4, 3, 3)), padding="same"), ValueError, "padding: 'same'"),
        (lambda: ops.conv_transpose(X, np.zeros((3, 4, 3, 3)), padding=9), ValueError, "padding: 9 is larger"),
        (lambda: ops.correlate(X, [1, 2]), ValueError, "v: 1 dimensions and a: 4"),
        (lambda: ops.correlate([1, 2], []), ValueError, r"v: shape \(0,\) is empty"),
        (lambda: ops.correlate([1, 2], [1], "all"), ValueError, "mode: 'all'.*'full'"),
        (lambda: ops.conv_input_gradient(X, W, (2, 3, 8, 8)), ValueError, r"g: shape .*\(2, 4, 6, 6\)"),
        (lambda: ops.conv_weight_gradient(X, X, W.shape), ValueError, r"g: shape .*\(2, 4, 6, 6\)"),
        (lambda: ops.conv_transpose_input_gradient(X, W, (2, 4, 8, 8)), ValueError, r"g: shape .*\(2, 3, 10, 10\)"),
        (lambda: ops.plan((3, 8, 8), W.shape, precision="exact"), ValueError, "precision: 'exact'.*'strict'"),
        (lambda: ops.plan((3, 8, 8), W.shape, threads=0), ValueError, "threads: 0"),
        (lambda: ops.plan((3, -8, 8), W.shape), ValueError, "x_shape: -8"),
        (lambda: ops.plan((3, 8, 8), W.shape).prepare(W), TypeError, "w: float64 does not convert safely.*float32"),
        (lambda: ops.plan((3, 8, 8), W.shape).prepare(W[:2]), ValueError, r"w: shape \(2, 3, 3, 3\)"),
        (
            lambda: ops.plan((3, 8, 8), W.shape, dtype=float).prepare(W)(X),
            ValueError,
            r"x: shape \(2, 3, 8, 8\), but the plan is for \(3, 8, 8\)",
        ),
        (lambda: wherever.set_threads(0), ValueError, "threads: 0"),
        (lambda: ops.conv(X, W, stride=float("nan")), TypeError, "stride: expected an integer, got nan"),
        (lambda: ops.conv(X, W, stride="22"), TypeError, "stride: expected an integer, got '22'"),
        (lambda: ops.conv(X, W, stride=b"ab"), TypeError, "stride: expected an integer, got b'ab'"),
        (lambda: ops.conv(X, W, stride={1, 2}), TypeError, "stride: expected an integer, got {1, 2}"),
        (lambda: ops.conv(X, W, padding={1: 2, 2: 1}), TypeError, "padding: expected an integer, got {1: 2"),
        (lambda: ops.conv(X, W, dilation=True), TypeError, "dilation: expected an integer, got True"),
        (lambda: ops.conv(X, W, stride=np.array([1.0, 2])), TypeError, "stride: expected an integer, got .*1.0"),
        (lambda: ops.conv(X, W, groups=None), TypeError, "groups: expected an integer, got None"),
        (lambda: ops.conv(X, W, stride=10**30), ValueError, "stride: 1000000.* is too large; it must be at most"),
        (lambda: ops.conv(X, W, padding=10**12), ValueError, "padding: 1000000000000 makes an array of shape"),
        (lambda: ops.conv_transpose(X, W[:3], stride=2**40), ValueError, "stride: .* makes an array of shape"),
        (lambda: ops.conv(X, W, padding=[("1", 1), 1]), TypeError, "padding: expected an integer, got '1'"),
        (lambda: ops.conv(X, W, padding=[(0, -1), 1]), ValueError, "padding: -1 is too small"),
        (lambda: ops.conv(X, W, boundary=10**400), ValueError, "boundary: an integer of 1329 bits"),
        (lambda: ops.conv(X, W, boundary=np.zeros(2)), TypeError, "boundary: array.* is neither a number nor"),
        (lambda: ops.conv(X, W, layout=np.array(["channels_last"] * 2)), ValueError, "layout: .* is unknown"),
        (lambda: ops.conv(np.array(1.0), W), ValueError, r"x: shape \(\) has 0 dimensions"),
        (lambda: ops.conv(X, np.array(1.0)), ValueError, r"w: shape \(\) has 0 dimensions"),
        (lambda: ops.conv(X, W, 1.0), ValueError, r"bias: shape \(\); it must be \(4,\)"),
        (lambda: ops.conv(X, W, [None] * 4), TypeError, "bias: cannot convolve object"),
        (lambda: ops.conv(X.astype("M8[s]"), W), TypeError, r"x: cannot convolve datetime64\[s\]"),
        (lambda: ops.conv(np.zeros(X.shape, "V4"), W), TypeError, r"x: cannot convolve \|V4"),
        (lambda: ops.conv(X, W, out=np.zeros((2, 4, 6, 6), "U3")), TypeError, "out: cannot convolve <U3"),
        (lambda: ops.conv(X, W, out=np.zeros((2, 4, 6, 6), object)), TypeError, "out: cannot convolve object"),
        (lambda: ops.conv(X, W, out=one_place((2, 4, 6, 6))), ValueError, "out: several of its elements are one place"),
        (lambda: ops.plan("abc", W.shape), TypeError, "x_shape: expected a sequence of integers, got 'abc'"),
        (lambda: ops.plan((3, 8, 8), None), TypeError, "w_shape: expected a sequence of integers, got None"),
        (lambda: ops.plan((3, 8.0, 8), W.shape), TypeError, "x_shape: expected an integer, got 8.0"),
        (lambda: ops.plan((3, 8, 8), W.shape, dtype="number"), TypeError, "dtype: 'number' is no type of NumPy's"),
        (lambda: ops.plan((3, 8, 8), W.shape, dtype="O"), TypeError, "dtype: cannot convolve object"),
        (lambda: ops.plan((3, 8, 8), W.shape, threads=1.5), TypeError, "threads: expected an integer, got 1.5"),
        (lambda: ops.conv_input_gradient(X, W, "abcd"), TypeError, "x_shape: expected a sequence of integers"),
        (lambda: ops.conv_input_gradient(X, W, (2, 3, -8, 8)), ValueError, "x_shape: -8 is too small"),
        (lambda: ops.conv_weight_gradient(X, X, (4, 3, 3.0, 3)), TypeError, "w_shape: expected an integer, got 3.0"),
        (lambda: ops.correlate([1.0], [1.0], ["full"]), ValueError, "mode: .'full'. is unknown"),
        (lambda: ops.correlate([1.0], [1.0], np.arange(2)), ValueError, "mode: array.* is unknown"),
        (lambda: ops.plan((3, 8, 8), W.shape, precision=np.arange(2)), ValueError, "precision: array.* is unknown"),
        (lambda: ops.conv_transpose(X, W[:3], dilation=2**40), ValueError, "dilation: .* makes an array of shape"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_integers_of_many_bits_lie_outside_floats():
    x, w = np.ones((1, 5), np.float32), np.ones((1, 1, 3), np.float32)
    np.testing.assert_array_equal(
        ops.conv(x, w, padding=1, boundary=2**100), ops.conv(x, w, padding=1, boundary=2.0**100)
    )


# The plan.


@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 9), (2, 3, 0)])
def test_plans_of_empty_problems_explain_themselves(shape, measure, monkeypatch, tmp_path):
    monkeypatch.setenv("WHEREVER_CACHE_DIR", str(tmp_path))
    assert "chosen" in str(ops.plan(shape, (4, 3, 3), measure=measure))


def test_results_beyond_all_memory_are_planned_at_once():
    plan = ops.plan((2, 4, 9, 8), (6, 4, 3, 3), padding=((2**47, 2**47), (0, 0)))
    assert "winograd" in str(plan)
    assert "fourier_channels" in str(plan)


def test_a_plan_explains_itself():
    plan = ops.plan((1, 64, 128, 128), (64, 64, 7, 7), padding="same")
    text = str(plan)
    assert plan.algorithm in text
    assert "chosen" in text
    assert "refused: only for integers" in text
    assert "times slower" in text
    assert "MiB" in text
    assert plan.algorithm in repr(plan)


def test_strict_precision_sums_directly():
    shapes = (1, 200, 200), (1, 1, 63, 63)
    assert ops.plan(*shapes).algorithm == "fourier"
    strict = ops.plan(*shapes, precision="strict")
    assert strict.algorithm not in ("fourier", "overlap_save")
    assert "precision is 'strict'" in str(strict)


def test_a_measured_plan_runs_the_fastest_candidate():
    plan = ops.plan((2, 30, 30), (3, 2, 3, 3), measure=True)
    measured = {c.algorithm.name: c.measured for c in plan._choice.candidates if c.refusal is None}
    assert all(seconds > 0 for seconds in measured.values())
    assert plan.algorithm == min(measured, key=measured.get)
    x, w = numbers((2, 30, 30), "float32"), numbers((3, 2, 3, 3), "float32", 1)
    np.testing.assert_allclose(plan.prepare(w)(x), ops.conv(x, w), rtol=1e-4, atol=1e-4)


def test_prepared_weights_do_not_follow_later_changes():
    w = numbers((3, 2, 3), "float32")
    x = numbers((2, 20), "float32", 1)
    truth = ops.conv(x, w)
    prepared = ops.plan((2, 20), w.shape).prepare(w)
    w[...] = 0
    np.testing.assert_array_equal(prepared(x), truth)


def test_a_plan_takes_types_that_convert_safely():
    w = np.ones((1, 1, 3), np.float32)
    image = np.arange(10, dtype=np.uint8)[None]
    np.testing.assert_array_equal(ops.plan((1, 10), w.shape).prepare(w)(image), ops.conv(image, w))


def test_set_threads_is_the_default():
    try:
        wherever.set_threads(1)
        assert "threads 1" in str(ops.plan((1, 9), (1, 1, 3)))
        assert "threads 3" in str(ops.plan((1, 9), (1, 1, 3), threads=3))
    finally:
        wherever.set_threads(None)


def test_a_transposed_problem_is_the_forward_one_backwards():
    problem = ConvProblem.transposed((1, 2, 5), (2, 3, 4), stride=2, padding=1, output_padding=1)
    assert problem.result_shape == (1, 3, 11)
    assert problem.y_shape == (1, 2, 5)


# Memory.


@pytest.mark.parametrize("direction", ["forward", "input gradient", "weight gradient"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("kernel", [3, 15, 63])
def test_memory_beside_input_and_output_is_bounded(kernel, dtype, direction):
    """64 MiB at most, also where the image is of another type than the sums (which would take 4 times its size)."""
    x = np.ones((2, 2000, 3000), dtype)
    w = np.ones((2, 2, kernel, kernel), np.float32)
    g = np.ones(x.shape, np.float32)
    tracemalloc.start()
    try:
        if direction == "forward":
            result = ops.conv(x, w, padding="same", boundary="edge")
        elif direction == "input gradient":
            result = ops.conv_input_gradient(g, w, x.shape, padding="same", boundary="edge")
        else:
            result = ops.conv_weight_gradient(g, x, w.shape, padding="same", boundary="edge")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - result.nbytes < 64 << 20


@pytest.mark.parametrize(
    "boundary", [np.float32(0.5), np.int64(3), np.complex64(1j), np.array(2.0)[()], np.uint8(1), np.bool_(True)]
)
@pytest.mark.parametrize("dtype", ["int32", "float64", "complex64"])
def test_numbers_of_numpy_are_numbers_as_boundary(boundary, dtype):
    x, w = numbers((1, 9), dtype), numbers((1, 1, 3), dtype, 1)
    np.testing.assert_array_equal(
        ops.conv(x, w, padding=2, boundary=boundary), ops.conv(x, w, padding=2, boundary=boundary.item())
    )
    g = ops.conv(x, w, padding=2)
    by_w = [ops.conv_weight_gradient(g, x, w.shape, padding=2, boundary=b) for b in (boundary, boundary.item())]
    np.testing.assert_array_equal(*by_w)
    by_x = ops.conv_input_gradient(g, w, x.shape, padding=2, boundary=boundary)
    np.testing.assert_array_equal(by_x, ops.conv_input_gradient(g, w, x.shape, padding=2))


def test_a_transpose_that_is_padded_away_is_empty():
    assert ops.conv_transpose(np.ones((1, 3, 2)), np.ones((1, 1, 3, 1)), padding=((0, 0), (1, 1))).shape == (1, 5, 0)


def test_a_prepared_bias_does_not_follow_later_changes():
    bias = np.array([100, 100])
    prepared = ops.plan((1, 4), (2, 1, 2), dtype=int).prepare(np.ones((2, 1, 2), int), bias)
    bias[:] = 2**30
    assert (prepared(np.zeros((1, 4), int)) == 100).all()


def test_wide_dilation_reads_only_its_taps():
    """Nine taps of a block, far apart: what lies between them is not gathered."""
    x, w = np.ones((4, 1024, 1024), np.float32), np.ones((4, 4, 3, 3), np.float32)
    tracemalloc.start()
    try:
        y = ops.conv(x, w, padding="same", dilation=400)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - y.nbytes < 64 << 20
    assert y[0, 512, 512] == 36
    assert y[0, 0, 0] == 16


def test_arrays_of_no_dimension_are_numbers():
    x, w = np.ones((1, 9)), np.ones((1, 1, 3))
    assert ops.conv(x, w, stride=np.array(2), padding=np.array(1)).shape == (1, 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_gradients_by_the_bias_keep_the_promise_over_a_million_places(layout, dtype):
    g = np.abs(numbers((1, 1000, 1003, 3), dtype)) + np.array([1 / 3, 1, 3], dtype)
    truth = g.reshape(-1, 3).astype(np.longdouble).sum(0)
    whole = g if layout == "channels_last" else np.ascontiguousarray(np.moveaxis(g, -1, 1))
    # In order, backwards in memory, and without a batch.
    backwards = np.ascontiguousarray(whole[:, ::-1, ::-1])[:, ::-1, ::-1]
    for array in (whole, backwards, whole[0]):
        result = ops.conv_bias_gradient(array, spatial=2, layout=layout)
        assert result.dtype == dtype
        assert np.abs(result - truth).max() <= (8e-6 if dtype == "float32" else 1e-14) * truth.max()


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_more_elements_than_a_32_bit_number_counts(layout):
    """Images of 2^33 numbers that lie in a few places of memory: every product of sizes and pitches is wide enough."""
    size = 1 << 32
    row = numbers((4,), "float32")
    x = np.lib.stride_tricks.as_strided(row, (1, 2, size), (0, 4, 0)).view()
    if layout == "channels_last":
        x = x.transpose(0, 2, 1)
    w = numbers((3, 2, 5), "float32", 1)
    y = ops.conv(x, w, stride=1 << 30, layout=layout)
    truth = (w.astype(float) * row[:2, None]).sum((1, 2))
    assert y.size == 12
    np.testing.assert_allclose(
        y, np.broadcast_to(truth[:, None] if layout == "channels_first" else truth, y.shape), 1e-5
    )


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes on Windows, unless asked for")
def test_what_lies_far_behind_the_beginning_of_a_row(tmp_path):
    """What is read lies 2^34 bytes behind the beginning, in a file with a hole: nothing before it takes room."""
    mapped = np.memmap(tmp_path / "row", np.float32, "w+", shape=(1, 1, (1 << 32) + 64))
    mapped[0, 0, -64:] = numbers((64,), "float32")
    w = numbers((1, 1, 7), "float32", 1)
    y = ops.conv(mapped, w, stride=1 << 26)
    (tmp_path / "row").unlink()
    reached = np.asarray(mapped[0, 0, -64 : -64 + 7], float)
    assert y.shape == (1, 1, 65)
    np.testing.assert_allclose(y[0, 0, -1], reached @ w[0, 0], rtol=1e-5)
    assert not y[0, 0, :-1].any()


def test_a_problem_is_found_again_in_another_process():
    """The hash that a problem remembers does not travel: words hash anew in each process."""
    problem = ConvProblem.from_shapes((1, 2, 5), (2, 2, 3), boundary="edge", padding=1)
    assert hash(problem) == hash(dataclasses.replace(problem))
    code = (
        "import pickle, sys; problem = pickle.loads(sys.stdin.buffer.read())\n"
        "from wherever.problem import ConvProblem\n"
        "assert problem in {ConvProblem.from_shapes((1, 2, 5), (2, 2, 3), boundary='edge', padding=1)}"
    )
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(problem), check=True)
