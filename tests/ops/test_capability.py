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


# Rounding errors of one sign: constants, ramps and alternating signs, in sums of 4608 terms. Prints the largest error
# of each kind in millionths of sum(|x| + |w|).
STRUCTURED = """
import torch
from adderzoo.ops import adder2d, adder2d_affine, backend, pack_filters

def numbers(kind, count, scale):
    if kind == "ramp":
        return torch.linspace(-scale, scale, count)
    if kind == "alternating":
        return scale * (-1.0) ** torch.arange(count)
    return torch.full((count,), scale) if kind == "constant" else scale * torch.randn(count)

kinds = ("constant", "ramp", "alternating", "random")
torch.manual_seed(0)
for kind in kinds:
    worst = 0.0
    for channels, kernel in ((4608, 1), (512, 3)):
        # The second constants are among those that round worst.
        for scales in (torch.rand(8) + 1, torch.tensor([1.5815811, 1.1, 1.3]), torch.rand(4) / 1000, torch.zeros(1)):
            for scale in scales:
                x = numbers(kind, 4608, scale).view(1, kernel, kernel, channels).permute(0, 3, 1, 2)
                others = (0.0, -scale, 1.7 * scale, 0.99 * scale)
                w = torch.stack([numbers(kind, 4608, other) for kind in kinds for other in others])
                w = w.view(-1, kernel, kernel, channels).permute(0, 3, 1, 2).contiguous()
                distance = (x.double() - w.double()).abs().sum((1, 2, 3))
                bound = (x.double().abs() + w.double().abs()).sum((1, 2, 3)) + 1e-30
                ones, zeros = torch.ones(len(w)), torch.zeros(len(w))
                for y in (adder2d(x, w), adder2d_affine(x, pack_filters(w), ones, zeros)):
                    worst = max(worst, ((y.flatten() + distance).abs() / bound).max().item() * 1e6)
    print(kind, worst)
print("backend:", backend())
"""


CAPABILITIES = ("default", "avx2", "avx512vl", "avx512")


def skip_without(capability: str, best: str) -> None:
    """Skip where the processor lacks the instructions; the two forms of AVX-512 need the same."""
    order = ("default", "avx2", "avx512")
    if order.index(capability.removesuffix("vl")) > order.index(best.removesuffix("vl")):
        pytest.skip(f"this processor has no {capability}")


@pytest.fixture(scope="module", autouse=True)
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The instruction set that the library chooses where nobody asks for another."""
    if _library.BACKEND == "PyTorch reference":
        pytest.skip("the compiled library could not be loaded or built here")
    script = "import torch, adderzoo.ops; print(torch.ops.adderzoo._cpu_capability())"
    return run_python(script, cwd=tmp_path_factory.mktemp("best"), ADDERZOO_CPU_CAPABILITY="").strip()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_instruction_set_matches_the_definition(capability: str, best: str, tmp_path: Path) -> None:
    skip_without(capability, best)
    printed = run_python(COMPARE, Path(__file__).parent, cwd=tmp_path, ADDERZOO_CPU_CAPABILITY=capability)
    assert f"{_library.BACKEND}, {capability}" in printed


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_errors_that_add_up_stay_within_the_documented_bound(capability: str, best: str, tmp_path: Path) -> None:
    skip_without(capability, best)
    printed = run_python(STRUCTURED, cwd=tmp_path, ADDERZOO_CPU_CAPABILITY=capability, OMP_NUM_THREADS="1")
    assert f"{_library.BACKEND}, {capability}" in printed
    errors = {kind: float(error) for kind, error in map(str.split, printed.splitlines()[:-1])}
    assert set(errors) == {"constant", "ramp", "alternating", "random"}
    assert all(error <= 5 for error in errors.values()), errors


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
        "ADDERZOO_CPU_CAPABILITY is 'sse9'; it takes 'default', 'avx2', 'avx512vl' or 'avx512', as far as this "
        "processor has them"
    )
    assert printed.count(words) == 2
