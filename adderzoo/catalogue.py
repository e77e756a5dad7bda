"""What can be had by name: the networks of this package, what they cost, their weights and how good those are.

All of it is data of the package, which a test recomputes, so that reading it takes no PyTorch.
"""

import csv
import fnmatch
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adderzoo.analysis.energy import Operations
from adderzoo.files.foreign import to_json
from adderzoo.files.names import no_network, no_tag
from adderzoo.files.output import write_atomically

if TYPE_CHECKING:
    from adderzoo.layers.modules import Network

NETWORKS = Path(__file__).parent / "networks.json"
RESULTS = Path(__file__).parent / "weights" / "results.json"
SPEED = Path(__file__).parent / "results" / "speed.csv"

# What tags of quantized networks end in: their bits.
QUANTIZED = re.compile(r"_u[4-8]$")


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
class Speed:
    """How fast a network is on a machine: a row of `results/speed.csv`.

    Attributes:
        network: Its name.
        precision: "float32" or "int8".
        how: What ran it.
        input_size: (C, H, W) of the images as the file writes it, such as 3x32x32.
        batch_size: Images of a batch.
        images_per_second: By the median of the rounds.
        spread: Half the distance between the quartiles of the rounds, in percent of their median.
        processor: Its name.
        instructions: Instruction sets that it has, of those that matter.
        threads: PyTorch's.
        torch: Version of PyTorch.
    """

    network: str
    precision: str
    how: str
    input_size: str
    batch_size: int
    images_per_second: float
    spread: float
    processor: str
    instructions: str
    threads: int
    torch: str

    @property
    def machine(self) -> str:
        """In a line."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.processor} ({self.instructions}), {threads}, PyTorch {self.torch}"


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
        images_per_second: In float32, fused or compiled, as `results/speed.csv` says of which machine, batch and size
            of images; None where nobody measured it.
    """

    name: str
    parameters: int
    multiply_adds: int
    adder_elements: int
    input_size: tuple[int, int, int]
    pretrained: tuple[Weights, ...]
    task: str = "image-classification"
    scale: int | None = None
    images_per_second: float | None = None

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


@functools.cache
def _rows(path: Path = NETWORKS) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return rows


def network_names() -> list[str]:
    """The names of all networks of this package, as timm sorts them."""
    return list(_rows())


def check_spelling(name: str, argument: str = "model") -> None:
    """Refuse what must be a misspelled name of this package, or a tag that its network has none of, without timm.

    That is a name that begins as names of this package do, which no name of timm does. Whether there is a network of
    another name, timm alone can say.

    Args:
        name: As `timm.create_model` takes it.
        argument: That has the name, for the error.

    Raises:
        ValueError: with what may have been meant.
    """
    network, dot, tag = name.partition(".")
    if network in _rows():
        if dot and tag not in (tags := _rows()[network]["tags"]):
            raise no_tag(name, tags, argument)
    elif re.fullmatch(r"[a-z]+_\w+", network) and network.partition("_")[0] in {each.split("_")[0] for each in _rows()}:
        timm = sys.modules.get("timm")  # without which nobody has registered networks of his own
        if timm is None or not timm.is_model(network):
            raise no_network(name, _rows(), argument)


def task(name: str) -> str:
    """What a network does, by its name, as timm knows it: "image-classification" or "super-resolution".

    timm's configurations have no field for it, but those of classifiers have classes.
    """
    if name in _rows():
        return str(_rows()[name]["task"])
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name)
    return "super-resolution" if cfg and cfg.num_classes == 0 else "image-classification"


def twin(name: str) -> str | None:
    """The CNN of the same definition, of a CNN the adder network; None if there is none."""
    kind, _, rest = name.partition("_")
    other = f"adder_{rest}" if kind == "cnn" else f"cnn_{rest}"
    return other if _is_ours(name) and _is_ours(other) else None


def published_classes(model: "Network") -> Any:
    """What timm knows about the classes of a network's tag, if the network still has these; else None."""
    from timm.data import CustomDatasetInfo, ImageNetInfo, infer_imagenet_subset

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


def _is_ours(name: str) -> bool:
    """Whether a network is of this package, in the table or not yet."""
    if name in _rows():
        return True
    import timm

    return timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith("adderzoo.models.")


def list_models(filter: str | Iterable[str] = "", pretrained: bool = False) -> list[str]:
    """The names of the networks of this package, of all others than timm's own; cf. `timm.list_models`.

    Args:
        filter: Shell-style pattern, or several, of a name ("adder_*") or a name with a tag ("*.digits").
        pretrained: Names with tags, of published weights alone.

    Returns:
        Names that `timm.create_model` takes, as timm sorts them, the weights that `pretrained=True` takes without a
        tag first; none if nothing matches.
    """
    patterns = _patterns(filter)
    found = networks(patterns, pretrained)
    if not pretrained:
        return [network.name for network in found]
    return [
        f"{network.name}.{weights.tag}"
        for network in found
        for weights in network.pretrained
        if _is_chosen([network.name, f"{network.name}.{weights.tag}"], patterns)
    ]


def networks(filter: str | Iterable[str] = "", pretrained: bool = False) -> list[ModelInfo]:
    """The networks of this package, with what is known of them.

    Args:
        filter: As :func:`list_models` takes it.
        pretrained: Only networks with published weights (that match the filter).

    Returns:
        One entry a network, as timm sorts them; none if nothing matches.
    """
    patterns, results, speeds = _patterns(filter), read_results(), read_speeds()
    found = []
    for name, row in _rows().items():
        tags = [tag for tag, published in row["tags"].items() if published or not pretrained]
        if (tags or not pretrained) and _is_chosen([name, *(f"{name}.{tag}" for tag in tags)], patterns):
            found.append(_info(name, row, results, speeds.get((name, "float32"))))
    return found


def in_order(networks: Iterable[ModelInfo], key: str) -> list[ModelInfo]:
    """The best first, by one figure.

    Args:
        networks: What to sort.
        key: "top1", of published weights, each of which has an entry of its own then, and PSNR behind it; "ops",
            multiply-adds and elements of adder layers together, the fewest first; "speed", images a second; "params",
            the fewest first. What has no such figure comes last.

    Raises:
        ValueError: if `key` is none of these.
    """
    keys: dict[str, Callable[[ModelInfo], Any]] = {
        "top1": lambda network: _accuracy(network.pretrained[0].measured) if network.pretrained else (2, 0),
        "ops": lambda network: network.multiply_adds + network.adder_elements,
        "speed": lambda network: -(network.images_per_second or -math.inf),
        "params": lambda network: network.parameters,
    }
    if key not in keys:
        raise ValueError(f"key must be one of {', '.join(keys)}, got {key!r}")
    if key == "top1":
        networks = [
            replace(network, pretrained=(weights,) if weights else ())
            for network in networks
            for weights in network.pretrained or (None,)
        ]
    return sorted(networks, key=keys[key])


def _accuracy(measured: Measurement | None) -> tuple[int, float]:
    """Classifiers first, whose percents are no decibels."""
    if isinstance(measured, Accuracy):
        return 0, -measured.top1
    return (1, -measured.test_sets[0].psnr) if measured else (2, 0)


def _info(name: str, row: dict[str, Any], results: dict[str, Measurement], speed: Speed | None) -> ModelInfo:
    channels, height, width = row["input_size"]
    return ModelInfo(
        name=name,
        parameters=row["parameters"],
        multiply_adds=row["multiply_adds"],
        adder_elements=row["adder_elements"],
        input_size=(channels, height, width),
        pretrained=tuple(Weights(tag, results.get(f"{name}.{tag}")) for tag, there in row["tags"].items() if there),
        task=row["task"],
        scale=row["scale"],
        images_per_second=speed.images_per_second if speed else None,
    )


def _patterns(filter: str | Iterable[str]) -> list[str]:
    return [filter] if isinstance(filter, str) else list(filter)


def _is_chosen(names: Iterable[str], patterns: list[str]) -> bool:
    """Whether a pattern fits one of the names; without patterns, as timm has it, any does."""
    return not any(patterns) or any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)


def read_results(path: Path = RESULTS) -> dict[str, Measurement]:
    """What was measured of published weights, by name with tag, and of "bicubic"; nothing if there is no such file."""
    if not path.is_file():
        return {}
    return {name: _measurement(row) for name, row in json.loads(path.read_text()).items()}


def _measurement(row: dict[str, Any]) -> Measurement:
    if "test_sets" in row:
        return Quality(**row | {"test_sets": tuple(SetQuality(**each) for each in row["test_sets"])})
    return Accuracy(**row)


def short(count: int) -> str:
    """Three digits or so: 0.42M, 40.4M, 1.70G, 551.5G, 9.38T."""
    for unit, letter in ((1e12, "T"), (1e9, "G")):
        if count >= unit:
            return f"{count / unit:.{2 if count < 100 * unit else 1}f}{letter}"
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e6:.2f}M" if count else "0"


def read_speeds(path: Path = SPEED) -> dict[tuple[str, str], Speed]:
    """How fast networks are, by name and precision; nothing if there is no such file."""
    if not path.is_file():
        return {}
    kinds: dict[str, Callable[[str], Any]] = {
        "batch_size": int, "images_per_second": float, "spread": float, "threads": int
    }  # fmt: skip
    with path.open(newline="") as file:
        rows = [
            Speed(**{field.name: kinds.get(field.name, str)(row[field.name]) for field in fields(Speed)})
            for row in csv.DictReader(file)
        ]
    return {(row.network, row.precision): row for row in rows}


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
