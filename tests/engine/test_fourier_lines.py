"""Fourier lines: every length and register tile, copies, borders, signals, threads, numbers that are not finite."""

import dataclasses
import itertools

import numpy as np
import pytest
from strategies import assert_close, expected, numbers

from wherever.engine.algorithms import FourierLines, finite, fourier_lines
from wherever.engine.algorithms.fourier import dense
from wherever.engine.machine import Machine
from wherever.engine.plan import choose
from wherever.problem import ConvProblem


def depthwise(size, channels, kernel, *, batch=1, layout="channels_last", padding="same", **options):
    x_shape = (batch, *size, channels) if layout == "channels_last" else (batch, channels, *size)
    w_shape = (channels, 1, *kernel)
    return ConvProblem.from_shapes(x_shape, w_shape, groups=channels, layout=layout, padding=padding, **options)


def run(problem, tiling, x, w, bias=None, threads=1):
    out = np.full(problem.y_shape, np.nan, problem.dtype)
    fourier_lines.FourierLinesPrepared(problem, w, bias, tiling).run(x, out, threads)
    return out


def tilings(problem):
    return fourier_lines.tilings(dense(problem), Machine())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", [(5, 3), (9, 16), (1, 7), (31, 4)])
def test_every_line_and_register_tile_gives_the_same_result(kernel, dtype):
    """20 channels are a vector and a tail for most processors; both dimensions are transformed, in pieces and whole."""
    problem = depthwise((21, 13), 20, kernel, batch=2, dtype=dtype)
    x, w, bias = numbers(problem.x_shape, dtype), numbers(problem.w_shape, dtype, 1), numbers(20, dtype, 2)
    truth = expected(problem, x, w) + bias
    found = tilings(problem)
    assert len(found) > 3
    for number, tiling in enumerate(found):
        other = {"high": 1 + number % tiling.high, "backwards": not tiling.backwards, "lines": 1 + tiling.lines // 2}
        for changed in (tiling, dataclasses.replace(tiling, **other)):
            if changed.high <= changed.lines:
                assert_close(run(problem, changed, x, w, bias), truth, dtype)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("boundary", ["zeros", "edge", "reflect", "symmetric", "wrap", 2.5])
def test_borders_dilation_copies_and_threads(boundary, layout, monkeypatch):
    monkeypatch.setattr(fourier_lines, "_PART_BYTES", 1 << 12)
    monkeypatch.setattr(fourier_lines, "_SPECTRUM_BYTES", 1 << 16)
    for padding, dilation in itertools.product((((3, 1), (0, 4)), ((0, 9), (5, 5))), ((1, 1), (2, 3))):
        options = {"padding": padding, "dilation": dilation, "boundary": boundary, "layout": layout, "batch": 2}
        problem = depthwise((37, 29), 19, (4, 3), **options)
        x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
        truth = expected(problem, x, w)
        for tiling in tilings(problem)[::4]:
            once = run(problem, tiling, x, w)
            assert_close(once, truth, "float32")
            np.testing.assert_array_equal(run(problem, tiling, x, w, threads=3), once)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_signals(layout):
    """Pieces of a signal are its lines."""
    problem = depthwise((500,), 7, (9,), batch=2, boundary="reflect", layout=layout)
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    for tiling in tilings(problem):
        assert_close(run(problem, tiling, x, w), expected(problem, x, w), "float32")


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_numbers_that_are_not_finite_reach_only_the_windows_that_cover_them(layout, monkeypatch):
    """Their terms are added; where there are many of them, or sums overflow, everything is summed directly."""
    problem = depthwise((40, 30), 20, (11, 9), batch=2, layout=layout)
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    clean = expected(problem, x, w)
    for beginning in (0, 1e30):
        monkeypatch.setattr(finite, "_BEGINNING", beginning)
        y = x.copy()
        view, seen = (np.moveaxis(a, -1, 1) if layout == "channels_last" else a for a in (y, np.zeros(y.shape, bool)))
        for image, channel, row, column, value in (
            (0, 3, 20, 10, np.nan),
            (1, 17, 0, 29, np.inf),
            (1, 2, 39, 0, np.nan),
        ):
            view[image, channel, row, column] = value
            seen[image, channel, max(0, row - 5) : row + 6, max(0, column - 4) : column + 5] = True
        out = np.empty(problem.y_shape, np.float32)
        FourierLines().prepare(problem, w).run(y, out, 1)
        seen = np.moveaxis(seen, 1, -1) if layout == "channels_last" else seen
        np.testing.assert_array_equal(~np.isfinite(out), seen)
        assert_close(out[~seen], clean[~seen], "float32")
    huge = np.where(x > 0, np.float32(3e38), 0)
    out = run(problem, None, huge, np.where(w == w.max(axis=(1, 2, 3), keepdims=True), np.float32(1), 0))
    assert np.isfinite(out).all()


@pytest.mark.parametrize("kernel", [9, 11, 15, 31])
def test_large_kernels_of_channels_by_themselves_choose_it(kernel):
    assert choose(depthwise((56, 56), 128, (kernel, kernel))).algorithm.name == FourierLines.name
