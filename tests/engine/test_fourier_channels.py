"""Fourier tiles of many channels: every tiling, many parts and threads, tiles that wrap into their zero border."""

import math

import numpy as np
import pytest
from strategies import assert_close, expected, numbers

from wherever.engine.algorithms import FourierChannels, fourier_channels
from wherever.engine.kernels.codelets import frequencies
from wherever.engine.kernels.fourier_channels import mirrored, passes
from wherever.engine.machine import Machine
from wherever.engine.plan import choose
from wherever.problem import ConvProblem


def tilings(problem):
    return [fourier_channels._tiling(problem, Machine(), *choice) for choice in fourier_channels._tiles(problem)]


def run(problem, tiling, x, w, bias=None, threads=1):
    out = np.full(problem.y_shape, np.nan, problem.dtype)
    fourier_channels.FourierChannelsPrepared(problem, w, bias, tiling).run(x, out, threads)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("groups", [1, 10])
def test_tiles_of_every_length_give_the_same_result(groups, dtype):
    """All tilings that the planner may consider; 20 channels are a vector and a tail for most processors."""
    problem = ConvProblem.from_shapes(
        (2, 20, 21, 9), (20, 20 // groups, 5, 3), padding="same", groups=groups, dtype=dtype
    )
    x, w, bias = numbers(problem.x_shape, dtype), numbers(problem.w_shape, dtype, 1), numbers(20, dtype, 2)
    truth = expected(problem, x, w) + bias.reshape(-1, 1, 1)
    found = tilings(problem)[::5]
    assert len(found) > 3
    for tiling in found:
        assert_close(run(problem, tiling, x, w, bias), truth, dtype)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("boundary", ["zeros", "reflect", "wrap", 2.5])
def test_many_parts_and_threads(boundary, groups, layout, monkeypatch):
    monkeypatch.setattr(fourier_channels, "_SPECTRA_BYTES", 1 << 16)
    monkeypatch.setattr(fourier_channels, "_PART_BYTES", 1 << 12)
    x_shape = (3, 8, 37, 29) if layout == "channels_first" else (3, 37, 29, 8)
    problem = ConvProblem.from_shapes(
        x_shape,
        (8, 8 // groups, 3, 5),
        groups=groups,
        padding=((3, 1), (0, 4)),
        dilation=(2, 1),
        boundary=boundary,
        layout=layout,
    )
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    truth = expected(problem, x, w)
    tiling = fourier_channels._tiling(problem, Machine(), (8, 8), (4, 4))
    assert math.prod(tiling.part) < math.prod(problem.output) / 4
    once = run(problem, tiling, x, w)
    assert_close(once, truth, "float32")
    np.testing.assert_array_equal(run(problem, tiling, x, w, threads=3), once)


@pytest.mark.parametrize("again", [0, math.inf])
def test_threads_share_the_work_on_a_single_part(again, monkeypatch):
    """Output channels, or tiles; also where a number is not finite."""
    monkeypatch.setattr(fourier_channels, "_WORTH_THREADS", 0)
    monkeypatch.setattr(fourier_channels, "_READ_AGAIN", again)
    problem = ConvProblem.from_shapes((1, 40, 23, 26), (40, 40, 5, 5), padding="same")
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    truth = expected(problem, x, w)
    spoilt = x.copy()
    spoilt[0, 3, 20, 24] = np.inf
    for tiling in tilings(problem)[::9]:
        once = run(problem, tiling, x, w)
        assert_close(once, truth, "float32")
        for threads in (2, 5):
            np.testing.assert_array_equal(run(problem, tiling, x, w, threads=threads), once)
        np.testing.assert_array_equal(run(problem, tiling, spoilt, w, threads=2), run(problem, tiling, spoilt, w))


def test_a_kernel_larger_than_its_image_is_one_tile_that_wraps_into_its_zero_border():
    problem = ConvProblem.from_shapes((1, 32, 14, 14), (32, 2, 31, 31), padding="same", groups=16)
    assert max(fourier_channels._tiles(problem)[-1][0]) < 14 + 31 - 1
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    for tiling in tilings(problem):
        assert_close(run(problem, tiling, x, w), expected(problem, x, w), "float32")


@pytest.mark.parametrize("lengths", [(6,), (5, 8), (4, 1, 9), (3, 4, 5)])
def test_every_frequency_has_its_mirror(lengths):
    """Positions hold frequencies in the order that the passes leave them in; the pairs are those of real numbers."""
    tile = np.random.default_rng(0).standard_normal(lengths)
    spectrum = np.fft.fftn(tile)
    for dim, n in enumerate(lengths):
        order = frequencies(passes(n))
        spectrum = np.take(spectrum, order, axis=dim)
    pairs = mirrored(lengths)
    np.testing.assert_allclose(spectrum.ravel()[pairs[:, 0]], spectrum.ravel()[pairs[:, 1]].conj(), atol=1e-12)
    assert set(pairs.ravel()) == set(range(math.prod(lengths)))


@pytest.mark.parametrize("groups", [1, 20])
def test_numbers_that_are_not_finite_reach_only_the_windows_that_cover_them(groups):
    problem = ConvProblem.from_shapes((1, 40, 30, 30), (40, 40 // groups, 5, 5), padding="same", groups=groups)
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    clean = run(problem, tilings(problem)[0], x, w)
    x[0, 3, 10, 10] = np.nan
    for tiling in tilings(problem)[::9]:
        out = run(problem, tiling, x, w)
        seen = np.zeros(problem.y_shape, bool)
        seen[0, slice(2, 4) if groups > 1 else slice(None), 8:13, 8:13] = True
        np.testing.assert_array_equal(np.isnan(out), seen)
        assert_close(out[~seen], clean[~seen], "float32")


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "groups"),
    [
        ((1, 128, 128, 64), (64, 64, 7, 7), 1),
        ((1, 28, 28, 256), (256, 256, 11, 11), 1),
        ((1, 20000, 64), (64, 64, 31), 1),
    ],
)
def test_large_kernels_of_many_channels_choose_it(x_shape, w_shape, groups):
    problem = ConvProblem.from_shapes(x_shape, w_shape, padding="same", groups=groups, layout="channels_last")
    assert choose(problem).algorithm.name == FourierChannels.name
