"""Turns a trained network into one for inference, in which adder layers are one with what follows them.

The pass has three parts: `trace` of :mod:`adderzoo.inference.tracing` records the network as a graph, `find_patterns`
looks for adder layers with what follows them, and `replace_patterns` puts modules in their place, which a target makes.
:func:`fuse` has the float target, :mod:`adderzoo.inference.quantization` that of bytes.
"""

import copy
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, overload

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, fx, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from adderzoo.layers import Adder2d, AdderLinear, BatchNorm2d
from adderzoo.layers.affine import AdderAffine2d, AdderAffine2dSame, AdderAffineLinear
from adderzoo.layers.replace import Adder2dSame

from .tracing import (
    NORM_ACTS,
    called_module,
    check_hooks,
    may_change,
    module_calls,
    place_module,
    plain_module,
    replace_calls,
    seen_modules,
    trace,
)

# These and no classes derived from them, of which it is not known what else they do.
_CONVS = (nn.Conv2d, Conv2dSame)
NORMS = (nn.BatchNorm2d, BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, *NORM_ACTS)
ADDERS: dict[type[nn.Module], type[nn.Module]] = {
    Adder2d: AdderAffine2d,
    Adder2dSame: AdderAffine2dSame,
    AdderLinear: AdderAffineLinear,
}
_RELU_FUNCTIONS = (F.relu, F.relu_, torch.relu, torch.relu_)
_ADDITIONS = (operator.add, operator.iadd, torch.add)


# ------------------------------------------------------------------------------------------------------------ patterns


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that uses this one, once, if there is no other."""
    users = list(node.users)
    if len(users) != 1 or [*users[0].args, *users[0].kwargs.values()].count(node) != 1:
        return None
    return users[0]


def norm_of(
    network: fx.GraphModule, layer: fx.Node, of_layer: torch.dtype, *dtypes: torch.dtype
) -> tuple[fx.Node | None, nn.Module | None]:
    """The BatchNorm that is all that sees the output of a layer, if it is an affine map.

    Args:
        network: The network.
        layer: The call of the layer.
        of_layer: The dtype of its output.
        dtypes: What others the output of BatchNorm may have.
    """
    user = only_user(layer)
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


def is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
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
            norm, _ = norm_of(network, layer, torch.promote_types(dtype, torch.float32), dtype)
        if norm is not None:
            addition = _addition_behind(network, layer, norm)
            addition = None if addition in added else addition
        if addition is not None:
            added.add(addition)
        last = addition or norm or layer
        relu = only_user(last)
        if relu is not None and not is_relu(network, relu):
            relu = None
        patterns.append(Pattern(layer, norm, addition, relu))
    return patterns[::-1]


def _addition_behind(network: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> fx.Node | None:
    """The call that adds something to a layer with BatchNorm, if the layer can as well be called there."""
    addition = only_user(norm)
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
    """The target of :func:`fuse`: float filters, packed, with BatchNorm folded into scale and shift."""
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
        norm_call, norm = norm_of(network, call, conv.weight.dtype)  # type: ignore[arg-type]
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


@overload
def fuse(model: Adder2d | AdderLinear) -> nn.Module: ...  # type: ignore[overload-overlap]


@overload
def fuse(model: nn.Module) -> fx.GraphModule: ...


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


def fuse_if_possible(model: nn.Module) -> nn.Module:
    """What :func:`fuse` makes of a network; the network itself if it cannot be traced, or has hooks.

    It stays itself, too, if it is a graph: that is fused, or integers.
    """
    if isinstance(model, fx.GraphModule):
        return model
    try:
        return fuse(model)
    except ValueError:
        return model
