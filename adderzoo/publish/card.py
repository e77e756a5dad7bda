"""Model cards of published weights, as the Hugging Face Hub shows them: their text is `card.md`, a template."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from adderzoo import models
from adderzoo.catalogue import (
    QUANTIZED,
    RESULTS,
    Accuracy,
    Measurement,
    ModelInfo,
    Quality,
    SetQuality,
    read_results,
    read_speeds,
    twin,
)
from adderzoo.files.output import write_atomically
from adderzoo.files.weights import read_classes, read_metadata
from adderzoo.publish.networks import describe

TEMPLATE = Path(__file__).with_name("card.md")

# What the Hub calls a data set that ends a tag.
_HUB_DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "in1k": "imagenet-1k", "mnist": "mnist"}

_PAPER = "[AdderNet: Do We Really Need Multiplications in Deep Learning?](https://arxiv.org/abs/1912.13200)"

_SR_PAPER = "[AdderSR: Towards Energy Efficient Image Super-Resolution](https://arxiv.org/abs/2009.08891)"

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
    other = twin(cfg.architecture)
    network, *others = [describe(each, cfg) for each in (cfg.architecture, other) if each]
    if isinstance(measured, Quality):
        front, facts = _super_resolution(cfg.tag, network, others, measured, results)
    else:
        front, facts = _classifier(cfg, network, measured, cfg.label_names or read_classes(file))
    card = ModelCard.from_template(
        ModelCardData(
            license=license.lower(), model_name=name, eval_results=_evaluations(cfg.tag, measured, front), **front
        ),
        template_path=str(TEMPLATE),
        name=name,
        network=network,
        twin=others[0] if others else None,
        classifier=isinstance(measured, Accuracy),
        measured=measured,
        said=said,
        license=license,
        size=_size(network.input_size),
        costs=_costs([network, *others], cfg.tag, folder, results),
        addernet=_PAPER,
        addersr=_SR_PAPER,
        **_speeds(network, others),
        **facts,
    )
    return f"{card}\n"


def write_cards(paths: Iterable[Path] | None = None) -> None:
    """Write model cards anew, after what they show has changed.

    Args:
        paths: Of the cards, each named as its weights, which lie beside it; None for those of the package.

    Raises:
        ValueError: as :func:`model_card`.
        OSError: if a card cannot be written.
    """
    for path in sorted(models.WEIGHTS.glob("*.md")) if paths is None else paths:
        text = model_card(path.stem, path.parent)
        write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))


def _evaluations(tag: str, measured: Measurement, front: dict[str, Any]) -> list[EvalResult]:
    """What the Hub shows beside the card, and compares models by."""
    task = {"task_type": front["pipeline_tag"]}
    if isinstance(measured, Accuracy):
        (dataset,) = front.get("datasets") or [tag]
        return [
            EvalResult(
                **task,
                dataset_type=dataset,
                dataset_name=measured.dataset,
                metric_type="accuracy",
                metric_name="top-1 accuracy, %",
                metric_value=measured.top1,
            )
        ]
    return [
        EvalResult(
            **task,
            dataset_type=each.dataset,
            dataset_name=each.name,
            dataset_config=f"x{each.scale}",
            metric_type=kind,
            metric_name=shown,
            metric_value=value,
        )
        for each in measured.test_sets
        for kind, shown, value in (("psnr", "PSNR, dB", each.psnr), ("ssim", "SSIM", each.ssim))
    ]


def _costs(columns: list[ModelInfo], tag: str, folder: Path, results: dict[str, Measurement]) -> str:
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
    ]
    measured = results[f"{network.name}.{tag}"]
    if isinstance(measured, Accuracy):
        rows.append([f"top-1 % with tag `{tag}`"])
        for info in columns:
            found = results.get(f"{info.name}.{tag}")
            same = isinstance(found, Accuracy) and (found.dataset, found.images) == (measured.dataset, measured.images)
            rows[-1].append(_percent(found) if isinstance(found, Accuracy) and same else "-")
    speeds = read_speeds()
    for precision in ("float32", "int8"):
        timed = [speeds.get((info.name, precision)) for info in columns]
        if any(timed):
            rows.append(
                [f"images/s on a CPU, {precision}", *(f"{row.images_per_second:g}" if row else "-" for row in timed)]
            )
    return _table(rows)


def _speeds(network: ModelInfo, others: list[ModelInfo]) -> dict[str, Any]:
    """How the network was timed, and how many times as long an adder network takes as its CNN twin."""
    speeds, pair = read_speeds(), sorted(info.name for info in (network, *others))  # the adder network first
    slower = {}
    for precision in ("float32", "int8"):
        adder, *cnn = [speeds.get((name, precision)) for name in pair]
        if adder and cnn and cnn[0]:
            slower[precision] = f"{cnn[0].images_per_second / adder.images_per_second:.2g}"
    return {"speed": speeds.get((network.name, "float32")), "slower": slower if "float32" in slower else None}


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _table(rows: list[list[str]]) -> str:
    """Of a head and rows; all columns but the first have numbers."""
    head, *rest = rows
    lines = [head, ["---", *("---:" for _ in head[1:])], *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --------------------------------------------------------------------------------------------------------- classifiers


def _classifier(
    cfg: Any, network: ModelInfo, measured: Accuracy, classes: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Front matter, and what the template shows of a classifier."""
    dataset = _HUB_DATASETS.get(QUANTIZED.sub("", cfg.tag).rpartition("_")[2])  # a method may stand before it
    config = resolve_data_config(pretrained_cfg=cfg.to_dict())
    channels, height, width = config["input_size"]
    front: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "adderzoo", *(["adder-network"] if network.adder_elements else [])],
    }
    facts = {
        "percent": _percent(measured),
        "dataset": dataset,
        "config": config,
        "gray": channels == 1,
        "height": height,
        "width": width,
        "side": f"{height}x{width}",
        "resized": math.floor(min(height, width) / config["crop_pct"]),
        "num_classes": cfg.num_classes,
        "classes": classes,
        "label_names": cfg.label_names,
    }
    return front | ({"datasets": [dataset]} if dataset else {}), facts


def _percent(measured: Accuracy) -> str:
    return f"{measured.top1:.2f} ± {measured.top1_se:.2f}"


# --------------------------------------------------------------------------------------------------- super-resolution


def _super_resolution(
    tag: str, network: ModelInfo, others: list[ModelInfo], measured: Quality, results: dict[str, Measurement]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Front matter, and what the template shows of a network for super-resolution."""
    names = [f"{info.name}.{tag}" for info in others]
    scales = sorted({each.scale for each in measured.test_sets})
    *first, last = map(str, scales)
    channels, height, width = network.input_size
    scale = network.scale or 1
    original = next(((link, text) for kind, (link, text) in _SR_NETWORKS.items() if kind in network.name), None)
    front = {
        "library_name": "adderzoo",  # for timm the Hub would show how to classify an image
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "adderzoo", *(["adder-network"] if network.adder_elements else [])],
    }
    facts = {
        "quality": _sr_quality(network, others, measured, [results.get(each) for each in (*names, "bicubic")]),
        "original": {"link": original[0], "name": original[1]} if original else None,
        "scales": scales,
        "times": f"{', '.join(first)} or {last}" if first else last,
        "larger": _size((channels, scale * height, scale * width)),
        "test_sets": ", ".join(each.name for each in measured.test_sets),
    }
    return front, facts


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
    return _table(rows)


def _same(wanted: SetQuality, measured: Measurement | None) -> SetQuality | None:
    """What was measured on the same images."""
    key = (wanted.name, wanted.images)
    sets = measured.test_sets if isinstance(measured, Quality) else ()
    return next((each for each in sets if (each.name, each.images) == key), None)
