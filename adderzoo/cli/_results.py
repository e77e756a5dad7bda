"""What a command has found out, for people and as JSON."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from adderzoo.files.foreign import to_json


def add_json_argument(parser: argparse.ArgumentParser, what: str = "the result") -> None:
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        help=f"write {what} as JSON to this file; - prints it on standard output in place of the text for people",
    )


class Results:
    """Where results go: text to standard output, JSON to a file; or JSON alone to standard output."""

    def __init__(self, path: Path | None, stream: TextIO) -> None:
        self._path = path
        self._stream = stream

    def show(self, text: object) -> None:
        """Text for people, at once."""
        if not _is_stream(self._path):
            print(text, file=self._stream, flush=True)

    def write(self, value: Any, last: bool = True) -> None:
        """The whole result as JSON, if that is asked for; the file is replaced completely or not at all.

        Args:
            value: As :func:`adderzoo.files.foreign.to_json` takes it.
            last: Whether it is complete; what is not yet goes to files alone.

        Raises:
            OSError: if the file cannot be written.
        """
        from adderzoo.files.output import write_atomically

        if self._path is None:
            return
        text = to_json(value, indent=2) + "\n"
        if not _is_stream(self._path):
            write_atomically(self._path, lambda path: path.write_text(text))
        elif last:
            self._stream.write(text)


@contextlib.contextmanager
def open_results(args: argparse.Namespace, speaks: bool = True) -> Iterator[Results]:
    """Where the results of a command go, which :func:`add_json_argument` lets the user say.

    Where JSON goes to standard output, nothing else does: what anybody prints meanwhile goes to standard error.

    Args:
        args: Of the command.
        speaks: Whether this process has results; of a group, the first does.

    Raises:
        ValueError: if no file can be written there.
        OSError: likewise.
    """
    from adderzoo.files.output import check_output

    if _is_stream(args.json) and speaks:
        stream = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield Results(args.json, stream)
        return
    if not speaks:
        args.json = None
    if args.json is not None:
        check_output(args.json, "json")
    yield Results(args.json, sys.stdout)


def _is_stream(path: Path | None) -> bool:
    return path is not None and str(path) == "-"
