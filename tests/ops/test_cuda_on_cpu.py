"""The kernels for GPUs, compiled for the CPU by means of cuda_on_cpu.h, in the tests of the operators."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import CHECKOUT, run_python

import adderzoo
from adderzoo.ops import _build

TESTS = ["test_adder2d.py", "test_adder2d_affine.py", "test_adder2d_u8.py"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    path = tmp_path_factory.mktemp("cuda_on_cpu") / "kernels.so"
    root = Path(torch.__file__).parent
    sources = [*_build.CUDA_OPERATORS.sources(), *_build.CUDA_BENCHMARK.sources()]
    command = [compiler, "-shared", "-fPIC", "-std=c++20", "-O2", "-Wno-unknown-pragmas", *_build.CXX_FLAGS[1:]]
    command += ["-fvisibility=default", "-Wno-attributes"]  # kernels with names
    command += [f"-I{root / 'include'}", f"-I{CHECKOUT / 'tests' / 'ops'}", "-x", "c++"]
    command += [*map(str, sources), "-o", str(path), f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return path


# Where a barrier is missing, the result depends on which thread of a block comes first: every kernel runs in both
# orders, and in one of them in all tests but those that are too much for this, which a GPU takes.
ORDERS = {"last thread first": "not million", "first thread first": "every_width"}


@pytest.mark.timeout(1800)  # a thread of a GPU is a fiber here: five minutes, on slow processors a multiple
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tests", TESTS)
def test_the_kernels_for_gpus_pass_the_operators_tests(library: Path, tests: str, order: str) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ADDERZOO_CASES": "50",
        "PYTHONPATH": str(Path(adderzoo.__file__).parent.parent),
        "ADDERZOO_REVERSED": str(int(order == "last thread first")),
        "ADDERZOO_KERNELS": str(library.parent / f"{tests}, {order}"),
    }
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--library", str(library), f"tests/ops/{tests}"]
    done = subprocess.run(
        [sys.executable, *command, "-k", ORDERS[order]],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


CEILINGS = """
import sys
import torch
schema = torch.library.Library("adderzoo_benchmark", "DEF")
schema.define("cuda_ceiling(Tensor like, str form, int steps) -> int")
torch.ops.load_library(sys.argv[1])
ceiling = torch.ops.adderzoo_benchmark.cuda_ceiling
for form in ("multiply_add", "distance", "slope", "byte_distance"):
    counts = [ceiling(torch.empty(0), form, steps) for steps in (16, 64)]
    print(form, *counts)
try:
    ceiling(torch.empty(0), "cosine", 1)
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""


@pytest.mark.timeout(1800)  # where it compiles the library
def test_the_loops_that_bound_the_kernels_count_their_elements(library: Path, tmp_path: Path) -> None:
    script = tmp_path / "ceilings.py"
    script.write_text(CEILINGS)
    environment = os.environ | {"PYTHONPATH": str(Path(adderzoo.__file__).parent.parent), "PYTHONWARNINGS": "ignore"}
    environment["ADDERZOO_KERNELS"] = str(library.parent / "test_ceilings")
    command = [sys.executable, str(script), str(library)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *lines, error = done.stdout.splitlines()
    counts = {form: [int(count) for count in numbers] for form, *numbers in map(str.split, lines)}
    floats = counts.pop("distance")
    assert floats[1] == 4 * floats[0] > 0  # in proportion to the steps
    assert counts.pop("byte_distance") == [4 * count for count in floats]  # four in a word
    assert set(map(tuple, counts.values())) == {tuple(floats)}
    assert error.endswith("form must be 'multiply_add', 'distance', 'slope' or 'byte_distance', got 'cosine'")


TILE = """
import sys, warnings
import torch
from adderzoo.ops import adder2d, reference
with warnings.catch_warnings(action="ignore"):
    torch.ops.load_library(sys.argv[1])
x, w = torch.randn(1, 8, 6, 6), torch.randn(20, 8, 3, 3)
torch.testing.assert_close(adder2d(x, w), reference.adder2d(x, w))
"""


@pytest.mark.timeout(1800)  # where it compiles the library
@pytest.mark.parametrize(("asked", "tile"), [("0", (128, 128, 8, 8, 8)), ("9", (128, 16, 4, 4, 8))])
def test_a_tile_that_is_asked_for_is_taken(
    library: Path, tmp_path: Path, asked: str, tile: tuple[int, int, int, int, int]
) -> None:
    """As scripts/gpu_check.sh does to time each; the last one where there are fewer."""
    kernels = tmp_path / "kernels"
    run_python(TILE, library, cwd=tmp_path, ADDERZOO_TILE=asked, ADDERZOO_KERNELS=kernels)
    (name,) = [line for line in kernels.read_text().splitlines() if "distances" in line]
    assert "TileI" + "".join(f"Li{number}E" for number in tile) in name


@pytest.mark.timeout(900)
def test_offsets_beyond_32_bits_and_the_last_points_are_right(tmp_path: Path) -> None:
    """A program of its own, without PyTorch: no tensors, but memory that is only reserved."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    source, program = Path(__file__).parent / "cuda_large.cpp", tmp_path / "cuda_large"
    command = [compiler, "-std=c++20", "-O1", "-Wno-unknown-pragmas", "-Wno-attributes", f"-I{source.parent}"]
    done = subprocess.run([*command, source, "-o", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    if done.stdout == "memory cannot be reserved\n":
        pytest.skip("this machine does not reserve memory that it does not have")
    assert done.stdout == "all offsets are right\n"


def test_every_kernel_has_run(library: Path) -> None:
    """In the tests above."""
    lists = list(library.parent.glob("test_*"))
    if len(lists) < 2 * len(TESTS) + 1:
        pytest.skip("the tests above have not all run")
    text = "".join(path.read_text() for path in _build.SOURCES.rglob("cuda/*.h"))
    names = re.findall(r"__global__ void (?:__launch_bounds__\(.*?\)\s+)?(\w+)\(", text)
    assert "distances" in names
    symbols = subprocess.run(["nm", "--defined-only", str(library)], capture_output=True, text=True, check=True).stdout
    mangled = "|".join(f"{len(name)}{name}" for name in names)
    compiled = set(re.findall(rf"\b_ZN8adderzoo4cuda(?:{mangled})[IE]\w*", symbols))
    assert len(compiled) > 50
    assert compiled <= {line for path in lists for line in path.read_text().splitlines()}
