"""The loops of the CPU kernels held to the definition by a program without PyTorch: here, and under an emulator."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import CHECKOUT

CPU = CHECKOUT / "csrc" / "cpu"
SOURCES = [
    Path(__file__).with_name("loops_main.cpp"),
    CPU / "adder2d_plan.cpp",
    *sorted(CPU.glob("adder2d_loops*.cpp")),
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
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    return build(compiler, tmp_path_factory.mktemp("loops") / "loops")


# The numbers leave combinations out, for the sake of time; scripts/check_*.sh take more of them.


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_loops_match_the_definition(program: Path, capability: str) -> None:
    assert f"capability {capability}: " in run(program, "3", capability=capability)


def test_loops_match_the_definition_on_aarch64(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("g++-aarch64-linux-gnu or qemu-user is not installed; scripts/check_aarch64.sh installs them")
    assert "capability default: " in run(emulator, build(compiler, tmp_path / "loops", "-static"), "61")
