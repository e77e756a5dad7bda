"""`adderzoo quantize`."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adderzoo.engine.options import at_least
from adderzoo.files.foreign import to_json

from ._network import add_device_argument, add_network_arguments, open_network, say
from ._parser import Parser
from ._results import Results, add_json_argument, open_results

if TYPE_CHECKING:
    from adderzoo.layers.modules import Network


def add_arguments(parser: Parser) -> None:
    parser.explain(
        "DIR OUT -m NAME [options]",
        "adderzoo quantize demo/digits demo/u8.safetensors -m adder_lenet5.digits",
        "adderzoo validate demo/digits/test -m demo/u8.safetensors",
        description="Its adder layers then compute on bytes. The range of values that the bytes of each layer "
        "cover is measured on some images in DIR; weights trained with `adderzoo train --quantize-bits` have "
        "ranges already, and need no DIR. All commands open the file as -m OUT, Python as adderzoo.load(OUT).",
    )
    parser.add_data_dir("folder of the data set; the ranges are measured on some of its training images")
    parser.add_argument("destination", metavar="OUT", type=Path, help="file to write, .safetensors")
    add_network_arguments(parser)
    parser.add_argument(
        "--bits",
        metavar="N",
        type=int,
        help="bits of each value, 4 to 8 (default: that of `train --quantize-bits`, else 8)",
    )
    parser.add_argument(
        "--quantile",
        metavar="Q",
        type=float,
        help="ranges go from quantile 1 - Q to quantile Q of the values, those beyond are clipped; 1 for the "
        "least to the greatest value (default: 1 for 7 and 8 bits, else 0.999)",
    )
    add_some_images_arguments(parser)
    add_device_argument(parser)
    add_json_argument(parser)


def add_some_images_arguments(parser: Parser, group: Any = None) -> None:
    """Those of :func:`open_some_images` but for data-dir, in a group of the parser or in none."""
    into = group or parser
    parser.share("dataset", group=group)
    into.add_argument(
        "--split",
        metavar="NAME",
        default="train",
        help="part of the data set to take images from: a folder in DIR, or '' for DIR itself, which is taken too "
        "if there is no such folder (default: %(default)s)",
    )
    into.add_argument(
        "--images",
        metavar="N",
        type=int,
        default=200,
        help="number of images to take, evenly spaced over that part (default: %(default)s)",
    )
    batch_size = "images per batch (default: %(default)s)"
    parser.share("batch_size", group=group, default=50, check=at_least(1), help=batch_size)
    parser.share("workers", group=group)


def run(args: argparse.Namespace) -> None:
    from adderzoo.files.output import check_output

    check_some_images(args)
    check_output(args.destination, "OUT", [".safetensors"])
    with open_results(args) as results:
        _quantize(args, results)


def _quantize(args: argparse.Namespace, results: Results) -> None:
    from timm.data import resolve_model_data_config

    from adderzoo.checkpoints import describe, save
    from adderzoo.engine.group import open_device
    from adderzoo.files.weights import read_metadata, read_model_args, read_ranges
    from adderzoo.inference.quantization import quantize, simulate
    from adderzoo.microcontroller import observe

    model = open_network(args, open_device(args.device), any_task=True)
    said = read_metadata(args.checkpoint) if args.checkpoint else {}
    known = read_ranges(args.checkpoint) if args.checkpoint else None
    arguments = (read_model_args(args.checkpoint) if args.checkpoint else {}) | args.model_kwargs
    describe(model, arguments)  # what cannot be saved is refused here
    bits = args.bits if args.bits is not None else known["bits"] if known else 8
    if known is None or args.data_dir or args.dataset:
        simulation, source, batches = _calibrated(model, args, bits)
    else:
        if bits != known["bits"]:
            raise ValueError(f"bits must be those that {args.checkpoint} was trained with, {known['bits']}, got {bits}")
        if args.quantile is not None:
            raise ValueError(f"quantile is for ranges from data-dir, but {args.checkpoint} has those of its training")
        simulation, source, batches = simulate(model, known), "its training", []
    kinds = ("classes", "license", "source", "source_sha256", "trained_from", "taught_by")
    kept: dict[str, str] = {key: said[key] for key in kinds if key in said}
    config = to_json(resolve_model_data_config(model))
    network: Any = quantize(simulation.cpu())
    if batches:
        kept["statistics"] = to_json(observe(network, batches))
    if "." not in args.model:  # weights of no tag, whatever the network's first one is
        network.pretrained_cfg["tag"] = None
    save(network, args.destination, {**kept, "data_config": config}, **arguments)
    before = sum(tensor.nbytes for tensor in model.state_dict().values())
    after = args.destination.stat().st_size
    results.write(
        {"file": str(args.destination), "model": args.model, "weights": args.weights, "bits": bits, "ranges": source}
        | {"bytes": after, "bytes_in_float": before}
    )
    results.show(
        f"{args.destination}: {bits} bits, ranges from {source}, {after:,} bytes; "
        f"in float {before:,} bytes, {before / after:.1f} times as many"
    )


def _calibrated(model: "Network", args: argparse.Namespace, bits: int) -> tuple[Any, str, list[Any]]:
    """The simulation, what its ranges come from, and of a classifier the images, which `export --format c` wants."""
    from adderzoo.inference.quantization import calibrate
    from adderzoo.models import is_super_resolution

    images, count = open_some_images(model, args)
    batches: list[Any] = []
    if not is_super_resolution(model):
        images = keep(images, batches)
    return calibrate(model, images, bits, args.quantile), f"{count} images", batches


def keep(images: Iterable[Any], batches: list[Any]) -> Iterator[Any]:
    """Batches, which are kept in a list too; none is read before it is wanted, behind all that may be refused."""
    for batch in images:
        batches.append(batch)
        yield batch


def check_some_images(args: argparse.Namespace) -> None:
    """Refuse arguments of :func:`open_some_images` that are none.

    Raises:
        ValueError: naming the argument.
    """
    if args.images < 1:
        raise ValueError(f"images must be at least 1, got {args.images}")


def open_some_images(model: "Network", args: argparse.Namespace) -> tuple[Iterable[Any], int]:
    """Batches for a network, images or tuples that begin with them, and how many images they have together."""
    from timm.data import resolve_model_data_config
    from torch.utils.data import IterableDataset

    from adderzoo.data import Loading, check_channels, describe_dataset, open_dataset, open_loader, spread
    from adderzoo.models import is_super_resolution

    config = resolve_model_data_config(model)
    check_channels(config, args.model)
    if is_super_resolution(model):
        return _small_images(model, args)
    dataset = open_dataset(args.dataset, args.data_dir, args.split, config["input_size"][0])
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"dataset {args.dataset!r} is a stream; images are taken by index")
    some = spread(dataset, args.images)
    loader = open_loader(some, config, Loading(batch_size=args.batch_size, workers=args.workers))
    return _announced(args, describe_dataset(dataset, args.dataset), loader), len(some)


def _announced(args: argparse.Namespace, text: str, batches: Iterable[Any]) -> Iterator[Any]:
    """Batches, and a line when the first is wanted: behind all that may be refused."""
    say(args, text)
    yield from batches


def _small_images(model: "Network", args: argparse.Namespace) -> tuple[Iterator[Any], int]:
    """Images for a network for super-resolution, one by one since their sizes differ, and how many."""
    from adderzoo.data import as_float, open_training_pairs

    if args.data_dir is None or args.dataset:
        raise ValueError(f"data-dir must be a folder of images, without dataset, since {args.model} classifies none")
    pairs, _ = open_training_pairs(args.data_dir, model.scale, args.split, val_split="")
    count = min(args.images, len(pairs))
    images = (as_float(pairs[index * len(pairs) // count][0])[None] for index in range(count))
    return _announced(args, pairs.describe(), images), count
