"""`adderzoo convert`."""

import argparse
from pathlib import Path

from adderzoo.files.foreign import plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", type=Path, help="checkpoint, in either format")
    parser.add_argument("destination", metavar="DST", type=Path, help="file to write, .safetensors")
    parser.add_argument("--model", metavar="NAME", required=True, help="network that the checkpoint belongs to")
    parser.add_argument("--num-classes", metavar="N", type=int, help="classes of the network, if not its default")
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="which weights, of a file that has several: the keys that lead to them, with dots between (params_ema)",
    )
    parser.add_argument("--to-original", action="store_true", help="write the AdderNet authors' format instead")


def run(args: argparse.Namespace) -> None:
    from adderzoo.checkpoints import convert
    from adderzoo.files.output import check_output

    check_output(args.destination, "DST")
    metadata = convert(args.source, args.destination, args.model, args.to_original, args.num_classes, args.key)
    print(f"{args.destination}: {', '.join(f'{key} {plain(value)}' for key, value in metadata.items())}")
