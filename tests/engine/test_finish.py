"""Activations and additions in generated kernels, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import erf, expit

from wherever.engine.kernels.compile import compiled
from wherever.engine.kernels.finish import ACTIVATIONS, finish, finishes

DEFINITIONS = {
    None: lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "sigmoid": expit,
    "silu": lambda x: x * expit(x),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


def finished(y, added, activation):
    y, sizes = y.copy(), np.array([len(y)])
    kernel = compiled(finish, dtype=y.dtype.name, activation=activation, adds=added is not None)
    kernel(y, y if added is None else added, sizes)
    return y


def test_each_activation_has_a_definition():
    assert DEFINITIONS.keys() == {None, *ACTIVATIONS}


@pytest.mark.parametrize("activation", DEFINITIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_activation_is_its_definition(activation, dtype):
    if not finishes(activation, dtype):
        pytest.skip("not in this type")
    random, epsilon = np.random.default_rng(0), np.finfo(dtype).eps
    x = np.concatenate([random.uniform(-9, 9, 5003), random.uniform(-800, 800, 500), [0.0, -0.0, 3, -3, 6]])
    x, added = x.astype(dtype), random.standard_normal(len(x)).astype(dtype)
    for y, values in ((finished(x, None, activation), x), (finished(x, added, activation), x + added)):
        expected = DEFINITIONS[activation](values.astype(np.longdouble if dtype == "float64" else "float64"))
        # Relative to the result, or to a number of size one: in the tails of gelu erf cancels.
        assert (np.abs(y - expected) <= 8 * epsilon * np.maximum(np.abs(expected), 1)).all()


@pytest.mark.parametrize("activation", DEFINITIONS)
def test_what_is_not_finite_stays_where_it_is(activation):
    x = np.linspace(-4, 4, 61, dtype="float32")
    clean = finished(x, None, activation)
    x[[3, 20, 60]] = np.nan, np.inf, -np.inf
    y = finished(x, None, activation)
    with np.errstate(all="ignore"):
        expected = DEFINITIONS[activation](x.astype("float64"))
    others = np.delete(np.arange(61), [3, 20, 60])
    np.testing.assert_array_equal(y[others], clean[others])
    assert np.isnan(y[3])
    assert y[20] == expected[20]
    assert np.isnan(expected[60]) or y[60] == pytest.approx(expected[60], rel=0, abs=1e-30)  # 1e-38 stands for zero
