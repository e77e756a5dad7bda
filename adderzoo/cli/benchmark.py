"""`adderzoo benchmark`."""

import argparse
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ._network import add_device_argument
from ._parser import Parser
from ._results import Results, add_json_argument, open_results
from ._table import align

if TYPE_CHECKING:
    from adderzoo.engine.benchmark import OperatorResult, Report, Section

_PARTS = ("operator", "inference", "training", "threads")
_PARTS_OF = {"float32": _PARTS, "u8": ("operator", "inference", "threads")}
_OPERATOR_MODEL, _NETWORK_MODEL = "adder_resnet50", "adder_resnet20"
_CHARTS = (".png", ".pdf", ".svg")


def add_arguments(parser: Parser) -> None:
    parser.explain(
        "[-m NAME...] [options]",
        "adderzoo benchmark -m adder_lenet5 --parts inference --batch-size 1 --seconds 0.1 --no-compile",
        notes="Everything is measured in turns, so that a machine that gets slower or faster does so for all; a time "
        "is the median of the rounds, ± half the distance between their quartiles. Speed and memory are relative to "
        "the faster memory format of the float32 CNN twin, by image; frozen is inductor's freezing, which folds "
        "BatchNorm; the CNN in int8 needs torchao (pip install 'adderzoo[int8]'). Peak memory is that of parameters, "
        "optimizer and one run, without Python and its libraries. The adder layers in PyTorch's own operations run on "
        "one image (two in training), which is the best for them; those of super-resolution, which would take "
        "gigabytes, are left out. Networks for super-resolution get images that become 320x180, in training patches "
        "of 48x48. Weights are random, on which no network's time depends. PyTorch's threads are set by "
        "OMP_NUM_THREADS.",
    )
    parser.add_argument(
        "-m",
        "--models",
        "--model",
        metavar="NAME",
        nargs="+",
        help=f"measure these adder networks (default: for the operator {_OPERATOR_MODEL} and layers of many kinds, "
        f"else {_NETWORK_MODEL})",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=_PARTS,
        help="what to measure: operator, the adder layers of a network one by one, each beside PyTorch's convolution "
        "of the same geometry; inference, whole networks; training, one step of them; threads, inference with one "
        "thread and with more (default: all, except training in u8 and threads on a GPU)",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=_PARTS_OF,
        default=["float32"],
        help="precision of the adder networks: float32; u8 for inference in bytes, beside the CNN in int8; or both "
        "(default: float32)",
    )
    parser.add_argument(
        "-b",
        "--batch-size",
        metavar="N",
        nargs="+",
        type=int,
        help="images per batch; 1 is left out in training (default: operator 8, on a GPU 64; inference 1, 8 and "
        "128; training and threads 128 for images up to 64x64, beyond 8, on a GPU 64; super-resolution 1, in training "
        "16)",
    )
    parser.add_argument(
        "--seconds",
        metavar="X",
        type=float,
        default=1.0,
        help="time for each network and way to run it; a layer gets a quarter of it (default: %(default)s)",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="leave out torch.compile, which takes most of the time (default: measured too)",
    )
    add_device_argument(parser)
    add_json_argument(parser, "everything that was measured")
    parser.add_argument(
        "--chart", metavar="FILE", type=Path, help="draw the results in this file, .png, .pdf or .svg (default: none)"
    )


@dataclass(frozen=True)
class _Job:
    part: str
    model: str | None
    precisions: tuple[str, ...]
    batches: tuple[int, ...]


def run(args: argparse.Namespace) -> None:
    from adderzoo.engine import benchmark
    from adderzoo.files.output import check_output

    args.precision = [precision for precision in _PARTS_OF if precision in args.precision]
    args.device = _open_device(args.device)
    _check(args)
    if args.chart:
        check_output(args.chart, "chart", _CHARTS)
        benchmark.import_matplotlib()
    with open_results(args) as results:
        jobs = _jobs(args)
        machine = benchmark.describe_machine(args.device)
        report = benchmark.Report(machine, shlex.join(["adderzoo", *args.arguments]), float(args.seconds))
        results.show(report.machine)
        _measure(jobs, report, args, results)


def _open_device(name: str) -> str:
    from adderzoo.engine.group import open_device

    device = open_device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}")
    return "cpu" if device.type == "cpu" else str(device)


def _on_gpu(args: argparse.Namespace) -> bool:
    return args.device.startswith("cuda")


def _jobs(args: argparse.Namespace) -> list[_Job]:
    """The precisions of the operator are measured in turns, those of networks one after the other."""
    from adderzoo.engine.benchmark import default_batches

    jobs = []
    named = args.parts or _parts(args)
    for part in (part for part in _PARTS if part in named):
        of_part = tuple(precision for precision in args.precision if part in _PARTS_OF[precision])
        models: list[str | None] = [_OPERATOR_MODEL, None] if part == "operator" else [_NETWORK_MODEL]
        for model in args.models or models:
            batches = tuple(_batches(args, part) or default_batches(model, part, args.device))
            together = [of_part] if part == "operator" else [(precision,) for precision in of_part]
            jobs += [_Job(part, model, precisions, batches) for precisions in together]
    return jobs


def _parts(args: argparse.Namespace) -> list[str]:
    """Those that there are for the precisions, on the device."""
    there = [part for part in _PARTS if any(part in _PARTS_OF[precision] for precision in args.precision)]
    return [part for part in there if part != "threads" or not _on_gpu(args)]


def _measure(jobs: list[_Job], report: "Report", args: argparse.Namespace, results: Results) -> None:
    """Measure, and print a table of each job and batch, when it is written to the files."""
    from tqdm import tqdm

    from adderzoo.engine import benchmark
    from adderzoo.files.output import write_atomically

    with tqdm(bar_format="{desc} [{elapsed}]", leave=False, disable=None) as progress:
        for job in jobs:
            for batch in job.batches:
                if job.part == "operator" or job.model is None:
                    measured = benchmark.measure_operator(
                        job.model, batch, args.seconds / 4, progress.set_description_str, job.precisions, args.device
                    )
                    report.operator += measured
                    text = _operator_text(measured)
                else:
                    section = benchmark.measure_networks(
                        job.model,
                        job.part,
                        batch,
                        naive=batch == (max if _on_gpu(args) else min)(job.batches),
                        compiled=not args.no_compile,
                        seconds=args.seconds,
                        note=progress.set_description_str,
                        precision=job.precisions[0],
                        device=args.device,
                    )
                    report.networks.append(section)
                    text = _section_text(section)
                try:
                    last = (job, batch) == (jobs[-1], jobs[-1].batches[-1])
                    results.write(asdict(report), last)
                    if args.chart and last:
                        write_atomically(args.chart, lambda path: benchmark.draw(report, path))
                finally:
                    with tqdm.external_write_mode():
                        results.show(f"\n{text}")


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
    if args.batch_size and not all(_batches(args, part) for part in args.parts or _parts(args)):
        raise ValueError("batch-size must be at least 2 in training, for BatchNorm, got 1")
    if not 0 < args.seconds < math.inf:
        raise ValueError(f"seconds must be a finite number above 0, got {args.seconds}")
    known = _parts(args)
    if unknown := [part for part in args.parts or () if part not in known]:
        where = f"precision {' and '.join(args.precision)}" + (f" on {args.device}" if _on_gpu(args) else "")
        raise ValueError(f"parts must be among {', '.join(known)} for {where}, got {unknown[0]}")


def _operator_text(results: list["OperatorResult"]) -> str:
    from adderzoo.engine.benchmark import kinds_table, operator_table

    texts = []
    for title in dict.fromkeys(result.title for result in results):
        of_title = [result for result in results if result.title == title]
        if of_title[0].model is None:
            table = align(kinds_table(of_title), {0, 1})
        else:
            table = align(operator_table(of_title), {0, 1, 7})
        lines = [f"{title}: G elements |x - w|/s, share of the ceiling, speed beside a float32 convolution", table]
        reasons = dict.fromkeys(result.no_ceiling for result in of_title)
        texts.append("\n".join([*lines, *(f"no ceiling: {reason}" for reason in reasons if reason)]))
    return "\n\n".join(texts)


def _section_text(section: "Section") -> str:
    from adderzoo.engine.benchmark import section_table

    return f"{section.title}\n{align(section_table(section), {0, 1})}"
