"""`adderzoo export`."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._network import add_network_arguments, open_network, say
from ._parser import Parser
from ._results import Results, add_json_argument, open_results
from .quantize import add_some_images_arguments, check_some_images, keep, open_some_images

if TYPE_CHECKING:
    from torch import Tensor


def add_arguments(parser: Parser) -> None:
    parser.explain(
        "OUT -m NAME [options]",
        "adderzoo export demo/lenet5.onnx -m adder_lenet5.digits --dynamic-batch",
        "adderzoo export demo/lenet5_c -m adder_lenet5.digits --quantize demo/digits --workers 0",
        notes="Adder layers are fused with the layers behind them, except for ONNX. The written file is run, and "
        "its results are compared with the network's. Networks that `adderzoo quantize` has written are "
        "exported likewise. --dataset, --split, --images, --batch-size and --workers say which images C takes "
        "its ranges from.",
    )
    parser.add_argument("network", metavar="NETWORK", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument(
        "destination",
        metavar="OUT",
        type=Path,
        help="file to write; its ending says the format: .onnx, with standard operators alone, for any ONNX "
        "runtime; .pt2, a torch.export program; .pt, TorchScript. Without an ending it is a folder: a "
        "quantized classifier as C for microcontrollers",
    )
    add_network_arguments(parser, required=False)
    parser.add_argument(
        "--format",
        choices=("pt2", "aoti", "torchscript", "onnx", "c"),
        help="format of OUT (default: by its ending); aoti, also .pt2, is compiled by AOTInductor for this kind "
        "of processor and has to be asked for",
    )
    parser.add_argument(
        "--img-size",
        metavar="N",
        type=int,
        help="height and width of the images that the file takes (default: those of the classifier; "
        "super-resolution networks need it)",
    )
    parser.add_argument(
        "--dynamic-batch", action="store_true", help="let the file take batches of any size (default: one image)"
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        type=Path,
        help="file with the names of the classes to store, one per line (default: those that the weights' "
        "metadata or the tag has, else their indices)",
    )
    add_json_argument(parser, "what has been written")
    c = parser.add_argument_group("C for microcontrollers")
    c.add_argument(
        "--quantize",
        metavar="DIR",
        dest="data_dir",
        help="folder of the data set on whose images the ranges of the bytes are measured; not needed for a "
        "network that `adderzoo quantize` has written from images",
    )
    c.add_argument("--bits", metavar="N", type=int, help="bits of each value, 4 to 8 (default: 7)")
    c.add_argument(
        "--max-ram",
        metavar="BYTES",
        type=int,
        help="refuse a network that needs more memory than this (default: no limit)",
    )
    c.add_argument(
        "--no-multiply",
        action="store_true",
        help="have nothing multiplied, but on processors with SMLAD (Cortex-M4, M7, M33, M55): scales become sums of "
        "three shifts, and products differences of squares from a table (default: scales and products are multiplied)",
    )
    c.add_argument(
        "--vectors",
        action="store_true",
        help="also write test vectors: all weights, and the output of every layer for some images (default: the "
        "network alone)",
    )
    add_some_images_arguments(parser, c)


def run(args: argparse.Namespace) -> None:
    from adderzoo.files.output import check_output
    from adderzoo.inference.export import FORMATS

    _name_network(args)
    args.format = args.format or _format_of(args.destination)
    if args.format == "c":
        _check_c(args)
    else:
        for name in ("data_dir", "dataset", "bits", "max_ram", "no_multiply", "vectors"):
            if getattr(args, name) not in (None, False, ""):
                option = "quantize" if name == "data_dir" else name.replace("_", "-")
                raise ValueError(f"{option} is for C, a folder, but {args.destination} gets the format {args.format}")
        check_output(args.destination, f"OUT for the format {args.format}", [FORMATS[args.format]])
    with open_results(args) as results:
        _export(args, results)


def _format_of(destination: Path) -> str:
    """The format that a name stands for by its ending.

    Raises:
        ValueError: if there is none.
    """
    formats = {".onnx": "onnx", ".pt2": "pt2", ".pt": "torchscript"}
    if destination.suffix in formats:
        return formats[destination.suffix]
    if destination.suffix and not destination.is_dir():
        raise ValueError(f"OUT must end in {', '.join(formats)}, or be a folder for C, got {destination}")
    return "c"


def _export(args: argparse.Namespace, results: Results) -> None:
    from timm.data import resolve_model_data_config

    from adderzoo.data import check_channels
    from adderzoo.inference.export import describe, export_network
    from adderzoo.models import is_super_resolution

    from .predict import class_names

    model = open_network(args, any_task=args.format != "c")
    check_channels(resolve_model_data_config(model), args.model)
    if args.format == "c":
        _write_c(args, model, class_names(model, args), results)
        return
    classes = None
    if not is_super_resolution(model):
        classes = class_names(model, args)
    elif args.class_names:
        raise ValueError(f"class-names is for classifiers, but {args.model} is for super-resolution")
    metadata = describe(model, args.img_size, classes)
    if args.format == "torchscript":
        say(args, "PyTorch deprecates TorchScript and may drop it: pt2 and aoti take its place")
    error = export_network(model, args.destination, args.format, args.img_size, args.dynamic_batch, metadata)
    size, batch = args.destination.stat().st_size, "N" if args.dynamic_batch else 1
    results.write(
        {"file": str(args.destination), "format": args.format, "model": args.model, "weights": args.weights}
        | {"bytes": size, "input_size": list(map(int, metadata["input_size"].split()))}
        | {"dynamic_batch": args.dynamic_batch, "difference": error}
    )
    results.show(
        f"{args.destination}: {args.format}, {size:,} bytes, "
        f"for {batch} x {metadata['input_size'].replace(' ', ' x ')}; "
        f"its results differ from the network's by {error:.1g} of their standard deviation"
    )


def _name_network(args: argparse.Namespace) -> None:
    """Turns NETWORK into --model.

    Raises:
        ValueError: if both are given, or neither.
    """
    if args.network is not None and args.model is not None:
        raise ValueError(f"model must not be given beside NETWORK {args.network}, got {args.model}")
    args.model = args.model or args.network
    if args.model is None:
        raise ValueError("model must name a network, or a file of weights, got none: -m NAME")


def _check_c(args: argparse.Namespace) -> None:
    """Refuse arguments of --format c that are none, before a network is opened."""
    from adderzoo.files.output import check_output_folder

    check_some_images(args)
    for name in ("img_size", "dynamic_batch"):
        if getattr(args, name):
            raise ValueError(f"{name.replace('_', '-')} is not for C, which has one image of the network's size")
    if args.max_ram is not None and args.max_ram < 1:
        raise ValueError(f"max-ram must be at least 1, got {args.max_ram}")
    if args.bits is not None and not (args.data_dir or args.dataset):
        raise ValueError(f"bits needs --quantize DIR, got bits {args.bits} without it")
    check_output_folder(args.destination, "OUT for C")


def _write_c(args: argparse.Namespace, model: Any, classes: list[str], results: Results) -> None:
    import torch

    from adderzoo.files.weights import read_metadata
    from adderzoo.inference.quantization import calibrate, quantize
    from adderzoo.microcontroller import integer_network, observe, write_c

    path = Path(args.checkpoint or model.pretrained_cfg.get("file") or "")
    said = read_metadata(path) if path.is_file() else {}
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
        raise ValueError(f"quantize must give images for {args.model}, a network in float: --quantize DIR")
    elif "statistics" not in said:
        raise ValueError(
            f"quantize must give images for {args.checkpoint or args.model}, which was quantized without them: "
            "--quantize DIR"
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
    found: dict[str, Any] = {
        "folder": str(args.destination),
        "format": "c",
        "model": args.model,
        "weights": args.weights,
    }
    found |= {"bits": bits, "ranges": source or None}
    found |= {key: getattr(written, key) for key in ("name", "ram", "flash", "code", "instructions")}
    if has_images:
        integers = integer_network(network, statistics, 3 if args.no_multiply else None)
        with torch.inference_mode():
            same = sum(
                int((integers(_pixels(model, batch)).argmax(1) == network(batch).argmax(1)).sum())
                for batch, *_ in batches
            )
        found["same_class"] = {"images": count, "same": same}
        line += f"; the same class as the network of bytes on {same} of {count} images"
    results.write(found)
    results.show(line)


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
    yield f"{args.model}, quantized to {bits} bits{', without multiplication but by SMLAD' * args.no_multiply}."
    name, tag = split_model_name_tag(args.model)
    for info in networks(name):
        yield (
            f"Of one image: {info.adder_elements:,} elements |x - w| of adder layers, "
            f"{info.multiply_adds:,} multiply-adds."
        )
        for weights in info.pretrained:
            if weights.tag == tag and isinstance(weights.measured, Accuracy) and args.published:
                measured = weights.measured
                yield f"In float {measured.top1:.2f} % of {measured.images:,} images ({measured.dataset}) are right."
