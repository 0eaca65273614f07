"""The same over Dask: lazy arrays through the convolutions, and tiles and detectors on a cluster of workers."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import math
import pickle
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wherever import ops
from wherever.problem import Boundary, ConvProblem, Padding, one_of
from wherever.tiles.axes import Spread, Window, continued, locate, real
from wherever.tiles.graph import Box
from wherever.tiles.work import Array, Recipe, Reduce, Work, compute

__all__ = ["conv", "conv_transpose", "convolve", "correlate"]

_AHEAD = 3  # tiles for each thread of the workers that are handed out at a time
_KEPT = 4  # functions that a worker keeps ready

# ------------------------------------------------------------------------------------------------- tiles on a cluster


@contextlib.contextmanager
def connected(client: Any) -> Iterator[Any]:
    """Give a client of a cluster; one that is made here of an address is closed again."""
    distributed = _dask("distributed")
    if isinstance(client, distributed.Client):
        yield client
    elif isinstance(client, str):
        try:
            own = distributed.Client(client, timeout=10)
        except (OSError, ValueError) as error:
            raise OSError(
                f"client: there is no Dask scheduler at {client} ({error}); start one: dask scheduler"
            ) from None
        try:
            yield own
        finally:
            own.close()
    else:
        raise TypeError(f"client: expected a distributed.Client or its address, got {type(client).__name__}")


def each_there(client: Any, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Compute `function(item)` for every item on a cluster; give positions and results as they come.

    Few items are handed out at a time, so results do not pile up. What a lost worker had is computed again by
    the others, and what it knew of the function is sent again.
    """
    distributed, pickler = _dask("distributed"), _dask("cloudpickle")
    with connected(client) as there:
        token = uuid.uuid4().hex
        # As bytes, so that what a worker cannot load is the error of a task; the scheduler never looks into it.
        known = there.submit(_itself, (token, pickler.dumps(function)), key=f"wherever-function-{token}")
        threads = max(1, sum(there.nthreads().values()))
        waiting = iter(enumerate(items))
        place: dict[str, int] = {}

        def hand_out(count: int) -> list[Any]:
            futures = []
            for number, item in itertools.islice(waiting, count):
                key = f"wherever-tile-{token}-{number}"
                place[key] = number
                futures.append(there.submit(_applied, known, item, key=key))
            return futures

        running = distributed.as_completed(hand_out(_AHEAD * threads))
        for future in running:
            result = future.result()
            number = place.pop(future.key)
            for more in hand_out(1):
                running.add(more)
            del future
            yield number, result


def computed_there(
    client: Any, recipe: Recipe, todo: Sequence[tuple[int, tuple[Box, ...]]], reduce: Reduce | None = None
) -> Iterator[tuple[int, tuple[Box, ...], Any]]:
    """Compute tiles of some work on a cluster, whose workers read the source themselves, or what is made of each."""
    tiles = _Tiles(recipe, reduce or compute)
    for place, values in each_there(client, tiles, [boxes[0] for _, boxes in todo]):
        number, boxes = todo[place]
        yield number, boxes, values


class _Tiles:
    """Computes tiles in a worker, which makes the work once."""

    def __init__(self, recipe: Recipe, reduce: Reduce) -> None:
        self.recipe, self.reduce = recipe, reduce
        self.work: Work | None = None

    def __call__(self, box: Box) -> Any:
        self.work = self.work or self.recipe.work()
        return self.reduce(self.work, box)


def _itself(value: Any) -> Any:
    return value


_loaded: dict[str, Callable[[Any], Any]] = {}


def _applied(known: tuple[str, bytes], item: Any) -> Any:
    """Apply a function that was sent as bytes, and is kept for the next items."""
    token, content = known
    function = _loaded.get(token)
    if function is None:
        function = pickle.loads(content)
        while len(_loaded) >= _KEPT:
            _loaded.pop(next(iter(_loaded)), None)
        _loaded[token] = function
    return function(item)


def _dask(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f'{module} is not installed: pip install "wherever[dask]"', name=module) from None


# --------------------------------------------------------------------------------------------------------- lazy arrays


def conv(
    x: Any,
    w: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    boundary: Boundary = "zeros",
    layout: str = "channels_first",
) -> Any:
    """Convolve a Dask array, lazily: `wherever.conv` on every chunk and what the chunk needs of its neighbours.

    Parameters
    ----------
    x : dask.array.Array
        Chunked in any way along its spatial axes (and the batch); channels are taken together.
    w, bias : array_like
        In memory.
    stride, padding, dilation, groups, boundary, layout
        As in `wherever.conv`.

    Returns
    -------
    dask.array.Array
        Its chunks are those of x, divided by the stride.

    Raises
    ------
    ValueError, TypeError
        As `wherever.conv`, when called, not when computed.
    """
    x = _lazy(x)
    w = np.asarray(w)
    bias = None if bias is None else np.asarray(bias)
    kind = _kind(x, w, bias)
    problem = ConvProblem.from_shapes(
        x.shape if x.ndim == w.ndim else (1, *x.shape),
        w.shape,
        dtype=kind,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        boundary=boundary,
        layout=layout,
    )
    mode, fill = (boundary, 0) if isinstance(boundary, str) else ("zeros", boundary)
    rules = [
        Window(k, s, d, before, mode)
        for k, s, d, (before, _) in zip(problem.kernel, problem.stride, problem.dilation, problem.padding, strict=True)
    ]
    run = functools.partial(
        ops.conv, w=w, bias=bias, stride=problem.stride, dilation=problem.dilation, groups=groups, layout=layout
    )
    return _in_chunks(x, run, rules, problem.output, w.shape[0], kind, fill, layout)


def conv_transpose(
    x: Any,
    w: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    layout: str = "channels_first",
) -> Any:
    """Transposed convolution of a Dask array, lazily, as `wherever.conv_transpose` does.

    Parameters and result are those of `conv` here and of `wherever.conv_transpose`.
    """
    x = _lazy(x)
    w = np.asarray(w)
    bias = None if bias is None else np.asarray(bias)
    kind = _kind(x, w, bias)
    problem = ConvProblem.transposed(
        x.shape if x.ndim == w.ndim else (1, *x.shape),
        w.shape,
        dtype=kind,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
        layout=layout,
    )
    rules = [
        Spread(k, s, d, before)
        for k, s, d, (before, _) in zip(problem.kernel, problem.stride, problem.dilation, problem.padding, strict=True)
    ]
    settings: dict[str, Any] = {
        "stride": problem.stride,
        "dilation": problem.dilation,
        "groups": groups,
        "layout": layout,
    }
    run = functools.partial(ops.conv_transpose, w=w, bias=bias, **settings)
    return _in_chunks(x, run, rules, problem.size, w.shape[1] * groups, kind, 0, layout)


def correlate(a: Any, v: npt.ArrayLike, mode: str = "full", boundary: Boundary = "zeros") -> Any:
    """Correlate a Dask array with a kernel, lazily, as `wherever.correlate` does.

    Parameters
    ----------
    a : dask.array.Array
    v : array_like
        In memory, with as many dimensions; with "valid" not larger than a.
    mode : {"full", "same", "valid"}
    boundary
        As in `wherever.correlate`.

    Returns
    -------
    dask.array.Array
    """
    return _plain(a, np.asarray(v).conj(), mode, boundary)


def convolve(a: Any, v: npt.ArrayLike, mode: str = "full", boundary: Boundary = "zeros") -> Any:
    """Convolve a Dask array with a kernel, lazily, as `wherever.convolve` does: `correlate` with the kernel flipped."""
    kernel = np.asarray(v)
    return _plain(a, kernel[(slice(None, None, -1),) * kernel.ndim], mode, boundary)


def _plain(a: Any, kernel: Array, mode: str, boundary: Boundary) -> Any:
    a = _lazy(a)
    if kernel.ndim != a.ndim:
        raise ValueError(f"v: {kernel.ndim} dimensions, but a has {a.ndim}")
    mode = one_of("mode", mode, ("full", "same", "valid"))
    padding = [{"full": (k - 1, k - 1), "same": (k // 2, (k - 1) // 2), "valid": (0, 0)}[mode] for k in kernel.shape]
    return conv(a[None], kernel[None, None], padding=padding, boundary=boundary)[0]


# -------------------------------------------------------------------------------------------------------------- chunks


def _lazy(x: Any) -> Any:
    if not isinstance(x, _dask("dask.array").Array):
        raise TypeError(f"expected a dask.array.Array, got {type(x).__name__}; for NumPy's arrays see wherever itself")
    return x


def _kind(x: Any, w: Array, bias: Array | None) -> np.dtype[Any]:
    """The type of the result, as `wherever.conv` has it."""
    one = np.ones((1, 1, 1), w.dtype)
    return ops.conv(np.ones((1, 1, 1), x.dtype), one, None if bias is None else np.ones(1, bias.dtype)).dtype


def _in_chunks(
    x: Any,
    run: Callable[[Array], Array],
    rules: Sequence[Window | Spread],
    output: Sequence[int],
    channels: int,
    dtype: np.dtype[Any],
    fill: Any,
    layout: str,
) -> Any:
    """Blocks of output, one for each chunk of x, each from what it reads of x, continued beyond the borders."""
    da, delayed = _dask("dask.array"), _dask("dask").delayed(_block, pure=True)
    last = layout == "channels_last"
    first = x.ndim - len(rules) - last
    axes = tuple(range(first, first + len(rules)))
    channel = x.ndim - 1 if last else first - 1
    x = x.rechunk({channel: -1})  # channels are summed over
    cuts = [_cuts(x.chunks[axis], rule, n) for axis, rule, n in zip(axes, rules, output, strict=True)]

    def blocks(part: Any, holds: tuple[Any, ...]) -> Any:
        """Cut the axes that are left, one after the other."""
        number = len(holds)
        if number < len(axes):
            axis, rule, n = axes[number], rules[number], x.shape[axes[number]]
            found = []
            for box in itertools.pairwise(cuts[number]):
                cover = rule.cover(box)
                runs = real(cover, n, rule.boundary)
                pieces = [part[(slice(None),) * axis + (slice(*each),)] for each in runs]
                seen = pieces[0] if len(pieces) == 1 else da.concatenate(pieces, axis=axis)
                start = rule.start(cover[0]) if isinstance(rule, Spread) else box[0]
                hold = (axis, runs, cover, n, rule.boundary, (box[0] - start, box[1] - start))
                found.append(blocks(seen, (*holds, hold)))
            return found[0] if len(found) == 1 else da.concatenate(found, axis=axis)
        shape = list(part.shape)
        shape[channel] = channels
        for axis, *_, (low, high) in holds:
            shape[axis] = high - low
        images = range(1) if channel == 0 or first == 0 else range(part.numblocks[0])
        starts = [0, *np.cumsum(part.chunks[0]).tolist()]
        made = []
        for image in images:  # of a batch, in the chunks in which they are
            some = part[starts[image] : starts[image + 1]] if len(images) > 1 else part
            if len(images) > 1:
                shape[0] = starts[image + 1] - starts[image]
            block = delayed(some.rechunk(-1).to_delayed().item(), run, holds, fill)
            made.append(da.from_delayed(block, tuple(shape), dtype))
        return made[0] if len(made) == 1 else da.concatenate(made, axis=0)

    return blocks(x, ())


def _block(x: Array, run: Callable[[Array], Array], holds: Sequence[Any], fill: Any) -> Array:
    """One block: what is there, continued to what is read; convolved, and cut to what was asked for."""
    for axis, runs, cover, n, boundary, _ in holds:
        index = locate(continued(cover, n, boundary), runs)
        if len(index) == x.shape[axis] and (index == np.arange(len(index))).all():
            continue
        place: list[Any] = [slice(None)] * x.ndim
        place[axis] = index < 0
        x = np.take(x, np.maximum(index, 0), axis=axis)
        x[tuple(place)] = fill
    found = run(x)
    inside: list[Any] = [slice(None)] * found.ndim
    for axis, *_, (low, high) in holds:
        inside[axis] = slice(low, high)
    cut: Array = found[tuple(inside)]
    return cut


def _cuts(chunks: Sequence[int], rule: Window | Spread, output: int) -> list[int]:
    """Where an axis of the output is cut, so that its blocks belong to the chunks of x."""
    cuts = {min(max(math.ceil(int(end) / rule.step), 0), output) for end in np.cumsum(chunks)[:-1]}
    return sorted({0, *cuts, output}) if output else [0, 0]
