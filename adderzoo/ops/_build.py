"""How the compiled libraries are built: by setup.py, which cannot import the package yet, or on first use."""

import hashlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

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


class Library(NamedTuple):
    """A compiled library, or what adds kernels for another device to one.

    Attributes:
        name: Of its file.
        contents: In a message.
        patterns: Of its sources.
        cuda: Whether nvcc compiles it.
    """

    name: str
    contents: str
    patterns: tuple[str, ...]
    cuda: bool = False

    def sources(self) -> list[Path]:
        """What is compiled; none where the sources are not beside the package."""
        return _found(*self.patterns)

    def digest(self) -> str:
        """SHA-256 of what it is made from, sources and flags: not of where they lie, nor of when they were written."""
        flags = CXX_FLAGS + (NVCC_FLAGS if self.cuda else [])
        digest = hashlib.sha256(" ".join([*flags, platform.machine()]).encode())
        own = self in (BENCHMARK, CUDA_BENCHMARK)
        for path in build_inputs():
            if own or path.parent.name != "benchmark":  # which no operator is made from
                digest.update(path.read_bytes())
        return digest.hexdigest()


# Schemas and CPU kernels, and the kernels for NVIDIA GPUs.
OPERATORS = Library("_C", "operators", ("*.cpp", "cpu/*.cpp"))
CUDA_OPERATORS = Library("_C_cuda", "kernels for GPUs", ("*_checks.cpp", "cuda/*.cu"), cuda=True)

# Of `adderzoo benchmark`: never compiled at installation.
BENCHMARK = Library("_C_benchmark", "benchmark's loops", ("benchmark/*.cpp", "cpu/capability.cpp"))
CUDA_BENCHMARK = Library("_C_benchmark_cuda", "benchmark's loops for GPUs", ("benchmark/*.cu",), cuda=True)


def build_inputs() -> list[Path]:
    """Everything that the compilers read of this project, headers included."""
    return sorted(path for path in _found("**/*") if path.suffix in {".cpp", ".cu", ".h"})


def mark_flags(digest: str) -> list[str]:
    """What makes the linker write this digest into a library, as its build id."""
    return [f"-Wl,--build-id=0x{digest}"]


def is_marked(library: Path, digest: str) -> bool:
    """Whether a library was made from this."""
    return bytes.fromhex(digest) in library.read_bytes()


def cuda_is_wanted() -> tuple[bool, str]:
    """Whether to compile for NVIDIA GPUs, which takes minutes, and why or why not.

    Where a GPU is visible; `ADDERZOO_CUDA` in the environment asks for it anywhere (1) or nowhere (0).

    Raises:
        ValueError: if `ADDERZOO_CUDA` is something else.
    """
    asked = os.environ.get("ADDERZOO_CUDA", "")
    if asked not in {"", "0", "1"}:
        raise ValueError(f"ADDERZOO_CUDA must be 0 or 1, or not set, got {asked!r}")
    if asked:
        return asked == "1", f"ADDERZOO_CUDA is {asked}"
    if torch.version.cuda is None:
        return False, "this PyTorch is not built for CUDA"
    if torch.cuda.is_available():
        return True, "a GPU is visible"
    return False, "no GPU is visible (ADDERZOO_CUDA=1 compiles them all the same)"


def cuda_is_lacking(cuda_home: str | None) -> str | None:
    """What it would take to compile for NVIDIA GPUs, if anything is not there."""
    if torch.version.cuda is None:
        return "this PyTorch is not built for CUDA"
    if cuda_home is None:
        return "there is no CUDA toolkit: no nvcc is found, and CUDA_HOME is not set"
    if not Path(cuda_home, "bin", "nvcc").is_file():
        return f"there is no CUDA toolkit: no nvcc in {cuda_home}/bin"
    version = cuda_version(cuda_home)
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:  # other minor versions go together
        return f"the CUDA toolkit in {cuda_home} is {version}, PyTorch is built for {torch.version.cuda}"
    return None


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
