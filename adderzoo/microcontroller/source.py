"""Writes a network of integers as C."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
import torch.nn.functional as F
from torch import Tensor

from .integer import AveragePool, Image, IntegerNetwork, Layer, MaxPool, Plane, Step

# A column of numbers in a line of C.
_WIDTH = 120


@dataclass(frozen=True)
class Buffer:
    """Where a tensor lies in the arena: rows of pixels of `point` bytes, with a border of the byte that stands for 0.

    Attributes:
        height: Of the image.
        width: Of the image.
        point: Bytes of a pixel: its channels, and as many more as make it words.
        border: Pixels on the top, left, bottom, right.
    """

    height: int
    width: int
    point: int
    border: tuple[int, int, int, int]

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return (self.border[1] + self.width + self.border[3]) * self.point

    @property
    def size(self) -> int:
        """Bytes."""
        return (self.border[0] + self.height + self.border[2]) * self.row

    @property
    def first(self) -> int:
        """Where the image begins."""
        return self.border[0] * self.row + self.border[1] * self.point


@dataclass(frozen=True)
class Arena:
    """Where all tensors lie.

    Attributes:
        buffers: Of tensors.
        offsets: Of buffers, in bytes.
        size: Of the arena, in bytes.
    """

    buffers: dict[Plane, Buffer]
    offsets: dict[Plane, int]
    size: int


def plan(network: IntegerNetwork) -> Arena:
    """An arena in which tensors that are needed at the same time lie apart; a sum takes the place of its addend."""
    planes = [step.output for step in network.steps[:-1]]
    borders: dict[Plane, tuple[int, int, int, int]] = dict.fromkeys(planes, (0, 0, 0, 0))
    last: dict[Plane, int] = {}
    for index, step in enumerate(network.steps):
        for plane in step.inputs:
            last[plane] = index
        if isinstance(step, Layer):
            seen = borders[step.inputs[0]]
            borders[step.inputs[0]] = tuple(map(max, seen, step.padding))  # type: ignore[assignment]
    buffers = {
        plane: Buffer(plane.shape[1], plane.shape[2], -(-plane.shape[0] // 4) * 4, borders[plane]) for plane in planes
    }
    owners: dict[Plane, Plane] = {}
    ends: dict[Plane, int] = {}
    starts: dict[Plane, int] = {}
    for index, step in enumerate(network.steps[:-1]):
        plane, addends = step.output, step.inputs[1:]
        owner = plane
        free = bool(addends) and last[addends[0]] == index and addends[0] is not step.inputs[0]
        if free and buffers[addends[0]] == buffers[plane]:
            owner = owners[addends[0]]
        owners[plane] = owner
        starts.setdefault(owner, index)
        ends[owner] = max(ends.get(owner, 0), last.get(plane, index))
    offsets: dict[Plane, int] = {}
    for owner in sorted(starts, key=lambda plane: -buffers[plane].size):
        taken = sorted(
            (offsets[other], offsets[other] + buffers[other].size)
            for other in offsets
            if starts[other] <= ends[owner] and starts[owner] <= ends[other]
        )
        offset = 0
        for begin, end in taken:
            if begin < offset + buffers[owner].size:
                offset = max(offset, end)
        offsets[owner] = offset
    size = max(offsets[owner] + buffers[owner].size for owner in offsets)
    # Kernels take two points at a time, and read the second even where there is none.
    slack = max(
        (step.stride[1] * buffers[step.inputs[0]].point for step in network.steps if isinstance(step, Layer)), default=0
    )
    return Arena(buffers, {plane: offsets[owners[plane]] for plane in planes}, size + slack)


# --------------------------------------------------------------------------------------------------------- the kernels


def _is_grouped(layer: Layer) -> bool:
    """Whether a layer goes byte by byte."""
    outputs, channels = len(layer.weight) // layer.groups, layer.weight.shape[1]
    return layer.groups > 1 and (outputs % 4 != 0 or channels % 4 != 0)


def _packed(layer: Layer, buffer: Buffer) -> Tensor:
    """Filters as the kernels read them: (O / 4, words, 4 channels, 4 bytes), uint8; or all bytes in a row."""
    weight = layer.weight.permute(0, 2, 3, 1)
    fill = layer.inputs[0].padding[0] if layer.kind == "adder" else 0
    if not _is_grouped(layer):
        channels = buffer.point if layer.groups == 1 else layer.weight.shape[1]
        weight = F.pad(weight, (0, channels - weight.shape[3], 0, 0, 0, 0, 0, -len(weight) % 4), value=fill)
        weight = weight.reshape(-1, 4, weight[0].numel() // 4, 4).transpose(1, 2)
    return weight.contiguous().view(torch.uint8)


def _padded_affine(step: Layer) -> tuple[Tensor, Tensor]:
    """Bias and multiplier with those of channels that make up words: these get the byte that stands for 0."""
    affine, missing = step.affine, -len(step.weight) % 4
    bias = 0
    if affine.top is not None:
        bias = step.output.padding[0] << affine.shift
        if len(step.inputs) > 1:
            bias -= step.inputs[1].padding[0] * affine.addend_multiplier
    return F.pad(affine.bias, (0, missing), value=bias), F.pad(affine.multiplier, (0, missing))


@dataclass
class _Shared:
    """Functions of the file, one for every shape of layer."""

    functions: dict[str, tuple[str, str]]

    def call(self, kind: str, parameters: Sequence[tuple[str, str]], constants: Sequence[int | str], body: str) -> str:
        """The name of a function that calls a kernel with these constants."""
        key = f"{kind}({', '.join(name for _, name in parameters)}; {', '.join(map(str, constants))})"
        if key not in self.functions:
            name = f"{kind}_{len(self.functions)}"
            arguments = ", ".join(f"{type_}{name_}" for type_, name_ in parameters)
            self.functions[key] = name, f"NOINLINE void {name}({arguments})\n{{\n    {body}\n}}\n"
        return self.functions[key][0]


def _rows(numbers: Iterable[str]) -> str:
    """Numbers of C in lines."""
    lines, line = [], "   "
    for number in numbers:
        if len(line) + len(number) + 2 > _WIDTH:
            lines.append(line)
            line = "   "
        line += f" {number},"
    return "\n".join([*lines, line])


def _int32(number: int) -> str:
    """A number in C, wrapped around to 32 bits."""
    number = (number + 2**31) % 2**32 - 2**31
    return str(number) if number > -(2**31) else "(-2147483647 - 1)"


class CSource:
    """The C of a network.

    Args:
        network: The network.
        name: Of its functions, an identifier.
        classes: Names of the classes, or None.
        about: What the comment at its head says, lines.
        shifts: Whether its multipliers are sums of three signed powers of two, for shifts to do.

    Attributes:
        flash: Bytes of filters and tables.
        ram: Bytes of the arena.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        name: str,
        classes: Sequence[str] | None = None,
        about: Sequence[str] = (),
        shifts: bool = False,
    ) -> None:
        self.shifts = shifts
        self.network, self.name, self.classes, self.about = network, name, classes, list(about)
        self.arena = plan(network)
        self.tables: list[str] = []
        self.calls: list[str] = []
        self.shared = _Shared({})
        self.flash = 0
        self.ram = -(-self.arena.size // 4) * 4
        self.top = max((step.inputs[0].top for step in network.steps if _is_adder(step)), default=255)
        for index, step in enumerate(network.steps):
            self._step(f"layer{index}", step)

    # -------------------------------------------------------------------------------------------------------- the steps

    def _table(self, type_: str, name: str, values: Iterable[str], count: int, size: int) -> str:
        self.tables.append(f"static const {type_} {name}[{count}] = {{\n{_rows(values)}\n}};\n")
        self.flash += count * size
        return name

    def _at(self, plane: Plane, padding: tuple[int, ...] = (0, 0)) -> str:
        """C for the address of a tensor's first byte, or of the first that a layer with padding reads."""
        buffer = self.arena.buffers[plane]
        first = buffer.first - padding[0] * buffer.row - padding[1] * buffer.point
        return f"arena + {self.arena.offsets[plane] + first}"

    def _step(self, name: str, step: Step) -> None:
        self.calls.append(f"/* {step.output.name}: {' x '.join(map(str, step.output.shape))} */")
        if not (isinstance(step, Layer) and step.affine.top is None):
            self._border(step.output)
        if isinstance(step, Image):
            self._image(name, step)
        elif isinstance(step, Layer):
            self._layer(name, step)
        elif isinstance(step, MaxPool):
            self._max_pool(name, step)
        else:
            assert isinstance(step, AveragePool)
            self._average_pool(name, step)

    def _border(self, plane: Plane) -> None:
        buffer = self.arena.buffers[plane]
        if not any(buffer.border):
            return
        pattern = (plane.padding * 4)[:4] if plane.shape[0] >= 4 or len(set(plane.padding)) == 1 else plane.padding
        word = int.from_bytes(bytes(pattern), "little")
        above, left, below, right = buffer.border
        pixel = buffer.point // 4
        numbers = [buffer.height, buffer.row // 4, above, left * pixel, below, right * pixel]
        self.calls.append(
            f"border(memory.words + {self.arena.offsets[plane] // 4}, {_unsigned(numbers)}, 0x{word:08x}u);"
        )

    def _image(self, name: str, step: Image) -> None:
        plane, buffer = step.output, self.arena.buffers[step.output]
        table = "0"
        if step.table is not None:
            table = self._table("uint8_t", f"{name}_bytes", _decimals(step.table), step.table.numel(), 1)
        self.calls.append(
            f"read_image(image, {self._at(plane)}, {table}, {buffer.height}u, {buffer.width}u, {plane.shape[0]}u, "
            f"{buffer.row}u, {buffer.point}u, {plane.padding[0]}u);"
        )

    def _layer(self, name: str, step: Layer) -> None:
        input = self.arena.buffers[step.inputs[0]]
        addends, affine = step.inputs[1:], step.affine
        logits = affine.top is None
        outputs, rows, columns = step.output.shape
        output = Buffer(rows, columns, -(-outputs // 4) * 4, (0, 0, 0, 0))
        output = output if logits else self.arena.buffers[step.output]
        is_conv, grouped = step.kind == "conv", _is_grouped(step)
        packed = _packed(step, input)
        # The segments of a filter: whole rows of pixels where its taps lie together.
        (tap_rows, tap_columns), channels = step.weight.shape[2:], step.weight.shape[1]
        if step.groups == 1 and not grouped:
            channels = input.point
            if step.dilation[1] == 1:
                channels, tap_columns = channels * tap_columns, 1
        taps = (tap_rows, tap_columns, step.dilation[0] * input.row, step.dilation[1] * input.point)
        walk = (step.stride[0] * input.row, step.stride[1] * input.point, output.row, output.point)
        addend_row = self.arena.buffers[addends[0]].row if addends else 0
        top = 255 if affine.top is None else affine.top
        filters, numbers = self._numbers(name, step, packed, grouped)
        add = [self._at(addends[0]), self._multiplier(affine.addend_multiplier)] if addends else []
        add_parameters = [("const uint8_t *", "addend"), ("int32_t ", "addend_multiplier")] if addends else []
        passed = ("addend", "addend_multiplier") if addends else ("0", "0")
        start = [self._at(step.inputs[0], step.padding), "logits" if logits else self._at(step.output)]
        target = ("int32_t *", "logits") if logits else ("uint8_t *", "output")
        parameters = [
            ("const uint8_t *", "input"),
            target,
            ("const uint8_t *" if grouped else "const uint32_t *", "filters"),
            ("const int32_t *", "affine"),
            *add_parameters,
        ]
        out, log = ("0", "logits") if logits else ("output", "0")
        constants: list[int]
        if grouped:
            if logits:
                raise ValueError(f"{step.output.name} cannot be exported: logits of a grouped layer")
            constants = [int(is_conv), rows, columns, outputs, step.groups, channels, *walk, addend_row, *taps]
            constants += [affine.shift, affine.drop, affine.low, top, step.output.padding[0]]
            body = f"grouped_layer(input, output, {passed[0]}, filters, affine, {passed[1]}, {_unsigned(constants)});"
            function = self.shared.call("grouped", parameters, constants, body)
            self.calls.append(f"{function}({', '.join([*start, filters, numbers, *add])});")
            return
        padded = -(-outputs // 4) * 4
        shape = [rows, columns, padded // step.groups, *walk]
        if is_conv:
            constants = [
                *shape,
                *taps,
                channels // 4,
                min(step.weight.shape[1], 4),
                affine.shift,
                affine.drop,
                affine.low,
                top,
                outputs,
            ]
            body = f"conv_layer(input, {out}, {log}, filters, affine, {_unsigned(constants)});"
        else:
            constants = [*shape, addend_row, *taps, channels // 4, affine.shift, affine.low, top, outputs]
            body = (
                f"adder_layer(input, {out}, {passed[0]}, {log}, filters, affine, {passed[1]}, {_unsigned(constants)});"
            )
        function = self.shared.call(step.kind, parameters, constants, body)
        if step.groups == 1:
            self.calls.append(f"{function}({', '.join([*start, filters, numbers, *add])});")
            return
        if logits:
            raise ValueError(f"{step.output.name} cannot be exported: logits of a grouped layer")
        each = outputs // step.groups
        of_each = packed.numel() // (2 if is_conv else 4) // step.groups
        group = [f"{start[0]} + {step.weight.shape[1]}u * group", f"{start[1]} + {each}u * group"]
        group += [f"{filters} + {of_each}u * group", f"{numbers} + {2 * each}u * group"]
        group += [f"{add[0]} + {each}u * group", add[1]] if add else []
        self.calls.append(f"for (uint32_t group = 0; group < {step.groups}u; group++) {{")
        self.calls += [f"    {function}({', '.join(group)});", "}"]

    def _numbers(self, name: str, step: Layer, packed: Tensor, grouped: bool) -> tuple[str, str]:
        """The tables of a layer: filters, and bias and multiplier of every channel."""
        if grouped:
            filters = self._table("uint8_t", f"{name}_filters", _decimals(packed), packed.numel(), 1)
            bias, multiplier = step.affine.bias, step.affine.multiplier
        else:
            guard = " | G" if step.kind == "adder" and self.top <= 127 else ""
            bytes_ = packed.reshape(-1, 4)
            if step.kind == "conv":  # as numbers of 16 bits, in the order that SMLAD takes two of them in
                pairs = bytes_[:, (0, 2, 1, 3)].view(torch.int8).to(torch.int16).contiguous()
                bytes_ = pairs.view(torch.uint8).reshape(-1, 4)
            words = bytes_.long() @ torch.tensor([1, 2**8, 2**16, 2**24])
            texts = (f"0x{word:08x}u{guard}" for word in words.tolist())
            filters = self._table("uint32_t", f"{name}_filters", texts, len(words), 4)
            bias, multiplier = _padded_affine(step)
        swar = bias
        if step.kind == "adder" and not grouped:
            sums = packed.long().sum((1, 3)).flatten()
            swar = bias - multiplier * sums
        both_numbers = []
        for plain, wrapped, times in zip(bias.tolist(), swar.tolist(), multiplier.tolist(), strict=True):
            both = _int32(plain) if plain == wrapped else f"B({_int32(plain)}, {_int32(wrapped)})"
            both_numbers += [both, self._multiplier(times)]
        return filters, self._table("int32_t", f"{name}_affine", both_numbers, len(both_numbers), 4)

    def _multiplier(self, number: int) -> str:
        """A multiplier in C; as the code of three powers of two, if it is to be done by shifts."""
        if not self.shifts:
            return _int32(number)
        code, left, exponent, terms = 0x202020, number, 0, 0
        while left:  # the non-adjacent form, which has the fewest terms
            if left % 2:
                digit = 2 - left % 4
                code += ((exponent | (128 if digit < 0 else 0)) - 32) << (8 * terms)
                left, terms = left - digit, terms + 1
            left, exponent = left // 2, exponent + 1
        assert terms <= 3, number
        return _int32(code)

    def _max_pool(self, name: str, step: MaxPool) -> None:
        input, output = self.arena.buffers[step.inputs[0]], self.arena.buffers[step.output]
        flip = "0"
        if step.least.any():
            values = F.pad(torch.where(step.least, 255, 0), (0, output.point - len(step.least)))
            flip = self._table("uint8_t", f"{name}_flip", _decimals(values), len(values), 1)
        numbers = [input.height, input.width, output.height, output.width, input.row, output.row, input.point]
        numbers += [*step.kernel_size, *step.stride, *step.padding]
        self.calls.append(
            f"max_pool({self._at(step.inputs[0])}, {self._at(step.output)}, {flip}, {_unsigned(numbers)});"
        )

    def _average_pool(self, name: str, step: AveragePool) -> None:
        input, output, affine = self.arena.buffers[step.inputs[0]], self.arena.buffers[step.output], step.affine
        pair = [_int32(int(affine.bias)), self._multiplier(int(affine.multiplier))]
        numbers = [output.height, output.width, step.output.shape[0], input.row, output.row, input.point]
        numbers += [*step.kernel_size, *step.stride, affine.shift, affine.drop, affine.low, affine.top or 0]
        table = self._table("int32_t", f"{name}_affine", pair, 2, 4)
        self.calls.append(
            f"average_pool({self._at(step.inputs[0])}, {self._at(step.output)}, {table}, "
            f"{_unsigned([*numbers, step.output.padding[0]])});"
        )

    @property
    def code(self) -> int:
        """Bytes of code with the kernels for DSP, about."""
        return 1500 + 850 * len(self.shared.functions)

    @property
    def instructions(self) -> int:
        """What one image takes on a Cortex-M4, about: counted under qemu, of GCC 12's code, for every kind of loop."""
        return sum(map(self._instructions, self.network.steps))

    def _instructions(self, step: Step) -> int:
        channels, rows, columns = step.output.shape
        if isinstance(step, Image):
            return rows * columns * (6 * channels + 5)
        if isinstance(step, MaxPool):
            return rows * columns * channels * (6 * step.kernel_size[0] * step.kernel_size[1] + 25)
        if isinstance(step, AveragePool):
            return rows * columns * channels * (4 * step.kernel_size[0] * step.kernel_size[1] + 20)
        assert isinstance(step, Layer)
        quads, elements = -(-channels // 4), step.weight[0].numel()
        if _is_grouped(step):
            return rows * columns * channels * (8 * elements + 30)
        taps = step.weight.shape[2] * (1 if step.groups == 1 and step.dilation[1] == 1 else step.weight.shape[3])
        words = -(-step.weight.shape[1] // 4) * step.weight.shape[2] * step.weight.shape[3]
        if step.kind == "conv":
            return rows * columns * quads * (15 * words + 4 * taps + 40)
        blocks = words // taps // 12 + words // taps % 12 // 4 + words // taps % 4
        more = 16 * (len(step.inputs) - 1) + 8 * 58 * self.shifts
        return rows * -(-columns // 2) * quads * (14 * words + taps * (4 * blocks + 3) + 58 + more)

    # -------------------------------------------------------------------------------------------------------- the files

    @property
    def header(self) -> str:
        """NAME.h."""
        name, upper = self.name, self.name.upper()
        channels, height, width = self.network.input_shape
        about = "\n".join(f"   {line}".rstrip() for line in self.about)
        classes = self.network.num_classes
        return f"""/* {name}: written by `adderzoo export --format c`.

{about} */

#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#define {upper}_HEIGHT {height}
#define {upper}_WIDTH {width}
#define {upper}_CHANNELS {channels}
#define {upper}_CLASSES {classes}
/* Bytes of RAM: one static array. The stack takes less than 500 more. */
#define {upper}_ARENA_BYTES {self.ram}
/* What a logit of 1 stands for. */
#define {upper}_LOGIT_SCALE {self.network.logit_scale!r}

#ifdef __cplusplus
extern "C" {{
#endif

/* The class of an image of HEIGHT rows of WIDTH pixels of CHANNELS bytes (red, green, blue), from 0 to CLASSES - 1.
   `logits` gets CLASSES numbers, of which the class has the greatest. Not to be called twice at the same time. */
int {name}_run(const uint8_t *image, int32_t *logits);

/* Names of the classes. */
extern const char *const {name}_class_names[{classes}];

#ifdef __cplusplus
}}
#endif

#endif
"""

    @property
    def source(self) -> str:
        """NAME.c."""
        kernels = files(__package__).joinpath("c/kernels.c").read_text()
        names = self.classes or [str(index) for index in range(self.network.num_classes)]
        quoted = _rows('"' + re.sub(r"[^ -~]|[\"\\]", "?", text) + '"' for text in names)
        functions = "\n".join(text for _, text in self.shared.functions.values())
        calls = "\n".join(f"    {line}" for line in self.calls)
        tables = "\n".join(self.tables)
        return f"""/* {self.name}: written by `adderzoo export --format c`; see {self.name}.h. C99. */

#include "{self.name}.h"

/* The largest byte of a tensor. */
#define TOP {self.top}
/* Whether multipliers are sums of three signed powers of two. */
#define SHIFTS {int(self.shifts)}

{kernels}
/* ---------------------------------------------------------------------------------------------------- this network */

const char *const {self.name}_class_names[{self.network.num_classes}] = {{
{quoted}
}};

/* Bias and multiplier of every channel; filters in the order of the kernels. */
{tables}
{functions}
static union {{
    uint32_t words[{self.ram // 4}];
    uint8_t bytes[{self.ram}];
}} memory;

int {self.name}_run(const uint8_t *image, int32_t *logits)
{{
    uint8_t *const arena = memory.bytes;
    int most = 0;
{calls}
    for (int index = 1; index < {self.network.num_classes}; index++) {{
        most = logits[index] > logits[most] ? index : most;
    }}
    return most;
}}
"""

    def filled(self, template: str) -> str:
        """A file of `c/`, for this network."""
        text = files(__package__).joinpath("c", template).read_text()
        channels, height, width = self.network.input_shape
        values = {"HEIGHT": height, "WIDTH": width, "CHANNELS": channels, "RAM_BYTES": f"{self.ram:,}"}
        for word, value in {**values, "NAME": self.name, "UPPER": self.name.upper()}.items():
            text = re.sub(rf"(?<![A-Z]){word}(?![A-Z])", str(value), text)
        return text

    def test(self, images: Tensor) -> str:
        """NAME_test.c: golden images, (N, C, H, W) in uint8, and their logits."""
        logits = self.network(images)
        pixels = _rows(_decimals(images.permute(0, 2, 3, 1)))
        upper = self.name.upper()
        return f"""/* Golden images and logits for {self.name}; prints PASS, or what is wrong. */

#if defined(BARE) /* with bare.c, where there is no libc */
int puts(const char *text);
#else
#include <stdio.h>
#endif

#include "{self.name}.h"

#define IMAGES {len(images)}
#define PIXELS ({upper}_HEIGHT * {upper}_WIDTH * {upper}_CHANNELS)

static const uint8_t images[IMAGES * PIXELS] = {{
{pixels}
}};

static const int32_t golden[IMAGES * {upper}_CLASSES] = {{
{_rows(_int32(logit) for logit in logits.flatten().tolist())}
}};

int main(void)
{{
    int32_t logits[{upper}_CLASSES];
    for (int image = 0; image < IMAGES; image++) {{
        const int most = {self.name}_run(images + image * PIXELS, logits);
        for (int index = 0; index < {upper}_CLASSES; index++) {{
            if (logits[index] != golden[image * {upper}_CLASSES + index] || logits[index] > logits[most]) {{
                puts("FAIL");
                return 1;
            }}
        }}
    }}
    puts("PASS");
    return 0;
}}
"""


def _is_adder(step: Step) -> bool:
    return isinstance(step, Layer) and step.kind == "adder"


def _decimals(values: Tensor) -> Iterable[str]:
    return map(str, values.flatten().tolist())


def _unsigned(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number}u" for number in numbers)
