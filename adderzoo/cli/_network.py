"""The network that a command works with: its arguments, and opening it."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adderzoo.files.foreign import weights_in

from ._parser import key_and_value

if TYPE_CHECKING:
    from adderzoo.layers.modules import Network


def add_network_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--model", metavar="NAME", required=required, help="network, as timm.create_model takes it")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="with the published weights of its tag")
    weights.add_argument(
        "--checkpoint", metavar="FILE", type=weights_in, help="with these weights, in either format; or their folder"
    )
    parser.add_argument(
        "--num-classes",
        metavar="N",
        type=int,
        help="classes of the network, if neither its default nor in the checkpoint's metadata",
    )
    add_model_kwargs(parser)


def add_model_kwargs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-kwargs",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        type=key_and_value,
        help="further arguments of the network, such as scale=3, if not in the checkpoint's metadata",
    )


def load_or_create(
    name: str,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    **arguments: Any,
) -> Any:
    """A network with the weights of a checkpoint, with published ones, or random ones.

    Raises:
        ValueError: as :func:`adderzoo.load`, or if there is no such network, with these arguments.
    """
    from adderzoo.checkpoints import check_num_classes, create_with, load

    if checkpoint:
        if taken := {"path", "model", "other_classes"} & arguments.keys():
            raise ValueError(f"model-kwargs must be arguments of the network, got {', '.join(sorted(taken))}")
        return load(checkpoint, name, num_classes, **arguments)
    if num_classes is not None:
        check_num_classes(num_classes)
        arguments["num_classes"] = num_classes
    return create_with(name, {"pretrained": pretrained, **arguments})


def open_network(args: argparse.Namespace, quiet: bool = False, any_task: bool = False) -> Any:
    """The network that the arguments ask for; weights that stay random are said to be, unless `quiet`.

    Raises:
        ValueError: as :func:`load_or_create`, or if it is no classifier, unless `any_task`.
    """
    from adderzoo.models import check_classifier

    for key in ("num_classes", "pretrained"):
        if key in dict(args.model_kwargs):
            raise ValueError(f"model-kwargs must not have {key}: there is --{key.replace('_', '-')}")
    arguments = dict(args.model_kwargs)
    model = load_or_create(args.model, args.pretrained, args.checkpoint, args.num_classes, **arguments)
    if not any_task:
        check_classifier(model, args.model)
    if quiet or args.checkpoint or not any(True for _ in model.parameters()):
        return model
    trained = model.pretrained_cfg.get("num_classes")
    if not args.pretrained:
        say(args, "neither --pretrained nor --checkpoint: random weights")
    elif model.num_classes != trained:
        say(args, f"the published weights are for {trained} classes: random weights in the classifier")
    return model


def names_its_tag(args: argparse.Namespace) -> bool:
    """Whether the user says that the weights are for the classes of a tag: another checkpoint's need not be."""
    return args.pretrained or "." in args.model


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
