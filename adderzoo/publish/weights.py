"""Publishing of trained weights: into a folder, with what was measured, their SHA-256 and their model card."""

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from adderzoo import models
from adderzoo.catalogue import (
    QUANTIZED,
    RESULTS,
    Accuracy,
    Measurement,
    Quality,
    SetQuality,
    read_results,
    task,
    twin,
    write_result,
)
from adderzoo.checkpoints import create_model, load_checkpoint
from adderzoo.files.foreign import to_json
from adderzoo.files.output import write_atomically
from adderzoo.files.weights import (
    compact,
    read_classes,
    read_data_config,
    read_metadata,
    read_model_args,
    read_num_classes,
    read_ranges,
)
from adderzoo.models._quantized import load_quantized_as
from adderzoo.publish.card import write_cards
from adderzoo.publish.networks import registered_names

# As SPDX writes the licenses that timm and the Hugging Face Hub write in small letters.
_SPDX = {"apache-2.0": "Apache-2.0", "bsd-3-clause": "BSD-3-Clause", "mit": "MIT"}

# What else a checkpoint says that belongs to its weights: what the bytes of a quantized network stand for, and what
# `adderzoo export` to C knows of images by; ranges for `adderzoo quantize`; what it was converted or trained from, and
# by whom it was taught.
_KEPT = ("quantization", "statistics", "ranges", "source", "source_sha256", "trained_from", "taught_by")


def add_weights(name: str, checkpoint: Path, measured: Measurement, folder: Path = models.WEIGHTS) -> dict[str, Path]:
    """Publish trained weights.

    Written are the weights with what is known of them as metadata, their row in results.json, their line in SHA256SUMS
    and their model card, and the card of the twin's weights of this tag, since it shows these. Each file is replaced
    completely or not at all; if one cannot be written, those before it get their old content back. After a process that
    was killed they get it when something is published into the folder next. The same arguments give the same files.

    Args:
        name: Of the network, with the tag of the weights, which the network's `default_cfgs` must have, with this file
            (`weights_file(name)`), license and preprocessing.
        checkpoint: A safetensors file that says its architecture, as `adderzoo train` and `adderzoo convert` write it.
        measured: An `Accuracy`, of networks for super-resolution a `Quality`: what was measured, how, and how the
            weights were trained. Percentages and decibels are rounded to two digits, SSIM to four.
        folder: Where to.

    Returns:
        The files, by what they are: "weights", "results", "sums", "card" and, if it was rewritten, "twin's card".

    Raises:
        ValueError: if there is no such network or tag, the tag takes its weights from elsewhere or names no license;
            if the checkpoint is of another network, or of other arguments, classes, preprocessing or license than the
            tag; or if something is missing in the measurement, or impossible. Nothing is written.
        OSError: if a file cannot be written; none is changed.
    """
    cfg = check_name(name)
    measured = _check_measurement(cfg.architecture, measured)
    undo_unfinished(folder)
    content = _read_weights(name, cfg, checkpoint, measured)

    files = {
        "weights": folder / f"{name}.safetensors",
        "results": folder / RESULTS.name,
        "sums": folder / "SHA256SUMS",
        "card": folder / f"{name}.md",
    }
    other = f"{twin(cfg.architecture)}.{cfg.tag}"  # of a network without a twin there is no such file
    if (folder / f"{other}.safetensors").is_file() and other in read_results(files["results"]):
        files["twin's card"] = folder / f"{other}.md"
    sums = _with_sum(files["sums"], files["weights"].name, hashlib.sha256(content).hexdigest())

    def write_sums(path: Path) -> None:
        path.write_text(sums)
        write_atomically(files["weights"], lambda path: path.write_bytes(content))  # a moment before their sum

    with _all_or_none(folder, files.values()):
        write_atomically(files["sums"], write_sums)
        write_result(name, measured, files["results"])
        write_cards([path for kind, path in files.items() if kind.endswith("card")])
    return files


def add_baseline(measured: Quality, folder: Path = models.WEIGHTS) -> list[Path]:
    """Publish what bicubic interpolation gives, which cards of networks for super-resolution show beside their own.

    Written are the row "bicubic" in results.json and the cards of the published networks, all or none.

    Args:
        measured: Its quality, rounded as by :func:`add_weights`; the recipe may be empty.
        folder: Where to.

    Returns:
        The files.

    Raises:
        ValueError: if something is missing in the measurement, or impossible. Nothing is written.
        OSError: if a file cannot be written; none is changed.
    """
    rounded = _check_measurement("bicubic", measured)
    undo_unfinished(folder)
    results = folder / RESULTS.name
    names = [name for name, other in read_results(results).items() if isinstance(other, Quality)]
    cards = [folder / f"{name}.md" for name in names if (folder / f"{name}.safetensors").is_file()]
    with _all_or_none(folder, [results, *cards]):
        write_result("bicubic", rounded, results)
        write_cards(cards)
    return [results, *cards]


def check_name(name: str) -> Any:
    """The `pretrained_cfg` of a tag that weights can be published under.

    Raises:
        ValueError: if there is no such network or tag, the tag takes its weights from elsewhere or names no license.
    """
    network, _, tag = name.partition(".")
    if network not in registered_names():
        raise ValueError(
            f"name must be that of a network of adderzoo with a tag, such as adder_lenet5.digits, got {name!r}: "
            "`adderzoo list` shows the networks"
        )
    tags = [tagged.partition(".")[2] for tagged in timm.list_models(network, include_tags=True)]
    if tag not in tags:
        raise ValueError(
            f"name must have a tag of {network}'s default_cfgs, which are {', '.join(tags)}, got {tag!r} in {name!r}"
        )
    cfg = get_pretrained_cfg(name)
    if not cfg.file or Path(cfg.file).name != f"{name}.safetensors":
        raise ValueError(
            f"the tag of {name!r} must take its weights from the file {name}.safetensors, but its pretrained_cfg has "
            f"file {cfg.file!r} and url {cfg.url!r}"
        )
    if not cfg.license:
        raise ValueError(f"the tag of {name!r} must say the license of its weights, but its pretrained_cfg has none")
    return cfg


def _check_measurement(network: str, measured: Measurement) -> Measurement:
    """The measurement of a network, rounded as it is shown."""
    kind = Accuracy if task(network) == "image-classification" else Quality
    if not isinstance(measured, kind):
        raise ValueError(
            f"the measurement of {network}, a network for {task(network)}, must be of type {kind.__name__}, got "
            f"{type(measured).__name__}"
        )
    _check_line("command", measured.command)
    if network != "bicubic":  # in which nothing is trained
        _check_line("recipe", measured.recipe)
    return _check_accuracy(measured) if isinstance(measured, Accuracy) else _check_quality(network, measured)


def _check_line(field: str, text: str) -> None:
    if not text.strip() or len(text.splitlines()) > 1:
        raise ValueError(f"{field} of the measurement must be a line of text, got {text!r}")


def _check_accuracy(measured: Accuracy) -> Accuracy:
    _check_line("dataset", measured.dataset)
    if measured.images < 1:
        raise ValueError(f"images of the measurement must be at least 1, got {measured.images}")
    if not 0 <= measured.top1 <= 100:
        raise ValueError(f"top1 of the measurement must be from 0 to 100, in percent, got {measured.top1}")
    share = measured.top1 / 100
    expected = 100 * math.sqrt(share * (1 - share) / measured.images)
    if not abs(measured.top1_se - expected) < 0.01:
        raise ValueError(
            f"top1_se of the measurement must be the standard error of {measured.top1} % of {measured.images} images, "
            f"{expected:.2f}, got {measured.top1_se}"
        )
    return replace(measured, top1=round(measured.top1, 2), top1_se=round(measured.top1_se, 2))


def _check_quality(network: str, measured: Quality) -> Quality:
    if not measured.test_sets:
        raise ValueError("test_sets of the measurement must be at least one, got none")
    for each in measured.test_sets:
        _check_line("dataset", each.dataset)
        if each.images < 1:
            raise ValueError(f"images of {each.name} must be at least 1, got {each.images}")
        if not math.isfinite(each.psnr):
            raise ValueError(f"psnr of {each.name} must be finite, in decibels, got {each.psnr}")
        if not -1 <= each.ssim <= 1:
            raise ValueError(f"ssim of {each.name} must be from -1 to 1, got {each.ssim}")
        with torch.device("meta"):
            create_model(network, scale=each.scale)  # refuses a scale that the network is not for
    ((name, times),) = Counter(each.name for each in measured.test_sets).most_common(1)
    if times > 1:
        raise ValueError(f"test_sets of the measurement must be different ones, got {name} {times} times")
    return replace(measured, test_sets=tuple(_rounded(each) for each in measured.test_sets))


def _rounded(measured: SetQuality) -> SetQuality:
    return replace(measured, psnr=round(measured.psnr, 2), ssim=round(measured.ssim, 4))


def _metadata(measured: Measurement) -> dict[str, str]:
    """What the file of weights says of how good they are."""
    if isinstance(measured, Quality):
        return {"test_sets": to_json([asdict(each) for each in measured.test_sets])}
    return {
        "dataset": f"{measured.dataset} ({measured.images} images)",
        "top1": f"{measured.top1:.2f}",
        "top1_se": f"{measured.top1_se:.2f}",
    }


def _read_weights(name: str, cfg: Any, checkpoint: Path, measured: Measurement) -> bytes:
    """The content of the file to publish: a checkpoint that fits its tag."""
    said = read_metadata(checkpoint)
    if "architecture" not in said:  # a twin's tensors have the same names and shapes
        raise ValueError(
            "checkpoint must be a safetensors file with an architecture in its metadata, as `adderzoo train` and "
            f"`adderzoo convert` write it, got {checkpoint}"
        )
    quantized, ending = read_ranges(checkpoint, "quantization"), QUANTIZED.search(name)
    bits = quantized["bits"] if quantized else None
    if (ending and ending[0]) != (f"_u{bits}" if bits else None):
        raise ValueError(
            f"the tag of a quantized network must end in its bits, as in _u8, and no other, got {name!r} for "
            f"{checkpoint}, which is {f'one of {bits} bits' if bits else 'not quantized'}"
        )
    num_classes, classes, config = read_num_classes(checkpoint), read_classes(checkpoint), read_data_config(checkpoint)
    if num_classes not in (None, cfg.num_classes):
        raise ValueError(f"checkpoint must be of {cfg.num_classes} classes as {name}, {checkpoint} is of {num_classes}")
    if classes and cfg.label_names and classes != list(cfg.label_names):
        raise ValueError(
            f"checkpoint must be of the classes of {name}, {_some(cfg.label_names)}, {checkpoint} is of "
            f"{_some(classes)}"
        )
    expected = resolve_data_config(pretrained_cfg=cfg.to_dict())
    for key, value in expected.items():
        if key == "input_size" and task(cfg.architecture) == "super-resolution":
            continue  # it takes images of any size, and may have been trained on patches
        if config.get(key, value) != value:
            raise ValueError(
                f"checkpoint must be of the preprocessing of {name}, whose pretrained_cfg has {key} {value}, "
                f"{checkpoint} has {config[key]}"
            )
    if said.get("license", "unknown").lower() not in ("unknown", cfg.license.lower()):
        raise ValueError(
            f"checkpoint must be of the license of {name}, {cfg.license}, {checkpoint} is of {said['license']}"
        )
    model: Any
    if quantized:
        model = load_quantized_as(checkpoint, cfg.architecture, cfg.num_classes)
    else:
        model = create_model(name, num_classes=cfg.num_classes)
        load_checkpoint(model, checkpoint)
    # The weights of one scale may serve the others; whatever else changes a network makes it another one.
    own = {"num_classes": cfg.num_classes, "in_chans": cfg.input_size[0]}
    arguments = {key: value for key, value in read_model_args(checkpoint).items() if own.get(key) != value}
    if arguments.keys() - {"scale"}:
        raise ValueError(f"checkpoint must be of {name} without arguments, {checkpoint} has model_args {arguments}")
    metadata = {
        "format": "pt",
        "architecture": cfg.architecture,
        "tag": cfg.tag,
        "num_classes": str(cfg.num_classes),
        "data_config": to_json(expected),
        "license": _SPDX.get(cfg.license, cfg.license),
        "command": measured.command,
        "recipe": measured.recipe,
        **_metadata(measured),
        **{key: said[key] for key in _KEPT if key in said},
    }
    if classes or cfg.label_names:
        metadata["classes"] = to_json(classes or cfg.label_names)
    return _in_order(save(compact(model.state_dict()), metadata))


def _some(names: Iterable[str]) -> str:
    names = [repr(name) for name in names]
    return f"{len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in order: safetensors writes them in another order each time."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors behind it are aligned
    return len(text).to_bytes(8, "little") + text + content[start:]


def _with_sum(path: Path, name: str, digest: str) -> str:
    """The content of SHA256SUMS with that of a file; the other lines stay."""
    lines = path.read_text().splitlines() if path.is_file() else []
    sums = {line.split()[-1]: line for line in lines if line.strip()} | {name: f"{digest}  {name}"}
    return "".join(f"{sums[name]}\n" for name in sorted(sums))


# In a folder of weights, while files are replaced there: their old content, and the names of those that were not there.
_UNDO, _ABSENT = ".unfinished", ".absent"


@contextmanager
def _all_or_none(folder: Path, paths: Iterable[Path]) -> Iterator[None]:
    """Give these files in a folder their old content back if what follows fails, or its process is killed."""
    undo, other = folder / _UNDO, folder / f"{_UNDO}~"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(other, ignore_errors=True)  # of a process that was killed before it began, or when it was done
    other.mkdir()
    try:
        for path in paths:
            if path.exists():
                shutil.copy2(path, other)
        (other / _ABSENT).write_text("\n".join(path.name for path in paths if not path.exists()))
        other.rename(undo)  # complete, or not there at all: before this step, and behind the next renaming
        yield
    except BaseException:
        shutil.rmtree(other, ignore_errors=True)
        undo_unfinished(folder)
        raise
    undo.rename(other)
    shutil.rmtree(other)


def undo_unfinished(folder: Path) -> None:
    """Give files in a folder their old content back, of which a process that was killed has replaced only some."""
    undo = folder / _UNDO
    if (undo / _ABSENT).exists():  # it goes last
        for name in (undo / _ABSENT).read_text().splitlines():
            (folder / name).unlink(missing_ok=True)
        for path in undo.iterdir():
            if path.name != _ABSENT:
                path.replace(folder / path.name)
    if undo.exists():
        shutil.rmtree(undo)
