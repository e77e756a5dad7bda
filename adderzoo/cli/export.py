"""`adderzoo export`."""

import argparse
import sys
from pathlib import Path

from ._network import add_network_arguments, check_channels, open_network


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="OUT", type=Path, help="file to write, .pt2, .pt or .onnx")
    add_network_arguments(parser)
    parser.add_argument(
        "--format",
        choices=("pt2", "aoti", "torchscript", "onnx"),
        required=True,
        help="torch.export's program, .pt2; the same compiled by AOTInductor, .pt2; TorchScript, .pt; standard "
        "operators for any ONNX runtime, .onnx",
    )
    parser.add_argument(
        "--img-size", metavar="N", type=int, help="height and width of the input (the classifier's own)"
    )
    parser.add_argument("--dynamic-batch", action="store_true", help="batches of any size, instead of one image")
    parser.add_argument("--class-names", metavar="FILE", type=Path, help="as for predict; the file says them")
    parser.epilog = (
        "Adder layers are fused with what follows them, but for ONNX. The file is run beside the network before it "
        "gets its name. What `quantize` writes is a --checkpoint like any other."
    )


def run(args: argparse.Namespace) -> None:
    from timm.data import resolve_model_data_config

    from adderzoo._files import check_output
    from adderzoo.export import FORMATS, describe, export_network
    from adderzoo.models import is_super_resolution

    from .predict import class_names

    check_output(args.destination, f"OUT for the format {args.format}", [FORMATS[args.format]])
    model = open_network(args, any_task=True)
    check_channels(resolve_model_data_config(model), args)
    classes = None
    if not is_super_resolution(model):
        classes = class_names(model, args)
    elif args.class_names:
        raise ValueError(f"class-names is for classifiers, but {args.model} is for super-resolution")
    metadata = describe(model, args.img_size, classes)
    if args.format == "torchscript":
        print(
            f"adderzoo {args.command}: PyTorch deprecates TorchScript and may drop it: pt2 and aoti take its place",
            file=sys.stderr,
        )
    error = export_network(model, args.destination, args.format, args.img_size, args.dynamic_batch, metadata)
    batch = "N" if args.dynamic_batch else 1
    print(
        f"{args.destination}: {args.format}, {args.destination.stat().st_size:,} bytes, "
        f"for {batch} x {metadata['input_size'].replace(' ', ' x ')}; "
        f"its results differ from the network's by {error:.1g} of their standard deviation"
    )
