"""Peak memory on the CPU.

What a process holds is what Linux says is resident. PyTorch's profiler sees tensors only, not what oneDNN and the
operator's own kernels take for themselves beside them.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3)
_BLOCK = 1 << 16
_IS_MMAPPED = 2  # a bit of the word in front of a block of glibc's malloc


def peak_rise(run: Callable[[], object]) -> int | None:
    """Bytes by which the resident memory of this process rises above its present level while `run` runs.

    For the rest of the process, glibc's malloc returns every freed block of 64 KiB or more to the system at once, so
    that what is counted is in use and not kept for later. That is slow: measure no times afterwards.

    Returns:
        The rise, to a precision of a few hundred kilobytes, or None where it cannot be measured: elsewhere than on
        Linux with glibc.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_MMAP_THRESHOLD, _BLOCK)
        gc.collect()
        libc.malloc_trim(0)
        blocks = _take_free_blocks(libc)
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    except (AttributeError, OSError):
        return None
    try:
        run()
        return max(0, _resident("VmHWM") - before)
    finally:
        for block in blocks:
            libc.free(block)


def _take_free_blocks(libc: ctypes.CDLL) -> list[int]:
    """Occupy what is free in the heap: a block that malloc finds there does not go back when it is freed."""
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    blocks: list[int] = []
    while len(blocks) < 1 << 16:
        blocks.append(libc.malloc(_BLOCK))
        word = ctypes.c_size_t.from_address(blocks[-1] - ctypes.sizeof(ctypes.c_size_t))
        if word.value & _IS_MMAPPED:
            break
    return blocks


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {key}")
