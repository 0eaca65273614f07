"""Fourier tiles of images and signals: every boundary, tiles of many lengths, tiles read in place and from copies."""

import dataclasses

import numpy as np
import pytest
import scipy.signal
from strategies import assert_close, expected, numbers

from wherever.engine.algorithms import Fourier, fourier
from wherever.engine.algorithms.fourier import FourierPrepared, dense
from wherever.engine.machine import Machine
from wherever.problem import ConvProblem


def padded(problem, x):
    """The image with its boundary, in float64."""
    widths = [(0, 0), (0, 0), *problem.padding]
    if isinstance(problem.boundary, str):
        return np.pad(x.astype(np.float64), widths, mode=problem.boundary)
    return np.pad(x.astype(np.float64), widths, constant_values=problem.boundary)


def truth_of(problem, x, w):
    """Of one channel by SciPy's FFT in float64."""
    seen = padded(problem, x)
    flipped = np.flip(w.astype(np.float64), tuple(range(2, w.ndim)))
    return scipy.signal.fftconvolve(seen, flipped, mode="valid", axes=tuple(range(2, w.ndim)))


def run(problem, x, w, tiling=None, threads=1):
    out = np.full(problem.y_shape, np.nan, problem.dtype)
    FourierPrepared(problem, w, tiling=tiling).run(x, out, threads)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("boundary", ["zeros", "edge", "reflect", "symmetric", "wrap", -1.5])
@pytest.mark.parametrize("shape", [(301, 283), (7001,)], ids=["image", "signal"])
def test_many_tiles_with_every_boundary(shape, boundary, dtype):
    kernel = (21, 35)[-len(shape) :]
    padding = ((12, 8), (9, 30))[-len(shape) :]
    problem = ConvProblem.from_shapes((1, 1, *shape), (1, 1, *kernel), padding=padding, boundary=boundary, dtype=dtype)
    x, w = numbers(problem.x_shape, dtype), numbers(problem.w_shape, dtype, 1)
    many = [tiling for tiling in fourier.tilings(dense(problem), Machine()) if tiling.tiles > 4]
    tiling = min(many, key=lambda tiling: tiling.seconds)
    assert_close(run(problem, x, w, tiling), truth_of(problem, x, w), dtype)


@pytest.mark.parametrize("shape", [(90, 110), (2500,)], ids=["image", "signal"])
def test_tiles_of_many_lengths_give_the_same_result(shape):
    """Of the tilings that the planner may consider, every so-many-th."""
    problem = ConvProblem.from_shapes((3, 1, *shape), (1, 1, *(9, 14)[-len(shape) :]), padding="same", boundary="edge")
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    truth = truth_of(problem, x, w)
    tilings = fourier.tilings(dense(problem), Machine())
    for tiling in tilings[:: -(-len(tilings) // 12)]:
        assert_close(run(problem, x, w, tiling), truth, "float32")


def test_large_tiles_are_copied_a_few_columns_at_a_time(monkeypatch):
    from wherever.engine.kernels import fourier_image

    problem = ConvProblem.from_shapes((1, 1, 1300, 700), (1, 1, 601, 90), padding="same", boundary="symmetric")
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    layout = FourierPrepared(problem, w).layout
    assert layout.chunk < layout.wide
    assert layout.chunk * 2 * layout.high * 4 <= 2 * fourier_image.CHUNK_BYTES
    assert_close(run(problem, x, w), truth_of(problem, x, w), "float32")


def test_a_kernel_as_large_as_the_image_wraps_into_the_zero_border():
    """The source's translation invariant layer, smaller."""
    problem = ConvProblem.from_shapes((1, 1, 100, 90), (1, 1, 199, 179), padding="same")
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    prepared = FourierPrepared(problem, w)
    assert prepared.layout.high < 298
    assert_close(run(problem, x, w), truth_of(problem, x, w), "float32")


@pytest.mark.parametrize("shape", [(260, 250), (9000,)], ids=["image", "signal"])
def test_numbers_that_are_not_finite_stay_local_among_many_tiles(shape):
    problem = ConvProblem.from_shapes((1, 1, *shape), (1, 1, *(5, 7)[-len(shape) :]), padding="same")
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    middle = tuple(n // 2 for n in shape)
    x[(0, 0, *middle)] = np.nan
    x[(0, 0, *(3 for _ in shape))] = np.inf
    with np.errstate(all="ignore"):
        truth = expected(problem, x, w)
    tiling = next(tiling for tiling in fourier.tilings(dense(problem), Machine()) if tiling.tiles > 4)
    found = run(problem, x, w, tiling)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(truth))
    np.testing.assert_array_equal(np.isposinf(found), np.isposinf(truth))
    finite = np.isfinite(truth)
    assert np.abs(found[finite] - truth[finite]).max() < 8e-6 * np.abs(truth[finite]).max()


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_channels_images_strides_and_threads(layout):
    """In place where neighbours lie side by side, from copies otherwise; the same bits for any number of threads."""
    shape = (3, 4, 100, 90) if layout == "channels_first" else (3, 100, 90, 4)
    for stride in (1, (2, 3)):
        problem = ConvProblem.from_shapes(
            shape,
            (8, 1, 11, 9),
            groups=4,
            padding="same",
            stride=stride,
            dilation=(1, 2),
            layout=layout,
            boundary="wrap",
        )
        x, w = numbers(shape, "float32"), numbers(problem.w_shape, "float32", 1)
        bias = numbers((8,), "float32", 2)
        results = []
        for threads in (1, 2, 5):
            out = np.full(problem.y_shape, np.nan, np.float32)
            Fourier().prepare(problem, w, bias).run(x, out, threads)
            results.append(out)
        truth = expected(problem, x, w) + bias.reshape(-1, *(1, 1) if layout == "channels_first" else ())
        assert_close(results[0], truth, "float32")
        assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def test_a_boundary_that_is_not_finite_is_refused():
    problem = ConvProblem.from_shapes((1, 1, 30, 30), (1, 1, 5, 5), padding=2)
    assert Fourier().refuses(problem) is None
    assert "not finite" in Fourier().refuses(dataclasses.replace(problem, boundary=np.nan))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("boundary", ["zeros", "reflect"])
def test_numbers_that_are_not_finite_reach_their_windows_and_no_further(boundary, stride):
    """Of a kernel so large that tiles would take minutes to be summed directly."""
    problem = ConvProblem.from_shapes(
        (1, 1, 300, 300), (1, 1, 151, 101), padding="same", boundary=boundary, stride=stride
    )
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    w[0, 0, 70, 50] = 0  # times infinity: not a number
    odd = {(10, 20): np.nan, (150, 290): np.inf, (160, 200): -np.inf}
    clean = x.copy()
    for place, number in odd.items():
        x[(0, 0, *place)], clean[(0, 0, *place)] = number, 0
    result = run(problem, x, w)
    seen = padded(problem, x)[0, 0]
    windows = np.lib.stride_tricks.sliding_window_view(~np.isfinite(seen), (151, 101))[::stride, ::stride]
    reached = windows.any(axis=(2, 3))
    np.testing.assert_array_equal(~np.isfinite(result[0, 0]), reached)
    assert_close(np.where(reached, 0, result), np.where(reached, 0, run(problem, clean, w)), "float32")
    for place in zip(*(index[::997] for index in np.nonzero(reached)), strict=True):
        window = seen[tuple(slice(i * stride, i * stride + n) for i, n in zip(place, (151, 101), strict=True))]
        with np.errstate(all="ignore"):
            np.testing.assert_equal(
                result[(0, 0, *place)], np.float32(np.sum((window * w[0, 0])[~np.isfinite(window)]))
            )


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("shape", [(170, 150), (9000,)], ids=["image", "signal"])
@pytest.mark.parametrize(("inputs", "results"), [(3, 1), (1, 4), (5, 2)])
def test_channels_are_summed_in_fourier_space(shape, inputs, results, layout):
    """Many tiles, in place and from copies, some of them with numbers that are not finite; any number of threads."""
    groups = 2
    full = (2, groups * inputs, *shape) if layout == "channels_first" else (2, *shape, groups * inputs)
    kernel = (21, 15)[-len(shape) :]
    problem = ConvProblem.from_shapes(
        full, (groups * results, inputs, *kernel), groups=groups, padding="same", boundary="symmetric", layout=layout
    )
    assert Fourier().refuses(problem) is None
    x, w, bias = numbers(full, "float32"), numbers(problem.w_shape, "float32", 1), numbers((2 * results,), "float32", 2)
    truth = expected(problem, x, w) + bias.reshape(-1, *[1] * (len(shape) if layout == "channels_first" else 0))
    tiling = next(tiling for tiling in fourier.tilings(dense(problem), Machine()) if 4 < tiling.tiles < 50)
    prepared = FourierPrepared(problem, w, bias, tiling=tiling)
    out = [np.full(problem.y_shape, np.nan, np.float32) for _ in range(3)]
    for result, threads in zip(out, (1, 2, 5), strict=True):
        prepared.run(x, result, threads)
        assert result.tobytes() == out[0].tobytes()
    assert_close(out[0], truth, "float32")
    channel, place = inputs - 1, tuple(n // 2 for n in shape)
    x[(1, channel, *place) if layout == "channels_first" else (1, *place, channel)] = np.inf
    prepared.run(x, out[1], 2)
    odd = ~np.isfinite(out[1])
    assert odd.sum() == results * np.prod(kernel)
    assert_close(np.where(odd, 0, out[1]), np.where(odd, 0, truth), "float32")
