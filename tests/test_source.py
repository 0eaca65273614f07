"""What the source states about convolutions, checked: flips, symmetry, the theorem, shifts, Δ = 0, borders."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import numbers

from wherever.ops import conv, convolve, correlate

sizes = st.integers(1, 12)


@given(n=sizes, m=sizes, r=sizes, s=sizes)
def test_convolution_is_correlation_with_the_flipped_kernel(n, m, r, s):
    f, g = numbers((n, m), "float64"), numbers((r, s), "float64", 1)
    np.testing.assert_allclose(convolve(f, g), correlate(f, g[::-1, ::-1]), atol=1e-12)


@given(n=sizes, m=sizes, r=sizes, s=sizes)
def test_convolution_is_symmetric(n, m, r, s):
    """F * g = g * f."""
    f, g = numbers((n, m), "float64"), numbers((r, s), "float64", 1)
    np.testing.assert_allclose(convolve(f, g), convolve(g, f), atol=1e-12)


@given(n=sizes, r=sizes, m=sizes, s=sizes)
def test_the_convolution_theorem(n, m, r, s):
    """F * g = F^-1[F[f] F[g]]."""
    f, g = numbers((n, m), "float64"), numbers((r, s), "float64", 1)
    full = n + r - 1, m + s - 1
    product = np.fft.fft2(f, full) * np.fft.fft2(g, full)
    np.testing.assert_allclose(convolve(f, g), np.fft.ifft2(product).real, atol=1e-12)


@given(n=sizes, r=sizes)
def test_a_discrete_convolution_is_its_sum(n, r):
    """(f * g)(i) = sum over a of f(a) g(i - a)."""
    f, g = numbers((n,), "float64"), numbers((r,), "float64", 1)
    result = convolve(f, g)
    for i in range(n + r - 1):
        terms = [f[a] * g[i - a] for a in range(n) if 0 <= i - a < r]
        np.testing.assert_allclose(result[i], sum(terms), atol=1e-12)


@given(shift=st.tuples(st.integers(-5, 5), st.integers(-5, 5)), delta=st.integers(0, 3), seed=st.integers(0, 100))
def test_a_shift_of_the_input_is_a_shift_of_the_output(shift, delta, seed):
    x = numbers((3, 20, 24), "float64", seed)
    w = numbers((4, 3, 2 * delta + 1, 2 * delta + 1), "float64", seed + 1)

    def layer(x):
        return conv(x, w, padding="same", boundary="wrap")

    np.testing.assert_allclose(layer(np.roll(x, shift, (1, 2))), np.roll(layer(x), shift, (1, 2)), atol=1e-12)


@given(shift=st.integers(1, 5))
def test_with_a_border_the_shift_holds_inside(shift):
    """An object at the border: what enters there differs, what is a kernel's reach away does not."""
    x, w = numbers((1, 30), "float64"), numbers((1, 1, 5), "float64", 1)
    moved = np.zeros_like(x)
    moved[:, shift:] = x[:, :-shift]
    y, y_moved = conv(x, w, padding="same"), conv(moved, w, padding="same")
    np.testing.assert_allclose(y_moved[:, shift + 2 : -2], y[:, 2 : -shift - 2], atol=1e-12)
    assert not np.allclose(y_moved[:, -2:], y[:, -shift - 2 : -shift])


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_delta_zero_is_a_layer_of_an_mlp_at_every_pixel(spatial):
    """A kernel of one place multiplies the vector of channels at each pixel by one matrix."""
    x, v, u = numbers((5, *[6] * spatial), "float64"), numbers((7, 5), "float64", 1), numbers((7,), "float64", 2)
    y = conv(x, v.reshape(7, 5, *[1] * spatial), u)
    for pixel in np.ndindex(*[6] * spatial):
        np.testing.assert_allclose(y[(slice(None), *pixel)], v @ x[(slice(None), *pixel)] + u)


def test_an_object_at_the_border_is_seen_only_in_part():
    """Exercise 5: with zeros around, the response to half an object is half; continued, it depends on how."""
    image, template = np.zeros((1, 12)), np.ones((1, 1, 4))
    image[0, :2] = 1  # the right half of an object that is 4 wide
    inside = np.zeros((1, 12))
    inside[0, 4:8] = 1
    whole = conv(inside, template, padding="full").max()
    assert conv(image, template, padding="full").max() == whole / 2
    assert conv(image, template, padding="full", boundary="edge").max() == whole
    assert conv(image, template, padding="full", boundary="symmetric").max() == whole
