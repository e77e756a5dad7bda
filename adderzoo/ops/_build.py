"""How the compiled library is built: by setup.py, which cannot import the package yet, or on first use."""

from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent.parent / "csrc"  # there in a checkout, not in an installed package

# TORCH_TARGET_VERSION is PyTorch 2.11, whose stable ABI all later releases keep: one binary serves them all.
CXX_FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi", "-DTORCH_TARGET_VERSION=0x020b000000000000"]


def source_files() -> list[Path]:
    """What is compiled into `_C`: schemas and CPU kernels."""
    return sorted(SOURCES.glob("*.cpp")) + sorted(SOURCES.glob("cpu/*.cpp"))


def build_inputs() -> list[Path]:
    """Everything that the compiler reads of this project, headers included."""
    return sorted(path for path in SOURCES.rglob("*") if path.suffix in {".cpp", ".h"})
