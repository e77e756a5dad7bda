import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import Done
from safetensors import safe_open

import adderzoo as package
from adderzoo import hub, models
from adderzoo.cli import main
from adderzoo.hub import Measurement, ModelInfo, Weights

Command = Callable[..., Done]


def test_the_table_has_a_line_a_network_and_fits_on_a_terminal(adderzoo: Command) -> None:
    done = adderzoo("list")
    assert (done.status, done.err) == (0, "")
    head, *lines = done.out.splitlines()
    assert re.split(r"  +", head) == [
        "network", "params", "mult-adds", "adder", "input", "weights", "top-1 %", "images"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines if line[0] != " "] == hub.network_names()
    assert max(map(len, done.out.splitlines())) <= 100
    cells = {line.split()[0]: re.split(r"  +", line) for line in lines}
    assert cells["adder_resnet20"] == [
        "adder_resnet20", "0.27M", "0.44M", "40.4M", "3x32x32", "huawei_cifar10", "91.60 ± 0.88", "1,000"
    ]  # fmt: skip
    assert cells["cnn_resnet32"] == ["cnn_resnet32", "0.47M", "69.1M", "0", "3x32x32", "-"]
    with safe_open(models.WEIGHTS / "adder_lenet5.digits.safetensors", "pt") as file:
        trained = file.metadata()
    top1 = f"{trained['top1']} ± {trained['top1_se']}"
    assert cells["adder_lenet5"][2:] == ["0", "0.42M", "1x32x32", "digits", top1, "899"]


def test_further_tags_have_lines_of_their_own_under_their_network(
    adderzoo: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measurement("data", 50_000, 76.8, 0.19, "command")
    network = ModelInfo("net", 25_557_032, 120_092_000, 3_969_000_000, (3, 224, 224), ())
    tags = (Weights("pkkd_in1k", measured), Weights("in1k", None))
    rows = [ModelInfo(**{**vars(network), "pretrained": tags}), ModelInfo(**{**vars(network), "name": "other"})]
    monkeypatch.setattr(hub, "list_models", lambda *args, **kwargs: rows)
    assert adderzoo("list").out.splitlines() == [
        "network  params  mult-adds  adder  input      weights         top-1 %  images",
        "net       25.6M     120.1M  3.97G  3x224x224  pkkd_in1k  76.80 ± 0.19  50,000",
        "                                              in1k",
        "other     25.6M     120.1M  3.97G  3x224x224  -",
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
    done = adderzoo("list", *arguments, "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == json.loads(json.dumps([asdict(row) for row in package.list_models(**keys)]))


def test_json_has_the_exact_counts_and_the_measurement(adderzoo: Command) -> None:
    (row,) = json.loads(adderzoo("list", "adder_resnet20", "--json").out)
    assert (row["multiply_adds"], row["adder_elements"], row["input_size"]) == (443_008, 40_370_176, [3, 32, 32])
    (weights,) = row["pretrained"]
    assert weights["tag"] == "huawei_cifar10"
    assert weights["measured"]["dataset"] == "CIFAR-10, first 1,000 test images"
    assert weights["measured"]["command"].startswith("adderzoo validate --model adder_resnet20.huawei_cifar10 ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50",), "no network matches 'resnet50'"),
        (("adder_resnet32", "--pretrained"), "no network with published weights matches 'adder_resnet32'"),
    ],
)
def test_a_filter_that_nothing_matches_is_one_line(adderzoo: Command, arguments: tuple[str, ...], message: str) -> None:
    assert adderzoo("list", *arguments).error == f"adderzoo list: error: {message}"
    assert adderzoo("list", *arguments, "--json").error == f"adderzoo list: error: {message}"


def test_the_readme_shows_this_table(adderzoo: Command) -> None:
    readme = (Path(__file__).resolve().parent.parent.parent / "README.md").read_text()
    assert 'adderzoo list "*_resnet20"\n' in readme
    assert f"\n```text\n{adderzoo('list', '*_resnet20').out}```\n" in readme


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
