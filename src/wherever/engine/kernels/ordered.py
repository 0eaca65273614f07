"""Sums in order: one term after the other, each product rounded, bit for bit what a plain loop of C computes."""

from __future__ import annotations

from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.vector import Int, Kernel, Mask


def ordered(target: Target, *, dtype: str, across: int) -> Kernel:
    """Write y[i] = sum over j of w[j] x[offset[j] + i], for i below ``places``.

    A convolution of one channel is of this form: the image is one long row of places, and offset[j] says how far
    from place i tap j looks. (What it computes at the end of each image row, where windows run over into the
    next, is not used.) ``across`` vectors of places are summed at once.
    """
    lanes = target.lanes(dtype)
    kernel = Kernel("ordered", dtype, lanes, ["x", "w", "y", "offsets"], ["taps", "places"])
    taps, places = kernel.size("taps"), kernel.size("places")
    x, w, y = (kernel.array(name, 1) for name in ("x", "w", "y"))
    offset = kernel.table("offsets")

    def tile(i: Int, width: int, mask: Mask | None = None) -> None:
        sums = kernel.variables(width)
        with kernel.loop(taps) as j:
            window, weight = x.moved(offset[j]), w[j].splat()
            for v in range(width):
                sums[v] = sums[v] + weight * window[i + v * lanes].load(mask)
        for v in range(width):
            y[i + v * lanes].store(sums[v], mask)

    whole = places // (across * lanes) * (across * lanes)
    with kernel.loop(0, whole, across * lanes) as i:
        tile(i, across)
    with kernel.loop(whole, places, lanes) as i:
        tile(i, 1, kernel.mask(places - i))
    return kernel
