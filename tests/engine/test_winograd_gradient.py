"""Gradients by the weights by Winograd's tiles: several parts and rounds, threads, numbers not finite."""

import itertools

import numpy as np
import pytest
from strategies import assert_close, disguised, expected, numbers

from wherever.engine.algorithms import WinogradGradient, winograd_gradient
from wherever.engine.machine import Machine
from wherever.problem import ConvProblem

PROBLEMS = {
    "plain": ((2, 14, 13, 20), (24, 20, 3, 3), {"padding": 1}),
    "groups": ((1, 9, 11, 42), (30, 21, 3, 3), {"groups": 2, "padding": ((0, 2), (1, 0))}),
    "dilated": ((1, 19, 17, 17), (9, 17, 3, 3), {"dilation": (2, 3), "padding": ((2, 2), (3, 3))}),
    "strided and dilated": ((2, 21, 9, 3), (5, 3, 3, 1), {"dilation": (4, 1), "stride": (2, 2)}),
    "signal": ((3, 100, 33), (17, 33, 3), {"padding": 1, "boundary": "wrap"}),
    "volume": ((1, 6, 7, 8, 5), (18, 5, 3, 3, 3), {"padding": 1, "boundary": 1.5}),
    "mixed": ((1, 12, 10, 8), (16, 8, 5, 1), {"padding": ((4, 0), (0, 0)), "boundary": "reflect"}),
}


def problem_of(name, layout, dtype):
    shape, w_shape, options = PROBLEMS[name]
    x_shape = shape if layout == "channels_last" else (shape[0], shape[-1], *shape[1:-1])
    return ConvProblem.from_shapes(x_shape, w_shape, **options, layout=layout, dtype=dtype, direction="weight_gradient")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_tiles(name, layout, dtype, monkeypatch):
    """Small and large ones. In one round; and in many, of several parts, whose totals are taken in several passes."""
    problem = problem_of(name, layout, dtype)
    x, y = numbers(problem.x_shape, dtype), numbers(problem.y_shape, dtype, 1)
    truth = expected(problem, x, y)
    for few in (False, True):
        if few:
            monkeypatch.setattr(winograd_gradient, "_TOGETHER", {"f": 5, "d": 3})
            monkeypatch.setattr(winograd_gradient, "_ROUNDS", {"f": 2, "d": 1})
            monkeypatch.setattr(winograd_gradient, "_PART_BYTES", 5000)
            monkeypatch.setattr(winograd_gradient, "_SUM_BYTES", 20000)
        tiles = winograd_gradient.allowed_tiles(problem)
        for tile in tiles[:: -(-len(tiles) // 4)]:
            tiling = winograd_gradient._tiling(problem, Machine(), tile)
            prepared = winograd_gradient.WinogradGradientPrepared(problem, y, tiling)
            results = []
            for threads in (1, 3):
                out = np.full(problem.w_shape, np.nan, dtype)
                prepared.run(x, out, threads)
                assert_close(out, truth, dtype)
                results.append(out)
            assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize("name", PROBLEMS)
def test_memory_of_any_order(name):
    problem = problem_of(name, "channels_last", "float32")
    x, y = numbers(problem.x_shape, "float32"), numbers(problem.y_shape, "float32", 1)
    truth = expected(problem, x, y)
    for seed in range(6):
        out = np.full(problem.w_shape[::-1], np.nan, np.float32).T if seed % 2 else np.empty(problem.w_shape, "f")
        WinogradGradient().prepare(problem, disguised(y, seed)).run(disguised(x, seed + 1), out, 1)
        assert_close(out, truth, "float32")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_stay_local(value):
    """A number at the border of x meets only some of the taps; an output of y, no channel but its own."""
    problem = problem_of("plain", "channels_last", "float32")
    for image, place in itertools.product("xy", [(0, 0, 0, 3), (1, 13, 5, 19), (1, 5, 0, 0)]):
        x, y = numbers(problem.x_shape, "float32"), numbers(problem.y_shape, "float32", 1)
        (x if image == "x" else y)[place] = value
        with np.errstate(all="ignore"):
            truth = expected(problem, x, y)
        out = np.empty(problem.w_shape, np.float32)
        WinogradGradient().prepare(problem, y).run(x, out, 1)
        np.testing.assert_array_equal(np.isnan(out), np.isnan(truth))
        finite = np.isfinite(truth)
        assert 0 < finite.sum() < finite.size
        np.testing.assert_array_equal(np.isfinite(out), finite)
        np.testing.assert_allclose(out[finite], truth[finite], rtol=1e-3, atol=1e-3)
