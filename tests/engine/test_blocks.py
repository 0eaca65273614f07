"""Blocks: they cover the output once, and their footprints are what numpy.pad shows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import numbers, problems

from wherever.engine.blocks import cut, gather, runs, scatter


@given(
    start=st.integers(-40, 40),
    length=st.integers(0, 60),
    size=st.integers(1, 12),
    boundary=st.sampled_from(["edge", "reflect", "symmetric", "wrap"]),
)
def test_runs_show_what_pad_shows(start, length, size, boundary):
    x = np.arange(size)
    shown = np.full(length, -1)
    for run in runs(start, length, size, boundary):
        assert (shown[run.foot] == -1).all()
        shown[run.foot] = x[run.x]
    np.testing.assert_array_equal(shown, np.pad(x, 120, mode=boundary)[start + 120 : start + 120 + length])


@given(start=st.integers(-20, 20), length=st.integers(0, 30), size=st.integers(0, 12))
def test_runs_of_a_constant_boundary_lie_inside(start, length, size):
    shown = np.zeros(length, bool)
    for run in runs(start, length, size, 0):
        np.testing.assert_array_equal(np.arange(length)[run.foot] + start, np.arange(size)[run.x])
        shown[run.foot] = True
    places = np.arange(start, start + length)
    np.testing.assert_array_equal(shown, (places >= 0) & (places < size))


@given(problem=problems(directions=("forward",)), places=st.integers(1, 200))
def test_blocks_cover_every_output_once(problem, places):
    seen = np.zeros((problem.batch, 1, *problem.output), int)
    for part in cut(problem, places):
        seen[part.outputs] += 1
        assert np.prod(part.shape) <= max(places, 1)
    assert (seen == 1).all()


@given(problem=problems(directions=("forward",), dtypes=("float64",)), places=st.integers(1, 100))
def test_scatter_is_the_adjoint_of_gather(problem, places):
    if isinstance(problem.boundary, float):
        return  # affine, not linear
    x = numbers((problem.batch, problem.in_channels, *problem.size), "float64")
    if problem.layout == "channels_last":
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    for part in cut(problem, places):
        foot = gather(problem, x, part, np.dtype("float64"))
        sent = numbers(foot.shape, "float64", 1)
        back = np.zeros_like(x)
        scatter(problem, back, part, sent)
        np.testing.assert_allclose(np.vdot(foot, sent), np.vdot(x, back), atol=1e-9)


def test_a_footprint_inside_is_a_view():
    from wherever.problem import ConvProblem

    problem = ConvProblem.from_shapes((1, 2, 50), (1, 2, 3))
    x = numbers((1, 2, 50), "float32")
    for part in cut(problem, 10):
        assert np.may_share_memory(gather(problem, x, part, np.dtype("float32")), x)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_a_footprint_is_copied_in_the_memory_order_of_its_image(layout):
    from wherever.problem import ConvProblem

    shape = (1, 4, 9, 9) if layout == "channels_first" else (1, 9, 9, 4)
    problem = ConvProblem.from_shapes(shape, (1, 4, 3, 3), padding=1, layout=layout)
    x = numbers(shape, "float32")
    x = np.moveaxis(x, -1, 1) if layout == "channels_last" else x
    (part,) = cut(problem, 1000)
    foot = gather(problem, x, part, np.dtype("float32"))
    assert np.argsort(foot.strides).tolist() == np.argsort(x.strides).tolist()
