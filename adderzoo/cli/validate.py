"""`adderzoo validate`."""

import argparse
import csv
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adderzoo.files.foreign import to_json

from ._network import add_network_arguments, known_classes, open_network, say
from ._table import align

if TYPE_CHECKING:
    from adderzoo.engine.group import Group


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network_arguments(parser)
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data set")
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        default="",
        help="data set as timm names it: torch/cifar10, torch/mnist, hfds/..., wds/...; without it, a folder of images "
        "with one folder a class",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="part of the data set (validation; in a folder the first that is there of validation/, val/, valid/, "
        "eval/, evaluation/ and test/, else the folder itself, as for '')",
    )
    parser.add_argument("--dataset-download", action="store_true", help="let torchvision download the data set")
    parser.add_argument(
        "--class-map",
        metavar="FILE",
        default="",
        help="text file with the names of the network's classes as the data set has them, one a line in the network's "
        "order; classes that it does not name are left out (by default they are found by their names where the "
        "checkpoint's metadata or the tag has names, else sorted)",
    )
    parser.add_argument("--input-key", metavar="KEY", help="column of the images, of a hfds/ or wds/ data set")
    parser.add_argument("--target-key", metavar="KEY", help="column of the labels, of a hfds/ or wds/ data set")
    parser.add_argument("-b", "--batch-size", metavar="N", type=int, default=128, help="images a batch (%(default)s)")
    parser.add_argument("-j", "--workers", metavar="N", type=int, default=2, help="loading processes (%(default)s)")
    parser.add_argument("--device", default="cpu", help="such as cuda (%(default)s)")
    parser.add_argument("--channels-last", action="store_true", help="use the channels_last memory format")
    parser.add_argument("--amp", action="store_true", help="run under autocast")
    parser.add_argument(
        "--amp-dtype", choices=("bfloat16", "float16"), default="bfloat16", help="of autocast (%(default)s)"
    )
    parser.add_argument("--torchcompile", action="store_true", help="compile the network")
    parser.add_argument("--results-file", metavar="FILE", type=Path, help="write the result here, .json or .csv")
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="super-resolution: mean over the eight flips and rotations of an image",
    )
    parser.add_argument(
        "--tile", metavar="N", type=int, help="super-resolution: pixels a side of the parts that an image is cut into"
    )
    parser.epilog = (
        "A line on standard error says what is evaluated: the folder, its classes and images, and the files in it that "
        "do not count. Each class is a folder, with folders inside or not, of files that are named as a format of "
        "Pillow's. Of classes whose names are not known there must be as many as the network has. "
        "Of a network for super-resolution (--model bicubic is what they are measured against), PSNR and SSIM of the "
        "luminance, borders of as many pixels as the scale left out. --data-dir then is a folder with images in HR/ "
        "and the same, smaller, in LR/, or large images alone, which MATLAB's bicubic interpolation makes smaller. "
        "The JSON names the folder as the data set and has the result of every image, the .csv a line for each and the "
        "mean."
    )


def run(args: argparse.Namespace) -> None:
    from adderzoo.engine.group import open_group
    from adderzoo.files.output import check_output

    if args.batch_size < 1:
        raise ValueError(f"batch-size must be at least 1, got {args.batch_size}")
    with open_group(args.device) as group:
        if args.results_file and group.rank == 0:
            check_output(args.results_file, "results-file", [".json", ".csv"])
        if group.processes > 1 and args.dataset_download:
            raise ValueError("dataset-download is for one process, several would write the same files: download first")
        _validate(args, group)


def _validate(args: argparse.Namespace, group: "Group") -> None:
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
    from adderzoo.files.output import write_atomically
    from adderzoo.models import is_super_resolution

    model = open_network(args, quiet=group.rank != 0, any_task=True)
    config = resolve_model_data_config(model)
    check_channels(config, args.model, dict(args.model_kwargs))
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(group.device).to(memory_format=memory_format)
    if is_super_resolution(model):
        _validate_super_resolution(args, group, model)
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
    if args.torchcompile:
        model.compile()
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
        row: dict[str, Any] = {"model": args.model, **asdict(result), "operator": ops.backend()}
        if args.results_file:
            write_atomically(args.results_file, lambda path: _write(path, row))
        print(result)


def _execution(args: argparse.Namespace, group: "Group") -> Any:
    import torch

    from adderzoo.engine import Execution

    return Execution(group.device, getattr(torch, args.amp_dtype) if args.amp else None, args.channels_last)


# Options that only mean something to a classifier.
_CLASSIFIERS_ALONE = ("dataset", "dataset_download", "class_map", "input_key", "target_key")


def _validate_super_resolution(args: argparse.Namespace, group: "Group", model: Any) -> None:
    from adderzoo import ops
    from adderzoo.data import open_pairs
    from adderzoo.engine import evaluate_super_resolution
    from adderzoo.files.output import write_atomically

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
    if args.torchcompile:
        model.compile()
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
    if args.results_file:
        row = {
            "model": args.model,
            "dataset": _test_set(args.data_dir, model.scale),
            "self_ensemble": args.self_ensemble,
            **result.as_dict(),
            "operator": ops.backend(),
        }
        rows.append({"image": "mean", "psnr": result.psnr, "ssim": result.ssim})
        write_atomically(args.results_file, lambda path: _write(path, row, rows))
    print(table)
    print(result)


def _test_set(folder: str, scale: int) -> str:
    """The name of a test set by its folder: Set5 of Set5, Set5/x2 and Set5/x2/HR."""
    parts = Path(os.path.abspath(folder)).parts
    return next(part for part in reversed(parts) if part not in ("HR", f"x{scale}"))


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["image"], f"{row['psnr']:.2f}", f"{row['ssim']:.4f}"


def _write(path: Path, row: dict[str, Any], lines: list[dict[str, Any]] | None = None) -> None:
    """One object as JSON; as CSV one line, or several."""
    lines = lines or [row]
    if path.suffix == ".json":
        path.write_text(to_json(row, indent=2) + "\n")
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
