"""`adderzoo benchmark`."""

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ._table import align

if TYPE_CHECKING:
    from adderzoo.engine.benchmark import OperatorResult, Report, Section

_PARTS = ("operator", "inference", "training", "threads")
_PARTS_OF = {"float32": _PARTS, "u8": ("operator", "inference", "threads")}
_OPERATOR_MODEL, _NETWORK_MODEL = "adder_resnet50", "adder_resnet20"
_CHARTS = (".png", ".pdf", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=_PARTS,
        help="operator: its speed on the adder layers of a network; inference, training: whole networks, one training "
        "step; threads: the network's speed with one thread and with more (all of them); by default all, but for "
        "training in u8",
    )
    parser.add_argument(
        "--precision",
        choices=_PARTS_OF,
        default="float32",
        help="of the adder networks: float32, or u8 for inference in bytes, beside the CNN in int8 (%(default)s)",
    )
    parser.add_argument(
        "--models",
        metavar="NAME",
        nargs="+",
        help=f"adder networks ({_OPERATOR_MODEL} for the operator, else {_NETWORK_MODEL})",
    )
    parser.add_argument(
        "-b",
        "--batch-size",
        metavar="N",
        nargs="+",
        type=int,
        help="images a batch (operator 8; inference 1, 8 and 128; else 8 for images beyond 64x64, 128 for smaller); 1 "
        "is left out in training",
    )
    parser.add_argument(
        "--seconds",
        metavar="X",
        type=float,
        default=1.0,
        help="time for each network and way to run it (%(default)s); a layer gets a quarter of it",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, most of the waiting")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything that was measured here")
    parser.add_argument("--chart", metavar="FILE", type=Path, help="draw it here, as .png, .pdf or .svg")
    parser.epilog = (
        "Everything is measured in turns, so that a machine that gets slower or faster does so for all; a time is the "
        "median of the rounds, ± half the distance between their quartiles. Speed and memory are relative to the "
        "faster memory format of the float32 CNN twin, by image; frozen is inductor's freezing, which folds BatchNorm; "
        "the CNN in int8 needs torchao (pip install 'adderzoo[int8]'). Peak memory is that of parameters, optimiser "
        "and one run, without Python and its libraries. The adder layers in PyTorch's own operations run on one image "
        "(two in training), which is the best for them. PyTorch's threads are set by OMP_NUM_THREADS."
    )


def run(args: argparse.Namespace) -> None:
    from adderzoo.engine import benchmark

    args.parts = args.parts or _PARTS_OF[args.precision]
    _check(args)
    if args.chart:
        benchmark.import_matplotlib()
    jobs = [
        (part, model, _batches(args, part) or benchmark.default_batches(model, part))
        for part in _PARTS
        if part in args.parts
        for model in args.models or [_OPERATOR_MODEL if part == "operator" else _NETWORK_MODEL]
    ]
    report = benchmark.Report(
        benchmark.describe_machine(), shlex.join(["adderzoo", *args.arguments]), float(args.seconds)
    )
    print(report.machine, flush=True)
    try:
        _measure(jobs, report, args)
    except KeyboardInterrupt:
        sys.exit(130)
    _write(report, args)


def _measure(jobs: list[tuple[str, str, list[int]]], report: "Report", args: argparse.Namespace) -> None:
    """Measure, and print a table after each job."""
    from tqdm import tqdm

    from adderzoo.engine import benchmark

    with tqdm(bar_format="{desc} [{elapsed}]", leave=False, disable=None) as progress:
        for part, model, batches in jobs:
            for batch in batches:
                if part == "operator":
                    results = benchmark.measure_operator(
                        model, batch, args.seconds / 4, progress.set_description_str, args.precision
                    )
                    report.operator += results
                    text = _operator_text(results)
                else:
                    section = benchmark.measure_networks(
                        model,
                        part,
                        batch,
                        naive=batch == min(batches),
                        compiled=not args.no_compile,
                        seconds=args.seconds,
                        note=progress.set_description_str,
                        precision=args.precision,
                    )
                    report.networks.append(section)
                    text = _section_text(section)
                with tqdm.external_write_mode():
                    print(f"\n{text}", flush=True)


def _batches(args: argparse.Namespace, part: str) -> list[int]:
    """Those that the user has named; BatchNorm on the logits cannot be trained with one image."""
    named = dict.fromkeys(args.batch_size or ())
    return [batch for batch in named if part != "training" or batch > 1]


def _check(args: argparse.Namespace) -> None:
    from adderzoo.engine.benchmark import twin_of

    for model in args.models or ():
        twin_of(model)
    for batch in args.batch_size or ():
        if batch < 1:
            raise ValueError(f"batch-size must be at least 1, got {batch}")
    if args.batch_size and not all(_batches(args, part) for part in args.parts):
        raise ValueError("batch-size must be at least 2 in training, for BatchNorm, got 1")
    if not 0 < args.seconds < math.inf:
        raise ValueError(f"seconds must be a finite number above 0, got {args.seconds}")
    if unknown := [part for part in args.parts if part not in _PARTS_OF[args.precision]]:
        known = ", ".join(_PARTS_OF[args.precision])
        raise ValueError(f"parts must be among {known} for precision {args.precision}, got {unknown[0]}")
    if args.chart and args.chart.suffix not in _CHARTS:
        raise ValueError(f"chart must end in {', '.join(_CHARTS)}, got {args.chart}")


def _operator_text(results: list["OperatorResult"]) -> str:
    from adderzoo.engine.benchmark import operator_table

    title = f"{results[0].title}: elements |x - w|, share of the ceiling"
    return f"{title}\n{align(operator_table(results), {0, 1, 6})}"


def _section_text(section: "Section") -> str:
    from adderzoo.engine.benchmark import section_table

    return f"{section.title}\n{align(section_table(section), {0, 1})}"


def _write(report: "Report", args: argparse.Namespace) -> None:
    from adderzoo.checkpoints import write_atomically
    from adderzoo.engine.benchmark import draw

    if args.json:
        write_atomically(args.json, lambda path: path.write_text(report.to_json()))
    if args.chart:
        write_atomically(args.chart, lambda path: draw(report, path))
