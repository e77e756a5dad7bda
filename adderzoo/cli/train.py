"""`adderzoo train`."""

import argparse
import ctypes
import sys
from typing import Any

from adderzoo.cli._signals import Stopped
from adderzoo.engine.config import TrainConfig, train_options

from ._network import say
from ._parser import Parser, add_option

__all__ = ["add_arguments", "run"]

_RECIPE = (
    "Without weights to start from, the defaults are the paper's recipe for CIFAR-10: SGD, cosine schedule, "
    "weight decay on all parameters, and the adaptive learning rate for adder filters. With weights to start "
    "from (-m NAME.TAG), they are a recipe for fine-tuning that needs no further options: 30 epochs at a low "
    "learning rate. The first line that is printed says what is used. Networks for super-resolution are "
    "trained on patches of images, which are made smaller if there are no small ones: L1 loss, Adam, adder "
    "filters at --eta times the learning rate. Options are named as in timm's training script. Under torchrun, "
    "several processes train together."
)


def add_arguments(parser: Parser) -> None:
    """An argument for each field of :class:`TrainConfig`."""
    parser.explain(
        "DIR -m NAME [options]",
        "adderzoo train demo/digits -m adder_lenet5.digits",
        "adderzoo train demo/digits -m adder_lenet5 --epochs 2 --batch-size 32 --hflip 0",
        description=_RECIPE,
    )
    parser.add_data_dir()
    groups: dict[str, Any] = {"": parser}
    alternatives: dict[str | None, Any] = {}
    for option in train_options():
        about = option.about
        if option.name == "data_dir":
            continue
        if about.group not in groups:
            groups[about.group] = parser.add_argument_group(about.group)
        group = groups[about.group]
        if about.other_than:
            if option.name not in alternatives:
                alternatives[about.other_than] = group.add_mutually_exclusive_group()
            group = alternatives.get(option.name) or alternatives[about.other_than]
        add_option(group, option)


def config_of(args: argparse.Namespace) -> TrainConfig:
    """The training that parsed arguments describe."""
    given = {option.name: getattr(args, option.name) for option in train_options()}
    return TrainConfig(**given | {key: dict(given[key]) for key in ("model_kwargs", "opt_kwargs")})


def run(args: argparse.Namespace) -> None:
    config = config_of(args)

    from tqdm import tqdm

    from adderzoo.engine import train

    def tell(what: object) -> None:
        tqdm.write(str(what))
        sys.stdout.flush()  # a log file is to have the line when the epoch is over

    _keep_memory()
    try:
        train(config, tell, lambda text: say(args, text))
    except KeyboardInterrupt as error:
        raise Stopped(*error.args) from None


def _keep_memory() -> None:
    """Let glibc keep what a step frees for the next: fresh pages from the kernel are a third of a small CNN's step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**25)  # the largest that it takes
