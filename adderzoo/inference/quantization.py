"""Integer networks: adder layers on bytes, with what follows them.

    simulation = calibrate(model, loader, bits=8)   # float, with what bytes can hold; it can be trained
    network = quantize(simulation)                  # bytes
    adderzoo.save(network, "network.safetensors")
    network = adderzoo.load("network.safetensors")

For x in [low, high] and any w, ``|x - w| = |x - clip(w, low, high)| + |w - clip(w, low, high)|``: filters are clipped
to the range of their layer's input without any loss, and the second term is a constant of the filter, which becomes
part of the BatchNorm behind it. So input and filters share a scale and a zero point, and a layer is a sum of absolute
differences of bytes. This is the redistribution of "Redistribution of Weights and Activations for AdderNet
Quantization" (NeurIPS 2022), with ranges per tensor.

The pass over the network is that of :func:`adderzoo.fuse`, with another target.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from adderzoo.files.foreign import BITS, shown
from adderzoo.inference import fusion, tracing
from adderzoo.inference.fusion import Pattern
from adderzoo.layers import AdderLinear
from adderzoo.layers.fake_quantized import (
    FakeQuantize,
    FakeQuantizedAdder2d,
    FakeQuantizedAdder2dSame,
    FakeQuantizedAdderLinear,
    FakeQuantizedConv2d,
    FakeQuantizedLinear,
    fake_quantized,
)
from adderzoo.layers.quantized import (
    Quantize,
    QuantizedAdder2d,
    QuantizedAdder2dSame,
    QuantizedAdderLinear,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedMaxPool2d,
    Quantizer,
)
from adderzoo.ops._pytorch import ConvNd

__all__ = ["calibrate", "quantize", "ranges", "simulate"]

_BYTE_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    FakeQuantizedAdder2d: QuantizedAdder2d,
    FakeQuantizedAdder2dSame: QuantizedAdder2dSame,
    FakeQuantizedAdderLinear: QuantizedAdderLinear,
}
_INT8_LAYERS = {FakeQuantizedConv2d: nn.Conv2d, FakeQuantizedLinear: nn.Linear}

# Of what :func:`quantize` makes: one more when the same numbers in other layers would answer otherwise.
VERSION = 2


# --------------------------------------------------------------------------------------------------------- calibration


def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    bits: int = 8,
    quantile: float | None = None,
    batches: int | None = None,
) -> fx.GraphModule:
    """A float simulation of the integer network, with ranges from images.

    It rounds what will be bytes to what these can hold: the input of every adder layer, the filters, and residual
    connections. It can be trained, to recover what few bits lose: gradients pass straight through the rounding, and
    those of adder layers are the paper's, of the rounded input and the filters themselves. It is a
    :class:`torch.fx.GraphModule` in evaluation mode, without the dropout of the network, whose parameters have the
    network's names. Ranges stay as they are.

    It answers as the integer network does but for rounding: without gradients its adder layers add up integers, which
    float32 does exactly, but BatchNorm is not folded into them, and next to a tie a byte may become its neighbor.

    Args:
        model: The trained network, which is left as it is.
        loader: Batches of images (N, C, H, W), or tuples that begin with them, preprocessed as for evaluation. Some
            hundred images are enough.
        bits: Of a byte, 4 to 8.
        quantile: 1 for ranges from the least to the greatest value; less for a range from the quantile 1 - `quantile`
            to `quantile` of all values (from a histogram of bounded size), which few bits gain from. None is 1 for 7
            and 8 bits and 0.999 for fewer.
        batches: How many of the loader to use; None for all.

    Modules with hooks stay as they are, as in :func:`adderzoo.fuse`; adder layers with hooks are refused.

    Raises:
        ValueError: if `bits` or `quantile` is out of range, the network has no adder layers or cannot be traced, an
            adder layer or the network itself has hooks, there are no images, or a tensor has a value that is not
            finite; the message names the layer.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be from {BITS[0]} to {BITS[-1]}, got {bits}")
    if quantile is None:
        quantile = 1.0 if bits >= 7 else 0.999
    if not 0.5 < quantile <= 1:  # not a NaN either
        raise ValueError(f"quantile must be above 0.5 and at most 1, got {quantile}")
    if batches is not None and batches < 1:
        raise ValueError(f"batches must be at least 1, got {batches}")
    network = _simulation(model, lambda name: FakeQuantize(name, int(bits), quantile))
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with torch.no_grad():
        for batch in islice(loader, batches):
            images = batch if isinstance(batch, Tensor) else batch[0]
            network(images.to(device).float())
    for quantizer in _quantizers(network).values():
        quantizer.fix()
    return network


def ranges(simulation: nn.Module) -> dict[str, Any]:
    """What the bytes of a simulation stand for: its "bits", and by name scale and zero point of its "quantizers".

    Raises:
        ValueError: if it is no simulation.
    """
    known = {name: (module.bits, module.quantizer) for name, module in _quantizers(simulation).items()}
    if not known:
        raise ValueError(f"simulation must be what calibrate() has made, got {type(simulation).__name__}")
    return {
        "bits": max(bits for bits, _ in known.values()),
        "quantizers": {name: (value.scale, value.zero_point) for name, (_, value) in known.items() if value},
    }


def simulate(model: nn.Module, ranges: Mapping[str, Any]) -> fx.GraphModule:
    """The simulation that :func:`calibrate` makes, with known ranges.

    Args:
        model: The float network, which is left as it is.
        ranges: As :func:`ranges` gives them, of a network like it.

    Raises:
        ValueError: if the ranges are of another network, or not what they should be; and as :func:`calibrate`.
    """
    try:
        bits = ranges["bits"]
        if bits not in BITS:
            raise ValueError(f"bits must be from {BITS[0]} to {BITS[-1]}")
        quantizers = {
            name: Quantizer(float(scale), zero_point, 2**bits - 1)
            for name, (scale, zero_point) in ranges["quantizers"].items()
        }
        if not all(known.is_valid for known in quantizers.values()):
            raise ValueError("a number is out of range")
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"ranges must be those of a simulation, got {shown(ranges)}: {error}") from error

    def make(name: str) -> FakeQuantize:
        if name not in quantizers:
            raise ValueError(f"the ranges are of another network than {type(model).__name__}: there is none of {name}")
        known = FakeQuantize(name, bits)
        known.quantizer = quantizers[name]
        return known

    return _simulation(model, make)


def _simulation(model: nn.Module, make: Callable[[str], FakeQuantize]) -> fx.GraphModule:
    """The network with what `make` makes of a name behind every tensor that will be bytes."""
    if type(model) in fusion.ADDERS:
        tracing.check_hooks(model)
        model = nn.Sequential(model)
    network = tracing.trace(model, "Quantized").float()
    patterns = fusion.find_patterns(network)
    _check_all_found(network, patterns)
    if not patterns:
        kinds = {type(module).__name__ for module in model.modules() if isinstance(module, ConvNd | nn.Linear)}
        raise ValueError(
            f"model must have adder layers (Adder2d, AdderLinear), got {type(model).__name__} with "
            f"{', '.join(sorted(kinds)) or 'none'}; a network that was fused or quantized has none left"
        )
    for tensor, users in _byte_tensors(patterns).items():
        current: fx.Node | None = None
        for user, name in users:
            if current is None or tracing.may_change(network, tensor, current, user):
                name = tracing.free_name(network, name)
                network.add_submodule(name, make(name))
                with network.graph.inserting_before(user):
                    current = network.graph.call_module(name, (tensor,))
            user.replace_input_with(tensor, current)
    made: dict[tuple[nn.Module, nn.Module], str] = {}
    for pattern in patterns:
        layer = tracing.called_module(network, pattern.layer)
        quantizer = tracing.called_module(network, pattern.operands[0])
        assert layer is not None
        assert isinstance(quantizer, FakeQuantize)
        if (layer, quantizer) not in made:
            made[layer, quantizer] = tracing.place_module(network, pattern.layer, fake_quantized(layer, quantizer))
        pattern.layer.target = made[layer, quantizer]
    for name, layer in _int8_layers(network, patterns[-1].layer):
        network.set_submodule(name, fake_quantized(layer))
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
    return network


def _check_all_found(network: fx.GraphModule, patterns: list[Pattern]) -> None:
    found = {tracing.called_module(network, pattern.layer) for pattern in patterns}
    seen = dict(tracing.seen_modules(network))
    for name, module in network.named_modules():
        if type(module) not in fusion.ADDERS or module in found:
            continue
        if name in seen:
            raise ValueError(f"model has the adder layer {name} where torch.fx does not look, and cannot be quantized")
        owner = name
        while "." in owner and owner.rpartition(".")[0] not in seen:
            owner = owner.rpartition(".")[0]
        raise ValueError(
            f"model has the adder layer {name} in a module with hooks, and cannot be quantized: {owner} has "
            f"{tracing.hook_of(network.get_submodule(owner))}, remove it first (torch.nn.utils.prune.remove ...)"
        )


def _byte_tensors(patterns: list[Pattern]) -> dict[fx.Node, list[tuple[fx.Node, str]]]:
    """Tensors that will be bytes, and for each the calls that read them as such, with a name for the tensor, in order.

    These are the inputs of adder layers. An addition behind an adder layer reads the bytes of a tensor that is such an
    input too, or is made by an adder layer and for additions alone, as a shortcut's.
    """
    readers: dict[fx.Node, list[tuple[fx.Node, str]]] = {}
    for pattern in patterns:
        readers.setdefault(pattern.operands[0], []).append((pattern.layer, f"{pattern.layer.target}_input"))
    makers = {pattern.calls[-1]: pattern for pattern in patterns}
    additions = {pattern.addition: pattern.operands[1] for pattern in patterns if pattern.addition is not None}
    for addition, addend in additions.items():
        if addend in readers or (addend in makers and all(additions.get(user) is addend for user in addend.users)):
            name = f"{makers[addend].layer.target}_output" if addend in makers else str(addend)
            readers.setdefault(addend, []).append((addition, name))
    order = {node: index for index, node in enumerate(patterns[0].layer.graph.nodes)}
    return {tensor: sorted(users, key=lambda user: order[user[0]]) for tensor, users in readers.items()}


def _int8_layers(network: fx.GraphModule, last: fx.Node) -> list[tuple[str, nn.Module]]:
    """Convolutions and linear layers behind the last adder layer, whose weights will be int8."""
    calls = list(tracing.module_calls(network, (nn.Linear, nn.Conv2d)))
    earlier = {module for node, module in calls if node < last}
    return [
        (str(node.target), module)
        for node, module in calls
        if module not in earlier and getattr(module, "padding_mode", "zeros") == "zeros"
    ]


def _quantizers(network: nn.Module) -> dict[str, FakeQuantize]:
    """Those of a simulation, by name."""
    return {module.name: module for module in network.modules() if isinstance(module, FakeQuantize)}


# ------------------------------------------------------------------------------------------------------ integer target


def quantize(calibrated: nn.Module) -> fx.GraphModule:
    """The integer network of a simulation that :func:`calibrate` has made.

    An adder layer is one operator with the BatchNorm, residual addition and ReLU behind it, and writes bytes where only
    adder layers read the result, with max pooling in between or not: that is of bytes then. Filters are there once, as
    packed bytes.

    What is multiplied stays PyTorch's own, in float32: convolutions with BatchNorm folded into them, which oneDNN runs,
    since the first one sees pixels, which a byte of 4 bits is too coarse for, and the classifier needs float logits and
    costs next to nothing. What is behind the last adder layer, the classifier as a rule, has its weight in int8 with a
    scale for every output channel, for the sake of its size. Everything else, such as shift layers and average pooling,
    stays as it is in the float network, and its result is turned into bytes where an adder layer reads it.

    The result is a :class:`torch.fx.GraphModule`, which is pickled, compiled, exported and scripted like any network.
    It has the network's `num_classes`, `pretrained_cfg` and the like, and no gradients. Its state dict alone says
    nothing of the ranges: :func:`adderzoo.save` does. A NaN in the images is a byte like any other.

    Args:
        calibrated: The simulation, which is left as it is.

    Raises:
        ValueError: if the network was never calibrated, a BatchNorm is in training mode, a weight is not finite, or
            what becomes a layer on bytes has got hooks since; the message names it.
    """
    quantizers = {name: module.quantizer for name, module in _quantizers(calibrated).items()}
    if not isinstance(calibrated, fx.GraphModule) or not quantizers or None in quantizers.values():
        raise ValueError(
            "the network must be one that adderzoo.inference.quantization.calibrate has made, got "
            f"{type(calibrated).__name__}, which was never calibrated"
        )
    tracing.check_hooks(calibrated)
    for name, module in calibrated.named_modules():
        if isinstance(module, fusion.NORMS) and module.training:
            raise ValueError(f"{name} is in training mode: call eval() before quantize()")
        if type(module) in (FakeQuantize, *_BYTE_LAYERS, *_INT8_LAYERS) and (hook := tracing.hook_of(module)):
            raise ValueError(f"{name} has {hook}, which bytes cannot go through: remove it before quantize()")
    for name, tensor in calibrated.state_dict().items():
        if not tensor.is_meta and not tensor.isfinite().all():
            raise ValueError(f"{name} must be finite to be quantized, got NaN or infinity")
    with torch.no_grad():
        network: Any = tracing.copy_of(calibrated).float()
        int8 = [name for name, module in network.named_modules() if type(module) in _INT8_LAYERS]
        for name in int8:  # plain ones again, which BatchNorm can be folded into
            layer: Any = network.get_submodule(name)
            layer.__class__ = _INT8_LAYERS[type(layer)]
        fusion.fold_into_convolutions(network)
        patterns = fusion.find_patterns(network, _BYTE_LAYERS)
        _check_readers(network, patterns)
        _pool_bytes(network, patterns)
        patterns = fusion.find_patterns(network, _BYTE_LAYERS)  # again: there is more behind layers now
        written = _written_bytes(network, patterns)
        outputs = {maker: _quantizer_of(network, node) for node, maker in written.items()}

        def context(pattern: Pattern) -> tuple[Quantizer | None, ...]:
            input, addend = (*pattern.operands, None)[:2]
            return _quantizer_of(network, input), outputs.get(pattern.calls[-1]), _quantizer_of(network, addend)

        fusion.replace_patterns(network, patterns, _quantized_adder, context)
        for node, module in tracing.module_calls(network, (FakeQuantize,)):
            if node in written:
                tracing.replace_calls([node], node.all_input_nodes[0])
            else:
                quantizer: Any = quantizers[module.name]  # type: ignore[index]
                network.set_submodule(str(node.target), Quantize(quantizer))
                if quantizer.zero_point == 0:
                    _remove_relu(network, node)
        for name in int8:
            layer = network.get_submodule(name)
            kind = QuantizedLinear if isinstance(layer, nn.Linear) else QuantizedConv2d
            network.set_submodule(name, kind(layer))
        for node in network.graph.find_nodes(op="call_method", target="view"):
            if not isinstance(node.args[-1], torch.dtype):
                node.target = "reshape"  # what adder layers make lies in channels_last
        network.delete_all_unused_submodules()
        network.graph.lint()
        network.recompile()
    tracing.keep_attributes(network, calibrated, quantization=ranges(calibrated) | {"version": VERSION})
    return network.eval().requires_grad_(False)


def _check_readers(network: fx.GraphModule, patterns: list[Pattern]) -> None:
    """Refuse bytes that nothing on bytes reads any more, such as a residual addition behind a BatchNorm with hooks."""
    readers = {
        reader
        for pattern in patterns
        for reader in zip(pattern.operands, (pattern.layer, pattern.addition), strict=False)
    }
    for node, quantizer in tracing.module_calls(network, (FakeQuantize,)):
        for user in node.users:
            if (node, user) not in readers:
                behind = " and ".join(str(other.target) for other in user.all_input_nodes if other is not node)
                raise ValueError(
                    f"the bytes of {quantizer.name} go into {user}{behind and f' behind {behind}'}, which was part of "
                    "an adder layer when calibrate() ran and is none now: quantize() takes no hooks or modules that "
                    "have come there since"
                )


def _pool_bytes(network: fx.GraphModule, patterns: list[Pattern]) -> None:
    """Max pooling of what an adder layer makes, behind what makes bytes of it, in place.

    The greatest number stays the greatest in ReLU and in rounding. In BatchNorm it becomes the least where the scale is
    negative.
    """
    made = {pattern.calls[-1]: pattern.calls for pattern in patterns}
    for call, module in tracing.module_calls(network, (nn.MaxPool2d,)):
        pool: Any = module
        source = call.all_input_nodes[0]
        if source not in made or fusion.only_user(source) is None or pool.ceil_mode or pool.return_indices:
            continue
        norm_call, norm = fusion.norm_of(network, call, torch.float32)
        last = norm_call or call
        relu = fusion.only_user(last)
        if relu is not None and fusion.is_relu(network, relu):
            last = relu
        end = fusion.only_user(last)
        if end is None or not isinstance(tracing.called_module(network, end), FakeQuantize):
            continue
        is_bare_layer = len(made[source]) == 1 and not isinstance(tracing.called_module(network, source), AdderLinear)
        if norm is not None and not is_bare_layer:
            continue  # BatchNorm would be no part of the layer
        scale = None if norm is None else fusion.affine_map(norm)[0]
        name = tracing.place_module(network, call, QuantizedMaxPool2d(pool, scale))
        with network.graph.inserting_after(end):
            new = network.graph.call_module(name)
        end.replace_all_uses_with(new)
        new.args = (end,)
        call.replace_all_uses_with(source)
        network.graph.erase_node(call)


def _remove_relu(network: fx.GraphModule, quantize: fx.Node) -> None:
    """The one in front of a call that makes byte 0 of what is below 0, in place, with max pooling in between or not."""
    relu, behind = quantize.all_input_nodes[0], quantize
    if tracing.plain_module(network, relu, (nn.MaxPool2d,)) is not None and fusion.only_user(relu) is quantize:
        relu, behind = relu.all_input_nodes[0], relu
    if not fusion.is_relu(network, relu) or fusion.only_user(relu) is not behind:
        return
    layer = relu.all_input_nodes[0]
    if tracing.is_layer(network, layer) and fusion.only_user(layer) is relu:  # nothing else sees what it may change
        tracing.replace_calls([relu], layer)


def _quantizer_of(network: fx.GraphModule, node: fx.Node | None) -> Quantizer | None:
    """What the bytes of a tensor stand for, if it is to be bytes."""
    module = None if node is None else tracing.called_module(network, node)
    if isinstance(module, QuantizedMaxPool2d):
        return _quantizer_of(network, node.all_input_nodes[0])  # type: ignore[union-attr]
    return module.quantizer if isinstance(module, FakeQuantize) else None


def _written_bytes(network: fx.GraphModule, patterns: list[Pattern]) -> dict[fx.Node, fx.Node]:
    """Calls that turn into bytes what an adder layer makes for them alone, and the ends of these layers' patterns."""
    makers = {pattern.calls[-1] for pattern in patterns}
    sources = {node: node.all_input_nodes[0] for node, _ in tracing.module_calls(network, (FakeQuantize,))}
    return {node: source for node, source in sources.items() if source in makers and len(source.users) == 1}


def _quantized_adder(
    layer: Any,
    norm: nn.Module | None,
    relu: bool,
    input: Quantizer,
    output: Quantizer | None,
    addend: Quantizer | None,
) -> nn.Module:
    """The target of :func:`quantize`.

    The layer's output is -input.scale * S - beyond + bias, S being the distance of bytes, and y becomes a y + b in
    BatchNorm. All numbers are computed in float64 and rounded to float32 once.
    """
    filters = layer.weight.double()
    beyond = input.beyond(filters)
    scale, shift = torch.ones_like(beyond), torch.zeros_like(beyond)
    if norm is not None:
        scale, shift = fusion.affine_map(norm)
    if layer.bias is not None:
        shift = shift + scale * layer.bias.double()
    shift = shift - scale * beyond
    scale = -scale * input.scale
    addend_scale = 1.0
    if addend is not None:
        addend_scale = addend.scale
        shift = shift - addend.zero_point * addend.scale
    if output is not None:
        scale, shift, addend_scale = scale / output.scale, shift / output.scale, addend_scale / output.scale
    if isinstance(layer, FakeQuantizedAdderLinear):
        return QuantizedAdderLinear(layer, scale, shift, relu, input, output)
    return _BYTE_LAYERS[type(layer)](layer, scale, shift, relu, input, output, addend_scale)
