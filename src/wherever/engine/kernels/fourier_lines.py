"""Convolution of channels by themselves: Fourier transforms along one dimension, sums along the other."""

from __future__ import annotations

from wherever.engine.kernels.codelets import Column, Complex
from wherever.engine.kernels.compile import Target
from wherever.engine.kernels.fourier_channels import Results, Tile, Tiles, names
from wherever.engine.kernels.vector import Array, Int, Kernel, Mask


def fourier_lines(
    target: Target, *, dtype: str, length: int, wide: int, high: int, apart: int, backwards: bool, tail: bool
) -> Kernel:
    """Write y[i, j, c] = bias[c] + sum over a, b of w[a, b, c] x[i + a * apart, j + b, c].

    Lines of places j are transformed; lines i are summed, with the weights of each line a of the kernel, at every
    frequency. Two lines are transformed as one of complex numbers z, and come apart as their spectra z[f] + conj z[-f]
    and (z[f] - conj z[-f]) / i, of which half is kept: they are of real numbers.

    Parameters
    ----------
    length
        Of the transforms.
    wide
        Places of a line that are wanted.
    high
        Lines that are summed together in registers.
    apart
        From one line of the kernel to the next.
    backwards
        Whether sums go over the lines of x, each with the line of the kernel that it meets; then g has ``high`` - 1
        lines of zeros before the kernel's own. Otherwise they go over the lines of the kernel.

    The arrays: x, y, elsewhere (two vectors, and zeros for a line of z), work, roots, bias, odd (one vector that is NaN
    afterwards if any result is not finite), z (f, line, part, lane), strip (line, part, lane), g (vector of channels,
    f, line of the kernel, part, lane); parts are re and im.

    The tables: of x and y as for `Tiles`, with a line for a tile, and an even number of them for each tile; the table
    of pairs of frequencies: places in the workspace; of each tile its numbers of lines of x (even) and of y, and where
    its lines of x and y, its strip and its spans begin; the strips: for each line that the windows see, which of the
    tile's lines of x it is, or -1 (zeros); the spans: for each block of ``high`` lines of y what its sums go over, from
    the first to behind the last.

    The sizes: first and last tile, first and last channel; frequencies; lines of a strip and of the kernel; how far
    apart frequencies are in z.
    """
    lanes = target.lanes(dtype)
    tables = [*names("x", 1), *names("y", 1), "mirrored", "tiles", "strips", "spans"]
    arrays = ["x", "y", "elsewhere", "work", "roots", "bias", "odd", "z", "strip", "g", *tables]
    sizes = ["tile", "end", "channel", "channels", "frequencies", "seen", "taps", "z_frequency"]
    kernel = Kernel("fourier_lines", dtype, lanes, arrays, sizes)
    first, end, channel, channels, frequencies, seen, taps, z_frequency = (kernel.size(name) for name in sizes)
    mirror, numbers, strips, spans = (kernel.table(name) for name in tables[-4:])
    z = kernel.array("z", z_frequency, 2 * lanes, lanes, 1)
    strip, zeros = kernel.array("strip", 2 * lanes, lanes, 1), kernel.array("elsewhere", lanes, 1).moved(2 * lanes)
    g = kernel.array("g", taps * (2 * lanes), 2 * lanes, lanes, 1)
    transform, results = Tile(kernel, (length,), (wide,)), Results(kernel, (wide,))
    passes = range(len(transform.radices[0]))
    work, column = (Column(kernel.array("work", step, lanes, 1)) for step in (1, 2 * lanes))

    def ask_for(spectra: Array, *, write: bool) -> None:
        """Ask for the next two lines at a frequency: frequencies lie far apart, and each misses the first cache."""
        for line in (2, 3):
            for part in range(2):
                spectra[line, part, 0].prefetch(write=write)

    def forward(line: Int, spectra: Array, channel: tuple[Int, Mask | None]) -> None:
        """Transform two lines of x."""
        given = Tiles(kernel, "x", 1, (line, line + 1), channel).line(0, (0,))
        transform.run(0, passes, column, load=given.load)
        with kernel.loop(frequencies) as f:
            a, b = work.load(mirror[f * 2], 0), work.load(mirror[f * 2 + 1], 0)
            both = Column(spectra[f])
            both.store(0, 0, Complex(a.re + b.re, a.im - b.im))
            both.store(1, 0, Complex(a.im + b.im, b.re - a.re))
            ask_for(spectra[f], write=True)

    def inverse(line: Int, spectra: Array, channel: tuple[Int, Mask | None]) -> None:
        """Transform two lines of y back."""
        with kernel.loop(frequencies) as f:
            both = Column(spectra[f])
            a, b = both.load(0, 0), both.load(1, 0)
            work.store(mirror[f * 2 + 1], 0, Complex(a.re + b.im, b.re - a.im))
            work.store(mirror[f * 2], 0, Complex(a.re - b.im, a.im + b.re))
            ask_for(spectra[f], write=False)
        wanted = Tiles(kernel, "y", 1, (line, line + 1), channel)
        transform.run(0, passes[::-1], column, store=results.of(wanted, 0)((0,)), inverse=True)

    def sums(line: Int, start: Int, stop: Int, spectrum: Array, weights: Array) -> None:
        """Some lines of y at one frequency."""
        re, im = kernel.variables(high), kernel.variables(high)
        with kernel.loop(start, stop) as t:
            if backwards:
                fixed, moving, step = strip[t], weights[t - line + (high - 1)], -2 * lanes
            else:
                fixed, moving, step = weights[t], strip[line + t * apart], 2 * lanes
            a, b = (fixed[part, 0].load() for part in range(2))
            for i in range(high):
                u, v = (moving.moved(i * step)[part, 0].load() for part in range(2))
                re[i] = kernel.fma(-b, v, kernel.fma(a, u, re[i]))
                im[i] = kernel.fma(b, u, kernel.fma(a, v, im[i]))
        for i in range(high):
            for part, total in enumerate((re, im)):
                spectrum[line + i, part, 0].store(total[i])

    with kernel.loop(channel, channels, lanes) as c, kernel.loop(first, end) as tile:
        vector = (c, kernel.mask(channels - c) if tail else None)
        x_lines, y_lines, x_first, y_first, slots, blocks = (numbers[tile * 6 + i] for i in range(6))
        with kernel.loop(0, x_lines, 2) as line:
            forward(x_first + line, z.moved(line * (2 * lanes)), vector)
        with kernel.loop(frequencies) as f:
            spectrum, weights = z[f], g[c // lanes * frequencies + f]
            with kernel.loop(seen) as slot:
                shown = strips[slots + slot]
                source = kernel.choose(shown < 0, zeros, spectrum[shown])
                for part in range(2):
                    strip[slot, part, 0].store(source[part, 0].load())
            with kernel.loop(0, y_lines, high) as following:
                line, span = kernel.number(kernel.minimum(following, y_lines - high)), blocks + following // high * 2
                sums(line, spans[span], spans[span + 1], spectrum, weights)
            for part in range(2):  # of a line that is not there, where their number is odd
                spectrum[y_lines, part, 0].store(kernel.splat(0))
        with kernel.loop(0, y_lines, 2) as line:
            inverse(y_first + line, z.moved(line * (2 * lanes)), vector)
    results.close()
    return kernel
