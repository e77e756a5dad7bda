"""How the compiled libraries are built: by setup.py, which cannot import the package yet, or on first use."""

import hashlib
import os
import platform
import re
import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent.parent / "csrc"  # there in a checkout, not in an installed package

# PyTorch 2.11, whose stable ABI all later releases keep: one binary serves them all.
_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
CXX_FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi", _TARGET]

# Machine code for Ampere and Hopper, and for what comes later code that the driver compiles.
NVCC_FLAGS = [
    *("-O3", "-std=c++20", "-Xcompiler=-fvisibility=hidden", _TARGET),
    *("-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"),
    "-gencode=arch=compute_90,code=compute_90",
]


def _found(*patterns: str) -> list[Path]:
    """Of our own sources: beside an installed package there may be a `csrc` of another one."""
    if not (SOURCES / "adder2d.cpp").is_file():
        return []
    return [path for pattern in patterns for path in sorted(SOURCES.glob(pattern))]


def source_files() -> list[Path]:
    """What is compiled into `_C`: schemas and CPU kernels."""
    return _found("*.cpp", "cpu/*.cpp")


def cuda_source_files() -> list[Path]:
    """What is compiled into `_C_cuda`: the kernels for NVIDIA GPUs alone."""
    return _found("*_checks.cpp", "cuda/*.cu")


def build_inputs() -> list[Path]:
    """Everything that the compilers read of this project, headers included."""
    return sorted(path for path in _found("**/*") if path.suffix in {".cpp", ".cu", ".h"})


def build_digest(cuda: bool = False) -> str:
    """SHA-256 of what a library is made from, sources and flags: not of where they lie, nor of when they were written.

    Args:
        cuda: Of `_C_cuda`; else of `_C`.
    """
    flags = CXX_FLAGS + (NVCC_FLAGS if cuda else [])
    digest = hashlib.sha256(" ".join([*flags, platform.machine()]).encode())
    for path in build_inputs():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def mark_flags(digest: str) -> list[str]:
    """What makes the linker write this digest into a library, as its build id."""
    return [f"-Wl,--build-id=0x{digest}"]


def is_marked(library: Path, digest: str) -> bool:
    """Whether a library was made from this."""
    return bytes.fromhex(digest) in library.read_bytes()


def _ask_nvcc(cuda_home: str, *question: str) -> str:
    command = [os.path.join(cuda_home, "bin", "nvcc"), *question]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def cuda_version(cuda_home: str) -> str:
    """Of a toolkit: "13.0", or "unknown"."""
    release = re.search(r"\brelease (\d+\.\d+)", _ask_nvcc(cuda_home, "--version"))
    return release[1] if release else "unknown"


def cuda_library_folders(cuda_home: str) -> list[str]:
    """Where a toolkit keeps its libraries. PyTorch looks beside nvcc, which may be a wrapper far from them."""
    tops = re.findall(r"^#\$ TOP=(.+)$", _ask_nvcc(cuda_home, "--dryrun", "-E", "-x", "cu", os.devnull), re.MULTILINE)
    folders = (os.path.join(top, name) for top in tops for name in ("lib64", "lib"))
    return [os.path.realpath(folder) for folder in folders if os.path.isdir(folder)]
