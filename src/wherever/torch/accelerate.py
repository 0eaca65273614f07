"""Whole networks for inference: convolutions on this engine, one memory order throughout, nothing allocated twice."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace as changed
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from wherever.torch.contests import contest, give_back
from wherever.torch.graphs import add_before_permuting, fold_normalisations, fold_scales, traced
from wherever.torch.modules import replace
from wherever.torch.program import Program, layer_words
from wherever.torch.report import Report, Row

__all__ = ["Accelerated", "Report", "accelerate"]

PROGRAMS = 4  # shapes of inputs that an accelerated model is kept ready for


def accelerate(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> nn.Module:
    """Return a model for inference that computes what another does, faster.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode, on the CPU. Not changed; later changes of its weights have no effect on the result.
    example_input : Tensor, or tuple of Tensors
        What the model will be called with. Other shapes and types may follow: each is prepared when it is first met.

    Returns
    -------
    torch.nn.Module
        Called as the model is, without gradients. Its ``report`` says layer by layer what runs and what it gained.

    Raises
    ------
    ValueError
        If the model is in training mode.
    TypeError
        If it is no model, or the example is not made of tensors.

    Notes
    -----
    Batch normalisations are folded into convolutions; additions and activations are applied to the results of
    convolutions while these are in the cache; images keep their channels last in memory; results lie in memory that
    every call uses again. Each layer is timed beside PyTorch's own, and left to it where that is faster; so is the
    whole. A model that `torch.fx` cannot trace keeps its own program, with its layers replaced
    (`wherever.torch.replace`).

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
    >>> fast = accelerate(model, torch.zeros(1, 3, 16, 16))
    >>> fast(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 8, 14, 14])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"model: {training[0]} is in training mode, in which batch normalisation and dropout change with every "
            "call; call model.eval() first (for faster training, see wherever.torch.replace)"
        )
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    for place, tensor in enumerate(example):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"example_input: expected tensors, got {type(tensor).__name__} in place {place}")
    try:
        graph = traced(model)
    except Exception as error:  # tracing runs the model's own program, which may raise anything
        swapped = replace(copy.deepcopy(model))
        reason = f"could not be traced ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        rows = [Row(name, layer_words(m), "wherever") for name, m in swapped.named_modules() if hasattr(m, "_jobs")]
        report = Report(tuple(rows), (f"The model {reason}: its layers were replaced one by one.",))
        swapped.report = cast(Any, report)
        return swapped
    folded = fold_normalisations(graph)
    fold_scales(graph)
    add_before_permuting(graph)
    fast = Accelerated(graph, folded)
    fast(*example)
    return fast


class Accelerated(nn.Module):
    """A model prepared for inference: see `accelerate`.

    Attributes
    ----------
    report : Report
        Of the inputs that it was called with last.
    """

    def __init__(self, graph: fx.GraphModule, folded: dict[str, str]) -> None:
        super().__init__()
        self.graph = graph.requires_grad_(False)
        self.report = Report(())
        self._folded = folded
        self._programs: dict[Any, Program | _Left] = {}
        self._lock = threading.Lock()

    def forward(self, *inputs: Tensor) -> Any:
        """Compute what the model computes, without gradients."""
        key = tuple((tuple(t.shape), t.dtype, t.stride()) for t in inputs), torch.get_num_threads()
        with self._lock, torch.no_grad():  # one call at a time: they use the same memory
            program = self._programs.get(key)
            if program is None:
                program = self._faster(Program(self.graph, inputs, self._folded), inputs)
                while len(self._programs) >= PROGRAMS:
                    self._programs.pop(next(iter(self._programs)))
                self._programs[key] = program
                give_back()
            self.report = program.report
            return program(inputs)

    def _faster(self, program: Program, inputs: tuple[Tensor, ...]) -> Program | _Left:
        """A program, or PyTorch's own run of the folded model, if that is faster as a whole."""
        left = _Left(self.graph, program.report)
        ours, theirs = whole_contest([program, left], inputs)
        return left if theirs < ours else program

    def train(self, mode: bool = True) -> Accelerated:
        """Refuse to train: its weights are folded and packed."""
        if mode:
            raise ValueError("an accelerated model cannot be trained; train the original, and accelerate it again")
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_lock"]
        state["_programs"] = {}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()


class _Left:
    """A model that is left to PyTorch as a whole."""

    def __init__(self, graph: fx.GraphModule, report: Report) -> None:
        self._graph = graph
        note = "As a whole it is faster in PyTorch, with what could be folded: none of this is used."
        self.report = changed(report, notes=(*report.notes, note))

    def __call__(self, inputs: tuple[Tensor, ...]) -> Any:
        return self._graph(*inputs)


def whole_contest(ways: list[Callable[[tuple[Tensor, ...]], Any]], inputs: tuple[Tensor, ...]) -> list[float]:
    """Return the seconds of each way to run a whole model, which may change its inputs."""
    return contest([lambda way=way: way(tuple(tensor.clone() for tensor in inputs)) for way in ways])  # type: ignore[misc]
