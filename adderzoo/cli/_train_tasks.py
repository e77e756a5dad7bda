"""What `adderzoo train` trains on: images with classes, or pairs of a small and a large one."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adderzoo.files.foreign import check_classes, to_json

from ._network import Group, check_channels, names_its_tag, published_classes

if TYPE_CHECKING:
    from adderzoo.engine import Recipe

_CALIBRATION_IMAGES = 512

Validate = Callable[[Any, "Recipe"], Any]


class Classification:
    """Images with classes.

    Attributes:
        accuracy: Whether answers are right or wrong.
        num_classes: Of a network for them; None for its own.
        input_size: (C, H, W) of what it is fed with.
    """

    accuracy = True

    def __init__(self, args: argparse.Namespace, network: Any) -> None:
        from timm.data import resolve_model_data_config

        from adderzoo.data import class_indices, open_training_data
        from adderzoo.files.weights import read_classes, read_data_config
        from adderzoo.models import check_classifier

        check_classifier(network, args.model)  # the name alone (`hf-hub:...`) may not tell
        self.args = args
        # What the network is fed with does not depend on its classes, which come from the data.
        self.config = resolve_model_data_config(network)
        known = None
        if args.initial_checkpoint:  # images and classes as it knows them
            self.config |= read_data_config(args.initial_checkpoint)
            known = read_classes(args.initial_checkpoint)
        elif names_its_tag(args) and (info := published_classes(network)):
            known = [info.index_to_label_name(index) for index in range(info.num_classes())]
        if args.img_size:
            self.config["input_size"] = (self.config["input_size"][0], args.img_size, args.img_size)
        self.input_size = self.config["input_size"]
        check_channels(self.config, args)
        keys = {key: getattr(args, key) for key in ("input_key", "target_key") if getattr(args, key)}
        self.train_set, self.val_set = open_training_data(
            args.dataset,
            args.data_dir,
            args.train_split,
            args.val_split,
            self.input_size[0],
            args.class_map,
            args.dataset_download,
            known,
            **keys,
        )
        self.indices = class_indices(self.train_set)
        try:
            check_classes(list(self.indices))
        except ValueError as error:
            raise ValueError(f"the names of the classes could not be read again from the weights: {error}") from error
        self.num_classes = args.num_classes or (max(self.indices.values()) + 1 if self.indices else None)

    def loss(self) -> Any:
        from torch import nn

        # Mixup smooths the labels itself.
        return nn.CrossEntropyLoss(label_smoothing=0.0 if self.args.mixup or self.args.cutmix else self.args.smoothing)

    def check(self, model: Any) -> None:
        """Refuse a network with fewer classes than the images have."""
        from adderzoo import data

        data.check_classes(self.train_set, model.num_classes)

    def calibrate(self, model: Any, group: Group) -> Any:
        """The network with what bytes can hold, with ranges from some images.

        To be called ahead of :meth:`open_loaders`, which has the data set augment its images.
        """
        from adderzoo.data import open_loader, spread
        from adderzoo.inference.quantization import calibrate

        some = spread(self.train_set, _CALIBRATION_IMAGES)
        loader = open_loader(some, self.config, self.args.batch_size, self.args.workers, group.device)
        return calibrate(model, loader, self.args.quantize_bits)

    def open_loaders(self, group: Group) -> tuple[Any, Validate | None]:
        """Batches to train on, and what measures a network on the validation images."""
        from adderzoo.data import MemoryLoader, open_loader, open_training_loader
        from adderzoo.engine import evaluate

        args = self.args
        loader = open_training_loader(
            self.train_set,
            self.config,
            args.batch_size,
            args.workers,
            group.device,
            args.train_crop_mode,
            not args.no_aug,
            args.in_memory,
            args.seed,
            group.rank,
            group.processes,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            vflip=args.vflip,
            color_jitter=args.color_jitter,
            auto_augment=args.aa,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
        )
        if not self.val_set:
            return loader, None
        in_memory = isinstance(loader, MemoryLoader)
        batch_size = args.validation_batch_size or args.batch_size
        val_loader = open_loader(
            self.val_set, self.config, batch_size, args.workers, group.device, group.rank, group.processes, in_memory
        )

        def validate(network: Any, recipe: "Recipe") -> Any:
            return evaluate(
                network,
                val_loader,
                recipe.device,
                recipe.amp_dtype,
                recipe.channels_last,
                images=len(range(group.rank, len(self.val_set), group.processes)),
                description="validation",
            )

        return loader, validate

    def metadata(self, model: Any) -> dict[str, str]:
        """What a file of weights says of the data."""
        from adderzoo.inference.quantization import ranges

        known = {"data_config": to_json(self.config)}
        if self.args.quantize_bits is not None:
            known["ranges"] = to_json(ranges(model))
        if len(self.indices) == model.num_classes:
            known["classes"] = to_json(self.classes)
        return known

    @property
    def classes(self) -> list[str]:
        """The names of the images' classes in their order, as far as the data set has names."""
        return sorted(self.indices, key=lambda name: self.indices[name])

    def describe(self, model: Any) -> str:
        from adderzoo.data import describe_origin

        sets = {"training": self.train_set, "validation": self.val_set}
        origins = [f"{use}: {describe_origin(images, self.args.dataset)}" for use, images in sets.items() if images]
        return "; ".join([f"{_images(**sets)}, {model.num_classes} classes", *origins])


class SuperResolution:
    """Pairs of a small and a large image; the attributes are those of :class:`Classification`."""

    accuracy = False
    num_classes = None

    def __init__(self, args: argparse.Namespace, network: Any) -> None:
        from timm.data import resolve_model_data_config

        from adderzoo.data import open_training_pairs

        if args.data_dir is None:
            raise ValueError("data-dir must be a folder, got None")
        self.args = args
        self.config = resolve_model_data_config(network)
        self.input_size = (3, args.img_size, args.img_size)
        self.train_set, self.val_set = open_training_pairs(
            args.data_dir, network.scale, args.train_split, args.val_split
        )

    def loss(self) -> Any:
        from torch import nn

        return nn.L1Loss()

    def check(self, model: Any) -> None:
        pass

    def open_loaders(self, group: Group) -> tuple[Any, Validate | None]:
        from adderzoo.data import open_patch_loader
        from adderzoo.engine import evaluate_super_resolution
        from adderzoo.engine.group import from_first

        args = self.args
        loader = open_patch_loader(
            self.train_set,
            args.img_size,
            args.batch_size,
            args.workers,
            not args.no_aug,
            args.epoch_repeats,
            args.in_memory,
            args.seed,
            group.rank,
            group.processes,
        )
        val_set = self.val_set
        if not val_set:
            return loader, None

        def validate(network: Any, recipe: "Recipe") -> Any:
            if group.rank > 0:  # whole images, one by one, are for one process
                return from_first(None)
            return from_first(
                evaluate_super_resolution(
                    network, val_set, recipe.amp_dtype, recipe.channels_last, description="validation"
                )
            )

        return loader, validate

    def metadata(self, model: Any) -> dict[str, str]:
        return {"data_config": to_json(self.config)}

    def describe(self, model: Any) -> str:
        patches = len(self.train_set) * self.args.epoch_repeats
        sets = {"training": self.train_set, "validation": self.val_set}
        origins = [f"{use}: {pairs.describe()}" for use, pairs in sets.items() if pairs]
        return "; ".join([f"{_images(**sets)}, {patches} patches an epoch, x{model.scale}", *origins])


def _images(training: Any, validation: Any) -> str:
    return f"{len(training)} training images, {len(validation) if validation else 'no'} validation images"
