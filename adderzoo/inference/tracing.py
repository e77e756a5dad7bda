"""Records networks as graphs, and knows what a change to one may not touch: hooks, aliases, names.

`trace` makes a graph in which every layer is a call, of a copy of the network; `may_change` tells whether a tensor may
be written to between two calls; the rest looks for calls, and puts others in their place.
"""

import copy
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.ops.stochastic_depth import stochastic_depth

from adderzoo.layers import AdderLinear
from adderzoo.layers.affine import AdderAffine2d, AdderAffineLinear
from adderzoo.layers.fake_quantized import FakeQuantize
from adderzoo.layers.quantized import (
    Quantize,
    QuantizedAdder2d,
    QuantizedAdderLinear,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedMaxPool2d,
)
from adderzoo.ops._pytorch import ConvNd, NormBase, has_global_hook

# Of a network's attributes, what timm and this package ask a network for.
_ATTRIBUTES = (
    *("pretrained_cfg", "default_cfg", "num_classes", "in_chans", "num_features", "head_hidden_size"),
    *("feature_info", "output_fmt", "quantization", "scale", "radius"),
)

NORM_ACTS = (BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUT_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, stochastic_depth)
_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv)

# Modules that a graph has as one call, and that read their input and return a tensor of their own.
_ADDERS = (AdderLinear, AdderAffine2d, AdderAffineLinear)  # Adder2d is a ConvNd
_BYTE_LAYERS = (FakeQuantize, Quantize, QuantizedAdder2d, QuantizedAdderLinear, QuantizedMaxPool2d)
_INT8_LAYERS = (QuantizedConv2d, QuantizedLinear)
_LAYERS = (ConvNd, NormBase, FrozenBatchNorm2d, *NORM_ACTS, nn.Linear, *_ADDERS, *_BYTE_LAYERS, *_INT8_LAYERS)


# ---------------------------------------------------------------------------------------------------------------- hooks


def hook_of(module: nn.Module) -> str | None:
    """What else a call of a module does than its class's forward(), in words, if it does.

    These are the hooks of PyTorch, those of torch.nn.utils.prune, weight_norm and spectral_norm among them, and a
    forward() of the module's own, as Hugging Face's accelerate sets it.
    """
    for name in ("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"):
        if getattr(module, f"_{name.removeprefix('full_')}s", None):
            return f"a hook (register_{name}, or what calls it)"
    return "a forward() of its own" if "forward" in vars(module) else None


def check_hooks(model: nn.Module) -> None:
    """Refuses hooks that a graph of the network would not have.

    Raises:
        ValueError: if the network itself has hooks, or all modules have.
    """
    if has_global_hook():
        raise ValueError(
            "all modules have a hook (torch.nn.modules.module.register_module_forward_hook or its like), which would "
            "act on other modules than those of the network: remove it first"
        )
    if hook := hook_of(model):
        raise ValueError(
            f"model must have no hooks of its own, got a {type(model).__name__} with {hook}, which its graph would not "
            "have: remove it first"
        )


def seen_modules(network: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules, by all their names, but those with hooks and what is in them."""
    if hook_of(network) is None:
        yield name, network
        for child, module in network._modules.items():
            if module is not None:
                yield from seen_modules(module, f"{name}.{child}" if name else child)


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy, of a network too whose hooks have computed weights (torch.nn.utils.prune, weight_norm)."""
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


# ------------------------------------------------------------------------------------------------------------- tracing


class _Proxy(fx.Proxy):
    """Records `x += y` as the change in place that it is; torch.fx makes `x + y` of it, which other names miss."""


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in _IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_function.__name__}__", _recorded(_function))


class _Tracer(fx.Tracer):
    """Knows in which module it could not go on."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.failed: nn.Module | None = None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # What has hooks is called as it is, for hooks are to see tensors, in every call.
        is_leaf = isinstance(m, (*_LAYERS, *get_notrace_modules())) or hook_of(m) is not None
        return is_leaf or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m  # the innermost
            raise


def trace(model: nn.Module, prefix: str = "Fused") -> fx.GraphModule:
    """A copy of a network in evaluation mode, as a graph without dropout, in which every layer is a call.

    Args:
        model: The network. Arguments that its forward() has defaults for keep them.
        prefix: Of the name of the copy's class.

    Raises:
        ValueError: naming the module, if torch.fx cannot trace it; as :func:`check_hooks`.
    """
    check_hooks(model)
    name = type(model).__name__ if isinstance(model, fx.GraphModule) else f"{prefix}{type(model).__name__}"
    model = copy_of(model).eval()
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    tracer = _Tracer()
    try:
        graph = tracer.trace(model, defaults or None)
    except Exception as error:
        failed = tracer.failed or model
        where = {module: name for name, module in model.named_modules()}[failed] or "the network itself"
        raise ValueError(
            f"model must be a network that torch.fx can trace, but {where} ({type(failed).__name__}) is not: {error}"
        ) from error
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.args:  # one that is its default
            _erase_with_users(node)
        elif node.op == "output":  # which may be less than its annotation, without the auxiliary ones of training
            node.type = None
    network = fx.GraphModule(tracer.root, graph, name)
    _split_activations(network)
    _remove_identities(network)
    keep_attributes(network, model)
    return network


def keep_attributes(network: fx.GraphModule, model: nn.Module, **others: Any) -> None:
    """Gives a network the attributes that timm and this package ask `model` for, and others."""
    kept = {name: getattr(model, name) for name in _ATTRIBUTES if hasattr(model, name)} | others
    network.meta["_user_preserved_attributes"] = kept  # of these, copy.deepcopy copies the attributes
    for name, value in kept.items():
        setattr(network, name, value)


def _erase_with_users(node: fx.Node) -> None:
    for user in list(node.users):
        _erase_with_users(user)
    node.graph.erase_node(node)


def _split_activations(network: fx.GraphModule) -> None:
    """timm's BatchNorm with an activation becomes two calls."""
    parts: dict[str, list[str]] = {}
    for node, norm in module_calls(network, NORM_ACTS):
        target = str(node.target)
        if target not in parts:
            parts[target] = []
            for part in ("drop", "act"):
                name = free_name(network, f"{target}_{part}")
                network.add_submodule(name, getattr(norm, part))
                setattr(norm, part, nn.Identity())
                parts[target].append(name)
        last = node
        for name in parts[target]:
            with network.graph.inserting_after(last):
                new = network.graph.call_module(name)
            last.replace_all_uses_with(new)
            new.args = (last,)
            last = new


def _remove_identities(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        if plain_module(network, node, (nn.Identity, *DROPOUTS)) is not None or _is_idle_dropout(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            network.graph.erase_node(node)


def _is_idle_dropout(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _DROPOUT_FUNCTIONS:
        return False
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    return bound.arguments["training"] is False


# ---------------------------------------------------------------------------------------------------------------- nodes


def called_module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def plain_module(network: fx.GraphModule, node: fx.Node, kinds: Iterable[type]) -> nn.Module | None:
    """The module that a node calls, if it is one of some kinds, and has no hooks."""
    module = called_module(network, node)
    return module if module is not None and type(module) in kinds and hook_of(module) is None else None


def module_calls(network: fx.GraphModule, kinds: Iterable[type]) -> Iterator[tuple[fx.Node, nn.Module]]:
    """All calls of modules of some kinds that have no hooks."""
    for node in list(network.graph.nodes):
        module = plain_module(network, node, kinds)
        if module is not None:
            yield node, module


# -------------------------------------------------------------------------------------------------------------- aliases


def is_layer(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call reads its input and makes a tensor of its own."""
    module = called_module(network, node)
    return isinstance(module, _LAYERS) and hook_of(module) is None


def _sources(network: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """The nodes in whose memory the result of a node may lie."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        source = waiting.pop()
        if source not in found:
            found.add(source)
            if not is_layer(network, source):
                waiting.extend(source.all_input_nodes)
    return found


def _may_write(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call may change a tensor that it gets: it says so, or it is none of PyTorch's own."""
    module = called_module(network, node)
    if module is not None:
        foreign = hook_of(module) is not None or not type(module).__module__.startswith("torch.nn.")
        return not is_layer(network, node) and (foreign or getattr(module, "inplace", False) is True)
    if any(argument is True for argument in node.args) or {"inplace", "out"} & node.kwargs.keys():
        return True
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        return name.endswith("_")
    foreign = not str(getattr(node.target, "__module__", None)).startswith(("torch", "_operator", "builtins", "None"))
    return node.op == "call_function" and (foreign or name.endswith("_") or node.target in _IN_PLACE_OPERATORS)


def may_change(network: fx.GraphModule, tensor: fx.Node, after: fx.Node, before: fx.Node) -> bool:
    """Whether a call between two others may write to a tensor, as ReLUs in place do."""
    sources = _sources(network, tensor)
    node = after.next
    while node is not before:
        reads = any(sources & _sources(network, argument) for argument in node.all_input_nodes)
        if reads and _may_write(network, node):
            return True
        node = node.next
    return False


# -------------------------------------------------------------------------------------------------------------- changes


def free_name(network: nn.Module, name: str) -> str:
    """`name`, with a number where it is taken."""
    names, free, number = dict(network.named_modules(remove_duplicate=False)), name, 0
    while free in names:
        number += 1
        free = f"{name}_{number}"
    return free


def replace_calls(calls: list[fx.Node], new: fx.Node) -> None:
    """Puts a node in the place of calls that follow one another."""
    calls[-1].replace_all_uses_with(new)
    for node in reversed(calls):
        node.graph.erase_node(node)


def place_module(network: fx.GraphModule, call: fx.Node, module: nn.Module) -> str:
    """Adds a module under the name of the one that a node calls, if no other node calls it; returns the name."""
    name = str(call.target)
    if sum(node.op == "call_module" and node.target == name for node in network.graph.nodes) > 1:
        name = free_name(network, name)
    network.add_submodule(name, module)
    return name
