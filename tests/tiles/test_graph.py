"""Rules of axes and graphs of them, without a library of networks: borders as numpy.pad has them, boxes as wholes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wherever
from wherever.tiles import Graph, Node, Operation, Spread, Window
from wherever.tiles.axes import continued, length, locate, real, union
from wherever.tiles.grid import Grid, fitting

PADS = {"edge": "edge", "reflect": "reflect", "symmetric": "symmetric", "wrap": "wrap"}


@given(
    size=st.integers(1, 9),
    low=st.integers(-20, 20),
    count=st.integers(1, 20),
    boundary=st.sampled_from(["zeros", *PADS]),
)
def test_what_lies_outside_is_numpys_and_what_is_needed_is_enough(size, low, count, boundary):
    line = np.arange(size) + 1
    around = max(0, -low, low + count - size)
    options = {"mode": "constant"} if boundary == "zeros" else {"mode": PADS[boundary]}
    expected = np.pad(line, around, **options)[low + around : low + around + count]
    places = continued((low, low + count), size, boundary)
    assert np.array_equal(np.where(places < 0, 0, line[places]), expected)
    runs = real((low, low + count), size, boundary)
    assert all(0 <= a < b <= size for a, b in runs)
    held = np.concatenate([line[a:b] for a, b in runs])
    index = locate(places, runs)
    assert np.array_equal(np.where(index < 0, 0, held[index]), expected)
    assert length(runs) == len(held)


def test_unions():
    assert union([(5, 7), (0, 2), (2, 3), (6, 9)]) == ((0, 3), (5, 9))


def convolutions(size, specifications, boundary):
    """A chain of one-dimensional convolutions and transposed ones on this package's engine, and the same at once."""
    draw = np.random.default_rng(0)
    graph = Graph([Node("x", None, (), (1, size), (-1,), 8)], ())
    whole = [np.random.default_rng(1).standard_normal((1, size))]
    for kernel, stride, dilation, padding, spread in specifications:
        w = draw.standard_normal((1, 1, kernel))
        if spread:
            options = {"stride": stride, "dilation": dilation}
            y = wherever.conv_transpose(whole[-1], w, padding=padding, **options)
            rule = Spread(kernel, stride, dilation, padding)

            def compute(arrays, where, w=w, rule=rule, options=options):
                found = wherever.conv_transpose(arrays[0], w, **options)
                start = rule.start(where.covers[0][0][0])
                ((a, b),) = where.box
                return found[:, a - start : b - start]

        else:
            options = {"stride": stride, "dilation": dilation}
            y = wherever.conv(whole[-1], w, padding=padding, boundary=boundary, **options)
            rule = Window(kernel, stride, dilation, padding, boundary)

            def compute(arrays, where, w=w, options=options):
                return wherever.conv(arrays[0], w, **options)

        whole.append(y)
        node = Node("y", Operation(compute, (rule,)), (len(graph.nodes) - 1,), y.shape, (-1,), 8)
        graph.outputs = (graph.add(node),)
    return graph, whole[0], whole[-1]


@given(
    size=st.integers(20, 80),
    specifications=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    boundary=st.sampled_from(["zeros", *PADS]),
    tile=st.integers(1, 50),
)
def test_boxes_are_those_of_the_whole(size, specifications, boundary, tile):
    try:
        graph, x, y = convolutions(size, specifications, boundary)
    except ValueError:  # a kernel that does not fit what is left
        return
    if not y.size:
        return
    found = [graph.run(lambda box: x[:, slice(*box[0])], boxes)[0] for boxes in Grid.of(graph, (tile,))]
    assert np.allclose(np.concatenate(found, axis=1), y, atol=1e-12 * max(1, np.abs(y).max()))


def test_fields_are_composed():
    graph, _, _ = convolutions(60, [(3, 1, 1, 1, False), (2, 2, 1, 0, False), (3, 1, 2, 0, False)], "zeros")
    field = graph.field()
    # 3, then 1 more by the stride's window, then 2 * 2 places of it at a stride of 2.
    assert field.size == (3 + 1 + 2 * 2 * 2,)
    assert field.stride == (2,)
    assert field.offset == (-1,)
    assert field.axes[0].of(10) == (19, 31)
    assert str(field) == "sees 12, stride 2, from -1"
    assert graph.alignment() == (1,)


def test_tiles_fit_the_budget():
    graph, _, _ = convolutions(4000, [(5, 1, 1, 2, False)] * 3, "zeros")
    for memory in (2_000, 20_000, 60_000):
        grid = fitting(graph, memory)
        middle = grid.boxes([min(1, grid.shape[0] - 1)])
        assert graph.memory(middle) <= memory
        assert len(grid) > 1
    assert len(fitting(graph, 1_000_000)) == 1
    with pytest.raises(ValueError, match="not enough for the smallest tile"):
        fitting(graph, 50)
