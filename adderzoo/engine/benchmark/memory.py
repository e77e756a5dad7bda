"""Peak memory on the CPU.

What a process holds is what Linux says is resident. PyTorch's profiler sees tensors only, not what oneDNN and the
operator's own kernels take for themselves beside them.
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3)


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
        libc.mallopt(_MMAP_THRESHOLD, 1 << 16)
        trim = libc.malloc_trim
    except (AttributeError, OSError):
        return None
    gc.collect()
    trim(0)
    try:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        run()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {key} on {sys.platform}")
