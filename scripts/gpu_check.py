"""Tests and measures on an NVIDIA GPU what needs one; scripts/gpu_check.sh sets up and runs this.

Every step is a process of its own with a limit of time, so that what fails leaves the others as they are. The results
of steps that are not run again stay in the JSON file, as long as sources and GPU are the same.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OK, SHORT, FAILED, ABSENT, NO_TARGET = "ok", "short", "failed", "absent", ""

# The layers whose floors the operator is held to, and the network whose training step is compared.
LAYERS, NETWORK = "adder_resnet50", "adder_resnet20"
OPERATORS_TESTS = [f"tests/ops/test_{name}.py" for name in ("adder2d", "adder2d_affine", "adder2d_u8")]
TILES = 4  # the most that an operator has
LEAST_SHARE, LEAST_BYTES, LEAST_OVER_AUTHORS, MOST_MEMORY = 0.70, 2.5, 30.0, 1.15


@dataclass(frozen=True)
class Row:
    """A line of the table; without a target it is there to be read."""

    what: str
    target: str
    measured: str
    verdict: str


@dataclass
class Result:
    """What a step has left behind."""

    rows: list[Row]
    seconds: float = 0.0
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    details: Any = None  # a benchmark's own report


# ------------------------------------------------------------------------------------------------------------- judging


def at_least(what: str, value: float, least: float, form: str, note: str = "") -> Row:
    """A row whose numbers are written in a form such as "{:.2f} times"."""
    return Row(what, f"at least {form.format(least)}", form.format(value) + note, OK if value >= least else SHORT)


def at_most(what: str, value: float, most: float, form: str) -> Row:
    return Row(what, f"at most {form.format(most)}", form.format(value), OK if value <= most else SHORT)


def judge_library(backend: str) -> Row:
    """By what `adderzoo.ops.backend` says, or by an error."""
    verdict = OK if backend.startswith("compiled") else SHORT if backend in ("Triton", "PyTorch reference") else FAILED
    return Row("kernels for the GPU", "compiled", backend, verdict)


@dataclass(frozen=True)
class Case:
    """A test and what became of it: "passed", "failed" or "skipped"."""

    name: str
    outcome: str


def read_cases(report: str) -> tuple[list[Case], dict[str, str]]:
    """The tests of pytest's JUnit report, as FILE.NAME, and the properties that they have recorded."""
    tree = ElementTree.fromstring(report)
    cases = []
    for case in tree.iter("testcase"):
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        cases.append(Case(f"{case.get('classname')}.{case.get('name')}", outcome))
    return cases, {item.get("name", ""): item.get("value", "") for item in tree.iter("property")}


def judge_cases(what: str, cases: Sequence[Case], pattern: str) -> Row:
    """Of the tests whose names match; a row of tests that were all skipped is absent."""
    outcomes = [case.outcome for case in cases if re.search(pattern, case.name)]
    counts = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
    measured = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no tests"
    verdict = SHORT if counts["failed"] else OK if counts["passed"] else ABSENT if outcomes else FAILED
    return Row(what, "all pass", measured, verdict)


def judge_tests(report: str) -> list[Row]:
    cases, _ = read_cases(report)
    of_gradients = r"test_adder2d\.test_(forward_and_gradients_match|layers_of_every_width|input_gradient_error)"
    return [
        judge_cases("operators' tests", cases, r"^tests\.ops\."),
        judge_cases("gradients against float64", cases, of_gradients),
        judge_cases("torch.compile with reduce-overhead", cases, "cuda_graphs"),
    ]


def judge_triton_tests(report: str) -> list[Row]:
    cases, _ = read_cases(report)
    return [judge_cases("operators' tests, kernels in Triton", cases, r"^tests\.ops\.")]


def judge_benchmark_tests(report: str) -> list[Row]:
    cases, _ = read_cases(report)
    return [judge_cases("benchmark's tests", cases, r"^tests\.(cli|engine)\.")]


def judge_layers_tests(report: str) -> list[Row]:
    cases, properties = read_cases(report)
    network = judge_cases("authors' ResNet-20, images right of 1,000", cases, r"test_authors_checkpoint\.")
    # Its tests hold more than the count.
    measured = ", ".join(filter(None, [properties.get("right of 1,000"), network.measured]))
    return [
        judge_cases("layers' tests", cases, r"^tests\.layers\."),
        Row(network.what, "915 to 917", measured, network.verdict),
    ]


def judge_sanitizer(tool: str, output: str) -> Row:
    """By the summaries of compute-sanitizer and of the tests that ran under it."""
    tests = re.search(r"(\d+) passed", output)
    if tool == "racecheck":
        summary = re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", output)
        found = max(map(int, summary.groups())) if summary else None
    else:
        summary = re.search(r"ERROR SUMMARY: (\d+) errors?", output)
        found = int(summary[1]) if summary else None
    what, target = f"compute-sanitizer, {tool}", "no hazards" if tool == "racecheck" else "no errors"
    if found:
        return Row(what, target, f"{found}", SHORT)
    if found is None or tests is None or re.search(r"\d+ (failed|errors?) in|\d+ failed,", output):
        return Row(what, target, last_line(output), FAILED)
    return Row(what, target, f"none in {tests[1]} tests", OK)


def judge_operator(report: dict[str, Any]) -> list[Row]:
    """Of `adderzoo benchmark`'s report: shares of the floor, and bytes beside float32."""
    rows, rates = [], {}
    for result in report["operator"]:
        kind = result["direction"], result["memory_format"]
        what = f"{result['model']}, {', '.join(kind)}, {result['precision']}, batch {result['batch']}"
        rates[result["precision"], *kind] = result["rate"]
        if result["share"] is None:
            rows.append(Row(what, "", "no compiled kernels", FAILED))
            continue
        worst = min(layer["share"] for layer in result["layers"])
        note = f" (worst layer {worst:.1%}; {result['rate'] / 1e9:.0f} G elements/s)"
        if result["precision"] == "float32" and result["direction"] in ("forward", "input gradient"):
            rows.append(at_least(what, result["share"], LEAST_SHARE, "{:.1%} of the floor", note))
        else:
            rows.append(Row(what, "", f"{result['share']:.1%} of the floor{note}", NO_TARGET))
    of_bytes, of_floats = (rates.get((precision, "forward", "channels_last")) for precision in ("u8", "float32"))
    if of_bytes and of_floats:
        what = "elements a second, bytes to float32, channels_last"
        rows.append(at_least(what, of_bytes / of_floats, LEAST_BYTES, "{:.2f} times"))
    gpu, ceilings = report["machine"]["gpu"], [r["ceiling"] for r in report["operator"] if r["form"] == "distance"]
    if gpu and ceilings and ceilings[0]:
        measured = f"{ceilings[0] / gpu['float32_floor']:.1%} of two instructions at {gpu['clock'] / 1e6:.0f} MHz"
        rows.append(Row("the float32 floor as it was measured", "", measured, NO_TARGET))
    return rows


def label_of(contender: dict[str, Any]) -> str:
    """As `adderzoo benchmark` calls it."""
    from adderzoo.engine.benchmark.networks import Contender

    return Contender(**contender).label


def judge_networks(report: dict[str, Any]) -> list[Row]:
    """Of `adderzoo benchmark`'s report, each network in the faster of its memory formats."""
    rows = []
    for section in report["networks"]:
        best: dict[str, dict[str, Any]] = {}
        for row in section["rows"]:
            label = label_of(row["contender"])
            if label not in best or (row["images_per_second"] or 0) > (best[label]["images_per_second"] or 0):
                best[label] = row
        rows += _judge_section(f"{section['model']}, {section['part']}, batch {section['batch']}", best)
    return rows


def _judge_section(title: str, best: dict[str, dict[str, Any]]) -> list[Row]:
    rows = []
    adder, authors = best["adder network"], best.get("adder network, authors' expression")
    if authors:
        what, held = f"{title}: speed, to the authors' expression", title.startswith(f"{NETWORK}, training")
        if error := adder["error"] or authors["error"]:
            rows.append(Row(what, "", error, FAILED if held else NO_TARGET))
        else:
            ratio = adder["images_per_second"] / authors["images_per_second"]
            row = at_least(what, ratio, LEAST_OVER_AUTHORS, "{:.1f} times")
            rows.append(row if held else Row(what, "", row.measured, NO_TARGET))
    what = f"{title}: peak memory, to the CNN"
    if adder["memory"]:
        rows.append(at_most(what, adder["memory"], MOST_MEMORY, "{:.2f} times"))
    else:
        rows.append(Row(what, f"at most {MOST_MEMORY:.2f} times", adder["error"] or "not measured", FAILED))
    cnns = {"float32": "CNN", "TF32": "CNN, TF32", "bfloat16": "CNN, bfloat16"}
    for label, adder in best.items():
        if not label.startswith("adder network"):
            continue
        speeds = [
            f"{adder['images_per_second'] / best[cnn]['images_per_second']:.2f} x CNN in {name}"
            for name, cnn in cnns.items()
            if adder["images_per_second"] and best.get(cnn, {}).get("images_per_second")
        ]
        rows.append(Row(f"{title}: {label}", "", ", ".join(speeds) or adder["error"] or "no CNN ran", NO_TARGET))
    return rows


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def align(rows: Sequence[Row]) -> str:
    cells = [("", "what", "target", "measured"), *((row.verdict, row.what, row.target, row.measured) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


# --------------------------------------------------------------------------------------------------------------- steps


class StepError(Exception):
    """A step has no result; the message says why."""


def run(command: Sequence[object], limit: float, **environment: str) -> str:
    """The output of a command that the user sees as well; whatever its exit status."""
    texts = [str(word) for word in command]
    lines = []
    process = subprocess.Popen(
        ["timeout", "--signal=INT", "--kill-after=10", str(limit), *texts],  # interrupted, pytest writes its report
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout
    try:
        for line in process.stdout:
            print(f"    {line}", end="", flush=True)
            lines.append(line)
    except BaseException:  # such as KeyboardInterrupt, which reaches only this process
        process.terminate()
        raise
    if (status := process.wait()) in (124, 137):
        raise StepError(f"not done after {limit:.0f} seconds" if status == 124 else "killed")
    return "".join(lines)


def check_library(limit: float) -> Result:
    output = run([sys.executable, "-c", "import adderzoo.ops; print(adderzoo.ops.backend('cuda'))"], limit)
    return Result([judge_library(last_line(output))])


def pytest_command(*arguments: object) -> list[object]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", "cuda", *arguments]


def check_tests(judge: Callable[[str], list[Row]], *paths: str, **environment: str) -> Callable[[float], Result]:
    def check(limit: float) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            report, unfinished = Path(folder) / "junit.xml", []
            try:
                output = run(pytest_command(*paths, f"--junitxml={report}"), limit, **environment)
            except StepError as error:
                output = str(error)
                unfinished = [Row(f"all of {' '.join(paths)}", "all run", output, FAILED)]
            if not report.exists():
                raise StepError(last_line(output))
            return Result(judge(report.read_text()) + unfinished)

    return check


def find_sanitizer() -> str | None:
    from torch.utils.cpp_extension import CUDA_HOME

    of_toolkit = shutil.which("compute-sanitizer", path=str(Path(CUDA_HOME or "/usr/local/cuda") / "bin"))
    return shutil.which("compute-sanitizer") or of_toolkit


def check_sanitizer(tool: str) -> Callable[[float], Result]:
    """On tests that reach every kernel, and on these kernels alone."""

    def check(limit: float) -> Result:
        sanitizer = find_sanitizer()
        if sanitizer is None:
            return Result([Row(f"compute-sanitizer, {tool}", "clean", "there is no compute-sanitizer", ABSENT)])
        command = [sanitizer, "--tool", tool, "--kernel-name", "kns=adderzoo", "--print-limit", 20]
        # So that each tensor is an allocation of its own, whose end is known.
        output = run(
            [*command, *pytest_command("-k", "every_width", *OPERATORS_TESTS)],
            limit,
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        return Result([judge_sanitizer(tool, output)])

    return check


def run_benchmark(options: str, model: str, batch: int, limit: float, **environment: str) -> dict[str, Any]:
    """What `adderzoo benchmark` writes.

    Raises:
        StepError: if it writes nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.json"
        command = [sys.executable, "-m", "adderzoo.cli", "benchmark", "--device", "cuda", *options.split()]
        output = run([*command, "--models", model, "--batch-size", batch, "--json", path], limit, **environment)
        if not path.exists():
            raise StepError(last_line(output))
        return json.loads(path.read_text())


def benchmark(
    judge: Callable[[dict[str, Any]], list[Row]], options: str, model: str, batch: int
) -> Callable[[float], Result]:
    def check(limit: float) -> Result:
        report = run_benchmark(options, model, batch, limit)
        return Result(judge(report), details=report)

    return check


OPERATOR = "--parts operator --precision float32 u8"


def judge_tiles(reports: dict[int, dict[str, Any]]) -> list[Row]:
    """Elements a second of every tile; the layers' own times are in the JSON file."""
    rows = []
    for number, report in reports.items():
        for result in report["operator"]:
            what = f"tile {number}, {result['direction']}, {result['memory_format']}, {result['precision']}"
            rows.append(Row(what, "", f"{result['rate'] / 1e9:.0f} G elements/s", NO_TARGET))
    return rows


def check_tiles(limit: float) -> Result:
    """Of the kernels, each in the place of the one that they would choose."""
    reports = {
        number: run_benchmark(OPERATOR, LAYERS, 64, limit / TILES, ADDERZOO_TILE=str(number)) for number in range(TILES)
    }
    return Result(judge_tiles(reports), details=reports)


def judge_levels(output: str) -> list[Row]:
    """Of the table that few_levels/time_gpu.py prints: a row for each layer."""
    lines = [list(map(str.strip, line.strip("| ").split("|"))) for line in output.splitlines() if "|" in line]
    if len(lines) < 3:
        return [Row("few levels on tensor cores", "", last_line(output), FAILED)]
    (_, *columns), _, *layers = lines
    return [
        Row(f"few levels, {layer}", "", ", ".join(map(" ".join, zip(columns, cells, strict=True))), NO_TARGET)
        for layer, *cells in layers
    ]


def check_levels(limit: float) -> Result:
    """Adder layers of few levels as convolutions, beside the byte kernel."""
    return Result(judge_levels(run([sys.executable, "scripts/reproduce/few_levels/time_gpu.py"], limit)))


# With the seconds that each may take; ten minutes are what some machines give a command.
STEPS: dict[str, tuple[Callable[[float], Result], float]] = {
    "library": (check_library, 500),
    "tests": (check_tests(judge_tests, "tests/ops"), 580),
    "layers": (check_tests(judge_layers_tests, "tests/layers", "tests/models/test_authors_checkpoint.py"), 580),
    "benchmark": (check_tests(judge_benchmark_tests, "tests/engine/benchmark", "tests/cli/test_benchmark.py"), 580),
    "memcheck": (check_sanitizer("memcheck"), 400),
    "racecheck": (check_sanitizer("racecheck"), 400),
    # Where kernels were compiled at installation, they run in the place of Triton's.
    "triton": (check_tests(judge_triton_tests, *OPERATORS_TESTS, ADDERZOO_CUDA="0"), 580),
    "operator": (benchmark(judge_operator, OPERATOR, LAYERS, 64), 300),
    "tiles": (check_tiles, 580),
    "levels": (check_levels, 300),
    "inference": (benchmark(judge_networks, "--parts inference", NETWORK, 128), 500),
    "training": (benchmark(judge_networks, "--parts training", NETWORK, 128), 500),
    "large": (benchmark(judge_networks, "--parts inference training --no-compile", LAYERS, 64), 500),
}


def check(name: str) -> Result:
    step, limit = STEPS[name]
    started = time.perf_counter()
    try:
        result = step(limit)
    except Exception as error:  # whatever it is, the other steps go on
        result = Result([Row(name, "", f"{error}" if isinstance(error, StepError) else repr(error), FAILED)])
    result.seconds = time.perf_counter() - started
    return result


def describe() -> dict[str, str]:
    """What results depend on: those of other sources or another GPU are not kept."""
    import torch

    digest = hashlib.sha256()
    for path in sorted(
        path for folder in ("adderzoo", "csrc", "tests", "scripts") for path in (ROOT / folder).rglob("*")
    ):
        if path.suffix in {".py", ".cpp", ".cu", ".h"}:
            digest.update(path.read_bytes())
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": f"PyTorch {torch.__version__}",
        "cuda": f"CUDA {torch.version.cuda}",
        "sources": f"sources {digest.hexdigest()[:12]}",
    }


def read_earlier(path: Path, where: dict[str, str]) -> dict[str, Any]:
    """The steps of an earlier run of the same, by name."""
    try:
        earlier = json.loads(path.read_text())
        return dict(earlier["steps"]) if earlier["where"] == where else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEPS)} (all of them)")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="(%(default)s)")
    args = parser.parse_args()
    if unknown := [name for name in args.steps if name not in STEPS]:
        parser.error(f"STEP must be among {', '.join(STEPS)}, got {unknown[0]}")
    import torch

    if not torch.cuda.is_available():
        print(f"gpu_check.sh: PyTorch {torch.__version__} finds no NVIDIA GPU", file=sys.stderr)
        return 1
    path, where = args.json.absolute(), describe()
    steps = read_earlier(path, where)
    for name in [name for name in STEPS if name in (args.steps or STEPS)]:
        print(f"{name} ...", flush=True)
        steps[name] = asdict(check(name))
        text = json.dumps({"where": where, "steps": steps}, indent=2) + "\n"
        path.write_text(text)  # after every step: what was measured outlives a machine that is taken away
    rows = [Row(**row) for name in STEPS if name in steps for row in steps[name]["rows"]]
    print(f"\n{', '.join(where.values())}\n\n{align(rows)}\n\nEverything: {path}")
    return 1 if any(row.verdict in (SHORT, FAILED) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
