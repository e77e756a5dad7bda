"""From a quantized network to one of integers alone: the third target beside float and bytes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.layers import get_same_padding
from torch import Tensor, fx, nn

from adderzoo.inference import fusion, tracing
from adderzoo.layers.quantized import (
    Quantize,
    QuantizedAdder2d,
    QuantizedAdder2dSame,
    QuantizedAdderLinear,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedMaxPool2d,
    Quantizer,
    _Int8Weight,
    _QuantizedAdder,
    int8_weight,
)
from adderzoo.ops.geometry import output_size
from adderzoo.ops.packing import unpack_byte_filters

from .integer import Affine, AveragePool, Image, IntegerNetwork, Layer, MaxPool, Plane, Step

# Of most layers: enough for a byte to be exact to a hundredth, and the same everywhere, so that layers share code.
_SHIFT = 16

_ADDERS = (QuantizedAdder2d, QuantizedAdder2dSame, QuantizedAdderLinear)
_CONVS = (nn.Conv2d, nn.Linear, QuantizedConv2d, QuantizedLinear)


# --------------------------------------------------------------------------------------------------------- calibration


class _Observer(fx.Interpreter):
    """Runs a quantized network and takes down what its integers will need."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.ranges: dict[str, tuple[float, float]] = {}
        self.sums: dict[str, Tensor] = {}
        self.images = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            low, high = (float(value) for value in torch.aminmax(result))
            known = self.ranges.get(n.name, (low, high))
            self.ranges[n.name] = min(low, known[0]), max(high, known[1])
        module = tracing.called_module(self.module, n)  # type: ignore[arg-type]
        if isinstance(module, _QuantizedAdder):
            args, _ = self.fetch_args_kwargs_from_env(n)
            distances = _distances(module, args[0])
            self.sums[n.name] = self.sums.get(n.name, 0) + distances.double().mean((2, 3)).sum(0)
        return result


def _distances(layer: Any, input: Tensor) -> Tensor:
    """(N, O, H, W): the distances of bytes that a layer's affine map is of."""
    bare = _bare(layer)
    output = bare(input)
    return output if output.dim() == 4 else output.reshape(-1, output.shape[-1])[:, :, None, None]


def _bare(layer: Any) -> Any:
    """The layer without what follows it; filters are shared."""
    bare = layer.__new__(type(layer))
    bare.__dict__.update(layer.__dict__)
    ones = torch.ones_like(layer.scale)
    bare.__dict__["_buffers"] = {**layer._buffers, "scale": ones, "shift": torch.zeros_like(ones)}
    bare.relu, bare.out_zero_point = False, None
    return bare


def observe(network: nn.Module, loader: Iterable[Any]) -> dict[str, Any]:
    """What integers to the end need to know beyond a quantized network, from images.

    Args:
        network: What :func:`adderzoo.inference.quantization.quantize` has made.
        loader: Batches of images (N, C, H, W), or tuples that begin with them, preprocessed as for evaluation. Some
            hundred images are enough.

    Returns:
        By the names of calls: "ranges", the least and the greatest value of tensors in float; "distances", the mean
        distance of every channel of an adder layer. It can be written as JSON.

    Raises:
        ValueError: if it is no quantized network, or there are no images.
    """
    if not isinstance(network, fx.GraphModule) or not hasattr(network, "quantization"):
        raise ValueError(f"the network must be one that quantize() has made, got {type(network).__name__}")
    observer = _Observer(network)
    with torch.no_grad():
        for batch in loader:
            images = batch if isinstance(batch, Tensor) else batch[0]
            observer.run(images.float())
            observer.images += len(images)
    if not observer.images:
        raise ValueError("there must be images to take ranges from, got none")
    means = {name: [round(float(mean), 1) for mean in sums / observer.images] for name, sums in observer.sums.items()}
    return {"ranges": observer.ranges, "distances": means}


# ---------------------------------------------------------------------------------------------------------- conversion


@dataclass
class _Map:
    """What is done to an accumulator, in float64: scale * A + shift, plus what an addend stands for."""

    scale: Tensor
    shift: Tensor


@dataclass
class _Value:
    """A tensor of the network that is in float: its integers are made when it is known what for.

    Attributes:
        node: Of the network.
        shape: (C, H, W).
        emit: Makes it as bytes: of a quantizer, whether a ReLU follows, and what BatchNorm follows. Without a quantizer
            it makes logits.
        flat: Whether it has been flattened to (N, C * H * W).
        takes_norm: Whether BatchNorm can be done where it is made.
    """

    node: fx.Node
    shape: tuple[int, int, int]
    emit: Callable[..., Plane]
    flat: bool = False
    takes_norm: bool = False


def integer_network(
    network: nn.Module, statistics: Mapping[str, Any], terms: int | None = None, bits: int | None = None
) -> IntegerNetwork:
    """The network of integers to the end of a quantized one; see :mod:`adderzoo.microcontroller.integer`.

    What the network multiplies, the first convolution and the classifier as a rule, gets weights in int8 with a scale
    for every channel, and reads bytes; normalization of the image is part of the first layer, or of a table.

    Args:
        network: What :func:`adderzoo.inference.quantization.quantize` has made, a classifier.
        statistics: Of it, as :func:`observe` gives them.
        terms: Multipliers of adder layers are sums of so many signed powers of two, which shifts and additions do.
        bits: Multipliers of adder layers have so many bits at most; None for as many as 32-bit sums allow.

    Raises:
        ValueError: if the network or the statistics are not of this kind, or it does what integers cannot do yet; the
            message names the layer.
    """
    if not isinstance(network, fx.GraphModule) or not hasattr(network, "quantization"):
        raise ValueError(f"the network must be one that quantize() has made, got {type(network).__name__}")
    with torch.no_grad():
        return _Converter(network, statistics, terms, bits).convert()


class _Converter:
    def __init__(
        self, network: fx.GraphModule, statistics: Mapping[str, Any], terms: int | None, bits: int | None
    ) -> None:
        self.network, self.statistics, self.terms, self.bits = network, statistics, terms, bits
        quantization: Any = network.quantization
        self.byte_bits: int = quantization["bits"]
        config = resolve_model_data_config(network)
        self.mean, self.std = (torch.tensor(config[key], dtype=torch.float64) for key in ("mean", "std"))
        self.size: tuple[int, int, int] = tuple(config["input_size"])
        self.steps: list[Step] = []
        self.values: dict[fx.Node, _Value | Plane] = {}
        self.made: dict[Any, Plane] = {}
        self.logit_scale = 1.0

    def convert(self) -> IntegerNetwork:
        for node in self.network.graph.nodes:
            if node.op == "output":
                value = self.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
                if not isinstance(value, _Value) or value.shape[1:] != (1, 1):
                    raise ValueError("model must be a classifier, whose output is (N, num_classes)")
                value.emit(None)
            else:
                self.values[node] = self._value(node)
        return IntegerNetwork(tuple(self.steps), self.logit_scale)

    # ------------------------------------------------------------------------------------------------------ the graph

    def _value(self, node: fx.Node) -> "_Value | Plane":
        module = tracing.called_module(self.network, node)
        if node.op == "placeholder":
            return _Value(node, self.size, lambda *_: self._refuse(node, "an image that no layer reads"))
        input = self.values.get(node.all_input_nodes[0]) if node.all_input_nodes else None
        if isinstance(module, _ADDERS):
            return self._adder(node, module)
        if isinstance(input, Plane) and isinstance(module, QuantizedMaxPool2d):
            return self._byte_pool(node, module, input)
        if isinstance(input, Plane) or input is None:
            return self._refuse(node, self._describe(node, module))
        if isinstance(module, Quantize):
            quantizer = Quantizer(1 / module.inverse, module.zero_point, module.top)
            if input.node.op == "placeholder":
                return self._image_table(node, quantizer)
            return input.emit(quantizer)
        if isinstance(module, _CONVS):
            return self._conv(node, module, input)
        if fusion.is_relu(self.network, node):
            return _Value(node, input.shape, lambda q, relu=True, norm=None: input.emit(q, True), input.flat)
        if type(module) in fusion.NORMS:
            return self._norm(node, module, input)
        if isinstance(module, nn.MaxPool2d):
            return self._max_pool(node, module, input)
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.AvgPool2d):
            return self._average_pool(node, module, input)
        is_flatten = isinstance(module, nn.Flatten) or node.target in ("flatten", torch.flatten)
        if is_flatten and (node.args[1:] or (getattr(module, "start_dim", 1),))[0] == 1:
            return _Value(node, input.shape, input.emit, True, input.takes_norm)
        return self._refuse(node, self._describe(node, module))

    def _describe(self, node: fx.Node, module: nn.Module | None) -> str:
        return type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target))

    def _refuse(self, node: fx.Node, what: str) -> Any:
        raise ValueError(f"{node.target} cannot be done in integers: {what}")

    def _quantizer(self, value: _Value) -> Quantizer:
        """What the bytes of a tensor in float stand for: what some adder layer reads, else what was seen."""
        for user in value.node.users:
            module = tracing.called_module(self.network, user)
            if isinstance(module, Quantize):
                return Quantizer(1 / module.inverse, module.zero_point, module.top)
        name = value.node.name
        if name not in self.statistics.get("ranges", {}):
            raise ValueError(f"statistics must have the range of {name}: they are of another network")
        low, high = self.statistics["ranges"][name]
        return Quantizer.of_range(low, high, self.byte_bits)

    def _bytes(self, node: fx.Node) -> Plane:
        value = self.values[node]
        return value if isinstance(value, Plane) else value.emit(self._quantizer(value))

    def _plane(self, name: str, shape: tuple[int, int, int], quantizer: Quantizer | None) -> Plane:
        if quantizer is None:
            return Plane(name, shape, (0,) * shape[0])
        return Plane(name, shape, (quantizer.zero_point,) * shape[0], quantizer.top, quantizer.scale)

    def _once(self, key: Any, make: Callable[[], Step]) -> Plane:
        """What a step makes, which is made once."""
        if key not in self.made:
            step = make()
            self.steps.append(step)
            self.made[key] = step.output
        return self.made[key]

    def _image_table(self, node: fx.Node, quantizer: Quantizer) -> Plane:
        """The image for adder layers: bytes of normalized pixels."""
        pixels = torch.arange(256, dtype=torch.float32) / 255
        mean, std = self.mean.float()[:, None], self.std.float()[:, None]
        table = quantizer.bytes_of((pixels - mean) / std)
        is_identity = all(torch.equal(row, torch.arange(256, dtype=torch.uint8)) for row in table)
        plane = self._plane("image", self.size, quantizer)
        return self._once(node, lambda: Image(plane, (), None if is_identity else table))

    def _image(self) -> Plane:
        """The image for a convolution: its own bytes."""
        padding = tuple(int(mean) for mean in (255 * self.mean).round())
        return self._once("image", lambda: Image(Plane("image", self.size, padding), ()))

    # ----------------------------------------------------------------------------------------------------- the layers

    def _adder(self, node: fx.Node, layer: Any) -> "_Value | Plane":
        input = self._bytes(node.all_input_nodes[0])
        linear = isinstance(layer, QuantizedAdderLinear)
        if linear and input.shape[1:] != (1, 1):
            return self._refuse(node, "a fully connected adder layer behind more than one pixel")
        groups, kernel = (1, (1, 1)) if linear else (layer.groups, tuple(layer.kernel_size))
        weight = unpack_byte_filters(layer.weight, len(layer.scale), input.shape[0] // groups)
        geometry = {} if linear else self._geometry(node, layer, input.shape, kernel)
        shape = _output_shape(input.shape, len(layer.scale), kernel, geometry)
        if weight[0].numel() * 255 >= 2**24:
            return self._refuse(node, "a filter of more than 65,792 elements")
        operands: Any = node.args  # which may be the same twice
        addends = [self._bytes(other) for other in operands[1:]]
        if any(addend.shape != shape for addend in addends):
            return self._refuse(node, "an addition that broadcasts")
        if node.name not in self.statistics.get("distances", {}):
            raise ValueError(f"statistics must have the distances of {node.name}: they are of another network")
        mean = torch.tensor(self.statistics["distances"][node.name], dtype=torch.float64)
        bounds = (
            torch.zeros(len(weight)),
            torch.maximum(weight, 2**self.byte_bits - 1 - weight).flatten(1).double().sum(1),
        )
        scale, shift, addend_scale = layer.scale.double(), layer.shift.double(), getattr(layer, "addend_scale", 1.0)
        if addends and isinstance(self.values[operands[1]], _Value):  # in float there: `shift` has no zero point of it
            shift = shift - addends[0].padding[0] * addends[0].scale * addend_scale
            addend_scale = addend_scale * addends[0].scale

        def emit(quantizer: Quantizer | None, relu: bool = False, norm: nn.Module | None = None) -> Plane:
            s, t, a = scale, shift, addend_scale
            if norm is not None:
                times, plus = fusion.affine_map(norm)
                s, t = times * s, times * t + plus
            if quantizer is not None and layer.out_zero_point is None:
                s, t, a = s / quantizer.scale, t / quantizer.scale, a / quantizer.scale
            low = quantizer.zero_point if quantizer is not None and (relu or layer.relu) else 0

            def make() -> Step:
                plane = self._plane(node.name, shape, quantizer)
                affine = self._affine(s, t, mean, bounds, quantizer, low, addends, a)
                return Layer(plane, (input, *addends), "adder", weight, affine, groups=groups, **geometry)

            return self._once((node, quantizer, relu, norm), make)

        if layer.out_zero_point is not None:
            # Of what these bytes stand for, only the zero point and the largest matter: scale and shift have the rest.
            return emit(Quantizer(1.0, layer.out_zero_point, layer.out_max))
        return _Value(node, shape, emit, linear, not addends and not layer.relu)

    def _conv(self, node: fx.Node, layer: Any, value: _Value) -> _Value:
        from_image = value.node.op == "placeholder"
        input = self._image() if from_image else value.emit(self._quantizer(value))
        linear = isinstance(layer, nn.Linear | QuantizedLinear)
        if linear:
            weight = layer.weight.reshape(len(layer.weight), *input.shape)
            kernel, geometry, groups = tuple(input.shape[1:]), {}, 1
            if not value.flat and kernel != (1, 1):
                return self._refuse(node, "a fully connected layer behind an image that is not flattened")
        else:
            weight, kernel, groups = layer.weight, tuple(layer.weight.shape[2:]), layer.groups
            geometry = self._geometry(node, layer, input.shape, kernel)
        shape = _output_shape(input.shape, len(weight), kernel, geometry)
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias
        filters = weight.double()
        if isinstance(layer, _Int8Weight):
            filters = filters * layer.scale.double()[:, None, None, None]
        # What a byte stands for, of every channel that a filter sees.
        if from_image:
            step, zero = 1 / (255 * self.std), 255 * self.mean
        else:
            step = torch.full(input.shape[:1], input.scale, dtype=torch.float64)
            zero = torch.full(input.shape[:1], input.padding[0], dtype=torch.float64)
        if groups > 1 and from_image:
            return self._refuse(node, "a first convolution of several groups")
        seen = filters.shape[1]
        filters = filters * step[:seen, None, None]
        steps, scale = int8_weight(filters)
        steps, scale = steps.double(), scale.double()
        center = (steps * zero[:seen, None, None]).flatten(1).sum(1)  # A of an image of zeros
        shift = bias.double() - scale * center
        bounds = tuple(input.top * part.flatten(1).sum(1) for part in (steps.clamp(max=0), steps.clamp(min=0)))

        def emit(quantizer: Quantizer | None, relu: bool = False, norm: nn.Module | None = None) -> Plane:
            s, t = scale, shift
            if norm is not None:
                times, plus = fusion.affine_map(norm)
                s, t = times * s, times * t + plus
            if quantizer is not None:
                s, t = s / quantizer.scale, t / quantizer.scale
            low = quantizer.zero_point if quantizer is not None and relu else 0

            def make() -> Step:
                plane = self._plane(node.name, shape, quantizer)
                affine = self._affine(s, t, center, bounds, quantizer, low, droppable=True)
                return Layer(plane, (input,), "conv", steps.to(torch.int8), affine, groups=groups, **geometry)

            return self._once((node, quantizer, relu, norm), make)

        return _Value(node, shape, emit, linear, True)

    def _geometry(self, node: fx.Node, layer: Any, shape: tuple[int, ...], kernel: tuple[int, ...]) -> dict[str, Any]:
        """Stride, padding on all sides and dilation of a layer."""
        stride, dilation = tuple(layer.stride), tuple(layer.dilation)
        if getattr(layer, "padding_mode", "zeros") not in ("zeros", "constant"):
            return self._refuse(node, f"padding_mode {layer.padding_mode!r}")
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        if isinstance(layer, QuantizedAdder2dSame) or type(layer).__name__ == "Conv2dSame":
            sides = [get_same_padding(*each) for each in zip(shape[1:], kernel, stride, dilation, strict=True)]
            padding = (sides[0] // 2, sides[1] // 2, sides[0] - sides[0] // 2, sides[1] - sides[1] // 2)
        elif isinstance(layer, QuantizedAdder2d):
            left, right, top, bottom = layer.sides
            padding = (top, left, bottom, right)
        elif layer.padding == "same":
            before = [(r - 1) // 2 for r in reach]
            padding = (before[0], before[1], reach[0] - 1 - before[0], reach[1] - 1 - before[1])
        else:
            rows, columns = (0, 0) if layer.padding == "valid" else layer.padding
            padding = (rows, columns, rows, columns)
        return {"stride": stride, "padding": padding, "dilation": dilation}

    def _norm(self, node: fx.Node, norm: Any, value: _Value) -> _Value:
        if norm.training or norm.running_mean is None:
            return self._refuse(node, "BatchNorm without running statistics")

        def emit(quantizer: Quantizer | None, relu: bool = False, _: None = None) -> Plane:
            if value.takes_norm:
                return value.emit(quantizer, relu, norm)
            # A depthwise convolution with weights of one.
            source = value.emit(self._quantizer(value))
            channels = source.shape[0]

            def make() -> Step:
                times, plus = fusion.affine_map(norm)
                scale = times * source.scale
                center = torch.full_like(scale, source.padding[0])
                shift = plus - scale * center
                if quantizer is not None:
                    scale, shift = scale / quantizer.scale, shift / quantizer.scale
                bounds = torch.zeros_like(scale), torch.full_like(scale, source.top)
                low = quantizer.zero_point if quantizer is not None and relu else 0
                affine = self._affine(scale, shift, center, bounds, quantizer, low)
                ones = torch.ones(channels, 1, 1, 1, dtype=torch.int8)
                plane = self._plane(node.name, source.shape, quantizer)
                return Layer(plane, (source,), "conv", ones, affine, groups=channels)

            return self._once((node, quantizer, relu), make)

        return _Value(node, value.shape, emit, value.flat)

    # ---------------------------------------------------------------------------------------------------- the poolings

    def _byte_pool(self, node: fx.Node, pool: QuantizedMaxPool2d, input: Plane) -> Plane:
        """Of what an adder layer writes."""
        kernel, stride, padding, shape = self._windows(node, pool, input.shape)
        least = torch.zeros(shape[0], dtype=torch.bool) if pool.flip is None else pool.flip > 0
        plane = replace(input, name=node.name, shape=shape)
        return self._once(node, lambda: MaxPool(plane, (input,), kernel, stride, padding, least))

    def _windows(self, node: fx.Node, pool: Any, size: tuple[int, int, int]) -> Any:
        """Kernel size, stride and padding of a max pooling, and the shape of its output."""
        kernel, stride, padding = (_pair(pair) for pair in (pool.kernel_size, pool.stride, pool.padding))
        if _pair(pool.dilation) != (1, 1) or getattr(pool, "return_indices", False):
            return self._refuse(node, "a dilated max pooling")
        ceil_mode = getattr(pool, "ceil_mode", False)
        try:
            pooled = F.max_pool2d(torch.empty(1, *size, device="meta"), kernel, stride, padding, 1, ceil_mode)
        except RuntimeError as error:
            raise ValueError(f"{node.target} does not fit an image of {size}: {error}") from error
        return kernel, stride, padding, (size[0], *pooled.shape[2:])

    def _max_pool(self, node: fx.Node, pool: nn.MaxPool2d, value: _Value) -> _Value:
        kernel, stride, padding, shape = self._windows(node, pool, value.shape)

        def emit(quantizer: Quantizer | None, relu: bool = False, norm: nn.Module | None = None) -> Plane:
            if quantizer is None:
                return self._refuse(node, "pooling of logits")
            input = value.emit(quantizer, relu, norm)
            least = torch.zeros(shape[0], dtype=torch.bool)
            if norm is not None:  # which is done ahead, and may turn the order round
                least = fusion.affine_map(norm)[0] < 0
            plane = self._plane(node.name, shape, quantizer)
            return self._once(
                (node, quantizer, relu, norm), lambda: MaxPool(plane, (input,), kernel, stride, padding, least)
            )

        return _Value(node, shape, emit, takes_norm=value.takes_norm)

    def _average_pool(self, node: fx.Node, pool: Any, value: _Value) -> _Value:
        channels, height, width = value.shape
        if isinstance(pool, nn.AdaptiveAvgPool2d):
            rows, columns = (
                size if out is None else out for size, out in zip((height, width), _pair(pool.output_size), strict=True)
            )
            if height % rows or width % columns:
                return self._refuse(node, f"windows of unequal size: {height} x {width} to {rows} x {columns}")
            kernel = stride = height // rows, width // columns
        else:
            kernel, stride = _pair(pool.kernel_size), _pair(pool.stride)
            if _pair(pool.padding) != (0, 0) or pool.ceil_mode or pool.divisor_override:
                return self._refuse(node, "an average pooling with padding")
            rows, columns = output_size([height, width], list(kernel), list(stride), [0, 0], [1, 1])
        if kernel == (1, 1) and stride == (1, 1):
            return _Value(node, value.shape, value.emit, value.flat, value.takes_norm)
        shape = channels, rows, columns

        def emit(quantizer: Quantizer | None, relu: bool = False, norm: nn.Module | None = None) -> Plane:
            if quantizer is None:
                return self._refuse(node, "pooling of logits")
            source = value.emit(self._quantizer(value))

            def make() -> Step:
                area = kernel[0] * kernel[1]
                scale = torch.full((1,), source.scale / area / quantizer.scale, dtype=torch.float64)
                shift = -scale * area * source.padding[0]
                bounds = torch.zeros(1), torch.full((1,), float(area * source.top))
                low = quantizer.zero_point if relu else 0
                center = torch.full((1,), float(area * source.padding[0]), dtype=torch.float64)
                affine = self._affine(scale, shift, center, bounds, quantizer, low)
                return AveragePool(self._plane(node.name, shape, quantizer), (source,), kernel, stride, affine)

            return self._once((node, quantizer, relu), make)

        return _Value(node, shape, emit)

    # ---------------------------------------------------------------------------------------------------- the numbers

    def _affine(
        self,
        scale: Tensor,
        shift: Tensor,
        center: Tensor,
        bounds: tuple[Tensor, ...],
        quantizer: Quantizer | None,
        low: int,
        addends: Sequence[Plane] = (),
        addend_scale: float = 0.0,
        droppable: bool = False,
    ) -> Affine:
        """Integers for scale * A + shift + addend_scale * addend, of an accumulator A within bounds.

        The rounding of multipliers moves nothing where A is `center`. Where sums of products are so long that their
        multiplier has less than ten bits, the last bits of A are dropped.
        """
        if quantizer is not None:
            shift = shift + quantizer.zero_point + 0.5
        top, addend_top, addend_zero = None if quantizer is None else quantizer.top, 0, 0
        if addends:
            addend_top, addend_zero = addends[0].top, addends[0].padding[0]
        limit = 2 ** (31 if self.bits is None else self.bits - 1)

        def rounded(bit: int, drop: int) -> Affine:
            exact = torch.cat([scale * 2.0 ** (bit + drop), torch.tensor([addend_scale * 2.0**bit])])
            multipliers = exact.round() if self.terms is None else _powers_of_two(exact, self.terms)
            multiplier, addend_multiplier = multipliers[:-1], multipliers[-1] if addends else torch.zeros(())
            moved, addend_moved = (exact - multipliers)[:-1], (exact - multipliers)[-1] if addends else 0.0
            bias = shift * 2.0**bit + moved * center * 2.0**-drop + addend_moved * addend_zero
            if drop:  # half a step, on average
                bias = bias + multiplier / 2
            return Affine(multiplier.long(), bias.round().long(), bit, drop, low, top, int(addend_multiplier))

        for drop in range(17 if droppable else 1):
            inside = [bound.long() >> drop for bound in bounds]
            for bit in range(30 if quantizer is None else _SHIFT, -31, -1):
                affine = rounded(bit, drop)
                largest = max(int(affine.multiplier.abs().max()), abs(affine.addend_multiplier))
                if largest < limit and _in_32_bits(affine, inside, addend_top):
                    break
            if int(affine.multiplier.abs().max()) >= min(2**10, limit // 4):
                break
        if not _in_32_bits(affine, inside, addend_top) or (affine.shift < 0 and quantizer is not None):
            raise ValueError("a layer's numbers do not fit into 32 bits")
        if quantizer is None:
            self.logit_scale = 2.0**-affine.shift
            return replace(affine, shift=0)
        return affine


def _powers_of_two(x: Tensor, terms: int) -> Tensor:
    """The nearest sums of signed powers of two, each the nearest to what is left."""
    left, total = x.clone(), torch.zeros_like(x)
    for _ in range(terms):
        size = left.abs()
        power = torch.where(size < 0.5, 0.0, 2.0 ** torch.floor(torch.log2(size.clamp(min=0.5) / 0.75)).clamp(min=0))
        total, left = total + left.sign() * power, left - left.sign() * power
    return total


def _in_32_bits(affine: Affine, bounds: list[Tensor], addend_top: int) -> bool:
    """Whether no product and no sum, from left to right, can leave 32 bits."""
    products = [bound * affine.multiplier for bound in bounds]
    sums = [affine.bias, *(product + affine.bias for product in products)]
    added = [total + affine.addend_multiplier * addend_top for total in sums]
    return all(int(x.abs().max()) < 2**31 for x in [*products, *sums, *added])


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _output_shape(
    shape: tuple[int, ...], channels: int, kernel: tuple[int, ...], geometry: Mapping[str, Any]
) -> tuple[int, int, int]:
    stride, dilation = geometry.get("stride", (1, 1)), geometry.get("dilation", (1, 1))
    top, left, bottom, right = geometry.get("padding", (0, 0, 0, 0))
    padded = [shape[1] + top + bottom, shape[2] + left + right]
    rows, columns = output_size(padded, list(kernel), list(stride), [0, 0], list(dilation))
    return channels, rows, columns
