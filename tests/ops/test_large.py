"""Tensors of more than 2^31 elements, where an index of 32 bits would wrap around."""

import mmap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adderzoo.ops import adder2d

GIB = 2**30


def require_memory(device: torch.device, gibibytes: float) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        meminfo = Path("/proc/meminfo")
        if not meminfo.exists():
            pytest.skip("the memory of this machine is not known")
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    if free < gibibytes * GIB:
        pytest.skip(f"needs {gibibytes} GiB of memory, {free / GIB:.1f} are free")


def untouched_zeros(*shape: int, device: torch.device) -> Tensor:
    """float32 zeros which, on a CPU, take up memory only where they are written."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device)
    elements = torch.Size(shape).numel()
    memory = mmap.mmap(-1, 4 * elements, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # fewer pages to be found where they are only read
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)


def test_forward_reads_the_far_end_of_an_input(device: torch.device) -> None:
    require_memory(device, 2 if device.type == "cpu" else 10)
    size = 46_400
    x = untouched_zeros(1, 1, size, size, device=device)
    assert x.numel() > 2**31
    x[..., 0, 0], x[..., 0, -1], x[..., -1, 0], x[..., -1, -1] = 1.0, 2.0, 3.0, 4.0
    w = torch.full((1, 1, 1, 1), 10.0, device=device)
    assert adder2d(x, w, stride=size - 1).flatten().tolist() == [-9.0, -8.0, -7.0, -6.0]


def test_forward_reads_every_image_of_a_batch(device: torch.device) -> None:
    """A batch of 2^15 + 1 images of 2^16 pixels."""
    require_memory(device, 2 if device.type == "cpu" else 10)
    x = untouched_zeros(2**15 + 1, 1, 256, 256, device=device)
    x[-1, 0, 255, 255] = 4.0
    x[-2, 0, 0, 0] = 3.0
    y = adder2d(x, torch.full((1, 1, 1, 1), 10.0, device=device), stride=255)
    assert y[-2:].flatten().tolist() == [-7.0, -10.0, -10.0, -10.0, -10.0, -10.0, -10.0, -6.0]
    assert (y[:-2] == -10).all()


def test_input_gradient_writes_the_far_end_of_an_input(device: torch.device) -> None:
    require_memory(device, 14 if device.type == "cpu" else 22)  # takes 9 GiB of a CPU's, and should leave others some
    channels, size = 64, 5_800
    x = untouched_zeros(1, size, size, channels, device=device).permute(0, 3, 1, 2)  # channels_last
    assert x.numel() > 2**31
    x[0, 63, -1, -1] = 0.75
    w = torch.full((1, channels, 1, 1), 0.5, device=device)
    grad = torch.ones(1, 1, size, size, device=device)
    grad[..., -1, -1] = 8.0
    grad_input = torch.ops.adderzoo._adder2d_backward_input(grad, x, w, [1, 1], [0, 0], [1, 1], 1, "hardtanh")
    assert grad_input.stride() == x.stride()
    assert grad_input[0, :, -1, -1].tolist() == [4.0] * 63 + [-2.0]
    assert (grad_input[0, :, -2:, :-1] == 0.5).all()
    assert (grad_input[0, :, :2] == 0.5).all()
