"""`adderzoo export`."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._network import add_network_arguments, open_network
from .quantize import add_some_images_arguments, check_some_images, keep, open_some_images

if TYPE_CHECKING:
    from torch import Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "network",
        metavar="NETWORK",
        nargs="?",
        help="instead of --model: a network with its tag, whose published weights it gets, or a file with weights",
    )
    parser.add_argument(
        "destination", metavar="OUT", type=Path, help="file to write, .pt2, .pt or .onnx; a folder of C"
    )
    add_network_arguments(parser, required=False)
    parser.add_argument(
        "--format",
        choices=("pt2", "aoti", "torchscript", "onnx", "c"),
        required=True,
        help="torch.export's program, .pt2; the same compiled by AOTInductor, .pt2; TorchScript, .pt; standard "
        "operators for any ONNX runtime, .onnx; a quantized classifier as C for microcontrollers, a folder",
    )
    parser.add_argument(
        "--img-size", metavar="N", type=int, help="height and width of the input (the classifier's own)"
    )
    parser.add_argument("--dynamic-batch", action="store_true", help="batches of any size, instead of one image")
    parser.add_argument("--class-names", metavar="FILE", type=Path, help="as for predict; the file says them")
    c = parser.add_argument_group("format c")
    c.add_argument(
        "--quantize",
        metavar="DATA",
        dest="data_dir",
        help="folder of images to take ranges from; not needed for what `quantize` has written from images",
    )
    c.add_argument("--bits", metavar="N", type=int, help="of a byte, 4 to 8, with --quantize (7)")
    c.add_argument("--max-ram", metavar="BYTES", type=int, help="refuse networks that need more")
    c.add_argument(
        "--no-multiply",
        action="store_true",
        help="adder layers without multiplication: scales are sums of three shifts",
    )
    c.add_argument("--vectors", action="store_true", help="all numbers, and what every layer makes of some images")
    add_some_images_arguments(parser)
    parser.epilog = (
        "Adder layers are fused with what follows them, but for ONNX. The file is run beside the network before it "
        "gets its name. What `quantize` writes is a --checkpoint like any other."
    )


def run(args: argparse.Namespace) -> None:
    from timm.data import resolve_model_data_config

    from adderzoo.data import check_channels
    from adderzoo.files.output import check_output
    from adderzoo.inference.export import FORMATS, describe, export_network
    from adderzoo.models import is_super_resolution

    from .predict import class_names

    _name_network(args)
    if args.format == "c":
        _check_c(args)
    else:
        for name in ("data_dir", "bits", "max_ram", "no_multiply", "vectors"):
            if getattr(args, name) not in (None, False):
                option = "quantize" if name == "data_dir" else name.replace("_", "-")
                raise ValueError(f"{option} is for --format c, but format is {args.format}")
        check_output(args.destination, f"OUT for the format {args.format}", [FORMATS[args.format]])
    model = open_network(args, any_task=args.format != "c")
    check_channels(resolve_model_data_config(model), args.model, dict(args.model_kwargs))
    if args.format == "c":
        _write_c(args, model, class_names(model, args))
        return
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


def _name_network(args: argparse.Namespace) -> None:
    """Turns NETWORK into what the other arguments say of a network."""
    from adderzoo.files.weights import read_metadata

    if args.network is None:
        if args.model is None:
            raise ValueError("NETWORK or --model must name a network")
        return
    if args.model is not None:
        raise ValueError(f"model must not be given beside NETWORK {args.network}")
    path = Path(args.network)
    if not path.is_file():
        args.model, args.pretrained = args.network, args.checkpoint is None
        return
    if args.checkpoint is not None:
        raise ValueError(f"checkpoint must not be given beside NETWORK {args.network}, which is a file")
    said = read_metadata(path)
    if "architecture" not in said:
        raise ValueError(f"{path} does not say of which network it is: pass --model NAME --checkpoint {path}")
    tag = said.get("tag")
    args.model, args.checkpoint = f"{said['architecture']}.{tag}" if tag else said["architecture"], path


def _check_c(args: argparse.Namespace) -> None:
    """Refuse arguments of --format c that are none, before a network is opened."""
    from adderzoo.files.output import check_output_folder

    check_some_images(args)
    for name in ("img_size", "dynamic_batch"):
        if getattr(args, name):
            raise ValueError(
                f"{name.replace('_', '-')} is not for --format c, which has one image of the network's size"
            )
    if args.max_ram is not None and args.max_ram < 1:
        raise ValueError(f"max-ram must be at least 1, got {args.max_ram}")
    if args.bits is not None and not (args.data_dir or args.dataset):
        raise ValueError(f"bits needs --quantize DATA, got bits {args.bits} without it")
    check_output_folder(args.destination, "OUT for the format c")


def _write_c(args: argparse.Namespace, model: Any, classes: list[str]) -> None:
    import torch

    from adderzoo.files.weights import read_metadata
    from adderzoo.inference.quantization import calibrate, quantize
    from adderzoo.microcontroller import integer_network, observe, write_c

    said = read_metadata(args.checkpoint) if args.checkpoint else {}
    has_images = bool(args.data_dir or args.dataset)
    quantized = hasattr(model, "quantization")
    batches: list[Any] = []
    loader: Iterable[Any] = ()
    source = ""
    if has_images:
        if quantized and args.bits is not None:
            raise ValueError(f"bits must not be given for {args.model}, which has {model.quantization['bits']} already")
        opened, count = open_some_images(model, args)
        loader, source = keep(opened, batches), f"{count} images"
    elif not quantized:
        raise ValueError(f"quantize must give images for {args.model}, a network in float: --quantize DATA")
    elif "statistics" not in said:
        raise ValueError(
            f"quantize must give images for {args.checkpoint}, which was quantized without them: --quantize DATA"
        )
    network: Any = model if quantized else quantize(calibrate(model, loader, 7 if args.bits is None else args.bits))
    statistics = observe(network, batches or loader) if has_images else json.loads(said["statistics"])
    images = _pixels(model, batches[0][0][:4]) if batches else None
    written = write_c(
        network,
        statistics,
        args.destination,
        args.model,
        classes,
        list(_about(args, network)),
        images,
        args.max_ram,
        not args.no_multiply,
        args.vectors,
    )
    bits = network.quantization["bits"]
    line = (
        f"{args.destination}: {written.name}.c, {bits} bits{f', ranges from {source}' if source else ''}; "
        f"RAM {written.ram:,} bytes, flash {written.flash:,} bytes and about {written.code:,} of code; "
        f"about {written.instructions / 1e6:.2f} million instructions on a Cortex-M4"
    )
    if has_images:
        integers = integer_network(network, statistics, 3 if args.no_multiply else None)
        with torch.inference_mode():
            same = sum(
                int((integers(_pixels(model, batch)).argmax(1) == network(batch).argmax(1)).sum())
                for batch, *_ in batches
            )
        line += f"; the same class as the network of bytes on {same} of {count} images"
    print(line)


def _pixels(model: Any, batch: "Tensor") -> "Tensor":
    """The bytes that a batch was made of."""
    import torch
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return ((batch * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _about(args: argparse.Namespace, network: Any) -> Iterable[str]:
    """Lines for the comment at the head of the C."""
    from timm.models import split_model_name_tag

    from adderzoo.catalogue import Accuracy, networks

    bits = network.quantization["bits"]
    yield f"{args.model}, quantized to {bits} bits{', without multiplication in adder layers' * args.no_multiply}."
    name, tag = split_model_name_tag(args.model)
    for info in networks(name):
        yield (
            f"Of one image: {info.adder_elements:,} elements |x - w| of adder layers, "
            f"{info.multiply_adds:,} multiply-adds."
        )
        for weights in info.pretrained:
            if weights.tag == tag and isinstance(weights.measured, Accuracy) and args.pretrained:
                measured = weights.measured
                yield f"In float {measured.top1:.2f} % of {measured.images:,} images ({measured.dataset}) are right."
