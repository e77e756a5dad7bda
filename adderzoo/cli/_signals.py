"""Ctrl-C, SIGTERM and SIGHUP end a command in one line, and with the status that a shell gives them.

This is imported ahead of everything else, and imports nothing that takes time.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "terminal closed"}


class Stopped(KeyboardInterrupt):
    """A signal that ends the command, where the message says more than that."""


class _State:
    """What has been received, by which process, of which command."""

    process = os.getpid()
    command = "adderzoo"
    received: int | None = None
    lost: int | None = None  # what was received where no exception leaves, and comes again
    again: threading.Timer | None = None
    children: Any = None  # the handler of their ends, while there is none
    said = False


def end_at_once() -> None:
    """Have signals end the process where it is, as long as there is nothing to clean up: while it imports."""
    for number in _NAMES:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as nohup ignores one
            signal.signal(number, _end)


@contextlib.contextmanager
def raised(command: str) -> Iterator[None]:
    """Have signals raise :class:`Stopped` for as long as the context lasts."""
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return
    _State.process, _State.command, _State.received, _State.said = os.getpid(), f"adderzoo {command}", None, False
    _State.lost = _State.again = _State.children = None
    handlers = {number: signal.getsignal(number) for number in _NAMES}
    hook, uncaught = sys.unraisablehook, sys.excepthook
    try:
        for number, handler in handlers.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, _raise)
        sys.unraisablehook, sys.excepthook = _unraisable(hook), _uncaught(uncaught)
        yield
    finally:
        if _State.again:
            _State.again.cancel()
        sys.excepthook = uncaught
        if not received():
            sys.unraisablehook = hook
        for number, handler in {**handlers, signal.SIGCHLD: _State.children}.items():
            if handler is not None:
                signal.signal(number, handler)


def received() -> bool:
    """Whether a signal has come, whatever became of its exception on the way up, and of others before it came again."""
    return (_State.received or _State.lost) is not None


def report(error: BaseException) -> int:
    """Say what ended the command; the exit status."""
    number = _State.received or _State.lost or signal.SIGINT
    if _is_to_speak():
        text = str(error) if isinstance(error, Stopped) else ""
        print(f"{_State.command}: {text or _NAMES[signal.Signals(number)]}", file=sys.stderr)
    return 128 + number


def _raise(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.process:  # a loading process, which its parent ends
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    if _State.received is not None:  # again: it may have been lost in a library
        _end(number, frame)
    _State.received = number
    if _State.lost is None:  # loading processes may have got it too, and PyTorch would raise that in its place
        _State.children = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    raise Stopped


def _end(number: int, frame: FrameType | None) -> NoReturn:
    if os.getpid() == _State.process and _is_to_speak():
        with contextlib.suppress(OSError):
            os.write(2, f"{_State.command}: {_NAMES[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


def _unraisable(hook: Any) -> Any:
    """A hook that sees signals in places that no exception leaves, such as `__del__`: they come once more.

    Behind a signal it is silent, and so it is in a process that is being forked meanwhile: what was being made when the
    signal came, such as a data loader, may not know how to end.
    """

    def end(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Stopped) and _State.received is not None:
            _State.lost, _State.received = _State.received, None
            _State.again = threading.Timer(0.01, os.kill, (os.getpid(), _State.lost))
            _State.again.daemon = True
            _State.again.start()
        elif not received():
            hook(unraisable)

    return end


def _uncaught(hook: Any) -> Any:
    """A hook that is silent in a loading process whose parent has ended while it was handed images."""

    def end(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if os.getpid() == _State.process or not isinstance(error, (ConnectionError, EOFError)):
            hook(kind, error, traceback)

    return end


def _is_to_speak() -> bool:
    """Once, and of a group's processes the first alone."""
    silent, _State.said = _State.said or os.environ.get("RANK", "0") != "0", True
    return not silent
