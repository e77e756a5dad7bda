"""What differs between a CPU and a GPU: how runs are timed, how memory is counted, what describes it."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from adderzoo import ops

from .memory import peak_rise as peak_rise_of_process
from .timing import Local, Queued

# Multiprocessors with 64 float32 lanes; all later ones have 128.
_NARROW = {(7, 0), (7, 2), (7, 5), (8, 0)}


# After a parallel loop, OpenMP's threads wait busily for the next one, for some milliseconds.
_OPENMP_SPINS = 0.01


def is_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def runner(run: Callable[[], object], device: str) -> Local:
    """What times a function whose work a device does."""
    return Queued(run, partial(torch.cuda.synchronize, device)) if is_gpu(device) else Local(run)


def leave(device: str) -> None:
    """Leave a device to the next process: no thread is busy, and no memory is kept that is not in use."""
    if is_gpu(device):
        torch.cuda.empty_cache()
    else:
        time.sleep(_OPENMP_SPINS)


def peak_rise(run: Callable[[], object], device: str) -> int | None:
    """Bytes by which the memory in use rises above its present level while `run` runs.

    On a GPU that is what PyTorch has handed out of its memory, workspaces of cuDNN included; on a CPU, what the
    process holds (:func:`.memory.peak_rise`).
    """
    if not is_gpu(device):
        return peak_rise_of_process(run)
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@dataclass(frozen=True)
class Gpu:
    """A GPU, and what of PyTorch depends on it.

    Attributes:
        name: Its name.
        capability: Compute capability, such as "9.0".
        multiprocessors: How many it has.
        clock: Hertz at most; the clock it runs at is in the measured ceilings.
        memory: Bytes.
        cuda: Version that PyTorch is built for.
        cudnn: Version of the library that computes PyTorch's convolutions.
        operator: How its kernels of `adder2d` were found.
        float32_floor: Float32 elements a second at that clock, of two instructions each.
    """

    name: str
    capability: str
    multiprocessors: int
    clock: float
    memory: int
    cuda: str
    cudnn: str
    operator: str
    float32_floor: float

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.multiprocessors} multiprocessors at up to {self.clock / 1e6:.0f} MHz "
            f"({self.float32_floor / 1e9:.0f} G float32 elements/s of two instructions), CUDA {self.cuda}, "
            f"cuDNN {self.cudnn}; adder operator: {self.operator}"
        )


def float32_floor(capability: tuple[int, int], multiprocessors: int, clock: float) -> float:
    """Elements a second of two float32 instructions each, if every lane begins one with every tick of the clock."""
    lanes = 64 if capability in _NARROW else 128
    return lanes * multiprocessors * clock / 2


def describe_gpu(device: str) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    capability, clock = (properties.major, properties.minor), 1e3 * properties.clock_rate
    return Gpu(
        name=properties.name,
        capability="{}.{}".format(*capability),
        multiprocessors=properties.multi_processor_count,
        clock=clock,
        memory=properties.total_memory,
        cuda=torch.version.cuda or "none",
        cudnn=str(torch.backends.cudnn.version()),
        operator=ops.backend("cuda"),
        float32_floor=float32_floor(capability, properties.multi_processor_count, clock),
    )
