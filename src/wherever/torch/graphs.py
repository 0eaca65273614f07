"""Traced models rewritten for inference: batch normalisation folded, and what follows a convolution joined to it."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, nn.Linear)
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
}
_GELU = {"none": "gelu", "tanh": "gelu_tanh"}  # by PyTorch's names of its approximations
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
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
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


def fold_scales(module: fx.GraphModule) -> None:
    """Fold constant factors of channels, which follow a fully connected layer alone, into its weights."""
    modules: dict[Any, nn.Module] = dict(module.named_modules())
    uses = _uses(module)
    for node in list(module.graph.nodes):
        if node.target not in (operator.mul, torch.mul) or len(node.args) != 2 or node.kwargs:
            continue
        operands: list[Any] = sorted(node.args, key=lambda a: not (isinstance(a, fx.Node) and a.op == "get_attr"))
        factor, given = operands
        turned = given
        if _order_of(given) is not None and _is_only_user(node, given):
            turned = given.args[0]
        follows = node if turned is given else given
        if not _is_linear(turned, modules) or not _is_only_user(follows, turned):
            continue
        if not (isinstance(factor, fx.Node) and factor.op == "get_attr") or uses[turned.target] > 1:
            continue
        layer: Any = modules[turned.target]
        scale: Tensor = operator.attrgetter(str(factor.target))(module)
        channels = layer.out_features
        # Channels lie last behind the layer; behind a permutation that puts them second, two axes follow.
        fits = scale.shape == (channels,) if turned is given else scale.shape == (channels, 1, 1)
        if not fits or (turned is not given and _order_of(given) != (0, 3, 1, 2)):
            continue
        scaled = nn.Linear(layer.in_features, channels, layer.bias is not None, dtype=layer.weight.dtype)
        with torch.no_grad():
            scaled.weight.copy_(layer.weight * scale.reshape(-1, 1))
            if layer.bias is not None:
                scaled.bias.copy_(layer.bias * scale.reshape(-1))
        _set(module, turned.target, scaled.eval())
        modules[turned.target] = scaled
        node.replace_all_uses_with(given)
        module.graph.erase_node(node)
    module.recompile()


def add_before_permuting(module: fx.GraphModule) -> None:
    """Add what is added to a permuted result of a fully connected layer to the result, and permute the sum."""
    modules: dict[Any, nn.Module] = dict(module.named_modules())
    for node in list(module.graph.nodes):
        if node.target not in (operator.add, torch.add) or not _is_plain_sum(node):
            continue
        operands: list[Any] = [node.args, node.args[::-1]]
        for turned, other in operands:
            order = _order_of(turned)
            if order is None or not _is_only_user(node, turned) or turned is other:
                continue
            given = turned.args[0]
            if not _is_linear(given, modules) or not _is_only_user(turned, given):
                continue
            if not _stands_before(other, given):
                continue
            inverse = tuple(order.index(axis) for axis in range(len(order)))
            with module.graph.inserting_before(given):
                beside = module.graph.call_method("permute", (other, inverse))
            with module.graph.inserting_before(node):
                total = module.graph.call_function(operator.add, (given, beside))
                result = module.graph.call_method("permute", (total, order))
            node.replace_all_uses_with(result)
            module.graph.erase_node(node)
            module.graph.erase_node(turned)
            break
    module.recompile()


def _stands_before(a: fx.Node, b: fx.Node) -> bool:
    order = {node: place for place, node in enumerate(b.graph.nodes)}
    return order[a] < order[b]


def _order_of(node: Any) -> tuple[int, ...] | None:
    """The order of axes that a node permutes its argument into; None if it is anything else."""
    if not isinstance(node, fx.Node) or node.kwargs:
        return None
    if not (node.op == "call_method" and node.target == "permute") and node.target is not torch.permute:
        return None
    order: Any = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
    if not order or not all(isinstance(axis, int) for axis in order):
        return None
    return tuple(axis % len(order) for axis in order)


def _is_linear(node: Any, modules: dict[Any, nn.Module]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module" and type(modules[node.target]) is nn.Linear


def _uses(module: fx.GraphModule) -> Counter[Any]:
    """How often a graph runs each of its modules."""
    return Counter(node.target for node in module.graph.nodes if node.op == "call_module")


def fold_normalisations(module: fx.GraphModule) -> dict[str, str]:
    """Fold every batch normalisation that follows a convolution alone into its weights; return which into which."""
    modules: dict[Any, nn.Module] = dict(module.named_modules())
    folded: dict[Any, Any] = {}
    uses = _uses(module)
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
    """A convolution or fully connected layer, and what is done to its result before anything else sees it.

    Attributes
    ----------
    node : fx.Node
        The layer.
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
        module: Any = modules[node.target]
        return _GELU.get(module.approximate) if type(module) is nn.GELU else _MODULES.get(type(module))
    if node.target is nn.functional.gelu:
        approximate = (*node.args[1:], *node.kwargs.values(), "none")[0]
        return _GELU.get(approximate) if isinstance(approximate, str) else None
    return _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None


def layers(module: fx.GraphModule) -> list[Layer]:
    """Return the convolutions and fully connected layers of a graph, in order, each with what can be joined to it."""
    modules: dict[Any, nn.Module] = dict(module.named_modules())
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    found, taken = [], set()
    for node in module.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], LAYERS) or node.kwargs:
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


def joined_concatenations(module: fx.GraphModule) -> list[tuple[fx.Node, list[fx.Node]]]:
    """Return what joins channels of several values, in order, each with these values."""
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in CONCATENATIONS:
            continue
        parts, dim = (*node.args, None, None)[:2]
        dim = node.kwargs.get("dim", 0 if dim is None else dim)
        several = isinstance(parts, tuple | list) and all(isinstance(part, fx.Node) for part in parts)
        if several and dim == 1 and set(node.kwargs) <= {"dim"}:
            found.append((node, list(parts)))
    return found


def _is_only_user(node: fx.Node, of: fx.Node) -> bool:
    return _only_user(of) is node


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
    if name in _GELU.values():
        return y.copy_(nn.functional.gelu(y, approximate="none" if name == "gelu" else "tanh"))
    if name == "hardswish":
        return nn.functional.hardswish(y, inplace=True)
    return y.sigmoid_()
