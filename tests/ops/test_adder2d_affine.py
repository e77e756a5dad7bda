import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from programs import check_compiled, check_exported, check_recorded
from reference64 import adder2d64
from samples import CASES, DTYPES, FORMATS, GEOMETRIES, WIDTHS, geometries, has_format_like, in_format, sample
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from adderzoo.ops import adder2d_affine, pack_filters, reference

pytestmark = pytest.mark.usefixtures("one_thread")


class Problem(NamedTuple):
    """What the operator takes, with filters that are not packed."""

    input: Tensor
    filters: Tensor
    scale: Tensor
    shift: Tensor
    addend: Tensor | None
    geometry: tuple

    def arguments(self) -> tuple:
        return self.input, pack_filters(self.filters), self.scale, self.shift, self.addend, *self.geometry


def problem(
    name: str = "strided",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_format: str = "contiguous",
    addend: str | None = "contiguous",
    batch: int = 2,
    size: tuple[int, int] = (9, 8),
) -> Problem:
    """One of the GEOMETRIES; `addend` is the memory format of one of the type of the input, or None."""
    x, w, geometry = sample(name, dtype, device, memory_format, batch, size)
    w = w.to(reference.accumulation_dtype(dtype))
    generator = torch.Generator().manual_seed(1)
    scale = torch.randn(w.shape[0], generator=generator).to(w)
    shift = torch.randn(w.shape[0], generator=generator).to(w) + 20 * scale  # results on both sides of 0
    shape = adder2d64(x, w, *geometry).shape
    summand = None if addend is None else in_format(torch.randn(shape, generator=generator).to(x), addend)
    return Problem(x, w, scale, shift, summand, geometry)


def affine64(p: Problem, relu: bool) -> Tensor:
    y = adder2d64(p.input, p.filters, *p.geometry)
    z = p.scale.double()[:, None, None] * y + p.shift.double()[:, None, None]
    z = z if p.addend is None else z + p.addend.double()
    return z.masked_fill(z < 0, 0.0) if relu else z


def bound64(p: Problem) -> Tensor:
    """Of the rounding errors: those of `adder2d`, those of what follows, and the last one, to the output's type."""
    epsilon, own = (1e-14, 1e-15) if p.input.dtype == torch.float64 else (1e-6, 3e-7)
    sums = -adder2d64(p.input.double().abs(), -p.filters.double().abs(), *p.geometry)  # of |x| + |w|
    affine = p.scale.double().abs()[:, None, None] * sums + p.shift.double().abs()[:, None, None]
    if p.addend is not None:
        affine = affine + p.addend.double().abs()
    last = torch.finfo(p.input.dtype).eps if p.input.dtype.itemsize == 2 else 0.0
    return epsilon * p.scale.double().abs()[:, None, None] * sums + own * affine + last * affine64(p, False).abs()


def assert_matches_the_definition(p: Problem, relu: bool, call: Callable[..., Tensor] = adder2d_affine) -> Tensor:
    z, expected = call(*p.arguments(), relu), affine64(p, relu)
    assert z.shape == expected.shape
    excess = (z.double() - expected).abs() - bound64(p)
    assert excess.numel() == 0 or excess.max() <= 0, f"{(excess > 0).sum()} values are off, by up to {excess.max()}"
    return z


# ---------------------------------------------------------------------------------------------------------- the values


def test_worked_example(device: torch.device) -> None:
    """By hand: filters (1, 2) and (0, -3) over the pixels (5, 0.5), (5.5, 2) are at -5.5, -4.5 and -8.5, -10.5."""
    x = torch.tensor([[5.0, 5.5], [0.5, 2.0]], device=device).reshape(1, 2, 1, 2)
    w = pack_filters(torch.tensor([[1.0, 2.0], [0.0, -3.0]], device=device).reshape(2, 2, 1, 1))
    scale, shift = torch.tensor([2.0, -1.0], device=device), torch.tensor([10.0, -9.0], device=device)
    assert adder2d_affine(x, w, scale, shift).flatten().tolist() == [-1.0, 1.0, -0.5, 1.5]
    assert adder2d_affine(x, w, scale, shift, relu=True).flatten().tolist() == [0.0, 1.0, 0.0, 1.5]
    addend = torch.tensor([1.5, 1.0, 0.25, -4.0], device=device).reshape(1, 2, 1, 2)
    assert adder2d_affine(x, w, scale, shift, addend).flatten().tolist() == [0.5, 2.0, -0.25, -2.5]
    assert adder2d_affine(x, w, scale, shift, addend, relu=True).flatten().tolist() == [0.5, 2.0, 0.0, 0.0]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    geometry, input_shape, (out_channels, in_channels, *kernel) = draw(geometries())
    dtype = draw(st.sampled_from(DTYPES))
    dtype_of_parameters = reference.accumulation_dtype(dtype)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = in_format(values(*input_shape).to(dtype), draw(st.sampled_from(FORMATS)))
    w = values(out_channels, in_channels, *kernel).to(dtype_of_parameters)
    scale, shift = values(out_channels).to(dtype_of_parameters), 10 * values(out_channels).to(dtype_of_parameters)
    addend = None
    if draw(st.booleans()):
        dtype_of_addend = draw(st.sampled_from([dtype, torch.float32]))
        addend = values(*adder2d64(x, w, *geometry).shape).to(dtype_of_addend)
        addend = in_format(addend, draw(st.sampled_from(FORMATS)))
    return Problem(x, w, scale, shift, addend, geometry)


@settings(deadline=None, max_examples=CASES)
@given(p=problems(), relu=st.booleans())
def test_operator_and_reference_match_the_definition(device: torch.device, p: Problem, relu: bool) -> None:
    p = Problem(*(value.to(device) if isinstance(value, Tensor) else value for value in p))
    for operator in (adder2d_affine, reference.affine):
        z = assert_matches_the_definition(p, relu, operator)
        assert z.dtype == p.input.dtype
        assert has_format_like(z, p.input)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "kernel"),
    [(300, 130, (1, 1)), (129, 65, (3, 3)), (64, 257, (1, 2)), (1, 512, (5, 5)), (3, 64, (7, 7)), (16, 16, (3, 3))],
)
def test_wide_layers_match_the_definition(
    device: torch.device, in_channels: int, out_channels: int, kernel: tuple[int, int]
) -> None:
    """Channels that fill vectors, tiles and blocks of sums, and overhang them."""
    x = torch.randn(2, in_channels, 8, 9, device=device)
    w = torch.randn(out_channels, in_channels, *kernel, device=device)
    scale, shift = torch.randn(2, out_channels, device=device)
    geometry = ((1, 2), (1, 1), (1, 1), 1)
    shape = adder2d64(x, w, *geometry).shape
    for addend in (None, torch.randn(shape, device=device)):
        for memory_format in ("contiguous", "channels_last"):
            p = Problem(in_format(x, memory_format), w, scale, shift, addend, geometry)
            assert_matches_the_definition(p, relu=addend is not None)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("in_channels", "out_channels"), WIDTHS)
def test_layers_of_every_width_type_and_format_match_the_definition(
    device: torch.device, in_channels: int, out_channels: int, dtype: torch.dtype, memory_format: str
) -> None:
    x = in_format(torch.randn(3, 2 * in_channels, 8, 8, device=device).to(dtype), memory_format)
    w = torch.randn(2 * out_channels, in_channels, 3, 2, device=device).to(reference.accumulation_dtype(dtype))
    scale, shift = torch.randn(2, 2 * out_channels, device=device).to(w)
    geometry = ((2, 1), (1, 1), (1, 1), 2)
    addend = in_format(torch.randn(adder2d64(x, w, *geometry).shape, device=device).to(dtype), memory_format)
    for relu in (False, True):
        assert_matches_the_definition(Problem(x, w, scale, shift, addend, geometry), relu)


def test_outputs_near_minus_a_thousand_are_centerd_before_they_are_rounded(device: torch.device) -> None:
    """Outputs have a large negative mean, which the map takes away; bfloat16 cannot hold their deviations from it."""
    x = torch.randn(1, 512, 8, 8, device=device, dtype=torch.bfloat16)
    w = 2 * torch.randn(32, 512, 1, 1, device=device)
    y64 = adder2d64(x, w)
    std, mean = torch.std_mean(y64, (0, 2, 3))
    assert (mean / std).abs().min() > 20
    p = Problem(x, w, (1 / std).float(), (-mean / std).float(), None, ((1, 1), (0, 0), (1, 1), 1))
    z = assert_matches_the_definition(p, relu=False)
    assert z.dtype == torch.bfloat16


@pytest.mark.parametrize("filters", [20, 100])
def test_filters_may_begin_at_any_address(device: torch.device, filters: int) -> None:
    """Of a view, as of a part of a file: the kernels of GPUs fetch 16 bytes at once."""
    x, w = torch.randn(2, 8, 6, 6, device=device), torch.randn(filters, 8, 3, 3, device=device)
    packed = pack_filters(w)
    scale, shift = torch.randn(2, filters, device=device)
    expected = adder2d_affine(x, packed, scale, shift)
    for offset in (1, 2, 3):
        view = torch.empty(packed.numel() + offset, device=device)[offset:].view(packed.shape).copy_(packed)
        assert view.data_ptr() % 16 == 4 * offset
        assert adder2d_affine(x, view, scale, shift).equal(expected)


# --------------------------------------------------------------------------------------------------- types and formats


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_reference_have_type_and_strides_of_the_input(
    device: torch.device, dtype: torch.dtype, memory_format: str
) -> None:
    for addend in (None, *FORMATS):
        for size in ((9, 8), (3, 4)):  # (3, 4): one pixel high
            for batch in (0, 2):
                p = problem("plain", dtype, device, memory_format, addend, batch, size)
                z = adder2d_affine(*p.arguments())
                assert z.dtype == dtype
                assert has_format_like(z, p.input)
                other = reference.affine(*p.arguments())
                assert (other.dtype, other.shape, other.stride()) == (z.dtype, z.shape, z.stride())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_the_result_alone(device: torch.device, dtype: torch.dtype, relu: bool) -> None:
    p = problem("grouped", dtype, device)
    single = p._replace(input=p.input.float(), addend=p.addend.float())
    rounded = adder2d_affine(*single.arguments(), relu).to(dtype)
    assert adder2d_affine(*p.arguments(), relu).equal(rounded)
    with_single_addend = p._replace(addend=p.addend.float())
    assert adder2d_affine(*with_single_addend.arguments(), relu).equal(rounded)


def test_integers_and_pairs_mean_the_same(device: torch.device) -> None:
    x, w = torch.randn(2, 4, 9, 9, device=device), pack_filters(torch.randn(6, 2, 3, 3, device=device))
    scale, shift = torch.randn(2, 6, device=device)
    pairs = adder2d_affine(x, w, scale, shift, None, (2, 2), (1, 1), (2, 2), 2)
    assert adder2d_affine(x, w, scale, shift, stride=2, padding=1, dilation=2, groups=2).equal(pairs)


# ------------------------------------------------------------------------------------------------------- NaN, infinite


@pytest.mark.parametrize("call", [adder2d_affine, reference.affine], ids=["kernel", "reference"])
def test_nan_and_infinities_pass_the_relu_as_they_pass_torch_relu(device: torch.device, call: Callable) -> None:
    p = problem("plain", device=device)
    p.input[0, 0, 4, 4] = torch.inf
    p.addend[1, 2, 0, 1], p.addend[1, 1, 2, 2], p.addend[1, 0, 0, 0] = torch.nan, torch.inf, -torch.inf
    p.scale[:] = torch.tensor([1.0, -1.0, 2.0, 0.0])  # of -inf: -inf, inf, -inf and NaN
    expected = affine64(p, True)
    for kind in (expected.isnan(), expected == torch.inf, expected == 0):
        assert kind.any()
    torch.testing.assert_close(call(*p.arguments(), True).double(), expected, equal_nan=True, rtol=1e-5, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- bad input

MUST_BE_PACKED = "weight must be packed filters, (ceil(O / 16), kH, kW, C / groups, 16), got shape "
MUST_FIT = "the dilated kernel must fit into the padded input, got input "
WORDS_OF_GROUPS = "groups must divide the channels of input and the filters, got groups "
# what differs from an input (2, 4, 5, 5), filters (20, 4, 3, 3), everything in float32, and the words
BAD_INPUT: dict[str, tuple[dict, str]] = {
    "input of 3 dimensions": (
        {"input": (4, 5, 5)},
        "input must have 4 dimensions (N, C, H, W), got shape (4, 5, 5)",
    ),
    "scale of 2 dimensions": ({"scale": (20, 1)}, "scale must have a value for each filter, (O,), got shape (20, 1)"),
    "scale of 0 dimensions": ({"scale": ()}, "scale must have a value for each filter, (O,), got shape ()"),
    "no filters": ({"scale": (0,)}, "scale must have a value for each filter, (O,), got shape (0,)"),
    "shift of another shape": ({"shift": (19,)}, "shift must have the shape of scale, (20,), got (19,)"),
    "filters that are not packed": (
        {"weight": (20, 4, 3, 3)},
        MUST_BE_PACKED + "(20, 4, 3, 3) with O = 20",
    ),
    "panels of 8": ({"weight": (3, 3, 3, 4, 8)}, MUST_BE_PACKED + "(3, 3, 3, 4, 8) with O = 20"),
    "too many panels": ({"weight": (3, 3, 3, 4, 16)}, MUST_BE_PACKED + "(3, 3, 3, 4, 16) with O = 20"),
    "empty filters": ({"weight": (2, 0, 3, 4, 16)}, MUST_BE_PACKED + "(2, 0, 3, 4, 16) with O = 20"),
    "integers": ({"input_dtype": torch.int64}, "input must be float32, float64, bfloat16 or float16, got int64"),
    "filters in half precision": (
        {"input_dtype": torch.bfloat16, "weight_dtype": torch.bfloat16},
        "weight must be float32 for an input of bfloat16, got bfloat16",
    ),
    "filters in double precision": (
        {"weight_dtype": torch.float64},
        "weight must be float32 for an input of float32, got float64",
    ),
    "scale in half precision": (
        {"scale_dtype": torch.float16},
        "scale must be float32 for an input of float32, got float16",
    ),
    "shift in single precision": (
        {"input_dtype": torch.float64, "weight_dtype": torch.float64, "scale_dtype": torch.float64},
        "shift must be float64 for an input of float64, got float32",
    ),
    "stride 0": ({"stride": (1, 0)}, "stride must be two integers from 1 to 2147483647, got (1, 0)"),
    "negative padding": ({"padding": (-1, -1)}, "padding must be two integers from 0 to 2147483647, got (-1, -1)"),
    "dilation of 3": ({"dilation": (1, 1, 1)}, "dilation must be two integers from 1 to 2147483647, got (1, 1, 1)"),
    "groups 0": (
        {"groups": 0},
        WORDS_OF_GROUPS + "0, input (2, 4, 5, 5) and 20 filters",
    ),
    "groups that do not divide the filters": (
        {"input": (2, 12, 5, 5), "groups": 3},
        WORDS_OF_GROUPS + "3, input (2, 12, 5, 5) and 20 filters",
    ),
    "channels that do not fit": (
        {"input": (2, 3, 5, 5)},
        "input must have groups times the channels of weight, 4, got 3: groups 1, input (2, 3, 5, 5) and "
        "weight (2, 3, 3, 4, 16)",
    ),
    "dilation whose span overflows": (
        {"dilation": (2**60, 1)},
        "dilation must be two integers from 1 to 2147483647, got (1152921504606846976, 1)",
    ),
    "padding whose double overflows": (
        {"padding": (1, 2**63 - 1)},
        "padding must be two integers from 0 to 2147483647, got (1, 9223372036854775807)",
    ),
    "groups beyond everything": ({"groups": 2**62}, WORDS_OF_GROUPS + f"{2**62}, input (2, 4, 5, 5) and 20 filters"),
    "dilated kernel higher than the padded input": (
        {"dilation": (4, 1), "padding": (1, 1)},
        MUST_FIT + "(2, 4, 5, 5), weight (2, 3, 3, 4, 16), padding (1, 1) and dilation (4, 1)",
    ),
    "addend that would have to be broadcast": (
        {"addend": (2, 20, 1, 1)},
        "addend must have the shape of the output, (2, 20, 3, 3), got (2, 20, 1, 1)",
    ),
    "addend of 3 dimensions": (
        {"addend": (20, 3, 3)},
        "addend must have the shape of the output, (2, 20, 3, 3), got (20, 3, 3)",
    ),
    "addend in half precision": (
        {"addend": (2, 20, 3, 3), "addend_dtype": torch.bfloat16},
        "addend must have the dtype of input, float32, or be float32, got bfloat16",
    ),
    "addend in double precision": (
        {"input_dtype": torch.float16, "addend": (2, 20, 3, 3), "addend_dtype": torch.float64},
        "addend must have the dtype of input, float16, or be float32, got float64",
    ),
}


@pytest.mark.parametrize("where", ["device", "meta", "fake", "reference"])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_in_the_same_words_everywhere(device: torch.device, case: str, where: str) -> None:
    given, words = BAD_INPUT[case]
    shapes = {"input": (2, 4, 5, 5), "weight": (2, 3, 3, 4, 16), "scale": (20,), "shift": (20,), "addend": None}
    geometry = [given.get(name, default) for name, default in (("stride", (1, 1)), ("padding", (0, 0)))]
    geometry += [given.get("dilation", (1, 1)), given.get("groups", 1)]

    def call(device: torch.device | str) -> None:
        tensors = []
        for name, default in shapes.items():
            shape, dtype = given.get(name, default), given.get(f"{name}_dtype", torch.float32)
            tensors.append(None if shape is None else torch.zeros(shape, dtype=dtype, device=device))
        (reference.affine if where == "reference" else adder2d_affine)(*tensors, *geometry)

    fake = FakeTensorMode() if where == "fake" else contextlib.nullcontext()
    with fake, pytest.raises(RuntimeError, match="^adder2d_affine: " + re.escape(words) + "$"):
        call("meta" if where == "meta" else device)


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_tensors_on_two_devices_are_refused(device: torch.device, index: int) -> None:
    name = ("weight", "scale", "shift", "addend")[index - 1]
    for other in {"meta", "cpu"} - {device.type}:
        arguments = list(problem(device=device).arguments())
        arguments[index] = arguments[index].to(other)
        words = f"{name} must be on the device of input, {arguments[0].device}, got {other}"
        with pytest.raises(RuntimeError, match=f"^adder2d_affine: {words}"):
            adder2d_affine(*arguments)


# ------------------------------------------------------------------------------------------------------- no gradients


@pytest.mark.parametrize("index", range(5))
def test_backward_is_refused_and_never_goes_by_without_gradients(device: torch.device, index: int) -> None:
    arguments = list(problem(device=device).arguments())
    arguments[index] = arguments[index].requires_grad_()
    z = adder2d_affine(*arguments)
    assert z.requires_grad
    with pytest.raises(RuntimeError, match=r"^adder2d_affine: a gradient is not defined, because it is for inference"):
        z.sum().backward()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert adder2d_affine(*arguments).equal(z)
            assert not adder2d_affine(*arguments).requires_grad


def test_forward_mode_differentiation_is_refused(device: torch.device) -> None:
    p = problem(device=device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(p.input, torch.ones_like(p.input))
        with pytest.raises(RuntimeError, match=r"^adder2d_affine: forward-mode differentiation is not defined"):
            adder2d_affine(*p._replace(input=dual).arguments())
        assert adder2d_affine(*p.arguments()).isfinite().all()  # without a tangent


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.grad])
def test_differentiation_by_functional_transforms_is_refused(device: torch.device, transform: Callable) -> None:
    p = problem(device=device)
    with pytest.raises(RuntimeError, match=r"^adder2d_affine: torch.func's differentiation .* is not defined"):
        transform(lambda x: adder2d_affine(*p._replace(input=x).arguments()).sum())(p.input)


# ------------------------------------------------------------------------------------------------ opcheck and programs


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("dtype", "name"),
    [(dtype, "strided") for dtype in DTYPES] + [(torch.float32, name) for name in GEOMETRIES if name != "strided"],
    ids=str,
)
def test_opcheck(device: torch.device, dtype: torch.dtype, name: str, memory_format: str) -> None:
    addend = {"contiguous": None, "channels_last": "channels_last", "slice": "contiguous"}[memory_format]
    p = problem(name, dtype, device, memory_format, addend)
    torch.library.opcheck(torch.ops.adderzoo.adder2d_affine.default, (*p.arguments(), memory_format != "channels_last"))


class Layer(torch.nn.Module):
    """As the library's own layers call the operator."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", pack_filters(torch.randn(20, 2, 3, 3, generator=generator)))
        self.register_buffer("scale", torch.randn(20, generator=generator))
        self.register_buffer("shift", 20 * self.scale + torch.randn(20, generator=generator))
        self.stride, self.padding, self.dilation, self.groups = [1, 1], [1, 1], [1, 1], 2

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.adderzoo.adder2d_affine(
            x, self.weight, self.scale, self.shift, None, self.stride, self.padding, self.dilation, self.groups, True
        )
        return torch.ops.adderzoo.adder2d_affine(
            x, self.weight, self.scale, self.shift, y + 1, self.stride, self.padding, self.dilation, self.groups
        )


def images(batch: int, device: torch.device) -> Tensor:
    return torch.randn(batch, 4, 7, 8, device=device)


@pytest.mark.parametrize(
    ("memory_format", "backend"),
    [(torch.contiguous_format, "aot_eager"), (torch.channels_last, "aot_eager"), (torch.channels_last, "inductor")],
    ids=str,
)
def test_compiled_program_serves_every_batch_size_with_one_recompilation(
    device: torch.device, memory_format: torch.memory_format, backend: str
) -> None:
    check_compiled(
        Layer().to(device), lambda batch: images(batch, device).contiguous(memory_format=memory_format), backend
    )


def test_exported_program_survives_a_file_and_takes_any_batch_and_size(device: torch.device, tmp_path: Path) -> None:
    operator = torch.ops.adderzoo.adder2d_affine
    check_exported(Layer().to(device), lambda batch: images(batch, device), operator, tmp_path / "layer.pt2")


@pytest.mark.parametrize("way", ["script", "trace", "fx"])
def test_recorded_program_gives_the_same_output(device: torch.device, way: str) -> None:
    check_recorded(Layer().to(device), lambda batch: images(batch, device), way)


# ---------------------------------------------------------------------------------------------- autocast, vmap, flops


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_changes_nothing(device: torch.device, dtype: torch.dtype) -> None:
    """The output of the layer before has the region's type already; filters stay in float32."""
    p = problem(dtype=dtype, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        z = adder2d_affine(*p.arguments())
    assert z.dtype == dtype
    assert z.equal(adder2d_affine(*p.arguments()))


@pytest.mark.parametrize(
    "in_dims",
    [
        (0, None, None, None, None),
        (2, None, None, None, 1),
        (None, None, None, None, 0),
        (0, 0, 0, 0, 0),
        (None, 1, None, None, None),
        (1, None, 0, None, 3),
        (None, None, None, 0, None),
    ],
    ids=str,
)
def test_vmap_is_a_loop(device: torch.device, in_dims: tuple[int | None, ...]) -> None:
    p = problem("grouped", device=device)
    tensors, rest = p.arguments()[:5], p.arguments()[5:]
    mapped = [
        t if dim is None else torch.stack([t + index for index in range(3)], dim)
        for t, dim in zip(tensors, in_dims, strict=True)
    ]
    loop = [
        adder2d_affine(*(t if dim is None else t.select(dim, i) for t, dim in zip(mapped, in_dims, strict=True)), *rest)
        for i in range(3)
    ]
    together = torch.vmap(lambda *tensors: adder2d_affine(*tensors, *rest), in_dims)(*mapped)
    torch.testing.assert_close(together, torch.stack(loop))


def test_vmap_without_addend_is_a_loop(device: torch.device) -> None:
    p = problem("plain", device=device)
    x, packed = torch.stack([p.input, p.input + 1]), pack_filters(p.filters)
    together = torch.vmap(lambda x: adder2d_affine(x, packed, p.scale, p.shift))(x)
    assert together.equal(torch.stack([adder2d_affine(one, packed, p.scale, p.shift) for one in x]))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_flops_are_two_for_each_element_of_each_patch(device: torch.device, name: str) -> None:
    """Lanes of a panel without a filter do not count."""
    p = problem(name, device=device)
    with FlopCounterMode(display=False) as counter:
        z = adder2d_affine(*p.arguments(), True)
    assert counter.get_total_flops() == 2 * z.numel() * p.filters[0].numel()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_results_do_not_depend_on_the_number_of_threads(device: torch.device, name: str) -> None:
    p = problem(name, device=device, batch=8, size=(45, 41))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(adder2d_affine(*p.arguments(), True))
    torch.set_num_threads(1)
    assert results[0].equal(results[1])
    assert results[0].equal(results[2])
