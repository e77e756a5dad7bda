"""Runs commands as the processes of a group."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fork_server import CONTEXT, free_port

from adderzoo.cli import main

_NETWORK = re.compile(r"adderzoo \w+: \S+, (published|random|no) weights(, on \S+)?|adderzoo \w+: \S+, weights of .+")


@dataclass
class Done:
    """What a command left behind; warnings, which Python would print on standard error, are part of it."""

    status: int
    out: str
    err: str

    @property
    def rest(self) -> list[str]:
        """The lines on standard error behind the one that says network, weights and device, if that is there."""
        first, *rest = self.err.splitlines() or [""]
        return rest if _NETWORK.fullmatch(first) else self.err.splitlines()

    @property
    def error(self) -> str:
        """The one line of a failure."""
        lines = self.rest
        assert self.status == 1, self
        assert self.out == "", self
        assert len(lines) == 1, self
        return lines[0]


def run_group(
    commands: Sequence[Sequence[object]],
    folder: Path,
    seconds: float = 60,
    before: Callable[[], None] | None = None,
) -> list[Done]:
    """Runs a command in each rank; that one of them still runs after `seconds` is a failure.

    The processes have the environment that torchrun gives. `before` is a function of a module that each calls first.
    """
    port = free_port()
    processes = []
    for rank, command in enumerate(commands):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(commands), "MASTER_PORT": port}
        arguments = [str(argument) for argument in command]
        run = (arguments, environment, folder / f"rank{rank}", before)
        processes.append(CONTEXT.Process(target=_run, args=run))
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in hanging:
        processes[rank].kill()
    texts = [
        [(folder / f"rank{rank}.{stream}").read_text() for stream in ("out", "err")] for rank in range(len(processes))
    ]
    assert not hanging, f"ranks {hanging} hang: {texts}"
    return [Done(process.exitcode or 0, *text) for process, text in zip(processes, texts, strict=True)]


def _run(arguments: list[str], environment: dict[str, int], streams: Path, before: Callable[[], None] | None) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    with streams.with_suffix(".out").open("w") as sys.stdout, streams.with_suffix(".err").open("w") as sys.stderr:
        try:
            if before:
                before()
            status = main(arguments)
        except BaseException:
            traceback.print_exc()
            status = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
