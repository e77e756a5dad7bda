"""Every instruction set of the CPU kernels, each in a process of its own: it is chosen once."""

from pathlib import Path

import pytest
from processes import run_python

from adderzoo.ops import _library

# Compares with the definition: channels that fill the vectors of every instruction set, and overhang them.
COMPARE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from adderzoo.ops import adder2d, backend
from reference64 import Geometry, adder2d64_with_gradients, magnitude
from samples import GEOMETRIES, sample

def compare(x, w, geometry, epsilon):
    for modes in (("hardtanh", "full"), ("sign", "sign")):
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        y = adder2d(x, w, *geometry, *modes)
        g = torch.randn_like(y)
        results = (y.detach(), *torch.autograd.grad(y, (x, w), g))
        for actual, expected, scale in zip(
            results, adder2d64_with_gradients(x, w, g, geometry, *modes), magnitude(x, w, g, geometry), strict=True
        ):
            assert ((actual - expected).abs() <= epsilon * scale).all()

torch.manual_seed(0)
for dtype, epsilon in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
    for name in GEOMETRIES:
        x, w, geometry = sample(name, dtype)
        compare(x, w, Geometry(*geometry), epsilon)
    for channels in (1, 15, 16, 33, 64, 130):
        geometry = Geometry(padding=(1, 1))
        for inputs, filters in ((20, channels), (channels, 9)):
            x, w = torch.randn(1, inputs, 5, 5, dtype=dtype), torch.randn(filters, inputs, 3, 3, dtype=dtype)
            compare(x, w, geometry, epsilon)
print("backend:", backend())
"""


CAPABILITIES = ("default", "avx2", "avx512")


@pytest.fixture(scope="module", autouse=True)
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The instruction set that the library chooses where nobody asks for another."""
    if _library.BACKEND == "PyTorch reference":
        pytest.skip("the compiled library could not be loaded or built here")
    script = "import torch, adderzoo.ops; print(torch.ops.adderzoo._cpu_capability())"
    return run_python(script, cwd=tmp_path_factory.mktemp("best"), ADDERZOO_CPU_CAPABILITY="").strip()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_instruction_set_matches_the_definition(capability: str, best: str, tmp_path: Path) -> None:
    if CAPABILITIES.index(capability) > CAPABILITIES.index(best):
        pytest.skip(f"this processor has no {capability}")
    printed = run_python(COMPARE, Path(__file__).parent, cwd=tmp_path, ADDERZOO_CPU_CAPABILITY=capability)
    assert f"{_library.BACKEND}, {capability}" in printed


def test_unknown_instruction_set_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    script = """
import torch, adderzoo.ops
for call in (adderzoo.ops.backend, lambda: adderzoo.ops.adder2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    printed = run_python(script, cwd=tmp_path, ADDERZOO_CPU_CAPABILITY="sse9")
    words = (
        "ADDERZOO_CPU_CAPABILITY is 'sse9'; it takes 'default', 'avx2' or 'avx512', as far as this processor has them"
    )
    assert printed.count(words) == 2
