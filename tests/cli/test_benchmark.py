import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Done
from PIL import Image

import adderzoo as package
from adderzoo.engine import benchmark
from adderzoo.engine.benchmark import layers

Command = Callable[..., Done]

OF_LAYERS = "G elements |x - w|/s, share of the ceiling, speed beside a float32 convolution"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_everything_of_a_small_network(adderzoo: Command, device: torch.device, tmp_path: Path) -> None:
    done = adderzoo(
        "benchmark", "--device", device, "--models", "adder_lenet5", "--batch-size", 1, 4, "--seconds", 0.01,
        "--no-compile", "--parts", "operator", "inference", "training",
        "--json", tmp_path / "new" / "b.json", "--chart", tmp_path / "b.png",
    )  # fmt: skip
    assert done.status == 0, done
    assert "rror" not in done.out + done.err
    titles = [
        f"adder layers of adder_lenet5, batch 1: {OF_LAYERS}",
        f"adder layers of adder_lenet5, batch 4: {OF_LAYERS}",
        "adder_lenet5, inference, batch 1",
        "adder_lenet5, inference, batch 4",
        "adder_lenet5, training, batch 4",  # not 1: BatchNorm on the logits
    ]
    machine, *tables = done.out.split("\n\n")
    assert machine == str(benchmark.describe_machine(str(device)))
    assert [table.splitlines()[0] for table in tables] == titles

    read = json.loads((tmp_path / "new" / "b.json").read_text())
    assert read["command"].startswith(f"adderzoo benchmark --device {device} --models adder_lenet5 --batch-size 1 4 ")
    (network,) = package.catalogue.networks("adder_lenet5")
    for result in read["operator"]:
        elements = sum(layer["count"] * layer["elements"] for layer in result["layers"])
        assert elements == result["batch"] * network.adder_elements
    sections = read["networks"]
    assert [f"{part['model']}, {part['part']}, batch {part['batch']}" for part in sections] == titles[2:]
    naive = [{row["contender"]["form"] for row in part["rows"]} >= {"authors"} for part in sections]
    # Once a part: with the smallest batch, on a GPU the largest.
    assert naive == ([True, False, True] if device.type == "cpu" else [False, True, True])
    for part, table in zip(sections, tables[2:], strict=True):
        assert all(row["error"] == "" and row["images_per_second"] > 0 for row in part["rows"])
        assert 2 < len(table.splitlines()) <= 2 + len(part["rows"])
    with Image.open(tmp_path / "b.png") as image:
        assert min(image.size) > 500
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["b.json", "b.png"]


def test_where_there_is_no_ceiling_a_line_says_why(adderzoo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the user of a wheel, in which there are no sources."""
    reason = "the C++ sources are not beside the package"
    monkeypatch.setattr("adderzoo.engine.benchmark.layers.load_ceilings", lambda device: reason)
    options = ("--batch-size", 1, "--seconds", 0.01, "--parts", "operator")
    done = adderzoo("benchmark", "--models", "adder_lenet5", *options)
    assert done.status == 0, done
    *_, last = done.out.splitlines()
    assert last == f"no ceiling: {reason}"
    assert done.out.count(reason) == 1


def test_byte_networks(adderzoo: Command, device: torch.device, tmp_path: Path) -> None:
    done = adderzoo(
        "benchmark", "--device", device, "--precision", "u8", "--models", "adder_lenet5", "--batch-size", 2,
        "--seconds", 0.01, "--no-compile", "--json", tmp_path / "b.json",
    )  # fmt: skip
    assert done.status == 0, done
    _, *tables = done.out.split("\n\n")
    assert [table.splitlines()[0] for table in tables] == [
        f"adder layers of adder_lenet5 in u8, batch 2: {OF_LAYERS}",
        "adder_lenet5 in u8, inference, batch 2",
        *(["adder_lenet5 in u8, threads, batch 2"] if device.type == "cpu" else []),
    ]
    read = json.loads((tmp_path / "b.json").read_text())
    assert [(result["precision"], result["form"]) for result in read["operator"]] == [("u8", "byte_distance")]
    for section in read["networks"]:
        assert section["precision"] == "u8"
        assert all(row["error"] == "" and row["speed"] > 0 for row in section["rows"])
        assert "u8" in {row["contender"]["form"] for row in section["rows"]}


def test_layers_of_many_kinds_are_beside_those_of_the_default_network(
    adderzoo: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adderzoo.cli.benchmark._OPERATOR_MODEL", "adder_lenet5")
    monkeypatch.setattr(layers, "KINDS", [layer for layer in layers.KINDS if layer.elements < 10_000_000])
    options = ("--parts", "operator", "--batch-size", 1, "--seconds", 0.01, "--precision", "float32", "u8")
    done = adderzoo("benchmark", *options)
    assert done.status == 0, done
    _, *tables = done.out.split("\n\n")
    names = ("adder_lenet5", "adder_lenet5 in u8", "many kinds", "many kinds in u8")
    assert [table.splitlines()[0] for table in tables] == [
        f"adder layers of {name}, batch 1: {OF_LAYERS}" for name in names
    ]
    for layer in layers.KINDS:
        lines = [line for line in done.out.splitlines() if line.startswith(f"{layer}  ")]
        assert len(lines) == (2 if layer.offset else 3)  # two formats in float32, one in bytes


def test_parts_have_networks_and_batches_of_their_own(adderzoo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[tuple[object, ...]] = []
    precisions: list[object] = []
    devices: set[object] = set()

    def operator(
        model: str | None, batch: int, seconds: float, note: object, precisions: tuple[str, ...], device: str
    ) -> list[benchmark.OperatorResult]:
        jobs.append(("operator", model, batch, seconds, *precisions))
        devices.add(device)
        return []

    def networks(model: str, part: str, batch: int, **options: object) -> benchmark.Section:
        jobs.append((part, model, batch, options["seconds"], options["naive"], options["compiled"]))
        precisions.append(options["precision"])
        devices.add(options["device"])
        return benchmark.Section(model, part, batch, None, ())

    monkeypatch.setattr(benchmark, "measure_operator", operator)
    monkeypatch.setattr(benchmark, "measure_networks", networks)
    monkeypatch.setattr("adderzoo.cli.benchmark._operator_text", lambda results: "")
    assert adderzoo("benchmark").status == 0
    assert jobs == [
        ("operator", "adder_resnet50", 8, 0.25, "float32"),
        ("operator", None, 8, 0.25, "float32"),
        ("inference", "adder_resnet20", 1, 1.0, True, True),
        ("inference", "adder_resnet20", 8, 1.0, False, True),
        ("inference", "adder_resnet20", 128, 1.0, False, True),
        ("training", "adder_resnet20", 128, 1.0, True, True),
        ("threads", "adder_resnet20", 128, 1.0, True, True),
    ]
    jobs.clear()
    options = ("--parts", "training", "operator", "--models", "adder_resnet18", "adder_lenet5", "--no-compile")
    assert adderzoo("benchmark", *options, "--seconds", 4).status == 0
    assert jobs == [
        ("operator", "adder_resnet18", 8, 1.0, "float32"),
        ("operator", "adder_lenet5", 8, 1.0, "float32"),
        ("training", "adder_resnet18", 8, 4.0, True, False),
        ("training", "adder_lenet5", 128, 4.0, True, False),
    ]
    assert set(precisions) == {"float32"}
    jobs.clear()
    precisions.clear()
    assert adderzoo("benchmark", "--precision", "u8", "--batch-size", 4).status == 0
    assert jobs == [
        ("operator", "adder_resnet50", 4, 0.25, "u8"),
        ("operator", None, 4, 0.25, "u8"),
        ("inference", "adder_resnet20", 4, 1.0, True, True),
        ("threads", "adder_resnet20", 4, 1.0, True, True),
    ]
    assert set(precisions) == {"u8"}
    jobs.clear()
    precisions.clear()
    options = ("--precision", "u8", "float32", "--parts", "operator", "inference", "training", "--batch-size", 4)
    assert adderzoo("benchmark", *options).status == 0
    assert jobs == [
        ("operator", "adder_resnet50", 4, 0.25, "float32", "u8"),  # in turns
        ("operator", None, 4, 0.25, "float32", "u8"),
        ("inference", "adder_resnet20", 4, 1.0, True, True),
        ("inference", "adder_resnet20", 4, 1.0, True, True),
        ("training", "adder_resnet20", 4, 1.0, True, True),
    ]
    assert precisions == ["float32", "u8", "float32"]
    assert devices == {"cpu"}
    jobs.clear()
    devices.clear()
    # As on a GPU, of which nothing is used here.
    monkeypatch.setattr("adderzoo.engine.group.open_device", torch.device)
    monkeypatch.setattr(benchmark, "describe_machine", lambda device: device)
    monkeypatch.setattr("adderzoo.cli.benchmark.asdict", lambda report: {})
    assert adderzoo("benchmark", "--device", "cuda:1").status == 0
    assert jobs == [
        ("operator", "adder_resnet50", 64, 0.25, "float32"),
        ("operator", None, 64, 0.25, "float32"),
        ("inference", "adder_resnet20", 1, 1.0, False, True),
        ("inference", "adder_resnet20", 8, 1.0, False, True),
        ("inference", "adder_resnet20", 128, 1.0, True, True),
        ("training", "adder_resnet20", 128, 1.0, True, True),
    ]
    assert devices == {"cuda:1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "resnet50"), "models must be adder networks (adder_edsr_baseline_x2, "),
        (
            ("--models", "adder_resnet20", "cnn_resnet20"),
            "models must be adder networks (adder_edsr_baseline_x2, ",
        ),
        (("--batch-size", 0), "batch-size must be at least 1, got 0"),
        (("--batch-size", 8, -1), "batch-size must be at least 1, got -1"),
        (("--parts", "training", "--batch-size", 1), "batch-size must be at least 2 in training, for BatchNorm, got 1"),
        (
            ("--precision", "u8", "--parts", "operator", "training"),
            "parts must be among operator, inference, threads for precision u8, got training",
        ),
        (("--device", "meta"), "device 'meta' cannot be used: "),
        (("--device", "nonsense"), "device 'nonsense' cannot be used: "),
        (("--seconds", 0), "seconds must be a finite number above 0, got 0.0"),
        (("--seconds", "nan"), "seconds must be a finite number above 0, got nan"),
        (("--chart", "chart.txt"), "chart must end in .png or .pdf or .svg, got chart.txt"),
    ],
)
def test_bad_input_is_one_line(adderzoo: Command, arguments: tuple[object, ...], message: str) -> None:
    assert adderzoo("benchmark", *arguments).error.startswith(f"adderzoo benchmark: error: {message}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_line(adderzoo: Command, tmp_path: Path) -> None:
    error = adderzoo("benchmark", "--device", "cuda", "--json", tmp_path / "b.json").error
    assert error.startswith("adderzoo benchmark: error: device 'cuda' cannot be used: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precisions", [("float32",), ("float32", "u8")])
def test_a_gpu_has_no_part_of_threads(
    adderzoo: Command, monkeypatch: pytest.MonkeyPatch, precisions: tuple[str, ...]
) -> None:
    monkeypatch.setattr("adderzoo.engine.group.open_device", torch.device)
    error = adderzoo(
        "benchmark", "--device", "cuda", "--precision", *precisions, "--parts", "operator", "threads"
    ).error
    known = "parts must be among operator, inference, training for precision"
    assert error == f"adderzoo benchmark: error: {known} {' and '.join(precisions)} on cuda, got threads"


def test_a_missing_matplotlib_is_said_before_anything_is_measured(
    adderzoo: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'adderzoo[demo]'" in adderzoo("benchmark", "--chart", "chart.png").error


def test_stopped_by_the_user(adderzoo: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure_operator", stop)
    done = adderzoo("benchmark", "--json", tmp_path / "b.json")
    assert (done.status, done.err) == (130, "adderzoo benchmark: interrupted\n")
    assert list(tmp_path.iterdir()) == []
