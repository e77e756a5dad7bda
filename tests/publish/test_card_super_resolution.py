"""Model cards of networks for super-resolution: those in the package, and of small networks made for the test."""

import json
import math
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from cards import code, section, table
from PIL import Image
from registry import TOYS, add_toys
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from adderzoo.catalogue import task
from adderzoo.cli import main
from adderzoo.layers import Adder2d
from adderzoo.layers.image import BicubicUpsample
from adderzoo.publish.card import model_card

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = Path(__file__).resolve().parent.parent.parent / "adderzoo" / "weights"
COMMITTED = [path.stem for path in sorted(WEIGHTS.glob("*.safetensors")) if task(path.stem) == "super-resolution"]
ALL = [*COMMITTED, *TOYS]
EDSR, CNN_EDSR, VDSR, CNN_VDSR = TOYS


def quality(dataset: str, scale: int, images: int, psnr: float, ssim: float) -> dict[str, Any]:
    return {"dataset": dataset, "scale": scale, "images": images, "psnr": psnr, "ssim": ssim}


def row(*test_sets: dict[str, Any]) -> dict[str, Any]:
    return {"test_sets": test_sets, "command": "bash it.sh", "recipe": "Adam on some photographs."}


ROWS = {
    EDSR: row(quality("Set5", 2, 5, 36.5, 0.9541), quality("Set14", 2, 14, 32.25, 0.9034)),
    CNN_EDSR: row(quality("Set5", 2, 5, 36.8, 0.956), quality("Set14", 2, 12, 32.45, 0.905)),
    VDSR: row(quality("Set5", 2, 5, 37.25, 0.957), quality("Set5", 3, 5, 33.2, 0.912), quality("mine", 4, 1, 30, 0.8)),
    CNN_VDSR: row(quality("Set5", 3, 5, 33.1, 0.911), quality("Set5", 2, 5, 37.25, 0.957)),
    "bicubic": row(quality("Set5", 2, 5, 33.68, 0.9304), quality("Set5", 3, 5, 30.41, 0.869)),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With random weights of the small networks, and what was measured of them."""
    add_toys(monkeypatch, tmp_path)
    for seed, name in enumerate(TOYS):
        torch.manual_seed(seed)
        model = timm.create_model(name)
        for parameter in model.parameters():  # VDSR begins as bicubic interpolation, with a last layer of 0
            nn.init.normal_(parameter, std=0.05)
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    (tmp_path / "results.json").write_text(json.dumps(ROWS))
    return tmp_path


@pytest.fixture
def card(folder: Path) -> Callable[[str], str]:
    """The card of a small network, or the committed one."""
    return lambda name: (
        model_card(name, folder) if name in TOYS else (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")
    )


def rows_of(name: str) -> dict[str, Any]:
    return ROWS if name in TOYS else json.loads((WEIGHTS / "results.json").read_text())


def twin_of(name: str) -> str:
    return name.replace("adder_", "cnn_") if name.startswith("adder_") else name.replace("cnn_", "adder_")


@pytest.mark.parametrize("name", ALL)
def test_front_matter_says_what_it_is_and_no_more(name: str, card: Callable[[str], str]) -> None:
    _, front, rest = card(name).split("---\n", 2)
    assert rest.startswith(f"\n# {name}\n\n")
    said = yaml.safe_load(front)
    (index,) = said.pop("model-index")
    assert index["name"] == name
    found = [
        (each["dataset"]["name"], {one["type"]: one["value"] for one in each["metrics"]}) for each in index["results"]
    ]
    sets = rows_of(name)[name]["test_sets"]
    assert found == [
        (f"{each['dataset']} x{each['scale']}", {key: each[key] for key in ("psnr", "ssim")}) for each in sets
    ]
    assert said == {
        "license": timm.get_pretrained_cfg(name).license,
        "library_name": "adderzoo",
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "adderzoo", *(["adder-network"] if name.startswith("adder_") else [])],
    }


@pytest.mark.parametrize("name", ALL)
def test_figures_are_those_that_were_measured(name: str, card: Callable[[str], str]) -> None:
    def shown(other: str, wanted: dict[str, Any]) -> str:
        for each in rows_of(name).get(other, {"test_sets": []})["test_sets"]:
            if all(each[key] == wanted[key] for key in ("dataset", "scale", "images")):
                return f"{each['psnr']:.2f} / {each['ssim']:.4f}"
        return "-"

    network, twin = name.partition(".")[0], twin_of(name).partition(".")[0]
    cells = table(section(card(name), "Image quality"))
    assert cells.pop("PSNR in dB / SSIM")[:4] == [
        "images", f"`{network}`", f"its twin `{twin}`", "bicubic interpolation"
    ]  # fmt: skip
    assert cells.pop("---") == ["---:"] * 6
    measured = rows_of(name)[name]["test_sets"]
    assert list(cells) == [f"{each['dataset']} x{each['scale']}" for each in measured]
    for each, (images, *figures, _, _) in zip(measured, cells.values(), strict=True):
        assert images == str(each["images"])
        assert figures == [shown(other, each) for other in (name, twin_of(name), "bicubic")]
    training = rows_of(name)[name]["recipe"]
    if name in COMMITTED:
        with safe_open(WEIGHTS / f"{name}.safetensors", "pt") as weights:
            said = weights.metadata()
        assert ("trained_from" in said) == bool(re.search("_x[34]$", network))
        training += f" The training started from {said['trained_from']}." if "trained_from" in said else ""
    assert section(card(name), "Training").startswith(f"{training}\n")
    assert code(card(name), "bash") == f"{rows_of(name)[name]['command']}\n"


def test_gaps_are_the_adder_networks_on_both_cards_beside_the_papers(card: Callable[[str], str]) -> None:
    gaps = {
        name: {first: cells[-2:] for first, cells in table(section(card(name), "Image quality")).items()}
        for name in TOYS
    }
    # AdderSR, Table 1: the adder network and its CNN.
    assert gaps[EDSR]["Set5 x2"] == gaps[CNN_EDSR]["Set5 x2"] == ["-0.30 dB", "-0.19 dB (37.92 less 38.11)"]
    assert gaps[EDSR]["Set14 x2"] == ["-", "-0.10 dB (33.82 less 33.92)"]  # the twin was measured on 12 images
    assert gaps[VDSR]["Set5 x2"] == gaps[CNN_VDSR]["Set5 x2"] == ["+0.00 dB", "-0.16 dB (37.37 less 37.53)"]
    assert gaps[VDSR]["Set5 x3"] == gaps[CNN_VDSR]["Set5 x3"] == ["+0.10 dB", "-0.19 dB (33.47 less 33.66)"]
    assert gaps[VDSR]["mine x4"] == ["-", "-"]
    assert "are those of EDSR of 32 blocks of 256 channels as its authors trained it" in card(EDSR)
    assert "are those of VDSR as its authors trained it" in card(CNN_VDSR)


@pytest.mark.parametrize("name", ALL)
def test_costs_are_those_of_the_layers_for_an_output_of_1280x720(name: str, card: Callable[[str], str]) -> None:
    counts: dict[type, int] = {}

    def add(module: nn.Module, _: object, output: torch.Tensor) -> None:
        counts[type(module)] = counts.get(type(module), 0) + output.numel() * math.prod(module.weight.shape[1:])

    text = section(card(name), "Cost")
    cells = table(text)
    height, width = re.findall(r"For one image of 3x(\d+)x(\d+) .*, which becomes 3x720x128[01]\.", text)[0]
    for column, each in enumerate((name, twin_of(name))):
        counts.clear()
        with torch.device("meta"):
            model = timm.create_model(each.partition(".")[0]).eval()
            for module in model.modules():
                if isinstance(module, Adder2d | nn.Conv2d | BicubicUpsample):
                    module.register_forward_hook(add)
            larger = model(torch.empty(1, 3, int(height), int(width)))
        assert larger.shape[2] == 720
        adder = counts.pop(Adder2d, 0)
        assert cells["multiply-adds of convolutions and linear layers"][column] == f"{sum(counts.values()):,}"
        assert cells[r"elements `\|x - w\|` of adder layers"][column] == f"{adder:,}"
        assert (adder > 0) == each.startswith("adder_")
        assert cells["parameters"][column] == f"{sum(parameter.numel() for parameter in model.parameters()):,}"


@pytest.mark.parametrize("name", ALL)
def test_the_usage_runs_as_it_stands_and_writes_what_the_network_gives(
    name: str,
    card: Callable[[str], str],
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the network is not to be used")

    program = code(card(name), "python")
    out = tmp_path_factory.mktemp("use")
    photo = Image.effect_noise((64, 48), 64).convert("RGB")
    monkeypatch.chdir(out)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(Image, "effect_noise", lambda size, sigma: photo)
    exec(program, {})

    model = timm.create_model(name.partition(".")[0]).eval()
    model.load_state_dict(load_file((folder if name in TOYS else WEIGHTS) / f"{name}.safetensors"))
    with torch.inference_mode():
        expected = model(pil_to_tensor(photo)[None].float() / 255)[0].clamp(0, 1) * 255
    assert capsys.readouterr().out == f"64 48 -> {64 * model.scale} {48 * model.scale}\n"
    with Image.open("larger.png") as larger:
        assert (pil_to_tensor(larger) - expected).abs().max() < 0.51  # half a step by rounding

    with torch.inference_mode():
        exact = model.double()(pil_to_tensor(photo)[None].double() / 255)[0].clamp(0, 1) * 255
    rounding = (expected - exact).abs().max().item()  # of float32, whose order of additions is another one when fused
    photo.save("PHOTO.png")
    (command,) = re.findall(r"`adderzoo (upscale PHOTO .*?)`", card(name))
    assert main(command.replace("PHOTO", "PHOTO.png").split()) == 0
    with Image.open("LARGER.png") as larger:
        assert (pil_to_tensor(larger) - exact).abs().max() < 0.5 + max(0.01, 3 * rounding)
    assert rounding < 0.05


def test_a_network_that_was_measured_at_several_scales_says_so(card: Callable[[str], str]) -> None:
    assert "it makes images 2, 3 or 4 times as wide and high" in card(VDSR)
    assert "it makes images 2 times as wide and high" in card(EDSR)
    assert "other scales than 2 too: `scale=3`, `--scale 3`" in card(VDSR)
    assert "`scale=3`" not in card(EDSR)
    assert timm.create_model(VDSR, pretrained=True, scale=3)(torch.rand(1, 3, 8, 8)).shape == (1, 3, 24, 24)


@pytest.mark.parametrize("name", ALL)
def test_both_papers_are_to_be_cited(name: str, card: Callable[[str], str]) -> None:
    citation = section(card(name), "Citation")
    assert re.findall(r"^@inproceedings{(\w+),", citation, re.MULTILINE) == ["song2021addersr", "chen2020addernet"]


def test_weights_without_a_twin_or_baseline_are_shown_alone(folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps({EDSR: ROWS[EDSR]}))
    cells = table(section(model_card(EDSR, folder), "Image quality"))
    assert cells["Set5 x2"] == ["5", "36.50 / 0.9541", "-", "-", "-", "-0.19 dB (37.92 less 38.11)"]
