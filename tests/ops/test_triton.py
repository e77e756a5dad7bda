"""Triton's kernels: in its interpreter on a CPU, held to the definition, and through its compilers without a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_python
from samples import in_format

from adderzoo.ops import pack_byte_filters

triton = pytest.importorskip("triton")

# The operators of the CPU are Triton's.
BEGIN = """
import mmap, sys, traceback, warnings
sys.path.insert(0, sys.argv[1])
import torch, adderzoo.ops
from adderzoo.ops import _library
from samples import sample, in_format, has_format_like, DTYPES, FORMATS, GEOMETRIES
from reference64 import Geometry, adder2d64, adder2d64_with_gradients, magnitude
from adderzoo.ops import adder2d, adder2d_affine, adder2d_u8, pack_byte_filters, pack_filters

_library._Triton.devices = ("cpu",)
with warnings.catch_warnings(action="ignore"):  # about kernels that are replaced
    for name, kernel in _library._ON_ANY_DEVICE.items():
        _library.LIBRARY.impl(name, _library._on_device(name, kernel), "CPU")
warnings.filterwarnings("ignore", ".*its Triton kernels run")
torch.manual_seed(0)
ops = torch.ops.adderzoo

def check(x, w, geometry, mode):
    x, w = x.requires_grad_(), w.requires_grad_()
    y = adder2d(x, w, *geometry, mode)
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


# What is checked, all of it in one process: Triton takes seconds to be imported.
CASES = {
    "every geometry, type and format matches the definition": """
assert adderzoo.ops.backend("cpu") == "Triton"
for number, name in enumerate(GEOMETRIES):
    for kind in (number, number + 2):
        x, w, geometry = sample(name, DTYPES[kind % 4], "cpu", FORMATS[kind % 3], batch=1, size=(6, 6))
        check(x, w, geometry, ("hardtanh", "sign")[kind % 2])
""",
    "more than a tile and a block of sums match the definition": """
check(torch.randn(1, 140, 3, 2), torch.randn(66, 140, 2, 1), ((2, 1), (1, 0), (1, 1), 1), "hardtanh")
x = in_format(torch.randn(1, 40, 9, 9), "channels_last")
check(x, torch.randn(36, 20, 1, 1), ((1, 2), (0, 0), (1, 1), 2), "hardtanh")
""",
    "an empty batch has an empty output": """
x, w, geometry = sample("strided", batch=0)
assert adder2d(x, w, *geometry).shape == (0, 2, 5, 11)
assert ops._adder2d_backward_input(torch.empty(0, 2, 5, 11), x, w, *geometry, "sign").shape == x.shape
""",
    "NaN reaches what sees it and no other": """
for mode in ("hardtanh", "sign"):
    x, w, g = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), torch.randn(1, 3, 2, 2)
    x[0, 1, 0, 3], w[1, 0, 0, 0], w[2, 1, 2, 2] = torch.nan, torch.nan, torch.inf
    results = adder2d(x, w), ops._adder2d_backward_input(g, x, w, [1, 1], [0, 0], [1, 1], 1, mode)
    for actual, expected in zip(results, adder2d64_with_gradients(x, w, g, Geometry(), mode, "full")):
        assert expected.isnan().any() and not expected.isnan().all()
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
""",
    "strides, paddings and dilations of 2^26 and more": """
x = torch.tensor([5.0, 7.0, 9.0]).view(1, 1, 3, 1)  # of 17 taps, 2^26 rows apart, the ninth sees the first row
w, geometry = torch.arange(17.0).view(1, 1, 17, 1), ((3, 1), (2**29, 0), (2**26, 1))
y = adder2d(x, w, *geometry)
assert y.item() == -(sum(range(17)) - 8 + 3)
assert ops._adder2d_backward_input(y.sign(), x, w, *geometry, 1, "sign").flatten().tolist() == [-1.0, 0.0, 0.0]
""",
    "an image that lies 2^31 elements behind another": """
memory = mmap.mmap(-1, 2**33 + 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # touched at both ends alone
x = torch.frombuffer(memory, dtype=torch.float32).as_strided((2, 2, 3, 3), (2**31, 9, 3, 1))
x[0], x[1] = torch.randn(2, 3, 3), torch.randn(2, 3, 3)
check(x, torch.randn(17, 2, 2, 2), ((1, 1), (0, 0), (1, 1), 1), "hardtanh")
""",
    "what follows in a fused network matches its formula": """
for name, dtype, memory_format in (("grouped", torch.float16, "channels_last"), ("strided", torch.float32, "slice")):
    x, w, geometry = sample(name, dtype, "cpu", memory_format, size=(6, 5))
    scale, shift = torch.rand(len(w)) + 0.5, torch.randn(len(w)) + 9
    z = adder2d64(x, w, *geometry) * scale.double()[:, None, None] + shift.double()[:, None, None]
    addend = torch.randn(z.shape)
    for given, relu, expected in ((None, False, z), (addend, True, (z + addend).relu())):
        y = adder2d_affine(x, pack_filters(w.float()), scale, shift, given, *geometry, relu)
        torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)
        assert y.dtype == dtype and has_format_like(y, x)
""",
    "bytes match their formula in every bit": """
for groups, filters, memory_format in ((1, 17, "channels_last"), (2, 6, "contiguous")):
    x = in_format(torch.randint(0, 256, (2, 5 * groups, 4, 5), dtype=torch.uint8), memory_format)
    w = torch.randint(0, 256, (filters, 5, 2, 3), dtype=torch.uint8)
    padded = torch.nn.functional.pad(x.double(), (1, 1, 0, 0), value=7)
    sums = -adder2d64(padded, w, (1, 2), (0, 0), (2, 1), groups).float()
    scale, shift = torch.rand(filters) * 0.02 - 0.02, torch.randn(filters) * 20 + 60
    addend = torch.randint(0, 256, sums.shape, dtype=torch.uint8)
    z = sums * scale[:, None, None]
    z = z + shift[:, None, None]
    arguments = (1, 2), (0, 1), (2, 1), groups
    y = adder2d_u8(x, pack_byte_filters(w, groups), scale, shift, None, *arguments, False, 7)
    assert y.equal(z) and has_format_like(y, x)
    y = adder2d_u8(x, pack_byte_filters(w, groups), scale, shift, addend, *arguments, True, 7, 3, 200, 0.3)
    assert y.equal(((z + addend.float() * 0.3).relu().clamp(max=197).round() + 3).to(torch.uint8))
    assert len(y.unique()) > 20
""",
    "gradients, fakes and torch.compile are the operators'": """
x, w, geometry = sample("grouped", torch.float32, "cpu", "channels_last", batch=1, size=(4, 4))
w = w[:3].detach()
torch.library.opcheck(ops.adder2d.default, (x.requires_grad_(), w.requires_grad_(), *geometry))
compiled = torch.compile(adder2d, fullgraph=True, backend="aot_eager")
assert compiled(x, w, *geometry).equal(adder2d(x, w, *geometry))
""",
    "bad input is refused in the operators' words": """
x, w, geometry = sample("grouped")
try:
    adder2d(x, w[:2], *geometry)
except RuntimeError as error:
    assert str(error).startswith("adder2d: groups must divide the channels of input and the filters, got groups 3")
else:
    raise AssertionError
""",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    script = f"""
for case, source in {CASES!r}.items():
    try:
        exec(source)
        print(case, "- passed", flush=True)
    except Exception:
        print(case, "- failed", traceback.format_exc(), flush=True)
"""
    folder = tmp_path_factory.mktemp("triton")
    return run_python(BEGIN + script, Path(__file__).parent, cwd=folder, TRITON_INTERPRET="1")


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels(printed: str, case: str) -> None:
    assert f"{case} - passed" in printed, printed


# ------------------------------------------------------------------------------------------------------- real compilers

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.uint8: "u8", torch.float64: "fp64"}


class Compiler:
    """In the place of the kernel: compiles it for what it is called with, as Triton does before it launches it."""

    def __init__(self, kernel: Any, target: tuple[str, int | str, int]) -> None:
        self.kernel, self.target, self.compiled = kernel, target, []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.compile

    def compile(self, *arguments: Any, enable_fp_fusion: bool, **constants: Any) -> None:
        signature = dict.fromkeys(constants, "constexpr")
        for name, value in zip(self.kernel.arg_names, arguments, strict=False):
            if isinstance(value, torch.Tensor):
                signature[name] = f"*{TYPES[value.dtype]}"
            elif value is None or (name == "source_stride_c" and value == 1):
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"
        source = triton.compiler.ASTSource(self.kernel, {n: signature[n] for n in self.kernel.arg_names}, constants)
        target = triton.backends.compiler.GPUTarget(*self.target)
        self.compiled.append(triton.compile(source, target=target, options={"enable_fp_fusion": enable_fp_fusion}).asm)


@pytest.mark.parametrize("target", [("cuda", 90, 32), ("hip", "gfx942", 64)], ids=["NVIDIA", "AMD"])
def test_kernels_compile_for_gpus(
    target: tuple[str, int | str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from adderzoo.ops import _triton

    compiler = Compiler(_triton._walk, target)
    monkeypatch.setattr(_triton, "_walk", compiler)
    x, w = in_format(torch.zeros(1, 64, 8, 8), "channels_last"), torch.zeros(64, 64, 1, 1)
    geometry, epilogue = ([1, 1], [0, 0], [1, 1]), (torch.zeros(64), torch.zeros(64))
    _triton.adder2d(x, w, *geometry)
    _triton.backward_input(torch.zeros(1, 64, 8, 8), x.bfloat16(), w.bfloat16(), *geometry, 1, "hardtanh")
    _triton.u8(x.byte(), pack_byte_filters(w.byte()), *epilogue, x.byte(), *geometry, 1, True, 0, 3)
    binary = {"cuda": "cubin", "hip": "hsaco"}[target[0]]
    assert len(compiler.compiled) == 3
    assert all(asm[binary] for asm in compiler.compiled)
