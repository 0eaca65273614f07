"""Kernels that are sums of a few products of 1-D kernels: found when the weights are, and only where that is faster."""

import numpy as np
import pytest
from strategies import assert_close, bits, numbers

from wherever import ops
from wherever.engine.algorithms import Im2col
from wherever.engine.algorithms.separable import Separable, SeparablePrepared, preferred
from wherever.engine.plan import choose
from wherever.problem import ConvProblem

PROBLEM = ConvProblem.from_shapes((1, 1, 1000, 1000), (1, 1, 15, 15), padding=7, boundary="reflect")

pytestmark = pytest.mark.skipif(Separable().refuses(PROBLEM) is not None, reason="needs generated kernels")


def of_rank(rank, dtype="float32"):
    """A kernel that is a sum of so many products."""
    u, v = numbers((rank, 15), "float64", 1), numbers((rank, 15), "float64", 2)
    return np.einsum("ri,rj->ij", u, v).astype(dtype)[None, None]


def summed(x, w):
    out = np.empty(PROBLEM.y_shape, np.float64)
    wide = ConvProblem.from_shapes(x.shape, w.shape, padding=7, boundary="reflect", dtype="float64")
    Im2col().prepare(wide, w).run(x, out, 1)
    return out


@pytest.mark.parametrize("prepared", [True, False])
def test_a_product_is_separated_and_any_other_kernel_is_not(prepared):
    choice = choose(PROBLEM, prepared=prepared)
    assert isinstance(choice.prepare(of_rank(1)), SeparablePrepared)
    assert not isinstance(choice.prepare(of_rank(15)), SeparablePrepared)
    assert not isinstance(choice.prepare(numbers(PROBLEM.w_shape, "float32")), SeparablePrepared)


def test_a_convolution_tells_what_its_weights_are_computed_by():
    plan = ops.plan(PROBLEM.x_shape, PROBLEM.w_shape, padding=PROBLEM.padding, boundary=PROBLEM.boundary)
    for w, name in ((of_rank(1), "separable"), (numbers(PROBLEM.w_shape, "float32"), plan.algorithm)):
        f = plan.prepare(w)
        assert f.algorithm == name
        assert name in repr(f)


def test_strict_precision_leaves_no_term_out():
    assert not isinstance(choose(PROBLEM, precision="strict").prepare(of_rank(1)), SeparablePrepared)


def test_a_fast_competitor_is_not_left():
    assert preferred(PROBLEM, of_rank(1), 1.0)
    assert not preferred(PROBLEM, of_rank(1), 1e-6)
    assert preferred(PROBLEM, of_rank(4), 1.0)


def test_what_is_almost_a_product_keeps_the_promise():
    """Noise far above rounding is not left out; noise far below may be."""
    x = numbers(PROBLEM.x_shape, "float32", 3)
    for noise in (1e-2, 1e-4, 1e-6, 1e-8):
        w = of_rank(1) * (1 + noise * numbers(PROBLEM.w_shape, "float32", 4))
        y = ops.conv(x, w, padding=7, boundary="reflect")
        assert_close(y, summed(x, w), "float32")
        again = ops.plan(x.shape, w.shape, padding=7, boundary="reflect", threads=3).prepare(w)(x)
        assert_close(again, summed(x, w), "float32")


def test_threads_and_prepared_weights_give_the_same_bits():
    x, w = numbers(PROBLEM.x_shape, "float32", 3), of_rank(1)
    options = {"padding": 7, "boundary": "reflect"}
    y = ops.conv(x, w, **options)
    for threads in (1, 2, 5):
        plan = ops.plan(x.shape, w.shape, threads=threads, prepared=False, **options)
        assert bits(plan.prepare(w)(x)) == bits(y)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_stay_where_they_are(number):
    x, w = numbers(PROBLEM.x_shape, "float32", 3), of_rank(1)
    truth = ops.conv(x, w, padding=7, boundary="reflect")
    x[0, 0, 100, 200] = number
    y = ops.conv(x, w, padding=7, boundary="reflect")
    seen = np.zeros(y.shape, bool)
    seen[0, 0, 93:108, 193:208] = True
    assert not np.isfinite(y[seen]).any()
    np.testing.assert_allclose(y[~seen], truth[~seen], rtol=0, atol=8e-6 * np.abs(truth).max())
    w[0, 0, 3, 4] = number
    assert not isinstance(choose(PROBLEM).prepare(w), SeparablePrepared)
