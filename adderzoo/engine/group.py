"""What the processes of a group (torchrun's) do together; a single process is a group of one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from adderzoo.files.names import did_you_mean


@dataclass(frozen=True)
class Group:
    """This process among those that torchrun has started; by itself, the first of one."""

    device: torch.device
    rank: int
    processes: int


@contextmanager
def open_group(device: str) -> Iterator[Group]:
    """The process group, for as long as the context lasts; one that is there already stays.

    Raises:
        ValueError: naming the device, if it cannot be used.
        ConnectionError: if another process of the group has failed.
    """
    there = in_group()
    processes = dist.get_world_size() if there else int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield Group(open_device(device), 0, 1)
        return
    opened = open_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if not there:
        dist.init_process_group("nccl" if opened.type == "cuda" else "gloo")
    try:
        yield Group(opened, dist.get_rank(), processes)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ConnectionError("another process of the group has failed") from error
    finally:
        if not there:
            dist.destroy_process_group()


def open_device(name: str, rank: int | None = None) -> torch.device:
    """A device that can be used; in a process group, the process's own GPU.

    Args:
        name: PyTorch's, or "auto" for a GPU where PyTorch can use one, else the CPU.
        rank: Of the process among those of this machine.

    Raises:
        ValueError: naming the device, if it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if rank is not None and device.type == "cuda":
            device = torch.device("cuda", rank)
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()  # "meta" has no values to give
    except (AssertionError, RuntimeError) as error:
        reason = re.split(r"(?<=\.)\s|\n", str(error))[0]  # PyTorch lists all that it has on other devices
        hint = did_you_mean(name.partition(":")[0], ("auto", "cpu", "cuda", "mps", "xpu"))
        raise ValueError(f"device {name!r} cannot be used{hint or ':'} {reason}") from error
    return device


def in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Whether this is the process that speaks and writes for the group."""
    return not in_group() or dist.get_rank() == 0


def sum_over_group(values: list[float], device: torch.device) -> list[float]:
    """The sums of the processes' values, in each of them.

    Raises:
        ConnectionError: if another process of the group has failed.
    """
    if not in_group():
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    try:
        dist.all_reduce(sums)
    except RuntimeError as error:
        raise ConnectionError("another process of the group has failed") from error
    return sums.tolist()


def from_first(value: Any) -> Any:
    """The first process's value, in each of them.

    Raises:
        ConnectionError: if another process of the group has failed.
    """
    if not in_group():
        return value
    values = [value]
    try:
        dist.broadcast_object_list(values)
    except RuntimeError as error:
        raise ConnectionError("another process of the group has failed") from error
    return values[0]
