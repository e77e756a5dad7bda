"""The `adderzoo` command."""

import argparse
import os
import sys
from importlib import import_module

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
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends in one line on standard error and exit status 1."""
    parser = argparse.ArgumentParser(prog="adderzoo", description="Adder networks for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        import_module(f"adderzoo.cli.{name}").add_arguments(command)
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
    try:
        import_module(f"adderzoo.cli.{args.command}").run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # as `| head` does; Python would write what is left once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"adderzoo {args.command}: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    """The message; of an error in a loading process, which comes inside the text of a traceback, its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Caught "):
        return lines[-1].partition(": ")[2]
    return " ".join(lines)
