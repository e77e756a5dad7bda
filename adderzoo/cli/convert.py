"""`adderzoo convert`."""

import argparse
from pathlib import Path

from adderzoo.files.foreign import plain

from ._parser import Parser
from ._results import add_json_argument, open_results


def add_arguments(parser: Parser) -> None:
    parser.explain(
        "SRC DST -m NAME [options]",
        "adderzoo convert adderzoo/weights/adder_lenet5.digits.safetensors demo/lenet5.pth -m adder_lenet5 "
        "--to-original",
        "adderzoo convert demo/lenet5.pth demo/lenet5.safetensors -m adder_lenet5",
    )
    parser.add_argument("source", metavar="SRC", type=Path, help="checkpoint to read, in either format")
    parser.add_argument(
        "destination", metavar="DST", type=Path, help="file to write: .safetensors; with --to-original any name"
    )
    parser.add_argument("-m", "--model", metavar="NAME", required=True, help="name of the checkpoint's network")
    parser.add_argument(
        "--num-classes",
        metavar="N",
        type=int,
        help="number of classes of the network (default: what the checkpoint says, else that of its name)",
    )
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="which weights to take from a file that has several: the path of keys to them, joined by dots, such "
        "as params_ema (default: the only ones)",
    )
    parser.add_argument(
        "--to-original", action="store_true", help="write the AdderNet authors' format in place of safetensors"
    )
    add_json_argument(parser, "what the file says of itself")


def run(args: argparse.Namespace) -> None:
    from adderzoo.checkpoints import convert
    from adderzoo.files.output import check_output

    check_output(args.destination, "DST")
    with open_results(args) as results:
        metadata = convert(args.source, args.destination, args.model, args.to_original, args.num_classes, args.key)
        results.write({"file": str(args.destination), **metadata})
        results.show(f"{args.destination}: {', '.join(f'{key} {plain(value)}' for key, value in metadata.items())}")
