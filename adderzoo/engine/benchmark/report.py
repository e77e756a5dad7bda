"""What a benchmark has measured: as tables, as JSON, as a picture."""

import math
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from adderzoo import ops
from adderzoo.analysis.plots import import_matplotlib
from adderzoo.files import foreign

from .devices import Gpu, describe_gpu, is_gpu
from .layers import OperatorResult
from .networks import Row, Section, usable_cores

# Instruction sets that decide how fast networks are; the names are Linux's.
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
)


@dataclass(frozen=True)
class Machine:
    """What the measurements depend on beside the networks.

    Attributes:
        processor: Its name.
        instructions: Instruction sets that it has, of those that matter.
        cores: That this process may use.
        threads: PyTorch's.
        system: Operating system.
        python: Version.
        torch: Version.
        onednn: Version of the library that computes PyTorch's convolutions.
        torch_capability: Instruction set that PyTorch uses.
        operator: How `adder2d` was found, and the instruction set that it uses.
        settings: Environment variables that limit those.
        gpu: What was measured, if not the processor.
    """

    processor: str
    instructions: tuple[str, ...]
    cores: int
    threads: int
    system: str
    python: str
    torch: str
    onednn: str
    torch_capability: str
    operator: str
    settings: dict[str, str]
    gpu: Gpu | None = None

    def __str__(self) -> str:
        if self.gpu:
            return f"{self.gpu}; PyTorch {self.torch}; on {self.cores} cores of {self.processor}"
        return (
            f"{self.processor}, {self.threads} of {self.cores} cores; PyTorch {self.torch}, {self.torch_capability}, "
            f"oneDNN {self.onednn}; adder operator: {self.operator}"
        )


def describe_machine(device: str = "cpu") -> Machine:
    """The machine, with the GPU if `device` is one. Its kernels of the operator are compiled then, if they are not."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in (cpuinfo.read_text() if cpuinfo.exists() else "").splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    onednn = re.search(r"MKL-DNN v(\S+)|oneDNN v(\S+)", torch.__config__.show())
    return Machine(
        processor=facts.get("model name") or platform.processor() or platform.machine(),
        instructions=tuple(name for name in _FLAGS if name in flags),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        onednn=next(filter(None, onednn.groups()), "") if onednn else "none",
        torch_capability=torch.backends.cpu.get_cpu_capability(),
        operator=ops.backend(),
        settings={
            name: os.environ[name]
            for name in ("ADDERZOO_CPU_CAPABILITY", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
            if name in os.environ
        },
        gpu=describe_gpu(device) if is_gpu(device) else None,
    )


@dataclass
class Report:
    """A benchmark: where, how, and what came out."""

    machine: Machine
    command: str
    seconds: float
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    operator: list[OperatorResult] = field(default_factory=list)
    networks: list[Section] = field(default_factory=list)

    def to_json(self) -> str:
        """Everything, times in seconds, memory in bytes, rates in elements or images a second."""
        return foreign.to_json(asdict(self), indent=2) + "\n"


def operator_table(results: Sequence[OperatorResult]) -> list[tuple[str, ...]]:
    """Of one network, one line a direction and memory format."""
    rows: list[tuple[str, ...]] = [
        ("direction", "format", "G elements/s", "ceiling", "share", "convolution", "worst", "in the layer")
    ]
    for result in results:
        worst = result.worst
        rows.append(
            (
                result.direction,
                result.memory_format,
                f"{result.rate / 1e9:.1f}",
                f"{result.ceiling / 1e9:.1f}" if result.ceiling else "",
                _percent(result.share),
                _ratio(result.convolution),
                _percent(worst.share),
                str(worst.layer),
            )
        )
    return rows


def kinds_table(results: Sequence[OperatorResult]) -> list[tuple[str, ...]]:
    """Of layers of many kinds, one line a layer and memory format, with three numbers a direction."""
    formats = dict.fromkeys(result.memory_format for result in results)
    rows = [("layer", "format", *dict.fromkeys(result.direction for result in results))]
    for memory_format in formats:
        ceilings = [result.ceiling for result in results if result.memory_format == memory_format]
        if all(ceilings):
            cells = [f"{ceiling / 1e9:.1f}  100 %      " for ceiling in ceilings if ceiling]
            rows.append(("ceiling", memory_format, *cells))
    for same in zip(*(result.layers for result in results), strict=True):
        for memory_format in formats:
            cells = [
                f"{row.elements / row.seconds / 1e9:.1f}  {_percent(row.share):>5}  {_ratio(row.convolution):>4}"
                for row, result in zip(same, results, strict=True)
                if result.memory_format == memory_format
            ]
            rows.append((str(same[0].layer), memory_format, *cells))
    return rows


def section_table(section: Section) -> list[tuple[str, ...]]:
    """One line a contender, in the faster of its memory formats, times by image."""
    first = "threads" if section.part == "threads" else "batch"
    rows: list[tuple[str, ...]] = [
        ("network", "format", first, "ms/image", "±", "images/s", "speed", "peak MiB", "memory")
    ]
    for row in fastest_formats(section):
        contender = row.contender
        number = contender.threads if section.part == "threads" else contender.batch
        start = (contender.label, contender.memory_format, str(number))
        if row.seconds is None or row.quartiles is None:
            rows.append((*start, row.error))
            continue
        low, high = row.quartiles
        rows.append(
            (
                *start,
                _digits(1e3 * row.seconds / contender.batch),
                f"{50 * (high - low) / row.seconds:.0f} %" if row.runs > 1 else "",
                _digits(row.images_per_second or 0),
                _ratio(row.speed),
                f"{row.peak_memory / 2**20:.1f}" if row.peak_memory else "",
                _ratio(row.memory),
            )
        )
    return rows


def fastest_formats(section: Section) -> list[Row]:
    """The rows without those of a slower memory format."""
    best: dict[Any, Row] = {}
    for row in section.rows:
        key = (row.contender.label, row.contender.threads)
        if key not in best or (row.seconds or math.inf) < (best[key].seconds or math.inf):
            best[key] = row
    return list(best.values())


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value >= 0.1 else f"1/{1 / value:.0f}"


def _digits(value: float) -> str:
    """Three of them or more: 0.00123, 1.23, 12.3, 1234."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def draw(report: Report, path: Path) -> None:
    """Bars of speed for each section, and of the share of the ceiling for the operator.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    import_matplotlib()
    from matplotlib.figure import Figure

    panels: list[tuple[str, list[tuple[str, float, str, str]]]] = []
    for title in dict.fromkeys(result.title for result in report.operator):
        shares = [share for result in report.operator if result.title == title for share in _shares(result)]
        bars = [(label, share, _percent(share), _ADDER) for label, share in shares if share is not None]
        panels.append((f"{title[0].upper()}{title[1:]}: share of the ceiling of their loops", bars))
    for section in report.networks:
        base = "one thread" if section.part == "threads" else "the CNN"
        bars = [
            (_bar_label(row, section), row.speed, _ratio(row.speed), _color(row))
            for row in fastest_formats(section)
            if row.speed
        ]
        panels.append((f"{section.title}: images a second, {base} = 1", bars))
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        raise ValueError("there is nothing to draw: nothing could be measured")

    heights = [len(bars) + 2 for _, bars in panels]
    figure = Figure(figsize=(9, 0.27 * sum(heights) + 0.5), layout="constrained")
    figure.suptitle(str(report.machine).replace("; ", "\n"), fontsize=8)
    for axes, (title, bars) in zip(
        figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False).flat, panels, strict=True
    ):
        labels, values, texts, colors = zip(*bars, strict=True)
        drawn = axes.barh(range(len(bars)), values, color=colors)
        axes.bar_label(drawn, texts, padding=3, fontsize=8)
        axes.set_yticks(range(len(bars)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8, zorder=0)
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if min(values) < _TOO_SHORT:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlim(min(values) / 2, max(*values, 1) * 2)
        else:
            axes.set_xlim(0, 1.15 * max(*values, 1))
    figure.savefig(path, dpi=120)


def _shares(result: OperatorResult) -> list[tuple[str, float | None]]:
    """Of a network as a whole; of layers of many kinds each, in one of the memory formats."""
    if result.model:
        return [(f"{result.direction}, {result.memory_format}", result.share)]
    rows = result.layers if result.memory_format == "channels_last" else ()
    return [(f"{result.direction}, {row.layer}", row.share) for row in rows]


_TOO_SHORT = 0.1  # a bar that a linear axis hardly shows

_ADDER, _CNN, _EXPRESSION = "#0072b2", "#8c8c8c", "#d55e00"  # told apart by color-blind readers too


def _color(row: Row) -> str:
    if row.contender.model.startswith("cnn_"):
        return _CNN
    return _EXPRESSION if row.contender.form in ("authors", "cdist") else _ADDER


def _bar_label(row: Row, section: Section) -> str:
    contender = row.contender
    if section.part == "threads":
        return f"{contender.label}, {contender.threads} thread{'s' if contender.threads > 1 else ''}"
    return contender.label + (f" (batch {contender.batch})" if contender.batch != section.batch else "")
