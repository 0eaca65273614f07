"""Traced models rewritten for inference: batch normalisation folded, and what follows a convolution joined to it."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
}
_FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    nn.functional.relu: "relu",
    nn.functional.relu6: "relu6",
    nn.functional.silu: "silu",
    nn.functional.hardswish: "hardswish",
    torch.sigmoid: "sigmoid",
    nn.functional.sigmoid: "sigmoid",
    "relu": "relu",
    "relu_": "relu",
    "sigmoid": "sigmoid",
}
_ADDITIONS = (operator.add, operator.iadd, torch.add)


class _Tracer(fx.Tracer):
    """Goes into every module but those of PyTorch itself, ours included."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, CONVOLUTIONS) or super().is_leaf_module(module, qualified_name)


def traced(model: nn.Module) -> fx.GraphModule:
    """Return a copy of a model as a graph of its operations; raises whatever tracing raises where that cannot be."""
    own = copy.deepcopy(model)
    tracer = _Tracer()
    graph = tracer.trace(own)
    module = fx.GraphModule(tracer.root, graph)
    module.eval()
    return module


def fold_normalisations(module: fx.GraphModule) -> dict[str, str]:
    """Fold every batch normalisation that follows a convolution alone into its weights; return which into which."""
    modules: dict[Any, nn.Module] = dict(module.named_modules())
    folded: dict[Any, Any] = {}
    uses: dict[Any, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            uses[node.target] = uses.get(node.target, 0) + 1
    for node in list(module.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) not in NORMALISATIONS:
            continue
        (before,) = node.args[:1]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        layer: Any = modules[before.target]
        norm: Any = modules[node.target]
        plain = isinstance(layer, CONVOLUTIONS) and uses[before.target] == uses[node.target] == 1
        if not plain or norm.running_mean is None or norm.track_running_stats is False:
            continue
        transposed = isinstance(layer, CONVOLUTIONS[3:])
        if transposed and layer.groups > 1:
            continue  # PyTorch's folding does not know groups there
        _set(module, before.target, fuse_conv_bn_eval(layer, norm, transposed))
        node.replace_all_uses_with(before)
        module.graph.erase_node(node)
        folded[before.target] = node.target
    _leave_out_nothings(module, modules)
    module.recompile()
    return folded


def _leave_out_nothings(module: fx.GraphModule, modules: dict[Any, nn.Module]) -> None:
    """Leave out what does nothing in evaluation: dropout and identities."""
    nothings = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
    for node in list(module.graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], nothings):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def _set(module: nn.Module, name: Any, value: nn.Module) -> None:
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    setattr(module, last, value)


@dataclass
class Layer:
    """A convolution, and what is done to its result before anything else sees it.

    Attributes
    ----------
    node : fx.Node
        The convolution.
    last : fx.Node
        The last of the operations that are joined: whose value is the layer's.
    added : fx.Node or None
        A value that is added to the convolution.
    activation : str or None
        What is applied at the end.
    """

    node: fx.Node
    last: fx.Node
    added: fx.Node | None = None
    activation: str | None = None
    joined: list[fx.Node] = field(default_factory=list)


def activation_of(node: fx.Node, modules: dict[Any, nn.Module]) -> str | None:
    """Return the name of the activation that a node applies to its first argument; None if it is something else."""
    if node.op == "call_module":
        return _MODULES.get(type(modules[node.target]))
    return _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None


def layers(module: fx.GraphModule) -> list[Layer]:
    """Return the convolutions of a graph, in order, each with what can be joined to it."""
    modules: dict[Any, nn.Module] = dict(module.named_modules())
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    found, taken = [], set()
    for node in module.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], CONVOLUTIONS) or node.kwargs:
            continue
        layer = Layer(node, node)
        user = _only_user(layer.last)
        if user is not None and user.target in _ADDITIONS and _is_plain_sum(user) and user not in taken:
            (other,) = [a for a in user.args if a is not layer.last] or [None]
            # What is added has to be there when the convolution is computed.
            if isinstance(other, fx.Node) and order[other] < order[node]:
                layer.added, layer.last = other, user
                layer.joined.append(user)
                user = _only_user(user)
        if user is not None and user not in taken:
            layer.activation = activation_of(user, modules)
            if layer.activation is not None:
                layer.last = user
                layer.joined.append(user)
        taken.update(layer.joined)
        found.append(layer)
    return found


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op != "output" else None


def _is_plain_sum(node: fx.Node) -> bool:
    return len(node.args) == 2 and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args)


def apply_activation(name: str | None, y: Tensor) -> Tensor:
    """Apply an activation in place, by PyTorch."""
    if name is None:
        return y
    if name == "relu":
        return y.relu_()
    if name == "relu6":
        return y.clamp_(0, 6)
    if name == "silu":
        return nn.functional.silu(y, inplace=True)
    if name == "hardswish":
        return nn.functional.hardswish(y, inplace=True)
    return y.sigmoid_()
