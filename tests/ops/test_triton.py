"""Triton's kernels: in its interpreter on a CPU, held to the definition, and through its compilers without a GPU."""

from pathlib import Path

import pytest
from processes import run_python

pytest.importorskip("triton")

# What every script begins with: the operators of the CPU are Triton's.
BEGIN = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import torch, adderzoo.ops
from adderzoo.ops import _library
from samples import sample, in_format, has_format_like, DTYPES, FORMATS, GEOMETRIES
from reference64 import Geometry, adder2d64_with_gradients, magnitude

of_cpu = {name: getattr(torch.ops.adderzoo, name).default for name in _library._ON_ANY_DEVICE}
_library._Triton.devices = ("cpu",)
with warnings.catch_warnings(action="ignore"):  # about kernels that are replaced
    for name, kernel in _library._ON_ANY_DEVICE.items():
        _library.LIBRARY.impl(name, _library._on_device(name, kernel), "CPU")
warnings.filterwarnings("ignore", ".*its Triton kernels run")
torch.manual_seed(0)
ops = torch.ops.adderzoo

def check(x, w, geometry, mode):
    x, w = x.requires_grad_(), w.requires_grad_()
    y = adderzoo.ops.adder2d(x, w, *geometry, mode)
    g = torch.randn_like(y)
    y64, grad64, _ = adder2d64_with_gradients(x, w, g, Geometry(*geometry), mode, "full")
    (grad,) = torch.autograd.grad(y, x, g)
    scale = magnitude(x, w, g, Geometry(*geometry))
    epsilon = 1e-14 if x.dtype == torch.float64 else 1e-6
    assert ((y - y64).abs() <= epsilon * scale.output).all()
    rounding = torch.finfo(x.dtype).eps if x.dtype.itemsize == 2 else 0.0
    assert ((grad - grad64).abs() <= epsilon * scale.input_grad + rounding * grad64.abs()).all()
    assert y.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32) and grad.dtype == x.dtype
    assert has_format_like(y, x) and has_format_like(grad, x)
"""


def interpret(script: str, folder: Path, **environment: str) -> str:
    return run_python(BEGIN + script, Path(__file__).parent, cwd=folder, TRITON_INTERPRET="1", **environment)


def test_forward_and_input_gradient_match_the_definition(tmp_path: Path) -> None:
    """In every geometry, type and format, each with each other's kind once or more; and more than a block of sums."""
    script = """
assert adderzoo.ops.backend("cpu") == "Triton"
for number, name in enumerate(GEOMETRIES):
    for other in range(2):
        kind = number + 2 * other
        x, w, geometry = sample(name, DTYPES[kind % 4], "cpu", FORMATS[kind % 3], size=(7, 6))
        check(x, w, geometry, ("hardtanh", "sign")[kind % 2])
for memory_format, groups in (("contiguous", 1), ("channels_last", 2)):  # outputs of 3 tiles, of groups with one each
    x = in_format(torch.randn(1, 140 * groups, 3, 2), memory_format)
    check(x, torch.randn(130 // groups // 2 * 2, 140, 2, 1), ((2, 1), (1, 0), (1, 1), groups), "hardtanh")
x, w, geometry = sample("strided", batch=0)
assert adderzoo.ops.adder2d(x, w, *geometry).shape == (0, 2, 5, 11)
assert ops._adder2d_backward_input(torch.empty(0, 2, 5, 11), x, w, *geometry, "sign").shape == x.shape
print("done")
"""
    assert interpret(script, tmp_path) == "done\n"


def test_nan_reaches_what_sees_it_and_no_other(tmp_path: Path) -> None:
    script = """
for mode in ("hardtanh", "sign"):
    x, w, g = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), torch.randn(1, 3, 2, 2)
    x[0, 1, 0, 3], w[1, 0, 0, 0], w[2, 1, 2, 2] = torch.nan, torch.nan, torch.inf
    results = adderzoo.ops.adder2d(x, w), ops._adder2d_backward_input(g, x, w, [1, 1], [0, 0], [1, 1], 1, mode)
    for actual, expected in zip(results, adder2d64_with_gradients(x, w, g, Geometry(), mode, "full")):
        assert expected.isnan().any() and not expected.isnan().all()
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
x = torch.tensor([5.0, 7.0, 9.0]).view(1, 1, 3, 1)  # of 17 taps, 2^26 rows apart, the ninth sees the first row
y = adderzoo.ops.adder2d(x, torch.arange(17.0).view(1, 1, 17, 1), (3, 1), (2**29, 0), (2**26, 1))
assert y.item() == -(sum(range(17)) - 8 + 3)
arguments = [3, 1], [2**29, 0], [2**26, 1], 1, "sign"
grad = ops._adder2d_backward_input(torch.ones_like(y), x, torch.arange(17.0).view(1, 1, 17, 1), *arguments)
assert grad.flatten().tolist() == [1.0, 0.0, 0.0]
print("done")
"""
    assert interpret(script, tmp_path) == "done\n"


def test_operators_for_inference_match_the_definition(tmp_path: Path) -> None:
    """Bytes in every bit, whose formula is the documentation's."""
    script = """
from adderzoo.ops import adder2d_affine, adder2d_u8, pack_filters, pack_byte_filters
for name, dtype, memory_format in (("grouped", torch.float16, "channels_last"), ("strided", torch.float32, "slice")):
    x, w, geometry = sample(name, dtype, "cpu", memory_format, size=(6, 5))
    y64 = adder2d64_with_gradients(x, w, torch.zeros(1), Geometry(*geometry), "sign", "full")[0] if False else None
    scale, shift = torch.rand(len(w)) + 0.5, torch.randn(len(w)) + 9
    from reference64 import adder2d64
    y64 = adder2d64(x, w, *geometry) * scale.double()[:, None, None] + shift.double()[:, None, None]
    addend = torch.randn(y64.shape)
    for relu in (False, True):
        expected = (y64 + addend).relu() if relu else y64
        y = adder2d_affine(x, pack_filters(w.float()), scale, shift, addend if relu else None, *geometry, relu)
        torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)
        assert y.dtype == dtype and has_format_like(y, x)
for groups, memory_format in ((1, "channels_last"), (2, "contiguous")):
    x = in_format(torch.randint(0, 256, (2, 5 * groups, 4, 5), dtype=torch.uint8), memory_format)
    w = torch.randint(0, 256, (17 * groups if groups == 1 else 6, 5, 2, 3), dtype=torch.uint8)
    padded = torch.nn.functional.pad(x.double(), (1, 1, 0, 0), value=7)
    sums = -adder2d64(padded, w, (1, 2), (0, 0), (2, 1), groups).float()
    scale, shift = torch.rand(len(w)) * 0.02 - 0.02, torch.randn(len(w)) * 20 + 60
    addend = torch.randint(0, 256, sums.shape, dtype=torch.uint8)
    z = sums * scale[:, None, None]
    z = z + shift[:, None, None]
    with_addend = z + addend.float() * 0.3
    arguments = (1, 2), (0, 1), (2, 1), groups
    packed = pack_byte_filters(w, groups)
    y = adder2d_u8(x, packed, scale, shift, None, *arguments, False, 7)
    assert y.equal(z) and has_format_like(y, x)
    y = adder2d_u8(x, packed, scale, shift, addend, *arguments, True, 7, 3, 200, 0.3)
    assert y.equal((with_addend.relu().clamp(max=197).round() + 3).to(torch.uint8)) and len(y.unique()) > 20
print("done")
"""
    assert interpret(script, tmp_path) == "done\n"


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    """Of a tensor whose last image lies 2^33 bytes behind its first, in memory that is touched at both ends alone."""
    script = """
import mmap
memory = mmap.mmap(-1, 2**33 + 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_NORESERVE)
x = torch.frombuffer(memory, dtype=torch.float32).as_strided((2, 2, 3, 3), (2**31, 9, 3, 1))
x[0], x[1] = torch.randn(2, 3, 3), torch.randn(2, 3, 3)
check(x.detach(), torch.randn(17, 2, 2, 2), ((1, 1), (0, 0), (1, 1), 1), "hardtanh")
print("done")
"""
    assert interpret(script, tmp_path) == "done\n"


def test_gradients_fakes_and_compilation_are_the_operators(tmp_path: Path) -> None:
    script = """
x, w, geometry = sample("grouped", torch.float32, "cpu", "channels_last", size=(4, 4))
w = w[:3].detach()
torch.library.opcheck(ops.adder2d.default, (x.requires_grad_(), w.requires_grad_(), *geometry))
compiled = torch.compile(adderzoo.ops.adder2d, fullgraph=True, backend="aot_eager")
assert compiled(x, w, *geometry).equal(adderzoo.ops.adder2d(x, w, *geometry))
try:
    adderzoo.ops.adder2d(x, w[:2], *geometry)
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""
    printed = interpret(script, tmp_path)
    assert printed.startswith("adder2d: groups must divide the channels of input and the filters, got groups 3")
