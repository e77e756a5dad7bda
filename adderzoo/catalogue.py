"""What can be had by name: the networks of this package, what they cost, their weights and how good those are."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import CustomDatasetInfo, ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg, get_pretrained_cfg, split_model_name_tag

from adderzoo import models
from adderzoo.analysis.costs import Operations, profile
from adderzoo.files.foreign import to_json
from adderzoo.files.output import write_atomically

RESULTS = models.WEIGHTS / "results.json"


@dataclass(frozen=True)
class Accuracy:
    """What a classifier's published weights are measured by.

    Attributes:
        dataset: What was measured on.
        images: How many of its images.
        top1: Top-1 accuracy in percent.
        top1_se: Its standard error.
        command: What measured it, and trained the weights where they were trained here.
        recipe: How they were trained, in a sentence or two; "" where nobody wrote it down.
    """

    dataset: str
    images: int
    top1: float
    top1_se: float
    command: str
    recipe: str = ""


@dataclass(frozen=True)
class SetQuality:
    """PSNR and SSIM on a test set of super-resolution, means over its images.

    Attributes:
        dataset: The set by its name, such as "Set5".
        scale: How many times as large its images were made.
        images: How many they are.
        psnr: In decibels, of the luminance, as :func:`adderzoo.engine.evaluate_super_resolution` measures it.
        ssim: Likewise, at most 1.
    """

    dataset: str
    scale: int
    images: int
    psnr: float
    ssim: float

    @property
    def name(self) -> str:
        """As the field writes it: Set5 x2."""
        return f"{self.dataset} x{self.scale}"


@dataclass(frozen=True)
class Quality:
    """What published weights of a network for super-resolution are measured by.

    Attributes:
        test_sets: At least one; one that serves several scales may have a set more than once.
        command: What measured it, and trained the weights.
        recipe: How they were trained, in a sentence or two.
    """

    test_sets: tuple[SetQuality, ...]
    command: str
    recipe: str = ""


Measurement = Accuracy | Quality


@dataclass(frozen=True)
class Weights:
    """Published weights of a network: `timm.create_model(f"{network}.{tag}", pretrained=True)`."""

    tag: str
    measured: Measurement | None


@dataclass(frozen=True)
class ModelInfo:
    """A network by its name.

    Attributes:
        name: As `timm.create_model` takes it.
        parameters: Number of trained parameters.
        multiply_adds: Multiply-accumulates of its convolutions and linear layers, for one image of `input_size`; what
            binary and shift layers compute is none.
        adder_elements: |x - w| that its adder layers compute and sum up, likewise; each is two additions.
        input_size: (C, H, W), the network's own unless weights of another one are described.
        pretrained: Its published weights, those that `pretrained=True` takes without a tag first.
        task: "image-classification" or "super-resolution".
        scale: How many times as large a network for super-resolution makes images if it is not told; None for others.
    """

    name: str
    parameters: int
    multiply_adds: int
    adder_elements: int
    input_size: tuple[int, int, int]
    pretrained: tuple[Weights, ...]
    task: str = "image-classification"
    scale: int | None = None

    def energy(self, type: str = "float32") -> float:
        """What these operations take on a 45 nm chip, in millijoules; memory, BatchNorm and the like not counted.

        What binary and shift layers compute is none of these operations: of networks with them it is a part.

        Args:
            type: Of all numbers, "float32" or "int8".

        Raises:
            ValueError: if it is neither.
        """
        additions = self.multiply_adds + 2 * self.adder_elements
        return Operations(mul=self.multiply_adds, add=additions).energy(type)


def network_names() -> list[str]:
    """The names of all networks of this package, as timm sorts them."""
    family = f"{models.__name__}."
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith(family)]


def task(name: str) -> str:
    """What a network of this package does, by its name: "image-classification" or "super-resolution".

    timm's configurations have no field for it, but those of classifiers have classes.
    """
    cfg = get_pretrained_cfg(name)
    return "super-resolution" if cfg and cfg.num_classes == 0 else "image-classification"


def twin(name: str) -> str | None:
    """The CNN of the same definition, of a CNN the adder network; None if there is none."""
    kind, _, rest = name.partition("_")
    other = f"adder_{rest}" if kind == "cnn" else f"cnn_{rest}"
    return other if {name, other} <= set(network_names()) else None


def published_classes(model: Any) -> Any:
    """What timm knows about the classes of a network's tag, if the network still has these; else None."""
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


def list_models(filter: str | Iterable[str] = "", pretrained: bool = False) -> list[ModelInfo]:
    """The networks of this package.

    Args:
        filter: Shell-style pattern, or several, of a name ("adder_*") or a name with a tag ("*.digits"), as
            `timm.list_models` takes them.
        pretrained: Only networks with published weights (that match the filter).

    Returns:
        One entry a network, as timm sorts them; none if nothing matches.
    """
    wanted = timm.list_models(filter, pretrained=pretrained, include_tags=True)
    wanted_names = {split_model_name_tag(name)[0] for name in wanted}
    return [describe(name) for name in network_names() if name in wanted_names]


def describe(name: str, cfg: PretrainedCfg | None = None) -> ModelInfo:
    """A network of this package.

    Args:
        name: Without a tag.
        cfg: The `pretrained_cfg` of weights, whose classes and input size are counted in place of the network's own.
    """
    arguments = {"num_classes": cfg.num_classes, "in_chans": cfg.input_size[0]} if cfg else {}
    with torch.device("meta"):
        model = timm.create_model(name, **arguments).eval()
    channels, height, width = cfg.input_size if cfg else model.pretrained_cfg["input_size"]
    input_size = (channels, height, width)
    costs = profile(model, input_size)
    results = read_results()
    default = get_pretrained_cfg(name).tag
    tags = [split_model_name_tag(tagged)[1] for tagged in timm.list_pretrained(name)]
    return ModelInfo(
        name=name,
        parameters=costs.parameters,
        multiply_adds=costs.products("conv"),
        adder_elements=costs.products("adder"),
        input_size=input_size,
        pretrained=tuple(
            Weights(tag, results.get(f"{name}.{tag}")) for tag in sorted(tags, key=lambda tag: (tag != default, tag))
        ),
        task=task(name),
        scale=getattr(model, "scale", None),
    )


def read_results(path: Path = RESULTS) -> dict[str, Measurement]:
    """What was measured of published weights, by name with tag, and of "bicubic"; nothing if there is no such file."""
    if not path.is_file():
        return {}
    return {name: _measurement(row) for name, row in json.loads(path.read_text()).items()}


def _measurement(row: dict[str, Any]) -> Measurement:
    if "test_sets" in row:
        return Quality(**row | {"test_sets": tuple(SetQuality(**each) for each in row["test_sets"])})
    return Accuracy(**row)


def write_result(name: str, measured: Measurement, path: Path = RESULTS) -> None:
    """Record a measurement; the others in the file stay.

    Args:
        name: Of the network, with the tag of the weights, or "bicubic", which has none.
        measured: What was measured.
        path: File to write.

    Raises:
        OSError: if the file cannot be written.
    """
    rows = (json.loads(path.read_text()) if path.is_file() else {}) | {name: asdict(measured)}
    text = to_json(dict(sorted(rows.items())), indent=2) + "\n"
    write_atomically(path, lambda path: path.write_text(text))
