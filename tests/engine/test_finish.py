"""Activations and additions in generated kernels, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf, expit
from strategies import disguised, numbers, problems

from wherever.engine.algorithms import ALGORITHMS, Depthwise, Direct, Winograd
from wherever.engine.algorithms.finish import NOTHING, Finish, finishing
from wherever.engine.kernels.compile import compiled
from wherever.engine.kernels.finish import ACTIVATIONS, finish, finishes
from wherever.problem import ConvProblem

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


def passed(finish, y, beside):
    """The finish in a pass of its own."""
    y = y.copy()
    if finish != NOTHING:
        finish.apply(y, beside)
    return y


@settings(max_examples=settings().max_examples * 3)
@given(
    problem=problems(directions=("forward", "transpose"), dtypes=("float32", "float64")),
    activation=st.sampled_from([None, "relu", "relu6", "silu", "hardswish"]),
    adds=st.booleans(),
    odd=st.sampled_from([None, None, np.nan, np.inf]),
    seed=st.integers(0, 1000),
)
def test_results_are_finished_where_they_are_stored_as_in_a_pass_behind(problem, activation, adds, odd, seed):
    """To the last bit, by every algorithm, whatever memory order what is added and the result have."""
    finish = Finish(activation, adds)
    source, operand = (
        numbers(problem.source_shape, problem.dtype, seed),
        numbers(problem.operand_shape, problem.dtype, 1),
    )
    if odd is not None and source.size:
        source.flat[seed % source.size] = odd
    bias = numbers(problem.out_channels if problem.direction == "forward" else problem.in_channels, problem.dtype, 2)
    beside = numbers(problem.result_shape, problem.dtype, 3) if adds else None
    for algorithm in (a for a in ALGORITHMS if a.refuses(problem) is None):
        prepared = algorithm.prepare(problem, operand, bias)
        plain = np.full(problem.result_shape, 9, problem.dtype)
        prepared.run(source, plain, 1)
        expected = passed(finish, plain, beside)
        fused = finishing(prepared, finish)
        others = [beside] if beside is None or seed % 3 else [beside, disguised(beside, seed)]
        for threads, other in zip((1, 3), others * 2, strict=False):
            out = np.full(problem.result_shape, 9, problem.dtype)
            if seed % 5 == 0:
                out = np.moveaxis(np.ascontiguousarray(np.moveaxis(out, 1, -1)), -1, 1)
            fused(source, out, threads, other)
            np.testing.assert_array_equal(out, expected, err_msg=algorithm.name)


@pytest.mark.parametrize("algorithm", [Direct(), Winograd(), Depthwise()])
def test_the_loops_that_store_results_finish_them(algorithm, monkeypatch):
    """Without a pass behind: the layers of a network."""
    groups = 24 if isinstance(algorithm, Depthwise) else 1
    problem = ConvProblem.from_shapes(
        (2, 19, 17, 24), (24, 24 // groups, 3, 3), padding=1, groups=groups, layout="channels_last", dtype="float32"
    )
    x, w, beside = (numbers(s, "float32", i) for i, s in enumerate((problem.x_shape, problem.w_shape, problem.y_shape)))
    prepared, finish = algorithm.prepare(problem, w), Finish("relu", True)
    plain = np.empty(problem.y_shape, np.float32)
    prepared.run(x, plain, 1)
    expected = np.maximum(plain + beside, 0)

    def never(*_: object) -> None:
        raise AssertionError("finished in a pass behind")

    monkeypatch.setattr(Finish, "apply", never)
    out = np.empty(problem.y_shape, np.float32)
    for threads in (1, 2):
        finishing(prepared, finish)(x, out, threads, beside)
        np.testing.assert_array_equal(out, expected)
