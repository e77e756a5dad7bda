"""What a network is trained on: images with classes, or pairs of a small and a large one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from timm.data import resolve_model_data_config
from torch import nn

from adderzoo import data
from adderzoo.catalogue import published_classes
from adderzoo.data import Augmentation, Loading, MemoryLoader
from adderzoo.files.foreign import check_class_names, to_json, weights_in
from adderzoo.files.weights import read_classes, read_data_config
from adderzoo.inference.quantization import calibrate, ranges
from adderzoo.layers.modules import Network
from adderzoo.models import check_classifier
from adderzoo.models._state_dict import take_preprocessing

from .config import TrainConfig
from .evaluation import Execution, Result, evaluate
from .group import Group, from_first
from .super_resolution import SuperResolutionResult, evaluate_super_resolution

_CALIBRATION_IMAGES = 512

Validate = Callable[[nn.Module, Execution], Result | SuperResolutionResult]


class Classification:
    """Images with classes.

    Args:
        config: Of the training, for classifiers.
        network: The network, for what its images are; not that which is trained, which may have other classes.
        processes: That share the images.

    Attributes:
        config: With what is usual for so many images, where nothing was given.
        accuracy: Whether answers are right or wrong.
        num_classes: Of a network for them; None for its own.
        data_config: How images become inputs (`timm.data.resolve_model_data_config`).
        input_size: (C, H, W) of what it is fed with.

    Raises:
        ValueError: if the images cannot be read, or are none that the network can learn.
    """

    accuracy = True

    def __init__(self, config: TrainConfig, network: Network, processes: int = 1) -> None:
        check_classifier(network, config.model)  # the name alone (`hf-hub:...`) may not tell
        data.check_policy(config.aa)
        known = None
        if config.initial_checkpoint:  # images and classes as it knows them
            start = weights_in(config.initial_checkpoint)
            network.pretrained_cfg.update(read_data_config(start))
            known = read_classes(start)
        elif (config.pretrained or "." in config.model) and (info := published_classes(network)):
            known = [info.index_to_label_name(index) for index in range(info.num_classes())]
        take_preprocessing(network, config.in_chans, config.mean, config.std)
        # What the network is fed with does not depend on its classes, which come from the data.
        self.data_config = resolve_model_data_config(network)
        if config.img_size:
            self.data_config["input_size"] = (self.data_config["input_size"][0], config.img_size, config.img_size)
        self.input_size = self.data_config["input_size"]
        data.check_channels(self.data_config, config.model, {})
        keys = {"input_key": config.input_key, "target_key": config.target_key}
        self.train_set, self.val_set = data.open_training_data(
            config.dataset,
            _text(config.data_dir),
            config.train_split,
            config.val_split,
            self.input_size[0],
            str(config.class_map),
            config.dataset_download,
            known,
            **{key: value for key, value in keys.items() if value},
        )
        self.indices = data.class_indices(self.train_set)
        try:
            check_class_names(list(self.indices))
        except ValueError as error:
            raise ValueError(f"the names of the classes could not be read again from the weights: {error}") from error
        self.config = config.for_data(False, len(self.train_set), self.input_size[0], processes)
        self.num_classes = config.num_classes or (max(self.indices.values()) + 1 if self.indices else None)

    def loss(self) -> nn.Module:
        return classification_loss(self.config)

    def check(self, model: Network) -> None:
        """Refuse a network with fewer classes than the images have."""
        data.check_classes(self.train_set, model.num_classes)

    def calibrate(self, model: nn.Module, group: Group) -> nn.Module:
        """The network with what bytes can hold, with ranges from some images.

        To be called ahead of :meth:`open_loaders`, which has the data set augment its images.
        """
        assert self.config.quantize_bits is not None
        some = data.spread(self.train_set, _CALIBRATION_IMAGES)
        loading = Loading(batch_size=_batch_size(self.config), workers=self.config.workers, device=group.device)
        return calibrate(model, data.open_loader(some, self.data_config, loading), self.config.quantize_bits)

    def open_loaders(self, group: Group) -> tuple[Any, Validate | None]:
        """Batches to train on, and what measures a network on the validation images."""
        config = self.config
        loading = _loading(config, group)
        loader = data.open_training_loader(self.train_set, self.data_config, loading, _augmentation(config))
        if not self.val_set:
            return loader, None
        val_loader = data.open_loader(
            self.val_set,
            self.data_config,
            replace(
                loading,
                batch_size=config.validation_batch_size or loading.batch_size,
                in_memory=isinstance(loader, MemoryLoader),
            ),
        )
        own = len(range(group.rank, len(self.val_set), group.processes))

        def validate(network: nn.Module, execution: Execution) -> Result:
            return evaluate(network, val_loader, execution, own, "validation")

        return loader, validate

    def metadata(self, model: Network) -> dict[str, str]:
        """What a file of weights says of the data."""
        known = {"data_config": to_json(self.data_config)}
        if self.config.quantize_bits is not None:
            known["ranges"] = to_json(ranges(model))
        if len(self.indices) == model.num_classes:
            known["classes"] = to_json(self.classes)
        return known

    @property
    def classes(self) -> list[str]:
        """The names of the images' classes in their order, as far as the data set has names."""
        return sorted(self.indices, key=lambda name: self.indices[name])

    def describe(self, model: Network) -> str:
        sets = {"training": self.train_set, "validation": self.val_set}
        origins = [
            f"{use}: {data.describe_origin(images, self.config.dataset)}" for use, images in sets.items() if images
        ]
        return "; ".join([f"{_images(**sets)}, {model.num_classes} classes", *origins])


class SuperResolution:
    """Pairs of a small and a large image; arguments and attributes are those of :class:`Classification`."""

    accuracy = False
    num_classes = None

    def __init__(self, config: TrainConfig, network: Network, processes: int = 1) -> None:
        if config.data_dir is None:
            raise ValueError("data-dir must be a folder, got None")
        assert config.img_size is not None  # of a config for its task
        self.data_config = resolve_model_data_config(network)
        self.input_size = (3, config.img_size, config.img_size)
        self.train_set, self.val_set = data.open_training_pairs(
            config.data_dir, network.scale, config.train_split, config.val_split
        )
        self.config = config.for_data(True, len(self.train_set) * config.epoch_repeats, 3, processes)

    def loss(self) -> nn.Module:
        return nn.L1Loss()

    def check(self, model: Network) -> None:
        pass

    def open_loaders(self, group: Group) -> tuple[Any, Validate | None]:
        config = self.config
        loader = data.open_patch_loader(
            self.train_set, self.input_size[1], _loading(config, group), not config.no_aug, config.epoch_repeats
        )
        val_set = self.val_set
        if not val_set:
            return loader, None

        def validate(network: Any, execution: Execution) -> SuperResolutionResult:
            if group.rank > 0:  # whole images, one by one, are for one process
                return from_first(None)
            return from_first(evaluate_super_resolution(network, val_set, execution, description="validation"))

        return loader, validate

    def metadata(self, model: Network) -> dict[str, str]:
        return {"data_config": to_json(self.data_config)}

    def describe(self, model: Network) -> str:
        patches = len(self.train_set) * self.config.epoch_repeats
        sets = {"training": self.train_set, "validation": self.val_set}
        origins = [f"{use}: {pairs.describe()}" for use, pairs in sets.items() if pairs]
        return "; ".join([f"{_images(**sets)}, {patches} patches an epoch, x{model.scale}", *origins])


def classification_loss(config: TrainConfig) -> nn.Module:
    """Cross-entropy with the labels smoothed, unless mixup does that itself."""
    return nn.CrossEntropyLoss(label_smoothing=0.0 if config.mixup or config.cutmix else config.smoothing)


def _loading(config: TrainConfig, group: Group) -> Loading:
    return Loading(
        batch_size=_batch_size(config),
        workers=config.workers,
        device=group.device,
        in_memory=config.in_memory,
        seed=config.seed,
        rank=group.rank,
        processes=group.processes,
    )


def _batch_size(config: TrainConfig) -> int:
    assert config.batch_size is not None  # of a config for its data
    return config.batch_size


def _augmentation(config: TrainConfig) -> Augmentation | None:
    if config.no_aug:
        return None
    assert config.hflip is not None  # of a config for its data
    return Augmentation(
        crop=config.train_crop_mode,
        scale=_pair(config.scale),
        ratio=_pair(config.ratio),
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=config.color_jitter,
        auto_augment=config.aa,
        re_prob=config.reprob,
        re_mode=config.remode,
        re_count=config.recount,
    )


def _pair(values: Any) -> tuple[float, float] | None:
    return (values[0], values[1]) if values else None


def _text(path: Any) -> str | None:
    return None if path is None else str(path)


def _images(training: Any, validation: Any) -> str:
    return f"{len(training)} training images, {len(validation) if validation else 'no'} validation images"
