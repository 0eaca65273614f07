"""Filters of images of one channel: how the generated kernel is asked for."""

import numpy as np
import pytest

from wherever.engine.algorithms.filter import STREAMED_BYTES, Filter, FilterPrepared
from wherever.problem import ConvProblem


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_large_images_of_one_channel_are_written_past_the_caches_in_any_layout(layout, monkeypatch):
    side = int((STREAMED_BYTES / 4) ** 0.5) // 64 * 64 + 64
    shape = (1, 1, side, side) if layout == "channels_first" else (1, side, side, 1)
    problem = ConvProblem.from_shapes(shape, (1, 1, 3, 3), dtype="float32", padding=1, layout=layout)
    streamed = []

    def noticed(prepared, source, result, apart, past):
        streamed.append(past)
        return kernel(prepared, source, result, apart, past)

    kernel = FilterPrepared._kernel
    monkeypatch.setattr(FilterPrepared, "_kernel", noticed)
    weights = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    image = np.ones(shape, np.float32)
    out = np.empty(shape, np.float32)
    Filter().prepare(problem, weights).run(image, out, 1)
    assert streamed == [True]
    assert (out.reshape(side, side)[1:-1, 1:-1] == 36).all()
