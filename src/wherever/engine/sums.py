"""Sums of an array over everything but its channels, fast and in parts."""

from __future__ import annotations

import numpy as np

from wherever.engine.machine import longest_sum, wide_dtype
from wherever.problem import Array


def over_places(a: Array, channels_last: bool) -> Array | None:
    """Sum (N, C, P), or (N, P, C), of floats over images and places, in the wider type; None if it lies in no order.

    Products with a vector of ones are the fastest sums along either axis; parts of them keep the promise about long
    sums (see `longest_sum`).
    """
    if a.dtype.char not in "fd" or not a.dtype.isnative or not a.flags.c_contiguous or not a.flags.aligned:
        return None
    most, wide = longest_sum(a.dtype), wide_dtype(a.dtype)
    if channels_last:
        a = a.reshape(1, -1, a.shape[-1])
    places = a.shape[1 if channels_last else 2]
    whole = places // most * most
    total = np.zeros(a.shape[2 if channels_last else 1], wide)
    ones = np.ones(most, a.dtype)
    for start, stop, length in ((0, whole, most), (whole, places, places - whole)):
        if start == stop:
            continue
        if channels_last:
            parts = np.matmul(ones[:length], a[0, start:stop].reshape(-1, length, a.shape[2]))
            total += parts.sum(axis=0, dtype=wide)
        else:
            parts = np.matmul(a[:, :, start:stop].reshape(*a.shape[:2], -1, length), ones[:length])
            total += parts.sum(axis=(0, 2), dtype=wide)
    return total
