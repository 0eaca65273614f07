"""The ladder against sums written out, dense least squares and the numbers of the source."""

from __future__ import annotations

import doctest
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherever import ladder
from wherever.ladder import Convolution, FullyConnected, Local, TranslationInvariant
from wherever.ladder import comparison as comparison_module
from wherever.ladder import layers as layers_module

MEGAPIXEL = (1000, 1000)


def rng_of(seed):
    return np.random.default_rng(seed)


seeds = st.integers(0, 2**32 - 1).map(rng_of)


@st.composite
def shape_pairs(draw, most=4):
    """Draw shapes of an image and of a hidden representation, in one to three dimensions."""
    n = draw(st.integers(1, 3))
    sizes = st.tuples(*[st.integers(1, most if n < 3 else 3)] * n)
    return draw(sizes), draw(sizes)


@st.composite
def deltas(draw, n):
    return draw(st.integers(0, 3) | st.tuples(*[st.integers(0, 3)] * n))


channel_pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def each(delta, n):
    return (delta,) * n if isinstance(delta, int) else delta


def positions(shape):
    return itertools.product(*map(range, shape))


def summed(V, centre, u, x, hidden):
    """H[i,d] = u[d] + Σ_a Σ_c V[a,c,d] X[i+a,c], term by term, and how many terms there were."""
    n, d = len(hidden), V.shape[-1]
    H, terms = np.empty((*hidden, d)), 0
    for i in positions(hidden):
        H[i] = u
        for p in positions(V.shape[:n]):
            pixel = tuple(at + index - zero for at, index, zero in zip(i, p, centre, strict=True))
            if all(0 <= k < size for k, size in zip(pixel, x.shape, strict=False)):
                H[i] += x[pixel] @ V[p]
                terms += V[p].size
    return H, terms


def random_fully_connected(rng, inputs, hidden, channels=None):
    c, d = ((channels[0],), (channels[1],)) if channels else ((), ())
    W = rng.standard_normal((*hidden, *d, *inputs, *c))
    return FullyConnected(W, rng.standard_normal((*hidden, *d)), channels=channels is not None)


def random_translation_invariant(rng, inputs, hidden):
    V = rng.standard_normal([h + n - 1 for h, n in zip(hidden, inputs, strict=True)])
    return TranslationInvariant(V, rng.standard_normal(), centre=[h - 1 for h in hidden])


def random_local(rng, reach):
    return Local(rng.standard_normal([2 * r + 1 for r in reach]), rng.standard_normal())


def random_convolution(rng, reach, channels):
    return Convolution(rng.standard_normal([*(2 * r + 1 for r in reach), *channels]), rng.standard_normal(channels[1]))


# ------------------------------------------------------------------------------------------------ W seen as V


@given(shape_pairs(), st.none() | channel_pairs, seeds)
def test_both_views_hold_the_same_weights(shapes, channels, rng):
    inputs, hidden = shapes
    layer = random_fully_connected(rng, inputs, hidden, channels)
    V = layer.to_offsets()
    W = layer.W
    seen = 0
    for i in positions(hidden):
        for k in positions(inputs):
            a = tuple(q - p for p, q in zip(i, k, strict=True))
            index = tuple(o + h - 1 for o, h in zip(a, hidden, strict=True))
            if channels:
                np.testing.assert_array_equal(V[i][(slice(None), *index)], W[i][(slice(None), *k)])
                np.testing.assert_array_equal(layer.at(i, a), W[i][(slice(None), *k)])
                seen += channels[0] * channels[1]
            else:
                assert V[i + index] == W[i + k] == layer.at(i, a)
                seen += 1
    # All of W was seen, and V holds nothing else.
    assert seen == W.size == np.count_nonzero(V)
    back = FullyConnected.from_offsets(V, layer.U, inputs, channels=channels is not None)
    np.testing.assert_array_equal(back.W, layer.W)
    np.testing.assert_array_equal(back.U, layer.U)


def test_offsets_that_lead_out_of_the_image_have_no_weight():
    layer = FullyConnected(np.ones((2, 3)), np.zeros(2))
    V = layer.to_offsets()
    np.testing.assert_array_equal(V, [[0, 1, 1, 1], [1, 1, 1, 0]])
    V[0, 0] = 5
    with pytest.raises(ValueError, match="not zero at 1 places outside the image"):
        FullyConnected.from_offsets(V, layer.U, 3)
    for position, offset in [((0,), (-1,)), ((1,), (2,)), ((-1,), (1,)), ((2,), (0,))]:
        with pytest.raises(IndexError, match="is outside"):
            layer.at(position, offset)


@given(shape_pairs(), st.none() | channel_pairs, seeds)
def test_fully_connected_is_the_sum_over_all_pixels(shapes, channels, rng):
    inputs, hidden = shapes
    layer = random_fully_connected(rng, inputs, hidden, channels)
    c, d = channels or (1, 1)
    x = rng.standard_normal(inputs + ((c,) if channels else ()))
    W, flat = layer.W.reshape(math.prod(hidden) * d, -1), x.ravel()
    expected = [sum(w * p for w, p in zip(row, flat, strict=True)) for row in W]
    np.testing.assert_allclose(layer(x), np.reshape(expected, layer.U.shape) + layer.U, atol=1e-12)


def test_fully_connected_to_units_without_a_place():
    rng = rng_of(0)
    layer = FullyConnected(rng.standard_normal((5, 3, 4)), rng.standard_normal(5))
    assert (layer.input_shape, layer.hidden_shape) == ((3, 4), (5,))
    x = rng.standard_normal((3, 4))
    np.testing.assert_allclose(layer(x), [np.sum(w * x) for w in layer.W] + layer.U)
    for step in (layer.to_offsets, lambda: TranslationInvariant.project(layer), lambda: Local.project(layer, 1)):
        with pytest.raises(ValueError, match="as many dimensions as the image"):
            step()


# --------------------------------------------------------------------- every rung: runs, counts, climbs up


@st.composite
def kernel_layers(draw):
    """Draw a layer with a kernel, the shapes to run it on, and the layer's kernel with channel axes."""
    inputs, hidden = draw(shape_pairs())
    rng, n = draw(seeds), len(inputs)
    kind = draw(st.sampled_from(["translation invariant", "any centre", "local", "convolution"]))
    if kind == "translation invariant":
        layer = random_translation_invariant(rng, inputs, hidden)
    elif kind == "any centre":
        sizes = draw(st.tuples(*[st.integers(1, 6)] * n))
        centre = [draw(st.integers(0, size - 1)) for size in sizes]
        layer = TranslationInvariant(rng.standard_normal(sizes), 0.5, centre=centre)
    elif kind == "local":
        layer = random_local(rng, each(draw(deltas(n)), n))
    else:
        layer = random_convolution(rng, each(draw(deltas(n)), n), draw(channel_pairs))
    V = layer.V if kind == "convolution" else layer.V[..., None, None]
    x = rng.standard_normal((*inputs, V.shape[-2]))
    return layer, inputs, hidden, V, x


@given(kernel_layers())
def test_a_rung_is_its_equation_and_equals_its_fully_connected_layer(case):
    layer, inputs, hidden, V, x = case
    channels = isinstance(layer, Convolution)
    expected, terms = summed(V, layer.centre, layer.u, x, hidden)
    given_x = x if channels else x[..., 0]
    expected = expected if channels else expected[..., 0]
    np.testing.assert_allclose(layer(given_x, hidden), expected, atol=1e-10)

    full = layer.fully_connected(inputs, hidden)
    assert (full.input_shape, full.hidden_shape, full.channels) == (inputs, hidden, channels)
    np.testing.assert_allclose(full(given_x), expected, atol=1e-10)

    count = layer.count(inputs, hidden)
    assert count.multiply_adds == terms
    assert count.multiply_adds_upper == math.prod(hidden) * V.size
    assert (count.weights, count.biases) == (V.size, V.shape[-1])
    assert (count.input_values, count.hidden_values) == (x.size, expected.size)
    assert count.bytes("float64") == layer.V.nbytes + 8 * V.shape[-1]
    assert count.bytes_to_run("float64") == count.bytes("float64") + x.nbytes + expected.nbytes
    assert layer.energy(inputs, hidden) == pytest.approx(full.energy(), rel=1e-12)


@given(shape_pairs(), deltas(1), channel_pairs, seeds)
def test_a_description_counts_what_the_layer_counts(shapes, delta, channels, rng):
    (inputs, hidden), n = shapes, len(shapes[0])
    reach = each(delta, 1) * n
    full = random_fully_connected(rng, inputs, hidden, channels)
    count = FullyConnected.describe(inputs, hidden, channels)
    assert full.count() == count
    assert (count.weights, count.biases, count.parameters) == (full.W.size, full.U.size, full.W.size + full.U.size)
    assert count.multiply_adds == count.multiply_adds_upper == full.W.size
    layer = random_translation_invariant(rng, inputs, hidden)
    assert TranslationInvariant.describe(inputs, hidden) == layer.count(inputs, hidden)
    # Every pixel is seen from every position, as before: what translation invariance saves is weights.
    assert layer.count(inputs, hidden).multiply_adds == math.prod(inputs) * math.prod(hidden)
    assert Local.describe(inputs, hidden, delta=reach) == random_local(rng, reach).count(inputs, hidden)
    convolution = random_convolution(rng, reach, channels)
    assert Convolution.describe(inputs, hidden, delta=reach, channels=channels) == convolution.count(inputs, hidden)


@given(kernel_layers(), st.integers(-2, 2))
def test_a_shift_of_the_image_is_a_shift_of_the_hidden_representation(case, shift):
    layer, _, _, V, x = case
    n = x.ndim - 1
    # Zeros around the image, as far as the kernel and the shift reach, keep borders out of it.
    room = [(size + 2, size + 2) for size in V.shape[:n]]
    x = np.pad(x, [*room, (0, 0)])
    x = x if isinstance(layer, Convolution) else x[..., 0]
    axes = tuple(range(n))
    shifts = (shift,) * n
    np.testing.assert_allclose(layer(np.roll(x, shifts, axes)), np.roll(layer(x), shifts, axes), atol=1e-12)


@given(shape_pairs(), channel_pairs, seeds)
def test_delta_zero_is_a_fully_connected_layer_over_the_channels_at_every_pixel(shapes, channels, rng):
    inputs, _ = shapes
    layer = random_convolution(rng, (0,) * len(inputs), channels)
    M = layer.V.reshape(channels)
    over_channels = FullyConnected(M.T, layer.u)
    x = rng.standard_normal((*inputs, channels[0]))
    H = layer(x)
    for i in positions(inputs):
        np.testing.assert_allclose(H[i], over_channels(x[i]), atol=1e-12)


@given(shape_pairs(), channel_pairs, seeds)
def test_a_convolution_is_a_local_layer_for_each_pair_of_channels(shapes, channels, rng):
    inputs, _ = shapes
    layer = random_convolution(rng, (1,) * len(inputs), channels)
    x = rng.standard_normal((*inputs, channels[0]))
    H = layer(x)
    for d in range(channels[1]):
        expected = layer.u[d] + sum(layer.pair(c, d)(x[..., c]) for c in range(channels[0]))
        np.testing.assert_allclose(H[..., d], expected, atol=1e-12)


def test_types_of_images_and_weights():
    kernel = Local(np.ones((3, 3), np.float32))
    assert kernel(np.ones((4, 4), np.uint8)).dtype == np.float32
    assert kernel(np.ones((4, 4))).dtype == np.float64
    assert Local([1, 2, 3]).V.dtype == np.float64
    full = kernel.fully_connected((4, 4))
    assert full.W.dtype == full.U.dtype == np.float32
    assert full(np.ones((4, 4), np.uint8)).dtype == np.float32
    assert TranslationInvariant.project(full).layer.V.dtype == np.float32
    x = np.arange(16, dtype=np.uint8).reshape(4, 4)
    x.flags.writeable = False
    np.testing.assert_array_equal(kernel(x), full(x))


def real_and_complex(u):
    """Give a layer of each rung whose weights are real and whose bias is u."""
    V = rng_of(3).standard_normal((3, 3), dtype=np.float32)
    return [
        TranslationInvariant(V, u),
        Local(V, u),
        Convolution(V[..., None, None], u),
        Convolution(V[..., None, None], [u]),
        FullyConnected(np.tile(V.reshape(9), (4, 4, 1)).reshape(4, 4, 3, 3), np.full((4, 4), u)),
    ]


def test_a_complex_bias_makes_real_weights_complex():
    for real, layer in zip(real_and_complex(2.0), real_and_complex(2.0 + 3.0j), strict=True):
        weights, bias = (layer.W, layer.U) if isinstance(layer, FullyConnected) else (layer.V, layer.u)
        assert weights.dtype == bias.dtype == np.complex64  # the precision stays that of the weights
        size = (3, 3) if isinstance(layer, FullyConnected) else (4, 5)
        x = rng_of(4).standard_normal(size + (1,) * isinstance(layer, Convolution))
        np.testing.assert_allclose(layer(x), real(x) + 3.0j, rtol=1e-6)
        if not isinstance(layer, FullyConnected):
            np.testing.assert_allclose(layer.fully_connected((4, 5))(x), layer(x), rtol=1e-6)
    assert Local(np.ones(3), 1j).V.dtype == np.complex128
    assert Local(np.ones(3, np.complex64), 1.5).u == np.complex64(1.5)
    both = FullyConnected.from_offsets(np.ones((1, 2)), [1j], 2)
    assert both.U.dtype == both.W.dtype == np.complex128
    assert both.U[0] == 1j


def test_shapes_are_numbers_or_any_iterable_of_numbers():
    layer = Local(np.ones((3, 3)))
    full = layer.fully_connected((4, 5), (2, 3))
    for make in (np.array, list, iter, lambda sizes: (size for size in sizes)):
        assert layer.count(make([4, 5])) == layer.count((4, 5))
        assert layer.energy((4, 5), make([2, 3])) == layer.energy((4, 5), (2, 3))
        assert layer(np.ones((4, 5)), make([2, 3])).shape == (2, 3)
        np.testing.assert_array_equal(layer.fully_connected(make([4, 5]), make([2, 3])).W, full.W)
        assert Local.project(full, make([1, 0])).layer.delta == (1, 0)
        assert full.at(make([1, 1]), make([0, 1])) == full.at((1, 1), (0, 1)) == 1
        assert TranslationInvariant(np.ones((4, 4)), centre=make([1, 2])).centre == (1, 2)
        got = Convolution.describe(make([4, 5]), make([2, 3]), delta=make([1, 2]), channels=make([3, 2]))
        assert got == Convolution.describe((4, 5), (2, 3), delta=(1, 2), channels=(3, 2))
        table = ladder.table(make([4, 5]), make([2, 3]), make([1, 2]), make([3, 2]), measure=False)
        expected = ladder.table((4, 5), (2, 3), (1, 2), (3, 2), measure=False)
        # What is free changes from one moment to the next.
        assert replace(table, available=None) == replace(expected, available=None)
    for number in (4, np.int64(4), np.array(4)):
        assert Local.describe(number, delta=number) == Local.describe((4,), delta=(4,))
        assert Local.describe((6, 7), delta=number) == Local.describe((6, 7), delta=(4, 4))


def test_full_size_translation_invariance_on_a_real_megapixel():
    pytest.importorskip("skimage")
    pixels, says = comparison_module._picture(MEGAPIXEL)
    assert "retina" in says
    x = pixels.mean(axis=-1).astype(np.float32)
    V = rng_of(7).standard_normal((1999, 1999), dtype=np.float32)
    layer = TranslationInvariant(V, 3.0)
    H = layer(x)
    assert H.shape == MEGAPIXEL
    scale = np.abs(H).max()
    for i, j in [(0, 0), (999, 999), (0, 999), (500, 500), (123, 876)]:
        seen = V[999 - i : 1999 - i, 999 - j : 1999 - j]
        exact = 3.0 + np.vdot(seen.astype(np.float64), x.astype(np.float64))
        assert abs(H[i, j] - exact) < 8e-6 * scale


# --------------------------------------------------------------------------------------------- stepping down


def basis_of_kernels(inputs, hidden, offsets):
    """Write the layer that has weight 1 at one of the offsets and 0 elsewhere as a column, for each offset."""
    columns = []
    for a in offsets:
        W = np.zeros(hidden + inputs)
        for i in positions(hidden):
            k = tuple(p + o for p, o in zip(i, a, strict=True))
            if all(0 <= q < size for q, size in zip(k, inputs, strict=True)):
                W[i + k] = 1
        columns.append(W.ravel())
    return np.array(columns).T


def offsets_between(inputs, hidden, reach=None):
    ranges = [range(1 - h, n) for h, n in zip(hidden, inputs, strict=True)]
    every = list(itertools.product(*ranges))
    return every if reach is None else [a for a in every if all(abs(o) <= r for o, r in zip(a, reach, strict=True))]


@given(shape_pairs(most=3), seeds)
def test_the_step_to_translation_invariance_solves_least_squares(shapes, rng):
    inputs, hidden = shapes
    layer = random_fully_connected(rng, inputs, hidden)
    step = TranslationInvariant.project(layer)
    columns = basis_of_kernels(inputs, hidden, offsets_between(inputs, hidden))
    best, *_ = np.linalg.lstsq(columns, layer.W.ravel(), rcond=None)
    np.testing.assert_allclose(step.layer.V.ravel(), best, atol=1e-12)
    residual = layer.W.ravel() - columns @ best
    np.testing.assert_allclose(columns.T @ residual, 0, atol=1e-12)
    assert step.lost == pytest.approx(residual @ residual, rel=1e-10, abs=1e-20)
    assert step.energy == pytest.approx(np.sum(layer.W**2))
    # For the biases the nearest constant is the mean.
    assert step.layer.u == pytest.approx(layer.U.mean())
    assert step.bias_lost == pytest.approx(np.sum((layer.U - layer.U.mean()) ** 2), abs=1e-20)
    assert step.bias_energy == pytest.approx(np.sum(layer.U**2))


@given(shape_pairs(most=3), st.data(), seeds)
def test_both_steps_at_once_solve_least_squares(shapes, data, rng):
    inputs, hidden = shapes
    reach = each(data.draw(deltas(len(inputs))), len(inputs))
    layer = random_fully_connected(rng, inputs, hidden)
    step = Local.project(layer, reach)
    columns = basis_of_kernels(inputs, hidden, offsets_between(inputs, hidden, reach))
    best, *_ = np.linalg.lstsq(columns, layer.W.ravel(), rcond=None)
    nearest = columns @ best
    np.testing.assert_allclose(step.layer.fully_connected(inputs, hidden).W.ravel(), nearest, atol=1e-12)
    assert step.lost == pytest.approx(np.sum((layer.W.ravel() - nearest) ** 2), rel=1e-10, abs=1e-20)


@given(shape_pairs(), st.none() | channel_pairs, st.data(), seeds)
def test_what_is_lost_is_orthogonal_to_the_rung_and_energies_add_up(shapes, channels, data, rng):
    inputs, hidden = shapes
    reach = each(data.draw(deltas(len(inputs))), len(inputs))
    layer = random_fully_connected(rng, inputs, hidden, channels)
    if channels:
        step, other = Convolution.project(layer, reach), random_convolution(rng, reach, channels)
    else:
        step, other = Local.project(layer, reach), random_local(rng, reach)
    nearest, other = (rung.fully_connected(inputs, hidden) for rung in (step.layer, other))
    lost = layer.W - nearest.W
    assert np.vdot(lost, other.W) == pytest.approx(0, abs=1e-10)
    assert np.vdot(layer.U - nearest.U, other.U) == pytest.approx(0, abs=1e-10)
    assert step.lost == pytest.approx(np.sum(lost**2), rel=1e-10, abs=1e-20)
    assert step.energy == pytest.approx(step.lost + nearest.energy(), rel=1e-12)
    assert step.bias_energy == pytest.approx(step.bias_lost + np.sum(nearest.U**2), rel=1e-12)
    assert 0 <= step.share_lost <= 1
    assert 0 <= step.bias_share_lost <= 1
    # No other layer of the rung is nearer.
    assert np.sum((layer.W - other.W) ** 2) >= step.lost - 1e-12


@given(shape_pairs(), st.data(), seeds)
def test_one_step_after_the_other_is_both_at_once(shapes, data, rng):
    inputs, hidden = shapes
    reach = each(data.draw(deltas(len(inputs))), len(inputs))
    layer = random_fully_connected(rng, inputs, hidden)
    first = TranslationInvariant.project(layer)
    second = Local.project(first.layer, reach, input_shape=inputs, hidden_shape=hidden)
    both = Local.project(layer, reach)
    np.testing.assert_array_equal(second.layer.V, both.layer.V)
    assert second.layer.u == both.layer.u
    assert first.lost + second.lost == pytest.approx(both.lost, rel=1e-12, abs=1e-20)
    assert second.energy == pytest.approx(first.energy - first.lost, rel=1e-9, abs=1e-12)
    convolution = Convolution.project(layer, reach)
    np.testing.assert_array_equal(convolution.layer.V[..., 0, 0], both.layer.V)
    assert (convolution.lost, convolution.bias_lost) == (both.lost, both.bias_lost)


@given(kernel_layers())
def test_a_layer_on_the_rung_is_returned_and_loses_nothing(case):
    layer, inputs, hidden, V, _ = case
    full = layer.fully_connected(inputs, hidden)
    if isinstance(layer, TranslationInvariant):
        step = TranslationInvariant.project(full)
    else:
        step = type(layer).project(full, layer.delta)
        again = type(layer).project(layer, layer.delta, input_shape=inputs, hidden_shape=hidden)
        np.testing.assert_array_equal(again.layer.V, layer.V)
        np.testing.assert_array_equal(again.layer.u, layer.u)
        assert again.lost == again.bias_lost == 0
    # Offsets that never occur in the image cannot come back from the fully connected layer; the layers are equal on it.
    np.testing.assert_allclose(step.layer.fully_connected(inputs, hidden).W, full.W, atol=1e-14)
    np.testing.assert_allclose(step.layer.u, layer.u, atol=1e-14)
    assert step.lost == pytest.approx(0, abs=1e-25 + 1e-28 * V.size)
    assert step.bias_lost == pytest.approx(0, abs=1e-25)


@given(shape_pairs(), channel_pairs, seeds)
def test_each_pair_of_channels_is_projected_by_itself(shapes, channels, rng):
    inputs, hidden = shapes
    n = len(inputs)
    layer = random_fully_connected(rng, inputs, hidden, channels)
    step = Convolution.project(layer, 1)
    lost = 0.0
    for c, d in itertools.product(range(channels[0]), range(channels[1])):
        one = FullyConnected(layer.W[(*[slice(None)] * n, d, ..., c)], layer.U[..., d])
        alone = Local.project(one, 1)
        np.testing.assert_allclose(step.layer.V[..., c, d], alone.layer.V, atol=1e-14)
        assert step.layer.u[d] == pytest.approx(alone.layer.u)
        lost += alone.lost
    assert step.lost == pytest.approx(lost, rel=1e-12, abs=1e-20)


def test_the_share_lost_of_random_weights_is_that_of_the_degrees_of_freedom():
    # Independent weights have no direction; a subspace of 7 dimensions of 16 keeps 7/16 of their energy on average.
    shares = [
        TranslationInvariant.project(random_fully_connected(rng_of(s), (4,), (4,))).share_lost for s in range(400)
    ]
    assert np.mean(shares) == pytest.approx(9 / 16, abs=0.02)


def test_a_layer_of_zeros_loses_no_share():
    step = Local.project(FullyConnected(np.zeros((3, 3)), np.zeros(3)), 0)
    assert (step.share_lost, step.bias_share_lost) == (0, 0)


# ------------------------------------------------------------------------------------- the numbers of the source


def test_the_numbers_of_the_source():
    cats_and_dogs = FullyConnected.describe(MEGAPIXEL, 1000)
    assert cats_and_dogs.weights == 10**9
    assert cats_and_dogs.bytes() == 4 * (10**9 + 1000)
    full = FullyConnected.describe(MEGAPIXEL, MEGAPIXEL)
    assert (full.weights, full.biases, full.multiply_adds) == (10**12, 10**6, 10**12)
    invariant = TranslationInvariant.describe(MEGAPIXEL)
    assert (invariant.weights, invariant.biases) == (1999**2, 1)
    assert (invariant.multiply_adds, invariant.multiply_adds_upper) == (10**12, 10**6 * 1999**2)
    local = Local.describe(MEGAPIXEL, delta=10)
    assert (local.weights, local.multiply_adds_upper) == (441, 441 * 10**6)
    assert local.multiply_adds == (21 * 1000 - 10 * 11) ** 2
    convolution = Convolution.describe(MEGAPIXEL, delta=10, channels=(3, 16))
    assert (convolution.weights, convolution.biases) == (441 * 3 * 16, 16)


def test_the_table_has_the_numbers_of_the_source():
    table = ladder.table(measure=False)
    assert [row.count.weights for row in table.rows] == [10**9, 10**12, 1999**2, 441, 441 * 48]
    assert [row.source for row in table.rows] == [10**9, 10**12, 4 * 10**6, 400, None]
    assert [row.seconds for row in table.rows] == [None] * 5
    assert table.picture == ""
    assert table.rows[1].bytes == 4 * (10**12 + 10**6)
    printed = str(table)
    for text in ("10^9", "10^12", "3,996,001", "4·10^6", "441", "400", "21,168", "4 TB", "1.77 kB", "4.36·10^8"):
        assert text in printed


def test_the_table_says_what_fits(monkeypatch):
    monkeypatch.setattr(comparison_module, "available_memory", lambda: 1_000_000)
    table = ladder.table((40, 40), units=10, delta=2, channels=(1, 2))
    assert [row.fits for row in table.rows] == [True, False, True, True, True]
    assert [row.seconds is None for row in table.rows] == [False, True, False, False, False]
    assert "needs 10.3 MB" in str(table)
    assert "1 MB" in table.caption()
    # It fits, but not with room to work in.
    monkeypatch.setattr(comparison_module, "available_memory", lambda: 75_000)
    table = ladder.table((40, 40), units=10, delta=2, channels=(1, 2))
    assert (table.rows[0].fits, table.rows[0].seconds) == (True, None)
    assert table.rows[0].note in str(table)
    assert "to work in" in table.rows[0].note
    monkeypatch.setattr(comparison_module, "available_memory", lambda: None)
    assert [row.fits for row in ladder.table((4, 4), measure=False).rows] == [None] * 5


@pytest.mark.parametrize(
    ("image", "hidden", "delta", "formula"),
    [
        (30, 20, 3, "V[a]"),
        ((12, 9), None, (1, 2), "V[a,b]"),
        ((4, 5, 6), (3, 3, 3), 1, "V[a1,a2,a3]"),
        ((2, 3, 2, 2), None, 0, "V[a1,a2,a3,a4]"),
    ],
)
def test_the_table_in_any_number_of_dimensions(image, hidden, delta, formula):
    told = []
    table = ladder.table(image, hidden, delta, (2, 3), units=7, progress=told.append)
    assert all(row.seconds > 0 for row in table.rows)
    assert told == [row.name for row in table.rows]
    assert table.rows[2].formula == formula
    inputs = image if isinstance(image, tuple) else (image,)
    assert table.rows[0].count.weights == math.prod(inputs) * 7
    if len(inputs) != 2:
        assert table.picture == "noise"


def test_the_table_as_json():
    table = ladder.table((6, 5), delta=1, measure=False)
    content = json.loads(table.to_json())
    assert content["image"] == [6, 5]
    assert [row["count"]["weights"] for row in content["rows"]] == [30_000, 900, 99, 9, 9 * 48]
    assert content["rows"][4]["count"]["parameters"] == 9 * 48 + 16
    assert content["rows"][1]["name"] == "fully connected"


def test_a_given_picture():
    table = ladder.table((6, 5), delta=1, image_data=rng_of(0).integers(0, 255, (6, 5, 3), dtype=np.uint8))
    assert table.picture == "the given image"
    assert ladder.table((6, 5), image_data=np.ones((6, 5)), units=3).rows[4].seconds > 0
    for wrong in (np.ones((5, 6)), np.ones((6, 5, 3, 1)), np.ones((6, 5), complex)):
        with pytest.raises(ValueError, match="image_data has shape"):
            ladder.table((6, 5), image_data=wrong)


def test_pictures_are_cut_or_resized():
    pytest.importorskip("skimage")
    cut, says = comparison_module._picture((30, 40))
    assert cut.shape == (30, 40, 3)
    assert "middle 30x40" in says
    resized, says = comparison_module._picture((1500, 20))
    assert resized.shape == (1500, 20, 3)
    assert "resized" in says


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_plot(tmp_path, ending):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"ladder.{ending}"
    ladder.table(measure=False).plot(path)
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[ending]
    assert path.read_bytes().startswith(start)


# ------------------------------------------------------------------------------------------------------- errors


def test_climbing_names_the_bytes_it_needs():
    with pytest.raises(MemoryError, match=r"1000x1000 -> 1000x1000.* needs 4000004000000 bytes \(4 TB\)"):
        Local(np.ones((3, 3), np.float32)).fully_connected(MEGAPIXEL)


def test_climbing_stops_before_the_memory_is_full(monkeypatch):
    monkeypatch.setattr(layers_module, "available_memory", lambda: 100)
    layer = Local(np.ones(3))
    with pytest.raises(MemoryError, match="needs 160 bytes"):
        layer.fully_connected(4)
    assert layer.fully_connected(3).W.size == 9


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: FullyConnected(np.ones((2, 3)), np.ones(3)),
            ValueError,
            r"W has shape \(2, 3\) and U \(3,\)|U has shape",
        ),
        (lambda: FullyConnected(np.ones(2), np.ones(2)), ValueError, r"\*hidden, \*input"),
        (lambda: FullyConnected(np.ones((2, 0)), np.ones(2)), ValueError, "no size zero"),
        (lambda: FullyConnected(np.ones((2, 3)), np.ones(2), channels=True), ValueError, "with channels"),
        (lambda: FullyConnected(np.array(["a"]), np.ones(1)), TypeError, "weights must be numbers"),
        (lambda: FullyConnected(np.ones((2, 3)), np.ones(2))(np.ones(2)), ValueError, r"x has shape \(2,\)"),
        (lambda: FullyConnected.from_offsets(np.ones((2, 3)), np.ones(2), (2, 2)), ValueError, "must agree"),
        (lambda: FullyConnected.from_offsets(np.ones((2, 3)), np.ones(2), 3), ValueError, r"need \(2, 4\)"),
        (lambda: TranslationInvariant(np.ones((3, 4))), ValueError, "no middle; give centre"),
        (lambda: TranslationInvariant(np.ones(4), centre=[4]), ValueError, "centre is"),
        (lambda: TranslationInvariant(np.ones(4), centre=[1, 1]), ValueError, "centre is"),
        (lambda: TranslationInvariant.project(Local(np.ones(3))), TypeError, "FullyConnected"),
        (lambda: Local(np.ones((3, 2))), ValueError, "must be odd"),
        (lambda: Local(np.ones((3, 3)))(np.ones(3)), ValueError, "2 spatial dimensions"),
        (lambda: Local(np.ones((3, 3)))(np.ones((3, 0))), ValueError, r"x has shape \(3, 0\)"),
        (lambda: Local(np.ones(3)).count((4, 4)), ValueError, "1 dimension"),
        (lambda: Local(np.ones(3)).count(0), ValueError, "input_shape: .* at least 1"),
        (lambda: Local(np.ones(3)).count(2.5), TypeError, "input_shape: expected an integer, got 2.5"),
        (lambda: Local.describe((4, 4), delta=-1), ValueError, "delta: .* at least 0"),
        (lambda: Local.describe((4, 4), delta=(1, 1, 1)), ValueError, "one for each of 2"),
        (lambda: Local.project(Local(np.ones(3)), 1), ValueError, "input_shape is missing"),
        (lambda: Local.project(Convolution(np.ones((3, 1, 1))), 1, input_shape=3), ValueError, "Convolution.project"),
        (lambda: Convolution(np.ones((3, 3))), ValueError, "at least one spatial axis"),
        (lambda: Convolution(np.ones((3, 2, 4)), np.ones(2)), ValueError, "one for each of d = 4"),
        (lambda: Convolution(np.ones((3, 2, 4)))(np.ones((5, 3))), ValueError, "2 channels as its last axis"),
        (lambda: Convolution.describe(4, delta=1, channels=(0, 1)), ValueError, "channels: .* at least 1"),
        (lambda: Convolution.describe(4, delta=1, channels=(1, 2, 3)), ValueError, "two numbers"),
        (lambda: Convolution.describe(4, delta=1, channels=3), ValueError, "channels is 3; it must be two numbers"),
        (lambda: Local(np.ones((3, 3)), np.ones(3)), ValueError, r"u has shape \(3,\); it must be one number"),
        (lambda: Local(np.ones((3, 3)), [1.0]), ValueError, r"u has shape \(1,\); it must be one number"),
        (lambda: TranslationInvariant(np.ones(3), np.ones(3)), ValueError, r"u has shape \(3,\)"),
        (lambda: TranslationInvariant(np.ones(4), [1, 2], centre=[0]), ValueError, r"u has shape \(2,\)"),
        (lambda: Local(np.ones(3), None), TypeError, "u must be numbers; given dtype object"),
        (lambda: Local(np.ones(3), "1"), TypeError, "u must be numbers"),
        (lambda: Convolution(np.ones((3, 1, 1)), ["1"]), TypeError, "u must be numbers"),
        (lambda: FullyConnected(np.ones((2, 3)), [None, None]), TypeError, "U must be numbers"),
        (lambda: ladder.table((4, 4), hidden=4), ValueError, "equally many dimensions"),
        (lambda: ladder.table((4, 4), dtype="int32"), ValueError, "floating dtype"),
        (lambda: ladder.table((4, 4), units=0), ValueError, "units: .* at least 1"),
    ],
)
def test_errors_say_what_was_given_and_what_is_possible(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_projecting_with_channels_asks_for_the_rung_that_has_them():
    layer = random_fully_connected(rng_of(0), (3,), (3,), (2, 2))
    for step in (lambda: TranslationInvariant.project(layer), lambda: Local.project(layer, 1)):
        with pytest.raises(ValueError, match=r"Convolution\.project"):
            step()
    with pytest.raises(ValueError, match="those of the fully connected layer"):
        Convolution.project(layer, 1, input_shape=3)


# ---------------------------------------------------------------------------------------------- the page that runs


def test_the_page_runs():
    page = (Path(__file__).parents[1] / "docs" / "ladder.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(code, {}, "ladder.md", "docs/ladder.md", 0)
    assert len(test.examples) > 20
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.append)
    assert not said, "".join(said)
