"""Time adder layers whose filters take m levels, as convolutions on a GPU's tensor cores, beside the byte kernel.

    python scripts/reproduce/few_levels/time_gpu.py [--seconds S]

The form of levels.py in PyTorch operations: the activations in float16, the convolution by cuDNN, whose sums are in
float32; filters are divided by 256, so that no output exceeds float16. Printed are speeds as multiples of the byte
kernel's (`adderzoo.ops.adder2d_u8`), of what runs in turns with it: the CNN's layer in float16, and for each m the
convolution of activations that are made in the same run, and in brackets of activations found made.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from levels import activations, convolution_filters, levels_of
from torch import Tensor

from adderzoo.engine.benchmark.devices import runner
from adderzoo.engine.benchmark.timing import interleave
from adderzoo.ops import pack_byte_filters

LEVELS = (3, 4, 8)
# (batch, channels, height): 3x3 layers of as many filters, of CIFAR ResNet-20 and of ResNet-18.
LAYERS = ((1024, 16, 32), (1024, 32, 16), (1024, 64, 8), (64, 64, 56), (64, 128, 28), (64, 256, 14), (64, 512, 7))


def distances(x: Tensor, indices: Tensor, m: int, dtype: torch.dtype) -> Tensor:
    """Sums |x - v| of a 3x3 layer padded with bytes of 0, a 256th of them.

    Args:
        x: (N, C, H, W) uint8.
        indices: (O, C, 3, 3), of the level of every number of the filters.

    Returns:
        (N, O, H, W) of this dtype.
    """
    levels = levels_of(m)
    filters = convolution_filters(indices, m).to(dtype) / 256
    constant = levels[indices].sum((1, 2, 3), dtype=dtype) / 256
    return F.conv2d(activations(x, levels, dtype), filters, constant, padding=1)


def runs(batch: int, channels: int, size: int, device: str) -> dict[str, Callable[[], object]]:
    """What is timed of a layer, by name."""
    x = torch.randint(256, (batch, channels, size, size), dtype=torch.uint8, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randint(256, (channels, channels, 3, 3), dtype=torch.uint8)
    packed = pack_byte_filters(weight).to(device)
    scale, shift = torch.full((channels,), 1 / (9 * channels), device=device), torch.zeros(channels, device=device)

    def convolve(inputs: Tensor, filters: Tensor) -> Tensor:
        return F.conv2d(inputs, filters, padding=1)

    half = partial(torch.empty, dtype=torch.float16, device=device)
    cnn = half(x.shape).normal_().contiguous(memory_format=torch.channels_last)
    cnn_filters = half(weight.shape).normal_().contiguous(memory_format=torch.channels_last)
    made: dict[str, Callable[[], object]] = {
        "bytes": lambda: torch.ops.adderzoo.adder2d_u8(
            x, packed, scale, shift, None, [1, 1], [1, 1], [1, 1], 1, relu=True, out_zero_point=0
        ),
        "float16": partial(convolve, cnn, cnn_filters),
    }
    for m in LEVELS:
        levels = levels_of(m)
        filters = convolution_filters(torch.randint(m, weight.shape), m).to(device, torch.float16) / 256
        filters = filters.contiguous(memory_format=torch.channels_last)
        inputs = activations(x, levels, torch.float16).contiguous(memory_format=torch.channels_last)
        made[f"m={m}"] = lambda f=filters, v=levels: convolve(activations(x, v, torch.float16), f)
        made[f"m={m}, made"] = partial(convolve, inputs, filters)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.4, help="for each number")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.manual_seed(0)
    print("| layer | bytes, G/s | CNN in float16 | " + " | ".join(f"{m} levels" for m in LEVELS) + " |")
    print("| --- " * (3 + len(LEVELS)) + "|")
    with torch.inference_mode():
        for batch, channels, size in LAYERS:
            made = runs(batch, channels, size, args.device)
            timings, _ = interleave({name: runner(run, args.device) for name, run in made.items()}, args.seconds)
            seconds = {name: timing.median for name, timing in timings.items()}
            speeds = {name: f"{seconds['bytes'] / each:.2f}" for name, each in seconds.items()}
            columns = [speeds["float16"], *(f"{speeds[f'm={m}']} ({speeds[f'm={m}, made']})" for m in LEVELS)]
            elements = batch * channels * size**2 * 9 * channels
            rate = elements / seconds["bytes"] / 1e9
            print(f"| {channels}x{size}x{size}, batch {batch} | {rate:.0f} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
