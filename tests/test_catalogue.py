"""What can be had by name, against the sources, the papers' counts and the weights themselves."""

import fnmatch
import hashlib
import importlib.util
import json
import math
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from registry import add_tag, published_tags
from safetensors import safe_open
from torch import nn

import adderzoo
from adderzoo.catalogue import (
    RESULTS,
    Accuracy,
    ModelInfo,
    Quality,
    SetQuality,
    read_results,
    task,
    twin,
    write_result,
)
from adderzoo.layers import Adder2d
from adderzoo.layers.image import BicubicUpsample
from adderzoo.publish.networks import describe, network_table

CHECKOUT = Path(__file__).resolve().parent.parent
REPRODUCTIONS = (CHECKOUT / "docs" / "pages" / "results" / "reproductions.md").read_text()
WEIGHTS = CHECKOUT / "adderzoo" / "weights"

# The entry points as they stand in the sources, whatever the registry makes of them.
NAMES = {
    name
    for file in (CHECKOUT / "adderzoo" / "models").glob("*.py")
    for name in re.findall(r"^@register_model\ndef (\w+)\(", file.read_text(), re.MULTILINE)
}
# Likewise, names with their tags.
TAGGED = {
    (name, tag)
    for module in vars(adderzoo.models).values()
    for name, cfgs in getattr(module, "default_cfgs", {}).items()
    for tag in cfgs.cfgs
}


@pytest.fixture(scope="module")
def networks() -> dict[str, ModelInfo]:
    return {network.name: network for network in adderzoo.catalogue.networks()}


def names(filter: str | list[str] = "", pretrained: bool = False) -> list[str]:
    """Of the networks with what is known of them, which without `pretrained` are those of `list_models`."""
    chosen = [network.name for network in adderzoo.catalogue.networks(filter, pretrained)]
    assert pretrained or chosen == adderzoo.list_models(filter)
    return chosen


# ------------------------------------------------------------------------------------------------------------ networks


def test_every_network_of_the_sources_is_listed_and_no_other(networks: dict[str, ModelInfo]) -> None:
    assert {"adder_lenet5", "cnn_lenet5", "adder_resnet20", "cnn_resnet32"} <= NAMES
    assert networks.keys() == NAMES
    assert list(networks) == [name for name in timm.list_models() if name in NAMES]


# Of the definitions in the papers: (convolutions and linear layers, adder layers).
@pytest.mark.parametrize(
    ("name", "multiply_adds", "adder_elements"),
    [
        ("adder_lenet5", 0, 416_520),
        ("cnn_lenet5", 416_520, 0),
        ("adder_resnet20", 443_008, 40_370_176),
        ("cnn_resnet20", 443_008 + 40_370_176, 0),
        ("adder_resnet32", 443_008, 69_124_736 - 443_008),
        ("cnn_resnet32", 69_124_736, 0),
        # 16 channels of 3x3; two layers of a block, the first of a wider one half as large, and a 1x1 layer beside it.
        ("adder_resnet8", 443_008, 4_718_592 + 2 * (1_179_648 + 2_359_296 + 131_072)),
        ("adder_vgg_small", 3 * 9 * 128 * 32 * 32 + 8192 * 10, 603_979_776),
        ("bnn_resnet20", 443_008, 0),
        ("shift_resnet20", 443_008, 0),
        # Nine adder layers of 16 channels see as many as before; the first of a wider stage sees twice as many.
        ("shiftadd_resnet20", 443_008, 40_370_176 + 2 * (9 * 16 * 32 * 16**2 + 16 * 32 * 16**2)),
    ],
)
def test_operations_are_those_of_the_paper(
    networks: dict[str, ModelInfo], name: str, multiply_adds: int, adder_elements: int
) -> None:
    assert (networks[name].multiply_adds, networks[name].adder_elements) == (multiply_adds, adder_elements)


def test_imagenet_networks_have_the_operations_of_the_paper(networks: dict[str, ModelInfo]) -> None:
    resnet18, resnet50 = networks["adder_resnet18"], networks["adder_resnet50"]
    assert round(resnet18.adder_elements / 1e9, 4) == 1.6955
    assert round((resnet18.adder_elements + resnet18.multiply_adds) / 1e9, 3) == 1.814
    assert round((resnet50.adder_elements + resnet50.multiply_adds) / 1e9, 3) == 4.089


@pytest.mark.parametrize("name", sorted(NAMES))
def test_operations_are_those_of_the_layers(networks: dict[str, ModelInfo], name: str) -> None:
    counts = {Adder2d: 0, nn.Conv2d: 0, nn.Linear: 0, BicubicUpsample: 0}

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        counts[type(module)] += math.prod(output.shape) * math.prod(module.weight.shape[1:])

    with torch.device("meta"):
        model = timm.create_model(name).eval()
        for module in model.modules():
            if type(module) in counts:
                module.register_forward_hook(count)
        model(torch.empty(1, *model.pretrained_cfg["input_size"]))
    network = networks[name]
    assert network.adder_elements == counts[Adder2d]
    assert network.multiply_adds == sum(counts.values()) - counts[Adder2d]
    assert network.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert network.input_size == model.pretrained_cfg["input_size"]


# Parameters in thousands and multiply-adds in billions, for an output of 1280x720, as later papers report them of the
# published networks (CARN, ECCV 2018, Table 1, and others); those of EDSR itself in millions, from its paper, Table 1.
@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("edsr_baseline_x2", 1_370e3, 316.3e9),
        ("edsr_baseline_x3", 1_555e3, 160.2e9),
        ("edsr_baseline_x4", 1_518e3, 114.0e9),
        ("vdsr", 666e3, 612.6e9),
        ("edsr_x4", 43.1e6, None),
    ],
)
def test_super_resolution_networks_cost_what_is_published(
    networks: dict[str, ModelInfo], name: str, parameters: float, multiply_adds: float | None
) -> None:
    cnn, adder = networks[f"cnn_{name}"], networks[f"adder_{name}"]
    assert cnn.parameters == pytest.approx(parameters, rel=1e-3)
    assert multiply_adds is None or cnn.multiply_adds == pytest.approx(multiply_adds, rel=3e-3)
    assert adder.multiply_adds + adder.adder_elements == cnn.multiply_adds
    assert cnn.task == adder.task == "super-resolution"
    assert networks["adder_resnet20"].task == "image-classification"


def test_weights_of_other_classes_and_input_are_counted_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = add_tag(monkeypatch, "adder_resnet20.letters", num_classes=26, input_size=(1, 64, 64))
    whole, letters = describe("adder_resnet20"), describe("adder_resnet20", cfg)
    assert letters.input_size == (1, 64, 64)
    assert letters.adder_elements == 4 * whole.adder_elements  # four times the points
    # The first convolution sees a third of the channels; classifier and the BatchNorm behind it have 16 classes more.
    assert letters.parameters == whole.parameters - 2 * 9 * 16 + 16 * (64 + 2)
    assert [whole] == adderzoo.catalogue.networks("adder_resnet20")


def test_a_twin_is_the_other_network_of_the_same_definition() -> None:
    assert {name: twin(name) for name in NAMES if name.startswith("adder_")} == {
        name: name.replace("adder_", "cnn_") for name in NAMES if name.startswith("adder_")
    }
    assert all(twin(twin(name) or "") == name for name in NAMES if name.startswith(("adder_", "cnn_")))
    assert twin("bnn_resnet18") == "cnn_resnet18"
    assert twin("shiftadd_resnet20") == "cnn_resnet20"
    assert twin("bicubic") is None
    assert twin("adder_no_such_net") is None
    assert twin("resnet50") is None
    assert twin("tv_resnet50") is None  # a name of timm's


def test_parameters_of_lenet5_are_those_of_its_layers(networks: dict[str, ModelInfo]) -> None:
    filters = 25 * (1 * 6 + 6 * 16 + 16 * 120) + 120 * 84 + 84 * 10
    assert networks["adder_lenet5"].parameters == filters + 2 * (6 + 16 + 120 + 84 + 10)
    assert networks["adder_lenet5"].input_size == (1, 32, 32)


def test_an_entry_cannot_be_changed_and_goes_into_json(networks: dict[str, ModelInfo]) -> None:
    network = networks["adder_lenet5"]
    with pytest.raises(FrozenInstanceError):
        network.name = "another"  # type: ignore[misc]
    assert network.pretrained
    written = json.loads(json.dumps(asdict(network)))["pretrained"]
    for weights, row in zip(network.pretrained, written, strict=True):
        assert weights.measured is not None
        assert (row["tag"], row["measured"]["top1"]) == (weights.tag, weights.measured.top1)


# ------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize("pattern", ["adder_*", "*resnet20", "adder_lenet5", "*_resnet[23][02]", "resnet*"])
def test_a_pattern_chooses_by_name(pattern: str) -> None:
    assert set(names(pattern)) == set(fnmatch.filter(NAMES, pattern))


def test_a_pattern_chooses_by_tag(networks: dict[str, ModelInfo]) -> None:
    assert {("adder_lenet5", "digits"), ("adder_lenet5", "mnist"), ("adder_resnet20", "huawei_cifar10")} <= TAGGED
    for tag in {tag for _, tag in TAGGED}:
        assert names(f"*.{tag}") == [name for name in networks if (name, tag) in TAGGED]
    assert names("*.no_such_data") == []


def test_several_patterns_choose_what_any_of_them_does(networks: dict[str, ModelInfo]) -> None:
    expected = {"adder_lenet5"} | {name for name in NAMES if name.endswith("_resnet20")}
    expected |= {name for name, tag in TAGGED if tag == "digits"}
    assert {"adder_resnet20", "cnn_resnet20", "cnn_lenet5"} <= expected
    patterns = ["*_resnet20", "*.digits", "adder_lenet5"]
    assert names(patterns) == [name for name in networks if name in expected]
    assert adderzoo.list_models(iter(patterns)) == names(patterns)
    weights = adderzoo.list_models(patterns, pretrained=True)
    assert weights
    assert adderzoo.list_models(iter(patterns), pretrained=True) == weights


def test_pretrained_chooses_networks_with_weights_and_names_their_tags(networks: dict[str, ModelInfo]) -> None:
    published = {(name, weights.tag) for name, network in networks.items() for weights in network.pretrained}
    assert {("adder_lenet5", "digits"), ("adder_resnet20", "huawei_cifar10")} <= published <= TAGGED
    assert {tuple(path.stem.split(".")) for path in WEIGHTS.glob("*.safetensors")} <= published
    assert published == {tuple(name.split(".")) for name in timm.list_pretrained() if name.split(".")[0] in NAMES}
    assert set(names(pretrained=True)) == {name for name, _ in published}
    assert names("cnn_*", pretrained=True) == [name for name in timm.list_models("cnn_*") if name in dict(published)]


NEW_FAMILY = """
import sys, types
import timm
import adderzoo
from timm.models import generate_default_cfgs, register_model

module = sys.modules["adderzoo.models.new"] = types.ModuleType("adderzoo.models.new")
cfg = {"file": "weights", "num_classes": 10, "input_size": (1, 32, 32)}
module.default_cfgs = generate_default_cfgs({"new_net.b": dict(cfg), "new_net.a": dict(cfg), "new_net.c": dict(cfg)})

def new_net(pretrained=False, **kwargs):
    return timm.create_model("adder_lenet5", **kwargs)

new_net.__module__ = module.__name__
register_model(new_net)
from adderzoo.publish.networks import network_table, registered_names
assert "new_net" in registered_names()
print("new_net", *network_table()["new_net"]["tags"])
"""


def test_a_new_family_comes_into_the_table_with_its_default_tag_first() -> None:
    done = subprocess.run([sys.executable, "-c", NEW_FAMILY], cwd=CHECKOUT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "new_net b a c\n"), done.stderr


def test_the_table_of_networks_is_what_they_count_themselves() -> None:
    """After a change of networks or tags: python scripts/publish_results.py."""
    assert json.loads(adderzoo.catalogue.NETWORKS.read_text()) == network_table()


@pytest.mark.parametrize("filter", ["", "adder_*", "*.digits", "*_resnet20.*", ["cnn_*", "*.mnist"]], ids=str)
def test_names_of_weights_are_those_of_timm(filter: str | list[str]) -> None:
    ours = adderzoo.list_models(filter, pretrained=True)
    assert set(ours) == {name for name in timm.list_models(filter, pretrained=True) if name.split(".")[0] in NAMES}
    places = [names().index(name.split(".")[0]) for name in ours]
    assert places == sorted(places)
    for name in {name.split(".")[0] for name in adderzoo.list_models(pretrained=True)}:
        first = adderzoo.list_models(f"{name}.*", pretrained=True)[0]
        assert first == f"{name}.{timm.models.get_pretrained_cfg(name).tag}"


# ------------------------------------------------------------------------------------------------------------- results


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as weights:
        return weights.metadata()


def assert_equal_to_metadata(row: dict[str, Any], said: dict[str, str]) -> None:
    assert row["recipe"] == said["recipe"]
    assert row["command"] == said["command"]
    if "test_sets" in row:
        assert json.loads(said["test_sets"]) == row["test_sets"]
        return
    assert (f"{row['top1']:.2f}", f"{row['top1_se']:.2f}") == (said["top1"], said["top1_se"])
    assert f"{row['dataset']} ({row['images']} images)" == said["dataset"]


def test_every_weight_in_the_package_has_a_row_equal_to_its_metadata() -> None:
    rows = json.loads((WEIGHTS / "results.json").read_text())
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert {"adder_lenet5.digits", "cnn_lenet5.digits"} <= {file.stem for file in files}
    for file in files:
        said = metadata(file)
        assert file.stem == f"{said['architecture']}.{said['tag']}"
        assert_equal_to_metadata(rows[file.stem], said)


def accuracies() -> dict[str, dict[str, Any]]:
    """The rows of classifiers."""
    rows = json.loads((WEIGHTS / "results.json").read_text())
    return {name: row for name, row in rows.items() if "top1" in row}


def test_every_row_is_of_published_weights_or_the_baseline_of_super_resolution() -> None:
    rows = json.loads((WEIGHTS / "results.json").read_text())
    for name, row in rows.items():
        assert name == "bicubic" or name in timm.list_pretrained(name)
        assert ("top1" in row) == (task(name) == "image-classification") == ("test_sets" not in row)
    assert "bicubic" in rows


def test_every_accuracy_has_the_error_of_its_size() -> None:
    for row in accuracies().values():
        share = row["top1"] / 100
        assert row["top1_se"] == round(100 * math.sqrt(share * (1 - share) / row["images"]), 2)
        assert row["command"]
        assert row["recipe"]


def test_the_readme_shows_the_same_figures(networks: dict[str, ModelInfo]) -> None:
    """In its table of adder networks, a row for all their weights, with the CNN twin's beside them."""
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| [^|]+ \(([\d,]+)\)" + 4 * r" \| ([^|]+)" + r" \| [^|]+ \| [^|]+ \|$",
        (CHECKOUT / "README.md").read_text(),
        re.M,
    )
    results = json.loads((WEIGHTS / "results.json").read_text())
    assert {f"{name}.{tag}" for name, tag, *_ in rows} == {name for name in results if name.startswith("adder_")}
    for name, tag, images, measured, twins, cost, twins_cost in rows:
        network, cnn = networks[name], networks[name.replace("adder_", "cnn_")]
        row, other = results[f"{name}.{tag}"], results.get(f"{cnn.name}.{tag}")
        assert (measured, images) == figures(row)
        assert (twins, images) == (figures(other) if other else ("-", images))
        classes, usual = (timm.get_pretrained_cfg(each).num_classes for each in (f"{name}.{tag}", name))
        more = (classes - usual) * timm.create_model(name).num_features if classes != usual else 0
        assert cost == f"{short(network.multiply_adds + more)} + {short(network.adder_elements)}"
        assert twins_cost == short(cnn.multiply_adds + more)


def figures(row: dict[str, Any]) -> tuple[str, str]:
    """Top-1 accuracy or PSNR on the first test set, and on how many images."""
    if "top1" in row:
        return f"{row['top1']:.2f} ± {row['top1_se']:.2f}", f"{row['images']:,}"
    first = row["test_sets"][0]
    return f"{first['psnr']:.2f}", f"{first['images']:,}"


def short(count: int) -> str:
    """As `adderzoo list` has it."""
    unit, letter = next(((u, c) for u, c in ((1e9, "G"), (1e6, "M")) if count >= u), (1e6, "M"))
    digits = 1 if count >= (1e11 if letter == "G" else 1e6) else 2
    return f"{count / unit:.{digits}f}{letter}" if count else "0"


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (
            "top-1 % ",
            {
                (0, 2): "adder_resnet20.huawei_cifar10",
                (0, -1): "adder_resnet20.cifar10",
                (1, -1): "cnn_resnet20.cifar10",
            },
        ),
        ("top-1 % on CIFAR-100 ", {(0, -1): "adder_resnet20.cifar100", (1, -1): "cnn_resnet20.cifar100"}),
    ],
)
def test_the_page_of_reproductions_shows_the_same_accuracies(head: str, names: dict[tuple[int, int], str]) -> None:
    (table,) = re.findall(rf"^\| {head}\|.*\n\|[-| :]+\n((?:\|.*\n)+)", REPRODUCTIONS, re.M)
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()]
    rows = accuracies()
    for (row, column), name in names.items():
        assert cells[row][column] == figures(rows[name])[0]


def test_the_page_of_reproductions_shows_the_same_accuracies_of_bytes() -> None:
    (table,) = re.findall(r"^\| in bytes \|.*\n((?:\|.*\n)+)", REPRODUCTIONS, re.M)
    shown = {name: figures for name, *figures in re.findall(r"^\| `(.*)` \| (.*) \| (.*) \|$", table, re.M)}
    rows = accuracies()
    expected = {
        name: [figures(rows[each])[0].partition(" ")[0] for each in (name, re.sub(r"_u\d$", "", name))]
        for name in rows
        if re.search(r"_u\d$", name)
    }
    assert shown == expected


def test_the_page_of_reproductions_shows_the_same_figures_of_bicubic_interpolation() -> None:
    (row,) = re.findall(r"^\| bicubic interpolation, PSNR.*\n((?:\|.*\n)+)", REPRODUCTIONS, re.M)
    shown = {}
    for name, scales, measured in re.findall(r"^\| (\w+) ([x\d, ]+) \| ([^|]+) \|", row, re.M):
        shown |= {
            (name, scale): figures for scale, figures in zip(scales.split(", "), measured.split(", "), strict=True)
        }
    rows = json.loads((WEIGHTS / "results.json").read_text())["bicubic"]["test_sets"]
    assert shown == {(row["dataset"], f"x{row['scale']}"): f"{row['psnr']:.2f}/{row['ssim']:.4f}" for row in rows}


def test_the_page_of_reproductions_shows_the_same_figures_of_super_resolution() -> None:
    """In its tables of networks, one a scale, a column a test set."""
    pattern = r"^\| network \| tag \| (Set5 [^\n]+) \|\n\|[-| :]+\n((?:\|.*\n)+)"
    shown = {}
    for head, body in re.findall(pattern, REPRODUCTIONS, re.M):
        for name, tag, figures in re.findall(r"^\| `(\w+)` \| `(\w+)` \| ([^\n]+) \|$", body, re.M):
            shown[f"{name}.{tag}"] = dict(zip(head.split(" | "), figures.split(" | "), strict=True))
    rows = json.loads((WEIGHTS / "results.json").read_text())
    expected = {
        name: {
            f"{each['dataset']} x{each['scale']}": f"{each['psnr']:.2f} / {each['ssim']:.4f}"
            for each in row["test_sets"]
        }
        for name, row in rows.items()
        if name != "bicubic" and "test_sets" in row
    }
    assert shown == expected


def test_the_listed_accuracies_are_those_of_the_file(networks: dict[str, ModelInfo]) -> None:
    rows = json.loads((WEIGHTS / "results.json").read_text())
    listed = {
        f"{name}.{weights.tag}": asdict(weights.measured)
        for name, network in networks.items()
        for weights in network.pretrained
        if weights.measured
    }
    assert json.loads(json.dumps(listed)) == {name: row for name, row in rows.items() if name != "bicubic"}


def test_weights_that_nobody_measured_have_no_accuracy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(adderzoo.catalogue.read_results, "__defaults__", (tmp_path / "none.json",))
    (network,) = adderzoo.catalogue.networks("adder_lenet5")
    assert "digits" in {weights.tag for weights in network.pretrained}
    assert [(weights.tag, weights.measured) for weights in network.pretrained] == [
        (tag, None) for tag in published_tags("adder_lenet5")
    ]


def test_a_result_replaces_its_own_row_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    a, b, c = (Accuracy("data", 100, top1, 4.0, "command") for top1 in (80.0, 81.0, 82.0))
    write_result("z_net.a", a, path)
    write_result("a_net.a", b, path)
    write_result("z_net.a", c, path)
    assert read_results(path) == {"a_net.a": b, "z_net.a": c}
    assert list(json.loads(path.read_text())) == ["a_net.a", "z_net.a"]
    assert read_results(RESULTS).keys() == json.loads((WEIGHTS / "results.json").read_text()).keys()


def test_accuracies_and_qualities_lie_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    accuracy = Accuracy("data", 100, 80.0, 4.0, "command")
    quality = Quality((SetQuality("Set5", 2, 5, 36.5, 0.95), SetQuality("Set5", 3, 5, 32.5, 0.9)), "command", "Adam.")
    write_result("b_net.a", quality, path)
    write_result("a_net.a", accuracy, path)
    assert read_results(path) == {"a_net.a": accuracy, "b_net.a": quality}
    assert json.loads(path.read_text())["b_net.a"]["test_sets"][1] == {
        "dataset": "Set5", "scale": 3, "images": 5, "psnr": 32.5, "ssim": 0.9
    }  # fmt: skip
    assert [each.name for each in quality.test_sets] == ["Set5 x2", "Set5 x3"]


def test_networks_for_super_resolution_have_a_scale(networks: dict[str, ModelInfo]) -> None:
    for name, network in networks.items():
        expected = {"edsr": int(name[-1]) if name[-1].isdigit() else None, "vdsr": 2, "bicubic": 2}
        kind = next((kind for kind in expected if kind in name), "")
        assert network.scale == expected.get(kind)
        assert (network.scale is None) == (network.task == "image-classification")


def test_a_row_that_does_not_say_how_the_weights_were_trained_is_read_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    old = {"dataset": "data", "images": 9, "top1": 1.0, "top1_se": 3.32, "command": "command"}
    path.write_text(json.dumps({"old_net.a": old}))
    assert read_results(path)["old_net.a"] == Accuracy(**old, recipe="")
    write_result("new_net.a", Accuracy("data", 100, 80.0, 4.0, "command", "SGD."), path)
    rows = json.loads(path.read_text())
    assert rows["old_net.a"] == old
    assert rows["new_net.a"]["recipe"] == "SGD."


@pytest.fixture
def digits_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits", CHECKOUT / "scripts" / "reproduce" / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_rows_say_how_the_script_trains(digits_script: ModuleType) -> None:
    rows = json.loads((WEIGHTS / "results.json").read_text())
    for name in ("adder_lenet5", "cnn_lenet5"):
        assert rows[f"{name}.digits"]["recipe"] == digits_script.recipe(name)
    digits_script.EPOCHS, digits_script.ETA = 7, 0.3
    assert "7 epochs" in digits_script.recipe("cnn_lenet5")
    assert "eta 0.3" in digits_script.recipe("adder_lenet5")
    assert "eta" not in digits_script.recipe("cnn_lenet5")


def test_the_recipe_writes_weights_rows_hashes_and_cards_that_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_script: ModuleType
) -> None:
    digits_script.EPOCHS = 1
    other = {"dataset": "data", "images": 9, "top1": 1.0, "top1_se": 3.32, "command": "command"}
    (tmp_path / "results.json").write_text(json.dumps({"other_net.data": other}))
    monkeypatch.setattr(sys, "argv", ["digits.py", "--out", str(tmp_path)])
    digits_script.main()
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows.pop("other_net.data") == other
    assert rows.keys() == {"adder_lenet5.digits", "cnn_lenet5.digits"}
    sums = dict(reversed(line.split()) for line in (tmp_path / "SHA256SUMS").read_text().splitlines())
    for name, row in rows.items():
        file = tmp_path / f"{name}.safetensors"
        assert_equal_to_metadata(row, metadata(file))
        assert (row["images"], row["command"]) == (899, "python scripts/reproduce/digits.py")
        assert sums[file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"Top-1 {row['top1']:.2f} ± " in file.with_suffix(".md").read_text(encoding="utf-8")
        assert "1 epochs" in row["recipe"]


def test_energy_is_of_known_types_alone(networks: dict[str, ModelInfo]) -> None:
    with pytest.raises(ValueError, match="type must be one of float32, int8, got 'int4'"):
        networks["adder_lenet5"].energy("int4")
