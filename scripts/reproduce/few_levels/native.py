"""few_levels.cpp, compiled when this is imported."""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("few_levels.cpp")


def _compile() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "few_levels.so")
        subprocess.run(["g++", "-O3", "-march=native", "-shared", "-fPIC", "-o", library, _SOURCE], check=True)
        return ctypes.CDLL(str(library))


_LIBRARY = _compile()
_LIBRARY.vector_ceiling.restype = _LIBRARY.tile_ceiling.restype = ctypes.c_int64


def vector_ceiling(m: int, rounds: int) -> int:
    """Run the loop of m levels on vpdpbusd, or of m = 0, vpsadbw; how many elements that were."""
    return int(_LIBRARY.vector_ceiling(ctypes.c_int64(m), ctypes.c_int64(rounds)))


def tile_ceiling(rounds: int) -> int:
    """The same of AMX, with two levels."""
    return int(_LIBRARY.tile_ceiling(ctypes.c_int64(rounds)))


def make_activations(x: Tensor, levels: Tensor) -> Tensor:
    """x and relu(x - v) for all levels but the ends, in one pass.

    Args:
        x: (N, C, H, W) uint8, channels_last, C a multiple of 16.
        levels: (m,) uint8, ascending.

    Returns:
        (N, (m - 1) C, H, W) uint8, channels_last.
    """
    n, c, h, w = x.shape
    made = torch.empty((n, h, w, (len(levels) - 1) * c), dtype=torch.uint8)
    inner = bytes(levels[1:-1].tolist())
    _LIBRARY.make_activations(
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_int64(n * h * w),
        ctypes.c_int64(c),
        inner,
        ctypes.c_int64(len(inner)),
        ctypes.c_void_p(made.data_ptr()),
    )
    return made.permute(0, 3, 1, 2)
