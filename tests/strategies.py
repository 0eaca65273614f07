"""Random convolution problems and arrays of every kind, and how results are compared with the reference."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import strategies as st

from wherever import reference
from wherever.engine.algorithms import Im2col
from wherever.problem import ConvProblem

FLOATS = ("float32", "float64", "complex64", "complex128")
DTYPES = (*FLOATS, "float16", "longdouble", "int8", "uint8", "int32", "uint16", "int64", "bool")
BOUNDARIES = ("zeros", "edge", "reflect", "symmetric", "wrap", "number")

# What a result may differ by, relative to the largest number of the reference.
TOLERANCE = {"float32": 8e-6, "complex64": 8e-6, "float64": 1e-14, "complex128": 1e-14, "float16": 1e-3}


# How many steps the reference may take in Python for a problem, and numbers that a problem may read or write.
STEPS, NUMBERS = 2000, 20_000


@st.composite
def channels(draw):
    """(groups, input and output channels of one) for layers of every kind: few channels and none, dense, depthwise."""
    few = st.sampled_from([1, 1, 2, 2, 3, 3, 0])
    dense = st.integers(1, 40)
    return draw(
        st.one_of(
            st.tuples(st.sampled_from([1, 1, 2, 3]), few, few),
            st.tuples(st.just(1), dense, dense),
            st.tuples(st.integers(2, 4), st.integers(1, 10), st.integers(1, 10)),
            st.tuples(dense, st.just(1), st.sampled_from([1, 1, 1, 2])),
            st.tuples(st.sampled_from([1, 1, 1, 3]), st.just(1), st.just(1)),
        )
    )


@st.composite
def problems(draw, directions=("forward", "transpose", "weight_gradient"), dtypes=DTYPES, boundaries=BOUNDARIES):
    """Problems of 1 to 4 dimensions, small enough for the reference; empty batches, channels and images among them.

    Half of them have neither stride nor dilation, half zeros outside, and half are of the types that kernels are
    generated for, since many algorithms take no others.
    """
    groups, group_in, group_out = draw(channels())
    spatial = draw(st.sampled_from([1, 1, 2, 2, 2, 2, 3, 3, 4]))
    batch = draw(st.sampled_from([1, 1, 1, 2, 2, 3, 3, 0]))
    ones = st.just((1,) * spatial)

    def each(low, high):
        return st.tuples(*[st.integers(low, high)] * spatial)

    kernel = list(draw(each(1, {1: 40, 2: 9, 3: 5, 4: 3}[spatial])))
    while groups * group_in * group_out * np.prod(kernel) > max(STEPS, groups * group_in * group_out):
        kernel[kernel.index(max(kernel))] = (max(kernel) + 1) // 2
    plain = draw(st.booleans())
    stride, dilation = draw(ones if plain else each(1, 3)), draw(ones if plain else each(1, 3))
    places = NUMBERS / (max(1, batch) * max(1, groups * max(group_in, group_out)))
    largest = min({1: 40, 2: 40, 3: 12, 4: 5}[spatial], max(3, int(places ** (1 / spatial))))
    size = draw(each(0 if draw(st.integers(0, 9)) == 0 else 1, largest))
    own = [name for name in dtypes if name in ("float32", "float64")]
    dtype = np.dtype(draw(st.sampled_from(own if own and draw(st.booleans()) else dtypes)))
    zeros = not min(size) or ("zeros" in boundaries and draw(st.booleans()))
    boundary = "zeros" if zeros else draw(st.sampled_from(boundaries))
    if boundary == "number":
        boundary = 2.5 if dtype.kind in "fc" else 1
    # At least as much padding as the kernel needs, so that every draw is a problem.
    extent = tuple((r - 1) * d + 1 for r, d in zip(kernel, dilation, strict=True))
    padding = []
    for n, e in zip(size, extent, strict=True):
        before, after = draw(st.integers(0, e + 1)), draw(st.integers(0, e + 1))
        padding.append((before, max(after, e - n - before)))
    layout = draw(st.sampled_from(["channels_first", "channels_last"]))
    return ConvProblem.from_shapes(
        (batch, groups * group_in, *size) if layout == "channels_first" else (batch, *size, groups * group_in),
        (groups * group_out, group_in, *kernel),
        dtype=dtype,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        boundary=boundary,
        layout=layout,
        direction=draw(st.sampled_from(directions)),
    )


@st.composite
def layer(draw, batches, groups, group_in, group_out, kernel, stride, dilation, larger, dtypes):
    """A layer with these channels and this kernel, on images up to so much larger than the kernel, of any boundary."""
    spatial = len(kernel)
    extent = tuple((r - 1) * d + 1 for r, d in zip(kernel, dilation, strict=True))
    size = tuple(e + draw(st.integers(0, larger[spatial])) for e in extent)
    boundary = draw(st.sampled_from(BOUNDARIES))
    layout = draw(st.sampled_from(["channels_first", "channels_last", "channels_last"]))
    batch, channels = draw(st.integers(1, batches)), groups * group_in
    return ConvProblem.from_shapes(
        (batch, channels, *size) if layout == "channels_first" else (batch, *size, channels),
        (groups * group_out, group_in, *kernel),
        dtype=draw(st.sampled_from(dtypes)),
        stride=stride,
        padding=draw(st.sampled_from([0, 1, "same", tuple((e - 1, 0) for e in extent), ((0, 2),) * spatial])),
        dilation=dilation,
        groups=groups,
        boundary=2.5 if boundary == "number" else boundary,
        layout=layout,
    )


def numbers(shape, dtype, seed=0):
    """Random numbers of one scale, of any dtype."""
    random, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return random.integers(max(info.min, -1000), min(info.max, 1000), shape, endpoint=True).astype(dtype)
    values = random.standard_normal(shape)
    if dtype.kind == "c":
        values = values + 1j * random.standard_normal(shape)
    return values.astype(dtype)


def disguised(array, seed=0):
    """The same numbers in another memory order, byte order, alignment, or read-only."""
    random = np.random.default_rng(seed)
    if array.ndim and random.integers(2):
        order = random.permutation(array.ndim)
        array = np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
    if array.size and random.integers(2):
        spread = np.zeros([2 * n for n in array.shape], array.dtype)[tuple(slice(None, None, 2) for _ in array.shape)]
        spread[...] = array
        array = spread[(slice(None, None, -1),) * array.ndim][(slice(None, None, -1),) * array.ndim]
    if random.integers(2):
        array = array.astype(array.dtype.newbyteorder())
    if random.integers(2):
        raw = np.zeros(array.size * array.dtype.itemsize + 1, np.uint8)
        shifted = raw[1:].view(array.dtype).reshape(array.shape)
        shifted[...] = array
        array = shifted
    array = array.view()
    array.flags.writeable = False
    return array


def bits(array):
    """The bytes of the numbers; of x87's extended precision without the six of padding, which may hold anything."""
    octets = np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8)
    if array.dtype in (np.longdouble, np.clongdouble) and np.finfo(array.dtype).nmant == 63:
        octets = octets.reshape(-1, np.dtype(np.longdouble).itemsize)[:, :10]
    return octets.tobytes()


def expected(problem, source, operand):
    """The reference's answer, in the widest type."""
    function = {
        "forward": reference.conv,
        "transpose": reference.transpose,
        "weight_gradient": reference.weight_gradient,
    }[problem.direction]
    return function(problem, source, operand)


def summed(problem, source, operand, bias=None):
    """The result in a wider type (float64 by BLAS, which the tests of all algorithms hold against the reference)."""
    wide = dataclasses.replace(problem, dtype=np.dtype("float64"))
    truth = np.empty(problem.result_shape)
    Im2col().prepare(wide, operand, bias).run(source, truth, 1)
    return truth


def assert_close(result, truth, dtype, least=0):
    """Within the accuracy promise for floats; equal, modulo the range of the type, for integers.

    ``least`` is how large results usually are: the few that there are may all be small by cancellation.
    """
    dtype = np.dtype(dtype)
    assert result.shape == truth.shape
    if dtype.kind == "b":
        np.testing.assert_array_equal(result, truth != 0)
    elif dtype.kind in "iu":
        modulus = 2 ** (8 * dtype.itemsize)
        assert all((int(a) - int(b)) % modulus == 0 for a, b in zip(result.flat, truth.flat, strict=True))
    elif truth.size:
        scale = max(np.abs(truth).max(), least) or 1
        error = np.abs(result - truth).max() / scale
        assert error <= TOLERANCE.get(dtype.name, 1e-16), f"error {error:.3g} of the largest result"
