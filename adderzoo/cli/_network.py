"""The network that a command works with: its arguments, and opening it."""

import argparse
import ast
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adderzoo.files.foreign import shown, weights_in

if TYPE_CHECKING:
    import torch


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


def key_and_value(text: str) -> tuple[str, Any]:
    """An argument of the form KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


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


def published_classes(model: Any) -> Any:
    """What timm knows about the classes of a network's tag, if the network still has these; else None."""
    from timm.data import CustomDatasetInfo, ImageNetInfo, infer_imagenet_subset

    config = model.pretrained_cfg
    if config.get("num_classes") != model.num_classes:
        return None
    if config.get("label_names"):
        info: Any = CustomDatasetInfo(config["label_names"], config.get("label_descriptions"))
    elif subset := infer_imagenet_subset(model):
        info = ImageNetInfo(subset)
    else:
        return None
    # Others are left over from before a new classifier was saved.
    return info if info.num_classes() == model.num_classes else None


def names_its_tag(args: argparse.Namespace) -> bool:
    """Whether the user says that the weights are for the classes of a tag: another checkpoint's need not be."""
    return args.pretrained or "." in args.model


def known_classes(model: Any, args: argparse.Namespace, dataset: Any) -> list[str] | None:
    """The names of a network's classes in its order, as folders have them: of the checkpoint's metadata, or of its tag.

    Those of a tag are taken if the data set has no others; else for folders alone, and if the user names the tag.
    """
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


def check_channels(config: dict[str, Any], args: argparse.Namespace) -> None:
    """Refuse a network whose images have other channels than those of its data configuration, which prepares them.

    Args:
        config: As timm's `resolve_model_data_config` gives it.
        args: Those of :func:`add_network_arguments`.

    Raises:
        ValueError: naming the argument.
    """
    channels = config["input_size"][0]
    given = dict(args.model_kwargs).get("in_chans", channels)
    if given != channels:
        raise ValueError(
            f"model-kwargs in_chans must be {channels}, the channels of the network's data configuration, got {given}"
        )
    for key in ("mean", "std"):  # metadata may have them without an input_size to fit to
        if len(config[key]) not in (1, channels):
            raise ValueError(f"{args.model} takes images of {channels} channels, but its {key} is {shown(config[key])}")


def open_device(name: str, rank: int | None = None) -> "torch.device":
    """A device that can be used; in a process group, the process's own GPU.

    Raises:
        ValueError: naming the device, if it cannot be used.
    """
    import torch

    try:
        device = torch.device(name)
        if rank is not None and device.type == "cuda":
            device = torch.device("cuda", rank)
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()  # "meta" has no values to give
    except (AssertionError, RuntimeError) as error:
        reason = re.split(r"(?<=\.)\s|\n", str(error))[0]  # PyTorch lists all that it has on other devices
        raise ValueError(f"device {name!r} cannot be used: {reason}") from error
    return device


def say(args: argparse.Namespace, text: str) -> None:
    """A line for the person at the terminal; standard output is for results."""
    print(f"adderzoo {args.command}: {text}", file=sys.stderr)


@dataclass(frozen=True)
class Group:
    """This process among those that torchrun has started; by itself, the first of one."""

    device: "torch.device"
    rank: int
    processes: int


@contextmanager
def open_group(device: str) -> Iterator[Group]:
    """The process group, for as long as the context lasts.

    Raises:
        ValueError: naming the device, if it cannot be used.
        ConnectionError: if another process of the group has failed.
    """
    import torch.distributed as dist

    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if processes == 1:
        yield Group(open_device(device), 0, 1)
        return
    opened = open_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if opened.type == "cuda" else "gloo")
    try:
        yield Group(opened, rank, processes)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ConnectionError("another process of the group has failed") from error
    finally:
        dist.destroy_process_group()
