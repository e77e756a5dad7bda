"""The adder layers of a network as the operator sees them, and how fast it runs on them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import mul
from typing import Any

import timm
import torch
from torch import Tensor

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
# PyTorch's convolution's. Byte networks are kept in channels_last throughout, and are not trained.
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
    """One call of `adder2d`: shapes of its input and filters, and its geometry."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

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
        return text + (f", {self.groups} groups" if self.groups > 1 else "")


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


def adder_layers(name: str, batch: int) -> Counter[Layer]:
    """The distinct adder layers of a network for a batch of images of its own size, and how often it has each."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        model(torch.empty(batch, *model.pretrained_cfg["input_size"], device="meta"))
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
    """

    layer: Layer
    count: int
    elements: int
    seconds: float
    spread: float
    share: float | None


@dataclass(frozen=True)
class OperatorResult:
    """All adder layers of a network, in one direction and one memory format.

    Attributes:
        model: The network.
        batch: Images of a batch.
        direction: "forward", "input gradient" or "weight gradient".
        memory_format: Of input and gradient.
        form: The loop that the ceiling was measured with.
        ceiling: Elements a second that it reached, median of the rounds; None without compiled loops.
        no_ceiling: Why there is none; empty where there is one.
        rate: Elements a second over all layers of the network, each as often as it has it.
        share: `rate` by `ceiling`, compared in each round: the mean over the layers, weighted by their time.
        layers: Each distinct layer.
        precision: "float32", or "u8" for bytes in and out.
    """

    model: str
    batch: int
    direction: str
    memory_format: str
    form: str
    ceiling: float | None
    rate: float
    share: float | None
    layers: tuple[LayerResult, ...]
    precision: str = "float32"
    no_ceiling: str = ""

    @property
    def title(self) -> str:
        precision = "" if self.precision == "float32" else f" in {self.precision}"
        return f"adder layers of {self.model}{precision}, batch {self.batch}"

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


def _why_no_ceiling(device: str) -> str:
    """Loads the loops that bound the operators, or compiles them; says why they are not there, if they are not."""
    if ops.backend(device) == "PyTorch reference":
        return "the operator is PyTorch's reference"
    return load_ceilings(device) or ""


def measure_operator(
    name: str,
    batch: int,
    seconds: float,
    note: Callable[[str], object] = lambda text: None,
    precisions: Sequence[str] = ("float32",),
    device: str = "cpu",
) -> list[OperatorResult]:
    """Time the operator on the adder layers of a network, in this process and with PyTorch's threads.

    Args:
        name: The network.
        batch: Images of a batch.
        seconds: Time for each layer, direction and memory format.
        note: Called with what is being done, now and then.
        precisions: "float32"; "u8" for `adder2d_u8`, bytes in and out. Several are measured in turns as well.
        device: "cpu", "cuda" or one of several GPUs.
    """
    layers = adder_layers(name, batch)
    no_ceiling = _why_no_ceiling(torch.device(device).type)
    kinds = [(precision, *kind) for precision in precisions for kind in CEILINGS[precision]]
    all_data = {precision: _Data(layers, precision, device) for precision in precisions}
    runners: dict[Any, Local] = {}
    ceiling_elements = {}
    for kind in kinds:
        precision, memory_format, direction = kind
        if not no_ceiling:
            runners[kind], ceiling_elements[kind] = _ceiling(CEILINGS[precision][memory_format, direction], device)
        for layer in layers:
            runners[*kind, layer] = runner(all_data[precision].call(layer, memory_format, direction), device)
    with torch.inference_mode():
        timings, _ = interleave(runners, seconds, lambda key: note(f"{name}, batch {batch}: {key[2]}, {key[1]}"))
    results = []
    for kind in kinds:
        ceiling = None if no_ceiling else timings[kind] / ceiling_elements[kind]
        of_layers = {layer: timings[*kind, layer] for layer in layers}
        result = _summary(name, batch, kind[1:], kind[0], layers, of_layers, ceiling)
        results.append(replace(result, no_ceiling=no_ceiling))
    runners.clear()  # and with them the tensors, whose memory networks may need next
    all_data.clear()
    leave(device)
    return results


def _summary(
    name: str,
    batch: int,
    kind: tuple[str, str],
    precision: str,
    layers: Counter[Layer],
    timings: dict[Layer, Timing],
    ceiling: Timing | None,
) -> OperatorResult:
    """Of the timings of the layers and that of an element at the ceiling."""

    def share(timing: Timing, elements: int) -> float | None:
        return (timing / elements).speedup_over(ceiling) if ceiling else None

    rounds = zip(*(timings[layer].visits for layer in layers), strict=False)
    whole = Timing(tuple(sum(map(mul, layers.values(), seconds)) for seconds in rounds), 0)
    elements = sum(count * layer.elements for layer, count in layers.items())
    results = [
        LayerResult(
            layer=layer,
            count=count,
            elements=layer.elements,
            seconds=timings[layer].median,
            spread=timings[layer].spread,
            share=share(timings[layer], layer.elements),
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
        layers=tuple(results),
        precision=precision,
    )
