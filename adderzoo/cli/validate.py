"""`adderzoo validate`."""

import argparse
import csv
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adderzoo.engine.options import at_least

from ._network import add_device_argument, add_network_arguments, known_classes, open_network, say
from ._parser import Parser
from ._results import Results, add_json_argument, open_results
from ._table import align

if TYPE_CHECKING:
    from adderzoo.engine.group import Group


def add_arguments(parser: Parser) -> None:
    parser.explain(
        "DIR -m NAME [options]",
        "adderzoo validate demo/digits/test -m adder_lenet5.digits",
        "adderzoo validate demo/photos -m adder_edsr_small_x2 --json demo/photos.json",
        notes="A line on standard error says what is evaluated: the folder, its classes and images, and the files "
        "that are left out. Each class is a folder of image files, which may lie in folders inside it. Classes "
        "are matched by name; if the names of the network's classes are not known, the data set must have as "
        "many classes as the network. The network runs fused (adderzoo.fuse) if it can be, but not under --amp. Under "
        "torchrun, several processes share the images.\n\nFor a network for "
        "super-resolution, PSNR and SSIM are measured on the luminance (Y), without a border as wide as the "
        "scale; -m bicubic measures bicubic interpolation, to compare with. DIR is then a folder with large "
        "images in HR/ and the same images, smaller, in LR/, or with large images alone, which are made "
        "smaller by MATLAB's bicubic interpolation. The JSON has the result of every image; the .csv has a "
        "line for each and the mean.",
    )
    parser.add_data_dir(
        "folder of the data set: one folder of images a class, in it or in its validation/, val/ or test/; images for "
        "super-resolution; what --dataset says"
    )
    add_network_arguments(parser)
    parser.share(
        "dataset",
        help="read this data set of timm's: torch/cifar10, torch/mnist, hfds/... or wds/... "
        "(default: a folder of images)",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="evaluate this part of the data set (default: validation; in a folder the first that is there of "
        "validation/, val/, valid/, eval/, evaluation/ and test/, else the folder itself, as for '')",
    )
    parser.share("dataset_download")
    parser.share(
        "class_map",
        help="text file with the names of the network's classes as the data set has them, one a line in the network's "
        "order; classes that it does not name are left out (default: those that the weights' metadata or the tag has; "
        "where nobody knows any, the folders in their order)",
    )
    parser.share("input_key", "target_key")
    parser.share("batch_size", default=128, help="images per batch (default: %(default)s)", check=at_least(1))
    parser.share("workers")
    add_device_argument(parser)
    parser.share("channels_last", "amp", "amp_dtype", "torchcompile")
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="super-resolution: average the results for the eight flips and rotations of an image (default: one pass)",
    )
    parser.add_argument(
        "--tile",
        metavar="N",
        type=int,
        help="super-resolution: cut images into parts of this many pixels a side, which need less memory (default: "
        "whole images)",
    )
    add_json_argument(parser)
    parser.add_argument(
        "--results-file", metavar="FILE", type=Path, help="write the result to this file, .csv (default: none)"
    )


def run(args: argparse.Namespace) -> None:
    from adderzoo.engine.group import open_group
    from adderzoo.files.output import check_output

    with open_group(args.device) as group, open_results(args, group.rank == 0) as results:
        if args.results_file and group.rank == 0:
            check_output(args.results_file, "results-file", [".csv"])
        if group.processes > 1 and args.dataset_download:
            raise ValueError("dataset-download is for one process, several would write the same files: download first")
        _validate(args, group, results)


def _validate(args: argparse.Namespace, group: "Group", results: Results) -> None:
    import torch
    from timm.data import resolve_model_data_config
    from torch.utils.data import IterableDataset

    from adderzoo import ops
    from adderzoo.data import (
        Loading,
        check_channels,
        check_classes,
        describe_dataset,
        describe_order,
        match_classes,
        open_dataset,
        open_loader,
    )
    from adderzoo.engine import check_results, evaluate
    from adderzoo.models import is_super_resolution

    model = open_network(args, group.device, quiet=group.rank != 0, any_task=True)
    config = resolve_model_data_config(model)
    check_channels(config, args.model)
    model = model.to(memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    if is_super_resolution(model):
        _validate_super_resolution(args, group, model, results)
        return
    for name in ("self_ensemble", "tile"):
        if getattr(args, name):
            raise ValueError(f"{name.replace('_', '-')} is for super-resolution, but {args.model} is a classifier")

    keys = {key: getattr(args, key) for key in ("input_key", "target_key") if getattr(args, key)}
    dataset = open_dataset(
        args.dataset,
        args.data_dir,
        args.split,
        config["input_size"][0],
        args.class_map,
        args.dataset_download,
        **keys,
    )
    if args.class_map:
        check_classes(dataset, model.num_classes)
        order = "by class-map"
    else:
        known = known_classes(model, args, dataset)
        dataset = match_classes(dataset, model.num_classes, known)
        order = "by name" if known else describe_order(dataset)
    if group.processes > 1 and isinstance(dataset, IterableDataset):
        raise ValueError(f"dataset {args.dataset!r} is a stream, which several processes cannot share exactly")
    model = _prepare(args, model)
    loading = Loading(
        batch_size=args.batch_size,
        workers=args.workers,
        device=group.device,
        rank=group.rank,
        processes=group.processes,
    )
    loader = open_loader(dataset, config, loading)
    if group.rank == 0:
        say(args, describe_dataset(dataset, args.dataset, order))
    result = evaluate(
        model,
        loader,
        _execution(args, group),
        images=None if group.processes == 1 else len(range(group.rank, len(dataset), group.processes)),
        description=args.model,
    )
    check_results(torch.tensor(result.loss))
    announced = getattr(getattr(dataset, "reader", None), "num_samples", None)
    if isinstance(dataset, IterableDataset) and announced and announced != result.images:
        raise ValueError(f"dataset {args.dataset!r} has {announced} images, but {result.images} could be read")
    if group.rank == 0:
        row = {"model": args.model, "weights": args.weights, **asdict(result), "operator": ops.backend()}
        _write(args, results, row, [row])
        results.show(result)


def _prepare(args: argparse.Namespace, model: Any) -> Any:
    """The network as it runs: fused where that can be, but for autocast, and compiled if that is asked for.

    Raises:
        ValueError: if there is no such backend of torch.compile.
    """
    from adderzoo.inference.fusion import fuse_if_possible

    if not args.amp:  # fused adder layers stay in the network's own type
        model = fuse_if_possible(model)
    if args.torchcompile:
        try:
            model.compile(backend=args.torchcompile)
        except RuntimeError as error:
            raise ValueError(f"torchcompile cannot be used: {error}") from error
    return model


def _execution(args: argparse.Namespace, group: "Group") -> Any:
    import torch

    from adderzoo.engine import Execution

    return Execution(group.device, getattr(torch, args.amp_dtype) if args.amp else None, args.channels_last)


# Options that only mean something to a classifier.
_CLASSIFIERS_ALONE = ("dataset", "dataset_download", "class_map", "input_key", "target_key")


def _validate_super_resolution(args: argparse.Namespace, group: "Group", model: Any, results: Results) -> None:
    from adderzoo import ops
    from adderzoo.data import open_pairs
    from adderzoo.engine import evaluate_super_resolution

    for name in _CLASSIFIERS_ALONE:
        if getattr(args, name):
            raise ValueError(f"{name.replace('_', '-')} is for classifiers, but {args.model} is for super-resolution")
    if group.processes > 1:
        raise ValueError(f"{args.model} is for super-resolution, which is evaluated in one process")
    if args.data_dir is None:
        raise ValueError("data-dir must be a folder, got None")
    if args.tile is not None and args.tile < 1:
        raise ValueError(f"tile must be at least 1, got {args.tile}")
    pairs = open_pairs(args.data_dir, model.scale, args.split)
    model = _prepare(args, model)
    say(args, pairs.describe())
    result = evaluate_super_resolution(
        model,
        pairs,
        _execution(args, group),
        tile=args.tile,
        self_ensemble=args.self_ensemble,
        description=args.model,
    )
    rows = [{"image": image.name, "psnr": image.psnr, "ssim": image.ssim} for image in result.images]
    table = align([("image", "PSNR", "SSIM"), *[_cells(row) for row in rows]], left={0})
    row = {
        "model": args.model,
        "weights": args.weights,
        "dataset": _test_set(args.data_dir, model.scale),
        "self_ensemble": args.self_ensemble,
        **result.as_dict(),
        "operator": ops.backend(),
    }
    _write(args, results, row, [*rows, {"image": "mean", "psnr": result.psnr, "ssim": result.ssim}])
    results.show(f"{table}\n{result}")


def _test_set(folder: str, scale: int) -> str:
    """The name of a test set by its folder: Set5 of Set5, Set5/x2 and Set5/x2/HR."""
    parts = Path(os.path.abspath(folder)).parts
    return next(part for part in reversed(parts) if part not in ("HR", f"x{scale}"))


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["image"], f"{row['psnr']:.2f}", f"{row['ssim']:.4f}"


def _write(args: argparse.Namespace, results: Results, row: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """The files that the user asks for: the result as JSON, the lines as CSV."""
    from adderzoo.files.output import write_atomically

    def write_lines(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)

    results.write(row)
    if args.results_file:
        write_atomically(args.results_file, write_lines)
