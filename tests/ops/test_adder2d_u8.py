import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from programs import check_compiled, check_exported, check_recorded
from reference64 import adder2d64
from samples import CASES, FORMATS, GEOMETRIES, geometries, has_format_like, in_format
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from adderzoo.ops import adder2d_u8, checks, pack_byte_filters, reference

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Problem:
    """What the operator takes, with filters that are not packed."""

    input: Tensor
    filters: Tensor
    scale: Tensor
    shift: Tensor
    addend: Tensor | None
    geometry: tuple
    options: dict = field(default_factory=dict)

    def tensors(self) -> tuple:
        return self.input, pack_byte_filters(self.filters, self.geometry[3]), self.scale, self.shift, self.addend

    def call(self, operator: Callable[..., Tensor] = adder2d_u8) -> Tensor:
        return operator(*self.tensors(), *self.geometry, **self.options)


def random_bytes(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def distances(p: Problem) -> np.ndarray:
    """The sums of absolute differences, in float64, which holds them exactly."""
    stride, padding, dilation, groups = p.geometry
    sides = (padding[1], padding[1], padding[0], padding[0])
    padded = F.pad(p.input.cpu().double(), sides, value=p.options.get("zero_point", 0))
    return -adder2d64(padded, p.filters.cpu().double(), stride, (0, 0), dilation, groups).numpy()


def expected(p: Problem) -> np.ndarray:
    """The definition, with NumPy's float32, which rounds every operation."""
    numbers = [
        tensor.cpu().numpy().astype(np.float32)[:, None, None] if tensor.dim() == 1 else tensor.cpu().numpy()
        for tensor in (p.scale, p.shift)
    ]
    y = distances(p).astype(np.float32) * numbers[0]
    y = y + numbers[1]
    if p.addend is not None:
        y = y + p.addend.cpu().numpy().astype(np.float32) * np.float32(p.options.get("addend_scale", 1.0))
    assert y.dtype == np.float32
    if p.options.get("relu"):
        y = np.where(y < 0, np.float32(0), y)
    zero_point = p.options.get("out_zero_point")
    if zero_point is None:
        return y
    return np.clip(np.rint(y.astype(np.float64)) + zero_point, 0, p.options.get("out_max", 255)).astype(np.uint8)


def assert_equals_the_definition(p: Problem, operator: Callable[..., Tensor] = adder2d_u8) -> Tensor:
    z, wanted = p.call(operator), expected(p)
    np.testing.assert_array_equal(z.cpu().numpy(), wanted)
    assert z.cpu().numpy().dtype == wanted.dtype
    return z


def problem(
    name: str = "strided",
    device: torch.device | str = "cpu",
    memory_format: str = "contiguous",
    addend: torch.dtype | None = torch.uint8,
    batch: int = 2,
    size: tuple[int, int] = (9, 8),
    **options: object,
) -> Problem:
    """One of the GEOMETRIES, with results on both sides of 0; bytes of all values."""
    geometry, in_channels, out_channels, kernel = GEOMETRIES[name]
    generator = torch.Generator().manual_seed(sum(name.encode()))
    x = in_format(random_bytes(generator, batch, in_channels, *size).to(device), memory_format)
    w = random_bytes(generator, out_channels, in_channels // geometry[3], *kernel).to(device)
    return epilogue(x, w, geometry, addend, generator, options)


def epilogue(
    x: Tensor, w: Tensor, geometry: tuple, addend: torch.dtype | None, generator: torch.Generator, options: dict
) -> Problem:
    scale = torch.randn(w.shape[0], generator=generator) / w[0].numel()
    shift = 50 * torch.randn(w.shape[0], generator=generator) - 85 * w[0].numel() * scale
    p = Problem(x, w, scale.to(x.device), shift.to(x.device), None, geometry, {"zero_point": 7} | options)
    if addend is None:
        return p
    shape = distances(p).shape
    added = random_bytes(generator, *shape) if addend == torch.uint8 else 50 * torch.randn(shape, generator=generator)
    return replace(p, addend=added.to(x.device), options=p.options | {"addend_scale": 0.3})


# ---------------------------------------------------------------------------------------------------------- the values


def test_worked_example(device: torch.device) -> None:
    """By hand: the filters (1, 200) and (0, 3) over the pixels (5, 0), (250, 255) are at 204, 304 and 8, 502."""
    x = torch.tensor([[5, 250], [0, 255]], dtype=torch.uint8, device=device).reshape(1, 2, 1, 2)
    w = pack_byte_filters(torch.tensor([[1, 200], [0, 3]], dtype=torch.uint8, device=device).reshape(2, 2, 1, 1))
    scale, shift = torch.tensor([0.5, -1.0], device=device), torch.tensor([-101.5, 10.0], device=device)
    assert adder2d_u8(x, w, scale, shift).flatten().tolist() == [0.5, 50.5, 2.0, -492.0]
    assert adder2d_u8(x, w, scale, shift, relu=True).flatten().tolist() == [0.5, 50.5, 2.0, 0.0]
    # Halves are rounded to even: 0.5 to 0, 50.5 to 50.
    assert adder2d_u8(x, w, scale, shift, out_zero_point=10).flatten().tolist() == [10, 60, 12, 0]
    assert adder2d_u8(x, w, scale, shift, out_zero_point=10, relu=True).flatten().tolist() == [10, 60, 12, 10]
    assert adder2d_u8(x, w, scale, shift, out_zero_point=0, out_max=15).flatten().tolist() == [0, 15, 2, 0]
    addend = torch.tensor([2, 0, 100, 255], dtype=torch.uint8, device=device).reshape(1, 2, 1, 2)
    assert adder2d_u8(x, w, scale, shift, addend, addend_scale=0.25).flatten().tolist() == [1.0, 50.5, 27.0, -428.25]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    geometry, input_shape, weight_shape = draw(geometries())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    x, w = random_bytes(generator, *input_shape), random_bytes(generator, *weight_shape)
    most = draw(st.sampled_from([15, 63, 255]))
    options = {
        "zero_point": draw(st.integers(0, 255)),
        "relu": draw(st.booleans()),
        "out_zero_point": draw(st.one_of(st.none(), st.integers(0, most))),
        "out_max": most,
    }
    addend = draw(st.sampled_from([None, torch.uint8, torch.float32]))
    x = in_format(x, draw(st.sampled_from(["contiguous", "channels_last"])))
    p = epilogue(x, w, geometry, addend, generator, options)
    if addend is not None and draw(st.booleans()):
        p = replace(p, addend=in_format(p.addend, "channels_last"))
    return p


@settings(deadline=None, max_examples=CASES)
@given(p=problems())
def test_operator_and_reference_equal_the_definition(device: torch.device, p: Problem) -> None:
    tensors = {name: getattr(p, name).to(device) for name in ("input", "filters", "scale", "shift")}
    p = replace(p, **tensors, addend=None if p.addend is None else p.addend.to(device))
    for operator in (adder2d_u8, reference_of_pairs):
        z = assert_equals_the_definition(p, operator)
        assert has_format_like(z, p.input)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (8, 4), (8, 8), (12, 4), (16, 2), (16, 4)])
def test_groups_whose_pixels_are_filled_up_to_the_length_of_all_channels(
    device: torch.device, channels: int, groups: int
) -> None:
    """Eight bytes are a step: of a group of 1 to 4 channels as of all 8."""
    generator = torch.Generator().manual_seed(0)
    x = in_format(random_bytes(generator, 2, channels, 4, 5).to(device), "channels_last")
    w = random_bytes(generator, 16 * groups, channels // groups, 3, 3).to(device)
    assert_equals_the_definition(epilogue(x, w, ((1, 1), (1, 1), (1, 1), groups), None, generator, {}))


def reference_of_pairs(*arguments: object, **options: object) -> Tensor:
    return reference.u8(*arguments, **options)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "kernel"),
    [(300, 130, (1, 1)), (129, 65, (3, 3)), (64, 257, (1, 2)), (1, 512, (5, 5)), (3, 64, (7, 7)), (16, 16, (3, 3))],
)
def test_wide_layers_equal_the_definition(
    device: torch.device, in_channels: int, out_channels: int, kernel: tuple[int, int]
) -> None:
    """Channels that fill vectors, tiles and blocks of sums, and overhang them."""
    generator = torch.Generator().manual_seed(0)
    x = random_bytes(generator, 2, in_channels, 8, 9).to(device)
    w = random_bytes(generator, out_channels, in_channels, *kernel).to(device)
    for addend in (None, torch.uint8, torch.float32):
        for zero_point in (None, 30):
            options = {"zero_point": 100, "out_zero_point": zero_point}
            p = epilogue(x, w, ((1, 2), (1, 1), (1, 1), 1), addend, generator, options)
            for memory_format in FORMATS:
                assert_equals_the_definition(replace(p, input=in_format(x, memory_format)))


@pytest.mark.parametrize(("channels", "filters"), [(16, 20), (32, 50), (48, 100), (20, 20), (5, 50), (24, 100), (8, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_layers_of_every_width_equal_the_definition(
    device: torch.device, channels: int, filters: int, groups: int
) -> None:
    """The widths for which the kernels of GPUs have code of its own."""
    generator = torch.Generator().manual_seed(0)
    x = in_format(random_bytes(generator, 3, groups * channels, 8, 8).to(device), "channels_last")
    w = random_bytes(generator, groups * filters, channels, 3, 2).to(device)
    for addend in (None, torch.uint8):
        options = {"zero_point": 77, "out_zero_point": 30}
        assert_equals_the_definition(epilogue(x, w, ((2, 1), (1, 1), (1, 1), groups), addend, generator, options))


def test_no_sum_overflows(device: torch.device) -> None:
    """The largest filter, with the largest difference in every element."""
    size = checks.LARGEST_FILTER
    x = torch.full((1, size, 1, 1), 255, dtype=torch.uint8, device=device)
    scale, shift = torch.tensor([2.0**-16], device=device), torch.zeros(1, device=device)
    packed = pack_byte_filters(torch.zeros(1, size, 1, 1, dtype=torch.uint8, device=device))
    assert adder2d_u8(x, packed, scale, shift).item() == float(np.float32(255 * size)) / 2**16
    wider = torch.zeros(1, size + 1, 1, 1, dtype=torch.uint8, device=device)
    words = rf"a filter of weight must have at most {size} elements, got \(C / groups, kH, kW\) = \({size + 1}, 1, 1\)$"
    with pytest.raises(RuntimeError, match=words):
        adder2d_u8(wider, pack_byte_filters(wider), scale, shift)


@pytest.mark.parametrize(("channels", "filters"), [(16, 40), (20, 40), (16, 3)])
def test_filters_may_begin_at_any_address(device: torch.device, channels: int, filters: int) -> None:
    """Of a view, as of a part of a file: the kernels of GPUs fetch 4 or 16 bytes at once."""
    generator = torch.Generator().manual_seed(0)
    x = in_format(random_bytes(generator, 2, channels, 6, 6).to(device), "channels_last")
    w = random_bytes(generator, filters, channels, 3, 3).to(device)
    p = epilogue(x, w, ((1, 1), (1, 1), (1, 1), 1), None, generator, {})
    x, packed, scale, shift, _ = p.tensors()
    for offset in (1, 2, 4, 8):
        view = packed.new_empty(packed.numel() + offset)[offset:].view(packed.shape).copy_(packed)
        assert view.data_ptr() % 16 == offset
        z = adder2d_u8(x, view, scale, shift, None, *p.geometry, **p.options)
        np.testing.assert_array_equal(z.cpu().numpy(), expected(p))


@pytest.mark.parametrize("operator", [adder2d_u8, reference_of_pairs], ids=["kernel", "reference"])
def test_nan_is_the_lowest_byte_and_infinities_are_the_ends(device: torch.device, operator: Callable) -> None:
    p = problem("plain", device, addend=torch.float32, out_zero_point=100, out_max=200)
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device)
    p.addend[0, 0, 0, :3] = odd
    assert p.call(operator)[0, 0, 0, :3].tolist() == [0, 200, 0]
    p.options["relu"] = True
    assert p.call(operator)[0, 0, 0, :3].tolist() == [100, 200, 100]
    p.options["out_zero_point"] = None
    assert p.call(operator)[0, 0, 0, :3].tolist()[1:] == [torch.inf, 0]
    assert p.call(operator)[0, 0, 0, 0].isnan()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_output_and_reference_have_the_strides_of_the_input(device: torch.device, memory_format: str) -> None:
    for zero_point in (None, 3):
        for size in ((9, 8), (3, 4)):  # (3, 4): one pixel high
            for batch in (0, 2):
                p = problem("plain", device, memory_format, torch.uint8, batch, size, out_zero_point=zero_point)
                z, other = p.call(), p.call(reference_of_pairs)
                assert has_format_like(z, p.input)
                assert (other.dtype, other.shape, other.stride()) == (z.dtype, z.shape, z.stride())


@pytest.mark.parametrize("name", GEOMETRIES)
def test_results_do_not_depend_on_the_number_of_threads(device: torch.device, name: str) -> None:
    p = problem(name, device, "channels_last", batch=8, size=(45, 41), out_zero_point=9)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(p.call())
    torch.set_num_threads(1)
    assert results[0].equal(results[1])
    assert results[0].equal(results[2])


# ----------------------------------------------------------------------------------------------------------- bad input

PACKED = "weight must be packed filters, (2, kH, kW, 1, 16, 8) for 20 filters of 4 channels in 1 groups, got shape "
# what differs from an input (2, 4, 5, 5), filters (20, 4, 3, 3), and the words
BAD_INPUT: dict[str, tuple[dict, str]] = {
    "input of 3 dimensions": ({"input": (4, 5, 5)}, "input must have 4 dimensions (N, C, H, W), got shape (4, 5, 5)"),
    "input of floats": ({"input_dtype": torch.float32}, "input must be uint8, got float32"),
    "scale of 2 dimensions": ({"scale": (20, 1)}, "scale must have a value for each filter, (O,), got shape (20, 1)"),
    "shift of another shape": ({"shift": (19,)}, "shift must have the shape of scale, (20,), got (19,)"),
    "filters that are not packed": ({"weight": (20, 4, 3, 3)}, PACKED + "(20, 4, 3, 3)"),
    "lanes of 4 bytes": ({"weight": (2, 3, 3, 1, 16, 4)}, PACKED + "(2, 3, 3, 1, 16, 4)"),
    "filters of other channels": ({"weight": (2, 3, 3, 2, 16, 8)}, PACKED + "(2, 3, 3, 2, 16, 8)"),
    "empty filters": ({"weight": (2, 0, 3, 1, 16, 8)}, PACKED + "(2, 0, 3, 1, 16, 8)"),
    "filters of floats": (
        {"weight_dtype": torch.float32},
        "weight must be uint8 for an input of uint8, got float32",
    ),
    "scale in double precision": (
        {"scale_dtype": torch.float64},
        "scale must be float32 for an input of uint8, got float64",
    ),
    "stride 0": ({"stride": (1, 0)}, "stride must be two integers from 1 to 2147483647, got (1, 0)"),
    "groups 0": (
        {"groups": 0},
        "groups must divide the channels of input and the filters, got groups 0, input (2, 4, 5, 5) and 20 filters",
    ),
    "dilation whose span overflows": (
        {"dilation": (1, 2**62)},
        "dilation must be two integers from 1 to 2147483647, got (1, 4611686018427387904)",
    ),
    "padding whose double overflows": (
        {"padding": (2**63 - 1, 0)},
        "padding must be two integers from 0 to 2147483647, got (9223372036854775807, 0)",
    ),
    "dilated kernel higher than the padded input": (
        {"dilation": (4, 1), "padding": (1, 1)},
        "the dilated kernel must fit into the padded input, got input (2, 4, 5, 5), weight (2, 3, 3, 1, 16, 8), "
        "padding (1, 1) and dilation (4, 1)",
    ),
    "zero point beyond a byte": ({"zero_point": 256}, "zero_point must be from 0 to 255, got 256"),
    "largest byte beyond a byte": ({"out_max": 300}, "out_max must be from 0 to 255, got 300"),
    "zero point beyond the largest byte": (
        {"out_max": 15, "out_zero_point": 16},
        "out_zero_point must be from 0 to 15, got 16",
    ),
    "addend that would have to be broadcast": (
        {"addend": (2, 20, 1, 1)},
        "addend must have the shape of the output, (2, 20, 3, 3), got (2, 20, 1, 1)",
    ),
    "addend in half precision": (
        {"addend": (2, 20, 3, 3), "addend_dtype": torch.bfloat16},
        "addend must have the dtype of input, uint8, or be float32, got bfloat16",
    ),
}


@pytest.mark.parametrize("where", ["device", "meta", "fake", "reference"])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_in_the_same_words_everywhere(device: torch.device, case: str, where: str) -> None:
    given, words = BAD_INPUT[case]
    shapes = {"input": (2, 4, 5, 5), "weight": (2, 3, 3, 1, 16, 8), "scale": (20,), "shift": (20,), "addend": None}
    geometry = [given.get(name, default) for name, default in (("stride", (1, 1)), ("padding", (0, 0)))]
    geometry += [given.get("dilation", (1, 1)), given.get("groups", 1)]
    options = {name: given[name] for name in ("zero_point", "out_zero_point", "out_max") if name in given}

    def call(device: torch.device | str) -> None:
        tensors = []
        for name, default in shapes.items():
            shape = given.get(name, default)
            usual = torch.uint8 if name in ("input", "weight") else torch.float32
            dtype = given.get(f"{name}_dtype", usual)
            tensors.append(None if shape is None else torch.zeros(shape, dtype=dtype, device=device))
        (reference.u8 if where == "reference" else adder2d_u8)(*tensors, *geometry, **options)

    fake = FakeTensorMode() if where == "fake" else contextlib.nullcontext()
    with fake, pytest.raises(RuntimeError, match="^adder2d_u8: " + re.escape(words) + "$"):
        call("meta" if where == "meta" else device)


# ------------------------------------------------------------------------------------------------ opcheck and programs


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_opcheck(device: torch.device, name: str, memory_format: str) -> None:
    addend = {"contiguous": None, "channels_last": torch.uint8, "slice": torch.float32}[memory_format]
    zero_point = {"contiguous": 5, "channels_last": None, "slice": 0}[memory_format]
    p = problem(name, device, memory_format, addend)
    arguments = (*p.tensors(), *p.geometry, memory_format != "slice", 7, zero_point, 255, 0.5)
    torch.library.opcheck(torch.ops.adderzoo.adder2d_u8.default, arguments)


def test_backward_is_refused_and_never_goes_by_without_gradients(device: torch.device) -> None:
    p = problem(device=device, addend=torch.float32)
    p.addend.requires_grad_()
    with pytest.raises(RuntimeError, match=r"^adder2d_u8: a gradient is not defined, because it is for inference"):
        p.call().sum().backward()
    with torch.no_grad():
        assert not p.call().requires_grad


class Layer(torch.nn.Module):
    """As the library's own layers call the operator."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", pack_byte_filters(random_bytes(generator, 20, 2, 3, 3), 2))
        self.register_buffer("scale", torch.randn(20, generator=generator) / 10)
        self.register_buffer("shift", -150 * self.scale)
        self.stride, self.padding, self.dilation, self.groups = [1, 1], [1, 1], [1, 1], 2

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.adderzoo.adder2d_u8(
            x, self.weight, self.scale, self.shift, None, self.stride, self.padding, self.dilation, self.groups,
            True, 3, 5, 255,
        )  # fmt: skip
        return torch.ops.adderzoo.adder2d_u8(
            x, self.weight, self.scale, self.shift, y, self.stride, self.padding, self.dilation, self.groups,
            zero_point=3, addend_scale=0.5,
        )  # fmt: skip


def images(batch: int, device: torch.device) -> Tensor:
    return random_bytes(torch.Generator().manual_seed(batch), batch, 4, 7, 8).to(device)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_compiled_program_serves_every_batch_size_with_one_recompilation(
    device: torch.device, memory_format: torch.memory_format
) -> None:
    check_compiled(
        Layer().to(device), lambda batch: images(batch, device).contiguous(memory_format=memory_format), "aot_eager"
    )


def test_exported_program_survives_a_file_and_takes_any_batch_and_size(device: torch.device, tmp_path: Path) -> None:
    operator = torch.ops.adderzoo.adder2d_u8
    check_exported(Layer().to(device), lambda batch: images(batch, device), operator, tmp_path / "layer.pt2")


@pytest.mark.parametrize("way", ["script", "trace", "fx"])
def test_recorded_program_gives_the_same_output(device: torch.device, way: str) -> None:
    check_recorded(Layer().to(device), lambda batch: images(batch, device), way)


@pytest.mark.parametrize("in_dims", [(0, None, None, None, 1), (None, None, None, 0, None)], ids=str)
def test_vmap_is_a_loop(device: torch.device, in_dims: tuple[int | None, ...]) -> None:
    p = problem("grouped", device)
    mapped = [
        t if dim is None else torch.stack([t + index for index in range(3)], dim)
        for t, dim in zip(p.tensors(), in_dims, strict=True)
    ]
    loop = [
        adder2d_u8(*(t if d is None else t.select(d, i) for t, d in zip(mapped, in_dims, strict=True)), *p.geometry)
        for i in range(3)
    ]
    together = torch.vmap(lambda *tensors: adder2d_u8(*tensors, *p.geometry), in_dims)(*mapped)
    assert together.equal(torch.stack(loop))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_flops_are_two_for_each_element_of_each_patch(device: torch.device, name: str) -> None:
    """Lanes of a panel without a filter, and bytes without a channel, do not count."""
    p = problem(name, device)
    with FlopCounterMode(display=False) as counter:
        z = p.call()
    assert counter.get_total_flops() == 2 * z.numel() * p.filters[0].numel()
