"""Every algorithm, in every direction it does not refuse, against the reference over the whole space of problems."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import FLOATS, assert_close, disguised, expected, numbers, problems

from wherever.engine import algorithms, blocks
from wherever.engine.algorithms import (
    ALGORITHMS,
    DepthwiseGradient,
    Direct,
    ExactIntegers,
    Im2col,
    Outer,
    OverlapSave,
    Phases,
    Places,
    Taps,
    Trimmed,
    blockwise,
)
from wherever.engine.machine import Machine
from wherever.engine.plan import choose
from wherever.problem import ConvProblem


@settings(max_examples=settings().max_examples * 16)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_every_algorithm_agrees_with_the_reference(problem, seed):
    source = disguised(numbers(problem.source_shape, problem.dtype, seed), seed)
    operand = disguised(numbers(problem.operand_shape, problem.dtype, seed + 1), seed + 1)
    truth = expected(problem, source, operand)
    # Results of so many terms have about this size, whether or not the few that there are cancel.
    usual = (problem.multiply_adds / max(truth.size, 1)) ** 0.5
    willing = [a for a in ALGORITHMS if a.refuses(problem) is None]
    assert willing
    for algorithm in willing:
        assert algorithm.estimate(problem, Machine()) >= 0
        out = np.full(problem.result_shape, 9).astype(problem.dtype)
        algorithm.prepare(problem, operand).run(source, out, 1)
        assert_close(out, truth, problem.dtype, least=usual)


@given(problem=problems(dtypes=("int8", "uint16", "int32", "int64", "uint64")), seed=st.integers(0, 1000))
def test_integers_of_the_whole_range_wrap_around(problem, seed):
    random, info = np.random.default_rng(seed), np.iinfo(problem.dtype)
    source, operand = (
        random.integers(info.min, info.max, shape, problem.dtype, endpoint=True)
        for shape in (problem.source_shape, problem.operand_shape)
    )
    truth = expected(problem, source, operand)
    for algorithm in (a for a in ALGORITHMS if a.refuses(problem) is None):
        out = np.full(problem.result_shape, 9, problem.dtype)
        algorithm.prepare(problem, operand).run(source, out, 1)
        assert_close(out, truth, problem.dtype)


@pytest.mark.parametrize("direction", ["forward", "transpose", "weight_gradient"])
def test_no_direction_warns_where_half_precision_overflows(direction):
    problem = ConvProblem.from_shapes((1, 1, 9), (1, 1, 3), dtype="float16", padding=1, direction=direction)
    source, operand = np.full(problem.source_shape, 6e4, "f2"), np.full(problem.operand_shape, 6e4, "f2")
    for algorithm in (a for a in ALGORITHMS if a.refuses(problem) is None):
        out = np.empty(problem.result_shape, problem.dtype)
        algorithm.prepare(problem, operand).run(source, out, 1)
        assert np.isinf(out).all(), algorithm.name


@settings(max_examples=settings().max_examples * 2)
@given(problem=problems(dtypes=FLOATS), seed=st.integers(0, 1000))
def test_same_bits_for_any_number_of_threads(problem, seed):
    source, operand = numbers(problem.source_shape, problem.dtype, seed), numbers(problem.operand_shape, problem.dtype)
    for algorithm in (a for a in ALGORITHMS if a.refuses(problem) is None):
        prepared = algorithm.prepare(problem, operand)
        results = []
        for threads in (1, 2, 5):
            out = np.empty(problem.result_shape, problem.dtype)
            prepared.run(source, out, threads)
            results.append(out.tobytes())
        assert results[0] == results[1] == results[2], algorithm.name


@settings(max_examples=settings().max_examples * 2)
@given(problem=problems(dtypes=("float32", "float64", "complex128")), seed=st.integers(0, 1000))
def test_numbers_that_are_not_finite_stay_local(problem, seed):
    random = np.random.default_rng(seed)
    source = numbers(problem.source_shape, problem.dtype, seed)
    if not source.size or not problem.multiply_adds:
        return
    operand = numbers(problem.operand_shape, problem.dtype, 1)
    for _ in range(random.integers(1, 4)):
        source[tuple(random.integers(0, n) for n in source.shape)] = random.choice([np.nan, np.inf, -np.inf])
    with np.errstate(all="ignore"):
        truth = expected(problem, source, operand)
    for algorithm in (a for a in ALGORITHMS if a.refuses(problem) is None):
        out = np.empty(problem.result_shape, problem.dtype)
        algorithm.prepare(problem, operand).run(source, out, 1)
        finite = np.isfinite(truth)
        np.testing.assert_array_equal(np.isfinite(out), finite, algorithm.name)
        if problem.dtype.kind == "f":
            np.testing.assert_array_equal(np.isnan(out), np.isnan(truth), algorithm.name)
        np.testing.assert_allclose(out[finite], truth[finite].astype(problem.dtype), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("direction", ["transpose", "weight_gradient"])
def test_numbers_that_are_not_finite_stay_local_in_the_gradients(direction):
    problem = ConvProblem.from_shapes((1, 2, 40, 40), (2, 2, 5, 5), padding="same", direction=direction)
    source, operand = numbers(problem.source_shape, "float32"), numbers(problem.operand_shape, "float32")
    source[0, 1, 20, 20] = np.nan
    results = []
    for algorithm in (Im2col(), OverlapSave()):
        out = np.empty(problem.result_shape, np.float32)
        algorithm.prepare(problem, operand).run(source, out, 1)
        results.append(np.isnan(out))
    assert 0 < results[0].sum() < results[0].size
    np.testing.assert_array_equal(*results)


def test_an_overflow_of_the_transform_alone_is_summed_directly():
    problem = ConvProblem.from_shapes((1, 1, 64), (1, 1, 5), padding="same")
    x = np.full(problem.x_shape, 3e38, np.float32)
    w = np.array([[[0, 0, 1, 0, 0]]], np.float32)
    out = np.empty(problem.y_shape, np.float32)
    OverlapSave().prepare(problem, w).run(x, out, 1)
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (3, 9)])
@pytest.mark.parametrize(
    "algorithm",
    [Direct(), Places(), Im2col(), Taps(), OverlapSave(), Outer(), DepthwiseGradient()],
    ids=lambda a: a.name,
)
def test_many_blocks(algorithm, dilation, monkeypatch):
    """Problems larger than one block, cut in each of the ways that there are; dilation beyond the size of a block."""
    monkeypatch.setattr(algorithms.places, "_BLOCK_BYTES", 8000)
    monkeypatch.setattr(algorithms.direct, "_PART_BYTES", 2000)
    monkeypatch.setattr(algorithms.direct, "_TURNED_BYTES", 2000)
    monkeypatch.setattr(algorithms.direct, "_SMALL_BYTES", 2000)
    monkeypatch.setattr(blocks, "_FOOTPRINT_ELEMENTS", 1500)
    monkeypatch.setattr(algorithms.im2col, "_COLUMN_BYTES", 3000)
    monkeypatch.setattr(algorithms.taps, "_BLOCK_ELEMENTS", 60)
    monkeypatch.setattr(algorithms.weight_gradient, "_PART_BYTES", 20000)
    monkeypatch.setattr(algorithms.weight_gradient, "_SUM_BYTES", 300)
    monkeypatch.setattr(algorithms.weight_gradient, "_WIDE_BYTES", 600)
    monkeypatch.setattr(algorithms.depthwise_gradient, "_PART_BYTES", 20000)
    monkeypatch.setattr(algorithms.overlap_save, "_TILE_BYTES", 20000)
    for direction in ("forward", "transpose", "weight_gradient"):
        for boundary in ("zeros", "reflect", 1.5):
            for layout in ("channels_first", "channels_last"):
                x_shape = (3, 4, 37, 29) if layout == "channels_first" else (3, 37, 29, 4)
                problem = ConvProblem.from_shapes(
                    x_shape,
                    (6, 2, 5, 3),
                    groups=2,
                    padding=((3, 4), (1, 0)),
                    stride=(1, 2),
                    dilation=dilation,
                    boundary=boundary,
                    layout=layout,
                    direction=direction,
                    dtype="float64",
                )
                if algorithm.refuses(problem):
                    continue
                source, operand = numbers(problem.source_shape, "float64"), numbers(problem.operand_shape, "float64", 1)
                out = np.empty(problem.result_shape)
                algorithm.prepare(problem, operand).run(source, out, 2)
                assert_close(out, expected(problem, source, operand), "float64")


def test_tiles_of_every_length_give_the_same_result():
    """All tilings that the planner may consider, not only the one it prefers."""
    problem = ConvProblem.from_shapes((2, 1, 50, 70), (1, 1, 7, 4), padding=((9, 2), (0, 5)), dtype="float64")
    x, w = numbers(problem.x_shape, "float64"), numbers(problem.w_shape, "float64", 1)
    truth = expected(problem, x, w)
    module = algorithms.overlap_save
    options = [module._axis_options(problem, dim) for dim in range(2)]
    seen = 0
    for rows in options[0]:
        for columns in options[1]:
            tiling = module._tiling(problem, Machine(), (0, 1), (rows, columns))
            prepared = module.OverlapSavePrepared(problem, w, tiling=tiling)
            out = np.empty(problem.y_shape)
            prepared.run(x, out, 1)
            assert_close(out, truth, "float64")
            seen += 1
    assert seen > 10


def test_integers_choose_by_what_can_occur():
    """Float32, float64 and integer sums give the same integers on the two sides of each bound."""
    for largest in (1, 1000, 1 << 20, 1 << 30):
        problem = ConvProblem.from_shapes((1, 3, 9, 9), (2, 3, 3, 3), dtype="int64")
        x = np.random.default_rng(0).integers(-largest, largest, problem.x_shape, endpoint=True)
        w = np.random.default_rng(1).integers(-largest, largest, problem.w_shape, endpoint=True)
        out = np.empty(problem.y_shape, np.int64)
        ExactIntegers().prepare(problem, w).run(x, out, 1)
        assert_close(out, expected(problem, x, w), "int64")


def test_a_large_kernel_wraps_into_the_zero_border():
    """The source's translation invariant layer needs transforms of 2 H - 1 places, not of 3 H - 2."""
    problem = ConvProblem.from_shapes((1, 1, 100), (1, 1, 199), padding="same")
    assert algorithms.overlap_save.transform_length(problem, 0, 0, 100) == 199
    edge = dataclasses.replace(problem, boundary="edge")
    assert algorithms.overlap_save.transform_length(edge, 0, 0, 100) == 298


def test_sums_in_half_precision_are_taken_in_single():
    problem = ConvProblem.from_shapes((1, 1, 5000), (1, 1, 4000), dtype="float16")
    x, w = np.ones(problem.x_shape, np.float16), np.full(problem.w_shape, 0.25, np.float16)
    for algorithm in (a for a in ALGORITHMS if a.refuses(problem) is None):
        out = np.empty(problem.y_shape, np.float16)
        algorithm.prepare(problem, w).run(x, out, 1)
        np.testing.assert_array_equal(out, np.float16(1000))


def test_storing_keeps_integers_modulo_their_range():
    target = np.empty(3, np.int8)
    blockwise.store(target, np.array([127.0, 128.0, -300.0]), None)
    np.testing.assert_array_equal(target, [127, -128, -44])


def long_sums():
    """Problems whose results are sums of very many terms, in each direction."""
    yield ConvProblem.from_shapes((1, 1, 100_000), (1, 1, 100_000))
    yield ConvProblem.from_shapes((1, 5_000, 40), (2, 5_000, 1))
    yield ConvProblem.from_shapes((1, 5_000, 40), (2, 5_000, 3), layout="channels_first")
    yield ConvProblem.from_shapes((1, 2, 40), (5_000, 2, 3), direction="transpose")
    yield ConvProblem.from_shapes((1, 2_000, 9, 9), (2, 2_000, 3, 3))
    yield ConvProblem.from_shapes((1, 1, 300, 300), (1, 1, 3, 3), direction="weight_gradient")
    yield ConvProblem.from_shapes((3, 1, 200_000), (1, 1, 1), direction="weight_gradient")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("data", ["constant", "positive"])
@pytest.mark.parametrize("problem", list(long_sums()), ids=lambda p: f"{p.direction}-{p.w_shape}")
def test_long_sums_keep_the_accuracy_promise(problem, data, dtype):
    random = np.random.default_rng(0)

    def draw(shape):
        if data == "constant":  # rounding errors of one sign
            return np.full(shape, 1 / 3, dtype)
        return np.abs(random.standard_normal(shape)).astype(dtype)

    problem = dataclasses.replace(problem, dtype=np.dtype(dtype))
    source, operand = draw(problem.source_shape), draw(problem.operand_shape)
    wide = dataclasses.replace(problem, dtype=np.dtype("longdouble" if dtype == "float64" else "float64"))
    truth = np.empty(problem.result_shape, wide.dtype)
    (Taps() if dtype == "float64" else Im2col()).prepare(wide, operand).run(source, truth, 1)
    for algorithm in (a for a in ALGORITHMS if a.refuses(problem) is None):
        out = np.empty(problem.result_shape, dtype)
        algorithm.prepare(problem, operand).run(source, out, 1)
        assert_close(out, truth, dtype)


@pytest.mark.parametrize("size", [2, 11, 15, 32, 70])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_gradients_by_the_weights_of_many_channels(layout, size):
    """Register tiles of every shape: channels that fill vectors and blocks of rows, and that do not."""
    for out_channels in (1, 3, 16, 45):
        for groups in (1, 2):
            x_shape = (2, groups * size, 9, 7) if layout == "channels_first" else (2, 9, 7, groups * size)
            w_shape = (groups * out_channels, size, 3, 2)
            problem = ConvProblem.from_shapes(
                x_shape, w_shape, groups=groups, padding=1, stride=(2, 1), layout=layout, direction="weight_gradient"
            )
            x, y = numbers(problem.x_shape, "float32"), numbers(problem.y_shape, "float32", 1)
            out = np.empty(problem.w_shape, np.float32)
            Outer().prepare(problem, y).run(x, out, 3)
            assert_close(out, expected(problem, x, y), "float32")


@pytest.mark.parametrize("kernel", [(3, 3), (2, 9)])
@pytest.mark.parametrize("groups", [5, 40])
def test_gradients_by_the_weights_of_depthwise_layers(groups, kernel):
    """Where the image lies, and copied; vectors of channels shared out among threads; several pairs of channels."""
    for boundary in ("zeros", 1.5, "edge"):
        for each in (1, 2):
            problem = ConvProblem.from_shapes(
                (2, 40, 30, groups),
                (each * groups, 1, *kernel),
                groups=groups,
                padding=((1, 0), (3, 2)),
                boundary=boundary,
                layout="channels_last",
                direction="weight_gradient",
            )
            x, y = numbers(problem.x_shape, "float32"), numbers(problem.y_shape, "float32", 1)
            out = np.empty(problem.w_shape, np.float32)
            DepthwiseGradient().prepare(problem, y).run(x, out, 2)
            assert_close(out, expected(problem, x, y), "float32")


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_phases_without_any_tap_are_the_bias(layout):
    """Kernels smaller than the stride; taps that a common divisor of stride and dilation keeps from some phases."""
    for kernel, stride, dilation in (((2, 1), (3, 2), (1, 1)), ((3, 3), (4, 6), (2, 4)), ((5, 4), (2, 3), (3, 6))):
        x_shape = (2, 4, 29, 31) if layout == "channels_first" else (2, 29, 31, 4)
        options = {"stride": stride, "dilation": dilation, "padding": 1, "groups": 2, "layout": layout}
        problem = ConvProblem.from_shapes(x_shape, (6, 2, *kernel), **options, direction="transpose")
        y, w = numbers(problem.y_shape, "float32"), numbers(problem.w_shape, "float32", 1)
        bias = numbers(4, "float32", 2)
        truth = expected(problem, y, w) + bias.reshape((1, 4, 1, 1) if layout == "channels_first" else 4)
        for algorithm in (a for a in ALGORITHMS if isinstance(a, Phases)):
            out = np.full(problem.x_shape, np.nan, np.float32)
            algorithm.prepare(problem, w, bias).run(y, out, 2)
            assert_close(out, truth, "float32")


@pytest.mark.parametrize("direction", ["forward", "transpose"])
def test_weights_that_are_not_finite_reach_no_further_than_their_tap(direction):
    problem = ConvProblem.from_shapes((1, 1, 20), (1, 1, 4), direction=direction)
    source, w = np.ones(problem.source_shape, np.float32), np.ones(problem.w_shape, np.float32)
    w[0, 0, 0] = np.inf
    truth = expected(problem, source, w)
    for algorithm in (a for a in ALGORITHMS if a.refuses(problem) is None):
        out = np.empty(problem.result_shape, np.float32)
        algorithm.prepare(problem, w).run(source, out, 1)
        np.testing.assert_array_equal(np.isfinite(out), np.isfinite(truth))


def test_patches_that_do_not_overlap_are_read_where_they_lie():
    """With places as lanes, each phase of the stride would be copied by itself, and used once."""
    problem = ConvProblem.from_shapes((1, 3, 512, 512), (16, 3, 32, 32), stride=32)
    assert choose(problem).algorithm.name in ("direct", "im2col")


@pytest.mark.parametrize("wide", [1, 5, 7, 8, 9, 11, 12, 15])
def test_depthwise_kernels_of_every_width(wide):
    """Columns are summed some at a time: all of them, a part of them, or one by one."""
    problem = ConvProblem.from_shapes(
        (2, 6, 21, 18), (18, 1, 3, wide), padding=((1, 1), (wide, wide)), groups=18, layout="channels_last"
    )
    x, w = numbers(problem.x_shape, "float32"), numbers(problem.w_shape, "float32", 1)
    out = np.empty(problem.y_shape, np.float32)
    algorithms.Depthwise().prepare(problem, w).run(x, out, 1)
    assert_close(out, expected(problem, x, w), "float32")


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_an_empty_image_shows_zeros_alone(layout):
    """Its border may have results, though there is nothing that a kernel could read."""
    for kernel in ((1, 1), (3, 2)):
        x_shape = (1, 1, 0, 0) if layout == "channels_first" else (1, 0, 0, 1)
        problem = ConvProblem.from_shapes(x_shape, (1, 1, *kernel), padding=((0, 4), (3, 0)), layout=layout)
        for direction in ("forward", "transpose", "weight_gradient"):
            turned = dataclasses.replace(problem, direction=direction)
            source, operand = np.ones(turned.source_shape), np.ones(turned.operand_shape)
            for algorithm in (a for a in ALGORITHMS if a.refuses(turned) is None):
                out = np.full(turned.result_shape, 9, np.float32)
                algorithm.prepare(turned, operand).run(source, out, 1)
                assert not out.any(), algorithm.name


@pytest.mark.parametrize("direction", ["forward", "transpose"])
@pytest.mark.parametrize("groups", [1, 2])
def test_terms_of_what_is_not_finite_are_added_to_the_transform_of_the_rest(direction, groups, monkeypatch):
    """No tile of a large kernel is summed directly for one NaN."""
    monkeypatch.setattr(algorithms.finite, "_BEGINNING", 0)
    options = {"padding": 5, "groups": groups, "direction": direction, "dtype": "float64"}
    shapes = (2, 2 * groups, 40, 30), (3 * groups, 2, 9, 8)
    for more in ({}, {"dilation": (1, 2)}, *([{"stride": (2, 3)}] if direction == "forward" else [{"stride": 2}])):
        problem = ConvProblem.from_shapes(*shapes, **options, **more)
        source, w = numbers(problem.source_shape, "float64"), numbers(problem.w_shape, "float64", 1)
        source[1, 1, 3, 4], source[0, 0, -1, 0], source[0, 1, -1, 0] = np.nan, np.inf, -np.inf
        with np.errstate(all="ignore"):
            truth = expected(problem, source, w)
        monkeypatch.setattr(algorithms.finite, "Im2colPrepared", None)  # summing directly would fail
        for algorithm in (OverlapSave(), algorithms.FourierChannels()):
            if algorithm.refuses(problem) is None:
                out = np.empty(problem.result_shape)
                algorithm.prepare(problem, w).run(source, out, 1)
                finite = np.isfinite(truth)
                np.testing.assert_array_equal(np.isnan(out), np.isnan(truth))
                np.testing.assert_array_equal(np.isfinite(out), finite)
                assert_close(out[finite], truth[finite], "float64")


@pytest.mark.parametrize("direction", ["forward", "transpose", "weight_gradient"])
@pytest.mark.parametrize("where", [None, "source", "operand"])
@pytest.mark.parametrize(("size", "stride", "dilation"), [(1, 1, 1), (2, 2, 1), (2, 1, 3), (3, 4, 2)])
def test_taps_that_never_meet_the_image_are_left_out(direction, where, size, stride, dilation):
    """Of small images under large kernels; also where an infinite number meets the zeros outside through such a tap."""
    problem = ConvProblem.from_shapes(
        (2, size, size, 6),
        (5, 6, 3, 4),
        padding=2 * dilation,
        stride=stride,
        dilation=dilation,
        layout="channels_last",
        direction=direction,
    )
    source, operand = numbers(problem.source_shape, "float32"), numbers(problem.operand_shape, "float32", 1)
    if where is not None:
        {"source": source, "operand": operand}[where].reshape(-1)[0] = np.inf
    with np.errstate(all="ignore"):
        truth = expected(problem, source, operand)
    willing = [a for a in ALGORITHMS if isinstance(a, Trimmed) and a.refuses(problem) is None]
    assert willing or size > 1
    for algorithm in willing:
        out = np.full(problem.result_shape, 9, np.float32)
        algorithm.prepare(problem, operand).run(source, out, 2)
        np.testing.assert_array_equal(np.isnan(out), np.isnan(truth))
        np.testing.assert_allclose(out, truth, rtol=1e-4, atol=1e-4)
