"""The network that is trained, as its options say, and the teachers that it learns from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.models import is_model_pretrained
from timm.task import TrainingTask
from timm.utils import random_seed
from torch import nn

from adderzoo.catalogue import QUANTIZED, twin
from adderzoo.checkpoints import check_name, create_model, load, load_checkpoint, read_origin
from adderzoo.files.foreign import of_network, weights_in
from adderzoo.files.weights import read_classes, read_model_args
from adderzoo.inference.fusion import fuse_if_possible
from adderzoo.layers.modules import Network

from .config import TrainConfig
from .distillation import EnsembleTeacher, KernelDistillationTask, LogitDistillationTask
from .group import Group
from .tasks import Classification


def create(config: TrainConfig, **arguments: Any) -> Any:
    """The network by its name, with the options' own arguments and these.

    Raises:
        ValueError: naming the option, if there is no such network, or it takes no such argument or has nothing to
            train.
    """
    if QUANTIZED.search(config.model):
        raise ValueError(
            f"model {config.model} is a quantized network, which cannot be trained: "
            f"{QUANTIZED.sub('', config.model)} is the same in float"
        )
    try:
        channels = {} if config.in_chans is None else {"in_chans": config.in_chans}
        model = create_model(config.model, **arguments, **channels, **config.model_kwargs)
    except TypeError as error:
        if not config.model_kwargs:
            raise
        raise ValueError(f"model-kwargs cannot be used: {error}") from error
    if next(model.parameters(), None) is None:
        raise ValueError(f"model {config.model} has nothing to train, as quantized networks: train those in float")
    return model


def with_arguments_of_start(config: TrainConfig) -> TrainConfig:
    """The options, with the arguments of the network that the weights to start from are of, unless others are given.

    Raises:
        ValueError: if the file is missing, or says what cannot be used.
    """
    if not config.initial_checkpoint:
        return config
    path = weights_in(config.initial_checkpoint)
    if not path.is_file():
        raise ValueError(f"initial-checkpoint {path} is not a file")
    said = read_model_args(path)
    channels = said.pop("in_chans", None) if config.in_chans is None else config.in_chans
    said = {key: value for key, value in said.items() if key not in ("num_classes", "in_chans")}
    return replace(config, in_chans=channels, model_kwargs=said | config.model_kwargs)


def open_student(config: TrainConfig, group: Group, num_classes: int | None) -> Any:
    """The network, with the weights to start from and the gradients that its adder layers are to have, on its device.

    Raises:
        ValueError: if the weights cannot be had, or are none of this network's, or as :func:`place`.
    """
    model = create(
        config, pretrained=bool(config.pretrained), **({} if num_classes is None else {"num_classes": num_classes})
    )
    if config.initial_checkpoint:
        load_checkpoint(model, weights_in(config.initial_checkpoint), other_classes=True)
    for module in model.modules():
        if hasattr(module, "weight_grad"):
            module.weight_grad, module.input_grad = config.filter_grad, config.input_grad
    return place(config, group, model)


def place(config: TrainConfig, group: Group, model: nn.Module) -> nn.Module:
    """A network where it is to be trained.

    Raises:
        ValueError: if `sync_bn` is for other devices.
    """
    if config.sync_bn and group.processes > 1:
        if group.device.type != "cuda":
            raise ValueError(f"sync-bn is for GPUs, got device {group.device}")
        model = convert_sync_batchnorm(model)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(group.device).to(memory_format=memory_format)


def check_forward(config: TrainConfig, group: Group, model: nn.Module, size: tuple[int, int, int]) -> None:
    """Refuse what shows only when the network runs: images that it is too deep for, arguments that it kept unseen."""
    try:
        with torch.no_grad():  # what a network keeps of an inference mode could not be trained with
            model.eval()(torch.zeros(1, *size, device=group.device))
    except (RuntimeError, TypeError, ValueError) as error:
        if config.img_size and isinstance(error, RuntimeError):
            raise ValueError(f"img-size {config.img_size} cannot be used: {error}") from error
        if not config.model_kwargs:
            raise
        raise ValueError(f"model-kwargs cannot be used: {error}") from error


def teachers_of(config: TrainConfig) -> list[str]:
    """The names of the teachers.

    Raises:
        ValueError: if one is no network's, there is no file with its weights, or none is given for a network that has
            no twin.
    """
    names = list(config.kd_model_name or [_twin(config.model)])
    for name in names:
        check_name(name, "kd-model-name")
    for file in config.kd_checkpoint or ():
        if not weights_in(file).is_file():
            raise ValueError(f"kd-checkpoint {weights_in(file)} is not a file")
    return names


def create_distillation(
    config: TrainConfig, group: Group, model: Network, data: Classification, warn: Callable[[str], None]
) -> TrainingTask:
    """What trains the network as a student of a teacher.

    Raises:
        ValueError: if the teacher is none for this network and these images.
    """
    names = teachers_of(config)
    options: dict[str, Any] = {
        "criterion": data.loss(),
        "task_loss_weight": config.task_loss_weight,
        "distill_loss_weight": config.distill_loss_weight,
        "temperature": config.kd_temperature,
        "device": group.device,
        "verbose": False,
    }
    # Where timm's task looks for how the images are normalized.
    model.pretrained_cfg.update({key: data.data_config[key] for key in ("mean", "std")})
    if config.kd == "logits":
        files: list[Any] = list(map(weights_in, config.kd_checkpoint or ())) or [None] * len(names)
        memory_format = torch.channels_last if config.channels_last else None
        teachers = [
            fuse_if_possible(
                _open_teacher(name, file, model.num_classes, data, warn).to(group.device, memory_format=memory_format)
            )
            for name, file in zip(names, files, strict=True)
        ]
        return LogitDistillationTask(model, EnsembleTeacher(teachers, config.kd_temperature, group.device), **options)
    name = names[0]
    random_seed(config.seed)  # the teacher is the network that it would be alone
    # The layers are the student's, as its name.
    kwargs = {key: value for key, value in of_network(config.model_kwargs).items() if key != "conv_layer"}
    alone = replace(config, model=name, pretrained=False, initial_checkpoint=None, model_kwargs=kwargs)
    teacher = open_student(alone, group, model.num_classes)
    try:
        return KernelDistillationTask(model, teacher, config.feature_loss_weight, **options)
    except ValueError as error:
        raise ValueError(f"kd pkkd cannot be used for {config.model} with the teacher {name}: {error}") from error


def _twin(model: str) -> str:
    """The network of the other kind, with the same tag if it has weights of that: its classes are the same."""
    network, _, tag = model.partition(".")
    name = twin(network)
    if name is None:
        raise ValueError(f"kd-model-name must be given for {model}, which has no twin")
    return f"{name}.{tag}" if is_model_pretrained(f"{name}.{tag}") else name


def _open_teacher(
    name: str, file: Path | None, num_classes: int, data: Classification, warn: Callable[[str], None]
) -> Any:
    """A trained network for the student's images and classes."""
    teacher: Network = load(file, name) if file else create_model(name, pretrained=True)
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
        # No error: folders of the published classes may have other names.
        warn(
            f"the classes of the teacher {name} are {theirs}, those of the images {ours}: taken for the same, in this "
            "order"
        )
    return teacher


def origin(config: TrainConfig, model: Network) -> dict[str, str]:
    """License and origin of the weights to start from, and the teachers."""
    found = {}
    if config.initial_checkpoint:
        found = read_origin(weights_in(config.initial_checkpoint))
    elif config.pretrained:
        cfg = model.pretrained_cfg
        found["trained_from"] = f"{cfg['architecture']}.{cfg['tag']}" if cfg.get("tag") else config.model
        if cfg.get("license"):
            found["license"] = cfg["license"]
    if config.kd == "logits":
        taught_by = [read_origin(weights_in(file))["trained_from"] for file in config.kd_checkpoint or ()]
        found["taught_by"] = "; ".join(taught_by or config.kd_model_name or [_twin(config.model)])
    return found
