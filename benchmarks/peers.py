"""Who computes a case: ours first, then every library that is installed and can, each as its users would call it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.signal
from cases import Case
from contender import Contender

import wherever
from wherever.engine.plan import choose
from wherever.ops import plan
from wherever.problem import ConvProblem

Array = np.ndarray[Any, Any]


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


torch, cv2, jax = _installed("torch"), _installed("cv2"), _installed("jax")


def inference() -> contextlib.AbstractContextManager[Any]:
    """PyTorch without its bookkeeping for gradients."""
    return contextlib.nullcontext() if torch is None else torch.inference_mode()


def set_threads(threads: int) -> None:
    """Set how many threads every library uses."""
    wherever.set_threads(threads)
    if torch is not None:
        torch.set_num_threads(threads)
    if cv2 is not None:
        cv2.setNumThreads(threads)


def versions() -> dict[str, str]:
    """The libraries that are here, and their versions."""
    modules = {"wherever": wherever, "NumPy": np, "SciPy": scipy, "PyTorch": torch, "OpenCV": cv2, "JAX": jax}
    return {name: module.__version__ for name, module in modules.items() if module is not None}


@dataclass(frozen=True)
class Operands:
    """The numbers of a case: what streams through, and what is fixed beforehand."""

    source: Array
    operand: Array


def problem_of(case: Case, layout: str) -> ConvProblem:
    """The case as our planner sees it."""
    n, c, *size = case.x
    x_shape = case.x if layout == "channels_first" else (n, *size, c)
    options = {**case.options, "dtype": case.dtype, "layout": layout, "direction": case.direction}
    return ConvProblem.from_shapes(x_shape, case.w, **options)


def operands_of(case: Case) -> Operands:
    """Random numbers."""
    random, dtype = np.random.default_rng(0), np.dtype(case.dtype)
    y = (case.x[0], case.w[0], *case.output)
    source, operand = {
        "forward": (case.x, case.w),
        "transpose": (y, case.w),
        "weight_gradient": (case.x, y),
    }[case.direction]
    if dtype.kind == "u":
        return Operands(random.integers(0, 256, source, dtype), random.integers(0, 256, operand, dtype))
    return Operands(random.standard_normal(source, dtype), random.standard_normal(operand, dtype))


def algorithm_of(case: Case, layout: str) -> str:
    """The name of the algorithm that our planner chooses."""
    if case.kind not in ("conv", "training", "threads"):
        return ""
    return choose(problem_of(case, layout), prepared=case.kind != "training").algorithm.name


def contenders(case: Case, numbers: Operands, layout: str, threads: int, *, measure: bool) -> Iterator[Contender]:
    """All who can compute the case, ours first."""
    if case.kind == "threads":
        yield ours(case, numbers, layout, 2, measure=measure)
        yield dataclasses.replace(ours(case, numbers, layout, 1, measure=measure), name="wherever, 1 thread")
    elif case.kind == "gaussian":
        yield from gaussians(case, numbers.source)
    elif case.kind == "template":
        yield from templates(numbers)
    else:
        yield ours(case, numbers, layout, threads, measure=measure)
        if torch is not None:
            yield from pytorch(case, numbers)
        if jax is not None and case.direction == "forward" and case.boundary == "zeros":
            yield in_jax(case, numbers)
        if case.w[:2] == (1, 1) and case.groups == 1 and case.direction == "forward" and max(case.stride) == 1:
            yield from scientific(case, numbers.source[0, 0], numbers.operand[0, 0])
            if cv2 is not None:
                yield from opencv(case, numbers.source[0, 0], numbers.operand[0, 0])


# Ours.


def ours(case: Case, numbers: Operands, layout: str, threads: int, *, measure: bool = False) -> Contender:
    """Ours, as a user would: ``out`` given, and weights prepared, unless they come with every call."""
    problem = problem_of(case, layout)
    source, operand = numbers.source, numbers.operand
    if layout == "channels_last":
        source = _last(source)
        operand = _last(operand) if case.direction == "weight_gradient" else operand
    out = np.empty(problem.result_shape, problem.dtype)
    back = _first if layout == "channels_last" and case.direction != "weight_gradient" else np.asarray
    if case.direction == "weight_gradient" or case.kind == "training":

        def run() -> Array:
            choose(problem, threads=threads, prepared=False).prepare(operand).run(source, out, threads)
            return out

        return Contender("wherever", run, back)
    if case.direction == "transpose":
        prepared = choose(problem, threads=threads, measure=measure).prepare(operand)

        def transpose() -> Array:
            prepared.run(source, out, threads)
            return out

        return Contender("wherever", transpose, back)
    options = {**case.options, "dtype": case.dtype, "layout": layout, "threads": threads, "measure": measure}
    f = plan(problem.x_shape, case.w, **options).prepare(operand)
    return Contender("wherever", lambda: f(source, out=out), back)


def _last(a: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(a, 1, -1))


def _first(a: Array) -> Array:
    return np.moveaxis(a, -1, 1)


# PyTorch, and oneDNN through it. Boundaries other than zeros are padded first, as its users do.

_PADDING_MODES = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def pytorch(case: Case, numbers: Operands) -> Iterator[Contender]:
    """Eager in both memory layouts, and oneDNN with its weights reordered beforehand."""
    spatial = len(case.w) - 2
    rate = 2e9 if case.dtype == "float64" else 1e9 if case.x[1] == 1 else 2e10 if case.groups == 1 else 3e9
    formats = {"": torch.contiguous_format}
    if case.x[1] > 1 and spatial > 1:
        formats[" channels_last"] = _last_format(spatial)
    for suffix, form in formats.items():
        source = torch.from_numpy(numbers.source).contiguous(memory_format=form)
        operand = torch.from_numpy(numbers.operand).contiguous(memory_format=form)
        run = _eager(case, source, operand)
        if run is not None:
            yield Contender(f"PyTorch{suffix}", run, _from_torch, rate)
    prepares = case.direction != "weight_gradient" and case.kind != "training"
    if case.boundary == "zeros" and case.dtype == "float32" and prepares:
        with contextlib.suppress(RuntimeError):  # what oneDNN has no kernel for
            yield Contender("oneDNN prepacked", _prepacked(case, numbers, _last_format(spatial)), _from_torch, rate)


def _from_torch(result: Any) -> Array:
    array: Array = result.numpy()
    return array


def _eager(case: Case, source: Any, operand: Any) -> Callable[[], Any] | None:
    spatial, functional = len(case.w) - 2, torch.nn.functional
    geometry = [list(case.stride), list(case.padding), list(case.dilation)]
    if case.direction != "forward":
        backward, tail = torch.ops.aten.convolution_backward, [False, [0] * spatial, case.groups]
        if case.direction == "weight_gradient":
            like = torch.empty(case.w, dtype=source.dtype)
            return lambda: backward(operand, source, like, None, *geometry, *tail, [False, True, False])[1]
        like = torch.empty(case.x, dtype=source.dtype)
        if not source.is_contiguous():
            like = like.contiguous(memory_format=_last_format(spatial))
        return lambda: backward(source, like, operand, None, *geometry, *tail, [True, False, False])[0]
    function = getattr(functional, f"conv{spatial}d")
    if case.boundary == "zeros":
        return lambda: function(source, operand, None, *geometry, case.groups)
    mode = _PADDING_MODES.get(case.boundary)
    if mode is None or max(case.padding) >= min(case.x[2:]):
        return None
    around = [p for p in reversed(case.padding) for _ in range(2)]
    geometry[1] = [0] * spatial
    pad = functional.pad
    return lambda: function(pad(source, around, mode), operand, None, *geometry, case.groups)


def _last_format(spatial: int) -> Any:
    return {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}[spatial]


def _prepacked(case: Case, numbers: Operands, form: Any) -> Callable[[], Any]:
    source, weight = torch.from_numpy(numbers.source), torch.from_numpy(numbers.operand)
    geometry = [list(case.stride), list(case.padding), list(case.dilation)]
    if case.direction == "transpose":
        # The gradient by the input is a transposed convolution, if it reaches the end of the image.
        more = [
            n - ((m - 1) * s - 2 * p + (r - 1) * d + 1)
            for n, m, r, s, p, d in zip(
                case.x[2:], case.output, case.w[2:], case.stride, case.padding, case.dilation, strict=True
            )
        ]
        source = source.contiguous(memory_format=form)
        stride, padding, dilation = geometry
        order = [padding, more, stride, dilation, case.groups]
        packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *order, list(source.shape))
        transpose = torch.ops.mkldnn._convolution_transpose_pointwise
        return lambda: transpose(source, packed, None, *order, "none", [], "")
    if len(case.w) == 3:  # a signal is an image of one row
        source, weight = source[:, :, None], weight[:, :, None]
        geometry = [[neutral, *given] for neutral, given in zip((1, 0, 1), geometry, strict=True)]
        form = torch.channels_last
    source = source.contiguous(memory_format=form)
    stride, padding, dilation = geometry
    reorder = getattr(torch._C._nn, f"mkldnn_reorder_conv{weight.ndim - 2}d_weight")
    packed = reorder(weight.to_mkldnn(), padding, stride, dilation, case.groups, list(source.shape))
    convolve = torch.ops.mkldnn._convolution_pointwise
    row = len(case.w) == 3

    def run() -> Any:
        y = convolve(source, packed, None, padding, stride, dilation, case.groups, "none", [], "")
        return y[:, :, 0] if row else y

    return run


def in_jax(case: Case, numbers: Operands) -> Contender:
    """JAX, compiled, with channels last."""
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    places = "DHW"[-(len(case.w) - 2) :]
    x = jax.numpy.asarray(_last(numbers.source))
    w = jax.numpy.asarray(np.ascontiguousarray(np.moveaxis(numbers.operand, (0, 1), (-1, -2))))
    convolve = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(
            x,
            w,
            window_strides=case.stride,
            padding=[(p, p) for p in case.padding],
            rhs_dilation=case.dilation,
            dimension_numbers=(f"N{places}C", f"{places}IO", f"N{places}C"),
            feature_group_count=case.groups,
        )
    )
    return Contender("JAX", lambda: convolve(x, w).block_until_ready(), lambda y: _first(np.asarray(y)), 1e9)


# Images and signals of one channel: SciPy and OpenCV.

_SCIPY_MODES = {"zeros": "constant", "edge": "nearest", "reflect": "mirror", "symmetric": "reflect", "wrap": "wrap"}


def scientific(case: Case, image: Array, kernel: Array) -> Iterator[Contender]:
    """SciPy's sums, its overlap-add, and overlap-save through its Fourier transform with the kernel's spectrum kept."""
    mode = _SCIPY_MODES[case.boundary]
    sums, rate = (scipy.ndimage.correlate, 2e8) if image.ndim > 1 else (scipy.ndimage.correlate1d, 4e8)
    yield Contender("scipy.ndimage", lambda: sums(image, kernel, mode=mode), _batched, rate)
    if case.boundary == "zeros":
        flipped = np.ascontiguousarray(np.flip(kernel))
        yield Contender("scipy.signal", lambda: scipy.signal.oaconvolve(image, flipped, "same"), _batched)
    for share in (1, 4, 16) if image.ndim > 1 else (1, 8, 64):
        lengths = [max(n // share, 3 * r) for n, r in zip(image.shape, kernel.shape, strict=True)]
        if share == 1 or all(2 * m <= n for m, n in zip(lengths, image.shape, strict=True)):
            name = "scipy.fft, whole" if share == 1 else f"scipy.fft, tiles of {lengths[0]}"
            yield Contender(name, _overlap_save(case, image, kernel, None if share == 1 else lengths), _batched)


def _batched(y: Array) -> Array:
    return y[None, None]


def _overlap_save(case: Case, image: Array, kernel: Array, lengths: list[int] | None) -> Callable[[], Array]:
    """Tiles of about these lengths (None: one), the kernel's spectrum prepared, in memory that is used again."""
    shape, padding = image.shape, [(p, p) for p in case.padding]
    outer = [n + 2 * p for n, p in zip(shape, case.padding, strict=True)]
    lengths = [scipy.fft.next_fast_len(n, real=True) for n in lengths or outer]
    steps = [n - r + 1 for n, r in zip(lengths, kernel.shape, strict=True)]
    counts = [-(-n // step) for n, step in zip(shape, steps, strict=True)]
    axes = tuple(range(-image.ndim, 0))
    spectrum = scipy.fft.rfftn(kernel, lengths).conj()
    whole = [(c - 1) * step + n for c, step, n in zip(counts, steps, lengths, strict=True)]
    padded = np.zeros([max(n, m) for n, m in zip(whole, outer, strict=True)], image.dtype)
    inner = tuple(slice(p, p + n) for p, n in zip(case.padding, shape, strict=True))
    every = tuple(slice(None, None, step) for step in steps)
    order = [axis for pair in zip(range(image.ndim), range(image.ndim, 2 * image.ndim), strict=True) for axis in pair]

    def run() -> Array:
        if case.boundary == "zeros":
            padded[inner] = image
        else:
            padded[tuple(slice(0, n) for n in outer)] = np.pad(image, padding, case.boundary)
        tiles = np.lib.stride_tricks.sliding_window_view(padded, lengths)[every]
        y = scipy.fft.irfftn(scipy.fft.rfftn(tiles, axes=axes) * spectrum, lengths, axes=axes)
        y = y[(..., *(slice(0, step) for step in steps))].transpose(order)
        y = y.reshape([c * step for c, step in zip(counts, steps, strict=True)])
        return y[tuple(slice(0, n) for n in shape)]

    return run


def opencv(case: Case, image: Array, kernel: Array) -> Iterator[Contender]:
    """OpenCV's filter2D, which has every boundary but "wrap"; that is copied around the image first."""
    kinds = {
        "zeros": cv2.BORDER_CONSTANT,
        "edge": cv2.BORDER_REPLICATE,
        "reflect": cv2.BORDER_REFLECT_101,
        "symmetric": cv2.BORDER_REFLECT,
    }
    matrix, small = (image, kernel) if image.ndim == 2 else (image[None], kernel[None])
    depth = cv2.CV_32F if case.dtype == "float32" else cv2.CV_64F
    out = np.empty_like(matrix)
    shape = (1, 1, *image.shape)
    if case.boundary in kinds:
        border = kinds[case.boundary]
        run = lambda: cv2.filter2D(matrix, depth, small, dst=out, borderType=border)  # noqa: E731
    else:
        high, wide = ([*case.padding, 0] if image.ndim == 2 else [0, *case.padding])[:2]

        def run() -> Array:
            padded = cv2.copyMakeBorder(matrix, high, high, wide, wide, cv2.BORDER_WRAP)
            y = cv2.filter2D(padded, depth, small, borderType=cv2.BORDER_CONSTANT)
            return y[high : high + out.shape[0], wide : wide + out.shape[1]]

    yield Contender("OpenCV", run, lambda y: y.reshape(shape))


def gaussians(case: Case, source: Array) -> Iterator[Contender]:
    """Gaussian filters, with SciPy's radius of 4 sigma."""
    image = source[0, 0] if case.x[1] == 1 else _last(source)[0]
    sigma, mode = case.sigma, _SCIPY_MODES[case.boundary]
    out, other = np.empty_like(image), np.empty_like(image)
    mine, theirs = _own("wherever.ndimage", "gaussian_filter"), scipy.ndimage.gaussian_filter
    yield Contender("wherever", lambda: mine(image, sigma, mode=mode, output=out, axes=(0, 1)))
    yield Contender("scipy.ndimage", lambda: theirs(image, sigma, mode=mode, output=other, axes=(0, 1)))
    if cv2 is not None:
        size, filtered = (2 * round(4 * sigma) + 1,) * 2, np.empty_like(image)
        border = cv2.BORDER_REFLECT_101
        yield Contender("OpenCV", lambda: cv2.GaussianBlur(image, size, sigma, dst=filtered, borderType=border))


def templates(numbers: Operands) -> Iterator[Contender]:
    """Normalised cross-correlation, of images with channels last."""
    image, template = _last(numbers.source)[0], _last(numbers.operand)[0]
    mine = _own("wherever.find", "match_template")
    yield Contender("wherever", lambda: mine(image, template))
    if cv2 is not None:
        yield Contender("OpenCV", lambda: cv2.matchTemplate(image, template, cv2.TM_CCOEFF_NORMED))


def _own(module: str, name: str) -> Callable[..., Array]:
    """A function of ours that may not be there yet."""
    try:
        function: Callable[..., Array] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise NotImplementedError(f"{module}.{name} does not exist") from None
    return function
