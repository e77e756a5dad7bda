"""Model cards of published weights, as the Hugging Face Hub shows them: Markdown with YAML in front."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from adderzoo import models
from adderzoo.catalogue import (
    RESULTS,
    Accuracy,
    Measurement,
    ModelInfo,
    Quality,
    SetQuality,
    read_results,
    twin,
)
from adderzoo.checkpoints import read_classes, read_metadata
from adderzoo.publish.networks import describe

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

_SR_PAPER = "[AdderSR: Towards Energy Efficient Image Super-Resolution](https://arxiv.org/abs/2009.08891)"

_SR_CITATION = """\
@inproceedings{song2021addersr,
  title     = {{AdderSR}: Towards Energy Efficient Image Super-Resolution},
  author    = {Song, Dehua and Wang, Yunhe and Chen, Hanting and Xu, Chang and Xu, Chunjing and Tao, Dacheng},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {15648--15657},
  year      = {2021},
  note      = {arXiv:2009.08891}
}"""

# The published networks by what names have of them: with their paper, and as the AdderSR paper has them.
_SR_NETWORKS = {
    "edsr": ("[EDSR](https://arxiv.org/abs/1707.02921)", "EDSR of 32 blocks of 256 channels"),
    "vdsr": ("[VDSR](https://arxiv.org/abs/1511.04587)", "VDSR"),
}

# PSNR in dB of that paper's adder networks and of their CNNs, by test set.
_SR_PAPER_PSNR = {
    "edsr": {
        "Set5 x2": (37.92, 38.11),
        "Set14 x2": (33.82, 33.92),
        "B100 x2": (32.23, 32.32),
        "Urban100 x2": (32.63, 32.93),
        "Set5 x3": (34.35, 34.65),
        "Set14 x3": (30.33, 30.52),
        "B100 x3": (29.13, 29.25),
        "Urban100 x3": (28.54, 28.80),
        "Set5 x4": (32.13, 32.46),
        "Set14 x4": (28.57, 28.80),
        "B100 x4": (27.58, 27.71),
        "Urban100 x4": (26.33, 26.64),
    },
    "vdsr": {
        "Set5 x2": (37.37, 37.53),
        "Set14 x2": (32.91, 33.03),
        "B100 x2": (31.82, 31.90),
        "Urban100 x2": (30.48, 30.76),
        "Set5 x3": (33.47, 33.66),
        "Set14 x3": (29.62, 29.77),
        "B100 x3": (28.72, 28.82),
        "Urban100 x3": (26.95, 27.14),
        "Set5 x4": (31.27, 31.35),
        "Set14 x4": (27.93, 28.01),
        "B100 x4": (27.25, 27.29),
        "Urban100 x4": (25.09, 25.18),
    },
}


def model_card(name: str, folder: Path = models.WEIGHTS) -> str:
    """The model card of published weights, from what the registry, their file and their measurement say.

    Args:
        name: Of the network, with the tag of the weights.
        folder: Where the weights lie, with results.json.

    Raises:
        ValueError: if the registry has no such tag, there is no file of its weights in the folder, nobody measured
            them, or they are of a network with binary or shift layers.
    """
    if name not in timm.list_models(name.partition(".")[0], include_tags=True):
        raise ValueError(f"a model card is of weights with a tag in the registry, got {name!r}")
    if name.partition("_")[0] not in ("adder", "cnn"):
        raise ValueError(f"a model card is of an adder network or a CNN, whose operations are counted, got {name!r}")
    file, results = folder / f"{name}.safetensors", read_results(folder / RESULTS.name)
    measured = results.get(name)
    if not file.is_file() or measured is None:
        missing = "file" if measured else "row in results.json" if file.is_file() else "file and no row in results.json"
        raise ValueError(f"a model card is of weights with a file and a measurement, {name!r} has no {missing}")
    cfg = get_pretrained_cfg(name)
    said = read_metadata(file)
    license = said.get("license") or cfg.license or "unknown"
    made_by = "Measured by" if "source" in said else "Trained and measured by"  # the source is somebody else's file
    start = f" The training started from {said['trained_from']}." if "trained_from" in said else ""
    teachers = f" It was taught by {said['taught_by']}." if "taught_by" in said else ""
    other = twin(cfg.architecture)
    network, *others = [describe(each, cfg) for each in (cfg.architecture, other) if each]
    if isinstance(measured, Quality):
        parts = _super_resolution(name, network, others, measured, results)
    else:
        parts = _classifier(name, cfg, network, others, measured, results, cfg.label_names or read_classes(file))
    sections = {
        parts.figures_title: parts.figures,
        "Cost": _cost(parts, [network, *others], cfg.tag, folder),
        "Training": f"{measured.recipe or 'Not recorded.'}{start}{teachers}\n\n{made_by} this command, in a clone of "
        f"adderzoo's repository:\n\n```bash\n{measured.command}\n```",
        "Data": parts.data,
        "Use": f"`adderzoo` brings these weights with it (`pip install --no-build-isolation .` in a clone):{parts.use}",
        "Intended use and limits": parts.limits,
        "License": license,
        "Citation": f"```bibtex\n{parts.citation}\n```",
    }
    front = yaml.safe_dump({"license": license.lower(), **parts.front_matter}, sort_keys=False)
    text = "".join(f"\n## {title}\n\n{section}\n" for title, section in sections.items())
    return f"---\n{front}---\n\n# {name}\n\n{parts.summary}\n{text}"


@dataclass(frozen=True)
class _Parts:
    """What is different in the cards of classifiers and of networks for super-resolution.

    Attributes:
        front_matter: All but the license.
        summary: The first paragraph.
        figures_title: Title of the section with what was measured.
        figures: That section.
        image: Behind the size of the image that costs are counted for.
        cost: Rows of the table of costs behind those that all have, cells for the network and its twin.
        data: The section.
        use: What follows the sentence on how to install.
        limits: The section.
        citation: BibTeX.
    """

    front_matter: dict[str, Any]
    summary: str
    figures_title: str
    figures: str
    image: str
    cost: list[list[str]]
    data: str
    use: str
    limits: str
    citation: str


def _cost(parts: _Parts, columns: list[ModelInfo], tag: str, folder: Path) -> str:
    """A table with a column for the network and one for its twin."""
    network, *others = columns
    files = [folder / f"{info.name}.{tag}.safetensors" for info in columns]
    rows = [
        ["", f"`{network.name}`", *(f"its twin `{info.name}`" for info in others)],
        ["multiply-adds of convolutions and linear layers", *(f"{info.multiply_adds:,}" for info in columns)],
        ["elements `\\|x - w\\|` of adder layers", *(f"{info.adder_elements:,}" for info in columns)],
        [
            "energy of these in float32 / int8, mJ",
            *(f"{info.energy():.3g} / {info.energy('int8'):.3g}" for info in columns),
        ],
        ["parameters", *(f"{info.parameters:,}" for info in columns)],
        [
            f"bytes of the file with tag `{tag}`",
            *(f"{file.stat().st_size:,}" if file.is_file() else "-" for file in files),
        ],
        *parts.cost,
    ]
    return (
        f"For one image of {_size(network.input_size)} (channels, height, width){parts.image}. An element is two "
        f"additions; BatchNorm, pooling and activations are not counted. Energy is that of the operations on a 45 nm "
        f"chip, without memory.\n\n{_table(rows)}"
    )


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _table(rows: list[list[str]]) -> str:
    """Of a head and rows; all columns but the first have numbers."""
    head, *rest = rows
    lines = [head, ["---", *("---:" for _ in head[1:])], *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _role(network: ModelInfo) -> str:
    if network.adder_elements:
        return "to study networks that hardly multiply and to build on them"
    return "to compare an adder network with"


# --------------------------------------------------------------------------------------------------------- classifiers


def _classifier(
    name: str,
    cfg: Any,
    network: ModelInfo,
    others: list[ModelInfo],
    measured: Accuracy,
    results: dict[str, Measurement],
    classes: Sequence[str] | None,
) -> _Parts:
    dataset = _HUB_DATASETS.get(cfg.tag.rpartition("_")[2])  # a method may stand before it
    accuracies = []
    for info in (network, *others):
        result = results.get(f"{info.name}.{cfg.tag}")
        same = isinstance(result, Accuracy) and (result.dataset, result.images) == (measured.dataset, measured.images)
        accuracies.append(_percent(result) if isinstance(result, Accuracy) and same else "-")
    front_matter = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "adderzoo", *(["adder-network"] if network.adder_elements else [])],
    }
    limits = (
        f"It is there {_role(network)}, and for images like those that it was trained on. It gives every image one of "
        f"its {cfg.num_classes:,} classes, whatever the image shows, and nothing but the accuracy above has been "
        "measured: not how far its probabilities can be trusted, nor how it does on other data."
    )
    return _Parts(
        front_matter=front_matter | ({"datasets": [dataset]} if dataset else {}),
        summary=_summary(network, others),
        figures_title="Accuracy",
        figures=f"Top-1 {_percent(measured)} % on {measured.images:,} images ({measured.dataset}). Behind ± is the "
        "standard error, sqrt(p (1 - p) / n).",
        image="",
        cost=[[f"top-1 % with tag `{cfg.tag}`", *accuracies]],
        data=_data(cfg, measured, dataset, classes),
        use=f"\n\n```python\n{_usage(name, cfg)}```",
        limits=limits,
        citation=_CITATION,
    )


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


def _percent(measured: Accuracy) -> str:
    return f"{measured.top1:.2f} ± {measured.top1_se:.2f}"


def _data(cfg: Any, measured: Accuracy, dataset: str | None, names: Sequence[str] | None) -> str:
    config = resolve_data_config(pretrained_cfg=cfg.to_dict())
    channels, height, width = config["input_size"]
    resized = math.floor(min(height, width) / config["crop_pct"])
    return _list(
        [
            f"Measured on: {measured.dataset}."
            + (
                f" On the Hub the data set is [{dataset}](https://huggingface.co/datasets/{dataset})."
                if dataset
                else ""
            ),
            f"Input: {'gray' if channels == 1 else 'RGB'} images of {height}x{width}: the shorter side resized to "
            f"{resized} ({config['interpolation']}), then a {config['crop_mode']} crop.",
            f"Pixels in [0, 1], less mean {_numbers(config['mean'])}, divided by {_numbers(config['std'])}.",
            f"Classes: {cfg.num_classes:,}" + (f" ({', '.join(names)})." if names and len(names) <= 20 else "."),
        ]
    )


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


# --------------------------------------------------------------------------------------------------- super-resolution


def _super_resolution(
    name: str, network: ModelInfo, others: list[ModelInfo], measured: Quality, results: dict[str, Measurement]
) -> _Parts:
    tag = name.partition(".")[2]
    names = [f"{info.name}.{tag}" for info in others]
    scales = sorted({each.scale for each in measured.test_sets})
    channels, height, width = network.input_size
    scale = network.scale or 1
    limits = (
        f"It is there {_role(network)}, and for photographs made smaller by bicubic interpolation with antialiasing, "
        "as MATLAB's `imresize` does: on such it was measured. What else a camera or a file format does to an image, "
        "blur, noise and the blocks of JPEG, is made larger with the rest, and nothing but the figures above has been "
        "measured."
    )
    sets = ", ".join(each.name for each in measured.test_sets)
    return _Parts(
        front_matter={
            "library_name": "adderzoo",  # for timm the Hub would show how to classify an image
            "pipeline_tag": "image-to-image",
            "tags": ["super-resolution", "adderzoo", *(["adder-network"] if network.adder_elements else [])],
        },
        summary=_sr_summary(network, others, scales),
        figures_title="Image quality",
        figures=_sr_quality(network, others, measured, [results.get(each) for each in (*names, "bicubic")]),
        image=f", which becomes {_size((channels, scale * height, scale * width))}",
        cost=[],
        data=_list(
            [
                f"Measured on: {sets}.",
                "Input: RGB images of any size, pixels in [0, 1]; nothing is subtracted.",
                "Output: the same, as many times as large; values beyond [0, 1] are to be clipped.",
            ]
        ),
        use=f"\n\n```python\n{_sr_usage(name)}```\n\n"
        f"`adderzoo upscale PHOTO --model {name} -o LARGER.png` does the same with photographs of any size, in tiles."
        + ("" if len(scales) == 1 else f" Both take other scales than {scale} too: `scale=3`, `--scale 3`."),
        limits=limits,
        citation=f"{_SR_CITATION}\n\n{_CITATION}",
    )


def _sr_summary(network: ModelInfo, others: list[ModelInfo], scales: list[int]) -> str:
    *first, last = map(str, scales)
    times = f"{', '.join(first)} or {last}" if first else last
    makes = f"makes images {times} times as wide and high"
    published = next((f", {text}," for kind, (text, _) in _SR_NETWORKS.items() if kind in network.name), "")
    if network.adder_elements:
        return (
            f"A network for super-resolution{published} that is an *adder network*: it {makes}, and where a "
            "convolution multiplies, its adder layers give the negative L1 distance between patch and filter, with a "
            f"shortcut around each and a power activation behind it, as proposed in {_SR_PAPER} (CVPR 2021)."
        )
    of = f" `{others[0].name}`" if others else ""
    return (
        f"A convolutional network for super-resolution{published or ','} the baseline of the adder network{of}: it "
        f"{makes}, with convolutions where that one has the negative L1 distance between patch and filter, a shortcut "
        f"and a power activation, as proposed in {_SR_PAPER} (CVPR 2021)."
    )


def _sr_quality(
    network: ModelInfo, others: list[ModelInfo], measured: Quality, references: list[Measurement | None]
) -> str:
    """A table with a row for each test set.

    Args:
        network: Whose card it is.
        others: Its twin.
        measured: What was measured of it.
        references: The same of the twin and of bicubic interpolation, as far as it was measured.
    """
    kind = next((kind for kind in _SR_NETWORKS if kind in network.name), "")
    head = ["PSNR in dB / SSIM", "images", f"`{network.name}`", *(f"its twin `{info.name}`" for info in others)]
    rows = [[*head, "bicubic interpolation", "adder network less CNN", "in the paper"]]
    for each in measured.test_sets:
        found = [_same(each, reference) for reference in references]
        gap = "-"
        if others and found[0]:
            adder, cnn = (each, found[0]) if network.adder_elements else (found[0], each)
            gap = f"{adder.psnr - cnn.psnr:+.2f} dB"
        paper = _SR_PAPER_PSNR.get(kind, {}).get(each.name)
        rows.append(
            [
                each.name,
                str(each.images),
                *(f"{one.psnr:.2f} / {one.ssim:.4f}" if one else "-" for one in (each, *found)),
                gap,
                f"{paper[0] - paper[1]:+.2f} dB ({paper[0]:.2f} less {paper[1]:.2f})" if paper else "-",
            ]
        )
    text = (
        "Of the Y of YCbCr, without a border of as many pixels as the scale; means over the images, as `adderzoo "
        "validate` measures them."
    )
    if kind:
        text += f" The paper's figures are those of {_SR_NETWORKS[kind][1]} as its authors trained it: {_SR_PAPER}."
    return f"{text}\n\n{_table(rows)}"


def _same(wanted: SetQuality, measured: Measurement | None) -> SetQuality | None:
    """What was measured on the same images."""
    key = (wanted.name, wanted.images)
    sets = measured.test_sets if isinstance(measured, Quality) else ()
    return next((each for each in sets if (each.name, each.images) == key), None)


def _sr_usage(name: str) -> str:
    return f"""\
import timm
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor
from torchvision.utils import save_image

import adderzoo  # registers the networks with timm

model = timm.create_model("{name}", pretrained=True).eval()

image = Image.effect_noise((64, 48), 64).convert("RGB")  # or Image.open(FILE).convert("RGB")
with torch.inference_mode():
    larger = model(to_tensor(image).unsqueeze(0))
save_image(larger, "larger.png")  # clips
print(*image.size, "->", *Image.open("larger.png").size)
"""
