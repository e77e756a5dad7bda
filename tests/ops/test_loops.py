"""The loops of the CPU kernels held to the definition by a program without PyTorch: here, and under an emulator."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import CHECKOUT

CPU, BENCHMARK = CHECKOUT / "csrc" / "cpu", CHECKOUT / "csrc" / "benchmark"
SOURCES = [
    Path(__file__).with_name("loops_main.cpp"),
    CPU / "capability.cpp",
    *sorted(CPU.glob("adder2d_plan*.cpp")),
    *sorted(CPU.glob("adder2d_loops*.cpp")),
    *sorted(BENCHMARK.glob("ceilings*.cpp")),
]


def build(compiler: str, to: Path, *flags: str) -> Path:
    command = [compiler, "-std=c++20", "-O2", "-Wno-psabi", *flags, f"-I{CPU}", *map(str, SOURCES), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return to


def run(*command: str | Path, capability: str = "") -> str:
    environment = os.environ | {"ADDERZOO_CPU_CAPABILITY": capability}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=500)
    if "as far as this processor has them" in done.stdout:
        pytest.skip(f"this processor has no {capability}")
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("there is no C++ compiler")
    return found


@pytest.fixture(scope="module")
def program(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(compiler, tmp_path_factory.mktemp("loops") / "loops")


CAPABILITIES = ["default", "avx2", "avx512vl", "avx512"]

# The numbers leave combinations out, for the sake of time; scripts/check_*.sh take more of them.


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_loops_match_the_definition_in_listed_and_in_random_geometries(program: Path, capability: str) -> None:
    printed = run(program, "5", "300", capability=capability)
    assert "300 random geometries, seed " in printed
    assert f"capability {capability}: " in printed


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("stem", "tables"),
    [(CPU / "adder2d_loops", ["kFloat", "kDouble", "kBytes"]), (BENCHMARK / "ceilings", ["kCeiling"])],
)
def test_a_build_without_optimization_shares_no_code_of_an_instruction_set(
    compiler: str, stem: Path, tables: list[str], capability: str, tmp_path: Path
) -> None:
    """Of an inline function or a template that several files compile, the linker takes any: for all processors."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("there is no nm")
    to = tmp_path / "loops.o"
    source = f"{stem}_{capability}.cpp"
    done = subprocess.run(
        [compiler, "-std=c++20", "-O0", "-Wno-psabi", "-c", source, "-o", str(to)],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    symbols = subprocess.run([nm, "-C", "--defined-only", "--extern-only", str(to)], capture_output=True, text=True)
    names = {line.split(maxsplit=2)[2] for line in symbols.stdout.splitlines()}
    namespace = f"adderzoo::cpu::{capability}_loops"
    expected = {f"{namespace}::{table}" for table in tables}
    if platform.machine() != "x86_64" and capability != "default":
        expected = set()
    assert names == expected, "only the tables of the loops are for other files"


def test_loops_match_the_definition_on_aarch64(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("g++-aarch64-linux-gnu or qemu-user is not installed; scripts/check_aarch64.sh installs them")
    assert "capability default: " in run(emulator, build(compiler, tmp_path / "loops", "-static"), "61", "20")
