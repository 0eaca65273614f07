"""SciPy's own tests of its filters and convolutions, run on ours; and properties over modes, types, origins, shapes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st
from strategies import TOLERANCE, disguised, numbers

from wherever import ndimage, signal

# What SciPy's tests ask for and we do otherwise, with the reason.
EXCEPTIONS = {
    "TestFFTConvolve::test_fft_nan": "warns that NaN spreads over the whole result; here it does not spread",
    "test_multiple_modes_sequentially": "wants the bits of one axis after the other; here float64 is summed over both",
}

RUNS = {
    "ndimage": ("scipy.ndimage.tests.test_filters", "not (rank or median or minimum or maximum or percentile)", 1000),
    "signal": ("scipy.signal.tests.test_signaltools", "(onvolve or orrelat) and not OAConvolve", 500),
    "oaconvolve": ("scipy.signal.tests.test_signaltools", "OAConvolve", 100),
}


@pytest.mark.parametrize("run", RUNS)
def test_scipys_own_tests(run, tmp_path):
    module, chosen, fewest = RUNS[run]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        pytest.skip(f"SciPy is installed here without its tests ({module})")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        "WHEREVER_REPORT": str(tmp_path / "report.json"),
    }
    options = ["-q", "-p", "in_place_of_scipy", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), "-k", chosen, spec.origin]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "report.json").exists(), done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    failed = {name: text for name, text in report.items() if text.split()[0] in ("failed", "error")}
    unexpected = {name: text for name, text in failed.items() if not any(known in name for known in EXCEPTIONS)}
    assert not unexpected, "\n".join(f"{name}: {text}" for name, text in unexpected.items())
    assert len(report) >= fewest  # so many of SciPy's tests called our functions


MODES = ("reflect", "constant", "nearest", "mirror", "wrap", "grid-mirror", "grid-constant", "grid-wrap")
TYPES = ("float32", "float64", "uint8", "int8", "int16", "uint16", "int32", "int64", "bool")
COMPLEX = ("complex64", "complex128")
SIGNED = ("int16", "int32", "int64")


def assert_same(result, truth, *operands):
    """Equal for integers, within the accuracy of the type for floats (of the operands); of one type and shape."""
    assert (result.dtype, result.shape) == (truth.dtype, truth.shape)
    if truth.dtype.kind in "iu":
        np.testing.assert_array_equal(result, truth)
    elif truth.dtype.kind == "b":
        np.testing.assert_array_equal(result, truth.view(np.uint8) != 0)
    elif truth.size:
        scale = max(np.abs(truth).max(), 1)
        # SciPy transforms each operand in its own type.
        tolerance = max(TOLERANCE.get(a.dtype.name, 0) for a in (truth, *operands))
        assert np.abs(result - truth).max() <= 2 * tolerance * scale


@st.composite
def images(draw, types=TYPES):
    """An array of any type, memory order, byte order and alignment, of 1 to 4 dimensions."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda s: np.prod(s) < 1500))
    shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 1000))
    # Small enough that no sum leaves the range of its type: what C makes of that is undefined.
    x = numbers(shape, draw(st.sampled_from(types)), seed)
    return disguised(x // 100 if x.dtype.kind in "iu" else x, seed)


def kernels(draw, shape, dtype):
    """Weights with zeros, thirds, or of any size; none negative where the result has no sign."""
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["whole", "thirds", "any"]))
    w = random.standard_normal(shape) if kind == "any" else random.integers(-2, 3, shape).astype(float)
    w = w / 3 if kind == "thirds" else w
    return abs(w) if dtype.kind in "bu" else w


def outputs(draw, dtype):
    return draw(st.sampled_from([None, "float32", "float64", *(SIGNED if dtype.kind != "u" else ["uint32"])]))


@given(data=st.data(), x=images(), mode=st.sampled_from(MODES), cval=st.sampled_from([0, 1, 2.5]))
def test_filters_of_any_number_of_axes_are_scipys(data, x, mode, cval):
    shape = [data.draw(st.integers(1, 5)) for _ in x.shape]
    w = kernels(data.draw, shape, x.dtype)
    origin = [data.draw(st.integers(-(n // 2), (n - 1) // 2)) for n in shape]
    options = {"mode": mode, "cval": cval, "origin": origin, "output": outputs(data.draw, x.dtype)}
    for name in ("correlate", "convolve"):
        assert_same(getattr(ndimage, name)(x, w, **options), getattr(scipy.ndimage, name)(x, w, **options))


@given(data=st.data(), x=images(), mode=st.sampled_from(MODES), cval=st.sampled_from([0, 1, 2.5]))
def test_filters_along_one_axis_are_scipys(data, x, mode, cval):
    n = data.draw(st.integers(1, 12))
    w = kernels(data.draw, n, x.dtype)
    if data.draw(st.booleans()):
        w = w + w[::-1]  # SciPy adds pairs first
    axis, origin = data.draw(st.integers(-x.ndim, x.ndim - 1)), data.draw(st.integers(-(n // 2), (n - 1) // 2))
    options = {"axis": axis, "mode": mode, "cval": cval, "origin": origin, "output": outputs(data.draw, x.dtype)}
    for name in ("correlate1d", "convolve1d"):
        assert_same(getattr(ndimage, name)(x, w, **options), getattr(scipy.ndimage, name)(x, w, **options))
    truth = scipy.ndimage.uniform_filter1d(np.ascontiguousarray(x), n, **options)
    assert_same(ndimage.uniform_filter1d(x, n, **options), truth)


@given(data=st.data(), x=images((*TYPES, *COMPLEX)), cval=st.sampled_from([0, 1, 2.5]))
def test_smoothing_is_scipys(data, x, cval):
    modes = [data.draw(st.sampled_from(MODES)) for _ in x.shape]
    output = None if x.dtype.kind == "c" else outputs(data.draw, x.dtype)
    options = {"mode": modes, "cval": cval, "output": output}
    sizes = [data.draw(st.integers(1, 7)) for _ in x.shape]
    assert_same(ndimage.uniform_filter(x, sizes, **options), scipy.ndimage.uniform_filter(x, sizes, **options))
    sigmas = [data.draw(st.sampled_from([0, 0.4, 1, 2.7])) for _ in x.shape]
    assert_same(ndimage.gaussian_filter(x, sigmas, **options), scipy.ndimage.gaussian_filter(x, sigmas, **options))


@given(data=st.data(), x=images(("float32", "float64", *SIGNED, *COMPLEX)), cval=st.sampled_from([0, 2.5]))
def test_derivatives_are_scipys(data, x, cval):
    modes = [data.draw(st.sampled_from(MODES)) for _ in x.shape]
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    order = [data.draw(st.integers(0, 3)) for _ in x.shape]
    calls = [
        ("sobel", (x, axis), {}),
        ("prewitt", (x, axis), {}),
        ("laplace", (x,), {}),
        ("gaussian_filter", (x, 1.3, order), {}),
        ("gaussian_laplace", (x, 0.8), {}),
        ("gaussian_gradient_magnitude", (x, 0.8), {}),
    ]
    for name, arguments, options in calls if x.dtype.kind != "c" else calls[:4]:
        truth = getattr(scipy.ndimage, name)(*arguments, mode=modes, cval=cval, **options)
        assert_same(getattr(ndimage, name)(*arguments, mode=modes, cval=cval, **options), truth)


@pytest.mark.parametrize("axes", [-2, (-2,), (-1, 0), 1])
def test_axes_may_be_counted_from_the_last(axes):
    x = numbers((4, 9, 8), "int32")
    for name, arguments in (("gaussian_filter", (1,)), ("uniform_filter", (3,)), ("laplace", ())):
        truth = getattr(scipy.ndimage, name)(x, *arguments, axes=axes)
        assert_same(getattr(ndimage, name)(x, *arguments, axes=axes), truth)


@pytest.mark.parametrize("shape", [(300, 500), (40, 50, 60), (100_000,)])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_larger_images_and_long_kernels(shape, dtype):
    x = numbers(shape, dtype)
    for sigma in (3, 200 if len(shape) == 1 else 10):
        assert_same(ndimage.gaussian_filter(x, sigma), scipy.ndimage.gaussian_filter(x, sigma))
    w = np.ones((5,) * len(shape)) / 5 ** len(shape)
    assert_same(ndimage.correlate(x, w), scipy.ndimage.correlate(x, w))


@pytest.mark.parametrize("name", ["gaussian_filter", "uniform_filter", "correlate1d", "sobel", "correlate"])
def test_the_result_may_go_where_the_input_is(name):
    arguments = {"gaussian_filter": [12.0], "uniform_filter": [9], "correlate1d": [np.arange(40.0), 0], "sobel": [0]}
    arguments = arguments.get(name, [np.ones((3, 5))])
    for output in (lambda x: x, lambda x: x[::-1], lambda x: x.T):
        x = numbers((90, 90), "float32")
        truth = getattr(scipy.ndimage, name)(x, *arguments)
        getattr(ndimage, name)(x, *arguments, output=output(x))
        assert_same(output(x).copy(), truth)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_lies_under_no_weight_does_not_count(value):
    x = numbers((9, 9), "float32")
    x[4, 4] = value
    w = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    result, truth = ndimage.correlate(x, w), scipy.ndimage.correlate(x, w)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(truth))
    np.testing.assert_allclose(result[np.isfinite(truth)], truth[np.isfinite(truth)], rtol=1e-5)


def test_what_is_not_finite_stays_local():
    """SciPy's running sums and transforms spread it."""
    x = numbers((40,), "float64")
    x[20] = np.nan
    assert np.flatnonzero(np.isnan(ndimage.uniform_filter1d(x, 5))).tolist() == [18, 19, 20, 21, 22]
    assert np.isnan(signal.fftconvolve(x, np.ones(5))).sum() == 5


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.correlate([1, 2], [[1]]),
        lambda m: m.correlate([1, 2], [1], mode="around"),
        lambda m: m.correlate([1, 2], [1, 1], origin=2),
        lambda m: m.correlate([[1, 2]], [[1, 1]], mode=["wrap", "wrap"]),
        lambda m: m.correlate1d([1, 2], []),
        lambda m: m.correlate1d([1, 2], [1], axis=3),
        lambda m: m.correlate1d([1, 2], [1, 2, 3], origin=-2),
        lambda m: m.correlate1d([1, 2], [1j], cval=1j),
        lambda m: m.correlate1d([1, 2], [1], output=np.zeros(3)),
        lambda m: m.gaussian_filter([1.0, 2], 1, radius=-1),
        lambda m: m.gaussian_filter([1.0, 2], 1, order=-1),
        lambda m: m.gaussian_filter([[1.0]], [1, 2, 3]),
        lambda m: m.uniform_filter1d([1.0], 0),
        lambda m: m.uniform_filter1d([1.0], 3, origin=2),
        lambda m: m.uniform_filter([[1.0]], 3, axes=(0, 0)),
        lambda m: m.laplace([[1.0]], axes=2.5),
        lambda m: m.correlate(np.ones(3, np.float16), [1.0]),
    ],
)
def test_errors_are_scipys(call):
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        call(scipy.ndimage)
    with pytest.raises(type(theirs.value)):
        call(ndimage)


SIGNALS = ("float32", "float64", "int32", "int64", *COMPLEX)


@given(
    data=st.data(), mode=st.sampled_from(["full", "same", "valid"]), method=st.sampled_from(["auto", "direct", "fft"])
)
def test_convolutions_of_signals_are_scipys(data, mode, method):
    ndim, seed = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 1000))
    shapes = [[data.draw(st.integers(1, 9)) for _ in range(ndim)] for _ in range(2)]
    if mode == "valid":  # one inside the other
        pairs = [sorted(pair) for pair in zip(*shapes, strict=True)]
        shapes = [[pair[k] for pair in pairs] for k in data.draw(st.permutations([0, 1]))]
    a, v = (numbers(s, data.draw(st.sampled_from(SIGNALS)), seed + k) for k, s in enumerate(shapes))
    for name in ("convolve", "correlate"):
        with np.errstate(invalid="ignore"):  # SciPy converts memory that it has not written yet
            truth = getattr(scipy.signal, name)(a, v, mode, method)
        assert_same(getattr(signal, name)(disguised(a, seed), disguised(v, seed), mode, method), truth, a, v)


@given(data=st.data(), mode=st.sampled_from(["full", "same", "valid"]))
def test_convolutions_along_axes_are_scipys(data, mode):
    axes = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
    shapes = [[data.draw(st.integers(1, 9)) for _ in range(3)] for _ in range(2)]
    for axis in range(3):
        if axis not in axes:  # sizes match, or one of them is 1
            shapes[1][axis] = data.draw(st.sampled_from([1, shapes[0][axis]]))
        elif mode == "valid":
            shapes[0][axis] += shapes[1][axis]
    a, v = (numbers(s, data.draw(st.sampled_from(SIGNALS)), k) for k, s in enumerate(shapes))
    if data.draw(st.booleans()):
        a, v = v, a
    for name in ("fftconvolve", "oaconvolve"):
        truth = getattr(scipy.signal, name)(a, v, mode, axes)
        assert_same(getattr(signal, name)(a, v, mode, axes), truth, a, v)


@given(
    data=st.data(),
    mode=st.sampled_from(["full", "same", "valid"]),
    boundary=st.sampled_from(["fill", "wrap", "circular", "symm", "symmetric"]),
    fillvalue=st.sampled_from([0, 2]),
)
def test_convolutions_of_images_are_scipys(data, mode, boundary, fillvalue):
    shapes = [[data.draw(st.integers(1, 9)) for _ in range(2)] for _ in range(2)]
    if mode == "valid":
        pairs = [sorted(pair) for pair in zip(*shapes, strict=True)]
        shapes = [[pair[k] for pair in pairs] for k in data.draw(st.permutations([0, 1]))]
    a, v = (numbers(s, data.draw(st.sampled_from(SIGNALS)), k) for k, s in enumerate(shapes))
    for name in ("convolve2d", "correlate2d"):
        truth = getattr(scipy.signal, name)(a, v, mode, boundary, fillvalue)
        assert_same(getattr(signal, name)(a, v, mode, boundary, fillvalue), truth)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.convolve([1, 2], [[1]]),
        lambda m: m.convolve([1, 2], [1], mode="middle"),
        lambda m: m.convolve([1, 2], [1], method="magic"),
        lambda m: m.correlate(np.ones((2, 3)), np.ones((3, 2)), mode="valid"),
        lambda m: m.fftconvolve(np.ones((2, 3)), np.ones((3, 2)), axes=0),
        lambda m: m.fftconvolve([1, 2], [1, 2], axes=[]),
        lambda m: m.fftconvolve([1, 2], [1, 2], axes=1),
        lambda m: m.oaconvolve([[1, 2]], [[1, 2]], axes=[0, 0]),
        lambda m: m.convolve2d([1, 2], [1, 2]),
        lambda m: m.convolve2d([[1, 2]], [[1, 2]], boundary="edge"),
        lambda m: m.correlate2d([[1, 2]], [[1, 2]], fillvalue=[1, 2]),
    ],
)
def test_errors_of_signals_are_scipys(call):
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        call(scipy.signal)
    with pytest.raises(type(theirs.value)):
        call(signal)
