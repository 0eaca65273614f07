"""PyTorch's convolutions, with its signatures, results and gradients, on this engine."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from wherever.torch.operators import DTYPES, by_input, convolution

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]

Numbers: TypeAlias = int | Sequence[int]

# What this engine does not take (other devices, integers, sparse tensors) and what is wrong go to PyTorch's own
# function, which computes it or says what is wrong in its own words.


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve signals: `torch.nn.functional.conv1d`.

    Parameters
    ----------
    input : Tensor, (N, C, L) or (C, L)
        On a CPU and of floating point or complex numbers; anything else is left to PyTorch.
    weight : Tensor, (K, C / groups, R)
    bias : Tensor, (K,), optional
    stride, dilation : int or (int,)
    padding : int, (int,), "valid" or "same"
    groups : int

    Returns
    -------
    Tensor, (N, K, L') or (K, L')
        In the memory format of ``input``, with gradients of any order.
    """
    return _forward(1, conv1d, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve images: `torch.nn.functional.conv2d`; as `conv1d`, with (N, C, H, W) and (K, C / groups, R, S)."""
    return _forward(2, conv2d, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve volumes: `torch.nn.functional.conv3d`; as `conv1d`, with three spatial dimensions."""
    return _forward(3, conv3d, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
) -> Tensor:
    """Transpose of a convolution of signals: `torch.nn.functional.conv_transpose1d`.

    Parameters
    ----------
    input : Tensor, (N, C, L) or (C, L)
    weight : Tensor, (C, K / groups, R)
    bias : Tensor, (K,), optional
    stride, padding, output_padding, dilation : int or (int,)
    groups : int

    Returns
    -------
    Tensor, (N, K, L') or (K, L')
    """
    return _transposed(1, conv_transpose1d, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
) -> Tensor:
    """Transpose of a convolution of images: `torch.nn.functional.conv_transpose2d`."""
    return _transposed(2, conv_transpose2d, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
) -> Tensor:
    """Transpose of a convolution of volumes: `torch.nn.functional.conv_transpose3d`."""
    return _transposed(3, conv_transpose3d, input, weight, bias, stride, padding, output_padding, groups, dilation)


def _forward(
    spatial: int,
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Numbers,
    padding: Numbers | str,
    dilation: Numbers,
    groups: int,
) -> Tensor:
    arguments = (input, weight, bias, stride, padding, dilation, groups)
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function(tensors):
        return handle_torch_function(function, tensors, *arguments)
    geometry = forward_geometry(spatial, *arguments)
    if geometry is None:
        return theirs(function)(*arguments)
    if input.ndim == spatial + 1:
        return convolution(input.unsqueeze(0), weight, bias, *geometry, "zeros").squeeze(0)
    return convolution(input, weight, bias, *geometry, "zeros")


def _transposed(
    spatial: int,
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Numbers,
    padding: Numbers,
    output_padding: Numbers,
    groups: int,
    dilation: Numbers,
) -> Tensor:
    arguments = (input, weight, bias, stride, padding, output_padding, groups, dilation)
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if has_torch_function(tensors):
        return handle_torch_function(function, tensors, *arguments)
    geometry = transposed_geometry(spatial, *arguments)
    if geometry is None:
        return theirs(function)(*arguments)
    if input.ndim == spatial + 1:
        return by_input(input.unsqueeze(0), weight, bias, *geometry, "zeros").squeeze(0)
    return by_input(input, weight, bias, *geometry, "zeros")


def theirs(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return PyTorch's own function of the same name."""
    own: Callable[..., Tensor] = getattr(torch.nn.functional, function.__name__)
    return own


def forward_geometry(
    spatial: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Numbers,
    padding: Numbers | str,
    dilation: Numbers,
    groups: int,
) -> tuple[Any, ...] | None:
    """Return stride, padding before and after, dilation and groups of a convolution that this engine computes.

    None for everything else, right or wrong.
    """
    if not _ours(spatial, input, weight, bias, weight.shape[:1]):
        return None
    s, d, g = _several(stride, spatial, 1), _several(dilation, spatial, 1), _number(groups, 1)
    if s is None or d is None or g is None:
        return None
    if input.shape[-spatial - 1] != weight.shape[1] * g or weight.shape[0] % g:
        return None
    spans = [(r - 1) * e for r, e in zip(weight.shape[2:], d, strict=True)]
    if padding == "same":
        if any(step != 1 for step in s):
            return None
        before = [span // 2 for span in spans]
        after = [span - half for span, half in zip(spans, before, strict=True)]
    else:
        both = [0] * spatial if padding == "valid" else _several(padding, spatial, 0)
        if both is None:
            return None
        before = after = both
    if any(n + b + a <= span for n, b, a, span in zip(input.shape[-spatial:], before, after, spans, strict=True)):
        return None
    return s, before, after, d, g


def transposed_geometry(
    spatial: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Numbers,
    padding: Numbers,
    output_padding: Numbers,
    groups: int,
    dilation: Numbers,
) -> tuple[Any, ...] | None:
    """Return sizes of the result, and the geometry of the convolution whose transpose this is; None as above."""
    g = _number(groups, 1)
    if g is None or not _ours(spatial, input, weight, bias, (weight.shape[1] * g,) if weight.ndim > 1 else ()):
        return None
    s, d = _several(stride, spatial, 1), _several(dilation, spatial, 1)
    before, more = _several(padding, spatial, 0), _several(output_padding, spatial, 0)
    if s is None or d is None or before is None or more is None:
        return None
    if input.shape[-spatial - 1] != weight.shape[0] or weight.shape[0] % g:
        return None
    if any(extra >= max(step, e) for extra, step, e in zip(more, s, d, strict=True)):
        return None
    size = [
        (n - 1) * step - 2 * b + e * (r - 1) + 1 + extra
        for n, r, step, b, e, extra in zip(input.shape[-spatial:], weight.shape[2:], s, before, d, more, strict=True)
    ]
    if any(n < 1 for n in size):
        return None
    after = [b - extra for b, extra in zip(before, more, strict=True)]
    return size, s, before, after, d, g


def _ours(spatial: int, input: Tensor, weight: Tensor, bias: Tensor | None, channels: Sequence[int]) -> bool:
    """Whether these tensors are of a kind that this engine computes, with dimensions that fit and numbers in them."""
    tensors = (input, weight) if bias is None else (input, weight, bias)
    return (
        torch._C._get_tracing_state() is None  # TorchScript, of which PyTorch has given up the tracing of new operators
        and all(isinstance(tensor, Tensor) and tensor.device.type == "cpu" for tensor in tensors)
        and input.dtype in DTYPES
        and all(tensor.dtype is input.dtype and tensor.layout is torch.strided for tensor in tensors)
        and input.ndim in (spatial + 1, spatial + 2)
        and weight.ndim == spatial + 2
        and (bias is None or tuple(bias.shape) == tuple(channels))
        and 0 not in input.shape
        and 0 not in weight.shape
        and not torch.is_autocast_enabled("cpu")
    )


def _several(value: Any, spatial: int, least: int) -> list[int] | None:
    """One number for each dimension, from one or several; None if that is not what is given."""
    given = list(value) if isinstance(value, (tuple, list)) else [value]
    numbers = []
    for entry in given:
        number = _number(entry, least)
        if number is None:
            return None
        numbers.append(number)
    return numbers * spatial if len(numbers) == 1 else numbers if len(numbers) == spatial else None


def _number(value: Any, least: int) -> int | None:
    if isinstance(value, (bool, float, str)) or value is None:
        return None
    if not isinstance(value, torch.SymInt):
        try:
            value = operator.index(value)
        except TypeError:
            return None
    return value if value >= least else None
