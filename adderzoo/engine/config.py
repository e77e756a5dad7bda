"""The options of a training.

The command's parser is made of them, and answers before PyTorch is imported: so nothing here imports it.
"""

import math
import shlex
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from .options import (
    ABOVE_ZERO,
    FINITE,
    NOT_NEGATIVE,
    SHARE,
    Check,
    Option,
    Options,
    at_least,
    dashed,
    given,
    option,
    options_of,
    without_tuples,
)

_AREAS = Check(
    "two numbers above 0, the smaller first", lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1] < math.inf
)
_EPOCHS = Check(
    "rising epochs from 1", lambda epochs: bool(epochs) and all(low < high for low, high in pairwise([0, *epochs]))
)
_BITS = Check("from 4 to 8", lambda bits: 4 <= bits <= 8)

_data = partial(option, group="data")
_images = partial(_data, task="classifiers")
_augment = partial(option, group="augmentation")
_augment_images = partial(_augment, task="classifiers")
_mix = partial(_augment, for_fit=True)
_step = partial(option, group="optimizer", for_fit=True)
_adder = partial(option, group="adder filters", for_fit=True)
_kd = partial(option, group="distillation", matters=given("kd"))
_schedule = partial(option, group="schedule", for_fit=True)
_machine = partial(option, group="machine", for_fit=True)
_output = partial(option, group="output", on_resume="", for_fit=True)

_LAST_BITS = "the result may differ in its last bits"
_RANDOM = "what is random may go on with other numbers"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training: all options of `adderzoo train`, by the same names, with underscores.

    They are checked when the object is made, but for what depends on network, data or device. Errors name options as
    the command does, with dashes. `dataclasses.replace` gives one with other options.

    Raises:
        ValueError: naming the option, its value and what it takes.
    """

    model: str = option("", "network, as timm.create_model takes it", metavar="NAME", letters="m", required=True)
    pretrained: bool = option(False, "start from the published weights of its tag", other_than="initial_checkpoint")
    initial_checkpoint: str | Path | None = option(
        None,
        "start from these weights, in either format; the classifier starts anew if it has other classes",
        metavar="FILE",
        path=True,
        other_than="pretrained",
    )
    num_classes: int | None = option(
        None,
        "classes of the network (those of the data set)",
        metavar="N",
        check=at_least(1),
        task="classifiers",
        for_fit=True,
    )
    model_kwargs: dict[str, Any] = option(
        {}, "such as drop_rate=0.1", metavar="KEY=VALUE", reserved=("num_classes", "pretrained")
    )

    data_dir: str | Path | None = _data(
        None,
        "folder of the data set. A folder of images has one folder a class inside train/, and inside "
        "validation/, val/ or test/; without these, one folder a class, and nothing is validated. Images may lie in "
        "folders inside a class's. Super-resolution has no classes, only images; DIV2K's own layout is taken too",
        metavar="DIR",
        on_resume="",
    )
    dataset: str = _images("", "data set as timm names it: torch/cifar10, torch/mnist, hfds/...", metavar="NAME")
    train_split: str = _data("train", "training images (%(default)s)", metavar="NAME")
    val_split: str | None = _data(
        None, 'validation images ("validation", or the folder that is there); "" for none', metavar="NAME"
    )
    class_map: str | Path = _images(
        "",
        "text file with the names of the classes, one a line in the order of their indices; others are left out "
        "(those of the training images, in the order of the weights to start from if these are for the same classes, "
        "else sorted, '10' before '2')",
        metavar="FILE",
    )
    dataset_download: bool = _images(False, "let torchvision download the data set", on_resume="")
    input_key: str | None = _images(None, "column of the images, of a hfds/ data set", metavar="KEY")
    target_key: str | None = _images(None, "column of the labels, of a hfds/ data set", metavar="KEY")
    img_size: int | None = _data(
        None,
        "height and width of the input (the network's; 48 for patches)",
        (None, 48),
        metavar="N",
        check=at_least(1),
    )
    batch_size: int | None = _data(
        None,
        "images a batch and process ({}; super-resolution: {})",
        (256, 16),
        metavar="N",
        letters="b",
        check=at_least(2),
    )
    epoch_repeats: int = _data(
        1,
        "super-resolution: patches of each image an epoch (%(default)s)",
        metavar="N",
        check=at_least(1),
        task="super-resolution",
    )
    validation_batch_size: int | None = _images(
        None,
        "images a batch of validation (the same)",
        metavar="N",
        letters="vb",
        check=at_least(1),
        on_resume=_LAST_BITS,
    )
    workers: int = _data(
        2, "loading processes (%(default)s)", metavar="N", letters="j", check=at_least(0), on_resume=_RANDOM
    )
    in_memory: bool | None = _data(
        None,
        "read all images once and augment them a batch at a time on the device; only shifts and flips (by default "
        "where that is all, up to 64x64 pixels and 2 GiB); patches: cut them from images in memory (up to 2 GiB)",
        on_resume=_RANDOM,
    )

    train_crop_mode: Literal["pad", "rrc", "rkrc", "rkrr"] | None = _augment_images(
        None,
        "pad: shifted by up to an eighth (the default up to 64x64); rrc: random area and aspect (the default "
        "beyond); rkrc, rkrr: timm's in between",
    )
    scale: Sequence[float] | None = _augment_images(
        None, "areas of rrc, of the image's (0.08 1)", metavar="X", count=2, check=_AREAS
    )
    ratio: Sequence[float] | None = _augment_images(
        None, "aspect ratios of rrc (0.75 1.33)", metavar="X", count=2, check=_AREAS
    )
    hflip: float = _augment_images(0.5, "probability of a flip (%(default)s); 0 for digits", metavar="P", check=SHARE)
    vflip: float = _augment_images(0.0, "of an upside-down flip (%(default)s)", metavar="P", check=SHARE)
    color_jitter: float = _augment_images(0.0, "strength (%(default)s)", metavar="X", check=NOT_NEGATIVE)
    aa: str | None = _augment_images(None, "timm's AutoAugment, such as rand-m9-mstd0.5", metavar="POLICY")
    reprob: float = _augment_images(0.0, "of random erasing (%(default)s)", metavar="P", check=SHARE)
    remode: Literal["const", "rand", "pixel"] = _augment("pixel", "(%(default)s)", matters=given("reprob"))
    recount: int = _augment(1, "areas erased (%(default)s)", metavar="N", check=at_least(1), matters=given("reprob"))
    mixup: float = _mix(0.0, "of mixup, above 0 to use it", metavar="ALPHA", check=NOT_NEGATIVE, task="classifiers")
    cutmix: float = _mix(0.0, "of CutMix, above 0 to use it", metavar="ALPHA", check=NOT_NEGATIVE, task="classifiers")
    mixup_prob: float = _mix(1.0, "of either (%(default)s)", metavar="P", check=SHARE, matters=given("mixup", "cutmix"))
    mixup_switch_prob: float = _mix(
        0.5,
        "of CutMix (%(default)s)",
        metavar="P",
        check=SHARE,
        matters=lambda options: bool(options["mixup"] and options["cutmix"]),
    )
    mixup_mode: Literal["batch", "pair", "elem"] = _mix("batch", "(%(default)s)", matters=given("mixup", "cutmix"))
    mixup_off_epoch: int = _mix(
        0, "last epoch of both (0: the last)", metavar="N", check=at_least(0), matters=given("mixup", "cutmix")
    )
    no_aug: bool = _augment(False, "none of what changes single images: only resize or cut")
    smoothing: float = _mix(0.0, "of the labels (%(default)s)", metavar="X", check=SHARE, task="classifiers")

    opt: str | None = _step(None, "as timm names it ({}; super-resolution: {})", ("momentum", "adam"), metavar="NAME")
    lr: float | None = _step(
        None, "learning rate (0.1 for SGD, else the optimizer's default)", metavar="X", check=FINITE
    )
    momentum: float = _step(0.9, "(%(default)s)", metavar="X", check=NOT_NEGATIVE)
    weight_decay: float | None = _step(None, "({}; super-resolution: {})", (5e-4, 0.0), metavar="X", check=NOT_NEGATIVE)
    opt_kwargs: dict[str, Any] = _step(
        {},
        "further arguments of it",
        metavar="KEY=VALUE",
        reserved=("opt", "lr", "momentum", "weight_decay", "eta", "filter_lr_scale"),
    )
    clip_grad: float | None = _step(None, "largest norm of the gradients (none)", metavar="X", check=ABOVE_ZERO)
    clip_mode: Literal["norm", "value", "agc"] = _step(
        "norm",
        "agc: of each unit, against its weights, but for the classifier (%(default)s)",
        matters=lambda options: options["clip_grad"] is not None,
    )
    grad_accum_steps: int = _step(1, "batches a step (%(default)s)", metavar="N", check=at_least(1))
    model_ema: bool = _step(False, "average the weights; validate and save the average")
    model_ema_decay: float = _step(0.9998, "a step (%(default)s)", metavar="X", check=SHARE, matters=given("model_ema"))
    model_ema_warmup: bool = _step(False, "a smaller decay in the beginning", matters=given("model_ema"))
    precise_bn: bool = _step(
        False,
        "measure BatchNorm's statistics anew from some thousand training images before each validation, as those "
        "of --model-ema always are: running ones lag behind adder filters at a high rate",
    )

    eta: float | None = _adder(
        None,
        "adaptive learning rate ({}; super-resolution: {}); 0 for none",
        (0.2, 50.0),
        metavar="X",
        check=NOT_NEGATIVE,
        other_than="filter_lr_scale",
        matters=lambda options: options["filter_lr_scale"] is None,
    )
    filter_lr_scale: float | None = _adder(
        None, "in its place: filters at X times --lr", metavar="X", check=ABOVE_ZERO, other_than="eta"
    )
    filter_grad: Literal["full", "sign"] = _adder("full", "gradient of the filters (%(default)s)", for_fit=False)
    input_grad: Literal["hardtanh", "sign"] = _adder("hardtanh", "gradient of inputs (%(default)s)", for_fit=False)
    quantize_bits: int | None = _adder(
        None,
        "fine-tune with what bytes of N bits (4 to 8) can hold. Ranges come from 512 training images and stay; "
        "accuracies are those with N bits. The files hold float weights and the ranges: `adderzoo quantize` makes "
        "integer networks of them",
        metavar="N",
        check=_BITS,
        task="classifiers",
        for_fit=False,
    )

    kd: Literal["logits", "pkkd"] | None = _kd(
        None,
        "learn from a teacher too: from the logits of a trained network; or from logits and layers of a CNN that "
        "is trained at the same time (progressive kernel-based knowledge distillation)",
        task="classifiers",
        matters=None,
    )
    kd_model_name: Sequence[str] | None = _kd(
        None,
        "teacher (the network's CNN twin, of the same tag); of several, for logits, the mean of their probabilities",
        metavar="NAME",
    )
    kd_checkpoint: Sequence[str | Path] | None = _kd(
        None,
        "its weights, for logits (the published ones of its tag); of several teachers one each, in their order",
        metavar="FILE",
        path=True,
    )
    kd_temperature: float = _kd(4.0, "that divides both logits (%(default)s)", metavar="X", check=ABOVE_ZERO)
    task_loss_weight: float | None = _kd(None, "of the loss by the labels (1)", metavar="X", check=NOT_NEGATIVE)
    distill_loss_weight: float | None = _kd(
        None,
        "of the loss by the teacher's logits (what --task-loss-weight leaves of 1, or 1 without it)",
        metavar="X",
        check=NOT_NEGATIVE,
    )
    feature_loss_weight: float = _kd(
        10.0,
        "of pkkd's loss by layers (%(default)s)",
        metavar="X",
        check=NOT_NEGATIVE,
        matters=lambda options: options["kd"] == "pkkd",
    )

    epochs: int = _schedule(
        400,
        "passes over the data (%(default)s)",
        metavar="N",
        check=at_least(1),
        on_resume="from here on the learning rate is that of a schedule of so many epochs",
    )
    sched: str = _schedule("cosine", "as timm names it; none for none (%(default)s)", metavar="NAME")
    sched_on_updates: bool = _schedule(
        False, "change the rate after every step", matters=lambda options: options["sched"] != "none"
    )
    min_lr: float = _schedule(
        0.0,
        "rate at the end (%(default)s)",
        metavar="X",
        check=NOT_NEGATIVE,
        matters=lambda options: options["sched"] != "none",
    )
    warmup_epochs: int = _schedule(0, "with a rising rate (%(default)s)", metavar="N", check=at_least(0))
    warmup_lr: float = _schedule(
        1e-5, "it rises from (%(default)s)", metavar="X", check=NOT_NEGATIVE, matters=given("warmup_epochs")
    )
    decay_epochs: float | None = _schedule(
        None,
        "between two steps of step (90); length of the fall of wsd and rsqrt, below 1 as a share (0.2)",
        metavar="N",
        check=ABOVE_ZERO,
    )
    decay_milestones: Sequence[int] = _schedule(
        [90, 180, 270],
        "epochs, of multistep",
        metavar="N",
        check=_EPOCHS,
        matters=lambda options: options["sched"] == "multistep",
    )
    decay_rate: float = _schedule(
        0.1,
        "of step and multistep; power of poly, where 1 is a straight line (%(default)s)",
        metavar="X",
        check=ABOVE_ZERO,
    )

    seed: int = _machine(42, "of everything random (%(default)s)", metavar="N", check=at_least(0))
    device: str = _machine("cpu", "such as cuda (%(default)s)", on_resume=_LAST_BITS)
    amp: bool = _machine(False, "run under autocast")
    amp_dtype: Literal["bfloat16", "float16"] = _machine("bfloat16", "of autocast (%(default)s)", matters=given("amp"))
    channels_last: bool = _machine(False, "use the channels_last memory format", on_resume=_LAST_BITS)
    torchcompile: str | None = _machine(
        None, "compile the network", metavar="BACKEND", const="inductor", on_resume=_LAST_BITS
    )
    sync_bn: bool = _machine(False, "BatchNorm over the images of all processes, on GPUs; else each its own")

    output: str | Path = _output("output/train", "folder of trainings (%(default)s)", metavar="DIR", path=True)
    experiment: str | None = _output(
        None,
        "folder in it (time and network), for best.safetensors, last.safetensors, state.pt, summary.csv, "
        "curves.png and args.yaml",
        metavar="NAME",
    )
    resume: bool = _output(
        False,
        "go on after the last complete epoch of this experiment, with the same options but for those of how it "
        "runs (--workers, --validation-batch-size, --device ...) and --epochs: more of them train longer, from there "
        "on at the learning rates of the longer schedule; begin if there is none",
    )
    log_tensorboard: bool = _output(False, "write events for TensorBoard too")

    def __post_init__(self) -> None:
        for each in train_options():
            object.__setattr__(self, each.name, each.take(getattr(self, each.name)))
        chosen = {each.name: each for each in train_options() if getattr(self, each.name) != each.default}
        for each in chosen.values():
            if each.about.other_than in chosen:
                raise ValueError(f"{each.dashed} cannot be given with {dashed(each.about.other_than)}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup-epochs must be fewer than the {self.epochs} epochs, got {self.warmup_epochs}")
        useless = [each.dashed for each in chosen.values() if each.about.group == "distillation"]
        if useless and not self.kd:
            raise ValueError(f"{useless[0]} needs --kd")
        if self.kd == "logits":
            self._check_logits(chosen)
        if self.kd == "pkkd":
            self._check_pkkd()
        if self.resume and not self.experiment:
            raise ValueError("resume needs --experiment: the name of the training to go on with")
        if (self.mixup or self.cutmix) and self.batch_size and self.batch_size % 2:
            raise ValueError(f"batch-size must be even for mixup and CutMix, got {self.batch_size}")

    def _check_logits(self, chosen: Container[str]) -> None:
        if "feature_loss_weight" in chosen:
            raise ValueError("feature-loss-weight is for --kd pkkd")
        teachers, files = len(self.kd_model_name or [None]), self.kd_checkpoint
        if files and len(files) != teachers:
            raise ValueError(f"kd-checkpoint must be a file for each of {teachers} kd-model-name, got {len(files)}")

    def _check_pkkd(self) -> None:
        names = list(self.kd_model_name or ())
        if self.kd_checkpoint:
            raise ValueError("kd-checkpoint is for --kd logits: the teacher of pkkd is trained at the same time")
        if len(names) > 1:
            raise ValueError(f"kd-model-name must be one for --kd pkkd, got {', '.join(names)}")
        if self.clip_grad is not None:
            raise ValueError("clip-grad cannot be used with --kd pkkd, whose teacher is to take steps of its own")
        if self.torchcompile:
            raise ValueError("torchcompile cannot be used with --kd pkkd, which reads the outputs of layers")
        if self.quantize_bits is not None:
            raise ValueError("quantize-bits cannot be used with --kd pkkd, whose student has float layers")
        if "layer_decay" in self.opt_kwargs:
            raise ValueError("opt-kwargs layer_decay cannot be used with --kd pkkd, which trains two networks")

    def for_task(self, super_resolution: bool) -> "TrainConfig":
        """The same training, with what is usual for the task where nothing was given.

        Raises:
            ValueError: if an option was given that is for the other task, or for trained weights alone.
        """
        other = "classifiers" if super_resolution else "super-resolution"
        kind = "for super-resolution" if super_resolution else "a classifier"
        usual = {}
        for each in train_options():
            value, about = getattr(self, each.name), each.about
            if about.task == other and value != each.default:
                raise ValueError(f"{each.dashed} is for {other}, but {self.model} is {kind}")
            if value is None and about.by_task and not (about.other_than and getattr(self, about.other_than)):
                usual[each.name] = about.by_task[super_resolution]
        if self.quantize_bits is not None and not (self.pretrained or self.initial_checkpoint):
            raise ValueError("quantize-bits is for trained weights: give --pretrained or --initial-checkpoint")
        return replace(self, **usual)

    def as_dict(self) -> dict[str, Any]:
        """The options as args.yaml has them: numbers, texts, True, False, None, lists and dicts of these."""
        return {each.name: without_tuples(getattr(self, each.name)) for each in train_options()}

    @classmethod
    def from_dict(cls, options: Options) -> "TrainConfig":
        """The training that :meth:`as_dict` gave, or an args.yaml holds.

        Raises:
            ValueError: as the class, or if there are others than its options.
        """
        known = {each.name for each in train_options()}
        options = {name: value for name, value in options.items() if name != "processes"}  # how many torchrun started
        if strange := [str(name) for name in options if name not in known]:
            raise ValueError(f"options must be those of a training, got {', '.join(strange)}")
        return cls(**options)

    def command(self) -> str:
        """The command of this training, with the options that are not as by default, but without `--resume`."""
        words = ["adderzoo", "train"]
        for each in train_options():
            value = getattr(self, each.name)
            if value != each.default and each.name != "resume":
                words += each.words(value)
        return shlex.join(words)


@cache
def train_options() -> tuple[Option, ...]:
    """The fields of :class:`TrainConfig` as options, in their order."""
    return options_of(TrainConfig)


def _documented() -> str:
    lines = [f"        {each.name}: {each.about.help % {'default': each.default}}." for each in train_options()]
    return "\n".join([f"{TrainConfig.__doc__}", "    Attributes:", *lines, "    "])


TrainConfig.__doc__ = _documented()
