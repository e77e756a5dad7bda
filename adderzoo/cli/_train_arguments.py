"""The options of `adderzoo train`, named as in timm's training script, and what is wrong with their values."""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from ._network import key_and_value

# Of options that differ: for classifiers (the paper's recipe for CIFAR-10), and for super-resolution.
DEFAULTS = {
    "batch_size": (256, 16),
    "img_size": (None, 48),
    "opt": ("momentum", "adam"),
    "weight_decay": (5e-4, 0.0),
    "eta": (0.2, 50.0),
}


def _defaults(name: str) -> str:
    return "({}; super-resolution: {})".format(*DEFAULTS[name])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    recipe = (
        "The defaults are the paper's recipe for CIFAR-10: SGD, cosine schedule, weight decay on all parameters, and "
        "the adaptive learning rate for adder filters. Networks for super-resolution are trained on patches of images, "
        "which are made smaller unless that is done already: L1 loss, Adam, adder filters at eta times the learning "
        "rate. Options are named as in timm's training script. Under torchrun, several processes train together."
    )
    parser.description = f"{parser.description} {recipe}"
    parser.add_argument("--model", metavar="NAME", required=True, help="network, as timm.create_model takes it")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="start from the published weights of its tag")
    weights.add_argument(
        "--initial-checkpoint",
        metavar="FILE",
        type=Path,
        help="start from these weights, in either format; the classifier starts anew if it has other classes",
    )
    parser.add_argument("--num-classes", metavar="N", type=int, help="classes of the network (those of the data set)")
    parser.add_argument(
        "--model-kwargs", metavar="KEY=VALUE", nargs="*", default=[], type=key_and_value, help="such as drop_rate=0.1"
    )
    _add_data(parser.add_argument_group("data"))
    _add_augmentation(parser.add_argument_group("augmentation"))
    _add_optimizer(parser.add_argument_group("optimizer"))
    _add_adder(parser.add_argument_group("adder filters"))
    _add_distillation(parser.add_argument_group("distillation"))
    _add_schedule(parser.add_argument_group("schedule"))
    _add_machine(parser.add_argument_group("machine"))
    _add_output(parser.add_argument_group("output"))


def _add_data(data: argparse._ArgumentGroup) -> None:
    data.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder of the data set. A folder of images has one folder a class inside train/, and inside "
        "validation/, val/ or test/; without these, one folder a class, and nothing is validated. Images may lie in "
        "folders inside a class's. Super-resolution has no classes, only images; DIV2K's own layout is taken too",
    )
    data.add_argument(
        "--dataset", metavar="NAME", default="", help="data set as timm names it: torch/cifar10, torch/mnist, hfds/..."
    )
    data.add_argument("--train-split", metavar="NAME", default="train", help="training images (%(default)s)")
    data.add_argument(
        "--val-split", metavar="NAME", help='validation images ("validation", or the folder that is there); "" for none'
    )
    data.add_argument(
        "--class-map",
        metavar="FILE",
        default="",
        help="text file with the names of the classes, one a line in the order of their indices; others are left out "
        "(those of the training images, in the order of the weights to start from if these are for the same classes, "
        "else sorted, '10' before '2')",
    )
    data.add_argument("--dataset-download", action="store_true", help="let torchvision download the data set")
    data.add_argument("--input-key", metavar="KEY", help="column of the images, of a hfds/ data set")
    data.add_argument("--target-key", metavar="KEY", help="column of the labels, of a hfds/ data set")
    data.add_argument(
        "--img-size", metavar="N", type=int, help="height and width of the input (the network's; 48 for patches)"
    )
    data.add_argument(
        "-b", "--batch-size", metavar="N", type=int, help=f"images a batch and process {_defaults('batch_size')}"
    )
    data.add_argument(
        "--epoch-repeats",
        metavar="N",
        type=int,
        default=1,
        help="super-resolution: patches of each image an epoch (%(default)s)",
    )
    data.add_argument(
        "-vb", "--validation-batch-size", metavar="N", type=int, help="images a batch of validation (the same)"
    )
    data.add_argument("-j", "--workers", metavar="N", type=int, default=2, help="loading processes (%(default)s)")
    data.add_argument(
        "--in-memory",
        action=argparse.BooleanOptionalAction,
        help="read all images once and augment them a batch at a time on the device; only shifts and flips (by default "
        "where that is all, up to 64x64 pixels and 2 GiB); patches: cut them from images in memory (up to 2 GiB)",
    )


def _add_augmentation(augment: argparse._ArgumentGroup) -> None:
    augment.add_argument(
        "--train-crop-mode",
        choices=("pad", "rrc", "rkrc", "rkrr"),
        help="pad: shifted by up to an eighth (the default up to 64x64); rrc: random area and aspect (the default "
        "beyond); rkrc, rkrr: timm's in between",
    )
    augment.add_argument("--scale", metavar="X", type=float, nargs=2, help="areas of rrc, of the image's (0.08 1)")
    augment.add_argument("--ratio", metavar="X", type=float, nargs=2, help="aspect ratios of rrc (0.75 1.33)")
    augment.add_argument(
        "--hflip", metavar="P", type=float, default=0.5, help="probability of a flip (%(default)s); 0 for digits"
    )
    augment.add_argument("--vflip", metavar="P", type=float, default=0.0, help="of an upside-down flip (%(default)s)")
    augment.add_argument("--color-jitter", metavar="X", type=float, default=0.0, help="strength (%(default)s)")
    augment.add_argument("--aa", metavar="POLICY", help="timm's AutoAugment, such as rand-m9-mstd0.5")
    augment.add_argument("--reprob", metavar="P", type=float, default=0.0, help="of random erasing (%(default)s)")
    augment.add_argument("--remode", choices=("const", "rand", "pixel"), default="pixel", help="(%(default)s)")
    augment.add_argument("--recount", metavar="N", type=int, default=1, help="areas erased (%(default)s)")
    augment.add_argument("--mixup", metavar="ALPHA", type=float, default=0.0, help="of mixup, above 0 to use it")
    augment.add_argument("--cutmix", metavar="ALPHA", type=float, default=0.0, help="of CutMix, above 0 to use it")
    augment.add_argument("--mixup-prob", metavar="P", type=float, default=1.0, help="of either (%(default)s)")
    augment.add_argument("--mixup-switch-prob", metavar="P", type=float, default=0.5, help="of CutMix (%(default)s)")
    augment.add_argument("--mixup-mode", choices=("batch", "pair", "elem"), default="batch", help="(%(default)s)")
    augment.add_argument("--mixup-off-epoch", metavar="N", type=int, default=0, help="last epoch of both (0: the last)")
    augment.add_argument("--no-aug", action="store_true", help="none of what changes single images: only resize or cut")
    augment.add_argument("--smoothing", metavar="X", type=float, default=0.0, help="of the labels (%(default)s)")


def _add_optimizer(step: argparse._ArgumentGroup) -> None:
    step.add_argument("--opt", metavar="NAME", help=f"as timm names it {_defaults('opt')}")
    step.add_argument("--lr", metavar="X", type=float, help="learning rate (0.1 for SGD, else the optimizer's default)")
    step.add_argument("--momentum", metavar="X", type=float, default=0.9, help="(%(default)s)")
    step.add_argument("--weight-decay", metavar="X", type=float, help=_defaults("weight_decay"))
    step.add_argument(
        "--opt-kwargs", metavar="KEY=VALUE", nargs="*", default=[], type=key_and_value, help="further arguments of it"
    )
    step.add_argument("--clip-grad", metavar="X", type=float, help="largest norm of the gradients (none)")
    step.add_argument(
        "--clip-mode",
        choices=("norm", "value", "agc"),
        default="norm",
        help="agc: of each unit, against its weights, but for the classifier (%(default)s)",
    )
    step.add_argument("--grad-accum-steps", metavar="N", type=int, default=1, help="batches a step (%(default)s)")
    step.add_argument("--model-ema", action="store_true", help="average the weights; validate and save the average")
    step.add_argument("--model-ema-decay", metavar="X", type=float, default=0.9998, help="a step (%(default)s)")
    step.add_argument("--model-ema-warmup", action="store_true", help="a smaller decay in the beginning")
    step.add_argument(
        "--precise-bn",
        action="store_true",
        help="measure BatchNorm's statistics anew from some thousand training images before each validation, as those "
        "of --model-ema always are: running ones lag behind adder filters at a high rate",
    )


def _add_adder(adder: argparse._ArgumentGroup) -> None:
    rate = adder.add_mutually_exclusive_group()
    rate.add_argument("--eta", metavar="X", type=float, help=f"adaptive learning rate {_defaults('eta')}; 0 for none")
    rate.add_argument("--filter-lr-scale", metavar="X", type=float, help="in its place: filters at X times --lr")
    adder.add_argument(
        "--filter-grad", choices=("full", "sign"), default="full", help="gradient of the filters (%(default)s)"
    )
    adder.add_argument(
        "--input-grad", choices=("hardtanh", "sign"), default="hardtanh", help="gradient of inputs (%(default)s)"
    )
    adder.add_argument(
        "--quantize-bits",
        metavar="N",
        type=int,
        help="fine-tune with what bytes of N bits (4 to 8) can hold. Ranges come from 512 training images and stay; "
        "accuracies are those with N bits. The files hold float weights and the ranges: `adderzoo quantize` makes "
        "integer networks of them",
    )


def _add_distillation(kd: argparse._ArgumentGroup) -> None:
    kd.add_argument(
        "--kd",
        choices=("logits", "pkkd"),
        help="learn from a teacher too: from the logits of a trained network; or from logits and layers of a CNN that "
        "is trained at the same time (progressive kernel-based knowledge distillation)",
    )
    kd.add_argument(
        "--kd-model-name",
        metavar="NAME",
        nargs="+",
        help="teacher (the network's CNN twin, of the same tag); of several, for logits, the mean of their "
        "probabilities",
    )
    kd.add_argument(
        "--kd-checkpoint",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="its weights, for logits (the published ones of its tag); of several teachers one each, in their order",
    )
    kd.add_argument(
        "--kd-temperature", metavar="X", type=float, default=4.0, help="that divides both logits (%(default)s)"
    )
    kd.add_argument("--task-loss-weight", metavar="X", type=float, help="of the loss by the labels (1)")
    kd.add_argument(
        "--distill-loss-weight",
        metavar="X",
        type=float,
        help="of the loss by the teacher's logits (what --task-loss-weight leaves of 1, or 1 without it)",
    )
    kd.add_argument(
        "--feature-loss-weight", metavar="X", type=float, default=10.0, help="of pkkd's loss by layers (%(default)s)"
    )


def _add_schedule(schedule: argparse._ArgumentGroup) -> None:
    schedule.add_argument("--epochs", metavar="N", type=int, default=400, help="passes over the data (%(default)s)")
    schedule.add_argument(
        "--sched", metavar="NAME", default="cosine", help="as timm names it; none for none (%(default)s)"
    )
    schedule.add_argument("--sched-on-updates", action="store_true", help="change the rate after every step")
    schedule.add_argument("--min-lr", metavar="X", type=float, default=0.0, help="rate at the end (%(default)s)")
    schedule.add_argument("--warmup-epochs", metavar="N", type=int, default=0, help="with a rising rate (%(default)s)")
    schedule.add_argument("--warmup-lr", metavar="X", type=float, default=1e-5, help="it rises from (%(default)s)")
    schedule.add_argument(
        "--decay-epochs",
        metavar="N",
        type=float,
        help="between two steps of step (90); length of the fall of wsd and rsqrt, below 1 as a share (0.2)",
    )
    schedule.add_argument(
        "--decay-milestones", metavar="N", type=int, nargs="+", default=[90, 180, 270], help="epochs, of multistep"
    )
    schedule.add_argument(
        "--decay-rate",
        metavar="X",
        type=float,
        default=0.1,
        help="of step and multistep; power of poly, where 1 is a straight line (%(default)s)",
    )


def _add_machine(machine: argparse._ArgumentGroup) -> None:
    machine.add_argument("--seed", metavar="N", type=int, default=42, help="of everything random (%(default)s)")
    machine.add_argument("--device", default="cpu", help="such as cuda (%(default)s)")
    machine.add_argument("--amp", action="store_true", help="run under autocast")
    machine.add_argument(
        "--amp-dtype", choices=("bfloat16", "float16"), default="bfloat16", help="of autocast (%(default)s)"
    )
    machine.add_argument("--channels-last", action="store_true", help="use the channels_last memory format")
    machine.add_argument("--torchcompile", metavar="BACKEND", nargs="?", const="inductor", help="compile the network")
    machine.add_argument(
        "--sync-bn", action="store_true", help="BatchNorm over the images of all processes, on GPUs; else each its own"
    )


def _add_output(output: argparse._ArgumentGroup) -> None:
    output.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("output/train"), help="folder of trainings (%(default)s)"
    )
    output.add_argument(
        "--experiment",
        metavar="NAME",
        help="folder in it (time and network), for best.safetensors, last.safetensors, state.pt, summary.csv, "
        "curves.png and args.yaml",
    )
    output.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last complete epoch of this experiment, with the same options but for those of how it "
        "runs (--workers, --validation-batch-size, --device ...) and --epochs: more of them train longer, from there "
        "on at the learning rates of the longer schedule; begin if there is none",
    )
    output.add_argument("--log-tensorboard", action="store_true", help="write events for TensorBoard too")


_LEAST = {
    "batch_size": 2,
    "validation_batch_size": 1,
    "epochs": 1,
    "epoch_repeats": 1,
    "num_classes": 1,
    "img_size": 1,
    "workers": 0,
    "warmup_epochs": 0,
    "seed": 0,
    "grad_accum_steps": 1,
    "recount": 1,
    "mixup_off_epoch": 0,
}
_SHARES = ("hflip", "vflip", "smoothing", "reprob", "mixup_prob", "mixup_switch_prob", "model_ema_decay")
_NOT_NEGATIVE = (
    *("color_jitter", "eta", "mixup", "cutmix", "momentum", "weight_decay", "min_lr", "warmup_lr"),
    *("task_loss_weight", "distill_loss_weight", "feature_loss_weight"),
)
_ABOVE_ZERO = ("filter_lr_scale", "clip_grad", "decay_epochs", "decay_rate", "kd_temperature")
_RANGES = ("scale", "ratio")
# What KEY=VALUE does not give, because there are options for it.
_KEYS = {
    "model_kwargs": ("num_classes", "pretrained"),
    "opt_kwargs": ("opt", "lr", "momentum", "weight_decay", "eta", "filter_lr_scale"),
}


# Options that mean nothing to a network without classes.
_CLASSIFIERS_ALONE: tuple[str, ...] = (
    "num_classes",
    "dataset",
    "class_map",
    "dataset_download",
    "input_key",
    "target_key",
    "validation_batch_size",
    "train_crop_mode",
    "scale",
    "ratio",
    "hflip",
    "vflip",
    "color_jitter",
    "aa",
    "reprob",
    "mixup",
    "cutmix",
    "smoothing",
    "quantize_bits",
    "kd",
)

# Options that mean nothing without a teacher.
_DISTILLATION = (
    "kd_model_name",
    "kd_checkpoint",
    "kd_temperature",
    "task_loss_weight",
    "distill_loss_weight",
    "feature_loss_weight",
)


def default_arguments(model: str) -> argparse.Namespace:
    """The arguments where only the network is given."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--model", model])


def fill_defaults(args: argparse.Namespace, super_resolution: bool) -> None:
    """Give the options that were not given what is usual for the task."""
    for name, values in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, values[super_resolution])


def check(args: argparse.Namespace, super_resolution: bool) -> None:
    """Refuse values that nothing checks later.

    Raises:
        ValueError: naming the option, its value and what it takes.
    """
    defaults = default_arguments(args.model)
    strange, whose, kind = _CLASSIFIERS_ALONE, "classifiers", "for super-resolution"
    if not super_resolution:
        strange, whose, kind = ("epoch_repeats",), "super-resolution", "a classifier"
    for name in strange:
        if getattr(args, name) != getattr(defaults, name):
            raise ValueError(f"{name.replace('_', '-')} is for {whose}, but {args.model} is {kind}")
    for name, minimum in _LEAST.items():
        value = getattr(args, name)
        _require(value is None or value >= minimum, name, f"at least {minimum}", value)
    for name in _SHARES:
        _require(0 <= getattr(args, name) <= 1, name, "from 0 to 1", getattr(args, name))
    for name in _NOT_NEGATIVE:
        value = getattr(args, name)
        _require(value is None or 0 <= value < math.inf, name, "a finite number from 0", value)
    for name in _ABOVE_ZERO:
        value = getattr(args, name)
        _require(value is None or 0 < value < math.inf, name, "a finite number above 0", value)
    for name in _RANGES:
        low, high = getattr(args, name) or (1, 1)
        _require(0 < low <= high < math.inf, name, "two numbers above 0, the smaller first", getattr(args, name))
    for name, keys in _KEYS.items():
        for key, value in getattr(args, name):
            if key in keys:
                raise ValueError(f"{name.replace('_', '-')} must not have {key}: there is --{key.replace('_', '-')}")
            _check_value(f"{name.replace('_', '-')} {key}", value)
    _require(args.lr is None or math.isfinite(args.lr), "lr", "a finite number", args.lr)
    _require(
        all(low < high for low, high in pairwise([0, *args.decay_milestones])),
        "decay_milestones",
        "rising epochs from 1",
        args.decay_milestones,
    )
    _require(args.quantize_bits in (None, *range(4, 9)), "quantize_bits", "from 4 to 8", args.quantize_bits)
    _require(
        args.warmup_epochs < args.epochs, "warmup_epochs", f"fewer than the {args.epochs} epochs", args.warmup_epochs
    )
    if args.quantize_bits is not None and not (args.pretrained or args.initial_checkpoint):
        raise ValueError("quantize-bits is for trained weights: give --pretrained or --initial-checkpoint")
    _check_distillation(args, defaults)
    if args.resume and not args.experiment:
        raise ValueError("resume needs --experiment: the name of the training to go on with")
    if args.log_tensorboard and find_spec("tensorboard") is None:
        raise ValueError("log-tensorboard needs tensorboard: pip install 'adderzoo[log]'")
    if (args.mixup or args.cutmix) and args.batch_size % 2:
        raise ValueError(f"batch-size must be even for mixup and CutMix, got {args.batch_size}")


def _check_distillation(args: argparse.Namespace, defaults: argparse.Namespace) -> None:
    given = [name for name in _DISTILLATION if getattr(args, name) != getattr(defaults, name)]
    if given and not args.kd:
        raise ValueError(f"{given[0].replace('_', '-')} needs --kd")
    if args.kd == "logits" and "feature_loss_weight" in given:
        raise ValueError("feature-loss-weight is for --kd pkkd")
    teachers, files = len(args.kd_model_name or [None]), args.kd_checkpoint or []
    if args.kd == "logits" and files and len(files) != teachers:
        raise ValueError(f"kd-checkpoint must be a file for each of {teachers} kd-model-name, got {len(files)}")
    if args.kd == "pkkd":
        if args.kd_checkpoint:
            raise ValueError("kd-checkpoint is for --kd logits: the teacher of pkkd is trained at the same time")
        if teachers > 1:
            raise ValueError(f"kd-model-name must be one for --kd pkkd, got {', '.join(args.kd_model_name)}")
        if args.clip_grad is not None:
            raise ValueError("clip-grad cannot be used with --kd pkkd, whose teacher is to take steps of its own")
        if args.torchcompile:
            raise ValueError("torchcompile cannot be used with --kd pkkd, which reads the outputs of layers")
        if args.quantize_bits is not None:
            raise ValueError("quantize-bits cannot be used with --kd pkkd, whose student has float layers")
        if "layer_decay" in dict(args.opt_kwargs):
            raise ValueError("opt-kwargs layer_decay cannot be used with --kd pkkd, which trains two networks")


_BITS = "the result may differ in its last bits"
_RANDOM = "what is random may go on with other numbers"

# Options that may be others when a training is resumed, and what that does; "" for nothing.
MAY_CHANGE = {
    "data_dir": "",
    "dataset_download": "",
    "experiment": "",
    "log_tensorboard": "",
    "output": "",
    "resume": "",
    "channels_last": _BITS,
    "device": _BITS,
    "epochs": "from here on the learning rate is that of a schedule of so many epochs",
    "in_memory": _RANDOM,
    "torchcompile": _BITS,
    "validation_batch_size": _BITS,
    "workers": _RANDOM,
}


def _sched(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda options: options["sched"] in names


def _any(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda options: any(options[name] for name in names)


# When an option has an effect, for those that have none by themselves.
_NEEDS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    **dict.fromkeys(_DISTILLATION, _any("kd")),
    "feature_loss_weight": lambda options: options["kd"] == "pkkd",
    "amp_dtype": _any("amp"),
    "clip_mode": lambda options: options["clip_grad"] is not None,
    **dict.fromkeys(("model_ema_decay", "model_ema_warmup"), _any("model_ema")),
    **dict.fromkeys(("mixup_prob", "mixup_mode", "mixup_off_epoch"), _any("mixup", "cutmix")),
    "mixup_switch_prob": lambda options: bool(options["mixup"] and options["cutmix"]),
    **dict.fromkeys(("remode", "recount"), _any("reprob")),
    "warmup_lr": _any("warmup_epochs"),
    "min_lr": lambda options: options["sched"] != "none",
    "sched_on_updates": lambda options: options["sched"] != "none",
    "decay_milestones": _sched("multistep"),
    "eta": lambda options: options["filter_lr_scale"] is None,
}


def changed_options(known: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """The options that differ, but for those without effect in both trainings."""
    return [
        key
        for key in options
        if known[key] != options[key] and any(_NEEDS.get(key, lambda _: True)(each) for each in (known, options))
    ]


def _check_value(name: str, value: object) -> None:
    """Refuse what neither args.yaml nor the weights' metadata can hold, such as a complex number."""
    try:
        json.dumps(value)
    except TypeError as error:
        raise ValueError(
            f"{name} must be a number, a text, True, False, None or a list of these, got {value!r}"
        ) from error


def _require(holds: bool, name: str, what: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name.replace('_', '-')} must be {what}, got {got}")
