"""Turns a trained network into one for inference, in which adder layers are one with what follows them.

The pass has three parts: `trace` records the network as a graph, `find_patterns` looks for adder layers with what
follows them, and `replace_patterns` puts modules in their place, which a target makes. :func:`fuse` has the float
target, :mod:`adderzoo.inference.quantization` that of bytes.
"""

import copy
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.ops.stochastic_depth import stochastic_depth

from adderzoo.layers import Adder2d, AdderLinear, BatchNorm2d
from adderzoo.layers.affine import AdderAffine2d, AdderAffine2dSame, AdderAffineLinear
from adderzoo.layers.fake_quantized import FakeQuantize
from adderzoo.layers.quantized import Quantize, QuantizedAdder2d, QuantizedAdderLinear, QuantizedConv2d, QuantizedLinear
from adderzoo.layers.replace import Adder2dSame

# Of a network's attributes, what timm and this package ask a network for.
_ATTRIBUTES = (
    *("pretrained_cfg", "default_cfg", "num_classes", "in_chans", "num_features", "head_hidden_size"),
    *("feature_info", "output_fmt", "quantization", "scale", "radius"),
)

# These and no classes derived from them, of which it is not known what else they do.
_CONVS = (nn.Conv2d, Conv2dSame)
_NORM_ACTS = (BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)
NORMS = (nn.BatchNorm2d, BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, *_NORM_ACTS)
ADDERS: dict[type[nn.Module], type[nn.Module]] = {
    Adder2d: AdderAffine2d,
    Adder2dSame: AdderAffine2dSame,
    AdderLinear: AdderAffineLinear,
}
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUT_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, stochastic_depth)
_RELU_FUNCTIONS = (F.relu, F.relu_, torch.relu, torch.relu_)
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv)

# Modules that a graph has as one call, and that read their input and return a tensor of their own.
_BYTE_LAYERS = (FakeQuantize, Quantize, QuantizedAdder2d, QuantizedAdderLinear, QuantizedConv2d, QuantizedLinear)
_LAYERS = (_ConvNd, _NormBase, FrozenBatchNorm2d, *_NORM_ACTS, nn.Linear, *ADDERS, *ADDERS.values(), *_BYTE_LAYERS)


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
    if torch.nn.modules.module._has_any_global_hook():
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
    for node, norm in module_calls(network, _NORM_ACTS):
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
        if plain_module(network, node, (nn.Identity, *_DROPOUTS)) is not None or _is_idle_dropout(node):
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


def _only_user(node: fx.Node) -> fx.Node | None:
    """The node that uses this one, once, if there is no other."""
    users = list(node.users)
    if len(users) != 1 or [*users[0].args, *users[0].kwargs.values()].count(node) != 1:
        return None
    return users[0]


def _norm_of(
    network: fx.GraphModule, layer: fx.Node, of_layer: torch.dtype, *dtypes: torch.dtype
) -> tuple[fx.Node | None, nn.Module | None]:
    """The BatchNorm that is all that sees the output of a layer, if it is an affine map.

    Args:
        network: The network.
        layer: The call of the layer.
        of_layer: The dtype of its output.
        dtypes: What others the output of BatchNorm may have.
    """
    user = _only_user(layer)
    norm: Any = None if user is None else plain_module(network, user, NORMS)
    if norm is None or norm.running_mean is None or norm.running_var is None:
        return None, None
    return (user, norm) if _dtype_behind(norm, of_layer) in (of_layer, *dtypes) else (None, None)


def _dtype_behind(norm: Any, dtype: torch.dtype) -> torch.dtype:
    """Of what a BatchNorm makes of a tensor of this type. PyTorch's refuses to make half precision of others."""
    own = (norm.running_mean if norm.weight is None else norm.weight).dtype
    if isinstance(norm, FrozenBatchNorm2d | FrozenBatchNormAct2d):
        return torch.promote_types(dtype, own)
    return own if own.itemsize < 4 else dtype


def _is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return plain_module(network, node, (nn.ReLU,)) is not None


def _addend_of(node: fx.Node, summand: fx.Node) -> fx.Node | None:
    """What a node adds to `summand`, if it does nothing else and changes no tensor but this one."""
    is_method = node.op == "call_method" and node.target in ("add", "add_")
    if not is_method and (node.op != "call_function" or node.target not in _ADDITIONS):
        return None
    operands = [*node.args, *(node.kwargs[name] for name in ("input", "other") if name in node.kwargs)]
    if len(operands) != 2 or len(node.args) + len(node.kwargs) != 2:  # there is an alpha or an out
        return None
    if _is_in_place(node) and operands[0] is not summand:
        return None
    addend = operands[0] if operands[1] is summand else operands[1]
    return addend if isinstance(addend, fx.Node) else None


def _is_in_place(addition: fx.Node) -> bool:
    return addition.target is operator.iadd or addition.target == "add_"


def _is_layer(network: fx.GraphModule, node: fx.Node) -> bool:
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
            if not _is_layer(network, source):
                waiting.extend(source.all_input_nodes)
    return found


def _may_write(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call may change a tensor that it gets: it says so, or it is none of PyTorch's own."""
    module = called_module(network, node)
    if module is not None:
        foreign = hook_of(module) is not None or not type(module).__module__.startswith("torch.nn.")
        return not _is_layer(network, node) and (foreign or getattr(module, "inplace", False) is True)
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


def free_name(network: nn.Module, name: str) -> str:
    """`name`, with a number where it is taken."""
    names, free, number = dict(network.named_modules(remove_duplicate=False)), name, 0
    while free in names:
        number += 1
        free = f"{name}_{number}"
    return free


# ------------------------------------------------------------------------------------------------------------ patterns


@dataclass(frozen=True)
class Pattern:
    """An adder layer with what follows it: calls in a graph that one operator can do.

    Attributes:
        layer: The call of the adder layer.
        norm: Of the BatchNorm behind it, or None.
        addition: Of the addition behind that, of a residual connection, or None.
        relu: Of the ReLU behind all of them, or None.
    """

    layer: fx.Node
    norm: fx.Node | None = None
    addition: fx.Node | None = None
    relu: fx.Node | None = None

    @property
    def operands(self) -> tuple[fx.Node, ...]:
        """The layer's input, and the addend where there is one."""
        operands = self.layer.all_input_nodes[:1]
        if self.norm is not None and self.addition is not None:
            addend = _addend_of(self.addition, self.norm)
            assert addend is not None
            operands.append(addend)
        return tuple(operands)

    @property
    def in_place(self) -> bool:
        """Whether the addition is one in place, which keeps the dtype."""
        return self.addition is not None and _is_in_place(self.addition)

    @property
    def calls(self) -> list[fx.Node]:
        """All that is replaced, in order."""
        return [node for node in (self.layer, self.norm, self.addition, self.relu) if node is not None]


# Makes a module of an adder layer, the BatchNorm behind it or None, whether a ReLU is at the end, and what else
# `replace_patterns` has of a pattern. The module is called with the layer's input, and with the addend where there is
# one.
Target = Callable[..., nn.Module]


def find_patterns(network: fx.GraphModule, kinds: Iterable[type[nn.Module]] = ADDERS) -> list[Pattern]:
    """All adder layers of a network that `trace` has recorded, each with as much of what follows it as can be.

    Args:
        network: The network.
        kinds: Of the adder layers.
    """
    patterns: list[Pattern] = []
    added: set[fx.Node] = set()
    # Backwards: of two layers whose sum is taken, the later one, which is the less moved for it, does the addition.
    for layer, module in reversed(list(module_calls(network, kinds))):
        norm, addition = None, None
        if not isinstance(module, AdderLinear):  # BatchNorm1d's channels may be another dimension than its features
            dtype: Any = module.weight.dtype
            norm, _ = _norm_of(network, layer, torch.promote_types(dtype, torch.float32), dtype)
        if norm is not None:
            addition = _addition_behind(network, layer, norm)
            addition = None if addition in added else addition
        if addition is not None:
            added.add(addition)
        last = addition or norm or layer
        relu = _only_user(last)
        if relu is not None and not _is_relu(network, relu):
            relu = None
        patterns.append(Pattern(layer, norm, addition, relu))
    return patterns[::-1]


def _addition_behind(network: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> fx.Node | None:
    """The call that adds something to a layer with BatchNorm, if the layer can as well be called there."""
    addition = _only_user(norm)
    if addition is None or _addend_of(addition, norm) is None:
        return None
    return None if may_change(network, layer.all_input_nodes[0], layer, addition) else addition


def replace_patterns(
    network: fx.GraphModule,
    patterns: Iterable[Pattern],
    target: Target,
    context: Callable[[Pattern], tuple[Any, ...]] = lambda pattern: (),
) -> None:
    """Puts what `target` makes in the place of patterns, in place.

    A module takes the name of its adder layer, with a number where the layer is called in several patterns that differ.

    Args:
        network: The network.
        patterns: Of it.
        target: Makes the modules.
        context: Further arguments of `target` for a pattern, which can be hashed.
    """
    made: dict[tuple[Any, ...], str] = {}
    for pattern in patterns:
        layer = called_module(network, pattern.layer)
        norm = None if pattern.norm is None else called_module(network, pattern.norm)
        key = (layer, norm, pattern.relu is not None, *context(pattern))
        if key not in made:
            made[key] = place_module(network, pattern.layer, target(*key))
        # What does not wait for an addend stays where the layer is, whose input may be changed later.
        with network.graph.inserting_before(pattern.addition or pattern.layer):
            new = network.graph.call_module(made[key], pattern.operands)
        replace_calls(pattern.calls, new)


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


# -------------------------------------------------------------------------------------------------------- float target


def affine_map(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does in evaluation mode: scale and shift of every channel, in float64."""
    assert isinstance(norm, NORMS)
    mean, var = norm.running_mean.double(), norm.running_var.double()  # type: ignore[union-attr]
    scale = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale, shift


def fused_adder(layer: nn.Module, norm: nn.Module | None, relu: bool, in_place: bool = False) -> nn.Module:
    """The target of :func:`fuse`: float filters, packed."""
    kind = ADDERS[type(layer)]
    if norm is None:
        return kind(layer, relu=relu) if isinstance(layer, AdderLinear) else kind(layer, relu=relu, float_output=True)
    scale, shift = affine_map(norm)
    if layer.bias is not None:
        shift = shift + layer.bias.double() * scale  # type: ignore[operator]
    dtype: Any = layer.weight.dtype
    float_output = _dtype_behind(norm, torch.promote_types(dtype, torch.float32)) != dtype
    return kind(layer, scale, shift, relu, float_output, in_place)


def fold_into_convolutions(network: fx.GraphModule) -> None:
    """Gives BatchNorm to the convolutions in front of it, in place."""
    made: dict[tuple[nn.Module, nn.Module], str] = {}
    for call, conv in module_calls(network, _CONVS):
        norm_call, norm = _norm_of(network, call, conv.weight.dtype)  # type: ignore[arg-type]
        if norm_call is None or norm is None:
            continue
        if (conv, norm) not in made:
            made[conv, norm] = place_module(network, call, _folded(conv, norm))  # type: ignore[arg-type]
        with network.graph.inserting_before(call):
            new = network.graph.call_module(made[conv, norm], call.args, call.kwargs)
        replace_calls([call, norm_call], new)


def _folded(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """A convolution that does what a BatchNorm behind it would do."""
    scale, shift = affine_map(norm)
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).to(conv.weight.dtype))
    folded.bias = nn.Parameter(shift.to(conv.weight.dtype))
    return folded


def fuse(model: nn.Module) -> nn.Module:
    """A trained network as one for inference: every adder layer one operator with what follows it, filters packed.

    What follows is BatchNorm, then a residual addition, then ReLU, as far as they are there and nothing else sees what
    is between them. BatchNorm behind a convolution is folded into it. Everything else stays as it is, BatchNorm and
    ReLU behind a pooling layer too, and BatchNorm behind a binary or shift layer, of whose weights it would make other
    numbers than two values or powers of two. Results are the same but for rounding, in the same dtype.

    A module with hooks (forward, backward, those of torch.nn.utils.prune ...) or parametrizations stays as it is, with
    all that is in it, and takes no part in a pattern: its hooks go on to act as they do in the network. The network
    itself, and all modules at once (`register_module_forward_hook`), must have none.

    The result is a :class:`torch.fx.GraphModule`, which is saved, loaded, compiled, exported and scripted like any
    network; its state dict fits `fuse(create_model(name))`. It has the network's `num_classes`, `pretrained_cfg` and
    the like, but of its methods `forward` alone, and no gradients.

    Args:
        model: The network, which is left as it is. It may be in training mode: the result is in evaluation mode, with
            the running statistics of the moment. Arguments that its forward() has defaults for keep them.

    Returns:
        The fused network. Of a network without adder layers, one with BatchNorm folded into its convolutions; of a
        single adder layer, an :class:`adderzoo.layers.AdderAffine2d`.

    Raises:
        ValueError: naming the module, if torch.fx cannot trace it; if the network itself, or all modules, have hooks.
    """
    with torch.no_grad():
        check_hooks(model)
        if type(model) in ADDERS:
            return fused_adder(model, None, False).eval()
        network = trace(model)
        fold_into_convolutions(network)
        replace_patterns(network, find_patterns(network), fused_adder, lambda pattern: (pattern.in_place,))
        network.delete_all_unused_submodules()
        # What is left is called by modules that the graph does not look into.
        for name, module in list(seen_modules(network)):
            if type(module) in ADDERS:
                network.set_submodule(name, fused_adder(module, None, False))
        network.graph.lint()
        network.recompile()
    return network.eval().requires_grad_(False)
