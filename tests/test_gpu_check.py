"""What scripts/gpu_check.py makes of results, and that it needs a GPU."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from adderzoo.engine.benchmark import Report, describe_machine
from adderzoo.engine.benchmark.devices import Gpu
from adderzoo.engine.benchmark.layers import Layer, LayerResult, OperatorResult
from adderzoo.engine.benchmark.networks import Contender, Row, Section

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def check() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = script  # where dataclasses look
    spec.loader.exec_module(script)
    yield script
    del sys.modules["gpu_check"]


def verdicts(rows: list[Any]) -> dict[str, str]:
    return {row.what: row.verdict for row in rows}


# ------------------------------------------------------------------------------------------------------ without a GPU


def test_without_a_gpu_the_script_says_so_before_it_sets_anything_up(tmp_path: Path) -> None:
    programs = tmp_path / "programs"  # without nvidia-smi
    programs.mkdir()
    (programs / "dirname").symlink_to(shutil.which("dirname") or "")
    done = subprocess.run(
        [shutil.which("bash") or "bash", str(ROOT / "scripts" / "gpu_check.sh")],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "gpu_check.sh: no NVIDIA GPU is found here (by nvidia-smi)\n"


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), *arguments],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_pytorch_that_finds_no_gpu_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    done = run_script(tmp_path, "library")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gpu_check.sh: PyTorch {torch.__version__} finds no NVIDIA GPU\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    done = run_script(tmp_path, "library", "everything")
    assert done.returncode == 2
    assert "STEP must be among library, tests, layers, benchmark, memcheck," in done.stderr
    assert done.stderr.endswith("got everything\n")


# ------------------------------------------------------------------------------------------------ library and tests


@pytest.mark.parametrize(
    ("backend", "verdict"),
    [
        ("compiled on first use", "ok"),
        ("Triton", "short"),
        ("PyTorch reference", "short"),
        ("RuntimeError: Found no NVIDIA driver on your system.", "failed"),
    ],
)
def test_kernels_have_to_be_compiled(check: ModuleType, backend: str, verdict: str) -> None:
    assert check.judge_library(backend).verdict == verdict


TESTS = """
import pytest

def test_good(record_testsuite_property):
    record_testsuite_property("right of 1,000", 917)

@pytest.mark.parametrize("n", [1, 2])
def test_bad(n):
    assert n == 2

@pytest.fixture
def broken():
    raise OSError

def test_error(broken):
    pass

def test_left_out():
    pytest.skip("absent")
"""


def test_pytests_own_report_is_understood(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml=junit.xml", "-p", "no:cacheprovider", "test_some.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    cases, properties = check.read_cases((tmp_path / "junit.xml").read_text())
    assert {case.name: case.outcome for case in cases} == {
        "test_some.test_good": "passed",
        "test_some.test_bad[1]": "failed",
        "test_some.test_bad[2]": "passed",
        "test_some.test_error": "failed",
        "test_some.test_left_out": "skipped",
    }
    assert properties["right of 1,000"] == "917"

    def judge(pattern: str) -> tuple[str, str]:
        row = check.judge_cases("", cases, pattern)
        return row.measured, row.verdict

    assert judge("some") == ("2 passed, 2 failed, 1 skipped", "short")
    assert judge(r"good|left_out") == ("1 passed, 1 skipped", "ok")
    assert judge("left_out") == ("1 skipped", "absent")
    assert judge("nothing") == ("no tests", "failed")


@pytest.mark.parametrize(
    ("judge", "folders"),
    [
        ("judge_tests", ["ops"]),
        ("judge_triton_tests", ["ops"]),
        ("judge_layers_tests", ["layers", "models"]),
        ("judge_benchmark_tests", ["engine", "cli"]),
    ],
)
def test_the_patterns_of_tests_find_tests(check: ModuleType, judge: str, folders: list[str]) -> None:
    """In a report in which all tests that take the device have passed."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--device", "cuda", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/{folder}" for folder in folders)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    names = [line.partition(".py::") for line in done.stdout.splitlines() if "::" in line]
    assert len(names) > 20, done.stdout
    cases = "".join(f'<testcase classname="{path.replace("/", ".")}" name="x" />' for path, _, _ in names)
    for path, _, name in names:
        simple = name.partition("[")[0]
        cases += f'<testcase classname="{path.replace("/", ".")}" name="{simple}" />'
    assert set(verdicts(getattr(check, judge)(f"<testsuite>{cases}</testsuite>")).values()) == {"ok"}


# ---------------------------------------------------------------------------------------------------------- sanitizers

PASSED = "56 passed, 900 deselected in 61.80s (0:01:01)\n"


@pytest.mark.parametrize(
    ("tool", "output", "measured", "verdict"),
    [
        ("memcheck", PASSED + "========= ERROR SUMMARY: 0 errors\n", "none in 56 tests", "ok"),
        ("memcheck", PASSED + "========= ERROR SUMMARY: 1 error\n", "1", "short"),
        ("memcheck", "3 failed, 53 passed in 9.1s\n========= ERROR SUMMARY: 24 errors\n", "24", "short"),
        (
            "memcheck",
            "1 failed, 55 passed in 9.1s\n========= ERROR SUMMARY: 0 errors\n",
            "========= ERROR SUMMARY: 0 errors",
            "failed",
        ),
        ("memcheck", PASSED, PASSED.strip(), "failed"),  # killed before the end
        ("memcheck", "========= Error: Device not supported\n", "========= Error: Device not supported", "failed"),
        (
            "racecheck",
            PASSED + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
            "none in 56 tests",
            "ok",
        ),
        (
            "racecheck",
            PASSED + "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n",
            "1",
            "short",
        ),
        ("racecheck", "", "no output", "failed"),
    ],
)
def test_summaries_of_sanitizers(check: ModuleType, tool: str, output: str, measured: str, verdict: str) -> None:
    row = check.judge_sanitizer(tool, output)
    assert (row.measured, row.verdict) == (measured, verdict)
    assert row.what == f"compute-sanitizer, {tool}"


# ---------------------------------------------------------------------------------------------------------- benchmarks

GPU = Gpu("NVIDIA X", "9.0", 100, 2e9, 80 << 30, "13.0", "91002", "compiled at installation", 12.8e12)
LAYER = Layer((64, 3, 9, 9), (4, 3, 3, 3))


def read(report: Report) -> dict[str, Any]:
    machine = dataclasses.replace(describe_machine(), gpu=GPU)
    return json.loads(dataclasses.replace(report, machine=machine).to_json())


def operator(direction: str, share: float | None, rate: float = 1e12, precision: str = "float32") -> OperatorResult:
    layers = (
        LayerResult(LAYER, 1, 4000, 1e-7, 0.1, share, 0.5),
        LayerResult(LAYER, 2, 1000, 1e-7, 0.1, share and share / 2, 0.5),
    )
    form = {"forward": "distance", "input gradient": "slope", "weight gradient": "multiply_add"}[direction]
    form = "byte_distance" if precision == "u8" else form
    ceiling = 1.152e13 if share else None
    return OperatorResult(
        "adder_net", 64, direction, "channels_last", form, ceiling, rate, share, 0.5, layers, precision=precision
    )


def test_the_operator_is_held_to_its_floors_and_bytes_to_float32(check: ModuleType) -> None:
    results = [
        operator("forward", 0.701, 2e12),
        operator("input gradient", 0.699),
        operator("weight gradient", 0.1),
        operator("forward", 0.9, 4.9e12, "u8"),
    ]
    rows = check.judge_operator(read(Report(describe_machine(), "", 1.0, operator=results)))
    assert [(row.verdict, row.measured) for row in rows] == [
        ("ok", "70.1% of the floor (worst layer 35.0%; 2000 G elements/s)"),
        ("short", "69.9% of the floor (worst layer 34.9%; 1000 G elements/s)"),
        ("", "10.0% of the floor (worst layer 5.0%; 1000 G elements/s)"),
        ("", "90.0% of the floor (worst layer 45.0%; 4900 G elements/s)"),
        ("short", "2.45 times"),
        ("", "90.0% of two instructions at 2000 MHz"),
    ]
    assert rows[0].what == "adder_net, forward, channels_last, float32, batch 64"
    assert [rows[0].target, rows[4].target] == ["at least 70.0% of the floor", "at least 2.50 times"]


def test_every_tile_is_a_row_to_be_read(check: ModuleType) -> None:
    reports = {
        n: read(Report(describe_machine(), "", 1.0, operator=[operator("forward", 0.5, n * 1e12)])) for n in (1, 2)
    }
    assert [(row.what, row.measured, row.verdict) for row in check.judge_tiles(reports)] == [
        ("tile 1, forward, channels_last, float32", "1000 G elements/s", ""),
        ("tile 2, forward, channels_last, float32", "2000 G elements/s", ""),
    ]


def test_few_levels_are_rows_to_be_read_or_have_failed(check: ModuleType) -> None:
    table = "| layer | bytes, G/s | 3 levels |\n| --- | --- | --- |\n| 16x8x8, batch 2 | 7 | 1.50 (2.00) |\n"
    assert [(row.what, row.measured, row.verdict) for row in check.judge_levels(f"a warning\n{table}")] == [
        ("few levels, 16x8x8, batch 2", "bytes, G/s 7, 3 levels 1.50 (2.00)", "")
    ]
    assert [(row.measured, row.verdict) for row in check.judge_levels("no GPU")] == [("no GPU", "failed")]


def test_an_operator_without_compiled_kernels_has_failed(check: ModuleType) -> None:
    report = read(Report(describe_machine(), "", 1.0, operator=[operator("forward", None)]))
    assert [row.verdict for row in check.judge_operator(report)] == ["failed"]


def row(
    model: str, images_per_second: float | None, memory: float | None = None, error: str = "", **contender: object
) -> Row:
    made = Contender(**{"model": model, "batch": 128, "training": True, "device": "cuda", **contender})  # type: ignore[arg-type]
    return Row(made, error, images_per_second=images_per_second, memory=memory)


def training(authors: Row, memory: float = 1.15, model: str = "adder_resnet20") -> dict[str, Any]:
    rows = (
        row("cnn_resnet20", 900.0, 1.1, memory_format="contiguous"),
        row("cnn_resnet20", 1000.0, 1.0),
        row("cnn_resnet20", 2000.0, 1.0, dtype="tf32"),
        row("cnn_resnet20", None, error="RuntimeError: no bfloat16", dtype="bfloat16"),
        row("adder_resnet20", 700.0, 9.0, memory_format="contiguous"),
        row("adder_resnet20", 800.0, memory),
        authors,
    )
    return read(Report(describe_machine(), "", 1.0, networks=[Section(model, "training", 128, 1, rows)]))


@pytest.mark.parametrize(("authors", "expected"), [(26.6, "ok"), (26.7, "short")])  # 800 / 30 = 26.67
def test_a_training_step_is_held_to_the_authors_expression(check: ModuleType, authors: float, expected: str) -> None:
    rows = check.judge_networks(training(row("adder_resnet20", authors, form="authors")))
    assert verdicts(rows) == {
        "adder_resnet20, training, batch 128: speed, to the authors' expression": expected,
        "adder_resnet20, training, batch 128: peak memory, to the CNN": "ok",
        "adder_resnet20, training, batch 128: adder network": "",
        "adder_resnet20, training, batch 128: adder network, authors' expression": "",
    }
    assert (rows[0].target, rows[1].measured) == ("at least 30.0 times", "1.15 times")
    assert rows[2].measured == "0.80 x CNN in float32, 0.40 x CNN in TF32"


def test_more_memory_than_allowed_falls_short(check: ModuleType) -> None:
    rows = check.judge_networks(training(row("adder_resnet20", 1.0, form="authors"), memory=1.151))
    assert [row.verdict for row in rows[:2]] == ["ok", "short"]


def test_an_expression_that_needs_too_much_memory_is_no_proof(check: ModuleType) -> None:
    authors = row("adder_resnet20", None, error="OutOfMemoryError: CUDA out of memory.", form="authors")
    rows = check.judge_networks(training(authors))
    assert (rows[0].measured, rows[0].verdict) == ("OutOfMemoryError: CUDA out of memory.", "failed")
    other = check.judge_networks(training(authors, model="adder_resnet50"))
    assert other[0].verdict == ""


# --------------------------------------------------------------------------------------------------------------- steps


def test_a_step_that_fails_is_a_row_and_the_next_ones_go_on(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(limit: float) -> Any:
        return check.run([sys.executable, "-c", "import time; print('on it', flush=True); time.sleep(60)"], limit)

    def broken(limit: float) -> Any:
        raise FileNotFoundError("no such program")

    monkeypatch.setattr(check, "STEPS", {"slow": (slow, 1), "broken": (broken, 1)})
    (late,) = check.check("slow").rows
    assert (late.what, late.measured, late.verdict) == ("slow", "not done after 1 seconds", "failed")
    (gone,) = check.check("broken").rows
    assert (gone.verdict, gone.measured) == ("failed", "FileNotFoundError('no such program')")


def test_results_of_other_sources_or_another_gpu_are_not_kept(check: ModuleType, tmp_path: Path) -> None:
    path, steps = tmp_path / "gpu_check.json", {"library": {"rows": []}}
    here = {"gpu": "NVIDIA X", "sources": "1"}
    path.write_text(json.dumps({"where": here, "steps": steps}))
    assert check.read_earlier(path, here) == steps
    assert check.read_earlier(path, here | {"sources": "2"}) == {}
    path.write_text("{")
    assert check.read_earlier(path, here) == {}
    assert check.read_earlier(tmp_path / "none.json", here) == {}
