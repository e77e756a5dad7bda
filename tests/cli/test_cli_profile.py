import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from commands import Done
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from adderzoo import catalogue, models

Command = Callable[..., Done]


def table(text: str) -> dict[str, list[str]]:
    """Cells by the first one of their line; two spaces or more are between them."""
    return {cells[0]: cells[1:] for cells in (re.split(r"  +", line) for line in text.splitlines())}


def sections(done: Done) -> tuple[str, dict[str, list[str]], dict[str, list[str]], list[str]]:
    """Title, layers, totals, and what else there is."""
    assert done.status == 0, done
    assert all(re.fullmatch(r"adderzoo profile: .+ images in .+", line) for line in done.rest), done
    title, layers, totals, *others = done.out.rstrip("\n").split("\n\n")
    return title, table(layers), table(totals), others


def test_every_layer_and_the_sum(adderzoo: Command) -> None:
    title, layers, totals, others = sections(adderzoo("profile", "--model", "adder_resnet20.cifar10"))
    assert title == "adder_resnet20, one image of 3x32x32"
    assert others == []
    assert layers["layer"] == ["type", "#Mul", "#Add", "params"]
    assert layers["conv1"] == ["Conv2d", "442,368", "442,368", "432"]  # 3 * 9 * 16 * 32 * 32
    assert layers["layer1.0.conv1"] == ["Adder2d", "0", "4,718,592", "2,304"]  # 2 * 16 * 9 * 16 * 32 * 32
    assert layers["bn2"] == ["BatchNorm2d", "10", "10", "20"]
    rows = [[int(cell.replace(",", "")) for cell in cells[-3:]] for cells in list(layers.values())[1:-1]]
    (network,) = catalogue.networks("adder_resnet20")
    assert [int(cell.replace(",", "")) for cell in layers["total"]] == [
        sum(column) for column in zip(*rows, strict=True)
    ]
    assert layers["total"][-1] == f"{network.parameters:,}"
    assert totals["network"] == ["adder_resnet20", "cnn_resnet20"]
    assert totals["#Mul"][0] == layers["total"][0]
    assert totals["#Add"][0] == layers["total"][1]
    assert totals["bytes in float32"] == [f"{4 * network.parameters:,}"] * 2


def test_json_has_everything(adderzoo: Command, tmp_path: Path) -> None:
    file = tmp_path / "new" / "p.json"
    done = adderzoo("profile", "--model", "cnn_resnet20", "--json", file)
    _, layers, totals, _ = sections(done)
    read = json.loads(file.read_text())
    assert (read["model"], read["input_size"]) == ("cnn_resnet20", [3, 32, 32])
    for row in read["layers"]:
        assert layers[row["name"]] == [row["type"], f"{row['mul']:,}", f"{row['add']:,}", f"{row['parameters']:,}"]
        assert row["xnor"] == row["shift"] == 0
    assert len(read["layers"]) == len(layers) - 2
    assert list(read["networks"]) == totals["network"] == ["cnn_resnet20", "adder_resnet20"]
    cnn, adder = read["networks"].values()
    norms = (
        7 * (16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8) + 10
    )  # outputs of BatchNorm, in the second and third stage of
    first, others = 443_008, 40_370_176  # the 1x1 layers beside the blocks too; first convolution and classifier
    assert (cnn["mul"], cnn["add"]) == (others + first + norms,) * 2
    assert (adder["mul"], adder["add"]) == (first + norms, 2 * others + first + norms)
    assert cnn["latency_cycles"] == 6 * cnn["mul"]
    assert cnn["energy_mj"]["float32"] == pytest.approx(4.6e-9 * cnn["mul"])
    assert cnn["energy_mj"]["int8"] == pytest.approx(0.23e-9 * cnn["mul"])
    assert cnn["parameters"] == adder["parameters"] == 272_484
    assert cnn["bytes"] == {"float32": 1_089_936, "int8": 270_896 - 432 - 640 + 432 + 640 + 4 * (272_484 - 270_896)}


def test_any_network_and_image(adderzoo: Command) -> None:
    arguments = ("--num-classes", 7, "--img-size", 64, "--in-chans", 1, "--mean", 0.5, "--std", 0.5)
    done = adderzoo("profile", "-m", "resnet18", "--random-weights", *arguments)
    title, layers, totals, _ = sections(done)
    assert title == "resnet18, one image of 1x64x64"
    assert layers["conv1"] == ["Conv2d", *["3,211,264"] * 2, "3,136"]  # 49 * 64 * 32 * 32
    assert layers["fc"] == ["Linear", "3,584", "3,584", "3,591"]
    assert totals["network"] == ["resnet18"]


def test_a_network_in_a_folder_is_the_one_that_its_configuration_says(adderzoo: Command, tmp_path: Path) -> None:
    model = timm.create_model("adder_lenet5.digits", pretrained=True)
    save_for_hf(model, tmp_path)
    title, _, totals, _ = sections(adderzoo("profile", "--model", f"local-dir:{tmp_path}"))
    assert title == "adder_lenet5, one image of 1x32x32"
    assert totals["network"] == ["adder_lenet5", "cnn_lenet5"]


def test_the_twin_has_the_same_arguments(adderzoo: Command) -> None:
    arguments = ("--num-classes", 7, "--in-chans", 1, "--model-kwargs", "widths=(4,6,8)", "conv_layer=adder")
    done = adderzoo("profile", "-m", "cnn_resnet20", "--random-weights", *arguments)
    assert "images are normalized with mean 0.4734 and std 0.2009\n" in done.err
    done.err = ""
    title, layers, totals, _ = sections(done)
    assert title == "cnn_resnet20, one image of 1x32x32"
    assert layers["layer1.0.conv1"][0] == "Adder2d"
    assert totals["network"] == ["cnn_resnet20", "adder_resnet20"]
    assert len({*totals["parameters"]}) == len({*totals["#Add"]}) == 1


def test_networks_for_super_resolution_and_without_parameters(adderzoo: Command) -> None:
    title, _, totals, _ = sections(adderzoo("profile", "--model", "adder_vdsr", "--img-size", 24))
    assert title == "adder_vdsr, one image of 3x24x24"
    assert totals["network"] == ["adder_vdsr", "cnn_vdsr"]
    totals = sections(adderzoo("profile", "--model", "bicubic"))[2]
    assert totals["parameters"] == ["0"]


def test_xnors_and_shifts_are_shown_where_there_are_some(adderzoo: Command) -> None:
    _, layers, totals, _ = sections(adderzoo("profile", "--model", "bnn_resnet20", "--random-weights"))
    assert layers["layer"] == ["type", "#Mul", "#Add", "#XNOR", "params"]
    assert totals["network"] == ["bnn_resnet20", "cnn_resnet20"]
    assert totals["#XNOR"] == ["40,370,176", "0"]
    assert totals["latency, cycles"][0] == "-"
    _, layers, totals, _ = sections(adderzoo("profile", "--model", "shiftadd_resnet20", "--random-weights"))
    assert layers["layer"] == ["type", "#Mul", "#Add", "#Shift", "params"]
    assert totals["#Shift"] == ["40,370,176", "0"]


def test_a_quantized_checkpoint(adderzoo: Command, digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.safetensors"
    network = ("--model", "adder_lenet5.digits")
    done = adderzoo("quantize", file, *network, "--data-dir", digits / "train", "--workers", 0)
    assert done.status == 0, done
    _, layers, totals, _ = sections(adderzoo("profile", "--model", "adder_lenet5", "--checkpoint", file))
    assert layers["conv1"] == ["QuantizedAdder2d", "4,704", "239,904", "162"]
    assert totals["parameters"] == ["61,942"] * 2
    assert totals["#Mul"] == ["6,518", "423,038"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "adder_resnet20", "--img-size", 0), "img-size must be at least 1, got 0"),
        (("--model", "adder_lenet5", "--img-size", 8), "model must take one image of 1x8x8 on the meta device: "),
        (("--model", "adder_nothing"), "model must be a registered network, got 'adder_nothing'"),
    ],
)
def test_bad_input_is_one_line(adderzoo: Command, arguments: tuple[object, ...], message: str) -> None:
    done = adderzoo("profile", *arguments)
    assert done.error.startswith(f"adderzoo profile: error: {message}")


def test_the_guide_shows_these_totals(adderzoo: Command) -> None:
    guide = (Path(__file__).resolve().parent.parent.parent / "docs" / "pages" / "guides" / "profile.md").read_text()
    totals = adderzoo("profile", "--model", "adder_resnet20").out.split("\n\n")[2]
    assert f"\n```console\n$ adderzoo profile -m adder_resnet20\n...\n{totals}```\n" in guide


# ------------------------------------------------------------------------------------------------------------ pictures

PICTURES = ["filters.png", "first_layer.png", "operations.png", "ranges.png"]


def written(folder: Path) -> list[str]:
    """Pictures in a folder, with nothing else in it."""
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert (image.format, image.width) == ("PNG", 1440)
    return sorted(path.name for path in folder.iterdir())


def test_pictures_of_published_weights_and_images(adderzoo: Command, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "plots"
    done = adderzoo(
        "profile", "--model", "adder_lenet5.mnist", "--plots", folder,
        "--data-dir", digits / "train", "--images", 20, "--workers", 0,
    )  # fmt: skip
    *_, (pictures,) = sections(done)
    assert pictures.splitlines() == [
        f"{folder}/operations.png: adder_lenet5, cnn_lenet5",
        f"{folder}/first_layer.png: adder_lenet5, cnn_lenet5",
        f"{folder}/filters.png: Laplace fits the layers better than Gaussian: 5 of 5 in adder_lenet5, "
        "1 of 5 in cnn_lenet5",
        f"{folder}/ranges.png: filters, and inputs for 20 images",
    ]
    assert written(folder) == PICTURES


def test_pictures_of_a_checkpoint_are_without_the_twins_filters(adderzoo: Command, tmp_path: Path) -> None:
    weights = models.WEIGHTS / "adder_lenet5.digits.safetensors"
    done = adderzoo("profile", "--model", "adder_lenet5", "--checkpoint", weights, "--plots", tmp_path)
    lines = sections(done)[3][0].splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "adder_lenet5, cnn_lenet5",
        "adder_lenet5",
        "Laplace fits the layers better than Gaussian: 5 of 5 in adder_lenet5",
        "filters",
    ]
    assert written(tmp_path) == PICTURES


def test_pictures_of_any_network(adderzoo: Command, tmp_path: Path) -> None:
    done = adderzoo("profile", "--model", "resnet10t", "--random-weights", "--plots", tmp_path)
    assert (done.status, done.err) == (0, "adderzoo profile: resnet10t, random weights\n")
    assert written(tmp_path) == PICTURES


def test_layers_of_zeros_are_left_out_of_the_pictures_of_filters(adderzoo: Command, tmp_path: Path) -> None:
    weights = load_file(models.WEIGHTS / "adder_lenet5.digits.safetensors")
    weights["conv1.weight"].zero_()
    save_file(weights, tmp_path / "zeros.safetensors")
    command = ("profile", "--model", "adder_lenet5", "--checkpoint", tmp_path / "zeros.safetensors", "--plots")
    done = adderzoo(*command, tmp_path / "plots")
    assert "Laplace fits the layers better than Gaussian: 4 of 4 in adder_lenet5\n" in done.out
    assert written(tmp_path / "plots") == PICTURES

    save_file({name: torch.zeros_like(weight) for name, weight in weights.items()}, tmp_path / "zeros.safetensors")
    done = adderzoo(*command, tmp_path / "none")
    assert done.status == 0
    assert written(tmp_path / "none") == [name for name in PICTURES if name != "filters.png"]


def test_a_network_without_filters_has_a_picture_of_its_operations(adderzoo: Command, tmp_path: Path) -> None:
    done = adderzoo("profile", "--model", "bicubic", "--plots", tmp_path)
    assert done.status == 0
    assert done.rest[0].startswith("adderzoo profile: no pictures of filters: model must have convolutions, ")
    assert written(tmp_path) == ["operations.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data-dir", "images"), "data-dir and dataset are for plots: name a folder for these"),
        (("--plots", "plots", "--data-dir", "absent"), "data-dir must be"),
        (("--plots", "plots", "--data-dir", "absent", "--images", 0), "images must be at least 1, got 0"),
    ],
)
def test_images_that_are_none(
    adderzoo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = adderzoo("profile", "--model", "adder_lenet5.digits", *arguments)
    assert done.error.startswith(f"adderzoo profile: error: {message}")
    assert not any(tmp_path.iterdir())


def test_without_matplotlib(adderzoo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = adderzoo("profile", "--model", "adder_lenet5", "--plots", tmp_path / "plots")
    assert "pictures need matplotlib" in done.error
    assert not (tmp_path / "plots").exists()
