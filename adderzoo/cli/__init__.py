"""The `adderzoo` command: a module a command, which parses, calls and prints."""

import argparse
import codecs
import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Collection
from importlib import import_module

import adderzoo
from adderzoo import catalogue

from . import _signals
from ._parser import Parser

if adderzoo._is_command():
    _signals.end_at_once()

COMMANDS = {
    "list": "list the networks, what they cost, and their published weights",
    "profile": "count what a network costs: operations, energy, latency, size",
    "train": "train a network, or fine-tune one, on images",
    "validate": "measure the accuracy of a network on a data set, or how well it makes images larger",
    "predict": "name what is on images",
    "upscale": "make a photograph larger",
    "quantize": "turn a trained network into an integer one",
    "export": "write a network as a file that runs without its code",
    "convert": "convert a checkpoint between the AdderNet authors' format and safetensors",
    "benchmark": "measure what adder networks cost on this machine, beside their CNN twins",
    "env": "show what a bug report needs: versions, this machine, and what runs the operator",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    What can be foreseen ends in one line on standard error: bad input, too little memory, a full disk or a killed
    loading process in exit status 1, a signal in 128 and its number. What cannot keeps its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        _print_anything(stream)
    args = argparse.Namespace(arguments=arguments, command="")
    try:
        with _signals.raised(next((word for word in arguments if word in COMMANDS), "")):
            _parse(arguments, args)
            import_module(f"adderzoo.cli.{args.command}").run(args)
            sys.stdout.flush()
    except BrokenPipeError:  # as `| head` does; Python would write what is left once more when it ends
        _drop_output()
        return 1
    except BaseException as error:
        stopped = _signals.received() or isinstance(error, KeyboardInterrupt)
        text = None if stopped else _foreseen(error, args)
        if not stopped and text is None:
            raise
        _close(error)
        if stopped:
            return _end(_signals.report(error))
        print(f"adderzoo {args.command}: error: {text}", file=sys.stderr)
        return _end(1)
    return 0


def parsers(words: Collection[str] = tuple(COMMANDS)) -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line, and those of commands.

    Args:
        words: Of the command line: commands that are not among them take no arguments yet.
    """
    parser = Parser(prog="adderzoo", description="Adder networks for PyTorch.")
    parser.add_argument(
        "--version", action="version", version=f"adderzoo {adderzoo.__version__}", help="print the version, and end"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog="adderzoo")
    made = {}
    for name, text in COMMANDS.items():
        made[name] = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name in words:
            import_module(f"adderzoo.cli.{name}").add_arguments(made[name])
    parser.explain(
        "COMMAND [options]",
        "adderzoo list --pretrained",
        "adderzoo train demo/digits -m adder_lenet5.digits",
        notes="`adderzoo COMMAND --help` says what a command takes.",
    )
    return parser, made


def _parse(arguments: list[str], args: argparse.Namespace) -> None:
    parsers(arguments)[0].parse_args(arguments, args)
    for argument in ("model", "models", "kd_model_name"):
        names = getattr(args, argument, None) or []
        for name in [names] if isinstance(names, str) else names:
            catalogue.check_spelling(name, argument.replace("_", "-"))


def _close(error: BaseException | None) -> None:
    """Let go of what an error holds: progress bars end their lines, loading processes end."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _foreseen(error: BaseException, args: argparse.Namespace) -> str | None:
    """What to say of an error; nothing of one that is a fault of the program."""
    text = _one_line(error)
    if _is_out_of_memory(error, text):
        smaller = [f"--{name.replace('_', '-')}" for name in ("batch_size", "tile", "img_size") if hasattr(args, name)]
        remedy = f"; a smaller {' or '.join(smaller)} needs less" if smaller else ""
        return f"not enough memory{remedy} ({text})" if text else f"not enough memory{remedy}"
    if isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS_OF_LOADING):
        return f"a loading process was killed, or lacks shared memory: try --workers 0, or a larger /dev/shm ({text})"
    return text if isinstance(error, ValueError | OSError) else None


# What PyTorch says where a loading process was killed, or has no room for its batches.
_SIGNS_OF_LOADING = ("DataLoader worker (pid", "shared memory", "/torch_")
_SIGNS_OF_MEMORY = ("not enough memory", "out of memory", "allocate memory", "bad_alloc")


def _is_out_of_memory(error: BaseException, text: str) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS_OF_MEMORY)


def _one_line(error: BaseException) -> str:
    """The message; of an error in a loading process, which comes inside the text of a traceback, its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Caught "):
        return lines[-1].partition(": ")[2]
    return " ".join(lines)


# -------------------------------------------------------------------------------------------------------------- output


def _print_anything(stream: object) -> None:
    """Have a terminal that lacks a character get another one, and the bytes of names that are no text as they are."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):  # no choice of the user
        stream.reconfigure(errors="adderzoo")


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return "+-" if character == "±" else character.encode("ascii", "backslashreplace").decode(), error.start + 1


codecs.register_error("adderzoo", _replace)


def _end(status: int) -> int:
    """What is printed already comes out, unless that is what failed."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    return status


def _drop_output() -> None:
    with contextlib.suppress(OSError, ValueError):  # no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
