"""Depthwise layers whose channels lie first: turned a few channels at a time, images together, odd types, threads."""

import numpy as np
import pytest
from strategies import assert_close, expected, numbers

from wherever.engine.algorithms import Depthwise, depthwise
from wherever.problem import ConvProblem


@pytest.mark.parametrize("part_bytes", [2 << 20, 100_000, 20_000, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("channels", "size", "batch"), [(37, (19, 23), 3), (130, (7, 9), 2), (16, (40,), 5)])
def test_channels_first(channels, size, batch, dtype, part_bytes, monkeypatch):
    """All at once, by images, by vectors of channels, and in parts of an image."""
    monkeypatch.setattr(depthwise, "PART_BYTES", part_bytes)
    for stride, boundary in ((1, 0), (2, 1.5), (1, "reflect")):
        w_shape = (channels, 1, *[3] * len(size))
        options = {"groups": channels, "padding": 1, "stride": stride, "boundary": boundary, "dtype": dtype}
        problem = ConvProblem.from_shapes((batch, channels, *size), w_shape, **options)
        x, w, bias = (numbers(shape, dtype, i) for i, shape in enumerate((problem.x_shape, w_shape, channels)))
        truth = expected(problem, x, w) + bias.reshape(-1, *[1] * len(size))
        prepared = Depthwise().prepare(problem, w, bias)
        for given in (x, x.astype(x.dtype.newbyteorder()), x[:, ::-1].copy()[:, ::-1]):
            for threads in (1, 3):
                out = np.full(problem.y_shape, np.nan, dtype)
                prepared.run(given, out, threads)
                assert_close(out, truth, dtype)
