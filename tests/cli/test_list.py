import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from commands import Done
from registry import published_tags, untrained_network
from safetensors import safe_open

from adderzoo import catalogue, models
from adderzoo.catalogue import Accuracy, ModelInfo, Quality, SetQuality, Weights
from adderzoo.cli import main

Command = Callable[..., Done]
UNTRAINED = untrained_network()
RESULTS = json.loads((models.WEIGHTS / "results.json").read_text())


def figures(name: str) -> list[str]:
    """The cells of measured weights, from results.json."""
    row = RESULTS.get(name)
    if row and "test_sets" in row:
        first = row["test_sets"][0]
        return [f"{first['psnr']:.2f}", f"{first['dataset']} x{first['scale']}"]
    return [f"{row['top1']:.2f} ± {row['top1_se']:.2f}", f"{row['images']:,}"] if row else []


def test_the_table_has_a_line_a_network_and_fits_on_a_terminal(adderzoo: Command) -> None:
    done = adderzoo("list")
    assert (done.status, done.err) == (0, "")
    head, *lines = done.out.splitlines()
    assert re.split(r"  +", head) == [
        "network", "params", "mult-adds", "adder", "images/s", "weights", "top-1 % / dB", "images"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines if line[0] != " "] == catalogue.network_names()
    assert max(map(len, done.out.splitlines())) <= 100
    costs: dict[str, list[str]] = {}
    weights: dict[str, list[list[str]]] = {}
    for line in lines:
        cells = re.split(r"  +", line.strip())
        if line[0] != " ":
            name, *costs[name] = cells[:5]
            cells, weights[name] = cells[5:], []
        weights[name].append(cells)
    assert costs["adder_lenet5"][1:3] == ["0", "0.42M"]
    assert costs["adder_resnet20"][:3] == ["0.27M", "0.44M", "40.4M"]
    assert costs["adder_resnet8"][:3] == ["0.08M", "0.44M", "12.1M"]
    assert costs["cnn_resnet32"][:3] == ["0.47M", "69.1M", "0"]
    assert costs["adder_edsr_x2"][:3] == ["40.7M", "551.5G", "8.83T"]
    speeds = {name: row for (name, precision), row in catalogue.read_speeds().items() if precision == "float32"}
    for name, cells in costs.items():
        assert (float(cells[3]) if cells[3] != "-" else None) == (
            pytest.approx(speeds[name].images_per_second, rel=6e-3) if name in speeds else None
        )
    assert weights == {
        name: [[tag, *figures(f"{name}.{tag}")] for tag in published_tags(name)] or [["-"]] for name in costs
    }
    for path in models.WEIGHTS.glob("*.safetensors"):
        network, _, tag = path.stem.partition(".")
        with safe_open(path, "pt") as file:
            trained = file.metadata()
        ((figure, _),) = [rest for first, *rest in weights[network] if first == tag]
        if "top1" in trained:
            assert figure == f"{trained['top1']} ± {trained['top1_se']}"
        else:
            assert figure == f"{json.loads(trained['test_sets'])[0]['psnr']:.2f}"


def test_further_tags_have_lines_of_their_own_under_their_network(
    adderzoo: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Accuracy("data", 50_000, 76.8, 0.19, "command")
    quality = Quality((SetQuality("Set14", 2, 14, 33.5, 0.91), SetQuality("Set5", 2, 5, 37.9, 0.95)), "command")
    network = ModelInfo("net", 25_557_032, 120_092_000, 3_969_000_000, (3, 224, 224), (), images_per_second=1234.5)
    tags = (Weights("pkkd_in1k", measured), Weights("in1k", None), Weights("div2k", quality))
    rows = [replace(network, pretrained=tags), replace(network, name="other", images_per_second=None)]
    monkeypatch.setattr(catalogue, "networks", lambda *args, **kwargs: rows)
    assert adderzoo("list").out.splitlines() == [
        "network  params  mult-adds  adder  images/s  weights    top-1 % / dB    images",
        "net       25.6M     120.1M  3.97G      1234  pkkd_in1k  76.80 ± 0.19    50,000",
        "                                             in1k",
        "                                             div2k             33.50  Set14 x2",
        "other     25.6M     120.1M  3.97G         -  -",
    ]


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (("*lenet5",), {"filter": "*lenet5"}),
        (("--pretrained",), {"pretrained": True}),
        (("cnn_*", "--pretrained"), {"filter": "cnn_*", "pretrained": True}),
    ],
)
def test_json_is_what_list_models_returns(adderzoo: Command, arguments: tuple[str, ...], keys: dict[str, str]) -> None:
    done = adderzoo("list", *arguments, "--json", "-")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == json.loads(json.dumps([asdict(row) for row in catalogue.networks(**keys)]))


def test_json_has_the_exact_counts_and_the_measurement(adderzoo: Command) -> None:
    (row,) = json.loads(adderzoo("list", "adder_resnet20", "--json", "-").out)
    assert (row["multiply_adds"], row["adder_elements"], row["input_size"]) == (443_008, 40_370_176, [3, 32, 32])
    assert row["pretrained"] == [
        {"tag": tag, "measured": RESULTS.get(f"adder_resnet20.{tag}")} for tag in published_tags("adder_resnet20")
    ]
    measured = {weights["tag"]: weights["measured"] for weights in row["pretrained"]}
    assert measured["huawei_cifar10"]["dataset"] == "CIFAR-10, all 10,000 test images"
    command = "adderzoo validate CIFAR10 --split test -m adder_resnet20.huawei_cifar10 "
    assert measured["huawei_cifar10"]["command"].startswith(command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50",), "no network matches 'resnet50'"),
        ((UNTRAINED, "--pretrained"), f"no network with published weights matches '{UNTRAINED}'"),
    ],
)
def test_a_filter_that_nothing_matches_is_one_line(adderzoo: Command, arguments: tuple[str, ...], message: str) -> None:
    assert adderzoo("list", *arguments).error == f"adderzoo list: error: {message}"
    assert adderzoo("list", *arguments, "--json", "-").error == f"adderzoo list: error: {message}"


def measured(top1: float) -> tuple[Weights, ...]:
    return (Weights("in1k", Accuracy("data", 50_000, top1, 0.2, "command")),)


SORTED = [
    ModelInfo("a", 30, 5, 100, (3, 32, 32), measured(70.0)),
    ModelInfo("b", 20, 90, 0, (3, 32, 32), measured(60.0) + measured(80.0), images_per_second=10.0),
    ModelInfo("c", 10, 10, 85, (3, 32, 32), (), images_per_second=20.0),
    ModelInfo("d", 40, 1, 1, (3, 9, 9), (Weights("x", Quality((SetQuality("Set5", 2, 5, 90.0, 0.9),), "command")),)),
]


@pytest.mark.parametrize(
    ("key", "names"),
    [("top1", "babdc"), ("ops", "dbca"), ("speed", "cbad"), ("params", "cbad")],
)
def test_networks_are_sorted_the_best_first(
    adderzoo: Command, monkeypatch: pytest.MonkeyPatch, key: str, names: str
) -> None:
    monkeypatch.setattr(catalogue, "networks", lambda *args, **kwargs: SORTED)
    lines = adderzoo("list", "--sort", key).out.splitlines()[1:]
    assert "".join(line[0] for line in lines).replace(" ", "") == names
    assert [row["name"] for row in json.loads(adderzoo("list", "--sort", key, "--json", "-").out)] == list(names)


def test_accuracies_are_in_order_with_the_network_in_every_line(adderzoo: Command) -> None:
    lines = adderzoo("list", "--pretrained", "--sort", "top1").out.splitlines()[1:]
    percents = [float(line.split(" ± ")[0].split()[-1]) for line in lines if "±" in line]
    assert percents == sorted(percents, reverse=True)
    assert all(line[0] != " " for line in lines)
    assert sum("±" in line for line in lines) == sum("top1" in row for row in RESULTS.values())
    assert all("±" in line for line in lines[: len(percents)])


def test_an_order_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["list", "--sort", "fast"])
    assert "--sort must be one of top1, ops, speed, params, got 'fast'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="key must be one of top1, ops, speed, params, got 'fast'"):
        catalogue.in_order([], "fast")


def test_the_guide_shows_this_table(adderzoo: Command) -> None:
    guide = (Path(__file__).resolve().parent.parent.parent / "docs" / "pages" / "guides" / "networks.md").read_text()
    assert 'adderzoo list "*_resnet20"\n' in guide
    assert f"\n```text\n{adderzoo('list', '*_resnet20').out}```\n" in guide


def test_a_reader_that_has_seen_enough_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["list", "adder_lenet5"]) == 1
        print("what Python writes when it ends", flush=True)
    assert capsys.readouterr().err == ""
