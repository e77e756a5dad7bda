"""Tables of results, against what they are made of; how fast networks are is measured, and only looked at."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import publish_results
import pytest
import timm
from safetensors import safe_open

from adderzoo import models
from adderzoo.catalogue import SPEED, Speed, network_names, networks, read_speeds, task
from adderzoo.engine.benchmark.networks import Contender
from adderzoo.engine.benchmark.timing import Timing
from adderzoo.publish import results
from adderzoo.publish.results import float_bytes, measure_speeds, quantized_bytes, read_tables, tables

ROOT = Path(__file__).resolve().parent.parent.parent
MEASURED = json.loads((models.WEIGHTS / "results.json").read_text())
COLUMNS = ["parameters", "multiply_adds", "adder_elements", "millijoules_float32", "millijoules_int8"]
COLUMNS += ["bytes_float32", "bytes_int8", "images_per_second_float32", "images_per_second_int8"]


# -------------------------------------------------------------------------------------------------------------- tables


def table(name: str) -> list[dict[str, str]]:
    with (SPEED.parent / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_are_what_the_networks_count_and_the_files_say() -> None:
    """After a change, or a measurement of speeds: python scripts/publish_results.py."""
    written = {  # the test below counts again
        (row[name], f"{row['network']}.{row['tag']}" if row["tag"] else ""): row[f"{prefix}bytes_int8"]
        for row in read_tables()
        for name, prefix in (("network", ""), ("cnn", "cnn_"))
    }
    expected = tables(lambda *key: int(written[key]) if written[key] else None, read_speeds())
    for name, rows in expected.items():
        assert table(name) == [{key: "" if cell is None else str(cell) for key, cell in row.items()} for row in rows]
        assert [*rows[0]][-1] == "machine"
    assert {row["network"] for rows in expected.values() for row in rows} == set(network_names())


def test_every_measurement_has_a_row_with_its_twin_beside_it() -> None:
    shown = {}
    for row in read_tables():
        kinds = ("dataset", "images", "top1", "top1_se", "cnn_top1", "cnn_top1_se")
        if row["network"] in {network.name for network in networks() if network.task == "super-resolution"}:
            kinds = ("dataset", "scale", "images", "psnr", "ssim", "cnn_psnr", "cnn_ssim")
        shown[f"{row['network']}.{row['tag']}", row["dataset"], row.get("scale")] = tuple(row[kind] for kind in kinds)
        assert set(COLUMNS) | {f"cnn_{column}" for column in COLUMNS} <= row.keys()
    for name, measured in MEASURED.items():
        network, _, tag = name.partition(".")
        for each in measured.get("test_sets", [measured]) if tag else []:
            cells = shown[name, each["dataset"], str(each["scale"]) if "scale" in each else None]
            ours = [str(value) for key, value in each.items() if key not in ("command", "recipe")]
            beside = MEASURED.get(f"{network.replace('adder_', 'cnn_')}.{tag}") if "adder_" in network else None
            theirs = [""] * 2
            for other in beside.get("test_sets", [beside]) if beside else []:
                if all(other.get(key) == each.get(key) for key in ("dataset", "scale", "images")):
                    theirs = [str(other[key]) for key in (("top1", "top1_se") if "top1" in other else ("psnr", "ssim"))]
            assert cells == (*ours, *theirs)


@pytest.mark.parametrize("name", [path.stem for path in sorted(models.WEIGHTS.glob("*.safetensors"))])
def test_bytes_are_those_of_the_tensors_in_the_file(name: str) -> None:
    network = name.partition(".")[0]
    count = quantized_bytes if re.search(r"_u\d$", name) else float_bytes
    with safe_open(models.WEIGHTS / f"{name}.safetensors", "pt") as file:
        assert count(network, name) == sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118


def test_bytes_of_quantized_networks_are_those_of_the_networks() -> None:
    parameters = {network.name: network.parameters for network in networks()}
    written = {row["network"]: row["bytes_int8"] for row in read_tables() if not row["tag"]}
    for row in read_tables():
        name, shown = row["network"], row["bytes_int8"]
        kind, _, rest = name.partition("_")
        if parameters[name] < 300_000 or kind not in ("adder", "shiftadd"):
            counted = quantized_bytes(name, f"{name}.{row['tag']}" if row["tag"] else "")
            assert shown == ("" if counted is None else str(counted)), row
        else:  # they would take minutes: a byte a parameter, and a little
            assert parameters[name] < int(shown) * (5 if kind == "shiftadd" else 1.02), row
            if kind == "adder" and not row["tag"]:
                assert int(shown) < 1.03 * int(written[f"cnn_{rest}"])


# --------------------------------------------------------------------------------------------------------------- speed


def test_speeds_are_of_pairs_on_one_machine() -> None:
    speeds = read_speeds()
    assert {name for name, _ in speeds} >= {"adder_lenet5", "adder_resnet20", "adder_edsr_small_x2"}
    assert len({row.machine for row in speeds.values()}) == 1
    for (name, precision), row in speeds.items():
        assert precision in ("float32", "int8")
        assert row.images_per_second > 0
        assert row.batch_size == (1 if task(name) == "super-resolution" else 8 if "x224" in row.input_size else 128)
        other = speeds.get((name.replace("adder_", "cnn_"), precision))  # torchao may not make a network of it
        assert precision == "int8" or other
        assert not other or (other.input_size, other.batch_size) == (row.input_size, row.batch_size)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The adder networks that were measured; the CNN takes half the time, and no CNN runs in int8."""
    asked: list[str] = []

    def measure(keys: Sequence[Contender], seconds: float, *_: Any, memory: bool) -> Any:
        asked.append(keys[0].model)
        assert [(key.form, key.compiled) for key in keys] == [
            ("fused", ""), ("plain", "freezing"), ("u8", ""), ("int8", "freezing")
        ]  # fmt: skip
        timings = {key: Timing((0.5 if key.model.startswith("cnn_") else 1.0,) * 3, 3) for key in keys[:3]}
        return timings, {}, {keys[3]: "no int8 here"}

    monkeypatch.setattr(results, "measure", measure)
    return asked


def test_a_measurement_goes_on_where_it_was_and_measures_anew_what_is_named(
    measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speed.csv"
    measure_speeds(["adder_lenet5", "adder_resnet18"], path=path)
    assert "cnn_resnet18 in int8: no int8 here\n" in capsys.readouterr().err
    rows = read_speeds(path)
    assert {key: row.images_per_second for key, row in rows.items()} == {
        ("adder_lenet5", "float32"): 128, ("adder_lenet5", "int8"): 128, ("cnn_lenet5", "float32"): 256,
        ("adder_resnet18", "float32"): 8, ("adder_resnet18", "int8"): 8, ("cnn_resnet18", "float32"): 16,
    }  # fmt: skip
    assert rows["adder_resnet18", "float32"].input_size == "3x224x224"
    before = path.read_bytes()
    measure_speeds(["adder_resnet18", "adder_vdsr"], path=path)
    assert measured == ["adder_lenet5", "adder_resnet18", "adder_vdsr"]
    assert set(before.splitlines()) < set(path.read_bytes().splitlines())
    vdsr = read_speeds(path)["adder_vdsr", "float32"]
    assert (vdsr.input_size, vdsr.batch_size) == ("3x90x160", 1)
    measure_speeds(["adder_vdsr"], again=True, path=path)
    assert measured[3:] == ["adder_vdsr"]


def test_what_another_machine_has_measured_is_measured_anew(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "speed.csv"
    measure_speeds(["adder_lenet5", "adder_resnet8"], path=path)
    monkeypatch.setattr(
        results, "_machine", lambda: {"processor": "p", "instructions": "i", "threads": 1, "torch": "t"}
    )
    measure_speeds(["adder_lenet5"], path=path)
    assert measured == ["adder_lenet5", "adder_resnet8", "adder_lenet5"]
    assert {(row.network, row.machine) for row in read_speeds(path).values()} == {
        ("adder_lenet5", "p (i), 1 thread, PyTorch t"), ("cnn_lenet5", "p (i), 1 thread, PyTorch t")
    }  # fmt: skip


@pytest.mark.parametrize("name", ["cnn_lenet5", "bnn_resnet20", "resnet18"])
def test_what_is_no_adder_network_with_a_twin_is_refused(name: str, measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"names must be among adder_\w+, .*, got '{name}'"):
        measure_speeds([name], path=tmp_path / "speed.csv")
    assert measured == []
    assert not any(tmp_path.iterdir())


def test_a_machine_is_named_by_itself() -> None:
    machine = results._machine()
    assert machine["torch"] == __import__("torch").__version__
    assert machine["threads"] >= 1
    assert Speed("", "", "", "", 1, 1, 1, **machine).machine.startswith(machine["processor"])


# ----------------------------------------------------------------------------------------------------------- documents


def test_the_readme_shows_the_table() -> None:
    readme = (ROOT / "README.md").read_text()
    block = readme.partition(publish_results.BEGIN)[2].partition(publish_results.END)[0]
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in re.findall(r"^\|.*$", block, re.M))
    assert head[-2:] == ["images/s in float32, CNN twin", "in bytes, CNN twin in int8"]
    expected = {}
    for row in read_tables():
        if row["network"].startswith("adder_") and row["tag"]:
            expected.setdefault((f"`{row['network']}`", f"`{row['tag']}`"), row)
    assert {tuple(row[:2]) for row in rows} == expected.keys() > set()
    for network, tag, _, *_, float32, int8 in rows:
        csv_row = expected[network, tag]
        cells = [(float32, "float32"), (int8, "int8")]
        if re.search(r"_u\d`$", tag):
            cells.remove(("-", "float32"))
        for cell, precision in cells:
            for shown, prefix in zip(cell.split(", "), ("", "cnn_"), strict=True):
                exact = csv_row[f"{prefix}images_per_second_{precision}"]
                assert (shown == "-") if not exact else float(shown) == pytest.approx(float(exact), rel=6e-3)
    text = " ".join(block.split())
    assert all(row.machine in text for row in read_speeds().values())


def test_the_readme_is_as_it_is_written_and_the_rest_of_it_stays(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text()
    before, rest = text.split(publish_results.BEGIN)
    readme.write_text(f"{before}{publish_results.BEGIN}old\n{publish_results.END}{rest.split(publish_results.END)[1]}")
    publish_results.write_readme(readme)
    assert readme.read_text() == text
    readme.write_text(before)
    with pytest.raises(ValueError, match="must have the lines <!-- results: begin --> and <!-- results: end -->"):
        publish_results.write_readme(readme)
    assert readme.read_text() == before


def test_networks_of_the_table_can_be_made() -> None:
    tagged = {f"{row['network']}.{row['tag']}" for row in read_tables() if row["tag"]}
    assert tagged == {name for name in timm.list_pretrained() if name.partition(".")[0] in network_names()}
