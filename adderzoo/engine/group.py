"""What the processes of a group (torchrun's) do together; a single process is a group of one."""

from typing import Any

import torch
import torch.distributed as dist


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
