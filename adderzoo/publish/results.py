"""Tables of results, CSV files of the package: what every network reaches and costs, beside its CNN twin.

`results/speed.csv` is measured, by :func:`measure_speeds`; `results/classification.csv` and
`results/super-resolution.csv` are made of it, of the catalogue and of the networks, by :func:`write_results`.
"""

import csv
import functools
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from adderzoo.catalogue import (
    SPEED,
    Accuracy,
    Measurement,
    ModelInfo,
    Quality,
    Speed,
    network_names,
    networks,
    read_results,
    read_speeds,
    twin,
)
from adderzoo.engine.benchmark import default_batches, describe_machine
from adderzoo.engine.benchmark.layers import image_size
from adderzoo.engine.benchmark.networks import Contender, measure, settle
from adderzoo.files.output import write_atomically
from adderzoo.files.weights import compact
from adderzoo.inference.quantization import calibrate, quantize
from adderzoo.layers.adder import Adder2d, AdderLinear
from adderzoo.publish.networks import describe

# What runs a network at its fastest, in each precision: form and compilation of a contender.
_HOW = {
    ("adder", "float32"): ("adderzoo.fuse", "fused", ""),
    ("adder", "int8"): ("adderzoo.quantize", "u8", ""),
    ("cnn", "float32"): ("torch.compile with freezing", "plain", "freezing"),
    ("cnn", "int8"): ("torchao, torch.compile with freezing", "int8", "freezing"),
}

_PRECISIONS = ("float32", "int8")


# --------------------------------------------------------------------------------------------------------------- speed


def measure_speeds(names: Iterable[str] = (), seconds: float = 2.0, again: bool = False, path: Path = SPEED) -> None:
    """Measure how fast networks are, each adder network in turns with its CNN twin, in float32 and in bytes.

    The file is written after every network; what is in it is not measured again, so that it can be gone on with.
    Batches are of 128 images, or 8 beyond 64x64; networks for super-resolution get one image of a quarter of their
    input's height and width. Filters and images are random. PyTorch's threads are what OMP_NUM_THREADS says.

    Args:
        names: Adder networks with a CNN twin; all of them if none is named.
        seconds: For each network and precision.
        again: Whether to measure what is in the file once more.
        path: Of the file. What it has of another machine, number of threads or PyTorch is dropped.

    Raises:
        ValueError: if a name is no adder network with a twin.
        OSError: if the file cannot be written.
    """
    possible = [name for name in network_names() if name.startswith("adder_") and twin(name)]
    chosen = list(names) or possible
    if unknown := [name for name in chosen if name not in possible]:
        raise ValueError(f"names must be among {', '.join(possible)}, got {unknown[0]!r}")
    machine = _machine()
    speeds = {key: row for key, row in read_speeds(path).items() if row.machine == _named(machine)}
    for name in chosen:
        cnn = twin(name) or ""
        contenders = {
            (each, precision): _contender(each, precision) for precision in _PRECISIONS for each in (name, cnn)
        }
        if not again and (name, "float32") in speeds:  # torchao may not have made a network of the CNN
            continue
        timings, _, errors = measure(list(contenders.values()), seconds, lambda text: None, memory=False)
        for key, contender in contenders.items():
            if contender in errors:
                print(f"{key[0]} in {key[1]}: {errors[contender]}", file=sys.stderr)
                continue
            timing = timings[contender]
            speeds[key] = Speed(
                network=key[0],
                precision=key[1],
                how=_how(*key)[0],
                input_size=_size(contender.input_size or get_pretrained_cfg(key[0]).input_size),
                batch_size=contender.batch,
                images_per_second=_rounded(contender.batch / timing.median),
                spread=round(100 * timing.spread, 1),
                **machine,
            )
            print(
                f"{key[0]} in {key[1]}: {speeds[key].images_per_second} images/s ± {speeds[key].spread} %", flush=True
            )
        order = network_names()
        rows = sorted(speeds.values(), key=lambda row: (order.index(row.network), row.precision))
        _write(path, [asdict(row) for row in rows], [field.name for field in fields(Speed)])


def _machine() -> dict[str, Any]:
    machine = describe_machine()
    return {
        "processor": machine.processor,
        "instructions": " ".join(machine.instructions),
        "threads": machine.threads,
        "torch": machine.torch,
    }


def _named(machine: dict[str, Any]) -> str:
    return Speed("", "", "", "", 0, 0, 0, **machine).machine


def _how(name: str, precision: str) -> tuple[str, str, str]:
    return _HOW[name.partition("_")[0], precision]


def _contender(name: str, precision: str) -> Contender:
    (batch,) = default_batches(name, "threads")
    _, form, compiled = _how(name, precision)
    return Contender(
        name,
        batch,
        form=form,
        compiled=compiled,
        threads=torch.get_num_threads(),
        input_size=image_size(name),
    )


def _rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")


# -------------------------------------------------------------------------------------------------------------- tables


def write_results(folder: Path = SPEED.parent) -> None:
    """Write `classification.csv` and `super-resolution.csv`, after anything that they show has changed.

    README.md and the model cards show it too: `scripts/publish_results.py` writes them all.

    The largest networks are quantized for it, which takes some minutes.

    Args:
        folder: Where to, and where speed.csv lies.

    Raises:
        OSError: if a file cannot be written.
    """
    for task, rows in tables(quantized_bytes, read_speeds(folder / SPEED.name)).items():
        _write(folder / f"{task}.csv", rows, list(rows[0]))


def tables(
    quantized: Callable[[str, str], int | None], speeds: dict[tuple[str, str], Speed]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of both tables, by the name of the file.

    Args:
        quantized: :func:`quantized_bytes`, or what gives its results.
        speeds: What was measured, by network and precision.
    """
    found: dict[str, list[dict[str, Any]]] = {"classification": [], "super-resolution": []}
    results = read_results()
    for network in networks():
        table = found["super-resolution" if network.task == "super-resolution" else "classification"]
        cnn = twin(network.name) if not network.name.startswith("cnn_") else None
        for tag in [weights.tag for weights in network.pretrained] or [""]:
            tagged = f"{network.name}.{tag}" if tag else ""
            columns = _costs(network.name, tagged, quantized, speeds)
            others = _costs(cnn, tagged, quantized, speeds) if cnn else dict.fromkeys(columns)
            ours = list(_figures(results.get(f"{network.name}.{tag}"), network.task))
            theirs = {_dataset(row): row for row in _figures(results.get(f"{cnn}.{tag}"), network.task)}
            speed = speeds.get((network.name, "float32"))
            for row in ours:
                beside = theirs.get(_dataset(row), dict.fromkeys(row))
                reached = {key: value for key, value in beside.items() if key not in ("dataset", "scale", "images")}
                table.append(
                    {
                        "network": network.name,
                        "tag": tag,
                        **row,
                        **columns,
                        "cnn": cnn,
                        **{f"cnn_{key}": value for key, value in (reached | others).items()},
                        "input_size": _size(_described(network.name, tagged).input_size),
                        "timed_input_size": speed.input_size if speed else None,
                        "batch_size": speed.batch_size if speed else None,
                        "machine": speed.machine if speed else None,
                    }
                )
    return found


def _dataset(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["dataset"], row.get("scale"), row["images"]


def _figures(measured: Measurement | None, task: str) -> Iterator[dict[str, Any]]:
    """A row a data set, or one without anything."""
    if isinstance(measured, Quality):
        for each in measured.test_sets:
            yield asdict(each)
    elif isinstance(measured, Accuracy):
        yield {
            "dataset": measured.dataset,
            "images": measured.images,
            "top1": measured.top1,
            "top1_se": measured.top1_se,
        }
    else:
        kinds = ("scale", "images", "psnr", "ssim") if task == "super-resolution" else ("images", "top1", "top1_se")
        yield dict.fromkeys(("dataset", *kinds))


@functools.cache
def _described(name: str, tagged: str) -> ModelInfo:
    """A network with the classes and the input of weights, its own or its twin's; "" for those of the network."""
    if not tagged:
        return next(network for network in networks() if network.name == name)
    return describe(name, get_pretrained_cfg(tagged))


def _costs(
    name: str, tagged: str, quantized: Callable[[str, str], int | None], speeds: dict[tuple[str, str], Speed]
) -> dict[str, Any]:
    info = _described(name, tagged)
    counted = name.partition("_")[0] in ("adder", "cnn")  # of others, energy and bytes would be a part
    speed = [speeds.get((name, precision)) for precision in _PRECISIONS]
    return {
        "parameters": info.parameters,
        "multiply_adds": info.multiply_adds,
        "adder_elements": info.adder_elements,
        "millijoules_float32": _rounded(info.energy()) if counted else None,
        "millijoules_int8": _rounded(info.energy("int8")) if counted else None,
        "bytes_float32": float_bytes(name, tagged),
        "bytes_int8": quantized(name, tagged),
        **{
            f"images_per_second_{precision}": row.images_per_second if row else None
            for precision, row in zip(_PRECISIONS, speed, strict=True)
        },
    }


def _create(name: str, num_classes: int, in_chans: int, device: str = "cpu") -> nn.Module:
    with torch.device(device):
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans).eval()


def _classes_and_channels(name: str, tagged: str) -> tuple[int, int]:
    cfg = get_pretrained_cfg(tagged or name)
    return cfg.num_classes, cfg.input_size[0]


@functools.cache
def float_bytes(name: str, tagged: str = "") -> int:
    """Of the tensors of a network in float32, BatchNorm's statistics among them.

    Args:
        name: Of the network.
        tagged: Weights whose classes and channels it has, its own or its twin's; "" for those of the network.
    """
    return _bytes(compact(_create(name, *_classes_and_channels(name, tagged), "meta").state_dict()))


def quantized_bytes(name: str, tagged: str = "") -> int | None:
    """Of the tensors of a network that was quantized to 8 bits; None for networks of other than adder layers.

    CNNs, which this package does not quantize, are counted as it keeps the convolutions of adder networks: a byte a
    weight, a float32 scale for every output channel, and BatchNorm folded into a float32 bias.

    Args:
        name: Of the network.
        tagged: As :func:`float_bytes`.
    """
    return _quantized_bytes(name, *_classes_and_channels(name, tagged))


@functools.cache
def _quantized_bytes(name: str, num_classes: int, in_chans: int) -> int | None:
    kind, modules = name.partition("_")[0], [*_create(name, num_classes, in_chans, "meta").modules()]
    if kind == "cnn":
        weights = [module.weight for module in modules if isinstance(module, nn.Conv2d | nn.Linear)]
        return sum(weight.numel() + 8 * weight.shape[0] for weight in weights)
    if not any(isinstance(module, Adder2d | AdderLinear) for module in modules):
        return None
    model = _create(name, num_classes, in_chans)
    torch.manual_seed(0)
    height, width = get_pretrained_cfg(name).input_size[1:]
    small = (height, width) if height <= 32 else (64, 64) if num_classes else (8, 8)
    images = torch.randn(2, in_chans, *small)
    settle(model, images)
    return _bytes(quantize(calibrate(model, [images])).state_dict())


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def read_tables(folder: Path = SPEED.parent) -> list[dict[str, str]]:
    """The rows of both tables, as they are written."""
    rows = []
    for name in ("classification", "super-resolution"):
        with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return rows


def _write(path: Path, rows: list[dict[str, Any]], names: list[str]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda path: path.write_text(text.getvalue()))
