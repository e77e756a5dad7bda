"""`adderzoo predict`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adderzoo.files.foreign import to_json

from ._network import add_network_arguments, names_its_tag, open_network, say

if TYPE_CHECKING:
    from adderzoo.layers.modules import Network

_BATCH_SIZE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image file, or folder of images")
    add_network_arguments(parser)
    parser.add_argument("--topk", metavar="K", type=int, default=5, help="likeliest classes to show (%(default)s)")
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        type=Path,
        help="names of the classes, one a line; without it those that the checkpoint's metadata or the pretrained tag "
        "has, else their indices",
    )
    parser.add_argument("--device", default="cpu", help="such as cuda (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = "An image that cannot be read does not keep the others from being shown, but ends in exit status 1."


def run(args: argparse.Namespace) -> None:
    import torch
    from timm.data import create_transform, resolve_model_data_config

    from adderzoo.data import check_channels, find_images, read_image
    from adderzoo.engine import check_results
    from adderzoo.engine.group import open_device

    if args.topk < 1:
        raise ValueError(f"topk must be at least 1, got {args.topk}")
    device = open_device(args.device)
    found = find_images(args.images)
    model = open_network(args).to(device).eval()
    config = resolve_model_data_config(model)
    check_channels(config, args.model, dict(args.model_kwargs))
    names = class_names(model, args)
    transform = create_transform(**config)

    if any(path.is_dir() for path in args.images):
        say(args, found.describe())
    rows: list[dict[str, Any]] = []
    failures = []
    for start in range(0, len(found.images), _BATCH_SIZE):
        files, inputs = [], []
        for path in found.images[start : start + _BATCH_SIZE]:
            try:
                inputs.append(transform(read_image(Path(path), config["input_size"][0])))
            except ValueError as error:
                failures.append(str(error))
            else:
                files.append(path)
        if not files:
            continue
        with torch.inference_mode():
            logits = model(torch.stack(inputs).to(device)).float()
        check_results(logits)
        probabilities = logits.softmax(1).cpu()
        for path, top in zip(files, zip(*probabilities.topk(min(args.topk, len(names))), strict=True), strict=True):
            classes = [
                {"index": index, "name": names[index], "probability": probability}
                for probability, index in zip(*(values.tolist() for values in top), strict=True)
            ]
            rows.append({"file": path, "classes": classes})
            if not args.json:
                print(path, *(f"{100 * c['probability']:7.2f} %  {c['name']}" for c in classes), sep="\n")
    if args.json:
        print(to_json(rows, indent=2))
    if failures:
        raise ValueError("; ".join(failures))


def class_names(model: "Network", args: argparse.Namespace) -> list[str]:
    """A name for every class, from where the arguments say, the checkpoint or the weights' tag; else its index.

    Raises:
        ValueError: if the names that the user gives, or the checkpoint has, are not as many as the network's classes.
    """
    from adderzoo.catalogue import published_classes
    from adderzoo.files.weights import read_classes
    from adderzoo.models._state_dict import check_names

    names, source = None, ""
    if args.class_names:
        names, source = _read_lines(args.class_names), f"class-names {args.class_names}"
    elif args.checkpoint:
        names, source = read_classes(args.checkpoint), str(args.checkpoint)
    if names is not None:
        check_names(names, model, source)
        return names
    info = published_classes(model) if names_its_tag(args) else None
    return [info.index_to_description(index) if info else str(index) for index in range(model.num_classes)]


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"class-names {path} is no text in UTF-8: {error}") from error
