"""A training from its options to its files: :func:`train`, and :func:`fit` for a network and images of one's own."""

import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.task import TrainingTask
from timm.utils import ModelEmaV3, NativeScaler, random_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from adderzoo.catalogue import task
from adderzoo.checkpoints import check_name, names_weights
from adderzoo.files.foreign import of_network, to_json
from adderzoo.files.output import check_output_folder, check_text
from adderzoo.files.weights import check_metadata

from .config import TrainConfig, train_options
from .curves import draw_curves
from .evaluation import Result, evaluate
from .files import best_epoch, check_folder, check_known_classes, read_state, write_epoch, write_options
from .group import Group, open_group
from .optimization import create_optimizer, create_scheduler
from .students import (
    check_forward,
    create,
    create_distillation,
    open_student,
    origin,
    place,
    teachers_of,
    with_arguments_of_start,
)
from .super_resolution import SuperResolutionResult
from .tasks import Classification, SuperResolution, classification_loss
from .training import Epoch, Recipe, Training, run_epochs

Tell = Callable[[object], None]
Warn = Callable[[str], None]
Measure = Callable[[nn.Module], Result | SuperResolutionResult]

# Of the learning rate that trains a network from scratch, for one that is trained already.
_FINE_TUNING_SHARE = 0.2


@dataclass(frozen=True)
class TrainResult:
    """What a training has come to.

    Attributes:
        model: The network behind the last epoch, the averaged one if there is one, in evaluation mode. What the best
            epoch was measured with lies in `weights`.
        history: The epochs, with all that was measured.
        best: The one of highest top-1 accuracy, or PSNR, on the validation images; None without such.
        folder: Where the files are; None for none.
        weights: best.safetensors there, or last.safetensors without validation images.
    """

    model: nn.Module
    history: list[Epoch]
    best: Epoch | None
    folder: Path | None
    weights: Path | None

    def __str__(self) -> str:
        text = f"best: epoch {self.best.epoch}, {self.best.describe_score()}" if self.best else "done"
        return f"{text} {self.folder}" if self.folder else text


def train(config: TrainConfig, tell: Tell | None = None, warn: Warn = warnings.warn) -> TrainResult:
    """Train a network, or fine-tune one, on images: all that `adderzoo train` does, with the same results to the bit.

    Under torchrun every process calls it; the first writes and tells. It seeds the random numbers of Python, NumPy and
    PyTorch.

    Args:
        config: The options.
        tell: Gets what there is to say: a line ahead of the first epoch, each :class:`Epoch` when its files are
            written, and the result. `print`, for one; None for nobody, beside the progress bar.
        warn: Gets a line that says what may not be meant.

    Returns:
        The network, its measures, and where its files are.

    Raises:
        ValueError: naming the option, image or file, if something cannot be used, ahead of the first epoch and of the
            first file; if a loss or the network is not finite later, what earlier epochs have written stays.
        OSError: if a file cannot be read or written.
        ConnectionError: if another process of the group has failed.
        KeyboardInterrupt: with a message that says how far it has come.
    """
    command = config.command()
    check_name(config.model)
    config = with_arguments_of_start(config)
    config = config.for_task(task(config.model) == "super-resolution", names_weights(config.model))
    with open_group(config.device) as group:
        folder = Path(config.output, config.experiment or "")
        _check_output(config, group, folder)
        if group.processes > 1 and not config.experiment:
            raise ValueError("several processes need --experiment: the name of their common folder")
        if group.processes > 1 and config.dataset_download:
            raise ValueError("dataset-download is for one process, several would write the same files: download first")
        if group.processes > 1 and config.quantize_bits is not None:
            raise ValueError("quantize-bits is for one process, several would see other ranges")
        if not config.experiment:
            folder /= f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model.replace('/', '_')}"
        run = _Run(config, group, folder, tell if group.rank == 0 else None, warn if group.rank == 0 else _silent)
        return _train(run, command)


def _train(run: "_Run", command: str) -> TrainResult:
    config, group = run.config, run.group
    random_seed(config.seed)
    kind = SuperResolution if task(config.model) == "super-resolution" else Classification
    network = create(config)
    _check_spelling(config, network)
    data = kind(config, network, group.processes)
    config = data.config
    run = replace(run, config=config)
    random_seed(config.seed)
    model = open_student(config, group, data.num_classes)
    model.pretrained_cfg.update(data.data_config)
    data.check(model)
    check_forward(config, group, model, data.input_size)
    run.check(data.classes if isinstance(data, Classification) else None)
    distillation = None
    if isinstance(data, Classification):
        if config.quantize_bits is not None:
            model = data.calibrate(model, group)
        if config.kd:
            distillation = create_distillation(config, group, model, data, run.warn)
    loader, validate = data.open_loaders(group)
    recipe = create_recipe(config, group, data.loss(), data.accuracy, model.num_classes)
    training = create_training(config, group, model, distillation, len(loader))
    metadata = {
        "architecture": config.model.partition(".")[0],
        "num_classes": str(model.num_classes),
        "command": command,
        **data.metadata(model),
        **origin(config, model),
    }
    arguments = of_network(config.model_kwargs)
    if config.in_chans is not None:
        arguments["in_chans"] = config.in_chans
    if arguments:
        metadata["model_args"] = to_json(arguments)
    check_metadata(metadata)
    measure = (lambda network: validate(network, recipe)) if validate else None
    recipe_line = _describe(config, group, training, metadata.get("trained_from", ""))
    run.begin(training, len(loader), f"{recipe_line}\n{config.model}: {data.describe(model)}")
    return run.finish(training, loader, recipe, measure, metadata)


def _check_spelling(config: TrainConfig, network: nn.Module) -> None:
    """Refuse what an option names that is not there, before images are read."""
    optimizer = _optimizer(config, network)
    create_scheduler(optimizer, config.sched, config.epochs or 1, int(config.sched_on_updates), **_schedule(config))
    if config.torchcompile:
        _compiled(nn.Identity(), config.torchcompile)
    if config.kd:
        teachers_of(config)


def _describe(config: TrainConfig, group: Group, training: Training, start: str) -> str:
    """Network, weights, device and recipe, in a line."""
    weights = "random weights"
    if config.initial_checkpoint:
        weights = f"fine-tuned from {config.initial_checkpoint}"
    elif config.pretrained:
        weights = f"fine-tuned from the published weights of {start}"
    steps = f"{config.epochs} epochs in batches of {config.batch_size}"
    rate = f"{config.opt} at a learning rate of {training.lr:.4g}"
    flips = "" if config.hflip is None or config.no_aug else f", --hflip {config.hflip:g}"
    return f"{config.model}, {weights}, on {group.device}: {steps}, {rate}{flips}"


def fit(
    model: nn.Module,
    loader: Any,
    config: TrainConfig,
    validation: Any = None,
    loss: nn.Module | None = None,
    tell: Tell | None = None,
) -> TrainResult:
    """Train a network of one's own on batches of one's own, with the steps that the options describe.

    The files of :func:`train` are written, and a training can be resumed, where `config.experiment` names a folder;
    else none are. Batches are what `loader` gives: under torchrun, each process has to have its share.

    Args:
        model: Any network; it is changed in place, and brought to `config.device`.
        loader: Batches of inputs (N, ...) and targets, as many in each epoch; its `len` is their number, and if it has
            `set_epoch`, that is called ahead of each epoch.
        config: The options; those of network, data, single images and teachers have to be as by default. `batch_size`
            is the loader's.
        validation: Batches of inputs and class indices (N,), or a function that measures a network; None for neither.
        loss: Of the network's output and the target; None for the cross-entropy of logits (N, classes) and class
            indices, with what else `config` says of it. Another one counts no accuracy.
        tell: As for :func:`train`.

    Returns:
        The network and its measures.

    Raises:
        ValueError: as :func:`train`, or if an option was given that has no meaning here.
    """
    for option in train_options():
        if not option.about.for_fit and getattr(config, option.name) != option.default:
            raise ValueError(f"{option.dashed} is for adderzoo.train: fit takes network and images as they are")
        if option.about.group == "output" and getattr(config, option.name) != option.default and not config.experiment:
            raise ValueError(f"{option.dashed} needs --experiment: without it, fit writes no files")
    if not (isinstance(loader, Sized) and _can_be_read_again(loader)):
        raise ValueError(f"loader must have a length, the batches of an epoch, got {type(loader).__name__}")
    if not (validation is None or callable(validation) or _can_be_read_again(validation)):
        raise ValueError(
            "validation must be batches that can be gone through after each epoch, a function that measures a network, "
            f"or None, got {type(validation).__name__}"
        )
    if loss is not None and (config.mixup or config.cutmix or config.smoothing):
        raise ValueError("mixup, cutmix and smoothing are for the cross-entropy: loss must be None")
    classes = config.num_classes or getattr(model, "num_classes", None)
    if (config.mixup or config.cutmix) and not classes:
        raise ValueError("num-classes must be given for mixup and CutMix, got None")
    config = replace(config.for_task(super_resolution=False), batch_size=None)  # the loader's
    assert config.epochs is not None
    with open_group(config.device) as group:
        folder = Path(config.output, config.experiment) if config.experiment else None
        run = _Run(config, group, folder, tell if group.rank == 0 else None, warnings.warn)
        if folder:
            _check_output(config, group, folder)
            run.check(None)
        random_seed(config.seed)
        model = place(config, group, model)
        recipe = create_recipe(config, group, loss or classification_loss(config), loss is None, classes)
        training = create_training(config, group, model, None, len(loader))
        measure = validation
        if validation is not None and not callable(validation):
            measure = lambda network: evaluate(network, validation, recipe, description="validation")  # noqa: E731
        run.begin(training, len(loader), f"{type(model).__name__}: {len(loader)} batches an epoch")
        return run.finish(training, loader, recipe, measure, {})


def _can_be_read_again(data: Any) -> bool:
    """Whether it gives batches in every epoch: an iterator, though it may have a length, gives them once."""
    gives = (isinstance(data, Iterable) or hasattr(data, "__getitem__")) and not isinstance(data, Iterator)
    return gives and not (isinstance(data, Sized) and len(data) == 0)


def create_recipe(config: TrainConfig, group: Group, loss: nn.Module, accuracy: bool, classes: int | None) -> Recipe:
    """How a batch becomes a step, by the options.

    Args:
        config: The options.
        group: Its device.
        loss: As for :class:`Recipe`.
        accuracy: As for :class:`Recipe`.
        classes: Of the network, for mixup.
    """
    mixup = None
    if config.mixup or config.cutmix:
        mixup = Mixup(
            config.mixup,
            config.cutmix,
            prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob,
            mode=config.mixup_mode,
            label_smoothing=config.smoothing,
            num_classes=classes,
        )
    return Recipe(
        loss=loss,
        accuracy=accuracy,
        mixup=mixup,
        mixup_off_epoch=config.mixup_off_epoch,
        accumulate=config.grad_accum_steps,
        clip_grad=config.clip_grad,
        clip_mode=config.clip_mode,
        amp_dtype=getattr(torch, config.amp_dtype) if config.amp else None,
        channels_last=config.channels_last,
        device=group.device,
        seed=config.seed,
        precise_bn=config.precise_bn,
    )


def create_training(
    config: TrainConfig, group: Group, model: nn.Module, distillation: TrainingTask | None, batches: int
) -> Training:
    """What trains a network, by the options: optimizer, schedule, average, compiled and in DistributedDataParallel.

    Args:
        config: The options, for its task.
        group: The processes.
        model: The network, on its device.
        distillation: What trains it as a student.
        batches: Of an epoch.

    Raises:
        ValueError: naming the option, if timm or PyTorch cannot use it.
    """
    assert config.epochs is not None
    optimizer = _optimizer(config, distillation.get_trainable_module() if distillation else model)
    updates = math.ceil(batches / config.grad_accum_steps) if config.sched_on_updates else 0
    scheduler = create_scheduler(optimizer, config.sched, config.epochs, updates, **_schedule(config))
    ema = ModelEmaV3(model, config.model_ema_decay, use_warmup=config.model_ema_warmup) if config.model_ema else None
    network = _network(config, group, model, distillation)
    half = config.amp and config.amp_dtype == "float16"
    scaler = NativeScaler(group.device.type) if half else None
    return Training(model, optimizer, scheduler, scaler, ema, network, distillation)


def _optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    assert config.opt is not None
    assert config.weight_decay is not None
    return create_optimizer(
        model,
        config.opt,
        config.lr,
        config.momentum,
        config.weight_decay,
        config.eta or 0.0,
        config.filter_lr_scale,
        _FINE_TUNING_SHARE if config.starts_trained else 1.0,
        **config.opt_kwargs,
    )


def _schedule(config: TrainConfig) -> dict[str, Any]:
    names = ("warmup_epochs", "warmup_lr", "min_lr", "decay_epochs", "decay_milestones", "decay_rate")
    return {name: getattr(config, name) for name in names}


def _compiled(network: nn.Module, backend: str) -> Any:
    try:
        return torch.compile(network, backend=backend)
    except RuntimeError as error:
        raise ValueError(f"torchcompile cannot be used: {error}") from error


def _network(config: TrainConfig, group: Group, model: nn.Module, distillation: TrainingTask | None) -> Any:
    """What is called in training in the place of the network: compiled, and in DistributedDataParallel."""
    network: Any = model
    if config.torchcompile and distillation:
        distillation.compile(config.torchcompile)
    elif config.torchcompile:
        network = _compiled(model, config.torchcompile)
    if group.processes > 1:
        device_ids = [group.device] if group.device.type == "cuda" else None
        # Statistics of BatchNorm are averaged once an epoch instead. The option's first name is deprecated since 2.13.
        names = inspect.signature(DistributedDataParallel).parameters
        unsynced: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
        }
        if distillation:
            distillation.prepare_distributed(device_ids, **unsynced)
        else:
            network = DistributedDataParallel(network, device_ids, **unsynced)
    return network


@dataclass(frozen=True)
class _Run:
    """What :func:`train` and :func:`fit` do alike: epochs and files. The first process alone reads, writes and tells.

    Attributes:
        folder: Of the files; None for none.
    """

    config: TrainConfig
    group: Group
    folder: Path | None
    tell: Tell | None
    warn: Warn

    @property
    def options(self) -> dict[str, Any]:
        """As args.yaml has them."""
        return self.config.as_dict() | {"processes": self.group.processes}

    def check(self, classes: list[str] | None) -> None:
        """Refuse a folder that these options, and these classes of the images, do not go on with."""
        if self.folder and self.group.rank == 0:
            check_folder(self.folder, self.options, self.warn)
            if self.config.resume and classes is not None:
                check_known_classes(self.folder, classes)

    def begin(self, training: Training, batches: int, text: str) -> None:
        """Go on where the folder's training was, if it is to, and write and tell what is ahead of the first epoch."""
        resumed = self.folder and self.config.resume and read_state(self.folder, training)
        done = len(training.history)
        steps = done * math.ceil(batches / self.config.grad_accum_steps)
        if training.step != steps and self.group.rank == 0:
            self.warn(
                f"the {done} epochs in {self.folder} have {training.step} steps, with these batches they would have "
                f"{steps}: the training goes on with other data"
            )
        if done > (self.config.epochs or 0):
            raise ValueError(f"epochs must be at least the {done} that are complete, got {self.config.epochs}")
        if self.folder and self.group.rank == 0:
            write_options(self.folder, self.options)
            text += f"; to {self.folder}"
        if self.tell:
            self.tell(text + (f" behind epoch {done}" if resumed else ""))

    def finish(
        self, training: Training, loader: Any, recipe: Recipe, measure: Measure | None, metadata: dict[str, str]
    ) -> TrainResult:
        """Go through the epochs that are left."""
        config, history = self.config, training.history
        assert config.epochs is not None
        folder = self.folder if self.group.rank == 0 else None
        log = _tensorboard(folder, len(history)) if config.log_tensorboard and folder else None
        try:
            for epoch in run_epochs(training, loader, config.epochs, measure, recipe, config.model):
                if folder:
                    write_epoch(folder, training, metadata)
                if self.tell:
                    self.tell(epoch)
                if log:
                    log(epoch)
        except KeyboardInterrupt as error:
            if self.group.rank > 0:
                raise
            left = f"; their weights are in {folder}, and --resume goes on" if history and folder else ""
            raise KeyboardInterrupt(f"stopped after {len(history)} of {config.epochs} epochs{left}") from error
        best = best_epoch(history)
        if folder:
            _draw(folder, training, config.model, self.warn)
        weights = self.folder and self.folder / ("best.safetensors" if best else "last.safetensors")
        result = TrainResult(training.best_network.eval(), history, best, self.folder, weights)
        if self.tell:
            self.tell(result)
        return result


def _check_output(config: TrainConfig, group: Group, folder: Path) -> None:
    """Refuse a folder that cannot be written, and a log that nothing would write."""
    if config.log_tensorboard and find_spec("tensorboard") is None:
        raise ValueError("log-tensorboard needs tensorboard: pip install 'adderzoo[log]'")
    if group.rank == 0:
        check_text(folder, "output")
        check_output_folder(folder, "output")


def _silent(text: str) -> None:
    pass


def _tensorboard(folder: Path, epochs: int) -> Callable[[Epoch], None]:
    """What logs an epoch for TensorBoard, behind those that are there."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=epochs + 1)

    def log(epoch: Epoch) -> None:
        for name, value in vars(epoch).items():
            if value is not None and name != "epoch":
                writer.add_scalar(name.replace("_", "/", 1), value, epoch.epoch)
        writer.flush()

    return log


def _draw(folder: Path, training: Training, title: str, warn: Warn) -> None:
    try:
        draw_curves(training.history, folder / "curves.png", title)
    except ImportError:
        warn("no curves.png without matplotlib: pip install 'adderzoo[demo]'")
