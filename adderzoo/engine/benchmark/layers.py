"""Adder layers, those of a network or of many kinds, and how fast the operator runs on them beside a convolution."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import mul
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import get_pretrained_cfg
from torch import Tensor

from adderzoo import models as models  # timm knows networks by them
from adderzoo import ops
from adderzoo.ops import pack_byte_filters
from adderzoo.ops._library import load_ceilings
from adderzoo.ops._pytorch import TorchDispatchMode, defaults_of
from adderzoo.ops.adder2d import full_weight_gradient
from adderzoo.ops.geometry import output_size

from .devices import is_gpu, leave, runner
from .timing import Local, Timing, interleave

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

# What is measured at each precision, in which formats, and the loop whose speed bounds it. The weight gradient is
# PyTorch's convolution's, but of depthwise layers on a CPU. Byte networks are kept in channels_last throughout, and are
# not trained.
_FLOAT_FORMS = {"forward": "distance", "input gradient": "slope", "weight gradient": "multiply_add"}
CEILINGS = {
    "float32": {
        (memory_format, direction): form for memory_format in FORMATS for direction, form in _FLOAT_FORMS.items()
    },
    "u8": {("channels_last", "forward"): "byte_distance"},
}

_CEILING_SECONDS = 0.01


@dataclass(frozen=True)
class Layer:
    """One call of `adder2d`: shapes of its input and filters, its geometry, and what all numbers are offset by."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    offset: float = 0.0

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    @property
    def output(self) -> tuple[int, ...]:
        rows_and_columns = output_size(self.input[2:], self.weight[2:], *self.geometry[:3])
        return self.input[0], self.weight[0], *rows_and_columns

    @property
    def elements(self) -> int:
        """|x - w|, those of padded pixels included."""
        return math.prod(self.output) * math.prod(self.weight[1:])

    def __str__(self) -> str:
        filters, channels, height, width = self.weight
        text = f"{channels * self.groups} to {filters}, {height}x{width}, on {self.input[2]}x{self.input[3]}"
        if max(self.stride) > 1:
            text += f", stride {self.stride[0]}"
        text += f", {self.groups} groups" if self.groups > 1 else ""
        return text + (f", numbers near {self.offset:g}" if self.offset else "")


def _layer(
    channels: int, filters: int, kernel: int, height: int, width: int | None = None, groups: int = 1, **others: Any
) -> Layer:
    """Of one image, padded as to keep its size but for the stride."""
    shapes = (1, channels, height, width or height), (filters, channels // groups, kernel, kernel)
    return Layer(*shapes, padding=(kernel // 2, kernel // 2), groups=groups, **others)


# Every kind of layer that networks have, those among them that kernels find hard. Bytes have no offset.
KINDS = (
    _layer(16, 16, 3, 32),
    _layer(64, 64, 3, 28),
    _layer(512, 512, 3, 7),
    _layer(16, 16, 3, 3, 20_000),  # long rows
    _layer(16, 64, 1, 56),
    _layer(64, 256, 1, 28),
    _layer(128, 256, 1, 28, stride=(2, 2)),
    _layer(3, 64, 7, 112, stride=(2, 2)),  # ImageNet's first layer, on a quarter of the pixels
    _layer(1, 6, 5, 128),
    _layer(6, 16, 5, 64),
    _layer(128, 128, 3, 28, groups=16),
    _layer(96, 96, 3, 56, groups=96),
    _layer(96, 96, 5, 28, groups=96),
    # Sums of float32 that are differences of large numbers, which the operator guards against.
    _layer(16, 64, 1, 56, offset=30.0),
    _layer(64, 64, 3, 28, offset=1000.0),
)


# Height and width of the patches that `adderzoo train` cuts for super-resolution.
_PATCH = 48


def is_super_resolution(name: str) -> bool:
    """By the network's name: those have no classes."""
    return get_pretrained_cfg(name).num_classes == 0


def image_size(name: str, training: bool = False) -> tuple[int, int, int] | None:
    """(C, H, W) of the images that a network for super-resolution is measured on; None for others: their own size.

    That is a quarter of the height and the width of what becomes 1280x720, or in training a patch of a usual size.
    """
    if not is_super_resolution(name):
        return None
    channels, height, width = get_pretrained_cfg(name).input_size
    return (channels, _PATCH, _PATCH) if training else (channels, height // 4, width // 4)


class _Recorder(TorchDispatchMode):
    """Notes the calls of `adder2d`, whatever module they come from."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: Counter[Layer] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.adderzoo.adder2d.default:
            call = defaults_of(torch.ops.adderzoo.adder2d)
            call |= dict(zip(call, args, strict=False)) | (kwargs or {})
            stride, padding, dilation = (tuple(call[name]) for name in ("stride", "padding", "dilation"))
            shapes = tuple(call["input"].shape), tuple(call["weight"].shape)
            self.layers[Layer(*shapes, stride, padding, dilation, call["groups"])] += 1
        return func(*args, **(kwargs or {}))


def adder_layers(name: str, batch: int, size: tuple[int, int, int] | None = None) -> Counter[Layer]:
    """The distinct adder layers of a network for a batch of images, of its own size or (C, H, W), and how many."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        model(torch.empty(batch, *(size or model.pretrained_cfg["input_size"]), device="meta"))
    return recorder.layers


def _ceiling(form: str, device: str) -> tuple[Local, int]:
    """A tight loop of the same instructions on all threads, the device's own limit, and its elements."""
    loop: Any = torch.ops.adderzoo_benchmark.cpu_ceiling
    if is_gpu(device):
        loop = partial(torch.ops.adderzoo_benchmark.cuda_ceiling, torch.empty(0, device=device))
    steps = 1 << 10
    while True:
        timed = runner(partial(loop, form, steps), device)
        if timed.warm_up() >= _CEILING_SECONDS:
            return timed, loop(form, steps)
        steps *= 2


@dataclass(frozen=True)
class LayerResult:
    """Of one adder layer.

    Attributes:
        layer: Shapes and geometry.
        count: How often the network has it.
        elements: |x - w| of one call.
        seconds: Of one call, median of the rounds.
        spread: Half the distance between quartiles, as a share of the median.
        share: Of the ceiling; None where there is none.
        convolution: Speed as a multiple of that of PyTorch's convolution, compared in each round.
    """

    layer: Layer
    count: int
    elements: int
    seconds: float
    spread: float
    share: float | None
    convolution: float


@dataclass(frozen=True)
class OperatorResult:
    """All adder layers of a network, or layers of many kinds, in one direction and one memory format.

    Attributes:
        model: The network; None for `KINDS`.
        batch: Images of a batch.
        direction: "forward", "input gradient" or "weight gradient".
        memory_format: Of input and gradient.
        form: The loop that the ceiling was measured with.
        ceiling: Elements a second that it reached, median of the rounds; None without compiled loops.
        no_ceiling: Why there is none; empty where there is one.
        rate: Elements a second over all layers of the network, each as often as it has it.
        share: `rate` by `ceiling`, compared in each round: the mean over the layers, weighted by their time.
        convolution: Speed over all layers as a multiple of that of PyTorch's convolutions of the same geometry, in
            float32.
        layers: Each distinct layer.
        precision: "float32", or "u8" for bytes in and out.
    """

    model: str | None
    batch: int
    direction: str
    memory_format: str
    form: str
    ceiling: float | None
    rate: float
    share: float | None
    convolution: float
    layers: tuple[LayerResult, ...]
    precision: str = "float32"
    no_ceiling: str = ""

    @property
    def title(self) -> str:
        precision = "" if self.precision == "float32" else f" in {self.precision}"
        return f"adder layers of {self.model or 'many kinds'}{precision}, batch {self.batch}"

    @property
    def worst(self) -> LayerResult:
        return min(self.layers, key=lambda layer: layer.elements / layer.seconds)


class _Data:
    """Tensors of normally distributed numbers, or of bytes, views of three that all layers share."""

    def __init__(self, layers: Counter[Layer], precision: str, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)

        def random(size: int) -> Tensor:
            if precision == "u8":
                return torch.randint(256, (size,), generator=generator, dtype=torch.uint8).to(device)
            return torch.randn(size, generator=generator).to(device)

        self.precision = precision
        self.pools = {
            kind: random(max(math.prod(getattr(layer, kind)) for layer in layers))
            for kind in ("input", "weight", "output")
        }

    def get(self, layer: Layer, kind: str, memory_format: str = "contiguous") -> Tensor:
        shape = getattr(layer, kind)
        values = self.pools[kind][: math.prod(shape)]
        if layer.offset and kind != "output":
            values = values + layer.offset
        if memory_format == "contiguous":
            return values.view(shape)
        n, c, h, w = shape
        return values.view(n, h, w, c).permute(0, 3, 1, 2)

    def call(self, layer: Layer, memory_format: str, direction: str) -> Callable[[], Tensor]:
        x, w = self.get(layer, "input", memory_format), self.get(layer, "weight")
        if self.precision == "u8":
            packed = pack_byte_filters(w, layer.groups)
            # The mean distance, which fits into a byte.
            scale = torch.full((len(w),), 1 / w[0].numel(), device=w.device)
            shift = torch.zeros_like(scale)
            return lambda: torch.ops.adderzoo.adder2d_u8(
                x, packed, scale, shift, None, *layer.geometry, out_zero_point=0
            )
        if direction == "forward":
            return lambda: torch.ops.adderzoo.adder2d(x, w, *layer.geometry)
        g = self.get(layer, "output", memory_format)
        if direction == "input gradient":
            return lambda: torch.ops.adderzoo._adder2d_backward_input(g, x, w, *layer.geometry, "hardtanh")
        return lambda: full_weight_gradient(g, x, w, *layer.geometry)

    def convolution(self, layer: Layer, memory_format: str, direction: str) -> Callable[[], Tensor]:
        """PyTorch's, of the same geometry, on the same numbers, with its filters in the format that suits it."""
        x, w = self.get(layer, "input", memory_format), self.get(layer, "weight")
        w = w.contiguous(memory_format=FORMATS[memory_format])
        if direction == "forward":
            return lambda: F.conv2d(x, w, None, *layer.geometry)
        g = self.get(layer, "output", memory_format)
        stride, padding, dilation, groups = layer.geometry
        which = ["input gradient", "weight gradient"].index(direction)
        wanted = [which == 0, which == 1, False]
        return lambda: torch.ops.aten.convolution_backward(
            g, x, w, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )[which]


def _why_no_ceiling(device: str) -> str:
    """Loads the loops that bound the operators, or compiles them; says why they are not there, if they are not."""
    if ops.backend(device) == "PyTorch reference":
        return "the operator is PyTorch's reference"
    return load_ceilings(device) or ""


def _layers(name: str | None, batch: int, precision: str) -> Counter[Layer]:
    if name is not None:
        return adder_layers(name, batch, image_size(name))
    kinds = [layer for layer in KINDS if precision == "float32" or not layer.offset]
    return Counter(replace(layer, input=(batch, *layer.input[1:])) for layer in kinds)


def measure_operator(
    name: str | None,
    batch: int,
    seconds: float,
    note: Callable[[str], object] = lambda text: None,
    precisions: Sequence[str] = ("float32",),
    device: str = "cpu",
) -> list[OperatorResult]:
    """Time the operator on adder layers, in this process and with PyTorch's threads, each beside a convolution.

    Args:
        name: The network whose layers they are; None for `KINDS`.
        batch: Images of a batch.
        seconds: Time for each layer, direction and memory format, and for each convolution.
        note: Called with what is being done, now and then.
        precisions: "float32"; "u8" for `adder2d_u8`, bytes in and out. Several are measured in turns as well.
        device: "cpu", "cuda" or one of several GPUs.
    """
    layers = {precision: _layers(name, batch, precision) for precision in precisions}
    no_ceiling = _why_no_ceiling(torch.device(device).type)
    kinds = [(precision, *kind) for precision in precisions for kind in CEILINGS[precision]]
    all_data = {precision: _Data(layers[precision], precision, device) for precision in precisions}
    numbers = all_data.get("float32") or _Data(layers[precisions[0]], "float32", device)
    runners: dict[Any, Local] = {}
    ceiling_elements = {}
    for kind in kinds:
        precision, memory_format, direction = kind
        if not no_ceiling:
            runners[kind], ceiling_elements[kind] = _ceiling(CEILINGS[precision][memory_format, direction], device)
        for layer in layers[precision]:
            runners[*kind, layer] = runner(all_data[precision].call(layer, memory_format, direction), device)
            convolution = runner(numbers.convolution(layer, memory_format, direction), device)
            runners.setdefault(("convolution", *kind[1:], layer), convolution)
    title = f"{name or 'layers of many kinds'}, batch {batch}"
    with torch.inference_mode():
        timings, _ = interleave(runners, seconds, lambda key: note(f"{title}: {key[2]}, {key[1]}"))
    results = []
    for kind in kinds:
        ceiling = None if no_ceiling else timings[kind] / ceiling_elements[kind]
        of_layers, convolutions = (
            {layer: timings[*key, layer] for layer in layers[kind[0]]} for key in (kind, ("convolution", *kind[1:]))
        )
        result = _summary(name, batch, kind[1:], kind[0], layers[kind[0]], of_layers, convolutions, ceiling)
        results.append(replace(result, no_ceiling=no_ceiling))
    runners.clear()  # and with them the tensors, whose memory networks may need next
    all_data.clear()
    del numbers
    leave(device)
    return results


def _summary(
    name: str | None,
    batch: int,
    kind: tuple[str, str],
    precision: str,
    layers: Counter[Layer],
    timings: dict[Layer, Timing],
    convolutions: dict[Layer, Timing],
    ceiling: Timing | None,
) -> OperatorResult:
    """Of the timings of the layers, of their convolutions, and that of an element at the ceiling."""

    def share(timing: Timing, elements: int) -> float | None:
        return (timing / elements).speedup_over(ceiling) if ceiling else None

    def of_all(timings: dict[Layer, Timing]) -> Timing:
        rounds = zip(*(timings[layer].visits for layer in layers), strict=False)
        return Timing(tuple(sum(map(mul, layers.values(), seconds)) for seconds in rounds), 0)

    whole = of_all(timings)
    elements = sum(count * layer.elements for layer, count in layers.items())
    results = [
        LayerResult(
            layer=layer,
            count=count,
            elements=layer.elements,
            seconds=timings[layer].median,
            spread=timings[layer].spread,
            share=share(timings[layer], layer.elements),
            convolution=timings[layer].speedup_over(convolutions[layer]),
        )
        for layer, count in layers.items()
    ]
    return OperatorResult(
        model=name,
        batch=batch,
        memory_format=kind[0],
        direction=kind[1],
        form=CEILINGS[precision][kind],
        ceiling=1 / ceiling.median if ceiling else None,
        rate=elements / whole.median,
        share=share(whole, elements),
        convolution=whole.speedup_over(of_all(convolutions)),
        layers=tuple(results),
        precision=precision,
    )
