"""What is installed; a test skips what is not, and says so."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "reproduce" / "microcontroller"))

from machines import MACHINES, build, compiled_plugin, run

__all__ = ["MACHINES", "build", "compiled_plugin", "need", "run"]

# Debian's names of programs' packages.
_PACKAGES = {
    "arm-none-eabi-gcc": "gcc-arm-none-eabi",
    "qemu-system-arm": "qemu-system-arm",
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf",
    "qemu-system-riscv32": "qemu-system-misc",
}


def need(*programs: str) -> None:
    """Skips the test where one of these is not installed."""
    missing = [_PACKAGES.get(program, program) for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian's packages; .ci/run installs them)")
