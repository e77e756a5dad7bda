"""Model cards of published weights, as the Hugging Face Hub shows them: Markdown with YAML in front."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import yaml
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from adderzoo import models
from adderzoo.checkpoints import read_classes, read_metadata
from adderzoo.hub import RESULTS, Measurement, ModelInfo, describe, read_results, twin

# What the Hub calls a data set that ends a tag.
_HUB_DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "in1k": "imagenet-1k", "mnist": "mnist"}

_PAPER = "[AdderNet: Do We Really Need Multiplications in Deep Learning?](https://arxiv.org/abs/1912.13200)"

_CITATION = """\
@inproceedings{chen2020addernet,
  title     = {{AdderNet}: Do We Really Need Multiplications in Deep Learning?},
  author    = {Chen, Hanting and Wang, Yunhe and Xu, Chunjing and Shi, Boxin and Xu, Chao and Tian, Qi and Xu, Chang},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {1468--1477},
  year      = {2020},
  note      = {arXiv:1912.13200}
}"""


def model_card(name: str, folder: Path = models.WEIGHTS) -> str:
    """The model card of published weights, from what the registry, their file and their measurement say.

    Args:
        name: Of the network, with the tag of the weights.
        folder: Where the weights lie, with results.json.

    Raises:
        ValueError: if the registry has no such tag, there is no file of its weights in the folder, or nobody measured
            them.
    """
    if name not in timm.list_models(name.partition(".")[0], include_tags=True):
        raise ValueError(f"a model card is of weights with a tag in the registry, got {name!r}")
    file = folder / f"{name}.safetensors"
    measured = read_results(folder / RESULTS.name).get(name)
    if not file.is_file() or measured is None:
        missing = "file" if measured else "row in results.json" if file.is_file() else "file and no row in results.json"
        raise ValueError(f"a model card is of weights with a file and a measured accuracy, {name!r} has no {missing}")
    cfg = get_pretrained_cfg(name)
    said = read_metadata(file)
    license = said.get("license") or cfg.license or "unknown"
    made_by = "Measured by" if "source" in said else "Trained and measured by"  # the source is somebody else's file
    start = f" The training started from {said['trained_from']}." if "trained_from" in said else ""
    other = twin(cfg.architecture)
    network, *others = [describe(each, cfg) for each in (cfg.architecture, other) if each]
    sections = {
        "Accuracy": _accuracy(measured),
        "Cost": _cost(network, others, cfg.tag, measured, folder),
        "Training": f"{measured.recipe or 'Not recorded.'}{start}\n\n{made_by} this command, in a clone of adderzoo's "
        f"repository:\n\n```bash\n{measured.command}\n```",
        "Data": _data(cfg, measured, cfg.label_names or read_classes(file)),
        "Use": "`adderzoo` brings these weights with it (`pip install --no-build-isolation .` in a clone):"
        f"\n\n```python\n{_usage(name, cfg)}```",
        "Intended use and limits": _limits(network, cfg),
        "Licence": license,
        "Citation": f"```bibtex\n{_CITATION}\n```",
    }
    text = "".join(f"\n## {title}\n\n{section}\n" for title, section in sections.items())
    return f"---\n{_front_matter(network, cfg, license)}---\n\n# {name}\n\n{_summary(network, others)}\n{text}"


def _front_matter(network: ModelInfo, cfg: Any, license: str) -> str:
    front: dict[str, Any] = {
        "license": license.lower(),
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "adderzoo", *(["adder-network"] if network.adder_elements else [])],
    }
    dataset = _hub_dataset(cfg)
    return yaml.safe_dump(front | ({"datasets": [dataset]} if dataset else {}), sort_keys=False)


def _hub_dataset(cfg: Any) -> str | None:
    return _HUB_DATASETS.get(cfg.tag.rpartition("_")[2])  # a method may stand before it


def _summary(network: ModelInfo, others: list[ModelInfo]) -> str:
    if network.adder_elements:
        return (
            "An image classifier that is an *adder network*: where a convolution multiplies, its adder layers "
            f"give the negative L1 distance between patch and filter, as proposed in {_PAPER} (CVPR 2020)."
        )
    of = f" `{others[0].name}`" if others else ""
    return (
        f"A convolutional image classifier, the baseline of the adder network{of}: the same definition, with "
        f"convolutions where that one has the negative L1 distance between patch and filter, as proposed in {_PAPER} "
        "(CVPR 2020)."
    )


def _accuracy(measured: Measurement) -> str:
    return (
        f"Top-1 {_percent(measured)} % on {measured.images:,} images ({measured.dataset}). Behind ± is the standard "
        "error, sqrt(p (1 - p) / n)."
    )


def _percent(measured: Measurement) -> str:
    return f"{measured.top1:.2f} ± {measured.top1_se:.2f}"


def _cost(network: ModelInfo, others: list[ModelInfo], tag: str, measured: Measurement, folder: Path) -> str:
    """A table with a column for the network and one for its twin."""
    columns = [network, *others]
    results = read_results(folder / RESULTS.name)
    accuracies, sizes = [], []
    for info in columns:
        result, file = results.get(f"{info.name}.{tag}"), folder / f"{info.name}.{tag}.safetensors"
        same = result and (result.dataset, result.images) == (measured.dataset, measured.images)
        accuracies.append(_percent(result) if result and same else "-")
        sizes.append(f"{file.stat().st_size:,}" if file.is_file() else "-")
    rows = [
        ["", f"`{network.name}`", *(f"its twin `{info.name}`" for info in others)],
        ["---", *("---:" for _ in columns)],
        ["multiply-adds of convolutions and linear layers", *(f"{info.multiply_adds:,}" for info in columns)],
        ["elements `\\|x - w\\|` of adder layers", *(f"{info.adder_elements:,}" for info in columns)],
        ["parameters", *(f"{info.parameters:,}" for info in columns)],
        [f"bytes of the file with tag `{tag}`", *sizes],
        [f"top-1 % with tag `{tag}`", *accuracies],
    ]
    size = "x".join(map(str, network.input_size))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"For one image of {size} (channels, height, width). An element is two additions; BatchNorm, pooling and "
        f"activations are not counted.\n\n{table}"
    )


def _data(cfg: Any, measured: Measurement, names: Sequence[str] | None) -> str:
    config = resolve_data_config(pretrained_cfg=cfg.to_dict())
    channels, height, width = config["input_size"]
    resized = math.floor(min(height, width) / config["crop_pct"])
    dataset = _hub_dataset(cfg)
    lines = [
        f"Measured on: {measured.dataset}."
        + (f" On the Hub the data set is [{dataset}](https://huggingface.co/datasets/{dataset})." if dataset else ""),
        f"Input: {'grey' if channels == 1 else 'RGB'} images of {height}x{width}: the shorter side resized to "
        f"{resized} ({config['interpolation']}), then a {config['crop_mode']} crop.",
        f"Pixels in [0, 1], less mean {_numbers(config['mean'])}, divided by {_numbers(config['std'])}.",
        f"Classes: {cfg.num_classes:,}" + (f" ({', '.join(names)})." if names and len(names) <= 20 else "."),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(map(str, values))


def _usage(name: str, cfg: Any) -> str:
    channels, height, width = cfg.input_size
    mode = "L" if channels == 1 else "RGB"
    label = 'model.pretrained_cfg["label_names"][index]' if cfg.label_names else "index.item()"
    return f"""\
import timm
import torch
from PIL import Image

import adderzoo  # registers the networks with timm

model = timm.create_model("{name}", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)

image = Image.effect_noise(({width}, {height}), 64).convert("{mode}")  # or Image.open(FILE).convert("{mode}")
with torch.inference_mode():
    probabilities = model(transform(image).unsqueeze(0))[0].softmax(0)
for probability, index in zip(*probabilities.topk({min(5, cfg.num_classes)})):
    print(f"{{100 * probability:6.2f}} %", {label})
"""


def _limits(network: ModelInfo, cfg: Any) -> str:
    role = (
        "to study networks that hardly multiply and to build on them"
        if network.adder_elements
        else "to compare an adder network with"
    )
    return (
        f"It is there {role}, and for images like those that it was trained on. It gives every image one of its "
        f"{cfg.num_classes:,} classes, whatever the image shows, and nothing but the accuracy above has been measured: "
        "not how far its probabilities can be trusted, nor how it does on other data."
    )
