"""Writes a network of integers as C."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from .integer import AveragePool, Image, IntegerNetwork, Layer, MaxPool, Plane, Step

# A column of numbers in a line of C.
_WIDTH = 120
# Words of a tile where four points are in a word, at most: more share the reading of rows, and take more RAM.
_TILE = 16


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
        scratch: Where adder layers, by what they make, have room for a tile's window.
        swar_size: Of the arena where that room is needed, in bytes.
    """

    buffers: dict[Plane, Buffer]
    offsets: dict[Plane, int]
    size: int
    scratch: dict[Plane, int]
    swar_size: int


@dataclass(frozen=True)
class Tile:
    """How a layer is cut where words have four points of one channel each (ADDER_SWAR in `c/kernels.c`).

    Attributes:
        lanes: Points from one byte of a word to the next, in a row of the output.
        rows: Of the output.
        columns: Words of every row.
        window: Rows, and words of every row, of the input.
    """

    lanes: int
    rows: int
    columns: int
    window: tuple[int, int]

    @staticmethod
    def of(layer: Layer) -> "Tile":
        """Powers of two, of which any number of words that registers have room for is a part."""
        _, height, width = layer.output.shape
        lanes = _power_of_two(-(-width // 4))
        lanes = lanes if lanes < 8 else -(-width // 32) * 8
        columns = min(lanes, 8)
        rows = min(max(_TILE // (columns * layer.stride[0]), 1), _power_of_two(height))
        rows = 1 << (rows.bit_length() - 1)
        window = tuple(
            (count - 1) * stride + (taps - 1) * dilation + 1
            for count, stride, taps, dilation in zip(
                (rows, columns), layer.stride, layer.weight.shape[2:], layer.dilation, strict=True
            )
        )
        return Tile(lanes, rows, columns, window)  # type: ignore[arg-type]

    def scratch(self, layer: Layer) -> int:
        """Bytes for the window, and for the sum of every point's channels."""
        return 4 * self.window[0] * self.window[1] * (-(-layer.weight.shape[1] // 4) * 4 + 4)


def _power_of_two(number: int) -> int:
    """The least that is not less."""
    return 1 << (number - 1).bit_length()


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
        offsets[owner] = _free(taken, buffers[owner].size)
    size = max(offsets[owner] + buffers[owner].size for owner in offsets)
    # Kernels take two points at a time, and read the second even where there is none.
    slack = max(
        (step.stride[1] * buffers[step.inputs[0]].point for step in network.steps if isinstance(step, Layer)), default=0
    )
    spans = {owner: (starts[owner], ends[owner], offsets[owner], buffers[owner].size) for owner in offsets}
    scratch, swar_size = {}, size + slack
    for index, step in enumerate(network.steps):
        if not _is_adder(step) or _is_grouped(step):
            continue
        tile, buffer = Tile.of(step), buffers[step.inputs[0]]
        # Bytes for points beyond the image are read behind a row, of the last row behind the tensor.
        read = (4 * tile.lanes - tile.columns) * step.stride[1] + tile.window[1] + buffer.border[1]
        beyond = max(read * buffer.point - buffer.row, 0)
        swar_size = max(swar_size, offsets[owners[step.inputs[0]]] + buffer.size + beyond)
        taken = sorted((at, at + length) for start, end, at, length in spans.values() if start <= index <= end)
        scratch[step.output] = _free(taken, tile.scratch(step))
        swar_size = max(swar_size, scratch[step.output] + tile.scratch(step))
    return Arena(buffers, {plane: offsets[owners[plane]] for plane in planes}, size + slack, scratch, swar_size)


def _free(taken: list[tuple[int, int]], size: int) -> int:
    """The first place for so many bytes between others."""
    offset = 0
    for begin, end in taken:
        if begin < offset + size:
            offset = max(offset, end)
    return offset


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


def _lists(layer: Layer) -> tuple[list[list[int]], int]:
    """Filters of an adder layer for ADDER_SWAR, as lists of what is not 0.

    Returns:
        Numbers of 16 bits for every group of channels, as many for each; and how many lists a filter has.
    """
    rows, columns = Tile.of(layer).window
    channels, height, width = layer.weight.shape[1:]
    places = [
        (channel * rows + i * layer.dilation[0]) * columns + j * layer.dilation[1]
        for channel in range(channels)
        for i in range(height)
        for j in range(width)
    ]
    filters = [_parts(places, weights) for weights in layer.weight.flatten(1).tolist()]
    filters += [[[0]]] * (-len(filters) % 4)
    count = max(map(len, filters))
    each = len(filters) // layer.groups
    groups = [
        [
            number
            for parts in filters[group * each : (group + 1) * each]
            for part in [*parts, *[[0]] * (count - len(parts))]
            for number in (*part[:-1], part[-1] | 3)
        ]
        for group in range(layer.groups)
    ]
    longest = max(map(len, groups))
    return [group + [0] * (longest - len(group)) for group in groups], count


def _parts(places: Sequence[int], weights: Sequence[int]) -> list[list[int]]:
    """A filter as lists whose weights have sums of 16 bits: words further, weight, whether bytes have been filled."""
    parts: list[list[int]] = [[]]
    at = in_bytes = in_part = 0
    for place, weight in zip(places, weights, strict=True):
        if weight == 0:
            continue
        if in_part + weight > 65_535:
            parts.append([])
            in_bytes = in_part = 0
        elif in_bytes + weight > 255:
            parts[-1][-1] |= 1
            in_bytes = 0
        while place - at > 127:
            parts[-1].append(127 << 9)
            at += 127
        parts[-1].append((place - at) << 9 | weight << 2)
        at, in_bytes, in_part = place, in_bytes + weight, in_part + weight
    return parts if parts[-1] else [*parts[:-1], [0]]


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
        least_ram: The same where no adder layer needs room for a tile: of all kernels but those of words.
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
        self.top = max((step.inputs[0].top for step in network.steps if _is_adder(step)), default=255)
        self.swar = self.top <= 127
        self.least_ram = -(-self.arena.size // 4) * 4
        self.ram = -(-self.arena.swar_size // 4) * 4 if self.swar else self.least_ram
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
        filters, numbers, of_each, lists = self._numbers(name, step, packed, grouped)
        add = [self._at(addends[0]), self._multiplier(affine.addend_multiplier)] if addends else []
        add_parameters = [("const uint8_t *", "addend"), ("int32_t ", "addend_multiplier")] if addends else []
        passed = ("addend", "addend_multiplier") if addends else ("0", "0")
        start = [self._at(step.inputs[0], step.padding), "logits" if logits else self._at(step.output)]
        target = ("int32_t *", "logits") if logits else ("uint8_t *", "output")
        parameters = [
            ("const uint8_t *", "input"),
            target,
            ("const uint8_t *" if grouped else "const uint32_t *" if is_conv else "const filter_t *", "filters"),
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
            if self.swar:
                tile, words = Tile.of(step), -(-step.weight.shape[1] // 4)
                swar = [rows, columns, padded // step.groups, words, input.row, input.point, output.row, output.point]
                swar += [addend_row, *step.stride, *step.weight.shape[2:], *step.dilation, tile.lanes, tile.rows]
                swar += [tile.columns, *tile.window, lists, affine.shift, affine.low, top, outputs]
                constants += swar
                body = (
                    "(void)scratch;\n"
                    f"    SWAR(swar_layer(input, {out}, {passed[0]}, {log}, filters, affine, {passed[1]}, "
                    f"memory.words + scratch, {_unsigned(swar)}),\n"
                    f"         {body.removesuffix(';')});"
                )
                parameters.append(("uint32_t ", "scratch"))
                add.append(f"{self.arena.scratch[step.output] // 4}u")
        function = self.shared.call(step.kind, parameters, constants, body)
        if step.groups == 1:
            self.calls.append(f"{function}({', '.join([*start, filters, numbers, *add])});")
            return
        if logits:
            raise ValueError(f"{step.output.name} cannot be exported: logits of a grouped layer")
        each = outputs // step.groups
        group = [f"{start[0]} + {step.weight.shape[1]}u * group", f"{start[1]} + {each}u * group"]
        group += [f"{filters} + {of_each} * group", f"{numbers} + {2 * each}u * group"]
        group += [f"{add[0]} + {each}u * group", *add[1:]] if addends else add
        self.calls.append(f"for (uint32_t group = 0; group < {step.groups}u; group++) {{")
        self.calls += [f"    {function}({', '.join(group)});", "}"]

    def _numbers(self, name: str, step: Layer, packed: Tensor, grouped: bool) -> tuple[str, str, str, int]:
        """The tables of a layer: filters, and bias and multiplier of every channel.

        Returns:
            Their names, numbers of the first for a group in C, and lists of a filter for ADDER_SWAR.
        """
        of_each, lists = "", 0
        if grouped:
            filters = self._table("uint8_t", f"{name}_filters", _decimals(packed), packed.numel(), 1)
            bias, multiplier = step.affine.bias, step.affine.multiplier
        else:
            bytes_ = packed.reshape(-1, 4)
            if step.kind == "conv":  # as numbers of 16 bits, in the order that SMLAD takes two of them in
                pairs = bytes_[:, (0, 2, 1, 3)].view(torch.int8).to(torch.int16).contiguous()
                bytes_ = pairs.view(torch.uint8).reshape(-1, 4)
            words = (bytes_.long() @ torch.tensor([1, 2**8, 2**16, 2**24])).reshape(len(packed), -1)
            if step.kind == "conv":  # and the sum of their squares, for processors that have no product
                words = torch.cat([words, packed.view(torch.int8).long().square().sum((1, 3))], 1)
            texts = [f"0x{word:08x}u" for word in words.flatten().tolist()]
            of_each = f"{len(texts) // step.groups}u"
            if step.kind == "adder" and self.swar:
                groups, lists = _lists(step)
                filters = self._filters(f"{name}_filters", texts, groups)
                of_each = f"SWAR({len(groups[0])}u, {of_each})"
            else:
                type_ = "uint32_t" if step.kind == "conv" else "filter_t"
                filters = self._table(type_, f"{name}_filters", texts, len(texts), 4)
            bias, multiplier = _padded_affine(step)
        swar = bias
        if step.kind == "adder" and not grouped:
            sums = packed.long().sum((1, 3)).flatten()
            swar = bias - multiplier * sums
        both_numbers = []
        for plain, wrapped, times in zip(bias.tolist(), swar.tolist(), multiplier.tolist(), strict=True):
            both = _int32(plain) if plain == wrapped else f"SWAR({_int32(wrapped)}, {_int32(plain)})"
            both_numbers += [both, self._multiplier(times)]
        return filters, self._table("int32_t", f"{name}_affine", both_numbers, len(both_numbers), 4), of_each, lists

    def _filters(self, name: str, words: list[str], groups: list[list[int]]) -> str:
        """Filters of an adder layer, for either kind of kernel."""
        numbers = [number for group in groups for number in group]
        self.tables += ["#if ADDER_KERNEL == ADDER_SWAR"]
        self._table("filter_t", name, map(str, numbers), len(numbers), 0)
        self.tables += ["#else"]
        self._table("filter_t", name, words, len(words), 0)
        self.tables += ["#endif"]
        self.flash += max(4 * len(words), 2 * len(numbers))
        return name

    def _multiplier(self, number: int) -> str:
        """A multiplier in C; as the code of three powers of two, if it is to be done by shifts."""
        if not self.shifts:
            return _int32(number)
        terms, left, exponent = [], number, 0
        while left:  # the non-adjacent form, which has the fewest terms
            if left % 2:
                digit = 2 - left % 4
                terms.append((exponent, digit))
                left -= digit
            left, exponent = left // 2, exponent + 1
        assert len(terms) <= 3, number
        if not terms:
            terms = [(0, 1), (0, 1), (1, -1)]
        while len(terms) < 3:  # a power of two is a half and a half, or twice as much less itself
            power, digit = terms.pop()
            terms += [(power - 1, digit), (power - 1, digit)] if power else [(1, digit), (0, -digit)]
        return _int32(
            sum((power | (128 if digit < 0 else 0)) << 8 * index for index, (power, digit) in enumerate(terms))
        )

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
        more = 16 * (len(step.inputs) - 1) + 8 * 25 * self.shifts
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
/* Bytes of RAM: one static array, {self.ram - self.least_ram:,} less where there is USADA8. The stack takes less than
   700 more. */
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
static union {{
    uint32_t words[SWAR({self.ram}u, {self.least_ram}u) / 4u];
    uint8_t bytes[SWAR({self.ram}u, {self.least_ram}u)];
}} memory;

{functions}
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


def _is_adder(step: Step) -> TypeGuard[Layer]:
    return isinstance(step, Layer) and step.kind == "adder"


def _decimals(values: Tensor) -> Iterable[str]:
    return map(str, values.flatten().tolist())


def _unsigned(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number}u" for number in numbers)
