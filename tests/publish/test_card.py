"""Model cards, against the files, the figures and the registry that they speak of."""

import json
import math
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from cards import code, section, table
from huggingface_hub import ModelCard
from PIL import Image
from registry import add_tag, untrained_network
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from adderzoo.catalogue import read_speeds, task
from adderzoo.layers import Adder2d
from adderzoo.publish.card import model_card

WEIGHTS = Path(__file__).resolve().parent.parent.parent / "adderzoo" / "weights"
NAMES = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
CLASSIFIERS = [name for name in NAMES if task(name) == "image-classification"]  # others: test_card_super_resolution.py
UNTRAINED = f"{untrained_network()}.untrained"
ROW = {"dataset": "some images", "images": 400, "top1": 80.0, "top1_se": 2.0, "command": "bash it.sh", "recipe": "SGD."}


def committed(name: str) -> str:
    return (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")


def costs(card: str) -> dict[str, list[str]]:
    return table(section(card, "Cost"))


def front_matter(card: str) -> dict[str, Any]:
    _, front, rest = card.split("---\n", 2)
    assert rest.startswith("\n# ")
    return yaml.safe_load(front)


def count(network: str, tagged: str) -> dict[str, int]:
    """Operations for one image of a network with the classes and input of a tag, layer by layer."""
    counts = {"adder": 0, "conv": 0}

    def add(module: nn.Module, _: object, output: torch.Tensor) -> None:
        kind = "adder" if isinstance(module, Adder2d) else "conv"
        counts[kind] += math.prod(output.shape) * math.prod(module.weight.shape[1:])

    cfg = timm.get_pretrained_cfg(tagged)
    model = timm.create_model(network, num_classes=cfg.num_classes).eval()
    for module in model.modules():
        if isinstance(module, Adder2d | nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    model(torch.zeros(1, *cfg.input_size))
    return counts


def trained_elements(file: Path) -> int:
    """Of a file: everything but what BatchNorm counts and averages."""
    with safe_open(file, "pt") as tensors:
        keys = set(tensors.keys())
        trained = {key for key in keys if not re.search(r"\.(running_(mean|var)|num_batches_tracked)$", key)}
        return sum(math.prod(tensors.get_slice(key).get_shape()) for key in trained)


def float_file(file: Path) -> Path:
    """The weights that those of a quantized network were made of."""
    return file.with_stem(re.sub(r"_u\d$", "", file.stem))


def rows() -> dict[str, dict[str, Any]]:
    return json.loads((WEIGHTS / "results.json").read_text())


# ----------------------------------------------------------------------------------------------------- committed cards


def test_every_weight_in_the_package_has_a_card_and_no_other_has() -> None:
    assert {"adder_lenet5.digits", "cnn_lenet5.digits"} <= set(NAMES)
    assert sorted(path.stem for path in WEIGHTS.glob("*.md")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_card_is_what_the_generator_writes(name: str) -> None:
    """After a change of the template, or of what it shows: python scripts/publish_results.py."""
    assert committed(name) == model_card(name)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_front_matter_is_yaml_that_says_what_the_registry_says(name: str) -> None:
    front = front_matter(committed(name))
    assert front["license"] == timm.get_pretrained_cfg(name).license
    assert front["library_name"] == "timm"
    assert front["pipeline_tag"] == "image-classification"
    assert {"image-classification", "timm"} <= set(front["tags"])
    assert ("adder-network" in front["tags"]) == name.startswith("adder_")
    with safe_open(WEIGHTS / f"{name}.safetensors", "pt") as file:
        assert section(committed(name), "License").strip() == file.metadata()["license"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_figures_are_those_of_results_json(name: str) -> None:
    card, row = committed(name), rows()[name]
    assert f"Top-1 {row['top1']:.2f} ± {row['top1_se']:.2f} % on {row['images']:,} images ({row['dataset']})" in card
    assert costs(card)[f"top-1 % with tag `{name.partition('.')[2]}`"][0] == f"{row['top1']:.2f} ± {row['top1_se']:.2f}"
    with safe_open(WEIGHTS / f"{name}.safetensors", "pt") as weights:
        said = weights.metadata()
    training = row["recipe"]
    if "trained_from" in said:
        training += f" The training started from {said['trained_from']}."
    if "taught_by" in said:
        training += f" It was taught by {said['taught_by']}."
    assert section(card, "Training").startswith(f"{training}\n")
    assert code(card, "bash") == f"{row['command']}\n"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_costs_are_those_of_the_layers_and_of_the_files(name: str) -> None:
    network, _, tag = name.partition(".")
    twin = network.replace("adder_", "cnn_") if network.startswith("adder_") else network.replace("cnn_", "adder_")
    cells = costs(committed(name))
    assert cells[""] == [f"`{network}`", f"its twin `{twin}`"]
    for column, each in enumerate((network, twin)):
        counts = count(each, name)
        assert cells["multiply-adds of convolutions and linear layers"][column] == f"{counts['conv']:,}"
        assert cells[r"elements `\|x - w\|` of adder layers"][column] == f"{counts['adder']:,}"
        # Picojoules: an addition 0.9 and a multiplication 3.7, of bytes 0.03 and 0.2.
        additions, multiplications = counts["conv"] + 2 * counts["adder"], counts["conv"]
        expected = [0.9 * additions + 3.7 * multiplications, 0.03 * additions + 0.2 * multiplications]
        energies = cells["energy of these in float32 / int8, mJ"][column].split(" / ")
        assert [float(energy) for energy in energies] == pytest.approx([each * 1e-9 for each in expected], rel=5e-3)
        file = WEIGHTS / f"{each}.{tag}.safetensors"
        if file.is_file():
            assert cells["parameters"][column] == f"{trained_elements(float_file(file)):,}"
            assert cells[f"bytes of the file with tag `{tag}`"][column] == f"{len(file.read_bytes()):,}"
    assert cells["parameters"][0] == f"{trained_elements(float_file(WEIGHTS / f'{name}.safetensors')):,}"


def refuse(*_: object) -> None:
    raise OSError("the network is not to be used")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_usage_runs_as_it_stands_without_the_internet(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket.socket, "connect", refuse)
    exec(code(committed(name), "python"), {})
    cfg = timm.get_pretrained_cfg(name)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == min(5, cfg.num_classes)
    shares = [float(line.split(" % ")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 100.1
    if cfg.label_names:
        assert {line.split(" % ")[1] for line in lines} <= set(cfg.label_names)


def test_the_usage_names_digits_that_the_network_has_not_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    program = compile(code(committed("adder_lenet5.digits"), "python"), "card", "exec")
    right = 0
    for pixels, label in zip(digits.images[-20:], digits.target[-20:], strict=True):
        image = Image.fromarray((pixels * (255 / 16)).round().astype("uint8"))
        monkeypatch.setattr(Image, "effect_noise", lambda size, sigma, image=image: image)
        exec(program, {})
        right += capsys.readouterr().out.split(" % ")[1].splitlines()[0] == str(label)
    assert right >= 18  # 98.8 % of that half


# ------------------------------------------------------------------------------------- as the Hub and users read them


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_reads_what_was_measured(name: str) -> None:
    """By huggingface_hub's own parser, without a network."""
    card = ModelCard(committed(name), ignore_metadata_errors=False)
    assert card.data.model_name == name
    from_others = ".dist_" in name or name.startswith("adder_resnet20.cifar100")  # the authors' weights
    assert card.data.license == ("bsd-3-clause" if from_others else "apache-2.0")
    shown = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    row = rows()[name]
    if "top1" in row:
        assert shown == {(row["dataset"], "accuracy"): row["top1"]}
        assert card.data.library_name == "timm"
    else:
        sets = [(f"{each['dataset']} x{each['scale']}", each) for each in row["test_sets"]]
        assert shown == {(title, kind): each[kind] for title, each in sets for kind in ("psnr", "ssim")}
    assert {result.task_type for result in card.data.eval_results} == {card.data.pipeline_tag}
    assert all(result.dataset_type and "," not in result.dataset_type for result in card.data.eval_results)
    assert str(card) == committed(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_its_network_takes_on_a_cpu_beside_its_twin(name: str) -> None:
    speeds, card = read_speeds(), committed(name)
    adder = f"adder_{name.partition('.')[0].partition('_')[2]}"
    pair = [adder, adder.replace("adder_", "cnn_")]
    if (adder, "float32") not in speeds:
        assert "Images a second" not in card
        return
    for precision in ("float32", "int8"):
        timed = [speeds.get((each, precision)) for each in pair]
        cells = [f"{row.images_per_second:g}" if row else "-" for row in timed]
        assert costs(card)[f"images/s on a CPU, {precision}"] == (cells if name.startswith("adder_") else cells[::-1])
    text = section(card, "Cost")
    assert speeds[adder, "float32"].machine in text
    (times,) = re.findall(r"the adder network takes ([\d.]+) times as long as the CNN in float32", text)
    rates = [speeds[each, "float32"].images_per_second for each in pair]
    assert float(times) == pytest.approx(rates[1] / rates[0], rel=0.05)


def test_cards_link_to_nothing_that_is_not_there() -> None:
    for name in NAMES:
        links = re.findall(r"https?://[^\s)>]+", committed(name))
        assert links
        known = "https://(arxiv.org/abs/[\\d.]+|huggingface.co/datasets/(cifar10|cifar100|mnist|imagenet-1k))"
        assert all(re.fullmatch(known, link) for link in links), links
        assert "hf-hub:" not in committed(name)


# ------------------------------------------------------------------------------------------------------- other weights


def publish(folder: Path, name: str, row: dict[str, Any] | None = None, **arguments: Any) -> None:
    """A file of random weights and its row, which join those in the folder."""
    save_file(timm.create_model(name.partition(".")[0], **arguments).state_dict(), folder / f"{name}.safetensors")
    path = folder / "results.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {name: row or ROW}))


@pytest.mark.parametrize(
    ("tag", "dataset"),
    [
        ("mnist", "mnist"),
        ("cifar10", "cifar10"),
        ("pkkd_cifar10", "cifar10"),
        ("in1k", "imagenet-1k"),
        ("mnist_letters", None),
        ("digits", None),
    ],
)
def test_a_data_set_of_the_hub_is_named_as_there(
    tag: str, dataset: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tag(monkeypatch, f"cnn_lenet5.{tag}", file=str(tmp_path / f"cnn_lenet5.{tag}.safetensors"))
    publish(tmp_path, f"cnn_lenet5.{tag}")
    card = model_card(f"cnn_lenet5.{tag}", tmp_path)
    assert front_matter(card).get("datasets") == ([dataset] if dataset else None)
    assert ("https://huggingface.co/datasets/" in card) == (dataset is not None)


def test_weights_of_other_classes_and_color_have_counts_and_usage_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "adder_resnet20.colors"
    file = tmp_path / f"{name}.safetensors"
    add_tag(monkeypatch, name, file=str(file), url=None, num_classes=3, label_names=None, license="mit")
    publish(tmp_path, name, num_classes=3)
    card = model_card(name, tmp_path)
    cells = costs(card)
    for column, network in enumerate(("adder_resnet20", "cnn_resnet20")):
        counts = count(network, name)
        assert cells["multiply-adds of convolutions and linear layers"][column] == f"{counts['conv']:,}"
        assert cells[r"elements `\|x - w\|` of adder layers"][column] == f"{counts['adder']:,}"
        assert cells["parameters"][column] == f"{trained_elements(file):,}"
    assert cells["bytes of the file with tag `colors`"] == [f"{file.stat().st_size:,}", "-"]
    assert cells["top-1 % with tag `colors`"] == ["80.00 ± 2.00", "-"]
    assert front_matter(card)["license"] == "mit"
    exec(code(card, "python"), {})
    assert {line.split(" % ")[1] for line in capsys.readouterr().out.splitlines()} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("other", "shown"),
    [({"top1": 90.0, "top1_se": 1.5}, "90.00 ± 1.50"), ({"images": 401}, "-"), ({"dataset": "other images"}, "-")],
)
def test_the_twins_accuracy_is_shown_where_it_can_be_compared(
    other: dict[str, Any], shown: str, tmp_path: Path
) -> None:
    publish(tmp_path, "adder_lenet5.digits")
    publish(tmp_path, "cnn_lenet5.digits", ROW | other)
    assert costs(model_card("adder_lenet5.digits", tmp_path))["top-1 % with tag `digits`"] == [
        "80.00 ± 2.00",
        shown,
    ]


def test_weights_from_somebody_elses_file_were_only_measured_here(tmp_path: Path) -> None:
    name = "adder_lenet5.digits"
    publish(tmp_path, name)
    assert "Trained and measured by this command" in model_card(name, tmp_path)
    state_dict = timm.create_model("adder_lenet5").state_dict()
    save_file(state_dict, tmp_path / f"{name}.safetensors", {"source": "theirs.pth", "license": "BSD-3-Clause"})
    card = model_card(name, tmp_path)
    assert "\nMeasured by this command" in card
    assert front_matter(card)["license"] == "bsd-3-clause"
    assert section(card, "License").strip() == "BSD-3-Clause"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adder_lenet5.no_such_tag", "tag in the registry, got 'adder_lenet5.no_such_tag'"),
        ("adder_lenet5", "tag in the registry, got 'adder_lenet5'"),
        ("adder_resnet20.huawei_cifar10", "'adder_resnet20.huawei_cifar10' has no file$"),
        ("bnn_resnet20.untrained", "of an adder network or a CNN, .*, got 'bnn_resnet20.untrained'"),
        (UNTRAINED, f"'{UNTRAINED}' has no file and no row in results.json$"),
    ],
)
def test_what_has_no_weights_has_no_card(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_card(name)


def test_weights_that_nobody_measured_have_no_card(tmp_path: Path) -> None:
    save_file(timm.create_model("adder_lenet5").state_dict(), tmp_path / "adder_lenet5.digits.safetensors")
    with pytest.raises(ValueError, match=r"'adder_lenet5\.digits' has no row in results\.json$"):
        model_card("adder_lenet5.digits", tmp_path)
