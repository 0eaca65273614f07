"""The outputs of every layer of a PyTorch model, recorded by forward hooks on a copy of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wherever.check.probes import Array

_SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
WHOLE = "the whole"


class Recorder:
    """Runs a copy of a model, in evaluation mode, and gives the outputs of all its layers.

    Layers are the modules that have none inside, in the order in which they are called; one that is called again is
    another layer. The last is the model itself. Computation is in float64, so that what is exactly equal looks it;
    where the model cannot do that, in its own type.

    Parameters
    ----------
    model : torch.nn.Module
        Stays as it is.
    image : array
        An image to try the model on, shape (1, C, *S).
    """

    def __init__(self, model: nn.Module, image: Array) -> None:
        self._outputs: dict[str, Array] = {}
        self.kinds: dict[str, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.dtype = torch.float64
        first = next((p for p in model.parameters() if p.is_floating_point()), torch.from_numpy(image))
        self.device, own = first.device, first.dtype if first.is_floating_point() else torch.float32
        try:
            self._prepare(copy.deepcopy(model).to(torch.float64))
            self(image)
        except RuntimeError:  # an operation that has no float64, or a type written into the program
            self.dtype = own
            self._prepare(copy.deepcopy(model))
            self(image)

    @property
    def exact(self) -> bool:
        """Whether computation is in float64."""
        return self.dtype == torch.float64

    def _prepare(self, model: nn.Module) -> None:
        self._model = model.eval()
        for name, module in self._model.named_modules():
            if name and not isinstance(module, _SKIPPED) and not any(True for _ in module.children()):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            self._keep(name, module, output)

        return record

    def _keep(self, name: str, module: nn.Module, output: Any) -> None:
        tensors = _tensors(output)
        for number, tensor in enumerate(tensors):
            key = name if len(tensors) == 1 else f"{name}[{number}]"
            call = 1
            while key in self._outputs:
                call += 1
                key = f"{name} ({call})"
            # A copy, since a later layer may work in place.
            self._outputs[key] = tensor.detach().to("cpu", torch.float64).numpy().copy()
            self.kinds.setdefault(key, describe(module))
            self.modules.setdefault(key, module)

    def __call__(self, x: Array) -> dict[str, Array]:
        """Run the model on x and give the outputs by name."""
        self._outputs = {}
        with torch.no_grad():
            output = self._model(torch.from_numpy(np.ascontiguousarray(x)).to(self.device, self.dtype))
        inner = len(self._outputs)
        if inner != 1 or not any(True for _ in self._model.children()):
            self._keep(WHOLE, self._model, output)
        found, self._outputs = self._outputs, {}
        if not found:
            raise ValueError("model: gives no tensor")
        return found


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def describe(module: nn.Module) -> str:
    """Say what a module is: its class, and of kernel, stride, padding and dilation what is not usual."""
    words = [type(module).__name__]
    sizes = getattr(module, "kernel_size", None)
    if sizes is not None:
        words.append("x".join(map(str, _several(sizes))))
    for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = getattr(module, name, None)
        if value is None or callable(value) or all(part == usual for part in _several(value)):
            continue
        parts = _several(value)
        words.append(f"{name} {parts[0] if len(set(parts)) == 1 else 'x'.join(map(str, parts))}")
    mode = getattr(module, "padding_mode", "zeros")
    if mode != "zeros":
        words.append(mode)
    return " ".join(words)


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)
