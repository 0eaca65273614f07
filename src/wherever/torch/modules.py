"""PyTorch's convolutional layers on this engine: the same parameters, with the weights packed once and never stale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from wherever.engine.plan import choose
from wherever.problem import Array, ConvProblem
from wherever.torch.functional import forward_geometry, transposed_geometry
from wherever.torch.operators import (
    as_array,
    by_input,
    by_input_problem,
    convolution,
    forward_problem,
    new_result,
)

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "replace",
]

BOUNDARIES = {"zeros": "zeros", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
KEPT = 8  # shapes of inputs that a layer keeps its weights packed for
_ROW = 509  # a prime: what moves inside the weights does not stay in its column

Module = TypeVar("Module", bound=nn.Module)


class _Parameters:
    """Weights and bias as they were when they were packed, to tell whether they are still the same."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._where = [_where(tensor) for tensor in tensors]
        # Views: they show what the memory holds now. Copies are what is packed, which may look at them again.
        self._views = [as_array(tensor) for tensor in tensors]
        self.copies = [view.copy() for view in self._views]
        self._content = [_fingerprint(view) for view in self._views]

    def still(self, tensors: Sequence[Tensor]) -> bool:
        """Whether nothing has changed; also not behind PyTorch's back, which an edit of `tensor.data` is."""
        return [_where(tensor) for tensor in tensors] == self._where and [
            _fingerprint(view) for view in self._views
        ] == self._content


def _where(tensor: Tensor) -> tuple[Any, ...]:
    edits = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), edits, tensor.shape, tensor.stride(), tensor.dtype


def _fingerprint(array: Array) -> bytes:
    """The bits of small arrays; of larger ones their sums over each of so many columns, at the speed of memory."""
    if array.nbytes <= 4096 or not array.flags.c_contiguous:
        return array.tobytes()
    flat = array.reshape(-1).view(np.uint8)
    rows = flat.size // (8 * _ROW)
    whole, rest = flat[: rows * _ROW * 8], flat[rows * _ROW * 8 :]
    return np.add.reduce(whole.view(np.uint64).reshape(rows, _ROW), axis=0).tobytes() + rest.tobytes()


class _Job:
    """One layer on inputs of one shape, type and order of memory, its weights packed."""

    def __init__(self, problem: ConvProblem, batched: bool, threads: int, parameters: _Parameters) -> None:
        self._problem, self._batched, self._threads = problem, batched, threads
        self._prepared = choose(problem, threads=threads).prepare(*parameters.copies)

    def __call__(self, x: Tensor) -> Tensor:
        batched = x if self._batched else x.unsqueeze(0)
        out, result = new_result(self._problem, batched)
        self._prepared.run(as_array(batched, self._problem.layout), out, self._threads)
        if result.dtype is not x.dtype:
            result = result.to(x.dtype)
        return result if self._batched else result.squeeze(0)


class _Jobs:
    """What a layer keeps for the inputs that it met lately. Never copied, never saved."""

    def __init__(self) -> None:
        self._parameters: _Parameters | None = None
        self._jobs: dict[tuple[Any, ...], _Job] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Jobs:
        return _Jobs()

    def __reduce__(self) -> tuple[type[_Jobs], tuple[()]]:
        return _Jobs, ()

    def find(self, key: tuple[Any, ...], tensors: Sequence[Tensor]) -> _Job | None:
        """Return the job for this key, if there is one and its weights are still these."""
        parameters, jobs = self._parameters, self._jobs
        return jobs.get(key) if parameters is not None and parameters.still(tensors) else None

    def add(
        self, key: tuple[Any, ...], tensors: Sequence[Tensor], problem: ConvProblem, batched: bool, threads: int
    ) -> _Job:
        """Pack the weights for a problem, and keep them; what was packed of other weights goes."""
        parameters, jobs = self._parameters, self._jobs
        if parameters is None or not parameters.still(tensors):
            parameters, jobs = _Parameters(tensors), {}
        job = _Job(problem, batched, threads, parameters)
        kept = list(jobs.items())[-KEPT + 1 :]
        self._parameters, self._jobs = parameters, {**dict(kept), key: job}
        return job


def _recorded(tensors: Sequence[Any]) -> bool:
    """Whether PyTorch has to see the operator: for gradients, or because it traces, compiles or transforms."""
    return (
        any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors)
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


class _Layer(nn.Module):
    """What all layers share: they keep their weights packed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._jobs = _Jobs()


class _Convolution(_Layer):
    """The forward of a convolutional layer."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        arguments: Any = (self.stride, self.padding, self.dilation, self.groups)
        tensors = (input, weight) if bias is None else (input, weight, bias)
        recorded = _recorded(tensors)
        threads = torch.get_num_threads()
        key = () if recorded else (input.shape, input.stride(), input.dtype, *arguments, self.padding_mode, threads)
        job = None if recorded else self._jobs.find(key, tensors[1:])
        if job is not None:
            return job(input)
        spatial = weight.ndim - 2
        boundary = BOUNDARIES[cast(str, self.padding_mode)]
        geometry = forward_geometry(spatial, input, weight, bias, *arguments) if isinstance(input, Tensor) else None
        if geometry is None or not _continues(boundary, input.shape[-spatial:], geometry[1], geometry[2]):
            # PyTorch's own: for what it alone computes, and for its errors.
            own: Tensor = super()._conv_forward(input, weight, bias)  # type: ignore[misc]
            return own
        batched = input if input.ndim == spatial + 2 else input.unsqueeze(0)
        if recorded:
            result = convolution(batched, weight, bias, *geometry, boundary)
            return result if batched is input else result.squeeze(0)
        problem = forward_problem(batched, weight, *geometry, boundary)
        return self._jobs.add(key, tensors[1:], problem, batched is input, threads)(input)


def _continues(boundary: str, size: Sequence[int], before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether PyTorch, too, continues an image of this size so far: it reflects and wraps once at most."""
    reach = {"reflect": -1, "wrap": 0}.get(boundary)
    return reach is None or all(max(b, a) <= n + reach for n, b, a in zip(size, before, after, strict=True))


class _Transposed(_Layer):
    """The forward of a transposed convolution."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Compute as PyTorch's layer of this name does.

        Parameters
        ----------
        input : Tensor, (N, C, *S) or (C, *S)
        output_size : list of int, optional
            Wanted spatial sizes of the result.
        """
        weight, bias = cast(Tensor, self.weight), cast("Tensor | None", self.bias)
        spatial = weight.ndim - 2
        more: Any = self.output_padding
        if output_size is not None and isinstance(input, Tensor):
            more = self._output_padding(  # type: ignore[operator]
                input, output_size, self.stride, self.padding, self.kernel_size, spatial, self.dilation
            )
        arguments: Any = (self.stride, self.padding, more, self.groups, self.dilation)
        tensors = (input, weight) if bias is None else (input, weight, bias)
        recorded = _recorded(tensors)
        threads = torch.get_num_threads()
        key = () if recorded else (input.shape, input.stride(), input.dtype, *map(_hashable, arguments), threads)
        job = None if recorded else self._jobs.find(key, tensors[1:])
        if job is not None:
            return job(input)
        geometry = transposed_geometry(spatial, input, weight, bias, *arguments) if isinstance(input, Tensor) else None
        if geometry is None:
            own: Tensor = super().forward(input, output_size)
            return own
        batched = input if input.ndim == spatial + 2 else input.unsqueeze(0)
        if recorded:
            result = by_input(batched, weight, bias, *geometry, "zeros")
            return result if batched is input else result.squeeze(0)
        problem = by_input_problem(batched, weight, *geometry, "zeros")
        return self._jobs.add(key, tensors[1:], problem, batched is input, threads)(input)


def _hashable(argument: Any) -> Any:
    return tuple(argument) if isinstance(argument, list) else argument


class Conv1d(_Convolution, nn.Conv1d):
    """`torch.nn.Conv1d` on this engine: its parameters, state and results."""


class Conv2d(_Convolution, nn.Conv2d):
    """`torch.nn.Conv2d` on this engine: its parameters, state and results.

    Examples
    --------
    >>> import torch
    >>> layer = Conv2d(3, 8, 3, padding=1)
    >>> layer(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8, 32, 32])
    """


class Conv3d(_Convolution, nn.Conv3d):
    """`torch.nn.Conv3d` on this engine: its parameters, state and results."""


class ConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` on this engine: its parameters, state and results."""


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` on this engine: its parameters, state and results."""


class ConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` on this engine: its parameters, state and results."""


_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.ConvTranspose3d: ConvTranspose3d,
}


def replace(model: Module) -> Module:
    """Put this engine under every convolutional layer of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place: layers that are exactly `torch.nn.Conv1d` ... `ConvTranspose3d` (subclasses may do something
        else) become ours, and keep their parameters, hooks, state and names. A layer that appears in several places
        stays one layer.

    Returns
    -------
    Module
        The model itself; or, if it is a convolutional layer, what stands for it.
    """
    if type(model) in _OURS:
        return _converted(model)  # type: ignore[return-value]
    seen: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and type(child) in _OURS:
                module._modules[name] = seen.setdefault(id(child), _converted(child))
    return model


def _converted(layer: nn.Module) -> nn.Module:
    made = _OURS[type(layer)].__new__(_OURS[type(layer)])
    made.__dict__.update(layer.__dict__)
    made.__dict__["_jobs"] = _Jobs()
    return made
