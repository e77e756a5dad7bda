"""Instructions of the int8 CNN twin with Arm's CMSIS-NN, beside what count.py counts of the adder network.

    git clone https://github.com/ARM-software/CMSIS-NN
    python scripts/reproduce/microcontroller/cmsis_nn.py CMSIS-NN [--blocks 1 3] [--layers] [MACHINE ...]

The network is a CIFAR ResNet of so many blocks a stage (1: ResNet-8, 3: ResNet-20) with a convolution for every adder
layer, random weights, and activations of 8 bits: `arm_convolve_wrapper_s8`, `arm_elementwise_add_s8` and
`arm_avgpool_s8`, which choose their kernels by the processor. Bytes of every layer are held to the definition, in
Python. Of levels of optimization and CMSIS-NN's kinds of rounding every combination is counted for the smaller network,
and the best is taken for both. It needs what count.py does and Debian's libnewlib-arm-none-eabi.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from machines import AROUND, MACHINES, Counts, Machine, build, compiled_plugin, run
from torch import Tensor

import adderzoo.microcontroller

_SOURCES = (
    "ConvolutionFunctions/*s8*.c",
    "NNSupportFunctions/*s8*.c",
    "NNSupportFunctions/*s32*.c",
    "NNSupportFunctions/arm_q7*.c",
)
_SOURCES += ("BasicMathFunctions/arm_elementwise_add_s8.c", "PoolingFunctions/arm_avgpool*s8.c", "PadFunctions/*s8.c")
_CALLED = ("arm_convolve_wrapper_s8", "arm_avgpool_s8", "arm_elementwise_add_s8")
_ROUNDING: dict[str, tuple[str, ...]] = {"double": (), "single": ("-DCMSIS_NN_USE_SINGLE_ROUNDING",)}
_ROUNDING["assembler"] = ("-DCMSIS_NN_USE_REQUANTIZE_INLINE_ASSEMBLY",)
# Multipliers and shifts of two addends and their sum: the larger scale is halved, as TensorFlow Lite does.
_ADD = (2**30, 0, 1_431_655_765, -1, 1_518_500_250, -18)


@dataclass
class _Layer:
    """A tensor of the network, (C, H, W) in int64, and the C that makes it."""

    name: str
    made: Tensor
    call: str


def _requantized(x: Tensor, multiplier: Tensor | int, shift: int, single: bool) -> Tensor:
    """x * multiplier / 2^(31 - shift), rounded as CMSIS-NN does: once, or of a product's upper half, and then again."""
    if single:
        return ((x * multiplier >> (30 - shift)) + 1) >> 1
    high = (x * multiplier + 2**30) >> 31
    mask = 2**-shift - 1
    return (high >> -shift) + ((high & mask) > (mask >> 1) + (high < 0).long()).long()


class _Network:
    """C of the network, and what it makes of an image."""

    def __init__(self, blocks: int, single: bool) -> None:
        self.single, self.text, self.layers, self.scratch = single, [], [], []
        self.random = torch.Generator().manual_seed(blocks)
        image = torch.randint(-128, 128, (3, 32, 32), generator=self.random)
        self.text.append(_array("int8_t", "image", image.permute(1, 2, 0)))
        x = self._conv("conv1", _Layer("image", image, ""), 16, 3, 1)
        for stage, channels in enumerate((16, 32, 64), 1):
            for block in range(blocks):
                stride, name = (2 if stage > 1 and block == 0 else 1), f"layer{stage}_{block}"
                y = self._conv(f"{name}_conv1", x, channels, 3, stride)
                y = self._conv(f"{name}_conv2", y, channels, 3, 1)
                if stride > 1:
                    x = self._conv(f"{name}_downsample", x, channels, 1, stride)
                x = self._add(f"{name}_add", y, x)
        x = self._pool("global_pool", x)
        self._conv("fc", x, 10, 1, 1)

    def _layer(self, name: str, made: Tensor, call: str) -> _Layer:
        self.layers.append(_Layer(name, made, call))
        self.text.append(f"static int8_t {name}[{made.numel()}];")
        return self.layers[-1]

    def _conv(self, name: str, input: _Layer, channels: int, kernel: int, stride: int) -> _Layer:
        weight = torch.randint(-127, 128, (channels, len(input.made), kernel, kernel), generator=self.random)
        bias = torch.randint(-(2**14), 2**14, (channels,), generator=self.random)
        multiplier = torch.randint(2**30, 2**31, (channels,), generator=self.random)
        shift = -8 - (weight[0].numel().bit_length() + 1) // 2
        x = F.pad((input.made + 128).double(), (kernel // 2,) * 4)
        sums = F.conv2d(x[None], weight.double(), bias.double(), stride)[0].long()
        made = (_requantized(sums, multiplier[:, None, None], shift, self.single) - 128).clamp(-128, 127)
        self.text += [
            _array("int8_t", f"{name}_weight", weight.permute(0, 2, 3, 1)),
            _array("int32_t", f"{name}_bias", bias),
            _array("int32_t", f"{name}_multiplier", multiplier),
            _array("int32_t", f"{name}_shift", torch.full_like(bias, shift)),
        ]
        sizes = [f"{{1, {size.shape[1]}, {size.shape[2]}, {size.shape[0]}}}" for size in (input.made, made)]
        pad = kernel // 2
        self.text.append(f"""
static const cmsis_nn_conv_params {name}_params = {{128, -128, {{{stride}, {stride}}}, {{{pad}, {pad}}}, {{1, 1}},
    {{-128, 127}}}};
static const cmsis_nn_per_channel_quant_params {name}_quant = {{
    (int32_t *){name}_multiplier, (int32_t *){name}_shift}};
static const cmsis_nn_dims {name}_in = {sizes[0]}, {name}_out = {sizes[1]},
    {name}_filter = {{{channels}, {kernel}, {kernel}, {len(input.made)}}},
    {name}_bias_dims = {{1, 1, 1, {channels}}};""")
        self.scratch.append(
            f"arm_convolve_wrapper_s8_get_buffer_size(&{name}_params, &{name}_in, &{name}_filter, &{name}_out)"
        )
        return self._layer(
            name,
            made,
            f"failed |= arm_convolve_wrapper_s8(&context, &{name}_params, &{name}_quant, &{name}_in, {input.name}, "
            f"&{name}_filter, {name}_weight, &{name}_bias_dims, {name}_bias, &{name}_out, {name});",
        )

    def _add(self, name: str, left: _Layer, right: _Layer) -> _Layer:
        parts = [
            _requantized((layer.made + 128) << 20, _ADD[2 * index], _ADD[2 * index + 1], self.single)
            for index, layer in enumerate((left, right))
        ]
        made = (_requantized(parts[0] + parts[1], *_ADD[4:], self.single) - 128).clamp(-128, 127)
        numbers = f"128, {_ADD[0]}, {_ADD[1]}, 128, {_ADD[2]}, {_ADD[3]}, 20, {name}, -128, {_ADD[4]}, {_ADD[5]}"
        call = f"failed |= arm_elementwise_add_s8({left.name}, {right.name}, {numbers}, -128, 127, {made.numel()});"
        return self._layer(name, made, call)

    def _pool(self, name: str, input: _Layer) -> _Layer:
        (channels, *size), sums = input.made.shape, input.made.sum((1, 2), keepdim=True)
        count = size[0] * size[1]
        made = torch.div(sums + torch.where(sums > 0, count // 2, -(count // 2)), count, rounding_mode="trunc")
        self.text.append(f"""
static const cmsis_nn_pool_params {name}_params = {{{{1, 1}}, {{0, 0}}, {{-128, 127}}}};
static const cmsis_nn_dims {name}_in = {{1, {size[0]}, {size[1]}, {channels}}}, {name}_out = {{1, 1, 1, {channels}}},
    {name}_filter = {{1, {size[0]}, {size[1]}, 1}};""")
        self.scratch.append(f"arm_avgpool_s8_get_buffer_size(1, {channels})")
        call = f"failed |= arm_avgpool_s8(&context, &{name}_params, &{name}_in, {input.name}, &{name}_filter, "
        return self._layer(name, made, f"{call}&{name}_out, {name});")

    def write(self, folder: Path) -> None:
        """net.c, and net_test.c, which holds a checksum of every layer to the definition's."""
        names = [layer.name for layer in self.layers]
        sums = [_checksum(layer.made.permute(1, 2, 0)) for layer in self.layers]
        calls = "\n".join(f"    /* {layer.name}: */\n    {layer.call}" for layer in self.layers)
        sizes = "\n".join(f"    need = {size} > need ? {size} : need;" for size in self.scratch)
        checks = "\n".join(
            f"    wrong |= checksum({name}, {layer.made.numel()}) != {total}u;"
            for name, layer, total in zip(names, self.layers, sums, strict=True)
        )
        (folder / "net.c").write_text(
            """#include <arm_nnfunctions.h>
int prepared(void);
int net_run(void);
int is_wrong(void);
static int8_t scratch[40000] __attribute__((aligned(4)));
static cmsis_nn_context context;
"""
            + "\n".join(self.text)
            + f"""
int prepared(void)
{{
    int32_t need = 0;
{sizes}
    context.buf = scratch;
    context.size = need;
    return need <= (int32_t)sizeof scratch;
}}
int net_run(void)
{{
    int failed = 0;
{calls}
    /* end: */
    return failed;
}}
static uint32_t checksum(const int8_t *bytes, int count)
{{
    uint32_t sum = 0;
    for (int i = 0; i < count; i++) {{
        sum += (uint32_t)(i % 65521 + 1) * (uint8_t)bytes[i];
    }}
    return sum;
}}
int is_wrong(void)
{{
    int wrong = 0;
{checks}
    return wrong;
}}
"""
        )
        (folder / "net_test.c").write_text("""int puts(const char *text);
int prepared(void);
int net_run(void);
int is_wrong(void);
int main(void)
{
    const int passed = prepared() && !net_run() && !is_wrong();
    puts(passed ? "PASS" : "FAIL");
    return !passed;
}
""")


def _array(type_: str, name: str, values: Tensor) -> str:
    numbers = values.flatten().tolist()
    rows = "\n".join(", ".join(map(str, numbers[i : i + 24])) + "," for i in range(0, len(numbers), 24))
    return f"static const {type_} {name}[{len(numbers)}] = {{\n{rows}\n}};"


def _checksum(bytes_: Tensor) -> int:
    values = bytes_.flatten() & 255
    return int(((torch.arange(len(values)) % 65521 + 1) * values).sum()) % 2**32


def _count(library: Path, machine: Machine, blocks: int, flags: tuple[str, ...], plugin: Path, folder: Path) -> Counts:
    """Instructions of the network with these flags."""
    folder.mkdir()
    shutil.copy(Path(adderzoo.microcontroller.__file__).parent / "c" / "bare.c", folder)
    _Network(blocks, "-DCMSIS_NN_USE_SINGLE_ROUNDING" in flags).write(folder)
    sources = sorted(path for pattern in _SOURCES for path in (library / "Source").glob(pattern))
    compiler = [*machine.compiler, *flags, f"-I{library / 'Include'}", "-c"]
    subprocess.run([*compiler, *map(str, sources)], cwd=folder, check=True, capture_output=True, text=True)
    objects = [path.name for path in folder.glob("*.o")]
    subprocess.run([machine.compiler[0].replace("gcc", "ar"), "rc", "libcmsis.a", *objects], cwd=folder, check=True)
    called = [f"-Wl,-u,{name}" for name in (*_CALLED, *(f"{name}_get_buffer_size" for name in _CALLED[:2]))]
    include = ["-isystem", str(library / "Include"), "-Wno-cast-qual"]
    program = build(folder, machine, *include, *called, "libcmsis.a", "-lc")
    text, counts = run(program, machine, plugin)
    if text != "PASS\n":
        raise SystemExit(f"{machine.compiler[1]}, {' '.join(flags)}: {text}")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("library", metavar="CMSIS-NN", type=Path, help="a copy of its repository")
    parser.add_argument("machines", metavar="MACHINE", nargs="*", help="of Arm's (all)")
    parser.add_argument("--blocks", metavar="N", type=int, nargs="+", default=[1, 3], help="of a stage (1 and 3)")
    parser.add_argument("--levels", metavar="O", nargs="+", default=["O2", "O3", "Ofast"], help="of optimization (all)")
    parser.add_argument(
        "--rounding", nargs="+", choices=_ROUNDING, default=[*_ROUNDING], help="of requantization (all)"
    )
    parser.add_argument("--layers", action="store_true", help="every layer's instructions too")
    args = parser.parse_args()
    arm = [name for name in MACHINES if name.startswith("cortex")]
    if unknown := set(args.machines) - set(arm):
        parser.error(f"MACHINE must be one of {', '.join(arm)}, got {sorted(unknown)[0]}")
    if not (args.library / "Include" / "arm_nnfunctions.h").is_file():
        parser.error(f"no Include/arm_nnfunctions.h in {args.library}")
    library = args.library.resolve()
    choices = list(itertools.product((f"-{level}" for level in args.levels), args.rounding))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        plugin, smallest = compiled_plugin(folder), min(args.blocks)
        for machine in args.machines or arm:

            def counted(blocks: int, choice: tuple[str, str], machine: str = machine) -> Counts:
                flags = (choice[0], *_ROUNDING[choice[1]])
                place = folder / f"{machine}_{blocks}_{'_'.join(choice)}".replace(" ", "_")
                return _count(library, MACHINES[machine], blocks, flags, plugin, place)

            tried = dict(zip(choices, pool.map(partial(counted, smallest), choices), strict=True))
            best = min(choices, key=lambda choice: _total(tried[choice]))
            for blocks in args.blocks:
                counts = tried[best] if blocks == smallest else counted(blocks, best)
                said = f"{best[0]}, rounding {best[1]}"
                print(
                    f"{machine:14} ResNet-{6 * blocks + 2:<3} {_total(counts) / 1e6:8.2f} million ({said})", flush=True
                )
                if counts.cycles:
                    print(f"{'':25} {counts.cycles / 1e6:8.2f} million cycles, estimated", flush=True)
                for layer, count in counts.layers.items() if args.layers else []:
                    print(f"    {layer:24} {count:12,}")


def _total(counts: Counts) -> int:
    """Instructions of all but what prepares and checks."""
    around = {*AROUND, "prepared", "is_wrong", "checksum", "arm_convolve_wrapper_s8_get_buffer_size"}
    return sum(count for function, count in counts.functions.items() if function not in around)


if __name__ == "__main__":
    main()
