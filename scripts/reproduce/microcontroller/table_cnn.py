"""Convolutions of ResNet-8 on rv32i, which has no multiplier: products of bytes from a table of 128 KB.

    python scripts/reproduce/microcontroller/table_cnn.py

All layers that the CNN twin has, in its shapes, with random weights: accumulators alone, without bias, scale, rounding
and addition, of images that are padded already. Prints executed instructions of every layer by the best of twelve
loops, counted under qemu; sums are held to PyTorch's. Filters are offsets into a row of the table; a tile is of some
points and four channels. It is a lower bound of what such a network takes, to compare a whole adder network with.
"""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from machines import MACHINES, build, compiled_plugin, run
from torch import Tensor, nn

import adderzoo  # registers the networks
import adderzoo.microcontroller


@dataclass
class _Layer:
    """A convolution, with an image (C, H, W), padded, of bytes and weights (O, C, k, k) from -128 to 127."""

    name: str
    stride: int
    image: Tensor
    weight: Tensor

    @property
    def sums(self) -> Tensor:
        """(O, H', W')."""
        return F.conv2d(self.image[None].double(), self.weight.double(), None, self.stride)[0].long()


def layers() -> list[_Layer]:
    """Of the CNN twin."""
    found: list[_Layer] = []
    random = torch.Generator().manual_seed(0)
    model = timm.create_model("cnn_resnet8").eval()

    def see(name: str, conv: nn.Conv2d, shape: torch.Size) -> None:
        height, width = (size + 2 * pad for size, pad in zip(shape[2:], conv.padding, strict=True))
        image = torch.randint(0, 256, (shape[1], height, width), generator=random)
        weight = torch.randint(-128, 128, conv.weight.shape, generator=random)
        found.append(_Layer(name.replace(".", "_"), conv.stride[0], image, weight))

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda module, args, name=name: see(name, module, args[0].shape))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    return found


_TEST = """
#include <stdint.h>
int puts(const char *text);
void table_init(void);
int net_run(void);
int is_right(void);
int main(void)
{
    table_init();
    net_run();
    puts(is_right() ? "PASS" : "FAIL");
    return 0;
}
"""

_BEGIN = """
#include <stdint.h>
static int16_t table[256 * 256];
void table_init(void);
int net_run(void);
int is_right(void);
void table_init(void)
{
    for (int x = 0; x < 256; x++) {
        for (int w = -128; w < 128; w++) {
            table[256 * x + w + 128] = (int16_t)(x * w);
        }
    }
}
static uint32_t checksum(const int32_t *sums, int count)
{
    uint32_t sum = 0;
    for (int i = 0; i < count; i++) {
        sum = (sum << 5) - sum + (uint32_t)sums[i];
    }
    return sum;
}
"""


def source(found: list[_Layer], points: int, unroll: int) -> str:
    """C of all layers: tiles of so many points at most and four channels, so many elements at a time at most."""
    text, calls, checks = [_BEGIN], [], []
    for layer in found:
        sums = layer.sums
        wide = max(count for count in (1, 2, 4) if count <= points and sums.shape[2] % count == 0)
        segment = layer.weight.shape[1] * layer.weight.shape[3]
        text.append(_function(layer, wide, max(n for n in range(1, unroll + 1) if segment % n == 0)))
        calls.append(f"/* {layer.name}: */\n    {layer.name}();")
        checks.append(f"checksum({layer.name}_sums, {sums.numel()}) == {_checksum(sums.permute(1, 2, 0))}u")
    text.append("int net_run(void)\n{\n    " + "\n    ".join(calls) + "\n    /* end: */\n    return 0;\n}\n")
    return "\n".join(text) + f"int is_right(void)\n{{\n    return {' && '.join(checks)};\n}}\n"


def _checksum(sums: Tensor) -> int:
    total = 0
    for value in sums.flatten().tolist():
        total = (31 * total + value) % 2**32
    return total


def _function(layer: _Layer, points: int, unroll: int) -> str:
    (channels, _, width), (outputs, _, kernel, _), name = layer.image.shape, layer.weight.shape, layer.name
    rows, columns, quads = *layer.sums.shape[1:], -(-outputs // 4)
    offsets = F.pad(2 * (layer.weight.permute(0, 2, 3, 1).flatten(1) + 128), (0, 0, 0, 4 * quads - outputs))
    offsets = offsets.reshape(quads, 4, -1).transpose(1, 2)  # of twice a byte, four channels behind each other
    pairs = [(point, channel) for point in range(points) for channel in range(4)]
    step = layer.stride * channels
    lines = [
        _array("uint8_t", f"{name}_image", layer.image.permute(1, 2, 0)),
        _array("uint16_t", f"{name}_offsets", offsets),
        f"static int32_t {name}_sums[{rows * columns * outputs}];",
        f"static void __attribute__((noinline)) {name}(void)",
        "{",
        f"for (int i = 0; i < {rows}; i++) {{",
        f"for (int j = 0; j < {columns}; j += {points}) {{",
        f"const uint16_t *w = {name}_offsets;",
        f"for (int q = 0; q < {quads}; q++) {{",
        f"int32_t {', '.join(f's{point}_{channel} = 0' for point, channel in pairs)};",
        f"for (int tap = 0; tap < {kernel}; tap++) {{",
        f"const uint8_t *x = {name}_image + (i * {layer.stride} + tap) * {width * channels} + j * {step};",
        f"for (const uint8_t *end = x + {kernel * channels}; x != end; x += {unroll}, w += {4 * unroll}) {{",
    ]
    for k in range(unroll):
        lines += ["{"]
        lines += [
            f"const char *r{p} = (const char *)table + ((uint32_t)x[{k} + {p * step}] << 9);" for p in range(points)
        ]
        for channel in range(4):
            lines += [f"{{ const uint32_t o = w[{4 * k + channel}];"]
            lines += [f"s{p}_{channel} += *(const int16_t *)(const void *)(r{p} + o);" for p in range(points)]
            lines += ["}"]
        lines += ["}"]
    lines += ["}", "}", f"int32_t *y = {name}_sums + (i * {columns} + j) * {outputs} + 4 * q;"]
    for point, channel in pairs:
        store = f"y[{outputs * point + channel}] = s{point}_{channel};"
        lines.append(store if outputs % 4 == 0 else f"if (4 * q + {channel} < {outputs}) {store}")
    return "\n".join([*lines, "}", "}", "}", "}"]) + "\n"


def _array(type_: str, name: str, values: Tensor) -> str:
    numbers = values.flatten().tolist()
    rows = "\n".join(", ".join(map(str, numbers[i : i + 24])) + "," for i in range(0, len(numbers), 24))
    return f"static const {type_} {name}[{len(numbers)}] = {{\n{rows}\n}};"


def main() -> None:
    bare = Path(adderzoo.microcontroller.__file__).parent / "c" / "bare.c"
    found = layers()
    loops = [(points, unroll) for points in (1, 2, 4) for unroll in (1, 2, 3, 4)]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        plugin = compiled_plugin(Path(name))

        def counted(loop: tuple[int, int]) -> dict[str, int]:
            folder = Path(name) / f"{loop[0]}_{loop[1]}"
            folder.mkdir()
            shutil.copy(bare, folder)
            (folder / "net_test.c").write_text(_TEST)
            (folder / "net.c").write_text(source(found, *loop))
            # Scheduling before the allocation of registers would spill sums.
            program = build(folder, MACHINES["rv32i"], "-fno-schedule-insns")
            text, counts = run(program, MACHINES["rv32i"], plugin)
            if text != "PASS\n":
                raise SystemExit(f"{loop}: {text}")
            return counts.layers

        taken = dict(zip(loops, pool.map(counted, loops), strict=True))
    total, products = 0, 0
    for layer in found:
        count, loop = min((taken[loop][layer.name], loop) for loop in loops)
        each = layer.sums.numel() * layer.weight[0].numel()
        total, products = total + count, products + each
        said = f"{count / each:.2f} a product: {loop[0]} points, {loop[1]} elements at a time"
        print(f"{layer.name:24} {count:12,} ({said})")
    print(f"{'all layers':24} {total:12,} ({total / products:.2f} a product)")


if __name__ == "__main__":
    main()
