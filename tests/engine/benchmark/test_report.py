"""Tables, JSON and chart of made-up measurements."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from adderzoo.engine.benchmark import Report, describe_machine, draw, kinds_table, operator_table, section_table
from adderzoo.engine.benchmark.devices import Gpu
from adderzoo.engine.benchmark.layers import Layer, LayerResult, OperatorResult
from adderzoo.engine.benchmark.networks import Contender, Row, Section

SLOW, FAST = Layer((8, 3, 9, 9), (4, 3, 1, 1), (2, 2)), Layer((8, 3, 9, 9), (4, 3, 3, 3))


def operator(share: float | None = 0.5) -> OperatorResult:
    layers = (
        LayerResult(FAST, 1, 4000, 1e-7, 0.1, share, 0.8),
        LayerResult(SLOW, 2, 1000, 1e-7, 0.1, share and share / 4, 0.05),
    )
    return OperatorResult(
        "adder_net", 8, "forward", "contiguous", "distance", 6e10 if share else None, 3e10, share, 0.4, layers
    )


def kinds(share: float | None = 0.5) -> list[OperatorResult]:
    """Of no network, in two directions and formats."""
    return [
        replace(operator(share), model=None, memory_format=memory_format, direction=direction)
        for memory_format in ("channels_last", "contiguous")
        for direction in ("forward", "weight gradient")
    ]


def row(seconds: float, speed: float, model: str = "cnn_net", memory: float | None = 1.0, **contender: object) -> Row:
    made = Contender(**{"model": model, "batch": 8, **contender})  # type: ignore[arg-type]
    rate = made.batch / seconds
    return Row(made, "", seconds, (0.9 * seconds, 1.1 * seconds), 20, rate, 3 << 20, speed, memory)


def section(part: str = "inference") -> Section:
    rows = (
        row(0.016, 0.5, memory_format="contiguous"),
        row(0.008, 1.0),
        row(0.004, 2.0, dtype="bfloat16", compiled="freezing"),
        row(0.01, 0.8, "adder_net", form="fused"),
        row(0.3, 1 / 300, "adder_net", None, form="authors", batch=1),
        Row(Contender("adder_net", 1, form="cdist"), "RuntimeError: out of memory"),
    )
    return Section("adder_net", part, 8, 1, rows)


def report() -> Report:
    return Report(describe_machine(), "adderzoo benchmark", 1.0, operator=[operator()], networks=[section()])


def test_the_operators_table() -> None:
    assert operator_table([operator(), operator(None)])[1:] == [
        ("forward", "contiguous", "30.0", "60.0", "50 %", "0.40", "12 %", "3 to 4, 1x1, on 9x9, stride 2"),
        ("forward", "contiguous", "30.0", "", "", "0.40", "", "3 to 4, 1x1, on 9x9, stride 2"),
    ]


def test_the_table_of_many_kinds_has_a_line_for_each_layer_and_format() -> None:
    head, *ceilings, one, two, three, four = [
        tuple(" ".join(cell.split()) for cell in line) for line in kinds_table(kinds())
    ]
    assert head == ("layer", "format", "forward", "weight gradient")
    assert ceilings == [("ceiling", name, *["60.0 100 %"] * 2) for name in ("channels_last", "contiguous")]
    assert one == ("3 to 4, 3x3, on 9x9", "channels_last", *["40.0 50 % 0.80"] * 2)
    assert two == ("3 to 4, 3x3, on 9x9", "contiguous", *["40.0 50 % 0.80"] * 2)
    assert three == ("3 to 4, 1x1, on 9x9, stride 2", "channels_last", *["10.0 12 % 1/20"] * 2)
    assert four[1] == "contiguous"
    assert [line[0] for line in kinds_table(kinds(None))] == ["layer", *[str(FAST)] * 2, *[str(SLOW)] * 2]


def test_a_sections_table_has_the_faster_format_of_each() -> None:
    rows = [
        ("CNN", "channels_last", "8", "1.00", "10 %", "1000", "1.00", "3.0", "1.00"),
        ("CNN, bfloat16, compiled, frozen", "channels_last", "8", "0.500", "10 %", "2000", "2.00", "3.0", "1.00"),
        ("adder network, fused", "channels_last", "8", "1.25", "10 %", "800", "0.80", "3.0", "1.00"),
        ("adder network, authors' expression", "channels_last", "1", "300", "10 %", "3.33", "1/300", "3.0", ""),
        ("adder network, unfold + cdist", "channels_last", "1", "RuntimeError: out of memory"),
    ]
    assert section_table(section())[1:] == rows
    assert section_table(section())[0][2] == "batch"
    assert section_table(section("threads"))[0][2] == "threads"


def test_titles_have_the_precision() -> None:
    assert operator().title == "adder layers of adder_net, batch 8"
    assert replace(operator(), precision="u8").title == "adder layers of adder_net in u8, batch 8"
    assert kinds()[0].title == "adder layers of many kinds, batch 8"
    assert section().title == "adder_net, inference, batch 8"
    assert replace(section("threads"), precision="u8").title == "adder_net in u8, threads, batch 8"


def test_json_holds_everything_that_was_measured() -> None:
    made = report()
    read = json.loads(made.to_json())
    assert set(read) == {"machine", "command", "seconds", "date", "operator", "networks"}
    assert read["machine"]["torch"] == made.machine.torch
    rebuilt = [
        Section(**{
            **part,
            "rows": tuple(
                Row(**{
                    **cells,
                    "contender": Contender(**cells["contender"]),
                    "quartiles": cells["quartiles"] and tuple(cells["quartiles"]),
                })
                for cells in part["rows"]
            ),
        })
        for part in read["networks"]
    ]  # fmt: skip
    assert rebuilt == made.networks
    (layers,) = [result["layers"] for result in read["operator"]]
    assert [layer["share"] for layer in layers] == [0.5, 0.125]
    assert layers[1]["layer"] == {
        "input": [8, 3, 9, 9], "weight": [4, 3, 1, 1], "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1],
        "groups": 1, "offset": 0.0,
    }  # fmt: skip


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    machine = describe_machine()
    assert machine.settings["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert machine.processor
    assert machine.cores >= 1
    assert f"PyTorch {machine.torch}" in str(machine)


def test_a_machine_that_was_measured_on_its_gpu_names_that_first() -> None:
    gpu = Gpu("NVIDIA X", "9.0", 132, 1.98e9, 80 << 30, "13.0", "91002", "compiled on first use", 16.7e12)
    machine = replace(describe_machine(), gpu=gpu)
    assert str(machine).startswith(f"{gpu}; PyTorch {machine.torch}; on ")
    assert json.loads(replace(report(), machine=machine).to_json())["machine"]["gpu"]["multiprocessors"] == 132
    assert json.loads(report().to_json())["machine"]["gpu"] is None


def test_the_chart(tmp_path: Path) -> None:
    draw(report(), tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
        assert image.width > 800
    assert {(0x00, 0x72, 0xB2), (0x8C, 0x8C, 0x8C), (0xD5, 0x5E, 0x00)} <= colors
    draw(report(), tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().count("authors' expression (batch 1)") == 1


def test_the_chart_has_every_layer_of_many_kinds_in_one_format(tmp_path: Path) -> None:
    draw(replace(report(), operator=kinds()), tmp_path / "chart.svg")
    drawn = (tmp_path / "chart.svg").read_text()
    for label in ("forward, 3 to 4, 3x3, on 9x9", "weight gradient, 3 to 4, 1x1, on 9x9, stride 2"):
        assert drawn.count(label) == 1
    assert "contiguous: 3 to" not in drawn


def test_nothing_to_draw(tmp_path: Path) -> None:
    empty = Report(describe_machine(), "", 1.0, operator=[operator(None)])
    with pytest.raises(ValueError, match="there is nothing to draw: nothing could be measured"):
        draw(empty, tmp_path / "chart.png")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pictures need matplotlib, .* pip install 'adderzoo\[demo\]'"):
        draw(report(), tmp_path / "chart.png")
