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

from adderzoo.files.foreign import check_model_args, of_network

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
_MEANS = Check("finite numbers", lambda values: bool(values) and all(map(math.isfinite, values)))
_STDS = Check("finite numbers above 0", lambda values: bool(values) and all(0 < value < math.inf for value in values))
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

    model: str = option(
        "",
        "name of the network, as timm.create_model takes it. With a tag, such as adder_resnet20.cifar10, the "
        "training starts from the tag's published weights; without one from random weights, unless "
        "--pretrained or --initial-checkpoint is given",
        metavar="NAME",
        letters="m",
        required=True,
    )
    pretrained: bool | None = option(
        None,
        "start from the published weights of the tag in --model, or of the network's first tag; "
        "--no-pretrained: from random ones (default: published weights if --model has a tag with some)",
        other_than="initial_checkpoint",
    )
    initial_checkpoint: str | Path | None = option(
        None,
        "start from these weights: a safetensors file, a PyTorch checkpoint, or the folder of a training; the "
        "last layer starts from random weights if the classes differ (default: none)",
        metavar="FILE",
        path=True,
        other_than="pretrained",
    )
    num_classes: int | None = option(
        None,
        "number of classes (default: that of the data set)",
        metavar="N",
        check=at_least(1),
        task="classifiers",
        for_fit=True,
    )
    in_chans: int | None = option(
        None,
        "number of image channels: 1 for gray, 3 for color; the first filters of published weights are adapted "
        "as in timm (default: that of the network)",
        metavar="N",
        check=at_least(1),
        task="classifiers",
    )
    model_kwargs: dict[str, Any] = option(
        {},
        "further arguments of the network, such as drop_rate=0.1 (default: none)",
        metavar="KEY=VALUE",
        reserved=("num_classes", "in_chans", "pretrained"),
    )

    data_dir: str | Path | None = _data(
        None,
        "folder of the data set: train/CLASS/IMAGE, and val/, validation/ or test/ likewise; or CLASS/IMAGE, "
        "then nothing is validated. Images may lie in folders inside a class. For super-resolution there are "
        "no classes, only images; DIV2K's own layout is read too",
        metavar="DIR",
        on_resume="",
    )
    dataset: str = _images(
        "",
        "data set by timm's name: torch/cifar10, torch/mnist, hfds/... (default: the folder's images)",
        metavar="NAME",
    )
    train_split: str = _data("train", "part of the data set to train on (default: %(default)s)", metavar="NAME")
    val_split: str | None = _data(
        None,
        'part of the data set to validate on after each epoch; "" for none (default: validation; in a folder '
        "the first that is there of validation/, val/, valid/, eval/, evaluation/ and test/)",
        metavar="NAME",
    )
    class_map: str | Path = _images(
        "",
        "text file with the names of the classes, one per line, in the order of their indices; other classes "
        "are left out (default: the classes of the training images, in the order that the start weights have "
        "if they know the same ones, else sorted as text, '10' before '2')",
        metavar="FILE",
    )
    dataset_download: bool = _images(
        False, "let torchvision download the data set (default: it has to be there)", on_resume=""
    )
    input_key: str | None = _images(None, "column of the images in a hfds/ data set (default: image)", metavar="KEY")
    target_key: str | None = _images(None, "column of the labels in a hfds/ data set (default: label)", metavar="KEY")
    img_size: int | None = _data(
        None,
        "height and width that images are resized to (default: the network's); super-resolution: size of the "
        "small patches (default: {1})",
        (None, 48),
        metavar="N",
        check=at_least(1),
    )
    mean: Sequence[float] | None = _images(
        None,
        "mean to normalize images with, for values from 0 to 1: one number, or one per channel (default: that "
        "of the start weights, or of the network)",
        metavar="X",
        check=_MEANS,
    )
    std: Sequence[float] | None = _images(
        None,
        "standard deviation to normalize images with, likewise (default: that of the start weights, or of the network)",
        metavar="X",
        check=_STDS,
    )
    batch_size: int | None = _data(
        None,
        "images per batch, in each process (default: {}, fine-tuning: {}, super-resolution: {}; at most all images)",
        (256, 16),
        fine_tuning=32,
        metavar="N",
        letters="b",
        check=at_least(2),
    )
    epoch_repeats: int = _data(
        1,
        "super-resolution: patches cut from each image per epoch (default: %(default)s)",
        metavar="N",
        check=at_least(1),
        task="super-resolution",
    )
    validation_batch_size: int | None = _images(
        None,
        "images per batch in validation (default: as --batch-size)",
        metavar="N",
        letters="vb",
        check=at_least(1),
        on_resume=_LAST_BITS,
    )
    workers: int = _data(
        2,
        "worker processes that load images; 0 loads them in the main process (default: %(default)s)",
        metavar="N",
        letters="j",
        check=at_least(0),
        on_resume=_RANDOM,
    )
    in_memory: bool | None = _data(
        None,
        "read all images once and keep them in memory; they are shifted and flipped a batch at a time, on the "
        "device (default: for up to 2 GiB of images of at most 64x64 pixels without other augmentation; "
        "super-resolution: for up to 2 GiB)",
        on_resume=_RANDOM,
    )

    train_crop_mode: Literal["pad", "rrc", "rkrc", "rkrr"] | None = _augment_images(
        None,
        "how training images are cropped: pad shifts them by up to an eighth; rrc cuts random areas of random "
        "aspect ratio (random resized crop); rkrc and rkrr are timm's modes of these names (default: pad up to "
        "64x64 pixels, rrc beyond)",
    )
    scale: Sequence[float] | None = _augment_images(
        None,
        "smallest and largest area of an rrc crop, as shares of the image (default: 0.08 1)",
        metavar="X",
        count=2,
        check=_AREAS,
    )
    ratio: Sequence[float] | None = _augment_images(
        None,
        "smallest and largest aspect ratio of an rrc crop (default: 0.75 1.33)",
        metavar="X",
        count=2,
        check=_AREAS,
    )
    hflip: float | None = _augment_images(
        None,
        "probability that an image is flipped left to right; use 0 where that changes what it shows, as with "
        "digits (default: 0.5; 0 when fine-tuning a network for gray images)",
        metavar="P",
        check=SHARE,
    )
    vflip: float = _augment_images(
        0.0, "probability that an image is turned upside down (default: %(default)s)", metavar="P", check=SHARE
    )
    color_jitter: float = _augment_images(
        0.0,
        "strength of random changes of brightness, contrast and saturation (default: %(default)s)",
        metavar="X",
        check=NOT_NEGATIVE,
    )
    aa: str | None = _augment_images(
        None, "policy of timm's AutoAugment, such as rand-m9-mstd0.5 (default: none)", metavar="POLICY"
    )
    reprob: float = _augment_images(
        0.0, "probability of random erasing (default: %(default)s)", metavar="P", check=SHARE
    )
    remode: Literal["const", "rand", "pixel"] = _augment(
        "pixel",
        "what an erased area becomes: black, one random color, or a random color a pixel (default: %(default)s)",
        matters=given("reprob"),
    )
    recount: int = _augment(
        1,
        "areas that are erased in an image (default: %(default)s)",
        metavar="N",
        check=at_least(1),
        matters=given("reprob"),
    )
    mixup: float = _mix(
        0.0,
        "alpha of mixup; 0 for no mixup (default: %(default)s)",
        metavar="ALPHA",
        check=NOT_NEGATIVE,
        task="classifiers",
    )
    cutmix: float = _mix(
        0.0,
        "alpha of CutMix; 0 for no CutMix (default: %(default)s)",
        metavar="ALPHA",
        check=NOT_NEGATIVE,
        task="classifiers",
    )
    mixup_prob: float = _mix(
        1.0,
        "probability that a batch is mixed, where mixup or CutMix is used (default: %(default)s)",
        metavar="P",
        check=SHARE,
        matters=given("mixup", "cutmix"),
    )
    mixup_switch_prob: float = _mix(
        0.5,
        "probability of CutMix, where both are used (default: %(default)s)",
        metavar="P",
        check=SHARE,
        matters=lambda options: bool(options["mixup"] and options["cutmix"]),
    )
    mixup_mode: Literal["batch", "pair", "elem"] = _mix(
        "batch",
        "mix with one random share per batch, per pair of images, or per image (default: %(default)s)",
        matters=given("mixup", "cutmix"),
    )
    mixup_off_epoch: int = _mix(
        0,
        "last epoch with mixup or CutMix; 0 for all epochs (default: %(default)s)",
        metavar="N",
        check=at_least(0),
        matters=given("mixup", "cutmix"),
    )
    no_aug: bool = _augment(
        False, "only resize and crop training images, nothing random (default: the augmentation of the other options)"
    )
    smoothing: float = _mix(0.0, "label smoothing (default: %(default)s)", metavar="X", check=SHARE, task="classifiers")

    opt: str | None = _step(
        None,
        "optimizer by timm's name; momentum is SGD with momentum (default: {}, super-resolution: {})",
        ("momentum", "adam"),
        metavar="NAME",
    )
    lr: float | None = _step(
        None,
        "learning rate (default: 0.1 for SGD in all its variants, else the optimizer's own; fine-tuning: a fifth of "
        "it)",
        metavar="X",
        check=FINITE,
    )
    momentum: float = _step(
        0.9, "momentum of optimizers that have one (default: %(default)s)", metavar="X", check=NOT_NEGATIVE
    )
    weight_decay: float | None = _step(
        None, "weight decay (default: {}, super-resolution: {})", (5e-4, 0.0), metavar="X", check=NOT_NEGATIVE
    )
    opt_kwargs: dict[str, Any] = _step(
        {},
        "further arguments of the optimizer, such as eps=1e-3 (default: none)",
        metavar="KEY=VALUE",
        reserved=("opt", "lr", "momentum", "weight_decay", "eta", "filter_lr_scale"),
    )
    clip_grad: float | None = _step(
        None, "largest norm, or value, of the gradients (default: not clipped)", metavar="X", check=ABOVE_ZERO
    )
    clip_mode: Literal["norm", "value", "agc"] = _step(
        "norm",
        "what --clip-grad clips: the norm of all gradients, each value, or (agc) the norm of each unit "
        "relative to that of its weights, except in the last layer (default: %(default)s)",
        matters=lambda options: options["clip_grad"] is not None,
    )
    grad_accum_steps: int = _step(
        1, "batches whose gradients are accumulated for one step (default: %(default)s)", metavar="N", check=at_least(1)
    )
    model_ema: bool = _step(
        False, "keep a moving average of the weights; validate and save the average (default: no average)"
    )
    model_ema_decay: float = _step(
        0.9998,
        "decay of the moving average (default: %(default)s)",
        metavar="X",
        check=SHARE,
        matters=given("model_ema"),
    )
    model_ema_warmup: bool = _step(
        False, "begin with a smaller decay (default: the same decay in all steps)", matters=given("model_ema")
    )
    precise_bn: bool = _step(
        False,
        "before each validation, recompute BatchNorm's statistics on some thousand training images, as "
        "--model-ema always does: running statistics lag behind when adder filters change fast (default: "
        "running statistics)",
    )

    eta: float | None = _adder(
        None,
        "factor of the adaptive learning rate of adder filters; 0 for none (default: {}, super-resolution: {})",
        (0.2, 50.0),
        metavar="X",
        check=NOT_NEGATIVE,
        other_than="filter_lr_scale",
        matters=lambda options: options["filter_lr_scale"] is None,
    )
    filter_lr_scale: float | None = _adder(
        None,
        "train adder filters at X times --lr in place of the adaptive rate (default: at the adaptive rate)",
        metavar="X",
        check=ABOVE_ZERO,
        other_than="eta",
    )
    filter_grad: Literal["full", "sign"] = _adder(
        "full",
        "gradient of adder filters: X - F in full precision, or its sign (default: %(default)s)",
        for_fit=False,
    )
    input_grad: Literal["hardtanh", "sign"] = _adder(
        "hardtanh",
        "gradient of the inputs of adder layers: F - X clipped to [-1, 1], or its sign (default: %(default)s)",
        for_fit=False,
    )
    quantize_bits: int | None = _adder(
        None,
        "quantization-aware fine-tuning: round the values of adder layers as N bits (4 to 8) do. Ranges are "
        "measured once, on 512 training images; accuracies are those with N bits. The files hold float weights "
        "and the ranges, of which `adderzoo quantize` makes an integer network (default: float numbers)",
        metavar="N",
        check=_BITS,
        task="classifiers",
        for_fit=False,
    )

    kd: Literal["logits", "pkkd"] | None = _kd(
        None,
        "learn from a teacher too. logits: from the logits of a trained network; pkkd: from logits and layers "
        "of a CNN that is trained at the same time, progressive kernel-based knowledge distillation (default: "
        "no teacher)",
        task="classifiers",
        matters=None,
    )
    kd_model_name: Sequence[str] | None = _kd(
        None,
        "name of the teacher; with several, for logits alone, the mean of their probabilities is learned "
        "(default: the network's CNN twin, with the same tag)",
        metavar="NAME",
    )
    kd_checkpoint: Sequence[str | Path] | None = _kd(
        None,
        "file with the weights of the teacher, for logits alone; with several teachers one file each, in the "
        "same order (default: the published weights of its tag)",
        metavar="FILE",
        path=True,
    )
    kd_temperature: float = _kd(
        4.0, "temperature that divides the logits of both (default: %(default)s)", metavar="X", check=ABOVE_ZERO
    )
    task_loss_weight: float | None = _kd(
        None, "weight of the loss on the labels (default: 1)", metavar="X", check=NOT_NEGATIVE
    )
    distill_loss_weight: float | None = _kd(
        None,
        "weight of the loss on the teacher's logits (default: 1 minus --task-loss-weight, or 1 without it)",
        metavar="X",
        check=NOT_NEGATIVE,
    )
    feature_loss_weight: float = _kd(
        10.0,
        "weight of the loss on layers, for pkkd (default: %(default)s)",
        metavar="X",
        check=NOT_NEGATIVE,
        matters=lambda options: options["kd"] == "pkkd",
    )

    epochs: int | None = _schedule(
        None,
        "passes over the training images (default: {}, fine-tuning: {}, super-resolution: {})",
        (400, 400),
        fine_tuning=30,
        metavar="N",
        check=at_least(1),
        on_resume="from here on the learning rate is that of a schedule of so many epochs",
    )
    sched: Literal["cosine", "step", "multistep", "poly", "plateau", "tanh", "wsd", "rsqrt", "constant", "none"] = (
        _schedule("cosine", "schedule of the learning rate, as timm names it (default: %(default)s)")
    )
    sched_on_updates: bool = _schedule(
        False,
        "change the learning rate after every step (default: after every epoch)",
        matters=lambda options: options["sched"] != "none",
    )
    min_lr: float = _schedule(
        0.0,
        "learning rate at the end of the schedule (default: %(default)s)",
        metavar="X",
        check=NOT_NEGATIVE,
        matters=lambda options: options["sched"] != "none",
    )
    warmup_epochs: int = _schedule(
        0,
        "epochs over which the learning rate rises at the start (default: %(default)s)",
        metavar="N",
        check=at_least(0),
    )
    warmup_lr: float = _schedule(
        1e-5,
        "learning rate at the start of warmup (default: %(default)s)",
        metavar="X",
        check=NOT_NEGATIVE,
        matters=given("warmup_epochs"),
    )
    decay_epochs: float | None = _schedule(
        None,
        "step: epochs between two falls of the learning rate; wsd and rsqrt: length of the final fall in "
        "epochs, or below 1 as a share of all (default: 90 for step, else 0.2)",
        metavar="N",
        check=ABOVE_ZERO,
    )
    decay_milestones: Sequence[int] = _schedule(
        [90, 180, 270],
        "multistep: epochs at which the learning rate falls (default: 90 180 270)",
        metavar="N",
        check=_EPOCHS,
        matters=lambda options: options["sched"] == "multistep",
    )
    decay_rate: float = _schedule(
        0.1,
        "step and multistep: factor of the learning rate at each fall; poly: its power, where 1 is a straight "
        "line (default: %(default)s)",
        metavar="X",
        check=ABOVE_ZERO,
    )

    seed: int = _machine(42, "random seed (default: %(default)s)", metavar="N", check=at_least(0))
    device: str = _machine(
        "auto",
        "where the network is trained: cpu, cuda, cuda:1 and so on; auto for a GPU if PyTorch can use one, else the "
        "CPU (default: %(default)s)",
        metavar="DEVICE",
        on_resume=_LAST_BITS,
    )
    amp: bool = _machine(False, "compute in half precision where that is safe, by autocast (default: in float32)")
    amp_dtype: Literal["bfloat16", "float16"] = _machine(
        "bfloat16", "type of the numbers under --amp (default: %(default)s)", matters=given("amp")
    )
    channels_last: bool = _machine(
        False, "use the channels_last memory format (default: PyTorch's usual one)", on_resume=_LAST_BITS
    )
    torchcompile: str | None = _machine(
        None,
        "compile the network with torch.compile and this backend, inductor if none is named (default: not compiled)",
        metavar="BACKEND",
        const="inductor",
        on_resume=_LAST_BITS,
    )
    sync_bn: bool = _machine(
        False, "BatchNorm over the images of all processes, on GPUs (default: over each process's own)"
    )

    output: str | Path = _output(
        "output/train", "folder in which each training gets a folder (default: %(default)s)", metavar="DIR", path=True
    )
    experiment: str | None = _output(
        None,
        "name of this training's folder in --output, which gets best.safetensors, last.safetensors, state.pt, "
        "summary.csv, curves.png and args.yaml (default: time and network)",
        metavar="NAME",
    )
    resume: bool = _output(
        False,
        "continue --experiment after its last complete epoch, or begin it if it is not there. Options must be "
        "the same, except for how it runs (--workers, --validation-batch-size, --device ...) and --epochs: "
        "with more epochs it goes on at the learning rates of the longer schedule (default: a new training)",
    )
    log_tensorboard: bool = _output(False, "also write events for TensorBoard (default: only summary.csv)")

    def __post_init__(self) -> None:
        for each in train_options():
            object.__setattr__(self, each.name, each.take(getattr(self, each.name)))
        chosen = {each.name: each for each in train_options() if getattr(self, each.name) != each.default}
        for each in chosen.values():
            if each.about.other_than in chosen:
                raise ValueError(f"{each.dashed} cannot be given with {dashed(each.about.other_than)}")
        try:
            check_model_args(of_network(self.model_kwargs))  # which the weights' metadata are to have
        except ValueError as error:
            raise ValueError(f"model-kwargs cannot be used: {error}") from error
        if self.epochs is not None and self.warmup_epochs >= self.epochs:
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

    @property
    def starts_trained(self) -> bool:
        """Whether there are weights to start from, of a config for its task."""
        return bool(self.pretrained or self.initial_checkpoint)

    def for_task(self, super_resolution: bool, published: bool = False) -> "TrainConfig":
        """The same training, with what is usual for the task where nothing was given.

        Args:
            super_resolution: Whether the task is that.
            published: Whether the name of the network is that of published weights, by its tag.

        Raises:
            ValueError: if an option was given that is for the other task, or for trained weights alone.
        """
        pretrained = published and not self.initial_checkpoint if self.pretrained is None else self.pretrained
        config = replace(self, pretrained=None if self.initial_checkpoint else pretrained)
        other = "classifiers" if super_resolution else "super-resolution"
        kind = "for super-resolution" if super_resolution else "a classifier"
        usual = {}
        for each in train_options():
            value, about = getattr(config, each.name), each.about
            if about.task == other and value != each.default:
                raise ValueError(f"{each.dashed} is for {other}, but {self.model} is {kind}")
            if (
                value is None
                and each.name != "batch_size"
                and not (about.other_than and getattr(self, about.other_than))
            ):
                usual[each.name] = about.usual(super_resolution, config.starts_trained)
        if self.quantize_bits is not None and not config.starts_trained:
            raise ValueError("quantize-bits is for trained weights: give --pretrained or --initial-checkpoint")
        return replace(config, **usual)

    def for_data(self, super_resolution: bool, images: int, channels: int, processes: int = 1) -> "TrainConfig":
        """The same training, for its task already, with what is usual for the images where nothing was given.

        Args:
            super_resolution: Whether the task is that.
            images: What is trained on in an epoch.
            channels: Of them.
            processes: That share them.

        Raises:
            ValueError: if they are too few for any batch.
        """
        usual: dict[str, Any] = {}
        if self.hflip is None and not super_resolution:
            usual["hflip"] = 0.0 if self.starts_trained and channels == 1 else 0.5
        if self.batch_size is None:
            most = images // processes
            if most < 2:
                raise ValueError(f"there must be at least 2 training images, for each process, got {images}")
            batch_size = min(_BATCH_SIZE.usual(super_resolution, self.starts_trained), most)
            usual["batch_size"] = batch_size - batch_size % 2 if self.mixup or self.cutmix else batch_size
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


_BATCH_SIZE = next(each.about for each in train_options() if each.name == "batch_size")


def _documented() -> str:
    lines = [f"        {each.name}: {each.about.help % {'default': each.default}}." for each in train_options()]
    return "\n".join([f"{TrainConfig.__doc__}", "    Attributes:", *lines, "    "])


TrainConfig.__doc__ = _documented()
