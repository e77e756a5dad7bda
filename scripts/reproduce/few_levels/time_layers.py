"""Time adder layers whose filters take m levels, as int8 convolutions, beside the byte kernel. One thread.

    python scripts/reproduce/few_levels/time_layers.py [--seconds S]
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python scripts/reproduce/few_levels/time_layers.py     # without AMX

levels.py has the form, which is checked against the definition first. Printed are speeds as multiples of the byte
kernel's (`adderzoo.ops.adder2d_u8`), of what runs in turns with it; all of it reads and writes bytes. "m=4" makes the
activations and convolves them, "m=4, convolution" finds them made. The second table is of loops that keep everything
in registers and the first cache.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from levels import convolution_filters, levels_of
from native import make_activations, tile_ceiling, vector_ceiling
from torch import Tensor

from adderzoo.engine.benchmark.timing import Local, interleave
from adderzoo.ops import pack_byte_filters

LEVELS = (3, 4, 8, 16)

# (batch, channels, height): 3x3 layers of as many filters, of CIFAR ResNet-20 and of ResNet-18.
LAYERS = {
    "ResNet-20": ((128, 16, 32), (128, 32, 16), (128, 64, 8)),
    "ResNet-18": ((8, 64, 56), (8, 128, 28), (8, 256, 14), (8, 512, 7)),
}

# Loops of few_levels.cpp, which keep everything in registers and the first cache.
BYTES = "vpsadbw and an addition"
CEILINGS = {BYTES: partial(vector_ceiling, 0), "vpdpbusd, 2 levels or int8": partial(vector_ceiling, 2)}
CEILINGS |= {f"vpdpbusd, {m} levels, activations in registers": partial(vector_ceiling, m) for m in (3, 4, 8)}
if "amx_int8" in Path("/proc/cpuinfo").read_text():
    CEILINGS["AMX, 2 levels or int8"] = tile_ceiling  # m levels: m - 1 times as many tiles
ROUNDS = 5000


class Convolution:
    """oneDNN's 3x3 convolution, padded by 1, of unsigned bytes with int8 filters, to bytes or to exact floats."""

    def __init__(self, filters: Tensor, input: Tensor, scale: float) -> None:
        self.ones, self.zeros = torch.ones(len(filters)), torch.zeros(len(filters), dtype=torch.int32)
        self.scale, self.geometry = scale, ([1, 1], [1, 1], [1, 1], 1)
        self.filters = torch.ops.onednn.qconv_prepack(filters, self.ones, 1.0, 0, *self.geometry, list(input.shape))

    def __call__(self, input: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
        scale, behind = (self.scale, "relu") if dtype == torch.uint8 else (1.0, "none")
        return torch.ops.onednn.qconv2d_pointwise(
            input, 1.0, 0, self.filters, self.ones, self.zeros, None, *self.geometry, scale, 0, dtype, behind, [], ""
        )


def check(m: int) -> None:
    """The convolution form gives the distance to the last bit."""
    x = torch.randint(256, (2, 16, 9, 9), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    indices = torch.randint(m, (32, 16, 3, 3))
    levels = levels_of(m)
    weight = levels[indices].double()
    patches = F.unfold(x.double(), 3, padding=1)  # (N, K, L)
    distance = (weight.flatten(1)[None, :, :, None] - patches[:, None]).abs().sum(2)
    inputs = make_activations(x, levels)
    form = Convolution(convolution_filters(indices, m), inputs, 1.0)(inputs, torch.float32).double()
    constant = weight.flatten(1).sum(1)[:, None]  # v_j, and 0 for the first level
    assert torch.equal(form.flatten(2) + constant, distance), f"{m} levels"


def runs(batch: int, channels: int, size: int) -> dict[str, Callable[[], object]]:
    """What is timed of a layer, by name."""
    x = torch.randint(256, (batch, channels, size, size), dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    taps = 9 * channels
    packed = pack_byte_filters(torch.randint(256, (channels, channels, 3, 3), dtype=torch.uint8))
    scale, shift = torch.full((channels,), 1 / taps), torch.zeros(channels)
    int8 = Convolution(torch.randint(-127, 128, (channels, channels, 3, 3), dtype=torch.int8), x, 255.0 * taps)
    made: dict[str, Callable[[], object]] = {
        "bytes": lambda: torch.ops.adderzoo.adder2d_u8(
            x, packed, scale, shift, None, [1, 1], [1, 1], [1, 1], 1, relu=True, out_zero_point=0
        ),
        "int8": lambda: int8(x),
    }
    for m in LEVELS:
        levels = levels_of(m)
        inputs = make_activations(x, levels)
        filters = convolution_filters(torch.randint(m, (channels, channels, 3, 3)), m)
        form = Convolution(filters, inputs, float(taps))
        made[f"m={m}, convolution"] = lambda form=form, inputs=inputs: form(inputs)
        made[f"m={m}"] = lambda form=form, levels=levels: form(make_activations(x, levels))
    return made


def ceilings(seconds: float) -> None:
    """Prints the speeds of the loops in few_levels.cpp: of their fastest rounds, and how many times the byte loop's."""
    elements = {name: loop(ROUNDS) for name, loop in CEILINGS.items()}
    timings, _ = interleave({name: Local(partial(loop, ROUNDS)) for name, loop in CEILINGS.items()}, seconds)
    rates = {name: elements[name] / min(timing.visits) / 1e9 for name, timing in timings.items()}
    print("\n| loop | G/s | beside bytes |\n| --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {rate / rates[BYTES]:.2f} |")


def measure(seconds: float) -> None:
    """Prints the table of layers."""
    columns = ["int8", *(name for m in LEVELS for name in (f"m={m}", f"m={m}, convolution"))]
    print(f"| layer | bytes, G/s | {' | '.join(columns)} |")
    print("| --- " * (len(columns) + 2) + "|")
    for network, layers in LAYERS.items():
        total = dict.fromkeys(["bytes", *columns], 0.0)
        elements = 0
        for batch, channels, size in layers:
            made = {name: Local(run) for name, run in runs(batch, channels, size).items()}
            timings, _ = interleave(made, seconds)
            row = {name: timings[name].median for name in total}
            print_row(f"{channels}x{size}x{size}, batch {batch}", row, elements_of(batch, channels, size))
            total = {name: total[name] + row[name] for name in total}
            elements += elements_of(batch, channels, size)
        print_row(f"{network}: as many of each", total, elements)


def elements_of(batch: int, channels: int, size: int) -> int:
    """|x - w| of a layer."""
    return batch * channels * size**2 * 9 * channels


def print_row(title: str, seconds: dict[str, float], elements: int) -> None:
    """Of a layer, or of some: elements a second of the byte kernel, and how many times as fast the others are."""
    speeds = [f"{seconds['bytes'] / other:.2f}" for name, other in seconds.items() if name != "bytes"]
    print(f"| {title} | {elements / seconds['bytes'] / 1e9:.0f} | {' | '.join(speeds)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.4, help="for each number")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for m in LEVELS:
        check(m)
    with torch.inference_mode():
        measure(args.seconds)
        ceilings(args.seconds)
