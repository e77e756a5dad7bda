"""`adderzoo train`."""

import argparse
import ctypes
import inspect
import math
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adderzoo.cli._signals import Stopped
from adderzoo.files.foreign import plain, shown, to_json

from ._network import Group, load_or_create, open_group
from ._train_arguments import MAY_CHANGE, add_arguments, changed_options, check, default_arguments, fill_defaults
from ._train_tasks import Classification, SuperResolution

if TYPE_CHECKING:
    from adderzoo.engine import Recipe, Training

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> None:
    from adderzoo.catalogue import task
    from adderzoo.files.output import check_output_folder, check_text

    super_resolution = task(args.model) == "super-resolution"
    fill_defaults(args, super_resolution)
    check(args, super_resolution)
    _keep_memory()
    with open_group(args.device) as group:
        if group.rank == 0:  # which alone writes there
            check_text(args.output / (args.experiment or ""), "output")
            check_output_folder(args.output / (args.experiment or ""), "output")
        if group.processes > 1 and not args.experiment:
            raise ValueError("several processes need --experiment: the name of their common folder")
        if group.processes > 1 and args.dataset_download:
            raise ValueError("dataset-download is for one process, several would write the same files: download first")
        if group.processes > 1 and args.quantize_bits is not None:
            raise ValueError("quantize-bits is for one process, several would see other ranges")
        _train(args, group, SuperResolution if super_resolution else Classification)


def _train(args: argparse.Namespace, group: Group, task: type[Classification] | type[SuperResolution]) -> None:
    import yaml
    from timm.utils import random_seed
    from tqdm import tqdm

    from adderzoo.engine import best_epoch, read_state, train, write_epoch
    from adderzoo.files.output import write_atomically

    random_seed(args.seed)
    data = task(args, _create(args))
    random_seed(args.seed)
    model = _open_network(args, group, data.num_classes)
    data.check(model)
    _check_forward(args, model, data.input_size, group)
    folder = args.output / (args.experiment or f"{time.strftime('%Y%m%d-%H%M%S')}-{args.model.replace('/', '_')}")
    options = _options(args) | {"processes": group.processes}
    if group.rank == 0:  # which alone reads and writes there
        _check_folder(args, folder, options)
        _check_classes(args, folder, data)
    if args.quantize_bits is not None and isinstance(data, Classification):
        model = data.calibrate(model, group)
    distillation = _create_distillation(args, group, model, data) if args.kd else None
    loader, validate = data.open_loaders(group)
    training, recipe = _prepare(args, group, model, distillation, data, len(loader))
    metadata = {
        "architecture": args.model.partition(".")[0],
        "num_classes": str(model.num_classes),
        "command": shlex.join(["adderzoo", *(word for word in args.arguments if word != "--resume")]),
        **data.metadata(model),
        **_origin(args, model),
    }
    if args.model_kwargs:
        metadata["model_args"] = to_json(dict(args.model_kwargs))

    resumed = args.resume and read_state(folder, training)
    if len(training.history) > args.epochs:
        raise ValueError(f"epochs must be at least the {len(training.history)} that are complete, got {args.epochs}")
    if group.rank == 0:
        write_atomically(folder / "args.yaml", lambda path: path.write_text(yaml.safe_dump(options, sort_keys=False)))
        print(
            f"{args.model}: {data.describe(model)}; to {folder}"
            + (f" behind epoch {len(training.history)}" if resumed else ""),
            flush=True,
        )
    log = _tensorboard(folder, len(training.history)) if args.log_tensorboard and group.rank == 0 else None
    measure = (lambda network: validate(network, recipe)) if validate else None
    try:
        for epoch in train(training, loader, args.epochs, measure, recipe, description=args.model):
            if group.rank == 0:
                write_epoch(folder, training, metadata)
                tqdm.write(str(epoch))
                sys.stdout.flush()  # a log file is to have the line when the epoch is over
            if log:
                log(epoch)
    except KeyboardInterrupt:
        if group.rank == 0:
            done = f"; their weights are in {folder}, and --resume goes on" if training.history else ""
            raise Stopped(f"stopped after {len(training.history)} of {args.epochs} epochs{done}") from None
        raise
    if group.rank == 0:
        _draw(folder, training, args.model)
        best = best_epoch(training.history)
        print(f"best: epoch {best.epoch}, {best.describe_score()}" if best else "done", folder)


def _keep_memory() -> None:
    """Let glibc keep what a step frees for the next: fresh pages from the kernel are a third of a small CNN's step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**25)  # the largest that it takes


def _create(args: argparse.Namespace, **arguments: Any) -> Any:
    from adderzoo.checkpoints import create_model

    try:
        return create_model(args.model, **arguments, **dict(args.model_kwargs))
    except TypeError as error:
        if not args.model_kwargs:
            raise
        raise ValueError(f"model-kwargs cannot be used: {error}") from error


def _open_network(args: argparse.Namespace, group: Group, num_classes: int | None) -> Any:
    """The network, with the weights to start from."""
    import torch
    from timm.layers import convert_sync_batchnorm

    from adderzoo.checkpoints import load_checkpoint

    model = _create(args, pretrained=args.pretrained, **({} if num_classes is None else {"num_classes": num_classes}))
    if args.initial_checkpoint:
        load_checkpoint(model, args.initial_checkpoint, other_classes=True)
    for module in model.modules():
        if hasattr(module, "weight_grad"):
            module.weight_grad, module.input_grad = args.filter_grad, args.input_grad
    if args.sync_bn and group.processes > 1:
        if group.device.type != "cuda":
            raise ValueError(f"sync-bn is for GPUs, got device {args.device}")
        model = convert_sync_batchnorm(model)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    return model.to(group.device).to(memory_format=memory_format)


def _create_distillation(args: argparse.Namespace, group: Group, model: Any, data: Any) -> Any:
    """What trains the network as a student of a teacher."""
    from timm.utils import random_seed

    from adderzoo.engine import EnsembleTeacher, KernelDistillationTask, LogitDistillationTask

    names = args.kd_model_name or [_twin(args.model)]
    options = {
        "criterion": data.loss(),
        "task_loss_weight": args.task_loss_weight,
        "distill_loss_weight": args.distill_loss_weight,
        "temperature": args.kd_temperature,
        "device": group.device,
        "verbose": False,
    }
    # Where timm's task looks for how the images are normalized.
    model.pretrained_cfg.update({key: data.config[key] for key in ("mean", "std")})
    if args.kd == "logits":
        files = args.kd_checkpoint or [None] * len(names)
        teachers = [
            _open_teacher(args, group, name, file, model.num_classes, data)
            for name, file in zip(names, files, strict=True)
        ]
        return LogitDistillationTask(model, EnsembleTeacher(teachers, args.kd_temperature, group.device), **options)
    name = names[0]
    random_seed(args.seed)  # the teacher is the network that it would be alone
    kwargs = [(key, value) for key, value in args.model_kwargs if key != "conv_layer"]  # the student's, as its name
    alone = vars(args) | {"model": name, "pretrained": False, "initial_checkpoint": None, "model_kwargs": kwargs}
    teacher = _open_network(argparse.Namespace(**alone), group, model.num_classes)
    try:
        return KernelDistillationTask(model, teacher, args.feature_loss_weight, **options)
    except ValueError as error:
        raise ValueError(f"kd pkkd cannot be used for {args.model} with the teacher {name}: {error}") from error


def _twin(model: str) -> str:
    """The network of the other kind, with the same tag if it has weights of that: its classes are the same."""
    from timm.models import is_model_pretrained

    from adderzoo.catalogue import twin

    network, _, tag = model.partition(".")
    name = twin(network)
    if name is None:
        raise ValueError(f"kd-model-name must be given for {model}, which has no twin")
    return f"{name}.{tag}" if is_model_pretrained(f"{name}.{tag}") else name


def _open_teacher(
    args: argparse.Namespace, group: Group, name: str, file: Path | None, num_classes: int, data: Any
) -> Any:
    """A trained network for the student's classes, fused: a teacher is for inference alone."""
    import torch

    from adderzoo.files.weights import read_classes
    from adderzoo.inference.fusion import fuse

    teacher = load_or_create(name, pretrained=not file, checkpoint=file)
    if teacher.num_classes != num_classes:
        raise ValueError(f"kd-model-name must be a network of {num_classes} classes, {name} has {teacher.num_classes}")
    channels, wanted = teacher.pretrained_cfg["input_size"][0], data.input_size[0]
    if channels != wanted:
        raise ValueError(f"kd-model-name must be a network for images of {wanted} channels, {name} takes {channels}")
    known = read_classes(file) if file else teacher.pretrained_cfg.get("label_names")
    known = list(known or data.classes)
    if data.classes and known != data.classes:
        theirs, ours = (", ".join(names[:4]) + " ..." for names in (known, data.classes))
        if file:
            raise ValueError(f"kd-checkpoint must have the classes of the images, {ours}, {file} has {theirs}")
        if group.rank == 0:  # no error: folders of the published classes may have other names
            print(
                f"adderzoo {args.command}: the classes of the teacher {name} are {theirs}, those of the images {ours}: "
                "taken for the same, in this order",
                file=sys.stderr,
            )
    teacher = teacher.to(group.device, memory_format=torch.channels_last if args.channels_last else None)
    try:
        return fuse(teacher)
    except ValueError:  # torch.fx cannot trace it
        return teacher


def _origin(args: argparse.Namespace, model: Any) -> dict[str, str]:
    """License and origin of the weights to start from, and the teachers."""
    from adderzoo.checkpoints import read_origin

    origin = {}
    if args.initial_checkpoint:
        origin = read_origin(args.initial_checkpoint)
    elif args.pretrained:
        cfg = model.pretrained_cfg
        origin["trained_from"] = f"{cfg['architecture']}.{cfg['tag']}" if cfg.get("tag") else args.model
        if cfg.get("license"):
            origin["license"] = cfg["license"]
    if args.kd == "logits":
        taught_by = [read_origin(file)["trained_from"] for file in args.kd_checkpoint or ()]
        origin["taught_by"] = "; ".join(taught_by or args.kd_model_name or [_twin(args.model)])
    return origin


def _check_forward(args: argparse.Namespace, model: Any, size: tuple[int, int, int], group: Group) -> None:
    """Refuse what shows only when the network runs: images that it is too deep for, arguments that it kept unseen."""
    import torch

    try:
        with torch.no_grad():  # what a network keeps of an inference mode could not be trained with
            model.eval()(torch.zeros(1, *size, device=group.device))
    except (RuntimeError, TypeError, ValueError) as error:
        if args.img_size and isinstance(error, RuntimeError):
            raise ValueError(f"img-size {args.img_size} cannot be used: {error}") from error
        if not args.model_kwargs:
            raise
        raise ValueError(f"model-kwargs cannot be used: {error}") from error


def _prepare(
    args: argparse.Namespace,
    group: Group,
    model: Any,
    task: Any,
    data: Classification | SuperResolution,
    batches: int,
) -> tuple["Training", "Recipe"]:
    """What trains the network, and how."""
    import torch
    from timm.data import Mixup
    from timm.utils import ModelEmaV3, NativeScaler
    from torch.nn.parallel import DistributedDataParallel

    from adderzoo.engine import Recipe, Training, create_optimizer, create_scheduler

    amp_dtype = getattr(torch, args.amp_dtype) if args.amp else None
    mixup = None
    if args.mixup or args.cutmix:
        mixup = Mixup(
            args.mixup,
            args.cutmix,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=model.num_classes,
        )
    recipe = Recipe(
        loss=data.loss(),
        accuracy=data.accuracy,
        mixup=mixup,
        mixup_off_epoch=args.mixup_off_epoch,
        accumulate=args.grad_accum_steps,
        clip_grad=args.clip_grad,
        clip_mode=args.clip_mode,
        amp_dtype=amp_dtype,
        channels_last=args.channels_last,
        device=group.device,
        seed=args.seed,
        precise_bn=args.precise_bn,
    )
    optimizer = create_optimizer(
        task.get_trainable_module() if task else model,
        args.opt,
        args.lr,
        args.momentum,
        args.weight_decay,
        args.eta,
        args.filter_lr_scale,
        **dict(args.opt_kwargs),
    )
    scheduler = create_scheduler(
        optimizer,
        args.sched,
        args.epochs,
        math.ceil(batches / args.grad_accum_steps) if args.sched_on_updates else 0,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=args.warmup_lr,
        min_lr=args.min_lr,
        decay_epochs=args.decay_epochs,
        decay_milestones=args.decay_milestones,
        decay_rate=args.decay_rate,
    )
    ema = ModelEmaV3(model, args.model_ema_decay, use_warmup=args.model_ema_warmup) if args.model_ema else None
    network = model
    try:
        if args.torchcompile and task:
            task.compile(args.torchcompile)
        elif args.torchcompile:
            network = torch.compile(model, backend=args.torchcompile)
    except RuntimeError as error:
        raise ValueError(f"torchcompile cannot be used: {error}") from error
    if group.processes > 1:
        device_ids = [group.device] if group.device.type == "cuda" else None
        # Statistics of BatchNorm are averaged once an epoch instead. The option's first name is deprecated since 2.13.
        names = inspect.signature(DistributedDataParallel).parameters
        unsynced: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
        }
        if task:
            task.prepare_distributed(device_ids, **unsynced)
        else:
            network = DistributedDataParallel(network, device_ids, **unsynced)
    scaler = NativeScaler(group.device.type) if amp_dtype == torch.float16 else None
    return Training(model, optimizer, scheduler, scaler, ema, network, task), recipe


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The options as args.yaml has them."""
    import yaml

    options: dict[str, Any] = {
        key: _plain(value) for key, value in vars(args).items() if key not in {"command", "arguments"}
    }
    for key in ("model_kwargs", "opt_kwargs"):
        options[key] = dict(options[key])
    return yaml.safe_load(yaml.safe_dump(options, sort_keys=False))  # which knows no tuples


def _plain(value: Any) -> Any:
    """A value of an option without paths."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _check_folder(args: argparse.Namespace, folder: Path, options: dict[str, Any]) -> None:
    """Refuse a folder with a training that this one would not go on with.

    Raises:
        ValueError: if there is a training that is not to be resumed, one with other options, or one without its state.
    """
    if not args.resume:
        if (folder / "summary.csv").exists():
            raise ValueError(f"{folder} has a training already: choose another --experiment, --resume it, or remove it")
    elif not (folder / "state.pt").exists():
        # A training may have been killed between the first line of its summary and its first state.
        lines = (folder / "summary.csv").read_text().splitlines() if (folder / "summary.csv").exists() else []
        if len(lines) > 2:
            raise ValueError(
                f"resume needs {folder / 'state.pt'}, which is missing, behind the {len(lines) - 1} epochs in "
                "summary.csv: choose another --experiment, or remove the folder"
            )
    elif (folder / "args.yaml").exists():
        defaults = _options(default_arguments(args.model))  # of options that were not there yet
        known = options | defaults | _read_options(folder / "args.yaml")
        changed = changed_options(known, options)
        for key in changed:
            if key not in MAY_CHANGE:
                raise ValueError(
                    f"resume needs the options of the training in {folder}: there {key.replace('_', '-')} is "
                    f"{plain(known[key])}, got {options[key]}"
                )
        for key in changed:
            if MAY_CHANGE[key]:
                print(
                    f"adderzoo {args.command}: {key.replace('_', '-')} was {plain(known[key])} and is {options[key]}: "
                    f"{MAY_CHANGE[key]}",
                    file=sys.stderr,
                )


def _read_options(path: Path) -> dict[str, Any]:
    """What is in an args.yaml."""
    import yaml

    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"resume needs the options in {path}, which is no YAML: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"resume needs the options in {path}, which holds {shown(options)}")
    return options


def _check_classes(args: argparse.Namespace, folder: Path, data: Classification | SuperResolution) -> None:
    """Refuse to go on with other classes: those of a folder may have become others.

    Raises:
        ValueError: naming both.
    """
    from adderzoo.data.folders import some_of
    from adderzoo.files.weights import read_classes

    last = folder / "last.safetensors"
    if not (args.resume and last.is_file() and isinstance(data, Classification)):
        return
    known, found = read_classes(last), data.classes
    if known is not None and known != found:
        theirs, ours = (f"{some_of(names)} ({len(names)})" for names in (known, found))
        raise ValueError(f"resume needs the classes of the training in {folder}, {theirs}, got {ours}")


def _tensorboard(folder: Path, epochs: int) -> Any:
    """What logs an epoch for TensorBoard, behind those that are there."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=epochs + 1)

    def log(epoch: Any) -> None:
        for name, value in vars(epoch).items():
            if value is not None and name != "epoch":
                writer.add_scalar(name.replace("_", "/", 1), value, epoch.epoch)
        writer.flush()

    return log


def _draw(folder: Path, training: "Training", title: str) -> None:
    from adderzoo.engine.curves import draw_curves

    try:
        draw_curves(training.history, folder / "curves.png", title)
    except ImportError:
        print("no curves.png without matplotlib: pip install 'adderzoo[demo]'", file=sys.stderr)
