"""Processes for tests of groups: forked off a server that has imported everything, and has run nothing.

A fork of the test's own process would lack the threads that other tests have started, PyTorch's autograd among them.
"""

import multiprocessing
import socket

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["adderzoo.cli", "adderzoo.data", "adderzoo.engine"])


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
