"""The network that a command works with: its arguments, and opening it."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from adderzoo.files.foreign import weights_in

from ._parser import Parser

if TYPE_CHECKING:
    import torch

    from adderzoo.layers.modules import Network


def add_network_arguments(parser: Parser, required: bool = True, classifier: bool = True) -> None:
    """Those that :func:`open_network` reads.

    Args:
        parser: Of the command.
        required: Whether the network has to be named.
        classifier: Whether it may be one, which has classes, and images of any channels, mean and deviation.
    """
    parser.add_argument(
        "-m",
        "--model",
        metavar="NAME",
        required=required,
        help="NAME.TAG: a network with the published weights of this tag; NAME without a tag: with those of its "
        "first one (`adderzoo list --pretrained` shows them); or a file that `adderzoo train`, `quantize` or "
        "`convert` has written, or the folder of a training",
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint",
        metavar="FILE",
        type=weights_in,
        help="load these weights in place of the published ones: a safetensors file, a PyTorch checkpoint, or the "
        "folder of a training",
    )
    weights.add_argument(
        "--random-weights",
        action="store_true",
        help="use random weights; needed for a network that has no published ones (default: published weights)",
    )
    if not classifier:
        parser.set_defaults(num_classes=None, in_chans=None, mean=None, std=None)
        add_model_kwargs(parser)
        return
    parser.share(
        "num_classes",
        help="number of classes (default: that of the weights)",
    )
    parser.share(
        "in_chans",
        help="number of image channels: 1 for gray, 3 for color; the first filters of published weights are "
        "adapted as in timm (default: that of the weights)",
    )
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        parser.share(
            name,
            help=f"{what} to normalize images with, for values from 0 to 1: one number, or one per channel "
            "(default: that of the weights)",
        )
    add_model_kwargs(parser)


def add_device_argument(parser: Parser) -> None:
    parser.share(
        "device",
        help="where the network runs: cpu, cuda, cuda:1 and so on; auto for a GPU if PyTorch can use one, else the CPU "
        "(default: %(default)s)",
    )


def add_model_kwargs(parser: Parser) -> None:
    parser.share(
        "model_kwargs",
        reserved=(),  # open_network knows which options there are
        help="further arguments of the network, such as scale=3 (default: those stored with the weights)",
    )


def open_network(
    args: argparse.Namespace, device: "torch.device | None" = None, quiet: bool = False, any_task: bool = False
) -> Any:
    """The network that the arguments ask for, with its weights; a line says which, unless `quiet`.

    Afterwards `args.model` is its name, with the tag of published weights, `args.checkpoint` the file that its weights
    are from, else None, `args.published` whether they are the tag's, and `args.weights` what to say of them.

    Args:
        args: Those of :func:`add_network_arguments`.
        device: Where the network is moved to.
        quiet: Say nothing.
        any_task: Take networks for super-resolution too.

    Raises:
        ValueError: as :func:`adderzoo.checkpoints.open_network`, or if it is no classifier, unless `any_task`.
    """
    from adderzoo.checkpoints import open_network
    from adderzoo.models import check_classifier

    arguments: dict[str, Any] = args.model_kwargs
    taken = {"checkpoint", "from_command", "model", "random_weights"}
    for key in ("in_chans", "mean", "num_classes", "pretrained", "std"):
        if key in arguments:
            option = {"pretrained": "random-weights"}.get(key, key.replace("_", "-"))
            raise ValueError(f"model-kwargs must not have {key}: there is --{option}")
    if wrong := taken & arguments.keys():
        raise ValueError(f"model-kwargs must be arguments of the network, got {', '.join(sorted(wrong))}")
    opened = open_network(
        args.model,
        args.checkpoint,
        args.random_weights,
        args.num_classes,
        in_chans=args.in_chans,
        mean=args.mean,
        std=args.std,
        from_command=True,
        **arguments,
    )
    if not any_task:
        check_classifier(opened.network, opened.name)
    args.model, args.checkpoint, args.published = opened.name, opened.checkpoint, opened.published
    args.weights = opened.weights
    if not quiet:
        say(args, f"{opened.name}, {opened.weights}{'' if device is None else f', on {describe(device)}'}")
        if args.in_chans is not None and not (args.mean and args.std):
            config = opened.network.pretrained_cfg
            numbers = (" ".join(f"{value:.4g}" for value in config[key]) for key in ("mean", "std"))
            say(args, "images are normalized with mean {} and std {}".format(*numbers))
    return opened.network if device is None else opened.network.to(device)


def describe(device: "torch.device") -> str:
    """A device for people: "cpu", or "cuda:0 (NVIDIA H100)"."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def names_its_tag(args: argparse.Namespace) -> bool:
    """Whether the user says that the weights are for the classes of a tag: another checkpoint's need not be."""
    return args.published or "." in args.model


def known_classes(model: "Network", args: argparse.Namespace, dataset: Any) -> list[str] | None:
    """The names of a network's classes in its order, as folders have them: of the checkpoint's metadata, or of its tag.

    Those of a tag are taken if the data set has no others; else for folders alone, and if the user names the tag.
    """
    from adderzoo.catalogue import published_classes
    from adderzoo.data import class_names, is_folder, match_names
    from adderzoo.files.weights import read_classes

    names = read_classes(args.checkpoint) if args.checkpoint else None
    if names is not None:
        return names
    info = published_classes(model)
    names = info and [info.index_to_label_name(index) for index in range(model.num_classes)]
    if not names or (is_folder(dataset) and names_its_tag(args)):
        return names
    found = class_names(dataset)
    return names if len(match_names(found, names)) == len(found) else None


def say(args: argparse.Namespace, text: str) -> None:
    """A line for the person at the terminal; standard output is for results."""
    print(f"adderzoo {args.command}: {text}", file=sys.stderr)
